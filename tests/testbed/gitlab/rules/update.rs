//! Rules for `PUT jobs/:id`.

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::super::{
    exchange::{Exchange, Object},
    world::Job,
};
use super::{Finding, Rules, object, only_known_fields, rules, text};

/// The longest environment key a server takes.
const LONGEST_KEY: usize = 512;
/// Reasons every server knows, listed or not.
const BASE_REASONS: &[&str] = &["script_failure", "runner_system_failure", "job_execution_timeout"];
/// `unknown_failure` is what unlisted reasons are mapped to, so it needs no listing either.
const UNKNOWN_REASON: &str = "unknown_failure";

/// An update and the job it is for.
pub(in super::super) struct Update<'a> {
    pub exchange: &'a Exchange,
    pub body: &'a Object,
    pub job: &'a Job,
}

impl Update<'_> {
    fn state(&self) -> &str {
        text(self.body, "state").unwrap_or("")
    }

    /// The state ends the job.
    pub fn is_final(&self) -> bool {
        matches!(self.state(), "success" | "failed")
    }

    /// `output.checksum`.
    pub fn checksum(&self) -> Option<&str> {
        text(object(self.body, "output")?, "checksum")
    }

    /// `output.bytesize`; a size of 0 may be left out beside a checksum.
    pub fn bytesize(&self) -> Option<u64> {
        match object(self.body, "output")?.get("bytesize") {
            Some(size) => size.as_u64(),
            None => self.checksum().map(|_| 0),
        }
    }

    /// The key under its new name, and under its old one.
    pub fn keys(&self) -> [Option<&str>; 2] {
        [text(self.body, "runtime_environment_key"), text(self.body, "environment_key")]
    }

    fn key(&self) -> Option<&str> {
        let [new, old] = self.keys();
        new.or(old)
    }
}

/// Rules for each update by itself; what may follow what is judged where the job moves.
pub(in super::super) const UPDATE: Rules<fn(&Update<'_>) -> Finding> = rules![
    update_fields,
    update_token_in_body,
    update_token_header,
    update_state_known,
    update_info,
    failure_reason_only_with_failed,
    failure_reason_with_failed,
    failure_reason_listed,
    exit_code_only_with_failed,
    exit_code_not_zero,
    output_form,
    deprecated_checksum_agrees,
    checksum_of_what_is_stored,
    final_output_is_what_is_stored,
    key_only_when_due,
    key_under_both_names,
    key_form,
    key_kept_by_resume,
];

/// Only fields the call knows are sent.
fn update_fields(update: &Update<'_>) -> Finding {
    const FIELDS: &[&str] = &[
        "token",
        "info",
        "state",
        "failure_reason",
        "exit_code",
        "checksum",
        "output",
        "runtime_environment_key",
        "environment_key",
    ];
    only_known_fields(update.body, FIELDS, "body")?;
    match object(update.body, "output") {
        Some(output) => only_known_fields(output, &["checksum", "bytesize"], "output"),
        None => Ok(()),
    }
}

/// The body carries the job's token.
fn update_token_in_body(update: &Update<'_>) -> Finding {
    match text(update.body, "token") {
        Some(token) if token == update.job.view.token => Ok(()),
        Some(_) => Err("the body's token is not this job's".to_owned()),
        None => Err("the body carries no token".to_owned()),
    }
}

/// The `JOB-TOKEN` header carries it too.
fn update_token_header(update: &Update<'_>) -> Finding {
    match update.exchange.header("job-token") {
        Some(token) if token == update.job.view.token => Ok(()),
        Some(_) => Err("JOB-TOKEN is not this job's".to_owned()),
        None => Err("JOB-TOKEN is missing".to_owned()),
    }
}

/// `state` is one a runner can say.
fn update_state_known(update: &Update<'_>) -> Finding {
    match update.state() {
        "pending" | "running" | "success" | "failed" => Ok(()),
        other => Err(format!("state {other:?} is unknown")),
    }
}

/// `info` is sent along, with the runner's features.
fn update_info(update: &Update<'_>) -> Finding {
    match object(update.body, "info").and_then(|info| object(info, "features")) {
        Some(_) => Ok(()),
        None => Err("info.features is missing".to_owned()),
    }
}

/// A job that has not failed has no reason for it.
fn failure_reason_only_with_failed(update: &Update<'_>) -> Finding {
    match (update.state(), text(update.body, "failure_reason")) {
        ("failed", _) | (_, None | Some("")) => Ok(()),
        (state, Some(reason)) => Err(format!("failure_reason {reason:?} with state {state:?}")),
    }
}

/// A failed job says why.
fn failure_reason_with_failed(update: &Update<'_>) -> Finding {
    match (update.state(), text(update.body, "failure_reason")) {
        ("failed", None | Some("")) => Err("failed without a failure_reason".to_owned()),
        _ => Ok(()),
    }
}

/// The reason is one this server says it knows.
fn failure_reason_listed(update: &Update<'_>) -> Finding {
    let Some(reason) = text(update.body, "failure_reason").filter(|reason| !reason.is_empty()) else {
        return Ok(());
    };
    let is_listed = update.job.spec.failure_reasons.iter().any(|listed| listed == reason);
    match is_listed || BASE_REASONS.contains(&reason) || reason == UNKNOWN_REASON {
        true => Ok(()),
        false => Err(format!("failure_reason {reason:?} is not one the server listed")),
    }
}

/// Only a failed job has an exit code to report.
fn exit_code_only_with_failed(update: &Update<'_>) -> Finding {
    match (update.state(), update.body.get("exit_code")) {
        ("failed", _) | (_, None | Some(Value::Null)) => Ok(()),
        (state, Some(code)) => Err(format!("exit_code {code} with state {state:?}")),
    }
}

/// 0 is left out, and the code is a number.
fn exit_code_not_zero(update: &Update<'_>) -> Finding {
    match update.body.get("exit_code") {
        None | Some(Value::Null) => Ok(()),
        Some(code) if code.as_i64().is_some_and(|code| code != 0) => Ok(()),
        Some(code) => Err(format!("exit_code is {code}")),
    }
}

/// `output` is left out or empty, or has a checksum `crc32:` and eight hex digits, and a size.
fn output_form(update: &Update<'_>) -> Finding {
    let Some(output) = update.body.get("output").filter(|output| !output.is_null()) else { return Ok(()) };
    if output.as_object().is_some_and(Object::is_empty) {
        return Ok(());
    }
    let checksum = update.checksum().ok_or("output.checksum is missing")?;
    let digits = checksum.strip_prefix("crc32:").unwrap_or("");
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() != 8 || !digits.bytes().all(is_digit) {
        return Err(format!("output.checksum {checksum:?} is not crc32: and eight hex digits"));
    }
    update.bytesize().map(drop).ok_or_else(|| "output.bytesize is no size".to_owned())
}

/// The deprecated `checksum` says the same as `output.checksum`.
fn deprecated_checksum_agrees(update: &Update<'_>) -> Finding {
    match (text(update.body, "checksum").filter(|sum| !sum.is_empty()), update.checksum()) {
        (Some(old), Some(new)) if old != new => {
            Err(format!("checksum is {old:?} but output.checksum is {new:?}"))
        }
        _ => Ok(()),
    }
}

/// As far as the claimed size goes, the claimed checksum is that of the stored log.
fn checksum_of_what_is_stored(update: &Update<'_>) -> Finding {
    let (Some(claimed), Some(size)) = (update.checksum(), update.bytesize()) else {
        return Ok(());
    };
    let stored = usize::try_from(size).ok().and_then(|size| update.job.view.log.get(..size));
    let Some(stored) = stored else { return Ok(()) };
    let actual = format!("crc32:{:08x}", crc32fast::hash(stored));
    match claimed == actual {
        true => Ok(()),
        false => Err(format!("output.checksum is {claimed:?}, the log's first {size} bytes have {actual:?}")),
    }
}

/// With the final update the whole log is stored, no more and no less.
fn final_output_is_what_is_stored(update: &Update<'_>) -> Finding {
    let stored = update.job.view.log.len();
    match update.bytesize() {
        Some(size) if update.is_final() && usize::try_from(size) != Ok(stored) => {
            Err(format!("output.bytesize is {size}, the server has {stored} bytes"))
        }
        _ => Ok(()),
    }
}

/// A key is sent only with a final update that GitLab asked to suspend at.
fn key_only_when_due(update: &Update<'_>) -> Finding {
    match update.key() {
        Some(key) if !update.job.spec.suspends_at(update.state()) => {
            Err(format!("key {key:?} with state {:?}, which has no trigger", update.state()))
        }
        _ => Ok(()),
    }
}

/// A key is sent under its new and its old name, as servers differ.
fn key_under_both_names(update: &Update<'_>) -> Finding {
    match update.keys() {
        [None, None] => Ok(()),
        [Some(new), Some(old)] if new == old => Ok(()),
        [new, old] => Err(format!("runtime_environment_key {new:?}, environment_key {old:?}")),
    }
}

/// A key is `<runner id>/<system id>/<fields>` of the machine that had the job.
fn key_form(update: &Update<'_>) -> Finding {
    let Some(key) = update.key() else {
        return Ok(());
    };
    if key.len() > LONGEST_KEY {
        return Err(format!("the key has {} characters", key.len()));
    }
    let mut parts = key.splitn(3, '/');
    let runner = parts.next().and_then(|id| id.parse().ok());
    let machine = parts.next().map(|id| percent_decode_str(id).decode_utf8_lossy().into_owned());
    let fields = parts.next().unwrap_or("");
    if runner != update.job.view.runner.map(|id| id.0) {
        return Err(format!("key {key:?} is not of the runner that had the job"));
    }
    if machine != update.job.view.machine {
        return Err(format!("key {key:?} is not of the machine that had the job"));
    }
    match fields.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok(()),
        _ => Err(format!("key {key:?} has no field")),
    }
}

/// A resumed environment that sleeps again keeps its key.
fn key_kept_by_resume(update: &Update<'_>) -> Finding {
    match (update.key(), &update.job.spec.environment_key) {
        (Some(sent), Some(resumed)) if sent != resumed => {
            Err(format!("resumed {resumed:?}, suspended as {sent:?}"))
        }
        _ => Ok(()),
    }
}
