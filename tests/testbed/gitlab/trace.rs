//! `PATCH jobs/:id/trace`: the log.

use axum::http::StatusCode;

use super::{
    exchange::{Answer, Exchange},
    job::{JobId, JobState, Patch},
    rules::{
        self, Breach,
        trace::{CHUNK, Chunk, range_of},
    },
    server::Server,
    update::{JOB_STATUS, UPDATE_INTERVAL},
    world::Job,
};

/// `PATCH jobs/:id/trace`.
pub(super) fn append(server: &Server, exchange: &Exchange, id: JobId) -> Answer {
    let world = &mut *server.world();
    let Some(job) = world.jobs.get_mut(&id) else {
        world.ledger.violate(exchange, "known_job", format!("there never was a job {id}"));
        return Answer::refusal(StatusCode::NOT_FOUND);
    };
    job.conduct.meet(exchange.connection, server.options.restarts);
    let mut breaches = rules::breaches(CHUNK, &Chunk { exchange, job });
    let range = range_of(exchange);
    let answer = if job.is_forgotten {
        Answer::refusal(StatusCode::NOT_FOUND)
    } else if exchange.header("job-token") != Some(&job.view.token) {
        Answer::refusal(StatusCode::FORBIDDEN)
    } else if !job.view.state.is_worked_on() {
        breaches.extend(out_of_time(job));
        job.conduct.was_trace_refused = true;
        Answer::refusal(StatusCode::FORBIDDEN).with(JOB_STATUS, job.view.state.status())
    } else if let Some((first, _)) = range {
        breaches.extend(wrong_offset(job, first));
        store(job, exchange, first)
    } else {
        Answer::refusal(StatusCode::BAD_REQUEST)
    };
    job.view.patches.push(Patch {
        at: exchange.at,
        first: range.map_or(0, |(first, _)| first),
        len: size(&exchange.body),
        answer: answer.status.as_u16(),
    });
    job.changed.notify_waiters();
    for (rule, what) in breaches {
        world.ledger.violate(exchange, rule, what);
    }
    answer
}

/// Rules `trace_before_running`, `trace_after_final` and `trace_after_abort`: a log is sent between
/// `running` and the end, and no more once the server has refused it.
fn out_of_time(job: &mut Job) -> Option<Breach> {
    let status = job.view.state.status();
    let (rule, what) = match job.view.state {
        JobState::Pending | JobState::Acknowledging => {
            return Some(("trace_before_running", format!("log for a job that is {status}")));
        }
        _ if job.conduct.was_final_accepted => ("trace_after_final", "its end was accepted before"),
        _ if job.conduct.was_trace_refused => ("trace_after_abort", "a chunk was refused before"),
        _ => return None,
    };
    if job.conduct.forgive_repetition() {
        return None;
    }
    Some((rule, format!("log for a job that is {status}: {what}")))
}

/// Rule `trace_offset`: a chunk starts where the stored log ends. See `conduct` for what excuses.
fn wrong_offset(job: &mut Job, first: u64) -> Option<Breach> {
    let stored = size(&job.view.log);
    if first == stored || job.conduct.forgive_offset() {
        return None;
    }
    let kind = if first > stored { "a gap" } else { "an overlap" };
    Some(("trace_offset", format!("{kind}: chunk at {first}, {stored} bytes are stored")))
}

/// Appends a chunk that fits. As GitLab does, a chunk at the wrong place is accepted if it ends
/// where the log ends: that is the repetition of the last one.
fn store(job: &mut Job, exchange: &Exchange, first: u64) -> Answer {
    let end = first.saturating_add(size(&exchange.body));
    if end > job.spec.log_limit {
        job.drop_as("trace_size_exceeded");
        job.conduct.was_trace_refused = true;
        return Answer::refusal(StatusCode::FORBIDDEN);
    }
    if first == size(&job.view.log) {
        job.view.log.extend_from_slice(&exchange.body);
        if job.view.first_byte_at.is_none() && !exchange.body.is_empty() {
            job.view.first_byte_at = Some(exchange.at);
        }
    }
    let stored = size(&job.view.log);
    let range = format!("0-{stored}");
    if stored != end {
        return Answer::refusal(StatusCode::RANGE_NOT_SATISFIABLE).with("range", range);
    }
    Answer::status(StatusCode::ACCEPTED)
        .with("range", range)
        .with(JOB_STATUS, job.view.state.status())
        .with(UPDATE_INTERVAL, job.update_interval.to_string())
}

fn size(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
