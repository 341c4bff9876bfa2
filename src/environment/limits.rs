//! Whether one more environment may be put to sleep.

/// What counts against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Population {
    /// Environments of the pool, asleep or in use.
    pub all: u32,
    /// Those of them that hold a slot of a running instance.
    pub hot: u32,
    /// Whether one of those can be moved to a colder tier, to make room.
    pub can_make_room: bool,
    /// Gibibytes they hold, with the one that comes.
    pub storage_gib: u32,
    /// Those of the job's project.
    pub of_project: u32,
}

/// The pool's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Slots of all hosts.
    pub slots: u32,
    /// Slots that environments may never hold.
    pub floor: u32,
    /// Environments of the pool, if limited further.
    pub max_environments: Option<u32>,
    /// Environments of one project, if limited.
    pub max_per_project: Option<u32>,
    /// Gibibytes, if limited.
    pub max_storage_gib: Option<u32>,
}

/// Why there may be none more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OverLimit {
    /// The pool has as many as it may.
    #[error(
        "the pool keeps {kept} of at most {limit} environments (spec.suspension.limits.maxEnvironments; by default \
         all slots less spec.suspension.slotFloor)"
    )]
    Pool {
        /// Environments now.
        kept: u32,
        /// The limit.
        limit: u32,
    },
    /// The pool's environments hold as much as they may.
    #[error(
        "with it the pool's environments would hold {wanted} of at most {limit} GiB \
         (spec.suspension.limits.maxStorageGiB)"
    )]
    Storage {
        /// What they would hold.
        wanted: u32,
        /// The limit.
        limit: u32,
    },
    /// The project has as many as it may.
    #[error(
        "the project keeps {kept} of at most {limit} environments (spec.suspension.limits.maxPerProject)"
    )]
    Project {
        /// Environments of the project now.
        kept: u32,
        /// The limit.
        limit: u32,
    },
}

/// Whether one more environment may be put to sleep.
///
/// # Errors
/// When a limit is reached.
pub fn admit(population: Population, limits: Limits) -> Result<(), OverLimit> {
    let below_floor = limits.slots.saturating_sub(limits.floor);
    if population.hot >= below_floor && !population.can_make_room {
        return Err(OverLimit::Pool { kept: population.hot, limit: below_floor });
    }
    if let Some(limit) = limits.max_environments.filter(|limit| population.all >= *limit) {
        return Err(OverLimit::Pool { kept: population.all, limit });
    }
    if let Some(limit) = limits.max_storage_gib.filter(|limit| population.storage_gib > *limit) {
        return Err(OverLimit::Storage { wanted: population.storage_gib, limit });
    }
    match limits.max_per_project {
        Some(limit) if population.of_project >= limit => {
            Err(OverLimit::Project { kept: population.of_project, limit })
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { slots: 4, floor: 1, max_environments: None, max_per_project: None, max_storage_gib: None }
    }

    fn population(all: u32, of_project: u32) -> Population {
        Population { all, hot: all, can_make_room: false, storage_gib: 0, of_project }
    }

    #[test]
    fn the_floor_is_never_eaten_whatever_the_limit_says() {
        assert_eq!(admit(population(2, 0), limits()), Ok(()));
        assert_eq!(admit(population(3, 0), limits()), Err(OverLimit::Pool { kept: 3, limit: 3 }));
        let generous = Limits { max_environments: Some(99), ..limits() };
        assert!(admit(population(3, 0), generous).is_err());
    }

    #[test]
    fn a_project_has_its_own_limit() {
        let limited = Limits { max_per_project: Some(1), ..limits() };
        assert_eq!(admit(population(1, 0), limited), Ok(()));
        assert_eq!(admit(population(1, 1), limited), Err(OverLimit::Project { kept: 1, limit: 1 }));
    }
}
