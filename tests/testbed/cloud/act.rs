//! What happens to an account without a call of its owner.

use serde::Deserialize;
use serde_json::{Value, json};

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Act {
    /// The metadata of a spot instance announces its end, which comes after the notice. None: two minutes, and none at
    /// all for hibernation.
    SpotNotice {
        /// Which.
        instance: String,
        /// How it ends.
        action: Reclaim,
        /// The length of the notice.
        seconds: Option<f64>,
    },
    /// The metadata of an instance advises to leave it.
    Rebalance {
        /// Which.
        instance: String,
    },
    /// Somebody terminates an instance by hand, after taking off its protection from that.
    Terminate {
        /// Which.
        instance: String,
    },
    /// Somebody stops an instance by hand, or it shuts itself down.
    Stop {
        /// Which.
        instance: String,
    },
    /// The health check of its group finds a member unhealthy.
    Unhealthy {
        /// Which.
        instance: String,
    },
    /// Somebody starts a refresh of a group.
    InstanceRefresh {
        /// Which.
        group: String,
        /// As in StartInstanceRefresh.
        preferences: Value,
    },
    /// Somebody removes tags of an instance, a volume or a snapshot; no keys: all but those of AWS.
    RemoveTags {
        /// Its id.
        resource: String,
        /// Of the tags.
        keys: Vec<String>,
    },
    /// A snapshot ends in an error.
    FailSnapshot {
        /// Which.
        snapshot: String,
    },
    /// Stops of an instance, or of all, do not end until they are forced.
    StopHangs {
        /// None: all.
        instance: Option<String>,
    },
    /// Snapshots that begin do not complete.
    SnapshotHangs,
    /// No instance can be launched or started.
    NoCapacity,
    /// Hibernation is accepted and ends as an ordinary stop.
    HibernateDegrades,
    /// Instances with encrypted disks do not come up.
    KmsDisabled,
    /// Nothing can be launched, started or made in a zone.
    ZoneClosed {
        /// Which.
        zone: String,
    },
    /// Actions (`ec2:StopInstances`, `autoscaling:*`) are not authorized.
    Deny {
        /// Which.
        actions: Vec<String>,
    },
    /// The credentials of all calls are expired.
    CredentialsExpire,
    /// The credentials of all calls are wrong.
    CredentialsWrong,
    /// What hung goes on, what was refused is allowed.
    Restore,
    /// Time passes at once, for the cloud only.
    PassTime {
        /// How much.
        seconds: f64,
    },
    /// A user of IAM.
    AddUser {
        /// Its name.
        name: String,
        /// Its one policy.
        policy: Value,
    },
    /// A role of IAM, and a session of it.
    AddRole {
        /// Its name.
        name: String,
        /// Its one policy.
        policy: Value,
    },
    /// A user's key is good no more.
    RemoveKey {
        /// Whose it was.
        user: String,
        /// Its id.
        access_key_id: String,
    },
}

/// How spot takes an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// For good.
    Terminate,
    /// Until there is capacity.
    Stop,
    /// Until there is capacity, with its memory; without notice.
    Hibernate,
}

/// A user's key.
#[derive(Clone, Debug, Deserialize)]
pub struct User {
    /// Its id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
}

/// A session of a role, as a pod is given it.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// Of the role.
    pub role_arn: String,
    /// The id of its key.
    pub access_key_id: String,
    /// The key's secret.
    pub secret_access_key: String,
    /// What goes with them.
    pub session_token: String,
}

impl Act {
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::SpotNotice { instance, action, seconds } => {
                let mut body = json!({"do": "spot-notice", "instance": instance, "action": action.word()});
                if let (Some(seconds), Some(body)) = (seconds, body.as_object_mut()) {
                    body.insert("seconds".to_owned(), json!(seconds));
                }
                body
            }
            Self::Rebalance { instance } => json!({"do": "rebalance", "instance": instance}),
            Self::Terminate { instance } => json!({"do": "terminate", "instance": instance}),
            Self::Stop { instance } => json!({"do": "stop", "instance": instance}),
            Self::Unhealthy { instance } => json!({"do": "unhealthy", "instance": instance}),
            Self::InstanceRefresh { group, preferences } => {
                json!({"do": "instance-refresh", "group": group, "preferences": preferences})
            }
            Self::RemoveTags { resource, keys } => {
                json!({"do": "remove-tags", "resource": resource, "keys": keys})
            }
            Self::FailSnapshot { snapshot } => json!({"do": "fail-snapshot", "snapshot": snapshot}),
            Self::StopHangs { instance } => json!({"do": "stop-hangs", "instance": instance}),
            Self::SnapshotHangs => json!({"do": "snapshot-hangs"}),
            Self::NoCapacity => json!({"do": "no-capacity"}),
            Self::HibernateDegrades => json!({"do": "hibernate-degrades"}),
            Self::KmsDisabled => json!({"do": "kms-disabled"}),
            Self::ZoneClosed { zone } => json!({"do": "az-closed", "zone": zone}),
            Self::Deny { actions } => json!({"do": "deny", "actions": actions}),
            Self::CredentialsExpire => json!({"do": "expire-credentials"}),
            Self::CredentialsWrong => json!({"do": "expire-credentials", "kind": "wrong"}),
            Self::Restore => json!({"do": "restore"}),
            Self::PassTime { seconds } => json!({"do": "pass-time", "seconds": seconds}),
            Self::AddUser { name, policy } => json!({"do": "add-user", "name": name, "policy": policy}),
            Self::AddRole { name, policy } => json!({"do": "add-role", "name": name, "policy": policy}),
            Self::RemoveKey { user, access_key_id } => {
                json!({"do": "remove-key", "user": user, "access_key_id": access_key_id})
            }
        }
    }
}

impl Reclaim {
    fn word(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
        }
    }
}
