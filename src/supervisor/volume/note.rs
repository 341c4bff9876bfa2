//! `volumes/<slot>.json`: which volume a slot has, and how far its mount has come.
//!
//! Written before each step of a mount or unmount, so that whoever comes after a death knows what was begun. While
//! a slot has a note, no job begins in it unless the volume is mounted: after a reboot the folder below is empty,
//! and what a job wrote there would be hidden by the next mount.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spool::verb::{MountedVolume, Refusal, RefusalReason};
use crate::supervisor::mounts::{self, Mount};
use crate::supervisor::refuse::{OrRefuse, refusal};
use crate::supervisor::state::{Durability, StateFolder, gone, read_json, write_json};

/// The volume of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotVolume {
    /// [`crate::spool::FORMAT`] of the writer.
    pub format: u32,
    /// The slot.
    pub slot: u32,
    /// The cloud's id of the volume.
    pub volume: String,
    /// Where it is mounted: the slot's folder.
    pub folder: PathBuf,
    /// The block device it is, in the boot this was written in.
    pub device: PathBuf,
    /// How far it is.
    pub step: Step,
    /// The boot this was written in.
    pub boot_id: String,
}

/// What is being done to a slot's volume, or was when somebody died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// It was blank and gets a file system.
    Formatting,
    /// It carries a file system and gets mounted, grown and handed over.
    Mounting,
    /// Jobs may use it.
    Mounted,
    /// It is written out and unmounted.
    Unmounting,
}

impl SlotVolume {
    /// The volume of a slot, if it has one.
    ///
    /// # Errors
    /// When the note cannot be read.
    pub fn read(state: &StateFolder, slot: u32) -> io::Result<Option<Self>> {
        read_json(&state.slot_volume(slot))
    }

    /// Writes down how far it is.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&self, state: &StateFolder) -> io::Result<()> {
        write_json(&state.slot_volume(self.slot), self, Durability::Durable)
    }

    /// Forgets that a slot has a volume.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget(state: &StateFolder, slot: u32) -> io::Result<()> {
        gone(std::fs::remove_file(state.slot_volume(slot)))
    }

    /// What is mounted at the slot.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn mount(&self) -> io::Result<Option<Mount>> {
        mounts::at(&self.folder)
    }
}

/// Lets a slot be used that has no volume, or one that is mounted.
///
/// # Errors
/// A refusal where a volume belongs into the slot and is not there.
pub fn check_ready(state: &StateFolder, slot: u32) -> Result<(), Refusal> {
    let Some(note) = SlotVolume::read(state, slot).or_refuse(READING)? else { return Ok(()) };
    if note.step == Step::Mounted && note.mount().or_refuse("failed to read the mounts")?.is_some() {
        return Ok(());
    }
    let message = format!(
        "volume {} of slot {slot} is not mounted at {} ({:?}); mount it, or unmount it to be used without",
        note.volume,
        note.folder.display(),
        note.step
    );
    Err(refusal(RefusalReason::HostFailure, message))
}

/// What is attempted when a note is read, for refusals.
pub const READING: &str = "failed to read which volume the slot has";

/// The workspace volumes that are mounted.
///
/// # Errors
/// When a note or the mounts cannot be read.
pub fn mounted(state: &StateFolder) -> io::Result<Vec<MountedVolume>> {
    let mut found = Vec::new();
    for slot in state.slots_with_volumes()? {
        let Some(note) = SlotVolume::read(state, slot)? else { continue };
        if let Some(mount) = note.mount()? {
            let device = mount.source.display().to_string();
            found.push(MountedVolume { slot, volume: note.volume, device });
        }
    }
    Ok(found)
}
