//! A group that takes members with an environment asleep on them.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::*;
use crate::suspension::{environment, object_of, put_to_sleep, until_gone};
use crate::testbed::stage::{CloudSetting, Setting};

/// Puts an environment to sleep; answers its key and its instance.
pub(super) async fn asleep(stage: &Stage) -> Result<(String, String)> {
    let (_, key) = put_to_sleep(stage, job("first").script(["echo kept > marker"])).await?;
    let hot = environment(stage, &key).await?;
    let instance = hot["status"]["instance"].as_str().context("no instance")?.to_owned();
    Ok((key, instance))
}

/// Resumes it and fails unless everything is there; answers the instance.
pub(super) async fn resumes(stage: &Stage, key: &str) -> Result<String> {
    let woken = stage.run(job("wake").environment_key(key).script(["cat marker"])).await?;
    ensure!(
        woken.state == JobState::Success && woken.log_contains("kept"),
        "{}\n{}",
        told(&woken),
        stage.operator_log()
    );
    let lease = stage.lease_over(woken.id).await?;
    until_gone(stage, key).await?;
    Ok(lease["status"]["instance"].as_str().context("no instance")?.to_owned())
}

#[tokio::test]
async fn an_environment_on_a_volume_leaves_a_member_that_goes_before_its_hook_is_completed() -> Result<()> {
    let pool = quick(json!({ "workspaceVolume": { "sizeGiB": 1 } }));
    let stage = Stage::start("leaves", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    let (key, instance) = asleep(&stage).await?;
    end_member(cloud, &instance).await?;
    let moved = stage
        .until_object("suspendedenvironment", &object_of(&key)?, "it is at tier Detached", |senv| {
            senv["status"]["tier"] == "Detached" && senv["status"]["moving"].is_null()
        })
        .await?;
    ensure!(moved["status"]["phase"] == "Suspended" && moved["status"]["instance"].is_null(), "{moved:#}");
    let volume = moved["status"]["volume"]["id"].as_str().context("no volume")?.to_owned();
    let (completed, result) = completion(cloud, &instance).await?;
    ensure!(result == "CONTINUE");
    let calls = cloud.cloud.calls(0).await?;
    let detached = calls.iter().find(|call| call.action == "DetachVolume" && call.names("VolumeId", &volume));
    let detached = detached.context("the volume was not detached")?;
    ensure!(detached.n < completed, "the member was let go with the volume on it");
    cloud.machines.gone(&instance).await?;
    ensure!(resumes(&stage, &key).await? != instance);
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_without_a_volume_keeps_its_instance_where_the_group_retains_it() -> Result<()> {
    let setting =
        CloudSetting { group: |group| *group = group.clone().retaining(), ..CloudSetting::default() };
    let stage = Stage::start("kept", Setting::cloud(quick(json!({}))).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let (key, instance) = asleep(&stage).await?;
    end_member(cloud, &instance).await?;
    let (completed, result) = completion(cloud, &instance).await.with_context(|| stage.operator_log())?;
    ensure!(result == "ABANDON", "{result}");
    let detached = until_calls(cloud, "DetachInstances", &instance, 1).await?;
    ensure!(detached[0].n > completed && detached[0].names("ShouldDecrementDesiredCapacity", "false"));
    until("it is no member any more", SOON, async || {
        Ok(lifecycle(cloud, &instance).await?.is_none().then_some(()))
    })
    .await?;
    ensure!(resumes(&stage, &key).await? == instance);
    // With the environment goes what was kept for it.
    cloud.machines.gone(&instance).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_that_cannot_leave_and_is_not_retained_is_held_and_announced() -> Result<()> {
    let setting =
        CloudSetting { group: |group| group.hooks[0].timeout_seconds = 30, ..CloudSetting::default() };
    let stage = Stage::start("at-risk", Setting::cloud(quick(json!({}))).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let (key, instance) = asleep(&stage).await?;
    end_member(cloud, &instance).await?;
    let (note, _) = traces::event(&stage, POOL, "EnvironmentAtRisk").await?;
    ensure!(note.contains(&instance) && note.contains("spec.workspaceVolume"), "{note}");
    until_calls(cloud, "RecordLifecycleActionHeartbeat", &instance, 2).await?;
    ensure!(lifecycle(cloud, &instance).await?.as_deref() == Some("Terminating:Wait"));
    ensure!(resumes(&stage, &key).await? == instance, "it can be resumed until the end");
    ensure!(completion(cloud, &instance).await?.1 == "CONTINUE");
    cloud.machines.gone(&instance).await?;
    traces::end(stage).await
}
