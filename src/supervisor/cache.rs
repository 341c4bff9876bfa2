//! Caches of jobs, on the host or in a bucket.
//!
//! Restoring and saving are errands: processes of the job, which read and write its files with its own rights. A cache of
//! the host's comes to them as an open file, a cache in a bucket as an address that was signed for this job. What an answer
//! of a bucket means is decided purely (`rules`). Nothing here fails a job: what cannot be had is said in its log.

pub mod folder;
pub mod restore;
pub mod rules;
pub mod save;
pub mod seen;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};
use url::Url;

/// Exit code of an errand that found nothing to do: no such cache, nothing to save, nothing new.
pub const NOTHING: u8 = 3;

/// Where a cache is.
#[derive(Serialize, Deserialize)]
pub enum Place {
    /// In the file that comes along: it stands in for the errand's standard error, of which an errand makes no other use.
    File,
    /// At a signed address.
    Address(String),
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "File",
            Self::Address(_) => "Address",
        })
    }
}

/// The file that came along.
fn given_file() -> Result<File, String> {
    let given = io::stderr().as_fd().try_clone_to_owned();
    given.map(File::from).map_err(|error| format!("the file of the cache did not come along: {error}"))
}

fn address(text: &str) -> Result<Url, String> {
    // Not what is wrong with it: it is signed.
    Url::parse(text).map_err(|_| "the signed address is none".to_owned())
}
