//! One job, from its lease to its report.
//!
//! [`drive`] takes an open lease at whatever point it stands and brings it to its end. It is the same for a new
//! lease and for one of an earlier holder: each step looks at what is durable and goes on from there.
//!
//! | write | death after it: who finishes |
//! | --- | --- |
//! | (1) JobLease, (2) payload Secrets | `pool::intake` | the next holder drives the lease; without (2) it is closed |
//! | (3) environment bound, on a resume | the next holder finds itself bound and goes on |
//! | (3a) status: what a resume has been waiting for | the next holder looks for itself, and says it anew |
//! | (4) status Assigned: instance and slot | the next holder confirms and starts there; starting twice is once |
//! | (4a) status Accepted again: the host has refused the slot, nothing was started | the next holder looks for another |
//! | (5) GitLab: running | said again; GitLab takes it from the same manager |
//! | (6) host: start | the host has the job; starting again attaches |
//! | (6a) host: newer addresses of the job's caches | sent again by the next holder |
//! | (7) status Running | the next holder attaches, and never starts again |
//! | (8) suspend, see `suspend` | |
//! | (9) host: seal | the log is complete; sealing again changes nothing |
//! | (10) GitLab: log and final update | said again; GitLab answers that it knows, or that the job is over |
//! | (11) host: release, of an environment that is not kept | done again; the sweep finds what is left |
//! | (12) status Reported | the Secrets are deleted by the next holder as it begins |
//! | (13) Secrets deleted, (14) finalizer, (15) lease deleted | the next holder's collection |

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::job_lease::{JobLeaseStatus, LeasePhase};
use crate::api::{JobLease, condition};
use crate::clock;
use crate::deed::Point;
use crate::gitlab::reason::FailureReason;
use crate::gitlab::support;
use crate::gitlab::trace::Trace;
use crate::gitlab::wire::JobPayload;
use crate::host::link::{JobPath, LinkError};
use crate::kube_ext::is_conflict;
use crate::pool::Held;
use crate::pool::busy::Busy;
use crate::pool::settings::Settings;
use crate::telemetry::LeaseOutcome;

pub mod acquire;
pub mod cache;
pub mod conclude;
pub mod conversation;
pub mod driven;
pub mod finish;
pub mod interruption;
pub mod payload;
pub mod quarantine;
pub mod record;
pub mod restore;
pub mod resume;
pub mod run;
pub mod seen;
pub mod stream;
pub mod suspend;
pub mod tail;
pub mod wish;

use acquire::Acquired;
use conversation::{Confirmation, Conversation, Verdict};
use record::{Ending, Silence, Step};

/// First and longest pause between two attempts at a lease.
const RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// How long GitLab may take to take a job's end before the lease's status says so.
const PATIENCE: jiff::SignedDuration = jiff::SignedDuration::from_secs(5);

/// Why an attempt at a lease ended before the lease did. The lease stays as it is; another attempt follows.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The API server refused or could not be asked.
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The payload could not be read now.
    #[error("the payload: {0}")]
    Payload(#[from] payload::PayloadError),
    /// The host refused or could not be asked.
    #[error("the host: {0}")]
    Host(#[from] LinkError),
    /// The pool's settings are not there yet.
    #[error("the pool's settings are not known yet")]
    NoSettings,
    /// The lease's environment id is not one.
    #[error("the environment's key: {0}")]
    Key(#[from] crate::api::key::KeyError),
    /// A newer holder has written the lease's status.
    #[error("a newer holder has written the lease's status")]
    Superseded,
    /// The lease is gone from the API server.
    #[error("the lease is gone")]
    Gone,
    /// The log on the host does not continue what was read of it.
    #[error(transparent)]
    Gap(#[from] crate::gitlab::trace::Gap),
}

/// A job with everything that is needed to bring it to its end.
pub struct Driver {
    held: Arc<Held>,
    settings: Arc<Settings>,
    lease: Arc<JobLease>,
    job: JobPayload,
    conversation: Conversation,
    /// Whether the host has said that nothing of the job is left on its slot.
    slot_is_clean: bool,
    /// Held from when the lease was made again: no other task is started for it meanwhile.
    made_again: Option<Busy>,
    /// When this process began to drive it; for the first-byte metric only.
    began: Instant,
    /// What the lease's status says of a GitLab that does not answer.
    noted: Option<Silence>,
}

/// Brings an open lease to its end, however often that takes.
pub async fn drive(held: &Arc<Held>, lease: Arc<JobLease>) {
    let mut pause = RETRY;
    let (namespace, name) = (held.namespace.clone(), lease.name_any());
    let _driven = held.shared.driven.enter(&namespace, &name);
    if lease.status.is_some() {
        held.shared.metrics.lease(&held.name, LeaseOutcome::Recovered);
        tracing::info!(phase = ?lease.phase(), "lease taken over");
        if lease.place().is_some() {
            let note = format!("the job is attached to by {}", held.shared.identity);
            held.shared.events.normal(lease.as_ref(), "JobReattached", "Attach", note).await;
        }
    }
    loop {
        let Some(current) = held.shared.leases.cache.get(&namespace, &name) else { return };
        // One that was made again meanwhile gets a task of its own.
        if !current.phase().is_open() || current.uid() != lease.uid() {
            return;
        }
        match attempt(held, current).await {
            Ok(()) | Err(DriveError::Gone) => return,
            Err(error) => tracing::warn!(%error, "the lease is tried again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

async fn attempt(held: &Arc<Held>, lease: Arc<JobLease>) -> Result<(), DriveError> {
    let settings = held.settings().ok_or(DriveError::NoSettings)?;
    let job = match payload::load(&held.shared, &lease).await {
        Ok(job) => job,
        Err(payload::PayloadError::Kubernetes(error)) => return Err(error.into()),
        Err(error) => return close_without_payload(held, &lease, &error.to_string()).await,
    };
    let conversation =
        Conversation::new(held, settings.gitlab.clone(), settings.credentials(&job), job.features.clone());
    let mut driver = Driver {
        held: Arc::clone(held),
        settings,
        lease,
        job,
        conversation,
        slot_is_clean: false,
        made_again: None,
        began: Instant::now(),
        noted: None,
    };
    driver.bring_to_end().await
}

/// A lease whose job can never be run or reported: the token went with the payload.
async fn close_without_payload(held: &Held, lease: &Arc<JobLease>, why: &str) -> Result<(), DriveError> {
    tracing::error!(
        pool = held.name,
        lease = lease.name_any(),
        why,
        "the lease is closed without its payload"
    );
    held.shared.events.warning(lease.as_ref(), "PayloadMissing", "Close", why.to_owned()).await;
    let mut ending = Ending::without_run(Some(FailureReason::RunnerSystemFailure), why);
    ending.slot_in_doubt = quarantine::doubt(held, lease);
    record_step(held, lease, &Step::Failed(ending)).await?;
    Ok(())
}

impl Driver {
    async fn bring_to_end(&mut self) -> Result<(), DriveError> {
        // A text of ours was being written when an earlier holder died: nothing else can come any more.
        if let Some(offset) = self.status().tail_offset {
            let JobLeaseStatus { message, failure_reason, .. } = self.status();
            let reason = failure_reason.as_deref().and_then(FailureReason::named);
            let reason = reason.unwrap_or(FailureReason::RunnerSystemFailure);
            return self.end_with_tail(Some(offset), reason, &message.unwrap_or_default()).await;
        }
        if self.lease.place().is_none() {
            if let Some(why) = support::unsupported(&self.job) {
                return self.refuse(FailureReason::RunnerConfigurationError, &why).await;
            }
            match acquire::acquire(self).await? {
                Acquired::Slot => {}
                Acquired::Refused { reason, message } => return self.refuse(reason, &message).await,
                Acquired::GivenBack => {
                    let message = "no slot was free in time; the job was given back to GitLab";
                    self.held
                        .shared
                        .events
                        .warning(self.lease.as_ref(), "GivenBack", "Acquire", message.to_owned())
                        .await;
                    let ending = Ending::without_run(None, message);
                    return self.close(Step::Failed(ending)).await;
                }
                Acquired::Canceled if self.is_deleted() => {
                    let message = "its JobLease was deleted before it started";
                    return self.refuse(FailureReason::JobCanceled, message).await;
                }
                Acquired::Canceled => return self.end_canceled().await,
                Acquired::Gone => return self.end_gone().await,
            }
        }
        match self.conversation.confirm().await {
            Confirmation::Confirmed => run::run(self).await,
            Confirmation::Canceled if self.lease.phase() == LeasePhase::Assigned => self.end_canceled().await,
            Confirmation::Canceled => run::run(self).await,
            Confirmation::Gone => finish::abandon(self).await,
        }
    }

    /// The job cannot be run: GitLab is told why, in the log and as a reason.
    async fn refuse(&mut self, reason: FailureReason, message: &str) -> Result<(), DriveError> {
        tracing::info!(message, "the job is refused");
        self.held.settle_reservation(&self.lease.name_any());
        match self.conversation.confirm().await {
            Confirmation::Confirmed => {}
            Confirmation::Canceled => return self.end_canceled().await,
            Confirmation::Gone => return self.end_gone().await,
        }
        self.end_with_tail(None, reason, message).await
    }

    /// Ends the job with a text of ours after the bytes GitLab has.
    async fn end_with_tail(
        &mut self,
        recorded: Option<u64>,
        reason: FailureReason,
        message: &str,
    ) -> Result<(), DriveError> {
        let host_had_log = self.lease.place().is_some();
        let offset = match recorded {
            Some(offset) => offset,
            None => {
                let text = tail::text(message);
                let offset = if host_had_log { self.conversation.log_size(&text).await } else { Some(0) };
                let Some(offset) = offset else { return self.end_gone().await };
                self.record(&Step::Tail { offset, reason, message: message.to_owned() }).await?;
                offset
            }
        };
        let text = tail::text(message);
        let known = self.conversation.known_log_size().unwrap_or(offset);
        let credentials = self.conversation.credentials();
        let size = tail::write(&self.settings, credentials, offset, known, &text).await;
        let Some(size) = size else { return self.end_gone().await };
        // With the host lost nobody can say what the whole log is: no checksum is claimed.
        let log = (offset == 0).then(|| (size, crc32fast::hash(text.as_bytes())));
        let ending = Ending::without_run(Some(reason), message);
        self.report(ending, log).await
    }

    /// Tells GitLab the result of a job that left no environment, and closes the lease.
    async fn report(&mut self, ending: Ending, log: Option<(u64, u32)>) -> Result<(), DriveError> {
        if self.tell(&ending, log, None).await? == Verdict::LogInvalid {
            // There is no other log than the one GitLab has: the result stands without a checksum.
            self.tell(&ending, None, None).await?;
        }
        let step = self.last_step(ending).await;
        self.close(step).await
    }

    /// Tells GitLab the result; answers where the report stands after that.
    async fn tell(
        &mut self,
        ending: &Ending,
        log: Option<(u64, u32)>,
        environment_key: Option<&str>,
    ) -> Result<Verdict, DriveError> {
        let (failure, exit_code) = (ending.failure, ending.exit_code.unwrap_or_default());
        let began = Instant::now();
        while let Some(wait) = self.conversation.tell(failure, exit_code, log, environment_key).await {
            // GitLab is away or storing the log: the result is written down before the longer wait.
            if self.conversation.silence().is_some() {
                self.note_silence(ending).await?;
            } else if began.elapsed() >= PATIENCE.unsigned_abs()
                && self.lease.phase() != LeasePhase::Finalizing
            {
                self.record(&Step::Finalizing { ending: ending.clone(), silence: None }).await?;
            }
            tokio::time::sleep(wait).await;
        }
        Ok(self.conversation.verdict())
    }

    /// Writes down that the job has ended and that GitLab does not take the rest of it, once that lasts, and whenever
    /// GitLab answers something else than before. Nothing depends on it but people who look.
    async fn note_silence(&mut self, ending: &Ending) -> Result<(), DriveError> {
        let Some(silence) = self.conversation.silence().cloned() else { return Ok(()) };
        let lasts = clock::now().duration_since(silence.since) >= PATIENCE;
        if !lasts || self.noted.as_ref() == Some(&silence) {
            return Ok(());
        }
        let is_news = self.noted.as_ref().is_none_or(|noted| noted.since != silence.since);
        self.record(&Step::Finalizing { ending: ending.clone(), silence: Some(silence.clone()) }).await?;
        if is_news {
            tracing::warn!(since = %silence.since, cause = silence.cause, "GitLab does not take the job's end");
            let note = silence.to_string();
            self.held.shared.events.warning(self.lease.as_ref(), "GitLabNotAnswering", "Report", note).await;
        }
        self.noted = Some(silence);
        Ok(())
    }

    /// The lease's last step, from where the report stands.
    async fn last_step(&self, ending: Ending) -> Step {
        match self.conversation.verdict() {
            Verdict::Taken | Verdict::Gone => Step::Reported(ending),
            Verdict::Open | Verdict::LogInvalid | Verdict::Refused => {
                self.held.shared.metrics.lease(&self.held.name, LeaseOutcome::ReportRefused);
                let note = "GitLab refuses the job's result in every form".to_owned();
                self.held.shared.events.warning(self.lease.as_ref(), "ReportRefused", "Report", note).await;
                Step::Failed(ending)
            }
        }
    }

    /// Closes the lease and lets go of what it kept.
    async fn close(&mut self, mut step: Step) -> Result<(), DriveError> {
        resume::let_go(self).await?;
        let reason = match &mut step {
            Step::Reported(ending) | Step::Failed(ending) => {
                if !self.slot_is_clean {
                    ending.slot_in_doubt = quarantine::doubt(&self.held, &self.lease);
                }
                if let Some(why) = ending.slot_in_doubt.clone() {
                    tracing::warn!(why, "the slot is quarantined");
                    let events = &self.held.shared.events;
                    events.warning(self.lease.as_ref(), "SlotQuarantined", "Close", why).await;
                }
                ending.failure
            }
            Step::Finalizing { ending, .. } => ending.failure,
            Step::Waiting { .. }
            | Step::Assigned { .. }
            | Step::Displaced
            | Step::Running
            | Step::Tail { .. }
            | Step::SlotSeenClean => None,
        };
        self.held.settle_reservation(&self.lease.name_any());
        // (12)
        self.record(&step).await?;
        // (13)
        payload::delete(&self.held.shared, &self.lease).await?;
        let took = clock::now().duration_since(self.lease.spec.accepted_at.0);
        let took = Duration::try_from(took).unwrap_or(Duration::ZERO);
        let labels = &self.settings.labels;
        self.held.shared.metrics.job_reported(labels, reason.map(FailureReason::as_str), took);
        tracing::info!(
            failure = reason.map(FailureReason::as_str),
            seconds = took.as_secs_f64(),
            "job finished"
        );
        Ok(())
    }

    /// The job was canceled before anything of it ran.
    async fn end_canceled(&mut self) -> Result<(), DriveError> {
        let ending = Ending::without_run(Some(FailureReason::JobCanceled), "canceled before it started");
        self.report(ending, None).await
    }

    /// GitLab does not want the job any more: nothing is said, everything is let go.
    async fn end_gone(&mut self) -> Result<(), DriveError> {
        self.held.shared.metrics.lease(&self.held.name, LeaseOutcome::Gone);
        let ending = Ending::without_run(None, "GitLab does not want the job any more");
        self.close(Step::Reported(ending)).await
    }

    /// Writes a step into the lease's status.
    async fn record(&mut self, step: &Step) -> Result<(), DriveError> {
        restore::make_again_if_gone(self).await?;
        self.lease = record_step(&self.held, &self.lease, step).await?;
        Ok(())
    }

    fn status(&self) -> JobLeaseStatus {
        self.lease.status.clone().unwrap_or_default()
    }

    fn path(&self) -> JobPath {
        JobPath { environment: self.lease.spec.environment_id.clone(), job_id: self.lease.spec.job_id }
    }

    /// Whether somebody deleted the lease: the job is to be stopped.
    fn is_deleted(&self) -> bool {
        self.held
            .shared
            .leases
            .cache
            .get(&self.held.namespace, &self.lease.name_any())
            .is_some_and(|lease| lease.metadata.deletion_timestamp.is_some())
    }

    /// Waits until the holder may act, and keeps the job alive at GitLab meanwhile: for the API server to come back
    /// takes as long as it takes.
    async fn until_acting(&mut self, trace: &mut Trace) {
        let held = Arc::clone(&self.held);
        while !held.tenure().may_act() {
            let look_at = self.conversation.speak(trace, false, None);
            tokio::select! {
                () = held.tenure().acting() => {}
                answer = self.conversation.answer() => {
                    // What is wished for now is heard again when it can be acted on.
                    self.conversation.take_in(answer, trace);
                }
                () = stream::until(look_at) => {}
            }
        }
    }
}

/// Writes a step into a lease's status, on top of whatever it is by now.
async fn record_step(held: &Held, lease: &Arc<JobLease>, step: &Step) -> Result<Arc<JobLease>, DriveError> {
    let name = lease.name_any();
    loop {
        // The right first: what is written then shows the epoch it was given in.
        let deed = held.deed(step.point()).await;
        let current = held.shared.leases.cache.get(&held.namespace, &name).ok_or(DriveError::Gone)?;
        if !held.may_overwrite(&name, current.status.as_ref().and_then(|status| status.epoch)) {
            return Err(DriveError::Superseded);
        }
        let mut next = current.as_ref().clone();
        next.status = Some(record::after(
            current.status.as_ref(),
            step,
            &held.shared.identity,
            held.epoch(),
            current.metadata.generation,
            clock::now(),
        ));
        match held.shared.leases.replace_status(deed, &next).await {
            Ok(written) => {
                held.wake();
                return Ok(written);
            }
            // The cache holds the newer version now.
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// When a lease came to its end.
pub fn ended_at(status: &JobLeaseStatus) -> Option<Timestamp> {
    status
        .conditions
        .iter()
        .find(|known| known.type_ == condition::FINISHED && known.status == "True")
        .map(|known| known.last_transition_time.0)
}

/// Deletes the payloads of leases that an earlier holder closed and died before it tidied: a job's token is not kept
/// longer than the job.
pub async fn forget_payloads(held: Arc<Held>) {
    for lease in held.leases().into_iter().filter(|lease| !lease.phase().is_open()) {
        if let Err(error) = payload::delete(&held.shared, &lease).await {
            // It is tried again when the lease itself is deleted.
            tracing::warn!(pool = held.name, lease = lease.name_any(), %error, "a payload was not deleted yet");
        }
    }
}

/// Deletes a lease that is over. Secrets that a death left behind go with it: it owns them.
pub async fn let_go(held: &Held, lease: &JobLease) {
    let result = async {
        // (14), (15): deleted first, the finalizer after, so that a death between them is seen as a deletion.
        if lease.metadata.deletion_timestamp.is_none() {
            held.shared.leases.delete(held.deed(Point::LeaseDeleted).await, lease).await?;
        }
        let current = held.shared.leases.cache.get(&held.namespace, &lease.name_any());
        match current {
            Some(current) => {
                let deed = held.deed(Point::LeaseFinalizerRemoved).await;
                held.shared.leases.remove_finalizer(deed, &current).await
            }
            None => Ok(()),
        }
    };
    if let Err(error) = result.await {
        tracing::warn!(pool = held.name, lease = lease.name_any(), %error, "a finished lease was not deleted yet");
    }
}
