//! To Stopped: everything stays on the instance, which sleeps too. Pure.

use super::detach::saved_first;
use super::{Plan, Settled, Step, View, as_it_is, wait_for_others};
use crate::api::suspended_environment::Tier;
use crate::fleet::facts::Fate;

/// To Stopped: the fleet takes the instance out of its group and stops it, once all on it are claimed.
pub(super) fn stop(view: &View<'_>) -> Plan {
    let Some((instance, _)) = view.environment.place() else { return Plan::rest() };
    if view.rules.has_volumes
        && let Plan { step: Some(step), .. } = saved_first(view)
    {
        return Plan::step(step);
    }
    let forced =
        view.environment.status.as_ref().and_then(|status| status.moving.as_ref()).map(|m| m.retries);
    match view.facts.fate(instance) {
        Fate::Stopped => Plan::step(Step::Settle(Settled { tier: Tier::Stopped, ..as_it_is(view) })),
        // It hangs: told once more, without regard to its system, which has written everything out.
        Fate::Stopping if forced == Some(1) && view.is_fresh => {
            Plan::step(Step::ForceStop { instance: instance.to_owned() })
        }
        Fate::Stopping => Plan::wait(format!("instance {instance} to be stopped")),
        Fate::Running if !view.may_stop => {
            let on = format!("the other slots of instance {instance} to be free or asleep for as long");
            wait_for_others(view, on)
        }
        Fate::Running | Fate::Starting | Fate::Gone | Fate::Unseen => {
            Plan::wait(format!("instance {instance} to leave its group and stop"))
        }
    }
}
