//! What errands put in place of the variables in names and paths of artifacts and caches.
//!
//! These are expanded where the files are and when they are looked for: what the job has written into `GITLAB_ENV` counts. The
//! job's own variables come with the errand, as far as its texts could mean them, and what no text means stays away.

mod shell;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::archive::selection::warning;
use super::errand::say;
use super::run::variables::{JobVariables, is_exportable};

/// Most that is read of a job's `GITLAB_ENV`, in bytes.
const MOST_READ: u64 = 4 * 1024 * 1024;

/// What comes with an errand.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    values: BTreeMap<String, String>,
    gitlab_env: PathBuf,
}

impl Given {
    /// What these texts of a job could mean, at a moment with this `CI_JOB_STATUS`.
    pub fn of<'a>(
        variables: &JobVariables,
        job_status: &str,
        texts: impl Iterator<Item = &'a str> + Clone,
    ) -> Self {
        let mut values: BTreeMap<String, String> = variables
            .exports()
            .iter()
            .filter(|variable| texts.clone().any(|text| text.contains(&variable.key)))
            .map(|variable| (variable.key.clone(), variable.value.clone()))
            .collect();
        values.insert("CI_JOB_STATUS".to_owned(), job_status.to_owned());
        Self { values, gitlab_env: PathBuf::from(variables.value("GITLAB_ENV").unwrap_or_default()) }
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given").finish_non_exhaustive()
    }
}

/// All variables there are, as the errand finds them.
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Adds what the job has written into `GITLAB_ENV`. Where that cannot be read it is told, and is as nothing.
    pub fn read(given: &Given) -> Self {
        let mut values = given.values.clone();
        match read(&given.gitlab_env) {
            Ok(text) => values.extend(assignments(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => say(&warning(&format!("GITLAB_ENV cannot be read: {error}"))),
        }
        Self(values)
    }

    /// A text with its variables in place. One that cannot be expanded is told, and stays as it is.
    pub fn expand(&self, text: &str) -> String {
        // What the host has set is weaker than what the job has.
        let value =
            |name: &str| self.0.get(name).cloned().or_else(|| std::env::var(name).ok()).unwrap_or_default();
        shell::expand(text, &value).unwrap_or_else(|why| {
            say(&warning(&format!("{text:?} is taken as it stands: {why}")));
            text.to_owned()
        })
    }
}

/// Reads what a job may have put in the place of a file.
fn read(path: &Path) -> io::Result<String> {
    // A pipe is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MOST_READ).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The assignments among lines; what is none is skipped, as when a stage begins.
fn assignments(text: &str) -> impl Iterator<Item = (String, String)> {
    text.split('\n').filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        is_exportable(name).then(|| (name.to_owned(), value.replace('\0', "")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitlab::wire::Variable;
    use crate::supervisor::run::variables::tests::gather;

    fn given(folder: &Path, texts: &[&str]) -> Given {
        let variable =
            |key: &str, value: &str| Variable { key: key.into(), value: value.into(), ..Variable::default() };
        let variables = gather(vec![variable("WHERE", "here"), variable("SECRET", "hush")]);
        let given = Given::of(&variables, "failed", texts.iter().copied());
        Given { gitlab_env: folder.join("gitlab_env"), ..given }
    }

    #[test]
    fn what_the_job_has_written_is_stronger_than_its_variables_and_these_than_the_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let given = given(folder.path(), &["$WHERE $CI_JOB_STATUS"]);
        assert_eq!(
            Variables::read(&given).expand("$WHERE $CI_JOB_STATUS $V ${PATH:+path}"),
            "here failed  path"
        );
        std::fs::write(&given.gitlab_env, "V=1=2\nWHERE=there\n no=1\n1=2\nnothing\nPATH=x").unwrap();
        assert_eq!(Variables::read(&given).expand("$WHERE $V $PATH"), "there 1=2 x");
    }

    #[test]
    fn what_no_text_means_does_not_come_along() {
        let given = given(Path::new("/nowhere"), &["${NONE:-$WHERE}"]);
        let keys: Vec<&String> = given.values.keys().collect();
        assert_eq!(keys, ["CI_JOB_STATUS", "WHERE"]);
        assert!(!format!("{given:?}").contains("here"), "{given:?}");
    }

    #[test]
    fn what_is_no_file_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("gitlab_env");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(read(&pipe).unwrap(), "");
        assert_eq!(read(folder.path()).unwrap(), "");
    }

    #[test]
    fn what_cannot_be_expanded_stays() {
        let given = given(Path::new("/nowhere"), &[]);
        assert_eq!(Variables::read(&given).expand("dist-$(date)/$WHERE"), "dist-$(date)/$WHERE");
    }
}
