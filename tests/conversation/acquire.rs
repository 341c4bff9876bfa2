//! A job for which there is no slot in time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{Commit, JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage};

/// A pool whose one slot is held by a sleeping environment: it still asks, since only so it hears of a resume.
async fn full(name: &str, commit: Commit) -> Result<(Stage, String)> {
    let mut setting = Setting::pool(json!({ "instanceAcquireTimeout": "4s" }));
    setting.gitlab.commit = commit;
    setting.gitlab.acknowledge_within = Duration::from_secs(8);
    let stage = Stage::start(name, setting).await?;
    let job = JobSpec::new("sleeper").suspendable().suspend_on_success().script(["true"]);
    let over = stage.run(job).await?;
    let environment = stage.asleep(&over.environment_key.context("no key")?).await?;
    let name = environment["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    stage.lease_over(over.id).await?;
    Ok((stage, name))
}

#[tokio::test]
async fn a_job_without_a_slot_in_time_goes_back_to_a_server_that_can_take_it_back() -> Result<()> {
    let (stage, environment) = full("giveback", Commit::TwoPhase).await?;
    let id = stage.gitlab.enqueue(JobSpec::new("plain").script(["echo at last"]));
    let lease = stage.lease_over(id).await?;
    let message = lease["status"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("given back to GitLab"), "{lease:#}");
    stage.until_event("GivenBack").await?;
    let job = stage.until_over(id).await?;
    ensure!(job.failure_reason.as_deref() == Some("runner_provisioning_timeout"), "{job:?}");
    ensure!(job.puts.iter().all(|put| put.state == "pending"), "{:?}", job.puts);

    stage.kubectl(&["delete", "suspendedenvironment", &environment]).await?;
    let mut next = job.retried_as.context("it is queued again")?;
    // Those that were handed out before the slot was free go back too.
    let over = loop {
        let over = stage.until_over(next).await?;
        match over.retried_as {
            Some(again) => next = again,
            None => break over,
        }
    };
    ensure!(over.state == JobState::Success && over.log_contains("at last"), "{}", over.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_job_without_a_slot_in_time_is_failed_with_words_where_it_cannot_be_taken_back() -> Result<()> {
    let (stage, _) = full("noslot", Commit::Legacy).await?;
    let job = stage.run(JobSpec::new("plain").script(["true"])).await?;
    ensure!(job.state == JobState::Failed, "{job:?}");
    ensure!(job.failure_reason.as_deref() == Some("runner_system_failure"), "{job:?}");
    ensure!(job.log_contains("no slot within 4 s (spec.instanceAcquireTimeout)"), "{}", job.log_text());
    ensure!(job.log_contains("waited for a free slot"), "{}", job.log_text());
    stage.until_finding("CapacityAvailable", "False", "HeldByEnvironments").await?;
    stage.end().await
}
