//! The wish to cancel a job, left as a file by the verbs `cancel` and `interrupt` and noticed while a stage runs.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::spool::verb::Interruption;
use crate::supervisor::state::JobFolder;

/// How a job is to end early; a later wish can only be harder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CancelWish {
    /// The script stops, `after_script` still runs.
    Graceful,
    /// Everything stops.
    Abort,
    /// The instance is about to be taken away: everything stops, the script in good order.
    Interrupt,
}

impl CancelWish {
    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Graceful => "graceful",
            Self::Abort => "abort",
            Self::Interrupt => "interrupt",
        }
    }

    /// Reads the word; a file that somebody else wrote is read as the wish that everything stops.
    pub fn read(text: &str) -> Self {
        if text.trim() == Self::Graceful.word() {
            return Self::Graceful;
        }
        if read_interruption(text).is_some() { Self::Interrupt } else { Self::Abort }
    }
}

fn read_interruption(text: &str) -> Option<Interruption> {
    serde_json::from_str(text).ok()
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

    /// What is to be said of a job that is ended because its instance goes, if it is.
    pub fn interruption(&self) -> Option<Interruption> {
        fs::read_to_string(&self.file).ok().and_then(|text| read_interruption(&text))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_as_it_was_left_and_what_nobody_knows_stops_everything() {
        assert_eq!(CancelWish::read("graceful\n"), CancelWish::Graceful);
        assert_eq!(CancelWish::read("abort"), CancelWish::Abort);
        assert_eq!(CancelWish::read("something else"), CancelWish::Abort);
        let interruption = Interruption { message: "it goes".to_owned(), can_leave: true };
        let text = serde_json::to_string(&interruption).unwrap();
        assert_eq!(CancelWish::read(&text), CancelWish::Interrupt);
        assert_eq!(read_interruption(&text), Some(interruption));
    }
}
