//! The jobs that this process drives now, with the stage each one's host has told last. For people who look, and for
//! metrics; nothing is decided from it, and it is empty after a restart.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::ResourceExt;

use super::seen::{self, JobPlace};
use crate::api::{JobLease, RunnerPool};
use crate::clock;
use crate::kube_ext::cache::Cache;

type Key = (String, String);

/// The driven jobs. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Driven {
    /// Stages by namespace and name of the lease. Locked for lines only.
    stages: Arc<Mutex<HashMap<Key, Option<String>>>>,
}

/// The mark of a job that is driven, for as long as it lives.
#[derive(Debug)]
pub struct Mark {
    driven: Driven,
    key: Key,
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.driven.stages().remove(&self.key);
    }
}

impl Driven {
    fn stages(&self) -> MutexGuard<'_, HashMap<Key, Option<String>>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job is driven from now on.
    pub fn enter(&self, namespace: &str, lease: &str) -> Mark {
        let key = (namespace.to_owned(), lease.to_owned());
        self.stages().insert(key.clone(), None);
        Mark { driven: self.clone(), key }
    }

    /// Its host says that it is in this stage.
    pub fn stage(&self, namespace: &str, lease: &str, stage: Option<&str>) {
        // Between two stages it is still in the one before.
        let Some(stage) = stage else { return };
        if let Some(known) = self.stages().get_mut(&(namespace.to_owned(), lease.to_owned())) {
            *known = Some(stage.to_owned());
        }
    }

    fn all(&self, leases: &Cache<JobLease>) -> Vec<(Arc<JobLease>, JobPlace)> {
        let stages = self.stages().clone();
        let known = stages.into_iter().filter_map(|((namespace, name), stage)| {
            let lease = leases.get(&namespace, &name)?;
            let place = seen::place(lease.phase(), stage.as_deref());
            Some((lease, place))
        });
        known.collect()
    }

    /// How many jobs of each pool, by namespace and name, are where.
    pub fn places(&self, leases: &Cache<JobLease>) -> BTreeMap<(String, String), BTreeMap<JobPlace, usize>> {
        let mut places: BTreeMap<(String, String), BTreeMap<JobPlace, usize>> = BTreeMap::new();
        for (lease, place) in self.all(leases) {
            let pool = (lease.namespace().unwrap_or_default(), lease.spec.pool.clone());
            *places.entry(pool).or_default().entry(place).or_default() += 1;
        }
        places
    }

    /// The jobs as lines, the oldest first.
    pub fn lines(&self, leases: &Cache<JobLease>, pools: &Cache<RunnerPool>) -> String {
        let now = clock::now();
        let mut all = self.all(leases);
        all.sort_by_key(|(lease, _)| (lease.spec.accepted_at.0, lease.spec.job_id));
        let line = |(lease, place): &(Arc<JobLease>, JobPlace)| {
            let pool = pools.get(&lease.namespace().unwrap_or_default(), &lease.spec.pool);
            let gitlab = pool.map(|pool| pool.spec.gitlab.url.clone()).unwrap_or_default();
            let lasts = now.duration_since(lease.spec.accepted_at.0);
            let lasts = Duration::try_from(lasts).unwrap_or(Duration::ZERO);
            seen::line(&gitlab, &lease.spec.project_path, lease.spec.job_id, place, lasts) + "\n"
        };
        all.iter().map(line).collect()
    }
}
