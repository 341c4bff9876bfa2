//! The records the supervisor keeps on the host, one JSON file each, replaced by rename.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::order::{Isolation, SuspendPlan};

/// `claim.json`: which pool owns the host, and the highest epoch seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// [`super::FORMAT`] of the writer.
    pub format: u32,
    /// Uid of the pool.
    pub pool_uid: String,
    /// `namespace/name` of the pool, for people.
    pub pool: String,
    /// Highest epoch seen from that pool.
    pub epoch: u64,
}

/// `environment.json`: one environment on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentRecord {
    /// [`super::FORMAT`] of the writer.
    pub format: u32,
    /// Environment id.
    pub environment: String,
    /// Uid of the pool it belongs to.
    pub pool_uid: String,
    /// Slot index.
    pub slot: u32,
    /// How neighbours are kept apart.
    pub isolation: Isolation,
    /// The project that owns it: the fence of a resume.
    pub project_id: u64,
    /// `group/project`.
    pub project_path: String,
    /// Absolute path of the workspace.
    pub workspace: String,
    /// What the environment is doing.
    pub phase: EnvironmentPhase,
    /// The job that used it last or uses it now.
    pub job_id: u64,
    /// How many jobs have resumed it.
    pub resumes: u32,
    /// The saved context, once it has been suspended.
    pub context: Option<Context>,
    /// Boot id of the host at the last suspend; another one now means its processes are gone.
    pub boot_id: String,
    /// When the phase was entered, by the host's clock.
    pub since: Timestamp,
}

/// What an environment on a host is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvironmentPhase {
    /// A job uses it. Entered by `start`; left by `suspend` or `release`.
    Active,
    /// It sleeps, processes frozen. Entered by `suspend`; left by a resuming `start` or by `release`.
    Suspended,
    /// It is being removed. Entered by `release`; the folder's end is its end.
    Releasing,
}

/// What a resumed job gets back besides files and processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The script's last working directory.
    pub cwd: String,
    /// How many exported variables were kept (the values are in the context folder, not here).
    pub variables: u32,
    /// Processes alive in the environment when it was frozen.
    pub processes: u32,
    /// How they are held still.
    pub freezer: Freezer,
    /// Processes that were alive then and were ended since, because the environment's volume left its host.
    #[serde(default)]
    pub processes_lost: u32,
    /// Rounded size of the workspace in bytes, when it was cheap to learn.
    pub workspace_bytes: Option<u64>,
}

impl Context {
    /// The same once its processes are gone.
    pub fn without_processes(self) -> Self {
        Self {
            processes: 0,
            freezer: Freezer::Nothing,
            processes_lost: self.processes_lost.saturating_add(self.processes),
            ..self
        }
    }
}

/// How processes of a sleeping environment are held still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Freezer {
    /// There were none to hold.
    #[default]
    Nothing,
    /// The cgroup v2 freezer.
    CgroupV2,
    /// The cgroup v1 freezer.
    CgroupV1,
    /// SIGSTOP to each process of the job's session.
    Signals,
}

/// `job.json`: progress and result of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// [`super::FORMAT`] of the writer.
    pub format: u32,
    /// GitLab's job id.
    pub job_id: u64,
    /// Environment id.
    pub environment: String,
    /// Progress.
    pub state: JobState,
    /// The stage running now, by GitLab's name.
    pub stage: Option<String>,
    /// Which ends put the environment to sleep.
    pub suspend: SuspendPlan,
    /// Whether lines of this log carry timestamps; appended lines must look alike.
    pub timestamps: bool,
    /// When the job was accepted on the host, by the host's clock.
    pub started_at: Timestamp,
    /// When the last stage ended.
    pub finished_at: Option<Timestamp>,
    /// How it ended; present exactly when `state` is `Finished`.
    pub result: Option<JobResult>,
    /// Whether the log is complete: nothing is appended after this.
    pub sealed: bool,
    /// The running supervisor, to tell a live job from a lost one.
    pub runner: ProcessIdentity,
}

/// Progress of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Accepted; no stage has begun.
    Starting,
    /// A stage runs.
    Running,
    /// All stages and the cleanup are done; `result` says how.
    Finished,
}

/// A process that cannot be mistaken for another one: pids are reused, start times and boots are not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot, from `/proc/<pid>/stat`.
    pub start_ticks: u64,
    /// The kernel's boot id.
    pub boot_id: String,
    /// Version of the supervisor that runs the job.
    pub version: String,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    /// Success or the reason it failed.
    pub outcome: Outcome,
    /// Whether the user's script itself came to an end, and how: what suspend triggers look at.
    pub script: ScriptEnd,
    /// The exit code GitLab is told; 0 on success.
    pub exit_code: i32,
    /// One sentence for the log's last line and for people, such as `exit code 1`. Never a secret.
    pub message: String,
    /// Whether it follows a trigger that the environment is put to sleep now.
    pub suspend_due: bool,
}

/// Success or why not, before GitLab's list of reasons narrows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every stage succeeded.
    Success,
    /// The user's script failed.
    ScriptFailure,
    /// Something of ours or of the host failed.
    SystemFailure,
    /// The job or a dependency of it is configured in a way that cannot run here.
    ConfigurationError,
    /// The job ran out of time.
    Timeout,
    /// Somebody canceled it.
    Canceled,
}

/// How the user's script ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScriptEnd {
    /// It never began, or was cut short by a cancel, a time-out or an accident.
    NotEnded,
    /// It ended with exit code 0.
    Success,
    /// It ended with another exit code.
    Failure,
}

impl SuspendPlan {
    /// Whether a script's end puts the environment to sleep.
    pub fn is_due(self, script: ScriptEnd) -> bool {
        match script {
            ScriptEnd::NotEnded => false,
            ScriptEnd::Success => self.on_success,
            ScriptEnd::Failure => self.on_failure,
        }
    }
}
