//! A lease that vanished while its job runs is made again.
//!
//! Who deletes a lease waits for its finalizer, and the job is stopped. One that is gone without that was lost: the API
//! server's database was restored to a state before it, or somebody took the finalizer away. The job on the host is
//! none the wiser, and this process knows all that stood in the objects: they are written again, and the job goes on.
//!
//! Writes: the JobLease, its status, its Secrets, in this order, since a lease with a payload and without a status would
//! be started anew. Death between them: the next holder finds a lease without its payload and closes it with an Event,
//! as it would have to without this.

use kube::ResourceExt;
use kube::core::ObjectMeta;

use super::{DriveError, Driver, payload};
use crate::api::JobLease;
use crate::deed::Point;

/// Makes the driver's lease again if it is gone.
pub async fn make_again_if_gone(driver: &mut Driver) -> Result<(), DriveError> {
    let held = &driver.held;
    let name = driver.lease.name_any();
    let store = &held.shared.leases;
    if !held.tenure().may_act() || store.cache.get(&held.namespace, &name).is_some() {
        return Ok(());
    }
    tracing::warn!(lease = name, "the lease is gone although its job is not over: it is made again");
    let parts = payload::pack_job(&driver.job)?;
    let wanted = again(&driver.lease, parts.len());
    let mark = held.arriving(&name);
    let (created, _) = store.create(held.deed(Point::LeaseMadeAgain).await, &held.namespace, &wanted).await?;
    let mut next = created.as_ref().clone();
    next.status = driver.lease.status.clone();
    let written = store.replace_status(held.deed(Point::LeaseStatusMadeAgain).await, &next).await?;
    payload::save(&held.shared, &written, &parts).await?;
    let note = "the lease was gone although its job was not over; it was made again".to_owned();
    held.shared.events.warning(written.as_ref(), "LeaseMadeAgain", "Restore", note).await;
    driver.lease = written;
    driver.made_again = mark;
    Ok(())
}

fn again(lease: &JobLease, payload_parts: usize) -> JobLease {
    let known = &lease.metadata;
    let metadata = ObjectMeta {
        name: known.name.clone(),
        namespace: known.namespace.clone(),
        labels: known.labels.clone(),
        annotations: known.annotations.clone(),
        finalizers: known.finalizers.clone(),
        ..ObjectMeta::default()
    };
    let mut spec = lease.spec.clone();
    spec.payload_parts = u32::try_from(payload_parts).unwrap_or(u32::MAX);
    JobLease { metadata, spec, status: None }
}
