//! A cloud that has no room, or asks for patience.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::tiers::{ask, leaves_marks, resume_and_see, until_tier, with_volumes};
use super::{beside_a_busy_job, go, instance_of, next_job_runs, snapshots, until_called, until_waits_for};
use crate::suspension::{held, job, put_to_sleep, until_gone};
use crate::testbed::cloud::{Act, Fault};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, told};

#[tokio::test]
async fn a_job_waits_for_capacity_to_start_its_environments_instance() -> Result<()> {
    let stage = Stage::start("no-start", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    let over = beside_a_busy_job(&stage, async {
        cloud.cloud.act(Act::NoCapacity).await?;
        let wake = stage.gitlab.enqueue(job("wake").environment_key(&key).script(["cat ../../marker"]));
        let message = stage.until_finding("Scaling", "False", "NoCapacity").await?;
        ensure!(message.contains("InsufficientInstanceCapacity"), "{message}");
        stage.until_event("CloudRefused").await?;
        let note = stage.until_told("Scaling", "NoCapacity").await?;
        ensure!(note.contains("it is tried again") && note.contains("zones or instance types"), "{note}");
        ensure!(stage.gitlab.job(wake).is_some_and(|job| !job.state.is_final()), "the job did not wait");
        cloud.cloud.act(Act::Restore).await?;
        stage.until_over(wake).await
    })
    .await?;
    ensure!(over.state == JobState::Success && over.log_contains("kept"), "{}", told(&over));
    traces::end(stage).await
}

#[tokio::test]
async fn a_job_whose_instance_does_not_start_in_time_ends_and_its_environment_sleeps_on() -> Result<()> {
    let usual = Setting::cloud(json!({})).pool;
    let stage = Stage::start("no-start-in-time", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    stage.forget_asked_tier(&key).await?;
    cloud.cloud.act(Act::NoCapacity).await?;
    begin_anew(&stage, Setting::cloud(json!({ "instanceAcquireTimeout": "3s" })).pool).await?;
    let over = stage.run(job("late").environment_key(&key).script(["cat ../../marker"])).await?;
    ensure!(over.failure_reason.is_some() && !over.log_contains("kept"), "{}", told(&over));
    ensure!(over.log_contains("no slot within 3 s (spec.instanceAcquireTimeout)"), "{}", told(&over));
    let asleep = until_tier(&stage, &key, "Stopped").await?;
    ensure!(asleep["status"]["boundLease"].is_null(), "{asleep:#}");
    cloud.cloud.act(Act::Restore).await?;
    begin_anew(&stage, usual).await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    traces::end(stage).await
}

/// Restarts the operator with another spec of the pool: the next job is run by it.
async fn begin_anew(stage: &Stage, pool: Value) -> Result<()> {
    stage.operator()?.terminate().await?;
    stage.gitlab.client_restarted();
    stage.apply_pool(pool).await?;
    stage.operator()?.start_again().await
}

#[tokio::test]
async fn a_group_without_capacity_is_told_and_jobs_wait_for_it() -> Result<()> {
    let stage = Stage::start("no-growth", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    cloud.cloud.act(Act::NoCapacity).await?;
    let waits = stage.gitlab.enqueue(job("waits").script(["echo runs"]));
    let message = stage.until_finding("Scaling", "True", "WaitingForInstances").await?;
    ensure!(message.contains("1 instances are on their way"), "{message}");
    until_called(&stage, "of a launch that failed", |call| call.action == "launch-failed").await?;
    // The group alone knows, and tells it in its activities.
    let message = stage.until_finding("Scaling", "False", "NoCapacity").await?;
    ensure!(message.contains("sufficient capacity") && message.contains("more zones"), "{message}");
    let note = stage.until_told("Scaling", "NoCapacity").await?;
    ensure!(note.contains("more zones"), "{note}");
    ensure!(stage.gitlab.job(waits).is_some_and(|job| !job.state.is_final()), "the job did not wait");
    cloud.cloud.act(Act::Restore).await?;
    let over = stage.until_over(waits).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    let asked = cloud.cloud.calls(0).await?;
    let asked = asked.iter().filter(|call| call.action == "SetDesiredCapacity").count();
    ensure!(asked == 1, "the group was asked {asked} times");
    stage.until_condition("runnerpool", POOL, "Scaling").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_launch_without_capacity_is_a_condition_and_tried_again() -> Result<()> {
    let pool = json!({ "provider": { "aws": { "growWith": "LaunchInstances" } } });
    let stage = Stage::start("no-launch", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    cloud.cloud.act(Act::NoCapacity).await?;
    let waits = stage.gitlab.enqueue(job("waits").script(["echo runs"]));
    stage.until_finding("Scaling", "False", "NoCapacity").await?;
    stage.until_told("Scaling", "NoCapacity").await?;
    cloud.cloud.act(Act::Restore).await?;
    let over = stage.until_over(waits).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    stage.until_finding("CloudReady", "True", "CloudAnswers").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_whose_zone_is_closed_says_so_and_comes_back_in_another_by_a_snapshot() -> Result<()> {
    let stage =
        Stage::start("zone-closed", with_volumes(json!({ "policies": [{ "idleTime": "1s" }] }))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Detached").await?;
    let detached = until_tier(&stage, &key, "Detached").await?;
    let zone = detached["status"]["volume"]["zone"].as_str().context("no zone")?.to_owned();
    cloud.until_members(0).await?;
    cloud.cloud.act(Act::ZoneClosed { zone: zone.clone() }).await?;
    let wake = stage.gitlab.enqueue(job("wake").environment_key(&key).script(["cat ../../marker"]));
    until_waits_for(&stage, &key, &zone).await?;
    let message = stage.until_finding("Scaling", "False", "ZoneWithoutCapacity").await?;
    ensure!(message.contains(&zone), "{message}");
    let over = stage.until_over(wake).await?;
    ensure!(
        over.state == JobState::Success && over.log_contains("kept"),
        "{}\n{}",
        told(&over),
        stage.operator_log()
    );
    let instance = instance_of(&stage, wake).await?;
    let state = cloud.cloud.state().await?;
    let woken = state.instances.iter().find(|one| one.id == instance).context("its instance is not shown")?;
    ensure!(woken.zone != zone, "{zone} was closed: {woken:?}");
    until_gone(&stage, &key).await?;
    // What it has left behind is gone too.
    ensure!(snapshots(&stage).await?.is_empty());
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_that_waits_for_an_instance_is_looked_at_now_and_then() -> Result<()> {
    let stage = Stage::start("patient", with_volumes(json!({ "policies": [{ "idleTime": "1s" }] }))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Detached").await?;
    until_tier(&stage, &key, "Detached").await?;
    cloud.until_members(0).await?;
    let busy = Fault::error("autoscaling", "SetDesiredCapacity", 400, "ScalingActivityInProgress");
    cloud.cloud.fault(busy.always()).await?;
    let wake = stage.gitlab.enqueue(job("wake").environment_key(&key).script(["cat ../../marker"]));
    until_waits_for(&stage, &key, "slot 0 of an instance").await?;
    let before = looked_at(&stage).await?;
    stage.until_looked_at(5).await?;
    let looks = looked_at(&stage).await? - before;
    ensure!(looks < 100, "it was looked at {looks} times");
    cloud.cloud.clear_faults().await?;
    let over = stage.until_over(wake).await?;
    ensure!(over.state == JobState::Success, "{}\n{}", told(&over), stage.operator_log());
    traces::end(stage).await
}

/// How many looks at environments there were.
async fn looked_at(stage: &Stage) -> Result<u64> {
    let text = stage.operator()?.metrics().await?;
    let line = text.lines().find_map(|line| line.strip_prefix("dormouse_environments_looked_at_total{"));
    let (_, count) = line.and_then(|line| line.rsplit_once(' ')).context("no such metric")?;
    Ok(count.parse()?)
}

#[tokio::test]
async fn a_throttled_account_fails_no_job() -> Result<()> {
    let stage = Stage::start("throttled", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let busy = stage.gitlab.enqueue(job("busy").script(held(&["echo done"])).suspend_on_success());
    stage.until_log(busy, "waits").await?;
    let instance = instance_of(&stage, busy).await?;
    for (service, code) in [("ec2", "RequestLimitExceeded"), ("autoscaling", "Throttling")] {
        cloud.cloud.fault(Fault::error(service, "*", 503, code).always()).await?;
    }
    stage.until_finding("CloudReady", "Unknown", "Retry").await?;
    let note = stage.until_told("CloudReady", "Retry").await?;
    ensure!(note.contains("it is tried again by itself"), "{note}");
    go(&stage, &instance).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    let key = crate::suspension::key_of(&over)?;
    stage.asleep(&key).await?;
    // What waits for an instance waits; it is not failed for it.
    let waits = stage.gitlab.enqueue(job("waits").script(["echo runs"]));
    until("the job is taken", SOON, async || {
        Ok(stage.gitlab.job(waits).and_then(|job| job.picked_up_at).map(|_| ()))
    })
    .await?;
    cloud.cloud.clear_faults().await?;
    let over = stage.until_over(waits).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    stage.until_finding("CloudReady", "True", "CloudAnswers").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_group_that_is_busy_is_asked_again() -> Result<()> {
    let stage = Stage::start("busy-group", Setting::cloud(json!({}))).await?;
    let busy = Fault::error("autoscaling", "SetDesiredCapacity", 400, "ScalingActivityInProgress");
    stage.cloud()?.cloud.fault(busy.times(2)).await?;
    next_job_runs(&stage).await?;
    traces::end(stage).await
}

/// Waits until it is told that a quota is used up, what for, and what to do; then it is raised.
async fn told_and_raised(stage: &Stage, code: &str) -> Result<()> {
    let message = stage.until_finding("CloudReady", "False", "Quota").await?;
    ensure!(message.contains(code), "{message}");
    let event = stage.until_event("CloudRefused").await?;
    let refused = event["message"].as_str().unwrap_or_default();
    let turned = stage.until_told("CloudReady", "Quota").await?;
    for note in [refused, &turned] {
        ensure!(note.contains(code) && note.contains("Service Quotas"), "{note}");
    }
    stage.cloud()?.cloud.clear_faults().await
}

#[tokio::test]
async fn a_quota_that_is_used_up_is_a_condition_and_jobs_wait() -> Result<()> {
    let stage = Stage::start("quota", with_volumes(json!({}))).await?;
    let cloud = stage.cloud()?;
    let over = beside_a_busy_job(&stage, async {
        let used_up = Fault::error("ec2", "CreateVolume", 400, "VolumeLimitExceeded");
        cloud.cloud.fault(used_up.always()).await?;
        let waits = stage.gitlab.enqueue(job("waits").script(["echo runs"]));
        told_and_raised(&stage, "VolumeLimitExceeded").await?;
        stage.until_over(waits).await
    })
    .await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    until("one volume was made for each instance", SOON, async || {
        let state = cloud.cloud.state().await?;
        let roots: Vec<_> = state.instances.iter().filter_map(|one| one.root_volume.clone()).collect();
        Ok((state.volumes.iter().filter(|one| !roots.contains(&one.id)).count() == 2).then_some(()))
    })
    .await?;
    stage.until_finding("CloudReady", "True", "CloudAnswers").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_quota_that_keeps_an_environment_from_starting_or_moving_is_told_and_waited_for() -> Result<()> {
    struct Case {
        name: &'static str,
        action: &'static str,
        code: &'static str,
        from: &'static str,
        to: &'static str,
    }
    let cases = [
        Case {
            name: "quota-start",
            action: "StartInstances",
            code: "VcpuLimitExceeded",
            from: "Stopped",
            to: "Hot",
        },
        Case {
            name: "quota-snapshot",
            action: "CreateSnapshot",
            code: "SnapshotLimitExceeded",
            from: "Hot",
            to: "Snapshotted",
        },
    ];
    for case in cases {
        let stage = Stage::start(case.name, with_volumes(json!({}))).await?;
        let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
        ask(&stage, &key, case.from).await?;
        until_tier(&stage, &key, case.from).await?;
        let used_up = Fault::error("ec2", case.action, 400, case.code);
        stage.cloud()?.cloud.fault(used_up.always()).await?;
        ask(&stage, &key, case.to).await?;
        told_and_raised(&stage, case.code).await?;
        until_tier(&stage, &key, case.to).await.context(case.name)?;
        stage.until_finding("CloudReady", "True", "CloudAnswers").await?;
        resume_and_see(&stage, &key, "processes 0").await?;
        traces::end(stage).await?;
    }
    Ok(())
}
