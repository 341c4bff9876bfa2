//! The wish to cancel a job, left as a file by the `cancel` verb and noticed while a stage runs.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::supervisor::state::JobFolder;

/// How a job is to end early; a later wish can only be harder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CancelWish {
    /// The script stops, `after_script` still runs.
    Graceful,
    /// Everything stops.
    Abort,
}

impl CancelWish {
    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Graceful => "graceful",
            Self::Abort => "abort",
        }
    }

    /// Reads the word; a file that somebody else wrote is read as the harder wish.
    pub fn read(text: &str) -> Self {
        if text.trim() == Self::Graceful.word() { Self::Graceful } else { Self::Abort }
    }
}

/// Watches for the file.
#[derive(Debug)]
pub struct CancelWatch {
    events: OwnedFd,
    file: PathBuf,
}

impl CancelWatch {
    /// Begins to watch a job's folder.
    ///
    /// # Errors
    /// When the host has no watch left to give.
    pub fn new(job: &JobFolder) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, job.path(), WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE)?;
        Ok(Self { events, file: job.cancel() })
    }

    /// What to wait for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes the notices away and looks at the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn wish(&self) -> io::Result<Option<CancelWish>> {
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut notices = inotify::Reader::new(&self.events, &mut buffer);
        while notices.next().is_ok() {}
        match fs::read_to_string(&self.file) {
            Ok(text) => Ok(Some(CancelWish::read(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
