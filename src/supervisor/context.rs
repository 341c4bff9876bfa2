//! What a job leaves behind for the next one in its environment, besides files and processes: the script's last
//! working directory and the variables it exported.
//!
//! The script writes them as it ends; secrets and what GitLab gave are left out before anything is kept, because
//! the next job gets its own. A draft becomes the saved context when the environment is put to sleep.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::run::script::Restored;
use super::run::variables::{JobVariables, is_exportable};
use super::state::{Durability, EnvironmentFolder, gone, make_private, read_json, write_json};
use crate::spool::FORMAT;
pub use crate::spool::export::SavedContext;

/// Longest context that is read back, in bytes: far more than a kernel hands to any process.
pub const LONGEST: u64 = 4 * 1024 * 1024;

impl SavedContext {
    /// Reads what a script left, and leaves out secrets, what GitLab gave and what every script gets.
    pub fn from_script(
        left: &[u8],
        history: &[u8],
        given: &JobVariables,
        base: &BTreeMap<String, String>,
    ) -> Self {
        let is_open = |text: &str| !given.secrets().iter().any(|secret| text.contains(secret.as_str()));
        let mut entries = left.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let cwd = entries.next().unwrap_or_default().into_owned();
        let variables = entries
            .filter_map(|entry| {
                let (key, value) = entry.split_once('=')?;
                let keep = is_exportable(key)
                    && given.value(key).is_none()
                    && base.get(key).is_none_or(|inherited| inherited != value)
                    && is_open(value);
                keep.then(|| (key.to_owned(), value.to_owned()))
            })
            .collect();
        let history = String::from_utf8_lossy(history);
        let history = history.split_inclusive('\n').filter(|line| is_open(line)).collect();
        Self { format: FORMAT, cwd, variables, history }
    }

    /// As the next script gets it.
    pub fn restored(&self) -> Restored {
        Restored { cwd: self.cwd.clone(), variables: self.variables.clone(), history: self.history.clone() }
    }
}

/// Keeps a context until the environment is put to sleep.
///
/// # Errors
/// When the disk fails.
pub fn write_draft(folder: &EnvironmentFolder, context: &SavedContext) -> io::Result<()> {
    make_private(&folder.context())?;
    write_json(&draft(folder), context, Durability::Durable)
}

/// Makes the draft, if there is one, the saved context; answers with what is saved now.
///
/// # Errors
/// When the disk fails.
pub fn save(folder: &EnvironmentFolder) -> io::Result<Option<SavedContext>> {
    gone(fs::rename(draft(folder), saved(folder)))?;
    read(folder)
}

/// The saved context.
///
/// # Errors
/// When it cannot be read.
pub fn read(folder: &EnvironmentFolder) -> io::Result<Option<SavedContext>> {
    read_json(&saved(folder))
}

fn draft(folder: &EnvironmentFolder) -> PathBuf {
    folder.context().join("draft.json")
}

fn saved(folder: &EnvironmentFolder) -> PathBuf {
    folder.context().join("saved.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitlab::wire::{JobPayload, Variable};
    use crate::supervisor::run::variables::Surroundings;

    #[test]
    fn only_the_scripts_own_open_variables_are_kept() {
        let variable = |key: &str, value: &str, masked| Variable {
            key: key.into(),
            value: value.into(),
            masked,
            ..Variable::default()
        };
        let job = JobPayload {
            token: "job-token".into(),
            variables: vec![variable("GIVEN", "g", false), variable("HIDDEN", "hush-hush", true)],
            ..JobPayload::default()
        };
        let surroundings = Surroundings {
            builds_dir: "/b",
            workspace: "/b/0/p",
            temporary: "/b/0/p.tmp",
            slot: 0,
            version: "1",
            machine: "x86_64",
            ..Surroundings::default()
        };
        let given = JobVariables::gather(&job, &surroundings);
        let base =
            BTreeMap::from([("PATH".to_owned(), "/bin".to_owned()), ("LANG".to_owned(), "C".to_owned())]);
        let left = b"/b/0/p/sub\0MINE=1=2\0GIVEN=g\0COPY=xhush-hushx\0TOK=job-token\0LANG=C\0PATH=/opt:/bin\0bad-name=1\0";
        let kept = SavedContext::from_script(left, b"make\ncurl hush-hush\nls\n", &given, &base);
        assert_eq!(kept.history, "make\nls\n");
        assert_eq!(kept.cwd, "/b/0/p/sub");
        let kept: Vec<_> = kept.variables.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(kept, [("MINE", "1=2"), ("PATH", "/opt:/bin")]);
    }
}
