//! What becomes of an environment when what held it is gone. Pure.

use super::{Plan, Settled, Step, View, own_snapshot, own_volume};
use crate::api::suspended_environment::Tier;
use crate::fleet::facts::{Fate, Found};
use crate::provider::{Snapshot, SnapshotState, Volume};

/// What is due because of that, before anything else. Lost is said only when nothing is left that could hold the
/// workspace, and the cloud has had time to show everything.
pub(super) fn rescue(view: &View<'_>) -> Option<Plan> {
    let environment = view.environment;
    let tier = environment.tier();
    let is_gone = environment.place().is_some_and(|(instance, _)| view.facts.fate(instance) == Fate::Gone);
    let is_on_instance = tier < Tier::Detached;
    let snapshot = own_snapshot(view);
    if is_on_instance && !is_gone {
        // Somebody has deleted its volume from under its instance.
        let known = environment.status.as_ref().and_then(|status| status.volume.as_ref());
        let is_deleted = known.is_some_and(|known| matches!(view.facts.volume(&known.id), Found::Gone));
        let is_bereft = is_deleted && own_volume(view).is_none();
        return is_bereft.then(|| without_volume(view, tier, snapshot, false)).flatten();
    }
    match own_volume(view) {
        Some(volume) if tier == Tier::Snapshotted && snapshot.is_some() => {
            is_gone.then(|| rescued(Tier::Snapshotted, Some(volume), snapshot))
        }
        Some(volume) if is_gone || tier == Tier::Snapshotted => match &volume.attachment {
            None => Some(rescued(Tier::Detached, Some(volume), snapshot)),
            Some(_) if is_gone => {
                // The cloud is still taking it off what is gone.
                Some(Plan::wait(format!("volume {} to come off its instance, which is gone", volume.id)))
            }
            // It is on its way to an instance, and all there is.
            Some(_) => None,
        },
        Some(_) => None,
        None => without_volume(view, tier, snapshot, is_gone),
    }
}

fn without_volume(view: &View<'_>, tier: Tier, snapshot: Option<&Snapshot>, is_gone: bool) -> Option<Plan> {
    let status = view.environment.status.clone().unwrap_or_default();
    let is_volume_unseen =
        status.volume.is_some_and(|known| matches!(view.facts.volume(&known.id), Found::Unseen));
    let is_snapshot_unseen =
        status.snapshot.is_some_and(|known| matches!(view.facts.snapshot(&known.id), Found::Unseen));
    match (tier, snapshot) {
        (Tier::Snapshotted, Some(_)) => is_gone.then(|| rescued(Tier::Snapshotted, None, snapshot)),
        (Tier::Hot | Tier::Stopped | Tier::Detached, _) if is_volume_unseen => {
            Some(Plan::wait("its volume to be seen"))
        }
        (Tier::Hot | Tier::Stopped | Tier::Detached, Some(taken)) => Some(match taken.state {
            SnapshotState::Pending => Plan::wait(format!("snapshot {} to be complete", taken.id)),
            SnapshotState::Completed | SnapshotState::Failed => rescued(Tier::Snapshotted, None, snapshot),
        }),
        (_, None) if is_snapshot_unseen => Some(Plan::wait("its snapshot to be seen")),
        (_, None) if !view.is_fresh => Some(Plan::wait("the cloud to show what is left of it")),
        (Tier::Hot | Tier::Stopped, None) if is_gone => {
            Some(lost("its instance was terminated, and its workspace was on no volume that survives it"))
        }
        (Tier::Hot | Tier::Stopped | Tier::Detached, None) => Some(lost("its workspace volume was deleted")),
        (Tier::Snapshotted, None) => Some(lost("the snapshot of its workspace was deleted")),
    }
}

fn lost(why: &str) -> Plan {
    Plan::step(Step::Lose { why: why.to_owned() })
}

fn rescued(tier: Tier, volume: Option<&Volume>, snapshot: Option<&Snapshot>) -> Plan {
    Plan::step(Step::Settle(Settled {
        tier,
        volume: volume.map(|volume| volume.id.clone()),
        snapshot: snapshot.map(|snapshot| snapshot.id.clone()),
        keeps_place: false,
        ends_move: true,
        is_rescue: true,
    }))
}
