//! Instances that do not stop, do not hibernate, or do not come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::super::tiers::{ask, leaves_marks, resume_and_see, until_tier};
use super::{beside_a_busy_job, go, leap, until_called, until_waits_for};
use crate::suspension::{environment, held, job, object_of, put_to_sleep};
use crate::testbed::cloud::{Act, Call, Fault};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{CloudSetting, SOON, Setting, Stage, condition};
use crate::testbed::wait::until;
use crate::traces::{self, told};

/// How long a stop may take before it is given up.
const DEADLINE: u32 = 11 * 60;

fn is_forced(call: &Call) -> bool {
    call.action == "StopInstances" && call.params.get("Force").is_some()
}

fn hibernating() -> Setting {
    let setting =
        CloudSetting { template: |template| template.hibernation = true, ..CloudSetting::default() };
    Setting::cloud(json!({ "provider": { "aws": { "stopMode": "Hibernate" } } })).in_cloud(setting)
}

#[tokio::test]
async fn a_stop_that_hangs_is_forced() -> Result<()> {
    let stage = Stage::start("hangs", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let instance = environment(&stage, &key).await?["status"]["instance"].clone();
    let instance = instance.as_str().context("no instance")?;
    beside_a_busy_job(&stage, async {
        cloud.cloud.act(Act::StopHangs { instance: Some(instance.to_owned()) }).await?;
        ask(&stage, &key, "Stopped").await?;
        cloud.until_state(instance, "stopping").await?;
        let waits = until_waits_for(&stage, &key, "to be stopped").await?;
        ensure!(condition(&waits, "TierReached").0 == "False", "{waits:#}");
        leap(&stage, DEADLINE).await?;
        traces::event(&stage, &object_of(&key)?, "MoveGivenUp").await?;
        until_called(&stage, "to stop it by force", is_forced).await?;
        until_tier(&stage, &key, "Stopped").await
    })
    .await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_stop_that_hangs_although_it_was_forced_is_left_for_a_while_and_the_environment_is_not_lost()
-> Result<()> {
    let stage = Stage::start("hangs-on", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let name = object_of(&key)?;
    cloud.cloud.act(Act::StopHangs { instance: None }).await?;
    cloud
        .cloud
        .fault(
            Fault::error("ec2", "StopInstances", 400, "IncorrectInstanceState")
                .only("Force", "true")
                .always(),
        )
        .await?;
    ask(&stage, &key, "Stopped").await?;
    let instance = environment(&stage, &key).await?["status"]["instance"].clone();
    cloud.until_state(instance.as_str().context("no instance")?, "stopping").await?;
    for tries in 1..=3 {
        let since = |senv: &serde_json::Value| senv["status"]["moving"]["since"].clone();
        let before = since(&environment(&stage, &key).await?);
        leap(&stage, tries * DEADLINE).await?;
        stage
            .until_object("suspendedenvironment", &name, "the try is over", |senv| since(senv) != before)
            .await?;
    }
    let given_up = environment(&stage, &key).await?;
    ensure!(given_up["status"]["phase"] == "Suspended", "{given_up:#}");
    ensure!(given_up["status"]["restUntil"].is_string(), "{given_up:#}");
    let waits = until_waits_for(&stage, &key, "since the last try was given up").await?;
    ensure!(condition(&waits, "TierReached").0 == "False", "{waits:#}");
    // The cloud recovers, a job waits for no rest.
    cloud.cloud.clear_faults().await?;
    cloud.cloud.act(Act::Restore).await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_that_may_not_hibernate_is_stopped_and_it_is_said() -> Result<()> {
    let stage = Stage::start("no-hibernation", hibernating()).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let refused = Fault::error("ec2", "StopInstances", 400, "UnsupportedHibernationConfiguration");
    stage.cloud()?.cloud.fault(refused.only("Hibernate", "true").always()).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    stage.until_event("HibernationRefused").await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_hibernation_that_ends_as_a_stop_is_told_by_the_processes_that_are_gone() -> Result<()> {
    let stage = Stage::start("degrades", hibernating()).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let before = environment(&stage, &key).await?;
    ensure!(before["status"]["processes"] == 1, "{before:#}");
    stage.cloud()?.cloud.act(Act::HibernateDegrades).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    ask(&stage, &key, "Hot").await?;
    let name = object_of(&key)?;
    stage
        .until_object("suspendedenvironment", &name, "it says that its processes are gone", |senv| {
            condition(senv, "Ready").1 == "ProcessesLost" && senv["status"]["processes"] == 0
        })
        .await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_whose_disk_cannot_be_read_names_the_key_and_is_started_when_that_is_back() -> Result<()>
{
    // Hibernation takes an encrypted disk.
    let stage = Stage::start("kms", hibernating()).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    cloud.cloud.act(Act::HibernateDegrades).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    cloud.cloud.act(Act::KmsDisabled).await?;
    let wake = stage.gitlab.enqueue(job("wake").environment_key(&key).script(["cat ../../marker"]));
    let event = stage.until_event("InstanceFailedToBoot").await?;
    ensure!(event["message"].as_str().is_some_and(|note| note.contains("KMS key")), "{event:#}");
    until_waits_for(&stage, &key, "KMS key").await?;
    let starts = async || -> Result<usize> {
        let calls = cloud.cloud.calls(0).await?;
        Ok(calls.iter().filter(|call| call.action == "StartInstances").count())
    };
    ensure!(starts().await? == 1, "it is started again and again");
    cloud.cloud.act(Act::Restore).await?;
    until("it is started again", SOON, async || Ok((starts().await? == 2).then_some(()))).await?;
    let over = stage.until_over(wake).await?;
    ensure!(over.state == JobState::Success && over.log_contains("kept"), "{}", told(&over));
    traces::end(stage).await
}

#[tokio::test]
async fn a_job_that_calls_its_environment_back_is_not_stopped_with_it() -> Result<()> {
    let stage = Stage::start("called-back", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let instance = environment(&stage, &key).await?["status"]["instance"].clone();
    let instance = instance.as_str().context("no instance")?;
    cloud.cloud.fault(Fault::latency("ec2", "StopInstances", Duration::from_secs(8))).await?;
    ask(&stage, &key, "Stopped").await?;
    until_called(&stage, "to keep it", |call| {
        call.action == "ModifyInstanceAttribute" && call.names("InstanceId", instance)
    })
    .await?;
    let script = held(&["cat ../../marker"]);
    let wake = stage.gitlab.enqueue(job("wake").environment_key(&key).script(script));
    stage.until_log(wake, "waits").await?;
    // Before the job or not at all.
    let stops = async || -> Result<usize> {
        let calls = cloud.cloud.calls(0).await?;
        Ok(calls.iter().filter(|call| call.action == "StopInstances").count())
    };
    let before = stops().await?;
    stage.until_looked_at(10).await?;
    ensure!(stops().await? == before, "its instance was stopped under the job");
    go(&stage, instance).await?;
    let over = stage.until_over(wake).await?;
    ensure!(over.state == JobState::Success && over.log_contains("kept"), "{}", told(&over));
    traces::end(stage).await
}
