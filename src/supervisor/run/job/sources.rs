//! The stage that brings the sources into the workspace.

use std::time::{Duration, Instant};

use super::{Ended, Failure, Job, JobError, canceled};
use crate::spool::record::{Outcome, ScriptEnd};
use crate::supervisor::run::cancel::CancelWish;
use crate::supervisor::run::duration;
use crate::supervisor::run::script::Body;
use crate::supervisor::run::sources::script::{clear, script};
use crate::supervisor::run::sources::settings::Settings;
use crate::supervisor::run::stage::StageEnd;

impl Job {
    /// Fetches the sources, as often as the job wants it tried.
    pub(super) fn get_sources(&mut self) -> Result<Ended, JobError> {
        if self.order.resume.is_some() {
            self.say("Skipping the sources: the environment was resumed")?;
            return Ok(Ok(()));
        }
        let workspace = self.admitted.environment.workspace.clone();
        let (settings, warnings) = Settings::read(&self.order.job, &self.variables);
        let Some(script) = script(&settings, &self.order.job, &self.order.settings, &workspace) else {
            for warning in &warnings {
                self.warn(warning)?;
            }
            self.say("Skipping the sources: GIT_STRATEGY is none")?;
            return Ok(Ok(()));
        };
        self.enter("get_sources", "Getting source from Git repository")?;
        for warning in warnings {
            self.warn(&warning)?;
        }
        let attempts = self.attempts("GET_SOURCES_ATTEMPTS")?;
        let mut ended = self.fetch(&script)?;
        for attempt in 1..attempts {
            let how = match ended {
                Fetched::Failed(code) => format!("exit code {code}"),
                Fetched::TimedOut(_) => "it took too long".to_owned(),
                Fetched::Done | Fetched::Stopped(_) => break,
            };
            let left = attempts - attempt;
            self.warn(&format!("fetching the sources failed: {how}; {left} more to try"))?;
            ended = match self.pause(wait_before(attempt))? {
                Some(end) => Fetched::Stopped(end),
                // What an attempt left in the work tree may be what breaks the next one.
                None => self.fetch(&format!("{}{script}", clear(&workspace)))?,
            };
        }
        self.leave("get_sources")?;
        Ok(match ended {
            Fetched::Done => Ok(()),
            Fetched::Failed(code) => Err(Failure {
                outcome: Outcome::ScriptFailure,
                script: ScriptEnd::NotEnded,
                exit_code: code,
                message: format!("fetching the sources failed: exit code {code}"),
            }),
            Fetched::TimedOut(limit) => Err(Failure {
                outcome: Outcome::Timeout,
                script: ScriptEnd::NotEnded,
                exit_code: 0,
                message: format!("fetching the sources took longer than {}", duration::show(limit)),
            }),
            Fetched::Stopped(StageEnd::Canceled(_)) => Err(canceled(ScriptEnd::NotEnded)),
            Fetched::Stopped(StageEnd::TimedOut | StageEnd::JobTimedOut | StageEnd::Exited(_)) => {
                Err(self.out_of_time())
            }
        })
    }

    fn fetch(&mut self, script: &str) -> Result<Fetched, JobError> {
        let limit = Duration::from_secs(self.order.settings.get_sources_timeout_seconds);
        let deadline = (!limit.is_zero()).then(|| Instant::now() + limit);
        Ok(match self.stage(&Body::Plain(script), "running", deadline, CancelWish::Graceful)? {
            StageEnd::Exited(0) => Fetched::Done,
            StageEnd::Exited(code) => Fetched::Failed(code),
            StageEnd::TimedOut => {
                self.warn(&format!("fetching the sources took longer than {}", duration::show(limit)))?;
                Fetched::TimedOut(limit)
            }
            end @ (StageEnd::JobTimedOut | StageEnd::Canceled(_)) => Fetched::Stopped(end),
        })
    }
}

/// How an attempt ended.
enum Fetched {
    Done,
    Failed(i32),
    TimedOut(Duration),
    Stopped(StageEnd),
}

/// How long to wait after so many attempts: 5 s at first, twice as long each time, 5 min at most.
pub(super) fn wait_before(attempts: u32) -> Duration {
    let seconds = 5_u64.saturating_mul(1 << attempts.saturating_sub(1).min(8));
    Duration::from_secs(seconds.min(300))
}
