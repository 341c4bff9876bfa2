//! Starts a stage's processes: a short second life of this binary that joins the tree, leaves the session, becomes
//! the job's user and turns into the program.
//!
//! A life of its own because joining and changing users must happen between fork and exec, where safe Rust cannot
//! run; and ours rather than `setpriv`, which cannot join a cgroup and is not on every host. It has one thread, so
//! changing the thread's ids changes the process's.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};

use super::arguments::LaunchOptions;
use super::errand;
use super::removal;
use super::user::JobUser;

/// Exit code when the program could not be started, as shells use it.
const CANNOT_START: u8 = 126;

/// A command that starts `program` in a tree and as a user; arguments may be added.
pub fn command(doors: Vec<PathBuf>, user: Option<&JobUser>, program: &str) -> Command {
    let mut command = prepare(doors, user);
    command.arg("--").arg(program);
    command
}

/// A command that deletes `path` as a user: whatever the user put in its way, it can only hit the user's own files.
pub fn removal(user: &JobUser, path: &Path) -> Command {
    let mut command = prepare(Vec::new(), Some(user));
    command.arg("--remove").arg(path);
    command
}

/// A command that does the errand on its standard input in a tree and as a user, without a program of its own: the
/// user need not be able to read this binary.
pub fn errand(doors: Vec<PathBuf>, user: Option<&JobUser>) -> Command {
    let mut command = prepare(doors, user);
    command.arg("--errand");
    command
}

fn prepare(doors: Vec<PathBuf>, user: Option<&JobUser>) -> Command {
    // The link leads to this very binary, also when an upgrade has replaced or deleted its file.
    let mut command = Command::new("/proc/self/exe");
    command.arg("launch");
    for door in doors {
        command.arg("--door").arg(door);
    }
    if let Some(user) = user {
        let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
        command.arg("--uid").arg(user.uid.to_string()).arg("--gid").arg(user.gid.to_string());
        command.arg("--groups").arg(groups.join(","));
    }
    command
}

/// The second life.
pub fn run(options: &LaunchOptions) -> ExitCode {
    match become_program(options) {
        Ok(()) if options.errand => errand::run(),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(CANNOT_START)
        }
    }
}

fn become_program(options: &LaunchOptions) -> io::Result<()> {
    let said = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    for door in &options.doors {
        fs::write(door, "0").map_err(|error| said("failed to join the job's cgroup", error))?;
    }
    // Fails only for a session's leader, which is what is wanted.
    let _session = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Some(ids) = &options.ids {
        let groups: Vec<Gid> = ids.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (gid, uid) = (Gid::from_raw(ids.gid), Uid::from_raw(ids.uid));
        rustix::thread::set_thread_groups(&groups)
            .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
            .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
            .map_err(|error| said("failed to become the job's user", error.into()))?;
    }
    if let Some(path) = &options.remove {
        return removal::remove(path)
            .map_err(|error| said(&format!("failed to delete {}", path.display()), error));
    }
    if options.errand {
        return Ok(());
    }
    let mut words = options.program.iter();
    let program: &OsString = words.next().ok_or_else(|| io::Error::other("launch needs a program"))?;
    let error = Command::new(program).args(words).exec();
    Err(said(&format!("failed to start {}", program.display()), error))
}
