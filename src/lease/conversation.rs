//! What is said to GitLab about one job: pending, running, the log, the result.
//!
//! Everything here may be said again by a next holder. Nothing here gives up on a result: it is told until GitLab
//! takes it or says that the job is gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::deed::{Deed, Point};
use crate::gitlab::client::{Client, JobCredentials, JobStatus, JobUpdate, TraceAnswer, UpdateAnswer, Wish};
use crate::gitlab::reason::FailureReason;
use crate::gitlab::report::{Form, Next, Report};
use crate::gitlab::trace::{Resync, Trace};
use crate::gitlab::wire::ServerFeatures;
use crate::pool::Held;

/// How often a waiting or silent job is kept alive; GitLab gives a waiting one 120 s.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The interval between log updates until the server names one.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(3);

/// The least time between two log updates, whatever the server says: each costs it a request.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

/// The pause between tries while GitLab does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// The conversation about one job.
pub struct Conversation {
    held: Arc<Held>,
    gitlab: Client,
    credentials: JobCredentials,
    features: ServerFeatures,
    interval: Duration,
    spoke_at: Instant,
    /// Size of GitLab's log by its last answer.
    log_size: Option<u64>,
    report: Report,
    verdict: Verdict,
    canceled: bool,
}

/// Whether the job is ours to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// Yes.
    Confirmed,
    /// It is to be canceled.
    Canceled,
    /// It is not ours, or not alive.
    Gone,
}

/// What a keep-alive of a waiting job said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Go on waiting. The server counts the job as waiting.
    Acknowledged,
    /// Go on waiting. The server counts it as running already.
    Legacy,
    /// It is to be canceled.
    Canceled,
    /// It is not ours, or not alive.
    Gone,
    /// GitLab could not be asked.
    Unknown,
}

/// Where the report stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not told yet.
    Open,
    /// GitLab has it.
    Taken,
    /// The job is gone.
    Gone,
    /// GitLab wants the whole log again.
    LogInvalid,
    /// GitLab refuses it in every form.
    Refused,
}

/// What a log update said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Go on; this is the server's wish for the job.
    Wish(Wish),
    /// The log has to be read again from an offset.
    Refetch {
        /// First byte needed.
        from: u64,
    },
}

impl Conversation {
    /// A conversation that has not begun.
    pub fn new(
        held: &Arc<Held>,
        gitlab: Client,
        credentials: JobCredentials,
        features: ServerFeatures,
    ) -> Self {
        Self {
            held: Arc::clone(held),
            gitlab,
            credentials,
            features,
            interval: DEFAULT_INTERVAL,
            spoke_at: Instant::now(),
            log_size: None,
            report: Report::default(),
            verdict: Verdict::Open,
            canceled: false,
        }
    }

    /// The job's credentials.
    pub fn credentials(&self) -> &JobCredentials {
        &self.credentials
    }

    /// Whether GitLab has said that somebody canceled the job.
    pub fn is_canceled(&self) -> bool {
        self.canceled
    }

    /// The size of GitLab's log by its last answer, if it has said one.
    pub fn known_log_size(&self) -> Option<u64> {
        self.log_size
    }

    /// When the log is next sent: at the server's interval, but while the job is young no later than as long as the
    /// log has been sent for. The runner's own first lines would else keep the script's back for a whole interval.
    pub fn next_update_at(&self, first_sent: Instant, last_sent: Instant) -> Instant {
        last_sent + (last_sent - first_sent).max(SHORTEST_INTERVAL).min(self.interval)
    }

    /// When silence has lasted long enough for a sign of life.
    pub fn keep_alive_at(&self) -> Instant {
        self.spoke_at + KEEP_ALIVE
    }

    /// Says that the job waits for an instance.
    pub async fn waiting(&mut self) -> Waiting {
        self.spoke_at = Instant::now();
        match self.update(&JobUpdate::Pending).await {
            UpdateAnswer::Ok(status) => match status.wish {
                Wish::GoOn => Waiting::Acknowledged,
                Wish::CancelGracefully => Waiting::Canceled,
                Wish::Abort => Waiting::Gone,
            },
            // A server without two-phase commit counts the job as running since its hand-out: keep it alive so.
            UpdateAnswer::Refused => match self.update(&JobUpdate::Alive).await {
                UpdateAnswer::Ok(JobStatus { wish: Wish::GoOn, .. }) => Waiting::Legacy,
                UpdateAnswer::Ok(JobStatus { wish: Wish::CancelGracefully, .. }) => Waiting::Canceled,
                UpdateAnswer::Ok(JobStatus { wish: Wish::Abort, .. })
                | UpdateAnswer::Gone { .. }
                | UpdateAnswer::OwnedByOther
                | UpdateAnswer::Refused => Waiting::Gone,
                UpdateAnswer::Retry { .. } | UpdateAnswer::StoringLog { .. } | UpdateAnswer::LogInvalid => {
                    Waiting::Unknown
                }
            },
            UpdateAnswer::Gone { .. } | UpdateAnswer::OwnedByOther => Waiting::Gone,
            UpdateAnswer::Retry { .. } | UpdateAnswer::StoringLog { .. } | UpdateAnswer::LogInvalid => {
                Waiting::Unknown
            }
        }
    }

    /// Says that the job runs, until GitLab answers.
    pub async fn confirm(&mut self) -> Confirmation {
        loop {
            let deed = self.held.deed(Point::RunningTold).await;
            self.spoke_at = Instant::now();
            match deed.make(self.update(&JobUpdate::Running), |answer| answer).await {
                UpdateAnswer::Ok(status) => {
                    self.heed(status);
                    return match status.wish {
                        Wish::GoOn => Confirmation::Confirmed,
                        Wish::CancelGracefully => Confirmation::Canceled,
                        Wish::Abort => Confirmation::Gone,
                    };
                }
                UpdateAnswer::Gone { .. } | UpdateAnswer::OwnedByOther | UpdateAnswer::Refused => {
                    return Confirmation::Gone;
                }
                UpdateAnswer::Retry { after } => sleep(after.unwrap_or(RETRY)).await,
                UpdateAnswer::StoringLog { .. } | UpdateAnswer::LogInvalid => sleep(RETRY).await,
            }
        }
    }

    /// A sign of life of a silent job.
    pub async fn touch(&mut self) -> Wish {
        self.spoke_at = Instant::now();
        match self.update(&JobUpdate::Alive).await {
            UpdateAnswer::Ok(status) => {
                self.heed(status);
                status.wish
            }
            UpdateAnswer::Gone { .. } => Wish::Abort,
            // A refusal of a sign of life says nothing about the job.
            UpdateAnswer::Refused
            | UpdateAnswer::OwnedByOther
            | UpdateAnswer::Retry { .. }
            | UpdateAnswer::StoringLog { .. }
            | UpdateAnswer::LogInvalid => Wish::GoOn,
        }
    }

    /// Sends the next bytes of the log, if there are any.
    pub async fn send(&mut self, trace: &mut Trace) -> Sent {
        let Some((offset, bytes)) = trace.next_patch() else { return Sent::Wish(Wish::GoOn) };
        let bytes = Bytes::copy_from_slice(bytes);
        // Not fenced: an offset says which bytes these are, whoever sends them.
        let sending = self.gitlab.patch_trace(&self.credentials, offset, bytes);
        let answer = Deed::unfenced(Point::LogSent).make(sending, |answer| answer).await;
        self.spoke_at = Instant::now();
        match answer {
            TraceAnswer::Accepted { size, status } | TraceAnswer::Mismatch { size, status } => {
                self.heed(status);
                self.log_size = Some(size);
                match trace.server_has(size) {
                    Resync::Continue => Sent::Wish(status.wish),
                    Resync::Refetch { from } => Sent::Refetch { from },
                }
            }
            TraceAnswer::Abort { canceled } => {
                self.canceled |= canceled;
                Sent::Wish(Wish::Abort)
            }
            TraceAnswer::NotFound => {
                sleep(RETRY).await;
                Sent::Wish(self.touch().await)
            }
            TraceAnswer::Retry { after } => {
                sleep(after.unwrap_or(RETRY)).await;
                Sent::Wish(Wish::GoOn)
            }
        }
    }

    /// How many bytes of the log GitLab has; `None` when it wants no more of this job. Where no answer has said so
    /// yet, GitLab is offered the text that would be the whole log if there were none: it takes it then, or
    /// refuses it and names its size.
    pub async fn log_size(&mut self, whole_log_if_none: &str) -> Option<u64> {
        if let Some(size) = self.log_size {
            return Some(size);
        }
        loop {
            let bytes = Bytes::copy_from_slice(whole_log_if_none.as_bytes());
            let deed = self.held.deed(Point::TailOffered).await;
            let offer = self.gitlab.patch_trace(&self.credentials, 0, bytes);
            match deed.make(offer, |answer| answer).await {
                TraceAnswer::Mismatch { size, .. } => return Some(size),
                TraceAnswer::Accepted { size, .. } => {
                    self.log_size = Some(size);
                    return Some(0);
                }
                TraceAnswer::Abort { .. } => return None,
                TraceAnswer::NotFound => {
                    sleep(RETRY).await;
                    if self.touch().await == Wish::Abort {
                        return None;
                    }
                }
                TraceAnswer::Retry { after } => sleep(after.unwrap_or(RETRY)).await,
            }
        }
    }

    /// Tells the result once; true when the conversation has come to its end by that.
    pub async fn tell_once(
        &mut self,
        failure: Option<FailureReason>,
        exit_code: i32,
        log: Option<(u64, u32)>,
        environment_key: Option<&str>,
    ) -> bool {
        self.step(failure, exit_code, log, environment_key).await.is_none()
    }

    /// Tells the result until GitLab takes it, says that the job is gone, or wants the log again.
    pub async fn tell(
        &mut self,
        failure: Option<FailureReason>,
        exit_code: i32,
        log: Option<(u64, u32)>,
        environment_key: Option<&str>,
    ) {
        while let Some(wait) = self.step(failure, exit_code, log, environment_key).await {
            sleep(wait).await;
        }
    }

    /// Where the report stands.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    async fn step(
        &mut self,
        failure: Option<FailureReason>,
        exit_code: i32,
        log: Option<(u64, u32)>,
        environment_key: Option<&str>,
    ) -> Option<Duration> {
        let reason = failure.map(|reason| reason.for_server(&self.features.failure_reasons).to_owned());
        let (log, environment_key) = match self.report.form() {
            Form::Full => (log, environment_key.map(str::to_owned)),
            Form::Minimal => (None, None),
        };
        let update =
            JobUpdate::Final { failure: reason.map(|reason| (reason, exit_code)), log, environment_key };
        let deed = self.held.deed(Point::ResultTold).await;
        let answer = deed.make(self.update(&update), |answer| answer).await;
        match self.report.on(&answer) {
            Next::Repeat { after } => return Some(after),
            Next::ResendLog => self.verdict = Verdict::LogInvalid,
            Next::Done => self.verdict = Verdict::Taken,
            Next::Gone => self.verdict = Verdict::Gone,
            Next::Refused => self.verdict = Verdict::Refused,
        }
        None
    }

    async fn update(&mut self, update: &JobUpdate) -> UpdateAnswer {
        let answer = self.gitlab.update(&self.credentials, update).await;
        match answer {
            UpdateAnswer::Ok(status) => self.canceled |= status.canceled,
            UpdateAnswer::Gone { canceled } => self.canceled |= canceled,
            UpdateAnswer::StoringLog { .. }
            | UpdateAnswer::LogInvalid
            | UpdateAnswer::OwnedByOther
            | UpdateAnswer::Refused
            | UpdateAnswer::Retry { .. } => {}
        }
        answer
    }

    fn heed(&mut self, status: JobStatus) {
        self.canceled |= status.canceled;
        if let Some(interval) = status.interval {
            self.interval = interval;
        }
    }
}
