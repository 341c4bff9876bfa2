//! Logs and metrics: one subscriber, one registry.
//!
//! Metric names are upstream's where a dashboard knows them, and begin with `dormouse_` where they are ours. Labels
//! come from enums and pool names only.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// Starts logging to standard error.
///
/// # Errors
/// When the filter cannot be read or a subscriber is set already.
pub fn start_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Pretty => builder.with_target(false).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiLabels {
    endpoint: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    runner_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolReason {
    runner_name: String,
    failure_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolOutcome {
    runner_name: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolGuard {
    runner_name: String,
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    kind: &'static str,
    verb: &'static str,
}

/// What happened to an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvironmentOutcome {
    /// Put to sleep.
    Suspended,
    /// Could not be put to sleep.
    SuspendFailed,
    /// Woken by a job.
    Resumed,
    /// A job was not allowed to wake it.
    ResumeRefused,
    /// Came to the end of its TTL.
    Expired,
    /// Given back.
    Released,
    /// Given back by force, leaving its host as it is.
    ForceReleased,
}

impl EnvironmentOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::SuspendFailed => "suspend_failed",
            Self::Resumed => "resumed",
            Self::ResumeRefused => "resume_refused",
            Self::Expired => "expired",
            Self::Released => "released",
            Self::ForceReleased => "force_released",
        }
    }
}

/// What happened to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseOutcome {
    /// Taken over from an earlier holder.
    Recovered,
    /// Handed out by GitLab but lost before the lease was durable.
    LostBeforeDurable,
    /// GitLab did not want the job any more.
    Gone,
    /// GitLab refused the result.
    ReportRefused,
}

impl LeaseOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::LostBeforeDurable => "lost_before_durable",
            Self::Gone => "gone",
            Self::ReportRefused => "report_refused",
        }
    }
}

/// What refuses a holder whose epoch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochGuard {
    /// The pool's Lease names another replica.
    Lease,
    /// A supervisor has seen a newer holder.
    Host,
    /// An object was written by a newer holder.
    Object,
}

impl EpochGuard {
    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Host => "host",
            Self::Object => "object",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BoundLabel {
    bound: &'static str,
}

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

/// The operator's metrics. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    api_requests: Family<ApiLabels, Counter>,
    api_seconds: Family<EndpointLabel, Histogram>,
    jobs: Family<PoolLabel, Gauge>,
    jobs_total: Family<PoolLabel, Counter>,
    failed_jobs: Family<PoolReason, Counter>,
    job_seconds: Family<PoolLabel, Histogram>,
    limit: Family<PoolLabel, Gauge>,
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

fn job_histogram() -> Histogram {
    Histogram::new([30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 10800.0, 18000.0, 36000.0])
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
        let api_requests = Family::default();
        registry.register(
            "gitlab_runner_api_request_statuses",
            "Calls of GitLab's runner API by status; 0 is no answer",
            api_requests.clone(),
        );
        let api_seconds = Family::<EndpointLabel, Histogram>::new_with_constructor(call_histogram);
        registry.register_with_unit(
            "gitlab_runner_api_request_duration",
            "Time of calls of GitLab's runner API",
            Unit::Seconds,
            api_seconds.clone(),
        );
        let jobs = Family::default();
        registry.register("gitlab_runner_jobs", "Open leases", jobs.clone());
        let jobs_total = Family::default();
        registry.register("gitlab_runner_jobs", "Jobs taken", jobs_total.clone());
        let failed_jobs = Family::default();
        registry.register("gitlab_runner_failed_jobs", "Jobs that failed", failed_jobs.clone());
        let job_seconds = Family::<PoolLabel, Histogram>::new_with_constructor(job_histogram);
        registry.register_with_unit(
            "gitlab_runner_job_duration",
            "Time from a job's hand-out to its report",
            Unit::Seconds,
            job_seconds.clone(),
        );
        let limit = Family::default();
        registry.register("gitlab_runner_limit", "spec.concurrency of the pool", limit.clone());
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
        Self {
            registry: Arc::new(registry),
            api_requests,
            api_seconds,
            jobs,
            jobs_total,
            failed_jobs,
            job_seconds,
            limit,
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
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A call of GitLab's runner API was answered, or not (status 0).
    pub fn api_request(&self, endpoint: &'static str, status: u16, took: Duration) {
        self.api_requests.get_or_create(&ApiLabels { endpoint, status }).inc();
        self.api_seconds.get_or_create(&EndpointLabel { endpoint }).observe(took.as_secs_f64());
    }

    /// What a pool looks like now.
    pub fn pool(&self, pool: &str, open_jobs: usize, concurrency: u32, environments: usize, epoch: u64) {
        let label = PoolLabel { runner_name: pool.to_owned() };
        self.jobs.get_or_create(&label).set(open_jobs as i64);
        self.limit.get_or_create(&label).set(i64::from(concurrency));
        self.environments.get_or_create(&label).set(environments as i64);
        self.epochs.get_or_create(&label).set(epoch as f64);
    }

    /// A pool is not held here any more.
    pub fn forget_pool(&self, pool: &str) {
        let label = PoolLabel { runner_name: pool.to_owned() };
        self.jobs.remove(&label);
        self.limit.remove(&label);
        self.environments.remove(&label);
        self.epochs.remove(&label);
    }

    /// A job was taken.
    pub fn job_taken(&self, pool: &str) {
        self.jobs_total.get_or_create(&PoolLabel { runner_name: pool.to_owned() }).inc();
    }

    /// A job was reported.
    pub fn job_reported(&self, pool: &str, failure_reason: Option<&'static str>, took: Duration) {
        let runner_name = pool.to_owned();
        self.job_seconds
            .get_or_create(&PoolLabel { runner_name: runner_name.clone() })
            .observe(took.as_secs_f64());
        if let Some(failure_reason) = failure_reason {
            self.failed_jobs.get_or_create(&PoolReason { runner_name, failure_reason }).inc();
        }
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

    /// A write to the API server.
    pub fn kubernetes_write(&self, kind: &'static str, verb: &'static str) {
        self.kubernetes_writes.get_or_create(&VerbLabels { kind, verb }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_can_be_written() {
        let metrics = Metrics::new();
        metrics.api_request("verify", 200, Duration::from_millis(5));
        metrics.pool("p", 1, 2, 3, 4);
        metrics.job_taken("p");
        metrics.job_reported("p", Some("script_failure"), Duration::from_secs(1));
        let text = metrics.text().unwrap();
        assert!(text.contains("gitlab_runner_jobs{runner_name=\"p\"} 1"), "{text}");
        assert!(text.contains("gitlab_runner_jobs_total{runner_name=\"p\"} 1"), "{text}");
        assert!(text.contains("gitlab_runner_failed_jobs_total"), "{text}");
    }
}
