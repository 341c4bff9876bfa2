//! Errands: work of the supervisor's own that goes into the job's tree of files.
//!
//! An errand is a process of the job: started by `launch` with the job's user and in the job's process tree, so that it
//! has no more rights than the script, counts as the job's, and ends with it on a cancel or a time-out like any stage.
//! What it is to do comes on standard input and holds tokens, so it is in no file and no command line; having changed
//! its user, it cannot be looked into by other processes of that user. What it prints is the job's log; its exit code
//! says whether it succeeded. It decides nothing about the job.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::artifacts::download::{self, Download};
use super::artifacts::upload::{self, Upload};
use super::cache::restore::{self, Restore};
use super::cache::save::{self, Save};

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Errand {
    /// Hand artifacts over.
    UploadArtifacts(Upload),
    /// Bring artifacts of other jobs.
    DownloadArtifacts(Download),
    /// Bring a cache.
    RestoreCache(Restore),
    /// Leave a cache for later jobs.
    SaveCache(Save),
}

/// Does what standard input says.
pub fn run() -> ExitCode {
    // Also where the user is not changed: nobody looks into a process that holds tokens.
    let _hidden = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    match read() {
        Ok(errand) => match errand {
            Errand::UploadArtifacts(upload) => upload::run(&upload),
            Errand::DownloadArtifacts(download) => download::run(&download),
            Errand::RestoreCache(restore) => restore::run(&restore),
            Errand::SaveCache(save) => save::run(&save),
        },
        Err(error) => {
            fail(&format!("the errand cannot be read: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn read() -> io::Result<Errand> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Prints a line into the job's log. Where nobody reads it any more, the errand is about to be ended.
pub fn say(text: &str) {
    let _written = io::stdout().lock().write_all(format!("{text}\n").as_bytes());
}

/// Prints an error into the job's log.
pub fn fail(text: &str) {
    say(&format!("\x1b[31;1mERROR: {text}\x1b[0;m"));
}
