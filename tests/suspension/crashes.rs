//! SIGKILL of the operator around a suspend: the next one finishes it, once.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{environment, job, key_of};
use crate::testbed::gitlab::{Action, Fault, JobState, JobView, Target};
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, on, told};

/// The job failed with its own code, its log is whole, and it sleeps under the key GitLab was told.
async fn slept_once(stage: &Stage, over: &JobView) -> Result<()> {
    ensure!((over.state, over.exit_code) == (JobState::Failed, Some(5)), "{}", told(over));
    ensure!(over.failure_reason.as_deref() == Some("script_failure"), "{}", told(over));
    let key = key_of(over)?;
    let log = over.log_text();
    let count = |wanted: &str| log.lines().filter(|line| line.trim_end().ends_with(wanted)).count();
    traces::each_line_once(over, 20)?;
    ensure!(count(&format!("Job environment suspended: {key}")) == 1, "{log}");
    ensure!(log.matches("Job failed: exit code 5").count() == 1, "{log}");
    stage.lease_over(over.id).await?;
    let asleep = environment(stage, &key).await?;
    ensure!(asleep["status"]["phase"] == "Suspended" && asleep["status"]["revision"] == 0, "{asleep:#}");
    ensure!(asleep["status"]["environmentKey"] == key.as_str(), "{asleep:#}");
    Ok(())
}

#[tokio::test]
async fn killed_anywhere_in_a_suspend_it_is_finished_and_not_repeated() -> Result<()> {
    const JOBS: usize = 6;
    let pool = json!({
        "capacityPerInstance": JOBS, "isolation": "Shared", "suspension": { "slotFloor": 0 },
    });
    let stage = Stage::start("killed", Setting { pool, ..Setting::default() }).await?;
    // The jobs end one after the other, so that one kill finds them at different points of their suspends.
    for (round, after) in [0u64, 40, 90].into_iter().enumerate() {
        let mut ids = Vec::new();
        for number in 0..JOBS {
            let wait = format!(
                "for i in $(seq 1 20); do echo line $i; done; while [ ! -e /tmp/go{round} ]; do sleep 0.01; done; sleep 0.0{}",
                number * 15 % 100
            );
            let script = [wait.as_str(), "exit 5"];
            ids.push(
                stage.gitlab.enqueue(job(&format!("{round}-{number}")).suspend_on_failure().script(script)),
            );
        }
        for id in &ids {
            stage.until_log(*id, "line 20").await?;
        }
        on(&stage.hosts[0], &format!("touch /tmp/go{round}")).await?;
        if round > 0 {
            until("the first environment appears", SOON, async || {
                Ok((!stage.list("suspendedenvironments").await?.is_empty()).then_some(()))
            })
            .await?;
        }
        tokio::time::sleep(Duration::from_millis(after)).await;
        stage.crash_operator().await?;
        for id in &ids {
            slept_once(&stage, &stage.until_over(*id).await?).await?;
        }
        let environments = stage.list("suspendedenvironments").await?;
        ensure!(environments.len() == JOBS, "{} environments of {JOBS} jobs", environments.len());
        stage.kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"]).await?;
    }
    traces::end(stage).await
}

#[tokio::test]
async fn killed_while_the_report_is_under_way_it_is_told_again_with_the_key() -> Result<()> {
    let stage = Stage::start("report", Setting::default()).await?;
    // Once it never arrives, and once its answer is lost, so that GitLab has it and the operator does not know.
    for action in [Action::HalfOpen, Action::CutAfterHandling] {
        let arrives = matches!(action, Action::CutAfterHandling);
        let fault = stage.gitlab.inject(Fault::on(Target::FinalUpdate, action).once());
        let spec = job("sleep").suspend_on_failure();
        let id = stage.gitlab.enqueue(spec.script(["for i in $(seq 1 20); do echo line $i; done", "exit 5"]));
        until("the report is hit", SOON, async || Ok((stage.gitlab.fault_hits(fault) > 0).then_some(())))
            .await?;
        if arrives {
            stage.until_over(id).await?;
        }
        stage.crash_operator().await?;
        let over = stage.until_over(id).await?;
        slept_once(&stage, &over).await?;
        let key = key_of(&over)?;
        let woken = stage.run(job("wake").environment_key(&key).script(["true"])).await?;
        ensure!(woken.state == JobState::Success, "{}", told(&woken));
        stage.lease_over(woken.id).await?;
        super::until_gone(&stage, &key).await?;
    }
    traces::end(stage).await
}
