//! SuspendedEnvironments: the driver that expires them, gives them back and frees them from jobs that are gone.
//!
//! Writes of a release, after the object was marked as deleted: (1) the supervisor removes processes, workspace and
//! state, (2) the finalizer goes. Death between them: (1) is done again, and doing it twice is doing it once.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;

use crate::api::SuspendedEnvironment;
use crate::api::condition;
use crate::api::suspended_environment::{Phase, SuspendedEnvironmentStatus};
use crate::api::usage::UsageStatus;
use crate::clock;
use crate::deed::Point;
use crate::fleet::facts::{Fate, device_of};
use crate::fleet::{cost, tally};
use crate::host::keeper::HostState;
use crate::host::link::JobPath;
use crate::kube_ext::is_conflict;
use crate::pool::book::Urgency;
use crate::pool::{Held, Subject};
use crate::provider::Change;
use crate::telemetry::EnvironmentOutcome;

pub mod adopt;
pub mod check;
pub mod limits;
pub mod moves;
pub mod plan;
pub mod saved;
pub mod surrender;
pub mod sweep;
pub mod tier;

use plan::{Action, HostWord, InstanceState, Observed};

/// The pause after a step that failed.
const RETRY: Duration = Duration::from_secs(2);

/// The pause after a step that waits for something. What ends the wait has the environment looked at at once: a look of the
/// cloud, a host that answers, a slot that is free.
const WAIT: Duration = Duration::from_secs(1);

/// Why a step for an environment was not done.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The API server refused or could not be asked.
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The host refused or could not be asked.
    #[error("the host: {0}")]
    Host(#[from] crate::host::link::LinkError),
    /// The host is away.
    #[error("the host is not reachable")]
    Away,
    /// The cloud refused or could not be asked.
    #[error("the cloud: {0}")]
    Cloud(#[from] crate::provider::CloudError),
    /// It waits for something, such as a slot on an instance that the fleet was asked for.
    #[error("it waits for {0}")]
    Waits(String),
    /// What was kept of its host cannot be read.
    #[error("the environment's saved state cannot be read: {0}")]
    Saved(String),
}

/// Looks at the environments that have changed or whose time has come, and lets those with something to be done wait
/// for their step.
pub fn look(held: &Held) {
    let names = held.book(|book| book.environment_agenda.take(clock::now()));
    held.shared.metrics.environments_looked_at(&held.name, names.len());
    for name in names {
        let Some(environment) = held.environment(&name) else { continue };
        let observed = observe(held, &environment);
        if is_the_jobs(held, &observed) {
            continue;
        }
        let plan = plan::plan(&observed);
        let moving = plan_move(held, &observed, &plan);
        let urgency = match plan.action {
            // Its adoption writes the rest. With a status of another it would be one that was never put to sleep.
            None if environment.is_half_adopted() => None,
            None if moving.as_ref().is_some_and(|(_, plan)| plan.step.is_some()) => Some(Urgency::Needed),
            Some(Action::Expire) => Some(Urgency::Due),
            Some(_) => Some(Urgency::Needed),
            None if !observed.is_settled() => None,
            None => {
                let is_said = environment.status.as_ref() == Some(&described(held, &observed, &plan));
                (!is_said).then_some(Urgency::Told)
            }
        };
        let by_tier = moving.and_then(|(look, plan)| {
            let next = tier::next_change(&environment, look.view(&environment).rules, clock::now());
            plan.look_again_at.into_iter().chain(next).min()
        });
        let look_again_at = plan.look_again_at.into_iter().chain(by_tier).min();
        held.book(|book| {
            book.environment_agenda.at(&name, look_again_at);
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
            match step(&held_by_task, &environment).await {
                Ok(()) => {}
                Err(StepError::Waits(on)) => {
                    tracing::debug!(environment = name, on, "a step for an environment waits");
                    busy.again_after(WAIT);
                }
                Err(error) => {
                    tracing::warn!(environment = name, %error, "a step for an environment was not done yet");
                    busy.again_after(RETRY);
                }
            }
            drop(place);
        });
    }
}

/// While a job is open in it, that job's task writes its status; the end of its lease is news here. Until the job has its
/// slot, and until the environment is whole there, bringing it back is done from here all the same.
fn is_the_jobs(held: &Held, observed: &Observed<'_>) -> bool {
    let is_deleted = observed.environment.metadata.deletion_timestamp.is_some();
    observed.lease_is_open && !is_deleted && !comes_back_for_a_job(held, observed)
}

/// Whether the lease of a job is bound to it and waits in a cloud: for its instance, which may go off and come up again until
/// the job is there, or for it to be Hot, whole on its host, and not on its way to a colder tier.
fn comes_back_for_a_job(held: &Held, observed: &Observed<'_>) -> bool {
    let environment = observed.environment;
    let is_moving = environment.status.as_ref().is_some_and(|status| status.moving.is_some());
    let has_volume = environment.status.as_ref().is_some_and(|status| status.volume.is_some());
    // Its host has forgotten it, and gets it again from what was saved.
    let is_forgotten = has_volume && observed.word == HostWord::Unknown;
    let is_back =
        environment.is_hot() && !is_moving && !is_forgotten && unmounted(held, environment).is_none();
    let bound = environment.bound_lease().and_then(|bound| held.lease(&bound.name));
    let has_slot = bound.is_some_and(|lease| lease.place().is_some());
    environment.phase() == Phase::Resuming && (!is_back || held.fleet.is_cloud() && !has_slot)
}

/// The volume of an environment whose host answers and has not mounted it: the host was restarted. A job that was sent there
/// would be refused.
pub fn unmounted(held: &Held, environment: &SuspendedEnvironment) -> Option<String> {
    let (instance, slot) = environment.place()?;
    held.settings()?.spec.workspace_volume.as_ref()?;
    if held.hosts.link(instance)?.mounts().contains_key(&slot) {
        return None;
    }
    let own = environment.status.as_ref().and_then(|status| status.volume.as_ref());
    own.map(|volume| volume.id.clone()).or_else(|| {
        let facts = held.fleet.facts()?;
        facts.volume_at(instance, &device_of(slot)).map(|volume| volume.id.clone())
    })
}

/// What is due for its tier, where nothing else is due.
fn plan_move(held: &Held, observed: &Observed<'_>, plan: &plan::Plan) -> Option<(moves::Look, tier::Plan)> {
    let environment = observed.environment;
    if plan.action.is_some() || environment.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let is_bound = environment.bound_lease().is_some();
    let look = moves::Look::at(held, environment, is_bound)?;
    let plan = tier::plan(&look.view(environment));
    Some((look, plan))
}

/// Everything a plan for an environment looks at.
pub fn observe<'a>(held: &Held, environment: &'a SuspendedEnvironment) -> Observed<'a> {
    let origin = &environment.spec.origin;
    let id = &environment.spec.environment_id;
    let instance = instance_state(held, environment);
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
        word: environment
            .place()
            .map_or(HostWord::NotAsked, |(instance, _)| held.inventories.word(instance, id)),
        now: clock::now(),
    }
}

fn instance_state(held: &Held, environment: &SuspendedEnvironment) -> InstanceState {
    let Some((instance, _)) = environment.place() else { return InstanceState::None };
    match held.hosts.watch(instance).map(|state| state.borrow().clone()) {
        Some(HostState::Connecting) => InstanceState::Unknown,
        Some(state) if state.link().is_some() => InstanceState::Reachable,
        Some(_) => InstanceState::Unreachable,
        None if held.settings().is_none() => InstanceState::Unknown,
        None if !held.fleet.is_cloud() => InstanceState::Removed,
        None => match held.fleet.facts().map(|facts| facts.fate(instance)) {
            Some(Fate::Stopped | Fate::Stopping) => InstanceState::Stopped,
            Some(Fate::Gone) => InstanceState::Gone,
            Some(Fate::Starting | Fate::Running | Fate::Unseen) | None => InstanceState::Unknown,
        },
    }
}

/// The conditions of an environment.
pub fn findings_of(held: &Held, environment: &SuspendedEnvironment) -> Vec<condition::Finding> {
    let observed = observe(held, environment);
    let mut findings = plan::findings(&observed);
    findings.extend(tier_finding(held, environment));
    findings
}

/// Whether it has the tier it should have, in a pool with a cloud.
fn tier_finding(held: &Held, environment: &SuspendedEnvironment) -> Option<condition::Finding> {
    let look = moves::Look::at(held, environment, environment.bound_lease().is_some())?;
    let view = look.view(environment);
    let tier = environment.tier().as_str();
    Some(match (tier::target(&view), tier::plan(&view).waits_for) {
        (None, None) => condition::Finding::new(
            condition::TIER_REACHED,
            true,
            "AsWished",
            format!("it is at tier {tier}"),
        ),
        (None, Some(on)) => condition::Finding::new(
            condition::TIER_REACHED,
            true,
            "AsWished",
            format!("it is at tier {tier}; it waits for {on}"),
        ),
        (Some(target), on) => {
            let to = target.tier.as_str();
            let on = on.map(|on| format!("; it waits for {on}")).unwrap_or_default();
            let message = format!("it is at tier {tier} and is to be at {to}{on}");
            condition::Finding::new(condition::TIER_REACHED, false, target.why, message)
        }
    })
}

/// The status with the plan's conditions.
fn described(held: &Held, observed: &Observed<'_>, plan: &plan::Plan) -> SuspendedEnvironmentStatus {
    let environment = observed.environment;
    let mut status = environment.status.clone().unwrap_or_default();
    let mut findings = plan.findings.clone();
    findings.extend(tier_finding(held, environment));
    describe(&mut status, environment.metadata.generation, &findings);
    status.cost_per_hour = cost_of(held, environment);
    if observed.word == HostWord::Restarted {
        status.processes = Some(0);
    }
    status
}

/// Puts what follows from an environment's status into it: conditions, and what it costs.
pub fn describe_in_full(held: &Held, environment: &mut SuspendedEnvironment) {
    let findings = findings_of(held, environment);
    let cost = cost_of(held, environment);
    let generation = environment.metadata.generation;
    if let Some(status) = environment.status.as_mut() {
        describe(status, generation, &findings);
        status.cost_per_hour = cost;
    }
}

/// What an environment in a cloud costs in an hour.
fn cost_of(held: &Held, environment: &SuspendedEnvironment) -> Option<String> {
    let (facts, settings) = (held.fleet.facts()?, held.settings()?);
    let hour = tally::environment_hour(environment, &facts, &settings.spec, &held.shared.prices);
    Some(cost::dollars(hour))
}

/// What an environment in a cloud has used up to now.
fn usage_of(held: &Held, environment: &SuspendedEnvironment) -> Option<UsageStatus> {
    let (facts, settings) = (held.fleet.facts()?, held.settings()?);
    tally::environment_usage(environment, &facts, &settings.spec, &held.shared.prices, clock::now())
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
    // It was looked at before: a job may have begun in it meanwhile.
    if is_the_jobs(held, &observed) {
        return Ok(());
    }
    let plan = plan::plan(&observed);
    match (plan.action, plan_move(held, &observed, &plan)) {
        (Some(action), _) => act(held, &environment, action).await,
        (None, _) if environment.is_half_adopted() => Ok(()),
        (None, Some((look, tier::Plan { step: Some(step), .. }))) => {
            moves::act(held, &environment, &look, step).await
        }
        (None, _) => {
            let status = described(held, &observed, &plan);
            if environment.status.as_ref() == Some(&status) {
                return Ok(());
            }
            write(held, Point::EnvironmentStatusWritten, &environment, status).await
        }
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
        Action::Release => match moves::Look::at(held, environment, false) {
            Some(look) => surrender(held, environment, &look).await?,
            None => {
                let Some((instance, _)) = environment.place() else { return Err(StepError::Away) };
                release_on_host(held, environment, instance).await?;
                forget(held, environment).await?;
            }
        },
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

/// (1)
async fn release_on_host(
    held: &Held,
    environment: &SuspendedEnvironment,
    instance: &str,
) -> Result<(), StepError> {
    let link = held.hosts.link(instance).ok_or(StepError::Away)?;
    let deed = held.deed(Point::EnvironmentRemoved).await;
    link.release(deed, &environment.spec.environment_id, true).await?;
    held.inventories.note(instance, &environment.spec.environment_id, None);
    Ok(())
}

/// (2)
async fn forget(held: &Held, environment: &SuspendedEnvironment) -> Result<(), StepError> {
    let deed = held.deed(Point::EnvironmentForgotten).await;
    held.shared.environments.remove_finalizer(deed, environment).await?;
    held.shared.metrics.environment(&held.name, EnvironmentOutcome::Released);
    Ok(())
}

/// One step of giving back what an environment keeps in a cloud.
async fn surrender(
    held: &Held,
    environment: &SuspendedEnvironment,
    look: &moves::Look,
) -> Result<(), StepError> {
    let name = environment.name_any();
    let instance = environment.place().map(|(instance, _)| instance.to_owned()).unwrap_or_default();
    let uses = held.book(|book| book.occupancy.uses_on(&instance));
    let is_alone = uses.values().all(|slot| {
        !slot.has_job && !slot.is_in_doubt && slot.environments.iter().all(|known| *known == name)
    });
    // What it left there before it went elsewhere is gone; whether it is there now the host's list says.
    let on_host = match held.inventories.word(&instance, &environment.spec.environment_id) {
        HostWord::Unknown => false,
        HostWord::Asleep | HostWord::Restarted | HostWord::Active => true,
        HostWord::NotAsked => environment.place().is_some() && environment.is_hot(),
    };
    let change = match surrender::next(&look.view(environment), is_alone, on_host) {
        surrender::Step::Wait(on) => {
            held.fleet.wake();
            return Err(StepError::Waits(on));
        }
        surrender::Step::Done => return forget(held, environment).await,
        surrender::Step::Host => return release_on_host(held, environment, &instance).await,
        surrender::Step::Unmount => return moves::unmount(held, environment, look).await,
        surrender::Step::FreeVolume { volume, keys } => Change::Untag { ids: vec![volume], keys },
        surrender::Step::LeaveInstance { instance, key } => {
            Change::Untag { ids: vec![instance], keys: vec![key] }
        }
        surrender::Step::EndInstance { instance } => Change::Terminate { instance },
        surrender::Step::Detach { volume, instance } => {
            Change::DetachVolume { volume, instance, force: false }
        }
        surrender::Step::DeleteVolume { volume } => {
            return moves::delete_volume(held, environment, volume).await;
        }
        surrender::Step::DeleteSnapshot { snapshot } => {
            return moves::delete_snapshot(held, environment, snapshot).await;
        }
    };
    moves::change_cloud(held, &name, &change).await.map(|_| ())
}

/// The job that used it is gone without a word: back to sleep, its expiry as it was.
async fn unbind(held: &Held, environment: &SuspendedEnvironment) -> Result<(), StepError> {
    let place = environment.place().filter(|_| environment.is_hot());
    if place.is_some_and(|(instance, _)| held.hosts.link(instance).is_some()) {
        refreeze(held, environment).await?;
    }
    let mut status = environment.status.clone().unwrap_or_default();
    status.phase = Some(Phase::Suspended);
    status.bound_lease = None;
    status.last_accident = Some("the job that used it ended without letting go of it".to_owned());
    write(held, Point::EnvironmentUnbound, environment, status).await
}

async fn refreeze(held: &Held, environment: &SuspendedEnvironment) -> Result<(), StepError> {
    let (instance, _) = environment.place().ok_or(StepError::Away)?;
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
    let usage = usage_of(held, environment).or_else(|| status.usage.clone());
    next.status = Some(SuspendedEnvironmentStatus { usage, ..status });
    match held.shared.environments.replace_status(held.deed(point).await, &next).await {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
