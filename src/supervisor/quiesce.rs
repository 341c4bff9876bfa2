//! `quiesce`: everything is on the disks before the instance is stopped or its volumes are copied.
//!
//! 1. no job runs
//! 2. all file systems are written out
//! 3. `quiesced.json` says so, and is written out too
//!
//! Each step can be done again. The next job that is admitted takes the file away: the disks are not at rest any more.

use std::io;

use super::claim::{self, Caller};
use super::process;
use super::refuse::{OrRefuse, refusal};
use super::state::{Durability, StateFolder, gone, read_json, write_json};
use crate::clock;
use crate::spool::FORMAT;
use crate::spool::record::JobState;
use crate::spool::verb::{Quiesced, Refusal, RefusalReason};

/// Writes everything out and says so.
///
/// # Errors
/// A refusal while a job runs.
pub fn quiesce(state: &StateFolder, epoch: u64) -> Result<(), Refusal> {
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
    for folder in state.all_environments().or_refuse("failed to list the environments")? {
        let Some(record) = folder.read().or_refuse("failed to read an environment's record")? else {
            continue;
        };
        let job = folder.job(record.job_id).read().or_refuse("failed to read a job's record")?;
        if job.is_some_and(|job| job.state != JobState::Finished && process::is_alive(&job.runner)) {
            let message =
                format!("job {} runs in slot {}; wait for it or cancel it", record.job_id, record.slot);
            return Err(refusal(RefusalReason::InUse, message));
        }
    }
    rustix::fs::sync();
    let quiesced = Quiesced {
        format: FORMAT,
        boot_id: process::boot_id().or_refuse("failed to read the boot id")?,
        at: clock::now(),
    };
    write_json(&state.quiesced(), &quiesced, Durability::Durable)
        .or_refuse("failed to write down that the host is at rest")?;
    rustix::fs::sync();
    Ok(())
}

/// The last time everything was written out, unless a job has begun since.
///
/// # Errors
/// When the file cannot be read.
pub fn read(state: &StateFolder) -> io::Result<Option<Quiesced>> {
    read_json(&state.quiesced())
}

/// A job begins.
///
/// # Errors
/// When the file cannot be deleted.
pub fn forget(state: &StateFolder) -> io::Result<()> {
    gone(std::fs::remove_file(state.quiesced()))
}
