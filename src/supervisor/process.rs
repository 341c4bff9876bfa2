//! Looks at the process table: who is alive, and whether it is still who it was.

use std::fs;
use std::io;

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
    fn this_process_is_alive_and_another_start_time_is_not() {
        let mut identity = own_identity().unwrap();
        assert!(is_alive(&identity));
        identity.start_ticks += 1;
        assert!(!is_alive(&identity));
    }
}
