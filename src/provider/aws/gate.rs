//! Where every call to AWS waits for its turn. Owns the buckets of one account and region.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::action::Family;
use super::limit::{Bucket, Limits};

/// The buckets of an account.
pub struct Gate {
    buckets: Mutex<Buckets>,
}

struct Buckets {
    read: Bucket,
    mutate: Bucket,
    launch: Bucket,
}

impl Buckets {
    fn of(&mut self, family: Family) -> &mut Bucket {
        match family {
            Family::Read => &mut self.read,
            Family::Mutate => &mut self.mutate,
            Family::Launch => &mut self.launch,
        }
    }
}

impl Gate {
    /// An open one.
    pub fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        let bucket = |family| Bucket::new(limits.of(family), now);
        let buckets = Buckets {
            read: bucket(Family::Read),
            mutate: bucket(Family::Mutate),
            launch: bucket(Family::Launch),
        };
        Self { buckets: Mutex::new(buckets) }
    }

    /// Waits for a turn; false, at once, when the wait would be too long.
    pub async fn enter(&self, family: Family) -> bool {
        let wait = self.with(|buckets| buckets.of(family).take(Instant::now()));
        match wait {
            Some(Duration::ZERO) => true,
            Some(wait) => {
                tokio::time::sleep(wait).await;
                true
            }
            None => false,
        }
    }

    /// AWS asked for fewer calls of a family.
    pub fn throttled(&self, family: Family) {
        self.with(|buckets| buckets.of(family).throttled(Instant::now()));
    }

    /// Whether AWS asked for fewer calls of late.
    pub fn is_slow(&self) -> bool {
        let now = Instant::now();
        self.with(|buckets| {
            let Buckets { read, mutate, launch } = buckets;
            [read, mutate, launch].iter().any(|bucket| bucket.is_slow(now))
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Buckets) -> T) -> T {
        look(&mut self.buckets.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
