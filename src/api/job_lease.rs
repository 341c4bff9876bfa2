//! JobLease: one job's claim on one slot, alive until GitLab has the result.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::SLOT_CLEAN;
use super::runner_pool::conditions_schema;

/// One job's claim on one slot.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "JobLease",
    plural = "jobleases",
    shortname = "jl",
    category = "dormouse",
    namespaced,
    status = "JobLeaseStatus",
    derive = "PartialEq",
    doc = "One job's claim on one slot of an instance. It is made by the operator when GitLab hands out a job and lives until GitLab has the job's result.",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Job", type_ = "integer", json_path = ".spec.jobId"),
    printcolumn(name = "Project", type_ = "string", json_path = ".spec.projectPath"),
    printcolumn(name = "Ref", type_ = "string", json_path = ".spec.ref"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Instance", type_ = "string", json_path = ".status.instance"),
    printcolumn(name = "Slot", type_ = "integer", json_path = ".status.slot"),
    printcolumn(name = "Exit", type_ = "integer", json_path = ".status.exitCode"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Failure", type_ = "string", json_path = ".status.failureReason", priority = 1),
    printcolumn(name = "Environment", type_ = "string", json_path = ".spec.environmentId", priority = 1),
    printcolumn(name = "Resumes", type_ = "string", json_path = ".spec.resumeFrom", priority = 1),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder", priority = 1),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch", priority = 1),
    selectable = ".spec.pool"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self == oldSelf").message("the spec of a JobLease is immutable: it is what GitLab handed out"))]
pub struct JobLeaseSpec {
    /// Name of the pool.
    #[schemars(length(min = 1, max = 40))]
    pub pool: String,
    /// Uid of the pool.
    #[schemars(length(min = 1, max = 64))]
    pub pool_uid: String,
    /// GitLab job id.
    pub job_id: u64,
    /// The job's name.
    #[schemars(length(max = 1024))]
    pub job_name: String,
    /// GitLab project id.
    pub project_id: u64,
    /// The project's path.
    #[schemars(length(max = 1024))]
    pub project_path: String,
    /// Branch or tag.
    #[serde(rename = "ref")]
    #[schemars(length(max = 1024))]
    pub ref_name: String,
    /// Id of the environment the job runs in: minted for this lease, or the one it resumes.
    #[schemars(regex(pattern = "^[a-z2-7]{20}$"))]
    pub environment_id: String,
    /// The environment key the job names, when it resumes one. As GitLab sent it, well-formed or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub resume_from: Option<String>,
    /// Seconds the job may take.
    pub timeout_seconds: u64,
    /// When GitLab handed the job out.
    pub accepted_at: Time,
    /// How many Secrets hold the job's payload.
    #[schemars(range(min = 0, max = 32))]
    pub payload_parts: u32,
}

/// What is seen of a lease.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobLeaseStatus {
    /// What the lease is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<LeasePhase>,
    /// The instance the job is on. Written before anything is started there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The slot it holds there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The replica that wrote this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// That replica's epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// When the script began, by the host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the last stage ended, by the host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Exit code of the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The reason GitLab is told, when the job failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// One sentence that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Bytes GitLab had when the operator began to write the end of the log itself, because no supervisor could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail_offset: Option<u64>,
    /// Conditions: Accepted, InstanceReady, Started, Finished, Reported; SlotClean where that was in doubt.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// What a lease is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LeasePhase {
    /// The job is ours and waits for a slot. Left for Assigned, or for Finalizing when it is refused or times out.
    Accepted,
    /// It holds a slot; the supervisor may already run it. Left for Running, or for Finalizing when it cannot start.
    Assigned,
    /// The supervisor runs it. Left for Finalizing.
    Running,
    /// The result stands and GitLab is being told. Left for Reported or Failed.
    Finalizing,
    /// GitLab has the result, or does not want it any more. The lease is kept for a while for people to look at.
    Reported,
    /// GitLab refused the result; the lease is kept for people to look at.
    Failed,
}

impl LeasePhase {
    /// Whether the lease still holds its slot and its job.
    pub fn is_open(self) -> bool {
        match self {
            Self::Accepted | Self::Assigned | Self::Running | Self::Finalizing => true,
            Self::Reported | Self::Failed => false,
        }
    }
}

impl JobLease {
    /// What it is doing; a new object without a status is accepted.
    pub fn phase(&self) -> LeasePhase {
        self.status.as_ref().and_then(|status| status.phase).unwrap_or(LeasePhase::Accepted)
    }

    /// The instance and slot it holds.
    pub fn place(&self) -> Option<(&str, u32)> {
        let status = self.status.as_ref()?;
        Some((status.instance.as_deref()?, status.slot?))
    }

    /// The instance and slot that take no other job until the instance has said that nothing of this one is left.
    pub fn quarantined_place(&self) -> Option<(&str, u32)> {
        let status = self.status.as_ref()?;
        let in_doubt = |known: &Condition| known.type_ == SLOT_CLEAN && known.status != "True";
        if self.phase().is_open() || !status.conditions.iter().any(in_doubt) {
            return None;
        }
        self.place()
    }
}

/// The name of a job's lease: the same for the same job, so that accepting twice is once.
pub fn object_name(pool: &str, job_id: u64) -> String {
    format!("{pool}-{job_id}")
}

/// The name of one of the Secrets that hold a job's payload.
pub fn payload_secret_name(lease: &str, part: u32) -> String {
    format!("{lease}-payload-{part}")
}
