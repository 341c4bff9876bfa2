//! What the stand-in knows of one job, as tests see it.
//!
//! Owns the job's states and the histories of calls made for it. Holds no behaviour of the
//! protocol: who may move a job from state to state is decided where the call is handled.

use std::fmt;

use jiff::Timestamp;

use super::runner::RunnerId;

/// The number GitLab gives a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a job stands on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// In the queue; left when a runner asks for it or it is canceled.
    Pending,
    /// Handed out under two-phase commit; left by `running`, by cancel or by the lease running out.
    Acknowledging,
    /// Accepted by a runner; left by a final update or by cancel.
    Running,
    /// Canceled while a runner that can cancel gracefully works on it; left by its final update.
    Canceling,
    /// Ended well. Final.
    Success,
    /// Ended badly, by the runner's word or by the server's. Final.
    Failed,
    /// Canceled. Final.
    Canceled,
}

impl JobState {
    /// The word GitLab uses for the state, as in `Job-Status`.
    pub fn status(self) -> &'static str {
        match self {
            Self::Pending | Self::Acknowledging => "pending",
            Self::Running => "running",
            Self::Canceling => "canceling",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// Nothing moves the job any more.
    pub fn is_final(self) -> bool {
        match self {
            Self::Success | Self::Failed | Self::Canceled => true,
            Self::Pending | Self::Acknowledging | Self::Running | Self::Canceling => false,
        }
    }

    /// A runner works on the job, so its token opens the log, the artifacts and the sources.
    pub fn is_worked_on(self) -> bool {
        match self {
            Self::Running | Self::Canceling => true,
            Self::Pending | Self::Acknowledging | Self::Success | Self::Failed | Self::Canceled => false,
        }
    }
}

/// One `PUT jobs/:id` and its answer.
#[derive(Clone, Debug)]
pub struct Put {
    /// When it arrived.
    pub at: Timestamp,
    /// The `state` it asked for.
    pub state: String,
    /// The `failure_reason` it carried.
    pub failure_reason: Option<String>,
    /// The `exit_code` it carried.
    pub exit_code: Option<i64>,
    /// The `runtime_environment_key` or, failing that, the `environment_key` it carried.
    pub environment_key: Option<String>,
    /// `output.checksum`.
    pub checksum: Option<String>,
    /// `output.bytesize`.
    pub bytesize: Option<u64>,
    /// The status that was answered.
    pub answer: u16,
}

/// One `PATCH jobs/:id/trace` and its answer.
#[derive(Clone, Debug)]
pub struct Patch {
    /// When it arrived.
    pub at: Timestamp,
    /// Offset of its first byte.
    pub first: u64,
    /// How many bytes it carried.
    pub len: u64,
    /// The status that was answered.
    pub answer: u16,
}

/// One call of git for the sources, made with the job's token.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// When it arrived.
    pub at: Timestamp,
    /// The project that was asked for.
    pub project: String,
    /// Path below the repository and query, for example `info/refs?service=git-upload-pack`.
    pub request: String,
}

/// One uploaded artifact.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The upload's query string.
    pub query: String,
    /// `artifact_type`.
    pub kind: String,
    /// The name of the file.
    pub file_name: String,
    /// The file.
    pub file: Vec<u8>,
    /// The multipart body as it came.
    pub body: Vec<u8>,
}

/// A job with everything that happened to it.
#[derive(Clone, Debug)]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// Path of its project.
    pub project: String,
    /// Its token.
    pub token: String,
    /// Where it stands.
    pub state: JobState,
    /// The log the server holds.
    pub log: Vec<u8>,
    /// Exit code of the accepted final update.
    pub exit_code: Option<i64>,
    /// Failure reason of the accepted final update, or the server's own.
    pub failure_reason: Option<String>,
    /// The key that was recorded with the final update.
    pub environment_key: Option<String>,
    /// The runner it was handed to.
    pub runner: Option<RunnerId>,
    /// The system id of the machine it was handed to.
    pub machine: Option<String>,
    /// Every update, in order.
    pub puts: Vec<Put>,
    /// Every log chunk, in order.
    pub patches: Vec<Patch>,
    /// Every call of git, in order.
    pub fetches: Vec<Fetch>,
    /// Every upload, in order.
    pub artifacts: Vec<Artifact>,
    /// When it came into the queue.
    pub enqueued_at: Timestamp,
    /// When it was handed out.
    pub picked_up_at: Option<Timestamp>,
    /// When it became running.
    pub running_at: Option<Timestamp>,
    /// When the first log byte was stored.
    pub first_byte_at: Option<Timestamp>,
    /// When it became final.
    pub finished_at: Option<Timestamp>,
    /// The job that GitLab queued in its place.
    pub retried_as: Option<JobId>,
    /// The job this one was queued in place of.
    pub retry_of: Option<JobId>,
}

impl JobView {
    /// The log as text; bytes that are not UTF-8 are replaced.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }

    /// Whether the log holds `needle`.
    pub fn log_contains(&self, needle: &str) -> bool {
        self.offset_of(needle).is_some()
    }

    /// When the first byte of `needle` was stored.
    pub fn arrived_at(&self, needle: &str) -> Option<Timestamp> {
        let offset = u64::try_from(self.offset_of(needle)?).ok()?;
        self.patches
            .iter()
            .filter(|patch| patch.answer == 202)
            .find(|patch| patch.first + patch.len > offset)
            .map(|patch| patch.at)
    }

    fn offset_of(&self, needle: &str) -> Option<usize> {
        if needle.is_empty() {
            return Some(0);
        }
        self.log.windows(needle.len()).position(|window| window == needle.as_bytes())
    }
}
