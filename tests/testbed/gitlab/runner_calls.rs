//! The calls about runners: verify, delete, reset the token.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    exchange::{Answer, Exchange, Object},
    rules::{self, RunnerCall},
    runner::RunnerRecord,
    server::Server,
    world::World,
};

/// `POST runners/verify`.
pub(super) fn verify(server: &Server, exchange: &Exchange) -> Answer {
    let world = &mut *server.world();
    let body = match body_of(world, exchange, &["token", "system_id", "info"], Caller::Machine) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    judge_token(world, exchange, &body);
    let Some(runner) = authenticated(world, &body) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    meet_machine(runner, &body);
    Answer::json(StatusCode::OK, &details(runner))
}

/// `DELETE runners`.
pub(super) fn unregister(server: &Server, exchange: &Exchange) -> Answer {
    let world = &mut *server.world();
    let body = match body_of(world, exchange, &["token"], Caller::Runner) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let Some(runner) = authenticated(world, &body) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    let (id, token) = (runner.id, runner.token.clone());
    world.runners.remove(&id);
    world.retire(token, exchange.answer_may_be_lost);
    Answer::status(StatusCode::NO_CONTENT)
}

/// `DELETE runners/managers`.
pub(super) fn unregister_machine(server: &Server, exchange: &Exchange) -> Answer {
    let world = &mut *server.world();
    let body = match body_of(world, exchange, &["token", "system_id"], Caller::Runner) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let Some(runner) = authenticated(world, &body) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    let machine = rules::text(&body, "system_id").unwrap_or("");
    match runner.machines.remove(machine) {
        Some(_) => Answer::status(StatusCode::NO_CONTENT),
        None => Answer::refusal(StatusCode::NOT_FOUND),
    }
}

/// `POST runners/reset_authentication_token`.
pub(super) fn reset_token(server: &Server, exchange: &Exchange) -> Answer {
    let world = &mut *server.world();
    let body = match body_of(world, exchange, &["token"], Caller::Runner) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let Some(runner) = authenticated(world, &body) else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    let old = runner.issue_token(server.options.token_life);
    let answer = runner.issued();
    world.retire(old, exchange.answer_may_be_lost);
    Answer::json(StatusCode::CREATED, &answer)
}

/// Who has to be named by the body of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// The token is enough.
    Runner,
    /// The machine too, with all it can do.
    Machine,
}

/// The body of a call made with a runner's token. Records what is wrong with the call; a body
/// that cannot be read is answered with 400.
pub(super) fn body_of(
    world: &mut World,
    exchange: &Exchange,
    fields: &'static [&'static str],
    caller: Caller,
) -> Result<Object, Answer> {
    for (rule, what) in rules::breaches(rules::JSON_CALL, exchange) {
        world.ledger.violate(exchange, rule, what);
    }
    let body = exchange.object().map_err(|what| {
        world.ledger.violate(exchange, "json_body", what);
        Answer::refusal(StatusCode::BAD_REQUEST)
    })?;
    let call = RunnerCall { exchange, body: &body, fields };
    let mut breaches = rules::breaches(rules::RUNNER_CALL, &call);
    if caller == Caller::Machine {
        breaches.extend(rules::breaches(rules::MACHINE_CALL, &call));
    }
    for (rule, what) in breaches {
        world.ledger.violate(exchange, rule, what);
    }
    Ok(body)
}

/// The runner whose token the body carries.
pub(super) fn authenticated<'a>(world: &'a mut World, body: &Object) -> Option<&'a mut RunnerRecord> {
    let token = rules::text(body, "token")?;
    world.runner_by_token(token)
}

/// Notes the machine that made a call, and what it can do.
pub(super) fn meet_machine(runner: &mut RunnerRecord, body: &Object) {
    let Some(system_id) = rules::text(body, "system_id") else {
        return;
    };
    runner.has_contacted = true;
    let machine = runner.machines.entry(system_id.to_owned()).or_default();
    let features: Option<BTreeSet<String>> =
        rules::object(body, "info").and_then(|info| rules::object(info, "features")).map(|features| {
            features
                .iter()
                .filter(|(_, has)| **has == Value::Bool(true))
                .map(|(name, _)| name.clone())
                .collect()
        });
    if let Some(features) = features {
        machine.features = features;
    }
}

fn details(runner: &RunnerRecord) -> Value {
    runner.issued_with_id()
}

/// Rule `token_not_retired`: a token is not used any more by whoever was told that it is dead.
pub(super) fn judge_token(world: &mut World, exchange: &Exchange, body: &Object) {
    let token = rules::text(body, "token").unwrap_or("");
    if world.retired_tokens.get(token) == Some(&false) {
        world.ledger.violate(exchange, "token_not_retired", "its user was told that this token is dead");
    }
}
