//! Deaths while a pool's runner is made, changed, given a new token, and removed.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Death, at_each};
use crate::registration::{SECRET, made, registration, the_runner};
use crate::testbed::control_plane::reader::secret_value;
use crate::testbed::gitlab::{Action, Fault, JobSpec, JobState, Options, RunnerId, Scope, Target};
use crate::testbed::stage::{POOL, SOON, Setting, Stage, merge};
use crate::testbed::wait::until;
use crate::traces::told;

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] =
    &[&MADE, &LEFT, &CHANGED, &ROTATED, &RECOVERED, &BEGUN_ANEW, &REMOVED, &WITHDRAWN];

const MADE: [&str; 3] = ["registration-intended", "runner-created", "runner-token-saved"];
const LEFT: [&str; 1] = ["unused-runner-removed"];
const CHANGED: [&str; 2] = ["runner-changed", "runner-change-noted"];
const ROTATED: [&str; 3] = ["rotation-intended", "token-reset", "new-token-saved"];
const RECOVERED: [&str; 1] = ["token-reset-by-id"];
const BEGUN_ANEW: [&str; 1] = ["registration-begun-anew"];
const REMOVED: [&str; 2] = ["runner-removed", "runner-secret-deleted"];
const WITHDRAWN: [&str; 1] = ["runner-manager-removed"];

async fn works(stage: &Stage, death: &Death) -> Result<()> {
    let done = stage.run(JobSpec::new(death.name()).script(["true"])).await?;
    ensure!(done.state == JobState::Success, "{}", told(&done));
    stage.lease_over(done.id).await?;
    Ok(())
}

async fn delete(stage: &Stage) -> Result<()> {
    stage.kubectl(&["delete", "runnerpool", POOL, "--timeout=60s"]).await?;
    ensure!(made(stage).is_empty(), "a runner is left: {:?}", made(stage));
    Ok(())
}

async fn ready(stage: &Stage) -> Result<()> {
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.until_hosts("Ready").await?;
    Ok(())
}

/// Waits until the Secret has the token that GitLab knows, and GitLab takes it.
async fn until_the_token_is_kept(stage: &Stage) -> Result<()> {
    until("the Secret has a token that GitLab knows", SOON, async || {
        let secret = stage.get("secret", SECRET).await?;
        let kept = secret_value(&secret, "token")?;
        let is_settled = secret["metadata"]["annotations"]["dormouse.dev/token-rotation"].is_null();
        let known = made(stage).iter().any(|runner| runner.token.as_bytes() == kept);
        Ok((is_settled && known).then_some(()))
    })
    .await
}

async fn start(name: &str, scope: Scope, life: Option<Duration>) -> Result<Stage> {
    let usual = Setting::pool(registration(&json!({})));
    let gitlab = Options { token_life: life, ..usual.gitlab.clone() };
    crate::registration::start(name, Setting { gitlab, ..usual }, scope).await
}

/// The pool is applied, dies on the way, and has one runner in the end.
async fn is_made_once(stage: &Stage, death: &Death) -> Result<()> {
    death.arm(stage).await?;
    stage.apply_pool(registration(&json!({}))).await?;
    death.fall(stage).await?;
    ready(stage).await?;
    the_runner(stage)?;
    works(stage, death).await
}

/// It dies while the token is replaced, and the runner is the same with another token in the end.
async fn keeps_its_runner(stage: &Stage, death: &Death, id: RunnerId) -> Result<()> {
    death.arm(stage).await?;
    death.fall(stage).await?;
    until_the_token_is_kept(stage).await?;
    ensure!(the_runner(stage)?.id == id, "another runner was made");
    works(stage, death).await
}

/// So short that its replacement falls into a round, and does again in the next.
const SHORT: Option<Duration> = Some(Duration::from_secs(8));

#[tokio::test]
async fn a_runner_that_was_half_made_is_made_once() -> Result<()> {
    let stage = start("crash-made", Scope::ManageRunner, None).await?;
    at_each(&stage, &MADE, async |stage, death| {
        delete(stage).await?;
        is_made_once(stage, death).await
    })
    .await?;
    stage.end().await
}

#[tokio::test]
async fn a_runner_that_nobody_has_the_token_of_goes() -> Result<()> {
    let stage = start("crash-left", Scope::ManageRunner, None).await?;
    at_each(&stage, &LEFT, async |stage, death| {
        delete(stage).await?;
        stage.gitlab.inject(Fault::on(Target::CreateRunner, Action::CutAfterHandling).once());
        is_made_once(stage, death).await
    })
    .await?;
    stage.end().await
}

#[tokio::test]
async fn a_change_of_a_runner_is_applied() -> Result<()> {
    let stage = start("crash-changed", Scope::ManageRunner, None).await?;
    at_each(&stage, &CHANGED, async |stage, death| {
        death.arm(stage).await?;
        let tags = json!({ "tags": [death.name()] });
        stage.apply_pool(registration(&tags)).await?;
        death.fall(stage).await?;
        until("the runner is changed, and that is noted", SOON, async || {
            let runner = the_runner(stage)?;
            let pool = stage.get("runnerpool", POOL).await?;
            Ok((runner.tags == [death.name()] && pool["status"]["runner"]["tags"] == tags["tags"])
                .then_some(()))
        })
        .await?;
        works(stage, death).await
    })
    .await?;
    stage.end().await
}

#[tokio::test]
async fn a_token_that_was_half_replaced_is_replaced() -> Result<()> {
    let stage = start("crash-rotated", Scope::ManageRunner, SHORT).await?;
    let id = the_runner(&stage)?.id;
    at_each(&stage, &ROTATED, async |stage, death| keeps_its_runner(stage, death, id).await).await?;
    stage.end().await
}

#[tokio::test]
async fn a_lost_token_is_brought_back() -> Result<()> {
    let stage = start("crash-recover", Scope::ManageRunner, SHORT).await?;
    let id = the_runner(&stage)?.id;
    at_each(&stage, &RECOVERED, async |stage, death| {
        stage.gitlab.inject(Fault::on(Target::ResetToken, Action::CutAfterHandling).once());
        keeps_its_runner(stage, death, id).await
    })
    .await?;
    stage.end().await
}

#[tokio::test]
async fn a_runner_whose_token_cannot_be_brought_back_is_made_anew() -> Result<()> {
    let stage = start("crash-anew", Scope::CreateRunner, SHORT).await?;
    at_each(&stage, &BEGUN_ANEW, async |stage, death| {
        let before = made(stage).len();
        stage.gitlab.inject(Fault::on(Target::ResetToken, Action::CutAfterHandling).once());
        death.arm(stage).await?;
        death.fall(stage).await?;
        until("there is one more runner", SOON, async || Ok((made(stage).len() > before).then_some(())))
            .await?;
        until_the_token_is_kept(stage).await?;
        works(stage, death).await
    })
    .await?;
    stage.end().await
}

#[tokio::test]
async fn a_deleted_pool_takes_its_runner_with_it() -> Result<()> {
    let stage = start("crash-removed", Scope::ManageRunner, None).await?;
    at_each(&stage, &REMOVED, async |stage, death| {
        death.arm(stage).await?;
        stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
        death.fall(stage).await?;
        stage.until_none("runnerpools").await?;
        ensure!(made(stage).is_empty(), "{:?}", made(stage));
        let is_ours = |secret: &Value| secret["metadata"]["name"] == SECRET;
        ensure!(!stage.list("secrets").await?.iter().any(is_ours), "the Secret is still there");
        stage.apply_pool(registration(&json!({}))).await?;
        ready(stage).await
    })
    .await?;
    stage.end().await
}

#[tokio::test]
async fn a_deleted_pool_takes_its_manager_away_and_leaves_the_runner() -> Result<()> {
    let mut pool = registration(&json!({}));
    merge(&mut pool, json!({ "gitlab": { "onDeletion": "RemoveManager" } }));
    let stage =
        crate::registration::start("crash-manager", Setting::pool(pool.clone()), Scope::ManageRunner).await?;
    let id = the_runner(&stage)?.id;
    at_each(&stage, &WITHDRAWN, async |stage, death| {
        death.arm(stage).await?;
        stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
        death.fall(stage).await?;
        stage.until_none("runnerpools").await?;
        let runner = the_runner(stage)?;
        ensure!(runner.id == id && runner.machines.is_empty(), "{runner:?}");
        stage.apply_pool(pool.clone()).await?;
        ready(stage).await
    })
    .await?;
    stage.end().await
}
