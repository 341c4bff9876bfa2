//! Members that go: held while a job runs, seen off when nothing needs them, kept where the group can keep them. Pure.

use jiff::SignedDuration;

use super::{Plan, Report, Step, lifecycle};
use crate::fleet::view::{Stand, View};
use crate::provider::{Change, Group, Hook, Instance, Lifecycle};

/// The share of a hook's time-out after which it is told to wait on: two may be lost without harm.
const BEATS_PER_TIMEOUT: i64 = 3;

/// Sees members off.
pub fn see_off(view: &View<'_>, plan: &mut Plan) {
    let Some(group) = &view.facts.group else { return };
    for instance in view.facts.instances.values() {
        let stand = view.stand(&instance.id);
        match lifecycle(instance) {
            // A health check found it gone: nothing can be saved there any more, and its hook holds nothing.
            Some(Lifecycle::TerminatingWait) if instance.state.is_gone() => {
                release(view, plan, group, instance, false);
            }
            Some(_) if instance.state.is_gone() => {}
            // Nobody waits for what is trimmed from the warm pool: no job was ever on it.
            Some(Lifecycle::WarmedTerminatingWait) => release(view, plan, group, instance, false),
            Some(Lifecycle::TerminatingWait) => hold(view, plan, group, instance, &stand),
            // It runs, does not count as capacity, and only we know that it is there.
            Some(Lifecycle::Retained) => {
                let detach = Change::Detach {
                    group: group.name.clone(),
                    instance: instance.id.clone(),
                    shrinks: false,
                };
                plan.add(view, &instance.id, vec![Step::Cloud(detach)]);
            }
            Some(Lifecycle::InService) if stand.is_announced_to_go => warn(plan, instance, &stand),
            Some(
                Lifecycle::Launching
                | Lifecycle::InService
                | Lifecycle::Terminating
                | Lifecycle::Detaching
                | Lifecycle::Standby
                | Lifecycle::Warmed
                | Lifecycle::Gone,
            )
            | None => {}
        }
    }
}

/// How many of a hook's time-outs before its whole time is over that is announced.
const LAST_TIMEOUTS: i32 = 2;

/// Announces that a hook will not hold a member much longer, whatever is said to it.
fn announce_end(view: &View<'_>, plan: &mut Plan, group: &Group, instance: &Instance) {
    let Some(since) = view.memory.waiting_since.get(&instance.id) else { return };
    let seconds = |count: u64| SignedDuration::from_secs(i64::try_from(count).unwrap_or(i64::MAX));
    let ends = hooks(group).filter(|hook| hook.global_timeout > 0).filter_map(|hook| {
        let at = since.checked_add(seconds(hook.global_timeout)).ok()?;
        let last = seconds(hook.heartbeat_timeout).checked_mul(LAST_TIMEOUTS)?;
        Some((at, at.checked_sub(last).ok()?))
    });
    let Some((at, announced_at)) = ends.min() else { return };
    if announced_at <= view.now {
        plan.report.push(Report::HookEnds { instance: instance.id.clone(), at });
    } else {
        plan.look_at(announced_at);
    }
}

/// A hook holds a member: on with it while a job or an environment is there, and off when none is.
fn hold(view: &View<'_>, plan: &mut Plan, group: &Group, instance: &Instance, stand: &Stand) {
    if stand.is_free() {
        return release(view, plan, group, instance, false);
    }
    announce_end(view, plan, group, instance);
    if stand.has_job() {
        plan.report.push(Report::HeldForJob { instance: instance.id.clone() });
        return beat(view, plan, group, instance);
    }
    // What sleeps on volumes leaves by itself; see the environments' own moves. What cannot is kept with its instance.
    let stays: Vec<_> = stand.environments().filter(|known| !known.has_volume).collect();
    if stays.len() == stand.environments().count() && group.retains_abandoned {
        return release(view, plan, group, instance, true);
    }
    if !group.retains_abandoned {
        for known in stays {
            let (instance, environment) = (instance.id.clone(), known.id.clone());
            plan.report.push(Report::EnvironmentAtRisk { instance, environment });
        }
    }
    beat(view, plan, group, instance);
}

/// The cloud takes a member, and no hook holds it: what sleeps there without a volume ends with it.
fn warn(plan: &mut Plan, instance: &Instance, stand: &Stand) {
    for known in stand.environments().filter(|known| !known.has_volume) {
        let (instance, environment) = (instance.id.clone(), known.id.clone());
        plan.report.push(Report::EnvironmentAnnounced { instance, environment });
    }
}

fn hooks(group: &Group) -> impl Iterator<Item = &Hook> {
    group.hooks.iter().filter(|hook| hook.at_termination)
}

fn release(view: &View<'_>, plan: &mut Plan, group: &Group, instance: &Instance, abandon: bool) {
    let complete = |hook: &Hook| {
        Step::Cloud(Change::Complete {
            group: group.name.clone(),
            hook: hook.name.clone(),
            instance: instance.id.clone(),
            abandon,
        })
    };
    plan.add(view, &instance.id, hooks(group).map(complete).collect());
}

/// A heartbeat for each hook whose time has come. Whether one was sent before this holder's time is not known: then one
/// is sent now.
fn beat(view: &View<'_>, plan: &mut Plan, group: &Group, instance: &Instance) {
    let mut steps = Vec::new();
    for hook in hooks(group) {
        let timeout = i64::try_from(hook.heartbeat_timeout).unwrap_or(i64::MAX);
        let every = SignedDuration::from_secs((timeout / BEATS_PER_TIMEOUT).max(1));
        let last = view.memory.heartbeats.get(&(instance.id.clone(), hook.name.clone()));
        let due_at = last.and_then(|at| at.checked_add(every).ok()).unwrap_or(view.now);
        if due_at <= view.now {
            steps.push(Step::Cloud(Change::Heartbeat {
                group: group.name.clone(),
                hook: hook.name.clone(),
                instance: instance.id.clone(),
            }));
            if let Ok(next) = view.now.checked_add(every) {
                plan.look_at(next);
            }
        } else {
            plan.look_at(due_at);
        }
    }
    if !steps.is_empty() {
        // Not under the instance's own name: what was done to it a moment ago must not silence the heart.
        let subject = format!("{} hooks", instance.id);
        plan.sequences.push(super::Sequence { subject, steps });
    }
}
