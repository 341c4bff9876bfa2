//! The other calls with a job's token: artifacts, and the key of a resumed job.
//!
//! Uploads are taken apart and judged: a form with one file, of the format and type they say, each type once. Downloads
//! are handed out directly where that is asked for, from a storage that has a name of its own and wants no token.

use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::json;

use super::{
    exchange::{Answer, Exchange},
    job::{Artifact, JobId},
    rules::{Finding, Rules, breaches, rules},
    server::Server,
    world::{Job, World},
};

/// Rules for uploads.
const UPLOAD: Rules<fn(&Upload<'_>) -> Finding> =
    rules![artifact_content_type, artifact_form, artifact_query, artifact_content];

/// An upload, and its form taken apart.
struct Upload<'a> {
    exchange: &'a Exchange,
    part: Result<Part<'a>, String>,
}

/// The one part of a form.
struct Part<'a> {
    file_name: String,
    content: &'a [u8],
}

/// `POST jobs/:id/artifacts`: keeps the body as it came.
pub(super) fn upload(server: &Server, exchange: &Exchange, id: JobId) -> Answer {
    let upload = Upload { exchange, part: one_part(exchange) };
    let world = &mut *server.world();
    for (rule, what) in breaches(UPLOAD, &upload) {
        world.ledger.violate(exchange, rule, what);
    }
    let Some(job) = with_token(world, exchange, id) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    if !job.view.state.is_worked_on() {
        return Answer::refusal(StatusCode::FORBIDDEN);
    }
    let Ok(part) = upload.part else {
        return Answer::refusal(StatusCode::BAD_REQUEST);
    };
    if job.spec.artifacts_limit.is_some_and(|limit| part.content.len() > limit) {
        return Answer::refusal(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let artifact = Artifact {
        query: exchange.query.clone(),
        kind: exchange.query_parameter("artifact_type").unwrap_or_default(),
        file_name: part.file_name,
        file: part.content.to_vec(),
        body: exchange.body.to_vec(),
    };
    // The same once more is a retry whose answer was lost; something else of the same type is an error.
    match job.view.artifacts.iter().find(|known| known.kind == artifact.kind) {
        Some(known) if known.file == artifact.file => return Answer::status(StatusCode::CREATED),
        Some(_) => return Answer::refusal(StatusCode::BAD_REQUEST),
        None => job.view.artifacts.push(artifact),
    }
    job.changed.notify_waiters();
    Answer::status(StatusCode::CREATED)
}

/// `GET jobs/:id/artifacts`: the job's archive, or the place where it lies.
pub(super) fn download(server: &Server, exchange: &Exchange, id: JobId) -> Answer {
    let world = &mut *server.world();
    let direct = exchange.query_parameter("direct_download");
    if exchange.query_parameter("direct_download").is_none() && !exchange.query.is_empty()
        || direct.as_deref().is_some_and(|direct| direct != "true")
    {
        let what = format!("{:?} is no query of a download", exchange.query);
        world.ledger.violate(exchange, "artifact_download_query", what);
    }
    let Some(job) = with_token(world, exchange, id) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    let Some(archive) = archive_of(job) else {
        return Answer::refusal(StatusCode::NOT_FOUND);
    };
    if direct.is_some() {
        let place = format!("{}/-/storage/{id}?signature={SIGNATURE}", storage(&server.url));
        return Answer::status(StatusCode::FOUND).with("location", place);
    }
    Answer::bytes(StatusCode::OK, "application/octet-stream", archive)
}

/// What makes an address of the storage valid.
const SIGNATURE: &str = "signed-by-gitlab";

/// The storage is the same server by another name, which makes it another origin.
fn storage(url: &str) -> String {
    url.replace("://127.0.0.1", "://localhost")
}

/// `GET /-/storage/:id`: the file itself, for whoever has the address; a token has no business here.
pub(super) fn stored(server: &Server, exchange: &Exchange, id: JobId) -> Answer {
    let world = &mut *server.world();
    for name in ["job-token", "private-token", "authorization"] {
        if exchange.header(name).is_some() {
            world.ledger.violate(
                exchange,
                "token_to_another_origin",
                format!("{name} was sent to the storage"),
            );
        }
    }
    if exchange.query_parameter("signature").as_deref() != Some(SIGNATURE) {
        return Answer::refusal(StatusCode::FORBIDDEN);
    }
    match world.jobs.get(&id).and_then(archive_of) {
        Some(archive) => Answer::bytes(StatusCode::OK, "application/octet-stream", archive),
        None => Answer::refusal(StatusCode::NOT_FOUND),
    }
}

/// What a job's dependants get: its archive, or what was seeded in its place.
fn archive_of(job: &Job) -> Option<Bytes> {
    let uploaded = || job.view.artifacts.iter().find(|artifact| artifact.kind == "archive");
    let archive = job.spec.archive.clone().or_else(|| Some(uploaded()?.file.clone()))?;
    Some(Bytes::from(archive))
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

/// The body is a form, and says so.
fn artifact_content_type(upload: &Upload<'_>) -> Finding {
    match boundary(upload.exchange) {
        Some(_) => Ok(()),
        None => Err("Content-Type is not multipart/form-data with a boundary".to_owned()),
    }
}

/// The form has one part, `file`, with a name that is no path.
fn artifact_form(upload: &Upload<'_>) -> Finding {
    let part = upload.part.as_ref().map_err(Clone::clone)?;
    match part.file_name.is_empty() || part.file_name.contains('/') {
        true => Err(format!("{:?} is no name of a file", part.file_name)),
        false => Ok(()),
    }
}

/// The query says what it is, in words that GitLab knows.
fn artifact_query(upload: &Upload<'_>) -> Finding {
    const KNOWN: [&str; 3] = ["artifact_format", "artifact_type", "expire_in"];
    let query = &upload.exchange.query;
    for (key, _) in url::form_urlencoded::parse(query.as_bytes()) {
        if !KNOWN.contains(&key.as_ref()) {
            return Err(format!("{key} is no parameter of an upload"));
        }
    }
    let (kind, format) = (
        upload.exchange.query_parameter("artifact_type").ok_or("artifact_type is missing")?,
        upload.exchange.query_parameter("artifact_format").ok_or("artifact_format is missing")?,
    );
    match (kind.as_str(), format.as_str()) {
        ("archive", "zip") => Ok(()),
        ("archive", _) => Err(format!("an archive is zip, not {format}")),
        (_, "zip" | "gzip" | "raw") if !kind.is_empty() => Ok(()),
        _ => Err(format!("artifacts of type {kind:?} and format {format:?}")),
    }
}

/// The content is of the format that the query says.
fn artifact_content(upload: &Upload<'_>) -> Finding {
    let Ok(part) = &upload.part else { return Ok(()) };
    let magic: &[u8] = match upload.exchange.query_parameter("artifact_format").as_deref() {
        Some("zip") => b"PK",
        Some("gzip") => b"\x1f\x8b",
        _ => b"",
    };
    match part.content.starts_with(magic) {
        true => Ok(()),
        false => Err("the content is not of its format".to_owned()),
    }
}

fn boundary(exchange: &Exchange) -> Option<&str> {
    exchange.header("content-type")?.strip_prefix("multipart/form-data; boundary=")
}

/// Takes a form apart that has one part, `file`, and nothing else.
fn one_part(exchange: &Exchange) -> Result<Part<'_>, String> {
    let boundary = boundary(exchange).ok_or("there is no boundary")?;
    let body = &exchange.body;
    let rest =
        body.strip_prefix(format!("--{boundary}\r\n").as_bytes()).ok_or("the form has no beginning")?;
    let rest =
        rest.strip_suffix(format!("\r\n--{boundary}--\r\n").as_bytes()).ok_or("the form has no end")?;
    let (head, content) = cut(rest, b"\r\n\r\n").ok_or("the part has no head")?;
    let head = String::from_utf8_lossy(head);
    if cut(content, format!("\r\n--{boundary}").as_bytes()).is_some() {
        return Err("the form has more than one part".to_owned());
    }
    let disposition = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Disposition: form-data; "))
        .ok_or("the part has no disposition")?;
    if !disposition.split("; ").any(|word| word == "name=\"file\"") {
        return Err("the part is not called file".to_owned());
    }
    let file_name = disposition
        .split("; ")
        .find_map(|word| word.strip_prefix("filename=\"")?.strip_suffix('"'))
        .ok_or("the part has no file name")?;
    Ok(Part { file_name: file_name.to_owned(), content })
}

/// What is before and after the first of these words.
fn cut<'a>(text: &'a [u8], word: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = text.windows(word.len()).position(|window| window == word)?;
    let (before, rest) = text.split_at_checked(at)?;
    Some((before, rest.strip_prefix(word)?))
}
