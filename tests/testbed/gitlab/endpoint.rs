//! Which call of the API a request is.

use axum::http::Method;

use super::{access::Call, job::JobId, runner::RunnerId};

/// A call, told by its method and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Verify,
    Unregister,
    UnregisterMachine,
    ResetToken,
    Discovery,
    RequestJob,
    Update(JobId),
    Trace(JobId),
    EnvironmentKey(JobId),
    UploadArtifacts(JobId),
    DownloadArtifacts(JobId),
    /// Where artifacts lie: the object storage behind GitLab.
    Storage(JobId),
    /// A REST call about runners, with an access token.
    Access(Call),
    /// git over HTTP: the project and the path below its repository.
    Git {
        project: String,
        rest: String,
    },
    Unknown,
}

impl Endpoint {
    /// Recognises a request.
    pub fn of(method: &Method, path: &str) -> Self {
        if let Some(call) = path.strip_prefix("/api/v4/") {
            return Self::of_api(method.as_str(), call);
        }
        if let Some(id) = path.strip_prefix("/-/storage/").and_then(|id| id.parse().ok()) {
            return if method == Method::GET { Self::Storage(JobId(id)) } else { Self::Unknown };
        }
        match path.trim_start_matches('/').split_once(".git/") {
            Some((project, rest)) if project.contains('/') => {
                Self::Git { project: project.to_owned(), rest: rest.to_owned() }
            }
            _ => Self::Unknown,
        }
    }

    fn of_api(method: &str, call: &str) -> Self {
        let segments: Vec<&str> = call.split('/').collect();
        match (method, segments.as_slice()) {
            ("POST", ["runners", "verify"]) => Self::Verify,
            ("DELETE", ["runners"]) => Self::Unregister,
            ("DELETE", ["runners", "managers"]) => Self::UnregisterMachine,
            ("POST", ["runners", "reset_authentication_token"]) => Self::ResetToken,
            ("GET", ["runners", "router", "discovery"]) => Self::Discovery,
            ("POST", ["jobs", "request"]) => Self::RequestJob,
            ("POST", ["user", "runners"]) => Self::Access(Call::Create),
            ("GET", ["runners", "all"]) => Self::Access(Call::List("all".to_owned())),
            ("GET", [of @ ("groups" | "projects"), id, "runners"]) => {
                Self::Access(Call::List(format!("{of}/{id}")))
            }
            (_, ["runners", id, rest @ ..]) => match (id.parse().map(RunnerId), method, rest) {
                (Ok(id), "GET", []) => Self::Access(Call::Show(id)),
                (Ok(id), "PUT", []) => Self::Access(Call::Change(id)),
                (Ok(id), "DELETE", []) => Self::Access(Call::Remove(id)),
                (Ok(id), "POST", ["reset_authentication_token"]) => Self::Access(Call::ResetToken(id)),
                _ => Self::Unknown,
            },
            (_, ["jobs", id, rest @ ..]) => match (id.parse().map(JobId), method, rest) {
                (Ok(id), "PUT", []) => Self::Update(id),
                (Ok(id), "PATCH", ["trace"]) => Self::Trace(id),
                (Ok(id), "GET", ["runtime_environment_key"]) => Self::EnvironmentKey(id),
                (Ok(id), "POST", ["artifacts"]) => Self::UploadArtifacts(id),
                (Ok(id), "GET", ["artifacts"]) => Self::DownloadArtifacts(id),
                _ => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }

    /// The job the call is about.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::Update(id)
            | Self::Trace(id)
            | Self::EnvironmentKey(id)
            | Self::UploadArtifacts(id)
            | Self::DownloadArtifacts(id)
            | Self::Storage(id) => Some(*id),
            Self::Verify
            | Self::Unregister
            | Self::UnregisterMachine
            | Self::ResetToken
            | Self::Discovery
            | Self::RequestJob
            | Self::Access(_)
            | Self::Git { .. }
            | Self::Unknown => None,
        }
    }

    /// Whether the call is part of the runner API (git comes from the host, not from the runner; the storage is not
    /// GitLab).
    pub fn is_runner_api(&self) -> bool {
        !matches!(self, Self::Git { .. } | Self::Storage(_))
    }
}
