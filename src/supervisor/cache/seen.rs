//! Whether what belongs to a cache is still as it was restored.
//!
//! Kept in the job's own folder of temporary files, for the length of the job: a job that changed it would only keep its
//! own cache from being saved.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use sha2::{Digest, Sha256};

use crate::supervisor::archive::name::below;
use crate::supervisor::archive::project::ProjectFolder;
use crate::supervisor::archive::selection::{Choice, select};
use crate::supervisor::archive::zip::read::{Kind, ZipReader};

/// Files and links among names, and what tells whether any of them has changed.
struct Look {
    files: BTreeSet<Vec<u8>>,
    digest: String,
}

/// Notes how the files of a restored cache look, if they are all that belongs to it: where the workspace had more of
/// them, they are to be saved.
///
/// # Errors
/// When it cannot be noted; the cache is then saved at the end, changed or not.
pub fn note(
    archive: &ZipReader,
    project: &ProjectFolder,
    choice: &Choice,
    temporary: &Path,
    index: usize,
) -> io::Result<()> {
    let mut archived = BTreeSet::new();
    for entry in archive.entries() {
        let entry = entry.map_err(io::Error::other)?;
        if matches!(entry.kind, Kind::File | Kind::Link) {
            archived.insert(below(&entry.name).map_err(io::Error::other)?);
        }
    }
    let names = select(project, choice, "cache", &mut |_| {})?;
    let look = look(project, &names)?;
    if look.files != archived {
        return Ok(());
    }
    match fs::create_dir(temporary) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let path = path(temporary, index);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::from_raw_mode(0o600))?;
    File::from(file).write_all(look.digest.as_bytes())
}

/// Whether the files of a cache look as they were noted.
pub fn is_unchanged(project: &ProjectFolder, names: &[Vec<u8>], temporary: &Path, index: usize) -> bool {
    let Ok(noted) = fs::read_to_string(path(temporary, index)) else { return false };
    look(project, names).is_ok_and(|look| look.digest == noted)
}

fn path(temporary: &Path, index: usize) -> PathBuf {
    temporary.join(format!(".cache-{index}"))
}

fn look(project: &ProjectFolder, names: &[Vec<u8>]) -> io::Result<Look> {
    let mut digest = Sha256::new();
    let mut files = BTreeSet::new();
    for name in names {
        let stat = project.stat(name)?;
        digest.update((name.len() as u64).to_be_bytes());
        digest.update(name);
        digest.update(stat.st_mode.to_be_bytes());
        // A folder changes with what is in it, and that is looked at by itself.
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            continue;
        }
        // The time of the last change of anything cannot be set back.
        for number in [
            stat.st_ino,
            stat.st_size.unsigned_abs(),
            stat.st_mtime.unsigned_abs(),
            stat.st_ctime.unsigned_abs(),
        ] {
            digest.update(number.to_be_bytes());
        }
        digest.update(stat.st_mtime_nsec.to_be_bytes());
        digest.update(stat.st_ctime_nsec.to_be_bytes());
        files.insert(name.clone());
    }
    Ok(Look { files, digest: format!("{:x}", digest.finalize()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::archive::write::{Format, level, write};

    struct Restored {
        folder: tempfile::TempDir,
        archive: File,
    }

    impl Restored {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("p/vendor/sub")).unwrap();
            fs::write(folder.path().join("p/vendor/a"), "a").unwrap();
            fs::write(folder.path().join("p/vendor/sub/b"), "b").unwrap();
            let mut archive = tempfile::tempfile().unwrap();
            let (project, names) = (Self::project(&folder), Self::names(&folder));
            write(Format::Zip, level(""), &project, &names, &mut archive, &mut |_| {}).unwrap();
            Self { folder, archive }
        }

        fn project(folder: &tempfile::TempDir) -> ProjectFolder {
            ProjectFolder::open(&folder.path().join("p")).unwrap()
        }

        fn choice() -> Choice {
            Choice { paths: vec!["vendor".into()], ..Choice::default() }
        }

        fn names(folder: &tempfile::TempDir) -> Vec<Vec<u8>> {
            select(&Self::project(folder), &Self::choice(), "cache", &mut |_| {}).unwrap()
        }

        fn note(&self) {
            let archive = ZipReader::open(self.archive.try_clone().unwrap()).unwrap();
            let project = Self::project(&self.folder);
            note(&archive, &project, &Self::choice(), &self.folder.path().join("p.tmp"), 0).unwrap();
        }

        fn is_unchanged(&self) -> bool {
            let names = Self::names(&self.folder);
            is_unchanged(&Self::project(&self.folder), &names, &self.folder.path().join("p.tmp"), 0)
        }
    }

    #[test]
    fn what_nobody_touched_is_unchanged_and_every_change_is_seen() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 5] = [
            ("written", |p| fs::write(p.join("vendor/a"), "A").unwrap()),
            ("added", |p| fs::write(p.join("vendor/c"), "c").unwrap()),
            ("removed", |p| fs::remove_file(p.join("vendor/sub/b")).unwrap()),
            ("folder added", |p| fs::create_dir(p.join("vendor/empty")).unwrap()),
            ("mode", |p| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(p.join("vendor/a"), fs::Permissions::from_mode(0o755)).unwrap();
            }),
        ];
        for (what, change) in changes {
            let restored = Restored::new();
            assert!(!restored.is_unchanged(), "nothing is noted yet");
            restored.note();
            assert!(restored.is_unchanged());
            change(&restored.folder.path().join("p"));
            assert!(!restored.is_unchanged(), "{what}");
        }
    }

    #[test]
    fn files_that_were_there_besides_are_new() {
        let restored = Restored::new();
        fs::write(restored.folder.path().join("p/vendor/kept"), "x").unwrap();
        restored.note();
        assert!(!restored.is_unchanged());
    }
}
