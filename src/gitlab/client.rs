//! The client of GitLab's runner API: one method a call, answers as meanings.
//!
//! No policy and no retries here: `Retry` says what the server asked for, and whoever holds the conversation
//! decides. Tokens never appear in errors or logs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use super::features;
use super::transport::Transport;
use super::variables::is_debugged;
use super::wire::{JobPayload, Variable};
use crate::bounds::GitLabBounds;
use crate::telemetry::{Metrics, RunnerLabels};

mod answer;

pub use answer::{
    IssuedToken, JobStatus, RemovalAnswer, RequestAnswer, ResetAnswer, TraceAnswer, UpdateAnswer,
    VerifyAnswer, Wish,
};

/// Time for a whole short call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a job request: GitLab may hold it for its long-poll interval, 50 s where its documentation is followed. A
/// request that is given up may have been answered with a job, so this is longer; one that hangs keeps the pool from
/// asking, so it is not much longer.
const POLL_TIMEOUT: Duration = Duration::from_secs(90);
/// One runner of one GitLab.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
    base: String,
    token: Arc<SecretString>,
    system_id: String,
    name: String,
    calls: Calls,
    bounds: GitLabBounds,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).field("name", &self.name).finish_non_exhaustive()
    }
}

/// The address is not one.
#[derive(Debug, thiserror::Error)]
#[error("spec.gitlab.url {0:?} is not a URL")]
pub struct UrlError(String);

/// Where the API of a GitLab is.
///
/// # Errors
/// When its address is not a URL.
pub fn api_base(url: &str) -> Result<String, UrlError> {
    let parsed = url::Url::parse(url).map_err(|_| UrlError(url.to_owned()))?;
    Ok(format!("{}/api/v4", parsed.as_str().trim_end_matches('/').trim_end_matches("/ci")))
}

/// A job's id and token, for the calls about it.
#[derive(Clone)]
pub struct JobCredentials {
    /// GitLab job id.
    pub id: u64,
    /// Job token.
    pub token: Arc<SecretString>,
    /// Whether the job's trace may show secrets; GitLab restricts who may read such a log.
    pub debug_trace: bool,
}

impl JobCredentials {
    /// The credentials of a job whose pool gives it these variables.
    pub fn of(job: &JobPayload, environment: &[Variable]) -> Self {
        Self {
            id: job.id,
            token: Arc::new(SecretString::from(job.token.clone())),
            debug_trace: is_debugged(job, environment),
        }
    }
}

impl std::fmt::Debug for JobCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JobCredentials({})", self.id)
    }
}

/// A state to tell GitLab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobUpdate {
    /// Ours, waiting for an instance.
    Pending,
    /// Running: from now on it is ours.
    Running,
    /// Running still: a sign of life, which leaves the way to whatever has more to say.
    Alive {
        /// Size and CRC-32 of the log so far, where GitLab has all of it.
        log: Option<(u64, u32)>,
    },
    /// Ended.
    Final {
        /// Failure reason on the wire and exit code; `None` is success.
        failure: Option<(String, i32)>,
        /// Size and CRC-32 of the whole log.
        log: Option<(u64, u32)>,
        /// The key of the environment that was put to sleep.
        environment_key: Option<String>,
    },
}

impl Client {
    /// A client for a runner token at a GitLab URL.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(
        url: &str,
        token: SecretString,
        runner: RunnerLabels,
        transport: Transport,
        metrics: Metrics,
    ) -> Result<Self, UrlError> {
        Ok(Self {
            transport,
            base: api_base(url)?,
            token: Arc::new(token),
            system_id: runner.system_id.clone(),
            name: runner.runner_name.clone(),
            bounds: GitLabBounds::new(&metrics),
            calls: Calls::new(metrics, runner),
        })
    }

    /// Whether both ask with the same token.
    pub fn same_token_as(&self, other: &Self) -> bool {
        self.token.expose_secret() == other.token.expose_secret()
    }

    /// Checks the runner token and learns the runner's id.
    pub async fn verify(&self) -> VerifyAnswer {
        let body = json!({
            "token": self.token.expose_secret(),
            "system_id": self.system_id,
            "info": features::info(&self.name),
        });
        let request = self
            .request(Method::POST, "runners/verify")
            .header("RUNNER-TOKEN", self.token.expose_secret())
            .timeout(CALL_TIMEOUT)
            .json(&body);
        let response = match self.send("verify", Method::POST, request).await {
            Ok(response) => response,
            Err(cause) => return VerifyAnswer::Retry { cause },
        };
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => match response.json::<Verified>().await {
                Ok(Verified { id, token_expires_at }) if id > 0 => {
                    VerifyAnswer::Valid { runner_id: id, expires_at: timestamp(token_expires_at.as_deref()) }
                }
                Ok(_) | Err(_) => {
                    VerifyAnswer::Retry { cause: "GitLab's answer to verify has no runner id".to_owned() }
                }
            },
            StatusCode::FORBIDDEN | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::NOT_FOUND => {
                VerifyAnswer::Invalid
            }
            status => VerifyAnswer::Retry { cause: answered(status) },
        }
    }

    /// Has the token replaced by a new one.
    pub async fn reset_token(&self) -> ResetAnswer {
        let request = self.of_runner(Method::POST, "runners/reset_authentication_token", None);
        let response = match self.send("reset_token", Method::POST, request).await {
            Ok(response) => response,
            Err(cause) => return ResetAnswer::Retry { cause },
        };
        match response.status() {
            StatusCode::CREATED | StatusCode::OK => match read_token(response).await {
                Some(issued) => ResetAnswer::Issued(issued),
                None => ResetAnswer::Retry { cause: "GitLab's answer has no token".to_owned() },
            },
            StatusCode::FORBIDDEN
            | StatusCode::UNAUTHORIZED
            | StatusCode::NOT_FOUND
            | StatusCode::UNPROCESSABLE_ENTITY => ResetAnswer::Invalid,
            status => ResetAnswer::Retry { cause: answered(status) },
        }
    }

    /// Removes the runner.
    pub async fn remove_runner(&self) -> RemovalAnswer {
        let request = self.of_runner(Method::DELETE, "runners", None);
        self.remove("remove_runner", request).await
    }

    /// Removes this pool from the runner's managers.
    pub async fn remove_manager(&self) -> RemovalAnswer {
        let request = self.of_runner(Method::DELETE, "runners/managers", Some(&self.system_id));
        self.remove("remove_manager", request).await
    }

    async fn remove(&self, endpoint: &'static str, request: reqwest::RequestBuilder) -> RemovalAnswer {
        let response = match self.send(endpoint, Method::DELETE, request).await {
            Ok(response) => response,
            Err(cause) => return RemovalAnswer::Retry { cause },
        };
        match response.status() {
            status if status.is_success() => RemovalAnswer::Gone,
            // A token that is not known any more is of a runner that is gone.
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND => RemovalAnswer::Gone,
            status => RemovalAnswer::Retry { cause: answered(status) },
        }
    }

    fn of_runner(&self, method: Method, path: &str, system_id: Option<&str>) -> reqwest::RequestBuilder {
        let mut body = json!({ "token": self.token.expose_secret() });
        if let (Some(system_id), Some(map)) = (system_id, body.as_object_mut()) {
            map.insert("system_id".to_owned(), json!(system_id));
        }
        self.request(method, path)
            .header("RUNNER-TOKEN", self.token.expose_secret())
            .timeout(CALL_TIMEOUT)
            .json(&body)
    }

    /// Asks for a job. `last_update` is the mark of the previous answer and is replaced by this one's.
    pub async fn request_job(&self, last_update: &mut Option<String>) -> RequestAnswer {
        let mut body = json!({
            "token": self.token.expose_secret(),
            "system_id": self.system_id,
            "info": features::info(&self.name),
        });
        if let (Some(mark), Some(map)) = (last_update.as_ref(), body.as_object_mut()) {
            map.insert("last_update".to_owned(), json!(mark));
        }
        let request = self
            .request(Method::POST, "jobs/request")
            .header("RUNNER-TOKEN", self.token.expose_secret())
            .timeout(POLL_TIMEOUT)
            .json(&body);
        let response = match self.send("request_job", Method::POST, request).await {
            Ok(response) => response,
            Err(cause) => return RequestAnswer::Retry { after: None, cause },
        };
        if let Some(mark) = text_header(response.headers(), "X-GitLab-Last-Update") {
            *last_update = Some(mark);
        }
        match response.status() {
            StatusCode::CREATED => read_job(response).await,
            StatusCode::NO_CONTENT => RequestAnswer::NoJob,
            StatusCode::CONFLICT => RequestAnswer::Conflict,
            StatusCode::FORBIDDEN | StatusCode::UNPROCESSABLE_ENTITY => RequestAnswer::InvalidToken,
            status => {
                RequestAnswer::Retry { after: retry_after(response.headers()), cause: answered(status) }
            }
        }
    }

    /// Tells GitLab a job's state.
    pub async fn update(&self, job: &JobCredentials, update: &JobUpdate) -> UpdateAnswer {
        let bound = match update {
            JobUpdate::Pending | JobUpdate::Alive { .. } => &self.bounds.keep_alives,
            JobUpdate::Running | JobUpdate::Final { .. } => &self.bounds.jobs,
        };
        let _place = bound.enter().await;
        let request = self
            .request(Method::PUT, &format!("jobs/{}", job.id))
            .header("JOB-TOKEN", job.token.expose_secret())
            .timeout(CALL_TIMEOUT)
            .json(&self.update_body(job, update));
        let response = match self.send("update_job", Method::PUT, request).await {
            Ok(response) => response,
            Err(cause) => return UpdateAnswer::Retry { after: None, cause },
        };
        let status = job_status(response.headers());
        match response.status() {
            StatusCode::OK => UpdateAnswer::Ok(status),
            StatusCode::ACCEPTED => UpdateAnswer::StoringLog { interval: status.interval },
            StatusCode::PRECONDITION_FAILED => UpdateAnswer::LogInvalid,
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => UpdateAnswer::Gone { canceled: status.canceled },
            StatusCode::CONFLICT => UpdateAnswer::OwnedByOther,
            StatusCode::BAD_REQUEST => UpdateAnswer::Refused,
            other => UpdateAnswer::Retry { after: retry_after(response.headers()), cause: answered(other) },
        }
    }

    fn update_body(&self, job: &JobCredentials, update: &JobUpdate) -> Value {
        let mut body = json!({
            "token": job.token.expose_secret(),
            "info": features::info(&self.name),
        });
        let Some(map) = body.as_object_mut() else { return body };
        match update {
            JobUpdate::Pending => {
                map.insert("state".to_owned(), json!("pending"));
            }
            JobUpdate::Running => {
                map.insert("state".to_owned(), json!("running"));
            }
            JobUpdate::Alive { log } => {
                map.insert("state".to_owned(), json!("running"));
                add_log(map, *log);
            }
            JobUpdate::Final { failure, log, environment_key } => {
                map.insert("state".to_owned(), json!(if failure.is_some() { "failed" } else { "success" }));
                if let Some((reason, exit_code)) = failure {
                    map.insert("failure_reason".to_owned(), json!(reason));
                    if *exit_code != 0 {
                        map.insert("exit_code".to_owned(), json!(exit_code));
                    }
                }
                add_log(map, *log);
                if let Some(key) = environment_key {
                    map.insert("runtime_environment_key".to_owned(), json!(key));
                    map.insert("environment_key".to_owned(), json!(key));
                }
            }
        }
        body
    }

    /// Sends the next bytes of a job's log. Where GitLab knows no log of it, it is asked whether it knows the job.
    pub async fn patch_trace(&self, job: &JobCredentials, offset: u64, bytes: Bytes) -> TraceAnswer {
        let _place = self.bounds.jobs.enter().await;
        let debug = job.debug_trace;
        let last = offset + (bytes.len() as u64).saturating_sub(1);
        let request = self
            .request(Method::PATCH, &format!("jobs/{}/trace?debug_trace={debug}", job.id))
            .header("JOB-TOKEN", job.token.expose_secret())
            .header("Content-Type", "text/plain")
            .header("Content-Range", format!("{offset}-{last}"))
            .timeout(CALL_TIMEOUT)
            .body(bytes);
        let response = match self.send("patch_trace", Method::PATCH, request).await {
            Ok(response) => response,
            Err(cause) => return TraceAnswer::Retry { after: None, cause },
        };
        let status = job_status(response.headers());
        match (response.status(), server_size(response.headers())) {
            (StatusCode::ACCEPTED, size) => TraceAnswer::Accepted { size: size.unwrap_or(last + 1), status },
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(size)) => TraceAnswer::Mismatch { size, status },
            (StatusCode::FORBIDDEN, _) => TraceAnswer::Abort { canceled: status.canceled },
            (StatusCode::NOT_FOUND, _) => TraceAnswer::NotFound,
            (other, _) => {
                TraceAnswer::Retry { after: retry_after(response.headers()), cause: answered(other) }
            }
        }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        request(&self.transport, method, &self.base, path)
    }

    async fn send(
        &self,
        endpoint: &'static str,
        method: Method,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, String> {
        self.calls.send(endpoint, method, request).await
    }
}

/// A request to a GitLab's API, with what every one of them carries.
pub(super) fn request(
    transport: &Transport,
    method: Method,
    base: &str,
    path: &str,
) -> reqwest::RequestBuilder {
    transport
        .http()
        .request(method, format!("{base}/{path}"))
        .header("Accept", "application/json")
        .header("X-Request-Id", format!("{:032x}", rand::random::<u128>()))
}

/// Sends requests and counts them. Cloning shares the counts.
#[derive(Clone)]
pub(super) struct Calls {
    metrics: Metrics,
    runner: RunnerLabels,
}

impl Calls {
    pub(super) fn new(metrics: Metrics, runner: RunnerLabels) -> Self {
        Self { metrics, runner }
    }

    /// Sends a request; the error is a sentence without URL or token.
    pub(super) async fn send(
        &self,
        endpoint: &'static str,
        method: Method,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, String> {
        let started = std::time::Instant::now();
        let result = request.send().await;
        let status = result.as_ref().map_or(0, |response| response.status().as_u16());
        self.metrics.api_request(&self.runner, endpoint, method.as_str(), status, started.elapsed());
        result.map_err(|error| match error.is_timeout() {
            true => "GitLab did not answer in time".to_owned(),
            false => format!("cannot reach GitLab: {}", root_cause(&error)),
        })
    }
}

/// Size and checksum of a log, under their old and their new names.
fn add_log(map: &mut serde_json::Map<String, Value>, log: Option<(u64, u32)>) {
    if let Some((bytes, crc32)) = log {
        let checksum = format!("crc32:{crc32:08x}");
        map.insert("checksum".to_owned(), json!(checksum));
        map.insert("output".to_owned(), json!({ "checksum": checksum, "bytesize": bytes }));
    }
}

pub(super) fn answered(status: StatusCode) -> String {
    format!("GitLab answers {status}")
}

/// The innermost cause: reqwest's outer ones repeat the URL.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[derive(Deserialize)]
struct Verified {
    #[serde(default)]
    id: u64,
    #[serde(default)]
    token_expires_at: Option<String>,
}

#[derive(Deserialize)]
struct Issued {
    token: String,
    #[serde(default)]
    token_expires_at: Option<String>,
}

/// The token of an answer that brings one.
pub(super) async fn read_token(response: Response) -> Option<IssuedToken> {
    let Issued { token, token_expires_at } = response.json().await.ok()?;
    let expires_at = timestamp(token_expires_at.as_deref());
    (!token.is_empty()).then(|| IssuedToken { token: SecretString::from(token), expires_at })
}

/// A time as GitLab writes it; one that cannot be read is none.
pub(super) fn timestamp(text: Option<&str>) -> Option<Timestamp> {
    text?.parse().ok()
}

async fn read_job(response: Response) -> RequestAnswer {
    let raw = match response.bytes().await {
        Ok(raw) => raw,
        Err(error) => {
            return RequestAnswer::Unreadable {
                identity: None,
                cause: format!("the job was cut off on its way: {}", root_cause(&error)),
            };
        }
    };
    match serde_json::from_slice::<JobPayload>(&raw) {
        Ok(job) if job.id > 0 && !job.token.is_empty() => RequestAnswer::Job { job: Box::new(job), raw },
        Ok(_) => {
            RequestAnswer::Unreadable { identity: None, cause: "the job has no id or no token".to_owned() }
        }
        // The message of a serde error may quote a value of the payload; only its place is told.
        Err(error) => RequestAnswer::Unreadable {
            identity: identity_of(&raw),
            cause: format!(
                "the job's JSON cannot be read at line {} column {}",
                error.line(),
                error.column()
            ),
        },
    }
}

/// Id and token of a job whose other fields cannot be read.
fn identity_of(raw: &[u8]) -> Option<(u64, SecretString)> {
    let value: Value = serde_json::from_slice(raw).ok()?;
    let id = value.get("id")?.as_u64()?;
    let token = value.get("token")?.as_str()?;
    Some((id, SecretString::from(token.to_owned())))
}

fn job_status(headers: &HeaderMap) -> JobStatus {
    let state = text_header(headers, "Job-Status");
    let wish = match state.as_deref() {
        Some("canceling") => Wish::CancelGracefully,
        Some("canceled" | "failed") => Wish::Abort,
        Some(_) | None => Wish::GoOn,
    };
    let interval = text_header(headers, "X-GitLab-Trace-Update-Interval")
        .and_then(|seconds| seconds.parse().ok())
        .filter(|seconds| *seconds > 0)
        .map(|seconds| Duration::from_secs(seconds).min(Duration::from_secs(15 * 60)));
    let canceled = matches!(state.as_deref(), Some("canceling" | "canceled"));
    JobStatus { wish, canceled, interval }
}

/// The size of the server's log from its `Range: 0-<size>` header.
fn server_size(headers: &HeaderMap) -> Option<u64> {
    text_header(headers, "Range")?.rsplit_once('-')?.1.parse().ok()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    if let Some(at) = text_header(headers, "RateLimit-ResetTime")
        && let Ok(zoned) = jiff::fmt::rfc2822::parse(&at)
    {
        // By the server's own clock, where it says what that shows.
        let told = text_header(headers, "Date").and_then(|date| jiff::fmt::rfc2822::parse(&date).ok());
        let now = told.map_or_else(crate::clock::now, |date| date.timestamp());
        let wait = zoned.timestamp().duration_since(now);
        return Some(Duration::try_from(wait).unwrap_or(Duration::ZERO).max(Duration::from_millis(100)));
    }
    text_header(headers, "Retry-After")?.parse().ok().map(Duration::from_secs)
}

fn text_header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(HeaderValue::to_str)?.ok().map(str::to_owned)
}
