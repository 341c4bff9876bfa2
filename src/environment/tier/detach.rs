//! To Detached: the workspace leaves its instance on its volume. Pure.

use super::{Host, Plan, Settled, Step, View, own_volume};
use crate::api::suspended_environment::Tier;
use crate::fleet::facts::Fate;
use crate::provider::{Volume, tags};

/// To Detached: saved, unmounted, forgotten there, taken off.
pub(super) fn detach(view: &View<'_>) -> Plan {
    let environment = view.environment;
    let Some(volume) = own_volume(view) else {
        return Plan::wait("its workspace volume to be seen");
    };
    let Some((instance, _)) = environment.place() else {
        // Snapshotted, and brought back to a volume only: there is none to move to.
        return Plan::step(Step::Settle(detached(view, volume)));
    };
    // A host that answers runs, whatever an older look shows: nothing is taken from under it.
    let answers = matches!(view.host, Host::Answers { .. });
    if answers || view.facts.fate(instance) == Fate::Running {
        if let Plan { step: Some(step), .. } = saved_first(view) {
            return Plan::step(step);
        }
        match view.host {
            Host::Away => return Plan::wait(format!("instance {instance} to answer")),
            Host::Answers { mounted: Some(mounted), .. } if mounted == volume.id => {
                return Plan::step(Step::Unmount);
            }
            Host::Answers { has_record: Some(true) | None, .. } => return Plan::step(Step::Leave),
            Host::Answers { has_record: Some(false), .. } => {}
        }
    }
    match &volume.attachment {
        Some(attachment) => take_off(view, volume, &attachment.instance.clone()),
        None => Plan::step(Step::Settle(detached(view, volume))),
    }
}

pub(super) fn detached(view: &View<'_>, volume: &Volume) -> Settled {
    let status = view.environment.status.clone().unwrap_or_default();
    Settled {
        tier: Tier::Detached,
        volume: Some(volume.id.clone()),
        snapshot: status.snapshot.map(|snapshot| snapshot.id),
        keeps_place: false,
        ends_move: status.moving.is_none_or(|moving| moving.to == Tier::Detached),
        is_rescue: false,
    }
}

pub(super) fn take_off(view: &View<'_>, volume: &Volume, instance: &str) -> Plan {
    let is_leaving = volume.attachment.as_ref().is_some_and(|attachment| attachment.is_detaching);
    if is_leaving || !view.is_fresh {
        return Plan::wait(format!("volume {} to come off {instance}", volume.id));
    }
    Plan::step(Step::Detach { volume: volume.id.clone(), instance: instance.to_owned(), force: false })
}

/// (2), once for each sleep: without it a lost instance takes the context with it.
pub(super) fn save(view: &View<'_>) -> Plan {
    let status = view.environment.status.clone().unwrap_or_default();
    let volume = own_volume(view);
    let is_tagged = volume.is_none_or(|volume| {
        volume.tags.get(tags::ENVIRONMENT) == Some(&view.environment.spec.environment_id)
            && volume.tags.get(tags::REVISION) == Some(&status.revision.to_string())
    });
    let is_known = status.volume.as_ref().map(|known| &known.id) == volume.map(|volume| &volume.id);
    if status.saved_revision == Some(status.revision) && is_tagged && is_known || !view.is_fresh {
        return Plan::rest();
    }
    Plan::step(Step::Save { volume: volume.map(|volume| volume.id.clone()) })
}

pub(super) fn saved_first(view: &View<'_>) -> Plan {
    let status = view.environment.status.clone().unwrap_or_default();
    let volume = own_volume(view).map(|volume| volume.id.clone());
    let is_saved = status.saved_revision == Some(status.revision)
        && status.volume.as_ref().map(|known| known.id.clone()) == volume;
    if is_saved {
        return Plan::rest();
    }
    match view.host {
        Host::Answers { has_record: Some(true) | None, .. } => Plan::step(Step::Save { volume }),
        Host::Answers { has_record: Some(false), .. } | Host::Away => Plan::rest(),
    }
}
