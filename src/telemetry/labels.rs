//! Labels of metrics, and the enums that the values of some come from.

use prometheus_client::encoding::EncodeLabelSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PoolLabel {
    pub(super) runner_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PoolOutcome {
    pub(super) runner_name: String,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PoolTier {
    pub(super) runner_name: String,
    pub(super) tier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PoolMove {
    pub(super) runner_name: String,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PoolInstances {
    pub(super) runner_name: String,
    pub(super) state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PoolGuard {
    pub(super) runner_name: String,
    pub(super) by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VerbLabels {
    pub(super) kind: &'static str,
    pub(super) verb: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CloudCallLabels {
    pub(super) service: &'static str,
    pub(super) action: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ServiceLabel {
    pub(super) service: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    pub(super) outcome: &'static str,
}

/// What happened to an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvironmentOutcome {
    /// Put to sleep.
    Suspended,
    /// Could not be put to sleep.
    SuspendFailed,
    /// Woken by a job.
    Resumed,
    /// A job was not allowed to wake it.
    ResumeRefused,
    /// Came to the end of its TTL.
    Expired,
    /// Given back.
    Released,
    /// Given back by force, leaving its host as it is.
    ForceReleased,
    /// Gone with what held it.
    Lost,
}

impl EnvironmentOutcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::SuspendFailed => "suspend_failed",
            Self::Resumed => "resumed",
            Self::ResumeRefused => "resume_refused",
            Self::Expired => "expired",
            Self::Released => "released",
            Self::ForceReleased => "force_released",
            Self::Lost => "lost",
        }
    }
}

/// What happened to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseOutcome {
    /// Taken over from an earlier holder.
    Recovered,
    /// Handed out by GitLab but lost before the lease was durable.
    LostBeforeDurable,
    /// GitLab did not want the job any more.
    Gone,
    /// GitLab refused the result.
    ReportRefused,
}

impl LeaseOutcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::LostBeforeDurable => "lost_before_durable",
            Self::Gone => "gone",
            Self::ReportRefused => "report_refused",
        }
    }
}

/// What refuses a holder whose epoch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochGuard {
    /// The pool's Lease names another replica.
    Lease,
    /// A supervisor has seen a newer holder.
    Host,
    /// An object was written by a newer holder.
    Object,
}

impl EpochGuard {
    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Host => "host",
            Self::Object => "object",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BoundLabel {
    pub(super) bound: &'static str,
}
