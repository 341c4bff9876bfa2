//! What a job hands over and what it gets of jobs before it, as GitLab writes it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::lenient::{lenient, objects};

objects!(ArtifactsFile);

/// One entry of `artifacts`: the archive, or a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArtifactSpec {
    /// Name of the file, unexpanded.
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    /// Whether everything that git does not track belongs to it.
    #[serde(deserialize_with = "lenient")]
    pub untracked: bool,
    /// Files, folders and patterns, unexpanded.
    #[serde(deserialize_with = "lenient")]
    pub paths: Vec<String>,
    /// Patterns of what is left out, unexpanded.
    #[serde(deserialize_with = "lenient")]
    pub exclude: Vec<String>,
    /// `on_success`, `on_failure` or `always`.
    #[serde(deserialize_with = "lenient")]
    pub when: String,
    /// `archive` or the kind of a report.
    #[serde(deserialize_with = "lenient")]
    pub artifact_type: String,
    /// `zip`, `gzip` or `raw`.
    #[serde(deserialize_with = "lenient")]
    pub artifact_format: String,
    /// When it expires, in GitLab's words.
    #[serde(deserialize_with = "lenient")]
    pub expire_in: String,
}

/// A job whose artifacts this one gets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dependency {
    /// The job.
    #[serde(deserialize_with = "lenient")]
    pub id: u64,
    /// Its name.
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    /// The token its artifacts are read with.
    #[serde(deserialize_with = "lenient")]
    pub token: String,
    /// Its archive, if it has one.
    #[serde(deserialize_with = "lenient")]
    pub artifacts_file: ArtifactsFile,
}

/// A job's archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArtifactsFile {
    /// Its name; empty when there is none.
    #[serde(deserialize_with = "lenient")]
    pub filename: String,
    /// Its size.
    #[serde(deserialize_with = "lenient")]
    pub size: u64,
}

impl fmt::Debug for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dependency").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}
