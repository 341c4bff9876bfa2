//! Condition types and reasons, and how a list of conditions is kept.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// `Ready`: the summary that GitOps tools read.
pub const READY: &str = "Ready";
/// `Stalled`: waiting will not help; present only when true.
pub const STALLED: &str = "Stalled";

/// RunnerPool: the runner token is accepted by GitLab.
pub const CREDENTIALS_VALID: &str = "CredentialsValid";
/// RunnerPool: its runner is registered at GitLab as the spec says; there only with `gitlab.registration`.
pub const REGISTERED: &str = "Registered";
/// RunnerPool: GitLab is being asked for jobs.
pub const POLLING: &str = "Polling";
/// RunnerPool: at least one host answers.
pub const PROVIDER_REACHABLE: &str = "ProviderReachable";
/// RunnerPool: every host's key is the pinned or recorded one.
pub const HOST_KEYS_TRUSTED: &str = "HostKeysTrusted";
/// RunnerPool: a job could be placed now.
pub const CAPACITY_AVAILABLE: &str = "CapacityAvailable";
/// RunnerPool: each host can isolate slots, freeze and kill process trees as the pool asks.
pub const HOSTS_CAPABLE: &str = "HostsCapable";
/// RunnerPool: no lease is open and no new job is taken.
pub const DRAINED: &str = "Drained";

/// RunnerPool: no slot waits for its host to say that nothing of its last job is left.
pub const SLOTS_CLEAN: &str = "SlotsClean";

/// RunnerPool: caches of jobs can be kept where the pool says.
pub const CACHE_READY: &str = "CacheReady";

/// RunnerPool: the cloud answers and lets us do what is needed.
pub const CLOUD_READY: &str = "CloudReady";
/// RunnerPool: the group is set so that no job and no environment is taken from under us.
pub const GROUP_SUITABLE: &str = "GroupSuitable";
/// RunnerPool: instances come when they are needed.
pub const SCALING: &str = "Scaling";

/// SuspendedEnvironment: frozen and recorded on its host.
pub const SUSPENDED: &str = "Suspended";
/// SuspendedEnvironment in a cloud: it is at the tier it should be at.
pub const TIER_REACHED: &str = "TierReached";
/// SuspendedEnvironment: a job uses it.
pub const BOUND: &str = "Bound";
/// SuspendedEnvironment: what the object says and what the host says agree.
pub const VERIFIED: &str = "Verified";
/// SuspendedEnvironment: its place on the host has been given back.
pub const RELEASED: &str = "Released";

/// JobLease: the job is recorded, so that no death of the operator loses it.
pub const ACCEPTED: &str = "Accepted";
/// JobLease: a slot of an instance is assigned to it.
pub const INSTANCE_READY: &str = "InstanceReady";
/// JobLease: the supervisor runs the job.
pub const STARTED: &str = "Started";
/// JobLease: the job's result is on the host.
pub const FINISHED: &str = "Finished";
/// JobLease: GitLab has the result.
pub const REPORTED: &str = "Reported";

/// JobLease: nothing of the job is left on its slot; there only if that was in doubt at the job's end.
pub const SLOT_CLEAN: &str = "SlotClean";

/// The state of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It cannot be said now.
    Unknown,
}

impl Status {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What one look at the world says about one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Condition type.
    pub type_: &'static str,
    /// Its state.
    pub status: Status,
    /// A reason in CamelCase.
    pub reason: &'static str,
    /// One sentence for people. Never a secret.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(
        type_: &'static str,
        status: impl Into<Status>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { type_, status: status.into(), reason, message: message.into() }
    }
}

/// Merges findings into a list of conditions: the transition time moves only when the status does, and nothing
/// moves when nothing changed, so that a status write that says the same is not made at all.
pub fn merge(conditions: &mut Vec<Condition>, findings: &[Finding], generation: Option<i64>, now: Timestamp) {
    for finding in findings {
        let status = finding.status.as_str();
        match conditions.iter_mut().find(|condition| condition.type_ == finding.type_) {
            Some(condition) => {
                if condition.status != status {
                    condition.last_transition_time = Time(now);
                }
                condition.status = status.to_owned();
                condition.reason = finding.reason.to_owned();
                condition.message = finding.message.clone();
                condition.observed_generation = generation;
            }
            None => conditions.push(Condition {
                type_: finding.type_.to_owned(),
                status: status.to_owned(),
                reason: finding.reason.to_owned(),
                message: finding.message.clone(),
                observed_generation: generation,
                last_transition_time: Time(now),
            }),
        }
    }
}

/// Whether a condition of that type is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        merge(&mut conditions, &[Finding::new(READY, true, "Fine", "")], Some(1), at(1));
        merge(&mut conditions, &[Finding::new(READY, true, "StillFine", "x")], Some(2), at(2));
        assert_eq!(conditions[0].last_transition_time, Time(at(1)));
        assert_eq!(conditions[0].reason, "StillFine");
        merge(&mut conditions, &[Finding::new(READY, false, "Gone", "x")], Some(2), at(3));
        assert_eq!(conditions[0].last_transition_time, Time(at(3)));
        assert_eq!(conditions.len(), 1);
    }
}
