//! Giving a pool up for the replica that is to hold it rather.
//!
//! Not at once: replicas come and go together, as in a rolling upgrade, and a pool moves once. And only at rest: the
//! pool takes no more jobs, and goes when its last one is over.

use std::time::Duration;

use super::moment::Moment;
use super::{Roster, Tenure, rank};

/// For how long another replica must have been the one to hold a pool.
pub const SETTLED: Duration = Duration::from_secs(30);

/// Says when a pool is to be given up, and takes it back when that has passed, until the tenure ends.
pub async fn give_way(tenure: &Tenure, roster: &Roster, pool: &str, pool_uid: &str) {
    let mut replicas = roster.replicas();
    let mut rather: Option<(String, Moment)> = None;
    loop {
        let known = replicas.borrow_and_update().clone();
        let first = rank::order(known.iter().map(String::as_str), pool_uid).first().copied();
        match first.filter(|first| *first != roster.identity()) {
            None => rather = None,
            Some(first) if rather.as_ref().is_some_and(|(known, _)| known == first) => {}
            Some(first) => rather = Some((first.to_owned(), Moment::now())),
        }
        let left = rather.as_ref().map(|(_, since)| SETTLED.saturating_sub(since.elapsed()));
        if tenure.set_leaving(left == Some(Duration::ZERO))
            && let Some((other, _)) = rather.as_ref().filter(|_| tenure.is_leaving())
        {
            tracing::info!(
                pool,
                other,
                "the pool is given up when it is at rest: another replica is to hold it"
            );
        }
        let settling = left.filter(|left| !left.is_zero());
        tokio::select! {
            () = tokio::time::sleep(settling.unwrap_or_default()), if settling.is_some() => {}
            // The sender lives in the roster: waiting cannot fail.
            _ = replicas.changed() => {}
            () = tenure.ended().cancelled() => return,
        }
    }
}
