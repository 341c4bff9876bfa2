//! What is known of a pool's part of its cloud. Pure.
//!
//! A look at the cloud lags: what is missing in one is gone only when the cloud says so, or when it is missing in several
//! over a minute. What was seen to be missing, and since when, is therefore part of the facts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use self::tagged::Tagged;
use crate::provider::{
    Group, Ids, Instance, InstanceState, Observation, Snapshot, SnapshotState, Volume, VolumeState, tags,
};

pub mod tagged;

/// How many looks in a row, over how long, must miss a thing before it counts as gone.
const MISSES: u32 = 3;
const MISSED_FOR: SignedDuration = SignedDuration::from_secs(60);

/// A pool's part of its cloud.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// When the look they are from was begun.
    pub at: Timestamp,
    /// The pool's group; `None` when it does not exist.
    pub group: Option<Group>,
    /// Members of the group if the pool has it, and instances that carry the pool's tag or that its objects rely on.
    pub instances: BTreeMap<String, Instance>,
    /// Volumes that carry the pool's tag, or that its objects rely on.
    pub volumes: Tagged<Volume>,
    /// Snapshots that carry the pool's tag, or that its objects rely on.
    pub snapshots: Tagged<Snapshot>,
    /// What earlier looks showed and this one does not.
    missing: BTreeMap<String, Missing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Missing {
    since: Timestamp,
    looks: u32,
}

/// What is known of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It boots.
    Starting,
    /// It runs.
    Running,
    /// It is being stopped.
    Stopping,
    /// It is stopped.
    Stopped,
    /// It is gone for good.
    Gone,
    /// It is not seen now. It may be new, or the look incomplete.
    Unseen,
}

/// What is known of a volume or snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// It is there.
    There(T),
    /// It is gone for good.
    Gone,
    /// It is not seen now.
    Unseen,
}

/// Whose facts they are.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The pool's uid.
    pub pool_uid: &'a str,
    /// The name of its group.
    pub group: &'a str,
    /// Whether the pool may use the group as far as its cluster knows: it is allowed to, and no older pool has it.
    pub may_use_group: bool,
}

impl Facts {
    /// What a look shows of one pool, on top of what was known before. What its objects rely on is the pool's although
    /// somebody took its tags; not what carries another pool's. The members of a group are the pool's as long as the group
    /// is: a pool that only names it must neither connect to them nor count them.
    pub fn of(observation: &Observation, owner: Owner<'_>, relied_on: &Ids, before: Option<&Self>) -> Self {
        let Owner { pool_uid, group, may_use_group } = owner;
        let is_ours = |id: &String, tags: &BTreeMap<String, String>, relied_on: &BTreeSet<String>| {
            tags.get(tags::POOL).map_or(relied_on.contains(id), |uid| uid == pool_uid)
        };
        let group_of_pool = observation.groups.get(group);
        let has_group =
            may_use_group && group_of_pool.is_none_or(|group| group.pool_besides(pool_uid).is_none());
        let instances: BTreeMap<String, Instance> = observation
            .instances
            .iter()
            .filter(|(id, instance)| {
                let is_ours = is_ours(id, &instance.tags, &relied_on.instances);
                match &instance.member {
                    Some(member) => member.group == group && (has_group || is_ours),
                    None => is_ours,
                }
            })
            .map(|(id, instance)| (id.clone(), instance.clone()))
            .collect();
        let volumes = observation.volumes.iter();
        let volumes = volumes.filter(|(id, volume)| is_ours(id, &volume.tags, &relied_on.volumes));
        let volumes = volumes.map(|(_, volume)| volume.clone()).collect();
        let snapshots = observation.snapshots.iter();
        let snapshots = snapshots.filter(|(id, snapshot)| is_ours(id, &snapshot.tags, &relied_on.snapshots));
        let snapshots = snapshots.map(|(_, snapshot)| snapshot.clone()).collect();
        let mut facts = Self {
            at: observation.at,
            group: group_of_pool.cloned(),
            instances,
            volumes,
            snapshots,
            missing: BTreeMap::new(),
        };
        if let Some(before) = before {
            let known = before.instances.keys().chain(before.volumes.keys()).chain(before.snapshots.keys());
            for id in known.chain(before.missing.keys()) {
                facts.miss(id, before);
            }
        }
        facts
    }

    /// Says of things that somebody relies on that they were looked for: what no look of this holder has shown begins to
    /// be missing now.
    pub fn expect<'a>(&mut self, ids: impl Iterator<Item = &'a str>, before: Option<&Self>) {
        let empty = Self::default();
        for id in ids {
            self.miss(id, before.unwrap_or(&empty));
        }
    }

    fn miss(&mut self, id: &str, before: &Self) {
        if self.shows(id) || self.missing.contains_key(id) {
            return;
        }
        let before = before.missing.get(id).copied().unwrap_or(Missing { since: self.at, looks: 0 });
        self.missing
            .insert(id.to_owned(), Missing { since: before.since, looks: before.looks.saturating_add(1) });
    }

    fn shows(&self, id: &str) -> bool {
        self.instances.contains_key(id) || self.volumes.contains_key(id) || self.snapshots.contains_key(id)
    }

    fn is_missed(&self, id: &str) -> bool {
        self.missing.get(id).is_some_and(|missing| {
            missing.looks >= MISSES && self.at.duration_since(missing.since) >= MISSED_FOR
        })
    }

    /// What is known of an instance.
    pub fn fate(&self, id: &str) -> Fate {
        match self.instances.get(id).map(|instance| instance.state) {
            Some(InstanceState::Pending) => Fate::Starting,
            Some(InstanceState::Running) => Fate::Running,
            Some(InstanceState::Stopping) => Fate::Stopping,
            Some(InstanceState::Stopped) => Fate::Stopped,
            Some(InstanceState::ShuttingDown | InstanceState::Terminated) => Fate::Gone,
            None if self.is_missed(id) => Fate::Gone,
            None => Fate::Unseen,
        }
    }

    /// What is known of a volume.
    pub fn volume(&self, id: &str) -> Found<&Volume> {
        match self.volumes.get(id) {
            Some(volume) => match volume.state {
                VolumeState::Creating | VolumeState::Available | VolumeState::InUse => Found::There(volume),
                VolumeState::Deleting | VolumeState::Failed => Found::Gone,
            },
            None if self.is_missed(id) => Found::Gone,
            None => Found::Unseen,
        }
    }

    /// What is known of a snapshot.
    pub fn snapshot(&self, id: &str) -> Found<&Snapshot> {
        match self.snapshots.get(id) {
            Some(snapshot) => match snapshot.state {
                SnapshotState::Pending | SnapshotState::Completed => Found::There(snapshot),
                SnapshotState::Failed => Found::Gone,
            },
            None if self.is_missed(id) => Found::Gone,
            None => Found::Unseen,
        }
    }

    /// The volume at a device of an instance.
    pub fn volume_at(&self, instance: &str, device: &str) -> Option<&Volume> {
        self.volumes.values().find(|volume| {
            volume
                .attachment
                .as_ref()
                .is_some_and(|attachment| attachment.instance == instance && attachment.device == device)
        })
    }

    /// Ids of volumes that were shown in slots of instances: nobody but their slots may know of them.
    pub fn volumes_in_slots(&self) -> impl Iterator<Item = &str> {
        // Known by its tags once, and by its place from then on. A stranger's volume at such a device is never taken in.
        let in_slot = |volume: &&Volume| {
            let attachment = volume.attachment.as_ref();
            attachment
                .is_some_and(|it| self.instances.contains_key(&it.instance) && slot_at(&it.device).is_some())
        };
        self.volumes.values().filter(in_slot).map(|volume| volume.id.as_str())
    }

    /// Ids about which these facts say another thing than those before.
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        let ids = self.instances.keys().chain(self.volumes.keys()).chain(self.snapshots.keys());
        let mut ids: Vec<&String> = ids.chain(before.ids()).chain(self.missing.keys()).collect();
        ids.sort_unstable();
        ids.dedup();
        let differs = |id: &&String| {
            self.instances.get(*id) != before.instances.get(*id)
                || self.volumes.get(*id) != before.volumes.get(*id)
                || self.snapshots.get(*id) != before.snapshots.get(*id)
                || self.is_missed(id) != before.is_missed(id)
        };
        ids.into_iter().filter(differs).cloned().collect()
    }

    fn ids(&self) -> impl Iterator<Item = &String> {
        self.instances.keys().chain(self.volumes.keys()).chain(self.snapshots.keys())
    }
}

/// The slot that a device name belongs to, if it is one of [`device_of`].
pub fn slot_at(device: &str) -> Option<u32> {
    let mut letter = device.strip_prefix("/dev/sd")?.chars();
    let slot = letter.next().filter(|letter| ('f'..='z').contains(letter))? as u32 - 'f' as u32;
    letter.next().is_none().then_some(slot)
}

/// The device name of a slot's workspace volume. EC2 recommends f to p for volumes that are added.
pub fn device_of(slot: u32) -> String {
    let letter = char::from_u32('f' as u32 + slot).filter(char::is_ascii_lowercase).unwrap_or('z');
    format!("/dev/sd{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{Lifecycle, Member};

    fn volume(id: &str, tags: &[(&str, &str)]) -> Volume {
        Volume {
            id: id.into(),
            state: VolumeState::Available,
            zone: "a".into(),
            size_gib: 1,
            attachment: None,
            created_at: None,
            snapshot: None,
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn what_is_relied_on_is_the_pools_without_a_tag_and_not_with_anothers() {
        let volumes = [
            volume("vol-1", &[(tags::POOL, "p")]),
            volume("vol-2", &[]),
            volume("vol-3", &[(tags::POOL, "other")]),
            volume("vol-4", &[]),
        ];
        let observation = Observation {
            at: Timestamp::UNIX_EPOCH,
            groups: BTreeMap::new(),
            instances: BTreeMap::new(),
            volumes: volumes.map(|volume| (volume.id.clone(), volume)).into(),
            snapshots: BTreeMap::new(),
        };
        let relied_on =
            Ids { volumes: ["vol-1", "vol-2", "vol-3", "vol-5"].map(str::to_owned).into(), ..Ids::default() };
        let owner = Owner { pool_uid: "p", group: "g", may_use_group: true };
        let facts = Facts::of(&observation, owner, &relied_on, None);
        assert_eq!(facts.volumes.keys().collect::<Vec<_>>(), ["vol-1", "vol-2"]);
    }

    fn member(id: &str, tags: &[(&str, &str)]) -> Instance {
        Instance {
            member: Some(Member {
                group: "g".into(),
                lifecycle: Lifecycle::InService,
                is_protected: false,
                is_healthy: true,
            }),
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Instance::for_test(id)
        }
    }

    #[test]
    fn members_are_a_pools_that_has_the_group_and_else_only_where_it_relies_on_them() {
        let instances =
            [member("i-plain", &[]), member("i-used", &[]), member("i-tagged", &[(tags::POOL, "p")])];
        let instances: BTreeMap<_, _> = instances.map(|it| (it.id.clone(), it)).into();
        let relied_on = Ids { instances: ["i-used".to_owned()].into(), ..Ids::default() };
        let everything = vec!["i-plain", "i-tagged", "i-used"];
        let own = vec!["i-tagged", "i-used"];
        for (tag, may_use_group, expected) in [
            (None, true, &everything),
            (Some("p"), true, &everything),
            (Some("other"), true, &own),
            (None, false, &own),
            (Some("p"), false, &own),
        ] {
            let tags = tag.map(|uid: &str| (tags::POOL.to_owned(), uid.to_owned())).into_iter().collect();
            let group = Group { name: "g".into(), tags, ..Group::default() };
            let observation = Observation {
                at: Timestamp::UNIX_EPOCH,
                groups: BTreeMap::from([("g".to_owned(), group)]),
                instances: instances.clone(),
                volumes: BTreeMap::new(),
                snapshots: BTreeMap::new(),
            };
            let owner = Owner { pool_uid: "p", group: "g", may_use_group };
            let facts = Facts::of(&observation, owner, &relied_on, None);
            assert_eq!(facts.instances.keys().collect::<Vec<_>>(), *expected, "{tag:?} {may_use_group}");
        }
    }

    #[test]
    fn a_device_belongs_to_the_slot_it_is_the_device_of() {
        for slot in 0..20 {
            assert_eq!(slot_at(&device_of(slot)), Some(slot));
        }
        for device in ["/dev/sda1", "/dev/sde", "/dev/sdf1", "/dev/xvdf", "/dev/sd"] {
            assert_eq!(slot_at(device), None, "{device}");
        }
    }
}
