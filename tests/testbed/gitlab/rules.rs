//! The rules every call has to keep, one function each.
//!
//! A rule looks at one request and says what is wrong with it. It decides nothing: what the server
//! answers is decided where the call is handled, and a request can break a rule and still be
//! answered as GitLab would answer it.

pub(super) mod trace;
pub(super) mod update;

use super::exchange::{Exchange, Object};

/// What a rule says: fine, or what was wrong.
pub(super) type Finding = Result<(), String>;

/// Rules with their names. `Check` is the kind of function.
pub(super) type Rules<Check> = &'static [(&'static str, Check)];

/// Lists rules, each with its name, which is that of its function.
macro_rules! rules {
    ($($rule:ident),+ $(,)?) => { &[$((stringify!($rule), $rule)),+] };
}
pub(super) use rules;

/// The name of a broken rule, and what was wrong.
pub(super) type Breach = (&'static str, String);

/// What the request breaks of `rules`: name of the rule and what was wrong.
pub(super) fn breaches<Subject>(
    rules: &[(&'static str, impl Fn(&Subject) -> Finding)],
    subject: &Subject,
) -> Vec<Breach> {
    rules.iter().filter_map(|(name, rule)| Some((*name, rule(subject).err()?))).collect()
}

/// Rules for every call of the runner API.
pub(super) const EVERY_CALL: Rules<fn(&Exchange) -> Finding> = rules![known_call, request_id, user_agent];

/// Rules for calls with a JSON body.
pub(super) const JSON_CALL: Rules<fn(&Exchange) -> Finding> = rules![json_content_type, accepts_json];

/// A call made with a runner's token, with its body.
pub(super) struct RunnerCall<'a> {
    pub exchange: &'a Exchange,
    pub body: &'a Object,
    /// Top-level fields the call knows.
    pub fields: &'static [&'static str],
}

/// Rules for calls made with a runner's token.
pub(super) const RUNNER_CALL: Rules<fn(&RunnerCall<'_>) -> Finding> =
    rules![runner_fields, runner_token_in_body, runner_token_header];

/// Rules for calls that say which machine makes them.
pub(super) const MACHINE_CALL: Rules<fn(&RunnerCall<'_>) -> Finding> = rules![system_id, info, features];

/// The request is one the API has.
fn known_call(exchange: &Exchange) -> Finding {
    match exchange.endpoint {
        super::endpoint::Endpoint::Unknown => Err("no such call in the runner API".to_owned()),
        _ => Ok(()),
    }
}

/// `X-Request-Id` is 32 hex digits, so that both sides' logs can be joined.
fn request_id(exchange: &Exchange) -> Finding {
    let id = exchange.header("x-request-id").ok_or("X-Request-Id is missing")?;
    match id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(()),
        false => Err(format!("X-Request-Id {id:?} is not 32 hex digits")),
    }
}

/// `User-Agent` is `<name> <version> (<branch>; <toolchain>; <os>/<architecture>)`.
fn user_agent(exchange: &Exchange) -> Finding {
    let agent = exchange.header("user-agent").ok_or("User-Agent is missing")?;
    let is_formed = agent.split_once(" (").is_some_and(|(product, comment)| {
        let mut product = product.split(' ');
        let name = product.next().is_some_and(|name| !name.is_empty());
        let version = product.next().is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()));
        let parts: Vec<&str> = comment.trim_end_matches(')').split("; ").collect();
        let platform = parts.last().and_then(|last| last.split_once('/'));
        name && version
            && product.next().is_none()
            && comment.ends_with(')')
            && parts.len() == 3
            && parts.iter().all(|part| !part.is_empty())
            && platform.is_some_and(|(os, arch)| !os.is_empty() && !arch.is_empty())
    });
    match is_formed {
        true => Ok(()),
        false => Err(format!("User-Agent {agent:?} has not the runner's form")),
    }
}

/// A JSON body is declared as such.
fn json_content_type(exchange: &Exchange) -> Finding {
    let declared = exchange.header("content-type").unwrap_or("");
    match declared.split(';').next().map(str::trim) {
        Some("application/json") => Ok(()),
        _ => Err(format!("Content-Type is {declared:?}, not application/json")),
    }
}

/// The client says that it takes JSON.
fn accepts_json(exchange: &Exchange) -> Finding {
    match exchange.header("accept") {
        Some(accepted) if accepted.contains("application/json") => Ok(()),
        other => Err(format!("Accept is {other:?}, without application/json")),
    }
}

/// Only fields the call knows are sent.
fn runner_fields(call: &RunnerCall<'_>) -> Finding {
    only_known_fields(call.body, call.fields, "body")
}

/// The body carries the token.
fn runner_token_in_body(call: &RunnerCall<'_>) -> Finding {
    match text(call.body, "token") {
        Some(token) if !token.is_empty() => Ok(()),
        _ => Err("the body carries no token".to_owned()),
    }
}

/// The `RUNNER-TOKEN` header carries the same token as the body.
fn runner_token_header(call: &RunnerCall<'_>) -> Finding {
    match (call.exchange.header("runner-token"), text(call.body, "token")) {
        (Some(header), Some(body)) if header == body => Ok(()),
        (None, _) => Err("RUNNER-TOKEN is missing".to_owned()),
        (Some(_), _) => Err("RUNNER-TOKEN is not the token of the body".to_owned()),
    }
}

/// `system_id` is `s_` or `r_` and twelve letters or digits.
fn system_id(call: &RunnerCall<'_>) -> Finding {
    let id = text(call.body, "system_id").ok_or("system_id is missing")?;
    let rest = id.strip_prefix("s_").or_else(|| id.strip_prefix("r_"));
    match rest {
        Some(rest) if rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_alphanumeric()) => Ok(()),
        _ => Err(format!("system_id {id:?} has not the form s_ or r_ and twelve characters")),
    }
}

/// `info` says who asks, in full, and nothing unknown.
fn info(call: &RunnerCall<'_>) -> Finding {
    let info = object(call.body, "info").ok_or("info is missing")?;
    for field in ["name", "version", "revision", "platform", "architecture", "executor", "shell"] {
        if text(info, field).is_none_or(str::is_empty) {
            return Err(format!("info.{field} is missing or empty"));
        }
    }
    only_known_fields(info, INFO_FIELDS, "info")
}

/// `info.features` is there, has only features GitLab knows, each true or false.
fn features(call: &RunnerCall<'_>) -> Finding {
    let features = object(call.body, "info")
        .and_then(|info| object(info, "features"))
        .ok_or("info.features is missing")?;
    only_known_fields(features, FEATURES, "info.features")?;
    match features.iter().find(|(_, value)| !value.is_boolean()) {
        Some((name, value)) => Err(format!("info.features.{name} is {value}, not a boolean")),
        None => Ok(()),
    }
}

/// Nothing beside `known` is in `object`.
pub(super) fn only_known_fields(object: &Object, known: &[&str], place: &str) -> Finding {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => Err(format!("unknown field {unknown:?} in {place}")),
        None => Ok(()),
    }
}

/// A text field.
pub(super) fn text<'a>(object: &'a Object, field: &str) -> Option<&'a str> {
    object.get(field)?.as_str()
}

/// An object field.
pub(super) fn object<'a>(object: &'a Object, field: &str) -> Option<&'a Object> {
    object.get(field)?.as_object()
}

const INFO_FIELDS: &[&str] = &[
    "name",
    "version",
    "revision",
    "platform",
    "architecture",
    "executor",
    "shell",
    "features",
    "config",
    "labels",
];

const FEATURES: &[&str] = &[
    "variables",
    "image",
    "services",
    "artifacts",
    "cache",
    "fallback_cache_keys",
    "shared",
    "upload_multiple_artifacts",
    "upload_raw_artifacts",
    "session",
    "terminal",
    "refspecs",
    "masking",
    "proxy",
    "raw_variables",
    "artifacts_exclude",
    "multi_build_steps",
    "trace_reset",
    "trace_checksum",
    "trace_size",
    "vault_secrets",
    "cancelable",
    "return_exit_code",
    "service_variables",
    "service_multiple_aliases",
    "image_executor_opts",
    "service_executor_opts",
    "cancel_gracefully",
    "native_steps_integration",
    "two_phase_job_commit",
    "job_inputs",
];
