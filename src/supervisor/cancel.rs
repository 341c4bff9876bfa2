//! `cancel` and `interrupt`: leave the wish in the job's folder; the process that runs the job acts on it.

use super::arguments::JobName;
use super::claim::{self, Caller};
use super::refuse::{OrRefuse, not_found};
use super::run::cancel::CancelWish;
use super::state::{Durability, StateFolder, replace};
use crate::spool::record::JobState;
use crate::spool::verb::{Interruption, Refusal};

/// Leaves the wish; a harder one that is there already stays.
///
/// # Errors
/// A refusal when there is no such job.
pub fn cancel(state: &StateFolder, name: &JobName, wish: CancelWish, epoch: u64) -> Result<(), Refusal> {
    leave(state, name, wish, wish.word(), epoch)
}

/// Leaves the wish to end because the instance goes. Of a job that somebody has canceled that stays the reason, and
/// nothing more of it runs.
///
/// # Errors
/// A refusal when there is no such job.
pub fn interrupt(
    state: &StateFolder,
    name: &JobName,
    interruption: &Interruption,
    epoch: u64,
) -> Result<(), Refusal> {
    let text = serde_json::to_string(interruption).map_err(std::io::Error::from);
    let text = text.or_refuse("failed to write the interruption")?;
    leave(state, name, CancelWish::Interrupt, &text, epoch)
}

fn leave(
    state: &StateFolder,
    name: &JobName,
    wish: CancelWish,
    text: &str,
    epoch: u64,
) -> Result<(), Refusal> {
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
    let job = state.environment(&name.environment).job(name.id);
    let record = job.read().or_refuse("failed to read the job's record")?;
    let record = record.ok_or_else(|| not_found(format!("the host knows no job {}", name.id)))?;
    if record.state == JobState::Finished {
        return Ok(());
    }
    let there = std::fs::read_to_string(job.cancel()).ok().map(|text| CancelWish::read(&text));
    let (wish, text) = match (there, wish) {
        (Some(CancelWish::Graceful), CancelWish::Interrupt) => (CancelWish::Abort, CancelWish::Abort.word()),
        (Some(CancelWish::Abort), CancelWish::Interrupt) => return Ok(()),
        (_, wish) => (wish, text),
    };
    if there.is_some_and(|there| there >= wish) {
        return Ok(());
    }
    replace(&job.cancel(), text.as_bytes(), Durability::Durable)
        .or_refuse("failed to leave the wish to cancel")
}
