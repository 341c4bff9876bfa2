//! A host's disk: an overlay whose lower layer is the machine's own root, so programs cost nothing.
//!
//! What lies on the machine outside of its system folders is hidden by whiteouts, the developer's files above all. The
//! accounts are the host's own. Changes go to the upper layer and stay from boot to boot.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode};

/// The only folders of the machine a host sees; `etc` with accounts of its own.
const SYSTEM: [&str; 8] = ["bin", "etc", "lib", "lib32", "lib64", "libx32", "sbin", "usr"];
/// Empty places the kernel's own file systems are mounted on.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
/// The first id that distributions give to people.
const FIRST_PERSON: u32 = 1000;
const NOBODY: u32 = 65534;

/// Name and number of the account without privileges.
pub const CI: (&str, u32) = ("ci", 2000);
/// Where sshd finds its settings and keys, on the disk.
pub const SSHD_CONFIG: &str = "etc/ssh/bed_sshd_config";
pub const HOST_KEY: &str = "etc/ssh/bed_host_key";
pub const AUTHORIZED_KEYS: &str = "etc/ssh/bed_authorized_keys";
/// Written by sshd once it listens.
pub const SSHD_PID: &str = "etc/ssh/bed_sshd.pid";
/// A folder with a file for each account, of keys that are accepted for a while.
pub const PUSHED_KEYS: &str = "etc/ssh/bed_pushed_keys";

/// The folders of an overlay.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// The disk in this folder; an empty folder becomes the disk of a host that has never booted.
    pub fn open(path: &Path) -> Result<Self> {
        ensure!(
            !path.as_os_str().to_string_lossy().contains([',', ':', '\\']),
            "{} cannot be an option of mount: it holds a comma, colon or backslash",
            path.display()
        );
        let disk = Self { path: path.to_owned() };
        for folder in ["work", "root"] {
            fs::create_dir_all(path.join(folder))?;
        }
        let upper = disk.upper();
        if upper.exists() {
            return Ok(disk);
        }
        fs::create_dir(&upper)?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))?;
        hide_the_rest(&upper)?;
        for folder in ["etc", "etc/ssh"] {
            fs::create_dir(upper.join(folder))?;
            fs::set_permissions(upper.join(folder), fs::Permissions::from_mode(0o755))?;
        }
        Accounts::of_machine()?.write(&upper.join("etc"))?;
        Ok(disk)
    }

    /// The folder `boot.sh` is told.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What differs from the machine's root. Written to only while the host is off.
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }
}

fn hide_the_rest(upper: &Path) -> Result<()> {
    for entry in fs::read_dir("/")? {
        let name = entry?.file_name();
        let is_kept =
            name.to_str().is_some_and(|name| SYSTEM.contains(&name) || MOUNT_POINTS.contains(&name));
        if !is_kept {
            // Overlayfs takes a character device 0:0 for "deleted here".
            rustix::fs::mknodat(CWD, upper.join(&name), FileType::CharacterDevice, Mode::empty(), 0)
                .with_context(|| format!("failed to hide /{}", name.display()))?;
        }
    }
    Ok(())
}

/// Accounts of services from the machine (sshd needs its own), of people only ours. Nobody has a password.
struct Accounts {
    users: Vec<String>,
    groups: Vec<String>,
}

impl Accounts {
    fn of_machine() -> Result<Self> {
        let (ci, id) = CI;
        let passwd = fs::read_to_string("/etc/passwd")?;
        let mut users = vec!["root:x:0:0:root:/root:/bin/bash".to_owned()];
        users.extend(services(&passwd).filter(|line| !line.starts_with("root:")).map(str::to_owned));
        users.push(format!("{ci}:x:{id}:{id}:CI:/home/{ci}:/bin/bash"));
        let group = fs::read_to_string("/etc/group")?;
        let mut groups: Vec<_> = services(&group).map(without_members).collect();
        groups.push(format!("{ci}:x:{id}:"));
        Ok(Self { users, groups })
    }

    fn write(&self, etc: &Path) -> Result<()> {
        // `*` is no password; `!` would be a locked account, which sshd refuses.
        let shadow: Vec<_> =
            self.users.iter().map(|line| format!("{}:*:19000:0:99999:7:::", name(line))).collect();
        let gshadow: Vec<_> = self.groups.iter().map(|line| format!("{}:*::", name(line))).collect();
        for (file, lines, mode) in [
            ("passwd", &self.users, 0o644),
            ("group", &self.groups, 0o644),
            ("shadow", &shadow, 0o600),
            ("gshadow", &gshadow, 0o600),
        ] {
            let path = etc.join(file);
            fs::write(&path, lines.join("\n") + "\n")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// Lines of passwd or group whose id is a service's.
fn services(file: &str) -> impl Iterator<Item = &str> {
    file.lines().filter(|line| {
        let id: Option<u32> = line.split(':').nth(2).and_then(|id| id.parse().ok());
        id.is_some_and(|id| id < FIRST_PERSON || id == NOBODY)
    })
}

fn without_members(group: &str) -> String {
    group.rsplit_once(':').map_or_else(|| group.to_owned(), |(kept, _)| format!("{kept}:"))
}

fn name(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}
