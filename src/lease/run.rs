//! A job on a host: start it or attach to it, and go on with what its stream comes to.
//!
//! A lost connection is not a lost job: it is attached to again, and only after `connectionGrace` is the host given
//! up. From the status Running on, the job is never started again, whatever the host says.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::cache::{self, Renewal};
use super::conclude::{bury, conclude, conclude_sealed};
use super::conversation::Heard;
use super::finish::{Finished, abandon_on, finish};
use super::record::Step;
use super::seen::StageWatch;
use super::stream::{Streamed, Streaming, stream, until};
use super::{DriveError, Driver, resume, suspend, wish};
use crate::api::job_lease::LeasePhase;
use crate::clock;
use crate::deed::Point;
use crate::gitlab::client::Wish;
use crate::gitlab::reason::FailureReason;
use crate::gitlab::trace::Trace;
use crate::host::link::{Attached, Link, LinkError};
use crate::pool::inventory;
use crate::pool::settings::Settings;
use crate::pool::slots::Slot;
use crate::spool::FORMAT;
use crate::spool::cache::CacheOrder;
use crate::spool::order::{ClientIdentity, JobOrder, JobSettings, RunnerFacts};
use crate::spool::verb::RefusalReason;

/// The pause before a broken stream is attached to again.
const REATTACH_PAUSE: Duration = Duration::from_millis(100);

/// Runs or attaches to the job, to its end.
pub async fn run(driver: &mut Driver) -> Result<(), DriveError> {
    let mut streaming = Streaming::default();
    let mut lost_since: Option<Instant> = None;
    let mut renewal: Option<Renewal> = None;
    loop {
        let Some(link) = reach(driver, lost_since, Some(&mut streaming.trace)).await else {
            return give_up(driver).await;
        };
        match attach(driver, &link, streaming.trace.read_on()).await {
            Ok((attached, addresses_end)) => {
                streaming.attached = Some(attached);
                streaming.stages = StageWatch::default();
                renewal.get_or_insert_with(|| {
                    Renewal::new(driver, &link, &build_order(driver, &link), addresses_end)
                });
            }
            Err(Unattached::Away(why)) => {
                lost_since.get_or_insert_with(Instant::now);
                tracing::warn!(why, "the job's host is away");
                tokio::time::sleep(REATTACH_PAUSE).await;
                continue;
            }
            Err(Unattached::Refused { reason, message }) => return refused(driver, reason, &message).await,
            Err(Unattached::Drive(error)) => return Err(error),
        }
        lost_since = None;
        loop {
            let streamed = tokio::select! {
                streamed = stream(driver, &link, &mut streaming) => streamed?,
                never = Renewal::keep_any(renewal.as_mut(), &link) => match never {},
            };
            match streamed {
                Streamed::Open(_) | Streamed::Dead(_) if !driver.held.tenure().may_act() => {
                    // Nobody reads the stream while this lasts, and it would hold up all others of its connection.
                    // A new one begins with the same record.
                    streaming.attached = None;
                    driver.until_acting(&mut streaming.trace).await;
                    break;
                }
                Streamed::Open(record) => {
                    streaming.conclusion = Some(conclude(driver, &link, &record).await?);
                }
                Streamed::Dead(record) => match bury(driver, &link, &record).await {
                    Ok(conclusion) => streaming.conclusion = Some(conclusion),
                    Err(DriveError::Host(error)) if error.is_hosts_own() => {
                        match drain(driver, &mut streaming.trace).await {
                            Drained::Whole => return speak_for(driver, &error).await,
                            Drained::Unwanted => return abandon_on(driver, &link).await,
                            Drained::Reread => break,
                        }
                    }
                    Err(error) => return Err(error),
                },
                Streamed::Sealed(record) => {
                    driver.until_acting(&mut streaming.trace).await;
                    streaming.conclusion = Some(conclude_sealed(driver, &link, &record).await?);
                }
                Streamed::Told(conclusion) => {
                    match finish(driver, &link, conclusion, streaming.read).await? {
                        Finished::Closed => return Ok(()),
                        Finished::LogWanted => {
                            streaming.trace = Trace::from_offset(0);
                            break;
                        }
                    }
                }
                Streamed::Unwanted => {
                    streaming.attached = None;
                    return abandon_on(driver, &link).await;
                }
                Streamed::Reread => break,
                Streamed::Broken(why) => {
                    tracing::debug!(why, "the stream ended");
                    lost_since =
                        Some(streaming.attached.as_ref().map_or_else(Instant::now, Attached::heard_at));
                    tokio::time::sleep(REATTACH_PAUSE).await;
                    break;
                }
            }
        }
        streaming.attached = None;
    }
}

/// The link to the lease's host, waiting for it up to the grace. GitLab gets what is held of the log meanwhile; without
/// a trace it is told nothing.
pub async fn reach(
    driver: &mut Driver,
    lost_since: Option<Instant>,
    mut trace: Option<&mut Trace>,
) -> Option<Arc<Link>> {
    let instance = driver.lease.place().map(|(instance, _)| instance.to_owned()).unwrap_or_default();
    let grace = driver.settings.spec.connection_grace.std();
    let mut deadline = lost_since.unwrap_or_else(Instant::now) + grace;
    let mut turns = driver.held.signal(&driver.lease.name_any());
    loop {
        turns.borrow_and_update();
        if let Some(link) = driver.held.hosts.link(&instance)
            && !link.connection().is_closed()
        {
            return Some(link);
        }
        // Its cloud has ended it: nobody comes back.
        if driver.held.loss_of(&instance).is_some() && driver.held.tenure().may_act() {
            return None;
        }
        let look_at = trace.as_ref().and_then(|trace| driver.conversation.speak(trace, false, None));
        tokio::select! {
            // The sender lives in `held`: waiting cannot fail.
            _ = turns.changed() => {}
            answer = driver.conversation.answer() => {
                // A wish to cancel is acted on when the host is back; an abort is seen then too.
                if let Some(trace) = &mut trace {
                    driver.conversation.take_in(answer, trace);
                }
            }
            () = until(look_at) => {}
            () = tokio::time::sleep_until(deadline) => {
                if driver.held.tenure().may_act() {
                    return None;
                }
                // Nobody tries to reach it for a holder that may not act: the grace begins anew when one may.
                match &mut trace {
                    Some(trace) => driver.until_acting(trace).await,
                    None => driver.held.tenure().acting().await,
                }
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

/// Attaches to the job; answers also when the addresses of its caches end, if they were sent just now.
async fn attach(
    driver: &mut Driver,
    link: &Arc<Link>,
    from: u64,
) -> Result<(Attached, Option<Timestamp>), Unattached> {
    let mut addresses_end = None;
    let has_started = match driver.lease.phase() {
        LeasePhase::Accepted | LeasePhase::Assigned => false,
        LeasePhase::Running | LeasePhase::Finalizing | LeasePhase::Reported | LeasePhase::Failed => true,
    };
    let result = if has_started {
        link.attach(&driver.path(), from).await
    } else {
        let order = build_order(driver, link);
        let order = JobOrder { cache: cache::order(driver, link, &order).await, ..order };
        addresses_end = order.cache.as_ref().and_then(CacheOrder::addresses_end);
        // (6)
        link.start(driver.held.deed(Point::JobStarted).await, &order).await
    };
    let attached = match result {
        Ok(attached) => attached,
        Err(error) if error.is_lost() => return Err(Unattached::Away(error.to_string())),
        Err(error) => return Err(understand(driver, link, error).await),
    };
    driver.held.note_attached(&driver.lease.name_any());
    if !has_started {
        // (7)
        driver.record(&Step::Running).await?;
        resume::in_use(driver).await?;
    }
    Ok((attached, addresses_end))
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
            client: ClientIdentity::from_pem(settings.client_pem.expose_secret()),
        },
        job: driver.job.clone(),
        suspend: wish.plan,
        resume: resume::bound(driver).map(|environment| resume::order(&environment)),
        notices: suspend::announcement(driver, wish).into_iter().collect(),
        log_limit_bytes: u64::from(settings.spec.output_limit) * 1024,
        pids_limit: settings.spec.pids_limit,
        settings: job_settings(settings),
        cache: None,
    }
}

/// What the pool says about each of its jobs.
fn job_settings(settings: &Settings) -> JobSettings {
    let spec = &settings.spec;
    let text = |script: &Option<String>| script.clone().unwrap_or_default();
    JobSettings {
        environment: settings.environment(),
        pre_get_sources_script: text(&spec.pre_get_sources_script),
        post_get_sources_script: text(&spec.post_get_sources_script),
        pre_build_script: text(&spec.pre_build_script),
        post_build_script: text(&spec.post_build_script),
        get_sources_timeout_seconds: spec.get_sources_timeout.map_or(0, |limit| limit.std().as_secs()),
        is_disposable: spec.max_use_count == 1,
    }
}

/// What a refusal of the supervisor means for the job.
async fn understand(driver: &mut Driver, link: &Arc<Link>, error: LinkError) -> Unattached {
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
            // A job that is over may not have been removed there yet. Once it is, this one starts. What no object
            // knows is not removed at first sight: this one starts elsewhere.
            if let Some((instance, index)) = driver.lease.place() {
                let slot = Slot { instance: instance.to_owned(), index };
                inventory::tidy_now(&driver.held, instance, link).await;
                if !resumes && driver.held.book(|book| book.occupancy.is_strangers(&slot)) {
                    tracing::warn!(
                        instance = slot.instance,
                        index,
                        "the slot is kept by what no object knows"
                    );
                    if let Err(error) = driver.record(&Step::Displaced).await {
                        return Unattached::Drive(error);
                    }
                }
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

/// How the sending of what was read of a log ended.
enum Drained {
    /// GitLab has all of it.
    Whole,
    /// GitLab wants no more of this job.
    Unwanted,
    /// GitLab wants some of it again.
    Reread,
}

/// Sends what was read of a log of which no more can come.
async fn drain(driver: &mut Driver, trace: &mut Trace) -> Drained {
    while !trace.is_drained() {
        let look_at = driver.conversation.speak(trace, true, None);
        tokio::select! {
            answer = driver.conversation.answer() => match driver.conversation.take_in(answer, trace) {
                Heard::Wish(Wish::Abort) => return Drained::Unwanted,
                // Too late to stop anything.
                Heard::Wish(Wish::GoOn | Wish::CancelGracefully) => {}
                Heard::Reread => return Drained::Reread,
            },
            () = until(look_at) => {}
        }
    }
    // What came while GitLab was slow was let go, and is read again.
    if trace.lacks_more() { Drained::Reread } else { Drained::Whole }
}

/// The process that ran the job is gone and its host takes no last words, since its disk is full or fails: GitLab has
/// what there is of the log, and gets the last words from us.
async fn speak_for(driver: &mut Driver, error: &LinkError) -> Result<(), DriveError> {
    let message = format!("the supervisor that ran the job is gone, and its host cannot tell more: {error}");
    resume::back_to_sleep(driver, &message).await?;
    driver.end_with_tail(None, FailureReason::RunnerSystemFailure, &message).await
}

/// The host was away for longer than the grace: GitLab is told, what is there is swept when it returns.
async fn give_up(driver: &mut Driver) -> Result<(), DriveError> {
    let instance = driver.lease.place().map(|(instance, _)| instance.to_owned()).unwrap_or_default();
    let grace = driver.settings.spec.connection_grace.std();
    let why = driver.held.hosts.message(&instance).map(|why| format!(": {why}")).unwrap_or_default();
    let message = driver.held.loss_of(&instance).unwrap_or_else(|| {
        format!(
            "instance {instance} has not been reachable for {} s (spec.connectionGrace){why}",
            grace.as_secs()
        )
    });
    let note = format!("{message}; last seen {}", clock::now());
    driver.held.shared.events.warning(driver.lease.as_ref(), "InstanceLost", "Attach", note).await;
    resume::back_to_sleep(driver, &message).await?;
    driver.end_with_tail(None, FailureReason::RunnerSystemFailure, &message).await
}
