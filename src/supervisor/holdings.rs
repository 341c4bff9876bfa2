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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::state::StateFolder;

    /// As the first release wrote it: environments sleep for weeks, and are read by whatever version comes then.
    const FIRST: &str = r#"{"format":1,"trees":[
        {"job_id":1,"name":"dormouse-env1-1-99","boot_id":"b","holder":{"CgroupV2":{"path":"/sys/fs/cgroup/x"}}},
        {"job_id":2,"name":"dormouse-env1-2-99","boot_id":"b","holder":{"CgroupV1":{"path":"/sys/fs/cgroup/y"}}},
        {"job_id":3,"name":"m","boot_id":"b","holder":{"Marked":{"mark":"m","sessions":[[7,8]]}}}],
        "workspace":{"device":1,"inode":2,"boot_id":"b","is_lasting":true}}"#;

    #[test]
    fn holdings_of_the_first_release_are_read_and_those_of_an_unknown_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let environment = StateFolder::open(Some(folder.path())).unwrap().environment("env1");
        std::fs::create_dir_all(environment.path()).unwrap();
        std::fs::write(environment.holdings(), FIRST).unwrap();
        let read = Holdings::read(&environment).unwrap();
        assert_eq!(read.trees.len(), 3);
        assert!(read.trees.iter().all(|tree| tree.counter.is_none()) && read.workspace.is_some());

        let newer = FIRST.replacen("\"format\":1", "\"format\":99", 1);
        std::fs::write(environment.holdings(), newer).unwrap();
        let refused = Holdings::read(&environment).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        assert!(refused.to_string().contains("is of format 99"), "{refused}");
    }
}
