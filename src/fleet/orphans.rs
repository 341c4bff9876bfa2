//! What to do with things in the cloud that are ours by their tags and that no object owns. Pure.
//!
//! Nothing is deleted on first sight. What no object owns is marked by a tag first, and goes only when the mark has been there
//! for the grace, with caches in sync: the object may come back from a backup, or the cloud may have shown something
//! before the object that is about to name it. What belongs to an environment that has not expired is never deleted: it is
//! handed over for adoption. The mark is in the cloud, so that a new holder goes on from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::provider::{Attachment, Instance, Lifecycle, Observation, Volume, VolumeState, tags};

/// How long something that no object owns is left alone once it has been marked.
pub const GRACE: Duration = Duration::from_secs(15 * 60);

/// How long something that was just made is not even marked: who made it may not have come to say so yet.
const YOUTH: SignedDuration = SignedDuration::from_mins(2);

/// What the objects of a pool say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The cluster's id.
    pub cluster: String,
    /// The pool's uid.
    pub pool: String,
    /// Ids of the environments that have an object, those that are being deleted included, and those of open leases.
    pub environments: BTreeSet<String>,
    /// Instances that a lease or an object names.
    pub instances: BTreeSet<String>,
    /// Volumes that an object names, or that are in use in another way.
    pub volumes: BTreeSet<String>,
    /// Snapshots that an object or the pool's spec names.
    pub snapshots: BTreeSet<String>,
    /// Whether all objects are known. Nothing is done before.
    pub is_synced: bool,
}

/// What kind of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An instance.
    Instance,
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
}

/// What is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put the tag on it.
    Mark {
        /// Its value: now.
        at: Timestamp,
    },
    /// Take the tag off it: an object owns it again.
    Unmark,
    /// Delete or terminate it.
    Delete,
    /// Write the object of its environment again from its tags.
    Adopt {
        /// The environment's id.
        environment: String,
    },
}

/// A thing and what is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its id.
    pub id: String,
    /// What kind of thing it is.
    pub kind: Kind,
    /// What is to be done.
    pub step: Step,
}

/// Decides about what is ours by its tags: instances first, then volumes, then snapshots, each in the order of their ids.
/// An environment may be named more than once for adoption, by its volume and by its snapshot.
pub fn sweep(seen: &Observation, known: &Known, now: Timestamp, grace: Duration) -> Vec<Orphan> {
    if !known.is_synced {
        return Vec::new();
    }
    let sweep = Sweep { seen, known, now, grace };
    let instances = seen.instances.values().filter_map(|it| sweep.instance(it));
    let volumes =
        seen.volumes.values().filter(|it| !matches!(it.state, VolumeState::Deleting)).filter_map(|it| {
            // One that an environment has taken elsewhere is not of the slot any more that it was made for.
            let is_of_slot = !it.tags.contains_key(tags::ENVIRONMENT)
                && it.tags.get(tags::SLOT_OF).is_some_and(|instance| sweep.is_there(instance));
            let is_used = it.attachment.as_ref().is_some_and(|attachment| sweep.is_used(attachment));
            let is_owned = known.volumes.contains(&it.id) || is_used && !sweep.sleeps(it) || is_of_slot;
            let orphan = sweep.decide(&it.id, Kind::Volume, &it.tags, is_owned, it.created_at);
            orphan.filter(|orphan| !is_used || orphan.step != Step::Delete)
        });
    let snapshots = seen.snapshots.values().filter_map(|it| {
        let is_owned = known.snapshots.contains(&it.id);
        sweep.decide(&it.id, Kind::Snapshot, &it.tags, is_owned, it.started_at)
    });
    instances.chain(volumes).chain(snapshots).collect()
}

struct Sweep<'a> {
    seen: &'a Observation,
    known: &'a Known,
    now: Timestamp,
    grace: Duration,
}

impl Sweep<'_> {
    fn instance(&self, instance: &Instance) -> Option<Orphan> {
        // The record of one that is gone stays for an hour.
        if instance.state.is_gone() {
            return None;
        }
        let mut environments = tags::environments_by_slot(&instance.tags).into_values();
        let is_owned = is_member(instance)
            || self.known.instances.contains(&instance.id)
            || environments.any(|environment| self.known.environments.contains(environment));
        self.decide(&instance.id, Kind::Instance, &instance.tags, is_owned, instance.launched_at)
    }

    /// Whether an instance is there, whosever it is.
    fn is_there(&self, instance: &str) -> bool {
        self.seen.instances.get(instance).is_some_and(|instance| !instance.state.is_gone())
    }

    /// Whether a volume is attached. The instance may be one that is not ours and not seen; it cannot be deleted then
    /// anyhow. One that a gone instance still seems to hold is about to be free.
    fn is_used(&self, attachment: &Attachment) -> bool {
        let instance = self.seen.instances.get(&attachment.instance);
        instance.is_none_or(|instance| !instance.state.is_gone())
    }

    /// Whether a volume is an environment's that sleeps on an instance of the pool's. Several on one instance are found by
    /// their volumes: the instance's own tags have room for one.
    fn sleeps(&self, volume: &Volume) -> bool {
        let instance = volume.attachment.as_ref().and_then(|it| self.seen.instances.get(&it.instance));
        let is_kept = |instance: &Instance| !is_member(instance) && self.is_ours(&instance.tags);
        volume.tags.contains_key(tags::ENVIRONMENT) && instance.is_some_and(is_kept)
    }

    fn is_ours(&self, tags: &BTreeMap<String, String>) -> bool {
        let is = |key: &str, value: &String| tags.get(key) == Some(value);
        is(tags::CLUSTER, &self.known.cluster) && is(tags::POOL, &self.known.pool)
    }

    fn decide(
        &self,
        id: &str,
        kind: Kind,
        tags: &BTreeMap<String, String>,
        is_owned: bool,
        made_at: Option<Timestamp>,
    ) -> Option<Orphan> {
        let tag = |key: &str| tags.get(key).map(String::as_str);
        if !self.is_ours(tags) {
            return None;
        }
        let orphan = |step| Some(Orphan { id: id.to_owned(), kind, step });
        let environment = tag(tags::ENVIRONMENT);
        let is_owned =
            is_owned || environment.is_some_and(|environment| self.known.environments.contains(environment));
        let mark = tag(tags::ORPHANED_AT);
        if is_owned {
            return mark.and_then(|_| orphan(Step::Unmark));
        }
        let marked_at = mark.and_then(|mark| mark.parse::<Timestamp>().ok());
        let Some(marked_at) = marked_at.filter(|at| self.is_plausible(*at)) else {
            // Without a grace nobody is left who could come to say so.
            let is_new = made_at.is_some_and(|at| self.now.duration_since(at) < YOUTH);
            let is_young = is_new && !self.grace.is_zero();
            return if is_young && mark.is_none() { None } else { orphan(Step::Mark { at: self.now }) };
        };
        let grace = SignedDuration::try_from(self.grace).unwrap_or(SignedDuration::MAX);
        if self.now.duration_since(marked_at) < grace {
            return None;
        }
        // An expiry that cannot be read is not over.
        let has_expired = |expiry: &str| expiry.parse::<Timestamp>().is_ok_and(|expiry| expiry <= self.now);
        match (tag(tags::EXPIRES_AT).is_none_or(has_expired), environment) {
            (true, _) => orphan(Step::Delete),
            (false, Some(environment)) => orphan(Step::Adopt { environment: environment.to_owned() }),
            (false, None) => None,
        }
    }

    /// Whether a mark may have been made at a time: one from the future was made by a clock that was wrong, and would
    /// keep the thing for ever.
    fn is_plausible(&self, marked_at: Timestamp) -> bool {
        marked_at.duration_since(self.now) < SignedDuration::from_mins(5)
    }
}

fn is_member(instance: &Instance) -> bool {
    instance.member.as_ref().is_some_and(|member| member.lifecycle != Lifecycle::Gone)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::provider::{InstanceState, Member, Snapshot, SnapshotState};

    const E: &str = "abcdefghijklmnop2345";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn known() -> Known {
        Known { cluster: "c".into(), pool: "p".into(), is_synced: true, ..Known::default() }
    }

    fn ours(extra: &[(&str, &str)]) -> BTreeMap<String, String> {
        let ours = [(tags::CLUSTER, "c"), (tags::POOL, "p")];
        ours.iter().chain(extra).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn instance(id: &str, tags: BTreeMap<String, String>) -> Instance {
        Instance { launched_at: Some(at(0)), tags, ..Instance::for_test(id) }
    }

    fn volume(id: &str, tags: BTreeMap<String, String>) -> Volume {
        Volume {
            id: id.into(),
            state: VolumeState::Available,
            zone: "a".into(),
            size_gib: 20,
            attachment: None,
            created_at: Some(at(0)),
            snapshot: None,
            tags,
        }
    }

    fn snapshot(id: &str, tags: BTreeMap<String, String>) -> Snapshot {
        Snapshot {
            id: id.into(),
            state: SnapshotState::Completed,
            volume: "vol-0".into(),
            size_gib: 20,
            started_at: Some(at(0)),
            tags,
        }
    }

    fn world(instances: Vec<Instance>, volumes: Vec<Volume>, snapshots: Vec<Snapshot>) -> Observation {
        Observation {
            at: at(0),
            groups: BTreeMap::new(),
            instances: instances.into_iter().map(|it| (it.id.clone(), it)).collect(),
            volumes: volumes.into_iter().map(|it| (it.id.clone(), it)).collect(),
            snapshots: snapshots.into_iter().map(|it| (it.id.clone(), it)).collect(),
        }
    }

    fn steps(seen: &Observation, known: &Known, now: i64) -> Vec<(String, Step)> {
        sweep(seen, known, at(now), GRACE).into_iter().map(|orphan| (orphan.id, orphan.step)).collect()
    }

    /// The tags after a step.
    fn carry_out(seen: &mut Observation, orphans: &[Orphan]) {
        for orphan in orphans {
            let tags = match orphan.kind {
                Kind::Instance => &mut seen.instances.get_mut(&orphan.id).unwrap().tags,
                Kind::Volume => &mut seen.volumes.get_mut(&orphan.id).unwrap().tags,
                Kind::Snapshot => &mut seen.snapshots.get_mut(&orphan.id).unwrap().tags,
            };
            match &orphan.step {
                Step::Mark { at } => drop(tags.insert(tags::ORPHANED_AT.into(), at.to_string())),
                Step::Unmark => drop(tags.remove(tags::ORPHANED_AT)),
                Step::Delete => match orphan.kind {
                    Kind::Instance => drop(seen.instances.remove(&orphan.id)),
                    Kind::Volume => drop(seen.volumes.remove(&orphan.id)),
                    Kind::Snapshot => drop(seen.snapshots.remove(&orphan.id)),
                },
                Step::Adopt { .. } => {}
            }
        }
    }

    #[test]
    fn an_orphan_is_marked_first_and_deleted_after_the_grace_in_order() {
        let mut seen = world(
            vec![instance("i-1", ours(&[]))],
            vec![volume("vol-1", ours(&[]))],
            vec![snapshot("snap-1", ours(&[]))],
        );
        let marks = sweep(&seen, &known(), at(1_000), GRACE);
        assert!(marks.iter().all(|orphan| orphan.step == Step::Mark { at: at(1_000) }) && marks.len() == 3);
        carry_out(&mut seen, &marks);
        assert_eq!(steps(&seen, &known(), 1_899), []);
        let gone = sweep(&seen, &known(), at(1_900), GRACE);
        let order: Vec<&str> = gone.iter().map(|orphan| orphan.id.as_str()).collect();
        assert_eq!(order, ["i-1", "vol-1", "snap-1"]);
        assert!(gone.iter().all(|orphan| orphan.step == Step::Delete));
    }

    #[test]
    fn what_is_owned_again_loses_its_mark() {
        let mark = (tags::ORPHANED_AT, "1970-01-01T00:00:00Z");
        let seen = world(
            vec![instance("i-1", ours(&[mark, (&tags::slot_key(1), E)]))],
            vec![volume("vol-1", ours(&[mark, (tags::ENVIRONMENT, E)])), volume("vol-2", ours(&[mark]))],
            vec![snapshot("snap-1", ours(&[mark]))],
        );
        let known = Known {
            environments: BTreeSet::from([E.to_owned()]),
            volumes: BTreeSet::from(["vol-2".to_owned()]),
            snapshots: BTreeSet::from(["snap-1".to_owned()]),
            ..known()
        };
        let steps = steps(&seen, &known, 9_999);
        assert!(steps.iter().all(|(_, step)| *step == Step::Unmark) && steps.len() == 4, "{steps:?}");
    }

    #[test]
    fn members_and_what_is_attached_or_made_for_a_living_instance_are_left_alone() {
        let member =
            |lifecycle| Member { group: "g".into(), lifecycle, is_protected: false, is_healthy: true };
        let retained = Instance { member: Some(member(Lifecycle::Retained)), ..instance("i-1", ours(&[])) };
        let left = Instance { member: Some(member(Lifecycle::Gone)), ..instance("i-2", ours(&[])) };
        let gone = Instance { state: InstanceState::Terminated, ..instance("i-3", ours(&[])) };
        let attached = |id: &str, instance: &str| Volume {
            attachment: Some(Attachment {
                instance: instance.into(),
                device: "/dev/sdf".into(),
                is_attached: true,
                is_detaching: false,
            }),
            ..volume(id, ours(&[]))
        };
        let volumes = vec![
            attached("vol-1", "i-1"),
            attached("vol-2", "i-3"),
            attached("vol-3", "i-stranger"),
            volume("vol-4", ours(&[(tags::SLOT_OF, "i-1")])),
            volume("vol-5", ours(&[(tags::SLOT_OF, "i-3")])),
            Volume { state: VolumeState::Deleting, ..volume("vol-6", ours(&[])) },
        ];
        let marked: Vec<String> = steps(&world(vec![retained, left, gone], volumes, vec![]), &known(), 999)
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        assert_eq!(marked, ["i-2", "vol-2", "vol-5"]);
    }

    #[test]
    fn the_volume_of_a_forgotten_environment_is_not_its_first_slots() {
        let mark = (tags::ORPHANED_AT, "1970-01-01T00:00:00Z");
        let expiry = (tags::EXPIRES_AT, "1970-01-01T01:00:00Z");
        let left = ours(&[mark, expiry, (tags::SLOT_OF, "i-1"), (tags::ENVIRONMENT, E)]);
        let member = Member {
            group: "g".into(),
            lifecycle: Lifecycle::InService,
            is_protected: true,
            is_healthy: true,
        };
        let living = Instance { member: Some(member), ..instance("i-1", ours(&[])) };
        let seen = world(vec![living], vec![volume("vol-1", left)], vec![]);
        assert_eq!(steps(&seen, &known(), 3_000), [("vol-1".into(), Step::Adopt { environment: E.into() })]);
    }

    #[test]
    fn environments_that_sleep_on_one_instance_are_adopted_by_their_volumes() {
        const F: &str = "bcdefghijklmnopq2345";
        let mark = (tags::ORPHANED_AT, "1970-01-01T00:00:00Z");
        let expiry = (tags::EXPIRES_AT, "1970-01-01T01:00:00Z");
        let asleep = |id: &str, on: &str, environment: &str| Volume {
            attachment: Some(Attachment {
                instance: on.into(),
                device: "/dev/sdf".into(),
                is_attached: true,
                is_detaching: false,
            }),
            ..volume(id, ours(&[mark, expiry, (tags::ENVIRONMENT, environment)]))
        };
        let slots = [(tags::slot_key(0), E), (tags::slot_key(1), F)];
        let slots = slots.each_ref().map(|(key, value)| (key.as_str(), *value));
        let kept = instance("i-1", ours(&[[mark, expiry].as_slice(), slots.as_slice()].concat()));
        let member = Member {
            group: "g".into(),
            lifecycle: Lifecycle::InService,
            is_protected: true,
            is_healthy: true,
        };
        let living = Instance { member: Some(member), ..instance("i-2", ours(&[])) };
        let persons = instance("i-3", BTreeMap::new());
        let volumes = vec![
            asleep("vol-1", "i-1", E),
            asleep("vol-2", "i-1", F),
            asleep("vol-3", "i-2", E),
            asleep("vol-4", "i-3", E),
        ];
        let seen = world(vec![kept, living, persons], volumes, vec![]);
        let adopt = |id: &str, environment: &str| {
            (id.to_owned(), Step::Adopt { environment: environment.to_owned() })
        };
        let marks: Vec<_> = ["vol-3", "vol-4"].map(|id| (id.to_owned(), Step::Unmark)).into();
        let adopted = [vec![adopt("vol-1", E), adopt("vol-2", F)], marks.clone()].concat();
        assert_eq!(steps(&seen, &known(), 3_000), adopted);
        // What is attached goes with its instance first.
        let gone = [vec![("i-1".to_owned(), Step::Delete)], marks].concat();
        assert_eq!(steps(&seen, &known(), 3_600), gone);
    }

    #[test]
    fn what_has_not_expired_is_adopted_and_not_deleted() {
        let mark = (tags::ORPHANED_AT, "1970-01-01T00:00:00Z");
        let until = |expiry| ours(&[mark, (tags::ENVIRONMENT, E), (tags::EXPIRES_AT, expiry)]);
        let seen = world(
            vec![],
            vec![
                volume("vol-1", until("1970-01-01T01:00:00Z")),
                volume("vol-2", until("soon")),
                volume("vol-3", ours(&[mark, (tags::EXPIRES_AT, "1970-01-01T01:00:00Z")])),
            ],
            vec![],
        );
        let adopt = |id: &str| (id.to_owned(), Step::Adopt { environment: E.into() });
        assert_eq!(steps(&seen, &known(), 3_599), [adopt("vol-1"), adopt("vol-2")]);
        let deleted = ["vol-1", "vol-3"].map(|id| (id.to_owned(), Step::Delete));
        assert_eq!(steps(&seen, &known(), 3_600), [deleted[0].clone(), adopt("vol-2"), deleted[1].clone()]);
    }

    #[test]
    fn what_was_just_made_is_not_marked_and_a_mark_that_makes_no_sense_is_made_anew() {
        let young = Volume { created_at: Some(at(900)), ..volume("vol-1", ours(&[])) };
        let odd = volume("vol-2", ours(&[(tags::ORPHANED_AT, "yesterday")]));
        let future = volume("vol-3", ours(&[(tags::ORPHANED_AT, "2070-01-01T00:00:00Z")]));
        let mark = |id: &str| (id.to_owned(), Step::Mark { at: at(1_000) });
        let seen = world(vec![], vec![young, odd, future], vec![]);
        assert_eq!(steps(&seen, &known(), 1_000), [mark("vol-2"), mark("vol-3")]);
        // A pool that is being deleted gives everything back.
        let last = sweep(&seen, &known(), at(1_000), Duration::ZERO);
        assert_eq!(last.len(), 3, "{last:?}");
    }

    prop_compose! {
        fn any_tags()(
            cluster in 0usize..4, pool in 0usize..4, environment in proptest::option::of(0u32..4),
            expires_at in proptest::option::of(0i64..8_000), orphaned_at in proptest::option::of(0i64..4_000),
        ) -> BTreeMap<String, String> {
            let mut tags = BTreeMap::new();
            tags.insert(tags::CLUSTER.into(), ["c", "c", "c", "other"][cluster].into());
            tags.insert(tags::POOL.into(), ["p", "p", "p", "other"][pool].into());
            tags.extend(environment.map(|id| (tags::ENVIRONMENT.into(), format!("e{id}"))));
            tags.extend(expires_at.map(|time| (tags::EXPIRES_AT.into(), at(time).to_string())));
            tags.extend(orphaned_at.map(|time| (tags::ORPHANED_AT.into(), at(time).to_string())));
            tags
        }
    }

    prop_compose! {
        fn any_world()(
            instances in proptest::collection::vec((any_tags(), any::<bool>(), 0usize..3), 0..4),
            volumes in proptest::collection::vec((any_tags(), proptest::option::of(0usize..5)), 0..5),
            snapshots in proptest::collection::vec(any_tags(), 0..4),
        ) -> Observation {
            let states = [InstanceState::Running, InstanceState::Stopped, InstanceState::Terminated];
            let instances = instances.into_iter().enumerate().map(|(n, (tags, is_member, state))| {
                let member = is_member.then(|| Member {
                    group: "g".into(), lifecycle: Lifecycle::InService, is_protected: true, is_healthy: true,
                });
                Instance { member, state: states[state], ..instance(&format!("i-{n}"), tags) }
            });
            let volumes = volumes.into_iter().enumerate().map(|(n, (tags, on))| Volume {
                attachment: on.map(|on| Attachment {
                    instance: format!("i-{on}"), device: "/dev/sdf".into(), is_attached: true, is_detaching: false,
                }),
                ..volume(&format!("vol-{n}"), tags)
            });
            let snapshots = snapshots.into_iter().enumerate().map(|(n, tags)| snapshot(&format!("snap-{n}"), tags));
            world(instances.collect(), volumes.collect(), snapshots.collect())
        }
    }

    prop_compose! {
        fn any_known()(
            environments in proptest::collection::btree_set(0u32..4, 0..4),
            instances in proptest::collection::btree_set(0u32..4, 0..3),
            volumes in proptest::collection::btree_set(0u32..5, 0..3),
        ) -> Known {
            let named = |prefix: &str, set: BTreeSet<u32>| set.iter().map(|n| format!("{prefix}{n}")).collect();
            Known {
                environments: named("e", environments), instances: named("i-", instances),
                volumes: named("vol-", volumes), ..known()
            }
        }
    }

    fn tags_of<'a>(seen: &'a Observation, orphan: &Orphan) -> &'a BTreeMap<String, String> {
        match orphan.kind {
            Kind::Instance => &seen.instances[&orphan.id].tags,
            Kind::Volume => &seen.volumes[&orphan.id].tags,
            Kind::Snapshot => &seen.snapshots[&orphan.id].tags,
        }
    }

    proptest! {
        #![proptest_config(crate::property::cases(2_000))]

        #[test]
        fn nothing_is_deleted_that_is_owned_unexpired_anothers_or_marked_too_late(
            seen in any_world(), known in any_known(), now in 0i64..8_000,
        ) {
            let orphans = sweep(&seen, &known, at(now), GRACE);
            prop_assert!(orphans.is_sorted_by_key(|orphan| orphan.kind));
            for orphan in orphans {
                let tags = tags_of(&seen, &orphan);
                prop_assert!(tags[tags::CLUSTER] == "c" && tags[tags::POOL] == "p");
                if matches!(orphan.step, Step::Delete | Step::Adopt { .. }) {
                    prop_assert!(!known.instances.contains(&orphan.id) && !known.volumes.contains(&orphan.id));
                    let environment = tags.get(tags::ENVIRONMENT);
                    prop_assert!(environment.is_none_or(|id| !known.environments.contains(id)));
                    let marked: Timestamp = tags[tags::ORPHANED_AT].parse().unwrap();
                    prop_assert!(at(now).duration_since(marked).as_secs() >= GRACE.as_secs() as i64);
                    if orphan.kind == Kind::Instance {
                        prop_assert!(seen.instances[&orphan.id].member.is_none());
                    }
                }
                if orphan.step == Step::Delete {
                    let expiry: Option<Timestamp> = tags.get(tags::EXPIRES_AT).map(|time| time.parse().unwrap());
                    prop_assert!(expiry.is_none_or(|expiry| expiry <= at(now)));
                }
            }
        }

        #[test]
        fn without_all_objects_nothing_is_done(seen in any_world(), known in any_known(), now in 0i64..8_000) {
            let known = Known { is_synced: false, ..known };
            prop_assert_eq!(sweep(&seen, &known, at(now), GRACE), []);
        }

        #[test]
        fn whatever_is_left_is_swept_in_the_end_and_the_rest_stays(seen in any_world(), known in any_known()) {
            let mut seen = seen;
            for now in [10_000i64, 10_901, 11_802, 12_703] {
                let before = seen.clone();
                let orphans = sweep(&seen, &known, at(now), GRACE);
                carry_out(&mut seen, &orphans);
                for orphan in orphans.iter().filter(|orphan| orphan.step == Step::Delete) {
                    // A volume is not deleted before its instance is.
                    if let Some(on) = before.volumes.get(&orphan.id).and_then(|volume| volume.attachment.as_ref()) {
                        prop_assert!(before.instances.get(&on.instance).is_some_and(|it| it.state.is_gone()));
                    }
                }
                // The cloud takes volumes off instances that are gone.
                let there: BTreeSet<String> = seen.instances.keys().cloned().collect();
                for volume in seen.volumes.values_mut() {
                    volume.attachment = volume.attachment.take().filter(|on| there.contains(&on.instance));
                }
            }
            prop_assert_eq!(sweep(&seen, &known, at(12_704), GRACE), []);
        }
    }
}
