//! The tier an environment should have, and the next step on the way there. Pure.
//!
//! The way is read off the world each time: what the cloud shows of instance, volume and snapshot, what the host says,
//! what the status claims. So each step can be done again, and a change of mind half way (a job names the key while a
//! snapshot is being taken) needs no undoing: the next look goes the other way from where things are.
//!
//! Writes of a move: (1) the claim in the status, (2) the host's record in a Secret, (3) coming back: the slot in the
//! status, then cloud and host one thing at a time, (5) the status with what holds the environment now. Death after any
//! of them: the next holder reads the same world and goes on.

use jiff::{SignedDuration, Timestamp};

use crate::api::SuspendedEnvironment;
use crate::api::suspended_environment::{Phase, Tier};
use crate::fleet::facts::{Facts, Fate, Found, device_of};
use crate::provider::{InstanceState, Snapshot, SnapshotState, Volume, VolumeState, tags};

mod detach;
mod rescue;
#[cfg(test)]
mod simulation;
mod snapshot;
mod step;
mod stop;
#[cfg(test)]
mod tests;
mod turn;
mod wake;
mod wish;

pub use snapshot::leftover;
pub use step::{Plan, Settled, Step};
pub use wish::{DEADLINES, Deadline, Rules, Target, deadline, next_change, target};

/// How often the other slots of an instance are looked at while one waits for them.
const OTHERS_INTERVAL: SignedDuration = SignedDuration::from_secs(5);

/// All that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The environment.
    pub environment: &'a SuspendedEnvironment,
    /// What the pool lets it do.
    pub rules: Rules<'a>,
    /// What the cloud shows.
    pub facts: &'a Facts,
    /// What its host says, where it is on one that answers.
    pub host: Host<'a>,
    /// Whether the open lease of a job waits for it, or is in it.
    pub is_bound: bool,
    /// Whether it is one of those that have to make room.
    pub is_evicted: bool,
    /// Whether its instance is about to be taken away.
    pub is_leaving: bool,
    /// Whether no instance is to be had where its volume is.
    pub is_zone_dry: bool,
    /// Whether every other slot of its instance is free, or kept by an environment that is due to stop too.
    pub may_stop: bool,
    /// Whether the cloud has had time to show what was last done about it.
    pub is_fresh: bool,
    /// Whether nothing is under way about its instance and its slot there, and the cloud has had time to show what was last
    /// done about them.
    pub is_place_at_rest: bool,
    /// Now.
    pub now: Timestamp,
}

/// What its host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host<'a> {
    /// It is on no instance, or on one that does not answer.
    Away,
    /// It answers.
    Answers {
        /// Whether it has the environment's record; `None` when it was not asked.
        has_record: Option<bool>,
        /// The volume mounted at the environment's slot.
        mounted: Option<&'a str>,
    },
}

/// Decides the next step.
pub fn plan(view: &View<'_>) -> Plan {
    let environment = view.environment;
    match environment.phase() {
        // Its job's end comes first; what is released or lost is not moved.
        Phase::Suspending | Phase::Releasing | Phase::Lost => return Plan::rest(),
        Phase::InUse if environment.tier() == Tier::Hot => return Plan::rest(),
        Phase::InUse | Phase::Suspended | Phase::Demoting | Phase::Promoting | Phase::Resuming => {}
    }
    if let Some(rescued) = rescue::rescue(view) {
        return rescued;
    }
    let moving = environment.status.as_ref().and_then(|status| status.moving.clone());
    // Its instance stopped without its move: one that was given up, or somebody did it by hand. It is started for it
    // as for any that is Stopped.
    if moving.is_none() && environment.tier() == Tier::Hot && is_off(view) {
        return Plan::step(Step::Settle(Settled { tier: Tier::Stopped, ..as_it_is(view) }));
    }
    // What an earlier tier left goes before anything else is begun: later nobody would know it.
    if let Some(step) = leftover(view).filter(|_| !view.is_bound || wake::is_to_leave_its_zone(view)) {
        return Plan::step(step);
    }
    // Past the point where it can stay, whoever has changed their mind: the move is finished first.
    let target = target(view);
    if target.is_none_or(|target| target.tier < Tier::Detached)
        && let Some(first) = turn::first(view)
    {
        return first;
    }
    if target.is_none_or(|target| target.tier != Tier::Hot)
        && let Some(plan) = turn_back(view)
    {
        return plan;
    }
    let Some(target) = target else { return settle_down(view, moving.is_some()) };
    let Some(moving) = moving.filter(|moving| moving.to == target.tier) else {
        return begin(view, target);
    };
    if let Some(over) = out_of_time(view, &moving, target) {
        return over;
    }
    let mut plan = match target.tier {
        Tier::Hot => wake::wake(view),
        Tier::Stopped => stop::stop(view),
        Tier::Detached => detach::detach(view),
        Tier::Snapshotted => snapshot::snapshot(view),
    };
    let ends_at = moving.since.0.checked_add(deadline(target.tier).within).ok();
    plan.look_again_at = plan.look_again_at.into_iter().chain(ends_at).min();
    plan
}

/// It was on its way back to an instance and is to go there no more: nothing of it stays there. Until then the place is
/// its own, so that no job gets a slot with its workspace.
fn turn_back(view: &View<'_>) -> Option<Plan> {
    let environment = view.environment;
    if environment.tier() < Tier::Detached || environment.place().is_none() {
        return None;
    }
    Some(match own_volume(view) {
        _ if !view.is_fresh => Plan::wait("the cloud to show what was begun"),
        Some(volume) if volume.attachment.is_some() => detach::detach(view),
        Some(_) | None => Plan::step(Step::Settle(as_it_is(view))),
    })
}

/// It is where it should be: a move that is over is wiped, and what a volume needs is seen to.
fn settle_down(view: &View<'_>, is_moving: bool) -> Plan {
    let environment = view.environment;
    if is_moving {
        let is_hot = environment.tier() == Tier::Hot;
        let stops = is_hot.then(|| about_to_stop(view)).flatten();
        return stops.unwrap_or_else(|| Plan::step(Step::Settle(as_it_is(view))));
    }
    let settled = as_it_is(view);
    match (environment.tier(), view.host) {
        // It was called back too late for its instance.
        (Tier::Hot, _) if settled.tier != Tier::Hot => Plan::step(Step::Settle(settled)),
        (Tier::Hot, Host::Answers { has_record: Some(true), .. }) if view.rules.has_volumes => {
            mount(view).unwrap_or_else(|| detach::save(view))
        }
        // It was called back when its host had forgotten it already: the host gets it again.
        (Tier::Hot, Host::Answers { has_record: Some(false), mounted: Some(mounted) })
            if own_volume(view).is_some_and(|volume| volume.id == mounted) =>
        {
            Plan::step(Step::Import)
        }
        (Tier::Hot, Host::Answers { .. }) => mount(view).unwrap_or_else(Plan::rest),
        (Tier::Stopped, _) => wake::awake_with_others(view),
        (Tier::Hot, Host::Away) | (Tier::Detached | Tier::Snapshotted, _) => Plan::rest(),
    }
}

/// It was called back, and its instance may go off all the same: a job that began there now would go off with it.
fn about_to_stop(view: &View<'_>) -> Option<Plan> {
    let (instance, _) = view.environment.place()?;
    if !view.is_place_at_rest {
        return Some(Plan::wait(format!("what was begun about instance {instance} to be seen")));
    }
    let is_stopping = view.facts.fate(instance) == Fate::Stopping;
    is_stopping.then(|| Plan::wait(format!("instance {instance} to be stopped, and then started")))
}

/// Its host was restarted: the workspace is on a volume that nothing has mounted again.
fn mount(view: &View<'_>) -> Option<Plan> {
    match view.host {
        Host::Answers { mounted: None, .. } if view.rules.has_volumes => {}
        Host::Answers { .. } | Host::Away => return None,
    }
    let Some(volume) = own_volume(view) else {
        let is_known = view.environment.status.as_ref().is_some_and(|status| status.volume.is_some());
        return is_known.then(|| Plan::wait("its volume to be seen"));
    };
    Some(match &volume.attachment {
        Some(_) if is_on_place(view, volume) => Plan::step(Step::Mount { volume: volume.id.clone() }),
        // It was about to be moved from here when it was called back.
        None if view.is_fresh => Plan::step(Step::Attach { volume: volume.id.clone() }),
        Some(_) | None => Plan::wait(format!("volume {} to be attached", volume.id)),
    })
}

fn is_off(view: &View<'_>) -> bool {
    let instance = view.environment.place().and_then(|(instance, _)| view.facts.instances.get(instance));
    // A member that stops is about to be replaced: it goes with its group's consent only.
    instance.is_some_and(|known| known.state == InstanceState::Stopped && known.member.is_none())
}

/// The same, without a change of what it owns; Stopped where its instance is.
fn as_it_is(view: &View<'_>) -> Settled {
    let status = view.environment.status.clone().unwrap_or_default();
    let tier = match view.environment.tier() {
        Tier::Hot if is_off(view) => Tier::Stopped,
        tier => tier,
    };
    Settled {
        tier,
        volume: status.volume.map(|volume| volume.id),
        snapshot: status.snapshot.map(|snapshot| snapshot.id),
        keeps_place: view.environment.place().is_some() && view.environment.tier() < Tier::Detached,
        ends_move: true,
        is_rescue: false,
    }
}

fn begin(view: &View<'_>, target: Target) -> Plan {
    // Several slots share the instance's fate: it is stopped when all of them may.
    if target.tier == Tier::Stopped && !view.may_stop {
        return wait_for_others(view, "the other slots of its instance to be free or asleep for as long");
    }
    // One that was given up is left alone for a while, unless a job waits.
    let rested = view.environment.status.as_ref().and_then(|status| status.rest_until.as_ref());
    if let Some(until) = rested.filter(|until| until.0 > view.now && !view.is_bound) {
        let mut plan = Plan::wait(format!("{}, since the last try was given up", until.0));
        plan.look_again_at = Some(until.0);
        return plan;
    }
    Plan::step(Step::Claim(target))
}

/// What happens in other slots is no news of this environment's own: it is looked at again by itself.
fn wait_for_others(view: &View<'_>, on: impl Into<String>) -> Plan {
    Plan { look_again_at: view.now.checked_add(OTHERS_INTERVAL).ok(), ..Plan::wait(on) }
}

fn out_of_time(
    view: &View<'_>,
    moving: &crate::api::suspended_environment::Moving,
    target: Target,
) -> Option<Plan> {
    let row = deadline(target.tier);
    // A job has a time-out of its own, at which it lets go.
    let is_over = view.now.duration_since(moving.since.0) >= row.within && !view.is_bound;
    if !is_over {
        return None;
    }
    // A place that did not work out is left in order, where that can be done.
    let is_attached = own_volume(view).is_some_and(|volume| is_on_place(view, volume));
    let is_reachable = matches!(view.host, Host::Answers { .. });
    if view.environment.tier() >= Tier::Detached && is_attached && is_reachable {
        return Some(detach::detach(view));
    }
    let why = format!("it was not at tier {} within {} minutes", target.tier.as_str(), row.within.as_mins());
    Some(Plan::step(Step::GiveUp { why, again: moving.retries + 1 < row.tries }))
}

/// The volume it owns: by its status, by the volume's tags, or by the slot it is in.
pub fn own_volume<'a>(view: &View<'a>) -> Option<&'a Volume> {
    let environment = view.environment;
    let by_status = environment.status.as_ref().and_then(|status| status.volume.as_ref());
    if let Some(known) = by_status
        && let Found::There(volume) = view.facts.volume(&known.id)
    {
        return Some(volume);
    }
    let id = &environment.spec.environment_id;
    let is_usable = |volume: &&Volume| match volume.state {
        VolumeState::Creating | VolumeState::Available | VolumeState::InUse => true,
        VolumeState::Deleting | VolumeState::Failed => false,
    };
    if let Some(volume) = view.facts.volumes.of_environment(id).find(is_usable) {
        return Some(volume);
    }
    // One that has just been put to sleep lies on the volume of its slot, which nothing says yet but the slot. Once it is
    // said, what else was ever made for that slot is not its own.
    let is_unsaid = environment.tier() < Tier::Detached && by_status.is_none();
    let (instance, slot) = environment.place().filter(|_| is_unsaid)?;
    let attached = view.facts.volume_at(instance, &device_of(slot));
    attached.filter(is_usable).or_else(|| {
        view.facts.volumes.values().filter(is_usable).find(|volume| {
            volume.tags.get(tags::SLOT_OF).is_some_and(|known| known == instance)
                && volume.tags.get(tags::SLOT) == Some(&slot.to_string())
                && !volume.tags.contains_key(tags::ENVIRONMENT)
        })
    })
}

/// The snapshot it owns: by its status, or by the snapshot's tags; of several the newest.
pub fn own_snapshot<'a>(view: &View<'a>) -> Option<&'a Snapshot> {
    let known = view.environment.status.as_ref().and_then(|status| status.snapshot.as_ref());
    if let Some(known) = known
        && let Found::There(snapshot) = view.facts.snapshot(&known.id)
    {
        return Some(snapshot);
    }
    let id = &view.environment.spec.environment_id;
    let whole = view.facts.snapshots.of_environment(id).filter(|known| known.state != SnapshotState::Failed);
    whole.max_by_key(|known| known.started_at)
}

fn is_on_place(view: &View<'_>, volume: &Volume) -> bool {
    view.environment.place().is_some_and(|(instance, _)| {
        volume.attachment.as_ref().is_some_and(|known| known.instance == instance && known.is_attached)
    })
}
