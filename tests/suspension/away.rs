//! A resume whose host does not answer: it waits, and fails classified when that takes too long.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{job, object_of, put_to_sleep};
use crate::testbed::gitlab::JobState;
use crate::testbed::hosts::Line;
use crate::testbed::stage::{Setting, Stage, condition};
use crate::traces::{self, told};

const UNAVAILABLE: &str = "runtime_environment_unavailable";

fn two_hosts(acquire: &str) -> Setting {
    let pool = json!({ "instanceAcquireTimeout": acquire, "suspension": { "slotFloor": 0 } });
    Setting { hosts: vec!["alder", "birch"], pool, ..Setting::default() }
}

/// Puts an environment to sleep on the first host and takes that host's network away.
async fn asleep_on_a_host_that_is_away(stage: &Stage) -> Result<String> {
    let (_, key) = put_to_sleep(stage, job("first").script(["echo kept > marker"])).await?;
    stage.hosts[0].cut(Line::Refused).await?;
    stage
        .until_object("senv", &object_of(&key)?, "its host is away", |environment| {
            condition(environment, "Ready") == ("False".to_owned(), "HostUnreachable".to_owned())
                && environment["status"]["phase"] == "Suspended"
        })
        .await?;
    Ok(key)
}

#[tokio::test]
async fn a_resume_waits_for_its_host_and_runs_when_that_is_back() -> Result<()> {
    let stage = Stage::start("away", two_hosts("15m")).await?;
    let key = asleep_on_a_host_that_is_away(&stage).await?;
    let id = stage.gitlab.enqueue(job("wake").environment_key(&key).script(["cat marker"]));
    stage
        .until_object("joblease", &format!("pool-{id}"), "it is accepted", |lease| {
            lease["spec"]["resumeFrom"] == key.as_str() && lease["status"]["instance"].is_null()
        })
        .await?;
    // Meanwhile other jobs run on the host that is there.
    let other = stage.run(job("other").script(["hostname"])).await?;
    ensure!(other.state == JobState::Success && other.log_contains("birch"), "{}", told(&other));
    stage.hosts[0].heal().await?;
    let woken = stage.until_over(id).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    traces::end(stage).await
}

#[tokio::test]
async fn a_resume_whose_host_stays_away_fails_with_the_reason_the_server_knows() -> Result<()> {
    let stage = Stage::start("stays-away", two_hosts("3s")).await?;
    let key = asleep_on_a_host_that_is_away(&stage).await?;
    for (listed, reason) in [(true, UNAVAILABLE), (false, "runner_system_failure")] {
        let spec = job("wake").environment_key(&key).script(["echo never"]);
        let reasons =
            ["script_failure", "runner_system_failure"].into_iter().chain(listed.then_some(UNAVAILABLE));
        let failed = stage.run(spec.failure_reasons(reasons)).await?;
        ensure!(failed.failure_reason.as_deref() == Some(reason), "{}", told(&failed));
        ensure!(failed.log_contains("no slot within 3 s (spec.instanceAcquireTimeout)"), "{}", told(&failed));
        ensure!(failed.log_contains("instance alder"), "{}", told(&failed));
        let lease = stage.lease_over(failed.id).await?;
        ensure!(lease["status"]["failureReason"] == UNAVAILABLE, "{lease:#}");
    }
    stage.hosts[0].heal().await?;
    stage.until_hosts("Ready").await?;
    stage.asleep(&key).await?;
    let woken = stage.run(job("wake").environment_key(&key).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    traces::end(stage).await
}
