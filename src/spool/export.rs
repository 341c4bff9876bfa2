//! An environment on its way from one host to another: everything but its workspace, which travels as a volume, and
//! its processes, which do not travel.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::record::EnvironmentRecord;

/// Longest export, in bytes of JSON: it must fit into one object of a cluster, which holds 1 MiB.
pub const LONGEST_EXPORT: usize = 768 * 1024;

/// What `export` answers and `import` reads.
///
/// Neither the processes nor the folder's numbers are in it: they mean nothing on another host. The environment's
/// marker in the workspace is what proves there that both belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentExport {
    /// [`super::FORMAT`] of the writer.
    pub format: u32,
    /// The environment, asleep.
    pub environment: EnvironmentRecord,
    /// What the next script gets back, if anything was saved.
    pub context: Option<SavedContext>,
}

/// The context that a script left, as it is kept.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedContext {
    /// [`super::FORMAT`] of the writer.
    pub format: u32,
    /// The script's last working directory.
    pub cwd: String,
    /// Exported variables.
    pub variables: Vec<(String, String)>,
    /// The shell's history, if it kept one.
    #[serde(default)]
    pub history: String,
}

impl fmt::Debug for SavedContext {
    /// Without values: a script may export what is nobody else's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedContext")
            .field("cwd", &self.cwd)
            .field("variables", &self.variables.len())
            .field("history_bytes", &self.history.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_variables_are_not_shown() {
        let context = SavedContext {
            format: 1,
            cwd: "/b/0/p".into(),
            variables: vec![("KEY".into(), "my value".into())],
            history: "typed\n".into(),
        };
        let shown = format!("{context:?}");
        assert!(
            shown.contains("/b/0/p") && !shown.contains("my value") && !shown.contains("typed"),
            "{shown}"
        );
    }
}
