//! `leave`: the host forgets an environment, whose workspace has left it on a volume or is left where it is.
//!
//! 1. under the host's lock: the caller is admitted
//! 2. the record says Releasing: no job wakes it any more
//! 3. its processes are ended
//! 4. the state folder goes, by rename
//!
//! A death in between is finished by the next call; what is gone has left already. Unlike `release` it touches
//! nothing in the slot's folder.

use super::claim::{self, Caller};
use super::holdings::Holdings;
use super::refuse::{OrRefuse, refusal};
use super::state::{StateFolder, is_full};
use super::volume::note::{READING, SlotVolume};
use crate::spool::record::{EnvironmentPhase, EnvironmentRecord};
use crate::spool::verb::{Refusal, RefusalReason};

/// Forgets an environment.
///
/// # Errors
/// A refusal while it is awake, or while its volume is still mounted.
pub fn leave(state: &StateFolder, id: &str, epoch: u64) -> Result<(), Refusal> {
    let folder = state.environment(id);
    {
        let _lock = state.lock().or_refuse("failed to lock the state folder")?;
        claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
        state.sweep().or_refuse("failed to finish an interrupted deletion")?;
        if !folder.path().is_dir() {
            return Ok(());
        }
    }
    let _lock = folder.lock().or_refuse("failed to lock the environment")?;
    if let Some(record) = folder.read().or_refuse("failed to read the environment's record")? {
        check(state, &record)?;
        let leaving = EnvironmentRecord { phase: EnvironmentPhase::Releasing, ..record };
        match folder.job(leaving.job_id).with_room(|| folder.write(&leaving)) {
            // Deleting is what makes room.
            Err(error) if is_full(&error) => {}
            written => written.or_refuse("failed to write the environment's record")?,
        }
        let holdings = Holdings::read(&folder).or_refuse("failed to read the environment's holdings")?;
        holdings.kill().or_refuse("failed to end the environment's processes")?;
    }
    state.delete(&folder, id).or_refuse("failed to delete the environment's state")
}

fn check(state: &StateFolder, record: &EnvironmentRecord) -> Result<(), Refusal> {
    let in_use = |message: String| Err(refusal(RefusalReason::InUse, message));
    let (id, slot) = (&record.environment, record.slot);
    if record.phase == EnvironmentPhase::Active {
        return in_use(format!("environment {id} is awake (job {}); suspend it first", record.job_id));
    }
    let Some(note) = SlotVolume::read(state, slot).or_refuse(READING)? else { return Ok(()) };
    match note.mount().or_refuse("failed to read the mounts")? {
        None => Ok(()),
        Some(_) => in_use(format!(
            "volume {} with the workspace of environment {id} is mounted in slot {slot}; unmount it first",
            note.volume
        )),
    }
}
