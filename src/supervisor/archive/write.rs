//! Writes selected files as an archive.

use std::io::{self, Write};

use flate2::Compression;
use rustix::fs::{FileType, Stat};
use serde::{Deserialize, Serialize};

use super::gzip;
use super::project::ProjectFolder;
use super::selection::warning;
use super::shown;
use super::zip::header::Meta;
use super::zip::write::ZipWriter;

/// The formats that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A zip archive.
    Zip,
    /// Each file compressed for itself, one after the other.
    Gzip,
    /// One file as it is.
    Raw,
}

impl Format {
    /// The format of a name as GitLab gives it; none given is zip.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "" | "zip" => Some(Self::Zip),
            "gzip" => Some(Self::Gzip),
            "raw" => Some(Self::Raw),
            _ => None,
        }
    }

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::Gzip => "gzip",
            Self::Raw => "raw",
        }
    }
}

/// GitLab's words for how much is compressed, and the levels they stand for.
pub const LEVELS: [(&str, u32); 5] =
    [("fastest", 1), ("fast", 3), ("default", 6), ("slow", 7), ("slowest", 9)];

/// How much is compressed, in GitLab's words; `None` for any other word.
pub fn named_level(word: &str) -> Option<Compression> {
    let found = LEVELS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word.trim()));
    found.map(|(_, level)| Compression::new(*level))
}

/// The same; anything else is the default.
pub fn level(word: &str) -> Compression {
    named_level(word).unwrap_or_default()
}

/// Writes the files that [`super::selection::select`] found. One that is gone meanwhile, may not be read or is no file,
/// folder or link is said and left out. The answer is how many are in it.
///
/// # Errors
/// When the output fails, a file fails in its middle, or several files are to be one raw one.
pub fn write(
    format: Format,
    level: Compression,
    project: &ProjectFolder,
    names: &[Vec<u8>],
    out: impl Write,
    say: &mut dyn FnMut(&str),
) -> io::Result<u64> {
    match format {
        Format::Zip => zip(level, project, names, out, say),
        Format::Gzip => gzip::write(level, project, names, out, say),
        Format::Raw => raw(project, names, out),
    }
}

fn zip(
    level: Compression,
    project: &ProjectFolder,
    names: &[Vec<u8>],
    out: impl Write,
    say: &mut dyn FnMut(&str),
) -> io::Result<u64> {
    let mut zip = ZipWriter::new(out, level);
    let mut count = 0;
    for name in names {
        // What comes from the project may be left out; what fails on the way out may not.
        let added = match source(project, name) {
            Ok(Source::File(file, meta)) => zip.file(name, meta, file),
            Ok(Source::Folder(meta)) => zip.folder(name, meta),
            Ok(Source::Link(target, meta)) => zip.link(name, &target, meta),
            Err(error) => {
                say(&left_out(name, &error));
                continue;
            }
        };
        added.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", shown(name))))?;
        count += 1;
    }
    zip.finish()?;
    Ok(count)
}

fn raw(project: &ProjectFolder, names: &[Vec<u8>], mut out: impl Write) -> io::Result<u64> {
    let [name] = names else {
        return Err(io::Error::other(format!("the format raw takes one file, not {}", names.len())));
    };
    let (mut file, _) = project.file(name)?;
    io::copy(&mut file, &mut out)?;
    out.flush()?;
    Ok(1)
}

enum Source {
    File(std::fs::File, Meta),
    Folder(Meta),
    Link(Vec<u8>, Meta),
}

fn source(project: &ProjectFolder, name: &[u8]) -> io::Result<Source> {
    let stat = project.stat(name)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let (file, stat) = project.file(name)?;
            Ok(Source::File(file, meta(&stat)))
        }
        FileType::Directory => Ok(Source::Folder(Meta { size: 0, ..meta(&stat) })),
        FileType::Symlink => Ok(Source::Link(project.link(name)?, meta(&stat))),
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Err(io::Error::other("it is no file, folder or link")),
    }
}

/// What an archive tells of a file.
pub(super) fn meta(stat: &Stat) -> Meta {
    Meta {
        mode: stat.st_mode,
        modified: stat.st_mtime,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
    }
}

pub(super) fn left_out(name: &[u8], error: &io::Error) -> String {
    warning(&format!("{}: left out: {error}", shown(name)))
}
