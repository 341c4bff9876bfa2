//! Slots of an instance share its fate, and what decides how many there are: uses, age, policies, quota, need.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::failures::instance_of;
use super::tiers::{ask, until_tier};
use crate::suspension::{environment, job, object_of, put_to_sleep, until_gone};
use crate::testbed::cloud::Fault;
use crate::testbed::gitlab::{JobId, JobState};
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, text, told};

/// What a job does until its machine has the file.
pub const HELD: [&str; 1] = ["echo waits; while [ ! -e /var/tmp/go ]; do sleep 0.1; done"];

/// Until an instance is a minute old, and a new one runs a job.
const AGED: Duration = Duration::from_secs(180);

async fn success(stage: &Stage, id: JobId) -> Result<()> {
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}\n{}", told(&over), stage.operator_log());
    Ok(())
}

/// Lets the held jobs of an instance go on.
pub async fn let_go(stage: &Stage, instance: &str) -> Result<()> {
    traces::on(stage.cloud()?.machine(instance)?.as_ref(), "touch /var/tmp/go").await.map(drop)
}

fn two_slots(changes: Value) -> Setting {
    let mut pool = json!({ "capacityPerInstance": 2, "isolation": "PerSlotUser" });
    crate::testbed::stage::merge(&mut pool, changes);
    Setting::cloud(pool)
}

#[tokio::test]
async fn three_jobs_on_two_slots_with_volumes_take_two_instances() -> Result<()> {
    let pool = json!({ "workspaceVolume": { "sizeGiB": 1 }, "policies": [{ "idleTime": "2s" }] });
    let stage = Stage::start("slot-volumes", two_slots(pool)).await?;
    let jobs: Vec<_> = (0..3).map(|n| stage.gitlab.enqueue(job(&format!("job{n}")).script(HELD))).collect();
    let mut instances = BTreeSet::new();
    for id in &jobs {
        instances.insert(instance_of(&stage, *id).await?);
    }
    ensure!(instances.len() == 2, "{instances:?}");
    for instance in &instances {
        let_go(&stage, instance).await?;
    }
    for id in jobs {
        success(&stage, id).await?;
    }
    traces::end(stage).await
}

#[tokio::test]
async fn environments_on_one_instance_are_stopped_together_and_woken_together() -> Result<()> {
    let stage = Stage::start("fate", two_slots(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, one) = put_to_sleep(&stage, job("one").script(["echo one > marker"])).await?;
    let (_, two) = put_to_sleep(&stage, job("two").script(["echo two > marker"])).await?;
    let instance = text(&environment(&stage, &one).await?["status"]["instance"]);
    ensure!(environment(&stage, &two).await?["status"]["instance"] == instance.as_str(), "not packed");
    ask(&stage, &one, "Stopped").await?;
    stage
        .until_object("suspendedenvironment", &object_of(&one)?, "it waits for the other slot", |senv| {
            let conditions = senv["status"]["conditions"].to_string();
            conditions.contains("the other slots of its instance")
        })
        .await?;
    ensure!(cloud.cloud.instance(&instance).await?.state == "running");
    ask(&stage, &two, "Stopped").await?;
    until_tier(&stage, &one, "Stopped").await?;
    until_tier(&stage, &two, "Stopped").await?;
    // One comes back for a job, and the other with it.
    let resumed = stage.gitlab.enqueue(job("wake").environment_key(&one).script(HELD));
    until_tier(&stage, &two, "Hot").await?;
    stage.until_log(resumed, "waits").await?;
    let_go(&stage, &instance).await?;
    success(&stage, resumed).await?;
    until_gone(&stage, &one).await?;
    // Its wish holds still.
    until_tier(&stage, &two, "Stopped").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_that_is_due_to_stop_takes_no_new_job() -> Result<()> {
    let stage = Stage::start("due", two_slots(json!({}))).await?;
    let (_, key) = put_to_sleep(&stage, job("sleeper").script(["true"])).await?;
    let instance = text(&environment(&stage, &key).await?["status"]["instance"]);
    let running = stage.gitlab.enqueue(job("running").script(HELD));
    stage.until_log(running, "waits").await?;
    ensure!(instance_of(&stage, running).await? == instance, "not packed");
    ask(&stage, &key, "Stopped").await?;
    stage
        .until_object("suspendedenvironment", &object_of(&key)?, "it is due", |senv| {
            senv["status"]["conditions"].to_string().contains("the other slots of its instance")
        })
        .await?;
    let_go(&stage, &instance).await?;
    let other = stage.run(job("other").script(["true"])).await?;
    ensure!(other.state == JobState::Success, "{}", told(&other));
    ensure!(instance_of(&stage, other.id).await? != instance, "placed on an instance that is to stop");
    success(&stage, running).await?;
    until_tier(&stage, &key, "Stopped").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_is_replaced_after_so_many_jobs() -> Result<()> {
    let stage = Stage::start("uses", Setting::cloud(json!({ "maxUseCount": 1 }))).await?;
    let mut instances = BTreeSet::new();
    for name in ["one", "two"] {
        let over = stage.run(job(name).script(["true"])).await?;
        ensure!(over.state == JobState::Success, "{}", told(&over));
        instances.insert(instance_of(&stage, over.id).await?);
    }
    ensure!(instances.len() == 2, "{instances:?}");
    for instance in instances {
        stage.cloud()?.machines.gone(&instance).await?;
    }
    traces::end(stage).await
}

#[tokio::test]
async fn an_instance_is_replaced_at_an_age_and_not_before_its_job_is_over() -> Result<()> {
    let pool = json!({ "instanceMaxAge": "1m", "policies": [{ "idleTime": "1h" }] });
    let stage = Stage::start("age", two_slots(pool)).await?;
    let over = stage.run(job("young").script(["true"])).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    let young = instance_of(&stage, over.id).await?;
    let id = stage.gitlab.enqueue(job("held").script(HELD));
    stage.until_log(id, "waits").await?;
    ensure!(instance_of(&stage, id).await? == young, "a second instance was launched for one job");
    // It takes jobs until it is old, and stays for the one it has.
    until("a job gets another instance", AGED, async || {
        let next = stage.run(job("next").script(["true"])).await?;
        ensure!(next.state == JobState::Success, "{}\n{}", told(&next), stage.operator_log());
        Ok((instance_of(&stage, next.id).await? != young).then_some(()))
    })
    .await?;
    let_go(&stage, &young).await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    stage.cloud()?.machines.gone(&young).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_policy_keeps_idle_slots_while_it_holds() -> Result<()> {
    let pool = json!({ "policies": [
        { "idleCount": 0, "idleTime": "1s" },
        { "periods": ["* * * * *"], "idleCount": 2, "idleTime": "1s" },
    ] });
    let stage = Stage::start("policy", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    cloud.until_members(2).await?;
    ensure!(stage.list("joblease").await?.is_empty());
    // A period that does not hold before half a year is over.
    let month = (jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).month() + 5) % 12 + 1;
    let policies = json!([
        { "idleCount": 0, "idleTime": "1s" },
        { "periods": [format!("* * * {month} *")], "idleCount": 2, "idleTime": "1s" },
    ]);
    let patch = json!({ "spec": { "policies": policies } }).to_string();
    stage
        .kubectl(&["patch", "runnerpool", crate::testbed::stage::POOL, "--type=merge", "-p", &patch])
        .await?;
    until("the group is empty", SOON, async || Ok(cloud.members().await?.is_empty().then_some(()))).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_preemptive_pool_asks_for_no_job_before_a_slot_is_idle() -> Result<()> {
    let stage =
        Stage::without_operator("preemptive", &Setting::cloud(json!({ "policies": [{ "idleCount": 1 }] })))
            .await?;
    let mut stage = stage;
    let fault = Fault::error("autoscaling", "SetDesiredCapacity", 400, "ScalingActivityInProgress").always();
    stage.cloud()?.cloud.fault(fault).await?;
    let id = stage.gitlab.enqueue(job("waits").script(["true"]));
    stage
        .raise(json!({
            "maxInstances": 4,
            "policies": [{ "idleCount": 1 }],
            "scaling": { "updateInterval": "1s", "updateIntervalWhenExpecting": "1s" },
        }))
        .await?;
    until("the group was asked to grow twice", SOON, async || {
        let calls = stage.cloud()?.cloud.calls(0).await?;
        let asked = calls.iter().filter(|call| call.action == "SetDesiredCapacity").count();
        Ok((asked >= 2).then_some(()))
    })
    .await?;
    ensure!(stage.job_requests() == 0, "a job was asked for with no idle slot");
    stage.cloud()?.cloud.clear_faults().await?;
    success(&stage, id).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn the_longest_asleep_makes_room_for_one_more_environment() -> Result<()> {
    let stage = Stage::start("overflow", Setting::cloud(json!({ "maxInstances": 2 }))).await?;
    let (_, first) = put_to_sleep(&stage, job("first").script(["true"])).await?;
    let (_, second) = put_to_sleep(&stage, job("second").script(["true"])).await?;
    until_tier(&stage, &first, "Stopped").await?;
    ensure!(environment(&stage, &second).await?["status"]["tier"] == "Hot");
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_makes_room_for_a_job_that_no_growth_can_serve() -> Result<()> {
    let stage = Stage::start("need", Setting::cloud(json!({ "maxInstances": 1 }))).await?;
    let (_, key) = put_to_sleep(&stage, job("sleeper").script(["true"])).await?;
    let plain = stage.run(job("plain").script(["true"])).await?;
    ensure!(plain.state == JobState::Success, "{}\n{}", told(&plain), stage.operator_log());
    ensure!(environment(&stage, &key).await?["status"]["tier"] == "Stopped");
    traces::end(stage).await
}

#[tokio::test]
async fn a_suspend_above_the_limit_of_storage_is_announced_and_refused() -> Result<()> {
    let pool = json!({
        "workspaceVolume": { "sizeGiB": 1 },
        "suspension": { "limits": { "maxStorageGiB": 1 } },
    });
    let stage = Stage::start("storage", Setting::cloud(pool)).await?;
    put_to_sleep(&stage, job("first").script(["true"])).await?;
    let second = stage.run(job("second").suspend_on_success().script(["echo its script ran"])).await?;
    ensure!(second.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&second));
    let log = second.log_text();
    let announced = log.find("which would be refused now");
    ensure!(announced.is_some() && announced < log.find("its script ran"), "{log}");
    ensure!(log.contains("spec.suspension.limits.maxStorageGiB"), "{log}");
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_is_woken_ahead_of_its_resume_when_somebody_asks() -> Result<()> {
    let stage = Stage::start("ahead", Setting::cloud(json!({}))).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo kept > marker"])).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    ask(&stage, &key, "Hot").await?;
    until_tier(&stage, &key, "Hot").await?;
    let woken = stage.run(job("wake").environment_key(&key).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    traces::end(stage).await
}
