//! Folders for one bed, removed with it; those of programs that were killed are removed by the next one.
//!
//! They lie in `$DORMOUSE_BED`, else `dormouse-bed` in the folder for temporary files. Disks of hosts are overlays, so
//! this must not itself be on an overlay (as `/tmp` in a container is).

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::process::Owner;

/// A folder of its own for one bed.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty folder, after removing the folders of dead owners.
    pub fn new(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = parent();
        fs::create_dir_all(&parent).with_context(|| format!("failed to make {}", parent.display()))?;
        remove_orphans(&parent)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{}.{count}.{name}", Owner::this_process()?));
        fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    /// A test that panics leaves its folder, with the logs of its servers, until the next run; `DORMOUSE_KEEP` makes
    /// any test do so.
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("DORMOUSE_KEEP").is_some() {
            eprintln!("the bed's logs are in {} until the next run", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("failed to remove {}: {error}", self.path.display());
        }
    }
}

/// Where the folders of all beds are.
pub fn parent() -> PathBuf {
    std::env::var_os("DORMOUSE_BED")
        .map_or_else(|| std::env::temp_dir().join("dormouse-bed"), PathBuf::from)
        // Folders of root and of other users do not mix: one could not remove the other's.
        .join(rustix::process::getuid().as_raw().to_string())
}

fn remove_orphans(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(Owner::parse_prefix) else { continue };
        if owner.is_alive() {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Ok(()) => {}
            // Another process of the bed is at the same work.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("failed to remove {}", entry.path().display()));
            }
        }
    }
    Ok(())
}
