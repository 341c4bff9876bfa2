//! Leaves a cache for later jobs.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::http::Method;

use super::rules::{Next, Outcome, after_put};
use super::{NOTHING, Place, address, given_file, seen};
use crate::supervisor::archive::project::ProjectFolder;
use crate::supervisor::archive::selection::{Choice, select, warning};
use crate::supervisor::archive::write::{Format, level, write};
use crate::supervisor::artifacts::download::nameless;
use crate::supervisor::errand::say;
use crate::supervisor::expansion::{Given, Variables};
use crate::supervisor::http::{Client, HttpError, HttpSettings, Payload, Request};

/// What is to be left.
#[derive(Serialize, Deserialize)]
pub struct Save {
    /// The project's folder.
    pub project: PathBuf,
    /// The job's folder of temporary files.
    pub temporary: PathBuf,
    /// The name it is left under.
    pub key: String,
    /// Which of the job's caches it is.
    pub index: usize,
    /// Where it goes.
    pub to: Place,
    /// What belongs to it.
    pub choice: Choice,
    /// What is put in place of the variables in that.
    pub given: Given,
    /// How much is compressed, in GitLab's words.
    pub compression: String,
    /// Bytes that it may have; 0 is no limit.
    pub largest: u64,
    /// How requests are made.
    pub http: HttpSettings,
    /// Seconds that a request may take.
    pub seconds: u64,
}

impl fmt::Debug for Save {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Save").field("key", &self.key).field("to", &self.to).finish_non_exhaustive()
    }
}

/// Leaves it.
pub fn run(save: &Save) -> ExitCode {
    match leave(save) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NOTHING),
        Err(why) => {
            say(&warning(&format!("Failed to create cache {}: {why}", save.key)));
            ExitCode::FAILURE
        }
    }
}

fn leave(save: &Save) -> Result<bool, String> {
    let project = ProjectFolder::open(&save.project)
        .map_err(|error| format!("{} cannot be opened: {error}", save.project.display()))?;
    let variables = Variables::read(&save.given);
    let choice = save.choice.expanded(&|text| variables.expand(text));
    let names = select(&project, &choice, "cache", &mut say).map_err(|error| error.to_string())?;
    if names.is_empty() {
        say("Nothing belongs to this cache: it is left as it was");
        return Ok(false);
    }
    if seen::is_unchanged(&project, &names, &save.temporary, save.index) {
        say("Archive is up to date!");
        return Ok(false);
    }
    match &save.to {
        Place::File => {
            pack(save, &project, &names, given_file()?)?;
        }
        Place::Address(address) => {
            let file = nameless(&save.temporary)
                .map_err(|error| format!("no file can be made in {}: {error}", save.temporary.display()))?;
            let length = pack(save, &project, &names, file.try_clone().map_err(|error| error.to_string())?)?;
            put(save, address, file, length)?;
        }
    }
    say("Created cache");
    Ok(true)
}

/// Packs it; answers how long it is.
fn pack(save: &Save, project: &ProjectFolder, names: &[Vec<u8>], file: File) -> Result<u64, String> {
    let mut out = BufWriter::new(Limited { file, written: 0, largest: save.largest });
    let packed = write(Format::Zip, level(&save.compression), project, names, &mut out, &mut say);
    packed.and_then(|_| out.flush()).map_err(|error| error.to_string())?;
    Ok(out.get_ref().written)
}

/// A file that takes so many bytes and no more.
struct Limited {
    file: File,
    written: u64,
    largest: u64,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        if self.largest > 0 && self.written > self.largest {
            return Err(io::Error::other(format!(
                "the archive is larger than {} bytes (spec.cache.maxUploadedArchiveSize); leave something out of its paths",
                self.largest
            )));
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn put(save: &Save, to: &str, mut file: File, length: u64) -> Result<(), String> {
    let client = Client::new(&save.http).map_err(|error| error.to_string())?;
    let url = address(to)?;
    say(&format!("Uploading cache.zip to {}", url.host_str().unwrap_or_default()));
    let mut tries = 0;
    loop {
        tries += 1;
        file.rewind().map_err(|error| error.to_string())?;
        let request = Request {
            method: Method::PUT,
            url: &url,
            headers: &[("Content-Type", "application/octet-stream")],
            payload: Payload::Stream { from: &mut file, length: Some(length) },
            time: Duration::from_secs(save.seconds),
        };
        let outcome = match client.send(request) {
            Ok(mut answer) => {
                let body = if answer.status.is_success() { String::new() } else { answer.text() };
                Outcome::Answered { status: answer.status.as_u16(), body }
            }
            Err(HttpError::TimedOut(_)) => Outcome::TooLate,
            Err(error) => Outcome::Failed(error.to_string()),
        };
        match after_put(&outcome, tries) {
            Next::Done => return Ok(()),
            Next::NotThere => return Err("there is no such place".to_owned()),
            Next::Again { wait, why } => {
                say(&warning(&format!("cache {}: {why}; again in {} s", save.key, wait.as_secs())));
                thread::sleep(wait);
            }
            Next::GiveUp(why) => return Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_grows_too_large_is_given_up_at_once() {
        let file = tempfile::tempfile().unwrap();
        let mut out = Limited { file, written: 0, largest: 10 };
        out.write_all(&[0; 10]).unwrap();
        let error = out.write_all(&[0; 1]).unwrap_err().to_string();
        assert!(error.contains("10 bytes (spec.cache.maxUploadedArchiveSize)"), "{error}");
        let mut free = Limited { file: tempfile::tempfile().unwrap(), written: 0, largest: 0 };
        free.write_all(&[0; 100]).unwrap();
    }
}
