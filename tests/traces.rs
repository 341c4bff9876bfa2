//! What a job leaves behind: Events that tell of it, and nothing else once everything is released.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::suspension::job;
use crate::testbed::gitlab::{JobState, JobView};
use crate::testbed::hosts::Host;
use crate::testbed::stage::{SOON, Stage};
use crate::testbed::wait::until;

/// Where a host that is logged into as root keeps environments.
const ENVIRONMENTS: &str = "/var/lib/dormouse/environments";

/// Waits for an Event about an object, by its reason; answers its note and action.
pub async fn event(stage: &Stage, object: &str, reason: &str) -> Result<(String, String)> {
    until(&format!("an Event {reason} about {object}"), SOON, async || {
        let found = stage
            .list("events.v1.events.k8s.io")
            .await?
            .into_iter()
            .find(|event| event["reason"] == reason && event["regarding"]["name"] == object);
        Ok(found.map(|event| (text(&event["note"]), text(&event["action"]))))
    })
    .await
    .with_context(|| stage.operator_log())
}

/// Runs a job that does nothing, to its success.
pub async fn next_job_runs(stage: &Stage) -> Result<()> {
    let next = stage.run(job("next").script(["echo runs"])).await?;
    ensure!(next.state == JobState::Success, "{}\n{}", told(&next), stage.operator_log());
    Ok(())
}

/// How a job stands, for messages.
pub fn told(job: &JobView) -> String {
    format!(
        "job {} is {:?}, exit code {:?}, reason {:?}, key {:?}:\n{}",
        job.id,
        job.state,
        job.exit_code,
        job.failure_reason,
        job.environment_key,
        job.log_text()
    )
}

/// Fails unless each of the first lines of a job that counts (`line 1`, `line 2`, …) is in its log exactly once.
pub fn each_line_once(job: &JobView, lines: usize) -> Result<()> {
    let log = job.log_text();
    for number in 1..=lines {
        let line = format!("line {number}");
        let count = log.lines().filter(|found| found.trim_end().ends_with(&line)).count();
        ensure!(count == 1, "{}: {line} is there {count} times:\n{log}", job.name);
    }
    Ok(())
}

/// A JSON string, or nothing.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What a shell command prints on a host.
pub async fn on(host: &Host, command: &str) -> Result<String> {
    let output = host.ssh(command).await?;
    ensure!(
        output.status.success(),
        "on {}: {command}: {}",
        host.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Waits until a shell command prints this on a host.
pub async fn until_on(host: &Host, command: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    until(&format!("{command:?} prints {wanted:?} on {}", host.name()), SOON, async || {
        last = on(host, command).await?;
        Ok((last == wanted).then_some(()))
    })
    .await
    .with_context(|| format!("it prints {last:?}"))
}

/// Releases what still sleeps and ends the stage: no environment is left on a host, no payload in the cluster, no
/// lease open.
pub async fn end(stage: Stage) -> Result<()> {
    stage
        .kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"])
        .await
        .with_context(|| stage.operator_log())?;
    for host in &stage.hosts {
        until_on(host, &format!("ls {ENVIRONMENTS} 2>/dev/null || true"), "").await?;
    }
    let selector = "--field-selector=type=dormouse.dev/job-payload";
    until("no payload is left", SOON, async || {
        let left = stage.kubectl(&["get", "secrets", selector, "-o", "name"]).await?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    let leases = stage.list("jobleases").await?;
    let open = leases.iter().find(|lease| {
        !["Reported", "Failed"].contains(&lease["status"]["phase"].as_str().unwrap_or_default())
    });
    ensure!(open.is_none(), "a lease is still open: {open:#?}");
    stage.end().await
}
