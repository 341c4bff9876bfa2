//! What a new holder finds half done: verbs of the one before it end first, and what they left in the middle is put back.
//!
//! A mount or unmount goes on when the connection it came by is gone. Whoever asks what is mounted meanwhile would build
//! on what is about to change. The holder's epoch is admitted before this, so no older one begins another.
//!
//! 1. the slot's lock is waited for: a verb under way holds it to its end
//! 2. one that was killed has left its note: an unmount that has not unmounted is taken back, and so is a mount, which
//!    nobody has used yet

use rustix::mount::UnmountFlags;

use super::note::{READING, SlotVolume, Step};
use crate::spool::verb::Refusal;
use crate::supervisor::refuse::OrRefuse;
use crate::supervisor::state::StateFolder;

/// Waits for verbs under way, and puts back what dead ones have left half done.
///
/// # Errors
/// A refusal when the disk or `/proc` fails.
pub fn settle(state: &StateFolder) -> Result<(), Refusal> {
    for slot in state.slots_with_volumes().or_refuse(READING)? {
        let is_moving = |note: &SlotVolume| note.step != Step::Mounted;
        if !SlotVolume::read(state, slot).or_refuse(READING)?.as_ref().is_some_and(is_moving) {
            continue;
        }
        let _slot = state.lock_slot(slot).or_refuse("failed to lock the slot")?;
        let Some(note) = SlotVolume::read(state, slot).or_refuse(READING)? else { continue };
        let is_there = note.mount().or_refuse("failed to read the mounts")?.is_some();
        match note.step {
            Step::Unmounting if is_there => {
                let note = SlotVolume { step: Step::Mounted, ..note };
                note.write(state)
                    .or_refuse("failed to write down that the slot's volume is still mounted")?;
            }
            Step::Formatting | Step::Mounting if is_there => {
                let attempt = || format!("failed to take back the mount at {}", note.folder.display());
                rustix::mount::unmount(&note.folder, UnmountFlags::NOFOLLOW).or_refuse(attempt())?;
            }
            Step::Formatting | Step::Mounting | Step::Mounted | Step::Unmounting => {}
        }
    }
    Ok(())
}
