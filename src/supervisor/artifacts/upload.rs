//! Hands a job's artifacts over to GitLab: each entry is found, packed and sent in one stream, nothing in between.

use std::fmt;
use std::io::{self, BufWriter, PipeWriter};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use serde::{Deserialize, Serialize};
use ureq::http::Method;
use url::Url;

use super::address;
use super::multipart::{Ended, Form, boundary};
use super::plan::{expanded, file_name};
use super::rules::{MOST_REDIRECTS, Next, Outcome, after_upload};
use crate::supervisor::archive::project::ProjectFolder;
use crate::supervisor::archive::selection::{Choice, select};
use crate::supervisor::archive::write::{Format, level, write};
use crate::supervisor::errand::{fail, say};
use crate::supervisor::expansion::{Given, Variables};
use crate::supervisor::http::{Client, HttpSettings, Payload, Request, WHOLE, request_id};

/// What is to be handed over.
#[derive(Serialize, Deserialize)]
pub struct Upload {
    /// The project's folder.
    pub project: PathBuf,
    /// GitLab's address.
    pub gitlab: String,
    /// The job.
    pub job: u64,
    /// Its token.
    pub token: String,
    /// How requests are made.
    pub http: HttpSettings,
    /// How much is compressed, in GitLab's words.
    pub compression: String,
    /// What is put in place of the variables in entries.
    pub given: Given,
    /// The entries, in order.
    pub items: Vec<Item>,
}

/// One of a job's artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub choice: Choice,
    /// How it is packed.
    pub format: Format,
    /// GitLab's word for what it is: `archive`, `junit`, ...
    pub kind: String,
    /// When it expires, in GitLab's words; empty where GitLab decides.
    pub expire_in: String,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("job", &self.job).field("items", &self.items).finish_non_exhaustive()
    }
}

/// Hands all of them over. One that fails does not keep the others back.
pub fn run(upload: &Upload) -> ExitCode {
    let opened = ProjectFolder::open(&upload.project)
        .map_err(|error| format!("{} cannot be opened: {error}", upload.project.display()));
    let ready = opened.and_then(|project| {
        let client = Client::new(&upload.http).map_err(|error| error.to_string())?;
        Ok((project, client, address(&upload.gitlab, upload.job)?))
    });
    let (project, client, url) = match ready {
        Ok(ready) => ready,
        Err(why) => {
            fail(&format!("Uploading artifacts: {why}"));
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    let variables = Variables::read(&upload.given);
    for item in &upload.items {
        say("Uploading artifacts...");
        let item = expanded(item, &|text| variables.expand(text));
        if let Err(why) = hand_over(upload, &item, &project, &client, &url) {
            fail(&format!("Uploading artifacts as \"{}\" to coordinator... failed: {why}", item.kind));
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn hand_over(
    upload: &Upload,
    item: &Item,
    project: &ProjectFolder,
    client: &Client,
    url: &Url,
) -> Result<(), String> {
    let names = select(project, &item.choice, "artifact", &mut say).map_err(|error| error.to_string())?;
    if names.is_empty() {
        fail("No files to upload");
        return Ok(());
    }
    let mut url = url.clone();
    url.query_pairs_mut()
        .append_pair("artifact_format", item.format.word())
        .append_pair("artifact_type", &item.kind);
    if !item.expire_in.is_empty() {
        url.query_pairs_mut().append_pair("expire_in", &item.expire_in);
    }
    let (mut tries, mut redirects) = (0, 0);
    loop {
        tries += 1;
        let (outcome, packed) = send(upload, item, project, client, &url, &names);
        if let Some(Err(why)) = packed {
            // What cannot be packed cannot be packed the next time.
            return Err(why);
        }
        match after_upload(&url, &outcome, tries) {
            Next::Done => {
                say(&format!(
                    "Uploading artifacts as \"{}\" to coordinator... 201 Created  id={}",
                    item.kind, upload.job
                ));
                return Ok(());
            }
            Next::Elsewhere(_) if redirects == MOST_REDIRECTS => {
                return Err(format!("sent on {redirects} times"));
            }
            Next::Elsewhere(place) => {
                (url, redirects, tries) = (place, redirects + 1, 0);
            }
            Next::Again { wait, why } => {
                fail(&format!(
                    "Uploading artifacts as \"{}\" to coordinator... {why}; again in {} s",
                    item.kind,
                    wait.as_secs()
                ));
                thread::sleep(wait);
            }
            Next::GiveUp(why) => return Err(why),
        }
    }
}

/// Packs and sends at once: the archive is never whole anywhere. The second answer is how the packing ended, where it
/// ended by itself.
fn send(
    upload: &Upload,
    item: &Item,
    project: &ProjectFolder,
    client: &Client,
    url: &Url,
    names: &[Vec<u8>],
) -> (Outcome, Option<Result<u64, String>>) {
    let failed = |error: io::Error| (Outcome::Failed(error.to_string()), None);
    let (reader, writer) = match io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return failed(error),
    };
    let (boundary, id) = match boundary().and_then(|boundary| Ok((boundary, request_id()?))) {
        Ok(random) => random,
        Err(error) => return failed(error),
    };
    let ended = Ended::new();
    let outcome = thread::scope(|threads| {
        threads.spawn(|| pack(item, &upload.compression, project, names, writer, &ended));
        let mut form = Form::new(&boundary, &file_name(&item.name, item.format), reader, &ended);
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let headers = [
            ("JOB-TOKEN", upload.token.as_str()),
            ("Content-Type", &content_type),
            ("Accept", "application/json"),
            ("X-Request-Id", &id),
        ];
        let request = Request {
            method: Method::POST,
            url,
            headers: &headers,
            payload: Payload::Stream { from: &mut form, length: None },
            time: WHOLE,
        };
        match client.send(request) {
            Ok(answer) => Outcome::Answered {
                status: answer.status.as_u16(),
                location: answer.header("Location").map(str::to_owned),
                retry_after: answer.retry_after(),
            },
            Err(error) => Outcome::Failed(error.to_string()),
        }
        // The form goes, and with it the pipe: a thread that still writes ends.
    });
    (outcome, ended.into_inner().filter(|ended| !is_broken_off(ended)))
}

/// What a thread says whose reader went away.
const BROKEN_OFF: &str = "broken off";

fn is_broken_off(ended: &Result<u64, String>) -> bool {
    ended.as_ref().is_err_and(|why| why == BROKEN_OFF)
}

fn pack(
    item: &Item,
    compression: &str,
    project: &ProjectFolder,
    names: &[Vec<u8>],
    writer: PipeWriter,
    ended: &Ended,
) {
    let mut out = BufWriter::with_capacity(64 * 1024, writer);
    let written = write(item.format, level(compression), project, names, &mut out, &mut say);
    let said = written.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe { BROKEN_OFF.to_owned() } else { error.to_string() }
    });
    // Before the pipe is closed, which the reader takes for the end.
    let _first = ended.set(said);
    drop(out);
}
