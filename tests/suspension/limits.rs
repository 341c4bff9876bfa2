//! A suspend that the pool's limits refuse: a passed job fails by it, a failed one keeps its reason.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{job, put_to_sleep};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, on, told};

const ANNOUNCED: &str = "this job asks for its environment to be suspended, which would be refused now";

fn setting(suspension: serde_json::Value) -> Setting {
    let pool = json!({ "capacityPerInstance": 3, "isolation": "Shared", "suspension": suspension });
    Setting { pool, ..Setting::default() }
}

#[tokio::test]
async fn a_suspend_above_the_limit_fails_a_passed_job_and_leaves_a_failed_one_its_reason() -> Result<()> {
    let stage = Stage::start("limit", setting(json!({ "limits": { "maxEnvironments": 1 } }))).await?;
    put_to_sleep(&stage, job("first").script(["true"])).await?;

    let passed = stage.run(job("passed").suspend_on_success().script(["echo its script ran"])).await?;
    ensure!(passed.state == JobState::Failed && passed.environment_key.is_none(), "{}", told(&passed));
    ensure!(passed.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&passed));
    let log = passed.log_text();
    let announced = log.find(ANNOUNCED);
    ensure!(announced.is_some() && announced < log.find("its script ran"), "{log}");
    for text in
        ["could not be suspended: the pool keeps 1 of at most 1", "maxEnvironments", "(system failure)"]
    {
        ensure!(log.contains(text), "{text}: {log}");
    }
    let lease = stage.lease_over(passed.id).await?;
    ensure!(lease["status"]["failureReason"] == "runner_system_failure", "{lease:#}");

    let failed = stage.run(job("failed").suspend_on_failure().script(["exit 4"])).await?;
    ensure!((failed.state, failed.exit_code) == (JobState::Failed, Some(4)), "{}", told(&failed));
    ensure!(failed.failure_reason.as_deref() == Some("script_failure"), "{}", told(&failed));
    let log = failed.log_text();
    ensure!(
        log.contains(ANNOUNCED) && log.contains("WARNING: The job environment could not be suspended"),
        "{log}"
    );
    ensure!(log.contains("Job failed: exit code 4"), "{log}");

    // No trigger of this end: nothing was asked for that could be refused.
    let other = stage.run(job("other end").suspend_on_failure().script(["true"])).await?;
    ensure!(other.state == JobState::Success, "{}", told(&other));
    ensure!(stage.list("suspendedenvironments").await?.len() == 1);
    traces::until_on(&stage.hosts[0], "ls /var/lib/dormouse/environments | wc -l", "1").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_project_has_a_limit_of_its_own() -> Result<()> {
    let stage = Stage::start("project-limit", setting(json!({ "limits": { "maxPerProject": 1 } }))).await?;
    put_to_sleep(&stage, job("first").project(7, "group/seven").script(["true"])).await?;
    let second = job("second").project(7, "group/seven").suspend_on_success().script(["true"]);
    let second = stage.run(second).await?;
    ensure!(second.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&second));
    ensure!(second.log_contains("the project keeps 1 of at most 1"), "{}", told(&second));
    put_to_sleep(&stage, job("another").project(8, "group/eight").script(["true"])).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn the_slot_floor_stays_free_for_plain_jobs() -> Result<()> {
    let pool = json!({ "capacityPerInstance": 2, "isolation": "Shared" });
    let stage = Stage::start("floor", Setting { pool, ..Setting::default() }).await?;
    put_to_sleep(&stage, job("first").script(["true"])).await?;
    let second = stage.run(job("second").suspend_on_success().script(["true"])).await?;
    ensure!(second.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&second));
    ensure!(second.log_contains("spec.suspension.slotFloor"), "{}", told(&second));
    let plain = stage.run(job("plain").script(["true"])).await?;
    ensure!(plain.state == JobState::Success, "{}", told(&plain));
    ensure!(on(&stage.hosts[0], "ls /var/lib/dormouse/environments | wc -l").await? != "0");
    traces::end(stage).await
}
