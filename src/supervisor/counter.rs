//! `jobs-started.json`: how many jobs this host has been given, for pools that use an instance so many times only.

use std::io;

use serde::{Deserialize, Serialize};

use super::state::{Durability, StateFolder, read_json, write_json};
use crate::spool::FORMAT;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    /// [`FORMAT`] of the writer.
    format: u32,
    /// Jobs admitted.
    jobs: u64,
    /// The last of them, which is not counted again when it is admitted again after a death.
    last: u64,
}

/// Counts a job that is about to be written down. The caller holds the host's lock.
///
/// # Errors
/// When the disk fails.
pub fn count(state: &StateFolder, job_id: u64) -> io::Result<()> {
    let before: Option<Counter> = read_json(&state.jobs_started())?;
    if before.as_ref().is_some_and(|before| before.last == job_id) {
        return Ok(());
    }
    let jobs = before.map_or(0, |before| before.jobs).saturating_add(1);
    write_json(&state.jobs_started(), &Counter { format: FORMAT, jobs, last: job_id }, Durability::Durable)
}

/// How many jobs have been counted.
///
/// # Errors
/// When the file cannot be read.
pub fn read(state: &StateFolder) -> io::Result<u64> {
    let counter: Option<Counter> = read_json(&state.jobs_started())?;
    Ok(counter.map_or(0, |counter| counter.jobs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_is_admitted_again_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(Some(folder.path())).unwrap();
        assert_eq!(read(&state).unwrap(), 0);
        for (job, wanted) in [(7, 1), (7, 1), (8, 2), (9, 3), (9, 3)] {
            count(&state, job).unwrap();
            assert_eq!(read(&state).unwrap(), wanted);
        }
    }
}
