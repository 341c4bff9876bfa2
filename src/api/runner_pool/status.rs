//! What is seen of a RunnerPool.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::registration::RunnerStatus;
use crate::api::usage::UsageStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// What is seen of a pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerPoolStatus {
    /// The generation this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// GitLab's id of the runner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_id: Option<u64>,
    /// The system id GitLab routes resumes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<String>,
    /// The replica that holds the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// The holder's epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Open leases / concurrency, such as 3/10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs: Option<String>,
    /// Reachable instances / all, such as 2/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<String>,
    /// Free slots / slots of reachable instances, such as 1/4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<String>,
    /// Sleeping environments by tier.
    #[serde(default)]
    pub environments: EnvironmentCounts,
    /// What GitLab says of its runner, where the pool made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<RunnerStatus>,
    /// What is seen of each host.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub hosts: Vec<HostStatus>,
    /// What is seen of its instances in the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetStatus>,
    /// What they cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostStatus>,
    /// What has been used since the pool was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// Conditions: Ready, CredentialsValid, Registered (with gitlab.registration), Polling, ProviderReachable,
    /// HostKeysTrusted, HostsCapable, CapacityAvailable, SlotsClean, CacheReady, Drained; with provider.aws CloudReady,
    /// GroupSuitable, Scaling too.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Environments of a pool by tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentCounts {
    /// Environments at tier Hot: instance, slot, workspace and processes kept.
    pub hot: u32,
    /// Environments at tier Stopped: the instance's disks kept.
    #[serde(default)]
    pub stopped: u32,
    /// Environments at tier Detached: the workspace volume kept.
    #[serde(default)]
    pub detached: u32,
    /// Environments at tier Snapshotted: a snapshot kept.
    #[serde(default)]
    pub snapshotted: u32,
    /// All of them.
    #[serde(default)]
    pub all: u32,
}

/// What is seen of a pool's instances in the cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FleetStatus {
    /// The group's desired capacity.
    pub desired: u32,
    /// Members of the group that are in service.
    pub in_service: u32,
    /// Members on their way in.
    pub launching: u32,
    /// Members and former members on their way out.
    pub leaving: u32,
    /// Running instances that have left the group with a sleeping environment.
    pub kept: u32,
    /// Stopped instances of sleeping environments.
    pub stopped: u32,
    /// Workspace volumes, attached or not.
    pub volumes: u32,
    /// Snapshots of workspaces.
    pub snapshots: u32,
}

/// What a pool's machines and storage cost, by list prices that may be set in the chart's values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CostStatus {
    /// Now, in US dollars an hour, such as 0.403.
    pub per_hour: String,
    /// What sleeping environments add to that.
    pub environments_per_hour: String,
    /// What their present tiers save against all of them at tier Hot.
    pub saved_per_hour: String,
    /// Instances that run.
    #[serde(default)]
    pub running: u32,
    /// GiB of volumes, those of roots included.
    #[serde(default, rename = "volumeGiB")]
    pub volume_gib: u64,
    /// GiB of snapshots.
    #[serde(default, rename = "snapshotGiB")]
    pub snapshot_gib: u64,
    /// Where the prices are from.
    pub prices: String,
}

/// What is seen of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// The host's name in the spec.
    pub name: String,
    /// Ready, NotReady, Unreachable, KeyRefused, Claimed or Unsupported.
    pub state: String,
    /// One sentence when it is not Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The key recorded at the first connection, as one line of OpenSSH. Remove the entry to trust a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_host_key: Option<String>,
    /// The address that key was recorded for; another address is another first use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_address: Option<String>,
}

/// Schema of a conditions list: merged by type, so that two appliers do not replace each other's.
pub(crate) fn conditions_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = generator.subschema_for::<Vec<Condition>>();
    schema.insert("x-kubernetes-list-type".into(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".into(), serde_json::json!(["type"]));
    schema.insert("maxItems".into(), serde_json::json!(32));
    schema
}
