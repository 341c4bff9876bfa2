//! The connection to a job's host is lost, for less and for more than spec.connectionGrace.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{count, each_line_once};
use crate::testbed::gitlab::{Action, Fault, JobSpec, JobState, Target};
use crate::testbed::hosts::Line;
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;

#[tokio::test]
async fn a_cut_that_is_shorter_than_the_grace_is_not_seen_in_the_log() -> Result<()> {
    let stage = Stage::start("shortcut", Setting::pool(json!({ "connectionGrace": "60s" }))).await?;
    for (line, name) in [(Line::Refused, "refused"), (Line::Silent, "silent")] {
        let id = stage.gitlab.enqueue(
            JobSpec::new(name).script(["for i in $(seq 1 100); do echo line $i; sleep 0.05; done", "exit 3"]),
        );
        stage.until_log(id, "line 10").await?;
        stage.hosts[0].cut(line).await?;
        if line == Line::Refused {
            stage.until_host("alder", "Unreachable").await?;
        }
        stage.hosts[0].heal().await?;
        let job = stage.until_over(id).await?;
        ensure!((job.state, job.exit_code) == (JobState::Failed, Some(3)), "{}", job.log_text());
        each_line_once(&job, 100)?;
    }
    stage.end().await
}

#[tokio::test]
async fn a_cut_that_is_longer_than_the_grace_fails_the_job_and_the_slot_is_used_again() -> Result<()> {
    let stage = Stage::start("longcut", Setting::pool(json!({ "connectionGrace": "3s" }))).await?;
    let script = ["echo line 1", "echo line 2", "sleep 6543 & sleep 6543"];
    let id = stage.gitlab.enqueue(JobSpec::new("lost").script(script));
    stage.until_log(id, "line 2").await?;
    stage.hosts[0].cut(Line::Refused).await?;
    let job = stage.until_over(id).await?;
    ensure!(job.state == JobState::Failed, "{}", job.log_text());
    ensure!(job.failure_reason.as_deref() == Some("runner_system_failure"), "{job:?}");
    each_line_once(&job, 2)?;
    let words = "instance alder has not been reachable for 3 s (spec.connectionGrace)";
    ensure!(job.log_text().matches(words).count() == 1, "{}", job.log_text());
    let event = stage.until_event("InstanceLost").await?;
    ensure!(event["type"] == "Warning", "{event:#}");
    let lease = stage.lease_over(id).await?;
    ensure!(lease["status"]["failureReason"] == "runner_system_failure", "{lease:#}");
    ensure!(lease["status"]["message"].as_str().is_some_and(|message| message.contains(words)), "{lease:#}");

    stage.hosts[0].heal().await?;
    let next = stage.run(count("next")).await?;
    ensure!(next.exit_code == Some(3), "{}", next.log_text());
    ensure!(stage.lease_over(next.id).await?["status"]["slot"] == 0);
    until("nothing of the lost job is left on the host", SOON, async || {
        let left = stage.hosts[0].ssh("pgrep -f 'sleep 654[3]'").await?;
        let folders = stage.hosts[0]
            .ssh("ls /var/lib/dormouse/environments ~/.dormouse/environments 2>/dev/null")
            .await?;
        let environment = lease["spec"]["environmentId"].as_str().unwrap_or_default();
        let is_there = String::from_utf8_lossy(&folders.stdout).contains(environment);
        Ok((left.stdout.is_empty() && !is_there).then_some(()))
    })
    .await?;
    stage.end().await
}

#[tokio::test]
async fn the_last_words_about_a_lost_host_are_whole_where_an_answer_was_lost_before() -> Result<()> {
    let stage = Stage::start("lostanswer", Setting::pool(json!({ "connectionGrace": "3s" }))).await?;
    // One command waits and prints, so that what it prints is the first to come after the wait. What is waited for is that,
    // not the line that says what is run.
    let second = r"while [ ! -e /tmp/go ]; do sleep 0.05; done; printf 'line %s\n' 2";
    let script = ["echo line 1", second, "sleep 6543"];
    let id = stage.gitlab.enqueue(JobSpec::new("lost").script(script));
    // All there is so far: what comes later would take the fault for itself.
    stage.until_log(id, &format!("{second}\u{1b}[0;m\n")).await?;
    // GitLab has the second line, and the operator cannot know it.
    stage.gitlab.inject(Fault::on(Target::Trace, Action::CutAfterHandling).job(id).once());
    let silent = stage.gitlab.inject(Fault::refuse(Target::Trace, 500).job(id));
    stage.touch("/tmp/go").await?;
    stage.until_log(id, "line 2").await?;
    stage.hosts[0].cut(Line::Refused).await?;
    stage.until_event("InstanceLost").await?;
    stage.gitlab.remove_fault(silent);
    let job = stage.until_over(id).await?;
    each_line_once(&job, 2)?;
    let words = "ERROR: Job failed (system failure): instance alder has not been reachable for 3 s";
    ensure!(job.log_text().matches(words).count() == 1, "{}", job.log_text());
    stage.hosts[0].heal().await?;
    stage.end().await
}

#[tokio::test]
async fn a_host_that_reboots_under_a_job_is_told_as_such() -> Result<()> {
    let stage = Stage::start("reboot", Setting::pool(json!({}))).await?;
    if !stage.bed.are_isolated() {
        eprintln!("skipped: a host that reboots takes root");
        return stage.end().await;
    }
    let id = stage.gitlab.enqueue(JobSpec::new("lost").script(["echo line 1", "sleep 600"]));
    stage.until_log(id, "line 1").await?;
    stage.hosts[0].reboot().await?;
    let job = stage.until_over(id).await?;
    ensure!(job.failure_reason.as_deref() == Some("runner_system_failure"), "{job:?}");
    ensure!(job.log_contains("the host was rebooted while the job ran"), "{}", job.log_text());
    each_line_once(&job, 1)?;
    let next = stage.run(count("next")).await?;
    ensure!(next.exit_code == Some(3), "{}", next.log_text());
    stage.end().await
}
