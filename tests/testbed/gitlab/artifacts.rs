//! The other calls with a job's token: artifacts, and the key of a resumed job.

use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::json;

use super::{
    exchange::{Answer, Exchange},
    job::{Artifact, JobId},
    server::Server,
    world::{Job, World},
};

/// `POST jobs/:id/artifacts`: keeps the body as it came.
pub(super) fn upload(server: &Server, exchange: &Exchange, id: JobId) -> Answer {
    let world = &mut *server.world();
    let is_multipart =
        exchange.header("content-type").is_some_and(|declared| declared.starts_with("multipart/form-data"));
    if !is_multipart {
        let what = "Content-Type is not multipart/form-data";
        world.ledger.violate(exchange, "artifact_content_type", what);
    }
    let Some(job) = with_token(world, exchange, id) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    if !job.view.state.is_worked_on() {
        return Answer::refusal(StatusCode::FORBIDDEN);
    }
    let body = exchange.body.to_vec();
    job.view.artifacts.push(Artifact { query: exchange.query.clone(), body });
    job.changed.notify_waiters();
    Answer::status(StatusCode::CREATED)
}

/// `GET jobs/:id/artifacts`: the latest upload.
pub(super) fn download(server: &Server, exchange: &Exchange, id: JobId) -> Answer {
    let world = &mut *server.world();
    let Some(job) = with_token(world, exchange, id) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    match job.view.artifacts.last() {
        Some(artifact) => {
            let body = Bytes::from(artifact.body.clone());
            Answer::bytes(StatusCode::OK, "application/octet-stream", body)
        }
        None => Answer::refusal(StatusCode::NOT_FOUND),
    }
}

/// `GET jobs/:id/runtime_environment_key`: the environment a running job was told to resume.
pub(super) fn environment_key(server: &Server, exchange: &Exchange, id: JobId) -> Answer {
    let world = &mut *server.world();
    let Some(job) = with_token(world, exchange, id).filter(|job| job.view.state.is_worked_on()) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    match &job.spec.environment_key {
        Some(key) => Answer::json(StatusCode::OK, &json!({ "runtime_environment_key": key })),
        None => Answer::refusal(StatusCode::NOT_FOUND),
    }
}

/// The job, if the call carries its token; anything else is recorded as `job_token`.
fn with_token<'a>(world: &'a mut World, exchange: &Exchange, id: JobId) -> Option<&'a mut Job> {
    let is_authentic =
        world.jobs.get(&id).is_some_and(|job| exchange.header("job-token") == Some(&job.view.token));
    if !is_authentic {
        world.ledger.violate(exchange, "job_token", "JOB-TOKEN is not this job's");
        return None;
    }
    world.jobs.get_mut(&id)
}
