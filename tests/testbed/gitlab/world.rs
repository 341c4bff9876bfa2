//! Everything the stand-in remembers, and the moves that more than one call can cause.
//!
//! Lives under one lock, held for lines and never across an await. The calls themselves are
//! handled in the modules named after them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::{
    access::Scope,
    conduct::Conduct,
    exchange::Object,
    fault::Faults,
    job::{JobId, JobState, JobView},
    ledger::Ledger,
    repository::GitRepo,
    runner::{Runner, RunnerId, RunnerRecord},
    secret,
    spec::JobSpec,
};

/// GitLab retries a job whose runner never acknowledged it this many times.
const PROVISIONING_RETRIES: u32 = 2;

/// A job with what only the server knows.
#[derive(Debug)]
pub(super) struct Job {
    pub view: JobView,
    pub spec: JobSpec,
    /// When the acknowledgement lease runs out.
    pub acknowledge_by: Option<Instant>,
    pub conduct: Conduct,
    /// Final updates that are still to be answered with 202.
    pub chunks_pending: u32,
    /// Final updates that are still to be answered with 412.
    pub log_resets: u32,
    /// Another machine has the job: `pending` is answered with 409.
    pub is_taken_elsewhere: bool,
    /// The server knows the job no more.
    pub is_forgotten: bool,
    /// Seconds between updates the server asks for.
    pub update_interval: u64,
    /// The machine that has it cancels gracefully.
    pub cancels_gracefully: bool,
    /// How often this job was queued again for want of an acknowledgement.
    pub provisioning_retries: u32,
    /// Told on every change.
    pub changed: Arc<Notify>,
}

impl Job {
    /// Moves the job and tells those who wait for it.
    pub fn enter(&mut self, state: JobState) {
        let now = Timestamp::now();
        self.view.state = state;
        if state == JobState::Running && self.view.running_at.is_none() {
            self.view.running_at = Some(now);
        }
        if state != JobState::Acknowledging {
            self.acknowledge_by = None;
        }
        if state.is_final() {
            self.view.finished_at = Some(now);
        }
        self.changed.notify_waiters();
    }

    /// Ends the job by the server's own decision.
    pub fn drop_as(&mut self, reason: &str) {
        self.view.failure_reason = Some(reason.to_owned());
        self.enter(JobState::Failed);
    }
}

/// The machine a resume of an environment has to go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub runner: RunnerId,
    pub machine: String,
}

/// The server's memory.
#[derive(Debug)]
pub(super) struct World {
    pub jobs: BTreeMap<JobId, Job>,
    pub runners: BTreeMap<RunnerId, RunnerRecord>,
    /// Runner tokens that were valid once, and whether their user may not know that they are dead.
    pub retired_tokens: BTreeMap<String, bool>,
    /// Access tokens and what they may do.
    pub access_tokens: BTreeMap<String, Scope>,
    pub projects: BTreeMap<String, GitRepo>,
    /// By environment key.
    pub environments: HashMap<String, Route>,
    pub ledger: Ledger,
    pub faults: Faults,
    /// Requests for a job that are held now.
    pub held_requests: usize,
    pub default_update_interval: u64,
    next_job: u64,
    next_runner: u64,
}

impl World {
    pub fn new(default_update_interval: u64) -> Self {
        Self {
            jobs: BTreeMap::new(),
            runners: BTreeMap::new(),
            retired_tokens: BTreeMap::new(),
            access_tokens: BTreeMap::new(),
            projects: BTreeMap::new(),
            environments: HashMap::new(),
            ledger: Ledger::default(),
            faults: Faults::default(),
            held_requests: 0,
            default_update_interval,
            next_job: 1,
            next_runner: 1,
        }
    }

    /// Tells every runner that its queue has changed.
    pub fn tick_queues(&mut self) {
        self.runners.values_mut().for_each(RunnerRecord::tick_queue);
    }

    pub fn register_runner(&mut self, tags: BTreeSet<String>) -> Runner {
        let id = RunnerId(self.next_runner);
        self.next_runner += 1;
        let record = RunnerRecord::new(id, tags);
        let runner = Runner { id, token: record.token.clone() };
        self.runners.insert(id, record);
        runner
    }

    /// Makes a runner with settings in the words of the REST API.
    pub fn make_runner(&mut self, settings: Object, token_life: Option<Duration>) -> &RunnerRecord {
        let id = RunnerId(self.next_runner);
        self.next_runner += 1;
        let mut record = RunnerRecord::new(id, BTreeSet::new());
        record.settings = settings;
        record.take_settings();
        record.issue_token(token_life);
        self.runners.entry(id).or_insert(record)
    }

    /// A token is dead from now on.
    pub fn retire(&mut self, token: String, may_be_unknown: bool) {
        self.retired_tokens.insert(token, may_be_unknown);
    }

    /// The runner that a token authenticates.
    pub fn runner_by_token(&mut self, token: &str) -> Option<&mut RunnerRecord> {
        let now = Timestamp::now();
        self.runners
            .values_mut()
            .find(|runner| runner.token == token && runner.expires_at.is_none_or(|at| now < at))
    }

    pub fn enqueue(&mut self, spec: JobSpec) -> JobId {
        self.enqueue_retry(spec, None, 0)
    }

    fn enqueue_retry(&mut self, spec: JobSpec, retry_of: Option<JobId>, provisioning_retries: u32) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        if let Some((repo, _)) = &spec.git {
            self.projects.insert(repo.project().to_owned(), repo.clone());
        }
        let view = JobView {
            id,
            name: spec.name.clone(),
            project: spec.project.clone(),
            token: format!("glcbt-64_{}", secret::letters(20)),
            state: JobState::Pending,
            log: Vec::new(),
            exit_code: None,
            failure_reason: None,
            environment_key: None,
            runner: None,
            machine: None,
            puts: Vec::new(),
            patches: Vec::new(),
            fetches: Vec::new(),
            artifacts: Vec::new(),
            enqueued_at: Timestamp::now(),
            picked_up_at: None,
            running_at: None,
            first_byte_at: None,
            finished_at: None,
            retried_as: None,
            retry_of,
        };
        for runner in self.runners.values_mut() {
            if runner.serves(&spec.tags) && spec.runner.is_none_or(|only| only == runner.id) {
                runner.tick_queue();
            }
        }
        let job = Job {
            view,
            acknowledge_by: None,
            conduct: Conduct::default(),
            chunks_pending: spec.chunks_pending,
            log_resets: spec.log_resets,
            is_taken_elsewhere: false,
            is_forgotten: false,
            update_interval: self.default_update_interval,
            cancels_gracefully: false,
            provisioning_retries,
            changed: Arc::new(Notify::new()),
            spec,
        };
        self.jobs.insert(id, job);
        id
    }

    /// Cancels as a person would with one click: gracefully where the runner can.
    pub fn cancel(&mut self, id: JobId) -> Option<JobState> {
        let job = self.jobs.get_mut(&id)?;
        match job.view.state {
            JobState::Running if job.cancels_gracefully => job.enter(JobState::Canceling),
            JobState::Pending | JobState::Acknowledging | JobState::Running => {
                job.enter(JobState::Canceled);
            }
            JobState::Canceling | JobState::Success | JobState::Failed | JobState::Canceled => {}
        }
        Some(job.view.state)
    }

    /// Cancels at once: the runner is no longer asked.
    pub fn cancel_hard(&mut self, id: JobId) -> Option<JobState> {
        let job = self.jobs.get_mut(&id)?;
        if !job.view.state.is_final() {
            job.enter(JobState::Canceled);
        }
        Some(job.view.state)
    }

    /// When the next acknowledgement lease runs out.
    pub fn next_lease_end(&self) -> Option<Instant> {
        self.jobs.values().filter_map(|job| job.acknowledge_by).min()
    }

    /// Drops jobs whose lease ran out more than `grace` ago, and queues them again when `retry`.
    /// Returns whether the queue has grown.
    pub fn expire_leases(&mut self, now: Instant, grace: Duration, retry: bool) -> bool {
        let late: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.acknowledge_by.is_some_and(|by| by + grace <= now))
            .map(|(id, _)| *id)
            .collect();
        let mut has_grown = false;
        for id in late {
            has_grown |= self.drop_unacknowledged(id, retry);
        }
        has_grown
    }

    fn drop_unacknowledged(&mut self, id: JobId, retry: bool) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        job.drop_as("runner_provisioning_timeout");
        if !retry || job.provisioning_retries >= PROVISIONING_RETRIES {
            return false;
        }
        let (spec, retries) = (job.spec.clone(), job.provisioning_retries + 1);
        let again = self.enqueue_retry(spec, Some(id), retries);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.view.retried_as = Some(again);
            job.changed.notify_waiters();
        }
        true
    }

    /// A new client process may have taken over: it knows neither how much log is stored nor which
    /// final updates were answered, and it has seen no queue value.
    pub fn client_restarted(&mut self) {
        self.retired_tokens.values_mut().for_each(|may_be_unknown| *may_be_unknown = true);
        for job in self.jobs.values_mut() {
            job.conduct.excuse();
        }
        for runner in self.runners.values_mut() {
            for machine in runner.machines.values_mut() {
                machine.client_restarted();
            }
        }
    }
}
