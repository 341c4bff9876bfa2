//! What has been used so far, as a status shows it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What has been used so far. It is reckoned up when the status is written for another reason; from then on it goes on as
/// the status says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatus {
    /// The time up to which it is reckoned.
    pub until: Time,
    /// Hours of running instances, such as 12.5; of an environment, of its share of them.
    pub instance_hours: String,
    /// GiB of volumes times months of 730 hours, those of roots included.
    #[serde(rename = "volumeGiBMonths")]
    pub volume_gib_months: String,
    /// GiB of snapshots times months.
    #[serde(rename = "snapshotGiBMonths")]
    pub snapshot_gib_months: String,
    /// US dollars.
    pub dollars: String,
    /// US dollars that tiers below Hot have saved.
    pub saved_dollars: String,
}
