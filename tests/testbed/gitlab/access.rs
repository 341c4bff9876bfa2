//! The REST calls about runners with an access token: made, shown, changed, listed, removed, given another token.
//!
//! Strict in what GitLab is lenient in: unknown fields, a second runner for the same marker while an unused one is there.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    exchange::{Answer, Exchange, Object},
    rules::{self, Finding, Rules, rules},
    runner::{RunnerId, RunnerRecord},
    server::Server,
    world::World,
};

/// What an access token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Create runners, and nothing else.
    CreateRunner,
    /// Create, show, list, change and remove them, and reset their tokens.
    ManageRunner,
}

/// A REST call about runners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Create,
    Show(RunnerId),
    Change(RunnerId),
    Remove(RunnerId),
    ResetToken(RunnerId),
    /// Of the whole server, a group or a project, by the path.
    List(String),
}

const SETTINGS: &[&str] =
    &["description", "tag_list", "locked", "run_untagged", "access_level", "paused", "maximum_timeout"];
const CREATION: &[&str] = &[
    "description",
    "tag_list",
    "locked",
    "run_untagged",
    "access_level",
    "paused",
    "maximum_timeout",
    "runner_type",
    "group_id",
    "project_id",
    "maintenance_note",
];

/// Rules for every call with an access token.
const ACCESS_CALL: Rules<fn(&Exchange) -> Finding> = rules![access_token_header, no_runner_token];

/// The access token is in its header.
fn access_token_header(exchange: &Exchange) -> Finding {
    match exchange.header("private-token") {
        Some(token) if token.starts_with("glpat-") => Ok(()),
        _ => Err("PRIVATE-TOKEN is missing or no access token".to_owned()),
    }
}

/// A runner's token has no business in a call of a person.
fn no_runner_token(exchange: &Exchange) -> Finding {
    match exchange.header("runner-token") {
        None => Ok(()),
        Some(_) => Err("RUNNER-TOKEN is sent along".to_owned()),
    }
}

/// Serves a call.
pub(super) fn serve(server: &Server, exchange: &Exchange, call: &Call) -> Answer {
    let world = &mut *server.world();
    for (rule, what) in rules::breaches(ACCESS_CALL, exchange) {
        world.ledger.violate(exchange, rule, what);
    }
    let token = exchange.header("private-token").unwrap_or("");
    let Some(scope) = world.access_tokens.get(token).copied() else {
        return Answer::refusal(StatusCode::UNAUTHORIZED);
    };
    if scope == Scope::CreateRunner && *call != Call::Create {
        return Answer::json(StatusCode::FORBIDDEN, &json!({ "error": "insufficient_scope" }));
    }
    let body = match body(world, exchange, call) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    match call {
        Call::Create => create(server, world, exchange, scope, &body),
        Call::List(of) => list(world, exchange, of),
        Call::Show(id) => match world.runners.get(id) {
            Some(runner) => Answer::json(StatusCode::OK, &shown(runner)),
            None => Answer::refusal(StatusCode::NOT_FOUND),
        },
        Call::Change(id) => change(world, *id, &body),
        Call::Remove(id) => match world.runners.remove(id) {
            Some(runner) => {
                world.retire(runner.token, exchange.answer_may_be_lost);
                Answer::status(StatusCode::NO_CONTENT)
            }
            None => Answer::refusal(StatusCode::NOT_FOUND),
        },
        Call::ResetToken(id) => {
            let life = server.options.token_life;
            let Some(runner) = world.runners.get_mut(id) else {
                return Answer::refusal(StatusCode::NOT_FOUND);
            };
            let old = runner.issue_token(life);
            let answer = runner.issued();
            world.retire(old, exchange.answer_may_be_lost);
            Answer::json(StatusCode::CREATED, &answer)
        }
    }
}

fn body(world: &mut World, exchange: &Exchange, call: &Call) -> Result<Object, Answer> {
    let known = match call {
        Call::Create => CREATION,
        Call::Change(_) => SETTINGS,
        Call::Show(_) | Call::Remove(_) | Call::ResetToken(_) | Call::List(_) => return Ok(Object::new()),
    };
    let body = exchange.object().map_err(|what| {
        world.ledger.violate(exchange, "json_body", what);
        Answer::refusal(StatusCode::BAD_REQUEST)
    })?;
    if let Err(what) = rules::only_known_fields(&body, known, "body") {
        world.ledger.violate(exchange, "runner_settings", what);
    }
    Ok(body)
}

/// What GitLab would answer with 400, in its words.
fn refusal(body: &Object) -> Option<Value> {
    let is_untagged = body.get("run_untagged") == Some(&Value::Bool(false));
    let has_tags = body.get("tag_list").and_then(Value::as_array).is_some_and(|tags| !tags.is_empty());
    if is_untagged && !has_tags {
        return Some(
            json!({ "tags_list": ["can not be empty when runner is not allowed to pick untagged jobs"] }),
        );
    }
    let limit = body.get("maximum_timeout").and_then(Value::as_u64);
    if limit.is_some_and(|limit| limit < 600) {
        return Some(json!({ "maximum_timeout": ["needs to be at least 10 minutes"] }));
    }
    let tags = body.get("tag_list").and_then(Value::as_array);
    if tags.is_some_and(|tags| tags.iter().any(|tag| tag == "forbidden")) {
        return Some(json!({ "tags": ["forbidden is reserved"] }));
    }
    match (rules::text(body, "runner_type"), body.get("group_id"), body.get("project_id")) {
        (None | Some("instance_type"), None, None)
        | (Some("group_type"), Some(_), None)
        | (Some("project_type"), None, Some(_)) => None,
        other => Some(json!({ "runner_type": [format!("does not go with its owner: {other:?}")] })),
    }
}

fn create(server: &Server, world: &mut World, exchange: &Exchange, scope: Scope, body: &Object) -> Answer {
    if let Some(words) = refusal(body) {
        return Answer::json(StatusCode::BAD_REQUEST, &json!({ "message": words }));
    }
    let note = rules::text(body, "maintenance_note").unwrap_or("").to_owned();
    let is_left = |runner: &&RunnerRecord| {
        !runner.has_contacted && rules::text(&runner.settings, "maintenance_note") == Some(note.as_str())
    };
    // One that may only create cannot know.
    if scope == Scope::ManageRunner
        && let Some(left) = world.runners.values().find(is_left)
    {
        let what = format!("runner {} with the same note was never used", left.id);
        world.ledger.violate(exchange, "one_runner_for_a_marker", what);
    }
    let runner = world.make_runner(body.clone(), server.options.token_life);
    Answer::json(StatusCode::CREATED, &runner.issued_with_id())
}

fn change(world: &mut World, id: RunnerId, body: &Object) -> Answer {
    let Some(runner) = world.runners.get_mut(&id) else {
        return Answer::refusal(StatusCode::NOT_FOUND);
    };
    if let Some(words) = refusal(body) {
        return Answer::json(StatusCode::BAD_REQUEST, &json!({ "message": words }));
    }
    runner.settings.extend(body.clone());
    runner.take_settings();
    Answer::json(StatusCode::OK, &shown(runner))
}

fn list(world: &World, exchange: &Exchange, of: &str) -> Answer {
    let wanted = exchange.query_parameter("type");
    let is_unused = exchange.query_parameter("status").as_deref() == Some("never_contacted");
    let owner: Vec<&str> = of.split('/').collect();
    let is = |runner: &RunnerRecord, key: &str, id: &str| {
        id.parse().is_ok_and(|id: u64| runner.settings.get(key).and_then(Value::as_u64) == Some(id))
    };
    let of_owner = |runner: &RunnerRecord| match owner.as_slice() {
        ["groups", id] => is(runner, "group_id", id),
        ["projects", id] => is(runner, "project_id", id),
        _ => true,
    };
    let listed: Vec<Value> = world
        .runners
        .values()
        .filter(|runner| of_owner(runner) && (!is_unused || !runner.has_contacted))
        .filter(|runner| {
            wanted.is_none() || rules::text(&runner.settings, "runner_type") == wanted.as_deref()
        })
        .map(|runner| json!({ "id": runner.id.0, "description": runner.settings.get("description") }))
        .collect();
    Answer::json(StatusCode::OK, &json!(listed))
}

fn shown(runner: &RunnerRecord) -> Value {
    let mut shown = runner.settings.clone();
    shown.insert("id".to_owned(), json!(runner.id.0));
    shown.insert("tag_list".to_owned(), json!(runner.tags));
    shown.insert("paused".to_owned(), json!(runner.is_paused));
    Value::Object(shown)
}
