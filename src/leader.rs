//! Who holds a pool: one `coordination.k8s.io` Lease a pool, and the epoch that fences a former holder.
//!
//! The epoch is the Lease's transition count: every acquisition raises it, and supervisors refuse an older one than
//! they have seen. Expiry is judged by how long *this* process has seen the Lease unchanged, never by the clock
//! written in it, so clock skew between replicas does no harm. A holder that could not renew for
//! [`ACT_UNTIL`] stops acting before anybody else may begin.
//!
//! Writes: (1) create or replace the Lease with our identity and the raised count; (2) renewals. A death after (1)
//! leaves a Lease that runs out by itself; the next acquisition raises the count again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::labels;
use crate::clock;
use crate::kube_ext::{is_conflict, is_not_found};

/// How long a Lease is good without a renewal.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);

/// How long a holder acts without a successful renewal: shorter than the Lease by more than a slow request.
pub const ACT_UNTIL: Duration = Duration::from_secs(11);

/// Time between renewals, and between looks at another's Lease.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time for one request about a Lease.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// Why a Lease could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The API server refused or could not be asked.
    #[error("the pool's Lease could not be written")]
    Api(#[source] kube::Error),
    /// The API server did not answer in time.
    #[error("the API server did not answer about the pool's Lease within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// Somebody else holds it now.
    #[error("another replica holds the pool's Lease")]
    Lost,
}

/// The Lease of one pool, as seen by one replica.
pub struct Claim {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// What was seen last, and since when it has not changed.
    observed: Option<(Lease, Instant)>,
}

/// Held: the right to act for a pool. Dropping it gives up nothing; [`Tenure::release`] does.
pub struct Tenure {
    /// Cancelled when the right to act has ended.
    pub ended: CancellationToken,
    /// The epoch; raised in place when a supervisor has seen a higher one though the Lease is still ours.
    pub epoch: Arc<AtomicU64>,
    /// An epoch to raise the Lease to; see [`Tenure::raise_above`].
    wish: watch::Sender<u64>,
}

impl Tenure {
    fn new(epoch: u64) -> Self {
        Self {
            ended: CancellationToken::new(),
            epoch: Arc::new(AtomicU64::new(epoch)),
            wish: watch::Sender::new(epoch),
        }
    }

    /// A supervisor has seen this epoch, although the Lease is ours: it was deleted, or etcd was restored. The
    /// Lease is raised above it, and only then is the new epoch used.
    pub fn raise_above(&self, seen: u64) {
        self.wish.send_if_modified(|wish| {
            let raised = *wish <= seen;
            *wish = (*wish).max(seen + 1);
            raised
        });
    }

    /// The epoch now.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Whether anything durable may be done for the pool now.
    pub fn may_act(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Waits until the holder may act. Never returns once the tenure has ended: the task is then cancelled.
    pub async fn acting(&self) {
        if !self.may_act() {
            std::future::pending::<()>().await;
        }
    }
}

impl Claim {
    /// A claim on a pool's Lease.
    pub fn new(client: Client, namespace: &str, pool: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: lease_name(pool),
            identity: identity.to_owned(),
            observed: None,
        }
    }

    /// Waits until the pool is ours, or until cancelled. `seen` is the highest epoch known from elsewhere: a Lease
    /// that was deleted begins above it, or a holder that has not noticed yet would not be fenced off.
    pub async fn acquire(&mut self, cancel: &CancellationToken, seen: impl Fn() -> u64) -> Option<Tenure> {
        loop {
            match self.try_acquire(seen()).await {
                Ok(Some(epoch)) => {
                    return Some(Tenure::new(epoch));
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(lease = self.name, %error, "cannot acquire the pool yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
                () = cancel.cancelled() => return None,
            }
        }
    }

    async fn try_acquire(&mut self, seen: u64) -> Result<Option<u64>, LeaderError> {
        let Some(current) = self.read().await? else {
            let created = self.write(None, seen + 1).await?;
            return Ok(Some(self.observe(created)));
        };
        if !self.may_take(&current) {
            return Ok(None);
        }
        let epoch = transitions(&current).max(seen) + 1;
        match self.write(Some(&current), epoch).await {
            Ok(written) => Ok(Some(self.observe(written))),
            Err(LeaderError::Api(error)) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the Lease is free: released, or unchanged for its whole duration since we first saw it so. Our own
    /// name in it proves nothing: the identity is this process's alone, so it could only be a lost answer.
    fn may_take(&mut self, current: &Lease) -> bool {
        let holder = current.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or("");
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let unchanged_since = match &self.observed {
            Some((seen, since)) if seen.resource_version() == current.resource_version() => *since,
            Some(_) | None => {
                let now = Instant::now();
                self.observed = Some((current.clone(), now));
                now
            }
        };
        unchanged_since.elapsed() >= LEASE_DURATION
    }

    /// Keeps the Lease until it is lost or the tenure is ended from outside, then ends the tenure.
    pub async fn keep(&mut self, tenure: &Tenure) {
        let mut renewed = Instant::now();
        let mut wish = tenure.wish.subscribe();
        while !tenure.ended.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(RENEW_INTERVAL) => {}
                Ok(()) = wish.changed() => {}
                () = tenure.ended.cancelled() => return,
            }
            let epoch = *wish.borrow_and_update();
            let begun = Instant::now();
            // A gap longer than the Lease (a sleeping machine, SIGSTOP) has ended the tenure already, whatever the
            // API server would say to a renewal now.
            if renewed.elapsed() >= ACT_UNTIL {
                tracing::warn!(lease = self.name, "the pool was not renewed in time; giving it up");
                break;
            }
            match self.renew(epoch).await {
                Ok(()) => {
                    renewed = begun;
                    tenure.epoch.store(epoch, Ordering::SeqCst);
                }
                Err(LeaderError::Lost) => {
                    tracing::warn!(lease = self.name, "another replica holds the pool now");
                    break;
                }
                Err(error) => tracing::warn!(lease = self.name, %error, "the pool's Lease was not renewed"),
            }
        }
        tenure.ended.cancel();
    }

    async fn renew(&mut self, epoch: u64) -> Result<(), LeaderError> {
        let known = self.observed.as_ref().map(|(lease, _)| lease.clone());
        let current = match known {
            Some(lease) => lease,
            None => self.read().await?.ok_or(LeaderError::Lost)?,
        };
        match self.write(Some(&current), epoch).await {
            Ok(written) => {
                self.observe(written);
                Ok(())
            }
            Err(LeaderError::Api(error)) if is_conflict(&error) || is_not_found(&error) => {
                self.recover(epoch).await
            }
            Err(error) => Err(error),
        }
    }

    /// The Lease is not what we wrote: it may have been deleted or touched by somebody, or be another's now.
    async fn recover(&mut self, epoch: u64) -> Result<(), LeaderError> {
        let written = match self.read().await? {
            None => self.write(None, epoch).await?,
            Some(current) if holder(&current) == Some(&self.identity) => {
                self.write(Some(&current), epoch.max(transitions(&current))).await?
            }
            Some(_) => return Err(LeaderError::Lost),
        };
        self.observe(written);
        Ok(())
    }

    /// Gives the Lease up, keeping its count, so that the next holder need not wait.
    pub async fn release(&mut self) {
        let Some((current, _)) = self.observed.take() else { return };
        let mut freed = current;
        if let Some(spec) = freed.spec.as_mut() {
            spec.holder_identity = Some(String::new());
        }
        let params = PostParams::default();
        let result = self.api.replace(&self.name, &params, &freed);
        match tokio::time::timeout(CALL_TIMEOUT, result).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(lease = self.name, %error, "the pool's Lease was not released; it will run out");
            }
            Err(_) => tracing::warn!(lease = self.name, "the pool's Lease was not released in time"),
        }
    }

    /// Removes the Lease of a pool that is gone.
    pub async fn remove(&self) {
        let params = kube::api::DeleteParams::default();
        if let Err(error) = self.api.delete(&self.name, &params).await
            && !is_not_found(&error)
        {
            tracing::warn!(lease = self.name, %error, "the Lease of a removed pool was not deleted");
        }
    }

    fn observe(&mut self, lease: Lease) -> u64 {
        let epoch = transitions(&lease);
        self.observed = Some((lease, Instant::now()));
        epoch
    }

    async fn read(&self) -> Result<Option<Lease>, LeaderError> {
        tokio::time::timeout(CALL_TIMEOUT, self.api.get_opt(&self.name))
            .await
            .map_err(|_| LeaderError::Timeout)?
            .map_err(LeaderError::Api)
    }

    /// Writes the Lease with our name; over `current` only if it has not changed since.
    async fn write(&self, current: Option<&Lease>, epoch: u64) -> Result<Lease, LeaderError> {
        let now = MicroTime(clock::now());
        let acquired = current
            .filter(|lease| holder(lease) == Some(&self.identity))
            .and_then(|lease| lease.spec.as_ref()?.acquire_time.clone());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: i32::try_from(epoch).ok(),
            ..LeaseSpec::default()
        };
        let params = PostParams::default();
        let written = match current {
            Some(current) => {
                let lease = Lease { spec: Some(spec), ..current.clone() };
                tokio::time::timeout(CALL_TIMEOUT, self.api.replace(&self.name, &params, &lease)).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    labels: Some([(labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned())].into()),
                    ..ObjectMeta::default()
                };
                let lease = Lease { metadata, spec: Some(spec) };
                tokio::time::timeout(CALL_TIMEOUT, self.api.create(&params, &lease)).await
            }
        };
        written.map_err(|_| LeaderError::Timeout)?.map_err(LeaderError::Api)
    }
}

/// The name of a pool's Lease.
pub fn lease_name(pool: &str) -> String {
    format!("dormouse-pool-{pool}")
}

fn transitions(lease: &Lease) -> u64 {
    lease
        .spec
        .as_ref()
        .and_then(|spec| spec.lease_transitions)
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(0)
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref()
}
