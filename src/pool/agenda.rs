//! What is to be looked at: some things now, others when their time comes. Pure.
//!
//! A name is on it once for now and once for a time; nothing on it is ever longer than what it is about.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

/// Names to look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agenda {
    now: BTreeSet<String>,
    at: BTreeMap<String, Timestamp>,
    by_time: BTreeSet<(Timestamp, String)>,
}

impl Agenda {
    /// Puts a name on it for now.
    pub fn now(&mut self, name: impl Into<String>) {
        self.now.insert(name.into());
    }

    /// Puts a name on it for a time, in place of the time it had; `None` takes that away.
    pub fn at(&mut self, name: &str, time: Option<Timestamp>) {
        let old = match time {
            Some(time) => self.at.insert(name.to_owned(), time),
            None => self.at.remove(name),
        };
        if let Some(old) = old {
            self.by_time.remove(&(old, name.to_owned()));
        }
        if let Some(time) = time {
            self.by_time.insert((time, name.to_owned()));
        }
    }

    /// Takes the names whose time has come, the longest due first, and then those for now.
    pub fn take(&mut self, now: Timestamp) -> Vec<String> {
        let mut taken = Vec::new();
        while let Some((time, name)) = self.by_time.pop_first() {
            if time > now {
                self.by_time.insert((time, name));
                break;
            }
            self.at.remove(&name);
            self.now.remove(&name);
            taken.push(name);
        }
        taken.extend(std::mem::take(&mut self.now));
        taken
    }

    /// When the next name becomes due by time.
    pub fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(time, _)| *time)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_is_due_comes_first_and_each_name_once() {
        let mut agenda = Agenda::default();
        agenda.now("c");
        agenda.now("b");
        agenda.at("b", Some(at(5)));
        agenda.at("a", Some(at(7)));
        agenda.at("later", Some(at(20)));
        assert_eq!(agenda.take(at(10)), ["b", "a", "c"]);
        assert_eq!(agenda.next(), Some(at(20)));
        assert!(agenda.take(at(10)).is_empty());
    }

    #[test]
    fn a_time_that_is_moved_counts_where_it_was_moved_to() {
        let mut agenda = Agenda::default();
        agenda.at("a", Some(at(5)));
        agenda.at("a", Some(at(15)));
        assert!(agenda.take(at(10)).is_empty());
        assert_eq!(agenda.take(at(15)), ["a"]);
        agenda.at("a", Some(at(5)));
        agenda.at("a", None);
        assert_eq!(agenda, Agenda::default());
    }

    proptest! {
        #[test]
        fn nothing_is_taken_before_its_time_and_nothing_is_forgotten(
            times in proptest::collection::btree_map("[a-e]", 0i64..20, 0..5), now in 0i64..20,
        ) {
            let mut agenda = Agenda::default();
            for (name, time) in &times {
                agenda.at(name, Some(at(*time)));
            }
            let taken = agenda.take(at(now));
            for (name, time) in &times {
                prop_assert_eq!(taken.contains(name), *time <= now);
            }
            prop_assert_eq!(agenda.take(at(20)).len() + taken.len(), times.len());
        }
    }
}
