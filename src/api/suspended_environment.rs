//! SuspendedEnvironment: a sleeping environment. It owns its slot from the moment it exists.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::labels;
use super::runner_pool::{ColdTier, conditions_schema};
use super::usage::UsageStatus;

/// A job environment kept for a later job that carries its key.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "SuspendedEnvironment",
    plural = "suspendedenvironments",
    shortname = "senv",
    category = "dormouse",
    namespaced,
    status = "SuspendedEnvironmentStatus",
    derive = "PartialEq",
    doc = "A job environment kept for a later job that carries its key. Deleting it releases what it keeps. It is made by the operator; people may edit spec.expiresAt and spec.desiredTier.",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Tier", type_ = "string", json_path = ".status.tier"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Project", type_ = "string", json_path = ".spec.origin.projectPath"),
    printcolumn(name = "Ref", type_ = "string", json_path = ".spec.origin.ref"),
    printcolumn(name = "Job", type_ = "integer", json_path = ".spec.origin.jobId"),
    printcolumn(name = "Instance", type_ = "string", json_path = ".status.instance"),
    printcolumn(name = "Slot", type_ = "integer", json_path = ".status.slot"),
    printcolumn(name = "Storage", type_ = "string", json_path = ".status.storage", description = "Volume or snapshot that holds the workspace, and its size"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".spec.expiresAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Cost/h", type_ = "string", json_path = ".status.costPerHour", priority = 1),
    printcolumn(name = "Cost", type_ = "string", json_path = ".status.usage.dollars", priority = 1),
    printcolumn(name = "Saved", type_ = "string", json_path = ".status.usage.savedDollars", priority = 1),
    printcolumn(name = "Resumes", type_ = "integer", json_path = ".status.revision", priority = 1),
    printcolumn(name = "Key", type_ = "string", json_path = ".status.environmentKey", priority = 1),
    selectable = ".spec.pool",
    validation = Rule::new("self.metadata.name == self.spec.pool + '-' + self.spec.environmentId").message("the name must be that of the pool and the environment id, with a dash between: so an environment has one object"),
    validation = Rule::new("self.spec.notAfter == oldSelf.spec.notAfter || (has(oldSelf.status) && has(oldSelf.status.boundLease))").message("spec.notAfter may not be changed while no job uses the environment: only expiresAt may be")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.expiresAt <= self.notAfter").message("spec.expiresAt must not be after spec.notAfter, the ceiling stamped from the pool's retention.maxTTL"),
    validation = Rule::new("self.pool == oldSelf.pool && self.poolUid == oldSelf.poolUid && self.environmentId == oldSelf.environmentId && self.workspacePath == oldSelf.workspacePath && self.origin == oldSelf.origin").message("only spec.expiresAt and spec.desiredTier may be changed; everything else is what the operator recorded when the environment was suspended")
)]
pub struct SuspendedEnvironmentSpec {
    /// Name of the pool it belongs to. Immutable.
    #[schemars(length(min = 1, max = 40))]
    pub pool: String,
    /// Uid of that pool. Immutable.
    #[schemars(length(min = 1, max = 64))]
    pub pool_uid: String,
    /// The environment's id, also the end of this object's name. Immutable.
    #[schemars(regex(pattern = "^[a-z2-7]{20}$"))]
    pub environment_id: String,
    /// When it is released. People may move it, up to notAfter. Stamped anew when a resumed job suspends again.
    pub expires_at: Time,
    /// The furthest expiresAt may be moved. Stamped by the operator.
    pub not_after: Time,
    /// A tier that somebody wishes, until a time: an environment that is to be kept awake, or to be woken ahead of its
    /// resume, or put to a cheaper tier at once. After that time the pool's rules hold again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_tier: Option<DesiredTier>,
    /// Absolute path of the workspace on the instance. Immutable.
    #[schemars(length(min = 1, max = 4096))]
    pub workspace_path: String,
    /// The job that made it. Immutable.
    pub origin: Origin,
}

/// A tier that somebody wishes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DesiredTier {
    /// The tier.
    pub tier: Tier,
    /// Until when.
    pub until: Time,
}

/// The job an environment comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Origin {
    /// GitLab project id: only jobs of this project may resume it.
    pub project_id: u64,
    /// The project's path.
    #[schemars(length(max = 1024))]
    pub project_path: String,
    /// Branch or tag.
    #[serde(rename = "ref")]
    #[schemars(length(max = 1024))]
    pub ref_name: String,
    /// Whether the ref was protected: a protected environment is resumed only from protected refs.
    pub protected: bool,
    /// The commit.
    #[schemars(length(max = 128))]
    pub commit: String,
    /// GitLab job id.
    pub job_id: u64,
    /// The job's name.
    #[schemars(length(max = 1024))]
    pub job_name: String,
    /// GitLab id of the user the job ran for.
    pub user_id: u64,
    /// How the script ended.
    pub outcome: ScriptOutcome,
    /// Name of the job's lease.
    #[schemars(length(max = 253))]
    pub lease: String,
    /// Uid of the job's lease.
    #[schemars(length(max = 64))]
    pub lease_uid: String,
    /// The instance it sleeps on.
    #[schemars(length(max = 253))]
    pub instance: String,
    /// The slot it owns there.
    pub slot: u32,
}

/// How the script that led to the suspend ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScriptOutcome {
    /// Exit code 0.
    Succeeded,
    /// Another exit code.
    Failed,
}

/// What is seen of an environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuspendedEnvironmentStatus {
    /// The generation this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What is kept. Hot: instance, slot, workspace and background processes, frozen. Stopped: the disks of its stopped
    /// instance. Detached: its workspace volume. Snapshotted: a snapshot of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// What it is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The instance it is on, while it is on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The slot it owns there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The workspace volume it owns, where the pool has such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeStatus>,
    /// The snapshot that holds its workspace, at tier Snapshotted and on the way there and back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotStatus>,
    /// Volume or snapshot with its size, for people, such as `vol-0a1b 20Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// The change of tier that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// Until when a change of tier that was given up is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest_until: Option<Time>,
    /// The revision of which the instance's own record and context are kept in the Secret `<name>-state`, so that it can
    /// go on elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_revision: Option<u32>,
    /// What it costs, in US dollars an hour, by the pool's prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_per_hour: Option<String>,
    /// What it has used since it was put to sleep first, at its tiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// The key that a job names to resume it. An identifier, not a credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_key: Option<String>,
    /// The lease that uses it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_lease: Option<BoundLease>,
    /// How often it has been suspended again after a resume.
    #[serde(default)]
    pub revision: u32,
    /// When it was last suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_at: Option<Time>,
    /// When it was last resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resumed_at: Option<Time>,
    /// Processes that were alive when it was frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Working directory a resumed job begins in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Why the last resume came back without having ended its script, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_accident: Option<String>,
    /// Conditions: Ready (it can be resumed now), Suspended, Bound, Verified, Released; Stalled when it is lost.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// The volume with a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Its id in EC2.
    pub id: String,
    /// The zone it is in.
    pub zone: String,
    /// Its size.
    #[serde(rename = "sizeGiB")]
    pub size_gib: u32,
}

/// The snapshot of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// Its id in EC2.
    pub id: String,
    /// The revision of the environment it holds.
    pub revision: u32,
    /// Size of the volume it was taken of.
    #[serde(rename = "sizeGiB")]
    pub size_gib: u32,
}

/// A change of tier that is under way. Written before the first thing is done for it; a new holder goes on from what the
/// cloud shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Moving {
    /// Where to.
    pub to: Tier,
    /// Why: Age, Asked, Quota, InstanceLeaving, Resume.
    pub why: String,
    /// Since when.
    pub since: Time,
    /// The epoch of the holder that claimed it.
    pub epoch: u64,
    /// How often it was given up and tried again.
    #[serde(default)]
    pub retries: u32,
}

/// How an environment is kept, from the warmest to the coldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Tier {
    /// Instance, slot, workspace and processes.
    Hot,
    /// The disks of its stopped instance; memory and processes too where that hibernates.
    Stopped,
    /// Its workspace volume.
    Detached,
    /// A snapshot of its workspace volume.
    Snapshotted,
}

impl Tier {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hot => "Hot",
            Self::Stopped => "Stopped",
            Self::Detached => "Detached",
            Self::Snapshotted => "Snapshotted",
        }
    }
}

impl From<ColdTier> for Tier {
    fn from(tier: ColdTier) -> Self {
        match tier {
            ColdTier::Stopped => Self::Stopped,
            ColdTier::Detached => Self::Detached,
            ColdTier::Snapshotted => Self::Snapshotted,
        }
    }
}

/// What an environment is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It is being frozen at the end of its job. Left for Suspended, or for Releasing when that fails.
    Suspending,
    /// It sleeps. Left for Resuming when a job names its key, for Demoting and Promoting when its tier changes, for
    /// Releasing at its expiry or deletion.
    Suspended,
    /// It is being moved to a colder tier. Left for Suspended, also when that is given up; for Resuming when a job names
    /// its key.
    Demoting,
    /// It is being brought back to Hot because somebody asked for that. Left for Suspended, or for Resuming.
    Promoting,
    /// A job that named its key is being started in it. Left for InUse, or back to Suspended.
    Resuming,
    /// A resumed job runs in it. Left for Suspended or Releasing.
    InUse,
    /// Its place is being given back. The end of the object is its end.
    Releasing,
    /// Its instance or workspace is gone for good.
    Lost,
}

/// The lease that uses an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BoundLease {
    /// Name of the JobLease.
    pub name: String,
    /// Uid of the JobLease.
    pub uid: String,
}

impl SuspendedEnvironment {
    /// When it expires.
    pub fn expires_at(&self) -> Timestamp {
        self.spec.expires_at.0
    }

    /// The instance and slot it is on; `None` while it is on none.
    pub fn place(&self) -> Option<(&str, u32)> {
        let origin = &self.spec.origin;
        let Some(status) = &self.status else { return Some((&origin.instance, origin.slot)) };
        match (&status.instance, status.slot, self.tier()) {
            (Some(instance), Some(slot), _) => Some((instance, slot)),
            // Objects of before tiers, and new ones whose first status is yet to be written.
            (_, _, Tier::Hot | Tier::Stopped) => Some((&origin.instance, origin.slot)),
            (_, _, Tier::Detached | Tier::Snapshotted) => None,
        }
    }

    /// Whether it was made again from tags and has no status yet: that is written next.
    pub fn is_half_adopted(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        self.status.is_none() && annotations.is_some_and(|all| all.contains_key(labels::ADOPTED_FROM))
    }

    /// How it is kept; a new object is Hot.
    pub fn tier(&self) -> Tier {
        self.status.as_ref().and_then(|status| status.tier).unwrap_or(Tier::Hot)
    }

    /// Whether it keeps an instance running, or is about to.
    pub fn is_hot(&self) -> bool {
        self.tier() == Tier::Hot
    }

    /// What it is doing; a new object without a status is being suspended.
    pub fn phase(&self) -> Phase {
        self.status.as_ref().and_then(|status| status.phase).unwrap_or(Phase::Suspending)
    }

    /// The lease that uses it now.
    pub fn bound_lease(&self) -> Option<&BoundLease> {
        self.status.as_ref().and_then(|status| status.bound_lease.as_ref())
    }
}

/// The name of an environment's object, so that a key resolves with one GET.
pub fn object_name(pool: &str, environment: &str) -> String {
    format!("{pool}-{environment}")
}
