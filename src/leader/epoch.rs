//! The epoch of one tenure, shared with everything that shows it: links to hosts, statuses of objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::telemetry::{EpochGuard, Metrics};

/// An epoch. Cloning shares it.
#[derive(Clone)]
pub struct Epoch {
    inner: Arc<Inner>,
}

struct Inner {
    pool: String,
    value: AtomicU64,
    /// The highest epoch that anything has shown us, ours included.
    seen: watch::Sender<u64>,
    metrics: Metrics,
}

impl std::fmt::Debug for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Epoch({} of {})", self.get(), self.inner.pool)
    }
}

impl Epoch {
    /// An epoch of a pool that was just acquired.
    pub fn new(pool: &str, value: u64, metrics: Metrics) -> Self {
        let inner = Inner {
            pool: pool.to_owned(),
            value: AtomicU64::new(value),
            seen: watch::Sender::new(value),
            metrics,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Its value now.
    pub fn get(&self) -> u64 {
        self.inner.value.load(Ordering::SeqCst)
    }

    /// Something keeps a higher epoch than ours and refuses us for it: a newer holder has been there, or the Lease
    /// was deleted or restored. The Lease tells which; see [`super::claim::Claim::keep`].
    pub fn refused(&self, by: EpochGuard, at: &str, seen: u64) {
        tracing::warn!(
            pool = self.inner.pool,
            epoch = self.get(),
            seen,
            by = by.as_str(),
            at,
            "refused: this replica's epoch is over"
        );
        self.inner.metrics.epoch_refused(&self.inner.pool, by);
        self.inner.seen.send_if_modified(|known| {
            let is_news = *known < seen;
            *known = (*known).max(seen);
            is_news
        });
    }

    /// The highest epoch anything has shown us, as it changes.
    pub(super) fn seen(&self) -> watch::Receiver<u64> {
        self.inner.seen.subscribe()
    }

    pub(super) fn set(&self, value: u64) {
        self.inner.value.store(value, Ordering::SeqCst);
    }
}
