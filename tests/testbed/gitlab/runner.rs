//! Runners and the machines that use their tokens.
//!
//! Owns the runner's identity, its queue value (`X-GitLab-Last-Update`) and which values each
//! machine can have seen. A machine is a runner's token used under one system id.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::secret;

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
}

impl RunnerRecord {
    pub fn new(id: RunnerId, tags: BTreeSet<String>) -> Self {
        Self {
            id,
            token: format!("glrt-t1_{}", secret::letters(20)),
            tags,
            machines: BTreeMap::new(),
            queue_value: secret::hex(32),
        }
    }

    /// Whether a job that asks for `tags` may go to this runner.
    pub fn serves(&self, tags: &BTreeSet<String>) -> bool {
        tags.is_subset(&self.tags)
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
    /// A new client process was announced: its first request knows no queue value.
    pub may_start_over: bool,
}

impl Machine {
    /// Records that an answer carried `value`. `surely_seen` is false when a fault may have
    /// swallowed the answer: then the older values stay possible.
    pub fn answered(&mut self, value: &str, surely_seen: bool) {
        if surely_seen && self.open_requests <= 1 {
            self.seen_values.clear();
        }
        if !self.seen_values.iter().any(|seen| seen == value) {
            self.seen_values.push(value.to_owned());
        }
        // More would only hide a client that echoes stale values.
        if self.seen_values.len() > 8 {
            self.seen_values.remove(0);
        }
    }
}
