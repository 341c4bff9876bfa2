//! Runs one stage: a `bash` with its script on standard input, its output into the log, its end and its limits.
//!
//! One loop waits for output, for the end, for a wish to cancel and for the next deadline. Processes that the stage
//! leaves in the background live on and keep writing to the environment's pipe, which later stages read too. What the
//! stage's own output still runs through when its shell ends, such as a `tee`, is waited for a moment.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cancel::{CancelWatch, CancelWish};
use crate::spool::verb::Interruption;
use crate::supervisor::errand::Errand;
use crate::supervisor::launch;
use crate::supervisor::log::JobLog;
use crate::supervisor::log::timestamp::Stream;
use crate::supervisor::process;
use crate::supervisor::state::EnvironmentFolder;
use crate::supervisor::tree::Tree;
use crate::supervisor::tree::marked::MARK_VARIABLE;
use crate::supervisor::user::JobUser;

/// How long processes that were asked to end may take before they are killed.
const GRACE: Duration = Duration::from_secs(5);

/// How long what was killed is waited for: only a process that the kernel cannot end, such as one that waits for a
/// disk that is gone, takes longer.
const GIVE_UP: Duration = Duration::from_secs(5 * 60);

/// How often to look for the end of a process on kernels that give no notice of it.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Output read at once.
const CHUNK: usize = 64 * 1024;

/// Output still read after the stage's end: more than a pipe holds, so that all of the stage's own is read, and
/// bounded, because processes in the background may write for ever.
const LAST_OUTPUT: usize = 1024 * 1024;

/// How long nothing may come from what a stage has left before that is taken for a background process.
const QUIET: Duration = Duration::from_millis(100);

/// How long what a stage has left is waited for in all.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageEnd {
    /// By itself.
    Exited(i32),
    /// Its own time was up.
    TimedOut,
    /// The job's time was up.
    JobTimedOut,
    /// Somebody canceled the job.
    Canceled(CancelWish),
}

/// Until when a stage may run, and what ends it before.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The stage's own deadline.
    pub stage: Option<Instant>,
    /// The job's deadline.
    pub job: Instant,
    /// The mildest wish to cancel that ends the stage.
    pub cancel: CancelWish,
}

/// Where the stages of a job run.
#[derive(Debug)]
pub struct Shell {
    /// The environment variables that stages begin with, before their own.
    pub base: BTreeMap<String, String>,
    user: Option<JobUser>,
    output: File,
    writer: OwnedFd,
    cancel: CancelWatch,
}

impl Shell {
    /// Opens the environment's pipe and gathers what stages inherit.
    ///
    /// # Errors
    /// When the pipe cannot be opened.
    pub fn new(folder: &EnvironmentFolder, user: Option<JobUser>, cancel: CancelWatch) -> io::Result<Self> {
        let path = folder.output();
        // A pipe opened for both never ends and never breaks, whoever else comes and goes.
        let read = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let write = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let output = File::from(rustix::fs::open(&path, read, Mode::empty())?);
        let writer = rustix::fs::open(&path, write, Mode::empty())?;
        let readable = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        let base = inherited(readable, user.as_ref());
        Ok(Self { base, user, output, writer, cancel })
    }

    /// The wish to cancel, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn cancel_wish(&self) -> io::Result<Option<CancelWish>> {
        self.cancel.wish()
    }

    /// What is to be said of a job that is ended because its instance goes, if it is.
    pub fn interruption(&self) -> Option<Interruption> {
        self.cancel.interruption()
    }

    /// Whether there is a `bash` where stages look for it.
    pub fn has_bash(&self) -> bool {
        let folders = self.base.get("PATH").map(String::as_str).unwrap_or_default();
        folders.split(':').any(|folder| {
            let found = fs::metadata(Path::new(folder).join("bash"));
            found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
    }

    /// Starts a stage. With it comes its script, whose place tells how far it has been read.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, script: &str, tree: &Tree) -> io::Result<(Child, File)> {
        let command = launch::command(tree.doors(), self.user.as_ref(), "bash");
        self.spawn(command, script.as_bytes(), None, tree)
    }

    /// Starts an errand, with a file in place of its standard error if it needs one that the job's user may not open.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_errand(
        &self,
        errand: &Errand,
        file: Option<&File>,
        tree: &Tree,
    ) -> io::Result<(Child, File)> {
        let command = launch::errand(tree.doors(), self.user.as_ref());
        self.spawn(command, &serde_json::to_vec(errand)?, file, tree)
    }

    fn spawn(
        &self,
        mut command: Command,
        input: &[u8],
        file: Option<&File>,
        tree: &Tree,
    ) -> io::Result<(Child, File)> {
        // A file in memory: bash reads it in blocks, and no disk ever holds it.
        let mut stdin = File::from(rustix::fs::memfd_create("stage", MemfdFlags::CLOEXEC)?);
        stdin.write_all(input)?;
        stdin.rewind()?;
        command.env_clear().envs(&self.base).env(MARK_VARIABLE, &tree.name).current_dir("/");
        command.stdin(Stdio::from(stdin.try_clone()?));
        command.stdout(Stdio::from(self.writer.try_clone()?));
        command.stderr(match file {
            Some(file) => Stdio::from(file.try_clone()?),
            None => Stdio::from(self.writer.try_clone()?),
        });
        Ok((command.spawn()?, stdin))
    }

    /// Sees a stage to its end.
    ///
    /// # Errors
    /// When the log cannot be written or the kernel fails.
    pub fn follow(
        &mut self,
        mut child: Child,
        tree: &Tree,
        limits: Limits,
        log: &mut JobLog,
    ) -> io::Result<StageEnd> {
        let mut ending = child_notice(&child)?;
        let mut stopping: Option<Stopping> = None;
        let mut exited = None;
        // The notice of a wish that was left before this stage may have been read already: it is looked for at once.
        let mut look = Some(Instant::now());
        loop {
            // A kernel that gives no notice of the end is asked for it.
            let soon = || Some(look.unwrap_or(limits.job).min(Instant::now() + LOOK_AGAIN));
            self.wait(ending.as_ref(), if ending.is_some() { look } else { soon() })?;
            self.copy_output(CHUNK, log)?;
            exited = exited.or(child.try_wait()?);
            let end = match (exited, &stopping) {
                (Some(status), None) => {
                    self.hear_out(&child, tree, limits, log)?;
                    Some(StageEnd::Exited(exit_code(status)))
                }
                // What was asked to end is waited for as a whole: the shell dies before the programs it started.
                (Some(_), Some(stopping)) => tree.processes()?.is_empty().then_some(stopping.cause),
                (None, _) => None,
            };
            let given_up = stopping.as_ref().filter(|stopping| stopping.kill_at + GIVE_UP <= Instant::now());
            let end = end.or(given_up.map(|stopping| stopping.cause));
            if let Some(end) = end {
                self.copy_output(LAST_OUTPUT, log)?;
                log.settle()?;
                return Ok(end);
            }
            if exited.is_some() {
                // It would stay readable, and the loop would spin.
                ending = None;
            }
            let now = Instant::now();
            let cause = self.cause_to_stop(limits, now)?;
            match (&mut stopping, cause) {
                (None, Some(cause)) => {
                    tree.terminate()?;
                    let is_abort = cause == StageEnd::Canceled(CancelWish::Abort);
                    stopping = Some(Stopping { cause, kill_at: if is_abort { now } else { now + GRACE } });
                }
                (Some(stopping), Some(cause @ StageEnd::Canceled(CancelWish::Abort))) => {
                    *stopping = Stopping { cause, kill_at: stopping.kill_at.min(now) };
                }
                (Some(_), _) | (None, None) => {}
            }
            if stopping.as_ref().is_some_and(|stopping| stopping.kill_at <= now) {
                tree.kill()?;
            }
            look = next_look(limits, stopping.as_ref());
        }
    }

    /// Copies what a stage's shell has written through other processes (`exec > >(tee build.log)`): they end after it.
    fn hear_out(&mut self, shell: &Child, tree: &Tree, limits: Limits, log: &mut JobLog) -> io::Result<()> {
        let pipe = fs::read_link(format!("/proc/self/fd/{}", self.writer.as_raw_fd()))?;
        let last = Instant::now() + LAST_WORDS;
        let mut quiet = Instant::now() + QUIET;
        loop {
            let until = match still_to_come(shell.id(), tree, &pipe)? {
                ToCome::Nothing => return Ok(()),
                ToCome::Perhaps => quiet.min(last),
                ToCome::Surely => last,
            };
            let now = Instant::now();
            if until <= now || self.cause_to_stop(limits, now)?.is_some() {
                return Ok(());
            }
            // Nothing tells when the last of them has closed the pipe, which this process holds open too.
            self.wait(None, Some(until.min(now + LOOK_AGAIN)))?;
            if self.copy_output(CHUNK, log)? > 0 {
                quiet = Instant::now() + QUIET;
            }
        }
    }

    /// Lets a time pass; what processes in the background write is still copied. The answer is what ended the wait
    /// early.
    ///
    /// # Errors
    /// When the log cannot be written or the kernel fails.
    pub fn pause(
        &mut self,
        length: Duration,
        limits: Limits,
        log: &mut JobLog,
    ) -> io::Result<Option<StageEnd>> {
        let until = Instant::now() + length;
        loop {
            let now = Instant::now();
            if let Some(cause) = self.cause_to_stop(limits, now)? {
                return Ok(Some(cause));
            }
            if now >= until {
                return Ok(None);
            }
            self.wait(None, next_look(limits, None).map(|look| look.min(until)))?;
            self.copy_output(CHUNK, log)?;
        }
    }

    /// Copies what processes in the background have written meanwhile; the answer is how much.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn copy_output(&mut self, most: usize, log: &mut JobLog) -> io::Result<usize> {
        let mut buffer = vec![0; CHUNK];
        let mut copied = 0;
        while copied < most {
            match self.output.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    log.write(Stream::Job, buffer.get(..count).unwrap_or_default())?;
                    copied += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }

    /// Copies the last of what processes have written, once they are gone or held still.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn copy_last_output(&mut self, log: &mut JobLog) -> io::Result<()> {
        self.copy_output(LAST_OUTPUT, log)?;
        log.settle()
    }

    fn wait(&self, ending: Option<&OwnedFd>, until: Option<Instant>) -> io::Result<()> {
        let patience = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut sources = vec![
            PollFd::new(&self.output, PollFlags::IN),
            PollFd::from_borrowed_fd(self.cancel.as_fd(), PollFlags::IN),
        ];
        sources.extend(ending.map(|ending| PollFd::new(ending, PollFlags::IN)));
        let timeout = patience.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn cause_to_stop(&self, limits: Limits, now: Instant) -> io::Result<Option<StageEnd>> {
        if let Some(wish) = self.cancel.wish()?.filter(|wish| *wish >= limits.cancel) {
            return Ok(Some(StageEnd::Canceled(wish)));
        }
        if limits.job <= now {
            return Ok(Some(StageEnd::JobTimedOut));
        }
        Ok(limits.stage.filter(|deadline| *deadline <= now).map(|_| StageEnd::TimedOut))
    }
}

/// Whether what a stage has left writes more of its output.
enum ToCome {
    /// Nobody is left who could.
    Nothing,
    /// Somebody could, perhaps a process in the background.
    Perhaps,
    /// Somebody can, and is about to end: its own input has.
    Surely,
}

/// Looks at the processes of a stage that outlive its shell. Every stage is a session of its own: those of earlier
/// stages, and those that have moved to another one to stay, are no part of its output.
fn still_to_come(shell: u32, tree: &Tree, pipe: &Path) -> io::Result<ToCome> {
    let is_own = |pid: &i32| process::stat(*pid).is_ok_and(|stat| u32::try_from(stat.session) == Ok(shell));
    let left: Vec<i32> = tree.processes()?.into_iter().filter(is_own).collect();
    Ok(if !left.iter().any(|pid| process::has_open(*pid, pipe)) {
        ToCome::Nothing
    } else if left.iter().any(|pid| process::is_at_end_of_input(*pid)) {
        ToCome::Surely
    } else {
        ToCome::Perhaps
    })
}

struct Stopping {
    cause: StageEnd,
    kill_at: Instant,
}

fn next_look(limits: Limits, stopping: Option<&Stopping>) -> Option<Instant> {
    match stopping {
        // Killed already: only the end is awaited, and a process that ignores even that must not spin the loop.
        Some(stopping) => Some(stopping.kill_at.max(Instant::now() + LOOK_AGAIN)),
        None => Some(limits.stage.map_or(limits.job, |stage| stage.min(limits.job))),
    }
}

/// A descriptor that becomes readable when the child ends; `None` on kernels without.
fn child_notice(child: &Child) -> io::Result<Option<OwnedFd>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the stage has no process id"))?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(notice) => Ok(Some(notice)),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A shell's way to say it: the code, or 128 and the signal.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// What stages inherit of the connection's environment: not the connection itself, nor who became root by `sudo`.
fn inherited(
    all: impl Iterator<Item = (String, String)>,
    user: Option<&JobUser>,
) -> BTreeMap<String, String> {
    const PRIVATE: [&str; 7] = ["SSH_", "SUDO_", "XDG_", "DBUS_", "DORMOUSE_", "GIT_", "BASH_"];
    const SHELLS_OWN: [&str; 6] = ["_", "SHLVL", "PWD", "OLDPWD", "MAIL", "TERM"];
    // Another user gets nothing of the caller's but the host's own settings.
    const FOR_OTHERS: [&str; 4] = ["PATH", "LANG", "LANGUAGE", "TZ"];
    let is_for_others = |key: &str| {
        FOR_OTHERS.contains(&key) || key.starts_with("LC_") || key.to_lowercase().ends_with("_proxy")
    };
    let mut base: BTreeMap<String, String> = all
        .filter(|(key, _)| user.is_none() || is_for_others(key))
        .filter(|(key, _)| !PRIVATE.iter().any(|prefix| key.starts_with(prefix)))
        .filter(|(key, _)| !SHELLS_OWN.contains(&key.as_str()))
        .collect();
    base.entry("PATH".to_owned())
        .or_insert_with(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    if let Some(user) = user {
        for (key, value) in
            [("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name), ("SHELL", &user.shell)]
        {
            base.insert(key.to_owned(), value.clone());
        }
    }
    base
}
