//! `stat`: load and room of the host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::refuse::OrRefuse;
use super::state::StateFolder;
use crate::spool::verb::{Refusal, Stat};

/// Load and room now.
///
/// # Errors
/// A refusal when `/proc` or the file system cannot be asked.
pub fn stat(state: &StateFolder, builds_dir: Option<PathBuf>) -> Result<Stat, Refusal> {
    let builds_dir = builds_dir.or_else(|| known_builds_dir(state)).unwrap_or_else(|| PathBuf::from("/"));
    let attempt = "failed to read the host's load";
    let cpu = fs::read_to_string("/proc/stat").or_refuse(attempt)?;
    let (cpus, steal) = processors(&cpu);
    Ok(Stat {
        builds_free_bytes: free(&builds_dir)
            .or_refuse(format!("failed to look at {}", builds_dir.display()))?,
        state_free_bytes: free(state.root()).or_refuse("failed to look at the state folder")?,
        load1: first_number(&fs::read_to_string("/proc/loadavg").or_refuse(attempt)?),
        cpus,
        steal,
        uptime_seconds: first_number(&fs::read_to_string("/proc/uptime").or_refuse(attempt)?) as u64,
    })
}

/// The folder of any workspace on the host.
fn known_builds_dir(state: &StateFolder) -> Option<PathBuf> {
    let environments = state.all_environments().ok()?;
    let record = environments.iter().find_map(|folder| folder.read().ok().flatten())?;
    Path::new(&record.workspace).ancestors().find(|path| path.is_dir()).map(Path::to_owned)
}

fn free(path: &Path) -> io::Result<u64> {
    // What does not exist yet will be made on the file system of what does.
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn first_number(text: &str) -> f64 {
    text.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// Number of processors and the share of time stolen since boot.
fn processors(text: &str) -> (u32, f64) {
    let cpus = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let times: Vec<f64> = text
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .unwrap_or_default()
        .split_ascii_whitespace()
        .take(8)
        .filter_map(|word| word.parse().ok())
        .collect();
    let all: f64 = times.iter().sum();
    let stolen = times.get(7).copied().unwrap_or_default();
    (u32::try_from(cpus).unwrap_or(u32::MAX), if all > 0.0 { stolen / all } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_a_share_of_all_time() {
        let (cpus, steal) = processors("cpu  50 0 20 10 0 0 0 20 7 7\ncpu0 1 2\ncpu1 1 2\nintr 5\n");
        assert_eq!(cpus, 2);
        assert!((steal - 0.2).abs() < 1e-9, "{steal}");
    }
}
