//! The gzip format: each file is a member of its own, with its name and path in its head, so that GitLab can read a
//! report of several files, and what unpacks it knows where each belongs.

use std::ffi::CString;
use std::io::{self, BufRead, Read, Write};

use flate2::bufread::GzDecoder;
use flate2::{Compression, GzBuilder};
use rustix::fs::FileType;

use super::name::split;
use super::project::ProjectFolder;
use super::write::{left_out, meta};

/// Writes files one after the other; folders and links have no place in this format.
pub(super) fn write(
    level: Compression,
    project: &ProjectFolder,
    names: &[Vec<u8>],
    mut out: impl Write,
    say: &mut dyn FnMut(&str),
) -> io::Result<u64> {
    let mut count = 0;
    for name in names {
        if is_folder(project, name) {
            continue;
        }
        let (mut file, stat) = match project.file(name) {
            Ok(opened) => opened,
            Err(error) => {
                say(&left_out(name, &error));
                continue;
            }
        };
        let text = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
        let head = GzBuilder::new()
            .filename(text(split(name).1))
            .comment(text(name))
            .mtime(u32::try_from(meta(&stat).modified).unwrap_or_default());
        let mut member = head.write(&mut out, level);
        io::copy(&mut file, &mut member)?;
        member.finish()?;
        count += 1;
    }
    out.flush()?;
    Ok(count)
}

fn is_folder(project: &ProjectFolder, name: &[u8]) -> bool {
    project.stat(name).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// One member of a gzip file.
pub struct Member<R: BufRead> {
    decoder: GzDecoder<R>,
}

impl<R: BufRead> Member<R> {
    /// The next member; `None` at the file's end. What is behind the last member is an error, but for zeros.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next(mut from: R) -> io::Result<Option<Self>> {
        let is_over = from.fill_buf()?.first().is_none_or(|byte| *byte == 0);
        Ok((!is_over).then(|| Self { decoder: GzDecoder::new(from) }))
    }

    /// Where it belongs: its path, else its name, if it says one.
    pub fn name(&self) -> Option<Vec<u8>> {
        let head = self.decoder.header()?;
        let comment = head.comment().filter(|comment| !comment.is_empty());
        comment.or_else(|| head.filename().filter(|name| !name.is_empty())).map(<[u8]>::to_vec)
    }

    /// Time of the last change, in seconds of 1970, if it says one.
    pub fn modified(&self) -> Option<i64> {
        self.decoder.header().map(|head| head.mtime().into()).filter(|time| *time != 0)
    }

    /// What is behind it.
    pub fn into_rest(self) -> R {
        self.decoder.into_inner()
    }
}

impl<R: BufRead> Read for Member<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(out)
    }
}
