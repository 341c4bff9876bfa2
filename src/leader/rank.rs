//! Which replica is to hold which pool: rendezvous hashing, the same on every replica without a word between them.
//!
//! Each replica's weight for a pool is a hash of both; the pool is for the heaviest. A replica that goes moves only
//! the pools it had, and one that comes takes only those it is the heaviest for.

use sha2::{Digest, Sha256};

/// Replicas in the order in which they are to hold a pool.
pub fn order<'a>(replicas: impl IntoIterator<Item = &'a str>, pool: &str) -> Vec<&'a str> {
    let mut weighed: Vec<([u8; 32], &str)> =
        replicas.into_iter().map(|replica| (weight(replica, pool), replica)).collect();
    weighed.sort_unstable_by(|one, other| other.cmp(one));
    weighed.dedup();
    weighed.into_iter().map(|(_, replica)| replica).collect()
}

/// How many replicas are to hold a pool rather than this one, whether or not it is among them.
pub fn rank<'a>(replicas: impl IntoIterator<Item = &'a str>, pool: &str, replica: &str) -> usize {
    let own = (weight(replica, pool), replica);
    order(replicas, pool).into_iter().filter(|other| (weight(other, pool), *other) > own).count()
}

fn weight(replica: &str, pool: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((replica.len() as u64).to_be_bytes());
    hash.update(replica.as_bytes());
    hash.update(pool.as_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn first<'a>(replicas: &'a BTreeSet<String>, pool: &str) -> Option<&'a str> {
        order(replicas.iter().map(String::as_str), pool).first().copied()
    }

    fn pools(number: u32) -> impl Iterator<Item = String> {
        (0..number).map(|number| format!("pool-{number}"))
    }

    proptest! {
        #[test]
        fn a_replica_that_goes_moves_only_its_own_pools(
            replicas in btree_set("[a-z]{1,8}_[0-9a-f]{16}", 2..8),
            gone in any::<prop::sample::Index>(),
        ) {
            let gone = gone.get(&replicas.iter().cloned().collect::<Vec<_>>()).clone();
            let mut left = replicas.clone();
            left.remove(&gone);
            for pool in pools(50) {
                let before = first(&replicas, &pool);
                if before != Some(gone.as_str()) {
                    prop_assert_eq!(before, first(&left, &pool));
                }
            }
        }

        #[test]
        fn each_rank_is_taken_once_and_the_order_of_the_list_does_not_matter(
            replicas in btree_set("[a-z]{1,8}", 1..8),
            pool in "[a-z0-9-]{1,20}",
        ) {
            let names: Vec<&str> = replicas.iter().map(String::as_str).collect();
            let mut ranks: Vec<usize> = names.iter().map(|name| rank(names.clone(), &pool, name)).collect();
            ranks.sort_unstable();
            prop_assert_eq!(ranks, (0..names.len()).collect::<Vec<_>>());
            prop_assert_eq!(order(names.clone(), &pool), order(names.into_iter().rev(), &pool));
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn pools_are_spread(replicas in btree_set("[a-z]{1,8}_[0-9a-f]{16}", 2..6)) {
            let pools: Vec<String> = pools(500).collect();
            for replica in &replicas {
                let held = pools.iter().filter(|pool| first(&replicas, pool) == Some(replica)).count();
                let share = pools.len() / replicas.len();
                prop_assert!(held > share / 2 && held < share * 2, "{replica} holds {held} of {share}");
            }
        }
    }

    #[test]
    fn one_that_is_not_listed_has_the_rank_it_would_have() {
        let all = ["a", "b", "c"];
        let last = order(all, "p")[2];
        let others = all.into_iter().filter(|replica| *replica != last);
        assert_eq!(rank(others, "p", last), 2);
    }
}
