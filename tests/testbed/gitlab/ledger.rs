//! The record of what was asked and what was wrong with it.

use std::{collections::VecDeque, fmt, time::Duration};

use jiff::Timestamp;

use super::{exchange::Exchange, job::JobId};

/// Requests kept; a soak run makes more, and the oldest are the least interesting.
const KEPT_REQUESTS: usize = 100_000;
/// Violations kept; one is enough to fail a test.
const KEPT_VIOLATIONS: usize = 1_000;

/// Something a correct runner never does.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When it arrived.
    pub at: Timestamp,
    /// The name of the rule.
    pub rule: &'static str,
    /// Number, method and path of the request.
    pub request: String,
    /// The job it was about.
    pub job: Option<JobId>,
    /// What was wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} [{}] {}", self.at, self.request, self.rule, self.what)
    }
}

/// A request that was answered or cut.
#[derive(Clone, Debug)]
pub struct Request {
    /// Counts requests since the start.
    pub number: u64,
    /// When it had arrived whole.
    pub at: Timestamp,
    /// The connection it came on.
    pub connection: u64,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Its query string.
    pub query: String,
    /// The job it was about.
    pub job: Option<JobId>,
    /// Its body, when that is short JSON; tokens are in it.
    pub body: Option<String>,
    /// The status that was answered; none when a fault cut it or the client left.
    pub answer: Option<u16>,
    /// From whole request to answer.
    pub took: Duration,
}

/// Everything that was recorded.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub requests: VecDeque<Request>,
    pub violations: VecDeque<Violation>,
    /// Violations that were not kept.
    pub dropped_violations: u64,
    numbered: u64,
}

impl Ledger {
    /// The number of the next request.
    pub fn next_number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    /// Records a request with its end.
    pub fn record(&mut self, request: Request) {
        self.requests.push_back(request);
        if self.requests.len() > KEPT_REQUESTS {
            self.requests.pop_front();
        }
    }

    /// Records a violation of `rule`.
    pub fn violate(&mut self, exchange: &Exchange, rule: &'static str, what: impl Into<String>) {
        if self.violations.len() >= KEPT_VIOLATIONS {
            self.dropped_violations += 1;
            return;
        }
        self.violations.push_back(Violation {
            at: exchange.at,
            rule,
            request: exchange.title(),
            job: exchange.endpoint.job(),
            what: what.into(),
        });
    }
}
