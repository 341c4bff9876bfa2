//! The workspace of an environment: where it is, that it is still the same one, and how it goes away.
//!
//! Below the slot's folder everything belongs to the job, which may have put links anywhere. So nothing there is
//! opened by a path that could contain one, and nothing is deleted with more rights than the job has.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};

use super::launch;
use super::process;
use super::removal;
use super::user::JobUser;
use crate::spool::MARKER;
pub use crate::spool::place::{own_path, path, temporary};
use crate::spool::record::EnvironmentRecord;

/// The workspace folder as the file system knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Device of the file system; devices may be numbered anew by a boot.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Boot in which the device number holds.
    pub boot_id: String,
    /// Whether the inode number holds: an overlay may number a folder anew whenever it forgets it.
    pub is_lasting: bool,
}

/// What `statfs` calls an overlay.
const OVERLAY: i64 = 0x794c_7630;

/// Why a workspace is not the one that was put to sleep.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// It cannot be looked at.
    #[error("the workspace {path} cannot be opened: {source}")]
    Unreadable {
        /// The workspace.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another folder is in its place.
    #[error("the workspace {0} is another folder than the one that was put to sleep")]
    Replaced(String),
    /// The marker is missing or names another environment.
    #[error("the workspace {0} does not carry this environment's marker")]
    Unmarked(String),
}

/// Makes the slot's folder, which belongs to the job's user.
///
/// # Errors
/// When it cannot be made.
pub fn make_slot(builds_dir: &str, slot: u32, user: Option<&JobUser>) -> io::Result<()> {
    let folder = Path::new(builds_dir).join(slot.to_string());
    let Some(user) = user else {
        return std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(builds_dir)?;
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let opened =
        rustix::fs::open(&folder, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchown(&opened, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    rustix::fs::fchmod(&opened, Mode::from_raw_mode(0o700))?;
    Ok(())
}

/// An opened workspace.
#[derive(Debug)]
pub struct Workspace {
    folder: File,
    path: String,
}

impl Workspace {
    /// Opens a workspace without following links below the slot's folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(builds_dir_and_slot: &Path, path: &str) -> io::Result<Self> {
        let below = Path::new(path).strip_prefix(builds_dir_and_slot).map_err(io::Error::other)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = rustix::fs::open(builds_dir_and_slot, flags, Mode::empty())?;
        for part in below.components() {
            let Component::Normal(name) = part else {
                return Err(io::Error::other(format!("{path} is no plain path")));
            };
            folder = rustix::fs::openat(&folder, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(Self { folder: File::from(folder), path: path.to_owned() })
    }

    /// Opens the workspace of an environment.
    ///
    /// # Errors
    /// When it is not there.
    pub fn of(record: &EnvironmentRecord) -> io::Result<Self> {
        Self::open(&slot_folder(record)?, &record.workspace)
    }

    /// What the file system calls it.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn identity(&self) -> io::Result<Identity> {
        let stat = rustix::fs::fstat(&self.folder)?;
        let kind = rustix::fs::fstatfs(&self.folder)?.f_type;
        Ok(Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
            boot_id: process::boot_id()?,
            is_lasting: kind != OVERLAY,
        })
    }

    /// Leaves the marker that binds the workspace to its environment.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark(&self, environment: &str) -> io::Result<()> {
        self.unmark()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, MARKER, flags, Mode::from_raw_mode(0o644))?;
        File::from(file).write_all(format!("{environment}\n").as_bytes())
    }

    /// Takes the marker away, so that the job does not find a file it did not make.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn unmark(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.folder, MARKER, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sees whether this is the workspace that was put to sleep.
    ///
    /// # Errors
    /// When it is not.
    pub fn verify(&self, environment: &str, slept_as: Option<&Identity>) -> Result<(), Mismatch> {
        let unreadable = |source| Mismatch::Unreadable { path: self.path.clone(), source };
        let now = self.identity().map_err(unreadable)?;
        let is_same = |then: &Identity| {
            let same_inode = then.inode == now.inode || !(then.is_lasting && now.is_lasting);
            same_inode && (then.boot_id != now.boot_id || then.device == now.device)
        };
        if !slept_as.is_some_and(is_same) {
            return Err(Mismatch::Replaced(self.path.clone()));
        }
        self.verify_marker(environment)
    }

    /// Sees whether the workspace carries the environment's marker: all that tells it on another host, where its
    /// file system has another device number.
    ///
    /// # Errors
    /// When it does not.
    pub fn verify_marker(&self, environment: &str) -> Result<(), Mismatch> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&self.folder, MARKER, flags, Mode::empty()) else {
            return Err(Mismatch::Unmarked(self.path.clone()));
        };
        let mut text = String::new();
        let limit = u64::try_from(environment.len()).unwrap_or(u64::MAX).saturating_add(2);
        let read = File::from(file).take(limit).read_to_string(&mut text);
        if read.is_err() || text.trim_end() != environment {
            return Err(Mismatch::Unmarked(self.path.clone()));
        }
        Ok(())
    }
}

/// Reads a small file that the job has left beside its workspace; `None` when there is none.
///
/// # Errors
/// When it is no plain file, or longer than `limit`.
pub fn read_left_behind(record: &EnvironmentRecord, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let folder = match Workspace::open(&slot_folder(record)?, &temporary(&record.workspace)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?.folder,
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&folder, name, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        opened => File::from(opened?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{name} is no plain file")));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("{name} is longer than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Whether there is anything at a path, link or not.
pub fn is_there(path: &str) -> bool {
    rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Deletes a tree below the slot's folder with the job's own rights.
///
/// # Errors
/// When something in it cannot be deleted.
pub fn remove(path: &str, user: Option<&JobUser>) -> io::Result<()> {
    if !is_there(path) {
        return Ok(());
    }
    let Some(user) = user else {
        return removal::remove(Path::new(path));
    };
    let output = launch::removal(user, Path::new(path)).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// `<builds>/<slot>`: the last folder on the way to a workspace that the job does not own.
fn slot_folder(record: &EnvironmentRecord) -> io::Result<PathBuf> {
    let name = record.slot.to_string();
    let project = record.project_path.split('/').count();
    // The workspace is `<builds>/<slot>/<project path>`, so the slot is that many folders above it; one where the job
    // wanted it is anywhere below, and then the first folder of that name is the slot's.
    let is_slot = |path: &&Path| path.file_name().is_some_and(|found| found.to_str() == Some(&name));
    let workspace = Path::new(&record.workspace);
    let usual = workspace.ancestors().nth(project).filter(is_slot);
    usual
        .or_else(|| workspace.ancestors().skip(1).filter(is_slot).last())
        .map(Path::to_owned)
        .ok_or_else(|| io::Error::other(format!("{} is no workspace of slot {name}", record.workspace)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let slot = folder.path().join("0");
        std::fs::create_dir_all(folder.path().join("elsewhere/p")).unwrap();
        std::fs::create_dir(&slot).unwrap();
        std::os::unix::fs::symlink("../elsewhere", slot.join("g")).unwrap();
        let workspace = slot.join("g/p");
        assert!(Workspace::open(&slot, workspace.to_str().unwrap()).is_err());
    }

    #[test]
    fn a_marker_binds_a_folder_to_one_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        std::fs::create_dir(&path).unwrap();
        let workspace = Workspace::open(folder.path(), path.to_str().unwrap()).unwrap();
        let identity = workspace.identity().unwrap();
        assert!(matches!(workspace.verify("env1", Some(&identity)), Err(Mismatch::Unmarked(_))));
        workspace.mark("env1").unwrap();
        workspace.verify("env1", Some(&identity)).unwrap();
        assert!(matches!(workspace.verify("env2", Some(&identity)), Err(Mismatch::Unmarked(_))));
        assert!(matches!(workspace.verify("env1", None), Err(Mismatch::Replaced(_))));
    }
}
