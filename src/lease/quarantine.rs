//! Slots in doubt: a job has ended for GitLab, and its host has not said that nothing of it is left there.
//!
//! The doubt stands in the status of the job's lease (condition `SlotClean`), written with its last step, so that every
//! holder knows of it. Such a lease owns its slot, and is kept, until the host answers and what was there is removed, or
//! until the pool has no such host any more.

use std::sync::Arc;

use kube::ResourceExt;

use super::record::Step;
use super::{DriveError, record_step};
use crate::api::JobLease;
use crate::api::suspended_environment::object_name;
use crate::pool::Held;

/// Why a lease that ends leaves its slot in doubt; `None` when it holds none, or when an environment owns it from now
/// on: that is known to its host by itself.
pub fn doubt(held: &Held, lease: &JobLease) -> Option<String> {
    let (instance, slot) = lease.place()?;
    // What was on an instance that its cloud has ended is gone with it.
    if held.loss_of(instance).is_some() {
        return None;
    }
    if held.environment(&object_name(&held.name, &lease.spec.environment_id)).is_some() {
        return None;
    }
    Some(format!("instance {instance} has not said yet that nothing of the job is left on slot {slot}"))
}

/// Leases that keep slots of an instance in quarantine.
pub fn of_instance(held: &Held, instance: &str) -> Vec<Arc<JobLease>> {
    let names: Vec<String> =
        held.book(|book| book.occupancy.quarantines_on(instance).map(str::to_owned).collect());
    names.iter().filter_map(|name| held.lease(name)).collect()
}

/// The host has said that nothing of the lease's job is left on its slot.
pub async fn lift(held: &Held, lease: &Arc<JobLease>) -> Result<(), DriveError> {
    record_step(held, lease, &Step::SlotSeenClean).await?;
    tracing::info!(pool = held.name, lease = lease.name_any(), "the slot was seen clean");
    let note = "nothing of the job is left on its slot".to_owned();
    held.shared.events.normal(lease.as_ref(), "SlotClean", "Clean", note).await;
    Ok(())
}
