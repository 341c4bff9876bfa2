//! `attach`: streams a job's log and record as frames, from an offset on, until the log is sealed and sent.
//!
//! Only reads. Ends early when nobody reads the stream any more, and with a refusal when a newer holder has shown
//! itself on the host: the one that reads here has lost the right to speak for the job. A job whose process is dead is told as such; the
//! stream then stays open, because what the operator appends next is part of it.

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::arguments::JobName;
use super::claim::{self, Caller};
use super::log::file::LogReader;
use super::process;
use super::refuse::{OrRefuse, not_found};
use super::state::{JobFolder, StateFolder};
use crate::spool::frame::{Frame, FrameError, LogChunk, StatusFrame};
use crate::spool::record::JobRecord;
use crate::spool::verb::{Answer, Refusal};

/// Silence after which a beat is sent.
const BEAT: Duration = Duration::from_secs(5);

/// How often to look where the kernel gives no notice.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Log bytes in one frame.
const CHUNK: usize = 64 * 1024;

/// Streams a job.
///
/// # Errors
/// When standard output breaks.
pub fn attach(state: &StateFolder, name: &JobName, from: u64, epoch: u64) -> io::Result<()> {
    match find(state, name, epoch) {
        Ok((job, record)) => stream(state, &job, record, Reader { from, epoch }),
        Err(refusal) => only(Answer::Refused(refusal)),
    }
}

fn find(state: &StateFolder, name: &JobName, epoch: u64) -> Result<(JobFolder, JobRecord), Refusal> {
    {
        let _lock = state.lock().or_refuse("failed to lock the state folder")?;
        claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
    }
    let job = state.environment(&name.environment).job(name.id);
    let record = job.read().or_refuse("failed to read the job's record")?;
    let record = record.ok_or_else(|| not_found(format!("the host knows no job {}", name.id)))?;
    Ok((job, record))
}

/// Writes a stream that is an answer alone.
///
/// # Errors
/// When standard output breaks.
pub fn only(answer: Answer) -> io::Result<()> {
    send(&[Frame::Answer(answer)])
}

/// Who reads a stream.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// Offset of the first byte of the log that is wanted.
    pub from: u64,
    /// The holder's epoch.
    pub epoch: u64,
}

/// Writes the answer and then everything about the job as it comes.
///
/// # Errors
/// When standard output breaks or the job's files cannot be read.
pub fn stream(state: &StateFolder, job: &JobFolder, record: JobRecord, reader: Reader) -> io::Result<()> {
    let notices = Notices::new(state, job, &record)?;
    let mut log = LogReader::open(&job.log(), reader.from)?;
    let Some(mut shown) = look(job, &record)? else { return Ok(()) };
    send(&[
        Frame::Answer(Answer::Job(Box::new(shown.record.clone()))),
        Frame::Status(Box::new(shown.clone())),
    ])?;
    let mut last_sent = Instant::now();
    let mut changed = true;
    loop {
        if changed && let Some(refusal) = claim::outrun(state, reader.epoch)? {
            return only(Answer::Refused(refusal));
        }
        // The record before the log: what was written before a seal is then read after seeing the seal.
        let now = if changed { look(job, &shown.record)? } else { Some(shown.clone()) };
        let Some(now) = now else { return Ok(()) };
        if send_log(&mut log)? {
            last_sent = Instant::now();
        }
        if now != shown {
            shown = now;
            send(&[Frame::Status(Box::new(shown.clone()))])?;
            last_sent = Instant::now();
        }
        if shown.record.sealed {
            send_log(&mut log)?;
            return Ok(());
        }
        if last_sent.elapsed() >= BEAT {
            send(&[Frame::Beat])?;
            last_sent = Instant::now();
        }
        changed = match notices.wait(BEAT.saturating_sub(last_sent.elapsed()), shown.alive)? {
            Notice::NobodyListens => return Ok(()),
            Notice::LogAlone => false,
            Notice::Anything => true,
        };
    }
}

/// How the job stands. Its process is looked at first: one that is dead has written all it ever will, so what it wrote
/// last is never taken for the record of a job that was cut short.
fn look(job: &JobFolder, known: &JobRecord) -> io::Result<Option<StatusFrame>> {
    let alive = process::is_alive(&known.runner);
    Ok(job.read()?.map(|record| StatusFrame { alive, record }))
}

/// Sends what is new in the log; says whether there was anything.
fn send_log(log: &mut LogReader) -> io::Result<bool> {
    let mut any = false;
    let mut buffer = vec![0; CHUNK];
    loop {
        let offset = log.offset();
        let count = log.read(&mut buffer)?;
        if count == 0 {
            return Ok(any);
        }
        let bytes = buffer.get(..count).unwrap_or_default().to_vec();
        send(&[Frame::Log(LogChunk { offset, crc32: log.crc32(), bytes })])?;
        any = true;
    }
}

fn send(frames: &[Frame]) -> io::Result<()> {
    let mut bytes = Vec::new();
    for frame in frames {
        frame.encode(&mut bytes).map_err(|error| match error {
            FrameError::Json(error) => io::Error::from(error),
            FrameError::UnknownTag(_) | FrameError::TooLong(_) | FrameError::TooShort(_) => {
                io::Error::other(error)
            }
        })?;
    }
    let mut out = io::stdout().lock();
    out.write_all(&bytes)?;
    out.flush()
}

/// What a wait has ended with.
enum Notice {
    /// Nobody reads standard output any more.
    NobodyListens,
    /// At most the log has grown.
    LogAlone,
    /// The record or the process may have changed, or nothing has.
    Anything,
}

/// Everything that can change what is streamed, as descriptors to wait for.
struct Notices {
    files: Option<OwnedFd>,
    runner: Option<OwnedFd>,
}

impl Notices {
    fn new(state: &StateFolder, job: &JobFolder, record: &JobRecord) -> io::Result<Self> {
        let files = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).and_then(|files| {
            inotify::add_watch(&files, job.path(), WatchFlags::MODIFY | WatchFlags::MOVED_TO)?;
            // The host's claim is replaced here when a newer holder shows itself.
            inotify::add_watch(&files, state.root(), WatchFlags::MOVED_TO)?;
            Ok(files)
        });
        let runner =
            Pid::from_raw(record.runner.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // A host out of watches is looked at in intervals instead.
        Ok(Self { files: files.ok(), runner: runner.filter(|_| process::is_alive(&record.runner)) })
    }

    /// Waits for a change, at most so long.
    fn wait(&self, at_most: Duration, alive: bool) -> io::Result<Notice> {
        let stdout = io::stdout();
        let mut sources = vec![PollFd::new(&stdout, PollFlags::empty())];
        if alive {
            // Its end is told once; afterwards the descriptor would stay readable for ever.
            sources.extend(self.runner.iter().map(|runner| PollFd::new(runner, PollFlags::IN)));
        }
        let others = sources.len();
        sources.extend(self.files.iter().map(|files| PollFd::new(files, PollFlags::IN)));
        let blind = self.files.is_none() || (alive && self.runner.is_none());
        let patience = if blind { at_most.min(LOOK_AGAIN) } else { at_most };
        let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
        match poll(&mut sources, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        if sources.first().is_some_and(|stdout| stdout.revents().intersects(broken)) {
            return Ok(Notice::NobodyListens);
        }
        let ended = sources.iter().take(others).skip(1).any(|runner| !runner.revents().is_empty());
        Ok(if !ended && self.only_log_has_grown() { Notice::LogAlone } else { Notice::Anything })
    }

    /// Takes the notices about files away; whether there were any, and all of them about the log.
    fn only_log_has_grown(&self) -> bool {
        let Some(files) = &self.files else { return false };
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut notices = inotify::Reader::new(files, &mut buffer);
        let mut any = false;
        let mut only_log = true;
        while let Ok(notice) = notices.next() {
            any = true;
            only_log &= notice.file_name().is_some_and(|name| name.to_bytes() == b"log");
        }
        any && only_log
    }
}
