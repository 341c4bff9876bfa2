//! Rules for `PATCH jobs/:id/trace`.

use super::super::{exchange::Exchange, spec::Variable, world::Job};
use super::{Finding, Rules, rules};

/// The largest chunk a server takes unless it is told otherwise.
const LARGEST_CHUNK: usize = 1 << 20;

/// A log chunk and the job it is for.
pub(in super::super) struct Chunk<'a> {
    pub exchange: &'a Exchange,
    pub job: &'a Job,
}

/// Rules for each log chunk by itself; offsets are judged where the log is.
pub(in super::super) const CHUNK: Rules<fn(&Chunk<'_>) -> Finding> = rules![
    trace_token_header,
    trace_content_type,
    trace_not_empty,
    trace_not_too_long,
    trace_range_form,
    trace_range_length,
    trace_debug_parameter,
];

/// The range a chunk says it is: first and last byte, both included.
pub(in super::super) fn range_of(exchange: &Exchange) -> Option<(u64, u64)> {
    let (first, last) = exchange.header("content-range")?.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(first) || !is_number(last) {
        return None;
    }
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// `JOB-TOKEN` is the only place for the token, as the body is the log.
fn trace_token_header(chunk: &Chunk<'_>) -> Finding {
    match chunk.exchange.header("job-token") {
        Some(token) if token == chunk.job.view.token => Ok(()),
        Some(_) => Err("JOB-TOKEN is not this job's".to_owned()),
        None => Err("JOB-TOKEN is missing".to_owned()),
    }
}

/// A log is plain text.
fn trace_content_type(chunk: &Chunk<'_>) -> Finding {
    match chunk.exchange.header("content-type") {
        Some("text/plain") => Ok(()),
        other => Err(format!("Content-Type is {other:?}, not text/plain")),
    }
}

/// A chunk has bytes: with nothing to say the call is skipped.
fn trace_not_empty(chunk: &Chunk<'_>) -> Finding {
    match chunk.exchange.body.is_empty() {
        true => Err("the chunk is empty".to_owned()),
        false => Ok(()),
    }
}

/// A chunk is at most 1 MiB.
fn trace_not_too_long(chunk: &Chunk<'_>) -> Finding {
    match chunk.exchange.body.len() {
        len if len > LARGEST_CHUNK => Err(format!("the chunk has {len} bytes, more than 1 MiB")),
        _ => Ok(()),
    }
}

/// `Content-Range` is `<first>-<last>`, no unit and no total.
fn trace_range_form(chunk: &Chunk<'_>) -> Finding {
    match (chunk.exchange.header("content-range"), range_of(chunk.exchange)) {
        (None, _) => Err("Content-Range is missing".to_owned()),
        (Some(range), None) => Err(format!("Content-Range {range:?} is not <first>-<last>")),
        (Some(_), Some(_)) => Ok(()),
    }
}

/// `Content-Range` is as long as the body.
fn trace_range_length(chunk: &Chunk<'_>) -> Finding {
    let Some((first, last)) = range_of(chunk.exchange) else {
        return Ok(());
    };
    let len = chunk.exchange.body.len();
    let claimed = (u128::from(last) + 1).checked_sub(u128::from(first));
    match claimed == u128::try_from(len).ok() {
        true => Ok(()),
        false => Err(format!("Content-Range {first}-{last} does not fit a body of {len} bytes")),
    }
}

/// `debug_trace` says whether the log may show secrets, as the job's variables do.
fn trace_debug_parameter(chunk: &Chunk<'_>) -> Finding {
    let given = &chunk.job.spec.variables;
    let is_debugged = ["CI_DEBUG_TRACE", "CI_DEBUG_SERVICES"].iter().any(|name| is_on(given, name));
    match chunk.exchange.query_parameter("debug_trace").as_deref() {
        Some("true") => Ok(()),
        Some("false") if !is_debugged => Ok(()),
        Some("false") => Err("debug_trace is false for a job that is debugged".to_owned()),
        other => Err(format!("debug_trace is {other:?}, neither true nor false")),
    }
}

/// Whether a switch is on in any of the words that runners take for it, also where its value is another variable.
fn is_on(given: &[Variable], name: &str) -> bool {
    let value = |name: &str| given.iter().rev().find(|variable| variable.key == name);
    let Some(switch) = value(name) else { return false };
    let referred =
        switch.value.strip_prefix('$').filter(|_| !switch.raw).map(|name| name.trim_matches(['{', '}']));
    let word = referred.map_or(switch.value.as_str(), |name| value(name).map_or("", |other| &other.value));
    ["1", "t", "true", "yes", "on"].iter().any(|on| word.trim().eq_ignore_ascii_case(on))
}
