//! Instances that cannot be logged in to, or are not who they were.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::super::failures::{go, instance_of, next_job_runs};
use crate::suspension::{held, job};
use crate::testbed::cloud::{Act, Template};
use crate::testbed::gitlab::JobState;
use crate::testbed::hosts::{Host, Line};
use crate::testbed::stage::cloud::GROUP;
use crate::testbed::stage::{CloudSetting, POOL, SOON, Setting, Stage, host};
use crate::testbed::wait::until;
use crate::traces::{self, told};

/// Until an instance has not answered for a minute.
const LOST: Duration = Duration::from_secs(180);

/// Packets are dropped: connections are gone, and new ones hang. A reset carries new ones, so it comes first.
async fn out_of_sight(machine: &Host) -> Result<()> {
    machine.reset_connections().await?;
    machine.cut(Line::Silent).await
}

#[tokio::test]
async fn an_instance_without_a_key_is_replaced_and_the_template_is_mended() -> Result<()> {
    let setting = CloudSetting { template: |template| template.key = None, ..CloudSetting::default() };
    let pool = json!({ "instanceReadyTimeout": "5s" });
    let stage = Stage::start("keyless", Setting::cloud(pool).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let waits = stage.gitlab.enqueue(job("waits").script(["echo runs"]));
    let event = stage.until_event("InstanceNotReady").await?;
    ensure!(event["message"].as_str().is_some_and(|note| note.contains("instanceReadyTimeout")), "{event:#}");
    until("the instance is replaced", SOON, async || {
        let state = cloud.cloud.state().await?;
        let gone = state.instances.iter().filter(|one| one.state == "terminated").count();
        Ok((gone > 0 && state.instances.len() > gone).then_some(()))
    })
    .await?;
    ensure!(stage.gitlab.job(waits).is_some_and(|job| !job.state.is_final()), "the job did not wait");
    let mended = cloud.cloud.template(&Template::new("with-key", "bed"), &cloud.network).await?;
    let group = cloud.cloud.scaling().update_auto_scaling_group().auto_scaling_group_name(GROUP);
    let template =
        aws_sdk_autoscaling::types::LaunchTemplateSpecification::builder().launch_template_id(mended).build();
    group.launch_template(template).send().await?;
    // Time enough for one that can be logged in to, on a machine that is busy.
    stage
        .apply_pool(json!({ "instanceReadyTimeout": "20s", "maxInstances": 4,
        "scaling": { "updateInterval": "1s", "updateIntervalWhenExpecting": "1s" } }))
        .await?;
    let over = stage.until_over(waits).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    traces::end(stage).await
}

#[tokio::test]
async fn an_address_that_is_used_again_by_another_instance_is_no_stranger() -> Result<()> {
    let setting =
        CloudSetting { zones: 1, config: json!({ "reuse_addresses": true }), ..CloudSetting::default() };
    let pool = json!({ "policies": [{ "idleTime": "1s" }] });
    let stage = Stage::start("reused", Setting::cloud(pool).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let mut addresses = Vec::new();
    for name in ["first", "second"] {
        let busy = stage.gitlab.enqueue(job(name).script(held(&["echo done"])));
        stage.until_log(busy, "waits").await?;
        let instance = instance_of(&stage, busy).await?;
        addresses.push(cloud.cloud.instance(&instance).await?.address);
        go(&stage, &instance).await?;
        let over = stage.until_over(busy).await?;
        ensure!(over.state == JobState::Success, "{}", told(&over));
        cloud.machines.gone(&instance).await?;
    }
    ensure!(addresses.first() == addresses.last(), "the address was not used again: {addresses:?}");
    stage.until_finding("HostKeysTrusted", "True", "KeysAsExpected").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_that_shows_another_key_than_before_gets_no_job() -> Result<()> {
    let stage = Stage::start("other-key", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let first = stage.run(job("first").script(["echo runs"])).await?;
    let instance = instance_of(&stage, first.id).await?;
    let machine = cloud.machine(&instance)?;
    machine.new_host_key().await?;
    machine.kill_sessions().await?;
    let message = stage.until_finding("HostKeysTrusted", "False", "HostKeyRefused").await?;
    ensure!(message.contains(&instance), "{message}");
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_behind_a_wall_keeps_its_job_and_gets_no_other() -> Result<()> {
    let stage = Stage::start("walled", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let busy = stage.gitlab.enqueue(job("busy").script(held(&["echo done"])));
    stage.until_log(busy, "waits").await?;
    let instance = instance_of(&stage, busy).await?;
    let machine = cloud.machine(&instance)?;
    out_of_sight(&machine).await?;
    stage
        .until_object("runnerpool", POOL, "the instance is not reached", |pool| {
            host(pool, &instance)["state"] == "Unreachable"
        })
        .await?;
    // Another job gets another instance.
    next_job_runs(&stage).await?;
    ensure!(cloud.members().await?.len() == 2, "{:?}", cloud.members().await?);
    ensure!(stage.gitlab.job(busy).is_some_and(|job| !job.state.is_final()), "the job did not go on");
    machine.heal().await?;
    go(&stage, &instance).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.state == JobState::Success && over.log_contains("done"), "{}", told(&over));
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_that_is_never_reached_again_under_a_job_is_replaced() -> Result<()> {
    let pool = json!({ "connectionGrace": "2s", "maxInstances": 1, "scaling": { "failureThreshold": 1 } });
    let stage = Stage::start("lost-sight", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    let busy = stage.gitlab.enqueue(job("busy").script(held(&["echo done"])));
    stage.until_log(busy, "waits").await?;
    let instance = instance_of(&stage, busy).await?;
    let machine = cloud.machine(&instance)?;
    out_of_sight(&machine).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&over));
    let message = stage.until_finding("SlotsClean", "False", "Quarantined").await?;
    ensure!(message.contains(&instance), "{message}");
    // What is in doubt there keeps neither the instance nor its place in the pool.
    let next = stage.gitlab.enqueue(job("next").script(["echo runs"]));
    until("the instance is gone", LOST, async || {
        Ok((cloud.cloud.instance(&instance).await?.state == "terminated").then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    let event = stage.until_event("InstanceUnreachable").await?;
    let note = event["message"].as_str().unwrap_or_default();
    ensure!(note.contains(&instance) && note.contains("failureThreshold"), "{event:#}");
    let over = stage.until_over(next).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    ensure!(instance_of(&stage, next).await? != instance, "on the one that was given up");
    stage.until_finding("SlotsClean", "True", "NoneInDoubt").await?;
    stage.until_condition("runnerpool", POOL, "Scaling").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_cloud_whose_clock_is_an_hour_ahead_changes_nothing() -> Result<()> {
    let pool = json!({ "policies": [{ "idleTime": "1s" }], "instanceReadyTimeout": "2m" });
    let stage = Stage::start("clock-ahead", super::super::tiers::with_volumes(pool)).await?;
    let cloud = stage.cloud()?;
    cloud.cloud.act(Act::PassTime { seconds: 3600.0 }).await?;
    super::storage::twice_through_a_snapshot(&stage).await.context("an hour ahead")?;
    traces::end(stage).await
}
