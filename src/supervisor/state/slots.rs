//! What the state folder says about slots: which environment is in one, which volume.

use std::io;
use std::path::PathBuf;

use super::{EnvironmentFolder, Lock, StateFolder, make_private, names};
use crate::spool::record::EnvironmentRecord;

impl StateFolder {
    /// The environments in a slot; there is one at most, unless something went wrong.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn in_slot(&self, slot: u32) -> io::Result<Vec<(EnvironmentFolder, EnvironmentRecord)>> {
        let mut found = Vec::new();
        for folder in self.all_environments()? {
            if let Some(record) = folder.read()?.filter(|record| record.slot == slot) {
                found.push((folder, record));
            }
        }
        Ok(found)
    }

    /// The note on a slot's volume.
    pub fn slot_volume(&self, slot: u32) -> PathBuf {
        self.volumes().join(format!("{slot}.json"))
    }

    /// The slots that have a note on a volume.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn slots_with_volumes(&self) -> io::Result<Vec<u32>> {
        let names = names(&self.volumes())?;
        let mut slots: Vec<u32> =
            names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// Waits for the lock that orders the mounts of a slot. Whoever takes the host's lock too takes it after this one.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn lock_slot(&self, slot: u32) -> io::Result<Lock> {
        make_private(&self.volumes())?;
        Lock::wait(&self.volumes().join(format!("{slot}.lock")))
    }

    fn volumes(&self) -> PathBuf {
        self.root().join("volumes")
    }
}
