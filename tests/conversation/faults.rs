//! Answers of GitLab that are late, lost, or say no.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{count, each_line_once, roomy};
use crate::testbed::gitlab::{Action, Commit, Fault, JobId, JobSpec, JobState, Options, Target};
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;

#[tokio::test]
async fn no_single_fault_costs_a_byte_of_the_log_or_the_result() -> Result<()> {
    let stage = Stage::start("faults", roomy()).await?;
    let cases = [
        ("log refused", Fault::refuse(Target::Trace, 500).times(3)),
        ("log later", Fault::refuse(Target::Trace, 429).header("retry-after", "1").after(1).once()),
        ("log taken, answer lost", Fault::on(Target::Trace, Action::CutAfterHandling).after(1).once()),
        ("log lost", Fault::on(Target::Trace, Action::CutBeforeHandling).times(2)),
        ("log elsewhere", Fault::refuse(Target::Trace, 416).header("range", "0-0").after(1).once()),
        ("running refused", Fault::refuse(Target::UpdateTo("running"), 500).times(2)),
        ("running lost", Fault::on(Target::UpdateTo("running"), Action::CutAfterHandling).once()),
        ("running later", Fault::refuse(Target::UpdateTo("running"), 429).header("retry-after", "1").once()),
        ("end refused", Fault::refuse(Target::FinalUpdate, 502).times(2)),
        ("end taken, answer lost", Fault::on(Target::FinalUpdate, Action::CutAfterHandling).once()),
        ("end later", Fault::refuse(Target::FinalUpdate, 429).header("retry-after", "1").once()),
    ];
    let mut jobs = Vec::new();
    for (number, (name, fault)) in (1..).zip(cases) {
        // Numbers begin with 1: the fault is there before the job is.
        let fault = stage.gitlab.inject(fault.job(JobId(number)));
        let id = stage.gitlab.enqueue(count(name));
        ensure!(id == JobId(number), "jobs are numbered in another way than thought");
        jobs.push((id, fault));
    }
    for (id, fault) in jobs {
        let job = stage.until_over(id).await?;
        ensure!(stage.gitlab.fault_hits(fault) > 0, "{}: the fault hit nothing", job.name);
        let end = (job.state, job.exit_code, job.failure_reason.as_deref());
        let wanted = (JobState::Failed, Some(3), Some("script_failure"));
        ensure!(end == wanted, "{}: {end:?}\n{}", job.name, job.log_text());
        each_line_once(&job, 40)?;
        ensure!(stage.lease_over(id).await?["status"]["phase"] == "Reported");
    }
    stage.end().await
}

#[tokio::test]
async fn a_server_that_still_stores_the_log_or_has_lost_it_gets_it_whole() -> Result<()> {
    let stage = Stage::start("storing", roomy()).await?;
    let storing = stage.gitlab.enqueue(count("storing").chunks_pending(3));
    let reset = stage.gitlab.enqueue(count("reset").log_resets(2));
    for id in [storing, reset] {
        let job = stage.until_over(id).await?;
        ensure!((job.state, job.exit_code) == (JobState::Failed, Some(3)), "{}", job.log_text());
        each_line_once(&job, 40)?;
        ensure!(stage.lease_over(id).await?["status"]["phase"] == "Reported");
    }
    let answers = |id| -> Vec<u16> {
        let puts = stage.gitlab.job(id).map(|job| job.puts).unwrap_or_default();
        puts.iter().filter(|put| put.state == "failed").map(|put| put.answer).collect()
    };
    ensure!(answers(storing) == [202, 202, 202, 200], "{:?}", answers(storing));
    ensure!(answers(reset) == [412, 412, 200], "{:?}", answers(reset));
    stage.end().await
}

#[tokio::test]
async fn a_server_without_two_phase_commit_is_served_as_well() -> Result<()> {
    let mut setting = roomy();
    setting.gitlab.commit = Commit::Legacy;
    let stage = Stage::start("legacy", setting).await?;
    let job = stage.run(count("legacy")).await?;
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(3)), "{}", job.log_text());
    each_line_once(&job, 40)?;
    let job = stage.run(JobSpec::new("asleep").suspendable().suspend_on_success().script(["true"])).await?;
    ensure!(job.state == JobState::Success && job.environment_key.is_some(), "{}", job.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_job_that_another_manager_was_given_is_let_go_without_a_word() -> Result<()> {
    let stage = Stage::start("elsewhere", roomy()).await?;
    let id = stage.gitlab.enqueue(JobSpec::new("theirs").script(["touch /tmp/ran"]));
    stage.gitlab.take_elsewhere(id);
    let lease = stage.lease_over(id).await?;
    ensure!(lease["status"]["phase"] == "Reported", "{lease:#}");
    let job = stage.gitlab.job(id).expect("it was enqueued");
    ensure!(job.log.is_empty() && job.puts.iter().all(|put| put.answer == 409), "{job:?}");
    ensure!(!stage.hosts[0].ssh("test -e /tmp/ran").await?.status.success(), "the job was run");
    stage.run(count("mine")).await?;
    stage.end().await
}

#[tokio::test]
async fn a_hand_out_whose_answer_is_lost_is_run_when_gitlab_hands_it_out_again() -> Result<()> {
    let mut setting = roomy();
    setting.gitlab = Options { acknowledge_within: Duration::from_secs(3), ..setting.gitlab };
    let stage = Stage::start("lost201", setting).await?;
    stage.gitlab.inject(Fault::on(Target::Assignment, Action::CutAfterHandling).once());
    let id = stage.gitlab.enqueue(count("lost"));
    let lost = stage.until_over(id).await?;
    ensure!(lost.failure_reason.as_deref() == Some("runner_provisioning_timeout"), "{lost:?}");
    ensure!(lost.puts.is_empty(), "something was said about a job nobody knew of");
    let again = lost.retried_as.expect("the server queues a job again that was never begun");
    let job = stage.until_over(again).await?;
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(3)), "{}", job.log_text());
    each_line_once(&job, 40)?;
    stage.end().await
}

#[tokio::test]
async fn a_pool_that_cannot_ask_for_jobs_asks_again() -> Result<()> {
    let stage = Stage::start("askagain", Setting::pool(json!({}))).await?;
    for fault in [
        Fault::refuse(Target::RequestJob, 500).times(2),
        Fault::refuse(Target::RequestJob, 429).header("retry-after", "1").once(),
        Fault::refuse(Target::RequestJob, 409).once(),
        Fault::on(Target::RequestJob, Action::CutBeforeHandling).times(2),
    ] {
        let fault = stage.gitlab.inject(fault);
        until("a request for a job fails", SOON, async || {
            Ok((stage.gitlab.fault_hits(fault) > 0).then_some(()))
        })
        .await?;
        let job = stage.run(JobSpec::new("after").script(["true"])).await?;
        ensure!(job.state == JobState::Success, "{}", job.log_text());
    }
    stage.end().await
}
