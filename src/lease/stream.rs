//! Between the host and GitLab: the log, signs of life, wishes to cancel.

use tokio::time::Instant;

use super::conclude::Conclusion;
use super::conversation::Sent;
use super::{DriveError, Driver, restore};
use crate::deed::{Deed, Point};
use crate::gitlab::client::Wish;
use crate::gitlab::trace::Trace;
use crate::host::link::{Attached, Link};
use crate::spool::frame::Frame;
use crate::spool::record::{JobRecord, JobState};

/// How a stream went on until something has to be decided.
pub enum Streamed {
    /// All stages are done and the log is open: the operator has the last word.
    Open(JobRecord),
    /// All stages are done, the log is complete and read.
    Sealed(JobRecord),
    /// The process that ran the job is gone.
    Dead(JobRecord),
    /// GitLab wants no more of this job.
    Unwanted,
    /// The stream ended; nothing is known.
    Broken(String),
    /// The log has to be read again from an offset.
    Refetch(u64),
}

/// The state of streaming one job.
pub struct Streaming {
    /// The part of the log between the host and GitLab.
    pub trace: Trace,
    /// CRC-32 of the log as far as it was read.
    pub crc32: u32,
    /// When log bytes were first and last sent.
    pub sent: Option<(Instant, Instant)>,
    /// Whether the supervisor was told to stop the job.
    pub cancel_sent: bool,
    /// Whether GitLab has the first byte.
    pub first_byte: bool,
    /// What is known of the end, once it was concluded.
    pub conclusion: Option<Conclusion>,
}

/// Streams until something has to be decided.
pub async fn stream(
    driver: &mut Driver,
    link: &Link,
    attached: &mut Attached,
    streaming: &mut Streaming,
) -> Result<Streamed, DriveError> {
    let mut turns = driver.held.signal(&kube::ResourceExt::name_any(driver.lease.as_ref()));
    let mut sealed: Option<JobRecord> = None;
    loop {
        // The first bytes go at once, later ones at the server's interval; the end of the log at once again.
        let patch_at = match streaming.sent {
            Some((first, last)) if sealed.is_none() => driver.conversation.next_update_at(first, last),
            Some(_) | None => Instant::now(),
        };
        let patch_due = !streaming.trace.is_drained();
        let keep_alive_at = driver.conversation.keep_alive_at();
        tokio::select! {
            biased;
            // Cancel-safe: bytes read so far stay in the decoder.
            frame = attached.next(), if streaming.trace.has_room() => match frame {
                Ok(Some(Frame::Log(chunk))) => {
                    streaming.trace.push(chunk.offset, &chunk.bytes)?;
                    streaming.crc32 = chunk.crc32;
                }
                Ok(Some(Frame::Status(status))) => {
                    let record = status.record;
                    match record.state {
                        // Of a job whose process died the record stays as it was, but for the seal.
                        _ if record.sealed => sealed = Some(record),
                        JobState::Finished if streaming.conclusion.is_none() => return Ok(Streamed::Open(record)),
                        JobState::Finished => {}
                        JobState::Starting | JobState::Running if !status.alive => {
                            if streaming.conclusion.is_none() {
                                return Ok(Streamed::Dead(record));
                            }
                        }
                        JobState::Starting | JobState::Running => {}
                    }
                }
                Ok(Some(Frame::Beat | Frame::Answer(_))) => {}
                Ok(None) => match sealed {
                    Some(record) => return Ok(Streamed::Sealed(record)),
                    None => return Ok(Streamed::Broken("the stream ended".to_owned())),
                },
                Err(error) => return Ok(Streamed::Broken(error.to_string())),
            },
            () = tokio::time::sleep_until(patch_at), if patch_due => {
                let now = Instant::now();
                streaming.sent = Some((streaming.sent.map_or(now, |(first, _)| first), now));
                match driver.conversation.send(&mut streaming.trace).await {
                    Sent::Wish(wish) => {
                        if !streaming.first_byte {
                            streaming.first_byte = true;
                            driver.held.shared.metrics.first_byte(&driver.held.name, driver.began.elapsed());
                        }
                        if heed(driver, link, streaming, wish).await {
                            return Ok(Streamed::Unwanted);
                        }
                    }
                    Sent::Refetch { from } => return Ok(Streamed::Refetch(from)),
                }
            }
            () = tokio::time::sleep_until(keep_alive_at) => {
                let wish = driver.conversation.touch().await;
                if heed(driver, link, streaming, wish).await {
                    return Ok(Streamed::Unwanted);
                }
            }
            // The sender lives in `held`: waiting cannot fail.
            _ = turns.changed() => {
                if let Err(error) = restore::make_again_if_gone(driver).await {
                    tracing::warn!(%error, "the lease was not made again yet");
                }
                if driver.is_deleted() && !streaming.cancel_sent {
                    streaming.cancel_sent = true;
                    tracing::info!("the lease was deleted: canceling");
                    stop(link, driver, false).await;
                }
            }
        }
    }
}

/// Acts on what GitLab wishes for the job; true when it wants no more of it.
async fn heed(driver: &Driver, link: &Link, streaming: &mut Streaming, wish: Wish) -> bool {
    match wish {
        Wish::GoOn => false,
        Wish::Abort => true,
        Wish::CancelGracefully => {
            if !streaming.cancel_sent {
                streaming.cancel_sent = true;
                tracing::info!("GitLab cancels the job");
                stop(link, driver, true).await;
            }
            false
        }
    }
}

/// Tells the supervisor to stop the job. If that cannot be said now, the next sign of life says it again.
async fn stop(link: &Link, driver: &Driver, graceful: bool) {
    // Not fenced by the tenure but by the host: a wish of GitLab is carried out by whoever streams.
    let deed = Deed::unfenced(Point::JobCanceled);
    if let Err(error) = link.cancel(deed, &driver.path(), graceful).await {
        tracing::warn!(%error, "the job was not told to stop");
    }
}
