//! `volume-unmount`: a slot's volume is written out and unmounted, ready to be detached.
//!
//! 1. under the host's lock: the caller is admitted, no environment is awake in the slot, the note says Unmounting:
//!    from now on no job begins in it
//! 2. what is not on the disk yet is written
//! 3. it is unmounted; if it is in use, the processes of the environment that sleeps there are ended first, and its
//!    record says how many were lost
//! 4. nothing else on the host has the device either
//! 5. the note is gone
//!
//! A call after a death does the rest. A volume that is not mounted is unmounted already.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::note::{READING, SlotVolume, Step};
use super::{check_root, device, users};
use crate::spool::record::{Context, EnvironmentPhase, EnvironmentRecord};
use crate::spool::verb::{Refusal, RefusalReason, Unmounted};
use crate::supervisor::arguments::SlotPlace;
use crate::supervisor::claim::{self, Caller};
use crate::supervisor::holdings::Holdings;
use crate::supervisor::mounts::{self, Mount};
use crate::supervisor::refuse::{OrRefuse, refusal};
use crate::supervisor::state::{Durability, EnvironmentFolder, StateFolder};

/// How long the kernel may take to let go of a file system that nobody uses any more.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Unmounts the volume of a slot.
///
/// # Errors
/// A refusal: `InUse` while an environment is awake in the slot or somebody else uses the volume.
pub fn unmount(state: &StateFolder, place: &SlotPlace, epoch: u64) -> Result<Unmounted, Refusal> {
    check_root("a workspace volume")?;
    let _slot = state.lock_slot(place.slot).or_refuse("failed to lock the slot")?;
    let Begun { sleeper, note } = begin(state, place, epoch)?;
    let folder = place.folder();
    let mut ended = 0;
    let mut devices: Vec<PathBuf> = note.map(|note| note.device).into_iter().collect();
    while let Some(mount) = mounts::at(&folder).or_refuse("failed to read the mounts")? {
        ended += take_away(&folder, &mount, sleeper.as_ref())?;
        devices.push(mount.source);
    }
    devices.iter().try_for_each(|device| wait_until_unused(device))?;
    SlotVolume::forget(state, place.slot).or_refuse("failed to forget which volume the slot has")?;
    Ok(Unmounted { ended })
}

/// A slot that no job begins in any more.
struct Begun {
    /// The environment that sleeps there, if one does.
    sleeper: Option<EnvironmentFolder>,
    /// Its volume, if it is one of ours.
    note: Option<SlotVolume>,
}

/// Admits the caller and closes the slot to jobs.
fn begin(state: &StateFolder, place: &SlotPlace, epoch: u64) -> Result<Begun, Refusal> {
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
    let mut sleeper = None;
    for (folder, record) in
        state.in_slot(place.slot).or_refuse("failed to look for the slot's environment")?
    {
        let doing = match record.phase {
            EnvironmentPhase::Suspended => {
                sleeper = Some(folder);
                continue;
            }
            EnvironmentPhase::Active => "is awake; suspend or release it first",
            EnvironmentPhase::Releasing => "is being removed; finish its release first",
        };
        let message = format!("environment {} in slot {} {doing}", record.environment, place.slot);
        return Err(refusal(RefusalReason::InUse, message));
    }
    let mut note = SlotVolume::read(state, place.slot).or_refuse(READING)?;
    if let Some(note) = &mut note {
        note.step = Step::Unmounting;
        note.write(state).or_refuse("failed to write down that the slot's volume is unmounted")?;
    }
    Ok(Begun { sleeper, note })
}

/// Writes out and unmounts what is mounted at a folder; how many processes had to be ended for it.
fn take_away(folder: &Path, mount: &Mount, sleeper: Option<&EnvironmentFolder>) -> Result<u32, Refusal> {
    let attempt = format!("failed to unmount {} from {}", mount.source.display(), folder.display());
    {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty()).or_refuse(&attempt)?;
        rustix::fs::syncfs(&root).or_refuse(format!("failed to write {} out", mount.source.display()))?;
    }
    if try_to_unmount(folder).or_refuse(&attempt)? {
        return Ok(0);
    }
    let ended = sleeper.map_or(Ok(0), end_processes)?;
    let deadline = Instant::now() + PATIENCE;
    while !try_to_unmount(folder).or_refuse(&attempt)? {
        if ended == 0 || Instant::now() >= deadline {
            let message = format!("{attempt}: {}", users::of(mount.device));
            return Err(refusal(RefusalReason::InUse, message));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(ended)
}

/// Whether it could be unmounted; `false` while it is in use.
fn try_to_unmount(folder: &Path) -> rustix::io::Result<bool> {
    match rustix::mount::unmount(folder, UnmountFlags::NOFOLLOW) {
        // Not mounted any more: somebody else was faster.
        Ok(()) | Err(Errno::INVAL) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends the processes of an environment that sleeps. The record says so first: a resume after a death in between
/// announces too many as lost rather than too few.
fn end_processes(folder: &EnvironmentFolder) -> Result<u32, Refusal> {
    let attempt = "failed to end the processes of the environment that sleeps in the slot";
    let _lock = folder.lock().or_refuse(attempt)?;
    let mut holdings = Holdings::read(folder).or_refuse(attempt)?;
    let mut ended = 0;
    for tree in &holdings.trees {
        ended += u32::try_from(tree.processes().or_refuse(attempt)?.len()).unwrap_or(u32::MAX);
    }
    let record = folder.read().or_refuse(attempt)?;
    let Some(record) = record.filter(|record| record.phase == EnvironmentPhase::Suspended && ended > 0)
    else {
        return Ok(0);
    };
    let context = record.context.clone().map(Context::without_processes);
    folder.write(&EnvironmentRecord { context, ..record }).or_refuse(attempt)?;
    holdings.kill().or_refuse(attempt)?;
    holdings.trees.clear();
    holdings.write(folder, Durability::Durable).or_refuse(attempt)?;
    Ok(ended)
}

/// Waits until the device is free: a mount that a process has taken into a namespace of its own goes on living there,
/// and what is written to it would be lost when the volume is detached.
fn wait_until_unused(device: &Path) -> Result<(), Refusal> {
    let what = device.display();
    let deadline = Instant::now() + PATIENCE;
    while !device::is_unused(device).or_refuse(format!("failed to look at {what}"))? {
        if Instant::now() >= deadline {
            let number = rustix::fs::stat(device).map(|stat| stat.st_rdev).unwrap_or_default();
            let message =
                format!("{what} is unmounted here and still in use elsewhere: {}", users::of(number));
            return Err(refusal(RefusalReason::InUse, message));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}
