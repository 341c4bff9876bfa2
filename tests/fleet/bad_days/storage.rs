//! Volumes and snapshots that are not where or what they should be.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::super::failures::{go, instance_of, next_job_runs, snapshots, until_waits_for};
use super::super::tiers::{ask, leaves_marks, looks_for_marks, resume_and_see, until_tier, with_volumes};
use crate::suspension::{environment, held, job, key_of, object_of, put_to_sleep, until_gone};
use crate::testbed::cloud::Act;
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{SOON, Stage, condition};
use crate::testbed::wait::until;
use crate::traces::{self, told};

/// Sleeps as a snapshot, wakes, sleeps as another, wakes: each snapshot is that of its own sleep.
pub async fn twice_through_a_snapshot(stage: &Stage) -> Result<()> {
    let (_, key) = put_to_sleep(stage, leaves_marks("first")).await?;
    ask(stage, &key, "Snapshotted").await?;
    let first = until_tier(stage, &key, "Snapshotted").await?;
    ask(stage, &key, "Hot").await?;
    let again = looks_for_marks("again", &key).script(["cat ../../marker", "echo newer > ../../marker"]);
    let again = stage.run(again.suspend_on_success()).await?;
    ensure!(again.state == JobState::Success && again.log_contains("kept"), "{}", told(&again));
    ensure!(key_of(&again)? == key);
    ask(stage, &key, "Snapshotted").await?;
    let second = stage
        .until_object("suspendedenvironment", &object_of(&key)?, "it is snapshotted anew", |senv| {
            let id = &senv["status"]["snapshot"]["id"];
            senv["status"]["tier"] == "Snapshotted"
                && id.is_string()
                && *id != first["status"]["snapshot"]["id"]
        })
        .await?;
    let known = snapshots(stage).await?;
    ensure!(known.len() <= 2, "more snapshots than sleeps: {known:?} {second:#}");
    let woken = stage.run(job("wake").environment_key(&key).script(["cat ../../marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("newer"), "{}", told(&woken));
    until_gone(stage, &key).await
}

#[tokio::test]
async fn a_snapshot_that_never_completes_keeps_its_volume_and_the_environment_can_be_resumed() -> Result<()> {
    let pool = json!({ "policies": [{ "idleTime": "1s" }] });
    let stage = Stage::start("snapshot-hangs", with_volumes(pool)).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    cloud.cloud.act(Act::SnapshotHangs).await?;
    ask(&stage, &key, "Snapshotted").await?;
    let waits = until_waits_for(&stage, &key, "to be complete").await?;
    ensure!(condition(&waits, "TierReached").0 == "False", "{waits:#}");
    let volume = waits["status"]["volume"]["id"].as_str().context("no volume")?.to_owned();
    ensure!(cloud.cloud.state().await?.volumes.iter().any(|one| one.id == volume), "its volume is gone");
    // A job does not wait for it.
    resume_and_see(&stage, &key, "processes 0").await?;
    until_gone(&stage, &key).await?;
    until("its snapshot went with it", SOON, async || Ok(snapshots(&stage).await?.is_empty().then_some(())))
        .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_snapshot_that_fails_is_taken_again() -> Result<()> {
    let stage = Stage::start("snapshot-fails", with_volumes(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    cloud.cloud.act(Act::SnapshotHangs).await?;
    ask(&stage, &key, "Snapshotted").await?;
    until_waits_for(&stage, &key, "to be complete").await?;
    let failed = snapshots(&stage).await?.first().context("no snapshot")?.clone();
    cloud.cloud.act(Act::FailSnapshot { snapshot: failed.clone() }).await?;
    cloud.cloud.act(Act::Restore).await?;
    let kept = until_tier(&stage, &key, "Snapshotted").await?;
    ensure!(kept["status"]["snapshot"]["id"] != failed.as_str(), "{kept:#}");
    resume_and_see(&stage, &key, "processes 0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_waits_for_an_instance_in_the_zone_of_its_volume() -> Result<()> {
    let stage =
        Stage::start("other-zone", with_volumes(json!({ "policies": [{ "idleTime": "1s" }] }))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Detached").await?;
    let detached = until_tier(&stage, &key, "Detached").await?;
    let zone = detached["status"]["volume"]["zone"].as_str().context("no zone")?.to_owned();
    cloud.until_members(0).await?;
    // The only instance there is, is in the other zone.
    cloud.cloud.act(Act::ZoneClosed { zone: zone.clone() }).await?;
    let busy = stage.gitlab.enqueue(job("busy").script(held(&["echo done"])));
    stage.until_log(busy, "waits").await?;
    let elsewhere = instance_of(&stage, busy).await?;
    ensure!(cloud.cloud.instance(&elsewhere).await?.zone != zone);
    cloud.cloud.act(Act::Restore).await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    go(&stage, &elsewhere).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    traces::end(stage).await
}

#[tokio::test]
async fn a_volume_that_somebody_deletes_loses_its_environment_at_once_and_says_so() -> Result<()> {
    let stage = Stage::start("volume-deleted", with_volumes(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Detached").await?;
    let detached = until_tier(&stage, &key, "Detached").await?;
    let volume = detached["status"]["volume"]["id"].as_str().context("no volume")?.to_owned();
    cloud.cloud.ec2().delete_volume().volume_id(volume).send().await?;
    let refused = stage.gitlab.enqueue(job("wake").environment_key(&key).script(["true"]));
    let name = object_of(&key)?;
    until("it is lost", SOON * 2, async || {
        Ok((environment(&stage, &key).await?["status"]["phase"] == "Lost").then_some(()))
    })
    .await?;
    traces::event(&stage, &name, "Lost").await?;
    let over = stage.until_over(refused).await?;
    ensure!(over.state == JobState::Failed && over.log_contains("is lost"), "{}", told(&over));
    next_job_runs(&stage).await?;
    traces::end(stage).await
}
