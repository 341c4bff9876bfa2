//! A cloud as Dormouse sees it: instances of a group, volumes and snapshots, and what may be done to them.
//!
//! Everything here is plain data. A look at the cloud is an [`Observation`]; a deed is a [`Change`] that carries every
//! argument, so that a planner can decide it and whoever carries it out has no choice left. [`Cloud`] is the edge; its
//! one implementation speaks to EC2 and Auto Scaling (`aws`).

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use jiff::Timestamp;

#[cfg(feature = "aws")]
pub mod aws;
mod change;
pub mod observer;
pub mod tags;
mod way_out;

pub use change::{Change, Changed, VolumeOrder};

/// A cloud account in one region.
pub trait Cloud: Send + Sync {
    /// What the cloud shows of what is wanted, and of everything that is tagged as the cluster's.
    fn observe<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<Observation, CloudError>>;

    /// Carries a change out. What is so already counts as done.
    fn change<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Changed, CloudError>>;

    /// Whether the cloud has asked for fewer calls of late. Who looks at it by itself looks less often then.
    fn is_throttled(&self) -> bool {
        false
    }
}

/// What is looked at besides what carries the cluster's tag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The cluster's id, the value of [`tags::CLUSTER`].
    pub cluster: String,
    /// Names of groups.
    pub groups: BTreeSet<String>,
    /// What is looked for by its id as well, in case somebody has taken its tags. One that does not exist is missing from
    /// the look and does not fail it.
    pub ids: Ids,
}

/// Ids of things in a cloud, by their kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// Of instances.
    pub instances: BTreeSet<String>,
    /// Of volumes.
    pub volumes: BTreeSet<String>,
    /// Of snapshots.
    pub snapshots: BTreeSet<String>,
}

impl Ids {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.instances.iter().chain(&self.volumes).chain(&self.snapshots).map(String::as_str)
    }

    /// Adds others.
    pub fn extend(&mut self, others: &Self) {
        self.instances.extend(others.instances.iter().cloned());
        self.volumes.extend(others.volumes.iter().cloned());
        self.snapshots.extend(others.snapshots.iter().cloned());
    }
}

/// What the cloud shows at one time. It may lag behind what was done a moment ago: what is missing is not gone at first
/// sight.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// When the look was begun: a change made after it may not be in it.
    pub at: Timestamp,
    /// Groups by name; one that is wanted and not here does not exist in this region.
    pub groups: BTreeMap<String, Group>,
    /// Instances by id: members of the groups, and whatever else carries the cluster's tag.
    pub instances: BTreeMap<String, Instance>,
    /// Volumes by id that carry the cluster's tag, or were asked for by their id.
    pub volumes: BTreeMap<String, Volume>,
    /// Snapshots by id that carry the cluster's tag, or were asked for by their id.
    pub snapshots: BTreeMap<String, Snapshot>,
}

/// An Auto Scaling group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Fewest members.
    pub min: u32,
    /// Most members.
    pub max: u32,
    /// Wished members.
    pub desired: u32,
    /// Zones it launches in.
    pub zones: Vec<String>,
    /// Whether new members are protected from scale-in.
    pub protects_new: bool,
    /// Whether an expired or abandoned terminate hook keeps the member (`Terminating:Retained`).
    pub retains_abandoned: bool,
    /// Lifecycle hooks.
    pub hooks: Vec<Hook>,
    /// Names of suspended processes.
    pub suspended: BTreeSet<String>,
    /// Names of its scaling policies.
    pub scaling_policies: Vec<String>,
    /// Seconds after which it replaces a member by itself.
    pub max_instance_lifetime: Option<u64>,
    /// Whether it replaces spot members that are at risk.
    pub rebalances_capacity: bool,
    /// Whether it may launch spot instances or several types.
    pub is_mixed: bool,
    /// Whether it has a warm pool, and whether members return there at scale-in.
    pub warm_pool: Option<WarmPool>,
    /// Whether an instance refresh is under way.
    pub is_refreshing: bool,
    /// Why its last launch failed, where it has had fewer members than it wishes for a while.
    pub launch_failure: Option<CloudError>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Group {
    /// The uid of another pool that the group carries the tag of.
    pub fn pool_besides(&self, uid: &str) -> Option<&str> {
        self.tags.get(tags::POOL).map(String::as_str).filter(|tagged| *tagged != uid)
    }
}

/// A group's warm pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmPool {
    /// How members wait there: Stopped, Running, Hibernated.
    pub state: String,
    /// Whether members return there when the group is made smaller.
    pub reuses: bool,
}

/// A lifecycle hook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// Whether it holds members that are being terminated; else those that are being launched.
    pub at_termination: bool,
    /// Seconds until it gives up waiting; a heartbeat begins them anew.
    pub heartbeat_timeout: u64,
    /// Seconds until it gives up whatever is said.
    pub global_timeout: u64,
    /// Whether it ends in ABANDON when it gives up waiting; else in CONTINUE, which no policy keeps a member back from.
    pub abandons: bool,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Its id, which is also the name hosts have.
    pub id: String,
    /// What it is doing.
    pub state: InstanceState,
    /// The cloud's code for why, such as `Client.UserInitiatedHibernate`.
    pub state_reason: Option<String>,
    /// Its private address.
    pub address: Option<String>,
    /// Its public address.
    pub public_address: Option<String>,
    /// Its zone.
    pub zone: String,
    /// Its type, such as `m6i.large`.
    pub machine_type: String,
    /// When it was last started.
    pub launched_at: Option<Timestamp>,
    /// Whether it is a spot instance.
    pub is_spot: bool,
    /// Whether it was launched so that it can hibernate.
    pub can_hibernate: bool,
    /// The machine image it was launched from.
    pub image: String,
    /// Whether it is a member of one of the groups, and how.
    pub member: Option<Member>,
    /// Volumes by device name.
    pub devices: BTreeMap<String, String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Instance {
    /// Whether its last start ended at once, as it does when its disk cannot be decrypted.
    pub fn failed_to_boot(&self) -> bool {
        self.state == InstanceState::Stopped
            && self.state_reason.as_deref().is_some_and(|reason| reason == "Client.InternalError")
    }
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceState {
    /// It boots. Left for Running, or for Stopped and Terminated when that fails.
    Pending,
    /// It runs.
    Running,
    /// It is being stopped. Left for Stopped.
    Stopping,
    /// Its disks are kept. Left for Pending.
    Stopped,
    /// It is being terminated. Left for Terminated.
    ShuttingDown,
    /// It is gone; its record stays for about an hour.
    Terminated,
}

impl InstanceState {
    /// Whether it is gone for good, or about to be.
    pub fn is_gone(self) -> bool {
        match self {
            Self::ShuttingDown | Self::Terminated => true,
            Self::Pending | Self::Running | Self::Stopping | Self::Stopped => false,
        }
    }
}

/// What a group says of one of its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The group.
    pub group: String,
    /// Where it stands.
    pub lifecycle: Lifecycle,
    /// Whether scale-in passes it by. Neither a health check, nor a refresh, nor a person does.
    pub is_protected: bool,
    /// Whether the group thinks it is healthy.
    pub is_healthy: bool,
}

/// Where a member stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    /// On its way in, a launch hook included.
    Launching,
    /// In service.
    InService,
    /// Chosen to go; nothing holds it.
    Terminating,
    /// Chosen to go; a hook holds it.
    TerminatingWait,
    /// Its hook was abandoned and the group's policy kept it. It runs and does not count as capacity.
    Retained,
    /// Leaving the group without being terminated.
    Detaching,
    /// Set aside, on the way there or back.
    Standby,
    /// In the warm pool or on its way there or back.
    Warmed,
    /// Being terminated from the warm pool; a hook holds it.
    WarmedTerminatingWait,
    /// It has left.
    Gone,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// What it is doing.
    pub state: VolumeState,
    /// Its zone.
    pub zone: String,
    /// Its size.
    pub size_gib: u32,
    /// What it is attached to.
    pub attachment: Option<Attachment>,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// The snapshot it was made from.
    pub snapshot: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// What a volume is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeState {
    /// It is being made.
    Creating,
    /// It is there, attached to nothing.
    Available,
    /// It is attached, or on its way to or from an instance.
    InUse,
    /// It is being deleted, or is gone.
    Deleting,
    /// It could not be made.
    Failed,
}

/// What a volume is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The instance.
    pub instance: String,
    /// The device name.
    pub device: String,
    /// Whether it is there, not on its way.
    pub is_attached: bool,
    /// Whether it is on its way off.
    pub is_detaching: bool,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Whether all of it is stored.
    pub state: SnapshotState,
    /// The volume it was taken of.
    pub volume: String,
    /// That volume's size.
    pub size_gib: u32,
    /// When it was begun.
    pub started_at: Option<Timestamp>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Whether all of a snapshot is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotState {
    /// Not yet.
    Pending,
    /// Yes.
    Completed,
    /// It never will be.
    Failed,
}

/// Why the cloud did not do or show something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to {attempt}: {code}: {message}")]
pub struct CloudError {
    /// What follows from it.
    pub class: ErrorClass,
    /// What was attempted, such as `stop instance i-0a1b`.
    pub attempt: String,
    /// The cloud's own code, such as `IncorrectInstanceState`, or ours for what never reached it.
    pub code: String,
    /// The cloud's own words, shortened. Never a secret.
    pub message: String,
}

/// What follows from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Later it may work: throttled, out of reach, failed inside.
    Retry,
    /// There is no capacity for it now: later, elsewhere, or another way.
    NoCapacity,
    /// What it is about does not exist, or not any more.
    Gone,
    /// It is not in a state for it: look again and decide anew.
    Refused,
    /// The credentials are not accepted or do not suffice. A person has to do something.
    Denied,
    /// A quota of the account is used up. A person has to do something, or something has to go.
    Quota,
    /// The call itself is wrong, by the pool's spec or by the group's settings. A person has to do something.
    Invalid,
}

impl ErrorClass {
    /// A stable label for metrics and reasons.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "Retry",
            Self::NoCapacity => "NoCapacity",
            Self::Gone => "Gone",
            Self::Refused => "Refused",
            Self::Denied => "Denied",
            Self::Quota => "Quota",
            Self::Invalid => "Invalid",
        }
    }
}

#[cfg(test)]
impl Instance {
    /// One that runs and is nobody's, for tests, which change what they are about.
    pub fn for_test(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            state: InstanceState::Running,
            state_reason: None,
            address: None,
            public_address: None,
            zone: "a".to_owned(),
            machine_type: "m6i.large".to_owned(),
            launched_at: None,
            is_spot: false,
            can_hibernate: false,
            image: "ami-1".to_owned(),
            member: None,
            devices: BTreeMap::new(),
            tags: BTreeMap::new(),
        }
    }
}
