//! Process trees where there is no cgroup to use: found by a mark in their environment and by their sessions.
//!
//! A process that clears its environment *and* leaves its session escapes; that is why a host without cgroups is a
//! condition on its pool. Nothing is ever done to a process that has neither mark nor session.

use std::fs;
use std::io::{self, ErrorKind};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::signal_all;
use crate::supervisor::process::{self, ProcessStat};

/// The environment variable that carries the mark.
pub const MARK_VARIABLE: &str = "DORMOUSE_JOB";

/// How long to wait between two looks at the process table.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A mark that a job's processes inherit, and the sessions it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// Value of [`MARK_VARIABLE`].
    pub mark: String,
    /// Leaders of the sessions, with their start times: a session id can be reused after its leader is gone.
    pub sessions: Vec<(i32, u64)>,
}

impl Marked {
    /// A tree without processes yet.
    pub fn new(mark: &str) -> Self {
        Self { mark: mark.to_owned(), sessions: Vec::new() }
    }

    /// Processes with the mark or in one of the sessions; this one is never among them.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        Ok(self.living()?.iter().map(|stat| stat.pid).collect())
    }

    fn living(&self) -> io::Result<Vec<ProcessStat>> {
        let wanted = format!("{MARK_VARIABLE}={}", self.mark);
        let all = process::all()?;
        let sessions: Vec<i32> = self
            .sessions
            .iter()
            .filter(|(leader, started)| {
                all.iter().all(|stat| stat.pid != *leader || stat.start_ticks == *started)
            })
            .map(|(leader, _)| *leader)
            .collect();
        let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        Ok(all
            .into_iter()
            .filter(|stat| stat.pid != own && !matches!(stat.state, 'Z' | 'X'))
            .filter(|stat| sessions.contains(&stat.session) || carries(stat.pid, &wanted))
            .collect())
    }

    /// Stops all processes; those that appear meanwhile too.
    pub fn stop(&self, patience: Duration) -> io::Result<()> {
        self.until(patience, "stopped", Signal::STOP, |stat| matches!(stat.state, 'T' | 't'))
    }

    /// Kills all processes; those that appear meanwhile too.
    pub fn kill(&self, patience: Duration) -> io::Result<()> {
        self.until(patience, "gone", Signal::KILL, |_| false)
    }

    fn until(
        &self,
        patience: Duration,
        wanted: &str,
        signal: Signal,
        is_done: impl Fn(&ProcessStat) -> bool,
    ) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let left: Vec<i32> =
                self.living()?.iter().filter(|stat| !is_done(stat)).map(|stat| stat.pid).collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let message = format!("{} processes of {} are not {wanted} in time", left.len(), self.mark);
                return Err(io::Error::new(ErrorKind::TimedOut, message));
            }
            signal_all(&left, signal)?;
            thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Whether a process was started with the mark; one that we may not look at is not ours.
fn carries(pid: i32, wanted: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
}
