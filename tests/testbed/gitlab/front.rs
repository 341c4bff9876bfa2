//! Where every request comes in: read whole, recorded, hit by faults, handled, answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, State},
    http::{Request as HttpRequest, Response, StatusCode},
};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};

use super::{
    access, artifacts, assign,
    connection::Cutter,
    endpoint::Endpoint,
    exchange::{Answer, Exchange},
    fault::Action,
    git_http,
    ledger::Request,
    rules, runner_calls,
    server::Server,
    trace, update,
};

/// The longest body that is read; only artifacts and packs come near.
const LONGEST_BODY: usize = 512 << 20;
/// Bodies kept in the record.
const KEPT_BODY: usize = 16 << 10;

/// When a rate limit ends. Faults give it in seconds from the answer.
const RESET_TIME: &str = "ratelimit-resettime";

/// Serves one request of the runner API or of git.
pub(super) async fn serve(
    State(server): State<Arc<Server>>,
    ConnectInfo(cutter): ConnectInfo<Cutter>,
    request: HttpRequest<Body>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = match axum::body::to_bytes(body, LONGEST_BODY).await {
        Ok(body) => body,
        // The client left in the middle, or sends without end: nobody to answer.
        Err(_) => return Answer::refusal(StatusCode::PAYLOAD_TOO_LARGE).into_response(),
    };
    let mut exchange = Exchange {
        number: server.world().ledger.next_number(),
        at: Timestamp::now(),
        connection: cutter.number(),
        endpoint: Endpoint::of(&parts.method, parts.uri.path()),
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or("").to_owned(),
        headers: parts.headers,
        body,
        answer_may_be_lost: false,
    };
    let mut entry = Entry { server: &server, record: Some(open_record(&exchange)), at: Instant::now() };
    let action = arrive(&server, &mut exchange);
    let answer = match action {
        None => answer(&server, &exchange).await,
        Some(Action::Delay(delay)) => {
            tokio::time::sleep(delay).await;
            answer(&server, &exchange).await
        }
        Some(Action::Refuse(status, headers)) => refuse(status, headers),
        Some(Action::CutBeforeHandling) => {
            cutter.cut();
            return Response::new(Body::empty());
        }
        Some(Action::CutAfterHandling) => {
            answer(&server, &exchange).await;
            cutter.cut();
            return Response::new(Body::empty());
        }
        // Ends when the client or the server closes the connection.
        Some(Action::HalfOpen) => std::future::pending().await,
    };
    if server.world().faults.cuts_answer(&exchange, &answer) {
        cutter.cut();
        return Response::new(Body::empty());
    }
    entry.answered(answer.status);
    let request_id = exchange.header("x-request-id").unwrap_or("");
    answer.with("x-request-id", request_id).into_response()
}

/// Judges what can be judged of any request, and finds the fault that hits it.
fn arrive(server: &Server, exchange: &mut Exchange) -> Option<Action> {
    let world = &mut *server.world();
    if exchange.endpoint.is_runner_api() {
        for (rule, what) in rules::breaches(rules::EVERY_CALL, exchange) {
            world.ledger.violate(exchange, rule, what);
        }
    }
    // The path of a call of git names no job; its password does.
    let job = exchange.endpoint.job().or_else(|| git_http::job_of(world, exchange));
    let action = world.faults.on_arrival(exchange, job)?;
    exchange.answer_may_be_lost = true;
    if let Some(job) = exchange.endpoint.job().and_then(|id| world.jobs.get_mut(&id)) {
        job.conduct.excuse();
    }
    Some(action)
}

async fn answer(server: &Arc<Server>, exchange: &Exchange) -> Answer {
    match &exchange.endpoint {
        Endpoint::Verify => runner_calls::verify(server, exchange),
        Endpoint::Unregister => runner_calls::unregister(server, exchange),
        Endpoint::UnregisterMachine => runner_calls::unregister_machine(server, exchange),
        Endpoint::ResetToken => runner_calls::reset_token(server, exchange),
        Endpoint::Discovery => Answer::refusal(StatusCode::NOT_IMPLEMENTED),
        Endpoint::RequestJob => assign::request(server, exchange).await,
        Endpoint::Update(id) => update::update(server, exchange, *id),
        Endpoint::Trace(id) => trace::append(server, exchange, *id),
        Endpoint::EnvironmentKey(id) => artifacts::environment_key(server, exchange, *id),
        Endpoint::UploadArtifacts(id) => artifacts::upload(server, exchange, *id),
        Endpoint::DownloadArtifacts(id) => artifacts::download(server, exchange, *id),
        Endpoint::Storage(id) => artifacts::stored(server, exchange, *id),
        Endpoint::Access(call) => access::serve(server, exchange, call),
        Endpoint::Git { project, rest } => git_http::serve(server, exchange, project, rest).await,
        Endpoint::Unknown => Answer::refusal(StatusCode::NOT_FOUND),
    }
}

fn refuse(status: u16, headers: Vec<(&'static str, String)>) -> Answer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    headers.into_iter().fold(Answer::refusal(status), |answer, (name, value)| match name {
        RESET_TIME => answer.with(name, from_now(&value)),
        _ => answer.with(name, value),
    })
}

/// The date so many seconds from now, as headers write it; what is no number is sent as it is.
fn from_now(seconds: &str) -> String {
    let Ok(seconds) = seconds.parse() else { return seconds.to_owned() };
    let at = Timestamp::now() + Duration::from_secs(seconds);
    DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap_or_default()
}

fn open_record(exchange: &Exchange) -> Request {
    let is_short_json = exchange.body.len() <= KEPT_BODY
        && exchange.header("content-type").is_some_and(|kind| kind.contains("json"));
    Request {
        number: exchange.number,
        at: exchange.at,
        connection: exchange.connection,
        method: exchange.method.to_string(),
        path: exchange.path.clone(),
        query: exchange.query.clone(),
        job: exchange.endpoint.job(),
        body: is_short_json.then(|| String::from_utf8_lossy(&exchange.body).into_owned()),
        answer: None,
        took: Duration::ZERO,
    }
}

/// Records a request when it is over, also when its client leaves and the handler is dropped.
struct Entry<'a> {
    server: &'a Server,
    record: Option<Request>,
    at: Instant,
}

impl Entry<'_> {
    fn answered(&mut self, status: StatusCode) {
        if let Some(record) = &mut self.record {
            record.answer = Some(status.as_u16());
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.took = self.at.elapsed();
            self.server.world().ledger.record(record);
            self.server.requests.notify_waiters();
        }
    }
}
