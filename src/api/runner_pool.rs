//! RunnerPool: one GitLab runner token, one provider of machines, one set of limits.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::Duration;

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
    printcolumn(name = "Suspended", type_ = "integer", json_path = ".status.environments.hot"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Polling", type_ = "string", json_path = ".status.conditions[?(@.type==\"Polling\")].reason", priority = 1),
    printcolumn(name = "System-ID", type_ = "string", json_path = ".status.systemId", priority = 1),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.capacityPerInstance) || self.capacityPerInstance <= 1 || has(self.isolation)").message("spec.isolation must be given when spec.capacityPerInstance is above 1: PerSlotUser keeps the slots of a host apart (needs root), Shared does not"),
    validation = Rule::new("self.provider.static.hosts.all(h, !has(h.slots) || h.slots <= 1) || has(self.isolation)").message("spec.isolation must be given when a host has more than one slot: PerSlotUser keeps the slots of a host apart (needs root), Shared does not"),
    validation = Rule::new("!has(self.isolation) || self.isolation != 'PerSlotUser' || !has(self.buildsDir) || !self.buildsDir.startsWith('~/')").message("spec.buildsDir must be an absolute path with isolation PerSlotUser: the users of the slots cannot enter the home of another user; leave it out for /builds"),
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
    /// How instances are reached.
    pub ssh: SshSpec,
    /// Folder on the instance for workspaces; a workspace is `<buildsDir>/<slot>/<group>/<project>`. A leading `~/`
    /// is the user's home. Default: ~/builds; /builds with isolation PerSlotUser, whose users may not enter
    /// another's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(/|~/)[^\x00]+$"), length(max = 255))]
    pub builds_dir: Option<String>,
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

/// The GitLab runner a pool is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GitLabSpec {
    /// GitLab's address, such as https://gitlab.example.com.
    #[schemars(regex(pattern = r"^https?://[^\s]+$"), length(max = 2048))]
    pub url: String,
    /// The Secret with the runner authentication token (`glrt-...`), in this namespace.
    pub token_secret_ref: KeyRef,
    /// A ConfigMap in this namespace with PEM certificates to trust besides the system's, for the runner API and
    /// for git on the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<KeyRef>,
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

/// Where the machines come from: exactly one of its members.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Hosts of your own.
    #[serde(rename = "static")]
    pub fixed: StaticProvider,
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
    /// The Secret with the private key in PEM or OpenSSH form, in this namespace. ed25519 is preferred.
    pub private_key_secret_ref: KeyRef,
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

/// Whether and when job environments are put to sleep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuspensionSpec {
    /// Disabled: never. FeatureFlag: when the job's variables switch FF_SUSPENDABLE_ENVIRONMENTS on. Enabled: as
    /// if that flag were on in every job. Default: FeatureFlag.
    #[serde(default)]
    pub mode: SuspensionMode,
    /// JobOptions: the suspend options GitLab sends. JobOptionsAndVariables: also the job variables
    /// DORMOUSE_SUSPEND_ON_SUCCESS, DORMOUSE_SUSPEND_ON_FAILURE and DORMOUSE_ENVIRONMENT_KEY, for GitLab servers
    /// that send no suspend options. Default: JobOptions.
    #[serde(default)]
    pub triggers: SuspensionTriggers,
    /// Slots that sleeping environments may never hold. Default: 1, or 0 in a pool of one slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 16384))]
    pub slot_floor: Option<u32>,
    /// Limits on the number of sleeping environments.
    #[serde(default)]
    pub limits: SuspensionLimits,
}

/// Whether suspend options are honoured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SuspensionMode {
    /// Never.
    Disabled,
    /// When the job's feature flag is on.
    #[default]
    FeatureFlag,
    /// Always.
    Enabled,
}

/// Where suspend triggers are read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SuspensionTriggers {
    /// The job's suspend options.
    #[default]
    JobOptions,
    /// Those, and job variables.
    JobOptionsAndVariables,
}

/// Limits on the number of sleeping environments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuspensionLimits {
    /// Sleeping environments in the pool. Default: all slots less the floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 16384))]
    pub max_environments: Option<u32>,
    /// Sleeping environments of one project. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 16384))]
    pub max_per_project: Option<u32>,
}

/// How long sleeping environments are kept.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.defaultTTL) || !has(self.maxTTL) || duration(self.defaultTTL) <= duration(self.maxTTL)").message("retention.defaultTTL must not be longer than retention.maxTTL"))]
pub struct RetentionSpec {
    /// Time from a suspend to its expiry. Stamped on the environment; a later change does not touch those that
    /// sleep already. Default: 168h.
    #[serde(default = "default_ttl", rename = "defaultTTL")]
    pub default_ttl: Duration,
    /// The furthest that anybody may extend the expiry of an environment, from its suspend. Default: 720h.
    #[serde(default = "max_ttl", rename = "maxTTL")]
    pub max_ttl: Duration,
}

impl Default for RetentionSpec {
    fn default() -> Self {
        Self { default_ttl: default_ttl(), max_ttl: max_ttl() }
    }
}

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
    /// What is seen of each host.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub hosts: Vec<HostStatus>,
    /// Conditions: Ready, CredentialsValid, Polling, ProviderReachable, HostKeysTrusted, HostsCapable,
    /// CapacityAvailable, Drained.
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

fn default_output_limit() -> u32 {
    4096
}

fn default_pids_limit() -> u32 {
    4096
}

fn default_concurrency() -> u32 {
    10
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
fn default_ssh_port() -> u16 {
    22
}
fn default_dial_timeout() -> Duration {
    Duration::from_seconds(10)
}
fn default_ttl() -> Duration {
    Duration::from_seconds(168 * 3600)
}
fn max_ttl() -> Duration {
    Duration::from_seconds(720 * 3600)
}

impl RunnerPoolSpec {
    /// Slots of one host.
    pub fn slots_of(&self, host: &StaticHost) -> u32 {
        host.slots.unwrap_or(self.capacity_per_instance)
    }

    /// Slots of all hosts, reachable or not.
    pub fn total_slots(&self) -> u32 {
        self.provider.fixed.hosts.iter().map(|host| self.slots_of(host)).sum()
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
