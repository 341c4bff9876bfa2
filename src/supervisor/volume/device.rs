//! Which block device a volume is on this host.
//!
//! A device's name says nothing: on instances whose disks are NVMe, names are given in the order disks were found.
//! So a volume is looked for by its id, and the name it was attached by counts only where disks do not tell theirs.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

/// What a link to a disk by its id is called, before the id.
const BY_ID: &str = "disk/by-id/nvme-Amazon_Elastic_Block_Store_";

/// Where devices, and what the kernel says of them, are found.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/dev`.
    dev: PathBuf,
    /// `/sys/block`.
    sys_block: PathBuf,
}

/// Why a volume has no device.
#[derive(Debug, thiserror::Error)]
pub enum NoDevice {
    /// It is not there, or not yet.
    #[error(
        "no block device of this host is volume {volume}: looked for its id among the disks{given}; see that it is \
         attached to this instance, and try again"
    )]
    Absent {
        /// The volume.
        volume: String,
        /// The names that were looked for besides.
        given: String,
    },
    /// The name that was given belongs to another volume.
    #[error(
        "{device} is volume {found}, not {volume}; see by which name that one is attached to this instance"
    )]
    Other {
        /// The device.
        device: String,
        /// What it says it is.
        found: String,
        /// The volume.
        volume: String,
    },
}

impl Default for Places {
    fn default() -> Self {
        Self { dev: PathBuf::from("/dev"), sys_block: PathBuf::from("/sys/block") }
    }
}

impl Places {
    /// The device of a volume, by its id, else by the name it was attached by.
    ///
    /// # Errors
    /// When there is none, or the name is another volume's.
    pub fn find(&self, volume: &str, given: Option<&Path>) -> Result<PathBuf, NoDevice> {
        let link = self.dev.join(format!("{BY_ID}{}", serial_of(volume)));
        if let Ok(device) = link.canonicalize() {
            return Ok(device);
        }
        if let Some(device) = self.by_serial(volume) {
            return Ok(device);
        }
        let names: Vec<PathBuf> = given.into_iter().flat_map(names_of).collect();
        let Some(device) = names.iter().find_map(|name| name.canonicalize().ok()) else {
            let given = names.iter().map(|name| format!(", for {}", name.display())).collect();
            return Err(NoDevice::Absent { volume: volume.to_owned(), given });
        };
        match self.volume_of(&device) {
            Some(found) if found != volume => Err(NoDevice::Other {
                device: device.display().to_string(),
                found,
                volume: volume.to_owned(),
            }),
            Some(_) | None => Ok(device),
        }
    }

    fn by_serial(&self, volume: &str) -> Option<PathBuf> {
        let disks = fs::read_dir(&self.sys_block).ok()?;
        let mut names = disks.filter_map(|disk| disk.ok()?.file_name().into_string().ok());
        let name = names.find(|name| self.volume_named(name).is_some_and(|found| found == volume))?;
        Some(self.dev.join(name))
    }

    /// The volume that a device says it is.
    fn volume_of(&self, device: &Path) -> Option<String> {
        self.volume_named(device.file_name()?.to_str()?)
    }

    /// The volume that a disk of that name says it is; `None` where disks do not say.
    fn volume_named(&self, name: &str) -> Option<String> {
        if !name.starts_with("nvme") {
            return None;
        }
        let serial = fs::read_to_string(self.sys_block.join(name).join("device/serial")).ok()?;
        volume_of_serial(&serial)
    }
}

/// A volume's id as NVMe disks say it: without the dash.
fn serial_of(volume: &str) -> String {
    volume.replacen('-', "", 1)
}

/// The volume that a serial number names, if it is one of a volume.
fn volume_of_serial(serial: &str) -> Option<String> {
    let id = serial.trim_matches(|c: char| c.is_whitespace() || c == '\0').strip_prefix("vol")?;
    let id = id.strip_prefix('-').unwrap_or(id);
    let is_plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_plain.then(|| format!("vol-{id}"))
}

/// A device by the name it was attached by: as it is, and as Xen's driver calls it.
fn names_of(given: &Path) -> Vec<PathBuf> {
    let name = given.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("sd"));
    let xen = name.map(|letters| given.with_file_name(format!("xvd{letters}")));
    std::iter::once(given.to_owned()).chain(xen).collect()
}

/// An opened block device.
#[derive(Debug)]
pub struct BlockDevice {
    file: File,
    /// Its path.
    pub path: PathBuf,
    /// Its number.
    pub number: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl BlockDevice {
    /// Opens a device to be looked at.
    ///
    /// # Errors
    /// When it cannot be opened, or is no block device.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
            return Err(io::Error::other(format!("{} is no block device", path.display())));
        }
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, path: path.to_owned(), number: stat.st_rdev, size })
    }

    /// Its first bytes; fewer at the end of the device.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn head(&mut self, length: u64) -> io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut self.file).take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Waits until what was written to it is on the disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Whether a device is used by nothing on this host, in whatever mount namespace. One that is gone is not used.
///
/// # Errors
/// When it cannot be asked.
pub fn is_unused(path: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::BUSY) => Ok(false),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NXIO | rustix::io::Errno::NODEV) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    /// Places with NVMe disks of these serial numbers, and files for devices.
    fn places(folder: &Path, disks: &[(&str, &str)]) -> Places {
        let places = Places { dev: folder.join("dev"), sys_block: folder.join("sys") };
        fs::create_dir_all(places.dev.join("disk/by-id")).unwrap();
        fs::create_dir_all(&places.sys_block).unwrap();
        for (name, serial) in disks {
            fs::write(places.dev.join(name), "").unwrap();
            if !serial.is_empty() {
                fs::create_dir_all(places.sys_block.join(name).join("device")).unwrap();
                fs::write(places.sys_block.join(name).join("device/serial"), serial).unwrap();
            }
        }
        places
    }

    #[test]
    fn a_volume_is_found_by_link_then_by_serial_then_by_the_name_given() {
        let folder = tempfile::tempdir().unwrap();
        let disks = [("nvme0n1", "vol0aaa   \n"), ("nvme1n1", "vol0bbb\n"), ("xvdg", ""), ("sdh", "")];
        let places = places(folder.path(), &disks);
        let dev = places.dev.canonicalize().unwrap();
        symlink("../../nvme0n1", dev.join("disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0ccc")).unwrap();
        let find = |volume, name: &str| places.find(volume, Some(&dev.join(name)));
        assert_eq!(find("vol-0ccc", "sdf").unwrap(), dev.join("nvme0n1"));
        assert_eq!(find("vol-0bbb", "sdf").unwrap(), dev.join("nvme1n1"));
        assert_eq!(find("vol-0ddd", "sdg").unwrap(), dev.join("xvdg"));
        assert_eq!(find("vol-0ddd", "sdh").unwrap(), dev.join("sdh"));
        assert!(matches!(find("vol-0ddd", "sdf"), Err(NoDevice::Absent { .. })));
        assert!(matches!(places.find("vol-0ddd", None), Err(NoDevice::Absent { .. })));
        symlink("nvme1n1", dev.join("sdf")).unwrap();
        let other = find("vol-0ddd", "sdf").unwrap_err();
        assert!(other.to_string().contains("is volume vol-0bbb, not vol-0ddd"), "{other}");
    }

    #[test]
    fn what_is_no_block_device_is_not_opened_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        assert!(BlockDevice::open(&path).unwrap_err().to_string().contains("no block device"));
        assert!(is_unused(&folder.path().join("missing")).unwrap());
    }

    proptest! {
        #[test]
        fn a_serial_number_leads_back_to_the_volume(id in "[0-9a-f]{1,20}", blanks in "[ \n\0]{0,20}") {
            let volume = format!("vol-{id}");
            prop_assert_eq!(volume_of_serial(&format!("{}{blanks}", serial_of(&volume))), Some(volume.clone()));
            prop_assert_eq!(volume_of_serial(&format!("{volume}{blanks}")), Some(volume));
        }

        #[test]
        fn no_serial_number_of_another_disk_is_taken_for_a_volume(serial in "\\PC{0,24}") {
            let taken = volume_of_serial(&serial);
            prop_assert!(taken.is_none() || serial.trim().starts_with("vol"));
        }
    }
}
