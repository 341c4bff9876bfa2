//! git LFS beside git over HTTP: the batch call and the downloads it names.
//!
//! As the protocol has it: the batch call takes and gives `application/vnd.git-lfs+json`, names at least one
//! transfer that both know, and sends the client to an address of its own for each object.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    exchange::{Answer, Exchange},
    repository::GitRepo,
};

const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// A call below a repository that is not git's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Which objects can be had, and where.
    Batch,
    /// One object.
    Download(String),
}

impl Call {
    /// Recognises a request.
    pub fn of(method: &str, rest: &str) -> Option<Self> {
        match (method, rest) {
            ("POST", "info/lfs/objects/batch") => Some(Self::Batch),
            ("GET", _) => rest.strip_prefix("gitlab-lfs/objects/").map(|id| Self::Download(id.to_owned())),
            _ => None,
        }
    }
}

/// Answers a call about the large files of a repository.
pub(super) fn serve(repo: &GitRepo, exchange: &Exchange, call: &Call, address: &str) -> Answer {
    match call {
        Call::Batch => batch(repo, exchange, address),
        Call::Download(id) => match repo.large_content(id) {
            Some(content) => Answer::bytes(StatusCode::OK, "application/octet-stream", content),
            None => Answer::refusal(StatusCode::NOT_FOUND),
        },
    }
}

fn batch(repo: &GitRepo, exchange: &Exchange, address: &str) -> Answer {
    let declares = |name| exchange.header(name).is_some_and(|kind| kind.starts_with(MEDIA_TYPE));
    if !declares("accept") || !declares("content-type") {
        return refusal(StatusCode::NOT_ACCEPTABLE, "the batch call speaks application/vnd.git-lfs+json");
    }
    let Ok(body) = exchange.object() else {
        return refusal(StatusCode::UNPROCESSABLE_ENTITY, "the batch call carries no JSON object");
    };
    if body.get("operation").and_then(Value::as_str) != Some("download") {
        return refusal(StatusCode::FORBIDDEN, "a job may only download");
    }
    let wanted = body.get("objects").and_then(Value::as_array).cloned().unwrap_or_default();
    let objects: Vec<Value> = wanted.iter().map(|object| offer(repo, object, exchange, address)).collect();
    let mut answer = Answer::json(StatusCode::OK, &json!({ "transfer": "basic", "objects": objects }));
    answer.headers.insert("content-type", axum::http::HeaderValue::from_static(MEDIA_TYPE));
    answer
}

/// One object: where it is, or that there is none.
fn offer(repo: &GitRepo, object: &Value, exchange: &Exchange, address: &str) -> Value {
    let id = object.get("oid").and_then(Value::as_str).unwrap_or_default();
    match repo.large_content(id) {
        Some(content) => json!({
            "oid": id,
            "size": content.len(),
            "authenticated": true,
            "actions": { "download": {
                "href": format!("{address}/gitlab-lfs/objects/{id}"),
                "header": { "Authorization": exchange.header("authorization").unwrap_or_default() },
                "expires_in": 3600,
            } },
        }),
        None => {
            json!({ "oid": id, "size": object.get("size"), "error": { "code": 404, "message": "Object does not exist" } })
        }
    }
}

fn refusal(status: StatusCode, message: &str) -> Answer {
    Answer::json(status, &json!({ "message": message }))
}
