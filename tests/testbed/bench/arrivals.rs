//! An open loop: jobs come when they come, whether or not the earlier ones have been taken.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::super::gitlab::{GitLab, JobId, JobSpec};

/// Times between arrivals of a Poisson process, the same for the same seed.
pub struct Arrivals {
    random: StdRng,
    per_second: f64,
}

impl Arrivals {
    /// Arrivals at a mean rate.
    pub fn new(seed: u64, per_second: f64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), per_second }
    }

    fn next_pause(&mut self) -> Duration {
        let uniform: f64 = self.random.random();
        Duration::from_secs_f64(-(1.0 - uniform).ln() / self.per_second)
    }

    /// Queues so many jobs, each at its time: a slow runner does not slow them.
    pub async fn enqueue(&mut self, gitlab: &GitLab, jobs: usize, job: impl Fn() -> JobSpec) -> Vec<JobId> {
        let mut due = Instant::now();
        let mut ids = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            due += self.next_pause();
            tokio::time::sleep_until(due).await;
            ids.push(gitlab.enqueue(job()));
        }
        ids
    }
}
