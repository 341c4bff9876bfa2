//! What deleting a pool does at GitLab.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{SECRET, made, registration, start, the_runner};
use crate::testbed::gitlab::{JobSpec, JobState, Scope};
use crate::testbed::stage::{POOL, Setting, Stage, merge, message};

async fn delete(stage: &Stage) -> Result<()> {
    stage.kubectl(&["delete", "runnerpool", POOL, "--timeout=60s"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_pool_takes_the_runner_it_has_made_with_it() -> Result<()> {
    let stage = start("takes", Setting::pool(registration(&json!({}))), Scope::CreateRunner).await?;
    the_runner(&stage)?;
    stage.kubectl(&["delete", "secret", "access-token"]).await?;
    delete(&stage).await?;
    ensure!(made(&stage).is_empty(), "{:?}", made(&stage));
    let left = stage.list("secrets").await?;
    ensure!(left.iter().all(|secret| secret["metadata"]["name"] != SECRET), "the Secret is still there");
    stage.end().await
}

#[tokio::test]
async fn a_pool_that_keeps_its_runner_is_the_same_one_when_it_is_installed_again() -> Result<()> {
    let mut pool = registration(&json!({}));
    merge(&mut pool, json!({ "gitlab": { "onDeletion": "Keep" } }));
    let stage = start("keeps", Setting::pool(pool.clone()), Scope::ManageRunner).await?;
    let runner = the_runner(&stage)?;
    delete(&stage).await?;
    ensure!(the_runner(&stage)?.id == runner.id);
    stage.kubectl(&["delete", "secret", "access-token"]).await?;
    stage.apply_pool(pool).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.until_hosts("Ready").await?;
    let job = stage.run(JobSpec::new("again").script(["true"])).await?;
    ensure!(job.state == JobState::Success && job.runner == Some(runner.id), "{}", job.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_pool_can_leave_the_runner_and_take_only_its_manager_away() -> Result<()> {
    // Of a token that was given too.
    let pool = json!({ "gitlab": { "onDeletion": "RemoveManager" } });
    let stage = Stage::start("manager", Setting::pool(pool)).await?;
    let machines = |stage: &Stage| -> Vec<String> {
        let own = stage.gitlab.runners().into_iter().find(|runner| runner.id == stage.runner.id);
        own.map(|runner| runner.machines).unwrap_or_default()
    };
    ensure!(machines(&stage).len() == 1);
    delete(&stage).await?;
    ensure!(machines(&stage).is_empty(), "{:?}", machines(&stage));
    ensure!(stage.gitlab.runners().iter().any(|runner| runner.id == stage.runner.id), "the runner is gone");
    stage.end().await
}

#[tokio::test]
async fn a_gitlab_that_is_away_holds_a_deletion_up_and_the_way_out_is_said() -> Result<()> {
    let stage = start("awaydel", Setting::pool(registration(&json!({}))), Scope::CreateRunner).await?;
    stage.gitlab.down().await?;
    stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
    let pool = stage
        .until_object("runnerpool", POOL, "it says what it waits for", |pool| {
            message(pool, "Ready").contains("spec.gitlab.onDeletion")
        })
        .await?;
    ensure!(message(&pool, "Ready").contains("cannot reach GitLab"), "{pool:#}");
    let keep = json!({ "spec": { "gitlab": { "onDeletion": "Keep" } } }).to_string();
    stage.kubectl(&["patch", "runnerpool", POOL, "--type=merge", "-p", &keep]).await?;
    stage.until_none("runnerpools").await?;
    ensure!(made(&stage).len() == 1);
    stage.end().await
}
