//! Who may give orders to this host: one pool, and of its holders the newest.
//!
//! The epoch only ever rises. It is read and raised under the host's lock, so an order of an old holder that comes
//! late finds the newer epoch, however the two race.

use std::io;

use super::refuse::{OrRefuse, refusal};
use super::state::{Durability, StateFolder, read_json, write_json};
use crate::spool::FORMAT;
use crate::spool::record::Claim;
use crate::spool::verb::{Refusal, RefusalReason};

/// Who speaks.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Uid of the pool; verbs about one job know it by the job.
    pub pool_uid: Option<&'a str>,
    /// `namespace/name` of the pool, when it is said.
    pub pool: Option<&'a str>,
    /// The holder's epoch.
    pub epoch: u64,
}

/// Admits a caller and raises the epoch. The caller holds the host's lock.
///
/// # Errors
/// A refusal when another pool owns the host or a newer holder has been here.
pub fn admit(state: &StateFolder, caller: Caller<'_>) -> Result<Claim, Refusal> {
    let seen = read(state).or_refuse("failed to read the host's claim")?;
    let claim = judge(seen.as_ref(), caller)?;
    if seen.as_ref() != Some(&claim) {
        write_json(&state.claim(), &claim, Durability::Durable)
            .or_refuse("failed to write the host's claim")?;
    }
    Ok(claim)
}

/// The claim as it stands.
///
/// # Errors
/// When it cannot be read.
pub fn read(state: &StateFolder) -> io::Result<Option<Claim>> {
    read_json(&state.claim())
}

/// Why a holder that was admitted at an epoch is not any more, if that is so. Takes no lock: a claim only ever rises.
///
/// # Errors
/// When the claim cannot be read.
pub fn outrun(state: &StateFolder, epoch: u64) -> io::Result<Option<Refusal>> {
    let Some(seen) = read(state)? else { return Ok(None) };
    Ok(judge(Some(&seen), Caller { pool_uid: None, pool: None, epoch }).err())
}

fn judge(seen: Option<&Claim>, caller: Caller<'_>) -> Result<Claim, Refusal> {
    let Some(seen) = seen else {
        return Ok(Claim {
            format: FORMAT,
            pool_uid: caller.pool_uid.unwrap_or_default().to_owned(),
            pool: caller.pool.unwrap_or_default().to_owned(),
            epoch: caller.epoch,
        });
    };
    if caller.pool_uid.is_some_and(|uid| uid != seen.pool_uid && !seen.pool_uid.is_empty()) {
        return Err(refusal(
            RefusalReason::ClaimedByOther { pool: seen.pool.clone(), pool_uid: seen.pool_uid.clone() },
            format!("the host belongs to pool {}; remove it from that pool first", seen.pool),
        ));
    }
    if caller.epoch < seen.epoch {
        return Err(refusal(
            RefusalReason::StaleEpoch { seen: seen.epoch },
            format!("epoch {} is older than {}, which the host has seen", caller.epoch, seen.epoch),
        ));
    }
    Ok(Claim {
        format: FORMAT,
        pool_uid: caller.pool_uid.map_or_else(|| seen.pool_uid.clone(), str::to_owned),
        pool: caller.pool.map_or_else(|| seen.pool.clone(), str::to_owned),
        epoch: caller.epoch,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(epoch: u64) -> Claim {
        Claim { format: FORMAT, pool_uid: "u".into(), pool: "ns/p".into(), epoch }
    }

    fn caller(pool_uid: Option<&'static str>, epoch: u64) -> Caller<'static> {
        Caller { pool_uid, pool: None, epoch }
    }

    #[test]
    fn an_older_epoch_is_refused_with_the_newest_seen() {
        let refused = judge(Some(&claim(7)), caller(None, 6)).unwrap_err();
        assert_eq!(refused.reason, RefusalReason::StaleEpoch { seen: 7 });
    }

    #[test]
    fn a_newer_epoch_raises_and_the_same_one_is_admitted() {
        assert_eq!(judge(Some(&claim(7)), caller(Some("u"), 9)).unwrap(), claim(9));
        assert_eq!(judge(Some(&claim(7)), caller(None, 7)).unwrap(), claim(7));
    }

    #[test]
    fn another_pool_is_refused_whatever_its_epoch() {
        let refused = judge(Some(&claim(7)), caller(Some("other"), 99)).unwrap_err();
        assert!(matches!(refused.reason, RefusalReason::ClaimedByOther { .. }));
    }
}
