//! Tags of what is relied on: what somebody took is put back, without which a later holder would not find it again, and an
//! expiry that was moved is written down. Pure.

use std::collections::BTreeMap;

use super::members::own_tags;
use super::sleep::slot_tags;
use super::{Plan, Report, Step};
use crate::fleet::facts::slot_at;
use crate::fleet::view::View;
use crate::provider::{Change, InstanceState, Volume, tags};

type Tags = BTreeMap<String, String>;

/// Puts back what is missing. What has another value than ours is left, for whoever changes it means to; but for the expiry,
/// which people move in the object: after a loss of that the tag alone keeps what it is on from the sweep.
pub fn restore(view: &View<'_>, plan: &mut Plan) {
    let facts = view.facts;
    // Members are marked at any time. Others are ours by what they keep.
    let kept = facts.instances.values().filter(|it| it.member.is_none() && !it.state.is_gone());
    for instance in kept {
        let stand = view.stand(&instance.id);
        // Single tags of slots come and go with their environments; those of the pool stay.
        if stand.environments().next().is_some() {
            let wanted = slot_tags(&stand);
            if is_stripped(&instance.tags) {
                put_back(view, plan, &instance.id, &instance.tags, wanted.clone());
            }
            // One that runs is marked anew with all that has changed.
            if instance.state == InstanceState::Stopped {
                prolong(view, plan, &instance.id, &instance.tags, &wanted);
            }
        }
    }
    for volume in facts.volumes.values() {
        if let Some(wanted) = view.kept_tags.get(&volume.id).cloned().or_else(|| in_slot(view, volume)) {
            put_back(view, plan, &volume.id, &volume.tags, wanted.clone());
            if is_of_sleep(&volume.tags, &wanted) {
                prolong(view, plan, &volume.id, &volume.tags, &wanted);
            }
        }
    }
    for snapshot in facts.snapshots.values() {
        if let Some(wanted) = view.kept_tags.get(&snapshot.id) {
            put_back(view, plan, &snapshot.id, &snapshot.tags, wanted.clone());
            if is_of_sleep(&snapshot.tags, wanted) {
                prolong(view, plan, &snapshot.id, &snapshot.tags, wanted);
            }
        }
    }
}

/// What a volume carries that is in a slot and no environment's.
fn in_slot(view: &View<'_>, volume: &Volume) -> Option<Tags> {
    let attachment = volume.attachment.as_ref()?;
    let slot = slot_at(&attachment.device).filter(|_| !volume.tags.contains_key(tags::POOL))?;
    view.facts.instances.contains_key(&attachment.instance).then(|| {
        let of = (tags::SLOT_OF.to_owned(), attachment.instance.clone());
        BTreeMap::from([of, (tags::SLOT.to_owned(), slot.to_string())])
    })
}

/// Writes an expiry down that was moved.
fn prolong(view: &View<'_>, plan: &mut Plan, id: &str, has: &Tags, wanted: &Tags) {
    let Some(expiry) = wanted.get(tags::EXPIRES_AT) else { return };
    if has.get(tags::EXPIRES_AT).is_some_and(|known| known != expiry) {
        let tags = Tags::from([(tags::EXPIRES_AT.to_owned(), expiry.clone())]);
        plan.add(
            view,
            &format!("{id} tags"),
            vec![Step::Cloud(Change::Tag { ids: vec![id.to_owned()], tags })],
        );
    }
}

/// Whether tags are of the sleep that is wanted: those of an earlier one are about to be written anew.
fn is_of_sleep(has: &Tags, wanted: &Tags) -> bool {
    has.get(tags::REVISION) == wanted.get(tags::REVISION)
}

fn put_back(view: &View<'_>, plan: &mut Plan, id: &str, has: &Tags, wanted: Tags) {
    let mut missing = own_tags(view);
    missing.extend(wanted);
    missing.retain(|key, _| !has.contains_key(key));
    if missing.is_empty() {
        return;
    }
    if is_stripped(has) {
        plan.report.push(Report::TagsTaken { id: id.to_owned() });
    }
    let tag = Change::Tag { ids: vec![id.to_owned()], tags: missing };
    plan.add(view, &format!("{id} tags"), vec![Step::Cloud(tag)]);
}

/// Whether a look by tags does not show it.
fn is_stripped(has: &Tags) -> bool {
    !has.contains_key(tags::CLUSTER) || !has.contains_key(tags::POOL)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::fleet::facts::Facts;
    use crate::fleet::policy::Active;
    use crate::fleet::view::{Memory, Pool, Sleeping, Stand, Use};
    use crate::provider::{Attachment, Instance, Snapshot, SnapshotState, VolumeState};

    const E: &str = "abcdefghijklmnop2345";

    fn view<'a>(facts: &'a Facts, memory: &'a Memory) -> View<'a> {
        let pool = Pool {
            uid: "p",
            name: "pool",
            namespace: "ci",
            cluster: "c",
            group: "g",
            capacity: 1,
            max_instances: 4,
            max_uses: 0,
            max_age: None,
            ready_timeout: jiff::SignedDuration::from_mins(5),
            failure_threshold: 3,
            deletion_retry: jiff::SignedDuration::from_mins(1),
            grow_with: crate::api::runner_pool::GrowWith::default(),
            stop_mode: crate::api::runner_pool::StopMode::default(),
            volume: None,
            is_deleting: false,
            epoch: 1,
        };
        View {
            pool,
            facts,
            stands: BTreeMap::new(),
            places: std::collections::BTreeSet::new(),
            known: BTreeMap::new(),
            owned_volumes: std::collections::BTreeSet::new(),
            kept_tags: BTreeMap::new(),
            policy: Active::default(),
            waiting: 0,
            wakes: Vec::new(),
            may_launch: 1,
            memory,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn instance(id: &str, tags: Tags) -> Instance {
        Instance { state: InstanceState::Stopped, tags, ..Instance::for_test(id) }
    }

    fn volume(id: &str, instance: Option<&str>) -> Volume {
        let attachment = instance.map(|instance| Attachment {
            instance: instance.into(),
            device: "/dev/sdg".into(),
            is_attached: true,
            is_detaching: false,
        });
        Volume {
            id: id.into(),
            state: VolumeState::Available,
            zone: "a".into(),
            size_gib: 1,
            attachment,
            created_at: None,
            snapshot: None,
            tags: Tags::new(),
        }
    }

    fn put_back_on(plan: &Plan, id: &str) -> Option<Tags> {
        plan.sequences.iter().flat_map(|sequence| &sequence.steps).find_map(|step| match step {
            Step::Cloud(Change::Tag { ids, tags }) if ids.iter().any(|known| known == id) => {
                Some(tags.clone())
            }
            Step::Cloud(_) | Step::Mount { .. } | Step::Unmount { .. } | Step::Quiet { .. } => None,
        })
    }

    #[test]
    fn what_lost_its_tags_gets_all_of_them_back() {
        let memory = Memory::default();
        let snapshot = Snapshot {
            id: "snap-1".into(),
            state: SnapshotState::Completed,
            volume: "vol-0".into(),
            size_gib: 1,
            started_at: None,
            tags: Tags::new(),
        };
        let mut facts = Facts::default();
        facts.instances.insert("i-1".into(), instance("i-1", Tags::new()));
        for volume in [volume("vol-1", None), volume("vol-2", Some("i-1")), volume("vol-3", Some("i-9"))] {
            facts.volumes.put(volume);
        }
        facts.snapshots.put(snapshot);
        let mut view = view(&facts, &memory);
        let of_environment = Tags::from([(tags::ENVIRONMENT.to_owned(), E.to_owned())]);
        for id in ["vol-1", "snap-1"] {
            view.kept_tags.insert(id.to_owned(), of_environment.clone());
        }
        let kept =
            Use { environments: vec![Sleeping { id: E.into(), ..Sleeping::default() }], ..Use::default() };
        view.stands.insert("i-1".into(), Stand { slots: [(0, kept)].into(), ..Stand::default() });
        let mut plan = Plan::default();
        restore(&view, &mut plan);
        for id in ["vol-1", "snap-1", "i-1", "vol-2"] {
            let tags = put_back_on(&plan, id).unwrap();
            assert!(
                own_tags(&view).iter().all(|(key, value)| tags.get(key) == Some(value)),
                "{id}: {tags:?}"
            );
            assert!(plan.report.contains(&Report::TagsTaken { id: id.into() }));
        }
        assert_eq!(put_back_on(&plan, "vol-1").unwrap()[tags::ENVIRONMENT], E);
        assert_eq!(put_back_on(&plan, "i-1").unwrap()[&tags::slot_key(0)], E);
        assert_eq!(put_back_on(&plan, "vol-2").unwrap()[tags::SLOT], "1");
        // It is on no instance of the pool: nothing says that it is the pool's.
        assert_eq!(put_back_on(&plan, "vol-3"), None);
    }

    #[test]
    fn what_carries_its_tags_is_left_alone() {
        let memory = Memory::default();
        let mut owned = volume("vol-1", Some("i-1"));
        let mut facts = Facts::default();
        owned.tags = own_tags(&view(&facts, &memory));
        facts.instances.insert("i-1".into(), instance("i-1", owned.tags.clone()));
        facts.volumes.put(owned);
        let mut view = view(&facts, &memory);
        // The tag of a slot is taken when its environment lets go of it.
        let kept =
            Use { environments: vec![Sleeping { id: E.into(), ..Sleeping::default() }], ..Use::default() };
        view.stands.insert("i-1".into(), Stand { slots: [(0, kept)].into(), ..Stand::default() });
        let mut plan = Plan::default();
        restore(&view, &mut plan);
        assert_eq!(plan, Plan::default());
    }
    #[test]
    fn an_expiry_that_was_moved_is_written_down_on_what_was_kept_of_this_sleep() {
        let memory = Memory::default();
        let mut facts = Facts::default();
        let tags_of = |expiry: &str, revision: &str| {
            let own = own_tags(&view(&Facts::default(), &Memory::default()));
            let of_environment =
                [(tags::ENVIRONMENT, E), (tags::EXPIRES_AT, expiry), (tags::REVISION, revision)];
            let of_environment = of_environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
            own.into_iter().chain(of_environment).collect::<Tags>()
        };
        let (before, after) = ("1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z");
        for (id, revision) in [("vol-1", "1"), ("vol-2", "0")] {
            let volume = Volume { tags: tags_of(before, revision), ..volume(id, None) };
            facts.volumes.put(volume);
        }
        let snapshot = Snapshot {
            id: "snap-1".into(),
            state: SnapshotState::Completed,
            volume: "vol-0".into(),
            size_gib: 1,
            started_at: None,
            tags: tags_of(before, "1"),
        };
        facts.snapshots.put(snapshot);
        facts.instances.insert("i-1".into(), instance("i-1", tags_of(before, "1")));
        let mut view = view(&facts, &memory);
        for id in ["vol-1", "vol-2", "snap-1"] {
            view.kept_tags.insert(id.to_owned(), tags_of(after, "1"));
        }
        let asleep = Sleeping { id: E.into(), expires_at: after.parse().unwrap(), ..Sleeping::default() };
        let kept = Use { environments: vec![asleep], ..Use::default() };
        view.stands.insert("i-1".into(), Stand { slots: [(0, kept)].into(), ..Stand::default() });
        let mut plan = Plan::default();
        restore(&view, &mut plan);
        for id in ["vol-1", "snap-1", "i-1"] {
            let moved = Tags::from([(tags::EXPIRES_AT.to_owned(), after.to_owned())]);
            assert_eq!(put_back_on(&plan, id), Some(moved), "{id}");
        }
        assert_eq!(put_back_on(&plan, "vol-2"), None, "its environment is about to be saved there");
        assert_eq!(plan.report, []);
    }
}
