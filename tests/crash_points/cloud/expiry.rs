//! Deaths while an environment whose time is over gives back what it keeps in the cloud.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{alone, give_everything_back, nothing_is_kept, sleeps};
use crate::crash_points::{MOMENTS, in_turn};
use crate::fleet::failures::{snapshots, until_waits_for};
use crate::suspension::environment;
use crate::testbed::cloud::Act;
use crate::testbed::stage::Stage;
use crate::testbed::wait::until;
use crate::traces::text;

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&STOPPED, &ON_A_VOLUME, &DETACHED, &SNAPSHOTTED, &HALFWAY];

const STOPPED: [&str; 3] = ["environment-expired", "instance-terminated", "environment-forgotten"];
const ON_A_VOLUME: [&str; 5] = [
    "environment-expired",
    "instance-terminated",
    "volume-deleted",
    "volume-forgotten",
    "environment-forgotten",
];
const DETACHED: [&str; 4] =
    ["environment-expired", "volume-deleted", "volume-forgotten", "environment-forgotten"];
const SNAPSHOTTED: [&str; 4] =
    ["environment-expired", "snapshot-deleted", "snapshot-forgotten", "environment-forgotten"];
// Until it is complete the snapshot is in no status: once it is deleted, nothing has to be forgotten.
const HALFWAY: [&str; 5] = [
    "environment-expired",
    "volume-deleted",
    "volume-forgotten",
    "snapshot-deleted",
    "environment-forgotten",
];

/// Five holders die on the way at most.
const WAY: Duration = Duration::from_secs(600);

/// A stage whose slots have volumes, and whose instance stays.
async fn stage(name: &str) -> Result<Stage> {
    let pool = json!({ "workspaceVolume": { "sizeGiB": 1 }, "policies": [{ "idleTime": "10m" }] });
    Stage::start(name, alone(pool)).await
}

/// Lets it expire, with a death at each of these points; answers the number of the first call that can be of that.
async fn expires(stage: &Stage, key: &str, points: &[&'static str], moment: &'static str) -> Result<u64> {
    let since = stage.cloud()?.cloud.calls_so_far().await?;
    let life = async {
        stage.expire(key).await?;
        until("it is gone", WAY, async || {
            let all = stage.list("suspendedenvironments").await?;
            Ok(all.is_empty().then_some(()))
        })
        .await
    };
    in_turn(stage, points, moment, life).await?;
    Ok(since)
}

/// Fails unless each of these was carried out since then, and none before the one that stands before it: an action, and
/// whom it named.
async fn given_back_in_order(stage: &Stage, since: u64, wanted: &[(&str, &str)]) -> Result<()> {
    let calls = stage.cloud()?.cloud.calls(since).await?;
    let mut last = None;
    for (action, id) in wanted {
        let place = calls.iter().position(|call| call.did(action, &[id]));
        ensure!(place.is_some() && place > last, "{action} of {id}, in the order {wanted:?}: {calls:#?}");
        last = place;
    }
    Ok(())
}

fn instance_of(environment: &Value) -> Result<String> {
    let instance = environment["status"]["instance"].as_str().context("no instance")?;
    Ok(instance.to_owned())
}

#[tokio::test]
async fn a_stopped_environment_expires_with_its_instance() -> Result<()> {
    let stage = Stage::start("crash-ttl-stopped", alone(json!({}))).await?;
    for moment in MOMENTS {
        let key = sleeps(&stage, &format!("sleeps-{moment}")).await?;
        stage.ask_tier(&key, "Stopped").await?;
        let instance = instance_of(&stage.until_tier(&key, "Stopped").await?)?;
        let since = expires(&stage, &key, &STOPPED, moment).await?;
        given_back_in_order(&stage, since, &[("TerminateInstances", &instance)]).await?;
        stage.cloud()?.machines.gone(&instance).await?;
        nothing_is_kept(&stage, 0).await?;
    }
    give_everything_back(stage).await
}

#[tokio::test]
async fn a_stopped_environment_on_a_volume_expires_with_its_instance_and_then_its_volume() -> Result<()> {
    let stage = stage("crash-ttl-both").await?;
    for moment in MOMENTS {
        let key = sleeps(&stage, &format!("sleeps-{moment}")).await?;
        stage.ask_tier(&key, "Stopped").await?;
        let stopped = stage.until_tier(&key, "Stopped").await?;
        let (instance, volume) = (instance_of(&stopped)?, text(&stopped["status"]["volume"]["id"]));
        let since = expires(&stage, &key, &ON_A_VOLUME, moment).await?;
        let order = [("TerminateInstances", instance.as_str()), ("DeleteVolume", volume.as_str())];
        given_back_in_order(&stage, since, &order).await?;
        nothing_is_kept(&stage, 0).await?;
    }
    give_everything_back(stage).await
}

#[tokio::test]
async fn a_detached_environment_expires_with_its_volume() -> Result<()> {
    let stage = stage("crash-ttl-detached").await?;
    for moment in MOMENTS {
        let key = sleeps(&stage, &format!("sleeps-{moment}")).await?;
        stage.ask_tier(&key, "Detached").await?;
        let detached = stage.until_tier(&key, "Detached").await?;
        let volume = text(&detached["status"]["volume"]["id"]);
        let since = expires(&stage, &key, &DETACHED, moment).await?;
        given_back_in_order(&stage, since, &[("DeleteVolume", &volume)]).await?;
        nothing_is_kept(&stage, SLOT_VOLUME).await?;
    }
    give_everything_back(stage).await
}

/// The volume of the slot, which its instance keeps.
const SLOT_VOLUME: usize = 1;

#[tokio::test]
async fn a_snapshotted_environment_expires_with_its_snapshot() -> Result<()> {
    let stage = stage("crash-ttl-snapshotted").await?;
    for moment in MOMENTS {
        let key = sleeps(&stage, &format!("sleeps-{moment}")).await?;
        stage.ask_tier(&key, "Snapshotted").await?;
        stage.until_tier(&key, "Snapshotted").await?;
        let is_alone = |senv: &Value| senv["status"]["volume"].is_null();
        let object = text(&environment(&stage, &key).await?["metadata"]["name"]);
        let kept =
            stage.until_object("suspendedenvironment", &object, "its volume is gone", is_alone).await?;
        let snapshot = text(&kept["status"]["snapshot"]["id"]);
        let since = expires(&stage, &key, &SNAPSHOTTED, moment).await?;
        given_back_in_order(&stage, since, &[("DeleteSnapshot", &snapshot)]).await?;
        nothing_is_kept(&stage, SLOT_VOLUME).await?;
    }
    give_everything_back(stage).await
}

#[tokio::test]
async fn an_environment_that_expires_while_its_snapshot_is_taken_gives_both_back() -> Result<()> {
    let stage = stage("crash-ttl-halfway").await?;
    for moment in MOMENTS {
        let key = sleeps(&stage, &format!("sleeps-{moment}")).await?;
        stage.cloud()?.cloud.act(Act::SnapshotHangs).await?;
        stage.ask_tier(&key, "Snapshotted").await?;
        let waits = until_waits_for(&stage, &key, "to be complete").await?;
        let volume = text(&waits["status"]["volume"]["id"]);
        let snapshot = snapshots(&stage).await?.first().context("no snapshot")?.clone();
        let since = expires(&stage, &key, &HALFWAY, moment).await?;
        let order = [("DeleteVolume", volume.as_str()), ("DeleteSnapshot", snapshot.as_str())];
        given_back_in_order(&stage, since, &order).await?;
        stage.cloud()?.cloud.act(Act::Restore).await?;
        nothing_is_kept(&stage, SLOT_VOLUME).await?;
    }
    give_everything_back(stage).await
}
