//! Putting an environment to sleep at the end of a job.
//!
//! Writes, each finished and not repeated by the next holder, which comes here again because the job on the host
//! says that a suspend is due:
//! (8a) the SuspendedEnvironment, owner of the slot from now on; of a resumed one, its expiry stamped anew;
//! (8b) host: suspend, which freezes processes and records context and owner; done twice it is done once;
//! (8c) its status: Suspended, tier Hot, the key, no lease bound.
//! After that the log line and the report, with the key, follow as for any job.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::core::ObjectMeta;
use serde_json::json;

use super::wish::SuspensionWish;
use super::{DriveError, Driver, resume};
use crate::api::duration::Duration;
use crate::api::key::{EnvironmentKey, KeyError};
use crate::api::suspended_environment::{
    Origin, Phase, ScriptOutcome, SuspendedEnvironmentSpec, Tier, object_name,
};
use crate::api::{SuspendedEnvironment, labels};
use crate::clock;
use crate::deed::Point;
use crate::environment::limits::{self, Limits, OverLimit, Population};
use crate::environment::moves;
use crate::environment::plan::HostWord;
use crate::host::link::Link;
use crate::kube_ext::is_refusal;
use crate::spool::record::{EnvironmentPhase, EnvironmentRecord, JobRecord, ScriptEnd};
use crate::telemetry::EnvironmentOutcome;

/// What came of a suspend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suspended {
    /// It sleeps under this key.
    Asleep(String),
    /// It does not: why, for the log.
    Failed(String),
    /// Somebody deleted it while the job ran: the trigger is ignored.
    Deleted,
}

/// The line that announces a suspend which the limits will refuse, if they will.
pub fn announcement(driver: &Driver, wish: SuspensionWish) -> Option<String> {
    if !(wish.plan.on_success || wish.plan.on_failure) || driver.lease.spec.resume_from.is_some() {
        return None;
    }
    admit(driver).err().map(|over| {
        format!("this job asks for its environment to be suspended, which would be refused now: {over}")
    })
}

fn admit(driver: &Driver) -> Result<(), OverLimit> {
    let spec = &driver.settings.spec;
    let others: Vec<_> = driver
        .held
        .environments()
        .into_iter()
        .filter(|known| known.spec.environment_id != driver.lease.spec.environment_id)
        .collect();
    let project = driver.lease.spec.project_id;
    let of_project = others.iter().filter(|known| known.spec.origin.project_id == project).count();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let own_size = spec.workspace_volume.as_ref().map_or(0, |volume| volume.size_gib);
    let size = |known: &Arc<SuspendedEnvironment>| {
        let volume = known.status.as_ref().and_then(|status| status.volume.as_ref());
        volume.map_or(own_size, |volume| volume.size_gib)
    };
    let storage = others.iter().map(size).fold(own_size, u32::saturating_add);
    limits::admit(
        Population {
            all: count(others.len()),
            hot: count(others.iter().filter(|known| known.is_hot()).count()),
            can_make_room: moves::can_make_room(&driver.held, &others),
            storage_gib: storage,
            of_project: count(of_project),
        },
        Limits {
            slots: spec.total_slots(),
            floor: spec.slot_floor(),
            max_environments: spec.suspension.limits.max_environments,
            max_per_project: spec.suspension.limits.max_per_project,
            max_storage_gib: spec.suspension.limits.max_storage_gib,
        },
    )
}

/// Puts the environment to sleep.
pub async fn suspend(driver: &Driver, link: &Link, record: &JobRecord) -> Result<Suspended, DriveError> {
    let began = std::time::Instant::now();
    let environment = {
        let _turn = driver.held.suspend_turn.lock().await;
        match reserve(driver, link, record).await? {
            Ok(environment) => environment,
            Err(ended) => return Ok(ended),
        }
    };
    // (8b)
    let kept = match link.suspend(driver.held.deed(Point::EnvironmentFrozen).await, &driver.path()).await {
        Ok(kept) => kept,
        Err(error) if error.is_lost() => return Err(error.into()),
        Err(error) => return Ok(failed(driver, &environment, error.to_string()).await),
    };
    let instance = &environment.spec.origin.instance;
    driver.held.inventories.note(instance, &environment.spec.environment_id, Some(HostWord::Asleep));
    // (8c)
    let key = key(driver)?;
    write_asleep(driver, &environment, &kept, &key).await?;
    driver.held.shared.metrics.suspended(&driver.held.name, began.elapsed());
    let note = format!("suspended by job {} on {instance}", driver.job.id);
    driver.held.shared.events.normal(environment.as_ref(), "Suspended", "Suspend", note).await;
    Ok(Suspended::Asleep(key))
}

/// (8a): the object that owns the slot from now on.
async fn reserve(
    driver: &Driver,
    link: &Link,
    record: &JobRecord,
) -> Result<Result<Arc<SuspendedEnvironment>, Suspended>, DriveError> {
    let held = &driver.held;
    let name = object_name(&held.name, &driver.lease.spec.environment_id);
    if let Some(known) = held.shared.environments.read(&held.namespace, &name).await? {
        if known.metadata.deletion_timestamp.is_some() {
            return Ok(Err(Suspended::Deleted));
        }
        if known.phase() == Phase::Suspending {
            return Ok(Ok(known));
        }
        // A resumed environment sleeps again, its time stamped anew; a bound one only, or this was done already.
        if known.bound_lease().is_none() {
            return Ok(Ok(known));
        }
        let (expires_at, not_after) = times(driver);
        let patch = json!({ "spec": { "expiresAt": expires_at, "notAfter": not_after } });
        let deed = held.deed(Point::EnvironmentRestamped).await;
        return Ok(Ok(held.shared.environments.merge(deed, &known, &patch).await?));
    }
    if driver.lease.spec.resume_from.is_some() {
        return Ok(Err(Suspended::Deleted));
    }
    if let Err(over) = admit(driver) {
        held.shared.metrics.environment(&held.name, EnvironmentOutcome::SuspendFailed);
        return Ok(Err(Suspended::Failed(over.to_string())));
    }
    let Some(workspace) = workspace(driver, link).await? else {
        return Ok(Err(Suspended::Failed("the host has no record of the environment".to_owned())));
    };
    let wanted = object(driver, record, &name, workspace);
    let deed = held.deed(Point::EnvironmentCreated).await;
    match held.shared.environments.create(deed, &held.namespace, &wanted).await {
        Ok((created, _)) => Ok(Ok(created)),
        Err(error) if is_refusal(&error) => Ok(Err(Suspended::Failed(error.to_string()))),
        Err(error) => Err(error.into()),
    }
}

/// Whether the lease's environment sleeps, by its host's record.
pub async fn sleeps_on_host(driver: &Driver, link: &Link) -> Result<bool, DriveError> {
    let listed = link.list().await?;
    Ok(listed.iter().any(|known| {
        known.environment.environment == driver.lease.spec.environment_id
            && known.environment.phase == EnvironmentPhase::Suspended
    }))
}

/// The workspace as the host recorded it: paths are the host's to say.
async fn workspace(driver: &Driver, link: &Link) -> Result<Option<String>, DriveError> {
    let listed = link.list().await?;
    let own =
        listed.into_iter().find(|known| known.environment.environment == driver.lease.spec.environment_id);
    Ok(own.map(|known| known.environment.workspace))
}

fn object(driver: &Driver, record: &JobRecord, name: &str, workspace_path: String) -> SuspendedEnvironment {
    let job = &driver.job;
    let lease = &driver.lease;
    let (instance, slot) = lease.place().unwrap_or_default();
    let (expires_at, not_after) = times(driver);
    let script = record.result.as_ref().map_or(ScriptEnd::NotEnded, |result| result.script);
    let labels = BTreeMap::from([
        (labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned()),
        (labels::POOL.to_owned(), driver.held.name.clone()),
        (labels::PROJECT_ID.to_owned(), job.job_info.project_id.to_string()),
        (labels::JOB_ID.to_owned(), job.id.to_string()),
        (labels::ENVIRONMENT_ID.to_owned(), lease.spec.environment_id.clone()),
    ]);
    SuspendedEnvironment {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(driver.held.namespace.clone()),
            labels: Some(labels),
            finalizers: Some(vec![labels::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: SuspendedEnvironmentSpec {
            pool: driver.held.name.clone(),
            pool_uid: driver.held.uid.clone(),
            environment_id: lease.spec.environment_id.clone(),
            expires_at,
            not_after,
            desired_tier: None,
            workspace_path,
            origin: Origin {
                project_id: job.job_info.project_id,
                project_path: lease.spec.project_path.clone(),
                ref_name: lease.spec.ref_name.clone(),
                protected: job.is_protected(),
                commit: job.git_info.sha.chars().take(128).collect(),
                job_id: job.id,
                job_name: lease.spec.job_name.clone(),
                user_id: job.job_info.user_id,
                outcome: match script {
                    ScriptEnd::Success => ScriptOutcome::Succeeded,
                    ScriptEnd::Failure | ScriptEnd::NotEnded => ScriptOutcome::Failed,
                },
                lease: lease.name_any(),
                lease_uid: lease.uid().unwrap_or_default(),
                instance: instance.to_owned(),
                slot,
            },
        },
        status: None,
    }
}

/// Expiry and its ceiling, in whole seconds, from now.
fn times(driver: &Driver) -> (Time, Time) {
    let retention = &driver.settings.spec.retention;
    let now = Timestamp::from_second(clock::now().as_second()).unwrap_or_default();
    let after = |wait: Duration| {
        let wait = SignedDuration::try_from(wait.std()).unwrap_or(SignedDuration::MAX);
        Time(now.checked_add(wait).unwrap_or(Timestamp::MAX))
    };
    (after(retention.default_ttl), after(retention.max_ttl))
}

async fn write_asleep(
    driver: &Driver,
    environment: &SuspendedEnvironment,
    kept: &EnvironmentRecord,
    key: &str,
) -> Result<(), DriveError> {
    if environment.phase() == Phase::Suspended && environment.bound_lease().is_none() {
        // An earlier holder came this far.
        return Ok(());
    }
    let suspended_at = Time(clock::now());
    let place = driver.lease.place().map(|(instance, slot)| (instance.to_owned(), slot));
    resume::write(driver, Point::EnvironmentAsleep, environment, |status| {
        status.revision += u32::from(status.bound_lease.take().is_some());
        status.phase = Some(Phase::Suspended);
        status.tier = Some(Tier::Hot);
        if let Some((instance, slot)) = &place {
            status.instance = Some(instance.clone());
            status.slot = Some(*slot);
        }
        status.moving = None;
        status.environment_key = Some(key.to_owned());
        status.suspended_at = Some(suspended_at.clone());
        status.last_accident = None;
        if let Some(context) = &kept.context {
            status.processes = Some(context.processes);
            status.cwd = Some(context.cwd.clone());
        }
    })
    .await
}

/// The suspend failed on the host. The object stays until the job is over, and is given up then: were it deleted before
/// the log tells of the failure, a next holder would take that for somebody's release.
async fn failed(driver: &Driver, environment: &SuspendedEnvironment, why: String) -> Suspended {
    driver.held.shared.metrics.environment(&driver.held.name, EnvironmentOutcome::SuspendFailed);
    driver.held.shared.events.warning(environment, "SuspendFailed", "Suspend", why.clone()).await;
    Suspended::Failed(why)
}

/// The environment's key.
pub fn key(driver: &Driver) -> Result<String, KeyError> {
    let identity = &driver.settings.identity;
    let environment = driver.lease.spec.environment_id.parse()?;
    Ok(EnvironmentKey { runner_id: identity.runner_id, system_id: identity.system_id.clone(), environment }
        .to_string())
}
