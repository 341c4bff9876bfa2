//! Drives an admitted job through GitLab's stages to its result.
//!
//! Writes in order, and what a death in between leaves: the log as it goes (a later seal ends it), the context's
//! draft (kept only if a suspend follows), the last line, and at the end one record with result and seal. A record
//! without result whose process is gone is a lost job; the operator says so. On a full disk the last line and the record
//! take the room that was set aside when the job was admitted.

use std::io;
use std::time::{Duration, Instant};

use super::admission::Admitted;
use super::cancel::{CancelWatch, CancelWish};
use super::duration;
use super::script::{Body, CONTEXT_FILE, Envelope, HISTORY_FILE, Restored, is_too_long};
use super::sources::{self, Strategy};
use super::stage::{Limits, Shell, StageEnd};
use super::variables::{JobVariables, Surroundings};
use crate::clock;
use crate::spool::closing::{closing_line, resumed_line};
use crate::spool::order::{DEFAULT_LOG_LIMIT, JobOrder};
use crate::spool::record::{JobRecord, JobResult, JobState, Outcome, ScriptEnd};
use crate::supervisor::context::{self, SavedContext};
use crate::supervisor::log::file::LogFile;
use crate::supervisor::log::timestamp::Stream;
use crate::supervisor::log::{JobLog, LogStyle, laid_out};
use crate::supervisor::state::{Durability, JobFolder};
use crate::supervisor::tree::{Holder, Tree};
use crate::supervisor::workspace;

/// How long `after_script` may take when the job does not say.
const AFTER_SCRIPT_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How long to wait before sources are fetched again.
const FETCH_AGAIN: Duration = Duration::from_secs(5);

/// The most often sources are fetched, whatever the job says.
const MOST_ATTEMPTS: u32 = 10;

/// A job that runs.
pub struct Job {
    order: JobOrder,
    admitted: Admitted,
    variables: JobVariables,
    git_settings: Vec<(String, String)>,
    temporary: String,
    log: JobLog,
    shell: Shell,
    deadline: Instant,
}

/// Why a job ends before its last stage.
#[derive(Debug, Clone)]
struct Failure {
    outcome: Outcome,
    script: ScriptEnd,
    exit_code: i32,
    message: String,
}

/// What keeps the supervisor from going on.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The log cannot be written.
    #[error("the job's log cannot be written: {0}")]
    Log(#[source] io::Error),
    /// The host refuses something.
    #[error("{attempt}: {source}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn host(attempt: &'static str) -> impl FnOnce(io::Error) -> JobError {
    move |source| JobError::Host { attempt, source }
}

impl Job {
    /// Prepares an admitted job.
    ///
    /// # Errors
    /// When the host refuses something.
    pub fn new(order: JobOrder, admitted: Admitted) -> Result<Self, JobError> {
        let temporary = workspace::temporary(&admitted.environment.workspace);
        let surroundings = Surroundings {
            builds_dir: &order.builds_dir,
            workspace: &admitted.environment.workspace,
            temporary: &temporary,
            slot: order.slot,
            version: &order.runner.version,
            ca_bundle: order.runner.ca_bundle.as_deref(),
        };
        let variables = JobVariables::gather(&order.job, &surroundings);
        let git_settings = sources::git_settings(&order.job, &variables);
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
        Ok(Self { order, admitted, variables, git_settings, temporary, log, shell, deadline })
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
        // The first failure is the one that counts.
        let ended = match self.clean_up() {
            Ok(()) => ended,
            Err(error) => Err(ended.err().unwrap_or_else(|| self.break_off(&error))),
        };
        let result = self.result(ended);
        self.finish(result)
    }

    /// The host refuses something, so that a stage may have been left in its middle: nothing of the job's own runs on,
    /// and what was set aside is used for saying so.
    fn break_off(&mut self, error: &JobError) -> Failure {
        // What could not be ended is tried again at the end, and said there.
        let _ended = self.own_tree().map(|tree| tree.kill());
        // Where there is no room all the same, the next write says it.
        let _made = self.admitted.job.use_room_aside();
        Failure {
            outcome: Outcome::SystemFailure,
            script: ScriptEnd::NotEnded,
            exit_code: 0,
            message: error.to_string(),
        }
    }

    fn stages(&mut self) -> Result<Result<(), Failure>, JobError> {
        self.write_head().map_err(JobError::Log)?;
        if let Err(failure) = self.prepare()? {
            return Ok(Err(failure));
        }
        if let Err(failure) = self.get_sources()? {
            return Ok(Err(failure));
        }
        let script = self.user_script()?;
        if script.as_ref().is_err_and(|failure| self.is_over(failure)) {
            return Ok(script);
        }
        if let Some(failure) = self.after_script(script.as_ref().err())? {
            return Ok(Err(failure));
        }
        Ok(script)
    }

    /// Whether nothing of the user's runs any more.
    fn is_over(&self, failure: &Failure) -> bool {
        let aborted = matches!(self.shell.cancel_wish(), Ok(Some(CancelWish::Abort)));
        aborted || failure.outcome == Outcome::SystemFailure || Instant::now() >= self.deadline
    }

    /// The first lines of the log.
    fn write_head(&mut self) -> io::Result<()> {
        let runner = &self.order.runner;
        self.log.line(&format!("Running with dormouse {}", runner.version))?;
        self.log
            .line(&format!("  on {} {}, system ID: {}", runner.name, runner.short_token, runner.system_id))?;
        for notice in &self.order.notices {
            warn(&mut self.log, notice)?;
        }
        for key in self.variables.unexportable() {
            warn(&mut self.log, &format!("variable {key:?} is not exported: a shell cannot have that name"))?;
        }
        for variable in self.variables.exports() {
            if is_too_long(&variable.key, &variable.value) {
                let message = format!(
                    "variable {} is longer than Linux hands to a program: only the script's own shell sees it",
                    variable.key
                );
                warn(&mut self.log, &message)?;
            }
        }
        let has_image = self
            .order
            .job
            .image
            .get("name")
            .and_then(|name| name.as_str())
            .is_some_and(|name| !name.is_empty());
        if has_image || !self.order.job.services.is_empty() {
            warn(&mut self.log, "image and services are ignored: the job runs directly on the instance")?;
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<Result<(), Failure>, JobError> {
        self.enter("prepare_script", "Preparing the environment")?;
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.log.line(&format!("Running on {host_name}, slot {}", self.order.slot)).map_err(JobError::Log)?;
        if let Some(resume) = &self.order.resume {
            self.log.line(&resumed_line(&resume.key)).map_err(JobError::Log)?;
            if self.admitted.rebooted {
                let gone =
                    "the host has been restarted since: the environment's background processes are gone";
                warn(&mut self.log, gone).map_err(JobError::Log)?;
            }
            self.unmark()?;
        }
        self.leave("prepare_script")?;
        match self.shell.cancel_wish().map_err(host("failed to look for a cancel"))? {
            Some(_) => Ok(Err(canceled(ScriptEnd::NotEnded))),
            None => Ok(Ok(())),
        }
    }

    /// The marker was for the time the environment slept.
    fn unmark(&mut self) -> Result<(), JobError> {
        workspace::Workspace::of(&self.admitted.environment)
            .and_then(|workspace| workspace.unmark())
            .map_err(host("failed to take the marker out of the workspace"))
    }

    fn get_sources(&mut self) -> Result<Result<(), Failure>, JobError> {
        if self.order.resume.is_some() {
            let line = "Skipping the sources: the environment was resumed";
            self.log.line(line).map_err(JobError::Log)?;
            return Ok(Ok(()));
        }
        let workspace = self.admitted.environment.workspace.clone();
        let (mut strategy, warning) = Strategy::of(&self.order.job, self.variables.setting("GIT_STRATEGY"));
        let Some(mut script) = sources::script(strategy, &self.order.job, &self.variables, &workspace) else {
            let line = "Skipping the sources: GIT_STRATEGY is none";
            self.log.line(line).map_err(JobError::Log)?;
            return Ok(Ok(()));
        };
        self.enter("get_sources", "Fetching the sources")?;
        if let Some(warning) = warning {
            warn(&mut self.log, &warning).map_err(JobError::Log)?;
        }
        let mut attempts = self.attempts("GET_SOURCES_ATTEMPTS");
        let failure = loop {
            attempts -= 1;
            let end = self.stage(&Body::Plain(&script), "running", None, CancelWish::Graceful)?;
            match end {
                StageEnd::Exited(0) => break None,
                StageEnd::Exited(_) if attempts > 0 => {
                    let again = format!("fetching the sources failed, trying again, {attempts} left");
                    warn(&mut self.log, &again).map_err(JobError::Log)?;
                    if strategy == Strategy::Fetch {
                        // What an attempt left may be what breaks the next one.
                        strategy = Strategy::Clone;
                        let anew = sources::script(strategy, &self.order.job, &self.variables, &workspace);
                        script = anew.unwrap_or(script);
                    }
                    std::thread::sleep(
                        FETCH_AGAIN.min(self.deadline.saturating_duration_since(Instant::now())),
                    );
                }
                StageEnd::Exited(code) => {
                    break Some(Failure {
                        outcome: Outcome::ScriptFailure,
                        script: ScriptEnd::NotEnded,
                        exit_code: code,
                        message: format!("fetching the sources failed: exit code {code}"),
                    });
                }
                StageEnd::TimedOut | StageEnd::JobTimedOut => break Some(self.out_of_time()),
                StageEnd::Canceled(_) => break Some(canceled(ScriptEnd::NotEnded)),
            }
        };
        self.leave("get_sources")?;
        Ok(failure.map_or(Ok(()), Err))
    }

    /// Every step but `after_script`, in order, until one fails.
    fn user_script(&mut self) -> Result<Result<(), Failure>, JobError> {
        let restored = self.wake()?;
        let limit = self.timeout("RUNNER_SCRIPT_TIMEOUT")?;
        let deadline = limit.map(|limit| Instant::now() + limit);
        let steps = self.order.job.steps.clone();
        let keep_context = self.order.suspend.on_success || self.order.suspend.on_failure;
        for step in steps.iter().filter(|step| step.name != "after_script" && !step.script.is_empty()) {
            let name = format!("step_{}", step.name);
            self.enter(&name, "Running the script")?;
            let body = Body::Commands { lines: &step.script, restored: restored.as_ref(), keep_context };
            let end = self.stage(&body, "running", deadline, CancelWish::Graceful)?;
            self.leave(&name)?;
            if keep_context && matches!(end, StageEnd::Exited(_)) {
                self.draft_context()?;
            }
            let failure = match end {
                StageEnd::Exited(0) => continue,
                StageEnd::Exited(code) if step.allow_failure => {
                    let ignored =
                        format!("step {} failed with exit code {code}, which is allowed", step.name);
                    warn(&mut self.log, &ignored).map_err(JobError::Log)?;
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
        Ok(saved.map(|saved| saved.restored()))
    }

    /// Runs `after_script`; its failure is the job's only if the job says so.
    fn after_script(&mut self, failure: Option<&Failure>) -> Result<Option<Failure>, JobError> {
        let steps = self.order.job.steps.clone();
        let Some(step) = steps.iter().find(|step| step.name == "after_script" && !step.script.is_empty())
        else {
            return Ok(None);
        };
        let status = match failure.map(|failure| failure.outcome) {
            None => "success",
            Some(Outcome::Canceled) => "canceled",
            Some(_) => "failed",
        };
        let limit = self.timeout("RUNNER_AFTER_SCRIPT_TIMEOUT")?.unwrap_or(AFTER_SCRIPT_TIMEOUT);
        self.enter("after_script", "Running after_script")?;
        let body = Body::Commands { lines: &step.script, restored: None, keep_context: false };
        let end = self.stage(&body, status, Some(Instant::now() + limit), CancelWish::Abort)?;
        let note = match end {
            StageEnd::Exited(0) => None,
            StageEnd::Exited(code) => Some(format!("after_script failed with exit code {code}")),
            StageEnd::TimedOut => Some(format!("after_script took longer than {}", duration::show(limit))),
            StageEnd::JobTimedOut => Some("after_script ran into the job's time-out".to_owned()),
            StageEnd::Canceled(_) => Some("after_script was stopped".to_owned()),
        };
        if let Some(note) = &note {
            warn(&mut self.log, note).map_err(JobError::Log)?;
        }
        self.leave("after_script")?;
        let counts = failure.is_none() && !self.variables.flag("AFTER_SCRIPT_IGNORE_ERRORS", true);
        Ok(match end {
            StageEnd::Exited(code) if code != 0 && counts => Some(Failure {
                outcome: Outcome::ScriptFailure,
                script: ScriptEnd::Success,
                exit_code: code,
                message: format!("after_script: exit code {code}"),
            }),
            StageEnd::Canceled(_) if failure.is_none() => Some(canceled(ScriptEnd::NotEnded)),
            StageEnd::Exited(_) | StageEnd::TimedOut | StageEnd::JobTimedOut | StageEnd::Canceled(_) => None,
        })
    }

    /// Removes file variables and everything else that is secret; a failure is said, not hidden.
    fn clean_up(&mut self) -> Result<(), JobError> {
        if !workspace::is_there(&self.temporary) {
            return Ok(());
        }
        // The files go first, whatever can be written down of it.
        let noted = self.record_stage(Some("cleanup_file_variables"));
        if let Err(error) = workspace::remove(&self.temporary, self.admitted.user.as_ref()) {
            warn(&mut self.log, &format!("failed to delete {}: {error}", self.temporary))
                .map_err(JobError::Log)?;
        }
        noted
    }

    fn result(&self, ended: Result<(), Failure>) -> JobResult {
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
        JobResult { suspend_due: self.order.suspend.is_due(result.script), ..result }
    }

    /// Ends what must end, and writes the result down.
    fn finish(mut self, result: JobResult) -> Result<(), JobError> {
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
                warn(&mut self.log, &format!("some processes could not be ended: {error}"))
                    .map_err(JobError::Log)?;
            }
        }
        self.shell.copy_last_output(&mut self.log).map_err(JobError::Log)?;
        if result.suspend_due {
            self.log.sync().map_err(JobError::Log)
        } else {
            self.log.close(&closing_line(result)).map_err(JobError::Log)
        }
    }

    fn stage(
        &mut self,
        body: &Body<'_>,
        job_status: &str,
        deadline: Option<Instant>,
        cancel: CancelWish,
    ) -> Result<StageEnd, JobError> {
        let envelope = Envelope {
            variables: &self.variables,
            job_status,
            workspace: &self.admitted.environment.workspace,
            temporary: &self.temporary,
            git_settings: &self.git_settings,
        };
        let script = envelope.script(body);
        let tree = self.own_tree()?;
        let child = self.shell.start(&script, &tree).map_err(host("failed to start bash"))?;
        let tree = self.note_session(child.id())?;
        let limits = Limits { stage: deadline, job: self.deadline, cancel };
        let refused_before = tree.refusals();
        let end = self.shell.follow(child, &tree, limits, &mut self.log).map_err(JobError::Log)?;
        if tree.refusals() > refused_before {
            let message = format!(
                "the job had as many processes as it may, {} (spec.pidsLimit): further ones were refused",
                self.order.pids_limit()
            );
            warn(&mut self.log, &message).map_err(JobError::Log)?;
        }
        Ok(end)
    }

    fn own_tree(&self) -> Result<Tree, JobError> {
        let id = self.order.job.id;
        let own = self.admitted.holdings.trees.iter().find(|tree| tree.job_id == id).cloned();
        own.ok_or_else(|| host("failed to find the job's process tree")(io::ErrorKind::NotFound.into()))
    }

    /// Where only sessions hold a tree, each new one is written down.
    fn note_session(&mut self, leader: u32) -> Result<Tree, JobError> {
        let id = self.order.job.id;
        let mut noted = false;
        for tree in self.admitted.holdings.trees.iter_mut().filter(|tree| tree.job_id == id) {
            if let Holder::Marked(marked) = &mut tree.holder {
                let stat =
                    i32::try_from(leader).ok().and_then(|pid| crate::supervisor::process::stat(pid).ok());
                marked.sessions.extend(stat.map(|stat| (stat.pid, stat.start_ticks)));
                noted = true;
            }
        }
        if noted {
            self.admitted
                .holdings
                .write(&self.admitted.folder, Durability::Relaxed)
                .map_err(host("failed to note the job's session"))?;
        }
        self.own_tree()
    }

    fn draft_context(&mut self) -> Result<(), JobError> {
        match self.left_behind() {
            Ok(Some(context)) => context::write_draft(&self.admitted.folder, &context)
                .map_err(host("failed to keep the script's context")),
            Ok(None) => Ok(()),
            Err(error) => warn(&mut self.log, &format!("the script's context is not kept: {error}"))
                .map_err(JobError::Log),
        }
    }

    fn left_behind(&self) -> io::Result<Option<SavedContext>> {
        let read = |name| workspace::read_left_behind(&self.admitted.environment, name, context::LONGEST);
        let Some(left) = read(CONTEXT_FILE)? else { return Ok(None) };
        let history = read(HISTORY_FILE)?.unwrap_or_default();
        Ok(Some(SavedContext::from_script(&left, &history, &self.variables, &self.shell.base)))
    }

    fn enter(&mut self, stage: &str, title: &str) -> Result<(), JobError> {
        self.record_stage(Some(stage))?;
        let mark = self.section_mark("start", stage);
        let text = format!("{mark}\x1b[36;1m{title}\x1b[0;m\n");
        self.log.write(Stream::Runner, text.as_bytes()).map_err(JobError::Log)
    }

    fn leave(&mut self, stage: &str) -> Result<(), JobError> {
        let mark = self.section_mark("end", stage);
        self.log.write(Stream::Runner, mark.as_bytes()).map_err(JobError::Log)
    }

    fn section_mark(&self, edge: &str, stage: &str) -> String {
        if !self.order.job.features.trace_sections {
            return String::new();
        }
        format!("section_{edge}:{}:{stage}\r\x1b[0K", clock::now().as_second())
    }

    fn record_stage(&mut self, stage: Option<&str>) -> Result<(), JobError> {
        let record = &mut self.admitted.record;
        record.state = JobState::Running;
        record.stage = stage.map(str::to_owned);
        self.admitted
            .job
            .write(record, Durability::Relaxed)
            .map_err(host("failed to write the job's progress"))
    }

    /// A time-out that the job sets; a malformed one is said and ignored.
    fn timeout(&mut self, key: &str) -> Result<Option<Duration>, JobError> {
        let Some(text) = self.variables.setting(key) else { return Ok(None) };
        match duration::parse(text) {
            Some(limit) if !limit.is_zero() => Ok(Some(limit)),
            Some(_) => Ok(None),
            None => {
                let message = format!("{key} {text:?} is no duration such as 1h30m, it is ignored");
                warn(&mut self.log, &message).map_err(JobError::Log)?;
                Ok(None)
            }
        }
    }

    fn attempts(&self, key: &str) -> u32 {
        let wanted = self.variables.setting(key).and_then(|text| text.parse().ok()).unwrap_or(1);
        if (1..=MOST_ATTEMPTS).contains(&wanted) { wanted } else { 1 }
    }

    fn out_of_time(&self) -> Failure {
        let limit = Duration::from_secs(self.order.job.timeout_seconds());
        Failure {
            outcome: Outcome::Timeout,
            script: ScriptEnd::NotEnded,
            exit_code: 0,
            message: format!("the job took longer than its time-out, {}", duration::show(limit)),
        }
    }
}

/// Writes down the result of a job whose first stage could not be prepared.
///
/// # Errors
/// When even that cannot be written; the job then looks lost.
pub fn finish_unstarted(folder: &JobFolder, record: JobRecord, error: &JobError) -> Result<(), JobError> {
    let result = JobResult {
        outcome: Outcome::SystemFailure,
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

fn canceled(script: ScriptEnd) -> Failure {
    Failure { outcome: Outcome::Canceled, script, exit_code: 0, message: "canceled".to_owned() }
}

fn warn(log: &mut JobLog, text: &str) -> io::Result<()> {
    log.line(&format!("\x1b[33;1mWARNING: {text}\x1b[0;m"))
}
