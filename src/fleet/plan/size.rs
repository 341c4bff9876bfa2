//! How many instances there are. Pure; the arithmetic is `scale`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;

use super::{Plan, Report, Spent, Step, given_up, is_in_service, lifecycle, spent};
use crate::api::runner_pool::GrowWith;
use crate::fleet::scale::{self, Bounds, Demand, Stage, Unit, Waiting, Wake};
use crate::fleet::view::{Use, View};
use crate::provider::{Change, Group, Instance, InstanceState, Lifecycle, SnapshotState, tags};

/// Makes the group larger or smaller.
pub fn resize(view: &View<'_>, plan: &mut Plan) {
    let Some(group) = &view.facts.group else { return };
    let units: Vec<Unit> =
        view.facts.instances.values().filter_map(|instance| unit(view, plan, instance)).collect();
    let kept = view.facts.instances.values().filter(|instance| is_kept_running(instance)).count();
    let bounds = Bounds {
        max_instances: if view.pool.is_deleting { 0 } else { view.pool.max_instances },
        capacity: view.pool.capacity,
        group_min: group.min,
        group_max: group.max,
        desired: group.desired,
        extra_running: u32::try_from(kept).unwrap_or(u32::MAX),
        may_launch: if view.is_under_way(&group.name) { 0 } else { view.may_launch },
    };
    let wakes = wakes(view, plan).into_iter();
    let (dry, wakes): (Vec<Wake>, Vec<Wake>) = wakes.partition(|wake| is_dry(view, &units, wake));
    plan.dry_zones = found_dry(view, &dry);
    let demand = Demand { waiting: if view.pool.is_deleting { 0 } else { view.waiting }, wakes };
    let mut scale = scale::scale(&units, &demand, &view.policy, &bounds, view.now);
    for Wake { environment, zone, .. } in dry {
        scale.waits.insert(0, Waiting::ZoneGetsNone { environment, zone: zone.unwrap_or_default() });
    }
    if !view.pool.is_deleting {
        give_reasons(view, group, plan, &mut scale);
    }
    if let Some(at) = scale.look_again_at {
        plan.look_at(at);
    }
    for id in &scale.shrink {
        let told_at = view.memory.told_to_go.get(id);
        if told_at.is_some_and(|at| view.now.duration_since(*at) < view.pool.deletion_retry) {
            continue;
        }
        plan.open.remove(id);
        plan.add(view, id, vec![Step::Cloud(Change::TerminateMember { instance: id.clone() })]);
    }
    let is_lowered = scale.desired > group.desired && view.pool.grow_with == GrowWith::SetDesiredCapacity;
    if !scale.grow.is_empty() || is_lowered {
        plan.add(view, &group.name, grow(view, &scale));
        plan.is_expecting = true;
    }
    let launching = units.iter().filter(|unit| unit.stage == Stage::Launching).count();
    let asked_for = u32::try_from(scale.grow.len()).unwrap_or(u32::MAX);
    let coming = u32::try_from(launching).unwrap_or(u32::MAX).saturating_add(asked_for);
    // Those that launch are among those that run already.
    let room = bounds.max_instances.min(group.max).saturating_sub(running(view)).saturating_sub(asked_for);
    let may_ask = if view.policy.preemptive { 0 } else { room };
    plan.growth = if view.pool.is_deleting {
        0
    } else {
        // With a preemptive policy no job is asked for before an idle slot is there.
        let awaited = if view.policy.preemptive { 0 } else { coming };
        awaited.saturating_add(may_ask).saturating_mul(view.pool.capacity)
    };
    plan.scale = scale;
}

/// Why nothing comes of what was asked for. What is known of an instance that is gone by now is worth telling for as long as
/// the next one may take.
fn give_reasons(view: &View<'_>, group: &Group, plan: &Plan, scale: &mut scale::Scale) {
    let mut reasons: Vec<Waiting> = plan.report.iter().filter_map(Report::given_up).collect();
    let lasts = view.pool.ready_timeout.checked_mul(2).unwrap_or(SignedDuration::MAX);
    let known = view.memory.given_up.as_ref().filter(|known| view.now.duration_since(known.at) < lasts);
    if let Some(known) = known.filter(|_| reasons.is_empty() && scale.is_short()) {
        reasons.push(known.wait.clone());
    }
    if let Some(error) = group.launch_failure.clone().filter(|_| group.desired > 0) {
        reasons.insert(0, Waiting::LaunchesFail { error });
    }
    scale.waits.splice(0..0, reasons);
}

/// Environments that come back, with those for which a slot is free already: they will have it in a moment.
fn wakes(view: &View<'_>, plan: &Plan) -> Vec<Wake> {
    let mut taken: BTreeSet<(String, u32)> = BTreeSet::new();
    let mut offer = |wake: &Wake| {
        let offered = plan.open.keys().find(|id| {
            let place = ((*id).clone(), wake.slot);
            let zone = view.facts.instances.get(*id).map(|instance| &instance.zone);
            let is_in_zone = wake.zone.is_none() || wake.zone.as_ref() == zone;
            let is_kept = view.stand(id).slots.contains_key(&wake.slot) || view.places.contains(&place);
            is_in_zone && !is_kept && !taken.contains(&place)
        });
        offered.is_some_and(|id| taken.insert((id.clone(), wake.slot)))
    };
    view.wakes.iter().map(|wake| Wake { has_place: wake.has_place || offer(wake), ..wake.clone() }).collect()
}

/// A group whose zone is not ours to choose keeps its zones even: once so many free members have come elsewhere, none
/// will come in the zone of a volume, and more would only cost.
const ENOUGH_ELSEWHERE: usize = 2;

/// Whether no instance is to be had in the zone of an environment's volume: the cloud has said so, or none comes there.
fn is_dry(view: &View<'_>, units: &[Unit], wake: &Wake) -> bool {
    let Some(zone) = wake.zone.as_ref().filter(|_| !wake.has_place) else { return false };
    let is_coming = |unit: &Unit| unit.zone == *zone && unit.stage == Stage::Launching;
    if view.pool.grow_with == GrowWith::LaunchInstances {
        return is_dry_of_late(view, zone) && !units.iter().any(is_coming);
    }
    let is_free =
        |unit: &&Unit| !unit.is_spent && unit.jobs == 0 && unit.held == 0 && unit.stage != Stage::Leaving;
    let (here, elsewhere): (Vec<&Unit>, Vec<&Unit>) =
        units.iter().filter(is_free).partition(|unit| unit.zone == *zone);
    here.is_empty() && (is_dry_of_late(view, zone) || elsewhere.len() >= ENOUGH_ELSEWHERE)
}

/// Zones of these environments that are to be remembered as dry. Nothing wants the members elsewhere that have shown it any
/// more, and they go: without a memory others would be launched to show it again, for as long as a snapshot takes.
fn found_dry(view: &View<'_>, dry: &[Wake]) -> BTreeSet<String> {
    if view.pool.grow_with == GrowWith::LaunchInstances {
        // The cloud's own word, which costs nothing to ask for again.
        return BTreeSet::new();
    }
    let zones = dry.iter().filter_map(|wake| Some((wake.environment.as_str(), wake.zone.as_ref()?)));
    let zones: BTreeMap<&str, &String> = zones.collect();
    let leaving = view.facts.snapshots.values().filter(|known| known.state != SnapshotState::Failed);
    let leaving = leaving.filter_map(|known| known.tags.get(tags::ENVIRONMENT));
    let stay_dry = leaving.filter_map(|environment| zones.get(environment.as_str()));
    let are_news = zones.values().filter(|zone| !is_dry_of_late(view, zone));
    stay_dry.chain(are_news).map(|zone| (*zone).clone()).collect()
}

/// Instances that count against the pool's limit: members that are no warm ones, and others that run.
pub fn running(view: &View<'_>) -> u32 {
    let counted =
        view.facts.instances.values().filter(|instance| is_member(instance) || is_kept_running(instance));
    u32::try_from(counted.count()).unwrap_or(u32::MAX)
}

fn is_member(instance: &Instance) -> bool {
    !instance.state.is_gone()
        && match lifecycle(instance) {
            Some(
                Lifecycle::Launching
                | Lifecycle::InService
                | Lifecycle::Terminating
                | Lifecycle::TerminatingWait
                | Lifecycle::Retained
                | Lifecycle::Detaching
                | Lifecycle::Standby,
            ) => true,
            Some(Lifecycle::Warmed | Lifecycle::WarmedTerminatingWait | Lifecycle::Gone) | None => false,
        }
}

fn is_kept_running(instance: &Instance) -> bool {
    let is_member = is_member(instance);
    let is_warm = instance.member.is_some() && !is_member;
    match instance.state {
        InstanceState::Pending | InstanceState::Running => !is_member && !is_warm,
        InstanceState::Stopping | InstanceState::Stopped => false,
        InstanceState::ShuttingDown | InstanceState::Terminated => false,
    }
}

fn grow(view: &View<'_>, scale: &scale::Scale) -> Vec<Step> {
    let group = view.pool.group.to_owned();
    match view.pool.grow_with {
        GrowWith::SetDesiredCapacity => vec![Step::Cloud(Change::SetDesired { group, to: scale.desired })],
        GrowWith::LaunchInstances => {
            let mut zones: Vec<(Option<String>, u32)> = Vec::new();
            for zone in &scale.grow {
                // A group of several zones takes no launch without one: the emptiest is chosen.
                let zone = &zone.clone().or_else(|| emptiest(view, &zones));
                match zones.iter_mut().find(|(known, _)| known == zone) {
                    Some((_, count)) => *count += 1,
                    None => zones.push((zone.clone(), 1)),
                }
            }
            let epoch = view.pool.epoch.to_string();
            let launch = |(number, (zone, count)): (usize, (Option<String>, u32))| {
                let order = view.memory.orders.to_string();
                let token = tags::token(&[view.pool.uid, "launch", &epoch, &order, &number.to_string()]);
                Step::Cloud(Change::Launch { group: group.clone(), count, zone, token })
            };
            zones.into_iter().enumerate().map(launch).collect()
        }
    }
}

/// How long a zone that had no capacity is left for others.
const DRY_FOR: SignedDuration = SignedDuration::from_mins(5);

fn emptiest(view: &View<'_>, asked: &[(Option<String>, u32)]) -> Option<String> {
    let group = view.facts.group.as_ref()?;
    let members = |zone: &String| {
        let there =
            view.facts.instances.values().filter(|known| is_member(known) && known.zone == *zone).count();
        let asked = asked.iter().filter(|(known, _)| known.as_ref() == Some(zone)).map(|(_, count)| *count);
        u32::try_from(there).unwrap_or(u32::MAX).saturating_add(asked.sum())
    };
    // One that had no capacity of late comes last.
    group
        .zones
        .iter()
        .min_by_key(|zone| (is_dry_of_late(view, zone), members(zone), (*zone).clone()))
        .cloned()
}

fn is_dry_of_late(view: &View<'_>, zone: &String) -> bool {
    view.memory.dry_zones.get(zone).is_some_and(|at| view.now.duration_since(*at) < DRY_FOR)
}

fn unit(view: &View<'_>, plan: &mut Plan, instance: &Instance) -> Option<Unit> {
    let stand = view.stand(&instance.id);
    let lifecycle = lifecycle(instance)?;
    if instance.state.is_gone() {
        return None;
    }
    let worn = spent(view, instance, &stand);
    let id = || instance.id.clone();
    let given = match &worn {
        Some(Spent::NotReadyInTime(why)) => Some(Waiting::NotReady { instance: id(), why: why.clone() }),
        Some(Spent::NotReachable) => Some(Waiting::Unreachable { instance: id() }),
        Some(Spent::Uses | Spent::Age | Spent::AnnouncedToGo) | None => None,
    };
    plan.report.extend(given.map(|wait| Report::GivenUp { wait }));
    let stage = match lifecycle {
        Lifecycle::Launching => Stage::Launching,
        Lifecycle::InService if is_in_service(instance) && plan.open.contains_key(&instance.id) => {
            Stage::Ready
        }
        // Its protection is on the way, and then it is open: another in its place would be one too many.
        Lifecycle::InService
            if stand.is_ready() && instance.member.as_ref().is_some_and(|member| !member.is_protected) =>
        {
            Stage::Launching
        }
        Lifecycle::InService if stand.is_ready() || view.memory.were_ready.contains(&instance.id) => {
            Stage::Unready
        }
        Lifecycle::InService => Stage::Launching,
        Lifecycle::Terminating | Lifecycle::TerminatingWait | Lifecycle::Retained | Lifecycle::Detaching => {
            Stage::Leaving
        }
        Lifecycle::Standby => Stage::Unready,
        Lifecycle::Warmed | Lifecycle::WarmedTerminatingWait | Lifecycle::Gone => return None,
    };
    let closed = plan
        .open
        .get(&instance.id)
        .map_or(0, |closed| closed.iter().filter(|slot| !stand.slots.contains_key(slot)).count());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let jobs = stand.slots.values().filter(|slot| slot.has_job).count();
    // What is in doubt waits for the word of its host. From one that is given up none will come: it ends with it.
    let is_given_up = given_up(view, instance, &stand).is_some();
    let ends_with_it = |slot: &Use| is_given_up && slot.is_in_doubt && slot.environments.is_empty();
    let is_held = |slot: &&Use| !slot.has_job && !ends_with_it(slot);
    let held = stand.slots.values().filter(is_held).count();
    let stage =
        if stage == Stage::Ready && closed > 0 && stand.is_free() && closed >= view.pool.capacity as usize {
            // Its volumes are on their way.
            Stage::Launching
        } else {
            stage
        };
    Some(Unit {
        id: instance.id.clone(),
        zone: instance.zone.clone(),
        slots: view.pool.capacity,
        jobs: count(jobs),
        held: count(held),
        stage,
        idle_since: view.memory.idle_since.get(&instance.id).copied(),
        is_spent: worn.is_some() || view.pool.is_deleting,
        launched_at: instance.launched_at.unwrap_or(view.now),
    })
}
