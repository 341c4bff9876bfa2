//! What the operator hands over for a job's caches: the plan, where they are kept, and addresses signed for this job.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::gitlab::cache::CachePlan;

/// The caches of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheOrder {
    /// One for each cache, in the job's order.
    pub plans: Vec<CachePlan>,
    /// Where they are kept.
    pub store: CacheStore,
    /// Bytes of an archive that is saved; 0 is no limit.
    pub largest_archive: u64,
    /// Seconds that one request to a bucket may take.
    pub request_timeout: u64,
}

impl CacheOrder {
    /// When the first of its addresses ends, if it has such.
    pub fn addresses_end(&self) -> Option<Timestamp> {
        match &self.store {
            CacheStore::Bucket(urls) => Some(urls.valid_until),
            CacheStore::Host { .. } | CacheStore::Nowhere { .. } => None,
        }
    }
}

/// Where caches are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheStore {
    /// On the host itself, for all of its slots.
    Host {
        /// The folder; the state folder's own where none is named.
        folder: Option<String>,
    },
    /// In a bucket, by signed addresses.
    Bucket(CacheUrls),
    /// Nowhere now.
    Nowhere {
        /// Why, for the log. Never a secret.
        why: String,
    },
}

/// Addresses signed for one job. Whoever has one can do what it says until it ends, so they are kept like secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUrls {
    /// When the first of them ends.
    pub valid_until: Timestamp,
    /// One for each plan.
    pub caches: Vec<CacheUrl>,
}

/// The addresses of one cache.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUrl {
    /// Where to get it: one for each of the plan's keys if it is restored, else none.
    pub get: Vec<String>,
    /// Where to put it, if it is saved.
    pub put: Option<String>,
}

impl fmt::Debug for CacheUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheUrls").field("valid_until", &self.valid_until).finish_non_exhaustive()
    }
}

impl fmt::Debug for CacheUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheUrl").field("get", &self.get.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_addresses_shows_no_signature() {
        let url = "https://b/k?X-Amz-Signature=abc".to_owned();
        let urls = CacheUrls {
            valid_until: Timestamp::UNIX_EPOCH,
            caches: vec![CacheUrl { get: vec![url.clone()], put: Some(url) }],
        };
        let shown = format!("{urls:?} {:?}", urls.caches);
        assert!(!shown.contains("Signature"), "{shown}");
    }
}
