//! `hello`: claims the host and says what it is and what it lacks. What it can do is found out by trying. Files of a
//! format that is not known here are a refusal.

use std::fs;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use super::claim::{self, Caller};
use super::counter;
use super::metadata;
use super::process;
use super::quiesce;
use super::refuse::OrRefuse;
use super::start;
use super::state::StateFolder;
use super::tree;
use super::volume::{note, settle};
use crate::spool::verb::{Hello, Refusal};
use crate::spool::{FORMAT, PROTOCOL};

/// The oldest git whose settings can be given by its environment.
const OLDEST_GIT: (u32, u32) = (2, 31);

/// Claims the host.
///
/// # Errors
/// A refusal when another pool owns it or a newer holder has been here.
pub fn hello(
    state: &StateFolder,
    pool: &str,
    pool_uid: &str,
    epoch: u64,
    metadata: bool,
) -> Result<Hello, Refusal> {
    let claim = {
        let _lock = state.lock().or_refuse("failed to lock the state folder")?;
        claim::admit(state, Caller { pool_uid: Some(pool_uid), pool: Some(pool), epoch })?
    };
    check_formats(state)?;
    settle::settle(state)?;
    let system = rustix::system::uname();
    let (cgroup, counts_processes) = tree::support();
    Ok(Hello {
        protocol: PROTOCOL,
        formats: (1..=FORMAT).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: system.machine().to_string_lossy().into_owned(),
        hostname: system.nodename().to_string_lossy().into_owned(),
        boot_id: process::boot_id().or_refuse("failed to read the boot id")?,
        root: rustix::process::geteuid().is_root(),
        cgroup,
        counts_processes: counts_processes || start::runs_under_systemd(),
        missing_programs: missing_programs(),
        claim,
        jobs_started: counter::read(state).or_refuse("failed to read how many jobs there were")?,
        mounts: note::mounted(state).or_refuse("failed to read which volumes are mounted")?,
        instance_id: metadata::instance_id(metadata),
        quiesced: quiesce::read(state).or_refuse("failed to read whether the host is at rest")?,
    })
}

/// What this supervisor cannot read it must not work beside: a slot that seems free may not be.
fn check_formats(state: &StateFolder) -> Result<(), Refusal> {
    let attempt = "failed to read what is on the host";
    for folder in state.all_environments().or_refuse(attempt)? {
        folder.read().or_refuse(attempt)?;
    }
    Ok(())
}

fn missing_programs() -> Vec<String> {
    let mut missing: Vec<String> = ["bash", "mkdir", "rm", "find"]
        .into_iter()
        .filter(|program| !is_on_path(program))
        .map(str::to_owned)
        .collect();
    if let Some(git) = missing_git() {
        missing.push(git);
    }
    missing
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .any(|folder| fs::metadata(folder.join(program)).is_ok_and(|found| found.is_file()))
}

/// `git`, or which version of it, when what is here does not do.
fn missing_git() -> Option<String> {
    let output = Command::new("git").arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            match git_version(&text) {
                Some(version) if version >= OLDEST_GIT => None,
                _ => Some(format!("git {}.{} or newer (found: {})", OLDEST_GIT.0, OLDEST_GIT.1, text.trim())),
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Some("git".to_owned()),
        Err(error) => Some(format!("git ({error})")),
    }
}

fn git_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_git_are_compared_by_number() {
        assert!(git_version("git version 2.39.5\n").unwrap() >= OLDEST_GIT);
        assert!(git_version("git version 2.9.5").unwrap() < OLDEST_GIT);
        assert!(git_version("git version 2.39.5 (Apple Git-154)").is_some());
        assert_eq!(git_version("nonsense"), None);
    }
}
