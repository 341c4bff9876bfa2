//! Tries a pool's bucket again and again, so that what is wrong with it is told before a job needs it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::answer::Problem;
use super::{Bucket, Caches};
use crate::pool::Held;

/// How often a bucket that takes what is signed is tried.
const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// How often one that does not is tried.
const RETRY: Duration = Duration::from_secs(10);

/// What is known of where caches are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Each host keeps its own.
    Host,
    /// The bucket takes what is signed.
    Good,
    /// Caches cannot be kept.
    Bad(Problem),
}

/// Keeps the verdict of a held pool up to date.
pub async fn watch(held: Arc<Held>) {
    let mut judged: Option<Option<Arc<Bucket>>> = None;
    let mut again_at = Instant::now();
    loop {
        let Some(settings) = held.settings() else {
            held.wait_for_change().await;
            continue;
        };
        let bucket = settings.caches.bucket().cloned();
        let is_same = match (&judged, &bucket) {
            (Some(Some(known)), Some(bucket)) => Arc::ptr_eq(known, bucket),
            (Some(None), None) => true,
            (Some(Some(_) | None) | None, _) => false,
        };
        if !is_same || Instant::now() >= again_at {
            let verdict = match &settings.caches {
                Caches::Host => Verdict::Host,
                Caches::Nowhere(problem) => Verdict::Bad(problem.clone()),
                Caches::Bucket(bucket) => {
                    bucket.try_out().await.map_or_else(Verdict::Bad, |()| Verdict::Good)
                }
            };
            let wait = match &verdict {
                Verdict::Host | Verdict::Good => INTERVAL,
                Verdict::Bad(_) => RETRY,
            };
            again_at = Instant::now() + wait;
            judged = Some(bucket);
            tell(&held, verdict).await;
        }
        tokio::select! {
            () = held.wait_for_change() => {}
            () = sleep_until(again_at) => {}
        }
    }
}

/// Notes a verdict, and says it where it is news.
async fn tell(held: &Held, verdict: Verdict) {
    if !held.note_caches(verdict.clone()) {
        return;
    }
    held.wake();
    match verdict {
        Verdict::Host | Verdict::Good => {}
        Verdict::Bad(Problem { reason, message }) => {
            tracing::warn!(pool = held.name, reason, why = message, "caches of jobs cannot be kept");
            if let Some(pool) = held.pool() {
                held.shared.events.warning(pool.as_ref(), reason, "TryBucket", message).await;
            }
        }
    }
}
