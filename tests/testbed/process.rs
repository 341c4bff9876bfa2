//! Servers as child processes that cannot outlive the program that started them.
//!
//! Each is started through `setpriv --pdeathsig KILL`, which works for every user and also when we end by SIGKILL, when
//! no code of ours runs any more. The kernel sends that signal when the *thread* that forked ends, so one thread that
//! lives as long as the process does all forking. Ends processes by id, never by name.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal};

use super::wait;

/// How long a server may take to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How much of a server's log goes into the message of a failure.
const LOG_TAIL: usize = 3000;

/// A command that gets SIGKILL when this process ends, however it ends.
pub fn bound_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Starts a [`bound_command`] from the thread whose end is the end of this process.
pub fn spawn(command: Command) -> Result<Child> {
    type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static FORKER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (orders, inbox) = mpsc::sync_channel::<Order>(16);
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                // A caller that is gone has no use for the child: it is dropped, and dies with us.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, answered) = mpsc::sync_channel(1);
    let program = format!("{command:?}");
    forker.send((command, answer)).map_err(|_| anyhow!("the forking thread is gone"))?;
    answered
        .recv()
        .context("the forking thread is gone")?
        .with_context(|| format!("failed to start {program} (setpriv is in the package util-linux)"))
}

/// A server that can be killed, frozen and started again with the same arguments.
pub struct Server {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    /// What differs in its environment from ours; read when it is started.
    environment: Mutex<BTreeMap<String, String>>,
    log: PathBuf,
    /// Taken for the length of a system call, never across an await.
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Starts `program`; its output goes to `<logs>/<name>.log`.
    pub fn start<A: Into<OsString>>(
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = A>,
        logs: &Path,
    ) -> Result<Self> {
        let server = Self::new(name, program, args, logs);
        server.start_again()?;
        Ok(server)
    }

    /// The same, not started yet.
    pub fn new<A: Into<OsString>>(
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = A>,
        logs: &Path,
    ) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args: args.into_iter().map(Into::into).collect(),
            environment: Mutex::default(),
            log: logs.join(format!("{name}.log")),
            child: Mutex::new(None),
        }
    }

    /// Sets a variable of its environment from its next start on; `None` takes it away again.
    pub fn set_variable(&self, name: &str, value: Option<&str>) {
        let mut environment = self.environment.lock().unwrap_or_else(PoisonError::into_inner);
        match value {
            Some(value) => drop(environment.insert(name.to_owned(), value.to_owned())),
            None => drop(environment.remove(name)),
        }
    }

    /// Starts it once more after it has ended.
    pub fn start_again(&self) -> Result<()> {
        let mut child = self.child();
        if let Some(running) = child.as_mut()
            && running.try_wait()?.is_none()
        {
            bail!("{} is still running as process {}", self.name, running.id());
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = bound_command(&self.program);
        command.args(&self.args).process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.envs(self.environment.lock().unwrap_or_else(PoisonError::into_inner).iter());
        *child = Some(spawn(command)?);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Fails, with the end of its log, if it does not run; ends a [`wait::until`].
    pub fn check(&self) -> Result<()> {
        let ended: Option<ExitStatus> = match self.child().as_mut() {
            Some(child) => child.try_wait()?,
            None => return Err(wait::give_up(anyhow!("{} was killed", self.name))),
        };
        match ended {
            None => Ok(()),
            Some(status) => Err(wait::give_up(anyhow!(
                "{} ended with {status}; its log ends:\n{}",
                self.name,
                self.log_tail()
            ))),
        }
    }

    /// How it ended by itself; None while it runs.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child().as_mut().map_or(Ok(None), Child::try_wait)?)
    }

    /// Where what it writes goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of what it has written.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let start = text.len().saturating_sub(LOG_TAIL);
        String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned()
    }

    /// Stops all its threads where they are (SIGSTOP): connections stay open and nothing answers.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Server::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Ends it with SIGKILL and waits for that.
    pub fn kill(&self) -> Result<()> {
        let Some(mut child) = self.child().take() else { return Ok(()) };
        end(&mut child)
    }

    /// Asks it to end, and ends it if it does not within a few seconds.
    pub async fn stop(&self) -> Result<()> {
        if self.pid().is_none() {
            return Ok(());
        }
        self.signal(Signal::CONT)?;
        self.signal(Signal::TERM)?;
        let ended = async || Ok(self.child().as_mut().map_or(Ok(None), Child::try_wait)?);
        // Too late is not an error: what follows ends it in any case.
        let _ = wait::until("a server ends after SIGTERM", GRACE, ended).await;
        self.kill()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child();
        let running = child.as_ref().with_context(|| format!("{} is not running", self.name))?;
        rustix::process::kill_process_group(Pid::from_child(running), signal)
            .with_context(|| format!("failed to signal {}", self.name))
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("failed to end {}: {error:#}", self.name);
        }
    }
}

/// Kills the process group of a child started by [`spawn`] with `process_group(0)`, and reaps the child.
pub fn end(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none() {
        match rustix::process::kill_process_group(Pid::from_child(child), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("failed to kill a process group"),
        }
        child.wait()?;
    }
    Ok(())
}

/// A process told apart from later ones with the same id; written into the names of things that must not outlive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pid: u32,
    /// Clock ticks since boot.
    started: u64,
}

impl Owner {
    /// The process this runs in.
    pub fn this_process() -> Result<Self> {
        let pid = std::process::id();
        let started = start_time(pid).context("failed to read /proc/self/stat")?;
        Ok(Self { pid, started })
    }

    /// Reads what `Display` wrote at the start of `name`, up to the next dot or the end.
    pub fn parse_prefix(name: &str) -> Option<Self> {
        let owner = name.split('.').next()?;
        let (pid, started) = owner.split_once('-')?;
        Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    /// Whether that very process still runs.
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.started)
    }
}

/// Field 22 of `/proc/<pid>/stat`; the program's name before it may hold spaces and brackets.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(19)?.parse().ok()
}
