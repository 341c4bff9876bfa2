//! Environments of a pool in the cloud stand-in: put to sleep, sent to a tier.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::super::gitlab::JobSpec;
use super::super::stage::{POOL, Stage};
use super::load;

/// One slot an instance, each with a volume, and an instance that is there stays for as long as a measurement may take.
pub fn pool_that_stays() -> Value {
    json!({ "workspaceVolume": { "sizeGiB": 2 }, "policies": [{ "idleCount": 0, "idleTime": "1h" }] })
}

/// Runs a trivial job that is put to sleep; its environment's key.
pub async fn put_to_sleep(stage: &Stage, name: &str) -> Result<String> {
    sleeping(stage, load::trivial(name)).await
}

/// Runs a job that is put to sleep; its environment's key.
pub async fn sleeping(stage: &Stage, job: JobSpec) -> Result<String> {
    let view = load::run_alone(stage, job.suspendable().suspend_on_success()).await?;
    let key = view.environment_key.context("the environment was not suspended")?;
    stage.asleep(&key).await?;
    Ok(key)
}

/// Asks for a tier, also for after later sleeps, and waits until the environment rests there.
pub async fn demote(stage: &Stage, key: &str, tier: &str) -> Result<()> {
    let name = object_of(key)?;
    let wish =
        json!({ "spec": { "desiredTier": { "tier": tier, "until": "2099-01-01T00:00:00Z" } } }).to_string();
    stage.kubectl(&["patch", "suspendedenvironment", &name, "--type=merge", "-p", &wish]).await?;
    until_tier(stage, key, tier).await
}

/// Waits until an environment rests at a tier, and owns nothing of another one.
pub async fn until_tier(stage: &Stage, key: &str, tier: &str) -> Result<()> {
    let rests = |found: &Value| {
        let status = |field: &str| found.pointer(&format!("/status/{field}"));
        let is = |field: &str, wanted: &str| status(field).is_some_and(|known| known == wanted);
        let is_clean = tier != "Snapshotted" || status("volume").is_none_or(Value::is_null);
        is("tier", tier)
            && is("phase", "Suspended")
            && status("moving").is_none_or(Value::is_null)
            && is_clean
    };
    let what = format!("it rests at tier {tier}");
    stage.until_object("suspendedenvironment", &object_of(key)?, &what, rests).await.map(drop)
}

fn object_of(key: &str) -> Result<String> {
    let id = key.rsplit_once('=').context("the key has no environment id")?.1;
    Ok(format!("{POOL}-{id}"))
}
