//! SuspendedEnvironments: the driver that expires them, gives them back and frees them from jobs that are gone.
//!
//! Writes of a release, after the object was marked as deleted: (1) the supervisor removes processes, workspace and
//! state, (2) the finalizer goes. Death between them: (1) is done again, and doing it twice is doing it once.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;

use crate::api::SuspendedEnvironment;
use crate::api::condition;
use crate::api::suspended_environment::{Phase, SuspendedEnvironmentStatus, Tier};
use crate::clock;
use crate::deed::Point;
use crate::host::keeper::HostState;
use crate::host::link::JobPath;
use crate::kube_ext::is_conflict;
use crate::pool::book::Urgency;
use crate::pool::{Held, Subject};
use crate::telemetry::EnvironmentOutcome;

pub mod check;
pub mod limits;
pub mod plan;
pub mod sweep;

use plan::{Action, HostWord, InstanceState, Observed};

/// The pause after a step that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Why a step for an environment was not done.
#[derive(Debug, thiserror::Error)]
enum StepError {
    /// The API server refused or could not be asked.
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The host refused or could not be asked.
    #[error("the host: {0}")]
    Host(#[from] crate::host::link::LinkError),
    /// The host is away.
    #[error("the host is not reachable")]
    Away,
}

/// Looks at the environments that have changed or whose time has come, and lets those with something to be done wait
/// for their step.
pub fn look(held: &Held) {
    let names = held.book(|book| book.environment_agenda.take(clock::now()));
    held.shared.metrics.environments_looked_at(&held.name, names.len());
    for name in names {
        let Some(environment) = held.environment(&name) else { continue };
        let observed = observe(held, &environment);
        // While a job is open in it, that job's task writes its status; the end of its lease is news here.
        if observed.lease_is_open && environment.metadata.deletion_timestamp.is_none() {
            continue;
        }
        let plan = plan::plan(&observed);
        let urgency = match plan.action {
            Some(Action::Expire) => Some(Urgency::Due),
            Some(_) => Some(Urgency::Needed),
            None if !observed.is_settled() => None,
            None => {
                let is_said = environment.status.as_ref() == Some(&described(&observed, &plan));
                (!is_said).then_some(Urgency::Told)
            }
        };
        held.book(|book| {
            book.environment_agenda.at(&name, plan.look_again_at);
            if let Some(urgency) = urgency {
                book.add_step(&name, urgency);
            }
        });
        if urgency.is_some() {
            held.steps_due.notify_one();
        }
    }
}

/// Does the steps that wait, the most urgent first and only so many at a time, for as long as the pool is held.
pub async fn work(held: Arc<Held>) {
    loop {
        if held.book(|book| book.steps()) == 0 {
            held.steps_due.notified().await;
            continue;
        }
        let place = held.shared.bounds.environment_steps.enter().await;
        let Some(name) = held.book(|book| book.next_step()) else { continue };
        let Some(environment) = held.environment(&name) else { continue };
        // One that has a step under way is looked at again after it.
        let Some(mut busy) = held.begin(environment.uid(), Subject::Environment(name.clone())) else {
            continue;
        };
        let held_by_task = Arc::clone(&held);
        held.spawn(async move {
            if let Err(error) = step(&held_by_task, &environment).await {
                tracing::warn!(environment = name, %error, "a step for an environment was not done yet");
                busy.again_after(RETRY);
            }
            drop(place);
        });
    }
}

/// Everything a plan for an environment looks at.
pub fn observe<'a>(held: &Held, environment: &'a SuspendedEnvironment) -> Observed<'a> {
    let origin = &environment.spec.origin;
    let id = &environment.spec.environment_id;
    let instance = match held.hosts.watch(&origin.instance).map(|state| state.borrow().clone()) {
        None if held.settings().is_none() => InstanceState::Unknown,
        None => InstanceState::Removed,
        Some(HostState::Connecting) => InstanceState::Unknown,
        Some(state) if state.link().is_some() => InstanceState::Reachable,
        Some(_) => InstanceState::Unreachable,
    };
    // The lease that made it, or one that is bound to it: together with the environment one owner of the slot. Both
    // carry its id.
    let lease_is_open = held.leases_of(id).iter().any(|lease| {
        let is_bound =
            environment.bound_lease().is_some_and(|bound| Some(&bound.uid) == lease.uid().as_ref());
        let is_origin = lease.uid().as_ref() == Some(&origin.lease_uid);
        lease.phase().is_open() && (is_bound || is_origin || lease.place().is_some())
    });
    Observed {
        environment,
        lease_is_open,
        instance,
        word: held.inventories.word(&origin.instance, id),
        now: clock::now(),
    }
}

/// The status with the plan's conditions.
fn described(observed: &Observed<'_>, plan: &plan::Plan) -> SuspendedEnvironmentStatus {
    let environment = observed.environment;
    let mut status = environment.status.clone().unwrap_or_default();
    describe(&mut status, environment.metadata.generation, &plan.findings);
    if observed.word == HostWord::Restarted {
        status.processes = Some(0);
    }
    status
}

/// Puts findings into a status.
pub fn describe(
    status: &mut SuspendedEnvironmentStatus,
    generation: Option<i64>,
    findings: &[condition::Finding],
) {
    // Stalled is there only while it is true, as kstatus reads it.
    if !findings.iter().any(|finding| finding.type_ == condition::STALLED) {
        status.conditions.retain(|known| known.type_ != condition::STALLED);
    }
    condition::merge(&mut status.conditions, findings, generation, clock::now());
    status.observed_generation = generation;
}

async fn step(held: &Held, environment: &SuspendedEnvironment) -> Result<(), StepError> {
    let namespace = environment.namespace().unwrap_or_default();
    let Some(environment) = held.shared.environments.cache.get(&namespace, &environment.name_any()) else {
        return Ok(());
    };
    let observed = observe(held, &environment);
    let plan = plan::plan(&observed);
    match plan.action {
        None => {
            let status = described(&observed, &plan);
            write(held, Point::EnvironmentStatusWritten, &environment, status).await
        }
        Some(action) => act(held, &environment, action).await,
    }
}

async fn act(held: &Held, environment: &SuspendedEnvironment, action: Action) -> Result<(), StepError> {
    let store = &held.shared.environments;
    let events = &held.shared.events;
    let metrics = &held.shared.metrics;
    match action {
        Action::Expire => {
            let note = format!("it expired at {}", environment.expires_at());
            store.delete(held.deed(Point::EnvironmentExpired).await, environment).await?;
            metrics.environment(&held.name, EnvironmentOutcome::Expired);
            events.normal(environment, "Expired", "Expire", note).await;
        }
        Action::Abandon => {
            store.delete(held.deed(Point::EnvironmentAbandoned).await, environment).await?;
            let note = "its job ended before it was put to sleep".to_owned();
            events.warning(environment, "SuspendAbandoned", "Release", note).await;
        }
        Action::Release => {
            let link = held.hosts.link(&environment.spec.origin.instance).ok_or(StepError::Away)?;
            // (1)
            let deed = held.deed(Point::EnvironmentRemoved).await;
            link.release(deed, &environment.spec.environment_id, true).await?;
            held.inventories.note(&environment.spec.origin.instance, &environment.spec.environment_id, None);
            // (2)
            store.remove_finalizer(held.deed(Point::EnvironmentForgotten).await, environment).await?;
            metrics.environment(&held.name, EnvironmentOutcome::Released);
        }
        Action::ForceRelease => {
            store.remove_finalizer(held.deed(Point::EnvironmentForced).await, environment).await?;
            metrics.environment(&held.name, EnvironmentOutcome::ForceReleased);
            let note =
                "released by force: what it keeps on its instance is swept when that answers".to_owned();
            events.warning(environment, "ForceReleased", "Release", note).await;
        }
        Action::Unbind => unbind(held, environment).await?,
        Action::Refreeze => refreeze(held, environment).await?,
    }
    Ok(())
}

/// The job that used it is gone without a word: back to sleep, its expiry as it was.
async fn unbind(held: &Held, environment: &SuspendedEnvironment) -> Result<(), StepError> {
    if held.hosts.link(&environment.spec.origin.instance).is_some() {
        refreeze(held, environment).await?;
    }
    let mut status = environment.status.clone().unwrap_or_default();
    status.phase = Some(Phase::Suspended);
    status.tier = Some(Tier::Hot);
    status.bound_lease = None;
    status.last_accident = Some("the job that used it ended without letting go of it".to_owned());
    write(held, Point::EnvironmentUnbound, environment, status).await
}

async fn refreeze(held: &Held, environment: &SuspendedEnvironment) -> Result<(), StepError> {
    let instance = &environment.spec.origin.instance;
    let id = &environment.spec.environment_id;
    let link = held.hosts.link(instance).ok_or(StepError::Away)?;
    let listed = link.list().await?;
    let Some(found) = listed.iter().find(|listed| listed.environment.environment == *id) else {
        held.inventories.note(instance, id, None);
        return Ok(());
    };
    let job = JobPath { environment: id.clone(), job_id: found.environment.job_id };
    if found.jobs.iter().any(|status| status.record.job_id == job.job_id && status.alive) {
        link.cancel(held.deed(Point::StrayJobStopped).await, &job, false).await?;
    }
    link.suspend(held.deed(Point::EnvironmentRefrozen).await, &job).await?;
    held.inventories.note(instance, id, Some(HostWord::Asleep));
    Ok(())
}

async fn write(
    held: &Held,
    point: Point,
    environment: &SuspendedEnvironment,
    status: SuspendedEnvironmentStatus,
) -> Result<(), StepError> {
    let mut next = environment.clone();
    next.status = Some(status);
    match held.shared.environments.replace_status(held.deed(point).await, &next).await {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
