//! What there is here, and what can be done about it: the words of the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::state::Ack;

/// Keys for each account.
pub type Keys = BTreeMap<String, Vec<String>>;

/// What there is on this machine.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// The third byte of the addresses that are ours; instances with others are none of our business.
    pub subnet: u8,
    pub machines: BTreeMap<String, Machine>,
    pub volumes: BTreeSet<String>,
    pub snapshots: BTreeSet<String>,
    /// Volumes, snapshots and instances that are being worked on.
    pub busy: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub power: Power,
    pub root: String,
    pub attached: BTreeMap<String, Held>,
    pub keys: Keys,
}

/// A volume on a machine.
#[derive(Clone, Debug)]
pub struct Held {
    /// As it was asked for.
    pub device: String,
    /// Mounted, for instance; asked only of what is to go.
    pub is_in_use: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    Off,
    /// Running, since the cloud's so manieth boot.
    On(u64),
    /// Hibernated, to go on with the same boot.
    Asleep(u64),
}

/// What a volume is to hold when it comes without a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blank {
    /// What a machine boots from.
    Root,
    /// Zeroes, so many GiB.
    Device(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    MakeVolume {
        volume: String,
        blank: Blank,
    },
    RestoreVolume {
        volume: String,
        snapshot: String,
        gib: u64,
    },
    DeleteVolume {
        volume: String,
    },
    /// `holder` is the instance that may write to the volume meanwhile.
    TakeSnapshot {
        snapshot: String,
        volume: String,
        holder: Option<String>,
    },
    CopySnapshot {
        snapshot: String,
        from: String,
    },
    DeleteSnapshot {
        snapshot: String,
    },
    Boot(Boot),
    Kill {
        instance: String,
    },
    Freeze {
        instance: String,
    },
    Thaw {
        instance: String,
    },
    Forget {
        instance: String,
    },
    Attach {
        instance: String,
        volume: String,
        device: String,
    },
    /// Only when it is not in use.
    Detach {
        instance: String,
        volume: String,
    },
    /// In any case.
    PullOut {
        instance: String,
        volume: String,
    },
    SetKeys {
        instance: String,
        keys: Keys,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    pub instance: String,
    pub address: Ipv4Addr,
    /// Whether it has a key pair.
    pub has_key: bool,
    pub root: String,
    pub number: u64,
    /// With the devices they are to be.
    pub volumes: Vec<(String, String)>,
}

impl Deed {
    /// The things that no other deed may touch meanwhile.
    pub fn touches(&self) -> Vec<&str> {
        match self {
            Self::MakeVolume { volume, .. } | Self::DeleteVolume { volume } => vec![volume],
            Self::RestoreVolume { volume, snapshot, .. } => vec![volume, snapshot],
            Self::TakeSnapshot { snapshot, volume, holder } => {
                [Some(snapshot), Some(volume), holder.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(String::as_str)
                    .collect()
            }
            Self::CopySnapshot { snapshot, from } => vec![snapshot, from],
            Self::DeleteSnapshot { snapshot } => vec![snapshot],
            Self::Boot(Boot { instance, root, volumes, .. }) => {
                let volumes = volumes.iter().map(|(volume, _)| volume.as_str());
                [instance.as_str(), root.as_str()].into_iter().chain(volumes).collect()
            }
            Self::Kill { instance }
            | Self::Freeze { instance }
            | Self::Thaw { instance }
            | Self::Forget { instance }
            | Self::SetKeys { instance, .. } => vec![instance],
            Self::Attach { instance, volume, .. }
            | Self::Detach { instance, volume }
            | Self::PullOut { instance, volume } => vec![instance, volume],
        }
    }
}

/// Deeds to begin now, and what the cloud can be told already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub deeds: Vec<Deed>,
    pub ack: Ack,
    /// Instances that are left alone for their address.
    pub strangers: Vec<String>,
}
