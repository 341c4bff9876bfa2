//! Runners and the machines that use their tokens.
//!
//! Owns the runner's identity, its queue value (`X-GitLab-Last-Update`) and which values each
//! machine can have seen. A machine is a runner's token used under one system id.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{exchange::Object, secret};

fn new_token() -> String {
    format!("glrt-t1_{}", secret::letters(20))
}

/// The number GitLab gives a runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunnerId(pub u64);

impl fmt::Display for RunnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A registered runner, as a test hands it to the runner under test.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Its number.
    pub id: RunnerId,
    /// Its authentication token.
    pub token: String,
}

/// A runner as a test looks at it.
#[derive(Clone, Debug)]
pub struct RunnerView {
    /// Its number.
    pub id: RunnerId,
    /// Its token.
    pub token: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// What it was made with, and changed to.
    pub settings: Value,
    /// The system ids that have used it.
    pub machines: Vec<String>,
    /// When its token expires.
    pub expires_at: Option<Timestamp>,
}

/// A runner as the server keeps it.
#[derive(Debug)]
pub(super) struct RunnerRecord {
    pub id: RunnerId,
    pub token: String,
    /// Jobs with tags need all of them here; jobs without tags go to every runner.
    pub tags: BTreeSet<String>,
    /// By system id.
    pub machines: BTreeMap<String, Machine>,
    /// Changes whenever a job appears that this runner could take.
    pub queue_value: String,
    /// What it was made with, and changed to, in the words of the REST API.
    pub settings: Object,
    /// Whether it takes jobs without tags.
    pub runs_untagged: bool,
    /// Whether it gets none.
    pub is_paused: bool,
    /// Whether a machine has ever used its token.
    pub has_contacted: bool,
    /// When its token expires.
    pub expires_at: Option<Timestamp>,
}

impl RunnerRecord {
    pub fn new(id: RunnerId, tags: BTreeSet<String>) -> Self {
        Self {
            id,
            token: new_token(),
            tags,
            machines: BTreeMap::new(),
            queue_value: secret::hex(32),
            settings: Object::new(),
            runs_untagged: true,
            is_paused: false,
            has_contacted: false,
            expires_at: None,
        }
    }

    /// Gives it another token, which lives for that long; answers the old one.
    pub fn issue_token(&mut self, life: Option<Duration>) -> String {
        self.expires_at = life.map(|life| Timestamp::now() + life);
        std::mem::replace(&mut self.token, new_token())
    }

    /// Its token as it is told when it was issued.
    pub fn issued(&self) -> Value {
        json!({ "token": self.token, "token_expires_at": self.expires_at.map(|at| at.to_string()) })
    }

    /// The same with its id.
    pub fn issued_with_id(&self) -> Value {
        let expires_at = self.expires_at.map(|at| at.to_string());
        json!({ "id": self.id.0, "token": self.token, "token_expires_at": expires_at })
    }

    /// Does what its settings say.
    pub fn take_settings(&mut self) {
        let flag = |name: &str| self.settings.get(name).and_then(Value::as_bool);
        self.runs_untagged = flag("run_untagged").unwrap_or(true);
        self.is_paused = flag("paused").unwrap_or(false);
        let tags = self.settings.get("tag_list").and_then(Value::as_array).cloned().unwrap_or_default();
        self.tags = tags.iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
    }

    /// Whether a job that asks for `tags` may go to this runner.
    pub fn serves(&self, tags: &BTreeSet<String>) -> bool {
        let takes = if tags.is_empty() { self.runs_untagged } else { tags.is_subset(&self.tags) };
        takes && !self.is_paused
    }

    /// Tells the machines that poll with the old value that the queue has changed.
    pub fn tick_queue(&mut self) {
        self.queue_value = secret::hex(32);
    }
}

/// One system id under a runner's token.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// Features of its latest call that carried any.
    pub features: BTreeSet<String>,
    /// Queue values its next request may echo; empty until one was answered.
    pub seen_values: Vec<String>,
    /// Requests for a job that are open now: their answers may overtake each other.
    pub open_requests: u32,
    /// Connections that have carried a request for a job.
    pub connections: BTreeSet<u64>,
    /// Those of processes that are gone. A request of theirs may still be open, or be read only now; its answer is seen by
    /// nobody.
    pub past_connections: BTreeSet<u64>,
    /// Queue values that only those who used such a connection know. One that was announced as gone and goes on all the
    /// same echoes the latest of them on whatever connection it has by then; a new process cannot know any.
    pub past_values: Vec<String>,
    /// A new client process was announced: its first request knows no queue value.
    pub may_start_over: bool,
}

impl Machine {
    /// Records that an answer carried `value`. `surely_seen` is false when a fault may have
    /// swallowed the answer, or the next request may be on its way already: then the older values stay possible.
    pub fn answered(&mut self, value: &str, surely_seen: bool) {
        if surely_seen && self.open_requests <= 1 {
            self.seen_values.clear();
        }
        remember(&mut self.seen_values, value);
    }

    /// The same of an answer on a connection of a process that was announced as gone.
    pub fn answered_the_past(&mut self, value: &str) {
        remember(&mut self.past_values, value);
    }

    /// What has connections now is announced as gone.
    pub fn client_restarted(&mut self) {
        self.may_start_over = true;
        self.past_connections.append(&mut self.connections);
        for value in &self.seen_values {
            remember(&mut self.past_values, value);
        }
    }
}

/// Adds a value to those that may be echoed. More than a few would only hide a client that echoes stale ones.
fn remember(values: &mut Vec<String>, value: &str) {
    if !values.iter().any(|known| known == value) {
        values.push(value.to_owned());
    }
    if values.len() > 8 {
        values.remove(0);
    }
}
