//! Deeds: the durable writes of the lease, environment and pool sequences.
//!
//! Each has a name, its *crash point*, and is made only while its maker may act for the pool. The edges that write
//! (`kube_ext::store`, `host::link`, `lease::payload`) take a [`Deed`], so that a write without a name does not compile;
//! a test reads the sources and fails when one name stands for two writes.
//!
//! A test build (one with debug assertions) dies at a point when it is told to by `DORMOUSE_CRASH_AT`, as
//! `<point>:<before|deed|after>`: before the write is begun, when the other side has done it but the answer has not
//! been looked at, or after the answer has been taken in.

use crate::leader::Tenure;

/// The right to make one durable write, and its name.
#[derive(Debug)]
#[must_use = "a deed that is not made is a write that was forgotten"]
pub struct Deed {
    point: Point,
}

impl Deed {
    /// Waits until the holder may act. When its tenure has ended it waits for ever: its tasks are being ended.
    pub async fn permitted(tenure: &Tenure, point: Point) -> Self {
        tenure.acting().await;
        Self { point }
    }

    /// A deed that needs no tenure: what it does is right whoever holds the pool. Say why at the call.
    pub fn unfenced(point: Point) -> Self {
        Self { point }
    }

    /// Makes the write, and takes its answer in.
    pub async fn make<A, T>(self, write: impl Future<Output = A>, take: impl FnOnce(A) -> T) -> T {
        crash::at(self.point, Moment::Before);
        let answer = write.await;
        crash::at(self.point, Moment::Deed);
        let taken = take(answer);
        crash::at(self.point, Moment::After);
        taken
    }
}

/// When, around a write, a test build can be told to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before it is begun.
    Before,
    /// When it is done and its answer has not been looked at.
    Deed,
    /// When its answer has been taken in.
    After,
}

impl Moment {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Before, Self::Deed, Self::After];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Deed => "deed",
            Self::After => "after",
        }
    }
}

macro_rules! points {
    ($($sequence:literal { $($variant:ident $name:literal $what:literal)* })*) => {
        /// The durable writes, by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Point {
            $($(#[doc = $what] $variant,)*)*
        }

        impl Point {
            /// All of them, by sequence.
            pub const ALL: &[Self] = &[$($(Self::$variant,)*)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Self::$variant => $name,)*)*
                }
            }

            /// The sequence it belongs to.
            pub fn sequence(self) -> &'static str {
                match self {
                    $($(Self::$variant => $sequence,)*)*
                }
            }

            /// What it writes.
            pub fn what(self) -> &'static str {
                match self {
                    $($(Self::$variant => $what,)*)*
                }
            }
        }
    };
}

points! {
    "leadership" {
        HoldTaken "hold-taken" "(1) coordination.k8s.io Lease: ours, under a higher epoch."
        HoldRenewed "hold-renewed" "(2) coordination.k8s.io Lease: renewed."
        HoldGivenUp "hold-given-up" "(3) coordination.k8s.io Lease: nobody's."
        HoldRemoved "hold-removed" "coordination.k8s.io Lease of a pool that is gone."
        ReplicaAnnounced "replica-announced" "coordination.k8s.io Lease of this replica."
        ReplicaWithdrawn "replica-withdrawn" "coordination.k8s.io Lease of a replica that is gone."
    }
    "pool" {
        PoolFinalizerAdded "pool-finalizer-added" "RunnerPool: our finalizer."
        HostGreeted "host-greeted" "Host: its claim by the pool, and the epoch there."
        HostKeyRecorded "host-key-recorded" "RunnerPool status: a host key seen for the first time."
        PoolStatusWritten "pool-status-written" "RunnerPool status: conditions, counts, hosts."
        LeftoverRemoved "leftover-removed" "Host: an environment that no object owns is removed."
        PoolEnvironmentReleased "pool-environment-released" "SuspendedEnvironment deleted with its pool."
        PoolLeaseDeleted "pool-lease-deleted" "JobLease that is over, deleted with its pool."
        HostUnclaimed "host-unclaimed" "Host: the pool's claim is given up."
        PoolFinalizerRemoved "pool-finalizer-removed" "RunnerPool: our finalizer goes, and the pool with it."
    }
    "registration" {
        RegistrationIntended "registration-intended" "(1) Secret of the pool's runner: a marker, and no token yet."
        UnusedRunnerRemoved "unused-runner-removed" "GitLab: a runner of an earlier try, whose token nobody has."
        RunnerCreated "runner-created" "(2) GitLab: the pool's runner, with the marker in its note."
        RunnerTokenSaved "runner-token-saved" "(3) Secret: the runner's token."
        RunnerChanged "runner-changed" "(4) GitLab: the runner as the spec says by now."
        RunnerChangeNoted "runner-change-noted" "(5) Secret: what was applied."
        RotationIntended "rotation-intended" "(1) Secret: the token is about to be replaced."
        TokenReset "token-reset" "(2) GitLab: a new token; the old one is dead."
        TokenResetById "token-reset-by-id" "(2) GitLab: another token, for the new one was lost."
        NewTokenSaved "new-token-saved" "(3) Secret: the new token."
        RegistrationBegunAnew "registration-begun-anew" "Secret: a new marker in place of a token that is lost."
        RunnerRemoved "runner-removed" "(1) GitLab: the runner of a deleted pool is removed."
        RunnerManagerRemoved "runner-manager-removed" "GitLab: a deleted pool is no manager of its runner any more."
        RunnerSecretDeleted "runner-secret-deleted" "(2) Secret of a runner that was removed."
    }
    "lease" {
        LeaseCreated "lease-created" "(1) JobLease created."
        PayloadSaved "payload-saved" "(2) Secrets with the job's payload."
        EnvironmentBound "environment-bound" "(3) SuspendedEnvironment status: bound to the lease that resumes it."
        LeaseWaiting "lease-waiting" "(3a) JobLease status: what a resume has been waiting for."
        LeaseAssigned "lease-assigned" "(4) JobLease status Assigned: instance and slot."
        LeaseDisplaced "lease-displaced" "(4a) JobLease status Accepted again: its slot is kept by what no object knows."
        RunningTold "running-told" "(5) GitLab: the job runs."
        JobStarted "job-started" "(6) Host: the job is started."
        LeaseRunning "lease-running" "(7) JobLease status Running: never started again."
        EnvironmentInUse "environment-in-use" "(7a) SuspendedEnvironment status InUse."
        CacheRenewed "cache-renewed" "(6a) Host: newer addresses of a running job's caches."
        LogSent "log-sent" "GitLab: bytes of the log."
        JobCanceled "job-canceled" "Host: a running job is told to stop."
        JobStopped "job-stopped" "Host: a job that GitLab does not want is told to stop."
        EnvironmentCreated "environment-created" "(8a) SuspendedEnvironment created: owner of the slot."
        EnvironmentRestamped "environment-restamped" "(8a) SuspendedEnvironment: its expiry stamped anew."
        EnvironmentFrozen "environment-frozen" "(8b) Host: the environment is frozen and recorded."
        EnvironmentAsleep "environment-asleep" "(8c) SuspendedEnvironment status Suspended, with its key."
        EnvironmentFrozenAgain "environment-frozen-again" "Host: a resumed environment is frozen after an accident."
        EnvironmentReturned "environment-returned" "SuspendedEnvironment status Suspended again, bound to no lease."
        LogSealed "log-sealed" "(9) Host: last lines; the log is complete."
        LogSealedWithoutSuspend "log-sealed-without-suspend" "(9) Host: the same where nothing was to be suspended."
        TailRecorded "tail-recorded" "JobLease status: where a text of ours begins, why, and the job's reason."
        TailOffered "tail-offered" "GitLab: the text of ours, offered to learn the size of its log."
        TailSent "tail-sent" "GitLab: the text of ours."
        ResultTold "result-told" "(10) GitLab: the result."
        ResultRecorded "result-recorded" "JobLease status Finalizing: the result, while GitLab does not take it."
        EnvironmentReleased "environment-released" "(11) SuspendedEnvironment deleted: its resumed script has ended."
        EnvironmentLetGo "environment-let-go" "(11) SuspendedEnvironment status Releasing, bound to no lease."
        EnvironmentWithdrawn "environment-withdrawn" "(11) SuspendedEnvironment of a canceled job deleted."
        HostTidied "host-tidied" "(11) Host: what is not kept is removed."
        UnwantedRemoved "unwanted-removed" "(11) Host: the environment of an unwanted job is removed."
        LeaseReported "lease-reported" "(12) JobLease status Reported."
        LeaseFailed "lease-failed" "(12) JobLease status Failed."
        SlotSeenClean "slot-seen-clean" "JobLease status: nothing of the job is left on its slot, which was in doubt."
        LeaseMadeAgain "lease-made-again" "JobLease that vanished while its job ran, created again."
        LeaseStatusMadeAgain "lease-status-made-again" "JobLease that vanished: its status as it was."
        PayloadDeleted "payload-deleted" "(13) Secrets deleted."
        LeaseDeleted "lease-deleted" "(14) JobLease deleted."
        LeaseFinalizerRemoved "lease-finalizer-removed" "(15) JobLease: our finalizer goes, and the lease with it."
    }
    "environment" {
        EnvironmentStatusWritten "environment-status-written" "SuspendedEnvironment status: conditions."
        EnvironmentExpired "environment-expired" "SuspendedEnvironment deleted: its time is over."
        EnvironmentAbandoned "environment-abandoned" "SuspendedEnvironment deleted: its job ended before it slept."
        EnvironmentUnbound "environment-unbound" "SuspendedEnvironment status Suspended: the lease it was bound to is gone."
        StrayJobStopped "stray-job-stopped" "Host: a job that runs in an environment nobody uses is told to stop."
        EnvironmentRefrozen "environment-refrozen" "Host: an environment that should sleep is frozen again."
        EnvironmentRemoved "environment-removed" "(1) Host: processes, workspace and state are removed."
        EnvironmentForgotten "environment-forgotten" "(2) SuspendedEnvironment: our finalizer goes, and it with it."
        EnvironmentForced "environment-forced" "SuspendedEnvironment: our finalizer goes by force."
        EnvironmentAdopted "environment-adopted" "SuspendedEnvironment created again from the tags of what it keeps."
        AdoptionTold "adoption-told" "SuspendedEnvironment created again: its status."
    }
    "tier" {
        MoveClaimed "move-claimed" "(1) SuspendedEnvironment status: the tier it is to have, why, since when."
        StateSaved "state-saved" "(2) Secret with the host's record and context of an environment."
        StateSavedAgain "state-saved-again" "(2) The same Secret, for a later sleep."
        PlaceReserved "place-reserved" "(3) SuspendedEnvironment status: the instance and slot it is to wake on."
        VolumeMounted "volume-mounted" "Host: the volume of a slot that nobody owns is mounted."
        WorkspaceMounted "workspace-mounted" "Host: the volume of an environment is mounted."
        SaveTold "save-told" "SuspendedEnvironment status: its state is saved, and the volume it lies on."
        VolumeUnmounted "volume-unmounted" "Host: a workspace volume is unmounted; frozen processes end."
        EnvironmentImported "environment-imported" "(4) Host: an environment's record and context from its Secret."
        EnvironmentLeft "environment-left" "Host: an environment that went elsewhere is forgotten."
        HostQuieted "host-quieted" "Host: everything is on disk, before its instance is stopped."
        TierSettled "tier-settled" "(5) SuspendedEnvironment status: the tier it has, and what holds it."
        VolumeForgotten "volume-forgotten" "SuspendedEnvironment status: the volume it had is gone."
        SnapshotForgotten "snapshot-forgotten" "SuspendedEnvironment status: the snapshot it had is gone."
        MoveGivenUp "move-given-up" "SuspendedEnvironment status: a change of tier is given up for now."
        EnvironmentLost "environment-lost" "SuspendedEnvironment status Lost: what held it is gone for good."
    }
    "cloud" {
        DesiredCapacitySet "desired-capacity-set" "Auto Scaling: the group's desired capacity."
        InstancesLaunched "instances-launched" "Auto Scaling: instances are launched in a zone."
        GroupClaimed "group-claimed" "Auto Scaling: the group carries the pool's tags."
        GroupLeft "group-left" "Auto Scaling: the group carries no pool's tags any more."
        MemberProtected "member-protected" "Auto Scaling: scale-in passes a member by, or not any more."
        MemberTerminated "member-terminated" "Auto Scaling: a member is terminated, the group made smaller."
        MemberDetached "member-detached" "Auto Scaling: a member leaves the group and runs on."
        HookExtended "hook-extended" "Auto Scaling: a lifecycle hook waits on."
        HookCompleted "hook-completed" "Auto Scaling: a lifecycle hook lets its member go."
        InstanceStopped "instance-stopped" "EC2: an instance is stopped or hibernated."
        InstanceStarted "instance-started" "EC2: an instance is started."
        InstanceTerminated "instance-terminated" "EC2: an instance is terminated."
        InstanceKept "instance-kept" "EC2: an instance is protected from termination."
        Tagged "tagged" "EC2: tags are put on."
        Untagged "untagged" "EC2: tags are taken off."
        VolumeCreated "volume-created" "EC2: a volume is made."
        VolumeAttached "volume-attached" "EC2: a volume is attached."
        VolumeDetached "volume-detached" "EC2: a volume is detached."
        VolumeDeleted "volume-deleted" "EC2: a volume is deleted."
        SnapshotCreated "snapshot-created" "EC2: a snapshot is begun."
        SnapshotDeleted "snapshot-deleted" "EC2: a snapshot is deleted."
        KeyPushed "key-pushed" "EC2 Instance Connect: a key is put on an instance for a minute."
    }
}

#[cfg(debug_assertions)]
mod crash {
    use std::sync::OnceLock;

    use super::{Moment, Point};

    /// Dies here if that is what this process was told. Nothing runs after it: no destructor, no last log line.
    pub fn at(point: Point, moment: Moment) {
        static WISH: OnceLock<Option<String>> = OnceLock::new();
        let wish = WISH.get_or_init(|| std::env::var("DORMOUSE_CRASH_AT").ok());
        if wish.as_deref().and_then(|wish| wish.split_once(':')) == Some((point.name(), moment.name())) {
            let killed =
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // Nobody survives this; a refusal by the system would be a test that cannot fail.
            std::process::exit(if killed.is_ok() { 137 } else { 99 });
        }
    }
}

#[cfg(not(debug_assertions))]
mod crash {
    use super::{Moment, Point};

    /// Nothing: only test builds die on demand.
    pub fn at(_: Point, _: Moment) {}
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: HashSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        assert!(Point::ALL.iter().all(|point| !point.what().is_empty() && !point.sequence().is_empty()));
    }
}
