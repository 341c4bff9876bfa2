//! The order to run one job, as the operator hands it to `start` on standard input.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::gitlab::wire::JobPayload;

/// Everything the supervisor needs to run a job with nobody attached. Lives in the supervisor's memory only.
#[derive(Clone, Serialize, Deserialize)]
pub struct JobOrder {
    /// [`super::FORMAT`] of the sender.
    pub format: u32,
    /// Environment id: 20 base32 characters.
    pub environment: String,
    /// Uid of the pool that orders.
    pub pool_uid: String,
    /// Epoch of the pool's holder; an older one than the host has seen is refused.
    pub epoch: u64,
    /// Slot index on this host.
    pub slot: u32,
    /// Folder of all workspaces; the workspace is `<builds_dir>/<slot>/<group>/<project>`.
    pub builds_dir: String,
    /// How neighbours are kept apart.
    pub isolation: Isolation,
    /// Who runs the job, for the log's first lines.
    pub runner: RunnerFacts,
    /// GitLab's job.
    pub job: JobPayload,
    /// When the environment is put to sleep at the end of this job.
    pub suspend: SuspendPlan,
    /// The environment to wake, if this job resumes one.
    pub resume: Option<ResumeOrder>,
    /// Lines for the log before the first stage, such as a suspend that the limits will refuse.
    pub notices: Vec<String>,
    /// Bytes of log kept; 0 means [`DEFAULT_LOG_LIMIT`].
    pub log_limit_bytes: u64,
    /// How many processes and threads the job may have at a time; 0 means [`DEFAULT_PIDS_LIMIT`].
    #[serde(default)]
    pub pids_limit: u32,
}

impl JobOrder {
    /// How many processes and threads the job may have at a time.
    pub fn pids_limit(&self) -> u32 {
        if self.pids_limit == 0 { DEFAULT_PIDS_LIMIT } else { self.pids_limit }
    }
}

impl fmt::Debug for JobOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobOrder")
            .field("environment", &self.environment)
            .field("slot", &self.slot)
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

/// Bytes of log kept when the order names no limit: GitLab's own default of 4 MiB.
pub const DEFAULT_LOG_LIMIT: u64 = 4 * 1024 * 1024;

/// Processes and threads of a job when the order names no limit: more than builds use, and far fewer than make a host
/// unreachable.
pub const DEFAULT_PIDS_LIMIT: u32 = 4096;

/// How the slots of one host are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// One slot: nothing to keep apart; the job runs as the connection's user.
    Single,
    /// Several slots as one user: neighbours can see each other.
    Shared,
    /// A user per slot, state owned by root.
    PerSlotUser,
}

/// Who runs the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerFacts {
    /// The pool's name.
    pub name: String,
    /// First characters of the runner token after its prefix.
    pub short_token: String,
    /// The pool's system id.
    pub system_id: String,
    /// The operator's version.
    pub version: String,
    /// The GitLab URL the pool is configured with; `CI_SERVER_URL` comes from the job itself.
    pub gitlab_url: String,
    /// PEM certificates to trust for git over HTTPS, besides the host's own.
    pub ca_bundle: Option<String>,
}

/// Which ends of the script put the environment to sleep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendPlan {
    /// Suspend when the script succeeded.
    pub on_success: bool,
    /// Suspend when the script failed.
    pub on_failure: bool,
}

/// The environment a job wakes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeOrder {
    /// The key, for the log line.
    pub key: String,
    /// The project the object names; the host's own record must name it too.
    pub project_id: u64,
    /// The workspace path the object names; the host's own record must name it too.
    pub workspace: String,
}
