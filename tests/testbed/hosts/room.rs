//! Folders of a host that run out of space or cannot be written to.

use anyhow::Result;

use super::Host;

/// What fills a folder.
const BALLAST: &str = ".ballast";

impl Host {
    /// Puts a small file system of its own on a folder, with what is in it now, so that [`Host::fill`] fills it and
    /// nothing else. Lost with the next boot, as everything the host has mounted.
    pub async fn limit(&self, folder: &str, megabytes: u32) -> Result<()> {
        let command = format!(
            "set -e; mkdir -p {folder}; mode=$(stat -c %a {folder}); aside=$(mktemp -d)
             mount -t tmpfs -o size={megabytes}m,mode=$mode tmpfs $aside
             cp -a {folder}/. $aside; mount --move $aside {folder}; rmdir $aside"
        );
        self.exec_root(&command).await.map(|_| ())
    }

    /// Leaves no byte free in a folder that was given limits.
    pub async fn fill(&self, folder: &str) -> Result<()> {
        let command = format!(
            "findmnt -n -o FSTYPE --target {folder} | grep -qx tmpfs || {{ echo it has no limit >&2; exit 1; }}
             cat /dev/zero >{folder}/{BALLAST} 2>/dev/null; [ $(stat -f -c %a {folder}) = 0 ]"
        );
        self.exec_root(&command).await.map(|_| ())
    }

    /// Gives the room in a filled folder back.
    pub async fn make_room(&self, folder: &str) -> Result<()> {
        self.exec_root(&format!("rm -f {folder}/{BALLAST}")).await.map(|_| ())
    }

    /// Refuses every write below a folder, the home of an account for instance.
    pub async fn forbid_writes(&self, folder: &str) -> Result<()> {
        let command = format!("mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}");
        self.exec_root(&command).await.map(|_| ())
    }

    /// Allows them again.
    pub async fn allow_writes(&self, folder: &str) -> Result<()> {
        self.exec_root(&format!("umount -l {folder}")).await.map(|_| ())
    }
}
