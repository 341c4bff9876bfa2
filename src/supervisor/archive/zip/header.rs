//! The headers of a zip archive that is written. Pure.

use std::io;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{
    CENTRAL, DESCRIPTOR, END, END_WIDE, END_WIDE_LOCATOR, EXTRA_TIME, EXTRA_WIDE, LOCAL, STREAMED, UNIX,
    UTF8, WIDE, WIDE_COUNT,
};

/// Version of the format that an entry needs: 2.0, or 4.5 with wide numbers.
const VERSION: u16 = 20;
const VERSION_WIDE: u16 = 45;

/// What is told of a file besides its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Mode with its type, as `stat` has it.
    pub mode: u32,
    /// Time of the last change, in seconds of 1970.
    pub modified: i64,
    /// Size of a file; not more is read.
    pub size: u64,
}

/// An entry as both of its headers tell it.
pub(super) struct Entry<'a> {
    pub name: &'a [u8],
    pub meta: Meta,
    pub flags: u16,
    pub method: u16,
    pub crc: u32,
    pub compressed: u64,
    pub size: u64,
    pub offset: u64,
    pub wide: bool,
}

impl Entry<'_> {
    pub fn local(&self) -> io::Result<Vec<u8>> {
        let mut header = Vec::with_capacity(64 + self.name.len());
        let mut extra = time_field(self.meta.modified);
        if self.wide {
            // Both sizes, which are not known yet; their width is.
            put16(&mut extra, EXTRA_WIDE);
            put16(&mut extra, 16);
            put64(&mut extra, 0);
            put64(&mut extra, 0);
        }
        let is_streamed = self.flags & STREAMED != 0;
        let size = |size| {
            if self.wide {
                WIDE
            } else if is_streamed {
                0
            } else {
                narrowed(size)
            }
        };
        put32(&mut header, LOCAL);
        self.common(&mut header, if is_streamed { 0 } else { self.crc });
        put32(&mut header, size(self.compressed));
        put32(&mut header, size(self.size));
        put16(&mut header, self.name_length()?);
        put16(&mut header, short(extra.len())?);
        header.extend(self.name);
        header.extend(extra);
        Ok(header)
    }

    pub fn descriptor(&self) -> Vec<u8> {
        let mut descriptor = Vec::new();
        put32(&mut descriptor, DESCRIPTOR);
        put32(&mut descriptor, self.crc);
        for size in [self.compressed, self.size] {
            if self.wide {
                put64(&mut descriptor, size);
            } else {
                put32(&mut descriptor, narrowed(size));
            }
        }
        descriptor
    }

    pub fn central(&self) -> io::Result<Vec<u8>> {
        let mut header = Vec::with_capacity(96 + self.name.len());
        let mut extra = time_field(self.meta.modified);
        let wide: Vec<u64> = [self.size, self.compressed, self.offset]
            .into_iter()
            .filter(|number| *number >= u64::from(WIDE))
            .collect();
        if !wide.is_empty() {
            put16(&mut extra, EXTRA_WIDE);
            put16(&mut extra, short(wide.len() * 8)?);
            wide.iter().for_each(|number| put64(&mut extra, *number));
        }
        put32(&mut header, CENTRAL);
        put16(&mut header, (UNIX << 8) | VERSION_WIDE);
        self.common(&mut header, self.crc);
        put32(&mut header, narrowed(self.compressed));
        put32(&mut header, narrowed(self.size));
        put16(&mut header, self.name_length()?);
        put16(&mut header, short(extra.len())?);
        put16(&mut header, 0);
        put16(&mut header, 0);
        put16(&mut header, 0);
        let is_folder = self.name.last() == Some(&b'/');
        put32(&mut header, (self.meta.mode << 16) | if is_folder { 0x10 } else { 0 });
        put32(&mut header, narrowed(self.offset));
        header.extend(self.name);
        header.extend(extra);
        Ok(header)
    }

    /// What both headers have in common: version to checksum.
    fn common(&self, header: &mut Vec<u8>, crc: u32) {
        let (date, time) = dos_time(self.meta.modified);
        let is_utf8 = std::str::from_utf8(self.name).is_ok();
        put16(header, if self.wide { VERSION_WIDE } else { VERSION });
        put16(header, self.flags | if is_utf8 { UTF8 } else { 0 });
        put16(header, self.method);
        put16(header, time);
        put16(header, date);
        put32(header, crc);
    }

    fn name_length(&self) -> io::Result<u16> {
        short(self.name.len())
    }
}

/// The archive's end: so many entries, whose directory begins at `at`.
pub(super) fn end(entries: u64, at: u64, length: u64) -> Vec<u8> {
    let mut end = Vec::new();
    let narrow = u16::try_from(entries).ok().filter(|count| *count != WIDE_COUNT);
    let is_wide = narrow.is_none() || at >= u64::from(WIDE) || length >= u64::from(WIDE);
    if is_wide {
        put32(&mut end, END_WIDE);
        put64(&mut end, 44);
        put16(&mut end, (UNIX << 8) | VERSION_WIDE);
        put16(&mut end, VERSION_WIDE);
        put32(&mut end, 0);
        put32(&mut end, 0);
        put64(&mut end, entries);
        put64(&mut end, entries);
        put64(&mut end, length);
        put64(&mut end, at);
        put32(&mut end, END_WIDE_LOCATOR);
        put32(&mut end, 0);
        put64(&mut end, at + length);
        put32(&mut end, 1);
    }
    let count = narrow.unwrap_or(WIDE_COUNT);
    put32(&mut end, END);
    put32(&mut end, 0);
    put16(&mut end, count);
    put16(&mut end, count);
    put32(&mut end, narrowed(length));
    put32(&mut end, narrowed(at));
    put16(&mut end, 0);
    end
}

fn time_field(modified: i64) -> Vec<u8> {
    let mut field = Vec::new();
    if let Ok(seconds) = i32::try_from(modified) {
        put16(&mut field, EXTRA_TIME);
        put16(&mut field, 5);
        field.push(1);
        field.extend(seconds.to_le_bytes());
    }
    field
}

/// Date and time as the format has them without extra fields: 1980 to 2107, two seconds at a time.
fn dos_time(modified: i64) -> (u16, u16) {
    let earliest = ((1 << 5) | 1, 0);
    let Ok(at) = Timestamp::from_second(modified) else { return earliest };
    let at = at.to_zoned(TimeZone::UTC).datetime();
    let Some(year) = u16::try_from(at.year()).ok().and_then(|year| year.checked_sub(1980)) else {
        return earliest;
    };
    if year > 127 {
        return earliest;
    }
    let part = |number: i8| u16::try_from(number).unwrap_or_default();
    let date = (year << 9) | (part(at.month()) << 5) | part(at.day());
    (date, (part(at.hour()) << 11) | (part(at.minute()) << 5) | (part(at.second()) / 2))
}

fn narrowed(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(WIDE)
}

fn short(length: usize) -> io::Result<u16> {
    u16::try_from(length).map_err(|_| io::Error::other("the name is too long for a zip archive"))
}

fn put16(out: &mut Vec<u8>, number: u16) {
    out.extend(number.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, number: u32) {
    out.extend(number.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_what_the_format_knows_are_its_earliest() {
        assert_eq!(dos_time(0), (33, 0));
        assert_eq!(dos_time(i64::MAX), (33, 0));
        // 2026-11-25 07:46:28 UTC.
        assert_eq!(dos_time(1_795_592_788), ((46 << 9) | (11 << 5) | 25, (7 << 11) | (46 << 5) | 14));
    }
}
