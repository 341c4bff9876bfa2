//! What to do with environments a host lists: nothing of ours stays there without an object that owns it. Pure.
//!
//! Nothing is removed on first sight. An environment whose lease is known to be over may go at once; one that no
//! object knows is marked and goes only after a grace, with caches in sync: the object may have been restored from
//! a backup a moment later, or the list may have overtaken the watch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

/// How long an environment no object knows is left alone after it was first seen.
pub const GRACE: Duration = Duration::from_secs(15 * 60);

/// What the objects say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Environments of open leases and of SuspendedEnvironments: never touched here.
    pub owned: BTreeSet<String>,
    /// Environments of leases that are over.
    pub over: BTreeSet<String>,
}

/// What to do, and what is remembered until the next look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Environments to remove from the host.
    pub remove: Vec<String>,
    /// When each unknown environment was first seen.
    pub first_seen: BTreeMap<String, Timestamp>,
}

/// Decides about the environments a host lists.
pub fn sweep(
    listed: &BTreeSet<String>,
    known: &Known,
    first_seen: &BTreeMap<String, Timestamp>,
    now: Timestamp,
) -> Sweep {
    let mut sweep = Sweep::default();
    for environment in listed.difference(&known.owned) {
        if known.over.contains(environment) {
            sweep.remove.push(environment.clone());
            continue;
        }
        let since = first_seen.get(environment).copied().unwrap_or(now);
        let waited = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
        if waited >= GRACE {
            sweep.remove.push(environment.clone());
        } else {
            sweep.first_seen.insert(environment.clone(), since);
        }
    }
    sweep
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_unknown_environment_is_marked_first_and_removed_after_the_grace() {
        let listed = set(&["stray"]);
        let known = Known::default();
        let first = sweep(&listed, &known, &BTreeMap::new(), at(0));
        assert!(first.remove.is_empty());
        let second = sweep(&listed, &known, &first.first_seen, at(60));
        assert!(second.remove.is_empty());
        let third = sweep(&listed, &known, &second.first_seen, at(GRACE.as_secs() as i64));
        assert_eq!(third.remove, ["stray"]);
    }

    #[test]
    fn an_owned_environment_is_never_removed_even_when_its_lease_is_over() {
        let listed = set(&["kept", "over"]);
        let known = Known { owned: set(&["kept"]), over: set(&["kept", "over"]) };
        assert_eq!(sweep(&listed, &known, &BTreeMap::new(), at(0)).remove, ["over"]);
    }

    #[test]
    fn a_mark_is_forgotten_when_an_object_appears() {
        let listed = set(&["e"]);
        let marked = BTreeMap::from([("e".to_owned(), at(0))]);
        let known = Known { owned: set(&["e"]), ..Known::default() };
        let swept = sweep(&listed, &known, &marked, at(GRACE.as_secs() as i64));
        assert_eq!(swept, Sweep::default());
    }
}
