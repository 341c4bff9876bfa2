//! Refusals: how a verb says that it did nothing, and why.

use std::fmt::Display;
use std::io;

use crate::spool::verb::{Refusal, RefusalReason};

/// A refusal with its reason and one sentence.
pub fn refusal(reason: RefusalReason, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}

/// The order cannot be read or asks for what cannot be done here.
pub fn unsupported(message: impl Into<String>) -> Refusal {
    refusal(RefusalReason::Unsupported, message)
}

/// No such environment or job.
pub fn not_found(message: impl Into<String>) -> Refusal {
    refusal(RefusalReason::NotFound, message)
}

/// Turns the host's failures into refusals that say what was attempted.
pub trait OrRefuse<T> {
    /// The value, or a refusal that begins with `attempt`, such as "failed to write job.json".
    fn or_refuse(self, attempt: impl Display) -> Result<T, Refusal>;
}

impl<T> OrRefuse<T> for io::Result<T> {
    fn or_refuse(self, attempt: impl Display) -> Result<T, Refusal> {
        self.map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::Unsupported => RefusalReason::Unsupported,
                _ => RefusalReason::HostFailure,
            };
            refusal(reason, format!("{attempt}: {error}"))
        })
    }
}

impl<T> OrRefuse<T> for rustix::io::Result<T> {
    fn or_refuse(self, attempt: impl Display) -> Result<T, Refusal> {
        self.map_err(io::Error::from).or_refuse(attempt)
    }
}
