//! What the cloud says of itself, and what is told back to it; the only module here that talks HTTP.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The cloud is a process on this machine; longer than this it does not think.
const ANSWER: Duration = Duration::from_secs(10);

/// One look at an account, everything of the same moment.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct State {
    /// The cloud's clock, which a test may set.
    pub now: Timestamp,
    pub instances: Vec<Instance>,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    #[serde(default)]
    pub snapshots: Vec<Snapshot>,
    #[serde(default)]
    pub pushed_keys: Vec<PushedKey>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    pub id: String,
    pub state: InstanceState,
    /// Whether its memory is kept, or was when it stopped.
    #[serde(default)]
    pub hibernated: bool,
    /// Rises with each start that is not a wake.
    #[serde(default)]
    pub boots: u64,
    pub address: Option<std::net::IpAddr>,
    /// The key pair it was launched with; without one only pushed keys open it.
    pub key: Option<String>,
    pub root_volume: Option<String>,
    #[serde(default)]
    pub volumes: Vec<Attachment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    Pending,
    Running,
    Stopping,
    Stopped,
    ShuttingDown,
    Terminated,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Attachment {
    pub id: String,
    pub device: String,
    pub state: AttachmentState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentState {
    Attaching,
    Attached,
    Detaching,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Volume {
    pub id: String,
    /// In GiB.
    pub size: u64,
    pub state: VolumeState,
    pub snapshot: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    Creating,
    Available,
    InUse,
    /// Gone for everyone but us, who have a snapshot of it to take.
    Deleting,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Snapshot {
    pub id: String,
    pub volume: String,
    /// The snapshot it is a copy of, in place of a volume's content.
    #[serde(default)]
    pub copy_of: Option<String>,
    pub state: SnapshotState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    Pending,
    Completed,
    Error,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PushedKey {
    pub instance: String,
    pub user: String,
    pub key: String,
    pub at: Timestamp,
}

/// A volume at an instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub volume: String,
    pub instance: String,
}

/// What has been carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ack {
    pub running: Vec<String>,
    pub stopped: Vec<String>,
    pub volumes: Vec<String>,
    pub snapshots: Vec<String>,
    pub attached: Vec<Place>,
    pub detached: Vec<Place>,
}

impl Ack {
    pub fn is_empty(&self) -> bool {
        let Self { running, stopped, volumes, snapshots, attached, detached } = self;
        let things = [running, stopped, volumes, snapshots];
        things.iter().all(|ids| ids.is_empty()) && attached.is_empty() && detached.is_empty()
    }
}

/// The cloud's own door, beside the ones that AWS has.
pub struct Lab {
    client: reqwest::Client,
    url: String,
}

impl Lab {
    /// The door of the cloud at this address, which is a loopback one.
    pub fn new(endpoint: &str) -> Result<Self> {
        let url = url::Url::parse(endpoint).with_context(|| format!("the endpoint '{endpoint}'"))?;
        let address: Option<std::net::Ipv4Addr> = url.host_str().and_then(|host| host.parse().ok());
        ensure!(address.is_some_and(|address| address.is_loopback()), "'{endpoint}' is not on 127.0.0.0/8");
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER).build()?;
        Ok(Self { client, url: format!("{}/lab", endpoint.trim_end_matches('/')) })
    }

    /// Where an instance reads its own metadata.
    pub fn metadata_of(&self, instance: &str) -> String {
        format!("{}/imds/{instance}", self.url)
    }

    pub async fn state(&self) -> Result<State> {
        let answer = self.client.get(format!("{}/state", self.url)).send().await?.error_for_status()?;
        answer.json().await.context("the cloud's state")
    }

    pub async fn acknowledge(&self, ack: &Ack) -> Result<()> {
        self.client.post(format!("{}/ack", self.url)).json(ack).send().await?.error_for_status()?;
        Ok(())
    }
}
