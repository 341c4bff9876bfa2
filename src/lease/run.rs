//! A job on a host: start or attach, stream its log, act on cancels, and conclude it.
//!
//! A lost connection is not a lost job: it is attached to again, and only after `connectionGrace` is the host given
//! up. From the status Running on, the job is never started again, whatever the host says.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::conversation::{Sent, Verdict};
use super::record::{Ending, Step};
use super::suspend::{self, Suspended};
use super::{DriveError, Driver, order, resume};
use crate::api::job_lease::LeasePhase;
use crate::api::suspended_environment::{Phase, object_name};
use crate::gitlab::client::Wish;
use crate::gitlab::reason::FailureReason;
use crate::gitlab::trace::Trace;
use crate::host::link::{Attached, Link, LinkError};
use crate::pool::inventory;
use crate::spool::closing;
use crate::spool::frame::Frame;
use crate::spool::order::RunnerFacts;
use crate::spool::record::{JobRecord, JobResult, JobState, Outcome, ScriptEnd};
use crate::spool::verb::{LogEnd, RefusalReason};

/// The pause before a broken stream is attached to again.
const REATTACH_PAUSE: Duration = Duration::from_millis(100);

/// How long a job that was told to stop at once may take to say so.
const ABORT_DEADLINE: Duration = Duration::from_secs(60);

/// How a stream went on until something has to be decided.
enum Streamed {
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
struct Streaming {
    trace: Trace,
    crc32: u32,
    last_sent: Option<Instant>,
    cancel_sent: bool,
    first_byte: bool,
    /// What is known of the end, once it was concluded.
    conclusion: Option<Conclusion>,
}

/// How a job was concluded.
#[derive(Debug, Clone)]
struct Conclusion {
    ending: Ending,
    environment_key: Option<String>,
    /// Whether the environment stays on the host.
    kept: bool,
}

/// Runs or attaches to the job, to its end.
pub async fn run(driver: &mut Driver) -> Result<(), DriveError> {
    let mut streaming = Streaming {
        trace: Trace::from_offset(0),
        crc32: 0,
        last_sent: None,
        cancel_sent: false,
        first_byte: false,
        conclusion: None,
    };
    let mut lost_since: Option<Instant> = None;
    loop {
        let Some(link) = reach(driver, lost_since).await else { return give_up(driver, None).await };
        let mut attached = match attach(driver, &link, streaming.trace.end()).await {
            Ok(attached) => attached,
            Err(Unattached::Away(why)) => {
                lost_since.get_or_insert_with(Instant::now);
                tracing::warn!(pool = driver.held.name, job = driver.job.id, why, "the job's host is away");
                tokio::time::sleep(REATTACH_PAUSE).await;
                continue;
            }
            Err(Unattached::Refused { reason, message }) => return refused(driver, reason, &message).await,
            Err(Unattached::Drive(error)) => return Err(error),
        };
        lost_since = None;
        loop {
            match stream(driver, &link, &mut attached, &mut streaming).await? {
                Streamed::Open(record) => {
                    let conclusion = conclude(driver, &link, &record).await?;
                    streaming.conclusion = Some(conclusion);
                }
                Streamed::Dead(record) => bury(driver, &link, &record, &mut streaming).await?,
                Streamed::Sealed(record) => {
                    let conclusion = match streaming.conclusion.take() {
                        Some(conclusion) => conclusion,
                        None => conclude_sealed(driver, &link, &record).await?,
                    };
                    return finish(driver, &link, streaming, conclusion).await;
                }
                Streamed::Unwanted => {
                    drop(attached);
                    return abandon_on(driver, &link).await;
                }
                Streamed::Refetch(from) => {
                    streaming.trace = Trace::from_offset(from);
                    break;
                }
                Streamed::Broken(why) => {
                    tracing::debug!(pool = driver.held.name, job = driver.job.id, why, "the stream ended");
                    lost_since = Some(Instant::now());
                    tokio::time::sleep(REATTACH_PAUSE).await;
                    break;
                }
            }
        }
    }
}

/// The link to the lease's host, waiting for it up to the grace.
async fn reach(driver: &mut Driver, lost_since: Option<Instant>) -> Option<Arc<Link>> {
    let instance = driver.lease.place().map(|(instance, _)| instance.to_owned()).unwrap_or_default();
    let grace = driver.settings.spec.connection_grace.std();
    let deadline = lost_since.unwrap_or_else(Instant::now) + grace;
    let mut turns = driver.held.turns();
    loop {
        turns.borrow_and_update();
        if let Some(link) = driver.held.hosts.link(&instance)
            && !link.connection().is_closed()
        {
            return Some(link);
        }
        let keep_alive_at = driver.conversation.keep_alive_at();
        tokio::select! {
            // The sender lives in `held`: waiting cannot fail.
            _ = turns.changed() => {}
            () = tokio::time::sleep_until(keep_alive_at) => {
                // A wish to cancel is acted on when the host is back; an abort is seen then too.
                driver.conversation.touch().await;
            }
            () = tokio::time::sleep_until(deadline) => return None,
        }
    }
}

/// Why a job is not attached to.
enum Unattached {
    /// The host does not answer; the job is untouched.
    Away(String),
    /// The job cannot run or is not there.
    Refused { reason: FailureReason, message: String },
    /// This attempt is over.
    Drive(DriveError),
}

impl From<DriveError> for Unattached {
    fn from(error: DriveError) -> Self {
        Self::Drive(error)
    }
}

async fn attach(driver: &mut Driver, link: &Arc<Link>, from: u64) -> Result<Attached, Unattached> {
    let has_started = match driver.lease.phase() {
        LeasePhase::Accepted | LeasePhase::Assigned => false,
        LeasePhase::Running | LeasePhase::Finalizing | LeasePhase::Reported | LeasePhase::Failed => true,
    };
    let result = if has_started {
        link.attach(&driver.path(), from).await
    } else {
        let order = build_order(driver, link);
        // (6)
        link.start(&order).await
    };
    let attached = match result {
        Ok(attached) => attached,
        Err(error) if error.is_lost() => return Err(Unattached::Away(error.to_string())),
        Err(error) => return Err(understand(driver, link, error).await),
    };
    if !has_started {
        // (7)
        driver.record(&Step::Running).await?;
        resume::in_use(driver).await?;
    }
    Ok(attached)
}

fn build_order(driver: &Driver, link: &Link) -> crate::spool::order::JobOrder {
    let settings = &driver.settings;
    let (instance, slot) = driver.lease.place().unwrap_or_default();
    let wish = order::suspension(&settings.spec, &driver.job);
    let placement = order::Placement {
        environment: driver.lease.spec.environment_id.clone(),
        pool_uid: driver.held.uid.clone(),
        epoch: driver.held.epoch(),
        slot,
        builds_dir: link.absolute(&settings.spec.builds_dir),
        isolation: settings.isolation(driver.held.hosts.slots(instance)),
        runner: RunnerFacts {
            name: driver.held.name.clone(),
            short_token: settings.short_token.clone(),
            system_id: settings.identity.system_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gitlab_url: settings.spec.gitlab.url.clone(),
            ca_bundle: settings.ca_bundle.clone(),
        },
        resume: resume::bound(driver).map(|environment| resume::order(&environment)),
        notices: suspend::announcement(driver, wish).into_iter().collect(),
    };
    order::build(&driver.job, wish, placement)
}

/// What a refusal of the supervisor means for the job.
async fn understand(driver: &Driver, link: &Arc<Link>, error: LinkError) -> Unattached {
    let resumes = driver.lease.spec.resume_from.is_some();
    let unavailable = |message: String| Unattached::Refused {
        reason: FailureReason::RuntimeEnvironmentUnavailable,
        message: format!("the environment cannot be resumed: {message}"),
    };
    let broken =
        |message: String| Unattached::Refused { reason: FailureReason::RunnerSystemFailure, message };
    let Some(refusal) = error.refusal().cloned() else { return broken(error.to_string()) };
    match refusal.reason {
        RefusalReason::StaleEpoch { .. } => Unattached::Drive(error.into()),
        RefusalReason::SlotTaken => {
            // A job that is over may not have been removed there yet. Once it is, this one starts.
            if let Some((instance, _)) = driver.lease.place() {
                inventory::tidy_now(&driver.held, instance, link).await;
            }
            Unattached::Drive(error.into())
        }
        RefusalReason::NotFound if !resumes => {
            broken("the host has no record of the job any more; its state folder was lost".to_owned())
        }
        RefusalReason::NotFound
        | RefusalReason::ProjectMismatch
        | RefusalReason::WorkspaceMismatch
        | RefusalReason::InUse
            if resumes =>
        {
            unavailable(refusal.message)
        }
        RefusalReason::NotFound
        | RefusalReason::ProjectMismatch
        | RefusalReason::WorkspaceMismatch
        | RefusalReason::InUse
        | RefusalReason::ClaimedByOther { .. }
        | RefusalReason::Sealed
        | RefusalReason::Unsupported
        | RefusalReason::HostFailure => broken(refusal.message),
    }
}

/// The host did not start the job.
async fn refused(driver: &mut Driver, reason: FailureReason, message: &str) -> Result<(), DriveError> {
    resume::back_to_sleep(driver, message).await?;
    driver.end_with_tail(None, reason, message).await
}

/// Streams until something has to be decided.
async fn stream(
    driver: &mut Driver,
    link: &Link,
    attached: &mut Attached,
    streaming: &mut Streaming,
) -> Result<Streamed, DriveError> {
    let mut turns = driver.held.turns();
    let mut sealed: Option<JobRecord> = None;
    loop {
        // The first bytes go at once, later ones at the server's interval; the end of the log at once again.
        let patch_at = match streaming.last_sent {
            Some(at) if sealed.is_none() => driver.conversation.next_update_at(at),
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
                streaming.last_sent = Some(Instant::now());
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
                if driver.is_deleted() && !streaming.cancel_sent {
                    streaming.cancel_sent = true;
                    tracing::info!(pool = driver.held.name, job = driver.job.id, "the lease was deleted: canceling");
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
                tracing::info!(pool = driver.held.name, job = driver.job.id, "GitLab cancels the job");
                stop(link, driver, true).await;
            }
            false
        }
    }
}

/// Tells the supervisor to stop the job. If that cannot be said now, the next sign of life says it again.
async fn stop(link: &Link, driver: &Driver, graceful: bool) {
    if let Err(error) = link.cancel(&driver.path(), graceful).await {
        tracing::warn!(pool = driver.held.name, job = driver.job.id, %error, "the job was not told to stop");
    }
}

/// The stages are done and the log is open: suspends if that is due, says the last words, closes the log.
async fn conclude(driver: &mut Driver, link: &Link, record: &JobRecord) -> Result<Conclusion, DriveError> {
    let Some(result) = record.result.clone() else {
        return conclude_with(driver, link, record, &lost_result("the job left no result")).await;
    };
    if !result.suspend_due {
        return conclude_with(driver, link, record, &result).await;
    }
    let mut ending = Ending::of(record);
    let (lines, environment_key, kept) = match suspend::suspend(driver, link, record).await? {
        Suspended::Asleep(key) => {
            let lines = [closing::suspended_line(&key), closing::closing_line(&result)];
            let wish = order::suspension(&driver.settings.spec, &driver.job);
            let told = order::tells_key(wish, result.script).then_some(key);
            (lines.join("\n"), told, true)
        }
        Suspended::Deleted => {
            let line = "The job environment was released while the job ran; it is not suspended again";
            (format!("{line}\n{}", closing::closing_line(&result)), None, false)
        }
        Suspended::Failed(why) if result.outcome == Outcome::Success => {
            ending.failure = Some(FailureReason::RunnerSystemFailure);
            ending.message = format!("the job environment could not be suspended: {why}");
            (closing::system_failure(&ending.message), None, false)
        }
        Suspended::Failed(why) => {
            let line = format!("WARNING: The job environment could not be suspended: {why}");
            (format!("{line}\n{}", closing::closing_line(&result)), None, false)
        }
    };
    // (9)
    link.seal(&driver.path(), &lines).await?;
    let kept = kept || driver.lease.spec.resume_from.is_some();
    Ok(Conclusion { ending, environment_key, kept })
}

/// Closes the log with the result's own last line, and puts a resumed environment back to sleep: its script did
/// not come to its end.
async fn conclude_with(
    driver: &mut Driver,
    link: &Link,
    record: &JobRecord,
    result: &JobResult,
) -> Result<Conclusion, DriveError> {
    let mut ending = Ending::of(record);
    ending.failure = FailureReason::of(result.outcome);
    ending.exit_code = Some(result.exit_code);
    ending.message = result.message.clone();
    let resumes = resume::bound(driver).is_some();
    if resumes && result.script == ScriptEnd::NotEnded {
        link.suspend(&driver.path()).await?;
        resume::back_to_sleep(driver, &result.message).await?;
    }
    // (9)
    link.seal(&driver.path(), &closing::closing_line(result)).await?;
    Ok(Conclusion { ending, environment_key: None, kept: resumes })
}

/// The supervisor closed the log itself: no suspend was due. Or an earlier holder did, after a suspend.
async fn conclude_sealed(
    driver: &mut Driver,
    link: &Link,
    record: &JobRecord,
) -> Result<Conclusion, DriveError> {
    let result = record.result.clone().unwrap_or_else(|| lost_result(loss(link, record)));
    let mut ending = Ending::of(record);
    ending.failure = FailureReason::of(result.outcome);
    ending.message = result.message.clone();
    let bound = resume::bound(driver).is_some();
    let script = result.script;
    if bound && script == ScriptEnd::NotEnded {
        link.suspend(&driver.path()).await?;
        resume::back_to_sleep(driver, &ending.message).await?;
    }
    if result.suspend_due {
        // The log was closed after the suspend, so what became of it stands in the object.
        let name = object_name(&driver.held.name, &driver.lease.spec.environment_id);
        let kept = driver.held.shared.environments.read(&driver.held.namespace, &name).await?;
        let asleep = kept.is_some_and(|known| {
            known.metadata.deletion_timestamp.is_none() && known.phase() == Phase::Suspended
        });
        if asleep {
            let wish = order::suspension(&driver.settings.spec, &driver.job);
            let key = order::tells_key(wish, script).then(|| suspend::key(driver));
            return Ok(Conclusion { ending, environment_key: key, kept: true });
        }
        if ending.failure.is_none() {
            ending.failure = Some(FailureReason::RunnerSystemFailure);
            ending.message = "the job environment could not be suspended".to_owned();
        }
    }
    Ok(Conclusion { ending, environment_key: None, kept: bound && script == ScriptEnd::NotEnded })
}

/// The process that ran the job is gone: say so, and end it.
async fn bury(
    driver: &mut Driver,
    link: &Link,
    record: &JobRecord,
    streaming: &mut Streaming,
) -> Result<(), DriveError> {
    let conclusion = conclude_with(driver, link, record, &lost_result(loss(link, record))).await?;
    streaming.conclusion = Some(conclusion);
    Ok(())
}

/// Why the process that ran a job is gone.
fn loss(link: &Link, record: &JobRecord) -> &'static str {
    if record.runner.boot_id == link.hello.boot_id {
        "the supervisor that ran the job was killed on the host"
    } else {
        "the host was rebooted while the job ran"
    }
}

fn lost_result(message: &str) -> JobResult {
    JobResult {
        outcome: Outcome::SystemFailure,
        script: ScriptEnd::NotEnded,
        exit_code: 0,
        message: message.to_owned(),
        suspend_due: false,
    }
}

/// The log is complete: GitLab gets the rest of it and the result; the host gives back what is not kept.
async fn finish(
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
        let ending = &conclusion.ending;
        let (failure, exit_code) = (ending.failure, ending.exit_code.unwrap_or_default());
        let log = Some((end.length, end.crc32));
        // A canceled job has no environment that GitLab could offer to a later one.
        let key = conclusion.environment_key.as_deref().filter(|_| !driver.conversation.is_canceled());
        if !driver.conversation.tell_once(failure, exit_code, log, key).await {
            driver.record(&Step::Finalizing(ending.clone())).await?;
            driver.conversation.tell(failure, exit_code, log, key).await;
        }
        if driver.conversation.verdict() != Verdict::LogInvalid {
            break;
        }
        streaming.trace = refetch(driver, link, 0, end.length).await?;
    }
    end_on_host(driver, link, &conclusion).await?;
    let step = match driver.conversation.verdict() {
        Verdict::Taken | Verdict::Gone => Step::Reported(conclusion.ending),
        Verdict::Open | Verdict::LogInvalid | Verdict::Refused => {
            driver
                .held
                .shared
                .metrics
                .lease(&driver.held.name, crate::telemetry::LeaseOutcome::ReportRefused);
            let note = "GitLab refuses the job's result in every form".to_owned();
            driver.held.shared.events.warning(driver.lease.as_ref(), "ReportRefused", "Report", note).await;
            Step::Failed(conclusion.ending)
        }
    };
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
        return withdraw_canceled(driver).await;
    }
    match link.release(&driver.lease.spec.environment_id, false).await {
        Ok(()) => {}
        // GitLab has the result; what is left on the host is swept, and a new job on the slot sweeps it first.
        Err(error) => {
            tracing::warn!(pool = driver.held.name, job = driver.job.id, %error, "the host was not tidied yet");
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
    let environments = driver.held.environments();
    let own =
        environments.into_iter().find(|known| known.spec.environment_id == driver.lease.spec.environment_id);
    let Some(environment) = own else { return Ok(()) };
    driver.held.shared.environments.delete(&environment).await?;
    let note = format!("released: job {} was canceled while it was being suspended", driver.job.id);
    driver.held.shared.events.normal(environment.as_ref(), "Released", "Release", note).await;
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

async fn abandon_on(driver: &mut Driver, link: &Arc<Link>) -> Result<(), DriveError> {
    tracing::info!(pool = driver.held.name, job = driver.job.id, "GitLab does not want the job: stopping it");
    let path = driver.path();
    let record = match stop_and_wait(driver, link).await {
        Ok(record) => record,
        Err(error) if matches!(error.refusal().map(|r| &r.reason), Some(RefusalReason::NotFound)) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(record) = record.filter(has_come_to_its_end)
        && !driver.conversation.is_canceled()
    {
        // An earlier holder told GitLab the result and died before it wrote that down.
        let conclusion = conclude_sealed(driver, link, &record).await?;
        end_on_host(driver, link, &conclusion).await?;
        return driver.close(Step::Reported(conclusion.ending)).await;
    }
    if resume::bound(driver).is_some() {
        link.suspend(&path).await?;
        resume::back_to_sleep(driver, "GitLab ended the job").await?;
    } else if is_kept(driver) {
        withdraw_canceled(driver).await?;
    } else {
        link.release(&path.environment, true).await?;
    }
    driver.end_gone().await
}

/// Whether the script ended by itself and the job's log was closed after it.
fn has_come_to_its_end(record: &JobRecord) -> bool {
    record.sealed && record.result.as_ref().is_some_and(|result| result.script != ScriptEnd::NotEnded)
}

/// Whether an object keeps the environment although no job is bound to it: it was put to sleep already.
fn is_kept(driver: &Driver) -> bool {
    driver.held.environments().iter().any(|known| {
        known.spec.environment_id == driver.lease.spec.environment_id && known.phase() == Phase::Suspended
    })
}

/// Ends the job; answers its record, if it came to an end in time.
async fn stop_and_wait(driver: &Driver, link: &Link) -> Result<Option<JobRecord>, LinkError> {
    let path = driver.path();
    link.cancel(&path, false).await?;
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

/// The host was away for longer than the grace: GitLab is told, what is there is swept when it returns.
async fn give_up(driver: &mut Driver, why: Option<&str>) -> Result<(), DriveError> {
    let instance = driver.lease.place().map(|(instance, _)| instance.to_owned()).unwrap_or_default();
    let grace = driver.settings.spec.connection_grace.std();
    let message = why.map_or_else(
        || {
            format!(
                "instance {instance} has not been reachable for {} s (spec.connectionGrace)",
                grace.as_secs()
            )
        },
        str::to_owned,
    );
    let note = format!("{message}; last seen {}", Timestamp::now());
    driver.held.shared.events.warning(driver.lease.as_ref(), "InstanceLost", "Attach", note).await;
    resume::back_to_sleep(driver, &message).await?;
    driver.end_with_tail(None, FailureReason::RunnerSystemFailure, &message).await
}
