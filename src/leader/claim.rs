//! The Lease of one pool, as one replica acquires, keeps and releases it.
//!
//! The Lease is watched, not asked for: a replica that stands by costs the API server nothing for it, and sees a
//! release at once.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::epoch::Epoch;
use super::lease::{held, holder, transitions, version};
use super::moment::Moment;
use super::turn::{Holding, Turn, View, turn};
use super::{LeaderError, RENEW_INTERVAL, RETRY_INTERVAL, Roster, Tenure, call, write};
use crate::api::labels;
use crate::clock;
use crate::deed::Point;
use crate::kube_ext::cache::Cache;
use crate::kube_ext::{is_conflict, is_not_found};
use crate::telemetry::{EpochGuard, Metrics};

/// The claim of one replica on one pool's Lease.
pub struct Claim {
    api: Api<Lease>,
    seen: Cache<Lease>,
    roster: Roster,
    metrics: Metrics,
    namespace: String,
    pool: String,
    pool_uid: String,
    name: String,
    identity: String,
    /// As this replica last wrote it, or read it as its own.
    held: Option<Lease>,
}

/// What else is known of who held a pool.
#[derive(Debug, Clone, Default)]
pub struct LastHolder {
    /// Who held it last, by its status.
    pub identity: Option<String>,
    /// The highest epoch its status has shown: a Lease that was deleted begins above it.
    pub epoch: u64,
}

impl Claim {
    /// A claim on a pool's Lease.
    pub fn new(
        client: Client,
        leases: Cache<Lease>,
        roster: Roster,
        metrics: Metrics,
        (namespace, pool, pool_uid): (&str, &str, &str),
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            seen: leases,
            identity: roster.identity().to_owned(),
            roster,
            metrics,
            namespace: namespace.to_owned(),
            pool: pool.to_owned(),
            pool_uid: pool_uid.to_owned(),
            name: lease_name(pool),
            held: None,
        }
    }

    /// Waits until the pool is ours, or until cancelled.
    pub async fn acquire(
        &mut self,
        cancel: &CancellationToken,
        last: impl Fn() -> LastHolder,
    ) -> Option<Tenure> {
        let mut changes = self.seen.changes();
        let mut replicas = self.roster.replicas();
        let mut sighting = Sighting::of(None);
        loop {
            changes.borrow_and_update();
            let known = replicas.borrow_and_update().clone();
            let current = self.seen.get(&self.namespace, &self.name);
            sighting.look(current.as_deref());
            let last = last();
            let view = View {
                me: &self.identity,
                pool: &self.pool_uid,
                replicas: &known,
                holding: holding(current.as_deref(), &last),
                unchanged: sighting.since.elapsed(),
                in_touch: self.roster.in_touch(),
            };
            let wait = match turn(&view) {
                Turn::Wait(wait) => wait,
                Turn::Take => match self.take(current, last.epoch).await {
                    Ok(tenure) => return Some(tenure),
                    Err(error) => {
                        tracing::debug!(lease = self.name, %error, "the pool could not be acquired yet");
                        // What was silent meanwhile may only have been unheard.
                        sighting.since = Moment::now();
                        RETRY_INTERVAL
                    }
                },
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The senders live as long as the claim: waiting cannot fail.
                _ = changes.changed() => {}
                _ = replicas.changed() => {}
                () = cancel.cancelled() => return None,
            }
        }
    }

    /// (1)
    async fn take(&mut self, current: Option<Arc<Lease>>, last_epoch: u64) -> Result<Tenure, LeaderError> {
        let begun = Moment::now();
        let epoch = current.as_deref().map_or(0, transitions).max(last_epoch) + 1;
        let written = match self.write(Point::HoldTaken, current.as_deref(), epoch).await {
            Ok(written) => written,
            Err(error) => {
                // Somebody was faster, or the watch is behind: the next look sees what there is.
                if is_stale(&error) {
                    self.read().await?;
                }
                return Err(error);
            }
        };
        self.held = Some(written);
        Ok(Tenure::new(Epoch::new(&self.pool, epoch, self.metrics.clone()), begun))
    }

    /// Keeps the Lease until another replica has it or the tenure is ended from outside, then ends the tenure.
    pub async fn keep(&mut self, tenure: &Tenure) {
        let mut seen = tenure.epoch().seen();
        let mut changes = self.seen.changes();
        let mut heeded = None;
        let mut wait = RENEW_INTERVAL;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = seen.changed() => {}
                version = self.disturbance(&mut changes, heeded) => heeded = Some(version),
                () = tenure.ended().cancelled() => return,
            }
            let highest = *seen.borrow_and_update();
            match self.renew(tenure, highest).await {
                Ok(()) => wait = RENEW_INTERVAL,
                Err(LeaderError::Lost { epoch }) => {
                    tenure.epoch().refused(EpochGuard::Lease, &self.name, epoch);
                    tracing::warn!(lease = self.name, "another replica holds the pool now");
                    break;
                }
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "the pool's Lease was not renewed");
                    tenure.not_renewed();
                    if !tenure.may_act() && highest > tenure.epoch().get() {
                        // Nobody can say that the Lease is still ours, and a host says that it is not.
                        tracing::warn!(lease = self.name, "a newer holder has been seen; giving the pool up");
                        break;
                    }
                    wait = RETRY_INTERVAL;
                }
            }
        }
        tenure.end();
    }

    /// Waits until the watch shows that the Lease is not ours; answers the version it shows, zero when it is gone. A
    /// version that was heeded before is not told again: after a restore the watch may show what is no more.
    async fn disturbance(&self, changes: &mut tokio::sync::watch::Receiver<u64>, heeded: Option<u64>) -> u64 {
        loop {
            changes.borrow_and_update();
            let shown = self.seen.get(&self.namespace, &self.name);
            let is_ours = shown.as_deref().and_then(holder) == Some(&self.identity);
            let version = shown.as_deref().map_or(0, version);
            if !is_ours && heeded != Some(version) {
                return version;
            }
            // The sender lives in the cache: waiting cannot fail.
            let _ = changes.changed().await;
        }
    }

    /// (2). After a gap in which another replica could have held the pool it is acquired again, under a higher epoch.
    async fn renew(&mut self, tenure: &Tenure, highest_seen: u64) -> Result<(), LeaderError> {
        let begun = Moment::now();
        let own = tenure.epoch().get();
        let is_past = !tenure.may_act();
        let mut epoch = if highest_seen > own { highest_seen + 1 } else { own + u64::from(is_past) };
        let point = Point::HoldRenewed;
        let known = self.held.take();
        let written = match known {
            Some(known) => {
                self.write(point, Some(&known), epoch).await.inspect_err(|_| self.held = Some(known))
            }
            None => self.write(point, None, epoch).await,
        };
        let written = match written {
            // The Lease is not what we wrote: somebody deleted or touched it, it was restored, or it is another's.
            Err(error) if is_stale(&error) => {
                let current = self.read().await?;
                if let Some(current) = &current {
                    let theirs = transitions(current);
                    // One of an earlier epoch than ours is of the past, whoever it names: it was restored.
                    if holder(current) != Some(&self.identity) && theirs >= own {
                        return Err(LeaderError::Lost { epoch: theirs });
                    }
                    epoch = epoch.max(theirs);
                }
                self.write(point, current.as_deref(), epoch).await?
            }
            other => other?,
        };
        self.held = Some(written);
        if epoch != own {
            tracing::info!(lease = self.name, from = own, to = epoch, "the pool's epoch was raised");
        }
        tenure.renewed(begun, epoch);
        Ok(())
    }

    /// (3): gives the Lease up, keeping its count, so that the next holder need not wait.
    pub async fn release(&mut self) {
        let Some(mut freed) = self.held.take() else { return };
        if let Some(spec) = freed.spec.as_mut() {
            spec.holder_identity = Some(String::new());
        }
        match write(Point::HoldGivenUp, self.api.replace(&self.name, &PostParams::default(), &freed)).await {
            Ok(freed) => {
                self.seen.record(freed);
            }
            // It is another's already.
            Err(error) if is_stale(&error) => {}
            Err(error) => {
                tracing::warn!(lease = self.name, %error, "the pool's Lease was not released; it will run out");
            }
        }
    }

    /// Removes the Lease of a pool that is gone.
    pub async fn remove(&self) {
        match write(Point::HoldRemoved, self.api.delete(&self.name, &DeleteParams::default())).await {
            Ok(_) => {}
            Err(LeaderError::Api(error)) if is_not_found(&error) => {}
            Err(error) => {
                tracing::warn!(lease = self.name, %error, "the Lease of a removed pool was not deleted");
            }
        }
    }

    async fn read(&self) -> Result<Option<Arc<Lease>>, LeaderError> {
        let current = call(self.api.get_opt(&self.name)).await?;
        Ok(current.map(|current| self.seen.record(current)))
    }

    /// Writes the Lease with our name; over `current` only if it has not changed since.
    async fn write(&self, point: Point, current: Option<&Lease>, epoch: u64) -> Result<Lease, LeaderError> {
        let spec = Some(held(&self.identity, epoch, current, clock::now()));
        let params = PostParams::default();
        let written = match current {
            Some(current) => {
                let lease = Lease { spec, ..current.clone() };
                write(point, self.api.replace(&self.name, &params, &lease)).await?
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    labels: Some([(labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned())].into()),
                    ..ObjectMeta::default()
                };
                write(point, self.api.create(&params, &Lease { metadata, spec })).await?
            }
        };
        self.seen.record(written.clone());
        Ok(written)
    }
}

/// Since when a Lease has been seen as it is.
struct Sighting {
    version: Option<String>,
    since: Moment,
}

impl Sighting {
    fn of(lease: Option<&Lease>) -> Self {
        Self { version: lease.and_then(ResourceExt::resource_version), since: Moment::now() }
    }

    fn look(&mut self, lease: Option<&Lease>) {
        let now = Self::of(lease);
        if now.version != self.version {
            *self = now;
        }
    }
}

fn holding<'a>(lease: Option<&'a Lease>, last: &'a LastHolder) -> Holding<'a> {
    match lease {
        None => Holding::Absent { last: last.identity.as_deref() },
        Some(lease) => holder(lease).map_or(Holding::Free, Holding::By),
    }
}

/// Whether a write was refused because the Lease is not as it was known: changed, deleted or created meanwhile.
fn is_stale(error: &LeaderError) -> bool {
    matches!(error, LeaderError::Api(error) if is_conflict(error) || is_not_found(error))
}

/// The name of a pool's Lease.
pub fn lease_name(pool: &str) -> String {
    format!("dormouse-pool-{pool}")
}
