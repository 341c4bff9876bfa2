//! Why a fleet is not as wished yet, as a condition says it. Pure.

use jiff::Timestamp;

use crate::provider::{CloudError, ErrorClass};

/// Why the fleet is not as wished yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// The pool may not have more instances.
    AtMaxInstances {
        /// How many are missing.
        missing: u32,
        /// The pool's limit.
        limit: u32,
    },
    /// The group may not have more members.
    AtGroupMax {
        /// How many are missing.
        missing: u32,
        /// The group's limit.
        limit: u32,
    },
    /// More were launched of late than the pool may.
    Throttled {
        /// How many are missing.
        missing: u32,
    },
    /// An environment wants a slot that instances of the pool do not have any more.
    NoSuchSlot {
        /// The environment.
        environment: String,
        /// The slot.
        slot: u32,
        /// Slots of a new instance.
        capacity: u32,
    },
    /// The group launches elsewhere than where an environment's volume is.
    ZoneGetsNone {
        /// The environment.
        environment: String,
        /// The zone.
        zone: String,
    },
    /// The group tries to launch what is missing, and fails.
    LaunchesFail {
        /// Why.
        error: CloudError,
    },
    /// An instance has not become Ready in time.
    NotReady {
        /// The instance.
        instance: String,
        /// What is known of why.
        why: String,
    },
    /// An instance has not answered for too long.
    Unreachable {
        /// The instance.
        instance: String,
    },
    /// The group may not have fewer members.
    BelowGroupMin {
        /// How many would go.
        by: u32,
        /// The group's limit.
        limit: u32,
    },
    /// What is missing is on its way.
    WaitingForInstances {
        /// How many come.
        coming: u32,
    },
    /// Idle instances go when they have been idle for long enough.
    Idle {
        /// How many.
        instances: u32,
        /// When the first goes.
        until: Timestamp,
    },
}

impl Waiting {
    /// The condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::AtMaxInstances { .. } => "AtMaxInstances",
            Self::AtGroupMax { .. } => "AtGroupMax",
            Self::Throttled { .. } => "Throttled",
            Self::NoSuchSlot { .. } => "NoSuchSlot",
            Self::ZoneGetsNone { .. } => "ZoneWithoutCapacity",
            Self::LaunchesFail { error } => match error.class {
                ErrorClass::NoCapacity | ErrorClass::Quota => error.class.as_str(),
                ErrorClass::Retry
                | ErrorClass::Gone
                | ErrorClass::Refused
                | ErrorClass::Denied
                | ErrorClass::Invalid => "LaunchFailed",
            },
            Self::NotReady { .. } => "InstanceNotReady",
            Self::Unreachable { .. } => "InstanceUnreachable",
            Self::BelowGroupMin { .. } => "AtGroupMin",
            Self::WaitingForInstances { .. } => "WaitingForInstances",
            Self::Idle { .. } => "Idle",
        }
    }

    /// Whether it keeps instances away that are needed.
    pub fn keeps_away(&self) -> bool {
        match self {
            Self::AtMaxInstances { .. }
            | Self::AtGroupMax { .. }
            | Self::Throttled { .. }
            | Self::NoSuchSlot { .. }
            | Self::ZoneGetsNone { .. }
            | Self::LaunchesFail { .. }
            | Self::NotReady { .. }
            | Self::Unreachable { .. } => true,
            Self::BelowGroupMin { .. } | Self::WaitingForInstances { .. } | Self::Idle { .. } => false,
        }
    }

    /// One sentence for people, with the way out where there is one.
    pub fn sentence(&self) -> String {
        match self {
            Self::AtMaxInstances { missing, limit } => {
                format!(
                    "{missing} instances are missing, but the pool has spec.maxInstances of {limit}; raise it, or wait for slots"
                )
            }
            Self::AtGroupMax { missing, limit } => {
                format!(
                    "{missing} instances are missing, but the group has MaxSize {limit}; raise it to spec.maxInstances or more"
                )
            }
            Self::Throttled { missing } => {
                format!(
                    "{missing} instances are missing and follow at the pace of spec.scaling.launchesPerMinute"
                )
            }
            Self::NoSuchSlot { environment, slot, capacity } => format!(
                "environment {environment} needs slot {slot}, but instances have {capacity}; raise spec.capacityPerInstance to {} or more until it is over",
                slot.saturating_add(1)
            ),
            Self::ZoneGetsNone { environment, zone } => format!(
                "environment {environment} needs an instance in {zone}, and the group gets none there: is there capacity \
                 in {zone}, and a subnet of the group? A snapshot is taken of its volume, to go on in another zone"
            ),
            Self::LaunchesFail { error } => {
                let way_out = match error.class {
                    ErrorClass::NoCapacity => "wait, or give the group more zones or instance types",
                    ErrorClass::Quota => "ask for a higher quota, or lower spec.maxInstances",
                    ErrorClass::Retry
                    | ErrorClass::Gone
                    | ErrorClass::Refused
                    | ErrorClass::Denied
                    | ErrorClass::Invalid => "mend the group's launch template",
                };
                format!("{error}; the group tries again by itself: {way_out}")
            }
            Self::NotReady { instance, why } => format!(
                "{instance} was not Ready within spec.instanceReadyTimeout and is replaced: {why}; see that the operator can                  log in there: the security group lets it reach spec.ssh.port, the template has the key pair of spec.ssh,                  and the image starts sshd"
            ),
            Self::Unreachable { instance } => format!(
                "{instance} has not answered for too long (spec.scaling.failureThreshold) and is replaced, unless an \
                 environment sleeps on it; look at its security group and its console output"
            ),
            Self::BelowGroupMin { by, limit } => {
                format!("{by} instances would go, but the group has MinSize {limit}; lower it to 0")
            }
            Self::WaitingForInstances { coming } => format!("{coming} instances are on their way"),
            Self::Idle { instances, until } => {
                format!("{instances} idle instances may go, the first at {until}")
            }
        }
    }
}
