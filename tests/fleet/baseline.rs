//! A sleeping environment's workspace becomes what fresh slots of its pool begin with.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::tiers::{ask, until_tier};
use crate::suspension::{environment, job, object_of, put_to_sleep, until_gone};
use crate::testbed::gitlab::JobState;
use crate::testbed::operator;
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, told};

/// The verb, as a person runs it.
async fn promote(stage: &Stage, environment: &str) -> Result<Output> {
    promote_as(stage, environment, stage.cloud()?.cloud.environment()).await
}

/// The same with these variables, which say who runs it.
pub async fn promote_as(
    stage: &Stage,
    environment: &str,
    variables: Vec<(String, String)>,
) -> Result<Output> {
    let verb = tokio::process::Command::new(operator::binary()?)
        .args(["promote-baseline", "--namespace", &stage.namespace, environment])
        .env("KUBECONFIG", stage.cluster.control_plane.kubeconfig())
        .envs(variables)
        .output();
    tokio::time::timeout(SOON, verb).await?.context("promote-baseline did not run")
}

/// What it said.
pub fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_promoted_environment_is_what_fresh_slots_begin_with_and_outlives_its_source() -> Result<()> {
    let pool = json!({ "workspaceVolume": { "sizeGiB": 1 }, "policies": [{ "idleTime": "2s" }] });
    let stage = Stage::start("baseline", Setting::cloud(pool)).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo warmed > cache"])).await?;
    let name = object_of(&key)?;
    // Hot it has no snapshot: the refusal says what to ask for.
    let refused = promote(&stage, &name).await?;
    ensure!(!refused.status.success(), "{}", words(&refused));
    for text in ["is at tier Hot", "desiredTier", "kubectl patch suspendedenvironment"] {
        ensure!(words(&refused).contains(text), "{text}: {}", words(&refused));
    }
    ask(&stage, &key, "Snapshotted").await?;
    until_tier(&stage, &key, "Snapshotted").await?;
    let own = environment(&stage, &key).await?["status"]["snapshot"]["id"].clone();

    let done = promote(&stage, &name).await?;
    ensure!(done.status.success(), "{}", words(&done));
    let baseline =
        stage.get("runnerpool", POOL).await?["spec"]["workspaceVolume"]["baselineSnapshot"].clone();
    let baseline = baseline.as_str().context("no baseline")?.to_owned();
    ensure!(baseline.as_str() != own && words(&done).contains(&baseline), "{}", words(&done));
    // A second run finds what the first has made.
    let again = promote(&stage, &name).await?;
    ensure!(again.status.success() && words(&again).contains(&baseline), "{}", words(&again));
    let copies = stage.cloud()?.cloud.calls(0).await?;
    ensure!(copies.iter().filter(|call| call.action == "CopySnapshot").count() == 1);

    stage.kubectl(&["delete", "senv", &name, "--wait=false"]).await?;
    until_gone(&stage, &key).await?;
    until("the source is gone and the baseline is there", SOON, async || {
        let snapshots = stage.cloud()?.cloud.state().await?.snapshots;
        let is_there = |id: &Value| snapshots.iter().any(|known| *id == known.id.as_str());
        Ok((!is_there(&own) && is_there(&json!(baseline))).then_some(()))
    })
    .await?;
    let fresh = stage.run(job("second").git_strategy_none().script(["cat cache"])).await?;
    ensure!(fresh.state == JobState::Success && fresh.log_contains("warmed"), "{}", told(&fresh));
    traces::end(stage).await
}
