//! Reads tar archives that are compressed with zstd, an entry at a time. Nothing but one entry's head is ever in memory, and
//! that is bounded.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::rc::Rc;

use super::zstd::Zstd;
use super::{ArchiveError, refused};

/// Longest that names and other notes of one entry may be together, and what fills an archive up behind its last one.
const LONGEST_HEAD: u64 = 1024 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// Another name for an earlier file.
    HardLink,
    /// A device, a pipe or a socket.
    Special,
}

/// An entry.
#[derive(Debug)]
pub struct Entry {
    /// Its name, byte for byte.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, where it says some.
    pub mode: Option<u32>,
    /// Time of the last change, in seconds of 1970, where it says one.
    pub modified: Option<i64>,
    /// Size of its data.
    pub size: u64,
    /// Where a link points.
    pub target: Vec<u8>,
}

/// Visits every entry with its data, as far as a visit wants to read it.
///
/// # Errors
/// When the archive is damaged or cannot be read, and what a visit fails with.
pub fn each(
    archive: &File,
    visit: &mut dyn FnMut(&Entry, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut file = archive;
    file.rewind().map_err(refused("failed to read the archive"))?;
    let left = Rc::new(Cell::new(0));
    let from = Zstd::new(BufReader::with_capacity(64 * 1024, file));
    let mut tar = ::tar::Archive::new(Metered { from, left: Rc::clone(&left) });
    let mut entries = tar.entries().map_err(damaged)?;
    loop {
        left.set(LONGEST_HEAD);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(damaged)?;
        // Notes about the archive as a whole are of no use here.
        if !entry.header().entry_type().is_pax_global_extensions() {
            let known = known(&entry);
            left.set(u64::MAX);
            visit(&known, &mut entry)?;
        }
        io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
    }
    // The checksum is at the very end.
    left.set(u64::MAX);
    io::copy(&mut tar.into_inner().take(LONGEST_HEAD), &mut io::sink()).map_err(damaged)?;
    Ok(())
}

fn known(entry: &::tar::Entry<'_, impl Read>) -> Entry {
    let header = entry.header();
    let name = entry.path_bytes().into_owned();
    let kind = header.entry_type();
    let kind = if kind.is_dir() {
        Kind::Folder
    } else if kind.is_symlink() {
        Kind::Link
    } else if kind.is_hard_link() {
        Kind::HardLink
    } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
        // Before there were folders among the kinds, a slash told them.
        if name.last() == Some(&b'/') { Kind::Folder } else { Kind::File }
    } else {
        Kind::Special
    };
    Entry {
        kind,
        name,
        mode: header.mode().ok().map(|mode| mode & 0o777),
        modified: header.mtime().ok().and_then(|time| i64::try_from(time).ok()),
        size: entry.size(),
        target: entry.link_name_bytes().unwrap_or_default().into_owned(),
    }
}

/// What is wrong is wrong with the archive, unless the system says so.
fn damaged(error: io::Error) -> ArchiveError {
    match error.raw_os_error() {
        Some(_) => refused("failed to read the archive")(error),
        None => ArchiveError::Damaged(error.to_string()),
    }
}

/// Lets so much through, and then nothing: what reads heads keeps all of them in memory.
struct Metered<R> {
    from: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what it says of one entry is too long"));
        }
        let wanted = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.from.read(out.get_mut(..wanted).unwrap_or_default())?;
        if left != u64::MAX {
            self.left.set(left - count as u64);
        }
        Ok(count)
    }
}
