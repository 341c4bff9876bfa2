//! Instances of sleeping environments: out of the group, stopped, started again, ended when nothing needs them. Pure.
//!
//! The order is what keeps them alive: marked, taken out of the group, not listed any more, and only then stopped. A
//! stopped member would be replaced at once.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{Plan, Report, Step, lifecycle};
use crate::api::runner_pool::StopMode;
use crate::fleet::view::{Stand, View};
use crate::provider::{Change, Group, Instance, InstanceState, Lifecycle, tags};

/// Stops, starts and ends instances.
pub fn stop_and_start(view: &View<'_>, plan: &mut Plan) {
    let mut running = super::size::running(view);
    for instance in view.facts.instances.values().filter(|instance| !instance.state.is_gone()) {
        let stand = view.stand(&instance.id);
        match (lifecycle(instance), instance.state) {
            (Some(Lifecycle::InService), _) if stand.environments().any(|known| known.is_stopped) => {
                take_out_again(view, plan, instance);
            }
            (Some(Lifecycle::InService), InstanceState::Running) if stand.may_stop() => {
                take_out(view, plan, instance, &stand);
            }
            (None, InstanceState::Running) if stand.is_free() => end(view, plan, instance, &stand),
            (None, InstanceState::Running) => {
                mark_slots(view, plan, instance, &stand);
                // What is on it is to be written out first, so it is waited for; not for one that does not answer.
                if stand.may_stop() && stand.was_asked() {
                    stop(view, plan, instance);
                }
            }
            (None, InstanceState::Stopped) if stand.is_free() => end(view, plan, instance, &stand),
            (None, InstanceState::Stopped) => {
                let is_wanted = stand.environments().any(|known| known.is_wanted);
                let rests = is_wanted && rests_after_a_failed_boot(view, plan, instance);
                if is_wanted && !rests && running < view.pool.max_instances {
                    running += 1;
                    let start = Change::Start { instance: instance.id.clone() };
                    plan.add(view, &instance.id, vec![Step::Cloud(start)]);
                }
            }
            (None, InstanceState::Pending | InstanceState::Stopping) | (Some(_), _) => {}
            (None, InstanceState::ShuttingDown | InstanceState::Terminated) => {}
        }
    }
}

/// How long one that went off as soon as it was started is left alone.
const REBOOT_PAUSE: SignedDuration = SignedDuration::from_secs(30);

/// Whether an instance went off as soon as it was started, and is not started again yet.
fn rests_after_a_failed_boot(view: &View<'_>, plan: &mut Plan, instance: &Instance) -> bool {
    let again_at = view.memory.started_at.get(&instance.id).and_then(|at| at.checked_add(REBOOT_PAUSE).ok());
    let Some(again_at) = again_at.filter(|_| instance.failed_to_boot()) else { return false };
    plan.report.push(Report::FailedToBoot { instance: instance.id.clone() });
    plan.look_at(again_at);
    again_at > view.now
}

/// Out of the group, with everything on it that finds it again.
fn take_out(view: &View<'_>, plan: &mut Plan, instance: &Instance, stand: &Stand) {
    let Some(Group { min, desired, name, .. }) = &view.facts.group else { return };
    if desired.saturating_sub(1) < *min {
        plan.report.push(Report::DetachBelowMin { instance: instance.id.clone(), min: *min });
        return;
    }
    let tag = Change::Tag { ids: vec![instance.id.clone()], tags: slot_tags(stand) };
    let detach = Change::Detach { group: name.clone(), instance: instance.id.clone(), shrinks: true };
    plan.is_expecting = true;
    plan.add(view, &instance.id, vec![Step::Cloud(tag), Step::Cloud(detach)]);
}

/// Somebody attached an instance that had left its group with environments at tier Stopped. Attaching has made the group
/// larger by it, so it is made smaller again, where it may be.
fn take_out_again(view: &View<'_>, plan: &mut Plan, instance: &Instance) {
    let Some(Group { min, desired, name, .. }) = &view.facts.group else { return };
    plan.report.push(Report::KeptInGroup { instance: instance.id.clone(), group: name.clone() });
    let detach =
        Change::Detach { group: name.clone(), instance: instance.id.clone(), shrinks: desired > min };
    plan.is_expecting = true;
    plan.add(view, &instance.id, vec![Step::Cloud(detach)]);
}

/// The look does not list it as a member any more: now it may be stopped.
fn stop(view: &View<'_>, plan: &mut Plan, instance: &Instance) {
    let id = instance.id.clone();
    let is_to_hibernate = view.pool.stop_mode == StopMode::Hibernate;
    let hibernate = is_to_hibernate && instance.can_hibernate && !view.memory.cannot_hibernate.contains(&id);
    if is_to_hibernate && !hibernate {
        plan.report.push(Report::CannotHibernate { instance: id.clone() });
    }
    plan.is_expecting = true;
    plan.add(
        view,
        &instance.id,
        vec![
            Step::Cloud(Change::Keep { instance: id.clone() }),
            Step::Quiet { instance: id.clone() },
            Step::Cloud(Change::Stop { instance: id, hibernate, force: false }),
        ],
    );
}

/// Nothing needs it. What its tags say is there and no object knows is left to the sweep, which is slower.
fn end(view: &View<'_>, plan: &mut Plan, instance: &Instance, stand: &Stand) {
    let is_marked = instance.tags.keys().any(|key| tags::is_slot_key(key));
    if is_marked {
        // Environments that have an object and are elsewhere by now have let go of it.
        return mark_slots(view, plan, instance, stand);
    }
    let told_at = view.memory.told_to_go.get(&instance.id);
    let is_told = told_at.is_some_and(|at| view.now.duration_since(*at) < view.pool.deletion_retry);
    if !is_told {
        let terminate = Change::Terminate { instance: instance.id.clone() };
        plan.add(view, &instance.id, vec![Step::Cloud(terminate)]);
    }
}

/// The tags say which environment is in which slot.
fn mark_slots(view: &View<'_>, plan: &mut Plan, instance: &Instance, stand: &Stand) {
    let wanted = slot_tags(stand);
    let mut steps = Vec::new();
    let missing: BTreeMap<String, String> =
        wanted.iter().filter(|(key, value)| instance.tags.get(*key) != Some(value)).map(owned).collect();
    if !missing.is_empty() {
        steps.push(Step::Cloud(Change::Tag { ids: vec![instance.id.clone()], tags: missing }));
    }
    // One whose environment no object knows stays for the sweep and for adoption.
    let stale: Vec<String> = instance
        .tags
        .iter()
        .filter(|(key, _)| tags::is_slot_key(key) && !wanted.contains_key(*key))
        .filter(|(_, environment)| {
            view.known.get(*environment).is_some_and(|at| at.as_ref() != Some(&instance.id))
        })
        .map(|(key, _)| key.clone())
        .collect();
    if !stale.is_empty() {
        steps.push(Step::Cloud(Change::Untag { ids: vec![instance.id.clone()], keys: stale }));
    }
    plan.add(view, &format!("{} tags", instance.id), steps);
}

fn owned((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

/// What an instance carries that keeps environments.
pub(super) fn slot_tags(stand: &Stand) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut last: Option<Timestamp> = None;
    for (slot, kept) in &stand.slots {
        for known in &kept.environments {
            all.insert(tags::slot_key(*slot), known.id.clone());
            last = Some(last.map_or(known.expires_at, |at| at.max(known.expires_at)));
        }
    }
    // A machine that keeps one environment alone says everything about it, so that the environment can be adopted.
    let mut alone = stand.environments();
    if let (Some(known), None) = (alone.next(), alone.next()) {
        all.extend(known.tags.clone());
    }
    if let Some(at) = last {
        all.insert(tags::EXPIRES_AT.to_owned(), at.to_string());
    }
    all
}
