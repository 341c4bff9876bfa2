//! The control side over HTTP, for people and scripts: `/-/control/...`, JSON in and out.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    job::{JobId, JobView},
    server::Server,
    spec::{JobSpec, KeySpelling},
};

type Shared = State<Arc<Server>>;

/// The routes of the control side.
pub(super) fn router() -> Router<Arc<Server>> {
    Router::new()
        .route("/runners", post(register_runner))
        .route("/jobs", get(list_jobs).post(enqueue))
        .route("/jobs/{id}", get(show_job))
        .route("/jobs/{id}/log", get(job_log))
        .route("/jobs/{id}/cancel", post(cancel))
        .route("/jobs/{id}/forget", post(forget))
        .route("/violations", get(violations))
        .route("/requests", get(requests))
}

/// A runner as a person asks for it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RunnerOrder {
    tags: Vec<String>,
}

async fn register_runner(State(server): Shared, Json(order): Json<RunnerOrder>) -> Response {
    let runner = server.world().register_runner(order.tags.into_iter().collect());
    (StatusCode::CREATED, Json(json!({ "id": runner.id.0, "token": runner.token }))).into_response()
}

/// A job as a person asks for it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct JobOrder {
    name: Option<String>,
    script: Vec<String>,
    after_script: Vec<String>,
    variables: std::collections::BTreeMap<String, String>,
    tags: Vec<String>,
    suspendable: bool,
    suspend_on_success: bool,
    suspend_on_failure: bool,
    environment_key: Option<String>,
    old_key_spelling: bool,
    timeout_seconds: Option<u64>,
    project: Option<String>,
    project_id: Option<u64>,
    protected: bool,
    /// Branch, tag or commit of the project's repository, if the stand-in serves one.
    git_ref: Option<String>,
}

async fn enqueue(State(server): Shared, Json(order): Json<JobOrder>) -> Response {
    let mut spec = JobSpec::new(order.name.unwrap_or_else(|| "job".to_owned()))
        .script(order.script)
        .after_script(order.after_script)
        .protected(order.protected);
    let project = order.project.unwrap_or_else(|| spec.project.clone());
    let project_id = order.project_id.unwrap_or(spec.project_id);
    if let Some(reference) = order.git_ref {
        let repo = server.world().projects.get(&project).cloned();
        let Some(repo) = repo else {
            let message = format!("no repository is served for {project:?}");
            return (StatusCode::UNPROCESSABLE_ENTITY, message).into_response();
        };
        spec = spec.git(&repo, reference);
    }
    spec = spec.project(project_id, project);
    for (key, value) in order.variables {
        spec = spec.variable(key, value);
    }
    for tag in order.tags {
        spec = spec.tag(tag);
    }
    if order.suspendable {
        spec = spec.suspendable();
    }
    if order.suspend_on_success {
        spec = spec.suspend_on_success();
    }
    if order.suspend_on_failure {
        spec = spec.suspend_on_failure();
    }
    if let Some(key) = order.environment_key {
        spec = spec.environment_key(key);
    }
    if order.old_key_spelling {
        spec = spec.key_spelling(KeySpelling::Old);
    }
    if let Some(seconds) = order.timeout_seconds {
        spec = spec.timeout(Duration::from_secs(seconds));
    }
    let id = server.world().enqueue(spec);
    server.queue_changed();
    (StatusCode::CREATED, Json(json!({ "id": id.0 }))).into_response()
}

async fn list_jobs(State(server): Shared) -> Json<Value> {
    let world = server.world();
    Json(world.jobs.values().map(|job| describe(&job.view)).collect())
}

async fn show_job(State(server): Shared, Path(id): Path<u64>) -> Result<Json<Value>, StatusCode> {
    let world = server.world();
    let job = world.jobs.get(&JobId(id)).ok_or(StatusCode::NOT_FOUND)?;
    Ok(Json(describe(&job.view)))
}

async fn job_log(State(server): Shared, Path(id): Path<u64>) -> Result<Vec<u8>, StatusCode> {
    let world = server.world();
    let job = world.jobs.get(&JobId(id)).ok_or(StatusCode::NOT_FOUND)?;
    Ok(job.view.log.clone())
}

async fn cancel(State(server): Shared, Path(id): Path<u64>) -> Result<Json<Value>, StatusCode> {
    let state = server.world().cancel(JobId(id)).ok_or(StatusCode::NOT_FOUND)?;
    Ok(Json(json!({ "state": state.status() })))
}

async fn forget(State(server): Shared, Path(id): Path<u64>) -> Result<StatusCode, StatusCode> {
    let mut world = server.world();
    let job = world.jobs.get_mut(&JobId(id)).ok_or(StatusCode::NOT_FOUND)?;
    job.is_forgotten = true;
    Ok(StatusCode::NO_CONTENT)
}

async fn violations(State(server): Shared) -> Json<Value> {
    let world = server.world();
    let describe = |violation: &super::Violation| {
        json!({
            "at": violation.at,
            "rule": violation.rule,
            "request": violation.request,
            "job": violation.job.map(|id| id.0),
            "what": violation.what,
        })
    };
    Json(world.ledger.violations.iter().map(describe).collect())
}

async fn requests(State(server): Shared) -> Json<Value> {
    let world = server.world();
    let describe = |request: &super::Request| {
        json!({
            "number": request.number,
            "at": request.at,
            "method": request.method,
            "path": request.path,
            "job": request.job.map(|id| id.0),
            "answer": request.answer,
            "took_ms": u64::try_from(request.took.as_millis()).unwrap_or(u64::MAX),
        })
    };
    Json(world.ledger.requests.iter().map(describe).collect())
}

fn describe(job: &JobView) -> Value {
    json!({
        "id": job.id.0,
        "name": job.name,
        "project": job.project,
        "state": job.state.status(),
        "log_bytes": job.log.len(),
        "exit_code": job.exit_code,
        "failure_reason": job.failure_reason,
        "environment_key": job.environment_key,
        "runner": job.runner.map(|id| id.0),
        "system_id": job.machine,
        "enqueued_at": job.enqueued_at,
        "picked_up_at": job.picked_up_at,
        "running_at": job.running_at,
        "first_byte_at": job.first_byte_at,
        "finished_at": job.finished_at,
        "retried_as": job.retried_as.map(|id| id.0),
    })
}
