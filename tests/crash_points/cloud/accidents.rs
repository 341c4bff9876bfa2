//! Deaths while a move is given up, an environment is lost, and one that no object knows any more is adopted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_ec2::types::Tag;
use serde_json::{Value, json};

use super::{alone, give_everything_back, nothing_is_kept, sleeps, wakes};
use crate::crash_points::{MOMENTS, at_each, in_turn};
use crate::suspension::{job, object_of, until_gone};
use crate::testbed::cloud::Act;
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::Stage;
use crate::traces::{text, told};

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&GIVEN_UP, &LOST, &ADOPTED];

const GIVEN_UP: [&str; 1] = ["move-given-up"];
const LOST: [&str; 1] = ["environment-lost"];
const ADOPTED: [&str; 2] = ["environment-adopted", "adoption-told"];

const BOOT: Duration = Duration::from_secs(8);
const LONG_AGO: &str = "2026-01-01T00:00:00Z";

async fn change_status(stage: &Stage, key: &str, status: &Value) -> Result<()> {
    let (name, change) = (object_of(key)?, json!({ "status": status }).to_string());
    stage.kubectl(&["patch", "senv", &name, "--subresource=status", "--type=merge", "-p", &change]).await?;
    Ok(())
}

#[tokio::test]
async fn a_move_that_is_given_up_is_tried_again_and_one_that_is_lost_is_told_as_such() -> Result<()> {
    let stage = Stage::start("crash-lost", alone(json!({}))).await?;
    at_each(&stage, &GIVEN_UP, async |stage, death| {
        let key = sleeps(stage, &format!("sleeps-{}", death.name())).await?;
        let instance = stopping(stage, &key).await?;
        stage.operator()?.kill()?;
        change_status(stage, &key, &json!({ "moving": { "since": LONG_AGO } })).await?;
        death.arm(stage).await?;
        death.fall(stage).await?;
        // It is forced then.
        stage.until_tier(&key, "Stopped").await?;
        stage.cloud()?.cloud.act(Act::Restore).await?;
        wakes(stage, &format!("wakes-{}", death.name()), &key, 2, false).await?;
        until_gone(stage, &key).await?;
        stage.cloud()?.machines.gone(&instance).await?;
        nothing_is_kept(stage, 0).await
    })
    .await?;
    at_each(&stage, &LOST, async |stage, death| {
        let key = sleeps(stage, &death.name()).await?;
        let asleep = stage.asleep(&key).await?;
        let instance = text(&asleep["status"]["instance"]);
        death.arm(stage).await?;
        stage.cloud()?.cloud.act(Act::Terminate { instance: instance.clone() }).await?;
        death.fall(stage).await?;
        let lost = |senv: &Value| senv["status"]["phase"] == "Lost";
        stage.until_object("suspendedenvironment", &object_of(&key)?, "it is lost", lost).await?;
        let refused = stage.run(job("wakes").environment_key(&key).script(["true"])).await?;
        ensure!(refused.state == JobState::Failed, "{}", told(&refused));
        stage.lease_over(refused.id).await?;
        stage.kubectl(&["delete", "senv", &object_of(&key)?, "--wait=false"]).await?;
        until_gone(stage, &key).await?;
        nothing_is_kept(stage, 0).await
    })
    .await?;
    give_everything_back(stage).await
}

/// Lets it hang on its way to Stopped; answers its instance.
async fn stopping(stage: &Stage, key: &str) -> Result<String> {
    let instance = text(&stage.asleep(key).await?["status"]["instance"]);
    stage.cloud()?.cloud.act(Act::StopHangs { instance: Some(instance.clone()) }).await?;
    stage.ask_tier(key, "Stopped").await?;
    stage.cloud()?.until_state(&instance, "stopping").await?;
    Ok(instance)
}

/// A job calls it back while its instance goes off, which the next holder finds up again, with nothing mounted: it never got
/// to Stopped, and its volume is mounted all the same.
#[tokio::test]
async fn an_environment_that_is_called_back_as_its_instance_stops_gets_its_volume_back() -> Result<()> {
    let pool = json!({ "workspaceVolume": { "sizeGiB": 1 } });
    let mut setting = alone(pool);
    // Given out again the job would find another way.
    setting.gitlab.acknowledge_within = Duration::from_secs(120);
    let stage = Stage::start("crash-called-back", setting).await?;
    let key = sleeps(&stage, "sleeps").await?;
    let (cloud, operator) = (stage.cloud()?, stage.operator()?);
    let instance = stopping(&stage, &key).await?;
    // What is called back while its host is away has nothing left to do by itself.
    cloud.machines.boot_late(BOOT)?;
    let woken = wakes(&stage, "wakes", &key, 2, false);
    let called_back = async {
        let is_bound = |senv: &Value| senv["status"]["phase"] == "Resuming";
        stage.until_object("suspendedenvironment", &object_of(&key)?, "it is bound", is_bound).await?;
        operator.kill()?;
        cloud.cloud.act(Act::Restore).await?;
        cloud.until_state(&instance, "stopped").await?;
        let starting = cloud.cloud.ec2().start_instances().instance_ids(&instance);
        starting.send().await.context("failed to start it")?;
        cloud.until_state(&instance, "running").await?;
        stage.gitlab.client_restarted();
        stage.give_up_lease().await?;
        operator.start_again().await
    };
    tokio::try_join!(woken, called_back)?;
    until_gone(&stage, &key).await?;
    give_everything_back(stage).await
}

#[tokio::test]
async fn an_environment_that_is_half_adopted_is_adopted_whole() -> Result<()> {
    let pool = json!({ "workspaceVolume": { "sizeGiB": 1 }, "policies": [{ "idleTime": "10m" }] });
    let stage = Stage::start("crash-adopted", alone(pool)).await?;
    for moment in MOMENTS {
        let key = sleeps(&stage, &format!("sleeps-{moment}")).await?;
        stage.ask_tier(&key, "Detached").await?;
        let detached = stage.until_tier(&key, "Detached").await?;
        let volume = text(&detached["status"]["volume"]["id"]);
        let name = object_of(&key)?;
        stage.operator()?.kill()?;
        // The cluster forgets it, and an earlier holder had seen that nobody owns its volume.
        let bare = r#"{"metadata":{"finalizers":null}}"#;
        stage.kubectl(&["patch", "senv", &name, "--type=merge", "-p", bare]).await?;
        stage.kubectl(&["delete", "senv", &name, "--timeout=60s", "--ignore-not-found"]).await?;
        let mark = Tag::builder().key("dormouse.dev/orphaned-at").value(LONG_AGO).build();
        let tagging = stage.cloud()?.cloud.ec2().create_tags().resources(&volume).tags(mark);
        tagging.send().await.context("failed to mark the volume")?;
        let adopted = async {
            let again = stage.until_tier(&key, "Detached").await?;
            ensure!(text(&again["status"]["environmentKey"]) == key, "{again:#}");
            ensure!(text(&again["status"]["volume"]["id"]) == volume, "{again:#}");
            wakes(&stage, &format!("wakes-{moment}"), &key, 2, false).await?;
            until_gone(&stage, &key).await
        };
        in_turn(&stage, &ADOPTED, moment, adopted).await?;
        nothing_is_kept(&stage, 3).await?;
    }
    give_everything_back(stage).await
}
