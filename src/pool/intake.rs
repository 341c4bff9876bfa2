//! Intake: the requests for jobs of a held pool.
//!
//! Writes after a 201, before anything else: (1) the JobLease, (2) the Secrets with its payload. Death before (1):
//! the job is GitLab's; a two-phase server gives it to someone else. Death between (1) and (2): the next holder
//! finds a lease without its payload and closes it with an Event. Names are derived from pool and job, so doing
//! either twice is doing it once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::core::ObjectMeta;
use secrecy::ExposeSecret;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::Held;
use super::busy::Asking;
use super::held::lock;
use super::settings::Settings;
use super::slots::{self, Room};
use crate::api::job_lease::{self, JobLease, JobLeaseSpec};
use crate::api::key::{EnvironmentId, EnvironmentKey};
use crate::api::labels;
use crate::api::runner_pool::Mode;
use crate::clock;
use crate::deed::{Deed, Point};
use crate::gitlab::adaptive::{Adaptive, Told};
use crate::gitlab::backoff::Backoff;
use crate::gitlab::client::{JobCredentials, JobUpdate, RequestAnswer, UpdateAnswer};
use crate::gitlab::wire::JobPayload;
use crate::kube_ext::is_refusal;
use crate::lease::tail;
use crate::lease::{payload, wish};
use crate::telemetry::{LeaseOutcome, Queue as WayThroughQueue, Requests, TaskOperation};

/// Wait after an answer of "no job" on a server that does not hold requests.
const IDLE_INTERVAL: Duration = Duration::from_secs(3);

/// Wait after an answer that was of no use.
const ERROR_INTERVAL: Duration = Duration::from_secs(1);

/// How long a job without a durable lease counts as ours: a two-phase GitLab gives it to somebody else when it has heard
/// nothing of it for 120 s.
const OURS_WITHOUT_LEASE: Duration = Duration::from_secs(100);

/// Time for one try to make it durable.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer that took this long was held by the server: it may be asked again at once.
const HELD_BY_SERVER: Duration = Duration::from_secs(2);

/// Why GitLab is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Idle {
    /// The mode says so.
    Mode(Mode),
    /// The pool is being deleted.
    Deleting,
    /// The settings cannot be used.
    NotConfigured,
    /// The Lease was not renewed at the last try: a job taken now might not be made durable.
    NotSure,
    /// The pool is being given up for another replica.
    Leaving,
    /// The runner's token is being replaced.
    TokenChanging,
    /// No slot, no host, or enough jobs.
    Room(Room),
}

/// Whether GitLab may be asked for a job now.
pub fn may_poll(held: &Held) -> Result<Arc<Settings>, Idle> {
    let Some(pool) = held.pool() else { return Err(Idle::Deleting) };
    if pool.metadata.deletion_timestamp.is_some() {
        return Err(Idle::Deleting);
    }
    match pool.spec.mode {
        Mode::Active => {}
        mode @ (Mode::Paused | Mode::Draining) => return Err(Idle::Mode(mode)),
    }
    let Some(settings) = held.settings() else { return Err(Idle::NotConfigured) };
    if held.settings_refused() {
        return Err(Idle::NotConfigured);
    }
    if !held.tenure().is_sure() {
        return Err(Idle::NotSure);
    }
    if held.tenure().is_leaving() {
        return Err(Idle::Leaving);
    }
    if held.is_token_in_doubt() {
        return Err(Idle::TokenChanging);
    }
    match held.view(slots::room) {
        Room::Yes => Ok(settings),
        room @ (Room::AtConcurrency | Room::NoReachableHost | Room::NoSlot) => Err(Idle::Room(room)),
    }
}

/// What the requests of a pool have in common.
#[derive(Default)]
struct Queue {
    /// The mark of the latest answer, which the next request echoes, and the runner whose queue it is of.
    last_update: Option<(u64, String)>,
    adaptive: Adaptive,
    backoff: Backoff,
}

/// Asks until the tenure ends, with as many requests at a time as spec, answers and room allow. Those that are under way
/// then are awaited: GitLab may have assigned a job already, and its lease is written for the next holder to find.
///
/// Pools do not wait for each other: each has its own requests and its own limit.
pub async fn run(held: Arc<Held>) {
    let queue = Arc::new(Mutex::new(Queue::default()));
    let mut requests = JoinSet::new();
    let mut waited = false;
    while !held.ended().is_cancelled() {
        while let Some(over) = requests.try_join_next() {
            told(over);
        }
        let settings = match may_poll(&held) {
            Ok(settings) => settings,
            Err(_) => {
                held.wait_for_change().await;
                continue;
            }
        };
        let most = settings.spec.request_concurrency;
        let adaptive = lock(&queue).adaptive;
        let allowed = adaptive.limit(most) as usize;
        held.shared.metrics.requests(
            &settings.labels,
            Requests {
                open: held.open_requests(),
                hard_limit: most,
                adaptive_limit: adaptive.exact(),
                used_limit: adaptive.limit(most),
            },
        );
        // Each request may bring a job: more than one are open only while there is room for all of them.
        let has_room = requests.is_empty() || requests.len() < held.view(slots::spare);
        if requests.len() >= allowed || !has_room {
            if has_room && !std::mem::replace(&mut waited, true) {
                held.shared.metrics.request_waited(&settings.labels);
            }
            tokio::select! {
                Some(over) = requests.join_next() => told(over),
                () = held.wait_for_change() => {}
            }
            continue;
        }
        waited = false;
        // Said before the last look: a pool that is drained or deleted from here on waits for the answer.
        let asking = held.begin_asking();
        if may_poll(&held).is_err() {
            continue;
        }
        requests.spawn(ask(Arc::clone(&held), settings, Arc::clone(&queue), asking));
    }
    while let Some(over) = requests.join_next().await {
        told(over);
    }
}

fn told(over: Result<(), tokio::task::JoinError>) {
    if over.is_err() {
        tracing::error!("a request for a job panicked");
    }
}

/// Asks for one job, takes it, and lets the time pass before the place is used again.
async fn ask(held: Arc<Held>, settings: Arc<Settings>, queue: Arc<Mutex<Queue>>, asking: Asking) {
    let begun = std::time::Instant::now();
    let metrics = &held.shared.metrics;
    metrics.asked(&settings.labels);
    // A pool may have become another runner, whose queue the mark says nothing of.
    let runner = settings.identity.runner_id;
    let known = lock(&queue).last_update.clone().filter(|(of, _)| *of == runner);
    let before = known.map(|(_, mark)| mark);
    let mut last_update = before.clone();
    let answer = settings.gitlab.request_job(&mut last_update).await;
    let has_moved = last_update != before;
    if has_moved {
        lock(&queue).last_update = last_update.map(|mark| (runner, mark));
    }
    let says = match &answer {
        RequestAnswer::Job { .. } | RequestAnswer::Unreadable { .. } => Told::Job,
        RequestAnswer::NoJob | RequestAnswer::Conflict => Told::Empty,
        RequestAnswer::InvalidToken | RequestAnswer::Retry { .. } => Told::PushedBack,
    };
    lock(&queue).adaptive.told(says, settings.spec.request_concurrency);
    if says != Told::Job {
        metrics.task(&settings.labels, TaskOperation::Unreserve);
    }
    let wait = match answer {
        RequestAnswer::Job { job, raw } => {
            accept(&held, &settings, &job, &raw).await;
            Duration::ZERO
        }
        RequestAnswer::Unreadable { identity, cause } => {
            refuse_unreadable(&held, &settings, identity, &cause).await;
            ERROR_INTERVAL
        }
        // A new mark means that the queue has moved: with it, the next request may be held by the server.
        RequestAnswer::NoJob if begun.elapsed() >= HELD_BY_SERVER || has_moved => Duration::ZERO,
        RequestAnswer::NoJob => IDLE_INTERVAL,
        RequestAnswer::Conflict => Duration::ZERO,
        RequestAnswer::InvalidToken => {
            metrics.asking_failed(&settings.labels);
            metrics.token_refused(&settings.labels);
            held.token_was_refused(&settings);
            ERROR_INTERVAL
        }
        RequestAnswer::Retry { after, cause } => {
            tracing::warn!(pool = held.name, cause, "GitLab could not be asked for a job");
            metrics.asking_failed(&settings.labels);
            let wait = lock(&queue).backoff.failed(after, rand::random());
            drop(asking);
            return pause(&held, wait).await;
        }
    };
    lock(&queue).backoff.succeeded();
    drop(asking);
    pause(&held, wait).await;
}

async fn pause(held: &Held, wait: Duration) {
    if !wait.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = held.ended().cancelled() => {}
        }
    }
}

/// Makes a job durable. It is tried for as long as the job is ours.
async fn accept(held: &Arc<Held>, settings: &Settings, job: &JobPayload, raw: &[u8]) {
    let parts = match payload::pack(raw) {
        Ok(parts) => parts,
        Err(error) => {
            let credentials = settings.credentials(job);
            tail::refuse_without_lease(held, settings, &credentials, &error.to_string()).await;
            return;
        }
    };
    let lease = lease_of(held, settings, job, parts.len());
    let name = lease.name_any();
    // The driver sees the lease as soon as it exists; it must not look for a payload that is still being written.
    let arriving = held.arriving(&name);
    let mut backoff = Backoff::default();
    let mut hold = Hold::new(settings.credentials(job));
    loop {
        let error = match timeout(WRITE_TIMEOUT, write(held, &lease, &parts)).await {
            Ok(Ok(())) => {
                tracing::info!(
                    pool = held.name,
                    job = job.id,
                    project = job.project_path(),
                    lease = name,
                    "job accepted"
                );
                held.shared.metrics.job_taken(&settings.labels, &way_through_the_queue(job));
                drop(arriving);
                held.wake();
                return;
            }
            Ok(Err(error)) if is_refusal(&error) => {
                let message = format!("the job's lease was refused by the API server: {error}");
                tail::refuse_without_lease(held, settings, &hold.job, &message).await;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server did not answer in time".to_owned(),
        };
        tracing::warn!(pool = held.name, job = job.id, error, "the job's lease is not durable yet");
        match hold.ask(settings).await {
            Ours::Yes => tokio::time::sleep(backoff.failed(None, rand::random())).await,
            Ours::GivenAway => {
                tracing::error!(
                    pool = held.name,
                    job = job.id,
                    error,
                    "the job is left to GitLab: its lease did not become durable in time"
                );
                held.shared.metrics.lease(&held.name, LeaseOutcome::LostBeforeDurable);
                return;
            }
            Ours::ToBeFailed => {
                held.shared.metrics.lease(&held.name, LeaseOutcome::LostBeforeDurable);
                let message = format!("the job could not be recorded in Kubernetes: {error}");
                tail::refuse_without_lease(held, settings, &hold.job, &message).await;
                return;
            }
        }
    }
}

/// Whether a job whose lease is not durable is still ours.
enum Ours {
    /// It is tried on.
    Yes,
    /// GitLab gives it to somebody else, or has ended it.
    GivenAway,
    /// It is ours until we say that it failed: a server without two-phase commit waits for an hour.
    ToBeFailed,
}

/// How long a job is ours that has no lease yet.
struct Hold {
    job: JobCredentials,
    until: Instant,
    counted: Option<Counted>,
}

/// As what GitLab counts the job.
enum Counted {
    Waiting,
    Running,
}

impl Hold {
    fn new(job: JobCredentials) -> Self {
        Self { job, until: Instant::now() + OURS_WITHOUT_LEASE, counted: None }
    }

    /// Asks GitLab, once, as what it counts the job, and looks at the time. The question is the job's keep-alive, so a
    /// server that counts it as waiting gives it to nobody else before our time is over.
    async fn ask(&mut self, settings: &Settings) -> Ours {
        if self.counted.is_none() {
            let asked_at = Instant::now();
            match settings.gitlab.update(&self.job, &JobUpdate::Pending).await {
                UpdateAnswer::Ok(_) => {
                    self.counted = Some(Counted::Waiting);
                    self.until = asked_at + OURS_WITHOUT_LEASE;
                }
                UpdateAnswer::Refused => self.counted = Some(Counted::Running),
                UpdateAnswer::Gone { .. } | UpdateAnswer::OwnedByOther => return Ours::GivenAway,
                UpdateAnswer::Retry { .. } | UpdateAnswer::StoringLog { .. } | UpdateAnswer::LogInvalid => {}
            }
        }
        match self.counted {
            _ if Instant::now() < self.until => Ours::Yes,
            Some(Counted::Waiting) => Ours::GivenAway,
            // Of a server that could not be asked nothing is known: one with two-phase commit refuses what follows.
            Some(Counted::Running) | None => Ours::ToBeFailed,
        }
    }
}

async fn write(held: &Held, lease: &JobLease, parts: &[Vec<u8>]) -> Result<(), kube::Error> {
    // Not fenced: GitLab gave the job to this process, whoever holds the pool by now; the holder finds its lease.
    // (1)
    let deed = Deed::unfenced(Point::LeaseCreated);
    let (written, _) = held.shared.leases.create(deed, &held.namespace, lease).await?;
    // (2)
    payload::save(&held.shared, &written, parts).await
}

fn lease_of(held: &Held, settings: &Settings, job: &JobPayload, parts: usize) -> JobLease {
    let resume_from = wish::resume_key(&settings.spec, job);
    let own =
        resume_from.as_deref().and_then(|key| key.parse::<EnvironmentKey>().ok()).map(|key| key.environment);
    let environment = own.unwrap_or_else(|| EnvironmentId::from_random(rand::random()));
    let name = job_lease::object_name(&held.name, job.id);
    JobLease {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(held.namespace.clone()),
            labels: Some(
                [
                    (labels::MANAGED_BY, labels::MANAGER.to_owned()),
                    (labels::POOL, held.name.clone()),
                    (labels::JOB_ID, job.id.to_string()),
                    (labels::PROJECT_ID, job.job_info.project_id.to_string()),
                    (labels::ENVIRONMENT_ID, environment.to_string()),
                ]
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            ),
            finalizers: Some(vec![labels::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: JobLeaseSpec {
            pool: held.name.clone(),
            pool_uid: held.uid.clone(),
            job_id: job.id,
            job_name: clipped(&job.job_info.name, 1024),
            project_id: job.job_info.project_id,
            project_path: clipped(&job.project_path(), 1024),
            ref_name: clipped(&job.git_info.ref_name, 1024),
            environment_id: environment.to_string(),
            resume_from: resume_from.map(|key| clipped(&key, 2048)),
            timeout_seconds: job.timeout_seconds(),
            accepted_at: Time(clock::now()),
            payload_parts: u32::try_from(parts).unwrap_or(u32::MAX),
        },
        status: None,
    }
}

/// What GitLab says of the job's way to us.
fn way_through_the_queue(job: &JobPayload) -> WayThroughQueue {
    let info = &job.job_info;
    WayThroughQueue {
        waited: Duration::from_secs(info.time_in_queue_seconds.0),
        project_jobs_running: info.project_jobs_running_on_instance_runners_count.clone(),
        size: info.queue_size,
        depth: info.queue_depth,
    }
}

fn clipped(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// A job that cannot be read is failed with a word on why, not left to GitLab's time-outs.
async fn refuse_unreadable(
    held: &Held,
    settings: &Settings,
    identity: Option<(u64, secrecy::SecretString)>,
    cause: &str,
) {
    tracing::error!(pool = held.name, cause, "GitLab handed out a job that cannot be read");
    if let Some(pool) = held.pool() {
        let note = format!("GitLab handed out a job that cannot be read: {cause}");
        held.shared.events.warning(pool.as_ref(), "JobUnreadable", "Intake", note).await;
    }
    if let Some((id, token)) = identity {
        let token = secrecy::SecretString::from(token.expose_secret().to_owned());
        let credentials = JobCredentials { id, token: Arc::new(token), debug_trace: false };
        tail::refuse_without_lease(held, settings, &credentials, cause).await;
    }
}
