//! The last lines of a job's log, the same whoever writes them.

use super::record::{JobResult, Outcome};

const GREEN: &str = "\x1b[32;1m";
const RED: &str = "\x1b[31;1m";
const RESET: &str = "\x1b[0;m";

/// The log's last line for a result.
pub fn closing_line(result: &JobResult) -> String {
    match result.outcome {
        Outcome::Success => succeeded(),
        Outcome::ScriptFailure | Outcome::Timeout | Outcome::Canceled => {
            format!("{RED}ERROR: Job failed: {}{RESET}", result.message)
        }
        Outcome::SystemFailure | Outcome::ConfigurationError => system_failure(&result.message),
    }
}

/// The last line of a job that succeeded.
pub fn succeeded() -> String {
    format!("{GREEN}Job succeeded{RESET}")
}

/// The last line of a job that failed by no fault of its script.
pub fn system_failure(message: &str) -> String {
    format!("{RED}ERROR: Job failed (system failure): {message}{RESET}")
}

/// The line that says an environment sleeps; people and scripts copy the key from it.
pub fn suspended_line(key: &str) -> String {
    format!("Job environment suspended: {key}")
}

/// The line that says an environment is awake again.
pub fn resumed_line(key: &str) -> String {
    format!("Job environment resumed: {key}")
}
