//! The end of a job on its host: suspended if that is due, the last words said, the log closed.

use super::record::Ending;
use super::suspend::{self, Suspended};
use super::{DriveError, Driver, resume, wish};
use crate::api::suspended_environment::Phase;
use crate::deed::Point;
use crate::gitlab::reason::FailureReason;
use crate::host::link::Link;
use crate::spool::closing;
use crate::spool::record::{JobRecord, JobResult, Outcome, ScriptEnd};

/// How a job was concluded.
#[derive(Debug, Clone)]
pub struct Conclusion {
    /// What GitLab and the lease are told.
    pub ending: Ending,
    /// The key GitLab is told, when it asked for the suspend.
    pub environment_key: Option<String>,
}

/// The stages are done and the log is open: suspends if that is due, says the last words, closes the log.
pub async fn conclude(
    driver: &mut Driver,
    link: &Link,
    record: &JobRecord,
) -> Result<Conclusion, DriveError> {
    let Some(result) = record.result.clone() else {
        return conclude_with(driver, link, record, &lost_result("the job left no result")).await;
    };
    if !result.suspend_due {
        return conclude_with(driver, link, record, &result).await;
    }
    let mut ending = Ending::of(record);
    let suspended = suspend::suspend(driver, link, record).await?;
    if let Suspended::Failed(why) = &suspended {
        // A resumed environment that cannot be put to sleep again is not given up for that.
        resume::back_to_sleep(driver, why).await?;
    }
    let (lines, environment_key) = match suspended {
        Suspended::Asleep(key) => {
            let lines = [closing::suspended_line(&key), closing::closing_line(&result)];
            let wish = wish::suspension(&driver.settings.spec, &driver.job);
            let told = wish::tells_key(wish, result.script).then_some(key);
            (lines.join("\n"), told)
        }
        Suspended::Deleted => {
            let line = "The job environment was released while the job ran; it is not suspended again";
            (format!("{line}\n{}", closing::closing_line(&result)), None)
        }
        Suspended::Failed(why) if result.outcome == Outcome::Success => {
            ending.failure = Some(FailureReason::RunnerSystemFailure);
            ending.message = format!("the job environment could not be suspended: {why}");
            (closing::system_failure(&ending.message), None)
        }
        Suspended::Failed(why) => {
            let line = format!("WARNING: The job environment could not be suspended: {why}");
            (format!("{line}\n{}", closing::closing_line(&result)), None)
        }
    };
    // (9)
    link.seal(driver.held.deed(Point::LogSealed).await, &driver.path(), &lines).await?;
    Ok(Conclusion { ending, environment_key })
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
    if resume::bound(driver).is_some() && result.script == ScriptEnd::NotEnded {
        resume::freeze_again(driver, link, &result.message).await?;
    }
    // (9)
    let deed = driver.held.deed(Point::LogSealedWithoutSuspend).await;
    link.seal(deed, &driver.path(), &closing::closing_line(result)).await?;
    Ok(Conclusion { ending, environment_key: None })
}

/// The supervisor closed the log itself: no suspend was due. Or an earlier holder did, after a suspend.
pub async fn conclude_sealed(
    driver: &mut Driver,
    link: &Link,
    record: &JobRecord,
) -> Result<Conclusion, DriveError> {
    let result = record.result.clone().unwrap_or_else(|| lost_result(loss(link, record)));
    let mut ending = Ending::of(record);
    ending.failure = FailureReason::of(result.outcome);
    ending.message = result.message.clone();
    let script = result.script;
    if resume::bound(driver).is_some() && script == ScriptEnd::NotEnded {
        resume::freeze_again(driver, link, &ending.message).await?;
    }
    if result.suspend_due {
        // The log was closed after the suspend, so what became of it stands in the object.
        let asleep = match resume::read_own(driver).await? {
            Some(known) => known.metadata.deletion_timestamp.is_none() && known.phase() == Phase::Suspended,
            // It was put to sleep, and the object is lost: etcd was restored. The host's word is as good.
            None if suspend::sleeps_on_host(driver, link).await? => {
                matches!(suspend::suspend(driver, link, record).await?, Suspended::Asleep(_))
            }
            None => false,
        };
        if asleep {
            let wish = wish::suspension(&driver.settings.spec, &driver.job);
            let key = if wish::tells_key(wish, script) { Some(suspend::key(driver)?) } else { None };
            return Ok(Conclusion { ending, environment_key: key });
        }
        if ending.failure.is_none() {
            ending.failure = Some(FailureReason::RunnerSystemFailure);
            ending.message = "the job environment could not be suspended".to_owned();
        }
    }
    Ok(Conclusion { ending, environment_key: None })
}

/// The process that ran the job is gone: say so, and end it.
pub async fn bury(driver: &mut Driver, link: &Link, record: &JobRecord) -> Result<Conclusion, DriveError> {
    conclude_with(driver, link, record, &lost_result(loss(link, record))).await
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
