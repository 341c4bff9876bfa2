//! The life of a runner's token.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::json;

use super::{BY_ITSELF, SECRET, give_access, registration, start, tells_no_secret, the_runner};
use crate::testbed::control_plane::reader::secret_value;
use crate::testbed::gitlab::{Action, Fault, JobSpec, JobState, Options, Scope, Target};
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::next_job_runs;

/// A token lives for that long: three quarters of it pass in a test.
const LIFE: Duration = Duration::from_secs(16);

pub fn short_lived() -> Setting {
    let pool = registration(&json!({}));
    let gitlab = Options { token_life: Some(LIFE), ..Setting::pool(json!({})).gitlab };
    Setting { gitlab, ..Setting::pool(pool) }
}

async fn until_replaced(stage: &Stage, old: &str) -> Result<String> {
    until("the token was replaced", SOON, async || {
        let token = the_runner(stage)?.token;
        Ok((token != old).then_some(token))
    })
    .await
}

/// Whether the Secret has the token that GitLab knows.
async fn until_kept(stage: &Stage) -> Result<()> {
    until("the Secret has the new token", SOON, async || {
        let token = the_runner(stage)?.token;
        let secret = stage.get("secret", SECRET).await?;
        let kept = secret_value(&secret, "token")?;
        Ok((kept == token.as_bytes()).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_token_is_replaced_at_three_quarters_of_its_life_and_no_job_notices() -> Result<()> {
    let stage = start("rotates", short_lived(), Scope::CreateRunner).await?;
    let first = the_runner(&stage)?;
    // Without the access token: the runner's own is enough.
    stage.kubectl(&["delete", "secret", "access-token"]).await?;
    let id = stage.gitlab.enqueue(
        JobSpec::new("runs").script(["echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo ended"]),
    );
    stage.until_log(id, "begun").await?;
    until_replaced(&stage, &first.token).await?;
    let expires_at = first.expires_at.context("the token lives for ever")?;
    let (issued_at, requests) = (expires_at - LIFE, stage.gitlab.requests());
    let mut resets = requests.iter().filter(|request| request.path.ends_with("/reset_authentication_token"));
    let reset = resets.find(|request| request.at > issued_at).context("nobody asked for another token")?;
    ensure!(reset.at < expires_at, "it was replaced at {}, and had expired at {expires_at}", reset.at);
    until_kept(&stage).await?;
    let event = stage.until_event("RunnerTokenRotated").await?;
    ensure!(event["message"].as_str().unwrap_or_default().contains("expires at"), "{event:#}");
    stage.touch("/tmp/go").await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    let next = stage.run(JobSpec::new("next").script(["true"])).await?;
    ensure!(next.state == JobState::Success && next.runner == Some(first.id), "{}", next.log_text());
    stage.until_finding("Ready", "True", "Ready").await?;
    tells_no_secret(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn a_lost_answer_of_a_replacement_costs_neither_the_runner_nor_its_keys() -> Result<()> {
    let stage = start("lostreset", short_lived(), Scope::ManageRunner).await?;
    let first = the_runner(&stage)?;
    let fault = stage.gitlab.inject(Fault::on(Target::ResetToken, Action::CutAfterHandling).once());
    until("the answer was lost", SOON, async || Ok((stage.gitlab.fault_hits(fault) > 0).then_some(())))
        .await?;
    until_kept(&stage).await?;
    ensure!(the_runner(&stage)?.id == first.id, "another runner was made");
    stage.until_finding("CredentialsValid", "True", "TokenAccepted").await?;
    next_job_runs(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn a_lost_token_without_an_access_token_is_said_and_comes_back_with_one() -> Result<()> {
    let stage = start("losttoken", short_lived(), Scope::CreateRunner).await?;
    let first = the_runner(&stage)?;
    stage.kubectl(&["delete", "secret", "access-token"]).await?;
    stage.gitlab.inject(Fault::on(Target::ResetToken, Action::CutAfterHandling).once());
    let message = stage.until_finding("CredentialsValid", "False", "TokenLost").await?;
    for word in ["spec.gitlab.registration.accessTokenSecretRef", "manage_runner", &first.id.to_string()] {
        ensure!(message.contains(word), "{word:?} is not in: {message}");
    }
    let asked = stage.job_requests();
    stage.until_finding("Polling", "False", "NotConfigured").await?;

    // One that may only create: another runner is made, and what that costs is said.
    give_access(&stage, Scope::CreateRunner).await?;
    stage.until_finding("CredentialsValid", "True", "TokenAccepted").await?;
    let event = stage.until_event("RunnerReplaced").await?;
    ensure!(event["message"].as_str().unwrap_or_default().contains("sleeping environments"), "{event:#}");
    ensure!(stage.job_requests() >= asked);
    let job = stage.run(JobSpec::new("works").script(["true"])).await?;
    ensure!(job.state == JobState::Success && job.runner != Some(first.id), "{}", job.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_given_token_is_never_replaced_but_its_end_is_announced() -> Result<()> {
    let mut stage = Stage::without_operator("given", &Setting::pool(json!({}))).await?;
    let at = Timestamp::now() + Duration::from_secs(3 * 24 * 3600);
    stage.gitlab.expire_token(stage.runner.id, at);
    stage.raise(json!({})).await?;
    let message = stage.until_finding("CredentialsValid", "True", "TokenExpiresSoon").await?;
    ensure!(message.contains("spec.gitlab.tokenSecretRef"), "{message}");
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    let resets = stage.gitlab.requests().into_iter().filter(|request| request.path.contains("reset"));
    ensure!(resets.count() == 0, "a token of a person's was replaced");
    stage.end().await
}

#[tokio::test]
async fn a_given_token_that_works_is_exchanged_for_another_one_under_a_job_that_runs() -> Result<()> {
    let stage = Stage::start("exchanged", Setting::pool(json!({})).hosts(&["alder", "birch"])).await?;
    let second = stage.gitlab.register_runner(&[]);
    let id = stage.gitlab.enqueue(
        JobSpec::new("runs").script(["echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo ended"]),
    );
    stage.until_log(id, "begun").await?;
    let pid = stage.operator()?.pid();
    let data = json!({ "stringData": { "token": second.token } }).to_string();
    stage.kubectl(&["patch", "secret", "runner-token", "--type", "merge", "-p", &data]).await?;
    until("the other token is in use", BY_ITSELF, async || {
        let pool = stage.get("runnerpool", POOL).await?;
        Ok((pool["status"]["runnerId"] == second.id.0).then_some(()))
    })
    .await?;
    // A request with the old token may still be open: this one is for the new runner alone.
    let next = stage.run(JobSpec::new("next").for_runner(second.id).script(["true"])).await?;
    ensure!(next.state == JobState::Success && next.runner == Some(second.id), "{}", next.log_text());
    stage.touch("/tmp/go").await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success && over.log_contains("01O ended"), "{}", over.log_text());
    ensure!(over.runner == Some(stage.runner.id), "{:?}", over.runner);
    ensure!(stage.operator()?.pid() == pid, "the operator was started again");
    stage.until_finding("CredentialsValid", "True", "TokenAccepted").await?;
    stage.end().await
}
