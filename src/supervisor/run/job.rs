//! Drives an admitted job through GitLab's stages to its result.
//!
//! Writes in order, and what a death in between leaves: the log as it goes (a later seal ends it), the context's
//! draft (kept only if a suspend follows), the last line, and at the end one record with result and seal. A record
//! without result whose process is gone is a lost job; the operator says so. On a full disk the last line and the record
//! take the room that was set aside when the job was admitted.
//!
//! This file says which stages run after which; each stage is a file below.

mod after_script;
mod artifacts;
mod cache;
mod finish;
mod head;
mod sources;
mod stage;
mod steps;

use std::io;
use std::time::{Duration, Instant};

pub use self::finish::finish_unstarted;
use super::admission::Admitted;
use super::cancel::{CancelWatch, CancelWish};
use super::inputs;
use super::sources::address::{GitSettings, git_settings};
use super::stage::Shell;
use super::variables::JobVariables;
use crate::spool::order::{DEFAULT_LOG_LIMIT, JobOrder};
use crate::spool::record::{Outcome, ScriptEnd};
use crate::supervisor::log::file::LogFile;
use crate::supervisor::log::{JobLog, LogStyle};
use crate::supervisor::workspace;
use crate::tls;

/// A job that runs.
pub struct Job {
    order: JobOrder,
    admitted: Admitted,
    variables: JobVariables,
    git_settings: GitSettings,
    temporary: String,
    log: JobLog,
    shell: Shell,
    deadline: Instant,
    /// Whether the user's own steps have begun.
    has_begun: bool,
}

/// Why a job ends before its last stage.
#[derive(Debug, Clone)]
struct Failure {
    outcome: Outcome,
    script: ScriptEnd,
    exit_code: i32,
    message: String,
}

/// How a part of a job ended.
type Ended = Result<(), Failure>;

/// What keeps the supervisor from going on.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The log cannot be written.
    #[error("the job's log cannot be written: {0}")]
    Log(#[source] io::Error),
    /// The job says what cannot be.
    #[error("{0}")]
    Configuration(String),
    /// There is no `bash`.
    #[error("bash was not found on the host; install it there, or in the image the host is made from")]
    NoShell,
    /// The host refuses something.
    #[error("{attempt}: {source}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl JobError {
    /// Whose fault it is.
    fn outcome(&self) -> Outcome {
        match self {
            Self::Configuration(_) => Outcome::ConfigurationError,
            Self::NoShell | Self::Log(_) | Self::Host { .. } => Outcome::SystemFailure,
        }
    }
}

fn host(attempt: &'static str) -> impl FnOnce(io::Error) -> JobError {
    move |source| JobError::Host { attempt, source }
}

impl Job {
    /// Prepares an admitted job.
    ///
    /// # Errors
    /// When the host refuses something.
    pub fn new(mut order: JobOrder, admitted: Admitted) -> Result<Self, JobError> {
        order.job = inputs::in_place(order.job).map_err(JobError::Configuration)?;
        if order.resume.is_none() {
            workspace::own_path(&order.builds_dir, order.slot, &order.job)
                .map_err(JobError::Configuration)?;
        }
        let temporary = workspace::temporary(&admitted.environment.workspace);
        let workspace = &admitted.environment.workspace;
        let authorities = if order.shows_authorities() { tls::system_pem() } else { String::new() };
        let surroundings = order.surroundings(workspace, &temporary, std::env::consts::ARCH, &authorities);
        let variables = JobVariables::gather(&order.job, &surroundings);
        let git_settings = git_settings(&order.job, &variables, order.shows_authorities());
        let style = LogStyle {
            secrets: variables.secrets().to_vec(),
            token_prefixes: &order.job.features.token_mask_prefixes,
            timestamps: admitted.record.timestamps,
            limit: if order.log_limit_bytes == 0 { DEFAULT_LOG_LIMIT } else { order.log_limit_bytes },
        };
        let file = LogFile::open(&admitted.job.log()).map_err(JobError::Log)?;
        let log = JobLog::new(file, style).map_err(JobError::Log)?;
        let cancel = CancelWatch::new(&admitted.job).map_err(host("failed to watch for a cancel"))?;
        let shell = Shell::new(&admitted.folder, admitted.user.clone(), cancel)
            .map_err(host("failed to open the output pipe"))?;
        let deadline = Instant::now() + Duration::from_secs(order.job.timeout_seconds());
        Ok(Self {
            order,
            admitted,
            variables,
            git_settings,
            temporary,
            log,
            shell,
            deadline,
            has_begun: false,
        })
    }

    /// Runs the job and writes down how it ended.
    ///
    /// # Errors
    /// When even that cannot be written; the job then looks lost.
    pub fn run(mut self) -> Result<(), JobError> {
        let ended = match self.stages() {
            Ok(ended) => ended,
            Err(error) => Err(self.break_off(&error)),
        };
        let ended = ended.map_err(|failure| self.as_interrupted(failure));
        // The first failure is the one that counts.
        let ended = match self.clean_up() {
            Ok(()) => ended,
            Err(error) => Err(ended.err().unwrap_or_else(|| self.break_off(&error))),
        };
        let result = self.result(ended);
        self.finish(result)
    }

    /// The stages in order; what one of them ends with says which of the others still run.
    fn stages(&mut self) -> Result<Ended, JobError> {
        self.write_head()?;
        if let Err(failure) = self.prepare()? {
            return Ok(Err(failure));
        }
        let ended = match self.before_script()? {
            Ok(()) => self.script()?,
            Err(failure) => Err(failure),
        };
        if ended.as_ref().is_err_and(|failure| self.is_over(failure)) {
            return Ok(ended);
        }
        // Also where the sources or the script failed, and after a mild cancel.
        let stopped = self.archive_cache(ended.as_ref().err())?;
        // The first failure is the one that counts.
        let ended = ended.and_then(|()| stopped.map_or(Ok(()), Err));
        if ended.as_ref().is_err_and(|failure| self.is_over(failure)) {
            return Ok(ended);
        }
        let refused = self.upload_artifacts(ended.as_ref().err())?;
        let ended = ended.and_then(|()| refused.map_or(Ok(()), Err));
        // A cancel that came after the script ends nothing, but it is a cancel.
        let wish = self.shell.cancel_wish().map_err(host("failed to look for a cancel"))?;
        // One that is to end since its instance goes, and has ended by itself, has ended as it did.
        let is_canceled = wish.is_some_and(|wish| wish != CancelWish::Interrupt);
        Ok(if ended.is_ok() && is_canceled { Err(canceled(ScriptEnd::NotEnded)) } else { ended })
    }

    /// What is brought into the workspace: without it the user's steps do not begin.
    fn before_script(&mut self) -> Result<Ended, JobError> {
        if let Err(failure) = self.get_sources()? {
            return Ok(Err(failure));
        }
        if let Err(failure) = self.restore_cache()? {
            return Ok(Err(failure));
        }
        self.download_artifacts()
    }

    /// The user's steps, and `after_script` however they ended.
    fn script(&mut self) -> Result<Ended, JobError> {
        self.has_begun = true;
        let ended = self.user_script()?;
        if ended.as_ref().is_err_and(|failure| self.is_over(failure)) {
            return Ok(ended);
        }
        if let Some(failure) = self.after_script(ended.as_ref().err())? {
            return Ok(Err(failure));
        }
        Ok(ended)
    }

    /// Whether nothing of the user's runs any more.
    fn is_over(&self, failure: &Failure) -> bool {
        let aborted = matches!(self.shell.cancel_wish(), Ok(Some(wish)) if wish >= CancelWish::Abort);
        aborted || failure.outcome == Outcome::SystemFailure || Instant::now() >= self.deadline
    }
}

impl Job {
    /// What was stopped because the instance goes is nobody's cancel. An environment that can leave the instance is put to
    /// sleep as after a script that failed, if its job asks for that.
    fn as_interrupted(&self, failure: Failure) -> Failure {
        let interruption = self.shell.interruption().filter(|_| failure.outcome == Outcome::Canceled);
        let Some(interruption) = interruption else { return failure };
        let is_kept = interruption.can_leave && self.has_begun && self.order.suspend.on_failure;
        let script = if is_kept { ScriptEnd::Failure } else { ScriptEnd::NotEnded };
        Failure { outcome: Outcome::SystemFailure, script, exit_code: 0, message: interruption.message }
    }
}

fn canceled(script: ScriptEnd) -> Failure {
    Failure { outcome: Outcome::Canceled, script, exit_code: 0, message: "canceled".to_owned() }
}

/// `CI_JOB_STATUS` of what runs after the script.
fn job_status(failure: Option<&Failure>) -> &'static str {
    match failure.map(|failure| failure.outcome) {
        None => "success",
        Some(Outcome::Canceled) => "canceled",
        Some(
            Outcome::Success
            | Outcome::ScriptFailure
            | Outcome::SystemFailure
            | Outcome::ConfigurationError
            | Outcome::Timeout,
        ) => "failed",
    }
}
