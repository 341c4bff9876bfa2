//! Archives of files of a project: what goes into one, how it is written, and how one is unpacked.
//!
//! Runs as the job's user, in a process of the job (see [`super::errand`]), so that whatever the job has made of its
//! tree can only lead to its own files. Beyond that nothing here reads or writes outside the project's folder: every
//! path is opened beneath it ([`project`]). Nothing is ever whole in memory but the list of names.
//!
//! ```text
//! selection: paths, exclude, untracked -> names      write: names -> zip, gzip or raw -> any `Write`
//!                                           extract: a file of zip, gzip or tar.zst -> files of the project
//! ```

pub mod extract;
pub mod gzip;
pub mod name;
pub mod pattern;
pub mod project;
pub mod selection;
pub mod tar;
pub mod write;
pub mod zip;
pub mod zstd;

use std::io;

/// Why an archive cannot be unpacked. Names are shown quoted: they may hold anything.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is of none of the formats that are unpacked.
    #[error("it is {0}, which cannot be unpacked here; zip, gzip and tar.zst can")]
    Format(String),
    /// It contradicts itself, or ends too early.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// It needs something that is not unpacked.
    #[error("the entry {name} {what}")]
    Unsupported {
        /// The entry.
        name: String,
        /// What it needs.
        what: String,
    },
    /// An entry would leave the project's folder.
    #[error(
        "the entry {name} would not stay in the project's folder: {why}; nothing of the archive is used from here on"
    )]
    Outside {
        /// The entry.
        name: String,
        /// How.
        why: String,
    },
    /// There are more entries than may be.
    #[error("the archive has more than {limit} entries (raise it with {variable})", variable = extract::MOST_ENTRIES)]
    TooMany {
        /// The limit.
        limit: u64,
    },
    /// There is more in it than may be.
    #[error("the archive unpacks to more than {limit} bytes (raise it with {variable})", variable = extract::MOST_BYTES)]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The system refuses something.
    #[error("{attempt}: {source}")]
    Io {
        /// What was attempted.
        attempt: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Says what was attempted when the system refuses.
fn refused(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> ArchiveError {
    move |source| ArchiveError::Io { attempt: attempt.into(), source }
}

/// A name as it is shown in a log: on one line, whatever is in it.
pub fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if text.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
        format!("{text:?}")
    } else {
        text.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_newline_stays_on_one_line() {
        assert_eq!(shown(b"a b.txt"), "a b.txt");
        assert_eq!(shown(b"a\nERROR: b"), "\"a\\nERROR: b\"");
    }
}
