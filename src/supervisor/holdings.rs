//! `holdings.json`: what an environment holds on this host, for the supervisor alone.

use std::io;

use serde::{Deserialize, Serialize};

use super::state::{Durability, EnvironmentFolder, read_json, write_json};
use super::tree::Tree;
use super::workspace::Identity;
use crate::spool::FORMAT;

/// Processes and folders of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Process trees, one for each job that has run in the environment, oldest first.
    pub trees: Vec<Tree>,
    /// The workspace as it was put to sleep.
    pub workspace: Option<Identity>,
}

impl Holdings {
    /// Reads an environment's holdings; nothing when none are written down.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(folder: &EnvironmentFolder) -> io::Result<Self> {
        let none = Self { format: FORMAT, trees: Vec::new(), workspace: None };
        Ok(read_json(&folder.holdings())?.unwrap_or(none))
    }

    /// Writes them down.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&self, folder: &EnvironmentFolder, durability: Durability) -> io::Result<()> {
        write_json(&folder.holdings(), self, durability)
    }

    /// Forgets trees that no boot will bring back.
    pub fn forget_other_boots(&mut self) {
        self.trees.retain(Tree::is_of_this_boot);
    }

    /// Removes trees without processes, so that an environment that wakes often does not collect them.
    ///
    /// # Errors
    /// When the kernel does not tell, or refuses.
    pub fn forget_empty(&mut self) -> io::Result<()> {
        let mut held = Vec::new();
        for tree in std::mem::take(&mut self.trees) {
            if tree.processes()?.is_empty() {
                tree.remove()?;
            } else {
                held.push(tree);
            }
        }
        self.trees = held;
        Ok(())
    }

    /// Kills every process of the environment.
    ///
    /// # Errors
    /// When some do not vanish in time; the others are gone all the same.
    pub fn kill(&self) -> io::Result<()> {
        let mut outcome = Ok(());
        for tree in &self.trees {
            outcome = outcome.and(tree.kill().and_then(|()| tree.remove()));
        }
        outcome
    }
}
