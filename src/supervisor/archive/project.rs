//! A project's folder, and everything that is opened beneath it.
//!
//! Links within the folder are followed where they lead within it; nothing that leaves it is ever opened. Where the
//! kernel cannot promise that (before 5.6), no link is followed at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::name::split;

/// How often an open is tried again when somebody renames folders meanwhile.
const TRIES: u32 = 16;

/// An opened project folder.
#[derive(Debug)]
pub struct ProjectFolder {
    folder: OwnedFd,
    path: PathBuf,
}

impl ProjectFolder {
    /// Opens the folder; `path` itself may contain links, for it is the runner's.
    ///
    /// # Errors
    /// When it is no folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Opens the folder, and makes it where no stage has made it yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what a path below the folder leads to.
    ///
    /// # Errors
    /// When it is not there, or leads out of the folder (`EXDEV`).
    pub fn open_beneath(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::CLOEXEC;
        for _ in 0..TRIES {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(&self.folder, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                // A kernel without the call, or a sandbox that does not know it.
                Err(Errno::NOSYS | Errno::PERM) => return self.open_step_by_step(path, flags),
                Err(Errno::XDEV) => return Err(io::Error::other("a link leads out of the project's folder")),
                opened => return Ok(opened?),
            }
        }
        Err(io::Error::other("folders are being renamed all the time"))
    }

    fn open_step_by_step(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let (folder, last) = split(path);
        let mut at = self.folder.try_clone()?;
        for part in folder.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            if part == b".." {
                return Err(io::Error::other("the path climbs out by `..`"));
            }
            let step = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, part, step, Mode::empty())?;
        }
        Ok(rustix::fs::openat(&at, last, flags | OFlags::NOFOLLOW, Mode::empty())?)
    }

    /// The folder a path lies in, and the path's last part.
    ///
    /// # Errors
    /// When the folder is not there.
    pub fn parent<'a>(&self, path: &'a [u8]) -> io::Result<(OwnedFd, &'a [u8])> {
        let (folder, last) = split(path);
        Ok((self.open_beneath(folder, OFlags::DIRECTORY | OFlags::PATH)?, last))
    }

    /// What a path is; a link is looked at, not followed.
    ///
    /// # Errors
    /// When it is not there.
    pub fn stat(&self, path: &[u8]) -> io::Result<Stat> {
        if path.is_empty() {
            return Ok(rustix::fs::fstat(&self.folder)?);
        }
        let (parent, last) = self.parent(path)?;
        Ok(rustix::fs::statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a file for reading. What has become a link, a pipe or a device meanwhile is refused.
    ///
    /// # Errors
    /// When it is no ordinary file that may be read.
    pub fn file(&self, path: &[u8]) -> io::Result<(File, Stat)> {
        let (parent, last) = self.parent(path)?;
        // Without waiting: a pipe would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, last, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no ordinary file any more"));
        }
        Ok((File::from(file), stat))
    }

    /// Where a link points.
    ///
    /// # Errors
    /// When it is no link.
    pub fn link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let (parent, last) = self.parent(path)?;
        Ok(rustix::fs::readlinkat(&parent, last, Vec::new())?.into_bytes())
    }

    /// The names in a folder, in order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let folder = self.open_beneath(path, OFlags::DIRECTORY | OFlags::RDONLY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(folder.as_fd())? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Opens a folder, making it and those above it where they are not there yet.
    ///
    /// # Errors
    /// When something else is in its place.
    pub fn make_folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::PATH;
        match self.open_beneath(path, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_empty() => {}
            opened => return opened,
        }
        // From the top, so that a deep path needs no recursion.
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').chain([(path.len(), &b'/')])
        {
            let (parent, last) = self.parent(path.get(..at).unwrap_or(path))?;
            match rustix::fs::mkdirat(&parent, last, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.open_beneath(path, flags)
    }

    /// The path of something below the folder, for programs that are given one.
    pub fn join(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn project() -> (tempfile::TempDir, ProjectFolder) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        std::fs::write(path.join("a/b/f"), "inside").unwrap();
        std::fs::write(folder.path().join("secret"), "outside").unwrap();
        symlink("a/b", path.join("in")).unwrap();
        symlink("..", path.join("out")).unwrap();
        symlink(folder.path(), path.join("far")).unwrap();
        let project = ProjectFolder::open(&path).unwrap();
        (folder, project)
    }

    #[test]
    fn links_within_are_followed_and_links_out_are_not() {
        let (_folder, project) = project();
        assert!(project.file(b"a/b/f").is_ok());
        assert!(project.file(b"in/f").is_ok());
        for path in [&b"out/secret"[..], b"far/secret", b"../secret"] {
            assert!(project.file(path).is_err(), "{}", String::from_utf8_lossy(path));
            assert!(project.open_step_by_step(path, OFlags::RDONLY).is_err());
        }
        assert!(project.make_folder(b"out/x").is_err());
    }

    #[test]
    fn where_the_kernel_promises_nothing_no_link_is_followed() {
        let (_folder, project) = project();
        assert!(project.open_step_by_step(b"a/b/f", OFlags::RDONLY).is_ok());
        assert!(project.open_step_by_step(b"in/f", OFlags::RDONLY).is_err());
    }

    #[test]
    fn folders_are_made_whole_paths_at_a_time() {
        let (folder, project) = project();
        project.make_folder(b"x/y/z").unwrap();
        project.make_folder(b"x/y/z").unwrap();
        assert!(folder.path().join("p/x/y/z").is_dir());
        assert!(project.make_folder(b"a/b/f").is_err());
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let (folder, project) = project();
        let made = std::process::Command::new("mkfifo").arg(folder.path().join("p/pipe")).status().unwrap();
        assert!(made.success());
        assert!(project.file(b"pipe").is_err());
    }
}
