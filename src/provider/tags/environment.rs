//! A sleeping environment as tags, and back. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use percent_encoding::percent_decode_str;

use super::{
    CLUSTER, COMMIT, ENVIRONMENT, EXPIRES_AT, JOB_ID, JOB_NAME, LEASE, LEASE_UID, LONGEST_VALUE, NAMESPACE,
    NOT_AFTER, ORIGIN_INSTANCE, ORIGIN_SLOT, OUTCOME, POOL, POOL_NAME, PROJECT_ID, PROJECT_PATH, PROTECTED,
    REF, RESUMED_AT, REVISION, SCHEMA, SCHEMA_VERSION, SLOT, STATE, USER_ID, WORKSPACE,
};
use crate::api::suspended_environment::{
    Origin, ScriptOutcome, SuspendedEnvironment, SuspendedEnvironmentSpec, Tier,
};

/// What a value that was cut ends with. An escape is always followed by two digits, so it stands for nothing else.
const CUT: char = '%';

/// What the tags of something that is kept say of its environment.
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptedEnvironment {
    /// The cluster it belonged to.
    pub cluster: String,
    /// The namespace of its object.
    pub namespace: String,
    /// What its object is to say.
    pub spec: SuspendedEnvironmentSpec,
    /// The tier it was kept at.
    pub tier: Tier,
    /// The slot it had, and must have again.
    pub slot: u32,
    /// How often it had been suspended again.
    pub revision: u32,
    /// Keys of the tags that had no room for all of their value. What is there is its beginning.
    pub cut: Vec<&'static str>,
}

/// Why tags say nothing of an environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// A tag is missing.
    #[error(
        "tag {key} is missing: the environment cannot be adopted; put the tag back, or delete what carries the others"
    )]
    Missing {
        /// Its key.
        key: &'static str,
    },
    /// A tag says something else than it may.
    #[error(
        "tag {key} is {value:?}, not {wanted}: the environment cannot be adopted; correct it, or delete what carries it"
    )]
    Invalid {
        /// Its key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A tag that is needed whole had no room for its value.
    #[error(
        "tag {key} was longer than a tag may be: the environment cannot be adopted; its workspace can be read from the \
         volume by hand"
    )]
    Cut {
        /// Its key.
        key: &'static str,
    },
}

/// The tags of something that is kept of an environment. Their values have at most [`LONGEST_VALUE`] characters.
pub fn of_environment(environment: &SuspendedEnvironment, cluster: &str) -> BTreeMap<String, String> {
    let spec = &environment.spec;
    let origin = &spec.origin;
    let status = environment.status.as_ref();
    let slot = status.and_then(|status| status.slot).unwrap_or(origin.slot);
    let outcome = match origin.outcome {
        ScriptOutcome::Succeeded => "Succeeded",
        ScriptOutcome::Failed => "Failed",
    };
    let tags = [
        (SCHEMA, SCHEMA_VERSION.to_owned()),
        (CLUSTER, cluster.to_owned()),
        (NAMESPACE, environment.metadata.namespace.clone().unwrap_or_default()),
        (POOL, spec.pool_uid.clone()),
        (POOL_NAME, spec.pool.clone()),
        (ENVIRONMENT, spec.environment_id.clone()),
        (EXPIRES_AT, spec.expires_at.0.to_string()),
        (NOT_AFTER, spec.not_after.0.to_string()),
        (STATE, environment.tier().as_str().to_owned()),
        (SLOT, slot.to_string()),
        (REVISION, status.map_or(0, |status| status.revision).to_string()),
        (WORKSPACE, spec.workspace_path.clone()),
        (PROJECT_ID, origin.project_id.to_string()),
        (PROJECT_PATH, origin.project_path.clone()),
        (REF, origin.ref_name.clone()),
        (PROTECTED, origin.protected.to_string()),
        (COMMIT, origin.commit.clone()),
        (JOB_ID, origin.job_id.to_string()),
        (JOB_NAME, origin.job_name.clone()),
        (USER_ID, origin.user_id.to_string()),
        (OUTCOME, outcome.to_owned()),
        (LEASE, origin.lease.clone()),
        (LEASE_UID, origin.lease_uid.clone()),
        (ORIGIN_INSTANCE, origin.instance.clone()),
        (ORIGIN_SLOT, origin.slot.to_string()),
    ];
    let resumed_at = status.and_then(|status| status.last_resumed_at.as_ref());
    let resumed_at = resumed_at.map(|at| (RESUMED_AT, at.0.as_second().to_string()));
    tags.into_iter().chain(resumed_at).map(|(key, value)| (key.to_owned(), escape(&value))).collect()
}

/// Reads the environment back.
pub fn read_environment(tags: &BTreeMap<String, String>) -> Result<AdoptedEnvironment, TagError> {
    let mut reader = Reader { tags, cut: Vec::new() };
    let schema = reader.whole(SCHEMA)?;
    if schema != SCHEMA_VERSION {
        return Err(TagError::Invalid {
            key: SCHEMA,
            value: schema,
            wanted: "1, the set of tags this version knows",
        });
    }
    let outcome = match reader.whole(OUTCOME)?.as_str() {
        "Succeeded" => ScriptOutcome::Succeeded,
        "Failed" => ScriptOutcome::Failed,
        other => return Err(invalid(OUTCOME, other, "Succeeded or Failed")),
    };
    let tier = match reader.whole(STATE)?.as_str() {
        "Hot" => Tier::Hot,
        "Stopped" => Tier::Stopped,
        "Detached" => Tier::Detached,
        "Snapshotted" => Tier::Snapshotted,
        other => return Err(invalid(STATE, other, "Hot, Stopped, Detached or Snapshotted")),
    };
    let environment_id = reader.whole(ENVIRONMENT)?;
    let is_id = |byte: u8| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte);
    if environment_id.len() != 20 || !environment_id.bytes().all(is_id) {
        return Err(invalid(ENVIRONMENT, &environment_id, "20 characters of a-z and 2-7"));
    }
    let expires_at: Timestamp = reader.number(EXPIRES_AT, "a time such as 2025-01-31T12:00:00Z")?;
    let not_after: Timestamp = reader.number(NOT_AFTER, "a time such as 2025-01-31T12:00:00Z")?;
    let spec = SuspendedEnvironmentSpec {
        pool: reader.whole(POOL_NAME)?,
        pool_uid: reader.whole(POOL)?,
        environment_id,
        // Somebody may have moved the tag; the API server would refuse an expiry past the ceiling.
        expires_at: Time(expires_at.min(not_after)),
        not_after: Time(not_after),
        desired_tier: None,
        workspace_path: reader.whole(WORKSPACE)?,
        origin: Origin {
            project_id: reader.number(PROJECT_ID, "a number")?,
            project_path: reader.text(PROJECT_PATH)?,
            ref_name: reader.text(REF)?,
            protected: reader.number(PROTECTED, "true or false")?,
            commit: reader.text(COMMIT)?,
            job_id: reader.number(JOB_ID, "a number")?,
            job_name: reader.text(JOB_NAME)?,
            user_id: reader.number(USER_ID, "a number")?,
            outcome,
            lease: reader.whole(LEASE)?,
            lease_uid: reader.whole(LEASE_UID)?,
            instance: reader.whole(ORIGIN_INSTANCE)?,
            slot: reader.number(ORIGIN_SLOT, "a number")?,
        },
    };
    Ok(AdoptedEnvironment {
        cluster: reader.whole(CLUSTER)?,
        namespace: reader.whole(NAMESPACE)?,
        spec,
        tier,
        slot: reader.number(SLOT, "a number")?,
        revision: reader.number(REVISION, "a number")?,
        cut: reader.cut,
    })
}

struct Reader<'a> {
    tags: &'a BTreeMap<String, String>,
    cut: Vec<&'static str>,
}

impl Reader<'_> {
    /// A value that may have been cut.
    fn text(&mut self, key: &'static str) -> Result<String, TagError> {
        let raw = self.tags.get(key).ok_or(TagError::Missing { key })?;
        let (value, is_cut) =
            unescape(raw).ok_or_else(|| invalid(key, raw, "text in UTF-8 with percent escapes"))?;
        if is_cut {
            self.cut.push(key);
        }
        Ok(value)
    }

    /// A value that is needed whole.
    fn whole(&mut self, key: &'static str) -> Result<String, TagError> {
        let value = self.text(key)?;
        if self.cut.last() == Some(&key) { Err(TagError::Cut { key }) } else { Ok(value) }
    }

    /// A value that is written in one way.
    fn number<T: FromStr>(&mut self, key: &'static str, wanted: &'static str) -> Result<T, TagError> {
        let value = self.whole(key)?;
        value.parse().map_err(|_| invalid(key, &value, wanted))
    }
}

fn invalid(key: &'static str, value: &str, wanted: &'static str) -> TagError {
    TagError::Invalid { key, value: value.chars().take(LONGEST_VALUE).collect(), wanted }
}

/// A value as a tag takes it: what is not allowed in the tags of every AWS service is percent-encoded, and what is too
/// long is cut at a whole character and marked. EC2 itself takes any character, so the percent sign is safe there.
fn escape(value: &str) -> String {
    let mut escaped = String::new();
    let last = value.chars().count().saturating_sub(1);
    // Where to cut should the rest not fit: the last end of a character that leaves room for the mark.
    let mut fits = 0;
    for (n, char) in value.chars().enumerate() {
        let is_edge = n == 0 || n == last;
        if char.is_ascii_alphanumeric() || "+-=._:/@".contains(char) || (char == ' ' && !is_edge) {
            escaped.push(char);
        } else {
            let mut bytes = [0; 4];
            for byte in char.encode_utf8(&mut bytes).bytes() {
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
        if escaped.len() < LONGEST_VALUE {
            fits = escaped.len();
        }
        if escaped.len() > LONGEST_VALUE {
            escaped.truncate(fits);
            escaped.push(CUT);
            break;
        }
    }
    escaped
}

/// The value, and whether it was cut.
fn unescape(escaped: &str) -> Option<(String, bool)> {
    let (escaped, is_cut) = match escaped.strip_suffix(CUT) {
        Some(cut) => (cut, true),
        None => (escaped, false),
    };
    let value = percent_decode_str(escaped).decode_utf8().ok()?;
    Some((value.into_owned(), is_cut))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::suspended_environment::{SuspendedEnvironmentStatus, object_name};

    fn environment(
        texts: [String; 5],
        numbers: [u64; 3],
        slot: u32,
        protected: bool,
    ) -> SuspendedEnvironment {
        let [project_path, ref_name, job_name, commit, folder] = texts;
        let [project_id, job_id, user_id] = numbers;
        let id = "abcdefghijklmnop2345";
        let second = |second| Time(Timestamp::from_second(second).unwrap());
        let spec = SuspendedEnvironmentSpec {
            pool: "linux".into(),
            pool_uid: "0b1c-uid".into(),
            environment_id: id.into(),
            expires_at: second(1_700_000_000),
            not_after: second(1_800_000_000),
            desired_tier: None,
            workspace_path: format!("/builds/{slot}/{folder}"),
            origin: Origin {
                project_id,
                project_path,
                ref_name,
                protected,
                commit,
                job_id,
                job_name,
                user_id,
                outcome: if protected { ScriptOutcome::Failed } else { ScriptOutcome::Succeeded },
                lease: format!("linux-{job_id}"),
                lease_uid: "uid".into(),
                instance: "i-0a1b".into(),
                slot: 0,
            },
        };
        let mut environment = SuspendedEnvironment::new(&object_name("linux", id), spec);
        environment.metadata.namespace = Some("ci".into());
        environment.status = Some(SuspendedEnvironmentStatus {
            tier: Some(Tier::Detached),
            slot: Some(slot),
            revision: slot * 3,
            ..SuspendedEnvironmentStatus::default()
        });
        environment
    }

    fn plain() -> SuspendedEnvironment {
        environment(["g/p", "main", "build 1", "c0ffee", "g/p"].map(Into::into), [1, 2, 3], 1, false)
    }

    #[test]
    fn no_tag_carries_the_key_and_there_is_room_for_others() {
        let tags = of_environment(&plain(), "cluster");
        assert!(tags.len() <= 30, "a resource has 50 tags at most, and people have their own");
        assert!(!tags.values().any(|value| value.contains("acquisition-key")));
        assert_eq!(tags[JOB_NAME], "build 1");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let tags = of_environment(&plain(), "cluster");
        for key in tags.keys() {
            let mut tags = tags.clone();
            tags.remove(key);
            let error = read_environment(&tags).unwrap_err();
            assert!(error.to_string().starts_with(&format!("tag {key} is missing")), "{error}");
        }
        for (key, value) in [
            (EXPIRES_AT, "tomorrow"),
            (SLOT, "-1"),
            (STATE, "Warm"),
            (PROTECTED, "yes"),
            (SCHEMA, "2"),
            (ENVIRONMENT, "UPPER"),
            (OUTCOME, ""),
            (REF, "%FF"),
        ] {
            let mut tags = tags.clone();
            tags.insert(key.into(), value.into());
            let error = read_environment(&tags).unwrap_err();
            assert!(error.to_string().starts_with(&format!("tag {key} is {value:?}")), "{error}");
        }
        let mut tags = tags.clone();
        tags.insert(WORKSPACE.into(), "/builds/0/very-long%".into());
        assert_eq!(read_environment(&tags), Err(TagError::Cut { key: WORKSPACE }));
    }

    #[test]
    fn an_expiry_past_the_ceiling_is_brought_back_to_it() {
        let mut tags = of_environment(&plain(), "cluster");
        tags.insert(EXPIRES_AT.into(), "2199-01-01T00:00:00Z".into());
        let adopted = read_environment(&tags).unwrap();
        assert_eq!(adopted.spec.expires_at, adopted.spec.not_after);
    }

    #[test]
    fn a_value_of_just_the_longest_length_is_not_cut() {
        for (length, is_cut) in
            [(LONGEST_VALUE - 1, false), (LONGEST_VALUE, false), (LONGEST_VALUE + 1, true)]
        {
            let escaped = escape(&"x".repeat(length));
            assert_eq!(escaped.len(), length.min(LONGEST_VALUE));
            assert_eq!(unescape(&escaped).unwrap().1, is_cut);
        }
    }

    proptest! {
        #![proptest_config(crate::property::cases(1000))]
        #[test]
        fn an_environment_comes_back_as_it_was(
            texts in proptest::array::uniform5("[\\PC\t\n%]{0,12}"),
            numbers in any::<[u64; 3]>(), slot in 0u32..64, protected in any::<bool>(),
        ) {
            let environment = environment(texts, numbers, slot, protected);
            let tags = of_environment(&environment, "cluster");
            let adopted = read_environment(&tags).unwrap();
            prop_assert_eq!(&adopted.spec, &environment.spec);
            prop_assert_eq!((adopted.slot, adopted.revision, adopted.tier), (slot, slot * 3, Tier::Detached));
            prop_assert_eq!((adopted.cluster.as_str(), adopted.namespace.as_str()), ("cluster", "ci"));
            prop_assert!(adopted.cut.is_empty());
        }

        #[test]
        fn a_long_value_is_cut_at_a_character_and_says_so(text in "[a-zé✓%/ ]{0,600}") {
            let escaped = escape(&text);
            prop_assert!(escaped.len() <= LONGEST_VALUE);
            let allowed = |char: char| char.is_ascii_alphanumeric() || "+-=._:/@ %".contains(char);
            prop_assert!(escaped.chars().all(allowed), "{}", escaped);
            let (value, is_cut) = unescape(&escaped).unwrap();
            prop_assert!(text.starts_with(&value));
            prop_assert_eq!(is_cut, value != text);
        }
    }
}
