//! `volume-mount`: a volume that is attached to this instance becomes the folder of a slot.
//!
//! 1. under the host's lock: the caller is admitted, and the slot's folder is not in use
//! 2. the block device is found
//! 3. if the volume is blank: the note says Formatting, a file system is made
//! 4. the note says Mounting, the file system is mounted and looked at
//! 5. it is grown to the size of the device; a failure of that is told, and is no reason to do without it
//! 6. its files are handed over to the slot's user
//! 7. the note says Mounted: jobs may begin
//!
//! A call after a death finds by the note, the volume and the mounts how far it was, and does the rest; what is done
//! already is seen and left. A volume half formatted is formatted again only while nobody can have used it: it was
//! never mounted, or the death was of this very boot.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::device::{BlockDevice, NoDevice, Places};
use super::filesystem::{self, Content, HEAD};
use super::note::{READING, SlotVolume, Step};
use super::{check_root, users};
use crate::spool::FORMAT;
use crate::spool::order::Isolation;
use crate::spool::record::{EnvironmentPhase, JobState};
use crate::spool::verb::{Refusal, RefusalReason, Volume};
use crate::supervisor::arguments::VolumeMount;
use crate::supervisor::claim::{self, Caller};
use crate::supervisor::mounts;
use crate::supervisor::process;
use crate::supervisor::refuse::{OrRefuse, not_found, refusal, unsupported};
use crate::supervisor::state::StateFolder;
use crate::supervisor::user::{self, JobUser};
use crate::supervisor::workspace;

/// Mounts a volume at its slot.
///
/// # Errors
/// A refusal: `NotFound` while the device is not there, `InUse` or `SlotTaken` where something uses the device or the
/// folder, `Unsupported` for a volume that carries something else.
pub fn mount(state: &StateFolder, order: &VolumeMount) -> Result<Volume, Refusal> {
    check_root("a workspace volume")?;
    let _slot = state.lock_slot(order.place.slot).or_refuse("failed to lock the slot")?;
    let is_awake = check_slot(state, order)?;
    let mut device = find(order)?;
    let folder = order.place.folder();
    let filesystem_made = match mounts::at(&folder).or_refuse("failed to read the mounts")? {
        None => put_in_place(state, order, &mut device)?,
        Some(there) if there.device == device.number => false,
        Some(there) => {
            let message = format!(
                "{} is mounted at {}, not volume {} ({}); unmount it first",
                there.source.display(),
                folder.display(),
                order.volume,
                device.path.display()
            );
            return Err(refusal(RefusalReason::WorkspaceMismatch, message));
        }
    };
    let root = open_mounted(&folder, &device)?;
    let not_grown = grow(&mut device).err().map(|error| error.to_string());
    // A job that runs has its files already.
    if !is_awake {
        hand_over(&root, job_user(order)?.as_ref())
            .or_refuse(format!("failed to hand {} over to the slot's user", folder.display()))?;
    }
    note(state, order, &device, Step::Mounted)?;
    let room = rustix::fs::fstatvfs(&root).or_refuse("failed to look at the file system")?;
    Ok(Volume {
        filesystem_made,
        size_bytes: room.f_blocks.saturating_mul(room.f_frsize),
        used_bytes: room.f_blocks.saturating_sub(room.f_bfree).saturating_mul(room.f_frsize),
        not_grown,
    })
}

/// Admits the caller, unless a mount would hide what the slot's folder holds. Says whether an environment is awake in
/// the slot: its volume is mounted then.
fn check_slot(state: &StateFolder, order: &VolumeMount) -> Result<bool, Refusal> {
    let (slot, folder) = (order.place.slot, order.place.folder());
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: None, pool: None, epoch: order.epoch })?;
    let environments = state.in_slot(slot).or_refuse("failed to look for the slot's environment")?;
    if mounts::at(&folder).or_refuse("failed to read the mounts")?.is_some() {
        return Ok(environments.iter().any(|(_, record)| record.phase == EnvironmentPhase::Active));
    }
    for (environment, record) in environments {
        let job = environment.job(record.job_id).read().or_refuse("failed to read the job's record")?;
        if job.is_some_and(|job| job.state != JobState::Finished && process::is_alive(&job.runner)) {
            let message = format!("job {} runs in slot {slot}, which has no volume yet", record.job_id);
            return Err(refusal(RefusalReason::InUse, message));
        }
        if workspace::is_there(&record.workspace) {
            let message = format!(
                "the workspace {} of environment {} is not on a volume, and a mount would hide it; release that \
                 environment first",
                record.workspace, record.environment
            );
            return Err(refusal(RefusalReason::SlotTaken, message));
        }
    }
    Ok(false)
}

fn find(order: &VolumeMount) -> Result<BlockDevice, Refusal> {
    let found =
        Places::default().find(&order.volume, order.device.as_deref()).map_err(|error| match error {
            NoDevice::Absent { .. } => not_found(error.to_string()),
            NoDevice::Other { .. } => refusal(RefusalReason::WorkspaceMismatch, error.to_string()),
        })?;
    BlockDevice::open(&found).or_refuse(format!(
        "failed to open volume {} ({})",
        order.volume,
        found.display()
    ))
}

/// Mounts the device at the slot's folder; says whether a file system had to be made.
fn put_in_place(state: &StateFolder, order: &VolumeMount, device: &mut BlockDevice) -> Result<bool, Refusal> {
    let what = format!("volume {} ({})", order.volume, device.path.display());
    let elsewhere = mounts::all().or_refuse("failed to read the mounts")?;
    if let Some(elsewhere) = elsewhere.into_iter().find(|mount| mount.device == device.number) {
        let message = format!("{what} is mounted at {}; unmount it there", elsewhere.point.display());
        return Err(refusal(RefusalReason::InUse, message));
    }
    let attempt = format!("failed to read {what}");
    let found = filesystem::content(&device.head(HEAD).or_refuse(&attempt)?);
    let is_made = must_be_made(state, order, found)?;
    let content = if is_made {
        note(state, order, device, Step::Formatting)?;
        filesystem::make(&device.path).or_refuse(format!("failed to make a file system on {what}"))?;
        device.sync().or_refuse(format!("failed to write {what}"))?;
        filesystem::content(&device.head(HEAD).or_refuse(&attempt)?)
    } else {
        found
    };
    let (kind, options) = match content {
        Content::Ext(_) => ("ext4", None),
        // A volume from a snapshot has the uuid of the one it was taken from, which may be mounted here too.
        Content::Xfs => ("xfs", Some(c"nouuid")),
        Content::Blank | Content::Other(_) => {
            let message = format!("{what} carries no file system though one was made");
            return Err(refusal(RefusalReason::HostFailure, message));
        }
    };
    note(state, order, device, Step::Mounting)?;
    let builds_dir = order.place.builds_dir.to_string_lossy();
    let attempt = format!("failed to mount {what} at {}", order.place.folder().display());
    workspace::make_slot(&builds_dir, order.place.slot, None).or_refuse(&attempt)?;
    // By its descriptor: the folder above may be a job's, who must not choose where we mount.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(order.place.folder(), flags, Mode::empty()).or_refuse(&attempt)?;
    let target = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(&device.path, &target, kind, flags, options).or_refuse(&attempt)?;
    Ok(is_made)
}

/// Whether a volume gets a file system.
fn must_be_made(state: &StateFolder, order: &VolumeMount, content: Content) -> Result<bool, Refusal> {
    let note = SlotVolume::read(state, order.place.slot).or_refuse(READING)?;
    let begun = note
        .filter(|note| note.step == Step::Formatting && note.volume == order.volume)
        .map(|note| note.boot_id);
    let here = process::boot_id().or_refuse("failed to read the boot id")?;
    judge(content, begun.as_deref(), &here).map_err(|what| {
        unsupported(format!(
            "volume {} carries {what} and is not formatted; use a blank volume, or one with ext4 or XFS",
            order.volume
        ))
    })
}

/// Whether a volume of this content gets a file system, of which one was `begun` in a boot; else what it carries.
fn judge(content: Content, begun: Option<&str>, here: &str) -> Result<bool, &'static str> {
    match content {
        Content::Blank => Ok(true),
        Content::Ext(ext) => Ok(ext.is_unused && begun.is_some()),
        Content::Xfs => Ok(false),
        Content::Other(_) if begun == Some(here) => Ok(true),
        Content::Other(what) => Err(what),
    }
}

fn note(state: &StateFolder, order: &VolumeMount, device: &BlockDevice, step: Step) -> Result<(), Refusal> {
    let note = SlotVolume {
        format: FORMAT,
        slot: order.place.slot,
        volume: order.volume.clone(),
        folder: order.place.folder(),
        device: device.path.clone(),
        step,
        boot_id: process::boot_id().or_refuse("failed to read the boot id")?,
    };
    note.write(state).or_refuse("failed to write down which volume the slot has")
}

/// Opens the slot's folder, which is the root of the volume's file system or a refusal.
fn open_mounted(folder: &Path, device: &BlockDevice) -> Result<File, Refusal> {
    let attempt = format!("failed to look at {}", folder.display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(folder, flags, Mode::empty()).or_refuse(&attempt)?;
    let is_seen = rustix::fs::fstat(&opened).or_refuse(&attempt)?.st_dev == device.number;
    let mount = mounts::at(folder).or_refuse("failed to read the mounts")?;
    if is_seen && mount.is_some_and(|mount| mount.device == device.number && mount.root == Path::new("/")) {
        return Ok(File::from(opened));
    }
    let message = format!(
        "{} does not show {} though it was mounted; {}",
        folder.display(),
        device.path.display(),
        users::of(device.number)
    );
    Err(refusal(RefusalReason::HostFailure, message))
}

/// Lets the file system have all of its device.
fn grow(device: &mut BlockDevice) -> io::Result<()> {
    match filesystem::content(&device.head(HEAD)?) {
        Content::Ext(ext) if filesystem::can_grow(ext.size, device.size) => filesystem::grow(&device.path),
        Content::Ext(_) | Content::Xfs | Content::Blank | Content::Other(_) => Ok(()),
    }
}

/// The user whose the files of the slot are, when it is another one.
fn job_user(order: &VolumeMount) -> Result<Option<JobUser>, Refusal> {
    match order.isolation {
        Isolation::PerSlotUser => {
            user::of_slot(order.place.slot).map(Some).or_refuse("failed to make the slot's user")
        }
        Isolation::Single | Isolation::Shared => {
            user::behind_sudo().or_refuse("failed to read the host's users")
        }
    }
}

/// Gives the files to the slot's user. Those of a volume that comes from another host or slot, or from a snapshot of
/// one, belong to whom its root belongs to; the root is changed last, so that a death in between is seen.
fn hand_over(root: &File, user: Option<&JobUser>) -> io::Result<()> {
    let before = rustix::fs::fstat(root)?;
    let (uid, gid) = user.map_or((0, 0), |user| (user.uid, user.gid));
    if before.st_uid != uid {
        let output = Command::new("chown")
            .args(["--recursive", "--no-dereference", &format!("--from={}", before.st_uid)])
            .args([&format!("{uid}:{gid}"), "."])
            .current_dir(format!("/proc/self/fd/{}", root.as_raw_fd()))
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(io::Error::other(format!("chown failed: {said}")));
        }
    }
    let mode = if user.is_some() { 0o700 } else { 0o755 };
    rustix::fs::fchmod(root, Mode::from_raw_mode(mode))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::volume::filesystem::Ext;

    #[test]
    fn only_what_is_blank_or_was_begun_and_never_used_is_formatted() {
        let ext = |is_unused| Content::Ext(Ext { size: 1, is_unused });
        for (content, begun, wanted) in [
            (Content::Blank, None, Ok(true)),
            (Content::Blank, Some("here"), Ok(true)),
            (ext(true), None, Ok(false)),
            (ext(true), Some("here"), Ok(true)),
            (ext(true), Some("before"), Ok(true)),
            (ext(false), Some("here"), Ok(false)),
            (Content::Xfs, Some("here"), Ok(false)),
            (Content::Other("data"), None, Err("data")),
            (Content::Other("data"), Some("before"), Err("data")),
            (Content::Other("data"), Some("here"), Ok(true)),
        ] {
            assert_eq!(judge(content, begun, "here"), wanted, "{content:?}, begun: {begun:?}");
        }
    }
}
