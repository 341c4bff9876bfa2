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
    /// A new, empty tree by the best means of the host.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn create(environment: &str, job_id: u64) -> io::Result<Self> {
        // The process id keeps apart supervisors with state folders of their own.
        let name = format!("dormouse-{environment}-{job_id}-{}", std::process::id());
        let holder = cgroup::create(&name).unwrap_or_else(|| Holder::Marked(Marked::new(&name)));
        Ok(Self { job_id, name, boot_id: process::boot_id()?, holder })
    }

    /// Whether its processes can still be there.
    pub fn is_of_this_boot(&self) -> bool {
        process::boot_id().is_ok_and(|boot| boot == self.boot_id)
    }

    /// The file a process writes itself into to join, if there is one.
    pub fn door(&self) -> Option<PathBuf> {
        match &self.holder {
            Holder::CgroupV2 { path } | Holder::CgroupV1 { path } => Some(path.join("cgroup.procs")),
            Holder::Marked(_) => None,
        }
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
        match &self.holder {
            Holder::CgroupV2 { path } | Holder::CgroupV1 { path } => cgroup::remove(path),
            Holder::Marked(_) => Ok(()),
        }
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

/// What the host offers, found out by trying.
pub fn support() -> CgroupSupport {
    let name = format!("dormouse-probe-{}", std::process::id());
    match cgroup::create(&name) {
        Some(Holder::CgroupV2 { path }) => {
            cgroup::remove(&path).map_or(CgroupSupport::None, |()| CgroupSupport::V2)
        }
        Some(Holder::CgroupV1 { path }) => {
            cgroup::remove(&path).map_or(CgroupSupport::None, |()| CgroupSupport::V1)
        }
        Some(Holder::Marked(_)) | None => CgroupSupport::None,
    }
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
