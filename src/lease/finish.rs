//! After the end: GitLab gets the rest of the log and the result, the host gives back what is not kept. Or GitLab
//! wants nothing, and the job is stopped without a word.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::conclude::Conclusion;
use super::conversation::{Sent, Verdict};
use super::run::reach;
use super::stream::Streaming;
use super::{DriveError, Driver, resume};
use crate::api::job_lease::LeasePhase;
use crate::api::suspended_environment::Phase;
use crate::gitlab::client::Wish;
use crate::gitlab::trace::Trace;
use crate::host::link::{Link, LinkError};
use crate::spool::frame::Frame;
use crate::spool::record::JobState;
use crate::spool::verb::{LogEnd, RefusalReason};

/// How long a job that was told to stop at once may take to say so.
const ABORT_DEADLINE: Duration = Duration::from_secs(60);

/// The log is complete: GitLab gets the rest of it and the result; the host gives back what is not kept.
pub async fn finish(
    driver: &mut Driver,
    link: &Arc<Link>,
    mut streaming: Streaming,
    conclusion: Conclusion,
) -> Result<(), DriveError> {
    let end = LogEnd { length: streaming.trace.end(), crc32: streaming.crc32 };
    loop {
        // (10)
        if !flush(driver, link, &mut streaming).await? {
            return abandon_on(driver, link).await;
        }
        let log = Some((end.length, end.crc32));
        let verdict = driver.tell(&conclusion.ending, log, conclusion.environment_key.as_deref()).await?;
        if verdict != Verdict::LogInvalid {
            break;
        }
        streaming.trace = refetch(driver, link, 0, end.length).await?;
    }
    end_on_host(driver, link, &conclusion).await?;
    let step = driver.last_step(conclusion.ending).await;
    driver.close(step).await
}

/// (11): what is not kept goes from the host, before the slot is anybody else's.
async fn end_on_host(
    driver: &mut Driver,
    link: &Arc<Link>,
    conclusion: &Conclusion,
) -> Result<(), DriveError> {
    if let Some(environment) = resume::bound(driver) {
        // The resumed script came to its end and nothing asked for another sleep: the environment is released.
        driver.held.shared.environments.delete(&environment).await?;
        let note = format!("released: job {} resumed it and did not suspend it again", driver.job.id);
        driver.held.shared.events.normal(environment.as_ref(), "Released", "Release", note).await;
        resume::write(driver, &environment, |status| {
            status.bound_lease = None;
            status.phase = Some(Phase::Releasing);
        })
        .await?;
        return Ok(());
    }
    if conclusion.kept {
        return Ok(());
    }
    match link.release(&driver.lease.spec.environment_id, false).await {
        Ok(()) => {}
        // GitLab has the result; what is left on the host is swept, and a new job on the slot sweeps it first.
        Err(error) => {
            tracing::warn!(%error, "the host was not tidied yet");
        }
    }
    Ok(())
}

/// Sends the rest of the log; false when GitLab wants no more of it.
async fn flush(driver: &mut Driver, link: &Link, streaming: &mut Streaming) -> Result<bool, DriveError> {
    while !streaming.trace.is_drained() {
        match driver.conversation.send(&mut streaming.trace).await {
            Sent::Wish(Wish::Abort) => return Ok(false),
            // Too late to stop anything: the result stands.
            Sent::Wish(Wish::GoOn | Wish::CancelGracefully) => {}
            Sent::Refetch { from } => {
                streaming.trace = refetch(driver, link, from, streaming.trace.end()).await?;
            }
        }
    }
    Ok(true)
}

/// Reads a complete log again from an offset.
async fn refetch(driver: &Driver, link: &Link, from: u64, end: u64) -> Result<Trace, DriveError> {
    let mut attached = link.attach(&driver.path(), from).await?;
    let mut trace = Trace::from_offset(from);
    while trace.end() < end {
        match attached.next().await? {
            Some(Frame::Log(chunk)) => trace.push(chunk.offset, &chunk.bytes)?,
            Some(Frame::Answer(_) | Frame::Status(_) | Frame::Beat) => {}
            None => return Err(LinkError::Ssh(crate::host::connection::SshError::Lost).into()),
        }
    }
    Ok(trace)
}

/// GitLab does not want the job (any more): it is stopped if it runs, and nothing is said.
pub async fn abandon(driver: &mut Driver) -> Result<(), DriveError> {
    if driver.lease.phase() == LeasePhase::Accepted {
        return driver.end_gone().await;
    }
    match reach(driver, None).await {
        Some(link) => abandon_on(driver, &link).await,
        None => driver.end_gone().await,
    }
}

/// As [`abandon`], on a host that answers.
pub async fn abandon_on(driver: &mut Driver, link: &Arc<Link>) -> Result<(), DriveError> {
    tracing::info!("GitLab does not want the job: stopping it");
    let path = driver.path();
    match stop_and_wait(driver, link).await {
        Ok(()) => {}
        Err(error) if matches!(error.refusal().map(|r| &r.reason), Some(RefusalReason::NotFound)) => {}
        Err(error) => return Err(error.into()),
    }
    if resume::bound(driver).is_some() {
        link.suspend(&path).await?;
        resume::back_to_sleep(driver, "GitLab ended the job").await?;
    } else if !is_kept(driver) {
        link.release(&path.environment, true).await?;
    }
    driver.end_gone().await
}

/// Whether an object keeps the environment although no job is bound to it: it was put to sleep already.
fn is_kept(driver: &Driver) -> bool {
    driver.held.environments().iter().any(|known| {
        known.spec.environment_id == driver.lease.spec.environment_id && known.phase() == Phase::Suspended
    })
}

async fn stop_and_wait(driver: &Driver, link: &Link) -> Result<(), LinkError> {
    let path = driver.path();
    link.cancel(&path, false).await?;
    let mut attached = link.attach(&path, 0).await?;
    let deadline = Instant::now() + ABORT_DEADLINE;
    loop {
        match tokio::time::timeout_at(deadline, attached.next()).await {
            // Whatever still runs is killed by the release, or frozen by the suspend, that follows.
            Err(_) => return Ok(()),
            Ok(Ok(Some(Frame::Status(status)))) => {
                if status.record.state == JobState::Finished || !status.alive {
                    return Ok(());
                }
            }
            Ok(Ok(Some(Frame::Answer(_) | Frame::Log(_) | Frame::Beat))) => {}
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        }
    }
}
