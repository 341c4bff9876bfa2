//! The tags by which what is ours is found again, whatever becomes of the cluster. Pure.
//!
//! What is kept of a sleeping environment carries enough for its object to be written again: that is adoption. The
//! environment's key is no tag, for it follows from the pool and the id.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

mod environment;

pub use environment::{AdoptedEnvironment, TagError, of_environment, read_environment};

/// The cluster: the uid of its kube-system namespace, or what the operator is told.
pub const CLUSTER: &str = "dormouse.dev/cluster";
/// Uid of the pool.
pub const POOL: &str = "dormouse.dev/pool";
/// Name of the pool, for people and for adoption.
pub const POOL_NAME: &str = "dormouse.dev/pool-name";
/// Namespace of the pool.
pub const NAMESPACE: &str = "dormouse.dev/namespace";
/// Id of the environment that is kept here.
pub const ENVIRONMENT: &str = "dormouse.dev/environment";
/// When the environment expires: before that time nothing of it is deleted as an orphan.
pub const EXPIRES_AT: &str = "dormouse.dev/expires-at";
/// The furthest its expiry may be moved.
pub const NOT_AFTER: &str = "dormouse.dev/not-after";
/// The slot whose workspace a volume is, or was.
pub const SLOT: &str = "dormouse.dev/slot";
/// The instance a fresh volume was made for.
pub const SLOT_OF: &str = "dormouse.dev/slot-of";
/// How often the environment had been suspended again when this was kept.
pub const REVISION: &str = "dormouse.dev/revision";
/// When its last job had woken it, in seconds since 1970: what was kept before that is behind it. Missing before the
/// first.
pub const RESUMED_AT: &str = "dormouse.dev/resumed-at";
/// The tier it was kept at.
pub const STATE: &str = "dormouse.dev/state";
/// When it was first seen that no object owns this.
pub const ORPHANED_AT: &str = "dormouse.dev/orphaned-at";
/// The pool, as namespace/name, whose fresh volumes begin with this snapshot. It carries no [`POOL`]: it is a person's to
/// keep, so no sweep and no deletion of an environment or a pool takes it.
pub const BASELINE: &str = "dormouse.dev/baseline";
/// The snapshot that a baseline was copied from.
pub const BASELINE_OF: &str = "dormouse.dev/baseline-of";
/// Which set of tags this is: [`SCHEMA_VERSION`].
pub const SCHEMA: &str = "dormouse.dev/schema";
/// GitLab project id.
pub const PROJECT_ID: &str = "dormouse.dev/project-id";
/// The project's path.
pub const PROJECT_PATH: &str = "dormouse.dev/project-path";
/// Branch or tag.
pub const REF: &str = "dormouse.dev/ref";
/// Whether the ref was protected.
pub const PROTECTED: &str = "dormouse.dev/protected";
/// The commit.
pub const COMMIT: &str = "dormouse.dev/commit";
/// GitLab job id.
pub const JOB_ID: &str = "dormouse.dev/job-id";
/// The job's name.
pub const JOB_NAME: &str = "dormouse.dev/job-name";
/// GitLab id of the user the job ran for.
pub const USER_ID: &str = "dormouse.dev/user-id";
/// How the script ended.
pub const OUTCOME: &str = "dormouse.dev/outcome";
/// Absolute path of the workspace.
pub const WORKSPACE: &str = "dormouse.dev/workspace";
/// The instance the environment was first suspended on.
pub const ORIGIN_INSTANCE: &str = "dormouse.dev/origin-instance";
/// The slot it had there.
pub const ORIGIN_SLOT: &str = "dormouse.dev/origin-slot";
/// Name of the job's lease.
pub const LEASE: &str = "dormouse.dev/lease";
/// Uid of the job's lease.
pub const LEASE_UID: &str = "dormouse.dev/lease-uid";

/// The set of tags that is written.
pub const SCHEMA_VERSION: &str = "1";

/// Most characters of a tag's value.
pub const LONGEST_VALUE: usize = 256;

/// What all our keys begin with.
const PREFIX: &str = "dormouse.dev/";

/// What the keys of slots begin with.
const SLOT_KEY: &str = "dormouse.dev/slot-";

/// The key, on an instance that is kept, whose value is the id of the environment in a slot.
pub fn slot_key(slot: u32) -> String {
    format!("{SLOT_KEY}{slot}")
}

/// Whether a key is that of a slot.
pub fn is_slot_key(key: &str) -> bool {
    key.strip_prefix(SLOT_KEY).is_some_and(|slot| slot.parse::<u32>().is_ok())
}

/// Whether a tag of ours speaks of an environment, and goes when what carries it is not that environment's any more.
pub fn is_of_environment(key: &str) -> bool {
    key.starts_with(PREFIX) && ![CLUSTER, POOL, POOL_NAME, NAMESPACE, SLOT, SLOT_OF].contains(&key)
}

/// Ids of the environments that an instance's tags name, by slot.
pub fn environments_by_slot(tags: &BTreeMap<String, String>) -> BTreeMap<u32, &str> {
    let slots = tags.iter().filter_map(|(key, value)| {
        let slot = key.strip_prefix(SLOT_KEY)?.parse().ok()?;
        Some((slot, value.as_str()))
    });
    slots.collect()
}

/// A client token for a wish that these parts name: the same for the same parts, 64 characters, which is the most that
/// the cloud takes.
pub fn token(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps `ab`, `c` apart from `a`, `bc`.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut token = String::with_capacity(64);
    for byte in hash.finalize() {
        let _ = write!(token, "{byte:02x}");
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_same_for_the_same_parts_only() {
        assert_eq!(token(&["uid", "1"]), token(&["uid", "1"]));
        assert_eq!(token(&["uid", "1"]).len(), 64);
        let tokens =
            [token(&["ab", "c"]), token(&["a", "bc"]), token(&["abc"]), token(&["abc", ""]), token(&[])];
        for (n, token) in tokens.iter().enumerate() {
            assert!(!tokens[..n].contains(token));
        }
    }

    #[test]
    fn environments_are_read_by_slot() {
        let tags = [(slot_key(0), "e0"), (slot_key(11), "e11"), (SLOT_OF.into(), "i-1"), (SLOT.into(), "3")];
        let tags = tags.into_iter().map(|(key, value)| (key, value.to_owned())).collect();
        assert_eq!(environments_by_slot(&tags), BTreeMap::from([(0, "e0"), (11, "e11")]));
    }
}
