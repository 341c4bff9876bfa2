//! Credentials and groups that go away, and strangers who use a group too.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{go, instance_of, next_job_runs};
use crate::suspension::{held, job};
use crate::testbed::cloud::{Act, Group};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::cloud::{GROUP, HOOK};
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, told};

#[tokio::test]
async fn credentials_that_expire_stop_no_job_and_begin_none() -> Result<()> {
    let stage = Stage::start("expired", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let busy = stage.gitlab.enqueue(job("busy").script(held(&["echo done"])));
    stage.until_log(busy, "waits").await?;
    let instance = instance_of(&stage, busy).await?;
    cloud.cloud.act(Act::CredentialsExpire).await?;
    let message = stage.until_finding("CloudReady", "False", "Denied").await?;
    ensure!(message.contains("ExpiredToken") || message.contains("RequestExpired"), "{message}");
    let note = stage.until_told("CloudReady", "Denied").await?;
    ensure!(note.contains("renew the "), "no way out: {note}");
    go(&stage, &instance).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    stage.lease_over(busy).await?;
    let waits = stage.gitlab.enqueue(job("waits").script(["echo runs"]));
    // It is looked for in vain more than once.
    let asked = async || -> Result<u64> {
        let metrics = stage.operator()?.metrics().await?;
        let calls = metrics.lines().filter(|line| line.starts_with("dormouse_cloud_calls_total"));
        Ok(calls.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    };
    let before = asked().await?;
    until("the cloud is asked again", SOON, async || Ok((asked().await? > before + 1).then_some(()))).await?;
    ensure!(
        stage.gitlab.job(waits).is_some_and(|job| !job.state.is_final() && job.log.is_empty()),
        "a job was begun without credentials"
    );
    cloud.cloud.act(Act::Restore).await?;
    let over = stage.until_over(waits).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    stage.until_finding("CloudReady", "True", "CloudAnswers").await?;
    let note = stage.until_told("CloudReady", "CloudAnswers").await?;
    ensure!(note.starts_with("CloudReady is True again"), "{note}");
    traces::end(stage).await
}

#[tokio::test]
async fn a_group_that_is_deleted_is_missed_by_name_and_used_again_when_it_is_back() -> Result<()> {
    let stage = Stage::start("no-group", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    cloud.cloud.scaling().delete_auto_scaling_group().auto_scaling_group_name(GROUP).send().await?;
    let message = stage.until_finding("GroupSuitable", "False", "GroupMissing").await?;
    ensure!(message.contains(GROUP) && message.contains("create it"), "{message}");
    stage.until_finding("Ready", "False", "GroupMissing").await?;
    let note = stage.until_told("GroupSuitable", "GroupMissing").await?;
    ensure!(note.contains("create it"), "{note}");
    let group = Group::new(GROUP, 6).with_terminate_hook(HOOK, 60);
    cloud.cloud.group(&group, &cloud.template, &cloud.network).await?;
    stage.until_condition("runnerpool", crate::testbed::stage::POOL, "Ready").await?;
    next_job_runs(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn what_a_stranger_asks_of_the_group_is_told_and_taken_back() -> Result<()> {
    let pool = json!({ "policies": [{ "idleTime": "1s" }] });
    let stage = Stage::start("stranger", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    let busy = stage.gitlab.enqueue(job("busy").script(held(&["echo done"])));
    stage.until_log(busy, "waits").await?;
    let instance = instance_of(&stage, busy).await?;
    let ask = cloud.cloud.scaling().set_desired_capacity().auto_scaling_group_name(GROUP);
    ask.desired_capacity(3).send().await?;
    let event = stage.until_event("DesiredCapacityChanged").await?;
    ensure!(event["message"].as_str().is_some_and(|note| note.contains("from 1 to 3")), "{event:#}");
    cloud.until_members(1).await?;
    go(&stage, &instance).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    cloud.until_members(0).await?;
    traces::end(stage).await
}
