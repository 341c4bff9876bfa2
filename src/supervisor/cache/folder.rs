//! The caches that a host keeps for all of its slots.
//!
//! ```text
//! <folder>/.lock                                        flock: held while a draft is begun or a project is looked at
//! <folder>/<group>/<project>/.dormouse-project          the id of the project that it belongs to
//! <folder>/<group>/<project>/<key>/cache.zip            what a job has left for the next one
//! <folder>/<group>/<project>/<key>/.draft-<job>         what a job leaves just now; flock: held by its writer
//! ```
//!
//! An archive is written as a draft and takes its place by a rename, so a reader has either the old one or the new one,
//! whole, for as long as it reads. A draft whose writer is gone is removed by whoever saves next.
//!
//! Jobs get at an archive through an open file alone. Where they run as another user than the supervisor, nothing of the
//! folder may be theirs: who could change the way to it could have another project's cache, or any file of root's. Below
//! it, nothing is opened through a link.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::supervisor::removal;
use crate::supervisor::state::make_private;

const LOCK: &str = ".lock";
const OWNER: &str = ".dormouse-project";
const ARCHIVE: &str = "cache.zip";
const DRAFT: &str = ".draft-";

/// Writable by the group, by all, and the bit that keeps all from renaming what is not theirs.
const GROUP_AND_ALL_MAY_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// The caches of a host.
#[derive(Debug)]
pub struct CacheFolder {
    path: PathBuf,
    lock: File,
}

/// The caches of one project on a host.
#[derive(Debug)]
pub struct ProjectCaches {
    folder: OwnedFd,
    lock: File,
}

/// An archive that is not in its place yet. Dropped, it is as if it had never been.
#[derive(Debug)]
pub struct Draft {
    folder: OwnedFd,
    name: String,
    file: File,
}

impl CacheFolder {
    /// Opens the folder, and makes it if need be. `others` says that jobs run as another user than this process.
    ///
    /// # Errors
    /// When it cannot be made, or others could get at it.
    pub fn open(path: &Path, others: bool) -> io::Result<Self> {
        make_private(path)?;
        // From here on there is no link on the way.
        let path = path.canonicalize()?;
        if others {
            guard(&path)?;
        }
        let folder =
            open_folder(&rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?, ".")?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = File::from(openat(&folder, LOCK, flags, Mode::from_raw_mode(0o600))?);
        Ok(Self { path, lock })
    }

    /// The caches of a project. What another project has left under its path, which was that project's before, goes.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn project(self, project_path: &str, id: u64) -> io::Result<ProjectCaches> {
        let _turn = Turn::take(&self.lock)?;
        let place = self.path.join(project_path);
        let folder = make_folder(&self.path, project_path)?;
        let owner = read_owner(&folder)?;
        if owner == Some(id) {
            return Ok(ProjectCaches { folder, lock: self.lock.try_clone()? });
        }
        removal::remove(&place)?;
        let folder = make_folder(&self.path, project_path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, OWNER, flags, Mode::from_raw_mode(0o600))?;
        File::from(file).write_all(id.to_string().as_bytes())?;
        Ok(ProjectCaches { folder, lock: self.lock.try_clone()? })
    }
}

impl ProjectCaches {
    /// The archive under a key; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn archive(&self, key: &str) -> io::Result<Option<File>> {
        let open = || -> io::Result<File> {
            let mut folder = self.folder.try_clone()?;
            for part in parts(key)? {
                folder = open_folder(&folder, part)?;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Ok(File::from(openat(&folder, ARCHIVE, flags, Mode::empty())?))
        };
        match open() {
            Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
            Ok(_) => Err(io::Error::other(format!("{ARCHIVE} of {key} is no plain file"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins an archive under a key.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn begin(&self, key: &str, job_id: u64) -> io::Result<Draft> {
        let _turn = Turn::take(&self.lock)?;
        let mut folder = self.folder.try_clone()?;
        for part in parts(key)? {
            folder = make_one(&folder, part)?;
        }
        sweep(&folder)?;
        let name = format!("{DRAFT}{job_id}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, &name, flags, Mode::from_raw_mode(0o600))?);
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Draft { folder, name, file })
    }
}

impl Draft {
    /// Where the archive is written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts it in its place. Not on the disk before that: what a loss of power leaves of it is seen to be damaged.
    ///
    /// # Errors
    /// When it cannot be put there; it is gone then.
    pub fn keep(self) -> io::Result<()> {
        Ok(renameat(&self.folder, self.name.as_str(), &self.folder, ARCHIVE)?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone when it was kept; what cannot be removed now is removed by whoever saves next.
        let _gone = unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
    }
}

/// The lock of a cache folder, held for a moment.
struct Turn<'a> {
    lock: &'a File,
}

impl<'a> Turn<'a> {
    fn take(lock: &'a File) -> io::Result<Self> {
        flock(lock, FlockOperation::LockExclusive)?;
        Ok(Self { lock })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Given back with the file at the latest.
        let _given_back = flock(self.lock, FlockOperation::Unlock);
    }
}

/// Sees that nobody but root and this user could have changed the way to a folder, or what is in it.
fn guard(path: &Path) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    for (depth, folder) in path.ancestors().enumerate() {
        let meta = fs::symlink_metadata(folder)?;
        let is_open = meta.mode() & GROUP_AND_ALL_MAY_WRITE != 0 && (depth == 0 || meta.mode() & STICKY == 0);
        if is_open || ![0, own].contains(&meta.uid()) {
            return Err(io::Error::other(format!(
                "{} can be changed by another user than root, so a job could have other projects' caches; name a folder of \
                 root's in spec.cacheDir, or none",
                folder.display()
            )));
        }
    }
    Ok(())
}

/// Removes drafts whose writers are gone.
fn sweep(folder: &OwnedFd) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_bytes().starts_with(DRAFT.as_bytes()) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(folder, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            opened => opened?,
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            unlinkat(folder, name, AtFlags::empty())?;
        }
    }
    Ok(())
}

fn read_owner(folder: &OwnedFd) -> io::Result<Option<u64>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, OWNER, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => File::from(opened?),
    };
    let mut text = String::new();
    file.take(32).read_to_string(&mut text)?;
    Ok(text.trim().parse().ok())
}

/// The parts of a relative path. Whoever hands one over has made it plain; this process does not take that for granted.
fn parts(path: &str) -> io::Result<impl Iterator<Item = &str>> {
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if !path.split('/').all(is_plain) {
        return Err(io::Error::other(format!("{path:?} is no plain path")));
    }
    Ok(path.split('/'))
}

fn make_folder(root: &Path, path: &str) -> io::Result<OwnedFd> {
    let mut folder = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for part in parts(path)? {
        folder = make_one(&folder, part)?;
    }
    Ok(folder)
}

fn make_one(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => open_folder(parent, name),
        Err(error) => Err(error.into()),
    }
}

fn open_folder(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn caches(root: &Path, project: &str, id: u64) -> ProjectCaches {
        CacheFolder::open(root, false).unwrap().project(project, id).unwrap()
    }

    fn save(caches: &ProjectCaches, key: &str, job: u64, text: &str) {
        let draft = caches.begin(key, job).unwrap();
        draft.file().write_all(text.as_bytes()).unwrap();
        draft.keep().unwrap();
    }

    fn load(caches: &ProjectCaches, key: &str) -> Option<String> {
        let mut text = String::new();
        caches.archive(key).unwrap()?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn what_is_kept_is_found_under_its_key_alone() {
        let root = tempfile::tempdir().unwrap();
        let caches = caches(root.path(), "g/p", 1);
        save(&caches, "a/b", 1, "one");
        assert_eq!(load(&caches, "a/b").as_deref(), Some("one"));
        assert_eq!(load(&caches, "a"), None);
        assert_eq!(load(&caches, "a/b/c"), None);
        save(&caches, "a/b", 2, "two");
        assert_eq!(load(&caches, "a/b").as_deref(), Some("two"));
        assert!(root.path().join("g/p/a/b/cache.zip").is_file());
    }

    #[test]
    fn a_reader_keeps_what_it_has_opened_and_a_draft_is_never_read() {
        let root = tempfile::tempdir().unwrap();
        let caches = caches(root.path(), "g/p", 1);
        save(&caches, "k", 1, "old");
        let mut opened = caches.archive("k").unwrap().unwrap();
        let draft = caches.begin("k", 2).unwrap();
        draft.file().write_all(b"half").unwrap();
        assert_eq!(load(&caches, "k").as_deref(), Some("old"));
        draft.keep().unwrap();
        let mut text = String::new();
        opened.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), load(&caches, "k").as_deref()), ("old", Some("half")));
    }

    #[test]
    fn a_dropped_draft_leaves_nothing_and_two_writers_do_not_meet() {
        let root = tempfile::tempdir().unwrap();
        let caches = caches(root.path(), "g/p", 1);
        let (first, second) = (caches.begin("k", 1).unwrap(), caches.begin("k", 2).unwrap());
        first.file().write_all(b"first").unwrap();
        second.file().write_all(b"second").unwrap();
        second.keep().unwrap();
        drop(first);
        assert_eq!(load(&caches, "k").as_deref(), Some("second"));
        let names: Vec<_> =
            fs::read_dir(root.path().join("g/p/k")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [ARCHIVE]);
    }

    #[test]
    fn a_draft_of_a_dead_writer_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let caches = caches(root.path(), "g/p", 1);
        save(&caches, "k", 1, "x");
        let left = root.path().join("g/p/k/.draft-9");
        fs::write(&left, "half").unwrap();
        let alive = caches.begin("k", 2).unwrap();
        assert!(!left.exists());
        let _other = caches.begin("k", 3).unwrap();
        assert!(root.path().join("g/p/k/.draft-2").exists(), "a living writer's draft was swept");
        alive.keep().unwrap();
    }

    #[test]
    fn another_project_under_the_same_path_begins_anew() {
        let root = tempfile::tempdir().unwrap();
        save(&caches(root.path(), "g/p", 1), "k", 1, "secret");
        save(&caches(root.path(), "g/q", 3), "k", 1, "neighbour");
        assert_eq!(load(&caches(root.path(), "g/p", 1), "k").as_deref(), Some("secret"));
        assert_eq!(load(&caches(root.path(), "g/p", 2), "k"), None);
        assert_eq!(load(&caches(root.path(), "g/p", 1), "k"), None);
        assert_eq!(load(&caches(root.path(), "g/q", 3), "k").as_deref(), Some("neighbour"));
        // A key of a project that is a group now.
        save(&caches(root.path(), "g/q", 3), "sub/k", 1, "old");
        assert_eq!(load(&caches(root.path(), "g/q/sub", 4), "k"), None);
    }

    #[test]
    fn nothing_is_opened_through_a_link_or_above_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join(ARCHIVE), "outside").unwrap();
        let caches = caches(root.path(), "g/p", 1);
        symlink(outside.path(), root.path().join("g/p/link")).unwrap();
        assert!(caches.archive("link").is_err());
        assert!(caches.begin("link", 1).is_err());
        fs::create_dir(root.path().join("g/p/file")).unwrap();
        symlink(outside.path().join(ARCHIVE), root.path().join("g/p/file").join(ARCHIVE)).unwrap();
        assert!(caches.archive("file").is_err());
        for key in ["..", "a/../..", "", "/a", "a//b"] {
            assert!(caches.archive(key).is_err() && caches.begin(key, 1).is_err(), "{key}");
        }
    }

    #[test]
    fn a_folder_that_others_may_change_is_refused_where_jobs_are_others() {
        let root = tempfile::tempdir().unwrap();
        let way = root.path().join("way");
        let folder = way.join("cache");
        fs::create_dir_all(&folder).unwrap();
        CacheFolder::open(&folder, true).unwrap();
        for open in [&way, &folder] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o777)).unwrap();
            let refusal = CacheFolder::open(&folder, true).unwrap_err().to_string();
            assert!(
                refusal.contains(&*open.to_string_lossy()) && refusal.contains("spec.cacheDir"),
                "{refusal}"
            );
            CacheFolder::open(&folder, false).unwrap();
            fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}
