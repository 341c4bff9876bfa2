//! What the central directory of a zip archive says of an entry. Pure.

use rustix::fs::FileType;

use super::{CENTRAL, CENTRAL_LENGTH, EXTRA_TIME, EXTRA_WIDE, UNIX, WIDE, ZSTD};
use crate::supervisor::archive::zstd;

/// Deflate makes at most so much of a byte.
const DEFLATE_MAKES: u64 = 1032;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A link; its data is where it points.
    Link,
    /// A device, a pipe or a socket.
    Special,
}

/// An entry of the central directory.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) crc: u32,
    pub(super) compressed: u64,
    pub(super) offset: u64,
}

impl Entry {
    /// Most bytes that one byte of the archive can become in it.
    pub fn most_of_a_byte(&self) -> u64 {
        if self.method == ZSTD { zstd::MOST_OF_A_BYTE } else { DEFLATE_MAKES }
    }
}

/// Reads one entry of a central directory, name and extra fields included. `None` when it makes no sense.
pub(super) fn parse(whole: &[u8]) -> Option<Entry> {
    if u32_at(whole, 0)? != CENTRAL {
        return None;
    }
    let name_length = usize::from(u16_at(whole, 28)?);
    let extra_length = usize::from(u16_at(whole, 30)?);
    let name = whole.get(CENTRAL_LENGTH..CENTRAL_LENGTH + name_length)?.to_vec();
    let extra = whole.get(CENTRAL_LENGTH + name_length..CENTRAL_LENGTH + name_length + extra_length)?;
    let mut entry = Entry {
        kind: Kind::File,
        mode: None,
        modified: None,
        size: u32_at(whole, 24)?.into(),
        flags: u16_at(whole, 8)?,
        method: u16_at(whole, 10)?,
        crc: u32_at(whole, 16)?,
        compressed: u32_at(whole, 20)?.into(),
        offset: u32_at(whole, 42)?.into(),
        name,
    };
    let is_folder = entry.name.last() == Some(&b'/');
    let is_unix = u16_at(whole, 4)? >> 8 == UNIX;
    let mode = u32_at(whole, 38)? >> 16;
    entry.kind = match FileType::from_raw_mode(mode) {
        FileType::Symlink if is_unix => Kind::Link,
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket if is_unix => {
            Kind::Special
        }
        FileType::Directory if is_unix => Kind::Folder,
        _ if is_folder => Kind::Folder,
        _ => Kind::File,
    };
    entry.mode = (is_unix && mode != 0).then_some(mode & 0o777);
    read_extra(extra, &mut entry)?;
    Some(entry)
}

fn read_extra(mut extra: &[u8], entry: &mut Entry) -> Option<()> {
    // Archives in the wild have a few bytes of padding here.
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let field = extra.get(4..4 + length)?;
        extra = extra.get(4 + length..)?;
        match id {
            EXTRA_WIDE => {
                let mut at = 0;
                for number in [&mut entry.size, &mut entry.compressed, &mut entry.offset] {
                    if *number == u64::from(WIDE) {
                        *number = u64_at(field, at)?;
                        at += 8;
                    }
                }
            }
            EXTRA_TIME if field.first().is_some_and(|flags| flags & 1 == 1) => {
                let seconds = field.get(1..5).and_then(|bytes| bytes.try_into().ok());
                entry.modified = seconds.map(|bytes| i32::from_le_bytes(bytes).into());
            }
            _ => {}
        }
    }
    Some(())
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
