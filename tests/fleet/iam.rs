//! What the documented policy allows is what a pool's whole life needs, by the cloud's own check of each action.
//!
//! The stand-in checks actions alone and knows no resources, so the policy is given to it without resources and conditions:
//! those are reviewed, not proved, here.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use aws_sdk_autoscaling::types::WarmPoolState;
use dormouse::provider::aws::ACTIONS;
use serde_json::{Value, json};

use super::baseline::{promote_as, words};
use super::tiers::{ask, leaves_marks, looks_for_marks, until_tier, with_volumes};
use crate::suspension::{held, job, key_of, object_of, put_to_sleep, until_gone};
use crate::testbed::cloud::{Act, Call, User, Warm};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{CloudSetting, POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, told};

/// Answers of a cloud that does not let somebody do what they ask.
const DENIALS: [&str; 3] = ["UnauthorizedOperation", "AccessDenied", "AccessDeniedException"];

#[tokio::test]
async fn the_documented_policy_lets_a_pool_live_from_its_first_instance_to_its_deletion() -> Result<()> {
    let in_cloud = CloudSetting {
        // A third of it is soon over, and a busy machine does not miss the rest.
        group: |group| {
            group.hooks[0].timeout_seconds = 15;
            // Members that are to be protected one by one, and a warm pool to be looked at, which keeps nothing.
            group.protected = false;
            group.warm =
                Some(Warm { min: 0, prepared: Some(0), state: WarmPoolState::Stopped, reuse: false });
        },
        ..CloudSetting::default()
    };
    let setting = with_volumes(pool()).in_cloud(in_cloud);
    let (stage, user) = guarded("iam", setting, &[]).await?;
    let cloud = stage.cloud()?;
    let images = cloud.cloud.state().await?.snapshots.len();

    // Grow, suspend; stop outside of the group and come back. While the group launches nothing it is asked why.
    cloud.cloud.act(Act::NoCapacity).await?;
    let relieved = async {
        until_call(&stage, "DescribeScalingActivities").await?;
        cloud.cloud.act(Act::Restore).await
    };
    let ((_, key), _) = tokio::try_join!(put_to_sleep(&stage, leaves_marks("first")), relieved)?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    sleeps_again(&stage, &key, "from-stopped").await?;
    // Give the instance back, come back on another, which is launched the other way.
    ask(&stage, &key, "Detached").await?;
    until_tier(&stage, &key, "Detached").await?;
    let launch = json!({ "spec": { "provider": { "aws": { "growWith": "LaunchInstances" } } } }).to_string();
    stage.kubectl(&["patch", "runnerpool", POOL, "--type=merge", "-p", &launch]).await?;
    sleeps_again(&stage, &key, "from-detached").await?;
    ask(&stage, &key, "Snapshotted").await?;
    until_tier(&stage, &key, "Snapshotted").await?;
    let variables = cloud.cloud.environment_of(&user.access_key_id, &user.secret_access_key);
    let promoted = promote_as(&stage, &object_of(&key)?, variables).await?;
    ensure!(promoted.status.success(), "{}", words(&promoted));
    let last = stage.run(looks_for_marks("from-snapshot", &key)).await?;
    ensure!(last.state == JobState::Success && last.log_contains("kept"), "{}", told(&last));
    until_gone(&stage, &key).await?;

    // A member that its group takes away is held while a job runs there.
    let id = stage.gitlab.enqueue(job("held").script(held(&[])));
    stage.until_log(id, "waits").await?;
    let lease = stage.get("joblease", &format!("{POOL}-{id}")).await?;
    let instance = lease["status"]["instance"].as_str().context("no instance")?.to_owned();
    cloud.cloud.act(Act::Unhealthy { instance: instance.clone() }).await?;
    until_call(&stage, "RecordLifecycleActionHeartbeat").await?;
    traces::on(&*cloud.machine(&instance)?, "touch /tmp/go").await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    until_call(&stage, "CompleteLifecycleAction").await?;

    // Scale in, and give everything back.
    until("the group is empty", SOON, async || Ok(cloud.members().await?.is_empty().then_some(()))).await?;
    stage.kubectl(&["delete", "runnerpool", POOL, "--timeout=60s"]).await?;
    let calls = cloud.cloud.calls(0).await?;
    let denied: Vec<_> = calls.iter().filter(|call| DENIALS.contains(&call.answer.as_str())).collect();
    ensure!(denied.is_empty(), "denied: {denied:#?}");
    // The policy allows exactly these actions. Had one of them not been tried here, nothing would be known of it.
    let tried: BTreeSet<String> = calls.iter().filter(|call| call.answer == "ok").map(in_a_policy).collect();
    let untried: Vec<_> = ACTIONS.iter().filter(|action| !tried.contains(**action)).collect();
    ensure!(untried.is_empty(), "never called: {untried:?}");
    // The baseline is a person's, and stays.
    let images = images + 1;
    let state = cloud.cloud.state().await?;
    ensure!(state.volumes.is_empty() && state.snapshots.len() == images, "left: {state:#?}");
    traces::end(stage).await
}

#[tokio::test]
async fn an_action_that_the_policy_lacks_for_growing_is_named_in_a_condition() -> Result<()> {
    let (stage, _) =
        guarded("iam-grow", Setting::cloud(json!({})), &["autoscaling:SetDesiredCapacity"]).await?;
    let id = stage.gitlab.enqueue(job("waits").script(["true"]));
    let message = stage.until_finding("CloudReady", "False", "Denied").await?;
    ensure!(message.contains("SetDesiredCapacity"), "{message}");
    // Allowed again, it goes on by itself: nothing was failed for it.
    become_user(&stage, "allowed", &[]).await?;
    stage.until_finding("CloudReady", "True", "CloudAnswers").await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    traces::end(stage).await
}

#[tokio::test]
async fn an_action_that_the_policy_lacks_for_looking_is_named_in_a_condition() -> Result<()> {
    let mut stage = Stage::without_operator("iam-look", &Setting::cloud(json!({}))).await?;
    check_iam(&stage).await?;
    stage.apply_pool(Setting::cloud(json!({})).pool).await?;
    let operator = stage.new_operator("operator-a").await?;
    stage.operator = Some(operator);
    become_user(&stage, "blind", &["ec2:DescribeVolumes"]).await?;
    let message = stage.until_finding("CloudReady", "False", "Denied").await?;
    ensure!(message.contains("DescribeVolumes"), "{message}");
    stage.until_finding("GroupSuitable", "Unknown", "NotSeen").await?;
    become_user(&stage, "allowed", &[]).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    traces::end(stage).await
}

/// A pool that needs every action there is.
fn pool() -> Value {
    json!({
        "policies": [{ "idleTime": "2s" }],
        "ssh": { "authentication": "InstanceConnect", "privateKeySecretRef": null },
    })
}

/// A stage whose operator has the documented policy without some of its actions, with the pool Ready.
async fn guarded(name: &str, setting: Setting, without: &[&str]) -> Result<(Stage, User)> {
    let mut stage = Stage::without_operator(name, &setting).await?;
    check_iam(&stage).await?;
    stage.apply_pool(setting.pool.clone()).await?;
    stage.operator = Some(stage.new_operator("operator-a").await?);
    let user = become_user(&stage, "documented", without).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    Ok((stage, user))
}

pub async fn check_iam(stage: &Stage) -> Result<()> {
    stage.cloud()?.cloud.config(json!({ "iam": true })).await
}

/// Starts the operator, again if it runs, with the key of a new user.
async fn become_user(stage: &Stage, name: &str, without: &[&str]) -> Result<User> {
    let cloud = &stage.cloud()?.cloud;
    let user = cloud.user(name, policy(without)?).await?;
    let operator = stage.operator()?;
    for (variable, value) in cloud.environment_of(&user.access_key_id, &user.secret_access_key) {
        if variable.ends_with("_KEY_ID") || variable.ends_with("_ACCESS_KEY") {
            operator.set_variable(&variable, Some(&value));
        }
    }
    if operator.pid().is_some() {
        operator.terminate().await?;
        stage.gitlab.client_restarted();
    }
    operator.start_again().await?;
    Ok(user)
}

/// The documented policy without some of its actions, for every resource.
pub fn policy(without: &[&str]) -> Result<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/aws/iam-policy.json");
    let mut policy: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    for statement in policy["Statement"].as_array_mut().context("no statements")? {
        statement["Resource"] = json!("*");
        let Some(actions) = statement["Action"].as_array_mut() else { continue };
        actions.retain(|action| !without.contains(&action.as_str().unwrap_or_default()));
    }
    Ok(policy)
}

/// A job resumes an environment and puts it to sleep again.
async fn sleeps_again(stage: &Stage, key: &str, name: &str) -> Result<()> {
    let job = stage.run(looks_for_marks(name, key).suspend_on_success()).await?;
    ensure!(job.state == JobState::Success && job.log_contains("kept"), "{}", told(&job));
    ensure!(key_of(&job)? == key, "another key");
    stage.asleep(key).await?;
    stage.lease_over(job.id).await.map(|_| ())
}

async fn until_call(stage: &Stage, action: &str) -> Result<()> {
    until(&format!("{action} is called"), SOON, async || {
        let calls = stage.cloud()?.cloud.calls(0).await?;
        Ok(calls.iter().any(|call| call.action == action).then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())
}

/// A call by the name that a policy has for it.
fn in_a_policy(call: &Call) -> String {
    format!("{}:{}", call.service, call.action)
}
