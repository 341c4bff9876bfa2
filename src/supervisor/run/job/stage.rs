//! One stage of a job: its section in the log, its note in the record, its shell in the job's process tree.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::process::Child;
use std::time::{Duration, Instant};

use super::{Failure, Job, JobError, canceled, host};
use crate::clock;
use crate::spool::record::{JobState, Outcome, ScriptEnd};
use crate::supervisor::errand::Errand;
use crate::supervisor::run::cancel::CancelWish;
use crate::supervisor::run::duration;
use crate::supervisor::run::script::{Body, Envelope};
use crate::supervisor::run::stage::{Limits, StageEnd};
use crate::supervisor::state::Durability;
use crate::supervisor::tree::{Holder, Tree};
use crate::supervisor::{memory, process};

/// The code of a stage that did not become a shell; scripts can end with it too.
const CANNOT_START: i32 = 126;

/// The most often a stage is tried, whatever the job says.
const MOST_ATTEMPTS: u32 = 10;

impl Job {
    /// Runs one shell to its end, with its output in the log.
    pub(super) fn stage(
        &mut self,
        body: &Body<'_>,
        job_status: &str,
        deadline: Option<Instant>,
        cancel: CancelWish,
    ) -> Result<StageEnd, JobError> {
        let workspace = &self.admitted.environment.workspace;
        // What is not there yet holds no repository.
        let real = fs::canonicalize(workspace).ok().and_then(|path| path.into_os_string().into_string().ok());
        let envelope = Envelope {
            variables: &self.variables,
            job_status,
            workspace,
            repository: real.as_ref().unwrap_or(workspace),
            temporary: &self.temporary,
            git_settings: &self.git_settings,
        };
        let script = envelope.script(body);
        let tree = self.own_tree()?;
        let started = self.shell.start(&script, &tree).map_err(host("failed to start bash"))?;
        let (child, mut read) = started;
        let end = self.follow(child, deadline, cancel)?;
        if end == StageEnd::Exited(CANNOT_START) && read.stream_position().is_ok_and(|place| place == 0) {
            let why = io::Error::other("the log says why");
            return Err(host("failed to start bash")(why));
        }
        Ok(end)
    }

    /// Does an errand to its end, with its output in the log.
    pub(super) fn errand(&mut self, errand: &Errand, cancel: CancelWish) -> Result<StageEnd, JobError> {
        self.errand_with(errand, None, cancel)
    }

    /// The same with a file that comes along.
    pub(super) fn errand_with(
        &mut self,
        errand: &Errand,
        file: Option<&File>,
        cancel: CancelWish,
    ) -> Result<StageEnd, JobError> {
        let tree = self.own_tree()?;
        let started = self.shell.start_errand(errand, file, &tree);
        let (child, _) = started.map_err(host("failed to start an errand"))?;
        self.follow(child, None, cancel)
    }

    fn follow(
        &mut self,
        child: Child,
        deadline: Option<Instant>,
        cancel: CancelWish,
    ) -> Result<StageEnd, JobError> {
        let killed_before = memory::kills();
        let tree = self.note_session(child.id())?;
        let limits = Limits { stage: deadline, job: self.deadline, cancel };
        let refused_before = tree.refusals();
        let end = self.shell.follow(child, &tree, limits, &mut self.log).map_err(JobError::Log)?;
        if tree.refusals() > refused_before {
            let message = format!(
                "the job had as many processes as it may, {} (spec.pidsLimit): further ones were refused",
                self.order.pids_limit()
            );
            self.warn(&message)?;
        }
        if end != StageEnd::Exited(0) && memory::kills() > killed_before {
            self.warn(
                "the host ran out of memory meanwhile and the kernel ended a process, most likely of this job: give \
                 the job more memory, or let it use less",
            )?;
        }
        Ok(end)
    }

    /// What keeps a part of a job from going on that runs no shell: a cancel, or the end of its time.
    pub(super) fn stopped(&self, cancel: CancelWish) -> Result<Option<Failure>, JobError> {
        let wish = self.shell.cancel_wish().map_err(host("failed to look for a cancel"))?;
        if wish.is_some_and(|wish| wish >= cancel) {
            return Ok(Some(canceled(ScriptEnd::NotEnded)));
        }
        Ok((Instant::now() >= self.deadline).then(|| self.out_of_time()))
    }

    pub(super) fn own_tree(&self) -> Result<Tree, JobError> {
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
                let stat = i32::try_from(leader).ok().and_then(|pid| process::stat(pid).ok());
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

    /// Begins a stage: in the record, and as a section of the log.
    pub(super) fn enter(&mut self, stage: &str, title: &str) -> Result<(), JobError> {
        self.record_stage(Some(stage))?;
        let mark = self.section_mark("start", stage);
        self.log.mark(&mark).map_err(JobError::Log)?;
        self.say(&format!("\x1b[36;1m{title}\x1b[0;m"))
    }

    /// Ends the stage's section.
    pub(super) fn leave(&mut self, stage: &str) -> Result<(), JobError> {
        let mark = self.section_mark("end", stage);
        self.log.mark(&mark).map_err(JobError::Log)
    }

    /// Whether commands of several lines get sections of their own.
    pub(super) fn has_script_sections(&self) -> bool {
        self.order.job.features.trace_sections && self.variables.flag("FF_SCRIPT_SECTIONS", false)
    }

    fn section_mark(&self, edge: &str, stage: &str) -> String {
        if !self.order.job.features.trace_sections {
            return String::new();
        }
        format!("section_{edge}:{}:{stage}\r\x1b[0K", clock::now().as_second())
    }

    pub(super) fn record_stage(&mut self, stage: Option<&str>) -> Result<(), JobError> {
        let record = &mut self.admitted.record;
        record.state = JobState::Running;
        record.stage = stage.map(str::to_owned);
        self.admitted
            .job
            .write(record, Durability::Relaxed)
            .map_err(host("failed to write the job's progress"))
    }

    /// A time-out that the job sets; a malformed one is said and ignored.
    pub(super) fn timeout(&mut self, key: &str) -> Result<Option<Duration>, JobError> {
        let Some(text) = self.variables.setting(key) else { return Ok(None) };
        match duration::parse(text) {
            Some(limit) if !limit.is_zero() => Ok(Some(limit)),
            Some(_) => Ok(None),
            None => {
                let message = format!("{key} {text:?} is no duration such as 1h30m, it is ignored");
                self.warn(&message)?;
                Ok(None)
            }
        }
    }

    /// How often a stage is tried, as the job says; what is no such number is said and read as once.
    pub(super) fn attempts(&mut self, key: &str) -> Result<u32, JobError> {
        let Some(text) = self.variables.setting(key) else { return Ok(1) };
        match text.parse() {
            Ok(wanted) if (1..=MOST_ATTEMPTS).contains(&wanted) => Ok(wanted),
            Ok(_) | Err(_) => {
                let message = format!("{key} {text:?} is no number from 1 to {MOST_ATTEMPTS}: trying once");
                self.warn(&message)?;
                Ok(1)
            }
        }
    }

    /// Waits between two attempts of a stage; the answer is what ended the wait early.
    pub(super) fn pause(&mut self, length: Duration) -> Result<Option<StageEnd>, JobError> {
        let limits = Limits { stage: None, job: self.deadline, cancel: CancelWish::Graceful };
        self.shell.pause(length, limits, &mut self.log).map_err(JobError::Log)
    }

    pub(super) fn out_of_time(&self) -> Failure {
        let limit = Duration::from_secs(self.order.job.timeout_seconds());
        Failure {
            outcome: Outcome::Timeout,
            script: ScriptEnd::NotEnded,
            exit_code: 0,
            message: format!("the job took longer than its time-out, {}", duration::show(limit)),
        }
    }

    /// Writes a line of the runner.
    pub(super) fn say(&mut self, text: &str) -> Result<(), JobError> {
        self.log.line(text).map_err(JobError::Log)
    }

    /// Writes a warning of the runner.
    pub(super) fn warn(&mut self, text: &str) -> Result<(), JobError> {
        self.say(&format!("\x1b[33;1mWARNING: {text}\x1b[0;m"))
    }
}
