//! What a plan for an environment's tier says. Plain data.

use jiff::Timestamp;

use super::Target;
use crate::api::suspended_environment::Tier;

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// (1) Claim the move in the status.
    Claim(Target),
    /// (2) Keep the host's record and context in a Secret, and tag the volume as the environment's.
    Save {
        /// The volume it lies on, if it does on one.
        volume: Option<String>,
    },
    /// (3) Choose a slot of this index and write it into the status: it is the environment's from then on.
    Reserve {
        /// The zone it must be in, if in one.
        zone: Option<String>,
        /// The slot's index.
        slot: u32,
    },
    /// Unmount what is mounted at the environment's slot. Frozen processes in it end.
    Unmount,
    /// Have the host forget it: it goes on elsewhere.
    Leave,
    /// Take a volume off an instance.
    Detach {
        /// The volume.
        volume: String,
        /// The instance.
        instance: String,
        /// Whether by force.
        force: bool,
    },
    /// Put its volume on the instance of its slot.
    Attach {
        /// The volume.
        volume: String,
    },
    /// Mount its volume at its slot.
    Mount {
        /// The volume.
        volume: String,
    },
    /// (4) Give its record and context to the host.
    Import,
    /// Make a volume from its snapshot.
    Restore {
        /// The snapshot.
        snapshot: String,
        /// The zone.
        zone: String,
        /// The size.
        size_gib: u32,
    },
    /// Take a snapshot of its volume.
    Snapshot {
        /// The volume.
        volume: String,
    },
    /// Delete its volume: its snapshot holds everything.
    DeleteVolume {
        /// The volume.
        volume: String,
    },
    /// Delete its snapshot: its volume is ahead of it by now.
    DeleteSnapshot {
        /// The snapshot.
        snapshot: String,
    },
    /// Stop its instance once more, without waiting for its system.
    ForceStop {
        /// The instance.
        instance: String,
    },
    /// (5) Write what it has come to.
    Settle(Settled),
    /// The time is over: try anew, or leave it for a while.
    GiveUp {
        /// Why, for people.
        why: String,
        /// Whether it is tried again at once.
        again: bool,
    },
    /// What held it is gone for good.
    Lose {
        /// Why, for people.
        why: String,
    },
}

/// What an environment has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its tier.
    pub tier: Tier,
    /// The volume it owns, if it owns one.
    pub volume: Option<String>,
    /// The snapshot it owns, if it owns one.
    pub snapshot: Option<String>,
    /// Whether it is still on its instance.
    pub keeps_place: bool,
    /// Whether the move is over with this.
    pub ends_move: bool,
    /// Whether this came about without anybody's wish: its instance went and its workspace survived.
    pub is_rescue: bool,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The next step, if one can be taken now.
    pub step: Option<Step>,
    /// What is waited for, if something is.
    pub waits_for: Option<String>,
    /// When something becomes due by time alone.
    pub look_again_at: Option<Timestamp>,
}

impl Plan {
    pub(super) fn step(step: Step) -> Self {
        Self { step: Some(step), waits_for: None, look_again_at: None }
    }

    pub(super) fn wait(on: impl Into<String>) -> Self {
        Self { step: None, waits_for: Some(on.into()), look_again_at: None }
    }

    pub(super) fn rest() -> Self {
        Self { step: None, waits_for: None, look_again_at: None }
    }
}
