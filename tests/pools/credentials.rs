//! Secrets a pool names: missing, wrong, repaired.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{Fault, JobSpec, JobState, Target};
use crate::testbed::stage::{POOL, SOON, Setting, Stage, condition};
use crate::testbed::wait::until;

/// Replaces a Secret of the pool.
async fn put_secret(stage: &Stage, name: &str, literal: &str) -> Result<()> {
    stage.kubectl(&["delete", "secret", name, "--ignore-not-found"]).await?;
    let literal = format!("--from-literal={literal}");
    stage.kubectl(&["create", "secret", "generic", name, &literal]).await?;
    Ok(())
}

#[tokio::test]
async fn a_refused_token_is_shown_and_a_repaired_one_is_picked_up() -> Result<()> {
    let mut stage = Stage::without_operator("token", &Setting::pool(json!({}))).await?;
    put_secret(&stage, "runner-token", "token=glrt-t1_nobodys_token_at_all").await?;
    stage.raise(json!({})).await?;
    let message = stage.until_finding("CredentialsValid", "False", "TokenRefused").await?;
    ensure!(message.contains("spec.gitlab.tokenSecretRef"), "{message}");
    stage.until_finding("Ready", "False", "TokenRefused").await?;
    stage.until_finding("Polling", "False", "NotConfigured").await?;
    let event = stage.until_event("TokenRefused").await?;
    ensure!(event["type"] == "Warning" && event["involvedObject"]["name"] == POOL, "{event:#}");
    ensure!(stage.job_requests() == 0, "GitLab was asked for jobs with a token it refuses");

    let token = format!("token={}", stage.runner.token);
    put_secret(&stage, "runner-token", &token).await?;
    stage.until_finding("CredentialsValid", "True", "TokenAccepted").await?;
    let job = stage.run(JobSpec::new("after").script(["echo repaired"])).await?;
    ensure!(job.state == JobState::Success, "{}", job.log_text());
    stage.end().await
}

#[tokio::test]
async fn without_a_good_token_a_new_holder_brings_running_jobs_to_their_end_and_lets_environments_go()
-> Result<()> {
    let pool = json!({ "capacityPerInstance": 2, "isolation": "Shared" });
    let stage = Stage::start("headless", Setting { pool, ..Setting::default() }).await?;
    let sleeper = JobSpec::new("sleeps").suspendable().suspend_on_success().script(["true"]);
    let key = stage.run(sleeper).await?.environment_key.context("it does not sleep")?;
    let asleep = stage.asleep(&key).await?;
    for (round, bad) in [Some("token=glrt-t1_nobodys_token_at_all"), None].into_iter().enumerate() {
        let go = format!("/tmp/go{round}");
        let script = format!("echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo ended; exit 3");
        let id = stage.gitlab.enqueue(JobSpec::new("runs").script([script]));
        stage.until_log(id, "begun").await?;
        stage.operator()?.kill()?;
        match bad {
            Some(literal) => put_secret(&stage, "runner-token", literal).await?,
            None => stage.kubectl(&["delete", "secret", "runner-token"]).await.map(|_| ())?,
        }
        stage.give_up_lease().await?;
        stage.gitlab.client_restarted();
        stage.operator()?.start_again().await?;
        let reason = if bad.is_some() { "TokenRefused" } else { "SecretMissing" };
        stage.until_finding("CredentialsValid", "False", reason).await?;
        stage.touch(&go).await?;
        let over = stage.until_over(id).await?;
        ensure!((over.state, over.exit_code) == (JobState::Failed, Some(3)), "{}", over.log_text());
        stage.lease_over(id).await?;
        stage.until_finding("Polling", "False", "NotConfigured").await?;
        if bad.is_some() {
            put_secret(&stage, "runner-token", &format!("token={}", stage.runner.token)).await?;
            stage.until_finding("CredentialsValid", "True", "TokenAccepted").await?;
        }
    }
    let name = asleep["metadata"]["name"].as_str().context("it has no name")?;
    stage.kubectl(&["delete", "suspendedenvironment", name, "--timeout=60s"]).await?;
    stage.end().await
}

#[tokio::test]
async fn a_token_that_is_refused_once_in_passing_is_checked_again_at_once() -> Result<()> {
    let stage = Stage::start("passing", Setting::pool(json!({}))).await?;
    let fault = stage.gitlab.inject(Fault::refuse(Target::RequestJob, 403).once());
    until("a request was refused", SOON, async || Ok((stage.gitlab.fault_hits(fault) > 0).then_some(())))
        .await?;
    let id = stage.gitlab.enqueue(JobSpec::new("after").script(["echo accepted again"]));
    // Well below the minute between two usual looks at the settings.
    let job = stage.gitlab.wait_until_over(id, Duration::from_secs(30)).await?;
    ensure!(job.state == JobState::Success, "{}", job.log_text());
    stage.until_finding("CredentialsValid", "True", "TokenAccepted").await?;
    stage.end().await
}

#[tokio::test]
async fn a_missing_secret_is_named_with_its_field_and_the_pool_comes_back_by_itself() -> Result<()> {
    let mut stage = Stage::without_operator("missing", &Setting::pool(json!({}))).await?;
    stage.kubectl(&["delete", "secret", "runner-token"]).await?;
    stage.raise(json!({})).await?;
    let message = stage.until_finding("CredentialsValid", "False", "SecretMissing").await?;
    for word in ["spec.gitlab.tokenSecretRef", "\"runner-token\"", "\"token\"", "create it"] {
        ensure!(message.contains(word), "{word:?} is not in: {message}");
    }
    stage.until_event("SecretMissing").await?;

    // The Secret is there now, but not the key that the pool names. Another name, so that the message is a new one.
    put_secret(&stage, "runner-token", "other=x").await?;
    let key = json!({ "gitlab": { "tokenSecretRef": { "key": "word" } } });
    stage.apply_pool(key).await?;
    let last = until("the other key is missed", SOON, async || {
        let message = stage.until_finding("CredentialsValid", "False", "SecretMissing").await?;
        Ok(message.contains("\"word\"").then_some(message))
    })
    .await?;
    ensure!(last.contains("spec.gitlab.tokenSecretRef"), "{last}");
    stage.apply_pool(json!({})).await?;
    put_secret(&stage, "runner-token", &format!("token={}", stage.runner.token)).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.end().await
}

#[tokio::test]
async fn an_ssh_key_that_cannot_be_read_is_said_so() -> Result<()> {
    let mut stage = Stage::without_operator("sshkey", &Setting::pool(json!({}))).await?;
    put_secret(&stage, "ssh-key", "key=-----BEGIN NONSENSE-----").await?;
    stage.raise(json!({})).await?;
    let message = stage.until_finding("CredentialsValid", "False", "PrivateKeyUnreadable").await?;
    ensure!(message.contains("spec.ssh.privateKeySecretRef"), "{message}");
    ensure!(!message.contains("NONSENSE"), "the Secret's content is in the status: {message}");

    let key = std::fs::read_to_string(stage.bed.client_key())?;
    put_secret(&stage, "ssh-key", &format!("key={key}")).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.end().await
}

#[tokio::test]
async fn a_gitlab_that_is_away_makes_no_token_wrong() -> Result<()> {
    let mut stage = Stage::without_operator("away", &Setting::pool(json!({}))).await?;
    stage.gitlab.down().await?;
    stage.raise(json!({})).await?;
    stage.until_finding("CredentialsValid", "Unknown", "GitLabUnreachable").await?;
    stage.gitlab.up()?;
    stage
        .until_object("runnerpool", POOL, "the token is accepted", |pool| {
            condition(pool, "CredentialsValid").0 == "True"
        })
        .await?;
    let id = stage.gitlab.enqueue(JobSpec::new("after").script(["true"]));
    stage.gitlab.wait_until_over(id, SOON).await?;
    stage.end().await
}
