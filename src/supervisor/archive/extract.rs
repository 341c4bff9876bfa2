//! Unpacks an archive into a project.
//!
//! All names and sizes of a zip or tar archive are looked at before the first file is written, so that a hostile one changes
//! nothing. A file takes the place of a file or link of its name; a folder stays with what is in it. Links that point
//! out of the project and devices are said and left out.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::gzip::Member;
use super::name::{below, split, stays_inside};
use super::project::ProjectFolder;
use super::selection::warning;
use super::tar;
use super::zip::entry::Kind;
use super::zip::read::ZipReader;
use super::{ArchiveError, refused, shown};

/// The variable that raises [`Bounds::entries`].
pub const MOST_ENTRIES: &str = "DORMOUSE_UNPACK_MAX_FILES";

/// The variable that raises [`Bounds::bytes`].
pub const MOST_BYTES: &str = "DORMOUSE_UNPACK_MAX_BYTES";

/// Longest target of a link.
const LONGEST_TARGET: u64 = 4096;

/// How much may come out of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bounds {
    /// Entries.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

impl Default for Bounds {
    /// More than builds make, and less than what fills a host for a day: a million files, 64 GiB.
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 64 << 30 }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Files and links.
    pub files: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Unpacks `archive`, zip, gzip or tar within zstd by its first bytes. `fallback` names a gzip file's content that has no name.
///
/// # Errors
/// When it is none of them, is damaged, would leave the project or is larger than it may be.
pub fn extract(
    mut archive: File,
    project: &ProjectFolder,
    bounds: Bounds,
    fallback: &str,
    say: &mut dyn FnMut(&str),
) -> Result<Extracted, ArchiveError> {
    // Whoever has written the file has left its position at the end.
    archive.rewind().map_err(refused("failed to read the archive"))?;
    let mut magic = [0; 4];
    let count = archive.read_at(&mut magic, 0).map_err(refused("failed to read the archive"))?;
    let mut unpacking = Unpacking { project, bounds, done: Extracted::default(), folder: None };
    match magic.get(..count).unwrap_or_default() {
        [b'P', b'K', 3, 4] | [b'P', b'K', 5, 6] => unpacking.zip(&ZipReader::open(archive)?, say)?,
        [0x1f, 0x8b, ..] => unpacking.gzip(archive, fallback)?,
        // A frame, or one to be skipped in front of it.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => unpacking.tar(&archive, say)?,
        [] => return Err(ArchiveError::Format("empty".to_owned())),
        other => {
            return Err(ArchiveError::Format(format!("of another format (it begins with {other:02x?})")));
        }
    }
    Ok(unpacking.done)
}

/// What is looked at once more in the end.
#[derive(Default)]
struct Made {
    folders: Vec<(Vec<u8>, Option<u32>, Option<i64>)>,
    links: Vec<Vec<u8>>,
}

struct Unpacking<'a> {
    project: &'a ProjectFolder,
    bounds: Bounds,
    done: Extracted,
    /// The folder the last file went into: the next one mostly goes there too.
    folder: Option<(Vec<u8>, OwnedFd)>,
}

impl Unpacking<'_> {
    fn zip(&mut self, archive: &ZipReader, say: &mut dyn FnMut(&str)) -> Result<(), ArchiveError> {
        self.check(archive)?;
        let mut made = Made::default();
        let unpacked = self.unpack_zip(archive, &mut made, say);
        self.finish(unpacked, &made, say)
    }

    fn unpack_zip(
        &mut self,
        archive: &ZipReader,
        made: &mut Made,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), ArchiveError> {
        for entry in archive.entries() {
            let entry = entry?;
            if entry.kind == Kind::Folder && below(&entry.name).is_err() {
                // The project's folder itself.
                continue;
            }
            let path = inside(&entry.name)?;
            match entry.kind {
                Kind::Folder => self.folder(path, entry.mode, entry.modified, made)?,
                Kind::File => {
                    let mut data = archive.data(&entry)?;
                    self.file(&path, entry.mode, entry.modified, &mut data)?;
                }
                Kind::Link => {
                    let mut target = Vec::new();
                    let data = archive.data(&entry)?.take(LONGEST_TARGET).read_to_end(&mut target);
                    data.map_err(|error| bad_data(&path, &error))?;
                    self.link(path, &target, made, say)?;
                }
                Kind::Special => say(&special(&path)),
            }
        }
        Ok(())
    }

    fn tar(&mut self, archive: &File, say: &mut dyn FnMut(&str)) -> Result<(), ArchiveError> {
        self.check_tar(archive)?;
        let mut made = Made::default();
        let unpacked = tar::each(archive, &mut |entry, data| {
            if entry.kind == tar::Kind::Folder && is_root(&entry.name) {
                return Ok(());
            }
            let path = inside(&entry.name)?;
            match entry.kind {
                tar::Kind::Folder => self.folder(path, entry.mode, entry.modified, &mut made)?,
                tar::Kind::File => self.file(&path, entry.mode, entry.modified, data)?,
                tar::Kind::Link => self.link(path, &entry.target, &mut made, say)?,
                tar::Kind::HardLink => {
                    say(&warning(&format!("{}: left out: it is another name for a file", shown(&path))));
                }
                tar::Kind::Special => say(&special(&path)),
            }
            Ok(())
        });
        self.finish(unpacked, &made, say)
    }

    /// What is done in the end, however it came: what an archive that is damaged half way has left must not lead out either.
    fn finish(
        &mut self,
        unpacked: Result<(), ArchiveError>,
        made: &Made,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), ArchiveError> {
        self.check_links(&made.links, say);
        unpacked?;
        // Last, from the innermost: a folder that may not be written to takes no more files.
        for (path, mode, modified) in made.folders.iter().rev() {
            self.dress_folder(path, *mode, *modified).map_err(refused(shown(path)))?;
        }
        Ok(())
    }

    /// The same for a tar archive, which is read through for it.
    fn check_tar(&self, archive: &File) -> Result<(), ArchiveError> {
        let (mut entries, mut bytes) = (0, 0_u64);
        tar::each(archive, &mut |entry, _| {
            entries += 1;
            if entries > self.bounds.entries {
                return Err(ArchiveError::TooMany { limit: self.bounds.entries });
            }
            bytes = bytes.saturating_add(entry.size);
            if bytes > self.bounds.bytes {
                return Err(ArchiveError::TooLarge { limit: self.bounds.bytes });
            }
            if entry.kind != tar::Kind::Folder || !is_root(&entry.name) {
                inside(&entry.name)?;
            }
            Ok(())
        })?;
        self.check_room(bytes)
    }

    /// Looks at all names and sizes before anything is written.
    fn check(&self, archive: &ZipReader) -> Result<(), ArchiveError> {
        if archive.entries > self.bounds.entries {
            return Err(ArchiveError::TooMany { limit: self.bounds.entries });
        }
        let (mut bytes, mut most_of_a_byte) = (0_u64, 0);
        for entry in archive.entries() {
            let entry = entry?;
            most_of_a_byte = entry.most_of_a_byte().max(most_of_a_byte);
            bytes = bytes.saturating_add(entry.size);
            if entry.kind == Kind::Folder && is_root(&entry.name) {
                continue;
            }
            inside(&entry.name)?;
        }
        if bytes > self.bounds.bytes {
            return Err(ArchiveError::TooLarge { limit: self.bounds.bytes });
        }
        // Entries that share their data.
        if bytes > archive.length().saturating_mul(most_of_a_byte) {
            return Err(ArchiveError::Damaged("it promises more than its length can hold".to_owned()));
        }
        self.check_room(bytes)
    }

    /// An archive that does not fit is said before the disk is full.
    fn check_room(&self, bytes: u64) -> Result<(), ArchiveError> {
        let Ok(disk) = rustix::fs::statvfs(self.project.path()) else { return Ok(()) };
        let room = disk.f_bavail.saturating_mul(disk.f_frsize);
        if bytes > room {
            return Err(ArchiveError::Io {
                attempt: format!("the archive unpacks to {bytes} bytes, and the disk has room for {room}"),
                source: Errno::NOSPC.into(),
            });
        }
        Ok(())
    }

    fn gzip(&mut self, archive: File, fallback: &str) -> Result<(), ArchiveError> {
        let mut rest = BufReader::with_capacity(64 * 1024, archive);
        let said = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                ArchiveError::Damaged(error.to_string())
            }
            _ => refused("failed to read the archive")(error),
        };
        let mut entries = 0;
        while let Some(mut member) = Member::next(rest).map_err(said)? {
            entries += 1;
            if entries > self.bounds.entries {
                return Err(ArchiveError::TooMany { limit: self.bounds.entries });
            }
            let name = member.name().unwrap_or_else(|| fallback.as_bytes().to_vec());
            let (path, modified) = (inside(&name)?, member.modified());
            self.file(&path, None, modified, &mut member)?;
            rest = member.into_rest();
        }
        Ok(())
    }

    fn folder(
        &mut self,
        path: Vec<u8>,
        mode: Option<u32>,
        modified: Option<i64>,
        made: &mut Made,
    ) -> Result<(), ArchiveError> {
        let attempt = format!("{}: failed to make the folder", shown(&path));
        self.project.make_folder(&path).map_err(refused(attempt))?;
        made.folders.push((path, mode, modified));
        Ok(())
    }

    /// The folder of a path, made if it is not there.
    fn folder_of(&mut self, path: &[u8]) -> Result<&OwnedFd, ArchiveError> {
        let (folder, _) = split(path);
        if self.folder.as_ref().is_none_or(|(open, _)| open != folder) {
            let opened = self.project.make_folder(folder);
            let opened = opened.map_err(refused(format!("{}: failed to make its folder", shown(path))))?;
            self.folder = Some((folder.to_vec(), opened));
        }
        let (_, opened) =
            self.folder.as_ref().ok_or_else(|| ArchiveError::Damaged("it has no folder".to_owned()))?;
        Ok(opened)
    }

    fn file(
        &mut self,
        path: &[u8],
        mode: Option<u32>,
        modified: Option<i64>,
        data: &mut dyn Read,
    ) -> Result<(), ArchiveError> {
        let bounds = self.bounds;
        let left = bounds.bytes.saturating_sub(self.done.bytes);
        let folder = self.folder_of(path)?;
        let (_, last) = split(path);
        let said = |error: io::Error| refused(format!("{}: failed to write it", shown(path)))(error);
        remove(folder, last).map_err(said)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder, last, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.map_err(|error| said(error.into()))?);
        let bytes = copy(data, &mut file, path, left, bounds.bytes)?;
        let permissions = Mode::from_raw_mode(mode.unwrap_or(0o644));
        rustix::fs::fchmod(&file, permissions).map_err(|error| said(error.into()))?;
        if let Some(times) = times(modified) {
            rustix::fs::futimens(&file, &times).map_err(|error| said(error.into()))?;
        }
        self.done.files += 1;
        self.done.bytes += bytes;
        Ok(())
    }

    /// Makes a link, unless it points out of the project.
    fn link(
        &mut self,
        path: Vec<u8>,
        target: &[u8],
        made: &mut Made,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), ArchiveError> {
        let project = self.project.path().as_os_str().as_encoded_bytes();
        if !stays_inside(&path, target, project) {
            say(&points_out(&path, target));
            return Ok(());
        }
        let folder = self.folder_of(&path)?;
        let (_, last) = split(&path);
        let said = |error: io::Error| refused(format!("{}: failed to make the link", shown(&path)))(error);
        remove(folder, last).map_err(said)?;
        rustix::fs::symlinkat(target, folder, last).map_err(|error| said(error.into()))?;
        self.done.files += 1;
        made.links.push(path);
        Ok(())
    }

    /// A link can point out through another one, which only the whole tree shows.
    fn check_links(&mut self, links: &[Vec<u8>], say: &mut dyn FnMut(&str)) {
        for path in links {
            let Ok(target) = self.project.link(path) else { continue };
            let project = self.project.path().as_os_str().as_encoded_bytes();
            let led = match target.strip_prefix(project) {
                Some(rest) => rest.iter().copied().skip_while(|byte| *byte == b'/').collect(),
                None => path.clone(),
            };
            let leads_out = match self.project.open_beneath(&led, OFlags::PATH) {
                Ok(_) => false,
                // It may point at what is not there, or go in a circle.
                Err(error) => error.raw_os_error().is_none(),
            };
            if leads_out && let Ok((folder, last)) = self.project.parent(path) {
                let _gone = rustix::fs::unlinkat(&folder, last, AtFlags::empty());
                self.done.files = self.done.files.saturating_sub(1);
                say(&points_out(path, &target));
            }
        }
    }

    fn dress_folder(&self, path: &[u8], mode: Option<u32>, modified: Option<i64>) -> io::Result<()> {
        let folder = self.project.open_beneath(path, OFlags::DIRECTORY | OFlags::RDONLY)?;
        if let Some(mode) = mode {
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
        }
        if let Some(times) = times(modified) {
            rustix::fs::futimens(&folder, &times)?;
        }
        Ok(())
    }
}

fn is_root(name: &[u8]) -> bool {
    !name.starts_with(b"/") && name.split(|byte| *byte == b'/').all(|part| part.is_empty() || part == b".")
}

fn inside(name: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    below(name).map_err(|why| ArchiveError::Outside {
        name: format!("{:?}", String::from_utf8_lossy(name)),
        why: why.to_owned(),
    })
}

fn special(path: &[u8]) -> String {
    warning(&format!("{}: left out: it is a device, a pipe or a socket", shown(path)))
}

fn points_out(path: &[u8], target: &[u8]) -> String {
    warning(&format!("{}: left out: it is a link to {}, outside of the project", shown(path), shown(target)))
}

/// Makes room for a file or a link; a folder stays.
fn remove(folder: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(io::Error::other("a folder is in its place")),
        Err(error) => Err(error.into()),
    }
}

/// Copies at most `left` bytes. What fails on the way in is the archive's fault, on the way out the disk's.
fn copy(
    data: &mut dyn Read,
    file: &mut File,
    path: &[u8],
    left: u64,
    limit: u64,
) -> Result<u64, ArchiveError> {
    let mut chunk = [0; 32 * 1024];
    let mut written = 0_u64;
    loop {
        let count = match data.read(&mut chunk) {
            Ok(0) => return Ok(written),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(bad_data(path, &error)),
        };
        written += count as u64;
        if written > left {
            return Err(ArchiveError::TooLarge { limit });
        }
        file.write_all(chunk.get(..count).unwrap_or_default())
            .map_err(refused(format!("{}: failed to write it", shown(path))))?;
    }
}

fn bad_data(path: &[u8], error: &io::Error) -> ArchiveError {
    ArchiveError::Damaged(format!("{}: {error}", shown(path)))
}

fn times(modified: Option<i64>) -> Option<Timestamps> {
    let seconds = modified?;
    Some(Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
    })
}

#[cfg(test)]
mod tests;
