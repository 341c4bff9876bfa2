//! How much is done at a time. Every bound is one for the whole process, with what is in use and what waits as metrics;
//! what finds a bound full waits its turn, the first come first, and nothing is refused or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::{Metrics, Occupation};

/// Steps for environments: each is a write or two to the API server and perhaps a verb on a host.
const ENVIRONMENT_STEPS: usize = 16;

/// Changes of clouds. The client's own limits are below it; this bounds what waits for them.
const CLOUD_CHANGES: usize = 32;

/// Hosts that list what is on them.
const HOST_LISTS: usize = 16;

/// Connections being made: an unreachable host holds its place for the whole dial time-out.
const DIALS: usize = 64;

/// Requests to the API server that write, but for leaders' Leases, which wait for nothing.
const API_WRITES: usize = 64;

/// Log updates and results in GitLab, of one pool.
const GITLAB_JOBS: usize = 96;

/// Signs of life in GitLab, of one pool: they never take the places of what has something to say.
const GITLAB_KEEP_ALIVES: usize = 32;

/// Bytes of logs held for GitLab, over all jobs; what is beyond a job's share of it waits on the job's host.
const LOG_BYTES: usize = 64 * 1024 * 1024;

/// The least share of it that a job has, however many jobs there are.
const LEAST_LOG_SHARE: usize = 32 * 1024;

/// The bounds that all pools share. Cloning shares them.
#[derive(Clone)]
pub struct Bounds {
    /// Steps for environments.
    pub environment_steps: Bound,
    /// Changes of clouds.
    pub cloud_changes: Bound,
    /// Hosts that list what is on them.
    pub host_lists: Bound,
    /// SSH connections being made.
    pub dials: Bound,
    /// Writes to the API server.
    pub api_writes: Bound,
    /// Memory for logs.
    pub logs: LogMemory,
}

/// The bounds of the conversation of one pool with its GitLab: another pool's may be another server, which must not
/// wait for this one.
#[derive(Clone)]
pub struct GitLabBounds {
    /// Log updates and results.
    pub jobs: Bound,
    /// Signs of life.
    pub keep_alives: Bound,
}

impl Bounds {
    /// The bounds of a process.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            environment_steps: Bound::new("environment_steps", ENVIRONMENT_STEPS, metrics),
            cloud_changes: Bound::new("cloud_changes", CLOUD_CHANGES, metrics),
            host_lists: Bound::new("host_lists", HOST_LISTS, metrics),
            dials: Bound::new("ssh_dials", DIALS, metrics),
            api_writes: Bound::new("api_writes", API_WRITES, metrics),
            logs: LogMemory::default(),
        }
    }
}

/// Memory for logs on their way to GitLab, shared evenly by the jobs that are streamed. Cloning shares it.
#[derive(Clone, Default)]
pub struct LogMemory {
    jobs: Arc<AtomicUsize>,
}

/// One job's share; dropping it gives it to the others.
pub struct LogShare {
    jobs: Arc<AtomicUsize>,
}

impl LogMemory {
    /// A share for one more job.
    pub fn join(&self) -> LogShare {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        LogShare { jobs: Arc::clone(&self.jobs) }
    }
}

impl LogShare {
    /// How many bytes the job may hold now.
    pub fn bytes(&self) -> usize {
        share(self.jobs.load(Ordering::Relaxed))
    }
}

impl Drop for LogShare {
    fn drop(&mut self) {
        self.jobs.fetch_sub(1, Ordering::Relaxed);
    }
}

fn share(jobs: usize) -> usize {
    (LOG_BYTES / jobs.max(1)).max(LEAST_LOG_SHARE)
}

impl GitLabBounds {
    /// The bounds of a pool.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            jobs: Bound::new("gitlab_jobs", GITLAB_JOBS, metrics),
            keep_alives: Bound::new("gitlab_keep_alives", GITLAB_KEEP_ALIVES, metrics),
        }
    }
}

/// A number of places.
#[derive(Clone)]
pub struct Bound {
    places: Arc<Semaphore>,
    occupation: Occupation,
}

/// A place; dropping it gives it back.
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    _in_use: Counted,
}

impl Bound {
    fn new(name: &'static str, places: usize, metrics: &Metrics) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), occupation: metrics.bound(name) }
    }

    /// Waits for a place. Cancel-safe: who stops waiting loses its turn and nothing else.
    pub async fn enter(&self) -> Place {
        let waiting = Counted::new(&self.occupation, Occupation::waiting);
        // The semaphore is never closed; if it were, there would be no bound any more and nothing to wait for.
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        drop(waiting);
        Place { _permit: permit, _in_use: Counted::new(&self.occupation, Occupation::in_use) }
    }
}

/// One in a gauge, for as long as it lives.
struct Counted {
    occupation: Occupation,
    change: fn(&Occupation, i64),
}

impl Counted {
    fn new(occupation: &Occupation, change: fn(&Occupation, i64)) -> Self {
        change(occupation, 1);
        Self { occupation: occupation.clone(), change }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.change)(&self.occupation, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge(metrics: &Metrics, what: &str) -> String {
        let text = metrics.text().unwrap();
        let start = format!("dormouse_bound_{what}{{bound=\"b\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("none").to_owned()
    }

    #[test]
    fn jobs_share_the_memory_for_logs_and_none_has_too_little() {
        let logs = LogMemory::default();
        let first = logs.join();
        assert_eq!(first.bytes(), LOG_BYTES);
        let others: Vec<LogShare> = (0..999).map(|_| logs.join()).collect();
        assert!(first.bytes() * 1000 <= LOG_BYTES);
        drop(others);
        assert_eq!(first.bytes(), LOG_BYTES);
        assert_eq!(share(1_000_000), LEAST_LOG_SHARE);
    }

    #[tokio::test]
    async fn a_full_bound_makes_wait_and_says_so() {
        let metrics = Metrics::new();
        let bound = Bound::new("b", 1, &metrics);
        let first = bound.enter().await;
        let mut second = Box::pin(bound.enter());
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!((gauge(&metrics, "in_use"), gauge(&metrics, "waiting")), ("1".into(), "1".into()));
        drop(first);
        let second = second.await;
        assert_eq!((gauge(&metrics, "in_use"), gauge(&metrics, "waiting")), ("1".into(), "0".into()));
        drop(second);
        assert_eq!(gauge(&metrics, "in_use"), "0");
    }
}
