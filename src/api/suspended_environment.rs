//! SuspendedEnvironment: a sleeping environment. It owns its slot from the moment it exists.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::runner_pool::conditions_schema;

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
    doc = "A job environment kept for a later job that carries its key. Deleting it releases what it keeps. It is made by the operator; people may edit spec.expiresAt.",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Tier", type_ = "string", json_path = ".status.tier"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Project", type_ = "string", json_path = ".spec.origin.projectPath"),
    printcolumn(name = "Ref", type_ = "string", json_path = ".spec.origin.ref"),
    printcolumn(name = "Job", type_ = "integer", json_path = ".spec.origin.jobId"),
    printcolumn(name = "Instance", type_ = "string", json_path = ".spec.origin.instance"),
    printcolumn(name = "Slot", type_ = "integer", json_path = ".spec.origin.slot"),
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
    printcolumn(name = "Resumes", type_ = "integer", json_path = ".status.revision", priority = 1),
    printcolumn(name = "Key", type_ = "string", json_path = ".status.environmentKey", priority = 1),
    selectable = ".spec.pool",
    validation = Rule::new("self.metadata.name == self.spec.pool + '-' + self.spec.environmentId").message("the name must be that of the pool and the environment id, with a dash between: so an environment has one object"),
    validation = Rule::new("self.spec.notAfter == oldSelf.spec.notAfter || (has(oldSelf.status) && has(oldSelf.status.boundLease))").message("spec.notAfter may not be changed while no job uses the environment: only expiresAt may be")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.expiresAt <= self.notAfter").message("spec.expiresAt must not be after spec.notAfter, the ceiling stamped from the pool's retention.maxTTL"),
    validation = Rule::new("self.pool == oldSelf.pool && self.poolUid == oldSelf.poolUid && self.environmentId == oldSelf.environmentId && self.workspacePath == oldSelf.workspacePath && self.origin == oldSelf.origin").message("only spec.expiresAt may be changed; everything else is what the operator recorded when the environment was suspended")
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
    /// Absolute path of the workspace on the instance. Immutable.
    #[schemars(length(min = 1, max = 4096))]
    pub workspace_path: String,
    /// The job that made it. Immutable.
    pub origin: Origin,
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
    /// What is kept. Hot: instance, slot, workspace and background processes, frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// What it is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
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

/// How an environment is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Tier {
    /// Instance, slot, workspace and processes.
    Hot,
}

/// What an environment is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It is being frozen at the end of its job. Left for Suspended, or for Releasing when that fails.
    Suspending,
    /// It sleeps. Left for Resuming when a job names its key, for Releasing at its expiry or deletion.
    Suspended,
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
