//! A job that GitLab has handed out while the API server is away: it is kept as long as GitLab counts it as ours.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{count, each_line_once, ensure_told_once, until_over_after};
use crate::testbed::gitlab::{Commit, JobId, JobState};
use crate::testbed::mishap::Mishap;
use crate::testbed::proxy::Line;
use crate::testbed::stage::{SOON, Setting, Stage};

/// The longest that a job without a lease is kept, and told of.
const KEPT: Duration = Duration::from_secs(180);

/// A pool whose request for a job is held by GitLab.
async fn polling(name: &str, commit: Commit) -> Result<Stage> {
    let mut setting = Setting { pool: json!({}), ..Setting::default() }.paths();
    setting.gitlab.commit = commit;
    let stage = Stage::start(name, setting).await?;
    stage.gitlab.wait_until_polled(SOON).await?;
    Ok(stage)
}

/// A job is handed out.
async fn until_taken(stage: &Stage, id: JobId) -> Result<()> {
    stage.gitlab.wait_for(id, |job| job.picked_up_at.is_some(), SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_lease_is_written_as_soon_as_the_api_server_is_back() -> Result<()> {
    let stage = polling("late-lease", Commit::TwoPhase).await?;
    let away = Mishap::ApiServerPath(Line::Refused).begin(&stage).await?;
    let id = stage.gitlab.enqueue(count("late"));
    until_taken(&stage, id).await?;
    // It was tried in vain: GitLab hears that the job waits.
    stage
        .gitlab
        .wait_for(id, |job| job.puts.iter().any(|put| put.state == "pending"), SOON)
        .await
        .with_context(|| stage.operator_log())?;
    away.end(&stage).await?;
    let job = stage.until_over(id).await?;
    ensure_told_once(&job)?;
    each_line_once(&job, 40)?;
    stage.end().await
}

#[tokio::test]
async fn a_job_that_cannot_be_kept_goes_back_to_gitlab_or_is_failed_with_words() -> Result<()> {
    tokio::try_join!(
        goes_back_to_a_server_that_can_take_it_back(),
        is_failed_where_it_cannot_be_taken_back()
    )?;
    Ok(())
}

async fn goes_back_to_a_server_that_can_take_it_back() -> Result<()> {
    let stage = polling("unkept", Commit::TwoPhase).await?;
    let away = Mishap::ApiServerPath(Line::Refused).begin(&stage).await?;
    let id = stage.gitlab.enqueue(count("unkept"));
    let lost = until_over_after(&stage, id, KEPT).await?;
    ensure!(lost.failure_reason.as_deref() == Some("runner_provisioning_timeout"), "{lost:?}");
    ensure!(lost.puts.iter().all(|put| put.state == "pending"), "{:?}", lost.puts);
    away.end(&stage).await?;
    let again = lost.retried_as.context("a job that was never begun is queued again")?;
    let job = until_over_after(&stage, again, SOON).await?;
    ensure_told_once(&job)?;
    each_line_once(&job, 40)?;
    stage.end().await
}

async fn is_failed_where_it_cannot_be_taken_back() -> Result<()> {
    let stage = polling("failed-unkept", Commit::Legacy).await?;
    let away = Mishap::ApiServerPath(Line::Refused).begin(&stage).await?;
    let id = stage.gitlab.enqueue(count("unkept"));
    let job = until_over_after(&stage, id, KEPT).await?;
    ensure!(job.state == JobState::Failed, "{job:?}");
    ensure!(job.failure_reason.as_deref() == Some("runner_system_failure"), "{job:?}");
    ensure!(job.log_contains("the job could not be recorded in Kubernetes"), "{}", job.log_text());
    away.end(&stage).await?;
    let metrics = stage.operator()?.metrics().await?;
    let lost = "dormouse_lease_events_total{runner_name=\"pool\",outcome=\"lost_before_durable\"} 1";
    ensure!(metrics.contains(lost), "{metrics}");
    let job = stage.run(count("next")).await?;
    ensure_told_once(&job)?;
    stage.end().await
}
