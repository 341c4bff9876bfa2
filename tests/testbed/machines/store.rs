//! Volumes and snapshots as files of the bed: a device is a sparse file, what a machine boots from is a folder.
//!
//! Each is made under another name and renamed, so one that is there is whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::super::hosts::disk::Disk;
use super::deeds::Blank;

const GIB: u64 = 1 << 30;
/// What a host's disk keeps of itself when it is copied.
const CHANGES: &str = "upper";

/// Where they are.
pub struct Store {
    volumes: PathBuf,
    snapshots: PathBuf,
}

impl Store {
    pub fn open(dir: &Path) -> Result<Self> {
        let store = Self { volumes: dir.join("volumes"), snapshots: dir.join("snapshots") };
        for folder in [&store.volumes, &store.snapshots] {
            fs::create_dir_all(folder)?;
        }
        Ok(store)
    }

    pub fn volume(&self, id: &str) -> PathBuf {
        self.volumes.join(id)
    }

    pub fn snapshot(&self, id: &str) -> PathBuf {
        self.snapshots.join(id)
    }

    pub fn volumes(&self) -> Result<BTreeSet<String>> {
        names(&self.volumes)
    }

    pub fn snapshots(&self) -> Result<BTreeSet<String>> {
        names(&self.snapshots)
    }

    /// A volume with nothing on it.
    pub fn make(&self, volume: &str, blank: Blank) -> Result<()> {
        let new = unfinished(&self.volumes, volume)?;
        match blank {
            Blank::Root => drop(Disk::open(&new)?),
            Blank::Device(gib) => File::create(&new)?.set_len(gib * GIB)?,
        }
        Ok(fs::rename(new, self.volume(volume))?)
    }

    /// A volume with what a snapshot holds.
    pub async fn restore(&self, volume: &str, snapshot: &str, gib: u64) -> Result<()> {
        let new = unfinished(&self.volumes, volume)?;
        copy(&self.snapshot(snapshot), &new).await?;
        if new.is_file() {
            let file = File::options().write(true).open(&new)?;
            // It may be larger than what it was made from, never smaller.
            file.set_len(file.metadata()?.len().max(gib * GIB))?;
        }
        Ok(fs::rename(new, self.volume(volume))?)
    }

    /// Copies a volume as it is at one moment; false when it was written to meanwhile, and there is no snapshot then.
    pub async fn take(&self, snapshot: &str, volume: &str) -> Result<bool> {
        let (from, new) = (self.volume(volume), unfinished(&self.snapshots, snapshot)?);
        let before = written(&from)?;
        copy(&from, &new).await?;
        let is_whole = from.is_dir() || written(&from)? == before;
        if is_whole {
            fs::rename(new, self.snapshot(snapshot))?;
        }
        Ok(is_whole)
    }

    /// A second snapshot with what one holds.
    pub async fn copy_snapshot(&self, snapshot: &str, from: &str) -> Result<()> {
        let new = unfinished(&self.snapshots, snapshot)?;
        copy(&self.snapshot(from), &new).await?;
        Ok(fs::rename(new, self.snapshot(snapshot))?)
    }

    /// Replaces a device's file by a copy, so that who still has the old one writes to nothing that lasts.
    pub async fn part_from(&self, volume: &str) -> Result<()> {
        let (from, new) = (self.volume(volume), unfinished(&self.volumes, volume)?);
        copy(&from, &new).await?;
        Ok(fs::rename(new, from)?)
    }

    pub fn delete_volume(&self, id: &str) -> Result<()> {
        remove(&self.volume(id))
    }

    pub fn delete_snapshot(&self, id: &str) -> Result<()> {
        remove(&self.snapshot(id))
    }
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        names.extend(name.to_str().filter(|name| !name.starts_with('.')).map(str::to_owned));
    }
    Ok(names)
}

/// The path of something that is being made, free of what an earlier try has left.
fn unfinished(folder: &Path, id: &str) -> Result<PathBuf> {
    let path = folder.join(format!(".{id}"));
    remove(&path)?;
    Ok(path)
}

/// When a file was last written to, as fine as the kernel says it.
fn written(path: &Path) -> Result<(i64, i64, u64)> {
    let metadata = fs::metadata(path).with_context(|| format!("failed to look at {}", path.display()))?;
    Ok((metadata.mtime(), metadata.mtime_nsec(), metadata.blocks()))
}

async fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    if from.is_dir() {
        for folder in ["work", "root"] {
            fs::create_dir_all(to.join(folder))?;
        }
        cp.arg("--archive").arg("--reflink=auto").args([from.join(CHANGES), to.join(CHANGES)]);
    } else if from.is_file() {
        cp.args(["--sparse=always", "--reflink=auto", "--"]).args([from, to]);
    } else {
        bail!("{} is gone", from.display());
    }
    super::run(&mut cp).await.map(|_| ())
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("failed to remove {}", path.display()))
}
