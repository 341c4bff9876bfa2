//! How many instances a RunnerPool with a cloud has, and when.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::duration::Duration;

/// How many slots are kept idle during some times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScalingPolicy {
    /// When it holds: five-field cron expressions, each read as the minutes in which it holds, such as
    /// `* 8-17 * * mon-fri`. Default: always.
    #[serde(default = "always")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 256)))]
    pub periods: Vec<String>,
    /// Time zone of the periods, such as Europe/Berlin. Default: UTC.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub timezone: String,
    /// Slots to keep idle. Default: 0.
    #[serde(default)]
    #[schemars(range(max = 64000))]
    pub idle_count: u32,
    /// How long an instance may be without work before it goes. Default: 5m.
    #[serde(default = "default_idle_time")]
    pub idle_time: Duration,
    /// Slots to keep idle for each slot in use, such as 0.5, where that is more than idleCount. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub scale_factor: f64,
    /// Most slots to keep idle by scaleFactor; 0 is no limit. Default: 0.
    #[serde(default)]
    #[schemars(range(max = 64000))]
    pub scale_factor_limit: u32,
    /// Whether jobs are only asked for while a slot is idle, so that none waits for an instance. Default: whether
    /// idleCount is above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preemptive_mode: Option<bool>,
}

/// How fast the fleet is watched and changed.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("duration(self.updateInterval) >= duration('1s') && duration(self.updateIntervalWhenExpecting) >= duration('1s')").message("scaling.updateInterval and updateIntervalWhenExpecting must be at least 1s: AWS limits how often it may be asked"))]
pub struct ScalingSpec {
    /// How often the cloud is looked at while nothing is expected of it. Default: 30s.
    #[serde(default = "default_update_interval")]
    pub update_interval: Duration,
    /// The same while an instance or volume is on its way. Default: 2s.
    #[serde(default = "default_expecting_interval")]
    pub update_interval_when_expecting: Duration,
    /// How soon an instance that was told to go and is still there is told again. Default: 1m.
    #[serde(default = "default_deletion_retry")]
    pub deletion_retry_interval: Duration,
    /// How often in a row an instance may be found unreachable, once a minute, before it is replaced. It is never
    /// replaced under a job or a sleeping environment. Default: 3.
    #[serde(default = "default_failure_threshold")]
    #[schemars(range(min = 1, max = 1000))]
    pub failure_threshold: u32,
    /// Instances that may be asked for in a minute; 0 is no limit. Default: 100.
    #[serde(default = "default_throttle")]
    #[schemars(range(max = 100_000))]
    pub launches_per_minute: u32,
}

impl Default for ScalingSpec {
    fn default() -> Self {
        Self {
            update_interval: default_update_interval(),
            update_interval_when_expecting: default_expecting_interval(),
            deletion_retry_interval: default_deletion_retry(),
            failure_threshold: default_failure_threshold(),
            launches_per_minute: default_throttle(),
        }
    }
}

fn default_idle_time() -> Duration {
    Duration::from_seconds(5 * 60)
}

fn default_update_interval() -> Duration {
    Duration::from_seconds(30)
}

fn default_expecting_interval() -> Duration {
    Duration::from_seconds(2)
}

fn default_deletion_retry() -> Duration {
    Duration::from_seconds(60)
}

fn default_failure_threshold() -> u32 {
    3
}

fn default_throttle() -> u32 {
    100
}

fn always() -> Vec<String> {
    vec!["* * * * *".to_owned()]
}

fn utc() -> String {
    "UTC".to_owned()
}
