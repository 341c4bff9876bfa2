//! What a job leaves: file variables gone, processes ended, the last line, and the record with its result.

use super::{Ended, Failure, Job, JobError, host};
use crate::clock;
use crate::spool::closing::closing_line;
use crate::spool::record::{JobRecord, JobResult, JobState, Outcome, ScriptEnd};
use crate::supervisor::log::file::LogFile;
use crate::supervisor::log::laid_out;
use crate::supervisor::run::cancel::CancelWish;
use crate::supervisor::state::{Durability, JobFolder, gone};
use crate::supervisor::workspace;

impl Job {
    /// The host refuses something, so that a stage may have been left in its middle: nothing of the job's own runs on,
    /// and what was set aside is used for saying so.
    pub(super) fn break_off(&mut self, error: &JobError) -> Failure {
        // What could not be ended is tried again at the end, and said there.
        let _ended = self.own_tree().map(|tree| tree.kill());
        // Where there is no room all the same, the next write says it.
        let _made = self.admitted.job.use_room_aside();
        Failure {
            outcome: error.outcome(),
            script: ScriptEnd::NotEnded,
            exit_code: 0,
            message: error.to_string(),
        }
    }

    /// Removes file variables and everything else that is secret; a failure is said, not hidden.
    pub(super) fn clean_up(&mut self) -> Result<(), JobError> {
        const STAGE: &str = "cleanup_file_variables";
        // The files go, whatever can be written down of it.
        let noted = self.enter(STAGE, "Cleaning up project directory and file based variables");
        if workspace::is_there(&self.temporary)
            && let Err(error) = workspace::remove(&self.temporary, self.admitted.user.as_ref())
        {
            self.warn(&format!("failed to delete {}: {error}", self.temporary))?;
        }
        noted?;
        self.leave(STAGE)
    }

    pub(super) fn result(&self, ended: Ended) -> JobResult {
        let result = match ended {
            Ok(()) => JobResult {
                outcome: Outcome::Success,
                script: ScriptEnd::Success,
                exit_code: 0,
                message: "succeeded".to_owned(),
                suspend_due: false,
            },
            Err(failure) => JobResult {
                outcome: failure.outcome,
                script: failure.script,
                exit_code: failure.exit_code,
                message: failure.message,
                suspend_due: false,
            },
        };
        // A canceled job keeps nothing, whatever its script's end was.
        let is_canceled =
            matches!(self.shell.cancel_wish(), Ok(Some(CancelWish::Graceful | CancelWish::Abort)));
        JobResult { suspend_due: !is_canceled && self.order.suspend.is_due(result.script), ..result }
    }

    /// Ends what must end, and writes the result down.
    pub(super) fn finish(mut self, result: JobResult) -> Result<(), JobError> {
        let result = match self.end(&result) {
            Ok(()) => result,
            Err(error) => {
                let failure = self.break_off(&error);
                let result = self.result(Err(failure));
                // Where the log takes no word even now, the record says it alone.
                let _said = self.end(&result);
                result
            }
        };
        let job = &self.admitted.job;
        let record = &mut self.admitted.record;
        record.state = JobState::Finished;
        record.stage = None;
        record.finished_at = Some(clock::now());
        record.sealed = !result.suspend_due;
        record.result = Some(result);
        job.with_room(|| job.write(record, Durability::Durable))
            .map_err(host("failed to write the job's result"))?;
        // After the record, which keeps newer ones from being left.
        gone(std::fs::remove_file(job.cache_urls()))
            .map_err(host("failed to remove the addresses of caches"))?;
        if record.sealed {
            // The last word is said.
            job.use_room_aside().map_err(host("failed to give back the room that was set aside"))?;
        }
        Ok(())
    }

    /// Ends what must end, and closes the log, unless the operator has the last word.
    fn end(&mut self, result: &JobResult) -> Result<(), JobError> {
        if !result.suspend_due {
            let kept = self.order.resume.is_some() && result.script == ScriptEnd::NotEnded;
            let killed = if kept { self.own_tree()?.kill() } else { self.admitted.holdings.kill() };
            if let Err(error) = killed {
                self.warn(&format!("some processes could not be ended: {error}"))?;
            }
        }
        self.shell.copy_last_output(&mut self.log).map_err(JobError::Log)?;
        if result.suspend_due {
            self.log.sync().map_err(JobError::Log)
        } else {
            self.log.close(&closing_line(result)).map_err(JobError::Log)
        }
    }
}

/// Writes down the result of a job whose first stage could not be prepared.
///
/// # Errors
/// When even that cannot be written; the job then looks lost.
pub fn finish_unstarted(folder: &JobFolder, record: JobRecord, error: &JobError) -> Result<(), JobError> {
    let result = JobResult {
        outcome: error.outcome(),
        script: ScriptEnd::NotEnded,
        exit_code: 0,
        message: error.to_string(),
        suspend_due: false,
    };
    let text = laid_out(&format!("{}\n", closing_line(&result)), record.timestamps, clock::now());
    let write = || LogFile::open(&folder.log()).and_then(|mut log| log.append(|_| text.clone()));
    let said = folder.with_room(write).map_err(JobError::Log);
    let finished = JobRecord {
        state: JobState::Finished,
        finished_at: Some(clock::now()),
        result: Some(result),
        sealed: true,
        ..record
    };
    folder
        .with_room(|| folder.write(&finished, Durability::Durable))
        .map_err(host("failed to write the job's result"))?;
    said
}
