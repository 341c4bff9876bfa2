//! What a job's `cache` comes to: which names are looked under, in which order, and what is done with each cache.
//!
//! Pure. The operator plans with it before it signs, and the plan goes to the host in the job's order: what a key is, is
//! decided once. A name that leaves here is a relative path of plain parts, whatever the job wrote.

use serde::{Deserialize, Serialize};

use super::variables::{JobVariables, expand};
use super::wire::{Cache, JobPayload};

/// End of the names under which GitLab keeps caches of protected refs. A job that may choose a name freely must not
/// reach them.
const PROTECTED: &str = "-protected";

/// The longest name: S3 takes 1024 bytes, and the pool's path, the runner and the project go before it.
const LONGEST_KEY: usize = 768;

/// The longest part of a name: the longest name of a file.
const LONGEST_PART: usize = 255;

/// The variable that names one more place to restore from.
pub const FALLBACK: &str = "CACHE_FALLBACK_KEY";

/// What is done with one cache of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePlan {
    /// Names to restore from, the first that has something wins; the first is the cache's own.
    pub keys: Vec<String>,
    /// Whether it is restored.
    pub pulls: bool,
    /// Whether it is saved.
    pub pushes: bool,
    /// After which end of the script it is saved.
    pub when: When,
    /// Patterns of what belongs to it, as the job wrote them.
    pub paths: Vec<String>,
    /// Whether files that git does not track belong to it.
    pub untracked: bool,
    /// What is wrong or was changed, for the log.
    pub notes: Vec<String>,
}

impl CachePlan {
    /// The name it is saved under.
    pub fn key(&self) -> &str {
        self.keys.first().map_or("", String::as_str)
    }
}

/// After which end of the script something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// After a success.
    OnSuccess,
    /// After a failure.
    OnFailure,
    /// After either.
    Always,
}

impl When {
    /// Reads GitLab's word; nothing is the default.
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "" | "on_success" => Some(Self::OnSuccess),
            "on_failure" => Some(Self::OnFailure),
            "always" => Some(Self::Always),
            _ => None,
        }
    }

    /// Whether it holds for a job that ended so.
    pub fn holds(self, succeeded: bool) -> bool {
        match self {
            Self::OnSuccess => succeeded,
            Self::OnFailure => !succeeded,
            Self::Always => true,
        }
    }
}

/// The plan for each cache of a job. A cache of nothing is left out; one that cannot be used is there with a note and
/// without a key.
pub fn plan(job: &JobPayload, variables: &JobVariables) -> Vec<CachePlan> {
    let is_of_something = |cache: &&Cache| cache.untracked || !cache.paths.is_empty();
    job.cache.iter().filter(is_of_something).map(|cache| plan_one(cache, job, variables)).collect()
}

fn plan_one(cache: &Cache, job: &JobPayload, variables: &JobVariables) -> CachePlan {
    let mut notes = Vec::new();
    let value = |name: &str| variables.value(name).unwrap_or_default().to_owned();
    let given = if cache.key.is_empty() {
        format!("{}/{}", job.job_info.name, job.git_info.ref_name)
    } else {
        expand(&cache.key, value)
    };
    let mut keys = Vec::new();
    match sanitise(&given) {
        Ok(key) => {
            if key != given {
                notes.push(format!(
                    "cache key {given:?} is used as {key:?}: it is a path below the project's caches"
                ));
            }
            keys.push(key);
        }
        Err(why) => notes.push(format!("cache key {given:?} cannot be used, {why}: this cache is skipped")),
    }
    let policy = expand(&cache.policy, value);
    let (mut pulls, mut pushes) = match policy.as_str() {
        "" | "pull-push" => (true, true),
        "pull" => (true, false),
        "push" => (false, true),
        other => {
            notes.push(format!(
                "cache policy {other:?} is none of pull-push, pull and push: cache {given:?} is skipped"
            ));
            (false, false)
        }
    };
    let when = When::named(&cache.when).unwrap_or_else(|| {
        let word = &cache.when;
        notes.push(format!(
            "cache when {word:?} is none of on_success, on_failure and always: cache {given:?} is not saved"
        ));
        pushes = false;
        When::OnSuccess
    });
    if keys.is_empty() {
        (pulls, pushes) = (false, false);
    } else if pulls {
        for fallback in &cache.fallback_keys {
            add_fallback(&expand(fallback, value), "fallback_keys", &mut keys, &mut notes);
        }
        if let Some(fallback) = variables.setting(FALLBACK) {
            // Only this one is the job's to choose: GitLab writes the end of all others.
            if sanitise(fallback).is_ok_and(|key| key.ends_with(PROTECTED)) {
                notes.push(format!(
                    "{FALLBACK} {fallback:?} is not used: a name that ends with {PROTECTED} is for protected refs"
                ));
            } else {
                add_fallback(fallback, FALLBACK, &mut keys, &mut notes);
            }
        }
    }
    CachePlan { keys, pulls, pushes, when, paths: cache.paths.clone(), untracked: cache.untracked, notes }
}

fn add_fallback(given: &str, field: &str, keys: &mut Vec<String>, notes: &mut Vec<String>) {
    match sanitise(given) {
        Ok(key) if keys.contains(&key) => {}
        Ok(key) => keys.push(key),
        // One that a variable leaves empty is none.
        Err(_) if given.trim().is_empty() => {}
        Err(why) => notes.push(format!("the key {given:?} of {field} cannot be used, {why}")),
    }
}

/// A key as a relative path of plain parts.
///
/// Separators may come percent-encoded or as backslashes, `..` takes the part before it and never more, and blanks at
/// the ends go.
///
/// # Errors
/// Why it cannot be one.
pub fn sanitise(key: &str) -> Result<String, &'static str> {
    if key.chars().any(char::is_control) {
        return Err("it has a control character in it");
    }
    let plain = decode_separators(key).replace('\\', "/");
    let mut parts: Vec<&str> = Vec::new();
    for part in plain.trim().split('/').map(str::trim_end) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part if part.len() > LONGEST_PART => return Err("a part of it is longer than 255 bytes"),
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    if path.is_empty() {
        return Err("nothing is left of it as a path");
    }
    if path.len() > LONGEST_KEY {
        return Err("it is longer than 768 bytes");
    }
    Ok(path)
}

/// Decodes what could hide a part from whoever looks for separators and dots, and nothing else.
fn decode_separators(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    let mut rest = key;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let code = after.get(..2).map(str::to_ascii_lowercase);
        let decoded = match code.as_deref() {
            Some("2f") => Some('/'),
            Some("5c") => Some('\\'),
            Some("2e") => Some('.'),
            Some("20") => Some(' '),
            _ => None,
        };
        rest = match decoded {
            Some(character) => {
                out.push(character);
                after.get(2..).unwrap_or_default()
            }
            None => {
                out.push('%');
                after
            }
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::gitlab::variables::Surroundings;

    fn planned(cache: serde_json::Value, variables: &[(&str, &str)]) -> Vec<CachePlan> {
        let variables: Vec<_> =
            variables.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let job: JobPayload = serde_json::from_value(json!({
            "id": 1, "cache": cache, "variables": variables,
            "job_info": {"name": "build", "project_id": 7}, "git_info": {"ref": "main"},
        }))
        .unwrap();
        let surroundings = Surroundings {
            builds_dir: "/b",
            workspace: "/b/0/g/p",
            temporary: "/b/0/g/p.tmp",
            slot: 0,
            version: "1",
            machine: "aarch64",
            ..Surroundings::default()
        };
        plan(&job, &JobVariables::gather(&job, &surroundings))
    }

    fn only(cache: serde_json::Value, variables: &[(&str, &str)]) -> CachePlan {
        let mut plans = planned(json!([cache]), variables);
        assert_eq!(plans.len(), 1);
        plans.remove(0)
    }

    #[test]
    fn a_key_left_out_is_job_and_ref() {
        let plan = only(json!({"paths": ["a"]}), &[]);
        assert_eq!(plan.keys, ["build/main"]);
        assert!(plan.pulls && plan.pushes && plan.notes.is_empty());
        assert_eq!(plan.when, When::OnSuccess);
    }

    #[test]
    fn a_cache_of_nothing_is_left_out() {
        assert!(planned(json!([{"key": "a"}, {"key": "b", "paths": []}]), &[]).is_empty());
        assert_eq!(planned(json!([{"key": "a", "untracked": true}]), &[]).len(), 1);
        assert!(planned(serde_json::Value::Null, &[]).is_empty());
    }

    #[test]
    fn key_fallbacks_and_policy_are_expanded() {
        let plan = only(
            json!({"key": "$STACK-${CI_RUNNER_EXECUTABLE_ARCH}-$MISSING", "policy": "$POLICY", "paths": ["a"],
                   "fallback_keys": ["$STACK", "$MISSING", "same", "same"]}),
            &[("STACK", "rust/1"), ("POLICY", "pull")],
        );
        assert_eq!(plan.keys, ["rust/1-linux/arm64-", "rust/1", "same"]);
        assert!(plan.pulls && !plan.pushes);
        assert!(plan.notes.is_empty(), "{:?}", plan.notes);
    }

    #[test]
    fn policies_say_what_is_done() {
        for (policy, pulls, pushes) in
            [("", true, true), ("pull-push", true, true), ("pull", true, false), ("push", false, true)]
        {
            let plan = only(json!({"key": "k", "policy": policy, "paths": ["a"]}), &[]);
            assert_eq!((plan.pulls, plan.pushes), (pulls, pushes), "{policy}");
        }
        let plan = only(json!({"key": "k", "policy": "PULL", "paths": ["a"]}), &[]);
        assert!(!plan.pulls && !plan.pushes);
        assert!(plan.notes.concat().contains("\"PULL\" is none of"), "{:?}", plan.notes);
    }

    #[test]
    fn an_unknown_when_saves_nothing_and_says_so() {
        let plan = only(json!({"key": "k", "when": "never", "paths": ["a"]}), &[]);
        assert!(plan.pulls && !plan.pushes);
        assert!(plan.notes.concat().contains("\"never\""), "{:?}", plan.notes);
    }

    #[test]
    fn when_looks_at_the_scripts_end() {
        for (when, success, failure) in
            [("on_success", true, false), ("on_failure", false, true), ("always", true, true)]
        {
            let when = When::named(when).unwrap();
            assert_eq!((when.holds(true), when.holds(false)), (success, failure));
        }
    }

    #[test]
    fn the_free_fallback_comes_last_and_never_reaches_protected_caches() {
        let cache = json!({"key": "k-non_protected", "fallback_keys": ["f-non_protected"], "paths": ["a"]});
        let plan = only(cache.clone(), &[(FALLBACK, "shared")]);
        assert_eq!(plan.keys, ["k-non_protected", "f-non_protected", "shared"]);
        for hidden in [
            "shared-protected",
            "shared-protected ",
            "x/../shared-protected/",
            "shared-protected%2f",
            "a-protected\\",
        ] {
            let plan = only(cache.clone(), &[(FALLBACK, hidden)]);
            assert_eq!(plan.keys, ["k-non_protected", "f-non_protected"], "{hidden}");
            assert!(plan.notes.concat().contains("protected refs"), "{:?}", plan.notes);
        }
        let push = only(json!({"key": "k", "policy": "push", "fallback_keys": ["f"], "paths": ["a"]}), &[]);
        assert_eq!(push.keys, ["k"]);
    }

    #[test]
    fn an_unusable_key_skips_the_cache_with_a_word() {
        for key in ["..", "/", ".", "%2e%2e", "a\nb", "$MISSING"] {
            let plan = only(json!({"key": key, "paths": ["a"], "fallback_keys": ["f"]}), &[]);
            assert!(plan.keys.is_empty() && !plan.pulls && !plan.pushes, "{key}");
            assert_eq!(plan.notes.len(), 1, "{key}: {:?}", plan.notes);
        }
    }

    #[test]
    fn a_changed_key_is_told() {
        let plan = only(json!({"key": "../../other/1", "paths": ["a"]}), &[]);
        assert_eq!(plan.keys, ["other/1"]);
        assert!(plan.notes.concat().contains("used as \"other/1\""), "{:?}", plan.notes);
    }

    #[test]
    fn keys_become_plain_paths() {
        for (key, path) in [
            ("a", "a"),
            ("a/b", "a/b"),
            ("/a//b/", "a/b"),
            ("a/./b", "a/b"),
            ("a/../b", "b"),
            ("a/../../b", "b"),
            ("a%2Fb", "a/b"),
            ("a%2f..%2F..%2fb", "b"),
            ("a\\..\\b", "b"),
            ("%2e%2e/b", "b"),
            ("a%5c..%5Cb", "b"),
            ("a b ", "a b"),
            ("a%20", "a"),
            ("50%", "50%"),
            ("%zz%", "%zz%"),
            ("üñí", "üñí"),
            ("%ü", "%ü"),
        ] {
            assert_eq!(sanitise(key).as_deref(), Ok(path), "{key}");
        }
        assert!(sanitise(&"x".repeat(256)).is_err());
        assert!(sanitise(&"x/".repeat(600)).is_err());
        assert!(sanitise("a\0b").is_err());
    }

    proptest! {
        #[test]
        fn no_key_leaves_its_folder(key in "[a./\\\\% 25efc\u{e9}-]{0,40}") {
            if let Ok(path) = sanitise(&key) {
                prop_assert!(path.split('/').all(|part| !part.is_empty() && part != "." && part != ".."), "{path:?}");
                prop_assert!(!path.contains('\\'));
                prop_assert_eq!(path.trim_end(), &path);
            }
        }

        #[test]
        fn a_plain_key_is_kept(key in "[a-z0-9_-]{1,20}(/[a-z0-9_.-]{1,20}x){0,3}") {
            prop_assert_eq!(sanitise(&key), Ok(key));
        }
    }
}
