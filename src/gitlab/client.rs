//! The client of GitLab's runner API: one method a call, answers as meanings.
//!
//! No policy and no retries here: `Retry` says what the server asked for, and whoever holds the conversation
//! decides. Tokens never appear in errors or logs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Certificate, Method, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use super::features;
use super::wire::JobPayload;
use crate::bounds::GitLabBounds;
use crate::telemetry::Metrics;

/// Time for connecting to GitLab.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a whole short call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a job request: GitLab may hold it for its long-poll interval, 50 s where its documentation is followed. A
/// request that is given up may have been answered with a job, so this is longer; one that hangs keeps the pool from
/// asking, so it is not much longer.
const POLL_TIMEOUT: Duration = Duration::from_secs(90);
/// How often the kernel looks for a sign of life of a peer that says nothing.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);

/// One runner of one GitLab.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Arc<SecretString>,
    system_id: String,
    name: String,
    metrics: Metrics,
    bounds: GitLabBounds,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The URL is not one.
    #[error("spec.gitlab.url {0:?} is not a URL")]
    Url(String),
    /// The certificates cannot be read.
    #[error("spec.gitlab.caBundle holds no readable PEM certificate")]
    CaBundle(#[source] reqwest::Error),
    /// The HTTP client cannot be built.
    #[error("cannot build the HTTP client")]
    Http(#[source] reqwest::Error),
}

/// The answer to `POST runners/verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyAnswer {
    /// The token is a runner's.
    Valid {
        /// GitLab's id of the runner.
        runner_id: u64,
    },
    /// GitLab does not accept the token.
    Invalid,
    /// GitLab could not be asked.
    Retry {
        /// What happened, for people.
        cause: String,
    },
}

/// The answer to `POST jobs/request`.
#[derive(Debug)]
pub enum RequestAnswer {
    /// A job.
    Job {
        /// The payload as read.
        job: Box<JobPayload>,
        /// The payload as sent, to be kept.
        raw: Bytes,
    },
    /// A job that cannot be read; its id and token, where they can, so that it is failed and not left hanging.
    Unreadable {
        /// Job id and token.
        identity: Option<(u64, SecretString)>,
        /// What is wrong with it.
        cause: String,
    },
    /// No job now.
    NoJob,
    /// Another runner took it; ask again at once.
    Conflict,
    /// GitLab does not accept the token.
    InvalidToken,
    /// GitLab could not be asked.
    Retry {
        /// How long the server wants us to wait.
        after: Option<Duration>,
        /// What happened, for people.
        cause: String,
    },
}

/// What GitLab says of the job in passing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobStatus {
    /// Whether it should go on.
    pub wish: Wish,
    /// Whether somebody canceled it; otherwise GitLab may have ended it in another way.
    pub canceled: bool,
    /// The interval the server wants between log updates.
    pub interval: Option<Duration>,
}

/// Whether a job should go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    #[default]
    GoOn,
    /// Stop the script, run after_script, report.
    CancelGracefully,
    /// Stop at once, say nothing more.
    Abort,
}

/// The answer to `PUT jobs/:id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateAnswer {
    /// Done.
    Ok(JobStatus),
    /// Accepted; the log is still being stored.
    StoringLog {
        /// When to ask again.
        interval: Option<Duration>,
    },
    /// The log at GitLab is not the one claimed.
    LogInvalid,
    /// The job is not ours or not alive any more.
    Gone {
        /// Whether GitLab says that somebody canceled it.
        canceled: bool,
    },
    /// Another manager of this runner owns it.
    OwnedByOther,
    /// GitLab does not accept this state now.
    Refused,
    /// GitLab could not be asked.
    Retry {
        /// How long the server wants us to wait.
        after: Option<Duration>,
        /// What happened, for people.
        cause: String,
    },
}

/// The answer to `PATCH jobs/:id/trace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceAnswer {
    /// GitLab has this many bytes now.
    Accepted {
        /// Size of its log.
        size: u64,
        /// What else it says of the job.
        status: JobStatus,
    },
    /// The range does not continue its log, which has this many bytes.
    Mismatch {
        /// Size of its log.
        size: u64,
        /// What else it says of the job.
        status: JobStatus,
    },
    /// GitLab wants no more of this job.
    Abort {
        /// Whether GitLab says that somebody canceled it.
        canceled: bool,
    },
    /// GitLab does not find the job's log. That alone does not end the job: the next update says whether it is known.
    NotFound,
    /// GitLab could not be asked.
    Retry {
        /// How long the server wants us to wait.
        after: Option<Duration>,
        /// What happened, for people.
        cause: String,
    },
}

/// A job's id and token, for the calls about it.
#[derive(Clone)]
pub struct JobCredentials {
    /// GitLab job id.
    pub id: u64,
    /// Job token.
    pub token: Arc<SecretString>,
    /// Whether the job asked for a trace that may show secrets; GitLab restricts who may read such a log.
    pub debug_trace: bool,
}

impl JobCredentials {
    /// The credentials of a job.
    pub fn of(job: &JobPayload) -> Self {
        let is_on = |key| job.variable(key).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Self {
            id: job.id,
            token: Arc::new(SecretString::from(job.token.clone())),
            debug_trace: is_on("CI_DEBUG_TRACE") || is_on("CI_DEBUG_SERVICES"),
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
    Alive,
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
    /// When the URL or the certificates cannot be used.
    pub fn new(
        url: &str,
        token: SecretString,
        system_id: &str,
        name: &str,
        ca_bundle: Option<&str>,
        metrics: Metrics,
    ) -> Result<Self, BuildError> {
        let parsed = url::Url::parse(url).map_err(|_| BuildError::Url(url.to_owned()))?;
        let base = parsed.as_str().trim_end_matches('/').trim_end_matches("/ci").to_owned();
        let mut builder = reqwest::Client::builder()
            .user_agent(format!(
                "gitlab-runner {} (dormouse; rust; linux/{})",
                env!("CARGO_PKG_VERSION"),
                std::env::consts::ARCH
            ))
            .connect_timeout(DIAL_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(90))
            .tcp_keepalive(PROBE_INTERVAL)
            .tcp_keepalive_interval(PROBE_INTERVAL)
            .tcp_nodelay(true);
        if let Some(pem) = ca_bundle {
            for certificate in Certificate::from_pem_bundle(pem.as_bytes()).map_err(BuildError::CaBundle)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(Self {
            http: builder.build().map_err(BuildError::Http)?,
            base: format!("{base}/api/v4"),
            token: Arc::new(token),
            system_id: system_id.to_owned(),
            name: name.to_owned(),
            bounds: GitLabBounds::new(&metrics),
            metrics,
        })
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
        let response = match self.send("verify", request).await {
            Ok(response) => response,
            Err(cause) => return VerifyAnswer::Retry { cause },
        };
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => match response.json::<Verified>().await {
                Ok(Verified { id }) if id > 0 => VerifyAnswer::Valid { runner_id: id },
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
        let response = match self.send("request_job", request).await {
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
            JobUpdate::Pending | JobUpdate::Alive => &self.bounds.keep_alives,
            JobUpdate::Running | JobUpdate::Final { .. } => &self.bounds.jobs,
        };
        let _place = bound.enter().await;
        let request = self
            .request(Method::PUT, &format!("jobs/{}", job.id))
            .header("JOB-TOKEN", job.token.expose_secret())
            .timeout(CALL_TIMEOUT)
            .json(&self.update_body(job, update));
        let response = match self.send("update_job", request).await {
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
            JobUpdate::Running | JobUpdate::Alive => {
                map.insert("state".to_owned(), json!("running"));
            }
            JobUpdate::Final { failure, log, environment_key } => {
                map.insert("state".to_owned(), json!(if failure.is_some() { "failed" } else { "success" }));
                if let Some((reason, exit_code)) = failure {
                    map.insert("failure_reason".to_owned(), json!(reason));
                    if *exit_code != 0 {
                        map.insert("exit_code".to_owned(), json!(exit_code));
                    }
                }
                if let Some((bytes, crc32)) = log {
                    let checksum = format!("crc32:{crc32:08x}");
                    map.insert("checksum".to_owned(), json!(checksum));
                    map.insert("output".to_owned(), json!({ "checksum": checksum, "bytesize": bytes }));
                }
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
        let response = match self.send("patch_trace", request).await {
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
        self.http
            .request(method, format!("{}/{path}", self.base))
            .header("Accept", "application/json")
            .header("X-Request-Id", format!("{:032x}", rand::random::<u128>()))
    }

    /// Sends a request and counts it; the error is a sentence without URL or token.
    async fn send(
        &self,
        endpoint: &'static str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, String> {
        let started = std::time::Instant::now();
        let result = request.send().await;
        let status = result.as_ref().map_or(0, |response| response.status().as_u16());
        self.metrics.api_request(endpoint, status, started.elapsed());
        result.map_err(|error| match error.is_timeout() {
            true => "GitLab did not answer in time".to_owned(),
            false => format!("cannot reach GitLab: {}", root_cause(&error)),
        })
    }
}

fn answered(status: StatusCode) -> String {
    format!("GitLab answers {status}")
}

/// The innermost cause: reqwest's outer ones repeat the URL.
fn root_cause(error: &dyn std::error::Error) -> String {
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
