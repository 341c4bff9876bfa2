//! git over HTTP, by the real `git http-backend`, with a running job's token as the password, or with the deploy token of
//! a project that no job's token opens.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    endpoint::Endpoint,
    exchange::{Answer, Exchange},
    job::{Fetch, JobId},
    large_files,
    repository::{GitRepo, clean_environment},
    server::Server,
    world::World,
};

/// A fetch of a test's repository takes far less; more is a process that hangs.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(300);

/// Any call below `/<group>/<project>.git/`.
pub(super) async fn serve(server: &Server, exchange: &Exchange, project: &str, rest: &str) -> Answer {
    let Some(credentials) = credentials(exchange) else {
        return unauthorized();
    };
    let closed = server.world().projects.get(project).filter(|repo| repo.deploy_token().is_some()).cloned();
    if let Some(repo) = closed {
        if repo.deploy_token() != Some(&credentials) {
            // As of a project that there is not.
            return Answer::refusal(StatusCode::NOT_FOUND);
        }
        return answer(&repo, exchange, rest, "deploy-token").await;
    }
    let Some(token) = credentials.strip_prefix("gitlab-ci-token:") else {
        return unauthorized();
    };
    let repo = {
        let world = &mut *server.world();
        let job =
            world.jobs.values_mut().find(|job| job.view.token == token && job.view.state.is_worked_on());
        let Some(job) = job else {
            return unauthorized();
        };
        let query = if exchange.query.is_empty() { "" } else { "?" };
        job.view.fetches.push(Fetch {
            at: exchange.at,
            project: project.to_owned(),
            request: format!("{rest}{query}{}", exchange.query),
        });
        job.changed.notify_waiters();
        let id = job.view.id;
        world.projects.get(project).cloned().map(|repo| (repo, id))
    };
    let Some((repo, job)) = repo else {
        return Answer::refusal(StatusCode::NOT_FOUND);
    };
    if let Some(call) = large_files::Call::of(exchange.method.as_str(), rest) {
        return large_files::serve(&repo, exchange, &call, &format!("{}/{project}.git", server.url));
    }
    answer(&repo, exchange, rest, &format!("job-{job}")).await
}

async fn answer(repo: &GitRepo, exchange: &Exchange, rest: &str, user: &str) -> Answer {
    match tokio::time::timeout(BACKEND_TIMEOUT, backend(repo, exchange, rest, user)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let text = Bytes::from(format!("{error:#}"));
            Answer::bytes(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", text)
        }
        Err(_) => Answer::refusal(StatusCode::GATEWAY_TIMEOUT),
    }
}

/// The job whose token a call of git is made with.
pub(super) fn job_of(world: &World, exchange: &Exchange) -> Option<JobId> {
    let Endpoint::Git { .. } = exchange.endpoint else { return None };
    let credentials = credentials(exchange)?;
    let token = credentials.strip_prefix("gitlab-ci-token:")?;
    world.jobs.values().find(|job| job.view.token == token).map(|job| job.view.id)
}

/// User and password of basic authentication.
fn credentials(exchange: &Exchange) -> Option<String> {
    let credentials = exchange.header("authorization")?.strip_prefix("Basic ")?;
    String::from_utf8(STANDARD.decode(credentials).ok()?).ok()
}

fn unauthorized() -> Answer {
    Answer::bytes(StatusCode::UNAUTHORIZED, "text/plain", "HTTP Basic: Access denied\n".into())
        .with("www-authenticate", "Basic realm=\"GitLab\"")
}

async fn backend(repo: &GitRepo, exchange: &Exchange, rest: &str, user: &str) -> anyhow::Result<Answer> {
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env_clear()
        .envs(clean_environment())
        .env("GIT_PROJECT_ROOT", repo.folder())
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", format!("/{rest}"))
        .env("REQUEST_METHOD", exchange.method.as_str())
        .env("QUERY_STRING", &exchange.query)
        .env("CONTENT_TYPE", exchange.header("content-type").unwrap_or(""))
        .env("CONTENT_LENGTH", exchange.body.len().to_string())
        .env("REMOTE_USER", user)
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    for (header, variable) in
        [("git-protocol", "GIT_PROTOCOL"), ("content-encoding", "HTTP_CONTENT_ENCODING")]
    {
        if let Some(value) = exchange.header(header) {
            command.env(variable, value);
        }
    }
    let mut child = command.spawn().context("start git http-backend")?;
    let stdin = child.stdin.take();
    let body = exchange.body.clone();
    let write = async move {
        if let Some(mut stdin) = stdin {
            // The backend may answer without reading it all; its answer tells why.
            let _ = stdin.write_all(&body).await;
        }
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output.context("wait for git http-backend")?;
    if output.stdout.is_empty() {
        bail!("git http-backend: {}", String::from_utf8_lossy(&output.stderr));
    }
    parse_cgi(output.stdout.into())
}

/// From the output of a CGI program to the answer.
fn parse_cgi(mut output: Bytes) -> anyhow::Result<Answer> {
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").context("no CGI header")?;
    let head = output.split_to(end);
    let mut answer = Answer::status(StatusCode::OK);
    // A pack may be large: it is not copied.
    answer.body = output.split_off(4);
    for line in std::str::from_utf8(&head).context("CGI header")?.lines() {
        let (name, value) = line.split_once(':').context("CGI header line")?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().unwrap_or(value);
            answer.status = StatusCode::from_bytes(code.as_bytes())?;
        } else {
            answer.headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
    }
    Ok(answer)
}
