//! Brings the artifacts of other jobs into the project.
//!
//! The first try asks GitLab for the place where the file lies, so that it need not pass it on; later ones have GitLab
//! pass it on, for that place may be one that this host cannot reach. The file is unpacked when it is whole.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use ureq::http::Method;
use url::Url;

use super::address;
use super::rules::{MOST_REDIRECTS, Next, Outcome, after_download, sent_on};
use crate::supervisor::archive::ArchiveError;
use crate::supervisor::archive::extract::{Bounds, extract};
use crate::supervisor::archive::project::ProjectFolder;
use crate::supervisor::errand::{fail, say};
use crate::supervisor::http::{Client, HttpSettings, Payload, Request, Response, WHOLE, request_id};

/// What is to be brought.
#[derive(Serialize, Deserialize)]
pub struct Download {
    /// The project's folder.
    pub project: PathBuf,
    /// Where a file may lie while it is not whole.
    pub temporary: PathBuf,
    /// GitLab's address.
    pub gitlab: String,
    /// How requests are made.
    pub http: HttpSettings,
    /// How much may come out of an archive.
    pub bounds: Bounds,
    /// Whose artifacts, in order: later ones replace files of earlier ones.
    pub jobs: Vec<Source>,
}

/// A job with artifacts.
#[derive(Serialize, Deserialize)]
pub struct Source {
    /// The job.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its token.
    pub token: String,
    /// The name of its file.
    pub file_name: String,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u64> = self.jobs.iter().map(|job| job.id).collect();
        f.debug_struct("Download").field("jobs", &ids).finish_non_exhaustive()
    }
}

/// Brings all of them; the first that cannot be had is the end.
pub fn run(download: &Download) -> ExitCode {
    let opened = ProjectFolder::make(&download.project)
        .map_err(|error| format!("{} cannot be opened: {error}", download.project.display()));
    let ready = opened
        .and_then(|project| Ok((project, Client::new(&download.http).map_err(|error| error.to_string())?)));
    let brought = ready.and_then(|(project, client)| {
        download.jobs.iter().try_for_each(|job| {
            say(&format!("Downloading artifacts for {} ({})...", job.name, job.id));
            bring(download, job, &project, &client).map_err(|why| format!("{} ({}): {why}", job.name, job.id))
        })
    });
    match brought {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            fail(&format!("Downloading artifacts from coordinator... failed: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn bring(download: &Download, job: &Source, project: &ProjectFolder, client: &Client) -> Result<(), String> {
    let mut tries = 0;
    loop {
        tries += 1;
        let is_direct = tries == 1;
        let outcome = match fetch(download, job, client, is_direct) {
            Ok(file) => {
                let unnamed = job.file_name.trim_end_matches(".gz");
                match extract(file, project, download.bounds, unnamed, &mut say) {
                    Ok(done) => {
                        say(&format!(
                            "Downloading artifacts from coordinator... ok  id={} files={}",
                            job.id, done.files
                        ));
                        return Ok(());
                    }
                    // It may have been damaged on its way.
                    Err(error @ ArchiveError::Damaged(_)) => Outcome::Failed(error.to_string()),
                    Err(error) => return Err(error.to_string()),
                }
            }
            // What the place says where a file lies is no word of GitLab's: it may pass the file on all the same.
            Err(Unfetched::There(why)) => Outcome::Failed(why),
            Err(Unfetched::Here(outcome)) => outcome,
        };
        match after_download(&outcome, tries) {
            Next::Again { wait, why } => {
                fail(&format!(
                    "Downloading artifacts from coordinator... {why}; again in {} s",
                    wait.as_secs()
                ));
                thread::sleep(wait);
            }
            Next::GiveUp(why) => return Err(why),
            Next::Done | Next::Elsewhere(_) => return Err("GitLab's answer makes no sense".to_owned()),
        }
    }
}

/// Why a file could not be fetched.
enum Unfetched {
    /// By GitLab's own answer, or for want of one.
    Here(Outcome),
    /// By the answer of the place GitLab has sent us to.
    There(String),
}

fn fetch(download: &Download, job: &Source, client: &Client, is_direct: bool) -> Result<File, Unfetched> {
    let here = |why: String| Unfetched::Here(Outcome::Failed(why));
    let mut url = address(&download.gitlab, job.id).map_err(here)?;
    if is_direct {
        url.query_pairs_mut().append_pair("direct_download", "true");
    }
    let (mut takes_token, mut is_gitlab) = (true, true);
    for _ in 0..=MOST_REDIRECTS {
        let id = request_id().map_err(|error| here(error.to_string()))?;
        // Another place than GitLab gets neither the token nor anything else it has not asked for.
        let for_gitlab = [("JOB-TOKEN", job.token.as_str()), ("X-Request-Id", &id)];
        let request = Request {
            method: Method::GET,
            url: &url,
            headers: if takes_token { &for_gitlab } else { &[] },
            payload: Payload::Nothing,
            time: WHOLE,
        };
        let said = |why: String| if is_gitlab { here(why) } else { Unfetched::There(why) };
        let mut answer = client.send(request).map_err(|error| said(error.to_string()))?;
        match answer.status.as_u16() {
            200..=299 => return keep(&mut answer, &download.temporary).map_err(said),
            301 | 302 | 303 | 307 | 308 => {
                let (place, same) = sent_on(&url, answer.header("Location")).map_err(said)?;
                (url, takes_token, is_gitlab) = (place, takes_token && same, is_gitlab && same);
            }
            status if is_gitlab => {
                return Err(Unfetched::Here(Outcome::Answered {
                    status,
                    location: None,
                    retry_after: answer.retry_after(),
                }));
            }
            status => {
                return Err(Unfetched::There(format!("{} answers {status}", host(&url))));
            }
        }
    }
    Err(Unfetched::There(format!("sent on {MOST_REDIRECTS} times")))
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or("the place it lies at")
}

/// Keeps a body in a file that has no name.
fn keep(answer: &mut Response, folder: &Path) -> Result<File, String> {
    let mut file =
        nameless(folder).map_err(|error| format!("no file can be made in {}: {error}", folder.display()))?;
    io::copy(answer, &mut file).map_err(|error| format!("the file did not arrive whole: {error}"))?;
    Ok(file)
}

/// A file that is gone when this process is.
pub fn nameless(folder: &Path) -> io::Result<File> {
    // As the stages make it.
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
    match rustix::fs::open(folder, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(File::from(file)),
        // A file system without such files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = folder.join(format!(".dormouse-download-{}", std::process::id()));
            let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
            std::fs::remove_file(path)?;
            Ok(File::from(file))
        }
        Err(error) => Err(error.into()),
    }
}
