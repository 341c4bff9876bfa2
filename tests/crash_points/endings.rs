//! Deaths at ends that are not a script's own: refusals, lost hosts, killed supervisors, cancels, jobs nobody wants.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::at_each;
use crate::suspension::{job, put_to_sleep, until_gone};
use crate::testbed::gitlab::{Fault, JobId, JobSpec, JobState, Target};
use crate::testbed::stage::{POOL, SOON, Setting, Stage, condition};
use crate::testbed::wait::until;
use crate::traces::{self, on, text, told, until_on};

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] =
    &[&REFUSED, &AWAY, &LEFTOVER, &NOTHING_TO_RUN, &KILLED, &WAITING, &CANCELED, &WITHDRAWN, &UNWANTED];

const REFUSED: [&str; 2] = ["tail-recorded", "tail-sent"];
const AWAY: [&str; 1] = ["tail-offered"];
const LEFTOVER: [&str; 2] = ["leftover-removed", "slot-seen-clean"];
const NOTHING_TO_RUN: [&str; 1] = ["lease-failed"];
const KILLED: [&str; 1] = ["log-sealed-without-suspend"];
const WAITING: [&str; 1] = ["lease-waiting"];
const CANCELED: [&str; 3] = ["job-canceled", "environment-frozen-again", "environment-returned"];
// Others pass these to go on; here nothing of the job is on the host yet, and GitLab has given it up.
const BOUND: [&str; 2] = ["environment-bound", "lease-assigned"];
const WITHDRAWN: [&str; 1] = ["environment-withdrawn"];
const UNWANTED: [&str; 2] = ["job-stopped", "unwanted-removed"];

const HOLD: &str = "echo begun; sleep 4242";
const LEFT: &str = "pgrep -fc '[s]leep 4242' || true";

#[tokio::test]
async fn a_refusal_keeps_its_text_and_its_reason() -> Result<()> {
    let stage = Stage::start("crash-refused", Setting::pool(json!({}))).await?;
    at_each(&stage, &REFUSED, async |stage, death| {
        death.arm(stage).await?;
        let spec = JobSpec::new(death.name()).failure_reasons(["runner_configuration_error"]);
        let spec = spec.payload_field("secrets", json!({ "A": {} })).script(["touch /tmp/must-not-run"]);
        let id = stage.gitlab.enqueue(spec);
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.failure_reason.as_deref() == Some("runner_configuration_error"), "{}", told(&over));
        ensure!(over.log_text().matches("`secrets`").count() == 1, "{}", told(&over));
        let lease = stage.lease_over(id).await?;
        ensure!(lease["status"]["failureReason"] == "runner_configuration_error", "{lease:#}");
        until_on(&stage.hosts[0], "ls /tmp/must-not-run 2>/dev/null || echo none", "none").await
    })
    .await?;
    // A lease whose payload is lost can only be closed.
    at_each(&stage, &NOTHING_TO_RUN, async |stage, death| {
        let name = format!("{POOL}-9{}", 1 + u32::from(death.is("lease-failed", "deed")));
        death.arm(stage).await?;
        stage.apply(&lease_without_payload(stage, &name).await?).await?;
        death.fall(stage).await?;
        let closed = stage
            .until_object("joblease", &name, "it is closed", |lease| lease["status"]["phase"] == "Failed")
            .await?;
        ensure!(text(&closed["status"]["message"]).contains("payload is not complete"), "{closed:#}");
        stage.kubectl(&["delete", "joblease", &name, "--timeout=60s"]).await?;
        Ok(())
    })
    .await?;
    traces::end(stage).await
}

async fn lease_without_payload(stage: &Stage, name: &str) -> Result<Value> {
    let pool = stage.get("runnerpool", POOL).await?;
    Ok(json!({
        "apiVersion": "dormouse.dev/v1alpha1",
        "kind": "JobLease",
        "metadata": {
            "name": name, "namespace": stage.namespace, "finalizers": ["dormouse.dev/release"],
        },
        "spec": {
            "pool": POOL, "poolUid": pool["metadata"]["uid"], "jobId": 90, "jobName": "lost",
            "projectId": 1, "projectPath": "group/project", "ref": "main",
            "environmentId": "aaaaaaaaaaaaaaaaaaaa", "timeoutSeconds": 60,
            "acceptedAt": "2026-01-01T00:00:00Z", "payloadParts": 1,
        },
    }))
}

#[tokio::test]
async fn a_lost_host_ends_its_job_with_one_text_and_is_swept_when_it_returns() -> Result<()> {
    let stage = Stage::start("crash-away", Setting::pool(json!({ "connectionGrace": "4s" }))).await?;
    at_each(&stage, &AWAY, async |stage, death| {
        let id = stage.gitlab.enqueue(JobSpec::new(death.name()).script([HOLD]));
        stage.until_log(id, "begun").await?;
        stage.operator()?.kill()?;
        stage.hosts[0].stop().await?;
        death.arm(stage).await?;
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&over));
        ensure!(over.log_text().matches("spec.connectionGrace").count() == 1, "{}", told(&over));
        stage.lease_over(id).await?;
        stage.hosts[0].start().await?;
        until_on(&stage.hosts[0], "ls /var/lib/dormouse/environments", "").await
    })
    .await?;
    at_each(&stage, &LEFTOVER, async |stage, death| {
        let id = stage.gitlab.enqueue(JobSpec::new(death.name()).script([HOLD]));
        stage.until_log(id, "begun").await?;
        stage.hosts[0].stop().await?;
        stage.until_over(id).await?;
        stage.lease_over(id).await?;
        death.arm(stage).await?;
        stage.hosts[0].start().await?;
        death.fall(stage).await?;
        until_on(&stage.hosts[0], "ls /var/lib/dormouse/environments", "").await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_killed_supervisor_is_told_once() -> Result<()> {
    let stage = Stage::start("crash-killed", Setting::pool(json!({}))).await?;
    at_each(&stage, &KILLED, async |stage, death| {
        let id = stage.gitlab.enqueue(JobSpec::new(death.name()).script([HOLD]));
        stage.until_log(id, "begun").await?;
        death.arm(stage).await?;
        on(&stage.hosts[0], "pkill -KILL -f '[/]proc/self/exe run'").await?;
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&over));
        let said = over.log_text().matches("the supervisor that ran the job was killed").count();
        ensure!(said == 1, "it is said {said} times: {}", told(&over));
        stage.lease_over(id).await?;
        until_on(&stage.hosts[0], LEFT, "0").await
    })
    .await?;
    traces::end(stage).await
}

/// Waits until a job's lease is over: the environment it was to resume sleeps as before, and nothing of the job is left.
async fn sleeps_on(stage: &Stage, job: JobId, key: &str) -> Result<()> {
    stage.lease_over(job).await?;
    let asleep = stage.asleep(key).await?;
    ensure!(asleep["status"]["boundLease"].is_null() && asleep["status"]["revision"] == 0, "{asleep:#}");
    until_on(&stage.hosts[0], LEFT, "0").await
}

/// The environment can be resumed, with what it kept, and is given back after that.
async fn wakes_whole(stage: Stage, key: &str) -> Result<()> {
    let woken = stage.run(job("wakes").environment_key(key).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    until_gone(&stage, key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_resume_says_what_it_waits_for_and_goes_on_when_its_host_is_back() -> Result<()> {
    let stage = Stage::start("crash-waiting", Setting::pool(json!({}))).await?;
    at_each(&stage, &WAITING, async |stage, death| {
        let (_, key) = put_to_sleep(stage, job("sleeps").script(["echo kept > marker"])).await?;
        stage.hosts[0].stop().await?;
        stage.until_host("alder", "Unreachable").await?;
        death.arm(stage).await?;
        let id = stage.gitlab.enqueue(job(&death.name()).environment_key(&key).script(["cat marker"]));
        death.fall(stage).await?;
        let lease = format!("{POOL}-{id}");
        stage
            .until_object("joblease", &lease, "it says what it waits for", |lease| {
                condition(lease, "InstanceReady").1 == "WaitingForEnvironment"
                    && lease.to_string().contains("waits for instance alder")
            })
            .await?;
        stage.hosts[0].start().await?;
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success && over.log_contains("kept"), "{}", told(&over));
        stage.lease_over(id).await?;
        until_gone(stage, &key).await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_canceled_resume_leaves_its_environment_asleep() -> Result<()> {
    let stage = Stage::start("crash-canceled", Setting::pool(json!({}))).await?;
    let (_, key) = put_to_sleep(&stage, job("sleeps").script(["echo kept > marker"])).await?;
    at_each(&stage, &CANCELED, async |stage, death| {
        let spec = job(&death.name()).environment_key(&key).suspend_on_success();
        let id = stage.gitlab.enqueue(spec.script([HOLD]));
        stage.until_log(id, "begun").await?;
        death.arm(stage).await?;
        stage.gitlab.cancel(id);
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Canceled, "{}", told(&over));
        sleeps_on(stage, id, &key).await
    })
    .await?;
    wakes_whole(stage, &key).await
}

#[tokio::test]
async fn a_resume_that_gitlab_forgot_before_it_began_leaves_its_environment_asleep() -> Result<()> {
    let stage = Stage::start("crash-forgotten", Setting::pool(json!({}))).await?;
    let (_, key) = put_to_sleep(&stage, job("sleeps").script(["echo kept > marker"])).await?;
    at_each(&stage, &BOUND, async |stage, death| {
        death.arm(stage).await?;
        let id = stage.gitlab.enqueue(job(&death.name()).environment_key(&key).script([HOLD]));
        stage.operator()?.until_ended(SOON).await?;
        stage.gitlab.forget(id);
        death.fall(stage).await?;
        sleeps_on(stage, id, &key).await
    })
    .await?;
    wakes_whole(stage, &key).await
}

#[tokio::test]
async fn a_sleep_that_nobody_wants_any_more_is_given_up() -> Result<()> {
    let stage = Stage::start("crash-withdrawn", Setting::pool(json!({}))).await?;
    at_each(&stage, &WITHDRAWN, async |stage, death| {
        death.arm(stage).await?;
        let spec = job(&death.name()).suspend_on_success().script(["echo begun; sleep 1"]);
        let id = stage.gitlab.enqueue(spec);
        stage.until_log(id, "begun").await?;
        // The log is held back from here, so that GitLab's wish is heard only after the suspend.
        let fault = stage.gitlab.inject(Fault::refuse(Target::Trace, 503).job(id));
        until("it is put to sleep", SOON, async || {
            let all = stage.list("suspendedenvironments").await?;
            Ok(all.into_iter().find(|known| known["status"]["phase"] == "Suspended"))
        })
        .await?;
        stage.gitlab.cancel(id);
        stage.gitlab.remove_fault(fault);
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Canceled, "{}", told(&over));
        ensure!(over.puts.iter().all(|put| put.environment_key.is_none()), "{:?}", over.puts);
        stage.lease_over(id).await?;
        stage.until_none("suspendedenvironments").await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_job_that_gitlab_forgot_is_stopped_and_tidied() -> Result<()> {
    let stage = Stage::start("crash-unwanted", Setting::pool(json!({}))).await?;
    at_each(&stage, &UNWANTED, async |stage, death| {
        let id = stage.gitlab.enqueue(JobSpec::new(death.name()).script([HOLD]));
        stage.until_log(id, "begun").await?;
        death.arm(stage).await?;
        stage.gitlab.forget(id);
        death.fall(stage).await?;
        stage.lease_over(id).await?;
        until_on(&stage.hosts[0], LEFT, "0").await?;
        until_on(&stage.hosts[0], "ls /var/lib/dormouse/environments", "").await
    })
    .await?;
    traces::end(stage).await
}
