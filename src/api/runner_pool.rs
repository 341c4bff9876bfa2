//! RunnerPool: one GitLab runner token, one provider of machines, one set of limits.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cache::CacheSpec;
use super::duration::Duration;
use super::registration::GitLabSpec;

mod provider;
mod scaling;
mod status;
mod suspension;

pub use provider::{
    Authentication, AwsProvider, GrowWith, HostKeyPolicy, Notices, ObjectRef, Provider, ProxyJump, SshSpec,
    StaticHost, StaticProvider, StopMode, WorkspaceVolume,
};
pub use scaling::{ScalingPolicy, ScalingSpec};
pub(crate) use status::conditions_schema;
pub use status::{CostStatus, EnvironmentCounts, FleetStatus, HostStatus, RunnerPoolStatus};
pub use suspension::{
    ColdTier, Demotion, Overflow, RetentionSpec, SuspensionLimits, SuspensionMode, SuspensionSpec,
    SuspensionTriggers,
};

/// A pool of machines that runs the jobs of one GitLab runner.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "RunnerPool",
    plural = "runnerpools",
    shortname = "rp",
    category = "dormouse",
    namespaced,
    status = "RunnerPoolStatus",
    derive = "PartialEq",
    doc = "A pool of machines that runs the jobs of one GitLab runner. Each job becomes a JobLease; each job environment that is put to sleep becomes a SuspendedEnvironment.",
    validation = Rule::new("size(self.metadata.name) <= 40").message("metadata.name may have at most 40 characters: the names of environments and leases begin with it"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Jobs", type_ = "string", json_path = ".status.jobs", description = "Open leases / concurrency"),
    printcolumn(name = "Instances", type_ = "string", json_path = ".status.instances", description = "Reachable instances / all"),
    printcolumn(name = "Slots", type_ = "string", json_path = ".status.slots", description = "Free slots / all slots of reachable instances"),
    printcolumn(name = "Suspended", type_ = "integer", json_path = ".status.environments.all"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Polling", type_ = "string", json_path = ".status.conditions[?(@.type==\"Polling\")].reason", priority = 1),
    printcolumn(name = "System-ID", type_ = "string", json_path = ".status.systemId", priority = 1),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.capacityPerInstance) || self.capacityPerInstance <= 1 || has(self.isolation)").message("spec.isolation must be given when spec.capacityPerInstance is above 1: PerSlotUser keeps the slots of a host apart (needs root), Shared does not"),
    validation = Rule::new("!has(self.provider.static) || self.provider.static.hosts.all(h, !has(h.slots) || h.slots <= 1) || has(self.isolation)").message("spec.isolation must be given when a host has more than one slot: PerSlotUser keeps the slots of a host apart (needs root), Shared does not"),
    validation = Rule::new("!has(self.isolation) || self.isolation != 'PerSlotUser' || !has(self.buildsDir) || !self.buildsDir.startsWith('~/')").message("spec.buildsDir must be an absolute path with isolation PerSlotUser: the users of the slots cannot enter the home of another user; leave it out for /builds"),
    validation = Rule::new("has(self.provider.aws) == has(oldSelf.provider.aws)").message("spec.provider may not change between static and aws: environments sleep where they are; make another pool"),
    validation = Rule::new("has(self.provider.aws) || (!has(self.maxInstances) && !has(self.policies) && !has(self.instanceMaxAge) && !has(self.workspaceVolume) && !has(self.scaling))").message("spec.maxInstances, policies, instanceMaxAge, workspaceVolume and scaling are for pools with provider.aws: hosts of your own neither come nor go"),
    validation = Rule::new("has(self.provider.aws) || !has(self.suspension) || (!has(self.suspension.demotion) && (!has(self.suspension.overflow) || self.suspension.overflow == 'Reject'))").message("spec.suspension.demotion and overflow DemoteOldest need provider.aws: environments on hosts of your own stay Hot"),
    validation = Rule::new("has(self.ssh.privateKeySecretRef) || (has(self.ssh.authentication) && self.ssh.authentication == 'InstanceConnect')").message("spec.ssh.privateKeySecretRef must be given unless spec.ssh.authentication is InstanceConnect"),
    validation = Rule::new("has(self.provider.aws) || ((!has(self.ssh.authentication) || self.ssh.authentication == 'PrivateKey') && (!has(self.ssh.useExternalAddress) || !self.ssh.useExternalAddress))").message("spec.ssh.authentication InstanceConnect and useExternalAddress are for pools with provider.aws"),
    validation = Rule::new("!has(self.workspaceVolume) || !has(self.capacityPerInstance) || self.capacityPerInstance <= 11").message("spec.capacityPerInstance may be at most 11 with a workspaceVolume: EC2 has device names for 11 more volumes on an instance"),
    validation = Rule::new("has(self.workspaceVolume) || !has(self.suspension) || !has(self.suspension.demotion) || self.suspension.demotion.all(d, d.to == 'Stopped')").message("spec.suspension.demotion to Detached or Snapshotted needs spec.workspaceVolume: only a workspace on a volume of its own can leave its instance"),
    validation = Rule::new("has(self.systemIdSeed) == has(oldSelf.systemIdSeed) && (!has(self.systemIdSeed) || self.systemIdSeed == oldSelf.systemIdSeed)").message("spec.systemIdSeed is immutable: keys of sleeping environments carry the system id")
)]
pub struct RunnerPoolSpec {
    /// The GitLab runner this pool is.
    pub gitlab: GitLabSpec,
    /// Active asks GitLab for jobs. Paused and Draining do not; jobs that run go on, and environments sleep on to
    /// the end of their TTL. Draining also says Drained=True once no lease is open. Default: Active.
    #[serde(default)]
    pub mode: Mode,
    /// Jobs of this pool at the same time, over all instances. Default: 10.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 10000))]
    pub concurrency: u32,
    /// Requests for a job that may be open at GitLab at the same time. How many are depends on the answers: more while
    /// they bring jobs, one while there are none. Default: 1.
    #[serde(default = "default_request_concurrency")]
    #[schemars(range(min = 1, max = 100))]
    pub request_concurrency: u32,
    /// Slots on each instance: how many jobs and sleeping environments it holds at once. Default: 1.
    #[serde(default = "default_capacity")]
    #[schemars(range(min = 1, max = 64))]
    pub capacity_per_instance: u32,
    /// How the slots of one instance are kept apart. No default above one slot: PerSlotUser gives each slot a user
    /// of its own and needs root on the instance; Shared runs all slots as the connection's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// A command that must exit 0 on an instance before the first job is placed there, by `sh -c` as the
    /// connection's user. Tried again until it succeeds; each try may take 2 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub instance_ready_command: Option<String>,
    /// How long a job may wait for a slot before it is given back to GitLab. Default: 15m.
    #[serde(default = "default_acquire_timeout")]
    pub instance_acquire_timeout: Duration,
    /// How long the connection to a running job's instance may be lost before the job is failed with
    /// runner_system_failure. The job runs on meanwhile. Default: 10m.
    #[serde(default = "default_connection_grace")]
    pub connection_grace: Duration,
    /// Where the machines come from.
    pub provider: Provider,
    /// Instances at the same time: members of the Auto Scaling group, and those that left it with a sleeping environment
    /// and run. Stopped ones do not count. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_instances: Option<u32>,
    /// Jobs an instance runs before it is replaced by a fresh one; 0 is no limit. Default: 0.
    #[serde(default)]
    #[schemars(range(max = 1_000_000))]
    pub max_use_count: u32,
    /// Age at which an instance takes no more jobs and is replaced once nothing needs it: never under a job or a sleeping
    /// environment. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_max_age: Option<Duration>,
    /// How long an instance may take from its launch to Ready, the ready command included, before it is replaced.
    /// Default: 10m.
    #[serde(default = "default_ready_timeout")]
    pub instance_ready_timeout: Duration,
    /// How many slots are kept idle, and when. The last policy whose periods hold now rules; where none does, no slot is
    /// kept idle and an instance goes after 5 minutes without work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub policies: Option<Vec<ScalingPolicy>>,
    /// How fast the fleet is watched and changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingSpec>,
    /// A volume for each slot's workspace, so that a sleeping environment can leave its instance. Needs root on the
    /// instance. A change is for volumes that are made from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_volume: Option<WorkspaceVolume>,
    /// How instances are reached.
    pub ssh: SshSpec,
    /// Folder on the instance for workspaces; a workspace is `<buildsDir>/<slot>/<group>/<project>`. A leading `~/`
    /// is the user's home. Default: ~/builds; /builds with isolation PerSlotUser, whose users may not enter
    /// another's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(/|~/)[^\x00]+$"), length(max = 255))]
    pub builds_dir: Option<String>,
    /// Folder on the instance for the caches of jobs, where spec.cache.type is Local; every slot's jobs find theirs there.
    /// A leading `~/` is the user's home. With isolation PerSlotUser it belongs to root, and jobs get at it through the
    /// supervisor alone. Default: cache in stateDir.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(/|~/)[^\x00]+$"), length(max = 255))]
    pub cache_dir: Option<String>,
    /// Where the caches of jobs are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,
    /// Folder on the instance for our own state. Default: /var/lib/dormouse as root, else ~/.dormouse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(/|~/)[^\x00]+$"), length(max = 255))]
    pub state_dir: Option<String>,
    /// Kilobytes of log kept of what a job prints; what comes after it is dropped, and the log says so. GitLab has a
    /// limit of its own (100 megabytes by default), beyond which it fails the job. Default: 4096.
    #[serde(default = "default_output_limit")]
    #[schemars(range(min = 1, max = 4_194_304))]
    pub output_limit: u32,
    /// Processes and threads that a job may have at a time, so that one that only starts processes does not take the
    /// host with it. Needs a pids controller there; see condition HostsCapable. Default: 4096.
    #[serde(default = "default_pids_limit")]
    #[schemars(range(min = 16, max = 4_194_304))]
    pub pids_limit: u32,
    /// Variables of every job of the pool, weaker than the job's own. Not for secrets: whoever may read the pool reads
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub environment: Option<Vec<EnvironmentVariable>>,
    /// Commands that run before the sources of each job are fetched. When they fail, the job fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub pre_get_sources_script: Option<String>,
    /// Commands that run after the sources of each job have been fetched, in its project folder. When they fail, the job
    /// fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub post_get_sources_script: Option<String>,
    /// Commands that run in the shell of each step but after_script, before the step's own. When they fail, the job fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub pre_build_script: Option<String>,
    /// Commands that run in the shell of each step but after_script, after the step's own have succeeded. When they fail,
    /// the job fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub post_build_script: Option<String>,
    /// How long each attempt to fetch the sources of a job may take. Default: as long as the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get_sources_timeout: Option<Duration>,
    /// Whether and when job environments are put to sleep.
    #[serde(default)]
    pub suspension: SuspensionSpec,
    /// How long sleeping environments are kept.
    #[serde(default)]
    pub retention: RetentionSpec,
    /// Fixes the system id when the pool is re-created under another uid, so that GitLab still routes resumes here.
    /// Immutable. Default: the pool's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub system_id_seed: Option<String>,
    /// What deleting the pool does with its sleeping environments: Block waits until they are gone, Release
    /// releases them. Default: Block.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Whether a pool takes jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Asks GitLab for jobs.
    #[default]
    Active,
    /// Asks for none.
    Paused,
    /// Asks for none, and says when nothing runs any more.
    Draining,
}

/// How the slots of one instance are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Isolation {
    /// A user per slot, our state owned by root. Needs root on the instance.
    PerSlotUser,
    /// All slots as the connection's user: jobs can read and signal each other.
    Shared,
}

/// What deleting a pool does with its environments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The pool stays, with a condition, until the last environment is gone.
    #[default]
    Block,
    /// Environments are released.
    Release,
}

/// A variable of every job of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvironmentVariable {
    /// Name: letters, digits and underscores, no digit first.
    #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"), length(max = 255))]
    pub name: String,
    /// Value; `$NAME` and `${NAME}` in it are other variables of the job, `$$` is a dollar sign.
    #[schemars(length(max = 32_768))]
    pub value: String,
}

/// One key of a Secret or ConfigMap in the pool's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_output_limit() -> u32 {
    4096
}

fn default_pids_limit() -> u32 {
    4096
}

fn default_concurrency() -> u32 {
    10
}

fn default_request_concurrency() -> u32 {
    1
}

fn default_capacity() -> u32 {
    1
}

fn default_acquire_timeout() -> Duration {
    Duration::from_seconds(15 * 60)
}

fn default_connection_grace() -> Duration {
    Duration::from_seconds(10 * 60)
}

fn default_ready_timeout() -> Duration {
    Duration::from_seconds(10 * 60)
}

fn yes() -> bool {
    true
}

/// Instances of a pool whose spec names no limit.
const DEFAULT_MAX_INSTANCES: u32 = 10;

impl RunnerPoolSpec {
    /// Hosts of its own, where it has such.
    pub fn fixed_hosts(&self) -> &[StaticHost] {
        self.provider.fixed.as_ref().map_or(&[], |fixed| &fixed.hosts)
    }

    /// Slots of one host of its own.
    pub fn slots_of(&self, host: &StaticHost) -> u32 {
        host.slots.unwrap_or(self.capacity_per_instance)
    }

    /// Instances of the cloud that it may have at a time.
    pub fn max_instances(&self) -> u32 {
        self.max_instances.unwrap_or(DEFAULT_MAX_INSTANCES)
    }

    /// Slots of all instances it may have, reachable or not.
    pub fn total_slots(&self) -> u32 {
        match &self.provider.fixed {
            Some(fixed) => fixed.hosts.iter().map(|host| self.slots_of(host)).sum(),
            None => self.max_instances().saturating_mul(self.capacity_per_instance),
        }
    }

    /// How fast its fleet is watched and changed.
    pub fn scaling(&self) -> ScalingSpec {
        self.scaling.clone().unwrap_or_default()
    }

    /// What happens when one more environment may not hold a slot.
    pub fn overflow(&self) -> Overflow {
        let by_default = if self.provider.aws.is_some() { Overflow::DemoteOldest } else { Overflow::Reject };
        self.suspension.overflow.unwrap_or(by_default)
    }

    /// Folder for workspaces, as it stands in the spec or by default.
    pub fn builds_dir(&self) -> &str {
        match (&self.builds_dir, self.isolation) {
            (Some(folder), _) => folder,
            (None, Some(Isolation::PerSlotUser)) => "/builds",
            (None, Some(Isolation::Shared) | None) => "~/builds",
        }
    }

    /// Slots that sleeping environments may never hold.
    pub fn slot_floor(&self) -> u32 {
        self.suspension.slot_floor.unwrap_or_else(|| self.total_slots().saturating_sub(1).min(1))
    }
}
