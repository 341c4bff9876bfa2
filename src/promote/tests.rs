//! What may be promoted, and what the cloud may show of the copy.

use jiff::Timestamp;

use super::*;

fn source() -> Source {
    Source { snapshot: "snap-1".into(), pool: "p".into(), pool_uid: "uid".into(), before: None }
}

fn snapshot(id: &str, state: SnapshotState, tags: BTreeMap<String, String>) -> Snapshot {
    Snapshot {
        id: id.into(),
        state,
        volume: "vol-1".into(),
        size_gib: 1,
        started_at: Some(Timestamp::UNIX_EPOCH),
        tags,
    }
}

fn seen(all: Vec<Snapshot>) -> BTreeMap<String, Snapshot> {
    all.into_iter().map(|known| (known.id.clone(), known)).collect()
}

#[test]
fn a_copy_is_asked_for_once_and_used_when_it_is_complete() {
    let own = snapshot("snap-1", SnapshotState::Completed, BTreeMap::new());
    let copy = |state| snapshot("snap-2", state, marks("c", "ci", &source()));
    let decide = |all| next(&seen(all), "ci", &source(), "c");
    assert_eq!(decide(vec![own.clone()]), Ok(Next::Copy));
    assert_eq!(decide(vec![own.clone(), copy(SnapshotState::Pending)]), Ok(Next::Wait("snap-2".into())));
    assert_eq!(decide(vec![own.clone(), copy(SnapshotState::Completed)]), Ok(Next::Use("snap-2".into())));
    // Complete, it needs its source no more.
    assert_eq!(decide(vec![copy(SnapshotState::Completed)]), Ok(Next::Use("snap-2".into())));
    let failed = decide(vec![own, copy(SnapshotState::Failed)]).unwrap_err();
    assert!(failed.contains("delete-snapshot --snapshot-id snap-2"), "{failed}");
}

#[test]
fn anothers_copy_is_not_used_and_a_snapshot_that_is_not_seen_not_copied() {
    let own = snapshot("snap-1", SnapshotState::Completed, BTreeMap::new());
    let others = Source { pool: "q".into(), ..source() };
    let copy = snapshot("snap-2", SnapshotState::Completed, marks("c", "ci", &others));
    assert_eq!(next(&seen(vec![own, copy.clone()]), "ci", &source(), "c"), Ok(Next::Copy));
    let unseen = next(&seen(vec![copy]), "ci", &source(), "c").unwrap_err();
    assert!(unseen.contains("--cluster-id"), "{unseen}");
}

#[test]
fn a_baseline_is_neither_the_sweeps_nor_the_environments() {
    let marks = marks("c", "ci", &source());
    assert!(!marks.contains_key(tags::POOL) && !marks.contains_key(tags::ENVIRONMENT));
    assert_eq!(marks[tags::BASELINE], "ci/p");
}
