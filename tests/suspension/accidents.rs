//! Ends of a resumed job that are not its script's own: none of them costs the environment.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{environment, held, job, key_of, put_to_sleep};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage, condition};
use crate::traces::{self, on, text, told, until_on};

/// The environment sleeps as before: same expiry and revision, no job bound, and a word on why.
async fn sleeps_as_before(stage: &Stage, key: &str, before: &Value, why: &str) -> Result<()> {
    let after = stage.asleep(key).await?;
    for field in ["expiresAt", "notAfter"] {
        ensure!(after["spec"][field] == before["spec"][field], "{field} has moved: {after:#}");
    }
    ensure!(after["status"]["revision"] == before["status"]["revision"], "{after:#}");
    ensure!(after["status"]["boundLease"].is_null(), "{after:#}");
    ensure!(text(&after["status"]["lastAccident"]).contains(why), "{why}: {after:#}");
    stage
        .until_object("suspendedenvironment", &super::object_of(key)?, "it can be resumed", |environment| {
            condition(environment, "Ready") == ("True".to_owned(), "Asleep".to_owned())
        })
        .await?;
    Ok(())
}

fn resume(key: &str) -> JobSpec {
    job("resume").environment_key(key).suspend_on_success().suspend_on_failure()
}

const CLOCK: &str = "(while true; do date +%s%N > beat; sleep 0.05; done) & disown";
const HOLD: &str = "echo begun; sleep 4242";

async fn still_frozen(stage: &Stage) -> Result<()> {
    let beat = "cat ~/builds/0/group/project/beat";
    let first = on(&stage.hosts[0], beat).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(on(&stage.hosts[0], beat).await? == first, "its background process runs while it sleeps");
    Ok(())
}

#[tokio::test]
async fn cancels_and_time_outs_of_a_resumed_job_leave_its_environment_asleep() -> Result<()> {
    let stage = Stage::start("accidents", Setting::default()).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo kept > marker", CLOCK])).await?;
    let before = environment(&stage, &key).await?;

    let id = stage.gitlab.enqueue(resume(&key).script([HOLD]).after_script(["echo after $CI_JOB_STATUS"]));
    stage.until_log(id, "begun").await?;
    stage.gitlab.cancel(id);
    let canceled = stage.until_over(id).await?;
    ensure!(canceled.state == JobState::Canceled, "{}", told(&canceled));
    ensure!(canceled.log_contains("after canceled"), "{}", told(&canceled));
    ensure!(canceled.puts.iter().all(|put| put.environment_key.is_none()), "{:?}", canceled.puts);
    sleeps_as_before(&stage, &key, &before, "canceled").await?;
    still_frozen(&stage).await?;

    let id = stage.gitlab.enqueue(resume(&key).script([HOLD]));
    stage.until_log(id, "begun").await?;
    stage.gitlab.cancel_hard(id);
    stage.lease_over(id).await?;
    sleeps_as_before(&stage, &key, &before, "GitLab ended the job").await?;
    still_frozen(&stage).await?;
    until_on(&stage.hosts[0], "pgrep -fc '[s]leep 4242' || true", "0").await?;

    let late = stage.run(resume(&key).timeout(Duration::from_secs(2)).script([HOLD])).await?;
    ensure!(late.failure_reason.as_deref() == Some("job_execution_timeout"), "{}", told(&late));
    stage.lease_over(late.id).await?;
    sleeps_as_before(&stage, &key, &before, "time-out").await?;
    still_frozen(&stage).await?;

    let woken = resume(&key).script([
        "cat marker",
        "old=$(cat beat); until [ \"$(cat beat)\" != \"$old\" ]; do sleep 0.05; done",
        "echo ticks",
    ]);
    let woken = stage.run(woken).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("ticks"), "{}", told(&woken));
    ensure!(key_of(&woken)? == key && woken.log_contains("kept"), "{}", told(&woken));
    traces::end(stage).await
}

#[tokio::test]
async fn a_killed_supervisor_a_restarted_host_and_a_refused_start_leave_it_asleep() -> Result<()> {
    let stage = Stage::start("broken", Setting::default()).await?;
    let host = &stage.hosts[0];
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo kept > marker", CLOCK])).await?;
    let before = environment(&stage, &key).await?;

    let id = stage.gitlab.enqueue(resume(&key).script([HOLD]));
    stage.until_log(id, "begun").await?;
    on(host, "pkill -KILL -f '[/]proc/self/exe run'").await?;
    let killed = stage.until_over(id).await?;
    ensure!(killed.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&killed));
    ensure!(killed.log_contains("the supervisor that ran the job was killed"), "{}", told(&killed));
    stage.lease_over(id).await?;
    sleeps_as_before(&stage, &key, &before, "killed").await?;
    still_frozen(&stage).await?;
    until_on(host, "pgrep -fc '[s]leep 4242' || true", "0").await?;

    let id = stage.gitlab.enqueue(resume(&key).script([HOLD]));
    stage.until_log(id, "begun").await?;
    host.reboot().await?;
    let rebooted = stage.until_over(id).await?;
    ensure!(rebooted.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&rebooted));
    ensure!(rebooted.log_contains("the host was rebooted while the job ran"), "{}", told(&rebooted));
    stage.lease_over(id).await?;
    sleeps_as_before(&stage, &key, &before, "rebooted").await?;

    let woken = stage.run(resume(&key).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    stage.lease_over(woken.id).await?;
    let before = environment(&stage, &key).await?;

    // Somebody puts another folder in the workspace's place: the job is not started in it.
    let project = "builds/0/group/project";
    on(host, &format!("mv {project} {project}.away && mkdir {project}")).await?;
    let unstarted = stage.run(resume(&key).script(["echo never"])).await?;
    ensure!(unstarted.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&unstarted));
    ensure!(unstarted.log_contains("the environment cannot be resumed"), "{}", told(&unstarted));
    ensure!(!unstarted.log_contains("never"), "{}", told(&unstarted));
    stage.lease_over(unstarted.id).await?;
    sleeps_as_before(&stage, &key, &before, "workspace").await?;
    on(host, &format!("rmdir {project} && mv {project}.away {project}")).await?;
    let woken = stage.run(resume(&key).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    traces::end(stage).await
}

#[tokio::test]
async fn a_resumed_job_outlives_sigkill_of_its_manager_and_sleeps_again() -> Result<()> {
    let stage = Stage::start("outlives", Setting::default()).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo kept > marker"])).await?;
    let id = stage.gitlab.enqueue(resume(&key).script(held(&["cat marker", "exit 7"])));
    stage.until_log(id, "waits").await?;
    stage.crash_operator().await?;
    on(&stage.hosts[0], "touch /tmp/go").await?;
    let over = stage.until_over(id).await?;
    ensure!((over.exit_code, key_of(&over)?) == (Some(7), key.clone()), "{}", told(&over));
    ensure!(over.log_text().matches("kept").count() == 1, "{}", told(&over));
    stage.lease_over(id).await?;
    let after = stage.asleep(&key).await?;
    ensure!(after["status"]["revision"] == 1, "{after:#}");
    traces::end(stage).await
}
