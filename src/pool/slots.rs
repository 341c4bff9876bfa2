//! Slots: who owns which, and where the next job goes. Pure.
//!
//! A lease and an environment that belong together carry the same environment id, and are *one* owner of a slot.
//! Nothing is counted up and down: occupancy is derived from the objects on every look.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

/// A numbered place for one job on an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The instance's name.
    pub instance: String,
    /// `0 .. slots of the instance`.
    pub index: u32,
}

/// An instance as the planner sees it, in order of preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// How many slots it has.
    pub slots: u32,
    /// Whether a job can be started on it now.
    pub ready: bool,
}

/// An open lease as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The lease's name.
    pub lease: String,
    /// Its environment.
    pub environment: String,
    /// The slot it holds, by its status or by a reservation of this process that the status does not show yet.
    pub slot: Option<Slot>,
    /// Whether it wakes an environment: its slot is the environment's, and no other.
    pub resumes: bool,
    /// When GitLab handed the job out.
    pub accepted_at: Timestamp,
}

/// An environment as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sleeper {
    /// Its id.
    pub environment: String,
    /// The slot it owns.
    pub slot: Slot,
    /// Whether no job uses it.
    pub asleep: bool,
}

/// All that slots are decided from: possibly a moment old, but never older than this process's own writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Instances in order of preference.
    pub instances: Vec<Instance>,
    /// Open leases.
    pub claimants: Vec<Claimant>,
    /// Environments that exist, in whatever phase.
    pub sleepers: Vec<Sleeper>,
    /// Slots whose last job has ended without a word of its host: what is left there is not known.
    pub quarantined: BTreeSet<Slot>,
    /// Most open leases.
    pub concurrency: u32,
}

/// Where jobs go, and why others wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignments {
    /// Lease names with the slots they get.
    pub placed: Vec<(String, Slot)>,
    /// Names of leases that wait for a slot.
    pub waiting: Vec<String>,
}

impl View {
    /// The environments that own each slot: one, unless something went wrong outside.
    pub fn owners(&self) -> BTreeMap<Slot, BTreeSet<&str>> {
        let mut owners: BTreeMap<Slot, BTreeSet<&str>> = BTreeMap::new();
        for sleeper in &self.sleepers {
            owners.entry(sleeper.slot.clone()).or_default().insert(&sleeper.environment);
        }
        for claimant in &self.claimants {
            if let Some(slot) = &claimant.slot {
                owners.entry(slot.clone()).or_default().insert(&claimant.environment);
            }
        }
        owners
    }

    /// Slots of ready instances that nobody owns and nothing is left on, in order of preference.
    pub fn free(&self) -> Vec<Slot> {
        let owners = self.owners();
        self.instances
            .iter()
            .filter(|instance| instance.ready)
            .flat_map(|instance| {
                (0..instance.slots).map(|index| Slot { instance: instance.name.clone(), index })
            })
            .filter(|slot| !owners.contains_key(slot) && !self.quarantined.contains(slot))
            .collect()
    }

    /// Environments that sleep.
    pub fn asleep(&self) -> usize {
        self.sleepers.iter().filter(|sleeper| sleeper.asleep).count()
    }

    fn waiting(&self) -> Vec<&Claimant> {
        let mut waiting: Vec<&Claimant> =
            self.claimants.iter().filter(|claimant| claimant.slot.is_none() && !claimant.resumes).collect();
        waiting.sort_by(|a, b| (a.accepted_at, &a.lease).cmp(&(b.accepted_at, &b.lease)));
        waiting
    }
}

/// Gives free slots to waiting leases, the longest waiting first. Jobs are packed: an instance is filled before the
/// next one is begun.
pub fn assign(view: &View) -> Assignments {
    let mut free = view.free().into_iter();
    let mut assignments = Assignments::default();
    for claimant in view.waiting() {
        match free.next() {
            Some(slot) => assignments.placed.push((claimant.lease.clone(), slot)),
            None => assignments.waiting.push(claimant.lease.clone()),
        }
    }
    assignments
}

/// Whether GitLab may be asked for one more job, as far as slots go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Yes,
    /// As many jobs as the pool may have are open.
    AtConcurrency,
    /// No instance can be reached.
    NoReachableHost,
    /// Every slot is in use by a job, or in quarantine.
    NoSlot,
}

/// Whether one more job may be asked for. GitLab cannot be asked for resumes only, and a resume needs no free slot:
/// so a pool with a sleeping environment goes on asking, up to its concurrency, even where every slot is taken. Were
/// the plain jobs that wait by then counted against it, one of them would keep every resume away.
pub fn room(view: &View) -> Room {
    if view.claimants.len() >= view.concurrency as usize {
        return Room::AtConcurrency;
    }
    if !view.instances.iter().any(|instance| instance.ready) {
        return Room::NoReachableHost;
    }
    if view.asleep() > 0 || view.waiting().len() < view.free().len() { Room::Yes } else { Room::NoSlot }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(instance: &str, index: u32) -> Slot {
        Slot { instance: instance.into(), index }
    }

    fn claimant(job: u32, slot: Option<Slot>) -> Claimant {
        Claimant {
            lease: format!("p-{job}"),
            environment: format!("e{job}"),
            slot,
            resumes: false,
            accepted_at: Timestamp::from_second(i64::from(job)).unwrap(),
        }
    }

    fn two_hosts() -> View {
        View {
            instances: ["a", "b"]
                .into_iter()
                .map(|name| Instance { name: name.into(), slots: 2, ready: true })
                .collect(),
            concurrency: 10,
            ..View::default()
        }
    }

    #[test]
    fn the_first_two_jobs_share_a_host_and_the_third_lands_on_another() {
        let mut view = two_hosts();
        view.claimants = vec![claimant(3, None), claimant(1, None), claimant(2, None)];
        assert_eq!(
            assign(&view).placed,
            [("p-1".into(), slot("a", 0)), ("p-2".into(), slot("a", 1)), ("p-3".into(), slot("b", 0))]
        );
    }

    #[test]
    fn a_lease_and_its_environment_are_one_owner() {
        let mut view = two_hosts();
        view.claimants = vec![claimant(1, Some(slot("a", 0)))];
        view.sleepers = vec![Sleeper { environment: "e1".into(), slot: slot("a", 0), asleep: false }];
        assert_eq!(view.owners()[&slot("a", 0)].len(), 1);
        assert_eq!(view.free().len(), 3);
    }

    #[test]
    fn a_pool_full_of_sleepers_still_asks_for_the_resume_that_would_free_one() {
        let mut view = two_hosts();
        view.sleepers = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
            .into_iter()
            .enumerate()
            .map(|(n, (host, index))| Sleeper {
                environment: format!("s{n}"),
                slot: slot(host, index),
                asleep: true,
            })
            .collect();
        assert_eq!(room(&view), Room::Yes);
        for sleeper in &mut view.sleepers {
            sleeper.asleep = false;
        }
        assert_eq!(room(&view), Room::NoSlot);
    }

    #[test]
    fn an_unreachable_pool_asks_for_nothing() {
        let mut view = two_hosts();
        for instance in &mut view.instances {
            instance.ready = false;
        }
        assert_eq!(room(&view), Room::NoReachableHost);
    }

    fn any_view() -> impl Strategy<Value = View> {
        let instances = proptest::collection::vec((1u32..4, any::<bool>()), 0..4);
        let occupants = proptest::collection::btree_map((0usize..4, 0u32..4), any::<(bool, bool)>(), 0..10);
        let quarantined = proptest::collection::btree_set((0usize..4, 0u32..4), 0..4);
        (instances, occupants, quarantined, 0u32..6, 0u32..12).prop_map(
            |(instances, occupants, quarantined, waiting, concurrency)| {
                let mut view = View {
                    quarantined: quarantined
                        .into_iter()
                        .map(|(host, index)| slot(&format!("h{host}"), index))
                        .collect(),
                    instances: instances
                        .into_iter()
                        .enumerate()
                        .map(|(n, (slots, ready))| Instance { name: format!("h{n}"), slots, ready })
                        .collect(),
                    concurrency,
                    ..View::default()
                };
                for (n, ((host, index), (with_lease, with_environment))) in occupants.into_iter().enumerate()
                {
                    let n = n as u32 + 100;
                    let slot = slot(&format!("h{host}"), index);
                    if with_lease {
                        view.claimants.push(claimant(n, Some(slot.clone())));
                    }
                    if with_environment {
                        let asleep = !with_lease;
                        view.sleepers.push(Sleeper { environment: format!("e{n}"), slot, asleep });
                    }
                }
                for n in 0..waiting {
                    view.claimants.push(claimant(n, None));
                }
                view
            },
        )
    }

    /// The view once the assignments have been carried out.
    fn applied(view: &View, assignments: &Assignments) -> View {
        let mut next = view.clone();
        for (lease, slot) in &assignments.placed {
            for claimant in &mut next.claimants {
                if claimant.lease == *lease {
                    claimant.slot = Some(slot.clone());
                }
            }
        }
        next
    }

    proptest! {
        #[test]
        fn a_slot_is_never_given_twice(view in any_view()) {
            let next = applied(&view, &assign(&view));
            for (slot, owners) in next.owners() {
                prop_assert_eq!(owners.len(), 1, "{:?}", slot);
            }
        }

        #[test]
        fn a_job_is_placed_only_on_a_ready_instance_within_its_slots_and_not_in_quarantine(view in any_view()) {
            for (_, slot) in assign(&view).placed {
                let instance = view.instances.iter().find(|instance| instance.name == slot.instance).unwrap();
                prop_assert!(instance.ready && slot.index < instance.slots);
                prop_assert!(!view.quarantined.contains(&slot));
            }
        }

        #[test]
        fn once_all_is_as_wished_there_is_nothing_to_do(view in any_view()) {
            let next = applied(&view, &assign(&view));
            prop_assert!(assign(&next).placed.is_empty());
            prop_assert_eq!(assign(&view), assign(&view));
        }

        #[test]
        fn no_job_is_asked_for_at_the_limit(view in any_view()) {
            if view.claimants.len() >= view.concurrency as usize {
                prop_assert_eq!(room(&view), Room::AtConcurrency);
            }
        }

        #[test]
        fn a_resume_is_never_given_a_free_slot(mut view in any_view()) {
            for claimant in &mut view.claimants {
                claimant.resumes = true;
            }
            prop_assert!(assign(&view).placed.is_empty());
        }
    }
}
