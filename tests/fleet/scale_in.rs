//! Members that go take no job and no environment with them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::suspension::{held, job};
use crate::testbed::cloud::Call;
use crate::testbed::gitlab::{JobId, JobState, JobView};
use crate::testbed::stage::cloud::{GROUP, HOOK};
use crate::testbed::stage::{CloudStage, POOL, SOON, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, told};

mod asleep;
mod attached;
mod away;
mod chosen;
mod spot;
mod warm;

/// A job that waits on its machine for a word, and the instance it runs on.
async fn busy(stage: &Stage, name: &str) -> Result<(JobId, String)> {
    let id = stage.gitlab.enqueue(job(name).script(held(&["echo line 1", "hostname"])));
    let job = stage.until_log(id, "waits").await?;
    ensure!(!job.state.is_final(), "{}", told(&job));
    let lease = stage.get("joblease", &format!("{POOL}-{}", id.0)).await?;
    let instance = lease["status"]["instance"].as_str().context("the job has no instance")?.to_owned();
    Ok((id, instance))
}

/// The operator goes without a word.
fn go(stage: &Stage) -> Result<()> {
    stage.operator()?.kill()?;
    stage.gitlab.client_restarted();
    Ok(())
}

/// The operator comes back.
async fn come_back(stage: &Stage) -> Result<()> {
    stage.give_up_lease().await?;
    stage.operator()?.start_again().await
}

/// Says the word: the job ends.
async fn let_go(stage: &Stage, instance: &str) -> Result<()> {
    traces::on(stage.cloud()?.machine(instance)?.as_ref(), "touch /tmp/go").await.map(|_| ())
}

/// Lets a job end and fails unless it passed, whole.
async fn ends_well(stage: &Stage, id: JobId, instance: &str) -> Result<JobView> {
    let_go(stage, instance).await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}\n{}", told(&over), stage.operator_log());
    traces::each_line_once(&over, 1)?;
    Ok(over)
}

/// Runs a job to its end, on any instance but one; answers the instance.
async fn runs_elsewhere(stage: &Stage, name: &str, than: &str) -> Result<String> {
    let over = stage.run(job(name).script(["hostname"])).await?;
    ensure!(over.state == JobState::Success, "{}\n{}", told(&over), stage.operator_log());
    let lease = stage.lease_over(over.id).await?;
    let instance = lease["status"]["instance"].as_str();
    let instance = instance.context("the job had no instance")?;
    ensure!(instance != than, "a new job was placed on {than}, which goes");
    Ok(instance.to_owned())
}

/// Somebody ends a member, and the group is to be smaller by it.
async fn end_member(cloud: &CloudStage, instance: &str) -> Result<()> {
    let end = cloud.cloud.scaling().terminate_instance_in_auto_scaling_group();
    end.instance_id(instance).should_decrement_desired_capacity(true).send().await?;
    Ok(())
}

/// Where a member stands.
async fn lifecycle(cloud: &CloudStage, instance: &str) -> Result<Option<String>> {
    let members = cloud.members().await?;
    Ok(members.into_iter().find(|(id, _)| id == instance).map(|(_, state)| state))
}

/// Waits until a member stands there.
async fn until_lifecycle(cloud: &CloudStage, instance: &str, wanted: &str) -> Result<()> {
    let mut last = None;
    until(&format!("{instance} is {wanted}"), SOON, async || {
        last = lifecycle(cloud, instance).await?;
        Ok((last.as_deref() == Some(wanted)).then_some(()))
    })
    .await
    .with_context(|| format!("it is {last:?}"))
}

/// The calls of a kind about an instance, in order.
async fn calls_of(cloud: &CloudStage, action: &str, instance: &str) -> Result<Vec<Call>> {
    let calls = cloud.cloud.calls(0).await?;
    let is_it = |call: &Call| {
        let names = ["InstanceId", "InstanceIds", "instance"].iter().any(|name| call.names(name, instance));
        call.action == action && names
    };
    Ok(calls.into_iter().filter(is_it).collect())
}

/// Waits until so many calls of a kind about an instance were answered.
async fn until_calls(cloud: &CloudStage, action: &str, instance: &str, count: usize) -> Result<Vec<Call>> {
    until(&format!("{count} calls of {action} for {instance}"), SOON, async || {
        let calls = calls_of(cloud, action, instance).await?;
        let calls: Vec<Call> = calls.into_iter().filter(|call| call.answer == "ok").collect();
        Ok((calls.len() >= count).then_some(calls))
    })
    .await
}

/// How the hook of an instance was completed: the one completion there is.
async fn completion(cloud: &CloudStage, instance: &str) -> Result<(u64, String)> {
    let calls = until_calls(cloud, "CompleteLifecycleAction", instance, 1).await?;
    let results: BTreeSet<String> = calls.iter().map(|call| param(call, "LifecycleActionResult")).collect();
    ensure!(calls.len() == 1 && calls[0].names("LifecycleHookName", HOOK), "{calls:#?}");
    Ok((calls[0].n, results.into_iter().next().unwrap_or_default()))
}

fn param(call: &Call, name: &str) -> String {
    match call.params.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn at(call: &Call) -> Result<Timestamp> {
    Ok(call.at.parse()?)
}

/// The group's desired capacity.
async fn desired(cloud: &CloudStage) -> Result<i32> {
    let groups = cloud.cloud.scaling().describe_auto_scaling_groups().auto_scaling_group_names(GROUP);
    let groups = groups.send().await?;
    groups.auto_scaling_groups().first().and_then(|group| group.desired_capacity()).context("no group")
}

/// A pool whose instances go soon after they fall idle.
fn quick(changes: Value) -> Value {
    let mut pool = json!({ "policies": [{ "idleTime": "2s" }] });
    crate::testbed::stage::merge(&mut pool, changes);
    pool
}
