//! Instances that somebody terminates by hand.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::super::tiers::{ask, leaves_marks, resume_and_see, until_tier, with_volumes};
use super::{instance_of, next_job_runs};
use crate::suspension::{environment, held, job, object_of, put_to_sleep};
use crate::testbed::cloud::Act;
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{POOL, Setting, Stage};
use crate::traces::{self, told};

#[tokio::test]
async fn a_job_whose_instance_is_terminated_fails_at_once_by_the_systems_fault() -> Result<()> {
    // Longer than the test waits: the end must come from what the cloud says.
    let stage = Stage::start("vanished", Setting::cloud(json!({ "connectionGrace": "10m" }))).await?;
    let busy = stage.gitlab.enqueue(job("busy").script(held(&[])));
    stage.until_log(busy, "waits").await?;
    let instance = instance_of(&stage, busy).await?;
    stage.cloud()?.cloud.act(Act::Terminate { instance: instance.clone() }).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.state == JobState::Failed, "{}", told(&over));
    ensure!(over.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&over));
    ensure!(over.log_contains("was terminated"), "{}", told(&over));
    let lease = stage.lease_over(busy).await?;
    ensure!(lease["status"]["instance"] == instance.as_str(), "{lease:#}");
    traces::event(&stage, &format!("{POOL}-{busy}"), "InstanceLost").await?;
    next_job_runs(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_whose_stopped_instance_is_terminated_is_lost_and_says_so_to_its_job() -> Result<()> {
    let stage = Stage::start("lost", Setting::cloud(json!({}))).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Stopped").await?;
    let stopped = until_tier(&stage, &key, "Stopped").await?;
    let instance = stopped["status"]["instance"].as_str().context("no instance")?.to_owned();
    stage.cloud()?.cloud.act(Act::Terminate { instance }).await?;
    let name = object_of(&key)?;
    let lost = stage
        .until_object("suspendedenvironment", &name, "it is Lost", |senv| senv["status"]["phase"] == "Lost")
        .await?;
    ensure!(
        lost["status"]["lastAccident"].as_str().is_some_and(|why| why.contains("terminated")),
        "{lost:#}"
    );
    traces::event(&stage, &name, "Lost").await?;
    let refused = stage.run(job("wake").environment_key(&key).script(["true"])).await?;
    ensure!(refused.state == JobState::Failed && refused.log_contains("is lost"), "{}", told(&refused));
    next_job_runs(&stage).await?;
    traces::end(stage).await
}

async fn is_rescued(name: &str, tier: &str) -> Result<()> {
    let stage = Stage::start(name, with_volumes(json!({}))).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let object = object_of(&key)?;
    stage
        .until_object("suspendedenvironment", &object, "its volume is known", |senv| {
            senv["status"]["volume"]["id"].is_string()
        })
        .await?;
    if tier != "Hot" {
        ask(&stage, &key, tier).await?;
        until_tier(&stage, &key, tier).await?;
    }
    let before = environment(&stage, &key).await?;
    let instance = before["status"]["instance"].as_str().context("no instance")?.to_owned();
    stage.cloud()?.cloud.act(Act::Terminate { instance }).await?;
    traces::event(&stage, &object, "Rescued").await?;
    let rescued = environment(&stage, &key).await?;
    ensure!(rescued["status"]["tier"] == "Detached", "{rescued:#}");
    ensure!(rescued["status"]["volume"] == before["status"]["volume"], "{rescued:#}");
    resume_and_see(&stage, &key, "processes 0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_on_a_volume_survives_its_instance() -> Result<()> {
    is_rescued("rescued", "Hot").await
}

#[tokio::test]
async fn a_stopped_environment_on_a_volume_survives_its_instance() -> Result<()> {
    is_rescued("rescued-off", "Stopped").await
}
