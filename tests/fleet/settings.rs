//! Groups that are set so that something would be taken from under a pool: each setting is named with its field.

use anyhow::{Context, Result, ensure};
use aws_sdk_autoscaling::types::Tag;
use serde_json::{Value, json};

use super::failures::instance_of;
use super::tiers::with_volumes;
use crate::suspension::job;
use crate::testbed::cloud::Group;
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::cloud::{GROUP, HOOK};
use crate::testbed::stage::{CloudSetting, CloudStage, POOL, Setting, Stage, condition, merge, message};
use crate::traces::{self, told};

/// A group that is set well.
fn good(name: &str) -> Group {
    Group { zones: 1, ..Group::new(name, 6).with_terminate_hook(HOOK, 600).retaining() }
}

/// A group with one flaw, and what is said of it.
struct Case {
    group: &'static str,
    change: fn(&mut Group),
    reason: &'static str,
    field: &'static str,
}

const fn case(
    group: &'static str,
    change: fn(&mut Group),
    reason: &'static str,
    field: &'static str,
) -> Case {
    Case { group, change, reason, field }
}

/// Groups that a pool goes on with, at a risk.
const RISKS: [Case; 7] = [
    case("ci-hookless", |it| it.hooks.clear(), "NoTerminateHook", "LifecycleHooks"),
    case("ci-short", |it| it.hooks[0].timeout_seconds = 60, "HookTooShort", "HeartbeatTimeout"),
    case(
        "ci-ends",
        |it| it.retain = false,
        "HookAbandonTerminates",
        "InstanceLifecyclePolicy.RetentionTriggers.TerminateHookAbandon",
    ),
    case(
        "ci-continues",
        |it| it.hooks[0].result = "CONTINUE".to_owned(),
        "HookDefaultContinues",
        "DefaultResult",
    ),
    case("ci-zones", |it| it.zones = 2, "AZRebalance", "SuspendedProcesses"),
    case("ci-min", |it| it.min = 1, "GroupMinAboveZero", "MinSize"),
    case("ci-aged", |_| {}, "MaxInstanceLifetime", "MaxInstanceLifetime"),
];

/// Groups that a pool leaves alone.
const BLOCKS: [Case; 3] = [
    case("ci-by-load", |_| {}, "ScalingPolicies", "ScalingPolicies"),
    case("ci-foreign", |_| {}, "GroupClaimed", "Tags"),
    case("other-linux", |_| {}, "GroupNotAllowed", "aws.groups"),
];

async fn make(cloud: &CloudStage, case: &Case) -> Result<()> {
    let mut group = good(case.group);
    (case.change)(&mut group);
    if group.min > 0 {
        group.desired = group.min;
    }
    cloud.cloud.group(&group, &cloud.template, &cloud.network).await
}

/// Applies a pool of its own name for a group.
async fn apply(stage: &Stage, name: &str, aws: Value) -> Result<()> {
    let spec = Setting::cloud(json!({
        "provider": { "aws": aws },
        "suspension": { "demotion": [{ "after": "1h", "to": "Stopped" }] },
    }))
    .pool;
    let mut pool = stage.pool(spec)?;
    pool["metadata"]["name"] = json!(name);
    stage.apply(&pool).await
}

/// Waits until a pool says of its group what is expected.
async fn until_said(stage: &Stage, pool: &str, reason: &str, field: &str) -> Result<String> {
    let seen = stage
        .until_object("runnerpool", pool, &format!("GroupSuitable is False by {reason}"), |pool| {
            condition(pool, "GroupSuitable") == ("False".to_owned(), reason.to_owned())
        })
        .await?;
    let message = message(&seen, "GroupSuitable");
    ensure!(message.starts_with(&format!("{field}: ")), "{pool}: {message}");
    let note = stage.until_told_of(pool, "GroupSuitable", reason).await?;
    ensure!(note.starts_with(&format!("GroupSuitable is False: {field}: ")), "{pool}: {note}");
    Ok(message)
}

#[tokio::test]
async fn what_is_wrong_with_a_group_is_told_once_and_not_again_by_the_next_holder() -> Result<()> {
    let setting = CloudSetting { zones: 1, group: |group| group.hooks.clear(), ..CloudSetting::default() };
    let stage = Stage::start("told-once", Setting::cloud(json!({})).in_cloud(setting)).await?;
    until_said(&stage, POOL, "NoTerminateHook", "LifecycleHooks").await?;
    let epoch = |pool: &Value| pool["status"]["epoch"].as_u64();
    let before = stage.get("runnerpool", POOL).await?;
    stage.operator()?.kill()?;
    stage.gitlab.client_restarted();
    stage.give_up_lease().await?;
    stage.operator()?.start_again().await?;
    stage
        .until_object("runnerpool", POOL, "the next holder says the same", |pool| {
            let said = condition(pool, "GroupSuitable") == ("False".to_owned(), "NoTerminateHook".to_owned());
            epoch(pool) > epoch(&before) && said
        })
        .await?;
    stage.until_looked_at(3).await?;
    let told = stage.turns_told("GroupSuitable").await?;
    ensure!(told.len() == 1 && told[0]["series"].is_null(), "{told:#?}");
    traces::end(stage).await
}

#[tokio::test]
async fn each_setting_that_takes_instances_from_under_a_pool_is_named_with_its_field() -> Result<()> {
    let mut stage = Stage::without_operator("settings", &Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    for case in RISKS.iter().chain(&BLOCKS) {
        make(cloud, case).await?;
    }
    cloud.cloud.group(&good("ci-good"), &cloud.template, &cloud.network).await?;
    let scaling = cloud.cloud.scaling();
    let aged = scaling.update_auto_scaling_group().auto_scaling_group_name("ci-aged");
    aged.max_instance_lifetime(86_400).send().await?;
    let by_load = scaling.put_scaling_policy().auto_scaling_group_name("ci-by-load").policy_name("cpu");
    let by_load = by_load.policy_type("SimpleScaling").adjustment_type("ChangeInCapacity");
    by_load.scaling_adjustment(1).send().await?;
    let foreign = Tag::builder().resource_id("ci-foreign").resource_type("auto-scaling-group");
    let foreign = foreign.key("dormouse.dev/pool").value("a-pool-of-another-cluster");
    scaling.create_or_update_tags().tags(foreign.propagate_at_launch(false).build()).send().await?;
    let since = cloud.cloud.calls_so_far().await?;

    for case in RISKS.iter().chain(&BLOCKS) {
        apply(&stage, case.group, json!({ "autoScalingGroup": case.group })).await?;
    }
    for group in ["ci-good", "ci-nowhere"] {
        apply(&stage, group, json!({ "autoScalingGroup": group })).await?;
    }
    apply(&stage, "elsewhere", json!({ "autoScalingGroup": GROUP, "region": "us-east-1" })).await?;
    stage.operator = Some(stage.start_operator("operator-a").await?);

    for case in RISKS.iter().chain(&BLOCKS) {
        until_said(&stage, case.group, case.reason, case.field).await?;
    }
    let said = until_said(&stage, "ci-nowhere", "GroupMissing", "AutoScalingGroupName").await?;
    ensure!(said.contains("there is no group ci-nowhere in region eu-central-1"), "{said}");
    let said = until_said(&stage, "elsewhere", "GroupMissing", "AutoScalingGroupName").await?;
    ensure!(said.contains("in region us-east-1"), "{said}");
    stage.until_condition("runnerpool", "ci-good", "GroupSuitable").await?;
    for case in &RISKS {
        stage.until_condition("runnerpool", case.group, "Ready").await?;
    }

    for case in &BLOCKS {
        let pool = stage.get("runnerpool", case.group).await?;
        ensure!(condition(&pool, "Ready").0 == "False", "{pool:#}");
        let calls = stage.cloud()?.cloud.calls(since).await?;
        let changed = calls.iter().find(|call| {
            let is_about = Value::Object(call.params.clone()).to_string().contains(case.group);
            call.service == "autoscaling" && !call.action.starts_with("Describe") && is_about
        });
        ensure!(changed.is_none(), "a group that is not the pool's was changed: {changed:#?}");
    }
    stage.kubectl(&["delete", "runnerpools", "--all", "--timeout=60s"]).await?;
    stage.end().await
}

#[tokio::test]
async fn a_group_belongs_to_one_pool_and_passes_on_when_that_is_deleted() -> Result<()> {
    let stage = Stage::start("one-group", Setting::cloud(json!({}))).await?;
    let other = stage.gitlab.register_runner(&["dormouse"]);
    let token = format!("--from-literal=token={}", other.token);
    stage.kubectl(&["create", "secret", "generic", "other-token", &token]).await?;
    let mut spec = Setting::cloud(json!({ "gitlab": { "tokenSecretRef": { "name": "other-token" } } })).pool;
    merge(&mut spec, json!({ "maxInstances": 2 }));
    let mut second = stage.pool(spec)?;
    second["metadata"]["name"] = json!("second");
    stage.apply(&second).await?;
    let said = until_said(&stage, "second", "GroupClaimed", "Tags").await?;
    ensure!(said.contains(&format!("{}/{POOL}", stage.namespace)), "{said}");
    // The one that has it is not disturbed.
    let over = stage.run(job("mine").for_runner(stage.runner.id)).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));

    stage
        .kubectl(&["delete", "runnerpool", POOL, "--timeout=60s"])
        .await
        .with_context(|| stage.operator_log())?;
    ensure!(stage.cloud()?.members().await?.iter().all(|(_, state)| state.starts_with("Terminating")));
    stage.until_condition("runnerpool", "second", "Ready").await?;
    let over = stage.run(job("passed-on").for_runner(other.id)).await?;
    ensure!(over.state == JobState::Success, "{}\n{}", told(&over), stage.operator_log());
    traces::end(stage).await
}

#[tokio::test]
async fn a_pool_goes_with_the_volumes_of_the_members_that_its_group_keeps() -> Result<()> {
    let setting = CloudSetting {
        group: |group| {
            group.min = 1;
            group.desired = 1;
        },
        ..CloudSetting::default()
    };
    let stage = Stage::start("kept-member", with_volumes(json!({})).in_cloud(setting)).await?;
    let over = stage.run(job("one").script(["true"])).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    let instance = instance_of(&stage, over.id).await?;
    let deleted = stage.kubectl(&["delete", "runnerpool", POOL, "--timeout=60s"]).await;
    deleted.with_context(|| stage.operator_log())?;
    let cloud = stage.cloud()?;
    ensure!(cloud.members().await? == [(instance, "InService".to_owned())], "{:?}", cloud.members().await?);
    let state = cloud.cloud.state().await?;
    let roots: Vec<_> = state.instances.iter().filter_map(|one| one.root_volume.clone()).collect();
    let left: Vec<_> = state.volumes.iter().filter(|one| !roots.contains(&one.id)).collect();
    ensure!(left.is_empty(), "{left:?}");
    traces::end(stage).await
}
