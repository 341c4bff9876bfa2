//! A job on a host: start it or attach to it, and go on with what its stream comes to.
//!
//! A lost connection is not a lost job: it is attached to again, and only after `connectionGrace` is the host given
//! up. From the status Running on, the job is never started again, whatever the host says.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::conclude::{bury, conclude, conclude_sealed};
use super::finish::{abandon_on, finish};
use super::record::Step;
use super::stream::{Streamed, Streaming, stream};
use super::{DriveError, Driver, resume, suspend, wish};
use crate::api::job_lease::LeasePhase;
use crate::clock;
use crate::deed::Point;
use crate::gitlab::reason::FailureReason;
use crate::gitlab::trace::Trace;
use crate::host::link::{Attached, Link, LinkError};
use crate::pool::inventory;
use crate::spool::FORMAT;
use crate::spool::order::{JobOrder, RunnerFacts};
use crate::spool::verb::RefusalReason;

/// The pause before a broken stream is attached to again.
const REATTACH_PAUSE: Duration = Duration::from_millis(100);

/// Runs or attaches to the job, to its end.
pub async fn run(driver: &mut Driver) -> Result<(), DriveError> {
    let mut streaming = Streaming {
        trace: Trace::from_offset(0),
        crc32: 0,
        sent: None,
        cancel_sent: false,
        first_byte: false,
        conclusion: None,
    };
    let mut lost_since: Option<Instant> = None;
    loop {
        let Some(link) = reach(driver, lost_since).await else { return give_up(driver).await };
        let mut attached = match attach(driver, &link, streaming.trace.end()).await {
            Ok(attached) => attached,
            Err(Unattached::Away(why)) => {
                lost_since.get_or_insert_with(Instant::now);
                tracing::warn!(why, "the job's host is away");
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
                    driver.until_acting().await;
                    let conclusion = conclude(driver, &link, &record).await?;
                    streaming.conclusion = Some(conclusion);
                }
                Streamed::Dead(record) => {
                    driver.until_acting().await;
                    bury(driver, &link, &record, &mut streaming).await?;
                }
                Streamed::Sealed(record) => {
                    driver.until_acting().await;
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
                    tracing::debug!(why, "the stream ended");
                    lost_since = Some(attached.heard_at());
                    tokio::time::sleep(REATTACH_PAUSE).await;
                    break;
                }
            }
        }
    }
}

/// The link to the lease's host, waiting for it up to the grace.
pub async fn reach(driver: &mut Driver, lost_since: Option<Instant>) -> Option<Arc<Link>> {
    let instance = driver.lease.place().map(|(instance, _)| instance.to_owned()).unwrap_or_default();
    let grace = driver.settings.spec.connection_grace.std();
    let mut deadline = lost_since.unwrap_or_else(Instant::now) + grace;
    let mut turns = driver.held.signal(&kube::ResourceExt::name_any(driver.lease.as_ref()));
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
            () = tokio::time::sleep_until(deadline) => {
                if driver.held.tenure().may_act() {
                    return None;
                }
                // Nobody tries to reach it for a holder that may not act: the grace begins anew when one may.
                driver.until_acting().await;
                deadline = Instant::now() + grace;
            }
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
        link.start(driver.held.deed(Point::JobStarted).await, &order).await
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

fn build_order(driver: &Driver, link: &Link) -> JobOrder {
    let settings = &driver.settings;
    let (instance, slot) = driver.lease.place().unwrap_or_default();
    let wish = wish::suspension(&settings.spec, &driver.job);
    JobOrder {
        format: FORMAT,
        environment: driver.lease.spec.environment_id.clone(),
        pool_uid: driver.held.uid.clone(),
        epoch: driver.held.epoch(),
        slot,
        builds_dir: link.absolute(settings.spec.builds_dir()),
        isolation: settings.isolation(driver.held.hosts.slots(instance)),
        runner: RunnerFacts {
            name: driver.held.name.clone(),
            short_token: settings.short_token.clone(),
            system_id: settings.identity.system_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gitlab_url: settings.spec.gitlab.url.clone(),
            ca_bundle: settings.ca_bundle.clone(),
        },
        job: driver.job.clone(),
        suspend: wish.plan,
        resume: resume::bound(driver).map(|environment| resume::order(&environment)),
        notices: suspend::announcement(driver, wish).into_iter().collect(),
        log_limit_bytes: u64::from(settings.spec.output_limit) * 1024,
        pids_limit: settings.spec.pids_limit,
    }
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

/// The host was away for longer than the grace: GitLab is told, what is there is swept when it returns.
async fn give_up(driver: &mut Driver) -> Result<(), DriveError> {
    let instance = driver.lease.place().map(|(instance, _)| instance.to_owned()).unwrap_or_default();
    let grace = driver.settings.spec.connection_grace.std();
    let why = driver.held.hosts.message(&instance).map(|why| format!(": {why}")).unwrap_or_default();
    let message = format!(
        "instance {instance} has not been reachable for {} s (spec.connectionGrace){why}",
        grace.as_secs()
    );
    let note = format!("{message}; last seen {}", clock::now());
    driver.held.shared.events.warning(driver.lease.as_ref(), "InstanceLost", "Attach", note).await;
    resume::back_to_sleep(driver, &message).await?;
    driver.end_with_tail(None, FailureReason::RunnerSystemFailure, &message).await
}
