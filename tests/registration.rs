//! Pools that make their runner themselves: it is made once, kept, changed, given new tokens, and removed as asked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use regex::Regex;
use serde_json::{Value, json};

use crate::testbed::gitlab::{RunnerView, Scope};
use crate::testbed::stage::{POOL, Setting, Stage};

mod life;
mod removal;
mod rotation;

/// Longer than the minute after which a pool reads Secrets, and looks at its runner, by itself.
pub const BY_ITSELF: Duration = Duration::from_secs(150);

/// The Secret with the runner's token.
pub const SECRET: &str = "pool-gitlab-runner";

/// Part of a pool's spec that makes its runner, with these changes of the registration.
pub fn registration(changes: &Value) -> Value {
    let mut registration = json!({
        "accessTokenSecretRef": { "name": "access-token", "key": "token" },
        "type": "Instance",
        "tags": ["linux", "dormouse"],
    });
    crate::testbed::stage::merge(&mut registration, changes.clone());
    json!({ "gitlab": { "tokenSecretRef": null, "registration": registration } })
}

/// Puts an access token that may do this where pools look for it.
pub async fn give_access(stage: &Stage, scope: Scope) -> Result<()> {
    let token = format!("--from-literal=token={}", stage.gitlab.access_token(scope));
    stage.kubectl(&["delete", "secret", "access-token", "--ignore-not-found"]).await?;
    stage.kubectl(&["create", "secret", "generic", "access-token", &token]).await?;
    Ok(())
}

/// A stage whose pool makes its runner, Ready.
pub async fn start(name: &str, setting: Setting, scope: Scope) -> Result<Stage> {
    let mut stage = Stage::without_operator(name, &setting).await?;
    give_access(&stage, scope).await?;
    stage.raise(setting.pool).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.until_hosts("Ready").await?;
    Ok(stage)
}

/// The runners that were made with an access token.
pub fn made(stage: &Stage) -> Vec<RunnerView> {
    let mut runners = stage.gitlab.runners();
    runners.retain(|runner| runner.settings.get("maintenance_note").is_some());
    runners
}

/// The one that was.
pub fn the_runner(stage: &Stage) -> Result<RunnerView> {
    let mut runners = made(stage);
    ensure!(runners.len() == 1, "{} runners: {runners:#?}", runners.len());
    runners.pop().context("no runner")
}

/// Fails if a secret stands where people or programs look.
pub async fn tells_no_secret(stage: &Stage) -> Result<()> {
    // It may be gone by now.
    let pool = serde_json::to_string(&stage.list("runnerpools").await?)?;
    let events = serde_json::to_string(&stage.list("events").await?)?;
    let log = stage.operator()?.log()?;
    let metrics = stage.operator()?.metrics().await?;
    // How tokens begin may be said, as it is of one that is refused.
    let tokens = Regex::new(r"gl(rt|pat)-\w")?;
    for (place, text) in [("the pool", &pool), ("Events", &events), ("the log", &log), ("metrics", &metrics)]
    {
        let token = tokens.find(text);
        ensure!(token.is_none(), "a token is in {place}: {token:?}");
    }
    Ok(())
}
