//! Whether a job may wake the environment it names. Decided before the instance is touched.
//!
//! A refusal is immediate and never retried, and never silently a fresh environment: somebody asked for *this* one.

use jiff::Timestamp;

use crate::api::key::{EnvironmentKey, KeyError};
use crate::api::suspended_environment::Phase;
use crate::api::{JobLease, SuspendedEnvironment};

/// The pool a key must belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolIdentity {
    /// GitLab's id of the pool's runner.
    pub runner_id: u64,
    /// The pool's system id.
    pub system_id: String,
    /// The pool's uid.
    pub uid: String,
}

/// The job that wants to resume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumer {
    /// Uid of its lease.
    pub lease_uid: String,
    /// Its project.
    pub project_id: u64,
    /// Whether its ref is protected.
    pub protected: bool,
}

/// Why a job may not wake an environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a key.
    #[error("the environment key cannot be read: {0}")]
    Grammar(#[from] KeyError),
    /// Another runner's key.
    #[error(
        "the environment key was not issued by this runner: it names runner {named}, this is runner {own}"
    )]
    ForeignRunner {
        /// Runner id in the key.
        named: u64,
        /// Runner id of the pool.
        own: u64,
    },
    /// Another machine's key.
    #[error("the environment key was not issued by this runner manager: its system id is not {own}")]
    ForeignSystem {
        /// System id of the pool.
        own: String,
    },
    /// No such environment.
    #[error("the environment does not exist: it was released, it expired, or it never was")]
    Unknown,
    /// It came to the end of its TTL.
    #[error("the environment expired at {at}")]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// It is being given back.
    #[error("the environment is being released")]
    Releasing,
    /// Its instance or workspace is gone.
    #[error("the environment is lost: its instance or its workspace is gone")]
    Lost,
    /// It belongs to another project.
    #[error(
        "the environment belongs to another project; only jobs of the project that suspended it may resume it"
    )]
    ForeignProject,
    /// It comes from a protected ref.
    #[error("the environment comes from a protected ref; only jobs of protected refs may resume it")]
    Unprotected,
    /// A job uses it.
    #[error("the environment is in use by another job")]
    InUse,
    /// The host has no record of it: the object was made by hand, or the host lost its state.
    #[error(
        "the instance has no record of the environment, or its record names another project or workspace"
    )]
    UnknownToHost,
    /// The switch is off.
    #[error(
        "suspension is switched off: set FF_SUSPENDABLE_ENVIRONMENTS to true in the job's variables, or \
         spec.suspension.mode of the pool"
    )]
    SwitchedOff,
}

impl Refusal {
    /// A stable reason for Events and conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Grammar(_) => "MalformedKey",
            Self::ForeignRunner { .. } => "ForeignRunner",
            Self::ForeignSystem { .. } => "ForeignSystemId",
            Self::Unknown => "UnknownEnvironment",
            Self::Expired { .. } => "EnvironmentExpired",
            Self::Releasing => "EnvironmentReleasing",
            Self::Lost => "EnvironmentLost",
            Self::ForeignProject => "ForeignProject",
            Self::Unprotected => "UnprotectedRef",
            Self::InUse => "EnvironmentInUse",
            Self::UnknownToHost => "UnknownToHost",
            Self::SwitchedOff => "SuspensionDisabled",
        }
    }
}

/// What follows for a job that names an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be bound.
    Bind,
    /// It is bound to this job already: go on.
    Bound,
    /// The job that slept it has not quite ended yet, or another one has named it and not begun: look again.
    Wait,
    /// No.
    Refuse(Refusal),
}

/// Reads a key and checks that it is this pool's.
///
/// # Errors
/// When it is not.
pub fn key(text: &str, pool: &PoolIdentity) -> Result<EnvironmentKey, Refusal> {
    let key: EnvironmentKey = text.parse()?;
    if key.runner_id != pool.runner_id {
        return Err(Refusal::ForeignRunner { named: key.runner_id, own: pool.runner_id });
    }
    if key.system_id != pool.system_id {
        return Err(Refusal::ForeignSystem { own: pool.system_id.clone() });
    }
    Ok(key)
}

/// Whether a job may wake the environment that was found, given the other open leases of the pool.
pub fn environment(
    found: Option<&SuspendedEnvironment>,
    open_leases: &[&JobLease],
    pool: &PoolIdentity,
    job: &Resumer,
    now: Timestamp,
) -> Verdict {
    let Some(found) = found.filter(|found| found.spec.pool_uid == pool.uid) else {
        return Verdict::Refuse(Refusal::Unknown);
    };
    if found.bound_lease().is_some_and(|bound| bound.uid == job.lease_uid) {
        return Verdict::Bound;
    }
    // Whose it is comes first: a stranger learns nothing else about it.
    if found.spec.origin.project_id != job.project_id {
        return Verdict::Refuse(Refusal::ForeignProject);
    }
    if found.spec.origin.protected && !job.protected {
        return Verdict::Refuse(Refusal::Unprotected);
    }
    if found.metadata.deletion_timestamp.is_some() {
        return Verdict::Refuse(Refusal::Releasing);
    }
    if found.expires_at() <= now {
        return Verdict::Refuse(Refusal::Expired { at: found.expires_at() });
    }
    match found.phase() {
        Phase::Lost => Verdict::Refuse(Refusal::Lost),
        Phase::Releasing => Verdict::Refuse(Refusal::Releasing),
        Phase::Suspending => Verdict::Wait,
        Phase::InUse => Verdict::Refuse(Refusal::InUse),
        // Only a job that is in it keeps others out. GitLab gives a job up that waits for too long and sends it again,
        // and the first one's lease does not know yet.
        Phase::Resuming => Verdict::Wait,
        Phase::Suspended | Phase::Demoting | Phase::Promoting if found.bound_lease().is_some() => {
            Verdict::Wait
        }
        // A change of tier that is under way is turned round by the resume.
        Phase::Suspended | Phase::Demoting | Phase::Promoting => {
            let is_ending = open_leases.iter().any(|lease| {
                lease.metadata.uid.as_deref() != Some(&job.lease_uid)
                    && lease.spec.environment_id == found.spec.environment_id
                    && lease.place().is_some()
            });
            if is_ending { Verdict::Wait } else { Verdict::Bind }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::core::ObjectMeta;

    use super::*;
    use crate::api::job_lease::{JobLeaseSpec, JobLeaseStatus};
    use crate::api::suspended_environment::{
        BoundLease, Origin, ScriptOutcome, SuspendedEnvironmentSpec, SuspendedEnvironmentStatus,
    };

    const ENVIRONMENT: &str = "abcdefghijklmnopqrst";

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn pool() -> PoolIdentity {
        PoolIdentity { runner_id: 34, system_id: "s_0123456789ab".into(), uid: "pool-uid".into() }
    }

    fn job() -> Resumer {
        Resumer { lease_uid: "lease-2".into(), project_id: 7, protected: false }
    }

    fn sleeping() -> SuspendedEnvironment {
        SuspendedEnvironment {
            metadata: ObjectMeta { name: Some("p-e".into()), ..ObjectMeta::default() },
            spec: SuspendedEnvironmentSpec {
                pool: "p".into(),
                pool_uid: "pool-uid".into(),
                environment_id: ENVIRONMENT.into(),
                expires_at: Time(Timestamp::from_second(2_000_000).unwrap()),
                not_after: Time(Timestamp::from_second(3_000_000).unwrap()),
                workspace_path: "/builds/0/g/p".into(),
                desired_tier: None,
                origin: Origin {
                    project_id: 7,
                    project_path: "g/p".into(),
                    ref_name: "main".into(),
                    protected: false,
                    commit: "c".into(),
                    job_id: 1,
                    job_name: "j".into(),
                    user_id: 1,
                    outcome: ScriptOutcome::Failed,
                    lease: "p-1".into(),
                    lease_uid: "lease-1".into(),
                    instance: "a".into(),
                    slot: 0,
                },
            },
            status: Some(SuspendedEnvironmentStatus {
                phase: Some(Phase::Suspended),
                ..SuspendedEnvironmentStatus::default()
            }),
        }
    }

    fn lease(uid: &str) -> JobLease {
        JobLease {
            metadata: ObjectMeta { uid: Some(uid.into()), ..ObjectMeta::default() },
            spec: JobLeaseSpec {
                pool: "p".into(),
                pool_uid: "pool-uid".into(),
                job_id: 1,
                job_name: "j".into(),
                project_id: 7,
                project_path: "g/p".into(),
                ref_name: "main".into(),
                environment_id: ENVIRONMENT.into(),
                resume_from: None,
                timeout_seconds: 60,
                accepted_at: Time(now()),
                payload_parts: 1,
            },
            status: Some(JobLeaseStatus {
                instance: Some("a".into()),
                slot: Some(0),
                ..JobLeaseStatus::default()
            }),
        }
    }

    fn verdict(found: &SuspendedEnvironment) -> Verdict {
        environment(Some(found), &[], &pool(), &job(), now())
    }

    #[test]
    fn a_sleeping_environment_of_the_same_project_may_be_bound() {
        assert_eq!(verdict(&sleeping()), Verdict::Bind);
    }

    #[test]
    fn a_job_that_was_bound_before_a_crash_goes_on() {
        let mut found = sleeping();
        let status = found.status.as_mut().unwrap();
        status.phase = Some(Phase::Resuming);
        status.bound_lease = Some(BoundLease { name: "p-2".into(), uid: "lease-2".into() });
        assert_eq!(verdict(&found), Verdict::Bound);
    }

    #[test]
    fn each_fence_refuses_with_its_own_reason() {
        let mut foreign = sleeping();
        foreign.spec.origin.project_id = 8;
        let mut protected = sleeping();
        protected.spec.origin.protected = true;
        let mut expired = sleeping();
        expired.spec.expires_at = Time(now());
        let mut in_use = sleeping();
        in_use.status.as_mut().unwrap().phase = Some(Phase::InUse);
        let mut lost = sleeping();
        lost.status.as_mut().unwrap().phase = Some(Phase::Lost);
        let mut other_pool = sleeping();
        other_pool.spec.pool_uid = "other".into();
        for (found, refusal) in [
            (foreign, Refusal::ForeignProject),
            (protected, Refusal::Unprotected),
            (expired, Refusal::Expired { at: now() }),
            (in_use, Refusal::InUse),
            (lost, Refusal::Lost),
            (other_pool, Refusal::Unknown),
        ] {
            assert_eq!(verdict(&found), Verdict::Refuse(refusal));
        }
        assert_eq!(environment(None, &[], &pool(), &job(), now()), Verdict::Refuse(Refusal::Unknown));
    }

    #[test]
    fn a_job_waits_for_the_one_that_has_not_quite_ended() {
        let ending = lease("lease-1");
        let verdict = environment(Some(&sleeping()), &[&ending], &pool(), &job(), now());
        assert_eq!(verdict, Verdict::Wait);
    }

    #[test]
    fn a_job_waits_for_another_that_has_not_begun_and_is_refused_once_it_has() {
        let mut found = sleeping();
        let status = found.status.as_mut().unwrap();
        status.bound_lease = Some(BoundLease { name: "p-3".into(), uid: "lease-3".into() });
        for phase in [Phase::Resuming, Phase::Promoting] {
            found.status.as_mut().unwrap().phase = Some(phase);
            assert_eq!(verdict(&found), Verdict::Wait);
        }
        found.status.as_mut().unwrap().phase = Some(Phase::InUse);
        assert_eq!(verdict(&found), Verdict::Refuse(Refusal::InUse));
    }

    #[test]
    fn a_key_of_another_runner_or_machine_is_refused() {
        let own = format!("34/s_0123456789ab/acquisition-key={ENVIRONMENT}");
        assert!(key(&own, &pool()).is_ok());
        let runner = format!("35/s_0123456789ab/acquisition-key={ENVIRONMENT}");
        assert!(matches!(key(&runner, &pool()), Err(Refusal::ForeignRunner { named: 35, own: 34 })));
        let system = format!("34/s_ba9876543210/acquisition-key={ENVIRONMENT}");
        assert!(matches!(key(&system, &pool()), Err(Refusal::ForeignSystem { .. })));
    }
}
