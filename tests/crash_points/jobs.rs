//! Deaths on the way of a plain job, and of one that is put to sleep.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{at_each, at_each_anew};
use crate::suspension::{environment, job, key_of, object_of, put_to_sleep, until_gone};
use crate::testbed::gitlab::{Fault, JobSpec, JobState, JobView, Options, Target};
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, on, told};

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&UNSAID, &PLAIN, &DISPLACED, &LATE, &SLEEP, &WAKE, &AGAIN];

const UNSAID: [&str; 2] = ["lease-created", "payload-saved"];
const PLAIN: [&str; 9] = [
    "lease-assigned",
    "running-told",
    "job-started",
    "lease-running",
    "log-sent",
    "result-told",
    "host-tidied",
    "lease-reported",
    "payload-deleted",
];
const DISPLACED: [&str; 1] = ["lease-displaced"];
const LATE: [&str; 1] = ["result-recorded"];
const SLEEP: [&str; 4] = ["environment-created", "environment-frozen", "environment-asleep", "log-sealed"];
const WAKE: [&str; 4] =
    ["environment-bound", "environment-in-use", "environment-released", "environment-let-go"];
const AGAIN: [&str; 1] = ["environment-restamped"];

const LINES: usize = 30;

/// A job that leaves one line on the host for each time it is run, prints numbered lines and fails with 3.
fn counted(spec: JobSpec) -> JobSpec {
    spec.script([
        "echo ran >> /tmp/ran-$CI_JOB_NAME".to_owned(),
        format!("for i in $(seq 1 {LINES}); do echo line $i; done"),
        "exit 3".to_owned(),
    ])
}

/// It was run once, each line is in its log once, and GitLab has its exit code.
async fn ran_once(stage: &Stage, over: &JobView) -> Result<()> {
    ensure!((over.state, over.exit_code) == (JobState::Failed, Some(3)), "{}", told(over));
    ensure!(over.failure_reason.as_deref() == Some("script_failure"), "{}", told(over));
    let log = over.log_text();
    traces::each_line_once(over, LINES)?;
    ensure!(log.matches("exit code 3").count() == 1, "{}", told(over));
    let runs = on(&stage.hosts[0], &format!("cat /tmp/ran-{}", over.name)).await?;
    ensure!(runs == "ran", "it was run like this: {runs:?}");
    Ok(())
}

#[tokio::test]
async fn before_it_is_durable_a_job_is_gitlabs_to_give_again() -> Result<()> {
    let gitlab = Options {
        acknowledge_within: Duration::from_secs(5),
        hold: Duration::from_secs(3),
        ..Options::default()
    };
    let stage = Stage::start("crash-unsaid", Setting { gitlab, ..Setting::default() }).await?;
    at_each(&stage, &UNSAID, async |stage, death| {
        death.arm(stage).await?;
        let name = death.name();
        stage.gitlab.enqueue(counted(JobSpec::new(&name)));
        death.fall(stage).await?;
        // Where the payload was lost, GitLab waits in vain and gives the job out anew, under another id.
        let over = until("a job of that name has been run", SOON, async || {
            let mut all = stage.gitlab.jobs().into_iter();
            Ok(all.find(|job| job.name == name && job.exit_code.is_some()))
        })
        .await?;
        ran_once(stage, &over).await?;
        stage.lease_over(over.id).await?;
        Ok(())
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_plain_job_is_run_once_and_told_once() -> Result<()> {
    let stage = Stage::start("crash-plain", Setting::pool(serde_json::json!({}))).await?;
    at_each(&stage, &PLAIN, async |stage, death| {
        death.arm(stage).await?;
        let id = stage.gitlab.enqueue(counted(JobSpec::new(death.name())));
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        stage.lease_over(id).await?;
        ran_once(stage, &over).await
    })
    .await?;
    at_each(&stage, &LATE, async |stage, death| {
        death.arm(stage).await?;
        let spec = counted(JobSpec::new(death.name()));
        let fault = stage.gitlab.inject(Fault::refuse(Target::FinalUpdate, 503));
        let id = stage.gitlab.enqueue(spec);
        death.fall(stage).await?;
        stage.gitlab.remove_fault(fault);
        let over = stage.until_over(id).await?;
        stage.lease_over(id).await?;
        ran_once(stage, &over).await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_job_whose_slot_is_kept_by_what_no_object_knows_is_run_once_on_another() -> Result<()> {
    let start = async || {
        let pool = serde_json::json!({ "capacityPerInstance": 2, "isolation": "Shared" });
        Stage::start("crash-displaced", Setting::pool(pool)).await
    };
    // What sleeps there is not removed at first sight, and would displace the job before the one that is to die.
    at_each_anew(start, &DISPLACED, async |stage, death| {
        let sleeper = job(&format!("{}-sleeper", death.name())).script(["true"]);
        let (slept, key) = put_to_sleep(stage, sleeper).await?;
        // An environment whose lease is known to be over would be removed at once.
        stage.kubectl(&["delete", "joblease", &format!("{POOL}-{}", slept.id)]).await?;
        let before = stage.get("runnerpool", POOL).await?;
        death.arm(stage).await?;
        stage.until_next_holder(&before).await?;
        // Its host has been asked by then what is on it; what it lists later would be kept as nobody's.
        traces::next_job_runs(stage).await?;
        // Lost without a word to its host, as in a restore of etcd.
        let name = object_of(&key)?;
        let bare = r#"{"metadata":{"finalizers":[]}}"#;
        stage.kubectl(&["patch", "suspendedenvironment", &name, "--type=merge", "-p", bare]).await?;
        stage.kubectl(&["delete", "suspendedenvironment", &name]).await?;
        let id = stage.gitlab.enqueue(counted(JobSpec::new(death.name())));
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        stage.lease_over(id).await?;
        ran_once(stage, &over).await
    })
    .await
}

#[tokio::test]
async fn a_suspend_is_finished_and_not_repeated() -> Result<()> {
    let stage = Stage::start("crash-sleep", Setting::pool(serde_json::json!({}))).await?;
    at_each(&stage, &SLEEP, async |stage, death| {
        death.arm(stage).await?;
        let id = stage.gitlab.enqueue(counted(job(&death.name()).suspend_on_failure()));
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ran_once(stage, &over).await?;
        let key = key_of(&over)?;
        let said = over.log_text().matches(&format!("Job environment suspended: {key}")).count();
        ensure!(said == 1, "it is said {said} times: {}", told(&over));
        stage.lease_over(id).await?;
        let asleep = stage.asleep(&key).await?;
        ensure!(asleep["status"]["revision"] == 0, "{asleep:#}");
        ensure!(stage.list("suspendedenvironments").await?.len() == 1);
        stage.kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"]).await?;
        Ok(())
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_resume_is_bound_once_and_given_back_once() -> Result<()> {
    let stage = Stage::start("crash-wake", Setting::pool(serde_json::json!({}))).await?;
    let sleep = async |stage: &Stage| -> Result<String> {
        Ok(put_to_sleep(stage, job("sleeps").script(["echo kept > marker; rm -f /tmp/ran-*"])).await?.1)
    };
    at_each(&stage, &WAKE, async |stage, death| {
        let key = sleep(stage).await?;
        death.arm(stage).await?;
        let spec = job(&death.name()).environment_key(&key);
        let id = stage.gitlab.enqueue(spec.script(["cat marker; echo ran >> /tmp/ran-$CI_JOB_NAME"]));
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success && over.log_contains("kept"), "{}", told(&over));
        ensure!(on(&stage.hosts[0], &format!("cat /tmp/ran-{}", over.name)).await? == "ran");
        stage.lease_over(id).await?;
        until_gone(stage, &key).await
    })
    .await?;
    at_each(&stage, &AGAIN, async |stage, death| {
        let key = sleep(stage).await?;
        let before = environment(stage, &key).await?;
        death.arm(stage).await?;
        let spec = job(&death.name()).environment_key(&key).suspend_on_success();
        let id = stage.gitlab.enqueue(spec.script(["cat marker"]));
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success && over.log_contains("kept"), "{}", told(&over));
        ensure!(key_of(&over)? == key, "it sleeps under another key");
        stage.lease_over(id).await?;
        let after = stage.asleep(&key).await?;
        ensure!(after["status"]["revision"] == 1, "{after:#}");
        ensure!(after["spec"]["expiresAt"] != before["spec"]["expiresAt"], "not stamped anew: {after:#}");
        stage
            .kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"])
            .await
            .context("delete")?;
        Ok(())
    })
    .await?;
    traces::end(stage).await
}
