//! What is to be done so that the machines are as the cloud says: pure, and nothing at all once they are.
//!
//! Each thing that a deed touches is touched by no other at the same time. An acknowledgement is repeated for as long as
//! the cloud waits for it, so one that got lost costs nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::deeds::{Blank, Boot, Deed, Keys, Local, Machine, Plan, Power};
use super::state::{
    Attachment, AttachmentState, Instance, InstanceState, Place, Snapshot, SnapshotState, State, Volume,
    VolumeState,
};

/// How long a pushed key opens an instance.
const KEY_LIFE: Duration = Duration::from_secs(60);

/// Compares what the cloud says with what there is.
pub fn plan(cloud: &State, local: &Local) -> Plan {
    let mut planner = Planner { cloud, local, busy: local.busy.clone(), plan: Plan::default() };
    for instance in &cloud.instances {
        planner.instance(instance);
    }
    planner.gone_instances();
    planner.snapshots();
    planner.volumes();
    planner.plan
}

struct Planner<'a> {
    cloud: &'a State,
    local: &'a Local,
    busy: BTreeSet<String>,
    plan: Plan,
}

impl Planner<'_> {
    fn is_busy(&self, id: &str) -> bool {
        self.busy.contains(id)
    }

    fn begin(&mut self, deed: Deed) {
        let touched: Vec<String> = deed.touches().into_iter().map(str::to_owned).collect();
        if touched.iter().all(|id| !self.is_busy(id)) {
            self.busy.extend(touched);
            self.plan.deeds.push(deed);
        }
    }

    fn instance(&mut self, told: &Instance) {
        let Some(address) = self.our_address(told) else {
            self.plan.strangers.push(told.id.clone());
            return;
        };
        if self.is_busy(&told.id) {
            return;
        }
        let instance = told.id.clone();
        let known = self.local.machines.get(&told.id);
        let power = known.map_or(Power::Off, |machine| machine.power);
        match (told.state, power) {
            (InstanceState::Pending | InstanceState::Running, Power::Off) => self.boot(told, address),
            (InstanceState::Pending | InstanceState::Running, Power::On(boot)) if boot == told.boots => {
                if told.state == InstanceState::Pending {
                    self.plan.ack.running.push(instance);
                }
                if let Some(machine) = known {
                    self.attachments(told, machine);
                    self.keys(told, machine);
                }
            }
            (InstanceState::Pending | InstanceState::Running, Power::Asleep(boot)) if boot == told.boots => {
                self.begin(Deed::Thaw { instance });
            }
            // It has stopped and started between two looks, or its memory was not kept after all.
            (InstanceState::Pending | InstanceState::Running, Power::On(_) | Power::Asleep(_)) => {
                self.begin(Deed::Kill { instance });
            }
            (InstanceState::Stopping | InstanceState::Stopped, Power::On(_)) if told.hibernated => {
                self.begin(Deed::Freeze { instance });
            }
            (InstanceState::Stopping | InstanceState::Stopped, Power::Asleep(_)) if told.hibernated => {
                self.has_stopped(told);
                if let Some(machine) = known {
                    self.attachments(told, machine);
                }
            }
            (InstanceState::Stopping | InstanceState::Stopped, Power::On(_) | Power::Asleep(_)) => {
                self.begin(Deed::Kill { instance });
            }
            (InstanceState::Stopping | InstanceState::Stopped, Power::Off) => {
                self.has_stopped(told);
                for volume in &told.volumes {
                    self.settled(told, volume);
                }
            }
            (InstanceState::ShuttingDown | InstanceState::Terminated, _) => self.end(&told.id),
        }
    }

    /// Its address, when it is one of this bed.
    fn our_address(&self, told: &Instance) -> Option<Ipv4Addr> {
        match told.address {
            Some(IpAddr::V4(address)) => {
                address.octets().starts_with(&[127, 77, self.local.subnet]).then_some(address)
            }
            Some(IpAddr::V6(_)) | None => None,
        }
    }

    fn boot(&mut self, told: &Instance, address: Ipv4Addr) {
        let Some(root) = told.root_volume.clone() else { return };
        let is_there = |attachment: &&Attachment| {
            attachment.id != root && attachment.state != AttachmentState::Detaching
        };
        let volumes: Vec<_> = told
            .volumes
            .iter()
            .filter(is_there)
            .map(|attachment| (attachment.id.clone(), attachment.device.clone()))
            .collect();
        if volumes.iter().map(|(volume, _)| volume).chain([&root]).all(|id| self.is_at_hand(id)) {
            self.begin(Deed::Boot(Boot {
                instance: told.id.clone(),
                address,
                has_key: told.key.is_some(),
                root,
                number: told.boots,
                volumes,
            }));
        }
    }

    fn has_stopped(&mut self, told: &Instance) {
        if told.state == InstanceState::Stopping {
            self.plan.ack.stopped.push(told.id.clone());
        }
    }

    fn end(&mut self, id: &str) {
        let Some(machine) = self.local.machines.get(id) else { return };
        let instance = id.to_owned();
        self.begin(match machine.power {
            Power::Off => Deed::Forget { instance },
            Power::On(_) | Power::Asleep(_) => Deed::Kill { instance },
        });
    }

    fn gone_instances(&mut self) {
        let told: BTreeSet<_> = self.cloud.instances.iter().map(|instance| &instance.id).collect();
        for id in self.local.machines.keys().filter(|id| !told.contains(id)) {
            self.end(id);
        }
    }

    /// Of an instance that has its volumes at hand.
    fn attachments(&mut self, told: &Instance, machine: &Machine) {
        let instance = || told.id.clone();
        for attachment in &told.volumes {
            let volume = || attachment.id.clone();
            match (attachment.state, machine.attached.get(&attachment.id)) {
                _ if attachment.id == machine.root => self.settled(told, attachment),
                (AttachmentState::Detaching, None) => self.settled(told, attachment),
                (AttachmentState::Attaching | AttachmentState::Attached, Some(held)) => {
                    if held.device == attachment.device {
                        self.settled(told, attachment);
                    } else {
                        // Taken by force and attached anew between two looks.
                        self.begin(Deed::PullOut { instance: instance(), volume: volume() });
                    }
                }
                (AttachmentState::Attaching | AttachmentState::Attached, None) => {
                    if self.is_at_hand(&attachment.id) {
                        let device = attachment.device.clone();
                        self.begin(Deed::Attach { instance: instance(), volume: volume(), device });
                    }
                }
                (AttachmentState::Detaching, Some(held)) => {
                    if !held.is_in_use {
                        self.begin(Deed::Detach { instance: instance(), volume: volume() });
                    }
                }
            }
        }
        let told_of = |id: &String| told.volumes.iter().any(|attachment| attachment.id == *id);
        for volume in machine.attached.keys().filter(|id| !told_of(id)) {
            // By force: the cloud does not wait until it is used no more.
            self.begin(Deed::PullOut { instance: instance(), volume: volume.clone() });
        }
    }

    /// The attachment is here as it is there.
    fn settled(&mut self, told: &Instance, attachment: &Attachment) {
        let place = || Place { volume: attachment.id.clone(), instance: told.id.clone() };
        match attachment.state {
            AttachmentState::Attaching => self.plan.ack.attached.push(place()),
            AttachmentState::Detaching => self.plan.ack.detached.push(place()),
            AttachmentState::Attached => {}
        }
    }

    fn keys(&mut self, told: &Instance, machine: &Machine) {
        let mut keys = Keys::new();
        for pushed in self.cloud.pushed_keys.iter().filter(|pushed| pushed.instance == told.id) {
            let age = Duration::try_from(self.cloud.now.duration_since(pushed.at)).unwrap_or_default();
            if age < KEY_LIFE {
                keys.entry(pushed.user.clone()).or_default().push(pushed.key.clone());
            }
        }
        if keys != machine.keys {
            self.begin(Deed::SetKeys { instance: told.id.clone(), keys });
        }
    }

    fn snapshots(&mut self) {
        for told in &self.cloud.snapshots {
            let is_here = self.local.snapshots.contains(&told.id);
            match told.state {
                SnapshotState::Pending if is_here && !self.is_busy(&told.id) => {
                    self.plan.ack.snapshots.push(told.id.clone());
                }
                SnapshotState::Pending | SnapshotState::Completed => {
                    if let Some(from) = told.copy_of.as_ref().filter(|_| !is_here) {
                        if self.local.snapshots.contains(from) {
                            self.begin(Deed::CopySnapshot { snapshot: told.id.clone(), from: from.clone() });
                        }
                    } else if !is_here && self.local.volumes.contains(&told.volume) {
                        let (snapshot, volume) = (told.id.clone(), told.volume.clone());
                        let holder = self.holder(&volume);
                        self.begin(Deed::TakeSnapshot { snapshot, volume, holder });
                    }
                }
                SnapshotState::Error => {}
            }
        }
        for snapshot in &self.local.snapshots {
            let is_told = self.cloud.snapshots.iter().any(|told| told.id == *snapshot);
            if !is_told && !self.is_wanted(snapshot) {
                self.begin(Deed::DeleteSnapshot { snapshot: snapshot.clone() });
            }
        }
    }

    /// Whether a volume is here and on no machine, as one may be that was taken by force a moment ago.
    fn is_at_hand(&self, volume: &str) -> bool {
        self.local.volumes.contains(volume) && self.holder(volume).is_none()
    }

    /// The instance that may write to a volume.
    fn holder(&self, volume: &str) -> Option<String> {
        let holds = |machine: &Machine| {
            machine.power != Power::Off && (machine.root == volume || machine.attached.contains_key(volume))
        };
        self.local.machines.iter().find(|(_, machine)| holds(machine)).map(|(id, _)| id.clone())
    }

    /// Whether a volume or a copy is still to be made from a snapshot.
    fn is_wanted(&self, snapshot: &str) -> bool {
        let is_copied = self.cloud.snapshots.iter().any(|told| {
            told.copy_of.as_deref() == Some(snapshot) && !self.local.snapshots.contains(&told.id)
        });
        let needs = |volume: &Volume| {
            volume.snapshot.as_deref() == Some(snapshot) && !self.local.volumes.contains(&volume.id)
        };
        is_copied || self.cloud.volumes.iter().any(needs)
    }

    fn volumes(&mut self) {
        let (mut listed, mut roots) = (BTreeSet::new(), BTreeSet::new());
        roots.extend(self.cloud.instances.iter().filter_map(|instance| instance.root_volume.as_deref()));
        for told in &self.cloud.volumes {
            match told.state {
                VolumeState::Creating | VolumeState::Available | VolumeState::InUse => {
                    listed.insert(told.id.as_str());
                    self.volume(told, roots.contains(told.id.as_str()));
                }
                VolumeState::Deleting => {
                    listed.insert(told.id.as_str());
                }
            }
        }
        for volume in self.local.volumes.iter().filter(|id| !listed.contains(id.as_str())) {
            if self.holder(volume).is_none() {
                self.begin(Deed::DeleteVolume { volume: volume.clone() });
            }
        }
    }

    fn volume(&mut self, told: &Volume, is_root: bool) {
        let volume = told.id.clone();
        if self.local.volumes.contains(&volume) {
            if told.state == VolumeState::Creating && !self.is_busy(&volume) {
                self.plan.ack.volumes.push(volume);
            }
            return;
        }
        let blank = if is_root { Blank::Root } else { Blank::Device(told.size) };
        match &told.snapshot {
            Some(snapshot) if self.local.snapshots.contains(snapshot) => {
                let (snapshot, gib) = (snapshot.clone(), told.size);
                self.begin(Deed::RestoreVolume { volume, snapshot, gib });
            }
            Some(snapshot) if self.will_come(snapshot) => {}
            // A snapshot whose volume was never here is an image's, and holds what every new disk does.
            Some(_) | None => self.begin(Deed::MakeVolume { volume, blank }),
        }
    }

    /// Whether a snapshot that is not here yet is about to be taken.
    fn will_come(&self, snapshot: &str) -> bool {
        let told = self.cloud.snapshots.iter().find(|told| told.id == snapshot);
        let comes = |told: &Snapshot| match &told.copy_of {
            Some(from) => self.local.snapshots.contains(from),
            None => self.local.volumes.contains(&told.volume),
        };
        told.is_some_and(comes) || self.is_busy(snapshot)
    }
}

#[cfg(test)]
mod tests;
