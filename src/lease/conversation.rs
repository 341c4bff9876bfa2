//! What is said to GitLab about one job: pending, running, the log, the result.
//!
//! One thing at a time. While a job waits or runs, what is said is under way beside everything else: its driver polls
//! the answer together with the host's frames ([`Conversation::speak`], [`Conversation::answer`]). Everything here may
//! be said again by a next holder. Nothing here gives up on a result: it is told until GitLab takes it or says that the
//! job is gone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::record::Silence;
use crate::clock;
use crate::deed::{Deed, Point};
use crate::gitlab::backoff::Backoff;
use crate::gitlab::client::{Client, JobCredentials, JobStatus, JobUpdate, TraceAnswer, UpdateAnswer, Wish};
use crate::gitlab::pace::{Log, Pace, Say};
use crate::gitlab::reason::FailureReason;
use crate::gitlab::report::{Form, Next, Report};
use crate::gitlab::trace::{Resync, Trace};
use crate::gitlab::wire::ServerFeatures;
use crate::pool::Held;

/// An answer that takes longer counts as slow: a host's stream is then read on whether or not there is room.
const SLOW: Duration = Duration::from_secs(1);

/// The conversation about one job.
pub struct Conversation {
    held: Arc<Held>,
    gitlab: Client,
    credentials: JobCredentials,
    features: ServerFeatures,
    pace: Pace,
    underway: Option<Underway>,
    silence: Option<Silence>,
    counted: Counted,
    /// Size of GitLab's log, if its last answer said so and nothing was sent since.
    log_size: Option<u64>,
    report: Report,
    verdict: Verdict,
    canceled: bool,
}

/// What was said and is not answered yet.
struct Underway {
    since: Instant,
    /// Never locked: whoever polls it has it alone, and others may still look at the rest of the conversation.
    answer: Mutex<BoxFuture<'static, Answer>>,
}

/// An answer that was not taken in yet.
#[derive(Debug)]
pub struct Answer {
    said_at: Instant,
    said: Said,
}

#[derive(Debug)]
enum Said {
    Log(TraceAnswer),
    Pending(UpdateAnswer),
    Running(UpdateAnswer),
}

/// As what GitLab counts a job that waits for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It has not said so yet.
    Unknown,
    /// As waiting: it gives it to somebody else when we fall silent.
    Waiting,
    /// As running since its hand-out: a server without two-phase commit.
    Running,
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
    /// Go on waiting.
    GoOn,
    /// It is to be canceled.
    Canceled,
    /// It is not ours, or not alive.
    Gone,
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

/// What an answer about a running job comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Go on; this is the server's wish for the job.
    Wish(Wish),
    /// The trace begins anew where GitLab's log ends: the log has to be read again from there.
    Reread,
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
            pace: Pace::new(Instant::now().into_std()),
            underway: None,
            silence: None,
            counted: Counted::Unknown,
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

    /// Since when GitLab takes nothing of the job, and what came instead of an answer.
    pub fn silence(&self) -> Option<&Silence> {
        self.silence.as_ref()
    }

    /// As what GitLab counts the job while it waits, by its answers so far.
    pub fn counted(&self) -> Counted {
        self.counted
    }

    /// Says what is due of a running job, unless an answer is awaited. `is_whole`: no more log will come. `stored`: size and
    /// checksum of the log so far, where GitLab has all of it. Answers when to look again if no answer comes before.
    pub fn speak(&mut self, trace: &Trace, is_whole: bool, stored: Option<(u64, u32)>) -> Option<Instant> {
        let log = match trace.next_patch() {
            None => Log::Empty,
            Some(_) if is_whole || !trace.has_room() => Log::Pressing,
            Some(_) => Log::Waiting,
        };
        if self.underway.is_none() {
            match (self.pace.next(log, std::time::Instant::now()), trace.next_patch()) {
                (Say::Nothing { until }, _) => return Some(Instant::from_std(until)),
                (Say::Log, Some((offset, bytes))) => self.send(offset, Bytes::copy_from_slice(bytes)),
                (Say::SignOfLife, _) | (Say::Log, None) => self.say(JobUpdate::Alive { log: stored }),
            }
        }
        self.slow_at()
    }

    /// Says that the job waits for a slot, if that is due and no answer is awaited. Answers when to look again if no
    /// answer comes before.
    pub fn speak_of_waiting(&mut self) -> Option<Instant> {
        if self.underway.is_none() {
            match (self.pace.next(Log::Empty, std::time::Instant::now()), self.counted) {
                (Say::Nothing { until }, _) => return Some(Instant::from_std(until)),
                (Say::Log | Say::SignOfLife, Counted::Running) => {
                    self.say(JobUpdate::Alive { log: None });
                }
                (Say::Log | Say::SignOfLife, Counted::Unknown | Counted::Waiting) => {
                    self.say(JobUpdate::Pending);
                }
            }
        }
        None
    }

    /// Whether GitLab keeps us waiting: it did not answer, or does not soon.
    pub fn is_slow(&self) -> bool {
        self.pace.is_failing() || (self.underway.is_some() && self.slow_at().is_none())
    }

    /// When the answer that is awaited will be slow; `None` when it is already.
    fn slow_at(&self) -> Option<Instant> {
        let slow_at = self.underway.as_ref()?.since + SLOW;
        (slow_at > Instant::now()).then_some(slow_at)
    }

    /// The answer to what was said last; it never comes while nothing was. Cancel-safe: what is under way stays so.
    pub async fn answer(&mut self) -> Answer {
        let Some(underway) = &mut self.underway else { return std::future::pending().await };
        let answer = underway.answer.get_mut().unwrap_or_else(PoisonError::into_inner).await;
        self.underway = None;
        answer
    }

    fn send(&mut self, offset: u64, bytes: Bytes) {
        let said_at = Instant::now();
        self.pace.sends_log(said_at.into_std());
        self.log_size = None;
        let (gitlab, credentials) = (self.gitlab.clone(), self.credentials.clone());
        let answer = async move {
            // Not fenced: an offset says which bytes these are, whoever sends them.
            let sending = gitlab.patch_trace(&credentials, offset, bytes);
            let answer = Deed::unfenced(Point::LogSent).make(sending, |answer| answer).await;
            Answer { said_at, said: Said::Log(answer) }
        };
        self.underway = Some(Underway { since: said_at, answer: Mutex::new(answer.boxed()) });
    }

    fn say(&mut self, update: JobUpdate) {
        let said_at = Instant::now();
        let (gitlab, credentials) = (self.gitlab.clone(), self.credentials.clone());
        let answer = async move {
            let answer = gitlab.update(&credentials, &update).await;
            let said = match update {
                JobUpdate::Pending => Said::Pending(answer),
                JobUpdate::Running | JobUpdate::Alive { .. } | JobUpdate::Final { .. } => {
                    Said::Running(answer)
                }
            };
            Answer { said_at, said }
        };
        self.underway = Some(Underway { since: said_at, answer: Mutex::new(answer.boxed()) });
    }

    /// Takes in an answer about a running job.
    pub fn take_in(&mut self, answer: Answer, trace: &mut Trace) -> Heard {
        match answer.said {
            Said::Log(said) => self.take_in_log(answer.said_at, said, trace),
            Said::Pending(said) | Said::Running(said) => {
                Heard::Wish(self.take_in_sign(answer.said_at, &said))
            }
        }
    }

    fn take_in_log(&mut self, said_at: Instant, answer: TraceAnswer, trace: &mut Trace) -> Heard {
        match answer {
            TraceAnswer::Accepted { size, status } | TraceAnswer::Mismatch { size, status } => {
                self.answered(said_at, status);
                self.log_size = Some(size);
                match trace.server_has(size) {
                    Resync::Continue => Heard::Wish(status.wish),
                    Resync::Refetch { from } => {
                        *trace = Trace::from_offset(from);
                        Heard::Reread
                    }
                }
            }
            TraceAnswer::Abort { canceled } => {
                self.canceled |= canceled;
                Heard::Wish(Wish::Abort)
            }
            TraceAnswer::NotFound => {
                self.silence = None;
                self.pace.log_not_found(rand::random(), std::time::Instant::now());
                Heard::Wish(Wish::GoOn)
            }
            TraceAnswer::Retry { after, cause } => {
                self.unanswered(said_at, after, cause);
                Heard::Wish(Wish::GoOn)
            }
        }
    }

    fn take_in_sign(&mut self, said_at: Instant, answer: &UpdateAnswer) -> Wish {
        match answer {
            UpdateAnswer::Ok(status) => {
                self.answered(said_at, *status);
                status.wish
            }
            UpdateAnswer::Gone { canceled } => {
                self.canceled |= canceled;
                Wish::Abort
            }
            // A refusal of a sign of life says nothing about the job.
            UpdateAnswer::Refused
            | UpdateAnswer::OwnedByOther
            | UpdateAnswer::StoringLog { .. }
            | UpdateAnswer::LogInvalid => {
                self.answered(said_at, JobStatus::default());
                Wish::GoOn
            }
            UpdateAnswer::Retry { after, cause } => {
                self.unanswered(said_at, *after, cause.clone());
                Wish::GoOn
            }
        }
    }

    /// Takes in an answer about a job that waits for a slot.
    pub fn take_in_waiting(&mut self, answer: Answer) -> Waiting {
        let said_at = answer.said_at;
        let (answer, counted) = match answer.said {
            Said::Pending(UpdateAnswer::Refused) => {
                // A server without two-phase commit counts the job as running since its hand-out: kept alive so.
                self.counted = Counted::Running;
                self.pace.answered(said_at.into_std(), None);
                self.pace.ask();
                return Waiting::GoOn;
            }
            Said::Pending(answer) => (answer, Counted::Waiting),
            Said::Running(answer) => (answer, Counted::Running),
            // No log is sent before the job runs.
            Said::Log(_) => return Waiting::GoOn,
        };
        match answer {
            UpdateAnswer::Ok(status) => {
                self.answered(said_at, status);
                self.counted = counted;
                match status.wish {
                    Wish::GoOn => Waiting::GoOn,
                    Wish::CancelGracefully => Waiting::Canceled,
                    Wish::Abort => Waiting::Gone,
                }
            }
            UpdateAnswer::Gone { canceled } => {
                self.canceled |= canceled;
                Waiting::Gone
            }
            UpdateAnswer::OwnedByOther | UpdateAnswer::Refused => Waiting::Gone,
            UpdateAnswer::Retry { after, cause } => {
                self.unanswered(said_at, after, cause);
                Waiting::GoOn
            }
            UpdateAnswer::StoringLog { .. } | UpdateAnswer::LogInvalid => {
                self.answered(said_at, JobStatus::default());
                Waiting::GoOn
            }
        }
    }

    /// Says at the next occasion that the job waits: GitLab has to say as what it counts it.
    pub fn ask(&mut self) {
        self.pace.ask();
    }

    /// Awaits the answer to what is under way, for what is said next must not overtake it.
    async fn settle(&mut self) {
        if self.underway.is_none() {
            return;
        }
        match self.answer().await {
            Answer { said_at, said: Said::Log(answer) } => {
                self.take_in_log(said_at, answer, &mut Trace::from_offset(0));
            }
            Answer { said_at, said: Said::Pending(answer) | Said::Running(answer) } => {
                self.take_in_sign(said_at, &answer);
            }
        }
    }

    fn answered(&mut self, said_at: Instant, status: JobStatus) {
        self.canceled |= status.canceled;
        self.silence = None;
        self.pace.answered(said_at.into_std(), status.interval);
    }

    fn unanswered(&mut self, said_at: Instant, after: Option<Duration>, cause: String) {
        self.note_silence(said_at, cause);
        self.pace.unanswered(after, rand::random(), std::time::Instant::now());
    }

    fn note_silence(&mut self, said_at: Instant, cause: String) {
        let now = clock::now();
        let began = now.checked_sub(said_at.elapsed()).unwrap_or(now);
        let since = self.silence.take().map_or(began, |silence| silence.since);
        self.silence = Some(Silence { since, cause });
    }

    /// Says that the job runs, until GitLab answers.
    pub async fn confirm(&mut self) -> Confirmation {
        self.settle().await;
        let mut backoff = Backoff::default();
        loop {
            let deed = self.held.deed(Point::RunningTold).await;
            let said_at = Instant::now();
            let update = self.gitlab.update(&self.credentials, &JobUpdate::Running);
            match deed.make(update, |answer| answer).await {
                UpdateAnswer::Ok(status) => {
                    self.answered(said_at, status);
                    return match status.wish {
                        Wish::GoOn => Confirmation::Confirmed,
                        Wish::CancelGracefully => Confirmation::Canceled,
                        Wish::Abort => Confirmation::Gone,
                    };
                }
                UpdateAnswer::Gone { canceled } => {
                    self.canceled |= canceled;
                    return Confirmation::Gone;
                }
                UpdateAnswer::OwnedByOther | UpdateAnswer::Refused => return Confirmation::Gone,
                UpdateAnswer::Retry { after, cause } => {
                    self.note_silence(said_at, cause);
                    sleep(backoff.failed(after, rand::random())).await;
                }
                UpdateAnswer::StoringLog { .. } | UpdateAnswer::LogInvalid => {
                    sleep(backoff.failed(None, rand::random())).await;
                }
            }
        }
    }

    /// How many bytes of the log GitLab has; `None` when it wants no more of this job. Where no answer has said so
    /// yet, GitLab is offered the text that would be the whole log if there were none: it takes it then, or
    /// refuses it and names its size.
    pub async fn log_size(&mut self, whole_log_if_none: &str) -> Option<u64> {
        self.settle().await;
        if let Some(size) = self.log_size {
            return Some(size);
        }
        let mut backoff = Backoff::default();
        loop {
            let bytes = Bytes::copy_from_slice(whole_log_if_none.as_bytes());
            let deed = self.held.deed(Point::TailOffered).await;
            let offer = self.gitlab.patch_trace(&self.credentials, 0, bytes);
            let after = match deed.make(offer, |answer| answer).await {
                TraceAnswer::Mismatch { size, .. } => return Some(size),
                TraceAnswer::Accepted { size, .. } => {
                    self.log_size = Some(size);
                    return Some(0);
                }
                TraceAnswer::Abort { .. } => return None,
                TraceAnswer::NotFound => {
                    match self.gitlab.update(&self.credentials, &JobUpdate::Running).await {
                        UpdateAnswer::Gone { .. } => return None,
                        _ => None,
                    }
                }
                TraceAnswer::Retry { after, .. } => after,
            };
            sleep(backoff.failed(after, rand::random())).await;
        }
    }

    /// Tells the result once. Answers how long to wait before it is told again; `None` when [`Self::verdict`] stands.
    pub async fn tell(
        &mut self,
        failure: Option<FailureReason>,
        exit_code: i32,
        log: Option<(u64, u32)>,
        environment_key: Option<&str>,
    ) -> Option<Duration> {
        self.settle().await;
        let reason = failure.map(|reason| reason.for_server(&self.features.failure_reasons).to_owned());
        let (log, environment_key) = match self.report.form() {
            Form::Full => (log, environment_key.map(str::to_owned)),
            Form::Minimal => (None, None),
        };
        let update =
            JobUpdate::Final { failure: reason.map(|reason| (reason, exit_code)), log, environment_key };
        let deed = self.held.deed(Point::ResultTold).await;
        let said_at = Instant::now();
        let answer = deed.make(self.gitlab.update(&self.credentials, &update), |answer| answer).await;
        match &answer {
            UpdateAnswer::Ok(status) => self.answered(said_at, *status),
            UpdateAnswer::Gone { canceled } => self.canceled |= canceled,
            UpdateAnswer::Retry { cause, .. } => self.note_silence(said_at, cause.clone()),
            UpdateAnswer::StoringLog { .. }
            | UpdateAnswer::LogInvalid
            | UpdateAnswer::OwnedByOther
            | UpdateAnswer::Refused => self.answered(said_at, JobStatus::default()),
        }
        match self.report.on(&answer, rand::random()) {
            Next::Repeat { after } => return Some(after),
            Next::ResendLog => self.verdict = Verdict::LogInvalid,
            Next::Done => self.verdict = Verdict::Taken,
            Next::Gone => self.verdict = Verdict::Gone,
            Next::Refused => self.verdict = Verdict::Refused,
        }
        None
    }

    /// Where the report stands.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }
}
