//! GitLab is away for a while.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{count, ensure_whole};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;

/// Waits until a file is on the host.
async fn until_file(stage: &Stage, path: &str) -> Result<()> {
    until(&format!("{path} is on the host"), SOON, async || {
        Ok(stage.hosts[0].ssh(&format!("test -e {path}")).await?.status.success().then_some(()))
    })
    .await
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
    ensure_whole(&job, 200)?;
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
    ensure_whole(&job, 40)?;
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
