//! All that a plan for a pool's fleet looks at. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::facts::Facts;
use super::policy::Active;
use super::scale::{Waiting, Wake};
use crate::api::runner_pool::{GrowWith, StopMode, WorkspaceVolume};

/// All that is looked at. Possibly a moment old, but never older than this process's own deeds: see
/// [`View::is_under_way`].
pub struct View<'a> {
    /// Who asks.
    pub pool: Pool<'a>,
    /// What the cloud shows.
    pub facts: &'a Facts,
    /// What the operator knows of each instance.
    pub stands: BTreeMap<String, Stand>,
    /// Places of environments, wherever they are: instance and slot.
    pub places: BTreeSet<(String, u32)>,
    /// The instance of each environment that has an object, by id.
    pub known: BTreeMap<String, Option<String>>,
    /// Volumes that environments own by their status.
    pub owned_volumes: BTreeSet<String>,
    /// What volumes and snapshots of environments carry besides the pool's own tags, by id.
    pub kept_tags: BTreeMap<String, BTreeMap<String, String>>,
    /// The policy that rules now.
    pub policy: Active,
    /// Jobs that wait for a slot and may take any.
    pub waiting: u32,
    /// Environments that come back to an instance from a volume or a snapshot.
    pub wakes: Vec<Wake>,
    /// How many instances may be asked for now, by the pool's throttle.
    pub may_launch: u32,
    /// What is remembered between looks.
    pub memory: &'a Memory,
    /// Now.
    pub now: Timestamp,
}

/// What a pool is set to, as far as its fleet goes.
#[derive(Debug, Clone)]
pub struct Pool<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// The cluster's id.
    pub cluster: &'a str,
    /// The group's name.
    pub group: &'a str,
    /// Slots of an instance.
    pub capacity: u32,
    /// Instances it may have running.
    pub max_instances: u32,
    /// Jobs of an instance; 0 is no limit.
    pub max_uses: u32,
    /// Age at which an instance takes no more jobs.
    pub max_age: Option<SignedDuration>,
    /// Time from launch to Ready.
    pub ready_timeout: SignedDuration,
    /// How often in a row, once a minute, an instance may be unreachable.
    pub failure_threshold: u32,
    /// How soon what was told to go is told again.
    pub deletion_retry: SignedDuration,
    /// How it grows.
    pub grow_with: GrowWith,
    /// How instances are stopped.
    pub stop_mode: StopMode,
    /// The volume of a slot.
    pub volume: Option<&'a WorkspaceVolume>,
    /// Whether it is being deleted.
    pub is_deleting: bool,
    /// The holder's epoch.
    pub epoch: u64,
}

/// What the operator knows of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stand {
    /// How its supervisor is.
    pub host: HostStand,
    /// Its slots that are kept by something.
    pub slots: BTreeMap<u32, Use>,
    /// Whether the cloud has announced that it will take it away.
    pub is_announced_to_go: bool,
}

/// How the supervisor of an instance is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HostStand {
    /// It is not connected to.
    #[default]
    NotKept,
    /// It has not answered yet.
    Connecting {
        /// Why, if that is known.
        why: Option<String>,
    },
    /// It answers.
    Ready {
        /// Workspace volumes mounted there.
        mounts: BTreeMap<u32, String>,
        /// Jobs it was given.
        jobs: u64,
    },
}

/// What keeps a slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Use {
    /// Whether a job does.
    pub has_job: bool,
    /// The environments that do.
    pub environments: Vec<Sleeping>,
    /// Whether what is left there is not known.
    pub is_in_doubt: bool,
}

/// An environment on an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sleeping {
    /// Its id.
    pub id: String,
    /// Whether it is claimed for tier Stopped, or there already.
    pub is_to_stop: bool,
    /// Whether it is due for a tier that stops its instance, claimed or not.
    pub is_due_to_stop: bool,
    /// Whether its instance is to run: a job or a person wants it back.
    pub is_wanted: bool,
    /// Whether it is at tier Stopped: its instance was taken out of its group.
    pub is_stopped: bool,
    /// Whether its workspace can leave the instance.
    pub has_volume: bool,
    /// When it expires, for the tag.
    pub expires_at: Timestamp,
    /// Everything that an object is made of again, for an instance that keeps it alone.
    pub tags: BTreeMap<String, String>,
}

/// What is remembered between looks. Forgotten at a take-over, which only makes things later, or a heartbeat sooner.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Since when an instance has had nothing on it.
    pub idle_since: BTreeMap<String, Timestamp>,
    /// Since when an instance that was ready has not answered.
    pub failing_since: BTreeMap<String, Timestamp>,
    /// Instances that have been ready.
    pub were_ready: BTreeSet<String>,
    /// Since when an instance has been seen to boot or run. The cloud's own clock may be another one.
    pub up_since: BTreeMap<String, Timestamp>,
    /// When this holder looked first. What has come up since, it has seen come up.
    pub first_look: Option<Timestamp>,
    /// When an instance was started.
    pub started_at: BTreeMap<String, Timestamp>,
    /// Since when a member has been seen to wait at its terminate hook. Forgotten at a take-over as all of this: what its
    /// hook's whole time ends is then announced later, or not at all.
    pub waiting_since: BTreeMap<String, Timestamp>,
    /// Instances whose cloud has refused to hibernate them.
    pub cannot_hibernate: BTreeSet<String>,
    /// The last heartbeat for a hook of an instance.
    pub heartbeats: BTreeMap<(String, String), Timestamp>,
    /// When an instance was told to go.
    pub told_to_go: BTreeMap<String, Timestamp>,
    /// Things that were changed after the look was begun: what it shows of them is old.
    pub touched: BTreeMap<String, Timestamp>,
    /// What was made for a thing and no look has shown yet: its id, and when.
    pub made: BTreeMap<String, (String, Timestamp)>,
    /// The desired capacity of the group as this holder has left it; `None` where that is not known.
    pub desired: Option<u32>,
    /// Zones that had no capacity of late, or where none came, and when.
    pub dry_zones: BTreeMap<String, Timestamp>,
    /// The last instance that was given up, until another one is ready.
    pub given_up: Option<GivenUp>,
    /// How many volumes and launches this holder has asked for: tokens are made of it.
    pub orders: u64,
}

/// An instance that did not become Ready, or that was lost sight of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// Which, and why.
    pub wait: Waiting,
    /// When that was seen last.
    pub at: Timestamp,
}

impl Memory {
    /// When this holder saw an instance come up; `None` of those that were up when it looked first.
    pub fn seen_to_come_up(&self, id: &str) -> Option<Timestamp> {
        self.up_since.get(id).copied().filter(|at| self.first_look.is_some_and(|first| first < *at))
    }
}

impl View<'_> {
    /// Whether something was done about a thing that the look cannot show yet.
    pub fn is_under_way(&self, id: &str) -> bool {
        self.memory.touched.get(id).is_some_and(|at| *at >= self.facts.at)
    }

    /// Whether a job waits for a slot, or for its environment to come back.
    pub fn is_awaited(&self) -> bool {
        let is_wanted =
            |stand: &Stand| !stand.is_ready() && stand.environments().any(|known| known.is_wanted);
        self.waiting > 0 || !self.wakes.is_empty() || self.stands.values().any(is_wanted)
    }

    /// What the operator knows of an instance.
    pub fn stand(&self, id: &str) -> Stand {
        self.stands.get(id).cloned().unwrap_or_default()
    }
}

impl Stand {
    /// Whether a job is on it.
    pub fn has_job(&self) -> bool {
        self.slots.values().any(|slot| slot.has_job)
    }

    /// The environments on it.
    pub fn environments(&self) -> impl Iterator<Item = &Sleeping> {
        self.slots.values().flat_map(|slot| &slot.environments)
    }

    /// Whether nothing needs it: what is in doubt ends with it.
    pub fn is_free(&self) -> bool {
        !self.has_job() && self.environments().next().is_none()
    }

    /// Whether every slot is free or kept by an environment that is claimed for Stopped, and one is.
    pub fn may_stop(&self) -> bool {
        let is_quiet = |slot: &Use| {
            !slot.has_job
                && !slot.is_in_doubt
                && slot.environments.iter().all(|known| known.is_to_stop && !known.is_wanted)
        };
        self.environments().next().is_some() && self.slots.values().all(is_quiet)
    }

    /// Whether its supervisor answers, or was asked in vain: a new holder has asked nobody yet.
    pub fn was_asked(&self) -> bool {
        match &self.host {
            HostStand::Ready { .. } | HostStand::Connecting { why: Some(_) } => true,
            HostStand::NotKept | HostStand::Connecting { why: None } => false,
        }
    }

    /// Whether its supervisor answers.
    pub fn is_ready(&self) -> bool {
        match self.host {
            HostStand::Ready { .. } => true,
            HostStand::NotKept | HostStand::Connecting { .. } => false,
        }
    }
}
