//! Brings a cache into the workspace.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::http::Method;

use super::rules::{Next, Outcome, after_get};
use super::{NOTHING, Place, address, given_file, seen};
use crate::supervisor::archive::extract::{Bounds, extract};
use crate::supervisor::archive::project::ProjectFolder;
use crate::supervisor::archive::selection::{Choice, warning};
use crate::supervisor::archive::zip::read::ZipReader;
use crate::supervisor::artifacts::download::nameless;
use crate::supervisor::errand::say;
use crate::supervisor::expansion::{Given, Variables};
use crate::supervisor::http::{Client, HttpError, HttpSettings, Payload, Request};

/// What is to be brought.
#[derive(Serialize, Deserialize)]
pub struct Restore {
    /// The project's folder.
    pub project: PathBuf,
    /// The job's folder of temporary files.
    pub temporary: PathBuf,
    /// The name it is looked for under.
    pub key: String,
    /// Which of the job's caches it is, where it comes under its own name: that one need not be saved unless it changes.
    pub own: Option<usize>,
    /// Where it is.
    pub from: Place,
    /// What belongs to it.
    pub choice: Choice,
    /// What is put in place of the variables in that.
    pub given: Given,
    /// How requests are made.
    pub http: HttpSettings,
    /// Seconds that a request may take.
    pub seconds: u64,
    /// How much may come out of it.
    pub bounds: Bounds,
}

impl fmt::Debug for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore").field("key", &self.key).field("from", &self.from).finish_non_exhaustive()
    }
}

/// Brings it.
pub fn run(restore: &Restore) -> ExitCode {
    match bring(restore) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            say(&format!("There is no cache under {}", restore.key));
            ExitCode::from(NOTHING)
        }
        Err(why) => {
            say(&warning(&format!("Failed to extract cache {}: {why}", restore.key)));
            ExitCode::FAILURE
        }
    }
}

fn bring(restore: &Restore) -> Result<bool, String> {
    let file = match &restore.from {
        Place::File => given_file()?,
        Place::Address(address) => match fetch(restore, address)? {
            Some(file) => file,
            None => return Ok(false),
        },
    };
    // A job without sources comes here first.
    let project = fs::create_dir_all(&restore.project)
        .and_then(|()| ProjectFolder::open(&restore.project))
        .map_err(|error| format!("{} cannot be opened: {error}", restore.project.display()))?;
    let again = file.try_clone().map_err(|error| error.to_string())?;
    let done =
        extract(file, &project, restore.bounds, "cache", &mut say).map_err(|error| error.to_string())?;
    say(&format!("Successfully extracted cache ({} files)", done.files));
    if let Some(index) = restore.own
        && let Ok(archive) = ZipReader::open(again)
    {
        let variables = Variables::read(&restore.given);
        let choice = restore.choice.expanded(&|text| variables.expand(text));
        // Without it, the cache is saved at the end whether it has changed or not.
        let _noted = seen::note(&archive, &project, &choice, &restore.temporary, index);
    }
    Ok(true)
}

/// Fetches it into a file without a name; `None` when it is not there.
fn fetch(restore: &Restore, from: &str) -> Result<Option<File>, String> {
    let client = Client::new(&restore.http).map_err(|error| error.to_string())?;
    let url = address(from)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let request = Request {
            method: Method::GET,
            url: &url,
            headers: &[],
            payload: Payload::Nothing,
            time: Duration::from_secs(restore.seconds),
        };
        let (outcome, file) = match client.send(request) {
            Ok(mut answer) if answer.status.is_success() => {
                let mut file = nameless(&restore.temporary).map_err(|error| {
                    format!("no file can be made in {}: {error}", restore.temporary.display())
                })?;
                match io::copy(&mut answer, &mut file) {
                    Ok(_) => (Outcome::Answered { status: 200, body: String::new() }, Some(file)),
                    Err(error) if is_own(&error) => return Err(format!("no room for it: {error}")),
                    Err(error) => (Outcome::Failed(format!("it did not arrive whole: {error}")), None),
                }
            }
            Ok(mut answer) => {
                (Outcome::Answered { status: answer.status.as_u16(), body: answer.text() }, None)
            }
            Err(HttpError::TimedOut(_)) => (Outcome::TooLate, None),
            Err(error) => (Outcome::Failed(error.to_string()), None),
        };
        match after_get(&outcome, tries) {
            Next::Done => return Ok(file),
            Next::NotThere => return Ok(None),
            Next::Again { wait, why } => {
                say(&warning(&format!("cache {}: {why}; again in {} s", restore.key, wait.as_secs())));
                thread::sleep(wait);
            }
            Next::GiveUp(why) => return Err(why),
        }
    }
}

/// Whether an error is of this host's disk.
fn is_own(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
