//! Which Auto Scaling groups the pools of a namespace may use. Pure.
//!
//! A pool names its group, and the operator's credentials reach every group of the account that their policy lets them
//! reach. Without this list whoever may create pools in one namespace could take instances that belong to another. It is
//! the operator's setting, read once at its start: what it does not name is not allowed.

use std::collections::BTreeMap;

use serde_json::Value;

/// Names the entry that holds for all namespaces.
const EVERY_NAMESPACE: &str = "*";

/// The longest name of an Auto Scaling group.
const LONGEST_NAME: usize = 255;

/// Groups that pools may use, by the pools' namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedGroups {
    by_namespace: BTreeMap<String, Vec<String>>,
}

/// Why a list cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowedGroupsError {
    /// It is no YAML.
    #[error(
        "the list of allowed groups cannot be read: {0}. It looks like `namespaces: {{ci: [\"ci-*\"]}}`; a name that begins with * is put in quotes"
    )]
    Unreadable(String),
    /// One of its entries is not what it has to be.
    #[error("{key} is {value}, which cannot be: {way_out}")]
    Entry {
        /// Where it is, such as `namespaces.ci[0]`.
        key: String,
        /// What is there.
        value: String,
        /// What may be there.
        way_out: &'static str,
    },
}

impl AllowedGroups {
    /// Reads `namespaces: {<namespace or "*">: [<name or pattern>, ...]}`. In a pattern, `*` stands for any characters.
    ///
    /// # Errors
    /// When it is anything else; the error names the entry and what may be there.
    pub fn parse(yaml: &str) -> Result<Self, AllowedGroupsError> {
        let document: Value = serde_saphyr::from_str(yaml)
            .map_err(|error| AllowedGroupsError::Unreadable(first_line(&error.to_string())))?;
        let Some(document) = document.as_object() else {
            return Err(refuse("the file", &document, "it is a map with the key namespaces"));
        };
        if let Some((key, value)) = document.iter().find(|(key, _)| *key != "namespaces") {
            return Err(refuse(key, value, "the only key is namespaces"));
        }
        let namespaces = document.get("namespaces").unwrap_or(&Value::Null);
        let Some(namespaces) = namespaces.as_object() else {
            return Err(refuse("namespaces", namespaces, "it is a map of namespaces; {} allows no group"));
        };
        let mut by_namespace = BTreeMap::new();
        for (namespace, groups) in namespaces {
            let key = format!("namespaces.{namespace}");
            if namespace != EVERY_NAMESPACE && !is_namespace(namespace) {
                let name = Value::from(namespace.as_str());
                return Err(refuse(
                    &key,
                    &name,
                    "name a namespace in full, or \"*\" for all of them; patterns are for groups",
                ));
            }
            let Some(groups) = groups.as_array() else {
                return Err(refuse(&key, groups, "it is a list of groups, such as [\"ci-*\", shared-linux]"));
            };
            let groups: Vec<String> = groups
                .iter()
                .enumerate()
                .map(|(index, group)| read_pattern(&format!("{key}[{index}]"), group))
                .collect::<Result<_, _>>()?;
            by_namespace.insert(namespace.clone(), groups);
        }
        Ok(Self { by_namespace })
    }

    /// Whether pools of a namespace may use a group: by the namespace's own entry or by that for all.
    pub fn allows(&self, namespace: &str, group: &str) -> bool {
        [namespace, EVERY_NAMESPACE]
            .iter()
            .filter_map(|entry| self.by_namespace.get(*entry))
            .flatten()
            .any(|pattern| matches(pattern, group))
    }

    /// What the namespace may use instead and how the group is allowed; `None` where it is.
    pub fn refusal(&self, namespace: &str, group: &str) -> Option<String> {
        if self.allows(namespace, group) {
            return None;
        }
        let own = self.by_namespace.get(namespace).into_iter().flatten();
        let all = self.by_namespace.get(EVERY_NAMESPACE).into_iter().flatten();
        let others: Vec<&str> = own.chain(all).map(String::as_str).collect();
        let instead = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
        Some(format!(
            "the operator's settings do not let pools of namespace {namespace} use group {group} (they let them use: \
             {instead}). Whoever installed the operator can allow it: chart value aws.groups, or the file of \
             --aws-groups, with `{namespace}: [\"{group}\"]`"
        ))
    }
}

fn read_pattern(key: &str, value: &Value) -> Result<String, AllowedGroupsError> {
    let Some(pattern) = value.as_str() else {
        return Err(refuse(
            key,
            value,
            "a group is named by text; put a name that looks like a number in quotes",
        ));
    };
    if pattern.is_empty() || pattern.chars().count() > LONGEST_NAME {
        return Err(refuse(key, value, "the name of a group has 1 to 255 characters"));
    }
    if pattern.chars().any(|character| character.is_control() || character == ':') {
        return Err(refuse(key, value, "give the group's name, not its ARN: AWS allows no colon in it"));
    }
    Ok(pattern.to_owned())
}

fn refuse(key: &str, value: &Value, way_out: &'static str) -> AllowedGroupsError {
    let value = match value {
        Value::Null => "empty".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    };
    AllowedGroupsError::Entry { key: key.to_owned(), value, way_out }
}

/// What follows in a YAML error is an excerpt of the file.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

fn is_namespace(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Whether a name is what a pattern says. Each piece between two stars is taken where it is found first: what comes after
/// it then has the most room.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(begin) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        let Some(at) = name.find(piece) else { return false };
        name = name.get(at + piece.len()..).unwrap_or_default();
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(yaml: &str) -> AllowedGroups {
        AllowedGroups::parse(yaml).unwrap()
    }

    #[test]
    fn a_namespace_may_use_what_its_own_entry_and_that_for_all_name() {
        let allowed = list("namespaces: {ci: [\"ci-*\", shared-linux], \"*\": [\"*-for-all\"], none: []}");
        for (namespace, group, is_allowed) in [
            ("ci", "ci-linux", true),
            ("ci", "ci-", true),
            ("ci", "shared-linux", true),
            ("ci", "shared-linux-2", false),
            ("ci", "my-ci-linux", false),
            ("ci", "small-for-all", true),
            ("none", "small-for-all", true),
            ("other", "small-for-all", true),
            ("other", "ci-linux", false),
            ("*", "ci-linux", false),
        ] {
            assert_eq!(allowed.allows(namespace, group), is_allowed, "{namespace}: {group}");
        }
    }

    #[test]
    fn without_a_list_nothing_is_allowed_and_the_refusal_says_how_to() {
        let refusal = AllowedGroups::default().refusal("ci", "ci-linux").unwrap();
        for word in ["namespace ci", "group ci-linux", "use: none", "aws.groups", "ci: [\"ci-linux\"]"] {
            assert!(refusal.contains(word), "{refusal}");
        }
        let allowed = list("namespaces: {ci: [\"ci-*\"]}");
        assert_eq!(allowed.refusal("ci", "ci-linux"), None);
        assert!(allowed.refusal("ci", "gpu").unwrap().contains("use: ci-*)"));
    }

    #[test]
    fn the_way_out_of_a_refusal_is_a_way_out() {
        let refusal = AllowedGroups::default().refusal("ci", "ci-linux").unwrap();
        let entry = refusal.rsplit('`').nth(1).unwrap();
        assert!(list(&format!("namespaces: {{{entry}}}")).allows("ci", "ci-linux"), "{entry}");
    }

    #[test]
    fn what_cannot_be_names_key_value_and_way_out() {
        for (yaml, complaint) in [
            ("", "the file is empty"),
            ("[]", "the file is a list"),
            ("namespaces:", "namespaces is empty"),
            ("groups: {}", "groups is a map, which cannot be: the only key is namespaces"),
            ("namespaces: {ci: ci-linux}", "namespaces.ci is \"ci-linux\", which cannot be: it is a list"),
            ("namespaces: {ci: [a, 7]}", "namespaces.ci[1] is 7, which cannot be: a group is named by text"),
            ("namespaces: {ci: ['']}", "namespaces.ci[0] is \"\", which cannot be: the name of a group has"),
            ("namespaces: {ci: ['arn:aws:x']}", "namespaces.ci[0] is \"arn:aws:x\", which cannot be: give"),
            ("namespaces: {\"team-*\": [a]}", "namespaces.team-* is \"team-*\", which cannot be: name a"),
            ("namespaces: {CI: [a]}", "namespaces.CI is \"CI\""),
        ] {
            let error = AllowedGroups::parse(yaml).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{yaml}: {error}");
        }
        for yaml in ["namespaces: {ci: [*]}", "namespaces: {ci: [a], ci: [b]}", "\u{1}"] {
            let error = AllowedGroups::parse(yaml).unwrap_err();
            assert!(matches!(error, AllowedGroupsError::Unreadable(_)), "{yaml}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    /// What a pattern means, character by character.
    fn means(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('*', rest)) => (0..=name.len()).any(|taken| means(rest, &name[taken..])),
            Some((first, rest)) => {
                name.split_first().is_some_and(|(next, name)| next == first && means(rest, name))
            }
        }
    }

    proptest! {
        #[test]
        fn a_star_stands_for_any_characters(pattern in "[ab*]{1,7}", name in "[ab]{0,9}") {
            let characters = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &name), means(&characters(&pattern), &characters(&name)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<String>()) {
            let _ = AllowedGroups::parse(&text);
        }
    }
}
