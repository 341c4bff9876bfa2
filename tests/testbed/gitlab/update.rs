//! `PUT jobs/:id`: how a runner's word moves a job.

use std::time::Instant;

use axum::http::StatusCode;

use super::{
    Commit,
    exchange::{Answer, Exchange, Object},
    job::{JobId, JobState, Put},
    rules::{
        self, Breach,
        update::{UPDATE, Update},
    },
    server::Server,
    world::{Job, Route, World},
};

/// Tells the runner how the job stands.
pub(super) const JOB_STATUS: &str = "job-status";
/// Tells the runner how often to send log, in seconds.
pub(super) const UPDATE_INTERVAL: &str = "x-gitlab-trace-update-interval";

/// `PUT jobs/:id`.
pub(super) fn update(server: &Server, exchange: &Exchange, id: JobId) -> Answer {
    let world = &mut *server.world();
    for (rule, what) in rules::breaches(rules::JSON_CALL, exchange) {
        world.ledger.violate(exchange, rule, what);
    }
    let body = match exchange.object() {
        Ok(body) => body,
        Err(what) => {
            world.ledger.violate(exchange, "json_body", what);
            return Answer::refusal(StatusCode::BAD_REQUEST);
        }
    };
    let Some(job) = world.jobs.get_mut(&id) else {
        world.ledger.violate(exchange, "known_job", format!("there never was a job {id}"));
        return Answer::refusal(StatusCode::NOT_FOUND);
    };
    job.conduct.meet(exchange.connection, server.options.restarts);
    let said = Said::of(&body);
    let mut breaches = Vec::new();
    let answer = if job.is_forgotten {
        breaches.extend(after_refusal(job, &said));
        job.conduct.was_update_refused = true;
        Answer::refusal(StatusCode::NOT_FOUND)
    } else if rules::text(&body, "token").or(exchange.header("job-token")) != Some(&job.view.token) {
        breaches.push(("job_token", "the token is not this job's".to_owned()));
        Answer::refusal(StatusCode::FORBIDDEN)
    } else {
        breaches.extend(rules::breaches(UPDATE, &Update { exchange, body: &body, job }));
        let moved = advance(server, job, &said, &mut breaches);
        if moved == StatusCode::FORBIDDEN {
            Answer::refusal(moved).with(JOB_STATUS, job.view.state.status())
        } else {
            Answer::status(moved)
                .with(JOB_STATUS, job.view.state.status())
                .with(UPDATE_INTERVAL, job.update_interval.to_string())
        }
    };
    record(job, exchange, said, &answer);
    remember_environment(world, id);
    for (rule, what) in breaches {
        world.ledger.violate(exchange, rule, what);
    }
    answer
}

/// What an update says, as far as it moves the job.
struct Said {
    state: String,
    failure_reason: Option<String>,
    exit_code: Option<i64>,
    key: Option<String>,
    checksum: Option<String>,
    bytesize: Option<u64>,
}

impl Said {
    fn of(body: &Object) -> Self {
        let text = |field| rules::text(body, field).map(str::to_owned);
        let output = rules::object(body, "output");
        Self {
            state: text("state").unwrap_or_default(),
            failure_reason: text("failure_reason").filter(|reason| !reason.is_empty()),
            exit_code: body.get("exit_code").and_then(serde_json::Value::as_i64),
            key: text("runtime_environment_key").or_else(|| text("environment_key")),
            checksum: output
                .and_then(|output| rules::text(output, "checksum"))
                .map(str::to_owned)
                .or_else(|| text("checksum")),
            bytesize: output.and_then(|output| output.get("bytesize")?.as_u64()),
        }
    }

    fn is_final(&self) -> bool {
        self.state == "success" || self.state == "failed"
    }
}

/// Moves the job as the server would; records what a correct runner would not have said now.
fn advance(server: &Server, job: &mut Job, said: &Said, breaches: &mut Vec<Breach>) -> StatusCode {
    match job.view.state {
        JobState::Acknowledging => acknowledge(server, job, said, breaches),
        JobState::Running | JobState::Canceling => work(server, job, said, breaches),
        JobState::Pending => {
            breaches.push(("not_handed_out", "nobody was given this job".to_owned()));
            StatusCode::FORBIDDEN
        }
        JobState::Success | JobState::Failed | JobState::Canceled => {
            breaches.extend(after_refusal(job, said));
            job.conduct.was_update_refused = true;
            StatusCode::FORBIDDEN
        }
    }
}

fn acknowledge(server: &Server, job: &mut Job, said: &Said, breaches: &mut Vec<Breach>) -> StatusCode {
    let has_expired = job.acknowledge_by.is_none_or(|by| by <= Instant::now());
    match said.state.as_str() {
        _ if job.is_taken_elsewhere => StatusCode::CONFLICT,
        _ if has_expired => StatusCode::BAD_REQUEST,
        "pending" => {
            job.acknowledge_by = Some(Instant::now() + server.options.acknowledge_within);
            StatusCode::OK
        }
        "running" => {
            job.enter(JobState::Running);
            StatusCode::OK
        }
        state => {
            let what = format!("{state:?} before running, while GitLab waits for it");
            breaches.push(("running_before_the_end", what));
            StatusCode::BAD_REQUEST
        }
    }
}

fn work(server: &Server, job: &mut Job, said: &Said, breaches: &mut Vec<Breach>) -> StatusCode {
    match said.state.as_str() {
        "running" => StatusCode::OK,
        "pending" => {
            // A legacy server answers so to a runner that cannot know better.
            let is_legacy = server.options.commit == Commit::Legacy;
            if !is_legacy && !job.conduct.forgive_repetition() {
                breaches.push(("pending_after_running", "the job runs already".to_owned()));
            }
            StatusCode::BAD_REQUEST
        }
        "success" | "failed" => finish(job, said, breaches),
        _ => StatusCode::BAD_REQUEST,
    }
}

fn finish(job: &mut Job, said: &Said, breaches: &mut Vec<Breach>) -> StatusCode {
    let was_reset = job.view.puts.last().is_some_and(|put| put.answer == 412);
    let claim = (said.state.clone(), said.checksum.clone());
    match &job.conduct.first_final {
        Some(first) if *first != claim && !was_reset => {
            breaches.push(("final_update_kept", format!("said {first:?} first, now {claim:?}")));
        }
        Some(_) => {}
        None => job.conduct.first_final = Some(claim),
    }
    if job.log_resets > 0 {
        job.log_resets -= 1;
        job.view.log.clear();
        // The client cannot have known, and what it sent before no longer counts.
        job.conduct.excuse();
        return StatusCode::PRECONDITION_FAILED;
    }
    if job.chunks_pending > 0 && said.checksum.is_some() {
        job.chunks_pending -= 1;
        return StatusCode::ACCEPTED;
    }
    job.view.exit_code = said.exit_code;
    job.view.failure_reason.clone_from(&said.failure_reason);
    let is_due = job.spec.suspends_at(&said.state);
    job.view.environment_key = said.key.clone().filter(|_| is_due);
    job.conduct.was_final_accepted = true;
    job.enter(match (job.view.state, said.state.as_str()) {
        (JobState::Canceling, _) => JobState::Canceled,
        (_, "success") => JobState::Success,
        _ => JobState::Failed,
    });
    StatusCode::OK
}

/// What is wrong with an update for a job that is over.
fn after_refusal(job: &mut Job, said: &Said) -> Option<Breach> {
    let (rule, what) = match (job.conduct.was_final_accepted, job.conduct.was_update_refused) {
        (true, _) if said.is_final() => ("final_update_once", "the job's end was accepted before"),
        (true, _) => ("running_after_final", "the job's end was accepted before"),
        (false, true) => ("update_after_abort", "an update was refused before"),
        (false, false) => return None,
    };
    if job.conduct.forgive_repetition() {
        return None;
    }
    Some((rule, format!("state {:?}, but {what}", said.state)))
}

fn record(job: &mut Job, exchange: &Exchange, said: Said, answer: &Answer) {
    job.view.puts.push(Put {
        at: exchange.at,
        state: said.state,
        failure_reason: said.failure_reason,
        exit_code: said.exit_code,
        environment_key: said.key,
        checksum: said.checksum,
        bytesize: said.bytesize,
        answer: answer.status.as_u16(),
    });
    job.changed.notify_waiters();
}

/// From now on a resume with the job's key goes to the machine that had the job first.
fn remember_environment(world: &mut World, id: JobId) {
    let Some(job) = world.jobs.get(&id) else {
        return;
    };
    let (Some(key), Some(runner), Some(machine)) =
        (&job.view.environment_key, job.view.runner, &job.view.machine)
    else {
        return;
    };
    let route = Route { runner, machine: machine.clone() };
    world.environments.entry(key.clone()).or_insert(route);
}
