//! Where an operator has its credentials from: a Secret of the pool, the token of a pod, an agent beside it.
//!
//! It has nothing else here, and the cloud checks each signature.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::failures::{go, instance_of, next_job_runs};
use super::iam::{check_iam, policy};
use crate::suspension::{held, job};
use crate::testbed::cloud::{Act, Session, User};
use crate::testbed::gitlab::JobState;
use crate::testbed::operator::Operator;
use crate::testbed::stage::{POOL, SOON, Setting, Stage, condition};
use crate::testbed::wait::until;
use crate::traces::{self, told};

const SECRET: &str = "aws-keys";
/// Settings are read once a minute.
const READ_AGAIN: Duration = Duration::from_secs(180);

/// A stage whose cloud checks who calls, and whose operator is not started and has no credentials.
async fn without_credentials(name: &str, pool: Value) -> Result<(Stage, Operator)> {
    let setting = Setting::cloud(pool);
    let stage = Stage::without_operator(name, &setting).await?;
    check_iam(&stage).await?;
    stage.apply_pool(setting.pool).await?;
    let operator = stage.new_operator("operator-a").await?;
    for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        operator.set_variable(variable, None);
    }
    Ok((stage, operator))
}

/// Writes a user's key into the pool's Secret, in place of what is there.
async fn put_keys(stage: &Stage, user: &User) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": SECRET, "namespace": stage.namespace },
        // People make Secrets with echo.
        "stringData": {
            "AWS_ACCESS_KEY_ID": format!("{}\n", user.access_key_id),
            "AWS_SECRET_ACCESS_KEY": format!("{}\n", user.secret_access_key),
        },
    });
    stage.apply(&secret).await
}

#[tokio::test]
async fn the_keys_of_a_pools_secret_are_awaited_and_used_and_replaced_under_a_job() -> Result<()> {
    let pool = json!({ "provider": { "aws": { "credentialsSecretRef": { "name": SECRET } } } });
    let (mut stage, operator) = without_credentials("aws-keys", pool).await?;
    // It needs nothing of the kind from its pod, a region neither.
    operator.set_variable("AWS_REGION", None);
    operator.start_again().await?;
    stage.operator = Some(operator);
    let cloud = &stage.cloud()?.cloud;
    let message = stage.until_finding("CredentialsValid", "False", "SecretMissing").await?;
    for words in ["spec.provider.aws.credentialsSecretRef", SECRET, "AWS_ACCESS_KEY_ID"] {
        ensure!(message.contains(words), "{words}: {message}");
    }

    let first = cloud.user("first", policy(&[])?).await?;
    put_keys(&stage, &first).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.until_finding("CloudReady", "True", "CloudAnswers").await?;
    let busy = stage.gitlab.enqueue(job("busy").script(held(&["echo done"])));
    stage.until_log(busy, "waits").await?;
    let instance = instance_of(&stage, busy).await?;

    // Rotated, the wrong way round: the old key goes before the new one is there.
    let (user, access_key_id) = ("first".to_owned(), first.access_key_id.clone());
    cloud.act(Act::RemoveKey { user, access_key_id }).await?;
    let message = stage.until_finding("CloudReady", "False", "Denied").await?;
    ensure!(!message.contains(&first.secret_access_key), "{message}");
    put_keys(&stage, &cloud.user("second", policy(&[])?).await?).await?;
    until("the new key is used", READ_AGAIN, async || {
        let pool = stage.get("runnerpool", POOL).await?;
        Ok((condition(&pool, "CloudReady").0 == "True").then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    ensure!(stage.gitlab.job(busy).is_some_and(|job| !job.state.is_final()), "the job did not go on");
    go(&stage, &instance).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.state == JobState::Success && over.log_contains("done"), "{}", told(&over));
    stage.lease_over(busy).await?;
    next_job_runs(&stage).await?;
    let log = stage.operator()?.log()?;
    ensure!(!log.contains(&first.secret_access_key), "a secret is in the log");
    traces::end(stage).await
}

#[tokio::test]
async fn the_token_of_a_service_account_is_enough() -> Result<()> {
    let (mut stage, operator) = without_credentials("web-identity", json!({})).await?;
    let role = stage.cloud()?.cloud.role("documented", policy(&[])?).await?;
    let token = stage.folder().join("token");
    std::fs::write(&token, "a-token-of-the-cluster")?;
    // As the webhook of IRSA sets them.
    operator.set_variable("AWS_ROLE_ARN", Some(&role.role_arn));
    operator.set_variable("AWS_WEB_IDENTITY_TOKEN_FILE", Some(&token.display().to_string()));
    operator.set_variable("AWS_ENDPOINT_URL_STS", Some(stage.cloud()?.cloud.endpoint()));
    operator.start_again().await?;
    stage.operator = Some(operator);
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    next_job_runs(&stage).await?;
    let words = [role.role_arn.as_str(), "a-token-of-the-cluster"];
    let calls = stage.cloud()?.cloud.calls(0).await?;
    ensure!(
        calls.iter().any(|call| call.did("AssumeRoleWithWebIdentity", &words)),
        "the role was not assumed"
    );
    traces::end(stage).await
}

/// Answers every request with the keys of a session, as the agent of EKS Pod Identity does to who shows its token.
async fn agent(session: &Session, token: &str) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1/credentials", listener.local_addr()?);
    let body = json!({
        "AccessKeyId": session.access_key_id, "SecretAccessKey": session.secret_access_key,
        "Token": session.session_token, "Expiration": "2099-01-01T00:00:00Z",
    });
    let (body, token) = (body.to_string(), token.to_lowercase());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that goes away early is none of the agent's business.
            drop(answer(stream, &body, &token).await);
        }
    });
    Ok(url)
}

async fn answer(mut stream: TcpStream, body: &str, token: &str) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let request = String::from_utf8_lossy(&request).to_lowercase();
    let is_allowed = request.contains(&format!("authorization: {token}"));
    let (status, body) = if is_allowed { ("200 OK", body) } else { ("403 Forbidden", "{}") };
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n");
    let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

#[tokio::test]
async fn the_agent_of_pod_identity_is_enough_and_is_shown_the_pods_token() -> Result<()> {
    let (mut stage, operator) = without_credentials("pod-identity", json!({})).await?;
    let session = stage.cloud()?.cloud.role("documented", policy(&[])?).await?;
    let token = stage.folder().join("token");
    std::fs::write(&token, "a-token-of-the-pod")?;
    let url = agent(&session, "a-token-of-the-pod").await?;
    operator.set_variable("AWS_CONTAINER_CREDENTIALS_FULL_URI", Some(&url));
    operator.set_variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Some(&token.display().to_string()));
    operator.start_again().await?;
    stage.operator = Some(operator);
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    next_job_runs(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_operator_without_credentials_says_what_to_give_it() -> Result<()> {
    let (mut stage, operator) = without_credentials("no-credentials", json!({})).await?;
    operator.start_again().await?;
    stage.operator = Some(operator);
    let mut last = Value::Null;
    until("the cloud is not ready for want of credentials", SOON, async || {
        last = stage.get("runnerpool", POOL).await?;
        Ok((condition(&last, "CloudReady").0 == "False").then_some(()))
    })
    .await
    .with_context(|| format!("{last:#}"))?;
    let message = crate::testbed::stage::message(&last, "CloudReady");
    ensure!(message.contains("credentialsSecretRef"), "{message}");
    traces::end(stage).await
}
