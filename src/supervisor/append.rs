//! `append` and `seal`: the operator's lines in a job's log, each exactly once.
//!
//! A line is first written to a journal with its place in the log, then to the log, both under the log's lock. If
//! the process dies in between, the next call finds the line in the journal but not, or not all, in the log, and
//! completes it; so it is where the disk was full, with the room the job has set aside. Sealing is an append with a name of its own, and a mark in the record after it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::arguments::JobName;
use super::claim::{self, Caller};
use super::log::file::{LockedLog, LogFile};
use super::log::laid_out;
use super::process;
use super::refuse::{OrRefuse, not_found, refusal};
use super::state::{Durability, JobFolder, StateFolder};
use crate::clock;
use crate::spool::record::{JobRecord, JobState};
use crate::spool::verb::{LogEnd, Refusal, RefusalReason};

/// Name of the append that ends a log; callers cannot choose it, theirs carry a prefix in the journal.
const SEAL: &str = "seal";

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    id: String,
    offset: u64,
    text: String,
}

/// Appends text once under a name.
///
/// # Errors
/// A refusal when there is no such job or its log is sealed.
pub fn append(
    state: &StateFolder,
    name: &JobName,
    once: &str,
    epoch: u64,
    text: &str,
) -> Result<LogEnd, Refusal> {
    let (job, _) = find(state, name, epoch)?;
    let attempt = "failed to append to the log";
    let mut log = LogFile::open(&job.log()).or_refuse(attempt)?;
    let mut locked = log.lock().or_refuse(attempt)?;
    // Read again under the lock: a seal may have come first.
    let record = read(&job, name)?;
    let id = format!("once:{once}");
    if record.sealed && !knows(&job.appends(), &id).or_refuse(attempt)? {
        let message = format!("the log of job {} is sealed", name.id);
        return Err(refusal(RefusalReason::Sealed, message));
    }
    job.with_room(|| write_once(&mut locked, &job, &id, text, record.timestamps)).or_refuse(attempt)?;
    locked.summary().or_refuse(attempt)
}

/// Ends a log with a last text.
///
/// # Errors
/// A refusal when there is no such job or it still runs.
pub fn seal(state: &StateFolder, name: &JobName, epoch: u64, text: &str) -> Result<LogEnd, Refusal> {
    let (job, _) = find(state, name, epoch)?;
    let attempt = "failed to seal the log";
    let mut log = LogFile::open(&job.log()).or_refuse(attempt)?;
    let mut locked = log.lock().or_refuse(attempt)?;
    let record = read(&job, name)?;
    if !record.sealed {
        if record.state != JobState::Finished && process::is_alive(&record.runner) {
            let message = format!("job {} still runs; cancel it first", name.id);
            return Err(refusal(RefusalReason::InUse, message));
        }
        job.with_room(|| write_once(&mut locked, &job, SEAL, text, record.timestamps)).or_refuse(attempt)?;
        locked.sync().or_refuse(attempt)?;
        let sealed = JobRecord { sealed: true, ..record };
        job.with_room(|| job.write(&sealed, Durability::Durable))
            .or_refuse("failed to write the job's record")?;
        job.use_room_aside().or_refuse("failed to give back the room that was set aside")?;
    }
    locked.summary().or_refuse(attempt)
}

fn find(state: &StateFolder, name: &JobName, epoch: u64) -> Result<(JobFolder, JobRecord), Refusal> {
    {
        let _lock = state.lock().or_refuse("failed to lock the state folder")?;
        claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
    }
    let job = state.environment(&name.environment).job(name.id);
    let record = read(&job, name)?;
    Ok((job, record))
}

fn read(job: &JobFolder, name: &JobName) -> Result<JobRecord, Refusal> {
    let record = job.read().or_refuse("failed to read the job's record")?;
    record.ok_or_else(|| not_found(format!("the host knows no job {}", name.id)))
}

fn write_once(
    log: &mut LockedLog<'_>,
    job: &JobFolder,
    id: &str,
    text: &str,
    timestamps: bool,
) -> io::Result<()> {
    let journal = job.appends();
    // The last entry of a name counts: an earlier one was not followed by its text.
    if let Some(entry) = entries(&journal)?.into_iter().rfind(|entry| entry.id == id) {
        let bytes = entry.text.as_bytes();
        if let Some(there) = log.holds(entry.offset, bytes)? {
            return log.write(bytes.get(there..).unwrap_or_default());
        }
    }
    if text.is_empty() {
        return Ok(());
    }
    let end = log.end()?;
    let mut laid = if end.within_line { "\n".to_owned() } else { String::new() };
    let lines = format!("{}\n", text.trim_end_matches('\n'));
    laid.push_str(&String::from_utf8_lossy(&laid_out(&lines, timestamps, clock::now())));
    let entry = Entry { id: id.to_owned(), offset: end.length, text: laid };
    note(&journal, &entry)?;
    log.write(entry.text.as_bytes())
}

fn knows(journal: &Path, id: &str) -> io::Result<bool> {
    Ok(entries(journal)?.iter().any(|entry| entry.id == id))
}

/// The journal's entries; a last line cut short by a crash was never acted upon.
fn entries(journal: &Path) -> io::Result<Vec<Entry>> {
    match std::fs::read_to_string(journal) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn note(journal: &Path, entry: &Entry) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(journal)?;
    let mut line = serde_json::to_vec(entry)?;
    // A line before, too: what a crash has cut short must not swallow this entry.
    line.insert(0, b'\n');
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> (tempfile::TempDir, JobFolder) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(Some(folder.path())).unwrap();
        let job = state.environment("abc").job(1);
        std::fs::create_dir_all(job.path()).unwrap();
        (folder, job)
    }

    fn write(job: &JobFolder, id: &str, text: &str) {
        let mut log = LogFile::open(&job.log()).unwrap();
        write_once(&mut log.lock().unwrap(), job, id, text, false).unwrap();
    }

    fn log(job: &JobFolder) -> String {
        std::fs::read_to_string(job.log()).unwrap()
    }

    #[test]
    fn the_same_name_appends_once_and_others_follow() {
        let (_folder, job) = job();
        std::fs::write(job.log(), "open").unwrap();
        for _ in 0..3 {
            write(&job, "a", "one");
        }
        write(&job, "b", "two");
        write(&job, "a", "one");
        assert_eq!(log(&job), "open\none\ntwo\n");
    }

    #[test]
    fn a_crash_after_the_journal_or_within_the_text_is_completed() {
        for cut in 0.."one more\n".len() {
            let (_folder, job) = job();
            std::fs::write(job.log(), "start\n").unwrap();
            write(&job, "a", "one more");
            let whole = log(&job);
            std::fs::write(job.log(), &whole[.."start\n".len() + cut]).unwrap();
            write(&job, "a", "one more");
            assert_eq!(log(&job), whole);
        }
    }

    #[test]
    fn a_crash_within_the_journal_leaves_the_line_to_the_next_call() {
        let (_folder, job) = job();
        std::fs::write(job.log(), "").unwrap();
        std::fs::write(job.appends(), "\n{\"id\":\"a\",\"off").unwrap();
        write(&job, "a", "one");
        write(&job, "a", "one");
        assert_eq!(log(&job), "one\n");
    }
}
