//! A volume for each slot: made, attached and mounted before the slot takes a job, used again while no environment owns
//! it. Pure.

use std::collections::BTreeMap;

use super::members::own_tags;
use super::{Plan, Step, is_in_service, slot_subject, spent};
use crate::api::runner_pool::WorkspaceVolume;
use crate::fleet::facts::{device_of, slot_at};
use crate::fleet::view::{HostStand, Stand, View};
use crate::provider::{Change, Instance, Volume, VolumeOrder, VolumeState, tags};

/// Provides slots that nothing keeps with volumes.
pub fn provide(view: &View<'_>, plan: &mut Plan) {
    let Some(wanted) = view.pool.volume else { return };
    if view.pool.is_deleting {
        return;
    }
    let mut spares = None;
    for instance in view.facts.instances.values().filter(|instance| is_in_service(instance)) {
        let stand = view.stand(&instance.id);
        if spent(view, instance, &stand).is_some() {
            continue;
        }
        for slot in (0..view.pool.capacity).filter(|slot| !is_kept(view, instance, &stand, *slot)) {
            let device = device_of(slot);
            match instance.devices.get(&device).and_then(|id| view.facts.volumes.get(id)) {
                Some(volume) => mount(view, plan, instance, &stand, slot, volume),
                // Attached, and not seen among the volumes yet.
                None if instance.devices.contains_key(&device) => {}
                None => {
                    let spares = spares.get_or_insert_with(|| Spares::of(view, wanted));
                    if let Some(step) = attach_or_make(view, instance, slot, wanted, spares) {
                        plan.is_expecting = true;
                        plan.add(view, &slot_subject(&instance.id, slot), step);
                    }
                }
            }
        }
    }
}

/// Takes the volumes of members back that stay with their group when the pool goes: nothing else would. Those of others come
/// free with their instance, and are swept.
pub fn take_back(view: &View<'_>, plan: &mut Plan) {
    let stays = view.facts.group.as_ref().is_some_and(|group| group.desired <= group.min);
    if !view.pool.is_deleting || !stays {
        return;
    }
    for volume in view.facts.volumes.values().filter(|volume| is_nobodys(view, volume)) {
        let member = |id: &String| view.facts.instances.get(id).filter(|instance| is_in_service(instance));
        match &volume.attachment {
            Some(attachment) => {
                let place = member(&attachment.instance).zip(slot_at(&attachment.device));
                let Some((instance, slot)) = place.filter(|_| !attachment.is_detaching) else { continue };
                let stand = view.stand(&instance.id);
                if let Some(step) = take_off(&stand, instance, slot, volume)
                    && !is_kept(view, instance, &stand, slot)
                {
                    plan.add(view, &slot_subject(&instance.id, slot), vec![step]);
                }
            }
            None if volume.state == VolumeState::Available
                && volume.tags.get(tags::SLOT_OF).and_then(member).is_some() =>
            {
                let delete = Change::DeleteVolume { volume: volume.id.clone() };
                plan.add(view, &volume.id, vec![Step::Cloud(delete)]);
            }
            None => {}
        }
    }
}

/// Unmounted where its host says that it is mounted, and taken off then. Nothing on it is needed: a host that was asked in
/// vain is not waited for.
fn take_off(stand: &Stand, instance: &Instance, slot: u32, volume: &Volume) -> Option<Step> {
    let is_mounted = match &stand.host {
        HostStand::Ready { mounts, .. } => mounts.get(&slot) == Some(&volume.id),
        HostStand::NotKept | HostStand::Connecting { .. } => false,
    };
    if is_mounted {
        return Some(Step::Unmount { instance: instance.id.clone(), slot });
    }
    let detach =
        Change::DetachVolume { volume: volume.id.clone(), instance: instance.id.clone(), force: false };
    stand.was_asked().then_some(Step::Cloud(detach))
}

/// Whether a slot is an environment's or a job's, or an environment is on its way there: its volume is that one's
/// business.
fn is_kept(view: &View<'_>, instance: &Instance, stand: &Stand, slot: u32) -> bool {
    stand.slots.contains_key(&slot) || view.places.contains(&(instance.id.clone(), slot))
}

fn mount(view: &View<'_>, plan: &mut Plan, instance: &Instance, stand: &Stand, slot: u32, volume: &Volume) {
    let HostStand::Ready { mounts, .. } = &stand.host else { return };
    let is_attached =
        volume.attachment.as_ref().is_some_and(|known| known.is_attached && !known.is_detaching);
    if !is_attached {
        plan.is_expecting = true;
        return;
    }
    if mounts.get(&slot) != Some(&volume.id) {
        let step = Step::Mount {
            instance: instance.id.clone(),
            slot,
            volume: volume.id.clone(),
            device: device_of(slot),
        };
        plan.add(view, &slot_subject(&instance.id, slot), vec![step]);
    }
}

/// A volume that nobody owns is attached; where there is none, one is made, and attached when it is there.
fn attach_or_make(
    view: &View<'_>,
    instance: &Instance,
    slot: u32,
    wanted: &WorkspaceVolume,
    spares: &mut Spares<'_>,
) -> Option<Vec<Step>> {
    if spares.is_coming(instance, slot) {
        return Some(Vec::new());
    }
    let for_slot = BTreeMap::from([
        (tags::SLOT_OF.to_owned(), instance.id.clone()),
        (tags::SLOT.to_owned(), slot.to_string()),
    ]);
    if let Some(volume) = spares.take(instance, slot) {
        let attach = Change::Attach {
            volume: volume.id.clone(),
            instance: instance.id.clone(),
            device: device_of(slot),
        };
        let mut steps = Vec::new();
        if volume.tags.contains_key(tags::ORPHANED_AT) {
            let keys = vec![tags::ORPHANED_AT.to_owned()];
            steps.push(Step::Cloud(Change::Untag { ids: vec![volume.id.clone()], keys }));
        }
        if made_for(volume) != Some((&instance.id, slot)) {
            steps.push(Step::Cloud(Change::Tag { ids: vec![volume.id.clone()], tags: for_slot }));
        }
        steps.push(Step::Cloud(attach));
        return Some(steps);
    }
    let mut all = own_tags(view);
    all.extend(for_slot);
    let (epoch, orders) = (view.pool.epoch.to_string(), view.memory.orders.to_string());
    let order = VolumeOrder {
        zone: instance.zone.clone(),
        size_gib: wanted.size_gib,
        type_: wanted.type_.clone(),
        encrypted: wanted.encrypted,
        kms_key: wanted.kms_key_id.clone(),
        snapshot: wanted.baseline_snapshot.clone(),
        tags: all,
        token: tags::token(&[view.pool.uid, &instance.id, &slot.to_string(), &epoch, &orders]),
    };
    Some(vec![Step::Cloud(Change::CreateVolume(order))])
}

/// The volumes that nobody owns. They are gone through once: a fleet may have thousands of slots to provide for.
struct Spares<'a> {
    /// By the instance and the slot that each was made for.
    made: BTreeMap<&'a str, BTreeMap<u32, Vec<&'a Volume>>>,
    /// Those that a slot can be given, by zone and id.
    usable: BTreeMap<&'a str, BTreeMap<&'a str, &'a Volume>>,
}

impl<'a> Spares<'a> {
    fn of(view: &View<'a>, wanted: &WorkspaceVolume) -> Self {
        let mut spares = Self { made: BTreeMap::new(), usable: BTreeMap::new() };
        for volume in view.facts.volumes.values().filter(|volume| is_nobodys(view, volume)) {
            if let Some((instance, slot)) = made_for(volume) {
                spares.made.entry(instance).or_default().entry(slot).or_default().push(volume);
            }
            let is_usable = volume.state == VolumeState::Available
                && volume.size_gib >= wanted.size_gib
                // One from before the pool had its baseline would begin cold.
                && (wanted.baseline_snapshot.is_none() || volume.snapshot == wanted.baseline_snapshot);
            if is_usable {
                spares.usable.entry(&volume.zone).or_default().insert(&volume.id, volume);
            }
        }
        spares
    }

    fn made(&self, instance: &Instance, slot: u32) -> &[&'a Volume] {
        let of_instance = self.made.get(instance.id.as_str());
        of_instance.and_then(|slots| slots.get(&slot)).map_or(&[], Vec::as_slice)
    }

    fn is_coming(&self, instance: &Instance, slot: u32) -> bool {
        self.made(instance, slot).iter().any(|volume| volume.state == VolumeState::Creating)
    }

    /// One for a slot, which is no other's from then on; that which was made for it before any other.
    fn take(&mut self, instance: &Instance, slot: u32) -> Option<&'a Volume> {
        let made: Vec<&str> = self.made(instance, slot).iter().map(|volume| volume.id.as_str()).collect();
        let usable = self.usable.get_mut(instance.zone.as_str())?;
        let own = made.into_iter().find_map(|id| usable.remove(id));
        own.or_else(|| usable.pop_first().map(|(_, volume)| volume))
    }
}

/// The instance and the slot that a volume was made for.
fn made_for(volume: &Volume) -> Option<(&str, u32)> {
    let (instance, slot) = volume.tags.get(tags::SLOT_OF).zip(volume.tags.get(tags::SLOT))?;
    Some((instance, slot.parse().ok()?))
}

/// Whether no environment owns a volume, by its tags, by a status, or by the slot it was last in.
pub fn is_nobodys(view: &View<'_>, volume: &Volume) -> bool {
    let is_of_place =
        made_for(volume).is_some_and(|(instance, slot)| view.places.contains(&(instance.to_owned(), slot)));
    !volume.tags.contains_key(tags::ENVIRONMENT) && !view.owned_volumes.contains(&volume.id) && !is_of_place
}
