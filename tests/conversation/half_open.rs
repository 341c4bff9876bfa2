//! GitLab accepts a request and never answers it: every call about a job ends by itself, and nothing waits for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{count, each_line_once, ensure_told_once, roomy, until_hit, until_no_process, until_over_after};
use crate::testbed::gitlab::{Action, Fault, FaultId, JobId, JobSpec, JobState, Target};
use crate::testbed::stage::{SOON, Stage};
use crate::testbed::wait::until;

/// The longest that a request is waited for.
const HANGS: Duration = Duration::from_secs(90);

/// One request about a job is never answered; the job is enqueued after it with that number.
fn hang(stage: &Stage, number: u64, target: Target, job: JobSpec) -> Result<(JobId, FaultId)> {
    let fault = Fault::on(target, Action::HalfOpen).job(JobId(number)).once();
    let fault = stage.gitlab.inject(fault);
    let id = stage.gitlab.enqueue(job);
    ensure!(id == JobId(number), "jobs are numbered in another way than thought");
    Ok((id, fault))
}

#[tokio::test]
async fn a_call_that_is_never_answered_costs_time_and_nothing_else() -> Result<()> {
    let stage = Stage::start("hanging", roomy()).await?;
    let hung = [
        hang(&stage, 1, Target::Trace, count("log"))?,
        hang(&stage, 2, Target::UpdateTo("running"), count("running"))?,
        hang(&stage, 3, Target::FinalUpdate, count("result"))?,
    ];
    for (_, fault) in hung {
        until_hit(&stage, fault).await?;
    }
    // The pool goes on meanwhile, and then cannot ask for jobs for a while.
    each_line_once(&stage.run(count("meanwhile")).await?, 40)?;
    let poll = stage.gitlab.inject(Fault::on(Target::RequestJob, Action::HalfOpen).once());
    until_hit(&stage, poll).await?;
    let later = stage.gitlab.enqueue(count("later"));
    for id in hung.map(|(id, _)| id).into_iter().chain([later]) {
        let job = until_over_after(&stage, id, HANGS).await?;
        ensure_told_once(&job)?;
        each_line_once(&job, 40)?;
        ensure!(stage.lease_over(id).await?["status"]["phase"] == "Reported");
    }
    stage.end().await
}

#[tokio::test]
async fn while_a_log_update_hangs_the_host_and_the_cluster_are_listened_to() -> Result<()> {
    let stage = Stage::start("listening", roomy()).await?;
    let waits = |name: &str, file: &str, last: &str| {
        let wait = format!("echo begun; while [ ! -e {file} ]; do sleep 0.05; done; {last}");
        JobSpec::new(name).script([wait])
    };
    // Its end and its suspend are seen.
    let sleeper = waits("sleeper", "/tmp/go", "true").suspendable().suspend_on_success();
    let (sleeper, sleeper_hangs) = hang(&stage, 1, Target::Trace, sleeper)?;
    // The deletion of its lease is.
    let (deleted, deleted_hangs) = hang(&stage, 2, Target::Trace, waits("deleted", "/tmp/never-2", "true"))?;
    // A cancel is, with whatever GitLab answers next.
    let (canceled, canceled_hangs) =
        hang(&stage, 3, Target::Trace, waits("canceled", "/tmp/never-3", "true"))?;
    for fault in [sleeper_hangs, deleted_hangs, canceled_hangs] {
        until_hit(&stage, fault).await?;
    }
    stage.gitlab.cancel(canceled);
    stage.touch("/tmp/go").await?;
    stage.kubectl(&["delete", "joblease", &format!("pool-{deleted}"), "--wait=false"]).await?;
    until_no_process(&stage, "never-[2]").await?;
    until("the environment sleeps", SOON, async || {
        let known = stage.list("suspendedenvironments").await?;
        Ok(known.iter().any(|known| known["status"]["phase"] == "Suspended").then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    for id in [sleeper, deleted, canceled] {
        let job = stage.gitlab.job(id).context("it was enqueued")?;
        ensure!(job.log.is_empty(), "{} was seen to go on after an answer", job.name);
    }
    let job = until_over_after(&stage, canceled, HANGS).await?;
    ensure!(job.state == JobState::Canceled, "{job:?}");
    until_no_process(&stage, "never-[3]").await?;
    let job = until_over_after(&stage, sleeper, HANGS).await?;
    ensure!(job.state == JobState::Success && job.environment_key.is_some(), "{}", job.log_text());
    ensure!(job.log_contains("begun"), "{}", job.log_text());
    let job = until_over_after(&stage, deleted, HANGS).await?;
    ensure!(job.state == JobState::Failed, "{job:?}");
    stage.end().await
}

#[tokio::test]
async fn a_slot_is_taken_while_the_word_that_the_job_waits_hangs() -> Result<()> {
    let mut setting = roomy();
    setting.pool["capacityPerInstance"] = 1.into();
    setting.pool["isolation"] = serde_json::Value::Null;
    let stage = Stage::start("hangwait", setting).await?;
    let sleeper = JobSpec::new("sleeper").suspendable().suspend_on_success().script(["true"]);
    let sleeper = stage.run(sleeper).await?;
    ensure!(sleeper.environment_key.is_some(), "{}", sleeper.log_text());
    stage.lease_over(sleeper.id).await?;
    let (waits, hangs) = hang(&stage, 2, Target::UpdateTo("pending"), count("waits"))?;
    until_hit(&stage, hangs).await?;
    stage.kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"]).await?;
    stage
        .until_object("joblease", &format!("pool-{waits}"), "it has its slot", |lease| {
            lease["status"]["slot"] == 0
        })
        .await?;
    let job = stage.gitlab.job(waits).context("it was enqueued")?;
    ensure!(job.puts.is_empty(), "the slot was taken after an answer: {:?}", job.puts);
    let job = until_over_after(&stage, waits, HANGS).await?;
    each_line_once(&job, 40)?;
    ensure_told_once(&job)?;
    stage.end().await
}
