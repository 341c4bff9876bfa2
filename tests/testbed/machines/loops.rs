//! Files as block devices of this machine.
//!
//! A device is held open and marked so that the kernel takes it down with its last user. So it ends with this process,
//! or with the last mount of it, whichever is later, and no code of ours need run for that.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use tokio::process::Command;

use super::super::process::Owner;
use super::super::wait;

/// The last user of a device writes back what it has when it ends.
const SETTLE: Duration = Duration::from_secs(20);
const SYSTEM: &str = "/sys/block";

/// A file that is a block device.
pub struct LoopDevice {
    node: PathBuf,
    /// None once it was let go.
    held: Option<File>,
    backing: PathBuf,
}

impl LoopDevice {
    /// Makes a file a device.
    pub async fn of(file: &Path) -> Result<Self> {
        let node = losetup(&["--find".as_ref(), "--show".as_ref(), file.as_os_str()]).await?;
        let node = PathBuf::from(node.trim());
        let held = File::options().read(true).write(true).open(&node);
        // With a user it goes with the last one; without one, which is after an error, at once.
        losetup(&["--detach".as_ref(), node.as_os_str()]).await?;
        let held = held.with_context(|| format!("failed to open {}", node.display()))?;
        let device = Self { node, held: Some(held), backing: file.to_owned() };
        ensure!(device.is_there()?, "{} is not {} any more", device.node.display(), file.display());
        Ok(device)
    }

    /// Major and minor number.
    pub fn numbers(&self) -> Result<(u32, u32)> {
        let number = rustix::fs::stat(&self.node)?.st_rdev;
        Ok((rustix::fs::major(number), rustix::fs::minor(number)))
    }

    /// Whether somebody has it for himself: a mount in any name space, swap, a mkfs.
    pub fn is_in_use(&self) -> Result<bool> {
        match rustix::fs::open(&self.node, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
            Ok(_) => Ok(false),
            Err(rustix::io::Errno::BUSY) => Ok(true),
            // It has gone with its last user.
            Err(rustix::io::Errno::NXIO) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("failed to open {}", self.node.display())),
        }
    }

    /// Gives it up; it goes with its last user, if it has one besides us.
    pub fn let_go(&mut self) {
        self.held = None;
    }

    /// Gives it up, and waits until nobody has it.
    pub async fn release(&mut self) -> Result<()> {
        self.let_go();
        let what = format!("{}, which is {}, has no user left", self.node.display(), self.backing.display());
        wait::until(&what, SETTLE, async || Ok((!self.is_there()?).then_some(()))).await
    }

    /// Whether it is that file's device still, for us or another user.
    pub fn is_there(&self) -> Result<bool> {
        let name = self.node.file_name().context("a device without a name")?;
        Ok(backing_file(&Path::new(SYSTEM).join(name)).is_some_and(|backing| backing == self.backing))
    }
}

/// Files below a folder that are devices now, deleted ones too.
pub fn devices_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let all = devices()?.into_iter();
    Ok(all.filter(|(_, backing)| backing.starts_with(folder)).map(|(node, _)| node).collect())
}

/// Takes down devices of files below `folder` of beds that are gone: one that was killed between two calls leaves them.
pub async fn remove_orphans(folder: &Path) -> Result<()> {
    for (node, backing) in devices()? {
        let bed = backing.strip_prefix(folder).ok().and_then(|below| below.iter().next());
        let owner = bed.and_then(|bed| bed.to_str()).and_then(Owner::parse_prefix);
        if owner.is_some_and(|owner| !owner.is_alive()) {
            // It may go by itself just now.
            let _ = losetup(&["--detach".as_ref(), node.as_os_str()]).await;
        }
    }
    Ok(())
}

/// Takes down devices of files below a folder, when nobody uses them.
pub fn detach_below(folder: &Path) -> Result<()> {
    for node in devices_below(folder)? {
        std::process::Command::new("losetup").arg("--detach").arg(node).output()?;
    }
    Ok(())
}

/// Each device that has a file, with it.
fn devices() -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(SYSTEM)? {
        let entry = entry?;
        if let Some(backing) = backing_file(&entry.path()) {
            found.push((Path::new("/dev").join(entry.file_name()), backing));
        }
    }
    Ok(found)
}

fn backing_file(block: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(block.join("loop/backing_file")).ok()?;
    let path = text.trim_end_matches('\n');
    Some(PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path)))
}

async fn losetup(arguments: &[&std::ffi::OsStr]) -> Result<String> {
    let mut command = Command::new("losetup");
    command.args(arguments);
    super::run(&mut command).await
}
