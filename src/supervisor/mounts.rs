//! What is mounted where, as `/proc/self/mountinfo` tells it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the file system.
    pub device: u64,
    /// The folder of the file system that is mounted, `/` for the whole.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Kind of the file system.
    pub kind: String,
    /// What is mounted, such as a block device.
    pub source: PathBuf,
    /// The file system's own options.
    pub options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (place, filesystem) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let (major, minor) = place.next()?.split_once(':')?;
        let (root, point) = (place.next()?, place.next()?);
        let mut filesystem = filesystem.split(' ');
        Some(Self {
            device: rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?),
            root: unescape(root),
            point: unescape(point),
            kind: filesystem.next()?.to_owned(),
            source: unescape(filesystem.next()?),
            options: filesystem.next()?.to_owned(),
        })
    }

    /// Where a folder of the file system is, if it can be seen under this mount.
    pub fn folder_of(&self, place: &str) -> Option<PathBuf> {
        let below = Path::new(place).strip_prefix(&self.root).ok()?;
        let folder = if below == Path::new("") { self.point.clone() } else { self.point.join(below) };
        folder.is_dir().then_some(folder)
    }
}

/// All mounts, in the order they were made; of several at one place the last one is seen there.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Reads the lines of a `mountinfo`.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(Mount::parse).collect()
}

/// What is mounted at a folder, if anything is; links on the way to the folder are followed, the folder is none.
///
/// # Errors
/// When `/proc` is not mounted or the way to the folder cannot be followed.
pub fn at(folder: &Path) -> io::Result<Option<Mount>> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(None) };
    let point = match parent.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        parent => parent?.join(name),
    };
    Ok(all()?.into_iter().rfind(|mount| mount.point == point))
}

/// Undoes the octal escapes of a path.
fn unescape(text: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character));
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_in_a_container_is_read_relative_to_its_root() {
        let line =
            "31 24 0:26 /slice/one /sys/fs/cgroup\\040x rw,relatime shared:4 - cgroup2 none rw,nsdelegate";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.root.as_path(), mount.kind.as_str()), (Path::new("/slice/one"), "cgroup2"));
        assert_eq!(
            (mount.point.as_path(), mount.options.as_str()),
            (Path::new("/sys/fs/cgroup x"), "rw,nsdelegate")
        );
        assert_eq!(mount.device, rustix::fs::makedev(0, 26));
        assert!(mount.folder_of("/elsewhere").is_none());
    }

    #[test]
    fn a_folder_is_found_below_its_mount_and_the_root_is_mounted() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        let line = format!("31 24 7:3 / {} rw - ext4 /dev/loop3 rw", folder.path().display());
        let mount = Mount::parse(&line).unwrap();
        assert_eq!(mount.folder_of("/below"), Some(folder.path().join("below")));
        assert_eq!(mount.folder_of("/"), Some(folder.path().to_owned()));
        assert_eq!(mount.source, Path::new("/dev/loop3"));
        assert!(all().unwrap().iter().any(|mount| mount.point == Path::new("/proc")));
        assert_eq!(at(&folder.path().join("below")).unwrap(), None);
        assert_eq!(at(&folder.path().join("missing/below")).unwrap(), None);
        assert_eq!(at(Path::new("/proc")).unwrap().unwrap().kind, "proc");
    }

    #[test]
    fn lines_that_are_no_mounts_are_passed_over() {
        assert_eq!(parse("nonsense\n\n1 2 x:y / / rw - ext4 a b\n"), Vec::new());
    }
}
