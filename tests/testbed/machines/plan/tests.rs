//! Every state of the cloud against every state of a machine, and that nothing is left to do in the end.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::deeds::Held;
use super::super::state::{Ack, PushedKey};
use super::*;
use std::collections::BTreeMap;

const NOW: &str = "1970-01-01T00:00:00Z";

fn cloud(state: &str, more: Value) -> State {
    let mut instance = json!({
        "id": "i-1", "state": state, "hibernated": false, "boots": 1, "address": "127.77.3.4",
        "root_volume": "vol-root", "volumes": [{ "id": "vol-root", "device": "/dev/sda1", "state": "attached" }],
    });
    let (into, from) = (instance.as_object_mut().unwrap(), more.as_object().unwrap());
    into.extend(from.iter().map(|(name, value)| (name.clone(), value.clone())));
    let volumes = json!([
        { "id": "vol-root", "size": 8, "state": "in-use", "snapshot": null },
        { "id": "vol-1", "size": 2, "state": "in-use", "snapshot": null },
    ]);
    serde_json::from_value(json!({ "now": NOW, "instances": [instance], "volumes": volumes })).unwrap()
}

fn local(power: Option<Power>) -> Local {
    let machine = power.map(|power| {
        let (attached, keys) = (BTreeMap::new(), Keys::new());
        ("i-1".to_owned(), Machine { power, root: "vol-root".to_owned(), attached, keys })
    });
    Local {
        subnet: 3,
        machines: machine.into_iter().collect(),
        volumes: ["vol-root", "vol-1"].map(str::to_owned).into(),
        ..Local::default()
    }
}

fn with_volume(is_in_use: bool) -> Local {
    let mut local = local(Some(Power::On(1)));
    local.machines.get_mut("i-1").unwrap().attached.insert("vol-1".to_owned(), held(is_in_use));
    local
}

fn held(is_in_use: bool) -> Held {
    Held { device: "/dev/sdf".to_owned(), is_in_use }
}

fn volume(state: &str) -> Value {
    json!({ "volumes": [{ "id": "vol-1", "device": "/dev/sdf", "state": state }] })
}

fn place() -> Place {
    Place { volume: "vol-1".to_owned(), instance: "i-1".to_owned() }
}

fn name_of(deed: &Deed) -> &'static str {
    match deed {
        Deed::MakeVolume { .. } => "make",
        Deed::RestoreVolume { .. } => "restore",
        Deed::DeleteVolume { .. } => "delete",
        Deed::TakeSnapshot { .. } => "take",
        Deed::CopySnapshot { .. } => "copy snapshot",
        Deed::DeleteSnapshot { .. } => "delete snapshot",
        Deed::Boot(_) => "boot",
        Deed::Kill { .. } => "kill",
        Deed::Freeze { .. } => "freeze",
        Deed::Thaw { .. } => "thaw",
        Deed::Forget { .. } => "forget",
        Deed::Attach { .. } => "attach",
        Deed::Detach { .. } => "detach",
        Deed::PullOut { .. } => "pull out",
        Deed::SetKeys { .. } => "keys",
    }
}

fn names(plan: &Plan) -> Vec<&'static str> {
    plan.deeds.iter().map(name_of).collect()
}

#[test]
fn a_machine_is_brought_to_the_state_of_its_instance_and_then_left_alone() {
    let (on, asleep, off) = (Some(Power::On(1)), Some(Power::Asleep(1)), Some(Power::Off));
    let old = Some(Power::On(0));
    for (state, hibernated, power, deeds, running, stopped) in [
        ("pending", false, None, vec!["boot"], 0, 0),
        ("pending", false, off, vec!["boot"], 0, 0),
        ("pending", false, on, vec![], 1, 0),
        ("running", false, on, vec![], 0, 0),
        ("running", false, off, vec!["boot"], 0, 0),
        // Stopped and started between two looks.
        ("running", false, old, vec!["kill"], 0, 0),
        ("pending", true, asleep, vec!["thaw"], 0, 0),
        ("running", false, asleep, vec!["thaw"], 0, 0),
        // Its memory was not kept.
        ("pending", false, Some(Power::Asleep(0)), vec!["kill"], 0, 0),
        ("stopping", false, on, vec!["kill"], 0, 0),
        ("stopping", false, off, vec![], 0, 1),
        ("stopping", false, None, vec![], 0, 1),
        ("stopping", true, on, vec!["freeze"], 0, 0),
        ("stopping", true, asleep, vec![], 0, 1),
        ("stopping", false, asleep, vec!["kill"], 0, 0),
        ("stopped", false, on, vec!["kill"], 0, 0),
        ("stopped", false, off, vec![], 0, 0),
        ("stopped", true, asleep, vec![], 0, 0),
        ("shutting-down", false, on, vec!["kill"], 0, 0),
        ("shutting-down", false, asleep, vec!["kill"], 0, 0),
        ("terminated", false, off, vec!["forget"], 0, 0),
        ("terminated", false, None, vec![], 0, 0),
    ] {
        let plan = plan(&cloud(state, json!({ "hibernated": hibernated })), &local(power));
        let case = format!("{state}, hibernated {hibernated}, {power:?}");
        assert_eq!(names(&plan), deeds, "{case}");
        assert_eq!((plan.ack.running.len(), plan.ack.stopped.len()), (running, stopped), "{case}");
    }
}

#[test]
fn an_instance_that_is_not_told_of_any_more_ends() {
    let mut nothing = cloud("running", json!({}));
    nothing.instances.clear();
    assert_eq!(names(&plan(&nothing, &local(Some(Power::On(1))))), ["kill"]);
    assert_eq!(names(&plan(&nothing, &local(Some(Power::Off)))), ["forget"]);
}

#[test]
fn instances_with_other_addresses_are_left_alone() {
    for address in [json!("10.0.0.4"), json!("127.77.4.4"), json!(null)] {
        let plan = plan(&cloud("running", json!({ "address": address })), &local(None));
        assert_eq!((plan.deeds, plan.ack, plan.strangers), (vec![], Ack::default(), vec!["i-1".to_owned()]));
    }
}

#[test]
fn what_is_being_worked_on_is_neither_touched_nor_acknowledged() {
    for (state, power) in [("pending", Power::Off), ("pending", Power::On(1)), ("stopping", Power::Off)] {
        let mut local = local(Some(power));
        local.busy.insert("i-1".to_owned());
        assert_eq!(plan(&cloud(state, json!({})), &local), Plan::default());
    }
}

#[test]
fn a_boot_waits_for_its_volumes_and_has_them() {
    let told = cloud("pending", volume("attaching"));
    let mut local = local(None);
    let booted = plan(&told, &local);
    let [Deed::Boot(Boot { volumes, root, .. })] = booted.deeds.as_slice() else { panic!("{booted:?}") };
    assert_eq!(
        (root.as_str(), volumes.as_slice()),
        ("vol-root", &[("vol-1".to_owned(), "/dev/sdf".to_owned())][..])
    );
    local.volumes.clear();
    let made = plan(&told, &local);
    assert_eq!(names(&made), ["make", "make"]);
    let Some(Deed::MakeVolume { blank: Blank::Root, .. }) = made.deeds.first() else { panic!("{made:?}") };
}

#[test]
fn a_volume_is_attached_and_taken_away_unless_it_is_in_use() {
    let absent = || local(Some(Power::On(1)));
    for (state, local, deeds, attached, detached) in [
        ("attaching", absent(), vec!["attach"], vec![], vec![]),
        ("attaching", with_volume(false), vec![], vec![place()], vec![]),
        ("attached", with_volume(true), vec![], vec![], vec![]),
        ("detaching", with_volume(true), vec![], vec![], vec![]),
        ("detaching", with_volume(false), vec!["detach"], vec![], vec![]),
        ("detaching", absent(), vec![], vec![], vec![place()]),
    ] {
        let plan = plan(&cloud("running", volume(state)), &local);
        assert_eq!(names(&plan), deeds, "{state}");
        assert_eq!((plan.ack.attached, plan.ack.detached), (attached, detached), "{state}");
    }
}

#[test]
fn a_volume_that_the_cloud_took_by_force_is_pulled_out() {
    let told = cloud("running", json!({ "volumes": [] }));
    assert_eq!(names(&plan(&told, &with_volume(true))), ["pull out"]);
    // And attached anew before we looked: as another device, or to another instance, which has to wait.
    let anew = json!({ "volumes": [{ "id": "vol-1", "device": "/dev/sdg", "state": "attaching" }] });
    let planned = plan(&cloud("running", anew), &with_volume(true));
    assert_eq!((names(&planned), planned.ack.attached), (vec!["pull out"], vec![]));
    let mut here = with_volume(true);
    let other = here.machines.get("i-1").cloned().unwrap();
    here.machines
        .insert("i-2".to_owned(), Machine { attached: BTreeMap::new(), root: "vol-2".to_owned(), ..other });
    let mut told = cloud("running", volume("attaching"));
    let mut first = told.instances[0].clone();
    first.volumes.clear();
    told.instances[0].id = "i-2".to_owned();
    told.instances[0].root_volume = Some("vol-2".to_owned());
    told.instances.push(first);
    assert_eq!(names(&plan(&told, &here)), ["pull out"]);
}

#[test]
fn attachments_of_an_instance_that_is_off_are_a_matter_of_records() {
    for state in ["attaching", "detaching"] {
        let plan = plan(&cloud("stopped", volume(state)), &local(Some(Power::Off)));
        assert_eq!(plan.deeds, []);
        let wanted = if state == "attaching" { plan.ack.attached } else { plan.ack.detached };
        assert_eq!(wanted, [place()]);
    }
}

fn storage(volumes: Value, snapshots: Value) -> State {
    serde_json::from_value(json!({ "now": NOW, "instances": [], "volumes": volumes, "snapshots": snapshots }))
        .unwrap()
}

#[test]
fn a_snapshot_is_taken_then_acknowledged_and_kept_while_a_volume_is_to_be_made_of_it() {
    let mut here = Local { volumes: ["vol-1".to_owned()].into(), ..Local::default() };
    let volume = json!({ "id": "vol-1", "size": 2, "state": "available", "snapshot": null });
    let snapshots = json!([{ "id": "snap-1", "volume": "vol-1", "state": "pending" }]);
    let told = storage(json!([volume]), snapshots.clone());
    assert_eq!(names(&plan(&told, &here)), ["take"]);
    here.snapshots.insert("snap-1".to_owned());
    let taken = plan(&told, &here);
    assert_eq!((taken.deeds, taken.ack.snapshots), (vec![], vec!["snap-1".to_owned()]));

    let restored = json!({ "id": "vol-2", "size": 2, "state": "creating", "snapshot": "snap-1" });
    let told = storage(json!([volume, restored]), json!([]));
    assert_eq!(names(&plan(&told, &here)), ["restore"]);
    here.volumes.insert("vol-2".to_owned());
    let made = plan(&told, &here);
    assert_eq!((names(&made), made.ack.volumes), (vec!["delete snapshot"], vec!["vol-2".to_owned()]));
}

#[test]
fn a_volume_waits_for_its_snapshot_and_one_of_an_image_is_blank() {
    let here = Local { volumes: ["vol-1".to_owned()].into(), ..Local::default() };
    let first = json!({ "id": "vol-1", "size": 2, "state": "available", "snapshot": null });
    let second = json!({ "id": "vol-2", "size": 2, "state": "creating", "snapshot": "snap-1" });
    let of = |volume: &str| json!([{ "id": "snap-1", "volume": volume, "state": "completed" }]);
    assert_eq!(names(&plan(&storage(json!([first, second]), of("vol-1")), &here)), ["take"]);
    assert_eq!(names(&plan(&storage(json!([first, second]), of("vol-image")), &here)), ["make"]);
}

#[test]
fn a_deleted_volume_stays_until_its_snapshot_is_taken() {
    let here = Local { volumes: ["vol-1".to_owned()].into(), ..Local::default() };
    let volume = json!({ "id": "vol-1", "size": 2, "state": "deleting", "snapshot": null });
    let told = storage(json!([volume]), json!([{ "id": "snap-1", "volume": "vol-1", "state": "pending" }]));
    assert_eq!(names(&plan(&told, &here)), ["take"]);
    let told = storage(json!([]), json!([]));
    assert_eq!(names(&plan(&told, &here)), ["delete"]);
}

#[test]
fn a_volume_that_is_gone_is_deleted_when_no_machine_has_it() {
    let mut told = cloud("running", json!({}));
    told.volumes.clear();
    let mut here = with_volume(false);
    assert_eq!(names(&plan(&told, &here)), ["pull out"]);
    here.machines.get_mut("i-1").unwrap().attached.clear();
    assert_eq!(names(&plan(&told, &here)), ["delete"]);
}

#[test]
fn a_pushed_key_opens_an_instance_for_a_minute() {
    let mut told = cloud("running", json!({}));
    let key = |instance: &str, at: i64| PushedKey {
        instance: instance.to_owned(),
        user: "ci".to_owned(),
        key: format!("ssh-ed25519 {at}"),
        at: Timestamp::from_second(at).unwrap(),
    };
    told.pushed_keys = vec![key("i-1", 0), key("i-1", 30), key("i-2", 30)];
    let mut here = local(Some(Power::On(1)));
    let mut keys_at = |second: i64| {
        told.now = Timestamp::from_second(second).unwrap();
        let planned = plan(&told, &here);
        let [Deed::SetKeys { keys, .. }] = planned.deeds.as_slice() else { return None };
        here.machines.get_mut("i-1").unwrap().keys.clone_from(keys);
        Some(keys.get("ci").map_or(0, Vec::len))
    };
    assert_eq!([31, 59, 60, 89, 90, 91].map(&mut keys_at), [Some(2), None, Some(1), None, Some(0), None]);
}
