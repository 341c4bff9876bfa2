//! What goes wrong between the operator and GitLab, or between it and a host, and that a job comes out whole.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::testbed::gitlab::{FaultId, JobId, JobSpec, JobState, JobView};
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::each_line_once;

mod acquire;
mod faults;
mod forgotten;
mod half_open;
mod host;
mod intake;
mod outage;
mod rate_limit;

/// A job of forty lines within about a second, which ends with exit code 3.
fn count(name: impl Into<String>) -> JobSpec {
    JobSpec::new(name).script(["for i in $(seq 1 40); do echo line $i; sleep 0.03; done", "exit 3"])
}

/// One host with room for all jobs of a test at once.
fn roomy() -> Setting {
    Setting::pool(json!({ "capacityPerInstance": 12, "isolation": "Shared", "concurrency": 12 }))
}

/// Fails unless the log's numbered lines are 1 to `last`, each once and in order.
fn ensure_numbered(job: &JobView, last: u32) -> Result<()> {
    let text = job.log_text();
    let numbers = text.lines().filter_map(|line| line.trim_end().rsplit_once("line ")?.1.parse::<u32>().ok());
    let mut next = 1;
    for number in numbers {
        ensure!(number == next, "{}: line {number} where line {next} is due", job.name);
        next += 1;
    }
    ensure!(next == last + 1, "{}: the last line is {} of {last}", job.name, next - 1);
    Ok(())
}

/// Fails unless a counting job ended by itself, with every line and exactly one result.
fn ensure_told_once(job: &JobView) -> Result<()> {
    let end = (job.state, job.exit_code, job.failure_reason.as_deref());
    ensure!(
        end == (JobState::Failed, Some(3), Some("script_failure")),
        "{}: {end:?}\n{}",
        job.name,
        job.log_text()
    );
    let taken = job.puts.iter().filter(|put| put.state == "failed" && put.answer == 200).count();
    ensure!(taken == 1, "{}: its result was taken {taken} times: {:?}", job.name, job.puts);
    Ok(())
}

/// Waits until a fault has hit a request.
async fn until_hit(stage: &Stage, fault: FaultId) -> Result<()> {
    until("a request is hit by the fault", SOON, async || {
        Ok((stage.gitlab.fault_hits(fault) > 0).then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())
}

/// Waits until a file is on the host.
async fn until_file(stage: &Stage, path: &str) -> Result<()> {
    until(&format!("{path} is on the host"), SOON, async || {
        Ok(stage.hosts[0].ssh(&format!("test -e {path}")).await?.status.success().then_some(()))
    })
    .await
}

/// Waits until no process of the host matches a pattern.
async fn until_no_process(stage: &Stage, pattern: &str) -> Result<()> {
    until(&format!("no process matches {pattern}"), SOON, async || {
        let left = stage.hosts[0].ssh(&format!("pgrep -f '{pattern}'")).await?;
        Ok(left.stdout.is_empty().then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())
}

/// A job's end, however long GitLab has been away.
async fn until_over_after(stage: &Stage, id: JobId, outage: Duration) -> Result<JobView> {
    stage.gitlab.wait_until_over(id, outage + SOON).await.with_context(|| stage.operator_log())
}

/// Why GitLab does not have a job's end, as its lease says.
fn reported(lease: &Value) -> (String, String) {
    let conditions = lease["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|known| known["type"] == "Reported").unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}
