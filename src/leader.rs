//! Who holds a pool: one `coordination.k8s.io` Lease a pool, and the epoch that fences a former holder.
//!
//! The epoch is the Lease's transition count: every acquisition raises it, and supervisors refuse an older one than
//! they have seen. Silence is judged by how long *this* process has seen a Lease unchanged, never by the clock
//! written in it, so clock skew between replicas does no harm.
//!
//! Each replica announces itself by a Lease of its own; from those that are alive each works out by itself which of
//! them is to hold which pool ([`rank`]), takes the pools that are its to take ([`turn`]) and gives up those that are
//! another's once they are at rest ([`spread`]).
//!
//! Writes: (1) create or replace a pool's Lease with our identity and the raised count; (2) renewals; (3) the release.
//! A death after (1) or (2) leaves a Lease that runs out by itself; the next acquisition raises the count again.

use std::time::Duration;

use crate::deed::{Deed, Point};

pub mod claim;
pub mod epoch;
pub mod lease;
pub mod moment;
pub mod rank;
pub mod roster;
pub mod spread;
pub mod tenure;
pub mod turn;

pub use claim::Claim;
pub use roster::Roster;
pub use tenure::Tenure;

/// How long a Lease is good without a renewal.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);

/// How long a holder acts without a successful renewal: shorter than the Lease by more than a slow request.
pub const ACT_UNTIL: Duration = Duration::from_secs(11);

/// Time between renewals of a pool's Lease, and from a failure to the next try.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time for one request about a Lease.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// Why a Lease could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The API server refused or could not be asked.
    #[error("the API server: {0}")]
    Api(#[source] kube::Error),
    /// The API server did not answer in time.
    #[error("the API server did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// Somebody else holds it now.
    #[error("another replica holds the pool's Lease")]
    Lost {
        /// The epoch of that replica, if its Lease could be read.
        epoch: u64,
    },
}

/// Makes one write of a Lease, in bounded time. It is what permits every other deed, so it asks for no tenure itself:
/// its resource version guards it.
async fn write<T>(
    point: Point,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, LeaderError> {
    Deed::unfenced(point).make(call(request), |answer| answer).await
}

/// Makes one request about a Lease, in bounded time.
async fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, LeaderError> {
    tokio::time::timeout(CALL_TIMEOUT, request)
        .await
        .map_err(|_| LeaderError::Timeout)?
        .map_err(LeaderError::Api)
}
