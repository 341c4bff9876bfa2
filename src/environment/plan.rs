//! What is due for one environment: expire it, give it back, free it from a job that is gone, or nothing. Pure.

use jiff::Timestamp;

use crate::api::condition::{BOUND, Finding, READY, RELEASED, STALLED, SUSPENDED, Status, VERIFIED};
use crate::api::labels;
use crate::api::suspended_environment::{Phase, SuspendedEnvironment};

/// How the instance of an environment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Its supervisor answers.
    Reachable,
    /// It does not answer now. Laptops sleep: this is not a loss.
    Unreachable,
    /// It has not been heard of yet since the pool was taken over. Nothing new is said about what lies on it.
    Unknown,
    /// The pool has no such host any more.
    Removed,
    /// It is stopped, and started again when it is needed.
    Stopped,
    /// Its cloud has ended it.
    Gone,
    /// It is on none: a volume or a snapshot keeps it.
    None,
}

/// What the instance says about an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostWord {
    /// It was not asked, or not since the environment was put to sleep.
    NotAsked,
    /// It has it, asleep.
    Asleep,
    /// It has it, asleep, and was restarted since: the processes that were frozen are gone.
    Restarted,
    /// It has it, with the processes of a job that still count as running.
    Active,
    /// It has no record of it.
    Unknown,
}

/// All that is looked at.
#[derive(Debug, Clone)]
pub struct Observed<'a> {
    /// The object.
    pub environment: &'a SuspendedEnvironment,
    /// Whether the lease that made it or uses it is still open.
    pub lease_is_open: bool,
    /// Its instance.
    pub instance: InstanceState,
    /// What the instance says.
    pub word: HostWord,
    /// Now.
    pub now: Timestamp,
}

impl Observed<'_> {
    /// Whether all is known that the conditions speak of. A new holder knows nothing at first, and must not take back
    /// what stands there only to say it again a moment later.
    pub fn is_settled(&self) -> bool {
        match self.instance {
            InstanceState::Unknown => false,
            InstanceState::Reachable => self.word != HostWord::NotAsked,
            InstanceState::Unreachable
            | InstanceState::Removed
            | InstanceState::Stopped
            | InstanceState::Gone
            | InstanceState::None => true,
        }
    }
}

/// One step that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Its TTL is over: delete the object. Giving back follows from that.
    Expire,
    /// It was never finished being suspended, and its job is gone: delete the object.
    Abandon,
    /// Give its place on the instance back, then let the object go.
    Release,
    /// Let the object go and leave the instance as it is, as somebody asked.
    ForceRelease,
    /// The job that used it is gone without having let go of it: freeze it again and unbind it.
    Unbind,
    /// It sleeps, but its instance still has processes of its last job running: freeze it again.
    Refreeze,
}

/// What is due, what is to be said, and when to look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// At most one step; the next look finds the next.
    pub action: Option<Action>,
    /// The conditions.
    pub findings: Vec<Finding>,
    /// When something becomes due by time alone.
    pub look_again_at: Option<Timestamp>,
}

/// Decides what is due.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let environment = observed.environment;
    let deleting = environment.metadata.deletion_timestamp.is_some();
    let forced = environment.metadata.annotations.as_ref().is_some_and(|annotations| {
        annotations.get(labels::FORCE_RELEASE).is_some_and(|value| value == "true")
    });
    let expired = environment.expires_at() <= observed.now;
    let reachable = observed.instance == InstanceState::Reachable;
    // What its cloud keeps needs no host that answers.
    let in_cloud = match observed.instance {
        InstanceState::Stopped | InstanceState::Gone | InstanceState::None => true,
        InstanceState::Reachable
        | InstanceState::Unreachable
        | InstanceState::Unknown
        | InstanceState::Removed => false,
    };
    let action = match (deleting, observed.lease_is_open) {
        // Whatever is asked for, a job that uses the environment ends first.
        (_, true) => None,
        (true, false) if forced => Some(Action::ForceRelease),
        (true, false) if reachable || in_cloud => Some(Action::Release),
        (true, false) => None,
        (false, false) => match environment.phase() {
            _ if expired => Some(Action::Expire),
            Phase::Suspending if matches!(observed.word, HostWord::Asleep | HostWord::Restarted) => {
                Some(Action::Unbind)
            }
            Phase::Suspending if environment.is_half_adopted() => None,
            Phase::Suspending => Some(Action::Abandon),
            Phase::Resuming | Phase::InUse => Some(Action::Unbind),
            Phase::Suspended | Phase::Demoting | Phase::Promoting if environment.bound_lease().is_some() => {
                Some(Action::Unbind)
            }
            Phase::Suspended if observed.word == HostWord::Active && reachable => Some(Action::Refreeze),
            Phase::Suspended | Phase::Demoting | Phase::Promoting | Phase::Releasing | Phase::Lost => None,
        },
    };
    Plan {
        action,
        findings: findings(observed),
        look_again_at: (!deleting && !expired).then(|| environment.expires_at()),
    }
}

/// The conditions of an environment.
pub fn findings(observed: &Observed<'_>) -> Vec<Finding> {
    let environment = observed.environment;
    let instance = instance_name(environment);
    let mut findings = vec![
        ready(observed),
        match environment.phase() {
            Phase::Suspending => Finding::new(SUSPENDED, false, "Suspending", "it is being frozen"),
            Phase::Suspended => Finding::new(SUSPENDED, true, "Frozen", "workspace and processes are kept"),
            Phase::Demoting => {
                Finding::new(SUSPENDED, true, "Demoting", "it is being moved to a colder tier")
            }
            Phase::Promoting => {
                Finding::new(SUSPENDED, true, "Promoting", "it is being brought back to tier Hot")
            }
            Phase::Resuming | Phase::InUse => Finding::new(SUSPENDED, false, "InUse", "a job uses it"),
            Phase::Releasing => Finding::new(SUSPENDED, false, "Releasing", "it is being given back"),
            Phase::Lost => Finding::new(SUSPENDED, false, "Lost", "its instance or workspace is gone"),
        },
        match environment.bound_lease() {
            Some(lease) => Finding::new(BOUND, true, "BoundToJob", format!("lease {} uses it", lease.name)),
            None => Finding::new(BOUND, false, "NotBound", "no job uses it"),
        },
        match observed.word {
            HostWord::NotAsked => {
                Finding::new(VERIFIED, Status::Unknown, "NotAsked", "the instance has not been asked since")
            }
            HostWord::Asleep | HostWord::Restarted | HostWord::Active => {
                Finding::new(VERIFIED, true, "KnownToHost", format!("instance {instance} has its record"))
            }
            HostWord::Unknown => Finding::new(
                VERIFIED,
                false,
                "UnknownToHost",
                format!("instance {instance} has no record of it; it cannot be resumed"),
            ),
        },
        released(observed),
    ];
    let is_unknown = observed.word == HostWord::Unknown && observed.instance == InstanceState::Reachable;
    let is_moving = environment.status.as_ref().is_some_and(|status| status.moving.is_some());
    if is_unknown && !is_moving || environment.phase() == Phase::Lost {
        findings.push(Finding::new(STALLED, true, "CannotBeResumed", "delete it; waiting will not help"));
    }
    findings
}

/// The instance it is on, or was last on.
fn instance_name(environment: &SuspendedEnvironment) -> &str {
    environment.place().map_or(&environment.spec.origin.instance, |(instance, _)| instance)
}

fn ready(observed: &Observed<'_>) -> Finding {
    let environment = observed.environment;
    let instance = instance_name(environment);
    if environment.metadata.deletion_timestamp.is_some() {
        return Finding::new(READY, Status::Unknown, "Releasing", "it is being given back");
    }
    match (environment.phase(), observed.word, observed.instance) {
        (Phase::Lost, _, _) => Finding::new(READY, false, "Lost", "its instance or workspace is gone"),
        (Phase::Resuming, _, InstanceState::Stopped | InstanceState::None) => {
            Finding::new(READY, Status::Unknown, "InTransition", "it is being brought back for a job")
        }
        (_, _, InstanceState::Stopped) => Finding::new(
            READY,
            true,
            "Stopped",
            format!("it can be resumed: instance {instance} is started first"),
        ),
        (_, _, InstanceState::None) => Finding::new(
            READY,
            true,
            environment.tier().as_str(),
            "it can be resumed: an instance takes its workspace first",
        ),
        (_, _, InstanceState::Gone) => Finding::new(
            READY,
            false,
            "InstanceGone",
            format!("instance {instance} was terminated; it is looked up what is left"),
        ),
        (_, HostWord::Unknown, _) => {
            Finding::new(READY, false, "UnknownToHost", format!("instance {instance} has no record of it"))
        }
        (_, _, InstanceState::Unknown) => Finding::new(
            READY,
            Status::Unknown,
            "Connecting",
            format!("instance {instance} is being connected to"),
        ),
        (_, _, InstanceState::Unreachable) => Finding::new(
            READY,
            false,
            "HostUnreachable",
            format!("instance {instance} does not answer; it is kept until it does"),
        ),
        (_, _, InstanceState::Removed) => Finding::new(
            READY,
            false,
            "HostRemoved",
            format!("the pool has no host {instance} any more; put it back to resume or release"),
        ),
        (
            Phase::Suspending | Phase::Resuming | Phase::Demoting | Phase::Promoting | Phase::Releasing,
            _,
            InstanceState::Reachable,
        ) => Finding::new(READY, Status::Unknown, "InTransition", "it is changing its phase"),
        (Phase::Suspended, HostWord::Restarted, InstanceState::Reachable) => Finding::new(
            READY,
            true,
            "ProcessesLost",
            format!(
                "it can be resumed at once, but instance {instance} was restarted while it slept: its background \
                 processes are gone"
            ),
        ),
        (Phase::InUse, _, InstanceState::Reachable) => Finding::new(READY, true, "InUse", "a job uses it"),
        (Phase::Suspended, _, InstanceState::Reachable) => {
            Finding::new(READY, true, "Asleep", "it can be resumed at once")
        }
    }
}

fn released(observed: &Observed<'_>) -> Finding {
    if observed.environment.metadata.deletion_timestamp.is_none() {
        return Finding::new(RELEASED, false, "Kept", "it is kept");
    }
    let instance = instance_name(observed.environment);
    if observed.lease_is_open {
        return Finding::new(
            RELEASED,
            false,
            "BoundToJob",
            "it is given back when the job that uses it ends",
        );
    }
    match observed.instance {
        InstanceState::Reachable | InstanceState::Stopped | InstanceState::Gone | InstanceState::None => {
            Finding::new(RELEASED, false, "Releasing", "it is being given back")
        }
        InstanceState::Unreachable | InstanceState::Unknown | InstanceState::Removed => Finding::new(
            RELEASED,
            false,
            "HostUnreachable",
            format!(
                "instance {instance} does not answer; it is given back when it does. To let the object go now and \
                 leave the instance as it is, annotate it with {}=true",
                labels::FORCE_RELEASE
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::core::ObjectMeta;
    use proptest::prelude::*;

    use super::*;
    use crate::api::suspended_environment::{
        BoundLease, Origin, ScriptOutcome, SuspendedEnvironmentSpec, SuspendedEnvironmentStatus,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn environment(phase: Phase) -> SuspendedEnvironment {
        SuspendedEnvironment {
            metadata: ObjectMeta::default(),
            spec: SuspendedEnvironmentSpec {
                pool: "p".into(),
                pool_uid: "u".into(),
                environment_id: "abcdefghijklmnopqrst".into(),
                expires_at: Time(at(1000)),
                not_after: Time(at(2000)),
                workspace_path: "/b/0/g/p".into(),
                desired_tier: None,
                origin: Origin {
                    project_id: 1,
                    project_path: "g/p".into(),
                    ref_name: "main".into(),
                    protected: false,
                    commit: "c".into(),
                    job_id: 1,
                    job_name: "j".into(),
                    user_id: 1,
                    outcome: ScriptOutcome::Failed,
                    lease: "p-1".into(),
                    lease_uid: "l".into(),
                    instance: "a".into(),
                    slot: 0,
                },
            },
            status: Some(SuspendedEnvironmentStatus {
                phase: Some(phase),
                ..SuspendedEnvironmentStatus::default()
            }),
        }
    }

    fn observed(environment: &SuspendedEnvironment) -> Observed<'_> {
        Observed {
            environment,
            lease_is_open: false,
            instance: InstanceState::Reachable,
            word: HostWord::Asleep,
            now: at(10),
        }
    }

    #[test]
    fn an_environment_expires_at_its_time_and_not_before() {
        let sleeping = environment(Phase::Suspended);
        assert_eq!(plan(&observed(&sleeping)).action, None);
        assert_eq!(plan(&observed(&sleeping)).look_again_at, Some(at(1000)));
        let due = Observed { now: at(1000), ..observed(&sleeping) };
        assert_eq!(plan(&due).action, Some(Action::Expire));
    }

    #[test]
    fn expiry_and_deletion_wait_for_the_job() {
        let mut in_use = environment(Phase::InUse);
        in_use.status.as_mut().unwrap().bound_lease =
            Some(BoundLease { name: "p-2".into(), uid: "x".into() });
        let due = Observed { now: at(5000), lease_is_open: true, ..observed(&in_use) };
        assert_eq!(plan(&due).action, None);
        in_use.metadata.deletion_timestamp = Some(Time(at(1)));
        let deleting = Observed { lease_is_open: true, ..observed(&in_use) };
        assert_eq!(plan(&deleting).action, None);
        assert!(plan(&deleting).findings.iter().any(|f| f.type_ == RELEASED && f.reason == "BoundToJob"));
    }

    #[test]
    fn a_deleted_environment_on_a_host_that_is_away_waits_or_is_forced() {
        let mut deleted = environment(Phase::Suspended);
        deleted.metadata.deletion_timestamp = Some(Time(at(1)));
        let away = Observed { instance: InstanceState::Unreachable, ..observed(&deleted) };
        assert_eq!(plan(&away).action, None);
        let mut forced = deleted.clone();
        forced.metadata.annotations = Some([(labels::FORCE_RELEASE.to_owned(), "true".to_owned())].into());
        let away = Observed { instance: InstanceState::Unreachable, ..observed(&forced) };
        assert_eq!(plan(&away).action, Some(Action::ForceRelease));
    }

    #[test]
    fn a_job_that_vanished_lets_go_of_its_environment() {
        for phase in [Phase::Resuming, Phase::InUse] {
            assert_eq!(plan(&observed(&environment(phase))).action, Some(Action::Unbind));
        }
        assert_eq!(
            plan(&Observed { word: HostWord::Unknown, ..observed(&environment(Phase::Suspending)) }).action,
            Some(Action::Abandon)
        );
    }

    #[test]
    fn one_that_is_half_adopted_is_not_given_up() {
        let mut half = environment(Phase::Suspending);
        half.status = None;
        half.metadata.annotations = Some([(labels::ADOPTED_FROM.to_owned(), "vol-1".to_owned())].into());
        assert_eq!(plan(&Observed { word: HostWord::NotAsked, ..observed(&half) }).action, None);
        half.metadata.annotations = None;
        let given_up = Observed { word: HostWord::NotAsked, ..observed(&half) };
        assert_eq!(plan(&given_up).action, Some(Action::Abandon));
    }

    fn any_phase() -> impl Strategy<Value = Phase> {
        prop_oneof![
            Just(Phase::Suspending),
            Just(Phase::Suspended),
            Just(Phase::Resuming),
            Just(Phase::InUse),
            Just(Phase::Releasing),
            Just(Phase::Lost),
        ]
    }

    fn any_word() -> impl Strategy<Value = HostWord> {
        prop_oneof![
            Just(HostWord::NotAsked),
            Just(HostWord::Asleep),
            Just(HostWord::Restarted),
            Just(HostWord::Active),
            Just(HostWord::Unknown)
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_done_to_an_environment_whose_job_is_open(
            phase in any_phase(), word in any_word(), deleting: bool, now in 0i64..3000,
        ) {
            let mut environment = environment(phase);
            environment.metadata.deletion_timestamp = deleting.then(|| Time(at(1)));
            let observed =
                Observed { lease_is_open: true, word, now: at(now), ..observed(&environment) };
            prop_assert_eq!(plan(&observed).action, None);
        }

        #[test]
        fn a_sleeping_environment_is_given_back_only_by_expiry_or_deletion(
            word in any_word(), reachable: bool, now in 0i64..1000,
        ) {
            let environment = environment(Phase::Suspended);
            let instance = if reachable { InstanceState::Reachable } else { InstanceState::Unreachable };
            let observed = Observed { word, instance, now: at(now), ..observed(&environment) };
            let action = plan(&observed).action;
            prop_assert!(matches!(action, None | Some(Action::Refreeze)), "{:?}", action);
        }

        #[test]
        fn every_condition_is_said_in_both_directions(phase in any_phase(), word in any_word()) {
            let environment = environment(phase);
            let findings = plan(&Observed { word, ..observed(&environment) }).findings;
            for type_ in [READY, SUSPENDED, BOUND, VERIFIED, RELEASED] {
                prop_assert_eq!(findings.iter().filter(|finding| finding.type_ == type_).count(), 1);
            }
        }
    }
}
