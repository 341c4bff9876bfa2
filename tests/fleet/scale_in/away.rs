//! A group that takes busy members while no operator is there.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::asleep::{asleep, resumes};
use super::*;
use crate::suspension::environment;
use crate::testbed::cloud::Act;
use crate::testbed::stage::{CloudSetting, Setting};

#[tokio::test]
async fn a_job_survives_a_scale_in_while_the_operator_is_away_for_less_than_the_hook() -> Result<()> {
    let stage = Stage::start("shortly", Setting::cloud(quick(json!({})))).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    go(&stage)?;
    end_member(cloud, &instance).await?;
    until_lifecycle(cloud, &instance, "Terminating:Wait").await?;
    let beats = calls_of(cloud, "RecordLifecycleActionHeartbeat", &instance).await?;
    ensure!(beats.is_empty(), "nobody was there: {beats:#?}");
    let_go(&stage, &instance).await?;
    come_back(&stage).await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}\n{}", told(&over), stage.operator_log());
    traces::each_line_once(&over, 1)?;
    ensure!(completion(cloud, &instance).await?.1 == "CONTINUE");
    cloud.machines.gone(&instance).await?;
    ensure!(calls_of(cloud, "hook-expired", &instance).await?.is_empty());
    traces::end(stage).await
}

/// A pool whose group keeps what its hook held for too long.
async fn retaining(name: &str) -> Result<Stage> {
    let setting =
        CloudSetting { group: |group| *group = group.clone().retaining(), ..CloudSetting::default() };
    Stage::start(name, Setting::cloud(quick(json!({}))).in_cloud(setting)).await
}

/// The operator is away until the group has retained an instance that was to go, and takes it out then.
async fn is_retained_meanwhile(stage: &Stage, instance: &str) -> Result<()> {
    let cloud = stage.cloud()?;
    go(stage)?;
    end_member(cloud, instance).await?;
    until_lifecycle(cloud, instance, "Terminating:Wait").await?;
    cloud.cloud.act(Act::PassTime { seconds: 61.0 }).await?;
    until_lifecycle(cloud, instance, "Terminating:Retained").await?;
    come_back(stage).await?;
    let detached =
        until_calls(cloud, "DetachInstances", instance, 1).await.with_context(|| stage.operator_log())?;
    // It does not count as capacity, so there is nothing to be decremented.
    ensure!(detached[0].names("ShouldDecrementDesiredCapacity", "false"), "{detached:#?}");
    Ok(())
}

#[tokio::test]
async fn a_job_survives_a_longer_absence_where_the_group_retains_its_instance() -> Result<()> {
    let stage = retaining("retained").await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    is_retained_meanwhile(&stage, &instance).await?;
    ends_well(&stage, id, &instance).await?;
    // Nothing needs it any more.
    cloud.machines.gone(&instance).await?;
    until_calls(cloud, "TerminateInstances", &instance, 1).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_survives_a_longer_absence_where_the_group_retains_its_instance() -> Result<()> {
    let stage = retaining("retained-asleep").await?;
    let cloud = stage.cloud()?;
    let (key, instance) = asleep(&stage).await?;
    is_retained_meanwhile(&stage, &instance).await?;
    let known = environment(&stage, &key).await?;
    ensure!(
        known["status"]["tier"] == "Hot" && known["status"]["instance"] == instance.as_str(),
        "{known:#}"
    );
    ensure!(resumes(&stage, &key).await? == instance, "it was resumed elsewhere");
    // With the environment goes what was kept for it.
    cloud.machines.gone(&instance).await?;
    traces::end(stage).await
}
