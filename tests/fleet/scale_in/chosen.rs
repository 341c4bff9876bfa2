//! A group that takes busy members: by its size, by a refresh, by a person, and in the moment before it is protected.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::*;
use crate::testbed::cloud::{Act, Fault};
use crate::testbed::stage::{CloudSetting, Setting, condition, host};

#[tokio::test]
async fn a_desired_capacity_lowered_by_a_stranger_takes_no_job_and_is_raised_again() -> Result<()> {
    let stage = Stage::start("lowered", Setting::cloud(quick(json!({})))).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    let since = cloud.cloud.calls_so_far().await?;
    let lower = cloud.cloud.scaling().set_desired_capacity().auto_scaling_group_name(GROUP);
    lower.desired_capacity(0).send().await?;
    until("the pool has raised it again", SOON, async || {
        let calls = cloud.cloud.calls(since).await?;
        let raised = calls.iter().any(|call| {
            call.action == "SetDesiredCapacity" && call.names("DesiredCapacity", "1") && call.answer == "ok"
        });
        Ok(raised.then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    ensure!(lifecycle(cloud, &instance).await?.as_deref() == Some("InService"));
    ends_well(&stage, id, &instance).await?;
    cloud.machines.gone(&instance).await?;
    ensure!(desired(cloud).await? == 0);
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_refresh_that_takes_protected_members_waits_for_their_jobs() -> Result<()> {
    let stage = Stage::start("refresh", Setting::cloud(quick(json!({})))).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    let preferences = json!({ "ScaleInProtectedInstances": "Refresh", "MinHealthyPercentage": 0 });
    cloud.cloud.act(Act::InstanceRefresh { group: GROUP.to_owned(), preferences }).await?;
    until_lifecycle(cloud, &instance, "Terminating:Wait").await?;
    until_calls(cloud, "RecordLifecycleActionHeartbeat", &instance, 1).await?;
    runs_elsewhere(&stage, "other", &instance).await?;
    ensure!(lifecycle(cloud, &instance).await?.as_deref() == Some("Terminating:Wait"));
    ends_well(&stage, id, &instance).await?;
    ensure!(completion(cloud, &instance).await?.1 == "CONTINUE");
    cloud.machines.gone(&instance).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_terminate_hook_is_held_by_heartbeats_until_the_job_is_over() -> Result<()> {
    let setting =
        CloudSetting { group: |group| group.hooks[0].timeout_seconds = 30, ..CloudSetting::default() };
    let stage = Stage::start("hook", Setting::cloud(quick(json!({}))).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    end_member(cloud, &instance).await?;
    until_lifecycle(cloud, &instance, "Terminating:Wait").await?;
    traces::event(&stage, POOL, "ScaleInDeferred").await?;
    runs_elsewhere(&stage, "other", &instance).await?;
    let beats = until_calls(cloud, "RecordLifecycleActionHeartbeat", &instance, 2).await?;
    ensure!(beats.iter().all(|beat| beat.names("LifecycleHookName", HOOK)), "{beats:#?}");
    let pause = at(&beats[1])?.duration_since(at(&beats[0])?).as_secs_f64();
    // A third of the time-out; that none came too late is seen below.
    ensure!(pause >= 9.5, "{pause} s between two heartbeats");
    ends_well(&stage, id, &instance).await?;
    ensure!(completion(cloud, &instance).await?.1 == "CONTINUE");
    cloud.machines.gone(&instance).await?;
    ensure!(calls_of(cloud, "hook-expired", &instance).await?.is_empty());
    traces::end(stage).await
}

#[tokio::test]
async fn a_hook_is_held_for_its_job_although_the_group_is_set_wrongly_meanwhile() -> Result<()> {
    let setting =
        CloudSetting { group: |group| group.hooks[0].timeout_seconds = 30, ..CloudSetting::default() };
    let stage = Stage::start("wrongly", Setting::cloud(quick(json!({}))).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    end_member(cloud, &instance).await?;
    until_lifecycle(cloud, &instance, "Terminating:Wait").await?;
    let scaling = cloud.cloud.scaling();
    let policy = scaling.put_scaling_policy().auto_scaling_group_name(GROUP).policy_name("cpu");
    let policy = policy.policy_type("SimpleScaling").adjustment_type("ChangeInCapacity");
    policy.scaling_adjustment(1).send().await?;
    stage
        .until_object("runnerpool", POOL, "its group is set wrongly", |pool| {
            condition(pool, "GroupSuitable") == ("False".to_owned(), "ScalingPolicies".to_owned())
        })
        .await?;
    let since = cloud.cloud.calls_so_far().await?;
    let beats = calls_of(cloud, "RecordLifecycleActionHeartbeat", &instance).await?.len();
    until_calls(cloud, "RecordLifecycleActionHeartbeat", &instance, beats + 2).await?;
    ends_well(&stage, id, &instance).await?;
    ensure!(completion(cloud, &instance).await?.1 == "CONTINUE");
    cloud.machines.gone(&instance).await?;
    let calls = cloud.cloud.calls(since).await?;
    ensure!(calls.iter().all(|call| call.action != "SetDesiredCapacity"), "{calls:#?}");
    ensure!(calls_of(cloud, "hook-expired", &instance).await?.is_empty());
    scaling.delete_policy().auto_scaling_group_name(GROUP).policy_name("cpu").send().await?;
    runs_elsewhere(&stage, "other", &instance).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_member_that_is_chosen_before_it_is_protected_gets_no_job() -> Result<()> {
    let setting = CloudSetting { group: |group| group.protected = false, ..CloudSetting::default() };
    let stage = Stage::without_operator("window", &Setting::cloud(json!({})).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let late = Fault::latency("autoscaling", "SetInstanceProtection", Duration::from_secs(12));
    cloud.cloud.fault(late).await?;
    let mut stage = stage;
    stage.apply_pool(Setting::cloud(quick(json!({}))).pool).await?;
    stage.operator = Some(stage.start_operator("operator-a").await?);
    let cloud = stage.cloud()?;
    let id = stage.gitlab.enqueue(job("early").script(["echo line 1"]));
    let instance = until("a member is in service", SOON, async || {
        let members = cloud.members().await?;
        Ok(members.into_iter().find(|(_, state)| state == "InService").map(|(id, _)| id))
    })
    .await?;
    // Seen as a member in service, it is being connected to, and its protection is on the way.
    stage
        .until_object("runnerpool", POOL, "the member is connected to", |pool| {
            let state = host(pool, &instance)["state"].clone();
            state == "Connecting" || state == "Ready"
        })
        .await?;
    end_member(cloud, &instance).await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    let lease = stage.lease_over(id).await?;
    ensure!(lease["status"]["instance"] != instance.as_str(), "{lease:#}");
    let refused = until("its protection was answered", SOON, async || {
        let calls = calls_of(cloud, "SetInstanceProtection", &instance).await?;
        Ok((!calls.is_empty()).then_some(calls))
    })
    .await?;
    ensure!(refused.len() == 1 && refused[0].answer == "ValidationError", "{refused:#?}");
    ensure!(completion(cloud, &instance).await?.1 == "CONTINUE");
    cloud.machines.gone(&instance).await?;
    // It is the race that it is, and no trouble of the cloud.
    let events = stage.list("events.v1.events.k8s.io").await?;
    ensure!(events.iter().all(|event| event["reason"] != "CloudRefused"), "{events:#?}");
    stage.until_condition("runnerpool", POOL, "CloudReady").await?;
    traces::end(stage).await
}
