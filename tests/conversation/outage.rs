//! GitLab is away for a while.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    count, each_line_once, ensure_numbered, ensure_told_once, reported, roomy, until_file, until_hit,
    until_over_after,
};
use crate::testbed::gitlab::{Fault, JobSpec, JobState, Target};
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;

/// How long the long outage lasts: `DORMOUSE_OUTAGE_SECONDS`, or 40 s.
fn outage() -> Duration {
    let given = std::env::var("DORMOUSE_OUTAGE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(40))
}

/// A job of numbered lines, each with so many more characters, that ends with exit code 3.
fn chatty(name: &str, lines: u32, more: usize) -> JobSpec {
    let padding = "x".repeat(more);
    JobSpec::new(name).script([
        format!("for i in $(seq 1 {lines}); do echo {padding} line $i; done"),
        format!("touch /tmp/{name}-counted; while [ ! -e /tmp/{name}-go ]; do sleep 0.05; done"),
        "exit 3".to_owned(),
    ])
}

#[tokio::test]
async fn a_long_outage_costs_no_byte_and_no_result() -> Result<()> {
    let stage = Stage::start("longaway", roomy()).await?;
    let lines = u32::try_from(outage().as_secs()).unwrap_or(u32::MAX) * 10 + 100;
    let count = format!("for i in $(seq 1 {lines}); do echo line $i; sleep 0.1; done");
    // One runs on beyond the outage, at its own pace.
    let steady = stage.gitlab.enqueue(JobSpec::new("steady").script([&count, "exit 3"]));
    stage.until_log(steady, "line 10").await?;
    // One ends in it, with more log than is held for it, and its environment is put to sleep.
    let ends = chatty("ends", 20_000, 100).suspendable().suspend_on_failure();
    let began = Instant::now();
    let ends = {
        let id = stage.gitlab.enqueue(ends);
        stage.until_log(id, "line 1").await?;
        stage.gitlab.down().await?;
        id
    };
    until_file(&stage, "/tmp/ends-counted").await?;
    stage.touch("/tmp/ends-go").await?;
    until("the environment sleeps", SOON, async || {
        let known = stage.list("suspendedenvironments").await?;
        Ok(known.iter().any(|known| known["status"]["phase"] == "Suspended").then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    let lease = format!("{POOL}-{ends}");
    let what = "it says that GitLab does not answer";
    let lease =
        stage.until_object("joblease", &lease, what, |lease| reported(lease).0 == "GitLabNotAnswering");
    let lease = lease.await?;
    ensure!(lease["status"]["phase"] == "Finalizing" && lease["status"]["exitCode"] == 3, "{lease:#}");
    let (_, message) = reported(&lease);
    ensure!(message.starts_with("GitLab has not taken the job's end since 20"), "{message}");
    ensure!(message.contains("cannot reach GitLab: "), "{message}");
    until("the outage has lasted", outage() + SOON, async || Ok((began.elapsed() >= outage()).then_some(())))
        .await?;
    stage.gitlab.up()?;
    let job = until_over_after(&stage, ends, SOON).await?;
    ensure_told_once(&job)?;
    ensure_numbered(&job, 20_000)?;
    ensure!(job.environment_key.is_some(), "{job:?}");
    let lease = stage.lease_over(ends).await?;
    ensure!(reported(&lease).0 == "Reported", "{lease:#}");
    let events = stage.list("events.v1.events.k8s.io").await?;
    let told: Vec<_> = events.iter().filter(|event| event["reason"] == "GitLabNotAnswering").collect();
    ensure!(told.len() == 1 && told[0]["series"].is_null(), "{told:#?}");
    // Its pace is its host's: a line takes a tenth of a second and two processes.
    let job = until_over_after(&stage, steady, outage() + SOON).await?;
    ensure_told_once(&job)?;
    ensure_numbered(&job, lines)?;
    stage.end().await
}

#[tokio::test]
async fn a_gitlab_that_answers_with_errors_for_a_while_gets_everything_afterwards() -> Result<()> {
    let stage = Stage::start("errors", roomy()).await?;
    let loud = stage.gitlab.enqueue(chatty("loud", 20_000, 100));
    let quiet = stage.gitlab.enqueue(chatty("quiet", 40, 0));
    for id in [loud, quiet] {
        stage.until_log(id, "line 1").await?;
    }
    let fault = stage.gitlab.inject(Fault::refuse(Target::Any, 502));
    until_hit(&stage, fault).await?;
    for name in ["loud", "quiet"] {
        until_file(&stage, &format!("/tmp/{name}-counted")).await?;
        stage.touch(&format!("/tmp/{name}-go")).await?;
    }
    for id in [loud, quiet] {
        let lease = format!("{POOL}-{id}");
        let what = "it says what GitLab answers";
        stage.until_object("joblease", &lease, what, |lease| reported(lease).1.contains("502")).await?;
    }
    let while_away = stage.gitlab.fault_hits(fault);
    ensure!(while_away < 200, "GitLab was asked {while_away} times while it could not answer");
    stage.gitlab.remove_fault(fault);
    for (id, lines) in [(loud, 20_000), (quiet, 40)] {
        let job = until_over_after(&stage, id, SOON).await?;
        ensure_told_once(&job)?;
        ensure_numbered(&job, lines)?;
    }
    stage.end().await
}

#[tokio::test]
async fn a_job_runs_on_while_gitlab_is_away_and_its_log_is_whole_afterwards() -> Result<()> {
    let stage = Stage::start("outage", Setting::pool(json!({}))).await?;
    let id = stage.gitlab.enqueue(JobSpec::new("count").script([
        "for i in $(seq 1 200); do echo line $i; sleep 0.05; done",
        "touch /tmp/counted",
        "while [ ! -e /tmp/go ]; do sleep 0.05; done",
        "exit 3",
    ]));
    stage.until_log(id, "line 10").await?;
    stage.gitlab.down().await?;
    // Ten seconds of script.
    until_file(&stage, "/tmp/counted").await?;
    stage.gitlab.up()?;
    let view = stage.until_log(id, "line 200").await?;
    ensure!(view.state == JobState::Running, "{view:?}");
    stage.touch("/tmp/go").await?;
    let job = stage.until_over(id).await?;
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(3)), "{}", job.log_text());
    each_line_once(&job, 200)?;
    let over = stage.run(count("next")).await?;
    ensure!(over.exit_code == Some(3), "{}", over.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_result_is_kept_until_gitlab_can_be_told() -> Result<()> {
    let stage = Stage::start("endaway", Setting::pool(json!({}))).await?;
    let id = stage.gitlab.enqueue(JobSpec::new("count").script([
        "for i in $(seq 1 40); do echo line $i; done",
        "while [ ! -e /tmp/go ]; do sleep 0.05; done",
        "touch /tmp/ended; exit 3",
    ]));
    stage.until_log(id, "line 40").await?;
    stage.gitlab.down().await?;
    stage.touch("/tmp/go").await?;
    until_file(&stage, "/tmp/ended").await?;
    // A holder that dies with the result untold loses nothing.
    stage.crash_operator().await?;
    stage
        .until_object("joblease", &format!("{POOL}-{id}"), "it is still open", |lease| {
            ["Running", "Finalizing"].contains(&lease["status"]["phase"].as_str().unwrap_or_default())
        })
        .await?;
    stage.gitlab.up()?;
    let job = stage.until_over(id).await?;
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(3)), "{}", job.log_text());
    each_line_once(&job, 40)?;
    let lease = stage.lease_over(id).await?;
    ensure!(lease["status"]["phase"] == "Reported" && lease["status"]["exitCode"] == 3, "{lease:#}");
    stage.end().await
}

#[tokio::test]
async fn a_suspended_environment_is_told_of_when_gitlab_is_back() -> Result<()> {
    let stage = Stage::start("sleepaway", Setting::pool(json!({}))).await?;
    let id = stage.gitlab.enqueue(JobSpec::new("sleeper").suspendable().suspend_on_success().script([
        "echo begun",
        "while [ ! -e /tmp/go ]; do sleep 0.05; done",
        "echo kept > marker",
    ]));
    stage.until_log(id, "begun").await?;
    stage.gitlab.down().await?;
    stage.touch("/tmp/go").await?;
    until("the environment sleeps", SOON, async || {
        let known = stage.list("suspendedenvironments").await?;
        Ok(known.iter().any(|known| known["status"]["phase"] == "Suspended").then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    stage.gitlab.up()?;
    let job = stage.until_over(id).await?;
    ensure!(job.state == JobState::Success, "{}", job.log_text());
    let key = job.environment_key.expect("the key is told with the result");
    let resumed =
        stage.run(JobSpec::new("resume").suspendable().environment_key(&key).script(["cat marker"])).await?;
    ensure!(resumed.state == JobState::Success && resumed.log_contains("kept"), "{}", resumed.log_text());
    stage.end().await
}
