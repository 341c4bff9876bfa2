//! What is to be done in a pool's cloud. Pure.
//!
//! Reading [`plan`] is reading the policy: members are marked and protected, those that go are seen off, slots get their
//! volumes, sleeping instances stop and start, and last the group is made larger or smaller. A plan over a world that is
//! as wished is empty; each step looks at what is there, so that it can be done again by whoever comes next.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::scale::{Scale, Waiting};
use super::view::{HostStand, Stand, View};
use crate::provider::{Change, Instance, InstanceState, Lifecycle};

pub mod leaving;
pub mod members;
pub mod retag;
pub mod size;
pub mod sleep;
pub mod volumes;

#[cfg(test)]
mod tests;

/// What is to be done, where jobs may be placed, and why things wait.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Steps by what they are about: each sequence in order, different ones beside each other.
    pub sequences: Vec<Sequence>,
    /// Instances that take new jobs, each with the slots that do not.
    pub open: BTreeMap<String, BTreeSet<u32>>,
    /// Slots that may still be waited for: of instances on their way, or that may be asked for.
    pub growth: u32,
    /// How the group's size was decided.
    pub scale: Scale,
    /// Zones that were found to get no instance, to be remembered.
    pub dry_zones: BTreeSet<String>,
    /// Why something waits, one sentence each, for people.
    pub report: Vec<Report>,
    /// Whether the cloud is about to show something else.
    pub is_expecting: bool,
    /// When something becomes due by time alone.
    pub look_again_at: Option<Timestamp>,
}

/// Steps about one thing, in order; the rest waits when one fails.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// What they are about: an id of the cloud, or the group's name.
    pub subject: String,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Sequence {
    /// Whether it sets the size of the group as a number.
    pub fn sets_size(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Cloud(Change::SetDesired { .. })))
    }

    /// Whether it makes the group smaller by one.
    pub fn lowers_size(&self) -> bool {
        let lowers = |step: &Step| {
            matches!(step, Step::Cloud(Change::TerminateMember { .. } | Change::Detach { shrinks: true, .. }))
        };
        self.steps.iter().any(lowers)
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// In the cloud.
    Cloud(Change),
    /// A slot's volume is mounted on its instance.
    Mount {
        /// The instance.
        instance: String,
        /// The slot.
        slot: u32,
        /// The volume.
        volume: String,
        /// The device name.
        device: String,
    },
    /// A slot's volume is unmounted on its instance.
    Unmount {
        /// The instance.
        instance: String,
        /// The slot.
        slot: u32,
    },
    /// Everything is written out on an instance that is about to be stopped.
    Quiet {
        /// The instance.
        instance: String,
    },
}

/// Why something waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A group that may not become smaller keeps a sleeping instance running.
    DetachBelowMin {
        /// The instance.
        instance: String,
        /// The group's least size.
        min: u32,
    },
    /// An environment will be lost with its instance: its workspace cannot leave it, and the group keeps none back.
    EnvironmentAtRisk {
        /// The instance.
        instance: String,
        /// The environment.
        environment: String,
    },
    /// An environment will be lost with its instance if the cloud takes that as it has announced: its workspace cannot
    /// leave it.
    EnvironmentAnnounced {
        /// The instance.
        instance: String,
        /// The environment.
        environment: String,
    },
    /// An instance that goes is held for a job.
    HeldForJob {
        /// The instance.
        instance: String,
    },
    /// An instance that goes is held, and its hook will be held no longer.
    HookEnds {
        /// The instance.
        instance: String,
        /// When.
        at: Timestamp,
    },
    /// Somebody has put the instance of environments at tier Stopped into a group; it is taken out again.
    KeptInGroup {
        /// The instance.
        instance: String,
        /// The group.
        group: String,
    },
    /// An instance has not become Ready in time, or has not answered for too long, and is replaced.
    GivenUp {
        /// Which, and why.
        wait: Waiting,
    },
    /// An instance is stopped without its memory: its cloud does not hibernate it.
    CannotHibernate {
        /// The instance.
        instance: String,
    },
    /// An instance that was started went off at once.
    FailedToBoot {
        /// The instance.
        instance: String,
    },
    /// Somebody took the pool's tags from something that is relied on; they are put back.
    TagsTaken {
        /// What.
        id: String,
    },
}

/// Decides what is to be done.
pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    members::mark(view, &mut plan);
    retag::restore(view, &mut plan);
    members::protect(view, &mut plan);
    leaving::see_off(view, &mut plan);
    volumes::provide(view, &mut plan);
    sleep::stop_and_start(view, &mut plan);
    members::open(view, &mut plan);
    size::resize(view, &mut plan);
    volumes::take_back(view, &mut plan);
    plan.is_expecting |= is_expecting(view, &plan);
    plan
}

/// What a sequence about a slot is about.
pub fn slot_subject(instance: &str, slot: u32) -> String {
    format!("{instance} slot {slot}")
}

/// The instance that a sequence is about, or whose slot.
pub fn instance_of(subject: &str) -> &str {
    subject.split_once(" slot ").map_or(subject, |(instance, _)| instance)
}

fn is_expecting(view: &View<'_>, plan: &Plan) -> bool {
    !plan.sequences.is_empty()
        || view.facts.instances.values().any(is_on_its_way)
        || plan.scale.waits.iter().any(|wait| matches!(wait, Waiting::WaitingForInstances { .. }))
}

impl Plan {
    /// The group is set so that it must not be used: no job is placed in it and it is not made larger. What runs and sleeps
    /// there is seen to as ever: a hook that is not held takes its job with it.
    pub fn begin_nothing(&mut self, view: &View<'_>) {
        self.open.clear();
        self.growth = 0;
        self.scale.grow.clear();
        self.scale.waits.retain(|wait| !matches!(wait, Waiting::WaitingForInstances { .. }));
        let ends_none = view.facts.group.as_ref().is_some_and(|group| group.suspended.contains("Terminate"));
        let is_held_back = |step: &Step| match step {
            Step::Cloud(Change::SetDesired { .. } | Change::Launch { .. }) => true,
            Step::Cloud(Change::TerminateMember { .. }) => ends_none,
            Step::Cloud(_) | Step::Mount { .. } | Step::Unmount { .. } | Step::Quiet { .. } => false,
        };
        self.sequences.retain(|sequence| !sequence.steps.iter().any(is_held_back));
        self.is_expecting = is_expecting(view, self);
    }

    /// Adds a sequence, unless something was done about its subject that the look cannot show yet.
    fn add(&mut self, view: &View<'_>, subject: &str, steps: Vec<Step>) {
        let is_taken = self.sequences.iter().any(|known| known.subject == subject);
        if !steps.is_empty() && !is_taken && !view.is_under_way(subject) {
            self.sequences.push(Sequence { subject: subject.to_owned(), steps });
        }
    }

    /// Looks again at that time at the latest.
    fn look_at(&mut self, at: Timestamp) {
        self.look_again_at = Some(self.look_again_at.map_or(at, |known| known.min(at)));
    }
}

fn is_on_its_way(instance: &Instance) -> bool {
    let is_moving = match instance.state {
        InstanceState::Pending | InstanceState::Stopping | InstanceState::ShuttingDown => true,
        InstanceState::Running | InstanceState::Stopped | InstanceState::Terminated => false,
    };
    let is_joining = match instance.member.as_ref().map(|member| &member.lifecycle) {
        Some(Lifecycle::Launching | Lifecycle::Detaching | Lifecycle::Terminating) => true,
        Some(
            Lifecycle::InService
            | Lifecycle::TerminatingWait
            | Lifecycle::Retained
            | Lifecycle::Standby
            | Lifecycle::Warmed
            | Lifecycle::WarmedTerminatingWait
            | Lifecycle::Gone,
        )
        | None => false,
    };
    is_moving || is_joining
}

/// The lifecycle of a member.
fn lifecycle(instance: &Instance) -> Option<&Lifecycle> {
    instance.member.as_ref().map(|member| &member.lifecycle)
}

/// Whether an instance is a member in service.
fn is_in_service(instance: &Instance) -> bool {
    instance.state == InstanceState::Running && lifecycle(instance) == Some(&Lifecycle::InService)
}

/// Why an instance takes no new job although it could run one, and is replaced once nothing needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Spent {
    Uses,
    Age,
    NotReadyInTime(String),
    NotReachable,
    AnnouncedToGo,
}

/// Whether an instance has had as many jobs as the pool gives to one.
pub fn is_used_up(max_uses: u32, jobs: u64) -> bool {
    max_uses > 0 && jobs >= u64::from(max_uses)
}

/// How old an instance is. When it was launched is written by the cloud's clock, and ours may be another one: with the two
/// far enough apart each new instance would be too old at once. So what this holder has seen to come up is as old as that.
fn age(view: &View<'_>, instance: &Instance) -> Option<SignedDuration> {
    let came_up = view.memory.seen_to_come_up(&instance.id).or(instance.launched_at);
    came_up.map(|at| view.now.duration_since(at))
}

fn spent(view: &View<'_>, instance: &Instance, stand: &Stand) -> Option<Spent> {
    let pool = &view.pool;
    let age = age(view, instance);
    if stand.is_announced_to_go {
        return Some(Spent::AnnouncedToGo);
    }
    if pool.max_age.is_some_and(|most| age.is_some_and(|age| age >= most)) {
        return Some(Spent::Age);
    }
    match &stand.host {
        HostStand::Ready { jobs, .. } => is_used_up(pool.max_uses, *jobs).then_some(Spent::Uses),
        HostStand::NotKept | HostStand::Connecting { .. } => given_up(view, instance, stand),
    }
}

/// Why an instance whose host does not answer is waited for no longer.
fn given_up(view: &View<'_>, instance: &Instance, stand: &Stand) -> Option<Spent> {
    let HostStand::Connecting { why } = &stand.host else { return None };
    let id = &instance.id;
    if view.memory.were_ready.contains(id) {
        let minutes = view.memory.failing_since.get(id).map(|at| view.now.duration_since(*at).as_mins());
        let is_lost = minutes.is_some_and(|minutes| minutes >= i64::from(view.pool.failure_threshold));
        return is_lost.then_some(Spent::NotReachable);
    }
    let why = why.clone().unwrap_or_else(|| "it has not answered".to_owned());
    let seen_for = view.memory.up_since.get(id).map(|at| view.now.duration_since(*at));
    let is_late = seen_for.or(age(view, instance)).is_some_and(|since| since >= view.pool.ready_timeout);
    is_late.then_some(Spent::NotReadyInTime(why))
}

impl Report {
    /// What the fleet waits for, where an instance is given up.
    pub fn given_up(&self) -> Option<Waiting> {
        if let Self::GivenUp { wait } = self { Some(wait.clone()) } else { None }
    }

    /// Reason and sentence of an Event.
    pub fn tell(&self) -> (&'static str, String) {
        match self {
            Self::GivenUp { wait } => (wait.reason(), wait.sentence()),
            Self::DetachBelowMin { instance, min } => (
                "GroupMinTooHigh",
                format!(
                    "{instance} sleeps and cannot leave its group, whose MinSize is {min}: set MinSize to 0 so that \
                     it can be stopped"
                ),
            ),
            Self::EnvironmentAtRisk { instance, environment } => (
                "EnvironmentAtRisk",
                format!(
                    "{instance} is being taken away by its group, and environment {environment} on it can neither \
                     leave (spec.workspaceVolume) nor be kept (TerminateHookAbandon: retain in the group's \
                     InstanceLifecyclePolicy): it is held for as long as the lifecycle hook allows"
                ),
            ),
            Self::EnvironmentAnnounced { instance, environment } => (
                "EnvironmentAtRisk",
                format!(
                    "{instance} is announced to be taken by its cloud, and environment {environment} on it cannot leave \
                     it (spec.workspaceVolume): it will be lost with the instance; resume it now to save what is \
                     needed"
                ),
            ),
            Self::HeldForJob { instance } => (
                "ScaleInDeferred",
                format!("{instance} is to go; its lifecycle hook is extended while a job runs there"),
            ),
            Self::HookEnds { instance, at } => (
                "LifecycleHookEnds",
                format!(
                    "{instance} is to go and is held by its lifecycle hook, which waits until {at:.0} at the longest: \
                     what still runs or sleeps there then is lost, unless the group keeps it (TerminateHookAbandon: \
                     retain)"
                ),
            ),
            Self::KeptInGroup { instance, group } => (
                "KeptInGroup",
                format!(
                    "somebody has put {instance} into group {group}, which would replace it as soon as it is stopped: \
                     environments at tier Stopped are kept on it; it is taken out again: leave it there"
                ),
            ),
            Self::CannotHibernate { instance } => (
                "HibernationRefused",
                format!(
                    "{instance} cannot be hibernated and is stopped: its background processes end. Launch instances \
                     with hibernation enabled, or set spec.provider.aws.stopMode to Stop"
                ),
            ),
            Self::FailedToBoot { instance } => (
                "InstanceFailedToBoot",
                format!(
                    "{instance} went off as soon as it was started (Client.InternalError): enable the KMS key of its \
                     disks, or give the group's service role a grant of it; it is started again meanwhile"
                ),
            ),
            Self::TagsTaken { id } => (
                "TagsRestored",
                format!("{id} had lost the tags that say whose it is; they were put back: leave them there"),
            ),
        }
    }
}
