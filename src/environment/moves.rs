//! Moving environments between tiers: [`Look`] gathers, `tier` decides, one step is done here.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::plan::HostWord;
use super::tier::{self, Settled, Step, Target};
use super::{StepError, saved};
use crate::api::SuspendedEnvironment;
use crate::api::suspended_environment::{
    Moving, Phase, SnapshotStatus, SuspendedEnvironmentStatus, Tier, VolumeStatus,
};
use crate::clock;
use crate::deed::Point;
use crate::fleet::carry;
use crate::fleet::facts::device_of;
use crate::host::link::{Link, VolumeOrder};
use crate::pool::Held;
use crate::pool::slots::Slot;
use crate::provider::{Change, Changed, VolumeOrder as NewVolume, tags};

mod look;
mod room;

pub use look::{Look, target};
pub use room::{can_make_room, evicted};

/// Does one step.
pub(super) async fn act(
    held: &Held,
    environment: &SuspendedEnvironment,
    look: &Look,
    step: Step,
) -> Result<(), StepError> {
    let name = environment.name_any();
    match step {
        Step::Claim(target) => claim(held, environment, target).await,
        Step::Save { volume } => save(held, environment, look, volume).await,
        Step::Reserve { zone, slot } => reserve(held, environment, look, zone.as_deref(), slot).await,
        Step::Unmount => unmount(held, environment, look).await,
        Step::Leave => {
            let (link, _) = at_place(environment, look)?;
            let id = &environment.spec.environment_id;
            link.leave(held.deed(Point::EnvironmentLeft).await, id).await?;
            if let Some((instance, _)) = environment.place() {
                held.inventories.note(instance, id, None);
            }
            again(held, &name);
            Ok(())
        }
        Step::Mount { volume } => {
            let (link, slot) = at_place(environment, look)?;
            let instance = environment.place().map(|(instance, _)| instance).unwrap_or_default();
            let order = VolumeOrder {
                slot,
                volume,
                builds_dir: look.settings().spec.builds_dir().to_owned(),
                device: Some(device_of(slot)),
                isolation: look.settings().isolation(held.hosts.slots(instance)),
            };
            link.volume_mount(held.deed(Point::WorkspaceMounted).await, &order).await?;
            again(held, &name);
            Ok(())
        }
        Step::Import => import(held, environment, look).await,
        Step::Settle(settled) => settle(held, environment, look, settled).await,
        Step::GiveUp { why, again } => give_up(held, environment, &why, again).await,
        Step::Lose { why } => lose(held, environment, &why).await,
        Step::DeleteVolume { volume } => delete_volume(held, environment, volume).await,
        Step::DeleteSnapshot { snapshot } => delete_snapshot(held, environment, snapshot).await,
        Step::Detach { .. }
        | Step::Attach { .. }
        | Step::Restore { .. }
        | Step::Snapshot { .. }
        | Step::ForceStop { .. } => {
            let Some(change) = change_of(held, environment, look, step) else { return Ok(()) };
            change_cloud(held, &name, &change).await?;
            Ok(())
        }
    }
}

/// Unmounts what is mounted at its slot.
pub(super) async fn unmount(
    held: &Held,
    environment: &SuspendedEnvironment,
    look: &Look,
) -> Result<(), StepError> {
    let (link, slot) = at_place(environment, look)?;
    let name = environment.name_any();
    let builds_dir = look.settings().spec.builds_dir();
    let unmounted = carry::unmount_at(held, link, slot, builds_dir).await?;
    if unmounted.ended > 0 {
        tracing::info!(environment = name, ended = unmounted.ended, "frozen processes ended");
    }
    again(held, &name);
    Ok(())
}

/// Deletes its volume, and says so: looks may show what is gone for a while, or never again.
pub(super) async fn delete_volume(
    held: &Held,
    environment: &SuspendedEnvironment,
    volume: String,
) -> Result<(), StepError> {
    let change = Change::DeleteVolume { volume: volume.clone() };
    change_cloud(held, &environment.name_any(), &change).await?;
    write(held, Point::VolumeForgotten, environment, |status| {
        status.volume = status.volume.take().filter(|known| known.id != volume);
        describe_storage(status);
    })
    .await
}

/// The same for its snapshot.
pub(super) async fn delete_snapshot(
    held: &Held,
    environment: &SuspendedEnvironment,
    snapshot: String,
) -> Result<(), StepError> {
    let change = Change::DeleteSnapshot { snapshot: snapshot.clone() };
    change_cloud(held, &environment.name_any(), &change).await?;
    write(held, Point::SnapshotForgotten, environment, |status| {
        status.snapshot = status.snapshot.take().filter(|known| known.id != snapshot);
        describe_storage(status);
    })
    .await
}

/// The step as a change of the cloud.
fn change_of(held: &Held, environment: &SuspendedEnvironment, look: &Look, step: Step) -> Option<Change> {
    let spec = &look.settings().spec;
    Some(match step {
        Step::Detach { volume, instance, force } => Change::DetachVolume { volume, instance, force },
        Step::Attach { volume } => {
            let (instance, slot) = environment.place()?;
            Change::Attach { volume, instance: instance.to_owned(), device: device_of(slot) }
        }
        Step::Restore { snapshot, zone, size_gib } => {
            let wanted = spec.workspace_volume.as_ref()?;
            // Each claim is a wish of its own: the token of an earlier one may stand for a volume that is deleted by now.
            let status = environment.status.as_ref();
            let since = status.and_then(|status| status.moving.as_ref()).map(|moving| moving.since.0);
            let since = since.unwrap_or_default().to_string();
            let uid = environment.uid().unwrap_or_default();
            Change::CreateVolume(NewVolume {
                token: tags::token(&[&uid, &since, &snapshot, &zone]),
                zone,
                size_gib: size_gib.max(wanted.size_gib),
                type_: wanted.type_.clone(),
                encrypted: wanted.encrypted,
                kms_key: wanted.kms_key_id.clone(),
                snapshot: Some(snapshot),
                tags: all_tags(held, environment),
            })
        }
        Step::Snapshot { volume } => Change::CreateSnapshot { volume, tags: all_tags(held, environment) },
        Step::ForceStop { instance } => Change::Stop { instance, hibernate: false, force: true },
        Step::Claim(_)
        | Step::Save { .. }
        | Step::Reserve { .. }
        | Step::Unmount
        | Step::Leave
        | Step::Mount { .. }
        | Step::Import
        | Step::DeleteVolume { .. }
        | Step::DeleteSnapshot { .. }
        | Step::Settle(_)
        | Step::GiveUp { .. }
        | Step::Lose { .. } => return None,
    })
}

/// Makes a change of the cloud for an environment.
pub(super) async fn change_cloud(held: &Held, name: &str, change: &Change) -> Result<Changed, StepError> {
    let cloud = held.fleet.cloud().ok_or(StepError::Away)?;
    match carry::make(held, cloud.as_ref(), change).await {
        Ok(changed) => {
            held.fleet.made(name, &changed, clock::now());
            held.fleet.touch(name, clock::now());
            Ok(changed)
        }
        Err(error) => {
            held.fleet.failed(name, error.clone(), clock::now());
            Err(StepError::Cloud(error))
        }
    }
}

/// Everything that finds what holds an environment again.
fn all_tags(held: &Held, environment: &SuspendedEnvironment) -> BTreeMap<String, String> {
    tags::of_environment(environment, &held.shared.cluster_id)
}

fn at_place<'a>(
    environment: &SuspendedEnvironment,
    look: &'a Look,
) -> Result<(&'a Arc<Link>, u32), StepError> {
    let (_, slot) = environment.place().ok_or(StepError::Away)?;
    Ok((look.link().ok_or(StepError::Away)?, slot))
}

/// What was done on a host is in the host's own words at once.
fn again(held: &Held, name: &str) {
    held.book(|book| book.environment_has_news(name));
    held.wake();
}

/// (1)
async fn claim(held: &Held, environment: &SuspendedEnvironment, target: Target) -> Result<(), StepError> {
    let was = environment.status.as_ref().and_then(|status| status.moving.clone());
    let retries = was.filter(|was| was.to == target.tier).map_or(0, |was| was.retries);
    let epoch = held.epoch();
    write(held, Point::MoveClaimed, environment, |status| {
        status.moving = Some(Moving {
            to: target.tier,
            why: target.why.to_owned(),
            since: Time(clock::now()),
            epoch,
            retries,
        });
        // While a job waits for it, it is that job's: Resuming.
        if status.bound_lease.is_none() {
            status.phase = Some(if target.tier == Tier::Hot { Phase::Promoting } else { Phase::Demoting });
        }
    })
    .await?;
    held.fleet.wake();
    Ok(())
}

/// (2)
async fn save(
    held: &Held,
    environment: &SuspendedEnvironment,
    look: &Look,
    volume: Option<String>,
) -> Result<(), StepError> {
    let link = look.link().ok_or(StepError::Away)?;
    let export = link.export(&environment.spec.environment_id).await?;
    saved::write(held, environment, &export).await?;
    let name = environment.name_any();
    if let Some(volume) = &volume {
        let tag = Change::Tag { ids: vec![volume.clone()], tags: all_tags(held, environment) };
        change_cloud(held, &name, &tag).await?;
    }
    let known = volume.and_then(|id| look.facts().volumes.get(&id)).map(volume_status);
    write(held, Point::SaveTold, environment, |status| {
        status.saved_revision = Some(status.revision);
        status.volume = known.clone();
        describe_storage(status);
    })
    .await
}

/// (3): in one turn of the book, so that no job gets the slot meanwhile.
async fn reserve(
    held: &Held,
    environment: &SuspendedEnvironment,
    look: &Look,
    zone: Option<&str>,
    slot: u32,
) -> Result<(), StepError> {
    let name = environment.name_any();
    let in_zone = |instance: &String| {
        zone.is_none_or(|zone| look.facts().instances.get(instance).is_some_and(|known| known.zone == zone))
    };
    let chosen = held.book(|book| {
        // In this turn of the book: see `Fleet::is_open`.
        let open = held.fleet.placeable().unwrap_or_default();
        let is_free = |instance: &&String| !book.occupancy.uses_on(instance).contains_key(&slot);
        let found = open.keys().filter(|instance| in_zone(instance)).find(is_free).cloned()?;
        let place = Slot { instance: found, index: slot };
        book.reserve_place(environment, place.clone());
        Some(place)
    });
    let Some(place) = chosen else {
        // The fleet grows for it; there is nothing to do until it has.
        held.fleet.wake();
        return Err(StepError::Waits(format!("slot {slot} of an instance")));
    };
    let written = write(held, Point::PlaceReserved, environment, |status| {
        status.instance = Some(place.instance.clone());
        status.slot = Some(place.index);
    })
    .await;
    let known = held.environment(&name);
    held.book(|book| book.settle_place(&name, known.as_deref()));
    written
}

/// (4)
async fn import(held: &Held, environment: &SuspendedEnvironment, look: &Look) -> Result<(), StepError> {
    let (link, slot) = at_place(environment, look)?;
    let export = saved::read_or_make(held, environment, look.settings()).await?;
    let deed = held.deed(Point::EnvironmentImported).await;
    let record = link.import(deed, slot, look.settings().spec.builds_dir(), &export).await?;
    if let Some((instance, _)) = environment.place() {
        held.inventories.note(instance, &record.environment, Some(HostWord::Asleep));
    }
    again(held, &environment.name_any());
    Ok(())
}

/// (5)
async fn settle(
    held: &Held,
    environment: &SuspendedEnvironment,
    look: &Look,
    settled: Settled,
) -> Result<(), StepError> {
    let from = environment.tier();
    let volume = settled.volume.as_ref().and_then(|id| look.facts().volumes.get(id)).map(volume_status);
    let snapshot = settled.snapshot.as_ref().and_then(|id| look.facts().snapshots.get(id));
    write(held, Point::TierSettled, environment, |status| {
        status.tier = Some(settled.tier);
        // What a look does not show for a moment is not forgotten.
        status.volume = volume
            .clone()
            .or_else(|| status.volume.take().filter(|known| Some(&known.id) == settled.volume.as_ref()));
        status.snapshot = match snapshot {
            Some(snapshot) => Some(SnapshotStatus {
                id: snapshot.id.clone(),
                revision: status.revision,
                size_gib: snapshot.size_gib,
            }),
            None => status.snapshot.clone().filter(|known| Some(&known.id) == settled.snapshot.as_ref()),
        };
        if !settled.keeps_place {
            status.instance = None;
            status.slot = None;
        }
        if settled.ends_move {
            status.moving = None;
            status.rest_until = None;
            if status.bound_lease.is_none() && status.phase != Some(Phase::Suspending) {
                status.phase = Some(Phase::Suspended);
            }
        }
        // Processes do not travel.
        if settled.tier >= Tier::Detached {
            status.processes = Some(0);
        }
        describe_storage(status);
    })
    .await?;
    held.fleet.wake();
    if from == settled.tier && !settled.is_rescue {
        return Ok(());
    }
    let events = &held.shared.events;
    held.shared.metrics.tier_changed(&held.name, from, settled.tier);
    let note = format!("it is at tier {} now, it was at {}", settled.tier.as_str(), from.as_str());
    match (settled.is_rescue, settled.tier < from) {
        (true, _) => {
            let note = format!("what held it is gone, its workspace survived: {note}");
            events.warning(environment, "Rescued", "Move", note).await;
        }
        (false, true) => events.normal(environment, "Promoted", "Move", note).await,
        (false, false) => events.normal(environment, "Demoted", "Move", note).await,
    }
    Ok(())
}

async fn give_up(
    held: &Held,
    environment: &SuspendedEnvironment,
    why: &str,
    again: bool,
) -> Result<(), StepError> {
    let Some(moving) = environment.status.as_ref().and_then(|status| status.moving.clone()) else {
        return Ok(());
    };
    let rest = tier::deadline(moving.to).rest;
    write(held, Point::MoveGivenUp, environment, |status| {
        let now = clock::now();
        if again {
            // A place that did not work out is not tried a second time.
            if moving.to == Tier::Hot && status.tier >= Some(Tier::Detached) {
                status.instance = None;
                status.slot = None;
            }
            let retries = moving.retries.saturating_add(1);
            status.moving = Some(Moving { since: Time(now), retries, ..moving.clone() });
            return;
        }
        status.moving = None;
        status.rest_until = now.checked_add(rest).ok().map(Time);
        if status.bound_lease.is_none() {
            status.phase = Some(Phase::Suspended);
        }
    })
    .await?;
    let how = if again { "it is tried again" } else { "it is left where it is for a while" };
    let note = format!("{why}; {how}");
    held.shared.events.warning(environment, "MoveGivenUp", "Move", note).await;
    Ok(())
}

async fn lose(held: &Held, environment: &SuspendedEnvironment, why: &str) -> Result<(), StepError> {
    write(held, Point::EnvironmentLost, environment, |status| {
        status.phase = Some(Phase::Lost);
        status.moving = None;
        status.last_accident = Some(why.to_owned());
    })
    .await?;
    held.shared.metrics.environment(&held.name, crate::telemetry::EnvironmentOutcome::Lost);
    held.shared.events.warning(environment, "Lost", "Move", format!("it is lost: {why}")).await;
    Ok(())
}

fn volume_status(volume: &crate::provider::Volume) -> VolumeStatus {
    VolumeStatus { id: volume.id.clone(), zone: volume.zone.clone(), size_gib: volume.size_gib }
}

/// One text for the column.
fn describe_storage(status: &mut SuspendedEnvironmentStatus) {
    let snapshot = status.snapshot.as_ref().filter(|_| status.tier == Some(Tier::Snapshotted));
    let volume = status.volume.as_ref().map(|volume| format!("{} {}Gi", volume.id, volume.size_gib));
    status.storage = snapshot.map(|snapshot| format!("{} {}Gi", snapshot.id, snapshot.size_gib)).or(volume);
}

/// Changes the status, with the conditions that follow from it.
async fn write(
    held: &Held,
    point: Point,
    environment: &SuspendedEnvironment,
    change: impl Fn(&mut SuspendedEnvironmentStatus),
) -> Result<(), StepError> {
    let mut next = environment.clone();
    change(next.status.get_or_insert_default());
    super::describe_in_full(held, &mut next);
    let status = next.status.unwrap_or_default();
    super::write(held, point, environment, status).await
}
