//! A cgroup v2 per host: all its processes, whatever they did to leave their parents.
//!
//! cgroup v2 is used where it is mounted, and mounted beside version 1 where it is not. No controller is needed; where
//! version 1 has the one that counts processes, each host gets a folder of that too.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::super::process::Owner;
use super::super::wait;

/// A frozen or killed tree settles in milliseconds; a process in the middle of disk work takes longer.
const SETTLE: Duration = Duration::from_secs(20);
const OURS: &str = "dormouse-bed";

/// A cgroup that is killed and removed when dropped.
pub struct Cgroup {
    path: PathBuf,
    /// Its counterpart in the version 1 tree of the pids controller.
    pids: Option<PathBuf>,
}

impl Cgroup {
    /// Makes one for a bed of this process, and removes those of processes that are gone.
    pub async fn for_bed(number: u32) -> Result<Self> {
        let parent = mounted()?.join(OURS);
        create(&parent)?;
        let pids = find_mount("cgroup", "pids")?.map(|mount| mount.join(OURS));
        pids.iter().try_for_each(|path| create(path))?;
        let whole = Self { path: parent.clone(), pids };
        for entry in fs::read_dir(&parent)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().and_then(Owner::parse_prefix).is_some_and(|owner| !owner.is_alive()) {
                let orphan = whole.below(&name);
                orphan.kill().await?;
            }
        }
        let name = format!("{}.{number}", Owner::this_process()?);
        let own = whole.child(&name);
        // It is everybody's, and stays.
        std::mem::forget(whole);
        own
    }

    /// Makes one below.
    pub fn child(&self, name: &str) -> Result<Self> {
        let child = self.below(name.as_ref());
        create(&child.path)?;
        child.pids.iter().try_for_each(|path| create(path))?;
        Ok(child)
    }

    fn below(&self, name: &OsStr) -> Self {
        Self { path: self.path.join(name), pids: self.pids.as_ref().map(|pids| pids.join(name)) }
    }

    /// Its folder in the tree that counts processes, where there is one.
    pub fn pids(&self) -> Option<&Path> {
        self.pids.as_deref()
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops every process in it where it is, and returns when they have stopped.
    pub async fn freeze(&self) -> Result<()> {
        self.write("cgroup.freeze", "1")?;
        self.until("frozen 1").await
    }

    /// Lets them go on.
    pub async fn thaw(&self) -> Result<()> {
        self.write("cgroup.freeze", "0")?;
        self.until("frozen 0").await
    }

    /// The ids of all processes in it and in those below it.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let (mut found, mut folders) = (Vec::new(), vec![self.path.clone()]);
        while let Some(folder) = folders.pop() {
            let text = fs::read_to_string(folder.join("cgroup.procs"))?;
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    /// Whether they are stopped.
    pub fn is_frozen(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    /// Kills every process in it, and returns when they are gone.
    pub async fn kill(&self) -> Result<()> {
        if self.write_kill()? {
            self.until("populated 0").await?;
        }
        Ok(())
    }

    /// Whether there was anything to kill in.
    fn write_kill(&self) -> Result<bool> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound) => Ok(false),
            // The other bed that removes the same orphan was faster.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("failed to kill {}", self.path.display())),
        }
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    async fn until(&self, line: &str) -> Result<()> {
        let events = self.path.join("cgroup.events");
        wait::until(&format!("{} says {line}", events.display()), SETTLE, async || {
            match fs::read_to_string(&events) {
                Ok(text) => Ok(text.lines().any(|found| found == line).then_some(())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(())),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Killed processes leave a moment later; the next bed removes what is still busy now.
        let killed = self.write_kill();
        let deadline = std::time::Instant::now() + Duration::from_secs(2);
        let folders = || [Some(&self.path), self.pids.as_ref()].into_iter().flatten();
        while let Err(error) = folders().try_for_each(|path| remove_tree(path)) {
            if std::time::Instant::now() > deadline {
                eprintln!("left for the next bed: {}: {error} ({killed:?})", self.path.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes a cgroup with those below it; one that is gone is fine.
pub fn remove_tree(path: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn create(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("failed to make the cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Where the whole of cgroup v2 is mounted.
fn mounted() -> Result<PathBuf> {
    if let Some(found) = find_mount("cgroup2", "")? {
        return Ok(found);
    }
    let path = Path::new("/run/dormouse-bed-cgroup2");
    fs::create_dir_all(path)?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "cgroup2", "none"])
        .arg(path)
        .output()
        .context("failed to run mount")?;
    if !mounted.status.success() {
        bail!("no cgroup v2 on this machine: {}", String::from_utf8_lossy(&mounted.stderr).trim());
    }
    Ok(path.to_owned())
}

/// A whole file system of a kind, mounted with an option; a line of mountinfo is
/// `id parent device root mountpoint options... - type source options`.
fn find_mount(kind: &str, option: &str) -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let mut right = right.split(' ');
        let (found, options) = (right.next()?, right.nth(1)?);
        let has_option = option.is_empty() || options.split(',').any(|known| known == option);
        (found == kind && has_option && root == "/").then(|| PathBuf::from(place))
    }))
}
