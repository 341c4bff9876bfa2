//! Instances that cannot be logged in to, or are not who they were.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_autoscaling::types::LaunchTemplateSpecification;
use serde_json::json;

use super::super::failures::{beside_a_busy_job, go, instance_of, next_job_runs};
use crate::suspension::{held, job};
use crate::testbed::cloud::{Act, Template};
use crate::testbed::gitlab::JobState;
use crate::testbed::hosts::{Host, Line};
use crate::testbed::stage::cloud::GROUP;
use crate::testbed::stage::{CloudSetting, POOL, SOON, Setting, Stage, condition, host, message};
use crate::testbed::wait::until;
use crate::traces::{self, told};

/// Until an instance has not answered for a minute.
const LOST: Duration = Duration::from_secs(180);

/// Packets are dropped: connections are gone, and new ones hang. A reset carries new ones, so it comes first.
async fn out_of_sight(machine: &Host) -> Result<()> {
    machine.reset_connections().await?;
    machine.cut(Line::Silent).await
}

/// Has the group launch by another template from now on.
async fn launch_by(stage: &Stage, template: &str) -> Result<()> {
    let group = stage.cloud()?.cloud.scaling().update_auto_scaling_group().auto_scaling_group_name(GROUP);
    let template = LaunchTemplateSpecification::builder().launch_template_id(template).build();
    group.launch_template(template).send().await?;
    Ok(())
}

/// Waits until it is told of instances that they were not Ready in time, and what to do.
async fn until_not_ready_is_told(stage: &Stage) -> Result<()> {
    let event = stage.until_event("InstanceNotReady").await?;
    let note = event["message"].as_str().unwrap_or_default();
    let message = stage.until_finding("Scaling", "False", "InstanceNotReady").await?;
    for said in [note, &message] {
        ensure!(
            said.contains("instanceReadyTimeout") && said.contains("the security group lets it"),
            "{said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_instance_without_a_key_is_replaced_and_the_template_is_mended() -> Result<()> {
    // Time enough for one that can be logged in to, on a machine that is busy.
    let pool = json!({ "instanceReadyTimeout": "20s" });
    let stage = Stage::start("keyless", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    let over = beside_a_busy_job(&stage, async {
        let keyless = Template { key: None, ..Template::new("keyless", "bed") };
        launch_by(&stage, &cloud.cloud.template(&keyless, &cloud.network).await?).await?;
        let waits = stage.gitlab.enqueue(job("waits").script(["echo runs"]));
        until_not_ready_is_told(&stage).await?;
        until("the instance is replaced", SOON, async || {
            let state = cloud.cloud.state().await?;
            let gone = state.instances.iter().filter(|one| one.state == "terminated").count();
            Ok((gone > 0 && state.instances.len() > gone + 1).then_some(()))
        })
        .await?;
        ensure!(stage.gitlab.job(waits).is_some_and(|job| !job.state.is_final()), "the job did not wait");
        launch_by(&stage, &cloud.template).await?;
        stage.until_over(waits).await
    })
    .await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    stage.until_condition("runnerpool", POOL, "Scaling").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_that_is_blocked_from_its_first_boot_is_told_and_replaced() -> Result<()> {
    // Time enough for one that is not blocked, on a machine that is busy.
    let pool = json!({ "instanceReadyTimeout": "20s", "ssh": { "dialTimeout": "2s" } });
    let stage = Stage::start("blocked", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    // Its network does not come up by itself.
    cloud.machines.boot_late(Duration::from_secs(3600))?;
    let waits = stage.gitlab.enqueue(job("waits").script(["echo runs"]));
    let first = until("an instance comes", SOON, async || {
        Ok(cloud.members().await?.first().map(|(id, _)| id.clone()))
    })
    .await?;
    cloud.until_state(&first, "running").await?;
    cloud.machine(&first)?.cut(Line::Silent).await?;
    cloud.machines.boot_late(Duration::ZERO)?;
    let message = stage.until_host(&first, "Unreachable").await?;
    ensure!(message.contains("does not answer within"), "{message}");
    until_not_ready_is_told(&stage).await?;
    let over = stage.until_over(waits).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    ensure!(instance_of(&stage, waits).await? != first, "it ran on the one that is blocked");
    cloud.until_state(&first, "terminated").await?;
    stage.until_condition("runnerpool", POOL, "Scaling").await?;
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
    let note = stage.until_told("HostKeysTrusted", "HostKeyRefused").await?;
    ensure!(note.contains(&instance) && note.contains("status.hosts"), "{note}");
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
    let said = stage.until_finding("SlotsClean", "False", "Quarantined").await?;
    ensure!(said.contains(&instance), "{said}");
    // What is in doubt there keeps neither the instance nor its place in the pool.
    let next = stage.gitlab.enqueue(job("next").script(["echo runs"]));
    let mut scaling = String::new();
    until("it is given up", LOST, async || {
        let pool = stage.get("runnerpool", POOL).await?;
        scaling = message(&pool, "Scaling");
        Ok((condition(&pool, "Scaling") == ("False".to_owned(), "InstanceUnreachable".to_owned()))
            .then_some(()))
    })
    .await
    .with_context(|| format!("Scaling says {scaling}\n{}", stage.operator_log()))?;
    ensure!(scaling.contains(&instance) && scaling.contains("look at its security group"), "{scaling}");
    until("the instance is gone", LOST, async || {
        Ok((cloud.cloud.instance(&instance).await?.state == "terminated").then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    let event = stage.until_event("InstanceUnreachable").await?;
    let note = event["message"].as_str().unwrap_or_default();
    ensure!(note.contains(&instance) && note.contains("failureThreshold"), "{event:#}");
    ensure!(note.contains("look at its security group"), "no next step: {event:#}");
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

#[tokio::test]
async fn a_cloud_that_finds_signatures_too_old_is_told_of_the_clock_and_jobs_go_on() -> Result<()> {
    let stage = Stage::start("skewed", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    beside_a_busy_job(&stage, async {
        cloud.cloud.config(json!({ "skew_seconds": 3600 })).await?;
        let note = stage.until_told("CloudReady", "Denied").await?;
        ensure!(
            note.contains("RequestExpired") && note.contains("the clock of the operator's machine"),
            "{note}"
        );
        cloud.cloud.config(json!({ "skew_seconds": 0 })).await?;
        stage.until_finding("CloudReady", "True", "CloudAnswers").await?;
        next_job_runs(&stage).await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_operator_whose_clock_is_an_hour_ahead_signs_by_the_api_servers() -> Result<()> {
    // With any difference it looks at the time of signatures.
    let setting = CloudSetting { config: json!({ "skew_seconds": 1 }), ..CloudSetting::default() };
    let stage = Stage::start("clock-wrong", Setting::cloud(json!({})).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    beside_a_busy_job(&stage, async {
        let operator = stage.operator()?;
        operator.terminate().await?;
        stage.gitlab.client_restarted();
        operator.set_variable("DORMOUSE_CLOCK_OFFSET_SECONDS", Some("3600"));
        operator.start_again().await?;
        next_job_runs(&stage).await
    })
    .await?;
    ensure!(stage.operator()?.log()?.contains("clock and the API server's differ"), "it has not noticed");
    let calls = cloud.cloud.calls(0).await?;
    let refused = calls.iter().find(|call| call.answer == "RequestExpired");
    ensure!(refused.is_none(), "{refused:#?}");
    traces::end(stage).await
}
