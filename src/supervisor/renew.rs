//! `renew`: leaves newer addresses for a running job's caches in its folder; the process that runs the job uses them from
//! then on.
//!
//! (1) the addresses, by rename; (2) gone again if the job has ended meanwhile. The job itself removes them after its last
//! word is written, so that whoever comes second removes them: none stays on a disk that is kept.

use std::fs;

use super::arguments::JobName;
use super::claim::{self, Caller};
use super::refuse::{OrRefuse, not_found};
use super::state::{Durability, JobFolder, StateFolder, gone, replace};
use crate::spool::cache::CacheUrls;
use crate::spool::record::JobState;
use crate::spool::verb::Refusal;

/// Leaves the addresses.
///
/// # Errors
/// A refusal when there is no such job.
pub fn renew(state: &StateFolder, name: &JobName, urls: &CacheUrls, epoch: u64) -> Result<(), Refusal> {
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
    let job = state.environment(&name.environment).job(name.id);
    if has_ended(&job, name)? {
        return Ok(());
    }
    let text = serde_json::to_vec(urls).map_err(std::io::Error::from);
    let text = text.or_refuse("failed to write the addresses down")?;
    replace(&job.cache_urls(), &text, Durability::Relaxed).or_refuse("failed to leave the addresses")?;
    if has_ended(&job, name)? {
        gone(fs::remove_file(job.cache_urls())).or_refuse("failed to remove the addresses")?;
    }
    Ok(())
}

fn has_ended(job: &JobFolder, name: &JobName) -> Result<bool, Refusal> {
    let record = job.read().or_refuse("failed to read the job's record")?;
    let record = record.ok_or_else(|| not_found(format!("the host knows no job {}", name.id)))?;
    Ok(record.state == JobState::Finished)
}
