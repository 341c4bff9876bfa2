//! Giving back what an environment keeps in a cloud, when its object is deleted. Pure.
//!
//! In order, each step looked up before it is done and so done again by the next holder: what is on a host that answers,
//! then the instance that nothing else needs, then the volume, then the snapshot, and last the finalizer. The object is
//! the claim: while it is being deleted nothing else is done with what it keeps.

use super::tier::{self, Host, View};
use crate::api::suspended_environment::Tier;
use crate::fleet::facts::Fate;
use crate::provider::tags;

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Processes, workspace and state go from its host.
    Host,
    /// Its volume is mounted where it was on its way to: it comes off nothing that is mounted.
    Unmount,
    /// Its volume stays in its slot, for the next job: it is not the environment's any more.
    FreeVolume {
        /// The volume.
        volume: String,
        /// The tags that say so.
        keys: Vec<String>,
    },
    /// Its instance keeps other environments: it is not its instance any more.
    LeaveInstance {
        /// The instance.
        instance: String,
        /// The tag that says so.
        key: String,
    },
    /// Nothing else needs its instance, which is in no group.
    EndInstance {
        /// The instance.
        instance: String,
    },
    /// Its volume comes off an instance.
    Detach {
        /// The volume.
        volume: String,
        /// The instance.
        instance: String,
    },
    /// Its volume is deleted.
    DeleteVolume {
        /// The volume.
        volume: String,
    },
    /// Its snapshot is deleted.
    DeleteSnapshot {
        /// The snapshot.
        snapshot: String,
    },
    /// Something has to become visible, or an instance has to answer.
    Wait(String),
    /// Nothing of it is left.
    Done,
}

/// Decides the next step. `is_alone` says whether no other environment, job or doubt is on its instance; `on_host`
/// whether its host may still have something of it.
pub fn next(view: &View<'_>, is_alone: bool, on_host: bool) -> Step {
    match instance_step(view, is_alone, on_host) {
        Step::Done => storage_step(view),
        step => step,
    }
}

fn instance_step(view: &View<'_>, is_alone: bool, on_host: bool) -> Step {
    let environment = view.environment;
    // On its way back to an instance it may be there already.
    let Some((instance, slot)) = environment.place() else { return Step::Done };
    let fate = view.facts.fate(instance);
    let is_member = view.facts.instances.get(instance).is_some_and(|known| known.member.is_some());
    match fate {
        Fate::Gone => Step::Done,
        Fate::Running if on_host => match view.host {
            Host::Answers { .. } => Step::Host,
            Host::Away => Step::Wait(format!("instance {instance} to answer")),
        },
        Fate::Running if is_member => Step::Done,
        // A running instance out of the group is ended by the fleet as soon as nothing is on it.
        Fate::Running | Fate::Stopped if is_alone => end(view, instance),
        Fate::Running | Fate::Stopped => {
            let key = tags::slot_key(slot);
            let is_marked = view
                .facts
                .instances
                .get(instance)
                .is_some_and(|known| known.tags.get(&key) == Some(&environment.spec.environment_id));
            match is_marked {
                true if view.is_fresh => Step::LeaveInstance { instance: instance.to_owned(), key },
                true => Step::Wait(format!("the tags of {instance} to be seen")),
                false => Step::Done,
            }
        }
        Fate::Starting | Fate::Stopping => Step::Wait(format!("instance {instance} to boot or stop")),
        Fate::Unseen => Step::Wait(format!("instance {instance} to be seen")),
    }
}

fn end(view: &View<'_>, instance: &str) -> Step {
    match view.is_fresh {
        true => Step::EndInstance { instance: instance.to_owned() },
        false => Step::Wait(format!("instance {instance} to be gone")),
    }
}

fn storage_step(view: &View<'_>) -> Step {
    let environment = view.environment;
    if let Some(volume) = tier::own_volume(view) {
        let in_slot = environment.place().is_some_and(|(instance, _)| {
            let is_there = volume.attachment.as_ref().is_some_and(|known| known.instance == instance);
            is_there && view.facts.fate(instance) == Fate::Running
        });
        let mut keys: Vec<String> =
            volume.tags.keys().filter(|key| tags::is_of_environment(key)).cloned().collect();
        // Written when a job woke it, which may be a moment ago and not in the look yet.
        let resumed_at = tags::RESUMED_AT.to_owned();
        if !keys.is_empty() && !keys.contains(&resumed_at) {
            keys.push(resumed_at);
        }
        let wait = Step::Wait(format!("volume {} to be gone", volume.id));
        return match &volume.attachment {
            Some(_) if in_slot && is_emptied(view, &volume.id) => match keys.is_empty() {
                true => snapshot_step(view),
                false if view.is_fresh => Step::FreeVolume { volume: volume.id.clone(), keys },
                false => wait,
            },
            Some(_) if in_slot && is_mounted(view, &volume.id) => Step::Unmount,
            Some(attachment) if !attachment.is_detaching && view.is_fresh => {
                Step::Detach { volume: volume.id.clone(), instance: attachment.instance.clone() }
            }
            None if view.is_fresh => Step::DeleteVolume { volume: volume.id.clone() },
            Some(_) | None => wait,
        };
    }
    let known = environment.status.as_ref().and_then(|status| status.volume.as_ref());
    match known {
        // What is not seen is deleted all the same: that it is gone is then as good as known.
        Some(known) if view.is_fresh => Step::DeleteVolume { volume: known.id.clone() },
        Some(known) => Step::Wait(format!("volume {} to be gone", known.id)),
        None => snapshot_step(view),
    }
}

/// Whether the workspace was on the volume where its host removed it. What was unmounted before is full still: the next
/// job must not read it.
fn is_emptied(view: &View<'_>, volume: &str) -> bool {
    let moving = view.environment.status.as_ref().and_then(|status| status.moving.as_ref());
    let was_leaving = moving.is_some_and(|moving| moving.to >= Tier::Detached);
    view.environment.tier() == Tier::Hot && !was_leaving && is_mounted(view, volume)
}

fn is_mounted(view: &View<'_>, volume: &str) -> bool {
    match view.host {
        Host::Answers { mounted, .. } => mounted == Some(volume),
        Host::Away => false,
    }
}

fn snapshot_step(view: &View<'_>) -> Step {
    let id = &view.environment.spec.environment_id;
    let by_status = view.environment.status.as_ref().and_then(|status| status.snapshot.as_ref());
    // One that was begun and is in no status yet is found by its tag.
    let tagged = view.facts.snapshots.of_environment(id).next();
    let known = tagged.map(|known| &known.id).or(by_status.map(|known| &known.id));
    match known {
        Some(snapshot) if view.is_fresh => Step::DeleteSnapshot { snapshot: snapshot.clone() },
        Some(snapshot) => Step::Wait(format!("snapshot {snapshot} to be gone")),
        None => Step::Done,
    }
}
