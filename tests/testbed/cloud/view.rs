//! What the stand-in tells of itself, as it comes over the wire.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Everything at one moment.
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    /// The cloud's clock, RFC 3339.
    pub now: String,
    /// Failures of the stand-in itself.
    pub bugs: Vec<String>,
    /// Terminated ones too, for a while.
    pub instances: Vec<Instance>,
    /// Without deleted ones, unless a snapshot of one is still to be taken.
    pub volumes: Vec<Volume>,
    /// Without deleted ones.
    pub snapshots: Vec<Snapshot>,
    /// Public keys that open an instance now.
    pub pushed_keys: Vec<Key>,
}

/// An instance.
#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    /// `i-...`
    pub id: String,
    /// `pending`, `running`, `stopping`, `stopped`, `shutting-down` or `terminated`.
    pub state: String,
    /// The code of why it is so.
    pub state_reason: Option<String>,
    /// Stopping or stopped with its memory kept.
    pub hibernated: bool,
    /// Rises with each start that is not a wake from hibernation.
    pub boots: u64,
    /// On 127.77.0.0/16.
    pub address: String,
    /// The availability zone.
    pub zone: String,
    /// The name of the key pair it was launched with.
    pub key: Option<String>,
    /// None while another is swapped in.
    pub root_volume: Option<String>,
    /// The root volume too.
    pub volumes: Vec<Attachment>,
    /// The Auto Scaling group it is a member of.
    pub group: Option<String>,
    /// Its state as a member.
    pub lifecycle: Option<String>,
    /// From scale-in, as a member.
    pub protected: bool,
    /// What its metadata says of its end, on spot.
    pub spot_action: Option<SpotAction>,
    /// Since when its metadata advises to leave it.
    pub rebalance: Option<String>,
}

/// A volume on an instance.
#[derive(Clone, Debug, Deserialize)]
pub struct Attachment {
    /// `vol-...`
    pub id: String,
    /// The name that was asked for.
    pub device: String,
    /// `attaching`, `attached` or `detaching`.
    pub state: String,
}

/// What a spot notice announces.
#[derive(Clone, Debug, Deserialize)]
pub struct SpotAction {
    /// `terminate`, `stop` or `hibernate`.
    pub action: String,
    /// When.
    pub time: String,
}

/// A volume.
#[derive(Clone, Debug, Deserialize)]
pub struct Volume {
    /// `vol-...`
    pub id: String,
    /// GiB.
    pub size: u64,
    /// What it is in.
    pub state: VolumeState,
    /// The availability zone.
    pub zone: String,
    /// What it was made from.
    pub snapshot: Option<String>,
}

/// The states of a volume.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Not usable yet.
    Creating,
    /// Free.
    Available,
    /// On an instance.
    InUse,
    /// Gone for the API; a snapshot of it is still to be taken.
    Deleting,
}

/// A snapshot.
#[derive(Clone, Debug, Deserialize)]
pub struct Snapshot {
    /// `snap-...`
    pub id: String,
    /// Of what.
    pub volume: String,
    /// `pending`, `completed` or `error`.
    pub state: String,
}

/// A public key sent by EC2 Instance Connect, valid for a minute.
#[derive(Clone, Debug, Deserialize)]
pub struct Key {
    /// For this instance only.
    pub instance: String,
    /// The account on it.
    pub user: String,
    /// In OpenSSH's form.
    pub key: String,
    /// When it was sent.
    pub at: String,
}

/// A call, or with service `cloud` what happened by itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    /// Its place in the order of all.
    pub n: u64,
    /// When it was answered.
    pub at: String,
    /// `ec2`, `autoscaling`, `ec2-instance-connect`, `cloud`, ...
    pub service: String,
    /// `StopInstances`, ...
    pub action: String,
    /// By name, without the numbers of lists: `InstanceId` or `InstanceIds` is a list.
    pub params: Map<String, Value>,
    /// `ok` or the code of the error.
    pub answer: String,
}

impl Call {
    /// Whether it is this action, was carried out, and has all these words in its parameters.
    pub fn did(&self, action: &str, words: &[&str]) -> bool {
        let params = || Value::Object(self.params.clone()).to_string();
        let is_it = self.action == action && self.answer == "ok";
        is_it && words.iter().all(|word| params().contains(word))
    }

    /// Whether a parameter is, or its list holds, `value`.
    pub fn names(&self, parameter: &str, value: &str) -> bool {
        match self.params.get(parameter) {
            Some(Value::Array(values)) => values.iter().any(|one| one == value),
            Some(one) => one == value,
            None => false,
        }
    }
}
