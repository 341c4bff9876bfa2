//! A volume: a sparse file as a block device, gone again with its test.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::is_root;

const GIB: u64 = 1024 * 1024 * 1024;

/// A loop device over a sparse file.
pub struct Disk {
    _folder: tempfile::TempDir,
    file: PathBuf,
    /// The block device.
    pub device: PathBuf,
}

impl Disk {
    /// A blank disk of 1 GiB; `None`, said so, where it cannot be had.
    pub fn blank() -> Option<Self> {
        if !is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("left out: a volume takes root and loop devices");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("volume");
        std::fs::File::create(&file).unwrap().set_len(GIB).unwrap();
        let device = said("losetup", &["--find", "--show", file.to_str().unwrap()]);
        Some(Self { _folder: folder, file, device: PathBuf::from(device) })
    }

    /// Makes the disk larger, as a volume is that was modified.
    pub fn enlarge(&self) {
        let file = std::fs::File::options().write(true).open(&self.file).unwrap();
        file.set_len(2 * GIB).unwrap();
        said("losetup", &["--set-capacity", self.device.to_str().unwrap()]);
    }

    /// Writes to the device.
    pub fn write(&self, bytes: &[u8], offset: u64) {
        let file = std::fs::File::options().write(true).open(&self.device).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        file.sync_all().unwrap();
    }

    /// Reads from the device.
    pub fn read(&self, length: usize, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; length];
        std::fs::File::open(&self.device).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// Where it is mounted, with the options of each mount.
    pub fn mounts(&self) -> Vec<(PathBuf, String)> {
        let all = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let device = self.device.to_str().unwrap();
        all.lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .filter(|fields| fields[0] == device)
            .map(|fields| (PathBuf::from(fields[1]), fields[3].to_owned()))
            .collect()
    }

    /// Takes it away from where it is mounted, as a reboot does.
    pub fn unmount(&self) {
        for (point, _) in self.mounts() {
            said("umount", &[point.to_str().unwrap()]);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for (point, _) in self.mounts() {
            // Lazily: a test that failed may have left processes that stand in it.
            let _gone = Command::new("umount").arg("--lazy").arg(point).output();
        }
        let _detached = Command::new("losetup").arg("--detach").arg(&self.device).output();
    }
}

/// Runs a program that must succeed; what it printed.
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
