//! The end of a log where no supervisor can write it: a refused job, no instance, a lost host.
//!
//! The operator then writes a deterministic text after the bytes GitLab has. Where that is, is recorded in the
//! lease first (`status.tailOffset`), so that a next holder continues the same text instead of adding another.

use std::time::Duration;

use bytes::Bytes;

use crate::deed::{Deed, Point};
use crate::gitlab::backoff::Backoff;
use crate::gitlab::client::{JobCredentials, JobUpdate, TraceAnswer, UpdateAnswer};
use crate::gitlab::reason::FailureReason;
use crate::pool::Held;
use crate::pool::settings::Settings;
use crate::spool::closing;

/// The text.
pub fn text(message: &str) -> String {
    format!("{}\n", closing::system_failure(message))
}

/// Writes the text that begins at an offset, of which GitLab has the bytes before `known`, continuing wherever its log
/// ends inside it. Answers the size of GitLab's log after it, or `None` when GitLab wants no more of this job.
pub async fn write(
    settings: &Settings,
    job: &JobCredentials,
    offset: u64,
    known: u64,
    text: &str,
) -> Option<u64> {
    let end = offset + text.len() as u64;
    let mut at = known.max(offset);
    let mut backoff = Backoff::default();
    loop {
        let skip = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
        let rest = text.as_bytes().get(skip..).unwrap_or_default();
        if rest.is_empty() {
            return Some(end.max(at));
        }
        // Not fenced: where the text begins is recorded, so two who write it write one text.
        let sending = settings.gitlab.patch_trace(job, at, Bytes::copy_from_slice(rest));
        match Deed::unfenced(Point::TailSent).make(sending, |answer| answer).await {
            TraceAnswer::Accepted { size, .. } | TraceAnswer::Mismatch { size, .. } if size >= end => {
                return Some(size);
            }
            TraceAnswer::Accepted { size, .. } | TraceAnswer::Mismatch { size, .. } => {
                // GitLab has fewer bytes than recorded only after it lost some: the text goes where its log ends.
                if size < offset {
                    return Box::pin(write(settings, job, size, size, text)).await;
                }
                at = size;
                backoff.succeeded();
            }
            TraceAnswer::Abort { .. } => return None,
            TraceAnswer::NotFound => match settings.gitlab.update(job, &JobUpdate::Running).await {
                UpdateAnswer::Gone { .. } => return None,
                _ => tokio::time::sleep(backoff.failed(None, rand::random())).await,
            },
            TraceAnswer::Retry { after, .. } => {
                tokio::time::sleep(backoff.failed(after, rand::random())).await;
            }
        }
    }
}

/// Fails a job that never got a lease: it cannot be read, or it cannot be kept. GitLab is told why.
pub async fn refuse_without_lease(held: &Held, settings: &Settings, job: &JobCredentials, message: &str) {
    let refuse = async {
        let mut backoff = Backoff::default();
        // A waiting job cannot be failed: it has to be running first.
        loop {
            match settings.gitlab.update(job, &JobUpdate::Running).await {
                UpdateAnswer::Ok(_) => break,
                UpdateAnswer::Retry { after, .. } => {
                    tokio::time::sleep(backoff.failed(after, rand::random())).await;
                }
                UpdateAnswer::StoringLog { .. }
                | UpdateAnswer::LogInvalid
                | UpdateAnswer::Gone { .. }
                | UpdateAnswer::OwnedByOther
                | UpdateAnswer::Refused => return,
            }
        }
        let text = text(message);
        let Some(size) = write(settings, job, 0, 0, &text).await else { return };
        let reason = FailureReason::RunnerSystemFailure.for_server(&[]).to_owned();
        let update = JobUpdate::Final {
            failure: Some((reason, 0)),
            log: Some((size, crc32fast::hash(text.as_bytes()))),
            environment_key: None,
        };
        loop {
            match settings.gitlab.update(job, &update).await {
                UpdateAnswer::Retry { after, .. } | UpdateAnswer::StoringLog { interval: after } => {
                    tokio::time::sleep(backoff.failed(after, rand::random())).await;
                }
                UpdateAnswer::Ok(_)
                | UpdateAnswer::LogInvalid
                | UpdateAnswer::Gone { .. }
                | UpdateAnswer::OwnedByOther
                | UpdateAnswer::Refused => return,
            }
        }
    };
    tracing::error!(pool = held.name, job = job.id, message, "the job is refused without a lease");
    // Nothing durable waits for this: GitLab's own time-outs end the job if it cannot be told within a minute.
    if tokio::time::timeout(Duration::from_secs(60), refuse).await.is_err() {
        tracing::warn!(pool = held.name, job = job.id, "GitLab could not be told in time");
    }
}
