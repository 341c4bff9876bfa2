//! Faults: what goes wrong on purpose between the runner and the server.
//!
//! A fault is a target, how many matching requests it waits for and how many it hits, and an
//! action. Every hit is an excuse for the job it hits: the client cannot know what was done.

use std::time::Duration;

use axum::http::Method;

use super::{
    access::Call,
    endpoint::Endpoint,
    exchange::{Answer, Exchange},
    job::JobId,
};

/// Which requests a fault is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every request of the runner API and of git.
    Any,
    /// `POST runners/verify`.
    Verify,
    /// `POST runners/reset_authentication_token`.
    ResetToken,
    /// `POST user/runners`.
    CreateRunner,
    /// `POST jobs/request`, job or no job.
    RequestJob,
    /// `POST jobs/request` that is answered with a job. Only actions after handling apply.
    Assignment,
    /// `PUT jobs/:id`, any state.
    Update,
    /// `PUT jobs/:id` with this state.
    UpdateTo(&'static str),
    /// `PUT jobs/:id` with state `success` or `failed`.
    FinalUpdate,
    /// `PATCH jobs/:id/trace`.
    Trace,
    /// Artifacts, either way.
    Artifacts,
    /// The storage where artifacts lie.
    Storage,
    /// git over HTTP.
    Git,
    /// A method, and a part of the path.
    Path(Method, String),
}

impl Target {
    fn matches(&self, exchange: &Exchange) -> bool {
        match self {
            Self::Any => true,
            Self::Verify => exchange.endpoint == Endpoint::Verify,
            Self::ResetToken => exchange.endpoint == Endpoint::ResetToken,
            Self::CreateRunner => exchange.endpoint == Endpoint::Access(Call::Create),
            Self::RequestJob | Self::Assignment => exchange.endpoint == Endpoint::RequestJob,
            Self::Update => matches!(exchange.endpoint, Endpoint::Update(_)),
            Self::UpdateTo(state) => asked_state(exchange).as_deref() == Some(*state),
            Self::FinalUpdate => {
                asked_state(exchange).is_some_and(|state| state == "success" || state == "failed")
            }
            Self::Trace => matches!(exchange.endpoint, Endpoint::Trace(_)),
            Self::Artifacts => {
                matches!(exchange.endpoint, Endpoint::UploadArtifacts(_) | Endpoint::DownloadArtifacts(_))
            }
            Self::Storage => matches!(exchange.endpoint, Endpoint::Storage(_)),
            Self::Git => matches!(exchange.endpoint, Endpoint::Git { .. }),
            Self::Path(method, part) => exchange.method == *method && exchange.path.contains(part.as_str()),
        }
    }
}

fn asked_state(exchange: &Exchange) -> Option<String> {
    if !matches!(exchange.endpoint, Endpoint::Update(_)) {
        return None;
    }
    Some(exchange.object().ok()?.get("state")?.as_str()?.to_owned())
}

/// What a fault does to a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Answers with this status and these headers; nothing is done.
    Refuse(u16, Vec<(&'static str, String)>),
    /// Does and answers it after this long.
    Delay(Duration),
    /// Closes the connection; nothing is done.
    CutBeforeHandling,
    /// Does it and closes the connection: the answer is lost.
    CutAfterHandling,
    /// Keeps the connection open and never answers; nothing is done.
    HalfOpen,
}

/// A fault to be injected. Hits every match until it is removed unless told otherwise.
#[derive(Clone, Debug)]
pub struct Fault {
    target: Target,
    job: Option<JobId>,
    after: u32,
    times: Option<u32>,
    action: Action,
}

impl Fault {
    /// `action` on every request that `target` describes.
    pub fn on(target: Target, action: Action) -> Self {
        Self { target, job: None, after: 0, times: None, action }
    }

    /// Answers with `status`.
    pub fn refuse(target: Target, status: u16) -> Self {
        Self::on(target, Action::Refuse(status, Vec::new()))
    }

    /// Only requests about this job.
    pub fn job(mut self, job: JobId) -> Self {
        self.job = Some(job);
        self
    }

    /// Only this many requests.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Only one request.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Lets this many matching requests pass first.
    pub fn after(mut self, requests: u32) -> Self {
        self.after = requests;
        self
    }

    /// Adds a header to the refusal. `ratelimit-resettime` in seconds becomes the date it then is.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Action::Refuse(_, headers) = &mut self.action {
            headers.push((name, value.into()));
        }
        self
    }
}

/// Names an injected fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultId(u64);

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults {
    entries: Vec<Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    id: FaultId,
    fault: Fault,
    hits: u32,
}

impl Faults {
    pub fn inject(&mut self, fault: Fault) -> FaultId {
        self.next += 1;
        let id = FaultId(self.next);
        self.entries.push(Entry { id, fault, hits: 0 });
        id
    }

    pub fn remove(&mut self, id: FaultId) {
        self.entries.retain(|entry| entry.id != id);
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// How many requests the fault has hit; 0 once it is removed.
    pub fn hits(&self, id: FaultId) -> u32 {
        self.entries.iter().find(|entry| entry.id == id).map_or(0, |entry| entry.hits)
    }

    /// The action for a request that has just arrived, and is about this job.
    pub fn on_arrival(&mut self, exchange: &Exchange, job: Option<JobId>) -> Option<Action> {
        self.pick(exchange, job, |target| *target != Target::Assignment)
    }

    /// Whether the answer to a handled request is lost.
    pub fn cuts_answer(&mut self, exchange: &Exchange, answer: &Answer) -> bool {
        let is_assigned = |target: &Target| *target == Target::Assignment;
        answer.status == 201 && self.pick(exchange, exchange.endpoint.job(), is_assigned).is_some()
    }

    fn pick(
        &mut self,
        exchange: &Exchange,
        job: Option<JobId>,
        eligible: fn(&Target) -> bool,
    ) -> Option<Action> {
        let matching = self.entries.iter_mut().filter(|entry| {
            eligible(&entry.fault.target)
                && entry.fault.times.is_none_or(|times| entry.hits < times)
                && entry.fault.job.is_none_or(|wanted| job == Some(wanted))
                && entry.fault.target.matches(exchange)
        });
        for entry in matching {
            if entry.fault.after > 0 {
                entry.fault.after -= 1;
                continue;
            }
            entry.hits += 1;
            return Some(entry.fault.action.clone());
        }
        None
    }
}
