//! The log's file: appended under a lock that the running job and the verbs share.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::spool::verb::LogEnd;

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    /// Length after this handle's last write: another length means that somebody else wrote.
    length: u64,
}

/// Where the file ends, seen under the lock.
#[derive(Debug, Clone, Copy)]
pub struct FileEnd {
    /// Bytes in the file.
    pub length: u64,
    /// Whether the last line is not ended.
    pub within_line: bool,
    /// Whether somebody else has written since this handle's last write.
    pub written_by_others: bool,
}

impl LogFile {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length })
    }

    /// Appends what `text` makes of the file's end, with nobody else writing in between.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn append(&mut self, text: impl FnOnce(FileEnd) -> Vec<u8>) -> io::Result<()> {
        let mut locked = self.lock()?;
        let bytes = text(locked.end()?);
        locked.write(&bytes)
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// When the file cannot be locked.
    pub fn lock(&mut self) -> io::Result<LockedLog<'_>> {
        flock(&self.file, FlockOperation::LockExclusive)?;
        Ok(LockedLog { log: self })
    }

    /// Makes what is written durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The log with the lock held; dropping it gives the lock back.
#[derive(Debug)]
pub struct LockedLog<'a> {
    log: &'a mut LogFile,
}

impl LockedLog<'_> {
    /// Where the file ends.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn end(&self) -> io::Result<FileEnd> {
        let length = self.log.file.metadata()?.len();
        let mut last = [b'\n'];
        if let Some(at) = length.checked_sub(1) {
            self.log.file.read_exact_at(&mut last, at)?;
        }
        Ok(FileEnd { length, within_line: last != [b'\n'], written_by_others: length != self.log.length })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = (&self.log.file).write_all(bytes);
        self.log.length = self.log.file.metadata()?.len();
        written
    }

    /// Whether the file holds `bytes` at `offset`, as far as it goes: how many of them are there, or `None` when
    /// something else is.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn holds(&self, offset: u64, bytes: &[u8]) -> io::Result<Option<usize>> {
        let there = self.log.file.metadata()?.len().saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(bytes.len());
        let mut found = vec![0; there];
        self.log.file.read_exact_at(&mut found, offset)?;
        Ok((bytes.get(..there) == Some(&found)).then_some(there))
    }

    /// Length and checksum of the whole file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn summary(&self) -> io::Result<LogEnd> {
        summary(&self.log.file)
    }

    /// Makes what is written durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        self.log.sync()
    }
}

impl Drop for LockedLog<'_> {
    fn drop(&mut self) {
        // Closing the file gives the lock back too, so a failure here loses nothing but time.
        let _unlocked = flock(&self.log.file, FlockOperation::Unlock);
    }
}

fn summary(file: &File) -> io::Result<LogEnd> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut length = 0;
    loop {
        let count = file.read_at(&mut buffer, length)?;
        if count == 0 {
            return Ok(LogEnd { length, crc32: hasher.finalize() });
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        length += count as u64;
    }
}

/// Reads a log from an offset on, with the running checksum.
#[derive(Debug)]
pub struct LogReader {
    file: File,
    hasher: crc32fast::Hasher,
    offset: u64,
}

impl LogReader {
    /// Opens the log at `from`; the bytes before it only count for the checksum.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(path: &Path, from: u64) -> io::Result<Self> {
        let mut reader = Self { file: File::open(path)?, hasher: crc32fast::Hasher::new(), offset: 0 };
        let mut buffer = vec![0; 64 * 1024];
        while reader.offset < from {
            let wanted = usize::try_from(from - reader.offset).unwrap_or(usize::MAX).min(buffer.len());
            if reader.read(buffer.get_mut(..wanted).unwrap_or_default())? == 0 {
                break;
            }
        }
        Ok(reader)
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Checksum over all bytes before the offset.
    pub fn crc32(&self) -> u32 {
        self.hasher.clone().finalize()
    }

    /// Reads what comes next; 0 at the end so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.offset += count as u64;
        Ok(count)
    }
}
