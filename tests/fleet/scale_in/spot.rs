//! Spot instances that their cloud announces to take.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::*;
use crate::suspension::{environment, key_of, object_of, put_to_sleep, until_gone};
use crate::testbed::cloud::{Act, Market, Reclaim};
use crate::testbed::stage::{CloudSetting, Setting};

fn on_spot(changes: Value) -> Setting {
    let setting =
        CloudSetting { template: |template| template.market = Market::SpotOnce, ..CloudSetting::default() };
    Setting::cloud(quick(changes)).in_cloud(setting)
}

/// How long before it takes an instance the cloud says so.
const WARNING: f64 = 120.0;

fn notice(instance: &str, seconds: f64) -> Act {
    Act::SpotNotice { instance: instance.to_owned(), action: Reclaim::Terminate, seconds: Some(seconds) }
}

#[tokio::test]
async fn an_interruption_notice_moves_a_sleeping_environment_to_its_volume_in_time() -> Result<()> {
    let stage = Stage::start("spot-sleep", on_spot(json!({ "workspaceVolume": { "sizeGiB": 1 } }))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo kept > marker"])).await?;
    let hot = environment(&stage, &key).await?;
    let instance = hot["status"]["instance"].as_str().context("no instance")?.to_owned();
    cloud.cloud.act(notice(&instance, 45.0)).await?;
    let moved = stage
        .until_object("suspendedenvironment", &object_of(&key)?, "it is at tier Detached", |senv| {
            senv["status"]["tier"] == "Detached" && senv["status"]["moving"].is_null()
        })
        .await?;
    ensure!(moved["status"]["instance"].is_null(), "{moved:#}");
    ensure!(
        calls_of(cloud, "spot-reclaimed", &instance).await?.is_empty(),
        "it was moved after its instance was taken: {moved:#}"
    );
    traces::event(&stage, POOL, "InterruptionNotice").await?;
    let woken = stage.run(job("wake").environment_key(&key).script(["cat marker"])).await?;
    ensure!(
        woken.state == JobState::Success && woken.log_contains("kept"),
        "{}\n{}",
        told(&woken),
        stage.operator_log()
    );
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_interruption_notice_replaces_an_idle_instance_before_it_is_taken() -> Result<()> {
    let pool = json!({ "policies": [{ "idleCount": 1, "idleTime": "1h" }] });
    let stage = Stage::start("spot-idle", on_spot(pool)).await?;
    let cloud = stage.cloud()?;
    let first = stage.run(job("first").script(["hostname"])).await?;
    ensure!(first.state == JobState::Success, "{}\n{}", told(&first), stage.operator_log());
    let lease = stage.lease_over(first.id).await?;
    let instance = lease["status"]["instance"].as_str().context("the job had no instance")?.to_owned();
    cloud.cloud.act(notice(&instance, 90.0)).await?;
    let (note, _) = traces::event(&stage, POOL, "InterruptionNotice").await?;
    ensure!(note.contains(&instance), "{note}");
    runs_elsewhere(&stage, "other", &instance).await?;
    // Nothing needs it: the pool ends it itself.
    until_calls(cloud, "TerminateInstanceInAutoScalingGroup", &instance, 1).await?;
    cloud.machines.gone(&instance).await?;
    ensure!(calls_of(cloud, "spot-reclaimed", &instance).await?.is_empty(), "its cloud took it first");
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_that_cannot_leave_a_reclaimed_instance_is_announced_and_then_lost() -> Result<()> {
    let stage = Stage::start("spot-lost", on_spot(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo kept > marker"])).await?;
    let hot = environment(&stage, &key).await?;
    let instance = hot["status"]["instance"].as_str().context("no instance")?.to_owned();
    cloud.cloud.act(notice(&instance, WARNING)).await?;
    let (note, _) = traces::event(&stage, POOL, "EnvironmentAtRisk").await?;
    ensure!(note.contains(&instance) && note.contains("spec.workspaceVolume"), "{note}");
    runs_elsewhere(&stage, "other", &instance).await?;
    cloud.cloud.act(Act::PassTime { seconds: WARNING }).await?;
    let lost = stage
        .until_object("suspendedenvironment", &object_of(&key)?, "it is lost", |senv| {
            senv["status"]["phase"] == "Lost"
        })
        .await?;
    ensure!(
        lost["status"]["lastAccident"].as_str().is_some_and(|why| why.contains("terminated")),
        "{lost:#}"
    );
    traces::event(&stage, &object_of(&key)?, "Lost").await?;
    ensure!(calls_of(cloud, "spot-reclaimed", &instance).await?.len() == 1);
    let woken = stage.run(job("wake").environment_key(&key).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Failed, "{}", told(&woken));
    ensure!(woken.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&woken));
    // The group waits at its hook for an instance that is gone, too.
    ensure!(completion(cloud, &instance).await?.1 == "CONTINUE");
    traces::end(stage).await
}

#[tokio::test]
async fn a_job_on_a_reclaimed_spot_instance_fails_soon_and_says_why() -> Result<()> {
    let stage = Stage::start("spot-job", on_spot(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    cloud.cloud.act(notice(&instance, WARNING)).await?;
    let (note, _) = traces::event(&stage, POOL, "InterruptionNotice").await?;
    ensure!(note.contains(&instance), "{note}");
    runs_elsewhere(&stage, "other", &instance).await?;
    cloud.cloud.act(Act::PassTime { seconds: WARNING }).await?;
    // By far sooner than spec.connectionGrace, ten minutes.
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Failed, "{}", told(&over));
    ensure!(over.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&over));
    ensure!(over.log_contains(&format!("instance {instance} was terminated")), "{}", told(&over));
    ensure!(calls_of(cloud, "spot-reclaimed", &instance).await?.len() == 1);
    traces::end(stage).await
}

/// Fails unless a job was ended for a notice, said so, and was over before the cloud took its instance.
async fn was_interrupted(stage: &Stage, over: &JobView, instance: &str) -> Result<()> {
    let cloud = stage.cloud()?;
    ensure!(
        calls_of(cloud, "spot-reclaimed", instance).await?.is_empty(),
        "its cloud took the instance first: {}",
        told(over)
    );
    ensure!(over.state == JobState::Failed, "{}", told(over));
    ensure!(over.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(over));
    let line = format!("ERROR: Job failed (system failure): its cloud terminates instance {instance} at ");
    let text = over.log_text();
    ensure!(text.matches(&line).count() == 1, "{}", told(over));
    // The log is whole: it came to its last line.
    let last = text.lines().last().unwrap_or_default();
    ensure!(last.contains(&line) && last.contains("(spot interruption notice)"), "{}", told(over));
    Ok(())
}

#[tokio::test]
async fn a_job_is_ended_before_its_cloud_takes_its_spot_instance_and_says_why() -> Result<()> {
    let stage = Stage::start("spot-ended", on_spot(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    // The advice ends nothing, and does not hide the notice that follows.
    cloud.cloud.act(Act::Rebalance { instance: instance.clone() }).await?;
    let (note, _) = traces::event(&stage, POOL, "InterruptionNotice").await?;
    ensure!(note.contains("advises"), "{note}");
    cloud.cloud.act(notice(&instance, 45.0)).await?;
    let over = stage.until_over(id).await?;
    was_interrupted(&stage, &over, &instance).await?;
    cloud.machines.gone(&instance).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_job_on_a_spot_instance_that_is_taken_is_ended_by_the_next_operator_too() -> Result<()> {
    let stage = Stage::start("spot-next", on_spot(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    cloud.cloud.act(notice(&instance, 75.0)).await?;
    traces::event(&stage, POOL, "InterruptionNotice").await?;
    go(&stage)?;
    come_back(&stage).await?;
    let over = stage.until_over(id).await?;
    was_interrupted(&stage, &over, &instance).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_job_that_keeps_its_environment_on_failure_leaves_a_spot_instance_with_it() -> Result<()> {
    let stage = Stage::start("spot-keeps", on_spot(json!({ "workspaceVolume": { "sizeGiB": 1 } }))).await?;
    let cloud = stage.cloud()?;
    let script = held(&["echo passed"]);
    let marks = ["echo kept > marker", "mkdir deep && cd deep && export GREETING=hello"];
    let id = stage.gitlab.enqueue(job("busy").suspend_on_failure().script([&marks[..], &script].concat()));
    stage.until_log(id, "waits").await?;
    let lease = stage.get("joblease", &format!("{POOL}-{}", id.0)).await?;
    let instance = lease["status"]["instance"].as_str().context("the job has no instance")?.to_owned();
    cloud.cloud.act(notice(&instance, 45.0)).await?;
    let over = stage.until_over(id).await?;
    was_interrupted(&stage, &over, &instance).await?;
    ensure!(!over.log_contains("\npassed"), "its script went on: {}", told(&over));
    let key = key_of(&over)?;
    ensure!(over.log_contains(&format!("Job environment suspended: {key}")), "{}", told(&over));
    let moved = stage
        .until_object("suspendedenvironment", &object_of(&key)?, "it is at tier Detached", |senv| {
            senv["status"]["tier"] == "Detached" && senv["status"]["moving"].is_null()
        })
        .await?;
    ensure!(moved["status"]["instance"].is_null(), "{moved:#}");
    let script = ["cat ../marker", "echo greeting $GREETING", "pwd"];
    let woken = stage.run(job("wake").environment_key(&key).script(script)).await?;
    let all = ["kept", "greeting hello", "/deep"].iter().all(|line| woken.log_contains(line));
    ensure!(woken.state == JobState::Success && all, "{}\n{}", told(&woken), stage.operator_log());
    let lease = stage.lease_over(woken.id).await?;
    ensure!(lease["status"]["instance"] != instance.as_str(), "{lease:#}");
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_rebalance_recommendation_keeps_new_jobs_away_and_replaces_the_instance_when_free() -> Result<()> {
    let stage = Stage::start("rebalance", on_spot(json!({ "policies": [{ "idleTime": "1h" }] }))).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    cloud.cloud.act(Act::Rebalance { instance: instance.clone() }).await?;
    traces::event(&stage, POOL, "InterruptionNotice").await?;
    let other = runs_elsewhere(&stage, "other", &instance).await?;
    ends_well(&stage, id, &instance).await?;
    // It is taken away at once, the other stays for its idle time.
    cloud.machines.gone(&instance).await?;
    ensure!(lifecycle(cloud, &other).await?.as_deref() == Some("InService"));
    traces::end(stage).await
}
