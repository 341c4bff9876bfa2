//! GitLab does not know a job any more, or has ended it: it is stopped on its host, and nothing of it is left.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{count, each_line_once, reported, roomy, until_hit, until_no_process};
use crate::testbed::gitlab::{Fault, JobSpec, Target};
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces;

#[tokio::test]
async fn in_mid_job_it_is_stopped_and_its_slot_used_again() -> Result<()> {
    let stage = Stage::start("forgotten", Setting::pool(json!({}))).await?;
    let script = ["echo begun", "while true; do echo still here; sleep 0.1; done"];
    for is_forgotten in [true, false] {
        let id = stage.gitlab.enqueue(JobSpec::new("endless").script(script));
        stage.until_log(id, "still here").await?;
        // 404 to every call, or 403 with the job's state.
        if is_forgotten {
            stage.gitlab.forget(id);
        } else {
            stage.gitlab.drop_job(id, "no_updates_running");
        }
        let lease = stage.lease_over(id).await?;
        ensure!(lease["status"]["phase"] == "Reported", "{lease:#}");
        until_no_process(&stage, "still her[e]").await?;
        let job = stage.gitlab.job(id).context("it was enqueued")?;
        ensure!(job.puts.iter().all(|put| put.state == "running"), "a result was told: {:?}", job.puts);
    }
    let job = stage.run(count("next")).await?;
    ensure!(job.exit_code == Some(3), "{}", job.log_text());
    traces::end(stage).await
}

#[tokio::test]
async fn at_the_report_the_lease_is_closed_and_the_host_tidied() -> Result<()> {
    let stage = Stage::start("late-forgotten", roomy()).await?;
    for (number, status) in [(1, 404), (2, 403)] {
        let fault = Fault::refuse(Target::FinalUpdate, status).job(crate::testbed::gitlab::JobId(number));
        let fault = stage.gitlab.inject(fault);
        let id = stage.gitlab.enqueue(count("untold"));
        until_hit(&stage, fault).await?;
        let lease = stage.lease_over(id).await?;
        ensure!(lease["status"]["phase"] == "Reported" && lease["status"]["exitCode"] == 3, "{lease:#}");
        ensure!(reported(&lease).0 == "Reported", "{lease:#}");
        ensure!(stage.gitlab.fault_hits(fault) == 1, "the result was told again after {status}");
        each_line_once(&stage.gitlab.job(id).context("it was enqueued")?, 40)?;
    }
    until("nothing of the jobs is on the host", SOON, async || {
        let left = traces::on(
            &stage.hosts[0],
            "ls /var/lib/dormouse/environments ~/.dormouse/environments 2>/dev/null || true",
        );
        let left = left.await?;
        Ok((!left.lines().any(|line| line.len() == 20)).then_some(()))
    })
    .await?;
    stage.end().await
}
