//! Reads a zip archive from a file. Trusts nothing in it: every number is checked against the file's length, sizes and
//! checksums against what comes out.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::bufread::DeflateDecoder;

pub use super::entry::{Entry, Kind};
use super::entry::{parse, u16_at, u32_at, u64_at};
use super::{
    CENTRAL_LENGTH, DEFLATED, ENCRYPTED, END, END_LENGTH, END_WIDE, END_WIDE_LOCATOR, LOCAL, LOCAL_LENGTH,
    STORED, WIDE, WIDE_COUNT, ZSTD,
};
use crate::supervisor::archive::zstd::Zstd;
use crate::supervisor::archive::{ArchiveError, refused, shown};

/// Longest comment of an archive.
const LONGEST_COMMENT: usize = 65_535;

/// Length of what says where the wide end is, and of the wide end up to what is read of it.
const LOCATOR_LENGTH: usize = 20;
const END_WIDE_LENGTH: usize = 56;

/// Read at once of the central directory: more than its longest entry, three times 64 KiB and its head.
const PIECE: usize = 256 * 1024;

/// An opened archive.
#[derive(Debug)]
pub struct ZipReader {
    file: File,
    length: u64,
    directory: u64,
    directory_length: u64,
    /// How many entries it says it has.
    pub entries: u64,
}

fn damaged(what: impl Into<String>) -> ArchiveError {
    ArchiveError::Damaged(what.into())
}

impl ZipReader {
    /// Finds the central directory.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(file: File) -> Result<Self, ArchiveError> {
        let length = file.metadata().map_err(refused("failed to look at the archive"))?.len();
        let tail_length = usize::try_from(length).unwrap_or(usize::MAX).min(LONGEST_COMMENT + END_LENGTH);
        let tail_at = length - tail_length as u64;
        let tail = read_at(&file, tail_at, tail_length)?;
        let end_at = find_end(&tail).ok_or_else(|| damaged("it has no end; it may have been cut short"))?;
        let end = tail.get(end_at..).unwrap_or_default();
        let short = |at| u16_at(end, at).ok_or_else(|| damaged("its end is cut short"));
        let number = |at| u32_at(end, at).ok_or_else(|| damaged("its end is cut short"));
        if short(4)? != 0 && short(4)? != WIDE_COUNT {
            return Err(damaged("it is one part of several"));
        }
        let (entries, directory_length, directory) = (short(10)?, number(12)?, number(16)?);
        let end_at = tail_at + end_at as u64;
        let mut found = Self {
            file,
            length,
            directory: directory.into(),
            directory_length: directory_length.into(),
            entries: entries.into(),
        };
        if entries == WIDE_COUNT || directory_length == WIDE || directory == WIDE {
            found.read_wide_end(end_at)?;
        }
        let directory_end = found.directory.checked_add(found.directory_length);
        if directory_end.is_none_or(|end| end > end_at) {
            return Err(damaged("its directory lies outside of it"));
        }
        if found.entries.saturating_mul(CENTRAL_LENGTH as u64) > found.directory_length {
            return Err(damaged("it has fewer entries than it says"));
        }
        Ok(found)
    }

    fn read_wide_end(&mut self, end_at: u64) -> Result<(), ArchiveError> {
        // Without one the narrow numbers hold: an archive can have exactly so many entries.
        let Some(locator_at) = end_at.checked_sub(LOCATOR_LENGTH as u64) else { return Ok(()) };
        let locator = read_at(&self.file, locator_at, LOCATOR_LENGTH)?;
        if u32_at(&locator, 0) != Some(END_WIDE_LOCATOR) {
            return Ok(());
        }
        let cut = || damaged("its wide end is not where it says");
        let at = u64_at(&locator, 8).filter(|at| *at < end_at).ok_or_else(cut)?;
        let wide = read_at(&self.file, at, END_WIDE_LENGTH)?;
        if u32_at(&wide, 0) != Some(END_WIDE) {
            return Err(cut());
        }
        self.entries = u64_at(&wide, 32).ok_or_else(cut)?;
        self.directory_length = u64_at(&wide, 40).ok_or_else(cut)?;
        self.directory = u64_at(&wide, 48).ok_or_else(cut)?;
        Ok(())
    }

    /// The file's length.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The entries, read a piece at a time. After an error there are none.
    pub fn entries(&self) -> Entries<'_> {
        Entries { archive: self, at: self.directory, left: self.entries, piece: Vec::new(), used: 0 }
    }

    /// The data of an entry; its size and checksum are checked as it is read to its end.
    ///
    /// # Errors
    /// When it is not where the directory says, or needs what is not unpacked.
    pub fn data(&self, entry: &Entry) -> Result<Data<'_>, ArchiveError> {
        let unsupported =
            |what: &str| ArchiveError::Unsupported { name: shown(&entry.name), what: what.to_owned() };
        if entry.flags & ENCRYPTED != 0 {
            return Err(unsupported("is encrypted"));
        }
        let head = read_at(&self.file, entry.offset, usize::try_from(LOCAL_LENGTH).unwrap_or_default())?;
        let wrong = || damaged(format!("the entry {} is not where its directory says", shown(&entry.name)));
        if u32_at(&head, 0) != Some(LOCAL) {
            return Err(wrong());
        }
        let name = u64::from(u16_at(&head, 26).ok_or_else(wrong)?);
        let extra = u64::from(u16_at(&head, 28).ok_or_else(wrong)?);
        let at = entry.offset + LOCAL_LENGTH + name + extra;
        if at.checked_add(entry.compressed).is_none_or(|end| end > self.directory) {
            return Err(wrong());
        }
        let section =
            BufReader::with_capacity(64 * 1024, Section { file: &self.file, at, left: entry.compressed });
        let decoder = match entry.method {
            STORED => Decoder::Stored(section),
            DEFLATED => Decoder::Deflated(DeflateDecoder::new(section)),
            ZSTD => Decoder::Zstd(Box::new(Zstd::new(section))),
            method => {
                return Err(unsupported(&format!(
                    "is compressed by method {method}, which is not unpacked here"
                )));
            }
        };
        Ok(Data { decoder, crc: crc32fast::Hasher::new(), expected: entry.crc, left: entry.size })
    }
}

/// The last end in the archive's last bytes whose comment goes to the very end.
fn find_end(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(END_LENGTH)?;
    (0..=last).rev().find(|at| {
        let comment = u16_at(tail, at + 20).map(usize::from);
        u32_at(tail, *at) == Some(END)
            && comment.is_some_and(|comment| at + END_LENGTH + comment == tail.len())
    })
}

/// Iterates over a central directory.
#[derive(Debug)]
pub struct Entries<'a> {
    archive: &'a ZipReader,
    at: u64,
    left: u64,
    piece: Vec<u8>,
    used: usize,
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let entry = self.read();
        if entry.is_err() {
            self.left = 0;
        }
        Some(entry)
    }
}

impl Entries<'_> {
    fn read(&mut self) -> Result<Entry, ArchiveError> {
        self.fill(CENTRAL_LENGTH)?;
        let head = self.piece.get(self.used..).unwrap_or_default();
        let lengths: usize =
            [28, 30, 32].into_iter().filter_map(|at| u16_at(head, at)).map(usize::from).sum();
        let length = CENTRAL_LENGTH + lengths;
        self.fill(length)?;
        let whole = self.piece.get(self.used..self.used + length).unwrap_or_default();
        let entry = parse(whole).ok_or_else(|| damaged("its directory makes no sense"))?;
        self.used += length;
        Ok(entry)
    }

    /// Has so many bytes of the directory at hand.
    fn fill(&mut self, wanted: usize) -> Result<(), ArchiveError> {
        if self.piece.len() - self.used >= wanted {
            return Ok(());
        }
        let at = self.at + self.used as u64;
        let rest = (self.archive.directory + self.archive.directory_length).saturating_sub(at);
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(PIECE);
        if length < wanted {
            return Err(damaged("its directory is cut short"));
        }
        self.piece = read_at(&self.archive.file, at, length)?;
        (self.at, self.used) = (at, 0);
        Ok(())
    }
}

/// The data of an entry.
pub struct Data<'a> {
    decoder: Decoder<'a>,
    crc: crc32fast::Hasher,
    expected: u32,
    left: u64,
}

enum Decoder<'a> {
    Stored(BufReader<Section<'a>>),
    Deflated(DeflateDecoder<BufReader<Section<'a>>>),
    Zstd(Box<Zstd<BufReader<Section<'a>>>>),
}

impl Read for Data<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let count = match &mut self.decoder {
            Decoder::Stored(data) => data.read(out),
            Decoder::Deflated(data) => data.read(out),
            Decoder::Zstd(data) => data.read(out),
        }?;
        self.crc.update(out.get(..count).unwrap_or_default());
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| wrong("it holds more than it says"))?;
        if count == 0 {
            if self.left > 0 {
                return Err(wrong("it holds less than it says"));
            }
            if self.crc.clone().finalize() != self.expected {
                return Err(wrong("its checksum is wrong"));
            }
        }
        Ok(count)
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A part of the file, read without moving the file's own position.
#[derive(Debug)]
struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(out.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn read_at(file: &File, at: u64, length: usize) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = vec![0; length];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(damaged("it is cut short")),
        Err(error) => Err(refused("failed to read the archive")(error)),
    }
}
