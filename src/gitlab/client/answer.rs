//! What GitLab's answers mean. Plain data: what to do about one is for whoever holds the conversation.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::SecretString;

use crate::gitlab::wire::JobPayload;

/// The answer to `POST runners/verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyAnswer {
    /// The token is a runner's.
    Valid {
        /// GitLab's id of the runner.
        runner_id: u64,
        /// When the token expires, if it does.
        expires_at: Option<Timestamp>,
    },
    /// GitLab does not accept the token.
    Invalid,
    /// GitLab could not be asked.
    Retry {
        /// What happened, for people.
        cause: String,
    },
}

/// A token that GitLab has issued.
#[derive(Clone)]
pub struct IssuedToken {
    /// The token.
    pub token: SecretString,
    /// When it expires, if it does.
    pub expires_at: Option<Timestamp>,
}

/// The answer to `POST runners/reset_authentication_token`.
pub enum ResetAnswer {
    /// The new token; the old one is dead.
    Issued(IssuedToken),
    /// GitLab does not accept the old token.
    Invalid,
    /// GitLab could not be asked, or its answer is lost: the old token may be dead.
    Retry {
        /// What happened, for people.
        cause: String,
    },
}

/// The answer to a removal at GitLab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemovalAnswer {
    /// It is gone, by this call or before.
    Gone,
    /// GitLab could not be asked.
    Retry {
        /// What happened, for people.
        cause: String,
    },
}

/// The answer to `POST jobs/request`.
#[derive(Debug)]
pub enum RequestAnswer {
    /// A job.
    Job {
        /// The payload as read.
        job: Box<JobPayload>,
        /// The payload as sent, to be kept.
        raw: Bytes,
    },
    /// A job that cannot be read; its id and token, where they can, so that it is failed and not left hanging.
    Unreadable {
        /// Job id and token.
        identity: Option<(u64, SecretString)>,
        /// What is wrong with it.
        cause: String,
    },
    /// No job now.
    NoJob,
    /// Another runner took it; ask again at once.
    Conflict,
    /// GitLab does not accept the token.
    InvalidToken,
    /// GitLab could not be asked.
    Retry {
        /// How long the server wants us to wait.
        after: Option<Duration>,
        /// What happened, for people.
        cause: String,
    },
}

/// What GitLab says of the job in passing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobStatus {
    /// Whether it should go on.
    pub wish: Wish,
    /// Whether somebody canceled it; otherwise GitLab may have ended it in another way.
    pub canceled: bool,
    /// The interval the server wants between log updates.
    pub interval: Option<Duration>,
}

/// Whether a job should go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    #[default]
    GoOn,
    /// Stop the script, run after_script, report.
    CancelGracefully,
    /// Stop at once, say nothing more.
    Abort,
}

/// The answer to `PUT jobs/:id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateAnswer {
    /// Done.
    Ok(JobStatus),
    /// Accepted; the log is still being stored.
    StoringLog {
        /// When to ask again.
        interval: Option<Duration>,
    },
    /// The log at GitLab is not the one claimed.
    LogInvalid,
    /// The job is not ours or not alive any more.
    Gone {
        /// Whether GitLab says that somebody canceled it.
        canceled: bool,
    },
    /// Another manager of this runner owns it.
    OwnedByOther,
    /// GitLab does not accept this state now.
    Refused,
    /// GitLab could not be asked.
    Retry {
        /// How long the server wants us to wait.
        after: Option<Duration>,
        /// What happened, for people.
        cause: String,
    },
}

/// The answer to `PATCH jobs/:id/trace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceAnswer {
    /// GitLab has this many bytes now.
    Accepted {
        /// Size of its log.
        size: u64,
        /// What else it says of the job.
        status: JobStatus,
    },
    /// The range does not continue its log, which has this many bytes.
    Mismatch {
        /// Size of its log.
        size: u64,
        /// What else it says of the job.
        status: JobStatus,
    },
    /// GitLab wants no more of this job.
    Abort {
        /// Whether GitLab says that somebody canceled it.
        canceled: bool,
    },
    /// GitLab does not find the job's log. That alone does not end the job: the next update says whether it is known.
    NotFound,
    /// GitLab could not be asked.
    Retry {
        /// How long the server wants us to wait.
        after: Option<Duration>,
        /// What happened, for people.
        cause: String,
    },
}
