//! Deaths while a pool is taken up, tidied and deleted.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Death, at_each};
use crate::suspension::{job, put_to_sleep};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{POOL, Setting, Stage};
use crate::traces::{self, told, until_on};

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&TAKEN_UP, &COLLECTED, &DELETED];

const TAKEN_UP: [&str; 4] =
    ["pool-finalizer-added", "host-greeted", "host-key-recorded", "pool-status-written"];
const COLLECTED: [&str; 2] = ["lease-deleted", "lease-finalizer-removed"];
const DELETED: [&str; 4] =
    ["pool-environment-released", "pool-lease-deleted", "host-unclaimed", "pool-finalizer-removed"];

const CLAIM: &str = "ls /var/lib/dormouse/claim.json 2>/dev/null || echo none";

async fn works(stage: &Stage, death: &Death) -> Result<()> {
    let done = stage.run(JobSpec::new(death.name()).script(["true"])).await?;
    ensure!(done.state == JobState::Success, "{}", told(&done));
    stage.lease_over(done.id).await?;
    Ok(())
}

#[tokio::test]
async fn a_pool_that_was_half_taken_up_works() -> Result<()> {
    let stage = Stage::start("crash-pool", Setting::pool(json!({}))).await?;
    at_each(&stage, &TAKEN_UP, async |stage, death| {
        stage.kubectl(&["delete", "runnerpool", POOL, "--timeout=60s"]).await?;
        death.arm(stage).await?;
        stage.apply_pool(json!({})).await?;
        death.fall(stage).await?;
        stage.until_condition("runnerpool", POOL, "Ready").await?;
        let pool = stage.until_hosts("Ready").await?;
        ensure!(pool["status"]["hosts"][0]["recordedHostKey"].is_string(), "{pool:#}");
        works(stage, death).await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_finished_lease_goes_whole() -> Result<()> {
    let stage = Stage::start("crash-collect", Setting::pool(json!({}))).await?;
    at_each(&stage, &COLLECTED, async |stage, death| {
        works(stage, death).await?;
        stage.operator()?.kill()?;
        // Made so old that it is of no use to anybody any more.
        for lease in stage.list("jobleases").await? {
            let mut conditions = lease["status"]["conditions"].clone();
            for condition in conditions.as_array_mut().into_iter().flatten() {
                condition["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
            }
            let name = traces::text(&lease["metadata"]["name"]);
            let old = json!({ "status": { "conditions": conditions } }).to_string();
            stage
                .kubectl(&["patch", "joblease", &name, "--subresource=status", "--type=merge", "-p", &old])
                .await?;
        }
        death.arm(stage).await?;
        death.fall(stage).await?;
        stage.until_none("jobleases").await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_deleted_pool_leaves_nothing() -> Result<()> {
    let stage = Stage::start("crash-delete", Setting::pool(json!({ "deletionPolicy": "Release" }))).await?;
    at_each(&stage, &DELETED, async |stage, death| {
        put_to_sleep(stage, job(&death.name()).script(["true"])).await?;
        death.arm(stage).await?;
        stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
        death.fall(stage).await?;
        stage.until_none("runnerpools").await?;
        for kind in ["suspendedenvironments", "jobleases"] {
            stage.until_none(kind).await?;
        }
        until_on(&stage.hosts[0], CLAIM, "none").await?;
        stage.apply_pool(json!({ "deletionPolicy": "Release" })).await?;
        stage.until_condition("runnerpool", POOL, "Ready").await?;
        stage.until_hosts("Ready").await?;
        Ok(())
    })
    .await?;
    traces::end(stage).await
}
