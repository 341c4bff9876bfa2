//! Volumes and snapshots, found by their id and by the environment that their tags name.
//!
//! A plan is made for each of thousands of environments: none of them may have to look through what the others have.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use crate::provider::{Snapshot, Volume, tags};

/// What carries an id and tags.
pub trait Thing {
    /// Its id.
    fn id(&self) -> &str;
    /// Its tags.
    fn tags(&self) -> &BTreeMap<String, String>;
}

impl Thing for Volume {
    fn id(&self) -> &str {
        &self.id
    }

    fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }
}

impl Thing for Snapshot {
    fn id(&self) -> &str {
        &self.id
    }

    fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }
}

/// Things by their id. They are read as a map, and changed only by ways that keep both of its orders.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagged<T> {
    by_id: BTreeMap<String, T>,
    /// Ids by the environment that the tags name.
    by_environment: BTreeMap<String, BTreeSet<String>>,
}

impl<T> Default for Tagged<T> {
    fn default() -> Self {
        Self { by_id: BTreeMap::new(), by_environment: BTreeMap::new() }
    }
}

impl<T> Deref for Tagged<T> {
    type Target = BTreeMap<String, T>;

    fn deref(&self) -> &Self::Target {
        &self.by_id
    }
}

impl<T: Thing> Tagged<T> {
    /// Takes a thing in, in place of what had its id.
    pub fn put(&mut self, thing: T) {
        let id = thing.id().to_owned();
        let before = self.by_id.get(&id).and_then(|before| before.tags().get(tags::ENVIRONMENT));
        if let Some(ids) = before.and_then(|environment| self.by_environment.get_mut(environment)) {
            ids.remove(&id);
        }
        if let Some(environment) = thing.tags().get(tags::ENVIRONMENT) {
            self.by_environment.entry(environment.clone()).or_default().insert(id.clone());
        }
        self.by_id.insert(id, thing);
    }

    /// Those whose tags name an environment, by their ids.
    pub fn of_environment(&self, environment: &str) -> impl Iterator<Item = &T> + Clone {
        let ids = self.by_environment.get(environment).into_iter().flatten();
        ids.filter_map(|id| self.by_id.get(id))
    }
}

impl<T: Thing> FromIterator<T> for Tagged<T> {
    fn from_iter<I: IntoIterator<Item = T>>(things: I) -> Self {
        let mut all = Self::default();
        things.into_iter().for_each(|thing| all.put(thing));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Plain {
        id: String,
        tags: BTreeMap<String, String>,
    }

    impl Thing for Plain {
        fn id(&self) -> &str {
            &self.id
        }

        fn tags(&self) -> &BTreeMap<String, String> {
            &self.tags
        }
    }

    proptest! {
        #[test]
        fn what_names_an_environment_is_found_as_if_all_were_looked_through(
            puts in proptest::collection::vec((0u8..6, proptest::option::of(0u8..4)), 0..40),
        ) {
            let tags_of = |environment: Option<u8>| {
                let environment = environment.map(|it| (tags::ENVIRONMENT.to_owned(), it.to_string()));
                environment.into_iter().collect::<BTreeMap<_, _>>()
            };
            let things = puts.into_iter().map(|(id, it)| Plain { id: id.to_string(), tags: tags_of(it) });
            let all: Tagged<Plain> = things.collect();
            for environment in 0u8..4 {
                let environment = environment.to_string();
                let found: Vec<&str> = all.of_environment(&environment).map(Thing::id).collect();
                let names_it = |thing: &&Plain| thing.tags.get(tags::ENVIRONMENT) == Some(&environment);
                let looked_through: Vec<&str> = all.values().filter(names_it).map(Thing::id).collect();
                prop_assert_eq!(found, looked_through);
            }
        }
    }
}
