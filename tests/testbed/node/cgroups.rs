//! The cgroups of a node's pods: one folder of the same name in every hierarchy the machine has, version 1 or 2.
//!
//! The kubelet makes what is below; all of it is removed here, since nobody else does once the kubelet is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::hosts::cgroup::remove_tree;
use super::super::process::Owner;

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "dormouse-node.";
/// Processes of pods are gone before this is dropped; the kernel may still be tidying up after them.
const SETTLE: Duration = Duration::from_secs(5);

/// A folder in each hierarchy, removed when dropped.
pub struct Cgroups {
    name: String,
    hierarchies: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes one for this process, and removes those of processes that are gone.
    pub fn create(number: u32) -> Result<Self> {
        let hierarchies = hierarchies()?;
        for hierarchy in &hierarchies {
            remove_orphans(hierarchy)?;
        }
        let name = format!("{PREFIX}{}.{number}", Owner::this_process()?);
        let cgroups = Self { name, hierarchies };
        for path in cgroups.paths() {
            fs::create_dir(&path).with_context(|| format!("failed to make the cgroup {}", path.display()))?;
        }
        Ok(cgroups)
    }

    /// The name the kubelet knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.join(&self.name))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let deadline = Instant::now() + SETTLE;
        for path in self.paths() {
            while let Err(error) = remove_tree(&path) {
                if Instant::now() > deadline {
                    eprintln!("left for the next bed: {}: {error}", path.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Version 2 is one hierarchy; version 1 has a folder for each, and links for those mounted together.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("failed to read {ROOT}"))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn remove_orphans(hierarchy: &Path) -> Result<()> {
    for entry in fs::read_dir(hierarchy)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(Owner::parse_prefix);
        if owner.is_some_and(|owner| !owner.is_alive()) {
            remove_tree(&entry.path())
                .with_context(|| format!("failed to remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
