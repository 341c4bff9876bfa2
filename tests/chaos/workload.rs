//! Jobs that print numbered lines, fail, sleep and wake, until there were enough of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;

use super::plan::Seed;
use crate::testbed::checker::{Doing, Expectation, Woken, script};
use crate::testbed::gitlab::{JobSpec, JobView};
use crate::testbed::stage::Stage;

/// Chains under way at the same time: with the environments that stay asleep, fewer than there are slots.
const AT_ONCE: usize = 8;
/// Environments that stay asleep to the end.
const STAY_ASLEEP: u64 = 3;
/// A job on a busy machine, through faults, and once more if nobody acknowledged it.
const LIMIT: Duration = Duration::from_secs(400);

/// Jobs in chains: one after the other, each but the last leaves its environment asleep for the next.
pub struct Workload {
    seed: Seed,
    name: String,
    least_jobs: usize,
    next_chain: AtomicU64,
    is_enough: AtomicBool,
    /// Taken for lines only.
    expectations: Mutex<Vec<Expectation>>,
}

/// A job of a chain.
#[derive(Clone, Copy, Debug)]
struct Step {
    lines: u32,
    pause_milliseconds: u32,
    exit_code: i64,
    sleeps: bool,
}

impl Workload {
    /// One with at least so many jobs.
    pub fn new(seed: Seed, name: &str, least_jobs: usize) -> Self {
        Self {
            seed,
            name: name.to_owned(),
            least_jobs,
            next_chain: AtomicU64::new(0),
            is_enough: AtomicBool::new(false),
            expectations: Mutex::default(),
        }
    }

    /// No more chains are begun than the least.
    pub fn enough(&self) {
        self.is_enough.store(true, Ordering::SeqCst);
    }

    /// What was wanted of the jobs so far.
    pub fn expectations(&self) -> Vec<Expectation> {
        self.expectations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs chains until it is enough; answers the environments that still sleep.
    pub async fn run(&self, stage: &Stage) -> Result<Vec<Woken>> {
        let work = async || {
            let mut asleep = Vec::new();
            while !self.is_enough.load(Ordering::SeqCst) || self.expectations().len() < self.least_jobs {
                let number = self.next_chain.fetch_add(1, Ordering::SeqCst);
                asleep.extend(self.chain(stage, number).await?);
            }
            anyhow::Ok(asleep)
        };
        let asleep = futures::future::try_join_all((0..AT_ONCE).map(|_| work())).await?;
        Ok(asleep.into_iter().flatten().collect())
    }

    /// Wakes what still sleeps, for the last time; answers what was wanted of these jobs.
    pub async fn wake(&self, stage: &Stage, asleep: Vec<Woken>) -> Result<Vec<Expectation>> {
        let before = self.expectations().len();
        let last = Step { lines: 3, pause_milliseconds: 10, exit_code: 0, sleeps: false };
        let woken = asleep.into_iter().enumerate().map(|(number, woken)| {
            let name = format!("{}-last-{number}", self.name);
            async move { self.job(stage, &name, last, Some(woken)).await }
        });
        futures::future::try_join_all(woken).await?;
        Ok(self.expectations().split_off(before))
    }

    /// Runs a chain to its end; answers the environment it leaves asleep, if it does.
    async fn chain(&self, stage: &Stage, number: u64) -> Result<Option<Woken>> {
        let mut woken = None;
        for (index, step) in steps(self.seed, number).into_iter().enumerate() {
            let name = format!("{}-{number}-{index}", self.name);
            let job = self.job(stage, &name, step, woken.clone()).await?;
            // One that ended as it should not have is told of by the checker.
            let Some(key) = job.environment_key.filter(|_| step.sleeps) else { return Ok(None) };
            let of = woken.map_or(job.id, |woken| woken.of);
            woken = Some(Woken { key, of });
        }
        Ok(woken)
    }

    /// Runs a job, and the one that GitLab queues in its place if nobody acknowledges it.
    async fn job(&self, stage: &Stage, name: &str, step: Step, woken: Option<Woken>) -> Result<JobView> {
        let Step { lines, pause_milliseconds, exit_code, sleeps } = step;
        let settles = sleeps && woken.is_none();
        let doing =
            Doing { lines, pause_milliseconds, exit_code, settles, wakes: woken.is_some(), chronicle: None };
        let mut spec = JobSpec::new(name).suspendable().script(script(doing));
        if let Some(woken) = &woken {
            spec = spec.environment_key(&woken.key);
        }
        spec = match (sleeps, exit_code) {
            (false, _) => spec,
            (true, 0) => spec.suspend_on_success(),
            (true, _) => spec.suspend_on_failure(),
        };
        let mut id = stage.gitlab.enqueue(spec);
        let wanted = Expectation { job: id, lines, exit_code, sleeps, wakes: woken, expires: false };
        self.expectations.lock().unwrap_or_else(PoisonError::into_inner).push(wanted);
        loop {
            let over = stage.gitlab.wait_until_over(id, LIMIT).await;
            let over = over.with_context(|| format!("{name} does not end\n{}", stage.operator_log()))?;
            match over.retried_as {
                Some(next) => id = next,
                None => return Ok(over),
            }
        }
    }
}

/// The jobs of a chain, of its seed alone.
fn steps(seed: Seed, number: u64) -> Vec<Step> {
    let mut dice = seed.dice(1000 + number);
    let length = [1, 1, 1, 2, 3][dice.random_range(0..5)];
    (1..=length)
        .map(|index| Step {
            lines: dice.random_range(10..120),
            pause_milliseconds: dice.random_range(5..60),
            exit_code: [0, 0, 0, 1, 3, 42][dice.random_range(0..6)],
            sleeps: index < length || number % 4 == 1 && number / 4 < STAY_ASLEEP,
        })
        .collect()
}
