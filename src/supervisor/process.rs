//! Looks at the process table: who is alive, and whether it is still who it was.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use crate::spool::record::ProcessIdentity;

/// What the kernel tells about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// Process id.
    pub pid: i32,
    /// State letter, such as `R` or `Z`.
    pub state: char,
    /// Session id.
    pub session: i32,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
}

/// The kernel's boot id.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// This process, so that others can tell it from a later one with the same id.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn own_identity() -> io::Result<ProcessIdentity> {
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let stat = stat(pid)?;
    Ok(ProcessIdentity {
        pid,
        start_ticks: stat.start_ticks,
        boot_id: boot_id()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Whether the process still runs; a zombie does not.
pub fn is_alive(identity: &ProcessIdentity) -> bool {
    boot_id().is_ok_and(|boot| boot == identity.boot_id) && is_running(identity.pid, identity.start_ticks)
}

/// Whether a process of this boot still runs.
pub fn is_running(pid: i32, start_ticks: u64) -> bool {
    stat(pid).is_ok_and(|stat| stat.start_ticks == start_ticks && !matches!(stat.state, 'Z' | 'X'))
}

/// Reads one process's line.
///
/// # Errors
/// When there is no such process.
pub fn stat(pid: i32) -> io::Result<ProcessStat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&line).ok_or_else(|| io::Error::other(format!("cannot read /proc/{pid}/stat")))
}

/// All processes there are to see.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn all() -> io::Result<Vec<ProcessStat>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the listing and the look.
        if let Ok(stat) = stat(pid) {
            found.push(stat);
        }
    }
    Ok(found)
}

/// Whether a process has a file open, by the name the kernel gives it. The file itself is not looked at: others that
/// the process has open may lie on a disk that is gone.
pub fn has_open(pid: i32, name: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|found| found == name))
}

/// Whether a process reads from a pipe that nobody writes to any more.
pub fn is_at_end_of_input(pid: i32) -> bool {
    let path = format!("/proc/{pid}/fd/0");
    if !fs::read_link(&path).is_ok_and(|name| name.to_string_lossy().starts_with("pipe:")) {
        return false;
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(pipe) = rustix::fs::open(path, flags, Mode::empty()).map(File::from) else { return false };
    let mut sources = [PollFd::new(&pipe, PollFlags::IN)];
    let looked = poll(&mut sources, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    looked.is_ok() && sources.iter().any(|source| source.revents().contains(PollFlags::HUP))
}

fn parse_stat(line: &str) -> Option<ProcessStat> {
    let (head, tail) = line.rsplit_once(')')?;
    let pid = head.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    Some(ProcessStat {
        pid,
        state: fields.first()?.chars().next()?,
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_confuse() {
        let line = "42 (a) b (c) S 1 42 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 998877 1 2 3";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.pid, stat.state, stat.session, stat.start_ticks), (42, 'S', 7, 998_877));
    }

    #[test]
    fn the_end_of_a_filters_input_is_seen_once_it_has_come() {
        use std::process::{Command, Stdio};
        let mut filter = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(filter.id()).unwrap();
        let output = fs::read_link(format!("/proc/{pid}/fd/1")).unwrap();
        assert!(has_open(pid, &output) && !has_open(pid, Path::new("pipe:[0]")));
        assert!(!is_at_end_of_input(pid));
        // It cannot end while it stands still.
        let id = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::STOP).unwrap();
        drop(filter.stdin.take());
        // Another test that starts a process may hold the pipe until that has become its program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !is_at_end_of_input(pid) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        filter.kill().unwrap();
        filter.wait().unwrap();
        assert!(!has_open(pid, &output) && !is_at_end_of_input(pid));
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not() {
        let mut identity = own_identity().unwrap();
        assert!(is_alive(&identity));
        identity.start_ticks += 1;
        assert!(!is_alive(&identity));
    }
}
