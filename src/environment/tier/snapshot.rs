//! To Snapshotted, and what a colder tier leaves behind. Pure.

use super::detach::detach;
use super::{Host, Plan, Settled, Step, View, own_volume};
use crate::api::suspended_environment::Tier;
use crate::fleet::facts::Found;
use crate::provider::{SnapshotState, tags};

/// To Snapshotted: a volume of its own first, then the snapshot, and only when that is complete the volume goes.
pub(super) fn snapshot(view: &View<'_>) -> Plan {
    let environment = view.environment;
    if environment.tier() < Tier::Detached {
        return detach(view);
    }
    let status = environment.status.clone().unwrap_or_default();
    let revision = status.revision.to_string();
    // One of before an accident in a resumed job has the same revision and is behind the volume. The cloud's clock is
    // not ours: what it says of when a snapshot was begun is compared with nothing.
    let woken_at = status.last_resumed_at.as_ref().map(|at| at.0.as_second().to_string());
    let is_of_this_sleep = |known: &&crate::provider::Snapshot| {
        known.tags.get(tags::RESUMED_AT) == woken_at.as_ref()
            && known.tags.get(tags::REVISION) == Some(&revision)
            && known.state != SnapshotState::Failed
    };
    let taken = view.facts.snapshots.of_environment(&environment.spec.environment_id).find(is_of_this_sleep);
    match (taken, own_volume(view)) {
        (Some(taken), _) if taken.state == SnapshotState::Pending => {
            Plan::wait(format!("snapshot {} to be complete", taken.id))
        }
        (Some(taken), volume) => Plan::step(Step::Settle(Settled {
            tier: Tier::Snapshotted,
            volume: volume.map(|volume| volume.id.clone()),
            snapshot: Some(taken.id.clone()),
            keeps_place: false,
            ends_move: true,
            is_rescue: false,
        })),
        // A snapshot has no token: a look that is newer than the last try says that there is none.
        (None, Some(volume)) if view.is_fresh && volume.attachment.is_none() => {
            Plan::step(Step::Snapshot { volume: volume.id.clone() })
        }
        (None, Some(volume)) => Plan::wait(format!("a snapshot of volume {}", volume.id)),
        (None, None) => Plan::wait("its workspace volume to be seen"),
    }
}

/// What a colder tier leaves behind: the volume of one that is Snapshotted, the snapshots of one whose volume is ahead of
/// them, or whose snapshot was never needed in the end.
pub fn leftover(view: &View<'_>) -> Option<Step> {
    let status = view.environment.status.as_ref()?;
    if !view.is_fresh || status.moving.is_some() {
        return None;
    }
    let known = status.snapshot.as_ref().map(|known| known.id.as_str());
    match view.environment.tier() {
        Tier::Snapshotted => {
            let Some(Found::There(kept)) = known.map(|id| view.facts.snapshot(id)) else { return None };
            if kept.state != SnapshotState::Completed {
                return None;
            }
            // What is not seen is deleted all the same: that it is gone is then as good as known.
            let volume = match own_volume(view) {
                Some(volume) if volume.attachment.is_some() => None,
                Some(volume) => Some(volume.id.clone()),
                None => status.volume.as_ref().map(|volume| volume.id.clone()),
            };
            let delete = volume.map(|volume| Step::DeleteVolume { volume });
            delete.or_else(|| delete_snapshot(view, Some(&kept.id), None))
        }
        Tier::Hot => {
            // Not before the workspace was found to be there: until then the snapshot is all there is.
            let is_verified = match view.host {
                Host::Answers { has_record: Some(true), mounted } => {
                    !view.rules.has_volumes
                        || own_volume(view).is_some_and(|volume| Some(volume.id.as_str()) == mounted)
                }
                Host::Answers { .. } | Host::Away => false,
            };
            if is_verified { delete_snapshot(view, None, known) } else { None }
        }
        Tier::Detached => {
            let is_there = own_volume(view).is_some_and(|volume| volume.attachment.is_none());
            if is_there { delete_snapshot(view, None, known) } else { None }
        }
        Tier::Stopped => None,
    }
}

/// Deletes a snapshot of its own that is not the one to keep; one that the status alone knows too.
fn delete_snapshot(view: &View<'_>, keep: Option<&str>, by_status: Option<&str>) -> Option<Step> {
    let id = &view.environment.spec.environment_id;
    let mut ids = view.facts.snapshots.of_environment(id).map(|known| known.id.as_str()).chain(by_status);
    let stale = ids.find(|id| Some(*id) != keep)?;
    Some(Step::DeleteSnapshot { snapshot: stale.to_owned() })
}
