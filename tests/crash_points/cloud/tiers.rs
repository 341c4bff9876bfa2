//! Deaths while slots get volumes, and while environments move to volumes and snapshots and come back.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{alone, give_everything_back, nothing_is_kept, sleeps, wakes};
use crate::crash_points::in_turn;
use crate::suspension::{object_of, until_gone};
use crate::testbed::stage::Stage;

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&VOLUME, &SNAPSHOT];

const VOLUME: [&str; 12] = [
    "volume-created",
    "volume-attached",
    "volume-mounted",
    "state-saved",
    "save-told",
    "volume-unmounted",
    "environment-left",
    "volume-detached",
    "place-reserved",
    "workspace-mounted",
    "environment-imported",
    "untagged",
];
const SNAPSHOT: [&str; 6] = [
    "snapshot-created",
    "volume-deleted",
    "volume-forgotten",
    "snapshot-deleted",
    "snapshot-forgotten",
    "state-saved-again",
];

/// The volume of the slot, and the one that was in it before the environment's came back.
const SLOT_VOLUMES: usize = 2;

async fn stage(name: &str) -> Result<Stage> {
    let pool = json!({ "workspaceVolume": { "sizeGiB": 1 }, "policies": [{ "idleTime": "10m" }] });
    Stage::start(name, alone(pool)).await
}

async fn to_a_volume_and_back(moment: &'static str) -> Result<()> {
    let stage = stage(&format!("crash-volume-{moment}")).await?;
    let life = async {
        let key = sleeps(&stage, "sleeps").await?;
        stage.ask_tier(&key, "Detached").await?;
        let detached = stage.until_tier(&key, "Detached").await?;
        ensure!(detached["status"]["instance"].is_null(), "{detached:#}");
        wakes(&stage, "wakes", &key, 2, false).await?;
        until_gone(&stage, &key).await
    };
    in_turn(&stage, &VOLUME, moment, life).await?;
    nothing_is_kept(&stage, SLOT_VOLUMES).await?;
    give_everything_back(stage).await
}

async fn to_a_snapshot_and_back(moment: &'static str) -> Result<()> {
    let stage = stage(&format!("crash-snapshot-{moment}")).await?;
    let key = sleeps(&stage, "sleeps").await?;
    let name = object_of(&key)?;
    let life = async {
        stage.ask_tier(&key, "Snapshotted").await?;
        stage.until_tier(&key, "Snapshotted").await?;
        let is_alone = |senv: &serde_json::Value| {
            senv["status"]["volume"].is_null() && senv["status"]["snapshot"]["id"].is_string()
        };
        stage.until_object("suspendedenvironment", &name, "its volume is gone", is_alone).await?;
        stage.forget_asked_tier(&key).await?;
        wakes(&stage, "wakes", &key, 2, true).await?;
        let is_saved = |senv: &serde_json::Value| {
            senv["status"]["savedRevision"] == 1 && senv["status"]["snapshot"].is_null()
        };
        stage.until_object("suspendedenvironment", &name, "its second sleep is saved", is_saved).await?;
        anyhow::Ok(())
    };
    in_turn(&stage, &SNAPSHOT, moment, life).await?;
    wakes(&stage, "wakes-again", &key, 3, false).await?;
    until_gone(&stage, &key).await?;
    nothing_is_kept(&stage, SLOT_VOLUMES).await?;
    give_everything_back(stage).await
}

#[tokio::test]
async fn deaths_before_each_write_to_a_volume_and_back() -> Result<()> {
    to_a_volume_and_back("before").await
}

#[tokio::test]
async fn deaths_at_each_write_to_a_volume_and_back() -> Result<()> {
    to_a_volume_and_back("deed").await
}

#[tokio::test]
async fn deaths_after_each_write_to_a_volume_and_back() -> Result<()> {
    to_a_volume_and_back("after").await
}

#[tokio::test]
async fn deaths_before_each_write_to_a_snapshot_and_back() -> Result<()> {
    to_a_snapshot_and_back("before").await
}

#[tokio::test]
async fn deaths_at_each_write_to_a_snapshot_and_back() -> Result<()> {
    to_a_snapshot_and_back("deed").await
}

#[tokio::test]
async fn deaths_after_each_write_to_a_snapshot_and_back() -> Result<()> {
    to_a_snapshot_and_back("after").await
}
