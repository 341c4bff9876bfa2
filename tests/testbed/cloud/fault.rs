//! Calls that go wrong.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// What goes wrong with which calls. Service and action may hold `*`.
#[derive(Clone, Debug)]
pub struct Fault {
    service: String,
    action: String,
    matching: Map<String, Value>,
    times: Option<u32>,
    skip: u32,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Error { status: u16, code: String },
    Cut,
    Latency(Duration),
}

impl Fault {
    /// The call is refused, once.
    pub fn error(service: &str, action: &str, status: u16, code: &str) -> Self {
        Self::new(service, action, Kind::Error { status, code: code.to_owned() })
    }

    /// The call is carried out and the connection is closed before the answer, once.
    pub fn cut(service: &str, action: &str) -> Self {
        Self::new(service, action, Kind::Cut)
    }

    /// The call is carried out late, once.
    pub fn latency(service: &str, action: &str, late: Duration) -> Self {
        Self::new(service, action, Kind::Latency(late))
    }

    /// So many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Until the faults are cleared.
    #[must_use]
    pub fn always(mut self) -> Self {
        self.times = None;
        self
    }

    /// Lets the first ones pass.
    #[must_use]
    pub fn after(mut self, calls: u32) -> Self {
        self.skip = calls;
        self
    }

    /// Only calls with this parameter, by its name on the wire (`InstanceId`, `InstanceIds`, `VolumeId`).
    #[must_use]
    pub fn only(mut self, parameter: &str, value: &str) -> Self {
        self.matching.insert(parameter.to_owned(), json!(value));
        self
    }

    fn new(service: &str, action: &str, kind: Kind) -> Self {
        let (service, action) = (service.to_owned(), action.to_owned());
        Self { service, action, matching: Map::new(), times: Some(1), skip: 0, kind }
    }

    pub(super) fn to_json(&self) -> Value {
        let (kind, status, code, seconds) = match &self.kind {
            Kind::Error { status, code } => ("error", *status, code.as_str(), 0.0),
            Kind::Cut => ("cut", 0, "", 0.0),
            Kind::Latency(late) => ("latency", 0, "", late.as_secs_f64()),
        };
        json!({
            "service": self.service, "action": self.action, "match": self.matching, "times": self.times,
            "skip": self.skip, "kind": kind, "status": status, "code": code, "seconds": seconds,
            "message": format!("A fault of the test bed: {code}"),
        })
    }
}
