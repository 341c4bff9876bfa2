//! A host that is restarted under a job, or while an environment sleeps on it.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{counting, ensure_next_job_runs, ensure_system_failure};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage, condition, message};
use crate::traces::{self, told};

#[tokio::test]
async fn a_restart_under_a_job_is_told_as_such_and_leaves_no_doubt() -> Result<()> {
    let stage = Stage::start("restart", Setting::pool(json!({}))).await?;
    if super::left_out(&stage).await {
        return stage.end().await;
    }
    let id = stage.gitlab.enqueue(counting("restart"));
    stage.until_log(id, "line 3").await?;
    stage.hosts[0].reboot().await?;
    ensure_system_failure(&stage.until_over(id).await?, "the host was rebooted while the job ran")?;
    ensure!(condition(&stage.lease_over(id).await?, "SlotClean").0.is_empty());
    ensure_next_job_runs(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn processes_that_a_restart_has_taken_from_a_sleeping_environment_are_said_to_be_gone() -> Result<()> {
    let stage = Stage::start("restart-asleep", Setting::pool(json!({}))).await?;
    if super::left_out(&stage).await {
        return stage.end().await;
    }
    let spec = JobSpec::new("first").suspendable().suspend_on_success();
    let first = stage.run(spec.script(["export KEPT=yes; sleep 8765 & disown; echo kept > file"])).await?;
    let key = first.environment_key.clone().unwrap_or_default();
    let asleep = stage.asleep(&key).await?;
    ensure!(asleep["status"]["processes"].as_u64().is_some_and(|count| count > 0), "{asleep:#}");
    stage.hosts[0].reboot().await?;
    let name = asleep["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let restarted = stage
        .until_object("suspendedenvironment", &name, "its processes are said to be gone", |environment| {
            condition(environment, "Ready") == ("True".to_owned(), "ProcessesLost".to_owned())
        })
        .await?;
    ensure!(restarted["status"]["processes"] == 0, "{restarted:#}");
    ensure!(message(&restarted, "Ready").contains("alder was restarted"), "{restarted:#}");

    let resume = JobSpec::new("wake").suspendable().suspend_on_success().environment_key(&key);
    let woken =
        stage.run(resume.script(["cat file; echo kept=$KEPT; pgrep -f 'sleep 876[5]' || true"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept=yes"), "{}", told(&woken));
    ensure!(woken.log_contains("the environment's background processes are gone"), "{}", told(&woken));
    // Asleep again, in the boot it was put to sleep in: nothing is lost any more.
    stage
        .until_object("suspendedenvironment", &name, "it sleeps as usual", |environment| {
            condition(environment, "Ready") == ("True".to_owned(), "Asleep".to_owned())
        })
        .await?;
    traces::end(stage).await
}
