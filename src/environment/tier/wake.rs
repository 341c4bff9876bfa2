//! Back to Hot: from a stopped instance, from a volume, from a snapshot. Pure.

use super::detach::take_off;
use super::snapshot::snapshot;
use super::{Host, Plan, Settled, Step, View, about_to_stop, as_it_is, mount, own_volume};
use crate::api::suspended_environment::Tier;
use crate::fleet::facts::{Fate, device_of};
use crate::provider::{Instance, VolumeState};

/// To Hot, from wherever it is.
pub(super) fn wake(view: &View<'_>) -> Plan {
    let environment = view.environment;
    let status = environment.status.clone().unwrap_or_default();
    // A stopped instance is started by the fleet, which counts instances; with it everything on it comes back.
    if environment.tier() == Tier::Stopped {
        return wake_instance(view);
    }
    let Some((instance, slot)) = environment.place() else {
        if is_to_leave_its_zone(view) && environment.tier() == Tier::Detached {
            return leave_zone(view);
        }
        let zone = own_volume(view).map(|volume| volume.zone.clone());
        let slot = environment.spec.origin.slot;
        let of =
            zone.as_ref().map(|zone| format!(" in zone {zone}, where its volume is")).unwrap_or_default();
        let waits_for = Some(format!("slot {slot} of an instance{of}"));
        return Plan { waits_for, ..Plan::step(Step::Reserve { zone, slot }) };
    };
    let Some(host) = view.facts.instances.get(instance) else {
        return Plan::wait(format!("instance {instance} to be seen"));
    };
    let Some(volume) = own_volume(view) else {
        return match status.snapshot {
            Some(snapshot) if view.is_fresh => Plan::step(Step::Restore {
                snapshot: snapshot.id,
                zone: host.zone.clone(),
                size_gib: snapshot.size_gib,
            }),
            Some(_) | None => Plan::wait("its volume to be seen"),
        };
    };
    match volume.state {
        // Its slot is emptied meanwhile: each of both takes the cloud its time.
        VolumeState::Creating => {
            let made = || Plan::wait(format!("volume {} to be made", volume.id));
            return make_room(view, host, slot).unwrap_or_else(made);
        }
        VolumeState::Available | VolumeState::InUse => {}
        VolumeState::Deleting | VolumeState::Failed => return Plan::wait("its volume to be seen"),
    }
    if volume.zone != host.zone {
        return Plan::step(Step::GiveUp {
            why: format!("volume {} is in {}, instance {instance} in {}", volume.id, volume.zone, host.zone),
            again: true,
        });
    }
    let Host::Answers { has_record, mounted } = view.host else {
        return Plan::wait(format!("instance {instance} to answer"));
    };
    if let Some(attachment) = &volume.attachment {
        if attachment.instance != *instance {
            return match view.facts.fate(&attachment.instance) {
                Fate::Gone => Plan::wait(format!("volume {} to come off {}", volume.id, attachment.instance)),
                Fate::Starting | Fate::Running | Fate::Stopping | Fate::Stopped | Fate::Unseen => {
                    take_off(view, volume, &attachment.instance.clone())
                }
            };
        }
        if !attachment.is_attached || attachment.is_detaching {
            return Plan::wait(format!("volume {} to be attached", volume.id));
        }
        return match (mounted, has_record) {
            (Some(mounted), Some(true)) if mounted == volume.id => Plan::step(Step::Settle(Settled {
                tier: Tier::Hot,
                volume: Some(volume.id.clone()),
                snapshot: status.snapshot.map(|snapshot| snapshot.id),
                keeps_place: true,
                ends_move: true,
                is_rescue: false,
            })),
            (Some(mounted), _) if mounted == volume.id => Plan::step(Step::Import),
            (Some(_), _) => Plan::step(Step::Unmount),
            (None, _) => Plan::step(Step::Mount { volume: volume.id.clone() }),
        };
    }
    if let Some(room) = make_room(view, host, slot) {
        return room;
    }
    if host.devices.contains_key(&device_of(slot)) {
        return Plan::wait(format!("device {} of {instance} to be free", device_of(slot)));
    }
    match view.is_fresh {
        true => Plan::step(Step::Attach { volume: volume.id.clone() }),
        false => Plan::wait(format!("volume {} to be attached", volume.id)),
    }
}

/// What is in the slot that it is to come to belongs to nobody, and makes room.
fn make_room(view: &View<'_>, host: &Instance, slot: u32) -> Option<Plan> {
    let Host::Answers { mounted, .. } = view.host else { return None };
    if !view.is_place_at_rest {
        // The fleet has begun to give the slot a volume before it was taken.
        return Some(Plan::wait(format!("what was begun about slot {slot} of {} to be seen", host.id)));
    }
    let other = view.facts.volume_at(&host.id, &device_of(slot))?;
    Some(match mounted {
        Some(_) => Plan::step(Step::Unmount),
        None => take_off(view, other, &host.id),
    })
}

pub(super) fn wake_instance(view: &View<'_>) -> Plan {
    let Some((instance, _)) = view.environment.place() else { return Plan::wait("its instance to be seen") };
    match (view.facts.fate(instance), view.host) {
        // Its host had let go of it already when it was stopped.
        (Fate::Running, Host::Answers { has_record: Some(false), .. }) if own_volume(view).is_some() => {
            mount(view).unwrap_or_else(|| Plan::step(Step::Import))
        }
        (Fate::Running, Host::Answers { has_record: Some(_), .. }) => {
            mount(view).unwrap_or_else(|| awake(view))
        }
        (Fate::Running, _) => Plan::wait(format!("instance {instance} to answer")),
        (Fate::Starting, _) => Plan::wait(format!("instance {instance} to boot")),
        (Fate::Stopping, _) => Plan::wait(format!("instance {instance} to be stopped, and then started")),
        (Fate::Stopped, _) => {
            let failed = view.facts.instances.get(instance).is_some_and(Instance::failed_to_boot);
            let key = if failed { ", whose disk it cannot read: is its KMS key enabled?" } else { "" };
            Plan::wait(format!("instance {instance} to be started{key}"))
        }
        (Fate::Gone | Fate::Unseen, _) => Plan::wait(format!("instance {instance} to be seen")),
    }
}

/// Whether its volume keeps it from every instance there is: it goes on from a snapshot, in any zone. A place that it has
/// already, or an instance that comes after all, is better than the hours a snapshot may take.
pub(super) fn is_to_leave_its_zone(view: &View<'_>) -> bool {
    let is_waking = super::target(view).is_some_and(|target| target.tier == Tier::Hot);
    view.is_zone_dry && is_waking && view.environment.place().is_none()
}

/// Into a snapshot. It is Snapshotted then, its volume goes, and it comes back as any other that is.
fn leave_zone(view: &View<'_>) -> Plan {
    let mut plan = snapshot(view);
    let zone = own_volume(view).map(|volume| volume.zone.as_str()).unwrap_or_default();
    let first = plan.waits_for.take().map(|on| format!(": {on}")).unwrap_or_default();
    plan.waits_for = Some(format!("its move out of zone {zone}, which has no instance for it{first}"));
    plan
}

/// Its stopped instance was started for another one: it is awake with it.
pub(super) fn awake_with_others(view: &View<'_>) -> Plan {
    match view.host {
        Host::Answers { has_record: Some(true), .. } => mount(view).unwrap_or_else(|| awake(view)),
        Host::Answers { .. } | Host::Away => Plan::rest(),
    }
}

/// It is Hot with its instance, unless that is about to go off again and only an older look shows it running.
fn awake(view: &View<'_>) -> Plan {
    let hot = || Plan::step(Step::Settle(Settled { tier: Tier::Hot, ..as_it_is(view) }));
    about_to_stop(view).unwrap_or_else(hot)
}
