//! Writes a zip archive to an output that cannot be sought in.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::header::{Entry, Meta, end};
use super::{DEFLATED, STORED, STREAMED};

/// Files from this size on get wide numbers: deflate can make a file that is as good as random a little longer.
const WIDE_FROM: u64 = 0xf000_0000;

/// How the directory grows: more than its longest entry.
const DIRECTORY_STEP: usize = 256 * 1024;

/// A zip archive that is being written.
pub struct ZipWriter<W: Write> {
    out: Counted<W>,
    level: Compression,
    directory: Vec<u8>,
    entries: u64,
}

/// Counts what is written through.
struct Counted<W> {
    inner: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> ZipWriter<W> {
    /// Begins an archive.
    pub fn new(out: W, level: Compression) -> Self {
        Self { out: Counted { inner: out, count: 0 }, level, directory: Vec::new(), entries: 0 }
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// When the output fails, or the name is too long for the format.
    pub fn folder(&mut self, name: &[u8], meta: Meta) -> io::Result<()> {
        self.stored(&[name, b"/"].concat(), meta, b"")
    }

    /// Adds a link.
    ///
    /// # Errors
    /// When the output fails, or the name is too long for the format.
    pub fn link(&mut self, name: &[u8], target: &[u8], meta: Meta) -> io::Result<()> {
        self.stored(name, meta, target)
    }

    fn stored(&mut self, name: &[u8], meta: Meta, data: &[u8]) -> io::Result<()> {
        let size = data.len() as u64;
        let crc = crc32fast::hash(data);
        let entry = Entry {
            name,
            meta,
            flags: 0,
            method: STORED,
            crc,
            compressed: size,
            size,
            offset: self.out.count,
            wide: false,
        };
        self.out.write_all(&entry.local()?)?;
        self.out.write_all(data)?;
        self.note(&entry)
    }

    /// Adds a file with what `content` gives, `meta.size` bytes at most.
    ///
    /// # Errors
    /// When the output or the content fails, or the name is too long for the format.
    pub fn file(&mut self, name: &[u8], meta: Meta, content: impl Read) -> io::Result<()> {
        let mut entry = Entry {
            name,
            meta,
            flags: STREAMED,
            method: DEFLATED,
            crc: 0,
            compressed: 0,
            size: 0,
            offset: self.out.count,
            wide: meta.size >= WIDE_FROM,
        };
        self.out.write_all(&entry.local()?)?;
        let begin = self.out.count;
        let mut content = content.take(meta.size);
        let mut deflate = DeflateEncoder::new(&mut self.out, self.level);
        let mut crc = crc32fast::Hasher::new();
        let mut chunk = [0; 32 * 1024];
        loop {
            let count = match content.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = chunk.get(..count).unwrap_or_default();
            crc.update(bytes);
            entry.size += count as u64;
            deflate.write_all(bytes)?;
        }
        deflate.finish()?;
        entry.crc = crc.finalize();
        entry.compressed = self.out.count - begin;
        self.out.write_all(&entry.descriptor())?;
        self.note(&entry)
    }

    fn note(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        if self.directory.capacity() - self.directory.len() < DIRECTORY_STEP {
            // Not twice as much each time, for it can be many megabytes.
            self.directory.reserve_exact(4 * DIRECTORY_STEP);
        }
        self.directory.extend(entry.central()?);
        self.entries += 1;
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When the output fails.
    pub fn finish(mut self) -> io::Result<W> {
        let (at, length) = (self.out.count, self.directory.len() as u64);
        self.out.write_all(&self.directory)?;
        let end = end(self.entries, at, length);
        self.out.write_all(&end)?;
        self.out.flush()?;
        Ok(self.out.inner)
    }
}
