//! The user's own steps, all but `after_script`, and what the script leaves for the environment's next job.

use std::io;
use std::time::Instant;

use super::{Ended, Failure, Job, JobError, canceled, host};
use crate::spool::record::{Outcome, ScriptEnd};
use crate::supervisor::context::{self, SavedContext};
use crate::supervisor::run::cancel::CancelWish;
use crate::supervisor::run::duration;
use crate::supervisor::run::script::{Body, CONTEXT_FILE, HISTORY_FILE, Restored};
use crate::supervisor::run::stage::StageEnd;
use crate::supervisor::workspace;

impl Job {
    /// Every step but `after_script`, in order, until one fails.
    pub(super) fn user_script(&mut self) -> Result<Ended, JobError> {
        let restored = self.wake()?;
        let limit = self.timeout("RUNNER_SCRIPT_TIMEOUT")?;
        let deadline = limit.map(|limit| Instant::now() + limit);
        let steps = self.order.job.steps.clone();
        let keep_context = self.order.suspend.on_success || self.order.suspend.on_failure;
        for step in steps.iter().filter(|step| step.name != "after_script" && !step.script.is_empty()) {
            let name = format!("step_{}", step.name);
            self.enter(&name, &format!("Executing \"{name}\" stage of the job script"))?;
            let settings = &self.order.settings;
            let around = [&settings.pre_build_script, &settings.post_build_script].map(|script| {
                let is_given = !script.trim().is_empty();
                is_given.then(|| script.clone())
            });
            let [before, after] = around;
            let lines: Vec<String> = before.into_iter().chain(step.script.clone()).chain(after).collect();
            let sections = self.has_script_sections();
            let body = Body::Commands { lines: &lines, restored: restored.as_ref(), keep_context, sections };
            let end = self.stage(&body, "running", deadline, CancelWish::Graceful)?;
            self.leave(&name)?;
            // A shell that was asked to end says what it leaves, too.
            let is_interrupted = end == StageEnd::Canceled(CancelWish::Interrupt);
            if keep_context && (matches!(end, StageEnd::Exited(_)) || is_interrupted) {
                self.draft_context()?;
            }
            let failure = match end {
                StageEnd::Exited(0) => continue,
                StageEnd::Exited(code) if step.allow_failure => {
                    let ignored =
                        format!("step {} failed with exit code {code}, which is allowed", step.name);
                    self.warn(&ignored)?;
                    continue;
                }
                StageEnd::Exited(code) => Failure {
                    outcome: Outcome::ScriptFailure,
                    script: ScriptEnd::Failure,
                    exit_code: code,
                    message: format!("exit code {code}"),
                },
                StageEnd::TimedOut => Failure {
                    outcome: Outcome::Timeout,
                    script: ScriptEnd::NotEnded,
                    exit_code: 0,
                    message: format!(
                        "the script took longer than RUNNER_SCRIPT_TIMEOUT, {}",
                        duration::show(limit.unwrap_or_default())
                    ),
                },
                StageEnd::JobTimedOut => self.out_of_time(),
                StageEnd::Canceled(_) => canceled(ScriptEnd::NotEnded),
            };
            return Ok(Err(failure));
        }
        Ok(Ok(()))
    }

    /// Lets the processes of a resumed environment go on and reads its saved context.
    fn wake(&mut self) -> Result<Option<Restored>, JobError> {
        if self.order.resume.is_none() {
            return Ok(None);
        }
        for tree in &self.admitted.holdings.trees {
            tree.thaw().map_err(host("failed to wake the environment's processes"))?;
        }
        let saved = context::read(&self.admitted.folder).map_err(host("failed to read the saved context"))?;
        if saved.is_none() {
            // Its script never came to an end, or what was kept of it went with its host or its object.
            let gone = "the environment's working directory, variables and history were not kept: the script begins in \
                        the project folder";
            self.warn(gone)?;
        }
        Ok(saved.map(|saved| saved.restored()))
    }

    fn draft_context(&mut self) -> Result<(), JobError> {
        match self.left_behind() {
            Ok(Some(context)) => context::write_draft(&self.admitted.folder, &context)
                .map_err(host("failed to keep the script's context")),
            Ok(None) => Ok(()),
            Err(error) => self.warn(&format!("the script's context is not kept: {error}")),
        }
    }

    fn left_behind(&self) -> io::Result<Option<SavedContext>> {
        let read = |name| workspace::read_left_behind(&self.admitted.environment, name, context::LONGEST);
        let Some(left) = read(CONTEXT_FILE)? else { return Ok(None) };
        let history = read(HISTORY_FILE)?.unwrap_or_default();
        Ok(Some(SavedContext::from_script(&left, &history, &self.variables, &self.shell.base)))
    }
}
