//! What a RunnerPool lets be put to sleep, and for how long.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::duration::Duration;

/// Whether and when job environments are put to sleep.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.demotion) || self.demotion.all(a, self.demotion.all(b, a == b || ((duration(a.after) < duration(b.after)) == ((a.to == 'Stopped' && b.to != 'Stopped') || (a.to == 'Detached' && b.to == 'Snapshotted')) && a.to != b.to)))").message("suspension.demotion must go to colder tiers in time: Stopped, then Detached, then Snapshotted, each once and each later than the one before"))]
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
    /// When a sleeping environment moves to a cheaper tier, by the time since its suspend: each step later and colder
    /// than the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 3))]
    pub demotion: Option<Vec<Demotion>>,
    /// What happens when one more environment may not hold a slot. Reject fails the suspend. DemoteOldest moves the
    /// environment that has slept longest at tier Hot to a colder tier. Default: DemoteOldest with provider.aws, else
    /// Reject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<Overflow>,
}

/// One step to a cheaper tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Demotion {
    /// Time since the suspend.
    pub after: Duration,
    /// The tier it moves to.
    pub to: ColdTier,
}

/// A tier below Hot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ColdTier {
    /// The instance is stopped.
    Stopped,
    /// The workspace volume alone is kept.
    Detached,
    /// A snapshot of the workspace volume alone is kept.
    Snapshotted,
}

/// What happens when one more environment may not hold a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Overflow {
    /// The suspend fails.
    Reject,
    /// The environment that has slept longest at tier Hot moves on.
    DemoteOldest,
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
    /// Sleeping environments in the pool, at whatever tier. Default: no limit beyond the slots: those at tier Hot never
    /// hold more than all slots less the floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 16384))]
    pub max_environments: Option<u32>,
    /// Sleeping environments of one project. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 16384))]
    pub max_per_project: Option<u32>,
    /// Gibibytes of workspace volumes and snapshots that sleeping environments may hold. Default: no limit.
    #[serde(default, rename = "maxStorageGiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 16_777_216))]
    pub max_storage_gib: Option<u32>,
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

fn default_ttl() -> Duration {
    Duration::from_seconds(168 * 3600)
}

fn max_ttl() -> Duration {
    Duration::from_seconds(720 * 3600)
}
