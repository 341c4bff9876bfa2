//! After the end: GitLab gets the rest of the log and the result, the host gives back what is not kept. Or GitLab
//! wants nothing, and the job is stopped without a word.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::conclude::{Conclusion, conclude_sealed};
use super::conversation::Verdict;
use super::record::Step;
use super::run::reach;
use super::{DriveError, Driver, resume};
use crate::api::job_lease::LeasePhase;
use crate::api::suspended_environment::Phase;
use crate::deed::Point;
use crate::host::link::{Link, LinkError};
use crate::spool::frame::Frame;
use crate::spool::record::{JobRecord, JobState, ScriptEnd};
use crate::spool::verb::{LogEnd, RefusalReason};

/// How long a job that was told to stop at once may take to say so.
const ABORT_DEADLINE: Duration = Duration::from_secs(60);

/// Whether a job came to its end.
pub enum Finished {
    /// GitLab has the result, or wants none.
    Closed,
    /// GitLab wants the whole log again before it takes the result.
    LogWanted,
}

/// GitLab has the log: it gets the result, and the host gives back what is not kept.
pub async fn finish(
    driver: &mut Driver,
    link: &Arc<Link>,
    conclusion: Conclusion,
    log: LogEnd,
) -> Result<Finished, DriveError> {
    // A canceled job has no environment that GitLab could offer to a later one.
    let key = conclusion.environment_key.as_deref().filter(|_| !driver.conversation.is_canceled());
    // (10)
    if driver.tell(&conclusion.ending, Some((log.length, log.crc32)), key).await? == Verdict::LogInvalid {
        return Ok(Finished::LogWanted);
    }
    end_on_host(driver, link).await?;
    let step = driver.last_step(conclusion.ending).await;
    driver.close(step).await?;
    Ok(Finished::Closed)
}

/// (11): what is not kept goes from the host, before the slot is anybody else's.
async fn end_on_host(driver: &mut Driver, link: &Arc<Link>) -> Result<(), DriveError> {
    let own = resume::read_own(driver).await?;
    if let Some(environment) = resume::bound(driver) {
        // The resumed script came to its end and nothing asked for another sleep: the environment is released.
        let deed = driver.held.deed(Point::EnvironmentReleased).await;
        driver.held.shared.environments.delete(deed, &environment).await?;
        let note = format!("released: job {} resumed it and did not suspend it again", driver.job.id);
        driver.held.shared.events.normal(environment.as_ref(), "Released", "Release", note).await;
        resume::write(driver, Point::EnvironmentLetGo, &environment, |status| {
            status.bound_lease = None;
            status.phase = Some(Phase::Releasing);
        })
        .await?;
        return Ok(());
    }
    // However the job ended: what an object keeps is that object's to give back.
    if own.is_some() {
        return withdraw_canceled(driver).await;
    }
    let deed = driver.held.deed(Point::HostTidied).await;
    match link.release(deed, &driver.lease.spec.environment_id, false).await {
        Ok(()) => driver.slot_is_clean = true,
        // GitLab has the result; the slot takes no job before what is left on the host is swept.
        Err(error) => {
            tracing::warn!(%error, "the host was not tidied yet");
        }
    }
    Ok(())
}

/// The job was canceled while its environment was being put to sleep for the first time: the sleep was finished, and
/// is given up again. One that was resumed stays asleep: an accident never destroys an environment.
async fn withdraw_canceled(driver: &Driver) -> Result<(), DriveError> {
    if !driver.conversation.is_canceled() || driver.lease.spec.resume_from.is_some() {
        return Ok(());
    }
    let Some(environment) = resume::own(driver) else { return Ok(()) };
    let deed = driver.held.deed(Point::EnvironmentWithdrawn).await;
    driver.held.shared.environments.delete(deed, &environment).await?;
    let note = format!("released: job {} was canceled while it was being suspended", driver.job.id);
    driver.held.shared.events.normal(environment.as_ref(), "Released", "Release", note).await;
    Ok(())
}

/// GitLab does not want the job (any more): it is stopped if it runs, and nothing is said.
pub async fn abandon(driver: &mut Driver) -> Result<(), DriveError> {
    if driver.lease.phase() == LeasePhase::Accepted {
        return driver.end_gone().await;
    }
    match reach(driver, None, None).await {
        Some(link) => abandon_on(driver, &link).await,
        None => driver.end_gone().await,
    }
}

/// As [`abandon`], on a host that answers.
pub async fn abandon_on(driver: &mut Driver, link: &Arc<Link>) -> Result<(), DriveError> {
    tracing::info!("GitLab does not want the job: stopping it");
    let path = driver.path();
    let (has_begun, record) = match stop_and_wait(driver, link).await {
        Ok(record) => (true, record),
        Err(error) if matches!(error.refusal().map(|r| &r.reason), Some(RefusalReason::NotFound)) => {
            (false, None)
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(record) = record.filter(has_come_to_its_end)
        && !driver.conversation.is_canceled()
    {
        // An earlier holder told GitLab the result and died before it wrote that down.
        let conclusion = conclude_sealed(driver, link, &record).await?;
        end_on_host(driver, link).await?;
        return driver.close(Step::Reported(conclusion.ending)).await;
    }
    if resume::bound(driver).is_some() {
        let why = "GitLab ended the job";
        match has_begun {
            true => resume::freeze_again(driver, link, why).await?,
            // It sleeps as the job before left it, and its host would not let another job freeze it.
            false => resume::back_to_sleep(driver, why).await?,
        }
    } else if resume::read_own(driver).await?.is_some_and(|own| own.phase() == Phase::Suspended) {
        // It was put to sleep already, and no job is bound to it.
        withdraw_canceled(driver).await?;
    } else {
        link.release(driver.held.deed(Point::UnwantedRemoved).await, &path.environment, true).await?;
        driver.slot_is_clean = true;
    }
    driver.end_gone().await
}

/// Whether the script ended by itself and the job's log was closed after it.
fn has_come_to_its_end(record: &JobRecord) -> bool {
    record.sealed && record.result.as_ref().is_some_and(|result| result.script != ScriptEnd::NotEnded)
}

/// Ends the job; answers its record, if it came to an end in time.
async fn stop_and_wait(driver: &Driver, link: &Link) -> Result<Option<JobRecord>, LinkError> {
    let path = driver.path();
    link.cancel(driver.held.deed(Point::JobStopped).await, &path, false).await?;
    let mut attached = link.attach(&path, 0).await?;
    let deadline = Instant::now() + ABORT_DEADLINE;
    loop {
        match tokio::time::timeout_at(deadline, attached.next()).await {
            // Whatever still runs is killed by the release, or frozen by the suspend, that follows.
            Err(_) => return Ok(None),
            Ok(Ok(Some(Frame::Status(status)))) => {
                if status.record.state == JobState::Finished || !status.alive {
                    return Ok(Some(status.record));
                }
            }
            Ok(Ok(Some(Frame::Answer(_) | Frame::Log(_) | Frame::Beat))) => {}
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => return Err(error),
        }
    }
}
