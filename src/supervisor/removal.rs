//! Deletes a folder tree that a job has left, whatever it has made of it: folders nobody may write to, names of any
//! bytes, trees deeper than any path or the number of open files allows, files that are marked as immutable.
//!
//! Nothing is opened by a path below the top, no link is followed, and no other file system is entered. A folder that
//! holds folders hands them up to the top before it goes, so that only two folders are open at a time. Whatever a
//! death leaves is a smaller tree of the same kind.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, IFlags, Mode, OFlags};
use rustix::io::Errno;

/// Names that are read before what they name is deleted: a folder of any size takes this much memory.
const AT_ONCE: usize = 4096;

/// What whoever deletes must be able to do in a folder.
const USABLE: Mode = Mode::RWXU;

/// What keeps a file from being deleted, whoever asks.
const FIXED: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// Deletes a tree, or the file or link that is there instead; what is not there is deleted already.
///
/// # Errors
/// When something in it cannot be deleted.
pub fn remove(path: &Path) -> io::Result<()> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(top) = open(CWD, path)? else { return Ok(()) };
    let mut moved = 0;
    clear(&top, |name| {
        let Some(folder) = open(&top, name)? else { return Ok(()) };
        // Folders that are not empty are moved up to the top.
        clear(&folder, |below| hand_up(&folder, below, &top, &mut moved))?;
        drop(folder);
        gone(rustix::fs::unlinkat(&top, name, AtFlags::REMOVEDIR))
    })?;
    drop(top);
    gone(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR))
}

/// Empties a folder: what can be deleted is, and the folders that are not empty are seen to one by one.
fn clear(folder: &OwnedFd, mut see_to: impl FnMut(&CStr) -> io::Result<()>) -> io::Result<()> {
    loop {
        let names = some_names(folder)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if let Left::Folder = remove_entry(folder, &name)? {
                see_to(&name)?;
            }
        }
    }
}

/// What is left of an entry.
enum Left {
    /// Nothing.
    Nothing,
    /// A folder that is not empty.
    Folder,
}

fn remove_entry(folder: &OwnedFd, name: &CStr) -> io::Result<Left> {
    match try_to_remove(folder, name) {
        Err(Errno::ACCESS | Errno::PERM) => {
            loosen(folder);
            if let Ok(entry) = rustix::fs::openat(folder, name, LOOK, Mode::empty()) {
                loosen(&entry);
            }
            Ok(try_to_remove(folder, name)?)
        }
        tried => Ok(tried?),
    }
}

fn try_to_remove(folder: &OwnedFd, name: &CStr) -> Result<Left, Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(Left::Nothing),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error),
    }
    match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Left::Nothing),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Left::Folder),
        Err(error) => Err(error),
    }
}

/// Moves a folder to the top under a name of its own.
fn hand_up(folder: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    // Moving a folder changes it: what leads up from it.
    let Some(below) = open(folder, name)? else { return Ok(()) };
    loop {
        *moved += 1;
        let free = format!(".dormouse-removal-{moved}");
        match rustix::fs::renameat(folder, name, top, free.as_str()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR) => {}
            // An overlay does not move folders of its lower layer; those are as deep as whoever made it liked.
            Err(Errno::XDEV) if is_same_device(&below, top)? => {
                empty_here(&below)?;
                return gone(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Empties a folder whose folders cannot be moved.
fn empty_here(folder: &OwnedFd) -> io::Result<()> {
    clear(folder, |name| {
        let Some(below) = open(folder, name)? else { return Ok(()) };
        if !is_same_device(&below, folder)? {
            return Err(Errno::XDEV.into());
        }
        empty_here(&below)?;
        gone(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR))
    })
}

/// How an entry is opened to be looked at: never through a link, never waiting for a pipe's other end.
const LOOK: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Opens a folder so that its entries can be deleted; `None` when it is gone.
fn open(parent: impl AsFd, name: impl rustix::path::Arg + Copy) -> io::Result<Option<OwnedFd>> {
    let flags = LOOK.union(OFlags::DIRECTORY);
    let opened = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // Not even readable for its owner. Should a link have taken its place, it leads to no more than its
            // maker may change anyway.
            rustix::fs::chmodat(&parent, name, USABLE, AtFlags::empty())?;
            rustix::fs::openat(&parent, name, flags, Mode::empty())
        }
        opened => opened,
    };
    let folder = match opened {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    if !Mode::from_raw_mode(rustix::fs::fstat(&folder)?.st_mode).contains(USABLE) {
        loosen(&folder);
    }
    Ok(Some(folder))
}

/// Takes away what keeps an entry from being changed. What cannot be taken away shows in what is tried next.
fn loosen(entry: &OwnedFd) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(entry)
        && flags.intersects(FIXED)
    {
        let _shows_later = rustix::fs::ioctl_setflags(entry, flags.difference(FIXED));
    }
    if let Ok(stat) = rustix::fs::fstat(entry)
        && rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()
    {
        let mode = Mode::from_raw_mode(stat.st_mode).union(USABLE);
        let _shows_later = rustix::fs::fchmod(entry, mode);
    }
}

fn is_same_device(one: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::fs::fstat(one)?.st_dev == rustix::fs::fstat(other)?.st_dev)
}

/// The first names of a folder.
fn some_names(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
        if names.len() == AT_ONCE {
            break;
        }
    }
    Ok(names)
}

fn gone(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn odd_names_read_only_folders_links_and_pipes_go_and_nothing_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        let precious = folder.path().join("precious");
        fs::create_dir_all(precious.join("deep")).unwrap();
        fs::create_dir_all(top.join("closed/within")).unwrap();
        for name in [&b"a\nb"[..], b"-rf", b"*", b"\xff\xfe", b" ", b".dormouse-removal-1"] {
            fs::create_dir_all(top.join("names").join(std::ffi::OsStr::from_bytes(name)).join("below"))
                .unwrap();
            fs::write(top.join("closed").join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        }
        symlink(&precious, top.join("link")).unwrap();
        symlink("link", top.join("closed/within/link")).unwrap();
        rustix::fs::mknodat(CWD, top.join("pipe"), rustix::fs::FileType::Fifo, USABLE, 0).unwrap();
        for closed in ["closed/within", "closed", "names"] {
            fs::set_permissions(top.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists() && precious.join("deep").is_dir());
        remove(&top).unwrap();
        symlink(&precious, &top).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists() && precious.join("deep").is_dir());
    }

    #[test]
    fn a_tree_deeper_than_any_path_goes() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut at = rustix::fs::open(&top, OFlags::DIRECTORY, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for depth in 0..3000 {
            rustix::fs::mkdirat(&at, name.as_str(), USABLE).unwrap();
            if depth % 100 == 0 {
                rustix::fs::mkdirat(&at, "other", USABLE).unwrap();
                let flags = OFlags::CREATE | OFlags::WRONLY;
                rustix::fs::openat(&at, "file", flags, Mode::RUSR).unwrap();
            }
            at = rustix::fs::openat(&at, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn what_is_marked_as_immutable_goes_where_we_may_unmark_it() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        fs::create_dir_all(top.join("fixed")).unwrap();
        fs::write(top.join("fixed/file"), "x").unwrap();
        for path in ["fixed/file", "fixed"] {
            let file = fs::File::open(top.join(path)).unwrap();
            if rustix::fs::ioctl_setflags(&file, IFlags::IMMUTABLE).is_err() {
                eprintln!("left out: marking a file as immutable takes root and a file system that knows it");
            }
        }
        remove(&top).unwrap();
        assert!(!top.exists());
    }
}
