//! A job's processes as one thing: frozen, thawed, counted, killed whole.
//!
//! Three ways, the best one the host offers: a cgroup v2 folder, a cgroup v1 freezer folder, or a mark that
//! processes inherit in their environment together with the sessions the job was given. What holds a tree is
//! written down before its first process starts, so that a later supervisor finds all of it.

pub mod cgroup;
pub mod marked;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use self::marked::Marked;
use super::process;
use crate::spool::record::Freezer;
use crate::spool::verb::CgroupSupport;

/// How long processes may take to stand still or to vanish: a process in an uninterruptible wait takes as long as
/// its disk, and a verb must answer before the operator gives up on it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The processes of one job, as written down in `holdings.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The job that started them.
    pub job_id: u64,
    /// Name of the tree, unlike any other's on this host.
    pub name: String,
    /// Boot in which they live; in another one they are gone.
    pub boot_id: String,
    /// What holds them.
    pub holder: Holder,
    /// The folder of the cgroup v1 pids controller that counts them, where counting is apart from holding.
    #[serde(default)]
    pub counter: Option<PathBuf>,
}

/// What holds a tree of processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holder {
    /// A cgroup v2 folder.
    CgroupV2 {
        /// The folder.
        path: PathBuf,
    },
    /// A folder of the cgroup v1 freezer.
    CgroupV1 {
        /// The folder.
        path: PathBuf,
    },
    /// An inherited mark.
    Marked(Marked),
}

impl Tree {
    /// A new, empty tree by the best means of the host, for at most so many processes where the host can count them.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn create(environment: &str, job_id: u64, most: u32) -> io::Result<Self> {
        // The process id keeps apart supervisors with state folders of their own.
        let name = format!("dormouse-{environment}-{job_id}-{}", std::process::id());
        let holder = cgroup::create(&name).unwrap_or_else(|| Holder::Marked(Marked::new(&name)));
        let counter = match &holder {
            Holder::CgroupV2 { path } if cgroup::limit(path, most) => None,
            Holder::CgroupV2 { .. } | Holder::CgroupV1 { .. } | Holder::Marked(_) => {
                cgroup::create_counter(&name, most)
            }
        };
        Ok(Self { job_id, name, boot_id: process::boot_id()?, holder, counter })
    }

    /// Whether its processes can still be there.
    pub fn is_of_this_boot(&self) -> bool {
        process::boot_id().is_ok_and(|boot| boot == self.boot_id)
    }

    /// The files a process writes itself into to join.
    pub fn doors(&self) -> Vec<PathBuf> {
        let held = match &self.holder {
            Holder::CgroupV2 { path } | Holder::CgroupV1 { path } => Some(path),
            Holder::Marked(_) => None,
        };
        held.into_iter().chain(&self.counter).map(|path| path.join("cgroup.procs")).collect()
    }

    /// How often a process was refused because there were as many as may be.
    pub fn refusals(&self) -> u64 {
        let counted = match &self.holder {
            Holder::CgroupV2 { path } => {
                cgroup::own_scope(path).into_iter().chain([path.as_path()]).collect()
            }
            Holder::CgroupV1 { .. } | Holder::Marked(_) => Vec::new(),
        };
        let folders = counted.into_iter().chain(self.counter.as_deref());
        folders.map(cgroup::refusals).max().unwrap_or_default()
    }

    /// Its processes now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        if !self.is_of_this_boot() {
            return Ok(Vec::new());
        }
        match &self.holder {
            Holder::CgroupV2 { path } | Holder::CgroupV1 { path } => cgroup::processes(path),
            Holder::Marked(marked) => marked.processes(),
        }
    }

    /// Holds all processes still; returns once they are.
    ///
    /// # Errors
    /// When some do not stand still in time.
    pub fn freeze(&self) -> io::Result<()> {
        if !self.is_of_this_boot() {
            return Ok(());
        }
        match &self.holder {
            Holder::CgroupV2 { path } => cgroup::freeze_v2(path, PATIENCE),
            Holder::CgroupV1 { path } => cgroup::freeze_v1(path, PATIENCE),
            Holder::Marked(marked) => marked.stop(PATIENCE),
        }
    }

    /// Lets all processes go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self) -> io::Result<()> {
        if !self.is_of_this_boot() {
            return Ok(());
        }
        match &self.holder {
            Holder::CgroupV2 { path } => cgroup::thaw_v2(path),
            Holder::CgroupV1 { path } => cgroup::thaw_v1(path),
            Holder::Marked(marked) => signal_all(&marked.processes()?, Signal::CONT),
        }
    }

    /// Asks all processes to end.
    ///
    /// # Errors
    /// When the kernel does not tell which there are.
    pub fn terminate(&self) -> io::Result<()> {
        signal_all(&self.processes()?, Signal::TERM)
    }

    /// Kills all processes, frozen ones too; returns once they are gone.
    ///
    /// # Errors
    /// When some do not vanish in time.
    pub fn kill(&self) -> io::Result<()> {
        if !self.is_of_this_boot() {
            return Ok(());
        }
        match &self.holder {
            Holder::CgroupV2 { path } => cgroup::kill_v2(path, PATIENCE),
            Holder::CgroupV1 { path } => cgroup::kill_v1(path, PATIENCE),
            Holder::Marked(marked) => marked.kill(PATIENCE),
        }
    }

    /// Removes what held the processes, once they are gone.
    ///
    /// # Errors
    /// When some are still there.
    pub fn remove(&self) -> io::Result<()> {
        let held = match &self.holder {
            Holder::CgroupV2 { path } | Holder::CgroupV1 { path } => Some(path),
            Holder::Marked(_) => None,
        };
        held.into_iter().chain(&self.counter).try_for_each(|path| cgroup::remove(path))
    }

    /// The name of the means, for the record.
    pub fn freezer(&self) -> Freezer {
        match &self.holder {
            Holder::CgroupV2 { .. } => Freezer::CgroupV2,
            Holder::CgroupV1 { .. } => Freezer::CgroupV1,
            Holder::Marked(_) => Freezer::Signals,
        }
    }
}

/// What the host offers, found out by trying: what holds a tree, and whether its processes can be counted.
pub fn support() -> (CgroupSupport, bool) {
    let name = format!("dormouse-probe-{}", std::process::id());
    let counter = cgroup::create_counter(&name, 1);
    let mut counts = counter.is_some();
    // What cannot be removed is an empty folder that nobody uses, here and below.
    let _left = counter.map(|path| cgroup::remove(&path));
    let support = match cgroup::create(&name) {
        Some(Holder::CgroupV2 { path }) => {
            counts |= cgroup::is_counted(&path);
            cgroup::remove(&path).map_or(CgroupSupport::None, |()| CgroupSupport::V2)
        }
        Some(Holder::CgroupV1 { path }) => {
            cgroup::remove(&path).map_or(CgroupSupport::None, |()| CgroupSupport::V1)
        }
        Some(Holder::Marked(_)) | None => CgroupSupport::None,
    };
    (support, counts)
}

/// Sends a signal to each; one that has ended meanwhile is as good as signalled.
fn signal_all(pids: &[i32], signal: Signal) -> io::Result<()> {
    for pid in pids.iter().filter_map(|pid| rustix::process::Pid::from_raw(*pid)) {
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
