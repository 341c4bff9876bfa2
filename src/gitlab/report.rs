//! The last words about a job: what each answer to the final update leads to.
//!
//! The result is on the host's disk and in the lease, so the update is repeated until GitLab says yes or says that
//! the job is gone; there is no number of tries after which a result is thrown away.

use std::time::Duration;

use super::backoff::{Backoff, LONGEST_ASKED};
use super::client::UpdateAnswer;

/// Where the conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    refusals: u32,
    backoff: Backoff,
    form: Form,
}

/// How much the final update carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Everything: checksum, size, key.
    Full,
    /// State, reason and exit code only; tried once after repeated refusals.
    Minimal,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send the update again after a wait.
    Repeat {
        /// How long to wait.
        after: Duration,
    },
    /// Send the log again from byte 0, then the update.
    ResendLog,
    /// GitLab has the result.
    Done,
    /// GitLab does not know the job any more, or ended it itself: nothing more to say.
    Gone,
    /// GitLab refuses the result in every form; a person has to look.
    Refused,
}

/// Refusals of the full form before the minimal one is tried.
const REFUSALS_BEFORE_MINIMAL: u32 = 2;

/// The wait while GitLab stores the log.
const STORING_WAIT: Duration = Duration::from_secs(1);

impl Default for Report {
    fn default() -> Self {
        Self { refusals: 0, backoff: Backoff::default(), form: Form::Full }
    }
}

impl Report {
    /// The form to send now.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Takes an answer. `chance`, from 0 to 1, spreads what many jobs say at GitLab's return.
    pub fn on(&mut self, answer: &UpdateAnswer, chance: f64) -> Next {
        if !matches!(answer, UpdateAnswer::Retry { .. }) {
            self.backoff.succeeded();
        }
        match answer {
            UpdateAnswer::Ok(_) => Next::Done,
            UpdateAnswer::StoringLog { interval } => {
                Next::Repeat { after: interval.unwrap_or(STORING_WAIT).min(LONGEST_ASKED) }
            }
            UpdateAnswer::LogInvalid => Next::ResendLog,
            UpdateAnswer::Gone { .. } => Next::Gone,
            UpdateAnswer::Refused | UpdateAnswer::OwnedByOther => self.refused(),
            UpdateAnswer::Retry { after, .. } => Next::Repeat { after: self.backoff.failed(*after, chance) },
        }
    }

    fn refused(&mut self) -> Next {
        self.refusals += 1;
        match self.form {
            Form::Minimal => Next::Refused,
            Form::Full if self.refusals >= REFUSALS_BEFORE_MINIMAL => {
                self.form = Form::Minimal;
                Next::Repeat { after: Duration::from_millis(200) }
            }
            Form::Full => Next::Repeat { after: Duration::from_secs(1) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitlab::client::JobStatus;

    #[test]
    fn a_server_that_is_away_is_asked_until_it_answers() {
        let mut report = Report::default();
        for _ in 0..1000 {
            let away = UpdateAnswer::Retry { after: None, cause: "away".to_owned() };
            let Next::Repeat { after } = report.on(&away, 0.5) else { panic!("gave up") };
            assert!(after <= LONGEST_ASKED);
        }
        assert_eq!(report.on(&UpdateAnswer::Ok(JobStatus::default()), 0.5), Next::Done);
    }

    #[test]
    fn repeated_refusals_try_the_minimal_form_once() {
        let mut report = Report::default();
        assert!(matches!(report.on(&UpdateAnswer::Refused, 0.5), Next::Repeat { .. }));
        assert_eq!(report.form(), Form::Full);
        assert!(matches!(report.on(&UpdateAnswer::Refused, 0.5), Next::Repeat { .. }));
        assert_eq!(report.form(), Form::Minimal);
        assert_eq!(report.on(&UpdateAnswer::Refused, 0.5), Next::Refused);
    }
}
