//! What a Lease says, and what is written into one.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;

use super::LEASE_DURATION;

/// Who holds it; nobody when it was released.
pub fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// How often it has changed hands: the epoch.
pub fn transitions(lease: &Lease) -> u64 {
    let count = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
    count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
}

/// Its version as a number; versions of one API server only rise.
pub fn version(lease: &Lease) -> u64 {
    lease.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Held by that replica, in that epoch. The times are for people: nothing here reads them.
pub fn held(by: &str, epoch: u64, before: Option<&Lease>, now: Timestamp) -> LeaseSpec {
    let now = MicroTime(now);
    let acquired = before
        .filter(|lease| holder(lease) == Some(by))
        .and_then(|lease| lease.spec.as_ref()?.acquire_time.clone());
    LeaseSpec {
        holder_identity: Some(by.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
        renew_time: Some(now),
        lease_transitions: i32::try_from(epoch).ok(),
        ..LeaseSpec::default()
    }
}
