//! The supervisor's verbs: their names on the command line and what each answers.
//!
//! A verb prints one [`Answer`] as a JSON line and exits 0, also when it refuses; any other exit means that the
//! supervisor could not be run at all. `start` and `attach` print frames instead (see [`super::frame`]), the first
//! of which is the answer.
//!
//! ```text
//! hello   --pool NAMESPACE/NAME --pool-uid UID --epoch N      -> Hello      claims the host, raises the epoch
//! unclaim --pool-uid UID --epoch N                            -> Done       gives the host back
//! list    --pool-uid UID --epoch N                            -> List
//! start   [--from N]          (job order on stdin)            -> frames     twice is once
//! attach  --environment E --job J --from N --epoch N          -> frames
//! status  --environment E --job J                             -> Job
//! append  --environment E --job J --once ID --epoch N  (text on stdin, as JSON) -> Log
//! seal    --environment E --job J --epoch N     (last text on stdin, as JSON)   -> Log
//! cancel  --environment E --job J --epoch N [--graceful]      -> Done
//! interrupt --environment E --job J --epoch N  (an Interruption on stdin, as JSON) -> Done
//! suspend --environment E --job J --epoch N                   -> Environment
//! release --environment E --epoch N [--force]                 -> Done       removes workspace, processes, state
//! stat                                                        -> Stat
//!
//! volume-mount   --slot N --volume ID --builds-dir DIR --epoch N [--device PATH] [--isolation ISOLATION]
//!                                                             -> Volume      finds, formats if blank, mounts, grows
//! volume-unmount --slot N --builds-dir DIR --epoch N          -> Unmounted   written out, ready to be detached
//! export  --environment E --epoch N                           -> Exported    what sleeps, without its workspace
//! import  --slot N --builds-dir DIR --epoch N  (the export on stdin) -> Environment  twice is once
//! leave   --environment E --epoch N                           -> Done        forgets it, workspace untouched
//! quiesce --epoch N                                           -> Done        all is written out before a stop
//! notices --epoch N                                           -> Notices     what the cloud is about to do
//! ```
//!
//! An environment leaves its host by `export`, `volume-unmount`, `leave`, and comes to another one by `volume-mount`,
//! `import`. `hello --metadata` and `notices` ask the instance's metadata service; no other verb talks to anybody.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::export::EnvironmentExport;
use super::record::{Claim, EnvironmentRecord, JobRecord};

/// What a verb answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// To `hello`.
    Hello(Box<Hello>),
    /// To `list`.
    List(Vec<Listed>),
    /// To `status`, and the first frame of `start` and `attach`.
    Job(Box<JobRecord>),
    /// To `suspend` and `import`.
    Environment(Box<EnvironmentRecord>),
    /// To `append` and `seal`.
    Log(LogEnd),
    /// To `cancel`, `interrupt`, `release`, `unclaim`, `leave`, `quiesce`.
    Done,
    /// To `stat`.
    Stat(Stat),
    /// To `volume-mount`.
    Volume(Volume),
    /// To `volume-unmount`.
    Unmounted(Unmounted),
    /// To `export`.
    Exported(Box<EnvironmentExport>),
    /// To `notices`.
    Notices(Notices),
    /// The verb did nothing; why is in the refusal.
    Refused(Refusal),
}

/// Who and what the host is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Highest protocol the supervisor speaks.
    pub protocol: u32,
    /// Formats of files it can read.
    pub formats: Vec<u32>,
    /// Its version.
    pub version: String,
    /// `uname -m`.
    pub machine: String,
    /// Host name.
    pub hostname: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// Whether it runs as root.
    pub root: bool,
    /// How processes can be frozen and killed as a tree.
    pub cgroup: CgroupSupport,
    /// Whether the number of a job's processes can be limited.
    #[serde(default)]
    pub counts_processes: bool,
    /// Programs a job needs that are missing, such as `git`.
    pub missing_programs: Vec<String>,
    /// The claim after this call.
    pub claim: Claim,
    /// How many jobs have been admitted on this host since its state folder was made, across reboots.
    #[serde(default)]
    pub jobs_started: u64,
    /// The workspace volumes that are mounted, by slot.
    #[serde(default)]
    pub mounts: Vec<MountedVolume>,
    /// What the cloud calls this instance, when its metadata service was asked and answered.
    #[serde(default)]
    pub instance_id: Option<String>,
    /// The last `quiesce` that no job has followed.
    #[serde(default)]
    pub quiesced: Option<Quiesced>,
}

/// A workspace volume that is mounted at its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedVolume {
    /// The slot.
    pub slot: u32,
    /// The cloud's id of the volume.
    pub volume: String,
    /// The block device it is here.
    pub device: String,
}

/// That everything was written out, for a stop to follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiesced {
    /// [`super::FORMAT`] of the writer.
    pub format: u32,
    /// The boot it was said in; another one now means that the host has been stopped since, the same one that it has
    /// not, or was hibernated.
    pub boot_id: String,
    /// When, by the host's clock.
    pub at: Timestamp,
}

/// What the host offers to hold a process tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupSupport {
    /// A writable cgroup v2 tree.
    V2,
    /// Writable cgroup v1 freezer and pids trees.
    V1,
    /// Sessions and signals only.
    None,
}

/// One environment with its last job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// The environment.
    pub environment: EnvironmentRecord,
    /// Its jobs that are still on disk, oldest first.
    pub jobs: Vec<JobStatus>,
}

/// A job's record with what only a look at the process table can add.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The record on disk.
    pub record: JobRecord,
    /// Whether the process that runs it is alive.
    pub alive: bool,
}

/// The end of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// Bytes in the log.
    pub length: u64,
    /// CRC-32 (IEEE) over all of them.
    pub crc32: u32,
}

/// Load and room of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stat {
    /// Free bytes where workspaces live.
    pub builds_free_bytes: u64,
    /// Free bytes where the state lives.
    pub state_free_bytes: u64,
    /// One-minute load average.
    pub load1: f64,
    /// Processors.
    pub cpus: u32,
    /// Share of CPU time stolen by the hypervisor since boot, 0 to 1.
    pub steal: f64,
    /// Seconds since boot.
    pub uptime_seconds: u64,
}

/// A workspace volume in its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Whether this call has made the file system: the volume was blank.
    pub filesystem_made: bool,
    /// Bytes the file system holds in all.
    pub size_bytes: u64,
    /// Bytes of them in use.
    pub used_bytes: u64,
    /// Why the file system is smaller than its volume, if it is and could not be grown; it can be used all the same.
    #[serde(default)]
    pub not_grown: Option<String>,
}

/// A workspace volume that is out of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmounted {
    /// How many processes of the environment that sleeps there had to be ended, because they used the volume.
    pub ended: u32,
}

/// What the cloud has announced about this instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notices {
    /// The end of a spot instance.
    pub spot: Option<SpotNotice>,
    /// Since when the cloud advises to move elsewhere.
    pub rebalance: Option<Timestamp>,
}

/// A spot instance is about to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpotNotice {
    /// What will be done to it.
    pub action: SpotAction,
    /// When.
    pub time: Timestamp,
}

/// What is done to a spot instance that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpotAction {
    /// It is ended, and its disks with it unless they are kept.
    Terminate,
    /// It is stopped.
    Stop,
    /// It is hibernated, at once: the time is no grace.
    Hibernate,
}

/// A job is ended because its instance is about to be taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interruption {
    /// One sentence for the log's last line and for people.
    pub message: String,
    /// Whether its workspace can leave the instance: an environment that is kept on failure is put to sleep then, and
    /// would only be lost otherwise.
    pub can_leave: bool,
}

/// Why a verb did nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of refusal, for the caller to act on.
    pub reason: RefusalReason,
    /// One sentence that names the value and the way out. Never a secret.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalReason {
    /// The caller's epoch is older than one the host has seen; `seen` is the host's.
    StaleEpoch {
        /// Highest epoch the host has seen.
        seen: u64,
    },
    /// Another pool owns the host.
    ClaimedByOther {
        /// `namespace/name` of the owner.
        pool: String,
        /// Uid of the owner.
        pool_uid: String,
    },
    /// No such environment or job on this host.
    NotFound,
    /// The environment belongs to another project than the order says.
    ProjectMismatch,
    /// The workspace, its marker or its mount is not the one that was put to sleep.
    WorkspaceMismatch,
    /// A job uses the environment.
    InUse,
    /// The slot holds another environment.
    SlotTaken,
    /// The log is sealed.
    Sealed,
    /// The order cannot be read or asks for something this host cannot do.
    Unsupported,
    /// The host failed: disk full, permission, a missing program.
    HostFailure,
}
