//! What may be done in a cloud, each deed with every argument. Plain data.

use std::collections::BTreeMap;

use crate::deed::Point;

/// One deed in the cloud, with every argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The group shall have so many members.
    SetDesired {
        /// The group.
        group: String,
        /// How many; an absolute value.
        to: u32,
    },
    /// The group launches more members, at once and in a zone.
    Launch {
        /// The group.
        group: String,
        /// How many.
        count: u32,
        /// The zone; the group's choice without one.
        zone: Option<String>,
        /// The same for the same wish, so that asking twice is asking once.
        token: String,
    },
    /// A group carries a pool's tags: it is that pool's.
    ClaimGroup {
        /// The group.
        group: String,
        /// The tags. They are for the group alone, not for what it launches.
        tags: BTreeMap<String, String>,
    },
    /// A group carries no pool's tags any more.
    LeaveGroup {
        /// The group.
        group: String,
        /// The tags' keys.
        keys: Vec<String>,
    },
    /// Scale-in passes members by, or does not any more.
    Protect {
        /// The group.
        group: String,
        /// The members.
        instances: Vec<String>,
        /// Whether they are passed by.
        on: bool,
    },
    /// A member goes, and the group becomes smaller by it.
    TerminateMember {
        /// The member.
        instance: String,
    },
    /// A member leaves the group and runs on.
    Detach {
        /// The group.
        group: String,
        /// The member.
        instance: String,
        /// Whether the group becomes smaller by it.
        shrinks: bool,
    },
    /// The hook that holds a member waits on.
    Heartbeat {
        /// The group.
        group: String,
        /// The hook.
        hook: String,
        /// The member.
        instance: String,
    },
    /// The hook that holds a member lets it go.
    Complete {
        /// The group.
        group: String,
        /// The hook.
        hook: String,
        /// The member.
        instance: String,
        /// Whether by ABANDON, which a group may answer by keeping the member; else by CONTINUE.
        abandon: bool,
    },
    /// An instance is stopped.
    Stop {
        /// The instance.
        instance: String,
        /// Whether its memory is kept.
        hibernate: bool,
        /// Whether without waiting for its system.
        force: bool,
    },
    /// An instance is started.
    Start {
        /// The instance.
        instance: String,
    },
    /// An instance that is no member is terminated. What protects it from that is taken away first.
    Terminate {
        /// The instance.
        instance: String,
    },
    /// An instance cannot be terminated by a call.
    Keep {
        /// The instance.
        instance: String,
    },
    /// Tags are put on things.
    Tag {
        /// Ids of instances, volumes, snapshots.
        ids: Vec<String>,
        /// The tags.
        tags: BTreeMap<String, String>,
    },
    /// Tags are taken off things.
    Untag {
        /// Ids of instances, volumes, snapshots.
        ids: Vec<String>,
        /// The tags' keys.
        keys: Vec<String>,
    },
    /// A volume is made.
    CreateVolume(VolumeOrder),
    /// A volume is attached.
    Attach {
        /// The volume.
        volume: String,
        /// The instance.
        instance: String,
        /// The device name.
        device: String,
    },
    /// A volume is taken off its instance.
    DetachVolume {
        /// The volume.
        volume: String,
        /// The instance.
        instance: String,
        /// Whether although it is in use there.
        force: bool,
    },
    /// A volume is deleted.
    DeleteVolume {
        /// The volume.
        volume: String,
    },
    /// A snapshot is begun. There is no token for it: look for one with the same tags first.
    CreateSnapshot {
        /// The volume.
        volume: String,
        /// Its tags.
        tags: BTreeMap<String, String>,
    },
    /// A snapshot is deleted.
    DeleteSnapshot {
        /// The snapshot.
        snapshot: String,
    },
    /// A public key is put on an instance for a minute.
    PushKey {
        /// The instance.
        instance: String,
        /// Its zone.
        zone: String,
        /// The user it is for.
        username: String,
        /// The key as one line of OpenSSH.
        key: String,
    },
}

/// A volume to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOrder {
    /// Its zone.
    pub zone: String,
    /// Its size.
    pub size_gib: u32,
    /// Its type.
    pub type_: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The KMS key, if not the account's default one.
    pub kms_key: Option<String>,
    /// The snapshot it begins with.
    pub snapshot: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The same for the same wish, so that asking twice is asking once.
    pub token: String,
}

/// What a change has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is so.
    Done,
    /// These instances were launched.
    Launched(Vec<String>),
    /// This volume or snapshot was made.
    Made(String),
}

impl Change {
    /// The durable write it is.
    pub fn point(&self) -> Point {
        match self {
            Self::SetDesired { .. } => Point::DesiredCapacitySet,
            Self::Launch { .. } => Point::InstancesLaunched,
            Self::ClaimGroup { .. } => Point::GroupClaimed,
            Self::LeaveGroup { .. } => Point::GroupLeft,
            Self::Protect { .. } => Point::MemberProtected,
            Self::TerminateMember { .. } => Point::MemberTerminated,
            Self::Detach { .. } => Point::MemberDetached,
            Self::Heartbeat { .. } => Point::HookExtended,
            Self::Complete { .. } => Point::HookCompleted,
            Self::Stop { .. } => Point::InstanceStopped,
            Self::Start { .. } => Point::InstanceStarted,
            Self::Terminate { .. } => Point::InstanceTerminated,
            Self::Keep { .. } => Point::InstanceKept,
            Self::Tag { .. } => Point::Tagged,
            Self::Untag { .. } => Point::Untagged,
            Self::CreateVolume(_) => Point::VolumeCreated,
            Self::Attach { .. } => Point::VolumeAttached,
            Self::DetachVolume { .. } => Point::VolumeDetached,
            Self::DeleteVolume { .. } => Point::VolumeDeleted,
            Self::CreateSnapshot { .. } => Point::SnapshotCreated,
            Self::DeleteSnapshot { .. } => Point::SnapshotDeleted,
            Self::PushKey { .. } => Point::KeyPushed,
        }
    }

    /// What it attempts, in words that continue "failed to".
    pub fn attempt(&self) -> String {
        match self {
            Self::SetDesired { group, to } => format!("set the desired capacity of group {group} to {to}"),
            Self::Launch { group, count, zone, .. } => {
                let zone = zone.as_deref().map(|zone| format!(" in {zone}")).unwrap_or_default();
                format!("launch {count} instances of group {group}{zone}")
            }
            Self::ClaimGroup { group, .. } => format!("claim group {group}"),
            Self::LeaveGroup { group, .. } => format!("give group {group} back"),
            Self::Protect { instances, on: true, .. } => {
                format!("protect {} from scale-in", instances.join(", "))
            }
            Self::Protect { instances, on: false, .. } => {
                format!("take the scale-in protection from {}", instances.join(", "))
            }
            Self::TerminateMember { instance } => format!("terminate group member {instance}"),
            Self::Detach { group, instance, .. } => format!("detach {instance} from group {group}"),
            Self::Heartbeat { hook, instance, .. } => format!("extend lifecycle hook {hook} of {instance}"),
            Self::Complete { hook, instance, .. } => format!("complete lifecycle hook {hook} of {instance}"),
            Self::Stop { instance, hibernate: true, .. } => format!("hibernate instance {instance}"),
            Self::Stop { instance, .. } => format!("stop instance {instance}"),
            Self::Start { instance } => format!("start instance {instance}"),
            Self::Terminate { instance } => format!("terminate instance {instance}"),
            Self::Keep { instance } => format!("protect instance {instance} from termination"),
            Self::Tag { ids, .. } => format!("tag {}", ids.join(", ")),
            Self::Untag { ids, .. } => format!("take tags from {}", ids.join(", ")),
            Self::CreateVolume(order) => {
                format!("create a volume of {} GiB in {}", order.size_gib, order.zone)
            }
            Self::Attach { volume, instance, device } => format!("attach {volume} to {instance} as {device}"),
            Self::DetachVolume { volume, instance, .. } => format!("detach {volume} from {instance}"),
            Self::DeleteVolume { volume } => format!("delete volume {volume}"),
            Self::CreateSnapshot { volume, .. } => format!("take a snapshot of {volume}"),
            Self::DeleteSnapshot { snapshot } => format!("delete snapshot {snapshot}"),
            Self::PushKey { instance, .. } => format!("put a key on {instance} by EC2 Instance Connect"),
        }
    }
}
