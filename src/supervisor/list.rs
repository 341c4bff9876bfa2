//! `list`, `status` and `unclaim`: what is on this host, and giving it back.

use super::arguments::JobName;
use super::claim::{self, Caller};
use super::process;
use super::refuse::{OrRefuse, not_found, refusal};
use super::state::{EnvironmentFolder, StateFolder, gone};
use crate::spool::record::JobRecord;
use crate::spool::verb::{JobStatus, Listed, Refusal, RefusalReason};

/// All environments of the host.
///
/// # Errors
/// A refusal when the caller may not ask or the folder cannot be read.
pub fn list(state: &StateFolder, pool_uid: &str, epoch: u64) -> Result<Vec<Listed>, Refusal> {
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: Some(pool_uid), pool: None, epoch })?;
    state.sweep().or_refuse("failed to finish an interrupted deletion")?;
    let mut listed = Vec::new();
    for folder in state.all_environments().or_refuse("failed to list the environments")? {
        // A folder without record belongs to a start that was refused or died before it wrote one.
        if let Some(environment) = folder.read().or_refuse("failed to read an environment's record")? {
            listed.push(Listed { environment, jobs: jobs(&folder)? });
        }
    }
    Ok(listed)
}

fn jobs(folder: &EnvironmentFolder) -> Result<Vec<JobStatus>, Refusal> {
    let mut found = Vec::new();
    for id in folder.jobs().or_refuse("failed to list an environment's jobs")? {
        let read = || folder.job(id).read().or_refuse("failed to read a job's record");
        if let Some(known) = read()? {
            // The process before the record that counts: one that is gone has written its last.
            let alive = process::is_alive(&known.runner);
            found.push(JobStatus { alive, record: read()?.unwrap_or(known) });
        }
    }
    Ok(found)
}

/// A job's record.
///
/// # Errors
/// A refusal when there is no such job.
pub fn status(state: &StateFolder, name: &JobName) -> Result<JobRecord, Refusal> {
    let job = state.environment(&name.environment).job(name.id);
    let record = job.read().or_refuse("failed to read the job's record")?;
    record.ok_or_else(|| not_found(format!("the host knows no job {}", name.id)))
}

/// Gives the host back, once nothing of the pool is on it.
///
/// # Errors
/// A refusal while there are environments.
pub fn unclaim(state: &StateFolder, pool_uid: &str, epoch: u64) -> Result<(), Refusal> {
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: Some(pool_uid), pool: None, epoch })?;
    let left = state.all_environments().or_refuse("failed to list the environments")?;
    if !left.is_empty() {
        let message = format!("{} environments are still on the host; release them first", left.len());
        return Err(refusal(RefusalReason::InUse, message));
    }
    gone(std::fs::remove_file(state.claim())).or_refuse("failed to remove the host's claim")
}
