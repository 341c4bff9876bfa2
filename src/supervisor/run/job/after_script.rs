//! The stage after the user's script, which runs however that ended.

use std::time::{Duration, Instant};

use super::{Failure, Job, JobError, canceled, job_status};
use crate::spool::record::{Outcome, ScriptEnd};
use crate::supervisor::run::cancel::CancelWish;
use crate::supervisor::run::duration;
use crate::supervisor::run::script::Body;
use crate::supervisor::run::stage::StageEnd;

/// How long `after_script` may take when the job does not say.
const AFTER_SCRIPT_TIMEOUT: Duration = Duration::from_secs(5 * 60);

impl Job {
    /// Runs `after_script`; its failure is the job's only if the job says so.
    pub(super) fn after_script(&mut self, failure: Option<&Failure>) -> Result<Option<Failure>, JobError> {
        let steps = self.order.job.steps.clone();
        let Some(step) = steps.iter().find(|step| step.name == "after_script" && !step.script.is_empty())
        else {
            return Ok(None);
        };
        let status = job_status(failure);
        let limit = self.timeout("RUNNER_AFTER_SCRIPT_TIMEOUT")?.unwrap_or(AFTER_SCRIPT_TIMEOUT);
        self.enter("after_script", "Running after_script")?;
        let sections = self.has_script_sections();
        let body = Body::Commands { lines: &step.script, restored: None, keep_context: false, sections };
        let end = self.stage(&body, status, Some(Instant::now() + limit), CancelWish::Abort)?;
        let note = match end {
            StageEnd::Exited(0) => None,
            StageEnd::Exited(code) => Some(format!("after_script failed with exit code {code}")),
            StageEnd::TimedOut => Some(format!("after_script took longer than {}", duration::show(limit))),
            StageEnd::JobTimedOut => Some("after_script ran into the job's time-out".to_owned()),
            StageEnd::Canceled(_) => Some("after_script was stopped".to_owned()),
        };
        if let Some(note) = &note {
            self.warn(note)?;
        }
        self.leave("after_script")?;
        let counts = failure.is_none() && !self.variables.flag("AFTER_SCRIPT_IGNORE_ERRORS", true);
        Ok(match end {
            StageEnd::Exited(code) if code != 0 && counts => Some(Failure {
                outcome: Outcome::ScriptFailure,
                // Whose failure counts as the script's counts for what is done on failure, too.
                script: ScriptEnd::Failure,
                exit_code: code,
                message: format!("after_script: exit code {code}"),
            }),
            // The job's time is over whatever the script's end was; only a cancel came first.
            StageEnd::JobTimedOut if failure.is_none_or(|failure| failure.outcome != Outcome::Canceled) => {
                Some(self.out_of_time())
            }
            StageEnd::Canceled(_) if failure.is_none() => Some(canceled(ScriptEnd::NotEnded)),
            StageEnd::Exited(_) | StageEnd::TimedOut | StageEnd::JobTimedOut | StageEnd::Canceled(_) => None,
        })
    }
}
