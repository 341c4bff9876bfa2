//! A pool's modes, its limit, and its deletion.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::testbed::gitlab::{JobId, JobSpec, JobState};
use crate::testbed::stage::{POOL, SOON, Setting, Stage, condition, message};
use crate::testbed::wait::until;

/// Waits on the host until it is told to go on.
const HOLD: &str = "while [ ! -e /tmp/go ]; do sleep 0.05; done";

async fn set_mode(stage: &Stage, mode: &str) -> Result<()> {
    let patch = json!({ "spec": { "mode": mode } }).to_string();
    stage.kubectl(&["patch", "runnerpool", POOL, "--type=merge", "-p", &patch]).await?;
    Ok(())
}

/// A job that waits in its script.
async fn held_job(stage: &Stage, name: &str) -> Result<JobId> {
    let id = stage.gitlab.enqueue(JobSpec::new(name).script(["echo begun", HOLD]));
    stage.until_log(id, "begun").await?;
    Ok(id)
}

async fn go(stage: &Stage) -> Result<()> {
    stage.touch("/tmp/go").await
}

/// A job that leaves a sleeping environment; answers the environment's object.
async fn sleeper(stage: &Stage) -> Result<Value> {
    let job = JobSpec::new("sleeper").suspendable().suspend_on_success().script(["echo kept > marker"]);
    let over = stage.run(job).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    stage.asleep(&over.environment_key.unwrap_or_default()).await
}

#[tokio::test]
async fn a_paused_pool_takes_nothing_and_finishes_what_it_has() -> Result<()> {
    let stage = Stage::start("paused", Setting::pool(json!({}))).await?;
    let running = held_job(&stage, "running").await?;
    set_mode(&stage, "Paused").await?;
    stage.until_finding("Polling", "False", "Paused").await?;
    let waiting = stage.gitlab.enqueue(JobSpec::new("waiting").script(["echo taken"]));
    go(&stage).await?;
    let over = stage.until_over(running).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    stage.lease_over(running).await?;
    let pool = stage
        .until_object("runnerpool", POOL, "no job is open", |pool| pool["status"]["jobs"] == "0/10")
        .await?;
    ensure!(condition(&pool, "Ready").0 == "True", "{pool:#}");
    ensure!(stage.gitlab.job(waiting).is_some_and(|job| job.state == JobState::Pending));

    set_mode(&stage, "Active").await?;
    stage.until_over(waiting).await?;
    stage.end().await
}

#[tokio::test]
async fn a_draining_pool_says_when_nothing_is_open_and_keeps_what_sleeps() -> Result<()> {
    let setting = Setting::pool(json!({ "capacityPerInstance": 2, "isolation": "Shared" }));
    let stage = Stage::start("draining", setting).await?;
    sleeper(&stage).await?;
    let running = held_job(&stage, "running").await?;
    set_mode(&stage, "Draining").await?;
    stage.until_finding("Drained", "False", "JobsOpen").await?;
    stage.until_finding("Polling", "False", "Draining").await?;
    go(&stage).await?;
    stage.until_over(running).await?;
    stage.until_finding("Drained", "True", "Drained").await?;
    let asked = stage.job_requests();
    let waiting = stage.gitlab.enqueue(JobSpec::new("waiting").script(["true"]));
    // Something that takes a while and that the operator does: meanwhile it asks for nothing.
    stage.hosts[0].reboot().await?;
    stage.until_host("alder", "Unreachable").await?;
    stage.until_host("alder", "Ready").await?;
    ensure!(stage.job_requests() == asked, "a drained pool asked for a job");
    ensure!(stage.gitlab.job(waiting).is_some_and(|job| job.state == JobState::Pending));
    ensure!(stage.list("suspendedenvironments").await?.len() == 1);
    set_mode(&stage, "Active").await?;
    stage.until_finding("Drained", "False", "NotDraining").await?;
    stage.until_over(waiting).await?;
    stage.end().await
}

#[tokio::test]
async fn no_more_jobs_are_taken_than_the_concurrency_allows() -> Result<()> {
    let pool = json!({ "capacityPerInstance": 2, "isolation": "Shared", "concurrency": 2 });
    let stage = Stage::start("limit", Setting::pool(pool).hosts(&["alder", "birch"])).await?;
    let first = held_job(&stage, "first").await?;
    let second = held_job(&stage, "second").await?;
    let third = stage.gitlab.enqueue(JobSpec::new("third").script(["echo third"]));
    stage.until_finding("Polling", "False", "AtConcurrency").await?;
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(pool["status"]["jobs"] == "2/2" && pool["status"]["slots"] == "2/4", "{pool:#}");
    ensure!(stage.gitlab.job(third).is_some_and(|job| job.picked_up_at.is_none()));
    go(&stage).await?;
    for id in [first, second, third] {
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success, "{}", over.log_text());
    }
    let (first, second) = (stage.gitlab.job(first), stage.gitlab.job(second));
    let first_end = first.and_then(|job| job.finished_at).min(second.and_then(|job| job.finished_at));
    let begun = stage.gitlab.job(third).and_then(|job| job.picked_up_at);
    ensure!(begun >= first_end, "three jobs were open at once: {begun:?} {first_end:?}");
    stage.end().await
}

#[tokio::test]
async fn a_deleted_pool_waits_for_its_environments() -> Result<()> {
    let stage = Stage::start("block", Setting::pool(json!({}))).await?;
    let environment = sleeper(&stage).await?;
    let name = environment["metadata"]["name"].as_str().unwrap_or_default();
    stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
    stage.until_finding("Polling", "False", "Deleting").await?;
    let pool = stage
        .until_object("runnerpool", POOL, "it says what it waits for", |pool| {
            message(pool, "Ready").contains("waiting for 1 environments")
        })
        .await?;
    ensure!(condition(&pool, "Ready") == ("Unknown".into(), "Deleting".into()), "{pool:#}");
    ensure!(message(&pool, "Ready").contains("spec.deletionPolicy"), "{pool:#}");
    ensure!(stage.list("suspendedenvironments").await?.len() == 1);

    stage.kubectl(&["delete", "suspendedenvironment", name, "--timeout=60s"]).await?;
    gone(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn a_deleted_pool_releases_its_environments_when_told_to() -> Result<()> {
    let stage = Stage::start("release", Setting::pool(json!({ "deletionPolicy": "Release" }))).await?;
    let environment = sleeper(&stage).await?;
    let workspace = environment["spec"]["workspacePath"].as_str().unwrap_or_default().to_owned();
    stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
    gone(&stage).await?;
    stage.until_none("suspendedenvironments").await?;
    let left = stage.hosts[0].ssh(&format!("test -e {workspace}/marker")).await?;
    ensure!(!left.status.success(), "the workspace is still there");
    stage.end().await
}

#[tokio::test]
async fn a_deleted_pool_lets_its_running_job_end() -> Result<()> {
    let stage = Stage::start("lastjob", Setting::pool(json!({}))).await?;
    let running = held_job(&stage, "running").await?;
    stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
    stage
        .until_object("runnerpool", POOL, "it waits for the job", |pool| {
            message(pool, "Ready").contains("waiting for 1 jobs")
        })
        .await?;
    go(&stage).await?;
    let over = stage.until_over(running).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    gone(&stage).await?;
    stage.end().await
}

/// Waits until nothing of the pool is left, in the cluster or on its hosts.
async fn gone(stage: &Stage) -> Result<()> {
    stage.until_none("runnerpools").await?;
    stage.until_none("jobleases").await?;
    until("the pool's Lease is gone", SOON, async || {
        let leases = stage.list("leases").await?;
        let is_pools = |lease: &Value| lease["metadata"]["name"] == format!("dormouse-pool-{POOL}");
        Ok((!leases.iter().any(is_pools)).then_some(()))
    })
    .await?;
    for host in &stage.hosts {
        let claim = host.ssh("ls /var/lib/dormouse/claim.json ~/.dormouse/claim.json 2>/dev/null").await?;
        ensure!(claim.stdout.is_empty(), "{} is still claimed", host.name());
    }
    Ok(())
}
