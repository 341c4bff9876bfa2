//! Jobs that end from outside: canceled, out of time, forgotten, their lease deleted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::testbed::gitlab::{Action, Fault, JobSpec, JobState, Target};
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, told, until_on};

/// A tree that a signal to the shell alone would not end.
const TREE: &str =
    "(trap '' TERM INT HUP; setsid sleep 4242 & setsid sleep 4242) & echo begun; trap '' TERM; sleep 4242";
const LEFT: &str = "pgrep -fc '[s]leep 4242' || true";

#[tokio::test]
async fn canceled_while_it_waits_for_a_slot_nothing_of_it_runs() -> Result<()> {
    let pool = serde_json::json!({ "suspension": { "slotFloor": 0 } });
    let stage = Stage::start("cancel-wait", Setting { pool, ..Setting::default() }).await?;
    let asleep = JobSpec::new("asleep").suspendable().suspend_on_success().script(["true"]);
    ensure!(stage.run(asleep).await?.state == JobState::Success);
    // GitLab is asked for jobs although the one slot sleeps: this one is accepted and waits.
    let waiting = stage.gitlab.enqueue(JobSpec::new("waits").script(["touch /tmp/ran"]));
    stage
        .until_object("joblease", &format!("pool-{waiting}"), "it is accepted", |lease| {
            lease["status"]["instance"].is_null()
        })
        .await?;
    stage.gitlab.cancel(waiting);
    stage.kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"]).await?;
    let lease = stage.lease_over(waiting).await?;
    ensure!(lease["status"]["phase"] == "Reported", "{lease:#}");
    let next = stage.run(JobSpec::new("next").script(["ls /tmp/ran || echo it never ran"])).await?;
    ensure!(next.log_contains("it never ran"), "{}", told(&next));
    traces::end(stage).await
}

#[tokio::test]
async fn canceled_between_hand_out_and_running_nothing_of_it_runs() -> Result<()> {
    let stage = Stage::start("cancel-start", Setting::default()).await?;
    for graceful in [true, false] {
        let fault = Fault::on(Target::UpdateTo("running"), Action::Delay(Duration::from_secs(2))).once();
        let fault = stage.gitlab.inject(fault);
        let id = stage.gitlab.enqueue(JobSpec::new("canceled").script(["touch /tmp/ran"]));
        until("its running is under way", SOON, async || {
            Ok((stage.gitlab.fault_hits(fault) > 0).then_some(()))
        })
        .await?;
        if graceful {
            stage.gitlab.cancel(id)
        } else {
            stage.gitlab.cancel_hard(id)
        };
        let lease = stage.lease_over(id).await?;
        ensure!(lease["status"]["phase"] == "Reported", "{lease:#}");
        let job = stage.until_over(id).await?;
        ensure!(job.state == JobState::Canceled && job.log.is_empty(), "{}", told(&job));
    }
    let next = stage.run(JobSpec::new("next").script(["ls /tmp/ran || echo it never ran"])).await?;
    ensure!(next.log_contains("it never ran"), "{}", told(&next));
    traces::end(stage).await
}

#[tokio::test]
async fn canceling_runs_after_script_and_leaves_no_process() -> Result<()> {
    let stage = Stage::start("canceling", Setting::default()).await?;
    let spec = JobSpec::new("canceled").script([TREE]).after_script(["echo after: $CI_JOB_STATUS"]);
    let id = stage.gitlab.enqueue(spec);
    stage.until_log(id, "begun").await?;
    ensure!(stage.gitlab.cancel(id) == Some(JobState::Canceling));
    let job = stage.until_over(id).await?;
    ensure!(job.state == JobState::Canceled && job.log_contains("after: canceled"), "{}", told(&job));
    ensure!(job.log_contains("Job failed: canceled"), "{}", told(&job));
    let told_reason = job.puts.last().and_then(|put| put.failure_reason.as_deref());
    ensure!(told_reason == Some("job_canceled"), "{:?}", job.puts);
    let lease = stage.lease_over(id).await?;
    ensure!(lease["status"]["failureReason"] == "job_canceled", "{lease:#}");
    until_on(&stage.hosts[0], LEFT, "0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_hard_cancel_kills_the_whole_tree_and_says_nothing_more() -> Result<()> {
    let stage = Stage::start("hard-cancel", Setting::default()).await?;
    let script = [TREE.replace("echo begun;", "(while true; do echo begun; sleep 0.2; done) &")];
    let spec = JobSpec::new("canceled").script(script).after_script(["touch /tmp/after"]);
    let id = stage.gitlab.enqueue(spec);
    stage.until_log(id, "begun").await?;
    stage.gitlab.cancel_hard(id);
    let began = Instant::now();
    until_on(&stage.hosts[0], LEFT, "0").await?;
    ensure!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    let lease = stage.lease_over(id).await?;
    ensure!(lease["status"]["phase"] == "Reported", "{lease:#}");
    until_on(&stage.hosts[0], "ls /tmp/after 2>/dev/null || echo none", "none").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn canceled_while_it_is_suspended_the_sleep_is_finished_and_given_up() -> Result<()> {
    let stage = Stage::start("cancel-suspend", Setting::default()).await?;
    for graceful in [true, false] {
        let script = ["sleep 4242 & echo begun; sleep 2"];
        let spec = JobSpec::new("sleeps").suspendable().suspend_on_success().script(script);
        let id = stage.gitlab.enqueue(spec);
        stage.until_log(id, "begun").await?;
        // The log is held back from here, so that GitLab's wish is heard only after the suspend.
        let fault = stage.gitlab.inject(Fault::refuse(Target::Trace, 503).job(id));
        let environment = until("it is put to sleep", SOON, async || {
            let all = stage.list("suspendedenvironments").await?;
            Ok(all.into_iter().find(|known| known["status"]["phase"] == "Suspended"))
        })
        .await?;
        if graceful {
            stage.gitlab.cancel(id)
        } else {
            stage.gitlab.cancel_hard(id)
        };
        stage.gitlab.remove_fault(fault);
        let job = stage.until_over(id).await?;
        ensure!(job.state == JobState::Canceled, "{}", told(&job));
        ensure!(job.puts.iter().all(|put| put.environment_key.is_none()), "{:?}", job.puts);
        stage.lease_over(id).await?;
        stage.until_none("suspendedenvironments").await?;
        let name = traces::text(&environment["metadata"]["name"]);
        let (note, _) = traces::event(&stage, &name, "Released").await?;
        ensure!(note.contains("canceled while it was being suspended"), "{note}");
        until_on(&stage.hosts[0], LEFT, "0").await?;
    }
    traces::end(stage).await
}

#[tokio::test]
async fn out_of_time_the_tree_is_ended_and_nothing_sleeps() -> Result<()> {
    let stage = Stage::start("timeout", Setting::default()).await?;
    let spec = JobSpec::new("late").suspendable().suspend_on_failure().timeout(Duration::from_secs(2));
    let late = stage.run(spec.script([TREE])).await?;
    ensure!(late.failure_reason.as_deref() == Some("job_execution_timeout"), "{}", told(&late));
    ensure!(late.log_contains("the job took longer than its time-out, 2s"), "{}", told(&late));
    ensure!(late.environment_key.is_none() && stage.list("suspendedenvironments").await?.is_empty());
    until_on(&stage.hosts[0], LEFT, "0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn forgotten_by_gitlab_it_is_stopped_and_tidied() -> Result<()> {
    let stage = Stage::start("forgotten", Setting::default()).await?;
    for script in [TREE, "while true; do echo begun; sleep 0.1; done # sleep 4242"] {
        let id = stage.gitlab.enqueue(JobSpec::new("forgotten").script([script]));
        stage.until_log(id, "begun").await?;
        stage.gitlab.forget(id);
        let lease = stage.lease_over(id).await?;
        ensure!(lease["status"]["phase"] == "Reported", "{lease:#}");
        let message = traces::text(&lease["status"]["message"]);
        ensure!(message.contains("GitLab does not want the job"), "{lease:#}");
        until_on(&stage.hosts[0], LEFT, "0").await?;
        until_on(&stage.hosts[0], "ls /var/lib/dormouse/environments", "").await?;
    }
    traces::end(stage).await
}

#[tokio::test]
async fn deleting_its_lease_cancels_it() -> Result<()> {
    let stage = Stage::start("delete-lease", Setting::default()).await?;
    let spec = JobSpec::new("deleted").script([TREE]).after_script(["touch /tmp/after"]);
    let id = stage.gitlab.enqueue(spec);
    stage.until_log(id, "begun").await?;
    stage.kubectl(&["delete", "joblease", &format!("pool-{id}"), "--timeout=60s"]).await?;
    let job = stage.until_over(id).await?;
    ensure!(job.state == JobState::Failed, "{}", told(&job));
    ensure!(job.failure_reason.as_deref() == Some("job_canceled"), "{}", told(&job));
    ensure!(job.log_contains("canceled"), "{}", told(&job));
    until_on(&stage.hosts[0], LEFT, "0").await?;
    traces::end(stage).await
}
