//! The state folder: where the supervisor keeps what must survive it.
//!
//! Files are replaced by rename and readable by their owner alone. A reader never sees half a file. A folder that
//! is being deleted is renamed first, so that a crash leaves nothing that looks like an environment.

mod slots;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spool::FORMAT;
use crate::spool::record::{EnvironmentRecord, JobRecord};

/// The state folder of root and of whoever may write there.
const SYSTEM_FOLDER: &str = "/var/lib/dormouse";

/// Prefix of a folder that is being deleted.
const DOOMED: &str = ".doomed-";

/// What a job sets aside on the disk for its last words: the end of its log and its result are told even where the
/// job, or a neighbour, has filled the disk.
const SET_ASIDE: u64 = 64 * 1024;

/// The state folder.
#[derive(Debug, Clone)]
pub struct StateFolder {
    root: PathBuf,
}

/// Whether a write must survive the loss of power. A write that need not is twice as fast, and a reader still sees
/// either the old file or the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On the disk before the call returns.
    Durable,
    /// Left to the kernel.
    Relaxed,
}

impl StateFolder {
    /// Opens the folder given, or the default one, and makes it if need be.
    ///
    /// # Errors
    /// When no folder can be made.
    pub fn open(given: Option<&Path>) -> io::Result<Self> {
        if let Some(root) = given {
            return Self::at(root.to_owned());
        }
        Self::at(PathBuf::from(SYSTEM_FOLDER)).or_else(|error| match std::env::var_os("HOME") {
            Some(home) => Self::at(Path::new(&home).join(".dormouse")),
            None => Err(error),
        })
    }

    fn at(root: PathBuf) -> io::Result<Self> {
        let folder = Self { root };
        make_private(&folder.environments())?;
        rustix::fs::access(&folder.root, rustix::fs::Access::WRITE_OK)?;
        Ok(folder)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `claim.json`.
    pub fn claim(&self) -> PathBuf {
        self.root.join("claim.json")
    }

    /// `jobs-started.json`.
    pub fn jobs_started(&self) -> PathBuf {
        self.root.join("jobs-started.json")
    }

    /// `quiesced.json`.
    pub fn quiesced(&self) -> PathBuf {
        self.root.join("quiesced.json")
    }

    /// Caches of all slots, where no other folder is named.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    fn environments(&self) -> PathBuf {
        self.root.join("environments")
    }

    /// The folder of an environment, whether it exists or not.
    pub fn environment(&self, id: &str) -> EnvironmentFolder {
        EnvironmentFolder { path: self.environments().join(id) }
    }

    /// All environments there are, by name.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all_environments(&self) -> io::Result<Vec<EnvironmentFolder>> {
        let mut found: Vec<_> = names(&self.environments())?
            .into_iter()
            .filter(|name| !name.starts_with('.'))
            .map(|name| self.environment(&name))
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Deletes what an interrupted deletion has left.
    ///
    /// # Errors
    /// When the folder cannot be read or something in it cannot be deleted.
    pub fn sweep(&self) -> io::Result<()> {
        for name in names(&self.environments())?.into_iter().filter(|name| name.starts_with(DOOMED)) {
            gone(fs::remove_dir_all(self.environments().join(name)))?;
        }
        Ok(())
    }

    /// Deletes an environment's folder.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn delete(&self, environment: &EnvironmentFolder, id: &str) -> io::Result<()> {
        let doomed = self.environments().join(format!("{DOOMED}{id}"));
        gone(fs::remove_dir_all(&doomed))?;
        gone(fs::rename(&environment.path, &doomed))?;
        gone(fs::remove_dir_all(&doomed))
    }

    /// Waits for the lock that orders the verbs of this host.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn lock(&self) -> io::Result<Lock> {
        Lock::wait(&self.root.join("claim.lock"))
    }
}

/// The folder of one environment.
#[derive(Debug, Clone)]
pub struct EnvironmentFolder {
    path: PathBuf,
}

impl EnvironmentFolder {
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `environment.json`.
    pub fn record(&self) -> PathBuf {
        self.path.join("environment.json")
    }

    /// `holdings.json`: processes and the workspace's identity, for the supervisor alone.
    pub fn holdings(&self) -> PathBuf {
        self.path.join("holdings.json")
    }

    /// The folder of the saved context.
    pub fn context(&self) -> PathBuf {
        self.path.join("context")
    }

    /// The pipe that the environment's processes write to.
    pub fn output(&self) -> PathBuf {
        self.path.join("output")
    }

    /// The folder of a job.
    pub fn job(&self, id: u64) -> JobFolder {
        JobFolder { path: self.path.join("jobs").join(id.to_string()) }
    }

    /// Ids of the jobs on disk, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn jobs(&self) -> io::Result<Vec<u64>> {
        let mut ids: Vec<u64> =
            names(&self.path.join("jobs"))?.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads the record; `None` when there is no such environment.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> io::Result<Option<EnvironmentRecord>> {
        read_json(&self.record())
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, record: &EnvironmentRecord) -> io::Result<()> {
        write_json(&self.record(), record, Durability::Durable)
    }

    /// Waits for the lock that orders suspend and release of this environment.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn lock(&self) -> io::Result<Lock> {
        Lock::wait(&self.path.join("lock"))
    }
}

/// The folder of one job.
#[derive(Debug, Clone)]
pub struct JobFolder {
    path: PathBuf,
}

impl JobFolder {
    /// A folder that is not in its place yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `job.json`.
    pub fn record(&self) -> PathBuf {
        self.path.join("job.json")
    }

    /// The log.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The journal of lines appended once.
    pub fn appends(&self) -> PathBuf {
        self.path.join("appends")
    }

    /// The wish to cancel.
    pub fn cancel(&self) -> PathBuf {
        self.path.join("cancel")
    }

    /// Newer addresses of the job's caches.
    pub fn cache_urls(&self) -> PathBuf {
        self.path.join("cache-urls")
    }

    /// What is set aside for the job's last words.
    fn reserve(&self) -> PathBuf {
        self.path.join("reserve")
    }

    /// Sets room aside for the job's last words.
    ///
    /// # Errors
    /// When there is none.
    pub fn set_room_aside(&self) -> io::Result<()> {
        let path = self.reserve();
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SET_ASIDE) {
            // A file system that cannot promise room is written to, which most take for a promise.
            Err(rustix::io::Errno::OPNOTSUPP) => (&file).write_all(&vec![0; SET_ASIDE as usize]),
            set_aside => Ok(set_aside?),
        }
    }

    /// Gives the room that was set aside to whoever writes next.
    ///
    /// # Errors
    /// When the disk cannot be written to.
    pub fn use_room_aside(&self) -> io::Result<()> {
        gone(fs::remove_file(self.reserve()))
    }

    /// Does something that writes, once more with the room that was set aside if the disk is full. What is done must
    /// bear being done twice.
    ///
    /// # Errors
    /// When it fails all the same.
    pub fn with_room<T>(&self, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match write() {
            Err(error) if is_full(&error) => {
                self.use_room_aside()?;
                write()
            }
            written => written,
        }
    }

    /// Reads the record; `None` when there is no such job.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> io::Result<Option<JobRecord>> {
        read_json(&self.record())
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, record: &JobRecord, durability: Durability) -> io::Result<()> {
        write_json(&self.record(), record, durability)
    }
}

/// An exclusive lock between processes; given back when it is dropped or its holder dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    fn wait(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(Self { _file: file })
    }
}

/// Makes a folder and its parents, for the owner alone.
///
/// # Errors
/// When it cannot be made.
pub fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What every file of ours says first: the format it is written in.
#[derive(Deserialize)]
struct Stamp {
    #[serde(default)]
    format: u32,
}

/// Reads a JSON file; `None` when there is none.
///
/// # Errors
/// When it cannot be read, is not what it should be, or is of a format that only a newer supervisor knows (of kind
/// [`io::ErrorKind::Unsupported`]).
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let unreadable = |error| io::Error::other(format!("{}: {error}", path.display()));
    // The stamp first: what a newer format says besides may look like anything.
    let Stamp { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if format > FORMAT {
        let message = format!(
            "{} is of format {format}, this supervisor knows formats up to {FORMAT}: an operator of a newer version \
             has been here; use that one again",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
}

/// Replaces a JSON file.
///
/// # Errors
/// When it cannot be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?, durability)
}

/// Replaces a file.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.tmp", std::process::id()));
    let draft = PathBuf::from(draft);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let replaced = file
        .write_all(bytes)
        .and_then(|()| if durability == Durability::Durable { file.sync_all() } else { Ok(()) })
        .and_then(|()| fs::rename(&draft, path));
    if replaced.is_err() {
        // Half a draft on a full disk would only keep it full.
        let _left = fs::remove_file(&draft);
    }
    replaced
}

/// Whether there is no room on the disk, or no more for this user.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Reads "not there" as done.
pub fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}
