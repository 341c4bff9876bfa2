//! Answers that are lost after the deed: nothing is done twice, nothing is forgotten.

use anyhow::{Result, ensure};
use serde_json::json;

use super::super::tiers::{ask, leaves_marks, resume_and_see, until_tier, with_volumes};
use super::{snapshots, until_nothing_is_left};
use crate::suspension::{put_to_sleep, until_gone};
use crate::testbed::cloud::{Call, Fault};
use crate::testbed::stage::{Setting, Stage};
use crate::traces;

/// Cuts the answers to each of these calls: once, and again with every try of a client.
async fn cut(stage: &Stage, calls: &[(&str, &str)], times: u32) -> Result<()> {
    for (service, action) in calls {
        stage.cloud()?.cloud.fault(Fault::cut(service, action).times(times)).await?;
    }
    Ok(())
}

fn count(calls: &[Call], action: &str) -> usize {
    calls.iter().filter(|call| call.action == action).count()
}

/// Fails unless the faults were met: a test of lost answers that lost none proves nothing.
fn were_cut(calls: &[Call], actions: &[(&str, &str)]) -> Result<()> {
    for (_, action) in actions {
        ensure!(count(calls, action) > 0, "{action} was never called");
    }
    Ok(())
}

/// A whole life on volumes, with so many answers lost of each call.
async fn a_life_on_volumes(name: &str, times: u32) -> Result<()> {
    let pool = json!({
        "provider": { "aws": { "growWith": "LaunchInstances" } },
        "policies": [{ "idleTime": "1s" }],
    });
    let stage = Stage::start(name, with_volumes(pool)).await?;
    let lost = [
        ("autoscaling", "LaunchInstances"),
        ("ec2", "CreateVolume"),
        ("ec2", "AttachVolume"),
        ("ec2", "DetachVolume"),
        ("ec2", "CreateSnapshot"),
    ];
    cut(&stage, &lost, times).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let cloud = stage.cloud()?;
    let calls = cloud.cloud.calls(0).await?;
    ensure!(count(&calls, "launched") == 1, "instances were doubled");
    ask(&stage, &key, "Snapshotted").await?;
    until_tier(&stage, &key, "Snapshotted").await?;
    let snapshots = snapshots(&stage).await?;
    ensure!(snapshots.len() == 1, "{snapshots:?}");
    resume_and_see(&stage, &key, "processes 0").await?;
    until_gone(&stage, &key).await?;
    were_cut(&cloud.cloud.calls(0).await?, &lost)?;
    cloud.cloud.clear_faults().await?;
    stage.kubectl(&["delete", "runnerpool", crate::testbed::stage::POOL, "--timeout=60s"]).await?;
    until_nothing_is_left(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_answer_that_is_lost_once_doubles_and_forgets_nothing() -> Result<()> {
    a_life_on_volumes("cut-once", 1).await
}

#[tokio::test]
async fn an_answer_that_is_lost_at_each_try_doubles_and_forgets_nothing() -> Result<()> {
    // More often than one call tries.
    a_life_on_volumes("cut-often", 3).await
}

#[tokio::test]
async fn a_lost_answer_about_a_group_or_an_instance_does_nothing_twice() -> Result<()> {
    let stage = Stage::start("cut-group", Setting::cloud(json!({}))).await?;
    let lost = [
        ("autoscaling", "SetDesiredCapacity"),
        ("autoscaling", "DetachInstances"),
        ("ec2", "StopInstances"),
        ("ec2", "StartInstances"),
        ("ec2", "TerminateInstances"),
    ];
    cut(&stage, &lost, 3).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    until_gone(&stage, &key).await?;
    let cloud = stage.cloud()?;
    until_nothing_is_left(&stage).await?;
    let calls = cloud.cloud.calls(0).await?;
    were_cut(&calls, &lost)?;
    ensure!(count(&calls, "launched") == 1, "instances were doubled");
    ensure!(cloud.members().await?.is_empty());
    traces::end(stage).await
}
