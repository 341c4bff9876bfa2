//! `POST jobs/request`: who gets which job, and how long a request is held.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    Commit, HoldEnd, Routing,
    conduct::Restarts,
    exchange::{Answer, Exchange, Object},
    job::{JobId, JobState},
    payload, rules,
    runner::RunnerId,
    runner_calls::{Caller, authenticated, body_of, judge_token, meet_machine},
    server::Server,
    world::World,
};

/// Tells the runner which queue value it has seen.
const LAST_UPDATE: &str = "x-gitlab-last-update";

/// `POST jobs/request`.
pub(super) async fn request(server: &Arc<Server>, exchange: &Exchange) -> Answer {
    let poll = match admit(server, exchange) {
        Ok(poll) => poll,
        Err(answer) => return answer,
    };
    let _open = OpenRequest::enter(server, &poll);
    let mut queue = server.follow_queue();
    let is_current = {
        let world = server.world();
        let value = world.runners.get(&poll.runner).map(|runner| &runner.queue_value);
        value == Some(&poll.last_update)
    };
    if is_current {
        match hold(server, &poll, &mut queue).await {
            Some(HoldEnd::Assign) => {}
            // The proxy does not know the new value; the runner asks again with the old one.
            Some(HoldEnd::NoContent) => return Answer::status(StatusCode::NO_CONTENT),
            None => return nothing(server, exchange, &poll),
        }
    }
    match pick(server, &poll) {
        Some(payload) => Answer::bytes(StatusCode::CREATED, "application/json", payload.into()),
        None => nothing(server, exchange, &poll),
    }
}

/// A request that may get a job.
struct Poll {
    runner: RunnerId,
    machine: String,
    last_update: String,
}

fn admit(server: &Server, exchange: &Exchange) -> Result<Poll, Answer> {
    const FIELDS: &[&str] = &["info", "token", "system_id", "last_update", "session"];
    let world = &mut *server.world();
    let body = body_of(world, exchange, FIELDS, Caller::Machine)?;
    let token = rules::text(&body, "token").unwrap_or("").to_owned();
    let was_ever_valid = world.retired_tokens.contains_key(&token);
    judge_token(world, exchange, &body);
    let Some(runner) = authenticated(world, &body) else {
        if !was_ever_valid {
            let what = "asks for jobs with a token that verify would have refused";
            world.ledger.violate(exchange, "token_verified_first", what);
        }
        return Err(Answer::refusal(StatusCode::FORBIDDEN));
    };
    meet_machine(runner, &body);
    let poll = Poll {
        runner: runner.id,
        machine: rules::text(&body, "system_id").unwrap_or("").to_owned(),
        last_update: rules::text(&body, "last_update").unwrap_or("").to_owned(),
    };
    judge_features(server, world, exchange, &poll);
    judge_last_update(server, world, exchange, &poll, &body);
    Ok(poll)
}

/// Rule `required_features`: a runner that asks for jobs advertises what every job needs.
fn judge_features(server: &Server, world: &mut World, exchange: &Exchange, poll: &Poll) {
    let missing = missing_features(world, poll, server.options.required_features.iter());
    if !missing.is_empty() {
        let what = format!("features {missing:?} are not advertised");
        world.ledger.violate(exchange, "required_features", what);
    }
}

/// Rule `last_update_echoed`: the value of the latest answer comes back with the next request.
fn judge_last_update(server: &Server, world: &mut World, exchange: &Exchange, poll: &Poll, body: &Object) {
    let Some(machine) = machine_of(world, poll) else {
        return;
    };
    if machine.past_connections.contains(&exchange.connection) {
        return;
    }
    let is_new_connection = machine.connections.insert(exchange.connection);
    if machine.seen_values.contains(&poll.last_update) || machine.past_values.contains(&poll.last_update) {
        return;
    }
    let may_start_over = std::mem::take(&mut machine.may_start_over)
        || (is_new_connection && server.options.restarts == Restarts::OnNewConnection);
    let is_first = machine.seen_values.is_empty() || may_start_over;
    if is_first && poll.last_update.is_empty() {
        // A job carries no value: until it is answered without one, a new process has none to echo.
        machine.seen_values.clear();
        return;
    }
    let what = format!(
        "last_update is {:?}, the latest answers said {:?}",
        body.get("last_update"),
        machine.seen_values,
    );
    world.ledger.violate(exchange, "last_update_echoed", what);
}

fn machine_of<'a>(world: &'a mut World, poll: &Poll) -> Option<&'a mut super::runner::Machine> {
    world.runners.get_mut(&poll.runner)?.machines.get_mut(&poll.machine)
}

fn missing_features<'a>(world: &World, poll: &Poll, needed: impl Iterator<Item = &'a String>) -> Vec<String> {
    let nothing = BTreeSet::new();
    let advertised = world
        .runners
        .get(&poll.runner)
        .and_then(|runner| runner.machines.get(&poll.machine))
        .map_or(&nothing, |machine| &machine.features);
    needed.filter(|feature| !advertised.contains(*feature)).cloned().collect()
}

/// Counts a machine's open requests, whichever way they end.
struct OpenRequest<'a> {
    server: &'a Server,
    poll: &'a Poll,
}

impl<'a> OpenRequest<'a> {
    fn enter(server: &'a Server, poll: &'a Poll) -> Self {
        if let Some(machine) = machine_of(&mut server.world(), poll) {
            machine.open_requests += 1;
        }
        Self { server, poll }
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        if let Some(machine) = machine_of(&mut self.server.world(), self.poll) {
            machine.open_requests = machine.open_requests.saturating_sub(1);
        }
    }
}

/// Holds a request whose queue value is current until there is a job; none if there is none.
async fn hold(server: &Server, poll: &Poll, queue: &mut watch::Receiver<u64>) -> Option<HoldEnd> {
    if server.options.hold == Duration::ZERO {
        return None;
    }
    let _held = HeldRequest::enter(server);
    let has_job = async {
        loop {
            queue.borrow_and_update();
            if candidate(&server.world(), server.options.routing, poll).is_some() {
                return Some(server.options.hold_end);
            }
            queue.changed().await.ok()?;
        }
    };
    tokio::time::timeout(server.options.hold, has_job).await.ok().flatten()
}

/// Counts the requests that are held, whichever way they end.
struct HeldRequest<'a>(&'a Server);

impl<'a> HeldRequest<'a> {
    fn enter(server: &'a Server) -> Self {
        server.world().held_requests += 1;
        server.requests.notify_waiters();
        Self(server)
    }
}

impl Drop for HeldRequest<'_> {
    fn drop(&mut self) {
        self.0.world().held_requests -= 1;
    }
}

/// The first job in the queue that this machine may have.
fn candidate(world: &World, routing: Routing, poll: &Poll) -> Option<JobId> {
    let runner = world.runners.get(&poll.runner)?;
    world
        .jobs
        .iter()
        .filter(|(_, job)| job.view.state == JobState::Pending && !job.is_forgotten)
        .filter(|(_, job)| job.spec.runner.is_none_or(|only| only == poll.runner))
        .filter(|(_, job)| runner.serves(&job.spec.tags))
        .find(|(_, job)| match (&job.spec.environment_key, routing) {
            (None, _) | (Some(_), Routing::Anyone) => true,
            (Some(key), Routing::Machine) => may_resume(world, key, poll),
        })
        .map(|(id, _)| *id)
}

/// A resume goes to the machine that suspended its environment, or, where that is not known, to
/// any machine of the runner that the key names.
fn may_resume(world: &World, key: &str, poll: &Poll) -> bool {
    if let Some(route) = world.environments.get(key) {
        return route.runner == poll.runner && route.machine == poll.machine;
    }
    let named = key.split('/').next().and_then(|id| id.parse().ok()).map(RunnerId);
    match named.filter(|id| world.runners.contains_key(id)) {
        Some(runner) => runner == poll.runner,
        None => true,
    }
}

/// Hands out a job. One that needs more than the runner can do is failed and passed over.
fn pick(server: &Server, poll: &Poll) -> Option<Vec<u8>> {
    let world = &mut *server.world();
    loop {
        let id = candidate(world, server.options.routing, poll)?;
        let needed = world.jobs.get(&id)?.spec.needs_features.clone();
        let is_supported = missing_features(world, poll, needed.iter()).is_empty();
        let job = world.jobs.get_mut(&id)?;
        if !is_supported {
            job.drop_as("runner_unsupported");
            continue;
        }
        let runner = world.runners.get(&poll.runner)?;
        let machine = runner.machines.get(&poll.machine)?;
        let advertises = |feature: &str| machine.features.contains(feature);
        job.cancels_gracefully = advertises("cancel_gracefully");
        job.view.runner = Some(poll.runner);
        job.view.machine = Some(poll.machine.clone());
        job.view.picked_up_at = Some(Timestamp::now());
        match server.options.commit {
            Commit::TwoPhase if advertises("two_phase_job_commit") => {
                job.acknowledge_by = Some(Instant::now() + server.options.acknowledge_within);
                // enter() would end the lease for any other state.
                job.enter(JobState::Acknowledging);
                server.leases.notify_one();
            }
            Commit::TwoPhase | Commit::Legacy => job.enter(JobState::Running),
        }
        return Some(payload::render(&job.view, &job.spec, runner, &server.url));
    }
}

/// 204 with the queue value that is current.
fn nothing(server: &Server, exchange: &Exchange, poll: &Poll) -> Answer {
    let world = &mut *server.world();
    let value = world.runners.get(&poll.runner).map(|runner| runner.queue_value.clone());
    let Some(value) = value else {
        return Answer::refusal(StatusCode::FORBIDDEN);
    };
    match machine_of(world, poll) {
        Some(machine) if machine.past_connections.contains(&exchange.connection) => {
            machine.answered_the_past(&value);
        }
        Some(machine) => {
            let is_surely_seen = !exchange.answer_may_be_lost && !server.options.asks_in_parallel;
            machine.answered(&value, is_surely_seen);
        }
        None => {}
    }
    Answer::status(StatusCode::NO_CONTENT).with(LAST_UPDATE, value)
}
