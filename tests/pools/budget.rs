//! What a pool costs the API server.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::testbed::control_plane::audit::Write;
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;

/// Writes for one plain job, and for one that is suspended.
const PLAIN: usize = 8;
const SUSPENDED: usize = 14;

/// Waits until GitLab has been asked for a job that many more times: the pool is at rest meanwhile.
async fn at_rest(stage: &Stage, requests: usize) -> Result<()> {
    let before = stage.job_requests();
    until("the pool is at rest", SOON, async || Ok((stage.job_requests() >= before + requests).then_some(())))
        .await
}

/// The writes that a job has cost, once all of them are made.
async fn cost(stage: &Stage, job: JobSpec) -> Result<Vec<Write>> {
    let before = stage.writes()?.len();
    let over = stage.run(job).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    stage.lease_over(over.id).await?;
    stage.until_object("runnerpool", POOL, "no job is open", |pool| pool["status"]["jobs"] == "0/10").await?;
    at_rest(stage, 1).await?;
    Ok(stage.writes()?.split_off(before))
}

fn list(writes: &[Write]) -> String {
    let line = |write: &Write| format!("{} {} {} {}", write.verb, write.resource, write.name, write.code);
    writes.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_job_costs_few_writes_and_an_idle_pool_none() -> Result<()> {
    let stage =
        Stage::start("budget", Setting::pool(json!({ "capacityPerInstance": 2, "isolation": "Shared" })))
            .await?;
    // The first job also puts the pool's own standing right.
    stage.run(JobSpec::new("first").script(["true"])).await?;
    at_rest(&stage, 2).await?;

    let plain = cost(&stage, JobSpec::new("plain").script(["echo plain"])).await?;
    println!("a plain job costs {} writes", plain.len());
    ensure!(plain.len() <= PLAIN, "{} writes:\n{}", plain.len(), list(&plain));

    let job = JobSpec::new("sleeper").suspendable().suspend_on_success().script(["echo asleep"]);
    let suspended = cost(&stage, job).await?;
    println!("a job with a suspend costs {} writes", suspended.len());
    ensure!(suspended.len() <= SUSPENDED, "{} writes:\n{}", suspended.len(), list(&suspended));

    // Three held requests last for about ten seconds, with an environment asleep.
    let before = stage.writes()?.len();
    at_rest(&stage, 3).await?;
    let idle = stage.writes()?.split_off(before);
    ensure!(idle.is_empty(), "an idle pool wrote:\n{}", list(&idle));
    stage.end().await
}
