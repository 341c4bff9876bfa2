//! Where the machines of a RunnerPool come from, and how they are reached.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KeyRef, yes};
use crate::api::duration::Duration;

/// Where the machines come from: exactly one of its members.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.static) != has(self.aws)").message("spec.provider must have exactly one of static (hosts of your own) and aws (an Auto Scaling group)"))]
pub struct Provider {
    /// Hosts of your own.
    #[serde(rename = "static", default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<StaticProvider>,
    /// Instances of an EC2 Auto Scaling group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsProvider>,
}

/// Instances of an existing EC2 Auto Scaling group. The group belongs to one pool; its desired capacity is the pool's to
/// set.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.region == oldSelf.region && self.autoScalingGroup == oldSelf.autoScalingGroup").message("provider.aws.region and autoScalingGroup are immutable: environments sleep there; make another pool"))]
pub struct AwsProvider {
    /// The region, such as eu-central-1. Immutable.
    #[schemars(regex(pattern = r"^[a-z]{2}(-[a-z]+)+-[0-9]+$"), length(max = 63))]
    pub region: String,
    /// The group's name. Immutable.
    #[schemars(length(min = 1, max = 255))]
    pub auto_scaling_group: String,
    /// How the group is made larger. SetDesiredCapacity lets the group launch. LaunchInstances names the zone and answers
    /// with the instance, and needs ec2:CreateFleet. Default: SetDesiredCapacity.
    #[serde(default)]
    pub grow_with: GrowWith,
    /// How instances of tier Stopped are stopped. Hibernate keeps their memory, and with it background processes, where
    /// the launch template allows hibernation; where it was not kept, the environment says so. Default: Stop.
    #[serde(default)]
    pub stop_mode: StopMode,
    /// Whether spot interruption and rebalance notices are read from the instances' metadata. Default: WhenSpot.
    #[serde(default)]
    pub notices: Notices,
    /// Address of the EC2 and Auto Scaling APIs, for a private endpoint or a stand-in. Default: AWS's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s]+$"), length(max = 2048))]
    pub endpoint_url: Option<String>,
    /// A Secret in this namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps AWS_SESSION_TOKEN. Default:
    /// what the operator's pod has: IRSA, pod identity, instance role, environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<ObjectRef>,
}

/// An object in the pool's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How a group is made larger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GrowWith {
    /// By its desired capacity.
    #[default]
    SetDesiredCapacity,
    /// By asking for instances in a zone.
    LaunchInstances,
}

/// How an instance is stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StopMode {
    /// Its disks stay.
    #[default]
    Stop,
    /// Its memory stays too.
    Hibernate,
}

/// Whether instances are asked for interruption notices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Notices {
    /// Spot instances are.
    #[default]
    WhenSpot,
    /// All are.
    Always,
    /// None is.
    Never,
}

/// The volume of a slot's workspace.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.kmsKeyId) || !has(self.encrypted) || self.encrypted").message("workspaceVolume.kmsKeyId needs workspaceVolume.encrypted"))]
pub struct WorkspaceVolume {
    /// Its size.
    #[serde(rename = "sizeGiB")]
    #[schemars(range(min = 1, max = 16384))]
    pub size_gib: u32,
    /// EBS type, such as gp3. Default: gp3.
    #[serde(rename = "type", default = "default_volume_type")]
    #[schemars(regex(pattern = r"^[a-z0-9]{2,16}$"))]
    pub type_: String,
    /// Whether it is encrypted. Default: true.
    #[serde(default = "yes")]
    pub encrypted: bool,
    /// The KMS key; the account's default key without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub kms_key_id: Option<String>,
    /// A snapshot that fresh volumes begin with, so that a first job finds its sources and caches there. Promote one from
    /// a sleeping environment with `dormouse promote-baseline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^snap-[0-9a-f]+$"))]
    pub baseline_snapshot: Option<String>,
}

/// Hosts of your own. A host belongs to one pool; a second pool that names it is refused by the host.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.hosts.all(a, self.hosts.exists_one(b, a.name == b.name))").message("hosts must have different names"))]
pub struct StaticProvider {
    /// The hosts. Order is the order of preference for new jobs.
    #[schemars(length(min = 1, max = 256))]
    pub hosts: Vec<StaticHost>,
}

/// One machine reached over SSH. It may be away for hours: jobs queue at GitLab until it is back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticHost {
    /// A name for columns and events; what environments are pinned to. Renaming a host makes it another one.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"), length(min = 1, max = 63))]
    pub name: String,
    /// Host name or IP address.
    #[schemars(regex(pattern = r"^[A-Za-z0-9.:_-]+$"), length(min = 1, max = 253))]
    pub address: String,
    /// SSH port, if it is not spec.ssh.port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Slots on this host, if it is not spec.capacityPerInstance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub slots: Option<u32>,
    /// The host's public key as one line of OpenSSH (`ssh-ed25519 AAAA...`). Without it, spec.ssh.hostKeyPolicy
    /// decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub host_key: Option<String>,
}

/// How instances are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SshSpec {
    /// User to log in as. With root (or `sudo -n`) slots can be isolated and process trees are held by cgroups.
    #[schemars(length(min = 1, max = 64))]
    pub username: String,
    /// The Secret with the private key in PEM or OpenSSH form, in this namespace. ed25519 is preferred. Not needed with
    /// authentication InstanceConnect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key_secret_ref: Option<KeyRef>,
    /// PrivateKey logs in with privateKeySecretRef. InstanceConnect makes a key of its own for each connection and lets
    /// EC2 Instance Connect put it on the instance for a minute. Default: PrivateKey.
    #[serde(default)]
    pub authentication: Authentication,
    /// Whether instances are reached by their public address. Default: false, the private one.
    #[serde(default)]
    pub use_external_address: bool,
    /// Port of instances that name none. Default: 22.
    #[serde(default = "default_ssh_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// How long connecting may take, and then the wait for the server's banner. Default: 10s.
    #[serde(default = "default_dial_timeout")]
    pub dial_timeout: Duration,
    /// What to do with a host whose key is not pinned in its hosts entry. TrustOnFirstUse records the key in
    /// status at the first connection, with an Event, and refuses any other from then on. Pinned refuses hosts
    /// without a pinned key. Default: TrustOnFirstUse.
    #[serde(default)]
    pub host_key_policy: HostKeyPolicy,
    /// A host to connect through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_jump: Option<ProxyJump>,
}

/// How the operator logs in to instances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Authentication {
    /// With the pool's key.
    #[default]
    PrivateKey,
    /// With a key that EC2 Instance Connect takes for a minute.
    InstanceConnect,
}

/// What to do with a host whose key is not pinned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HostKeyPolicy {
    /// Record the first key seen; refuse others.
    #[default]
    TrustOnFirstUse,
    /// Refuse.
    Pinned,
}

/// A host to connect through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyJump {
    /// Host name or IP address.
    #[schemars(regex(pattern = r"^[A-Za-z0-9.:_-]+$"), length(min = 1, max = 253))]
    pub address: String,
    /// SSH port. Default: 22.
    #[serde(default = "default_ssh_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// User to log in as; the pool's key is used.
    #[schemars(length(min = 1, max = 64))]
    pub username: String,
    /// Its public key as one line of OpenSSH. Without it, hostKeyPolicy decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub host_key: Option<String>,
}

fn default_ssh_port() -> u16 {
    22
}

fn default_dial_timeout() -> Duration {
    Duration::from_seconds(10)
}

fn default_volume_type() -> String {
    "gp3".to_owned()
}
