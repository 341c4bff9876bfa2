//! Process trees held by cgroups, v2 or v1.
//!
//! A tree is a child of the cgroup this process lives in: that is the place its owner may write to, and no
//! controller is turned on, so processes may live beside it. The folder's mount is found in `/proc`, because hosts
//! mount v2 in different places and some have both versions. How many processes there may be is the pids controller's
//! business, which is a tree of its own in v1 and lies above or in the folder in v2.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::{Holder, signal_all};
use crate::supervisor::mounts;
use crate::supervisor::state::gone;

/// The file of the pids controller that says how many processes there may be.
const LIMIT: &str = "pids.max";

/// How long to wait between two looks where the kernel gives no notice.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Makes a folder of that name; `None` when this host has no cgroup we may write to.
pub fn create(name: &str) -> Option<Holder> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let path = home_v2(&own, &mounts).map(|home| home.join(name));
    if let Some(path) = path.filter(|path| make_usable(path, "cgroup.freeze")) {
        return Some(Holder::CgroupV2 { path });
    }
    let path = home_v1(&own, &mounts, "freezer")?.join(name);
    make_usable(&path, "freezer.state").then_some(Holder::CgroupV1 { path })
}

/// Makes a folder of the v1 pids controller for at most so many processes; `None` when this host has none for us.
pub fn create_counter(name: &str, most: u32) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let path = home_v1(&own, &mounts, "pids")?.join(name);
    (make_usable(&path, LIMIT) && limit(&path, most)).then_some(path)
}

/// Allows a folder at most so many processes; says whether its kernel counts them.
pub fn limit(path: &Path, most: u32) -> bool {
    // Not created: a folder without the controller has no such file.
    let file = fs::OpenOptions::new().write(true).open(path.join(LIMIT));
    file.and_then(|mut file| file.write_all(most.to_string().as_bytes())).is_ok()
}

/// How often a folder's limit was met.
pub fn refusals(path: &Path) -> u64 {
    let events = fs::read_to_string(path.join("pids.events")).unwrap_or_default();
    let count = events.lines().find_map(|line| line.strip_prefix("max "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

/// Whether the kernel counts the processes of a folder.
pub fn is_counted(path: &Path) -> bool {
    path.join(LIMIT).exists()
}

/// The scope that systemd was asked to make for the job, which carries its limit, if a folder lies in one.
pub fn own_scope(path: &Path) -> Option<&Path> {
    let scope = path.parent()?;
    let name = scope.file_name()?.to_str()?;
    (name.starts_with("run-") && name.ends_with(".scope")).then_some(scope)
}

/// Makes the folder and sees whether processes can be moved in and controlled by a file of it.
fn make_usable(path: &Path, control: &str) -> bool {
    // A neighbour has no business with the numbers of a job's processes either.
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return false,
        Ok(()) | Err(_) => {}
    }
    let writable = |name: &str| rustix::fs::access(path.join(name), rustix::fs::Access::WRITE_OK).is_ok();
    let usable = writable("cgroup.procs")
        && writable(control)
        && path.parent().is_some_and(|parent| {
            // A process is moved by whoever may write to the common ancestor too.
            rustix::fs::access(parent.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
        });
    if !usable {
        // What cannot be removed is an empty folder that nobody uses.
        let _left = remove(path);
    }
    usable
}

fn home_v2(own: &str, mounts: &str) -> Option<PathBuf> {
    let place = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mount = mounts::parse(mounts).into_iter().find(|mount| mount.kind == "cgroup2")?;
    mount.folder_of(place)
}

fn home_v1(own: &str, mounts: &str, controller: &str) -> Option<PathBuf> {
    let place = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, place) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(place)
    })?;
    let mount = mounts::parse(mounts).into_iter().find(|mount| {
        mount.kind == "cgroup" && mount.options.split(',').any(|option| option == controller)
    })?;
    mount.folder_of(place)
}

/// All processes of a folder and the folders in it.
pub fn processes(path: &Path) -> io::Result<Vec<i32>> {
    let listed = match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(listed) => listed,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut pids: Vec<i32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(path)? {
        pids.extend(processes(&child)?);
    }
    Ok(pids)
}

fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// A cgroup removed under our hands answers ENODEV instead of ENOENT.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// Removes a folder without processes, and the folders in it.
pub fn remove(path: &Path) -> io::Result<()> {
    for child in children(path)? {
        remove(&child)?;
    }
    gone(fs::remove_dir(path))
}

/// Freezes a v2 tree.
pub fn freeze_v2(path: &Path, patience: Duration) -> io::Result<()> {
    match fs::write(path.join("cgroup.freeze"), "1") {
        Err(error) if is_gone(&error) => return Ok(()),
        written => written?,
    }
    wait_v2(path, "frozen 1", patience)
}

/// Thaws a v2 tree.
pub fn thaw_v2(path: &Path) -> io::Result<()> {
    match fs::write(path.join("cgroup.freeze"), "0") {
        Err(error) if is_gone(&error) => Ok(()),
        written => written,
    }
}

/// Kills a v2 tree.
pub fn kill_v2(path: &Path, patience: Duration) -> io::Result<()> {
    match fs::write(path.join("cgroup.kill"), "1") {
        Ok(()) => {}
        // Kernels before 5.14 have no such file, and a tree that is gone has none either.
        Err(error) if is_gone(&error) || error.kind() == ErrorKind::PermissionDenied => {
            if !path.is_dir() {
                return Ok(());
            }
            thaw_v2(path)?;
            return kill_one_by_one(path, patience);
        }
        Err(error) => return Err(error),
    }
    wait_v2(path, "populated 0", patience)
}

/// Waits until `cgroup.events` has a line.
fn wait_v2(path: &Path, wanted: &str, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let events = path.join("cgroup.events");
    let file = match File::open(&events) {
        Err(error) if is_gone(&error) => return Ok(()),
        file => file?,
    };
    loop {
        let now = match fs::read_to_string(&events) {
            Err(error) if is_gone(&error) => return Ok(()),
            now => now?,
        };
        if now.lines().any(|line| line == wanted) {
            return Ok(());
        }
        let left = remaining(deadline).ok_or_else(|| still_waiting(path, wanted))?;
        // The file raises a priority event when it changes; a missed one costs at most this slice.
        let slice = left.min(Duration::from_millis(20));
        let timeout = Timespec::try_from(slice).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Freezes a v1 tree.
pub fn freeze_v1(path: &Path, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let state = path.join("freezer.state");
    loop {
        match fs::write(&state, "FROZEN") {
            Err(error) if is_gone(&error) => return Ok(()),
            written => written?,
        }
        if fs::read_to_string(&state)?.trim() == "FROZEN" {
            return Ok(());
        }
        remaining(deadline).ok_or_else(|| still_waiting(path, "FROZEN"))?;
        thread::sleep(LOOK_AGAIN);
    }
}

/// Thaws a v1 tree.
pub fn thaw_v1(path: &Path) -> io::Result<()> {
    match fs::write(path.join("freezer.state"), "THAWED") {
        Err(error) if is_gone(&error) => Ok(()),
        written => written,
    }
}

/// Kills a v1 tree.
pub fn kill_v1(path: &Path, patience: Duration) -> io::Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    // Signals reach frozen processes only when they thaw; sent first, none gets to run on.
    signal_all(&processes(path)?, Signal::KILL)?;
    thaw_v1(path)?;
    kill_one_by_one(path, patience)
}

fn kill_one_by_one(path: &Path, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let pids = processes(path)?;
        if pids.is_empty() {
            return Ok(());
        }
        signal_all(&pids, Signal::KILL)?;
        remaining(deadline).ok_or_else(|| still_waiting(path, "empty"))?;
        thread::sleep(LOOK_AGAIN);
    }
}

fn remaining(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

fn still_waiting(path: &Path, wanted: &str) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("{} is not {wanted} in time", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_set_only_where_the_kernel_counts_and_its_refusals_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!limit(folder.path(), 5) && !is_counted(folder.path()));
        assert_eq!(refusals(folder.path()), 0);
        fs::write(folder.path().join(LIMIT), "max").unwrap();
        fs::write(folder.path().join("pids.events"), "max 7\n").unwrap();
        assert!(limit(folder.path(), 5) && is_counted(folder.path()));
        assert_eq!(refusals(folder.path()), 7);
        assert!(own_scope(Path::new("/sys/fs/cgroup/system.slice/run-r12.scope/tree")).is_some());
        assert!(own_scope(Path::new("/sys/fs/cgroup/user.slice/session-1.scope/tree")).is_none());
    }

    #[test]
    fn the_v1_freezer_is_found_among_other_controllers() {
        let own = "9:name=systemd:/\n6:cpu,freezer:/\n0::/\n";
        let folder = tempfile::tempdir().unwrap();
        let mounts = format!("31 24 0:26 / {} rw - cgroup cgroup rw,freezer", folder.path().display());
        assert_eq!(home_v1(own, &mounts, "freezer").unwrap(), folder.path());
        assert!(home_v1(own, &mounts, "pids").is_none());
    }
}
