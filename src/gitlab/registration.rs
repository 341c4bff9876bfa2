//! The runner that a pool makes itself: what it should be, what is kept of it, and what to do next. Pure: the time is an
//! argument.
//!
//! What is done, in order, and who goes on after a death:
//!
//! | write | death after it |
//! | --- | --- |
//! | (1) Secret with a marker and no token | next looks at GitLab for a runner with that marker, removes it, creates one |
//! | (2) GitLab: the runner, with the marker in its note | the same: nobody has its token |
//! | (3) Secret: token, runner id, what was applied | next uses it |
//! | (4) GitLab: the runner as the spec says by now | said again |
//! | (5) Secret: what was applied | nothing is left to do |
//!
//! A token that comes to its age is replaced: (1) Secret: the replacement has begun, (2) GitLab: a new token, from which on
//! the old one is dead, (3) Secret: the new token. Whoever finds (1) without (3) asks for a new token with the old one. If
//! that is refused, (2) was done and its answer is lost: with an access token the runner is given another one by its id,
//! else, if that may create only, another runner is made.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::api::registration::{RegistrationSpec, RunnerType};

/// The part of its life, in percent, after which a token is replaced.
const AGE_TO_ROTATE: i64 = 75;

/// What the runner's maintenance note begins with.
const NOTE: &str = "made by dormouse: ";

/// The runner as the spec wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Whose jobs it takes.
    pub type_: RunnerType,
    /// Of which group or project.
    pub owner_id: Option<u64>,
    /// What GitLab shows it as.
    pub description: String,
    tags: BTreeSet<String>,
    locked: bool,
    run_untagged: bool,
    protected: bool,
    paused: bool,
    maximum_timeout: Option<u64>,
}

impl Wanted {
    /// What a pool's spec wants.
    pub fn of(spec: &RegistrationSpec, namespace: &str, pool: &str) -> Self {
        Self {
            type_: spec.type_,
            owner_id: spec.group_id.or(spec.project_id),
            description: spec.description.clone().unwrap_or_else(|| format!("{namespace}/{pool}")),
            tags: spec.tags.iter().map(|tag| tag.trim().to_owned()).collect(),
            locked: spec.locked,
            run_untagged: spec.run_untagged,
            protected: spec.protected,
            paused: spec.paused,
            maximum_timeout: spec.maximum_timeout.map(|timeout| timeout.std().as_secs()),
        }
    }

    /// The body that creates it.
    pub fn creation(&self, marker: &str) -> Value {
        let mut body = self.change();
        if let Some(map) = body.as_object_mut() {
            map.insert("runner_type".to_owned(), json!(type_name(self.type_)));
            map.insert("maintenance_note".to_owned(), json!(note(marker)));
            if let Some((field, id)) = self.owner() {
                map.insert(field.to_owned(), json!(id));
            }
            if self.maximum_timeout.is_none() {
                map.remove("maximum_timeout");
            }
        }
        body
    }

    /// The body that changes it to this.
    pub fn change(&self) -> Value {
        json!({
            "description": self.description,
            "tag_list": self.tags,
            "locked": self.locked,
            "run_untagged": self.run_untagged,
            "access_level": if self.protected { "ref_protected" } else { "not_protected" },
            "paused": self.paused,
            "maximum_timeout": self.maximum_timeout,
        })
    }

    fn owner(&self) -> Option<(&'static str, u64)> {
        match self.type_ {
            RunnerType::Instance => None,
            RunnerType::Group => self.owner_id.map(|id| ("group_id", id)),
            RunnerType::Project => self.owner_id.map(|id| ("project_id", id)),
        }
    }

    /// What tells one wish from another.
    pub fn digest(&self) -> String {
        let hash = Sha256::digest(self.change().to_string().as_bytes());
        hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Where runners of its kind are listed that have never asked for a job.
    pub fn unused_path(&self) -> String {
        let type_ = type_name(self.type_);
        let of = match self.owner() {
            None => "runners/all".to_owned(),
            Some(("group_id", id)) => format!("groups/{id}/runners"),
            Some((_, id)) => format!("projects/{id}/runners"),
        };
        format!("{of}?type={type_}&status=never_contacted&per_page=100")
    }
}

fn type_name(type_: RunnerType) -> &'static str {
    match type_ {
        RunnerType::Instance => "instance_type",
        RunnerType::Group => "group_type",
        RunnerType::Project => "project_type",
    }
}

/// The maintenance note of a runner with that marker.
pub fn note(marker: &str) -> String {
    format!("{NOTE}{marker}")
}

/// What is kept of the pool's runner.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The GitLab it is of.
    pub url: String,
    /// The marker of the try that made it, or is to make it.
    pub marker: String,
    /// Its token, once it is made.
    pub token: Option<SecretString>,
    /// Its id.
    pub runner_id: Option<u64>,
    /// Digest of the wish that was last applied.
    pub applied: Option<String>,
    /// When the token was issued.
    pub obtained_at: Option<Timestamp>,
    /// When it expires, if it does.
    pub expires_at: Option<Timestamp>,
    /// Whether its replacement has begun and is not known to have ended.
    pub is_rotating: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The marker is written down.
    Intend,
    /// The runner is made, after what an earlier try left at GitLab is removed.
    Create,
    /// The token is replaced.
    Rotate,
    /// The runner is changed to what the spec says by now.
    Change,
    /// Nothing: the token is good to use.
    Use,
}

/// What is to be done next about a runner. `may_ask`: an access token is there.
pub fn next(kept: Option<&Kept>, wanted: &Wanted, may_ask: bool, now: Timestamp) -> Step {
    let Some(kept) = kept else { return Step::Intend };
    if kept.token.is_none() {
        return Step::Create;
    }
    if kept.is_rotating || rotate_at(kept).is_some_and(|at| at <= now) {
        return Step::Rotate;
    }
    if may_ask && is_changed(kept, wanted) {
        return Step::Change;
    }
    Step::Use
}

/// Whether the spec says something else than what was last applied.
pub fn is_changed(kept: &Kept, wanted: &Wanted) -> bool {
    kept.runner_id.is_some() && kept.applied.as_deref() != Some(&wanted.digest())
}

/// When a token is to be replaced; `None` for one that does not expire.
pub fn rotate_at(kept: &Kept) -> Option<Timestamp> {
    let (obtained, expires) = (kept.obtained_at?, kept.expires_at?);
    let life = expires.duration_since(obtained).max(SignedDuration::ZERO);
    let age = SignedDuration::from_millis(
        i64::try_from(life.as_millis()).unwrap_or(i64::MAX / 100).saturating_mul(AGE_TO_ROTATE) / 100,
    );
    obtained.checked_add(age).ok()
}

/// Whether a token that nobody replaces comes to its end within a week.
pub fn expires_soon(expires_at: Timestamp, now: Timestamp) -> bool {
    expires_at.duration_since(now) < SignedDuration::from_hours(7 * 24)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(fields: Value) -> RegistrationSpec {
        let mut spec = json!({
            "accessTokenSecretRef": { "name": "a", "key": "token" },
            "type": "Group", "groupId": 7, "tags": ["b", "a", "b"],
        });
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn wanted(fields: Value) -> Wanted {
        Wanted::of(&spec(fields), "ci", "pool")
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_creation_says_whose_runner_it_is_and_a_change_does_not() {
        let wish = wanted(json!({ "protected": true, "maximumTimeout": "1h" }));
        let body = wish.creation("abc");
        assert_eq!(body["runner_type"], "group_type");
        assert_eq!(body["group_id"], 7);
        assert_eq!(body["tag_list"], json!(["a", "b"]));
        assert_eq!(body["access_level"], "ref_protected");
        assert_eq!(body["maximum_timeout"], 3600);
        assert_eq!(body["description"], "ci/pool");
        assert_eq!(body["maintenance_note"], note("abc"));
        let change = wish.change();
        assert!(change.get("runner_type").is_none() && change.get("group_id").is_none());
        // A limit that is taken away is said to be none; at a creation there is none to take away.
        assert_eq!(wanted(json!({})).change()["maximum_timeout"], Value::Null);
        assert!(wanted(json!({})).creation("x").get("maximum_timeout").is_none());
    }

    #[test]
    fn each_field_that_can_be_changed_is_part_of_the_digest() {
        let plain = wanted(json!({})).digest();
        for change in [
            json!({ "tags": ["a"] }),
            json!({ "locked": true }),
            json!({ "runUntagged": false }),
            json!({ "protected": true }),
            json!({ "paused": true }),
            json!({ "maximumTimeout": "2h" }),
            json!({ "description": "other" }),
        ] {
            assert_ne!(wanted(change.clone()).digest(), plain, "{change}");
        }
        assert_eq!(wanted(json!({ "tags": ["b", "a"] })).digest(), plain, "the order of tags means nothing");
    }

    #[test]
    fn a_runner_is_intended_created_changed_and_used() {
        let wish = wanted(json!({}));
        assert_eq!(next(None, &wish, false, at(0)), Step::Intend);
        let mut kept = Kept { marker: "m".to_owned(), ..Kept::default() };
        assert_eq!(next(Some(&kept), &wish, true, at(0)), Step::Create);
        kept.token = Some(SecretString::from("glrt-x".to_owned()));
        kept.runner_id = Some(3);
        assert_eq!(next(Some(&kept), &wish, true, at(0)), Step::Change);
        // Without an access token the runner is used as it is.
        assert_eq!(next(Some(&kept), &wish, false, at(0)), Step::Use);
        kept.applied = Some(wish.digest());
        assert_eq!(next(Some(&kept), &wish, true, at(0)), Step::Use);
        kept.is_rotating = true;
        assert_eq!(next(Some(&kept), &wish, false, at(0)), Step::Rotate);
    }

    proptest! {
        #[test]
        fn a_token_is_replaced_at_three_quarters_of_its_life_and_never_before(
            obtained in 0i64..2_000_000_000, life in 4i64..100_000_000, now in 0i64..2_200_000_000,
        ) {
            let kept = Kept {
                token: Some(SecretString::default()),
                obtained_at: Some(at(obtained)),
                expires_at: Some(at(obtained + life)),
                ..Kept::default()
            };
            let due = next(Some(&kept), &wanted(json!({})), false, at(now)) == Step::Rotate;
            prop_assert_eq!(due, (now - obtained) * 100 >= life * AGE_TO_ROTATE);
            // There is time left to try again.
            prop_assert!(rotate_at(&kept).unwrap() < at(obtained + life));
        }
    }

    #[test]
    fn a_token_that_does_not_expire_is_never_replaced() {
        let kept = Kept { token: Some(SecretString::default()), obtained_at: Some(at(0)), ..Kept::default() };
        assert_eq!(rotate_at(&kept), None);
        assert_eq!(next(Some(&kept), &wanted(json!({})), false, Timestamp::MAX), Step::Use);
    }

    #[test]
    fn runners_that_nobody_uses_are_looked_for_where_the_kind_is_listed() {
        let group = wanted(json!({})).unused_path();
        assert_eq!(group, "groups/7/runners?type=group_type&status=never_contacted&per_page=100");
        let mut of_all = spec(json!({}));
        (of_all.type_, of_all.group_id) = (RunnerType::Instance, None);
        assert!(Wanted::of(&of_all, "ci", "pool").unused_path().starts_with("runners/all?"));
    }
}
