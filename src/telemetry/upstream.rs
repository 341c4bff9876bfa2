//! The metrics that dashboards for gitlab-runner, fleeting and taskscaler read: their names, labels and buckets, filled from
//! what this operator knows.
//!
//! `tests/data/upstream-metrics.txt` lists them; a test compares the list with what a real operator serves. What has no
//! meaning here is not served at all: see `docs/metrics.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::lease::seen::JobPlace;

mod labels;
mod picture;

pub use labels::RunnerLabels;
use labels::{
    CallLabels, ExecutionLabels, FailureLabels, JobLabels, LevelLabel, ModeLabels, OperationLabels,
    QueueLabels, RetryLabels, StageLabels, StateLabels, StatusLabels, VersionLabels,
};
pub use picture::{InstanceOperation, Instances, PoolPicture, Requests, TaskOperation, Tasks};

/// Jobs run their scripts; there are no native steps.
const MODE: &str = "traditional";
const EXECUTOR: &str = "instance";

/// All states of instances that fleeting knows.
const INSTANCE_STATES: [&str; 8] =
    ["requested", "pending", "creating", "running", "suspending", "suspended", "resuming", "deleting"];

type Gauges = Family<RunnerLabels, Gauge>;
type Counters = Family<RunnerLabels, Counter>;
type Histograms<L> = Family<L, Histogram>;

/// The families.
#[derive(Clone)]
pub(super) struct Upstream {
    jobs: Family<JobLabels, Gauge>,
    /// The series of each pool, to take away those that are over.
    series: Arc<Mutex<BTreeMap<RunnerLabels, BTreeSet<JobLabels>>>>,
    jobs_total: Counters,
    failed_jobs: Family<FailureLabels, Counter>,
    job_seconds: Histograms<ModeLabels>,
    stage_seconds: Histograms<StageLabels>,
    queue_seconds: Histograms<QueueLabels>,
    queue_size: Histograms<RunnerLabels>,
    queue_depth: Histograms<RunnerLabels>,
    executions: Family<ExecutionLabels, Counter>,
    concurrent: Gauge,
    limit: Gauges,
    request_concurrency: Gauges,
    request_hard_limit: Gauges,
    request_adaptive_limit: Family<RunnerLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    request_used_limit: Gauges,
    request_exceeded: Counters,
    statuses: Family<StatusLabels, Counter>,
    call_seconds: Histograms<CallLabels>,
    retries: Family<RetryLabels, Counter>,
    errors: Family<LevelLabel, Counter>,
    feeds: Counters,
    feed_failures: Counters,
    slot_operations: Family<OperationLabels, Counter>,
    processing_failures: Counters,
    health_check_failures: Counters,
    slots_number: Gauges,
    configuration_loaded: Counter,
    configuration_errors: Counter,
    instances: Family<StateLabels, Gauge>,
    max_instances: Gauges,
    missed_updates: Counters,
    instance_operations: Family<OperationLabels, Counter>,
    tasks: Family<StateLabels, Gauge>,
    max_tasks: Gauges,
    max_uses: Gauges,
    desired: Gauges,
    scale_operations: Family<OperationLabels, Counter>,
    task_operations: Family<OperationLabels, Counter>,
}

fn job_histogram() -> Histogram {
    Histogram::new([30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 10800.0, 18000.0, 36000.0])
}

fn queue_histogram() -> Histogram {
    Histogram::new([1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0])
}

fn count_histogram() -> Histogram {
    Histogram::new([1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 5000.0])
}

fn call_histogram() -> Histogram {
    Histogram::new([0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 45.0, 60.0])
}

fn family<T: Clone + Default + prometheus_client::registry::Metric>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> T {
    let metric = T::default();
    registry.register(name, help, metric.clone());
    metric
}

fn seconds<L>(registry: &mut Registry, name: &str, help: &str, buckets: fn() -> Histogram) -> Histograms<L>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
{
    let family = Family::<L, Histogram>::new_with_constructor(buckets);
    registry.register_with_unit(name, help, Unit::Seconds, family.clone());
    family
}

impl Upstream {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let r = registry;
        let version: Family<VersionLabels, Gauge> = family(r, "gitlab_runner_version_info", "This build");
        let build = VersionLabels {
            name: "dormouse",
            version: env!("CARGO_PKG_VERSION"),
            revision: "dormouse",
            os: std::env::consts::OS,
            architecture: std::env::consts::ARCH,
        };
        version.get_or_create(&build).set(1);
        let depths = || Family::<RunnerLabels, Histogram>::new_with_constructor(count_histogram);
        let (queue_size, queue_depth) = (depths(), depths());
        r.register(
            "gitlab_runner_job_queue_size",
            "Jobs in GitLab's queue at a hand-out, as it says",
            queue_size.clone(),
        );
        r.register(
            "gitlab_runner_job_queue_depth",
            "How deep in GitLab's queue a job was found",
            queue_depth.clone(),
        );
        Self {
            jobs: family(r, "gitlab_runner_jobs", "Open jobs by state and stage"),
            series: Arc::default(),
            jobs_total: family(r, "gitlab_runner_jobs", "Jobs taken"),
            failed_jobs: family(r, "gitlab_runner_failed_jobs", "Jobs that failed"),
            job_seconds: seconds(
                r,
                "gitlab_runner_job_duration",
                "Time from a job's hand-out to its report",
                job_histogram,
            ),
            stage_seconds: seconds(
                r,
                "gitlab_runner_job_stage_duration",
                "Time that a stage of a job took, seen from here",
                queue_histogram,
            ),
            queue_seconds: seconds(
                r,
                "gitlab_runner_job_queue_duration",
                "Time that a job waited in GitLab's queue, as it says",
                queue_histogram,
            ),
            queue_size,
            queue_depth,
            executions: family(r, "gitlab_runner_job_execution_mode", "Jobs by how they are run"),
            concurrent: family(r, "gitlab_runner_concurrent", "spec.concurrency of all pools held here"),
            limit: family(r, "gitlab_runner_limit", "spec.concurrency of the pool"),
            request_concurrency: family(r, "gitlab_runner_request_concurrency", "Open requests for a job"),
            request_hard_limit: family(
                r,
                "gitlab_runner_request_concurrency_hard_limit",
                "spec.requestConcurrency of the pool",
            ),
            request_adaptive_limit: family(
                r,
                "gitlab_runner_request_concurrency_adaptive_limit",
                "Open requests for a job that the answers so far allow",
            ),
            request_used_limit: family(
                r,
                "gitlab_runner_request_concurrency_used_limit",
                "The smaller one of the two limits",
            ),
            request_exceeded: family(
                r,
                "gitlab_runner_request_concurrency_exceeded",
                "Times one more request for a job had to wait for the limit",
            ),
            statuses: family(
                r,
                "gitlab_runner_api_request_statuses",
                "Calls of GitLab's API by status; 0 is no answer",
            ),
            call_seconds: seconds(
                r,
                "gitlab_runner_api_request_duration",
                "Time of calls of GitLab's API",
                call_histogram,
            ),
            retries: family(
                r,
                "gitlab_runner_api_request_retries",
                "Calls whose answer makes us say the same again",
            ),
            errors: family(r, "gitlab_runner_errors", "Log lines of the operator by level"),
            feeds: family(r, "gitlab_runner_worker_feeds", "Times GitLab was asked for a job"),
            feed_failures: family(r, "gitlab_runner_worker_feed_failures", "Times that could not be done"),
            slot_operations: family(
                r,
                "gitlab_runner_worker_slot_operations",
                "Places for jobs, up to spec.concurrency, that were acquired and released",
            ),
            processing_failures: family(
                r,
                "gitlab_runner_worker_processing_failures",
                "Jobs that ended by a failure of the system",
            ),
            health_check_failures: family(
                r,
                "gitlab_runner_worker_health_check_failures",
                "Times GitLab refused the runner's token",
            ),
            slots_number: family(r, "gitlab_runner_worker_slots_number", "Places for jobs"),
            configuration_loaded: family(
                r,
                "gitlab_runner_configuration_loaded",
                "Times settings of a pool were read and changed something",
            ),
            configuration_errors: family(
                r,
                "gitlab_runner_configuration_loading_error",
                "Times settings of a pool could not be used",
            ),
            instances: family(r, "fleeting_provisioner_instances", "Instances of a pool by state"),
            max_instances: family(
                r,
                "fleeting_provisioner_max_instances",
                "Instances that a pool may have; 0 is no limit",
            ),
            missed_updates: family(
                r,
                "fleeting_provisioner_missed_updates",
                "Looks at a pool's cloud that failed",
            ),
            instance_operations: family(
                r,
                "fleeting_provisioner_instance_operations",
                "What was done with instances",
            ),
            tasks: family(r, "fleeting_taskscaler_tasks", "Slots of a pool by state"),
            max_tasks: family(r, "fleeting_taskscaler_max_tasks_per_instance", "spec.capacityPerInstance"),
            max_uses: family(
                r,
                "fleeting_taskscaler_max_use_count_per_instance",
                "spec.maxUseCount; 0 is no limit",
            ),
            desired: family(r, "fleeting_taskscaler_desired_instances", "Instances that a pool is to have"),
            scale_operations: family(
                r,
                "fleeting_taskscaler_scale_operations",
                "Changes of a pool's number of instances",
            ),
            task_operations: family(r, "fleeting_taskscaler_task_operations", "What was done with slots"),
        }
    }

    fn series(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunnerLabels, BTreeSet<JobLabels>>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the open jobs of a pool are.
    pub(super) fn jobs(&self, runner: &RunnerLabels, jobs: &BTreeMap<JobPlace, usize>) {
        let job = |place: JobPlace| JobLabels {
            runner: runner.clone(),
            state: place.state,
            stage: place.stage,
            executor_stage: place.executor_stage,
        };
        // Dashboards rely on a series that is always there.
        let idle = JobPlace { state: "idle", stage: String::new(), executor_stage: "" };
        let mut now = BTreeSet::from([job(idle.clone())]);
        self.jobs.get_or_create(&job(idle)).set(0);
        for (place, count) in jobs {
            let labels = job(place.clone());
            self.jobs.get_or_create(&labels).set(*count as i64);
            now.insert(labels);
        }
        let before = self.series().insert(runner.clone(), now.clone()).unwrap_or_default();
        for over in before.difference(&now) {
            self.jobs.remove(over);
        }
    }

    pub(super) fn pool(&self, runner: &RunnerLabels, picture: &PoolPicture) {
        self.limit.get_or_create(runner).set(i64::from(picture.concurrency));
        self.slots_number.get_or_create(runner).set(i64::from(picture.concurrency));
        self.max_instances.get_or_create(runner).set(i64::from(picture.max_instances));
        self.desired.get_or_create(runner).set(i64::from(picture.desired_instances));
        self.max_tasks.get_or_create(runner).set(i64::from(picture.capacity_per_instance));
        self.max_uses.get_or_create(runner).set(i64::from(picture.max_use_count));
        // In three of fleeting's states there is never one: it is counted where it goes. Panels add all of them up.
        let Instances { requested, creating, running, suspended, deleting } = picture.instances;
        for (state, count) in [
            ("requested", requested),
            ("pending", 0),
            ("creating", creating),
            ("running", running),
            ("suspending", 0),
            ("suspended", suspended),
            ("resuming", 0),
            ("deleting", deleting),
        ] {
            let labels = StateLabels { runner: runner.clone(), state };
            self.instances.get_or_create(&labels).set(i64::from(count));
        }
        let Tasks { idle, pending, reserved, acquired, unavailable, unhealthy } = picture.tasks;
        for (state, count) in [
            ("idle", idle),
            ("pending", pending),
            ("reserved", reserved),
            ("acquired", acquired),
            ("unavailable", unavailable),
            ("unhealthy", unhealthy),
        ] {
            let labels = StateLabels { runner: runner.clone(), state };
            self.tasks.get_or_create(&labels).set(count as i64);
        }
    }

    /// A pool is not held here any more: its gauges are the next holder's.
    pub(super) fn forget(&self, runner: &RunnerLabels) {
        let series = self.series().remove(runner).unwrap_or_default();
        for labels in series {
            self.jobs.remove(&labels);
        }
        for gauges in [
            &self.limit,
            &self.slots_number,
            &self.max_instances,
            &self.desired,
            &self.max_tasks,
            &self.max_uses,
            &self.request_concurrency,
            &self.request_hard_limit,
            &self.request_used_limit,
        ] {
            gauges.remove(runner);
        }
        self.request_adaptive_limit.remove(runner);
        for state in INSTANCE_STATES {
            self.instances.remove(&StateLabels { runner: runner.clone(), state });
        }
        for state in ["idle", "pending", "reserved", "acquired", "unavailable", "unhealthy"] {
            self.tasks.remove(&StateLabels { runner: runner.clone(), state });
        }
    }

    pub(super) fn concurrent(&self, all: u64) {
        self.concurrent.set(i64::try_from(all).unwrap_or(i64::MAX));
    }

    pub(super) fn requests(&self, runner: &RunnerLabels, requests: Requests) {
        self.request_concurrency.get_or_create(runner).set(requests.open as i64);
        self.request_hard_limit.get_or_create(runner).set(i64::from(requests.hard_limit));
        self.request_adaptive_limit.get_or_create(runner).set(requests.adaptive_limit);
        self.request_used_limit.get_or_create(runner).set(i64::from(requests.used_limit));
        // There from the first request on, whatever becomes of it.
        self.request_exceeded.get_or_create(runner).inc_by(0);
        self.feed_failures.get_or_create(runner).inc_by(0);
        self.health_check_failures.get_or_create(runner).inc_by(0);
        self.processing_failures.get_or_create(runner).inc_by(0);
    }

    pub(super) fn request_waited(&self, runner: &RunnerLabels) {
        self.request_exceeded.get_or_create(runner).inc();
    }

    pub(super) fn asked(&self, runner: &RunnerLabels) {
        self.feeds.get_or_create(runner).inc();
        self.task(runner, TaskOperation::Reserve);
    }

    pub(super) fn asking_failed(&self, runner: &RunnerLabels) {
        self.feed_failures.get_or_create(runner).inc();
    }

    pub(super) fn token_refused(&self, runner: &RunnerLabels) {
        self.health_check_failures.get_or_create(runner).inc();
    }

    pub(super) fn api_request(
        &self,
        runner: &RunnerLabels,
        endpoint: &'static str,
        method: &str,
        status: u16,
        took: Duration,
    ) {
        let (runner, method) = (runner.clone(), method.to_lowercase());
        let labels = StatusLabels { runner: runner.clone(), endpoint, status, method: method.clone() };
        self.statuses.get_or_create(&labels).inc();
        let status_class = match status {
            100..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            500.. => "5xx",
            0..100 => "none",
        };
        let labels = CallLabels { runner: runner.clone(), endpoint, status_class, method: method.clone() };
        self.call_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if matches!(status, 0 | 408 | 429 | 500..) {
            self.retries.get_or_create(&RetryLabels { runner, path: endpoint, method }).inc();
        }
    }

    pub(super) fn job_taken(&self, runner: &RunnerLabels, queue: &Queue) {
        self.jobs_total.get_or_create(runner).inc();
        let labels = QueueLabels {
            runner: runner.clone(),
            project_jobs_running: jobs_running(&queue.project_jobs_running),
        };
        self.queue_seconds.get_or_create(&labels).observe(queue.waited.as_secs_f64());
        self.queue_size.get_or_create(runner).observe(queue.size as f64);
        self.queue_depth.get_or_create(runner).observe(queue.depth as f64);
        let labels = ExecutionLabels { runner: runner.clone(), mode: MODE, executor: EXECUTOR };
        self.executions.get_or_create(&labels).inc();
        self.slot(runner, "acquire");
        self.task(runner, TaskOperation::Acquire);
    }

    pub(super) fn job_stage(&self, runner: &RunnerLabels, stage: String, took: Duration) {
        let labels = StageLabels { runner: runner.clone(), stage };
        self.stage_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(super) fn job_reported(
        &self,
        runner: &RunnerLabels,
        failure_reason: Option<&'static str>,
        took: Duration,
    ) {
        let labels = ModeLabels { runner: runner.clone(), mode: MODE };
        self.job_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        self.slot(runner, "release");
        self.task(runner, TaskOperation::Release);
        let Some(failure_reason) = failure_reason else { return };
        let labels = FailureLabels { runner: runner.clone(), failure_reason, mode: MODE };
        self.failed_jobs.get_or_create(&labels).inc();
        if failure_reason == "runner_system_failure" {
            self.processing_failures.get_or_create(runner).inc();
        }
    }

    fn slot(&self, runner: &RunnerLabels, operation: &'static str) {
        self.slot_operations.get_or_create(&OperationLabels { runner: runner.clone(), operation }).inc();
    }

    pub(super) fn task(&self, runner: &RunnerLabels, operation: TaskOperation) {
        let labels = OperationLabels { runner: runner.clone(), operation: operation.as_str() };
        self.task_operations.get_or_create(&labels).inc();
    }

    pub(super) fn instance(&self, runner: &RunnerLabels, operation: InstanceOperation) {
        let labels = OperationLabels { runner: runner.clone(), operation: operation.as_str() };
        self.instance_operations.get_or_create(&labels).inc();
        if let Some(operation) = operation.scale() {
            let labels = OperationLabels { runner: runner.clone(), operation };
            self.scale_operations.get_or_create(&labels).inc();
        }
    }

    pub(super) fn missed_update(&self, runner: &RunnerLabels) {
        self.missed_updates.get_or_create(runner).inc();
    }

    pub(super) fn configuration(&self, is_good: bool) {
        if is_good {
            self.configuration_loaded.inc();
        } else {
            self.configuration_errors.inc();
        }
    }

    /// Brings the counts of log lines up to those of the process.
    pub(super) fn log_lines(&self, counts: [(&'static str, u64); 2]) {
        for (level, count) in counts {
            let counter = self.errors.get_or_create(&LevelLabel { level }).clone();
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }
}

/// What GitLab says of a job's way through its queue.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    /// How long it waited.
    pub waited: Duration,
    /// Jobs of its project that run, in GitLab's words: a number, `+Inf` or nothing.
    pub project_jobs_running: String,
    /// Jobs in the queue.
    pub size: u64,
    /// How deep in it the job was found.
    pub depth: u64,
}

/// A label of few values, whatever a server sends.
fn jobs_running(told: &str) -> String {
    match told.parse::<u64>() {
        Ok(number) => number.min(1000).to_string(),
        Err(_) if told == "+Inf" => told.to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}
