//! Logs and metrics: one subscriber, one registry.
//!
//! Metric names are upstream's where a dashboard knows them ([`upstream`]), and begin with `dormouse_` where they are ours.
//! Labels come from enums, pool names and what tells one runner from another.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::api::suspended_environment::Tier;
use crate::fleet::cost::{Accrued, Rates};
use crate::lease::seen::JobPlace;

mod labels;
mod logging;
mod upstream;

use labels::{
    BoundLabel, CloudCallLabels, OutcomeLabel, PoolGuard, PoolInstances, PoolLabel, PoolMove, PoolOutcome,
    PoolTier, ServiceLabel, VerbLabels,
};
pub use labels::{EnvironmentOutcome, EpochGuard, LeaseOutcome};
pub use logging::{LogFormat, start_logging};
use upstream::Upstream;
pub use upstream::{
    InstanceOperation, Instances, PoolPicture, Queue, Requests, RunnerLabels, TaskOperation, Tasks,
};

/// How much of one bound is in use, and how much waits for it. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Occupation {
    in_use: Gauge,
    waiting: Gauge,
}

impl Occupation {
    /// Changes what is in use.
    pub fn in_use(&self, by: i64) {
        self.in_use.inc_by(by);
    }

    /// Changes what waits.
    pub fn waiting(&self, by: i64) {
        self.waiting.inc_by(by);
    }
}

/// Namespace and name of a pool.
type PoolKey = (String, String);

/// The operator's metrics. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    upstream: Upstream,
    /// The pools held here: who they are to GitLab, and how many jobs they may have.
    pools: Arc<Mutex<BTreeMap<PoolKey, (RunnerLabels, u32)>>>,
    environments: Family<PoolLabel, Gauge>,
    environment_outcomes: Family<PoolOutcome, Counter>,
    lease_outcomes: Family<PoolOutcome, Counter>,
    suspend_seconds: Family<PoolLabel, Histogram>,
    first_byte_seconds: Family<PoolLabel, Histogram>,
    kubernetes_writes: Family<VerbLabels, Counter>,
    epochs: Family<PoolLabel, Gauge<f64, AtomicU64>>,
    epoch_refusals: Family<PoolGuard, Counter>,
    tasks: Gauge,
    bounds_in_use: Family<BoundLabel, Gauge>,
    bounds_waiting: Family<BoundLabel, Gauge>,
    look_seconds: Family<PoolLabel, Histogram>,
    environments_looked_at: Family<PoolLabel, Counter>,
    cloud_calls: Family<CloudCallLabels, Counter>,
    cloud_throttled: Family<ServiceLabel, Counter>,
    cloud_look_seconds: Family<OutcomeLabel, Histogram>,
    tiers: Family<PoolTier, Gauge>,
    tier_changes: Family<PoolMove, Counter>,
    instances: Family<PoolInstances, Gauge>,
    orphans_deleted: Family<PoolLabel, Counter>,
    dollars_per_hour: Family<PoolLabel, Gauge<f64, AtomicU64>>,
    saved_per_hour: Family<PoolLabel, Gauge<f64, AtomicU64>>,
    instance_hours: Family<PoolLabel, Counter<f64, AtomicU64>>,
    volume_gib_months: Family<PoolLabel, Counter<f64, AtomicU64>>,
    snapshot_gib_months: Family<PoolLabel, Counter<f64, AtomicU64>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

fn call_histogram() -> Histogram {
    Histogram::new([0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

fn short_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 14))
}

fn look_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 8))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A fresh registry with every family.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let upstream = Upstream::register(&mut registry);
        let environments = Family::default();
        registry.register(
            "dormouse_suspended_environments",
            "Environments kept for a later job",
            environments.clone(),
        );
        let environment_outcomes = Family::default();
        registry.register(
            "dormouse_environment_events",
            "What happened to environments",
            environment_outcomes.clone(),
        );
        let lease_outcomes = Family::default();
        registry.register("dormouse_lease_events", "What happened to leases", lease_outcomes.clone());
        let suspend_seconds = Family::<PoolLabel, Histogram>::new_with_constructor(short_histogram);
        registry.register_with_unit(
            "dormouse_suspend_duration",
            "Time a suspend adds to the end of a job",
            Unit::Seconds,
            suspend_seconds.clone(),
        );
        let first_byte_seconds = Family::<PoolLabel, Histogram>::new_with_constructor(short_histogram);
        registry.register_with_unit(
            "dormouse_first_byte",
            "Time from a job's hand-out to the first byte of its log in GitLab",
            Unit::Seconds,
            first_byte_seconds.clone(),
        );
        let kubernetes_writes = Family::default();
        registry.register(
            "dormouse_kubernetes_writes",
            "Writes to the API server, without Events and leader Leases",
            kubernetes_writes.clone(),
        );
        let tiers = Family::default();
        registry.register("dormouse_environments", "Environments by tier", tiers.clone());
        let tier_changes = Family::default();
        registry.register(
            "dormouse_tier_changes",
            "Environments that came to another tier",
            tier_changes.clone(),
        );
        let instances = Family::default();
        registry.register("dormouse_instances", "Instances in the pool's cloud by state", instances.clone());
        let orphans_deleted = Family::default();
        registry.register(
            "dormouse_orphans_deleted",
            "Things in a cloud that carried a pool's tags, that no object knew, and that were deleted",
            orphans_deleted.clone(),
        );
        let dollars_per_hour = Family::default();
        registry.register(
            "dormouse_cost_dollars_per_hour",
            "What a pool's instances, volumes and snapshots cost, by the prices given",
            dollars_per_hour.clone(),
        );
        let saved_per_hour = Family::default();
        registry.register(
            "dormouse_saved_dollars_per_hour",
            "What the present tiers of sleeping environments save against tier Hot",
            saved_per_hour.clone(),
        );
        let instance_hours = Family::default();
        registry.register("dormouse_instance_hours", "Hours of running instances", instance_hours.clone());
        let volume_gib_months = Family::default();
        registry.register(
            "dormouse_volume_gib_months",
            "Months of a GiB of volumes",
            volume_gib_months.clone(),
        );
        let snapshot_gib_months = Family::default();
        registry.register(
            "dormouse_snapshot_gib_months",
            "Months of a GiB of snapshots",
            snapshot_gib_months.clone(),
        );
        let epochs = Family::default();
        registry.register("dormouse_pool_epoch", "Epoch of the pools held here", epochs.clone());
        let epoch_refusals = Family::default();
        registry.register(
            "dormouse_epoch_refusals",
            "Times this replica was refused because its epoch was over, by what refused it",
            epoch_refusals.clone(),
        );
        let tasks = Gauge::default();
        registry.register(
            "dormouse_tasks",
            "Asynchronous tasks alive; grows with open jobs and goes back with them",
            tasks.clone(),
        );
        let bounds_in_use = Family::default();
        registry.register(
            "dormouse_bound_in_use",
            "Places taken of a bound on how much is done at a time",
            bounds_in_use.clone(),
        );
        let bounds_waiting = Family::default();
        registry.register(
            "dormouse_bound_waiting",
            "What waits for a place of a bound",
            bounds_waiting.clone(),
        );
        let look_seconds = Family::<PoolLabel, Histogram>::new_with_constructor(look_histogram);
        registry.register_with_unit(
            "dormouse_look_duration",
            "Time of one look at a held pool",
            Unit::Seconds,
            look_seconds.clone(),
        );
        let environments_looked_at = Family::default();
        registry.register(
            "dormouse_environments_looked_at",
            "Environments that had changed or become due at a look",
            environments_looked_at.clone(),
        );
        let cloud_calls = Family::default();
        registry.register(
            "dormouse_cloud_calls",
            "Calls of the cloud's APIs by what followed from the answer; Held never left, for too many waited",
            cloud_calls.clone(),
        );
        let cloud_throttled = Family::default();
        registry.register(
            "dormouse_cloud_throttled",
            "Answers of the cloud that ask for fewer calls, after the tries of a call",
            cloud_throttled.clone(),
        );
        let cloud_look_seconds = Family::<OutcomeLabel, Histogram>::new_with_constructor(call_histogram);
        registry.register_with_unit(
            "dormouse_cloud_look_duration",
            "Time of one look at a cloud account",
            Unit::Seconds,
            cloud_look_seconds.clone(),
        );
        Self {
            registry: Arc::new(registry),
            upstream,
            pools: Arc::default(),
            environments,
            environment_outcomes,
            lease_outcomes,
            suspend_seconds,
            first_byte_seconds,
            kubernetes_writes,
            epochs,
            epoch_refusals,
            tasks,
            bounds_in_use,
            bounds_waiting,
            look_seconds,
            environments_looked_at,
            cloud_calls,
            cloud_throttled,
            cloud_look_seconds,
            tiers,
            tier_changes,
            instances,
            orphans_deleted,
            dollars_per_hour,
            saved_per_hour,
            instance_hours,
            volume_gib_months,
            snapshot_gib_months,
        }
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// When a family cannot be written.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.set(i64::try_from(runtime.metrics().num_alive_tasks()).unwrap_or(i64::MAX));
        }
        let (warnings, errors) = logging::counts();
        self.upstream.log_lines([("warning", warnings), ("error", errors)]);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A call of GitLab's API was answered, or not (status 0).
    pub fn api_request(
        &self,
        runner: &RunnerLabels,
        endpoint: &'static str,
        method: &str,
        status: u16,
        took: Duration,
    ) {
        self.upstream.api_request(runner, endpoint, method, status, took);
    }

    /// What a pool looks like now.
    pub fn pool(&self, pool: &str, environments: usize, epoch: u64) {
        let label = PoolLabel { runner_name: pool.to_owned() };
        self.environments.get_or_create(&label).set(environments as i64);
        self.epochs.get_or_create(&label).set(epoch as f64);
    }

    /// What a pool that GitLab knows looks like now.
    pub fn runner(&self, namespace: &str, runner: &RunnerLabels, picture: &PoolPicture) {
        let known = (runner.clone(), picture.concurrency);
        let before = self.pools().insert((namespace.to_owned(), runner.runner_name.clone()), known);
        // A token that was replaced makes another runner of it, to dashboards.
        if let Some((before, _)) = before.filter(|(before, _)| before != runner) {
            self.upstream.forget(&before);
        }
        self.upstream.pool(runner, picture);
        self.count_places();
    }

    /// Where the open jobs of the pools held here are, by namespace and name of the pool.
    pub fn jobs(&self, jobs: &BTreeMap<PoolKey, BTreeMap<JobPlace, usize>>) {
        let none = BTreeMap::new();
        for (pool, (runner, _)) in self.pools().iter() {
            self.upstream.jobs(runner, jobs.get(pool).unwrap_or(&none));
        }
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<PoolKey, (RunnerLabels, u32)>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_places(&self) {
        self.upstream.concurrent(self.pools().values().map(|(_, places)| u64::from(*places)).sum());
    }

    /// A pool is not held here any more.
    pub fn forget_pool(&self, namespace: &str, pool: &str) {
        let label = PoolLabel { runner_name: pool.to_owned() };
        self.environments.remove(&label);
        self.epochs.remove(&label);
        let known = self.pools().remove(&(namespace.to_owned(), pool.to_owned()));
        if let Some((runner, _)) = known {
            self.upstream.forget(&runner);
        }
        self.count_places();
    }

    /// How the requests for jobs of a pool stand.
    pub fn requests(&self, runner: &RunnerLabels, requests: Requests) {
        self.upstream.requests(runner, requests);
    }

    /// One more request for a job has to wait for the limit.
    pub fn request_waited(&self, runner: &RunnerLabels) {
        self.upstream.request_waited(runner);
    }

    /// GitLab is asked for a job.
    pub fn asked(&self, runner: &RunnerLabels) {
        self.upstream.asked(runner);
    }

    /// It could not be asked.
    pub fn asking_failed(&self, runner: &RunnerLabels) {
        self.upstream.asking_failed(runner);
    }

    /// GitLab refused a runner's token.
    pub fn token_refused(&self, runner: &RunnerLabels) {
        self.upstream.token_refused(runner);
    }

    /// Something was done with a slot.
    pub fn task(&self, runner: &RunnerLabels, operation: TaskOperation) {
        self.upstream.task(runner, operation);
    }

    /// Something was done with an instance of a pool.
    pub fn instance(&self, namespace: &str, pool: &str, operation: InstanceOperation) {
        self.upstream.instance(&self.runner_of(namespace, pool), operation);
    }

    /// A pool's cloud could not be looked at.
    pub fn missed_update(&self, namespace: &str, pool: &str) {
        self.upstream.missed_update(&self.runner_of(namespace, pool));
    }

    fn runner_of(&self, namespace: &str, pool: &str) -> RunnerLabels {
        let key = (namespace.to_owned(), pool.to_owned());
        let known = self.pools().get(&key).map(|(runner, _)| runner.clone());
        known.unwrap_or_else(|| RunnerLabels { runner_name: pool.to_owned(), ..RunnerLabels::default() })
    }

    /// Settings of a pool were read and are other ones, or cannot be used.
    pub fn configuration(&self, is_good: bool) {
        self.upstream.configuration(is_good);
    }

    /// An environment came to another tier.
    pub fn tier_changed(&self, pool: &str, from: Tier, to: Tier) {
        let label = PoolMove { runner_name: pool.to_owned(), from: from.as_str(), to: to.as_str() };
        self.tier_changes.get_or_create(&label).inc();
    }

    /// Something in a cloud that no object knew was deleted.
    pub fn orphan_deleted(&self, pool: &str) {
        self.orphans_deleted.get_or_create(&PoolLabel { runner_name: pool.to_owned() }).inc();
    }

    /// How many environments a pool has at a tier.
    pub fn environments_at(&self, pool: &str, tier: Tier, count: u32) {
        let label = PoolTier { runner_name: pool.to_owned(), tier: tier.as_str() };
        self.tiers.get_or_create(&label).set(i64::from(count));
    }

    /// How many instances a pool has in a state.
    pub fn instances(&self, pool: &str, state: &'static str, count: u32) {
        let label = PoolInstances { runner_name: pool.to_owned(), state };
        self.instances.get_or_create(&label).set(i64::from(count));
    }

    /// What a pool costs now, and what has come together since the last time.
    pub fn cost(&self, pool: &str, rates: &Rates, since: &Accrued) {
        let label = PoolLabel { runner_name: pool.to_owned() };
        self.dollars_per_hour.get_or_create(&label).set(rates.dollars_per_hour);
        self.saved_per_hour.get_or_create(&label).set(rates.saved_per_hour);
        self.instance_hours.get_or_create(&label).inc_by(since.instance_hours);
        self.volume_gib_months.get_or_create(&label).inc_by(since.volume_gib_months);
        self.snapshot_gib_months.get_or_create(&label).inc_by(since.snapshot_gib_months);
    }

    /// A job was taken.
    pub fn job_taken(&self, runner: &RunnerLabels, queue: &Queue) {
        self.upstream.job_taken(runner, queue);
    }

    /// A job was reported.
    pub fn job_reported(&self, runner: &RunnerLabels, failure_reason: Option<&'static str>, took: Duration) {
        self.upstream.job_reported(runner, failure_reason, took);
    }

    /// A stage of a job has ended.
    pub fn job_stage(&self, runner: &RunnerLabels, stage: String, took: Duration) {
        self.upstream.job_stage(runner, stage, took);
    }

    /// The first byte of a job's log is in GitLab.
    pub fn first_byte(&self, pool: &str, took: Duration) {
        self.first_byte_seconds
            .get_or_create(&PoolLabel { runner_name: pool.to_owned() })
            .observe(took.as_secs_f64());
    }

    /// A suspend took that long.
    pub fn suspended(&self, pool: &str, took: Duration) {
        self.suspend_seconds
            .get_or_create(&PoolLabel { runner_name: pool.to_owned() })
            .observe(took.as_secs_f64());
        self.environment(pool, EnvironmentOutcome::Suspended);
    }

    /// Something happened to an environment.
    pub fn environment(&self, pool: &str, outcome: EnvironmentOutcome) {
        self.environment_outcomes
            .get_or_create(&PoolOutcome { runner_name: pool.to_owned(), outcome: outcome.as_str() })
            .inc();
    }

    /// Something happened to a lease.
    pub fn lease(&self, pool: &str, outcome: LeaseOutcome) {
        self.lease_outcomes
            .get_or_create(&PoolOutcome { runner_name: pool.to_owned(), outcome: outcome.as_str() })
            .inc();
    }

    /// This replica was refused because its epoch was over.
    pub fn epoch_refused(&self, pool: &str, by: EpochGuard) {
        self.epoch_refusals.get_or_create(&PoolGuard { runner_name: pool.to_owned(), by: by.as_str() }).inc();
    }

    /// The gauges of a bound.
    pub fn bound(&self, bound: &'static str) -> Occupation {
        let label = BoundLabel { bound };
        Occupation {
            in_use: self.bounds_in_use.get_or_create(&label).clone(),
            waiting: self.bounds_waiting.get_or_create(&label).clone(),
        }
    }

    /// A held pool was looked at, which took that long.
    pub fn looked(&self, pool: &str, took: Duration) {
        self.look_seconds
            .get_or_create(&PoolLabel { runner_name: pool.to_owned() })
            .observe(took.as_secs_f64());
    }

    /// So many environments were looked at.
    pub fn environments_looked_at(&self, pool: &str, count: usize) {
        self.environments_looked_at
            .get_or_create(&PoolLabel { runner_name: pool.to_owned() })
            .inc_by(count as u64);
    }

    /// A call of a cloud's API ended.
    pub fn cloud_call(&self, service: &'static str, action: &'static str, outcome: &'static str) {
        self.cloud_calls.get_or_create(&CloudCallLabels { service, action, outcome }).inc();
    }

    /// A cloud asked for fewer calls.
    pub fn cloud_throttled(&self, service: &'static str) {
        self.cloud_throttled.get_or_create(&ServiceLabel { service }).inc();
    }

    /// A cloud account was looked at, or could not be, which took that long.
    pub fn cloud_look(&self, took: Duration, has_succeeded: bool) {
        let outcome = if has_succeeded { "done" } else { "failed" };
        self.cloud_look_seconds.get_or_create(&OutcomeLabel { outcome }).observe(took.as_secs_f64());
    }

    /// A write to the API server.
    pub fn kubernetes_write(&self, kind: &'static str, verb: &'static str) {
        self.kubernetes_writes.get_or_create(&VerbLabels { kind, verb }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(token: &str) -> RunnerLabels {
        let [runner, runner_name, system_id] = [token, "p", "s_1"].map(str::to_owned);
        RunnerLabels { runner, runner_name, system_id }
    }

    fn jobs(state: &'static str, count: usize) -> BTreeMap<PoolKey, BTreeMap<JobPlace, usize>> {
        let place = JobPlace { state, stage: "step_script".to_owned(), executor_stage: "run" };
        let pool = ("ns".to_owned(), "p".to_owned());
        BTreeMap::from([(pool, BTreeMap::from([(place, count)]))])
    }

    fn picture() -> PoolPicture {
        PoolPicture { concurrency: 4, ..PoolPicture::default() }
    }

    #[test]
    fn every_family_can_be_written() {
        let metrics = Metrics::new();
        let runner = runner("abc");
        metrics.api_request(&runner, "verify", "POST", 200, Duration::from_millis(5));
        metrics.pool("p", 3, 4);
        metrics.runner("ns", &runner, &picture());
        metrics.jobs(&jobs("running", 1));
        metrics.job_taken(&runner, &Queue::default());
        metrics.job_stage(&runner, "step_script".to_owned(), Duration::from_secs(2));
        metrics.job_reported(&runner, Some("script_failure"), Duration::from_secs(1));
        let text = metrics.text().unwrap();
        let labels = "runner=\"abc\",runner_name=\"p\",system_id=\"s_1\"";
        let running = "state=\"running\",stage=\"step_script\",executor_stage=\"run\"";
        let failed = "failure_reason=\"script_failure\",mode=\"traditional\"";
        for line in [
            format!("gitlab_runner_jobs{{{labels},{running}}} 1"),
            format!("gitlab_runner_jobs{{{labels},state=\"idle\",stage=\"\",executor_stage=\"\"}} 0"),
            format!("gitlab_runner_jobs_total{{{labels}}} 1"),
            format!("gitlab_runner_failed_jobs_total{{{labels},{failed}}} 1"),
            format!("gitlab_runner_job_stage_duration_seconds_sum{{{labels},stage=\"step_script\"}} 2.0"),
            format!("fleeting_provisioner_instances{{{labels},state=\"resuming\"}} 0"),
            "gitlab_runner_concurrent 4".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is missing in {text}");
        }
    }

    #[test]
    fn series_of_jobs_that_have_moved_on_and_of_pools_that_are_gone_do_not_stay() {
        let metrics = Metrics::new();
        metrics.runner("ns", &runner("abc"), &picture());
        metrics.jobs(&jobs("running", 2));
        metrics.jobs(&jobs("finished", 2));
        assert!(!metrics.text().unwrap().contains("state=\"running\",stage"));
        // Its token was replaced.
        metrics.runner("ns", &runner("def"), &picture());
        assert!(!metrics.text().unwrap().contains("abc"));
        metrics.forget_pool("ns", "p");
        let text = metrics.text().unwrap();
        assert!(!text.contains("runner=\"def\""), "{text}");
        assert!(text.contains("gitlab_runner_concurrent 0"), "{text}");
    }
}
