//! Between the host and GitLab: the log, signs of life, wishes to cancel.
//!
//! What is said to GitLab is under way beside the host's frames, so neither side waits for the other. The log is read
//! while there is room for it. A stream that nobody reads would hold up all others of its connection, so while GitLab
//! is slow it is read on and what finds no room is let go: the host has it, and it is read again later.

use kube::ResourceExt;
use tokio::time::{Instant, sleep_until};

use super::conclude::Conclusion;
use super::conversation::Heard;
use super::seen::StageWatch;
use super::{DriveError, Driver, interruption, restore};
use crate::clock;
use crate::deed::{Deed, Point};
use crate::gitlab::client::Wish;
use crate::gitlab::trace::Trace;
use crate::host::link::{Attached, Link, LinkError};
use crate::spool::frame::{Frame, StatusFrame};
use crate::spool::record::{JobRecord, JobState};
use crate::spool::verb::{Interruption, LogEnd};

/// How soon a supervisor that could not be told that its instance is taken away is told again.
const INTERRUPT_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// How a stream went on until something has to be decided.
pub enum Streamed {
    /// All stages are done and the log is open: the operator has the last word.
    Open(JobRecord),
    /// All stages are done and the log is complete: what became of the job is to be concluded.
    Sealed(JobRecord),
    /// The process that ran the job is gone.
    Dead(JobRecord),
    /// The job is concluded, and GitLab has its whole log.
    Told(Conclusion),
    /// GitLab wants no more of this job.
    Unwanted,
    /// The stream ended; nothing is known.
    Broken(String),
    /// The log has to be read again, from the trace's end.
    Reread,
}

/// The state of streaming one job.
pub struct Streaming {
    /// The part of the log between the host and GitLab.
    pub trace: Trace,
    /// How far the log was read, whether or not there was room for it.
    pub read: LogEnd,
    /// The host's stream; none while the host is away, and after the end of the log.
    pub attached: Option<Attached>,
    /// The record of a job whose log is complete.
    pub sealed: Option<JobRecord>,
    /// Whether the supervisor was told to stop the job.
    pub cancel_sent: bool,
    /// Whether the supervisor was told that the job's instance is taken away.
    pub interrupted: bool,
    /// When it may be told again, where that failed.
    interrupt_again: Option<Instant>,
    /// What is known of the end, once it was concluded.
    pub conclusion: Option<Conclusion>,
    /// The time of stages, by what this attachment has told.
    pub stages: StageWatch,
    first_byte: bool,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            trace: Trace::from_offset(0),
            read: LogEnd { length: 0, crc32: 0 },
            attached: None,
            sealed: None,
            cancel_sent: false,
            interrupted: false,
            interrupt_again: None,
            conclusion: None,
            stages: StageWatch::default(),
            first_byte: false,
        }
    }
}

impl Streaming {
    /// Whether GitLab has all that is held of the log, and what follows has to be read again: it was let go, or GitLab
    /// lost it after the end was read.
    fn lacks_log(&self) -> bool {
        let is_behind = self.is_whole() && self.trace.is_drained() && self.trace.end() < self.read.length;
        self.trace.lacks_more() || is_behind
    }

    /// Size and checksum of the log so far, where GitLab has all of it.
    fn stored(&self) -> Option<(u64, u32)> {
        let LogEnd { length, crc32 } = self.read;
        (length > 0 && self.trace.is_drained() && self.trace.end() == length).then_some((length, crc32))
    }

    /// Whether the end of the log was read.
    pub fn is_whole(&self) -> bool {
        self.sealed.is_some() && self.attached.is_none()
    }
}

/// Streams until something has to be decided.
pub async fn stream(
    driver: &mut Driver,
    link: &Link,
    streaming: &mut Streaming,
) -> Result<Streamed, DriveError> {
    let mut turns = driver.held.signal(&driver.lease.name_any());
    let share = driver.held.shared.bounds.logs.join();
    loop {
        streaming.trace.set_room(share.bytes());
        if streaming.lacks_log() {
            return Ok(Streamed::Reread);
        }
        if streaming.is_whole() {
            match (&streaming.sealed, &streaming.conclusion) {
                (Some(record), None) => return Ok(Streamed::Sealed(record.clone())),
                (_, Some(conclusion)) if streaming.trace.is_drained() => {
                    return Ok(Streamed::Told(conclusion.clone()));
                }
                (_, Some(conclusion)) => driver.note_silence(&conclusion.ending).await?,
                (None, None) => {}
            }
        }
        let look_at = driver.conversation.speak(&streaming.trace, streaming.is_whole(), streaming.stored());
        let interrupt_at = interrupt_at(driver, streaming);
        let reads = streaming.trace.has_room() || driver.conversation.is_slow();
        tokio::select! {
            biased;
            answer = driver.conversation.answer() => {
                let heard = driver.conversation.take_in(answer, &mut streaming.trace);
                first_byte(driver, streaming);
                match heard {
                    Heard::Wish(wish) if heed(driver, link, streaming, wish).await => return Ok(Streamed::Unwanted),
                    Heard::Wish(_) => {}
                    Heard::Reread => return Ok(Streamed::Reread),
                }
            }
            // The sender lives in `held`: waiting cannot fail.
            _ = turns.changed() => {
                if let Err(error) = restore::make_again_if_gone(driver).await {
                    tracing::warn!(%error, "the lease was not made again yet");
                }
                if driver.is_deleted() && !streaming.cancel_sent && streaming.sealed.is_none() {
                    tracing::info!("the lease was deleted: canceling");
                    streaming.cancel_sent = stop(link, driver, &Stop::Cancel { graceful: false }).await;
                }
            }
            () = until(interrupt_at) => interrupt(driver, link, streaming).await,
            () = until(look_at) => {}
            // Cancel-safe: bytes read so far stay in the decoder.
            frame = next(&mut streaming.attached), if reads => match frame {
                Ok(Some(Frame::Log(chunk))) => {
                    streaming.trace.push(chunk.offset, &chunk.bytes)?;
                    let length = chunk.offset + chunk.bytes.len() as u64;
                    streaming.read = LogEnd { length, crc32: chunk.crc32 };
                }
                Ok(Some(Frame::Status(status))) => {
                    note_stage(driver, &mut streaming.stages, status.record.stage.as_deref());
                    if let Some(streamed) = look(streaming, *status) {
                        return Ok(streamed);
                    }
                }
                Ok(Some(Frame::Beat | Frame::Answer(_))) => {}
                Ok(None) if streaming.sealed.is_some() => streaming.attached = None,
                Ok(None) => return Ok(Streamed::Broken("the stream ended".to_owned())),
                Err(error) => return Ok(Streamed::Broken(error.to_string())),
            },
        }
    }
}

/// Notes the stage that a host tells.
fn note_stage(driver: &Driver, stages: &mut StageWatch, stage: Option<&str>) {
    let (held, lease) = (&driver.held, driver.lease.name_any());
    held.shared.driven.stage(&held.namespace, &lease, stage);
    if let Some((ended, took)) = stages.told(stage, Instant::now().into_std()) {
        held.shared.metrics.job_stage(&driver.settings.labels, ended, took);
    }
}

/// What a job's record says, if something follows from it now.
fn look(streaming: &mut Streaming, status: StatusFrame) -> Option<Streamed> {
    let record = status.record;
    // Of a job whose process died the record stays as it was, but for the seal.
    if record.sealed {
        streaming.sealed = Some(record);
        return None;
    }
    match record.state {
        _ if streaming.conclusion.is_some() => None,
        JobState::Finished => Some(Streamed::Open(record)),
        JobState::Starting | JobState::Running if !status.alive => Some(Streamed::Dead(record)),
        JobState::Starting | JobState::Running => None,
    }
}

async fn next(attached: &mut Option<Attached>) -> Result<Option<Frame>, LinkError> {
    match attached {
        Some(attached) => attached.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until a time, or for ever.
pub async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Takes the time to the first byte of the log that GitLab has.
fn first_byte(driver: &Driver, streaming: &mut Streaming) {
    if !streaming.first_byte && driver.conversation.known_log_size().is_some_and(|size| size > 0) {
        streaming.first_byte = true;
        driver.held.shared.metrics.first_byte(&driver.held.name, driver.began.elapsed());
    }
}

/// Acts on what GitLab wishes for the job; true when it wants no more of it.
async fn heed(driver: &Driver, link: &Link, streaming: &mut Streaming, wish: Wish) -> bool {
    match wish {
        Wish::GoOn => false,
        Wish::Abort => true,
        Wish::CancelGracefully => {
            // Too late once the log is complete: the result stands.
            if !streaming.cancel_sent && streaming.sealed.is_none() {
                tracing::info!("GitLab cancels the job");
                streaming.cancel_sent = stop(link, driver, &Stop::Cancel { graceful: true }).await;
            }
            false
        }
    }
}

/// When the supervisor is told that the job's instance is taken away, if its cloud has said so and the job still runs.
fn interrupt_at(driver: &Driver, streaming: &Streaming) -> Option<Instant> {
    let is_over = streaming.interrupted || streaming.sealed.is_some() || streaming.conclusion.is_some();
    let (instance, _) = driver.lease.place().filter(|_| !is_over)?;
    let (notice, now) = (driver.held.fleet.notice(instance)?, clock::now());
    let wait = interruption::ends_at(&notice, now).duration_since(now);
    let at = Instant::now() + std::time::Duration::try_from(wait).unwrap_or_default();
    Some(streaming.interrupt_again.map_or(at, |again| again.max(at)))
}

/// Tells the supervisor that the job's instance is taken away: it ends the job in good order.
async fn interrupt(driver: &Driver, link: &Link, streaming: &mut Streaming) {
    let Some((instance, _)) = driver.lease.place() else { return };
    let Some(notice) = driver.held.fleet.notice(instance) else { return };
    let has_volumes = driver.settings.spec.workspace_volume.is_some();
    let interruption = interruption::interruption(instance, &notice, has_volumes);
    tracing::warn!(instance, time = %notice.time, "the job is ended: its instance is taken away");
    streaming.interrupted = stop(link, driver, &Stop::Interrupt(interruption)).await;
    streaming.interrupt_again = Some(Instant::now() + INTERRUPT_AGAIN);
}

/// Why a job is stopped.
enum Stop {
    /// Somebody cancels it; whether its after_script still runs.
    Cancel { graceful: bool },
    /// Its instance is taken away.
    Interrupt(Interruption),
}

/// Tells the supervisor to stop the job. If that cannot be said now, the next answer of GitLab says it again.
async fn stop(link: &Link, driver: &Driver, why: &Stop) -> bool {
    // Not fenced by the tenure but by the host: a wish of GitLab is carried out by whoever streams, and so is what has to
    // be done before an instance is gone.
    let deed = Deed::unfenced(Point::JobCanceled);
    let stopped = match why {
        Stop::Cancel { graceful } => link.cancel(deed, &driver.path(), *graceful).await,
        Stop::Interrupt(interruption) => link.interrupt(deed, &driver.path(), interruption).await,
    };
    match stopped {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "the job was not told to stop");
            false
        }
    }
}
