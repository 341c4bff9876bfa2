//! The job's variables as its scripts see them: GitLab's and the runner's, expanded once, files as paths.
//!
//! Pure. Assumes nothing of names and values: a name that a shell cannot export is set aside, not exported.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::gitlab::inputs::in_place;
use crate::gitlab::wire::{JobPayload, REVISION, Variable};

/// Where a job runs and under which limits, as far as its variables tell it.
#[derive(Debug, Clone, Default)]
pub struct Surroundings<'a> {
    /// Folder of all workspaces.
    pub builds_dir: &'a str,
    /// The workspace.
    pub workspace: &'a str,
    /// Folder of file variables, beside the workspace.
    pub temporary: &'a str,
    /// Slot index.
    pub slot: u32,
    /// Version of the runner.
    pub version: &'a str,
    /// First characters of the runner's token.
    pub short_token: &'a str,
    /// Certificates to trust for the GitLab server: the pool's, or those of the host where its server has any.
    pub ca_bundle: Option<&'a str>,
    /// Certificate and key that git shows the server.
    pub client: Option<(&'a str, &'a str)>,
    /// Variables of every job of the pool.
    pub environment: &'a [Variable],
    /// Whether the host is thrown away after this job.
    pub is_disposable: bool,
    /// The host's machine, as `uname -m` has it.
    pub machine: &'a str,
}

/// Name of the file variable with the server's certificates.
pub const CA_FILE: &str = "CI_SERVER_TLS_CA_FILE";

/// Name of the file variable with the certificate that git shows the server.
pub const CERTIFICATE_FILE: &str = "CI_SERVER_TLS_CERT_FILE";

/// Name of the file variable with that certificate's key.
pub const KEY_FILE: &str = "CI_SERVER_TLS_KEY_FILE";

/// Names of the variables by which a job asks for a log that may show secrets.
const DEBUGS: [&str; 2] = ["CI_DEBUG_TRACE", "CI_DEBUG_SERVICES"];

/// Names that `bash` keeps for itself: to assign one of them ends the script.
const SHELLS_OWN: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

/// Longest `NAME=value` that Linux hands to a program, in bytes.
const LONGEST_EXPORT: usize = 128 * 1024;

/// Most that all exported variables may come to, in bytes: Linux hands 2 MiB to a program, its arguments included, and
/// scripts export variables of their own.
const MOST_EXPORTED: usize = 1536 * 1024;

/// Shortest line of a secret of several lines that is hidden by itself: shorter ones would hide half the log.
const SHORTEST_SECRET_LINE: usize = 8;

/// One variable, ready to be exported.
#[derive(Clone, PartialEq, Eq)]
pub struct Export {
    /// Name.
    pub key: String,
    /// Value; of a file variable, the path.
    pub value: String,
    /// What the file holds, if it is a file variable.
    pub content: Option<String>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("key", &self.key).finish_non_exhaustive()
    }
}

/// All variables of a job.
#[derive(Debug)]
pub struct JobVariables {
    exports: Vec<Export>,
    by_key: HashMap<String, usize>,
    unexportable: Vec<String>,
    shell_only: HashSet<String>,
    secrets: Vec<String>,
}

impl JobVariables {
    /// Gathers a job's variables.
    pub fn gather(job: &JobPayload, surroundings: &Surroundings<'_>) -> Self {
        let given = in_order(job, surroundings);
        let latest: HashMap<&str, &Variable> =
            given.iter().map(|variable| (variable.key.as_str(), variable)).collect();
        let mut all = Self {
            exports: Vec::new(),
            by_key: HashMap::new(),
            unexportable: Vec::new(),
            shell_only: HashSet::new(),
            secrets: Vec::new(),
        };
        all.hide(&job.token);
        job.dependencies.iter().for_each(|dependency| all.hide(&dependency.token));
        for variable in &given {
            if latest.get(variable.key.as_str()).is_some_and(|last| !std::ptr::eq(*last, variable)) {
                if variable.masked {
                    all.hide(&variable.value);
                }
                continue;
            }
            let value = if variable.raw {
                variable.value.clone()
            } else {
                expand(&variable.value, |name| resolve(&latest, name, surroundings.temporary))
            };
            if variable.masked {
                all.hide(&variable.value);
                all.hide(&value);
            }
            if !is_exportable(&variable.key) || SHELLS_OWN.contains(&variable.key.as_str()) {
                all.unexportable.push(variable.key.clone());
                continue;
            }
            let export = if variable.file {
                let path = format!("{}/{}", surroundings.temporary, variable.key);
                Export { key: variable.key.clone(), value: path, content: Some(value) }
            } else {
                Export { key: variable.key.clone(), value, content: None }
            };
            all.by_key.insert(export.key.clone(), all.exports.len());
            all.exports.push(export);
        }
        all.shell_only = too_much(&all.exports);
        all
    }

    /// Whether a variable is too large for programs: it stays the shell's own, for exported it would keep every program
    /// from being started.
    pub fn is_shell_only(&self, key: &str) -> bool {
        self.shell_only.contains(key)
    }

    /// What scripts get, in order.
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// Names that no shell can export.
    pub fn unexportable(&self) -> &[String] {
        &self.unexportable
    }

    /// Phrases that must not be shown.
    pub fn secrets(&self) -> &[String] {
        &self.secrets
    }

    /// A variable's value.
    pub fn value(&self, key: &str) -> Option<&str> {
        let index = *self.by_key.get(key)?;
        self.exports.get(index).map(|export| export.value.as_str())
    }

    /// A variable's value, unless it is empty.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.value(key).map(str::trim).filter(|value| !value.is_empty())
    }

    /// Whether a flag is on; `default` when it is not set or unreadable.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.read_flag(key, default).unwrap_or(default)
    }

    /// Whether a flag is on; `default` when it is not set.
    ///
    /// # Errors
    /// A sentence for the log when the value is none that a flag can have.
    pub fn read_flag(&self, key: &str, default: bool) -> Result<bool, String> {
        let Some(text) = self.setting(key) else { return Ok(default) };
        match text.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" | "yes" | "on" => Ok(true),
            "0" | "f" | "false" | "no" | "off" => Ok(false),
            _ => Err(format!("{key} {text:?} is neither true nor false: using {default}")),
        }
    }

    fn hide(&mut self, secret: &str) {
        let secret = secret.trim();
        if secret.is_empty() {
            return;
        }
        self.secrets.push(secret.to_owned());
        if secret.contains('\n') {
            let lines = secret.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_SECRET_LINE);
            self.secrets.extend(lines.map(str::to_owned));
        }
    }
}

/// Whether a job's log may show secrets: by its own variables and those of its pool, read as on the host. GitLab lets
/// fewer people read such a log.
pub fn is_debugged(job: &JobPayload, environment: &[Variable]) -> bool {
    let job =
        if job.inputs.is_empty() { Ok(Cow::Borrowed(job)) } else { in_place(job.clone()).map(Cow::Owned) };
    // One whose inputs do not fit is refused before anything of it is shown.
    job.is_ok_and(|job| {
        let all = JobVariables::gather(&job, &Surroundings { environment, ..Surroundings::default() });
        DEBUGS.iter().any(|key| all.flag(key, false))
    })
}

/// Runner-made variables, then GitLab's, then those that nobody may override.
fn in_order(job: &JobPayload, surroundings: &Surroundings<'_>) -> Vec<Variable> {
    let made =
        |key: &str, value: String| Variable { key: key.into(), value, raw: true, ..Variable::default() };
    let mut all = surroundings.environment.to_vec();
    all.extend([
        made("CI_BUILDS_DIR", surroundings.builds_dir.to_owned()),
        made("CI_CONCURRENT_ID", surroundings.slot.to_string()),
        made("CI_CONCURRENT_PROJECT_ID", surroundings.slot.to_string()),
        made("CI_RUNNER_SHORT_TOKEN", surroundings.short_token.to_owned()),
        made("CI_SERVER", "yes".to_owned()),
        made("CI_JOB_STATUS", "running".to_owned()),
        made("CI_JOB_TIMEOUT", job.timeout_seconds().to_string()),
    ]);
    if let Some(image) = job.image_name() {
        all.push(Variable { raw: false, ..made("CI_JOB_IMAGE", image.to_owned()) });
    }
    if let Some(bundle) = surroundings.ca_bundle {
        all.push(Variable { file: true, ..made(CA_FILE, bundle.to_owned()) });
    }
    if let Some((certificate, key)) = surroundings.client {
        all.push(Variable { file: true, ..made(CERTIFICATE_FILE, certificate.to_owned()) });
        all.push(Variable { file: true, masked: true, ..made(KEY_FILE, key.to_owned()) });
    }
    all.extend(job.variables.iter().filter(|variable| !variable.key.is_empty()).cloned());
    let kind = if surroundings.is_disposable { "CI_DISPOSABLE_ENVIRONMENT" } else { "CI_SHARED_ENVIRONMENT" };
    all.extend([
        made("CI_PROJECT_DIR", surroundings.workspace.to_owned()),
        made(kind, "true".to_owned()),
        made("CI_RUNNER_VERSION", surroundings.version.to_owned()),
        made("CI_RUNNER_REVISION", REVISION.to_owned()),
        made("CI_RUNNER_EXECUTABLE_ARCH", format!("linux/{}", architecture(surroundings.machine))),
        made("RUNNER_TEMP_PROJECT_DIR", surroundings.temporary.to_owned()),
        made("GITLAB_ENV", format!("{}/gitlab_env", surroundings.temporary)),
    ]);
    all
}

/// Names of the variables that are too large to be exported: those that are too long by themselves, and the largest
/// of the others until the rest is little enough.
fn too_much(exports: &[Export]) -> HashSet<String> {
    let size = |export: &Export| export.key.len() + export.value.len() + 2;
    let (mut kept, long): (Vec<&Export>, Vec<&Export>) =
        exports.iter().partition(|export| size(export) <= LONGEST_EXPORT);
    let mut left_out: HashSet<String> = long.into_iter().map(|export| export.key.clone()).collect();
    kept.sort_by_key(|export| size(export));
    let mut total: usize = kept.iter().map(|export| size(export)).sum();
    while total > MOST_EXPORTED {
        let Some(largest) = kept.pop() else { break };
        total -= size(largest);
        left_out.insert(largest.key.clone());
    }
    left_out
}

fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn resolve(latest: &HashMap<&str, &Variable>, name: &str, temporary: &str) -> String {
    match latest.get(name) {
        Some(variable) if variable.file => format!("{temporary}/{name}"),
        Some(variable) => variable.value.clone(),
        None => String::new(),
    }
}

/// Whether a shell can export the name.
pub fn is_exportable(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Replaces `$NAME` and `${NAME}` once; `$$` becomes `$`, and parameters such as `$1` or `$?` vanish.
pub fn expand(text: &str, lookup: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = match reference(after) {
            Reference::Name(name, rest) => {
                out.push_str(&lookup(name));
                rest
            }
            Reference::Dollar(rest) => {
                out.push('$');
                rest
            }
            Reference::Nothing(rest) => rest,
        };
    }
    out.push_str(rest);
    out
}

enum Reference<'a> {
    /// A name, and what follows it.
    Name(&'a str, &'a str),
    /// A dollar sign that stands for itself.
    Dollar(&'a str),
    /// Something that expands to nothing.
    Nothing(&'a str),
}

/// Reads what follows a dollar sign.
fn reference(after: &str) -> Reference<'_> {
    let mut characters = after.chars();
    match characters.next() {
        Some('$') => Reference::Dollar(characters.as_str()),
        Some('{') => match characters.as_str().split_once('}') {
            Some(("$", rest)) => Reference::Dollar(rest),
            Some(("", rest)) => Reference::Nothing(rest),
            Some((name, rest)) => Reference::Name(name, rest),
            None => Reference::Nothing(characters.as_str()),
        },
        Some('*' | '#' | '@' | '!' | '?' | '-' | '0'..='9') => Reference::Nothing(characters.as_str()),
        _ => {
            let name = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
            match after.split_at_checked(after.len() - name.len()) {
                Some((name, rest)) if !name.is_empty() => Reference::Name(name, rest),
                _ => Reference::Dollar(after),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn variable(key: &str, value: &str) -> Variable {
        Variable { key: key.into(), value: value.into(), ..Variable::default() }
    }

    /// The variables of a job that has these.
    pub fn gather(variables: Vec<Variable>) -> JobVariables {
        let job = JobPayload { token: "glcbt-token".into(), variables, ..JobPayload::default() };
        let surroundings = Surroundings {
            builds_dir: "/b",
            workspace: "/b/0/g/p",
            temporary: "/b/0/g/p.tmp",
            slot: 0,
            version: "1",
            machine: "x86_64",
            ..Surroundings::default()
        };
        JobVariables::gather(&job, &surroundings)
    }

    #[test]
    fn values_expand_once_and_raw_ones_not_at_all() {
        let all = gather(vec![
            variable("A", "1"),
            variable("B", "$A"),
            variable("C", "${B}-$A-$MISSING-$$-$1"),
            Variable { raw: true, ..variable("D", "$A") },
        ]);
        assert_eq!(all.value("C"), Some("$A-1--$-"));
        assert_eq!(all.value("D"), Some("$A"));
    }

    #[test]
    fn the_last_of_equal_names_wins_and_the_project_folder_cannot_be_overridden() {
        let all = gather(vec![variable("A", "1"), variable("A", "2"), variable("CI_PROJECT_DIR", "/etc")]);
        assert_eq!(all.value("A"), Some("2"));
        assert_eq!(all.value("CI_PROJECT_DIR"), Some("/b/0/g/p"));
        assert_eq!(all.exports().iter().filter(|export| export.key == "A").count(), 1);
    }

    #[test]
    fn a_file_variable_becomes_a_path_also_where_it_is_referred_to() {
        let all = gather(vec![
            Variable { file: true, ..variable("KUBECONFIG", "apiVersion: v1") },
            variable("COPY", "at $KUBECONFIG"),
        ]);
        assert_eq!(all.value("COPY"), Some("at /b/0/g/p.tmp/KUBECONFIG"));
        assert_eq!(
            all.exports().iter().filter_map(|export| export.content.as_deref()).next(),
            Some("apiVersion: v1")
        );
    }

    #[test]
    fn secrets_are_the_token_masked_values_and_the_long_lines_of_masked_ones() {
        let all = gather(vec![
            Variable { masked: true, ..variable("KEY", "-----BEGIN-----\n}\nabcdefghij\n") },
            variable("OPEN", "not hidden"),
        ]);
        for hidden in ["glcbt-token", "abcdefghij", "-----BEGIN-----"] {
            assert!(all.secrets().iter().any(|secret| secret == hidden), "{hidden}");
        }
        assert!(!all.secrets().iter().any(|secret| secret == "}" || secret == "not hidden"));
    }

    #[test]
    fn the_largest_variables_are_kept_from_programs_until_the_rest_is_little_enough() {
        let sized = |key: &str, kibibytes: usize| variable(key, &"x".repeat(kibibytes * 1024));
        let many: Vec<Variable> = (0..20).map(|number| sized(&format!("V{number}"), 90 + number)).collect();
        let all = gather(many);
        let kept = (0..20).filter(|number| !all.is_shell_only(&format!("V{number}")));
        let kept: Vec<i32> = kept.collect();
        assert_eq!(kept, (0..15).collect::<Vec<_>>());
        let all = gather(vec![sized("LONG", 128), sized("SHORT", 127), variable("CI_X", "y")]);
        assert!(all.is_shell_only("LONG") && !all.is_shell_only("SHORT") && !all.is_shell_only("CI_X"));
    }

    #[test]
    fn a_pools_variable_gives_way_to_the_jobs_and_to_what_the_runner_makes() {
        let job = JobPayload { variables: vec![variable("BOTH", "job")], ..JobPayload::default() };
        let environment =
            [variable("BOTH", "pool"), variable("ONE", "at $BOTH"), variable("CI_SERVER", "no")];
        let surroundings =
            Surroundings { environment: &environment, is_disposable: true, ..Surroundings::default() };
        let all = JobVariables::gather(&job, &surroundings);
        assert_eq!((all.value("BOTH"), all.value("ONE")), (Some("job"), Some("at job")));
        assert_eq!(all.value("CI_SERVER"), Some("yes"));
        assert_eq!(all.value("CI_DISPOSABLE_ENVIRONMENT"), Some("true"));
        assert_eq!(all.value("CI_SHARED_ENVIRONMENT"), None);
    }

    #[test]
    fn a_job_is_debugged_whenever_its_shell_is_traced() {
        let debugged = |variables: &[Variable], environment: &[Variable]| {
            let inputs = vec![json!({"key": "debug", "value": {"content": true}})];
            let job = JobPayload { variables: variables.to_vec(), inputs, ..JobPayload::default() };
            is_debugged(&job, environment)
        };
        let trace = |value: &str| variable("CI_DEBUG_TRACE", value);
        for on in ["1", "t", "true", "TRUE", "yes", "on", " on ", "$CI_SERVER", "${{ job.inputs.debug }}"] {
            assert!(debugged(&[trace(on)], &[]), "{on:?}");
            assert!(debugged(&[variable("CI_DEBUG_SERVICES", on)], &[]), "{on:?}");
            // A pool's words name no inputs.
            assert!(on.contains("inputs") || debugged(&[], &[trace(on)]), "{on:?} of the pool");
        }
        for off in ["", "0", "false", "no", "off", "perhaps", "$MISSING"] {
            assert!(!debugged(&[trace(off)], &[]), "{off:?}");
            // The job's own word wins over its pool's.
            assert!(!debugged(&[trace(off)], &[trace("true")]), "{off:?}");
        }
        assert!(debugged(&[trace("true"), trace("false"), trace("1")], &[]));
        assert!(!debugged(&[trace("true"), trace("false")], &[]));
        // A job that is refused shows nothing.
        assert!(!debugged(&[trace("true"), variable("A", "${{ job.inputs.none }}")], &[]));
    }

    #[test]
    fn names_the_shell_keeps_for_itself_are_set_aside() {
        let all = gather(vec![variable("UID", "0"), variable("SHELLOPTS", "x"), variable("UIDS", "fine")]);
        assert_eq!(all.unexportable(), ["UID", "SHELLOPTS"]);
        assert_eq!(all.value("UIDS"), Some("fine"));
    }

    #[test]
    fn a_name_no_shell_can_export_is_set_aside() {
        let all = gather(vec![variable("a-b", "x"), variable("../up", "y")]);
        assert_eq!(all.unexportable(), ["a-b", "../up"]);
    }

    proptest! {
        #[test]
        fn expansion_of_anything_ends(text in "[$\\{\\}A-Z0-9?ß ]{0,40}") {
            let _expanded = expand(&text, |name| format!("<{name}>"));
        }

        #[test]
        fn text_without_dollar_signs_is_kept(text in "[^$]{0,40}") {
            prop_assert_eq!(expand(&text, |_| String::new()), text);
        }
    }
}
