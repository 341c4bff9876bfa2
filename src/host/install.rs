//! Puts the supervisor on a host, by content hash and machine type.
//!
//! Writes on the host: (1) a temporary file beside the final one, (2) a rename after its checksum was compared. A
//! death between the two leaves a temporary file that the next installation overwrites.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::connection::{Connection, SshError};
use super::quote;

/// The supervisors this operator can install, by machine type.
#[derive(Debug, Clone, Default)]
pub struct Supervisors {
    by_machine: BTreeMap<String, Arc<Supervisor>>,
}

#[derive(Debug)]
struct Supervisor {
    binary: Bytes,
    sha256: String,
}

/// Machine types a supervisor exists for.
const MACHINES: [&str; 2] = ["x86_64", "aarch64"];

/// Why a host has no supervisor.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// SSH failed.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// There is none for this kind of machine.
    #[error("the host is a {machine} running {system}; supervisors exist here for Linux on {known}")]
    Unsupported {
        /// `uname -m`.
        machine: String,
        /// `uname -s`.
        system: String,
        /// Machine types at hand.
        known: String,
    },
    /// The host's shell did not answer as one does.
    #[error("the host's login shell answered the probe with {0:?}")]
    Probe(String),
    /// The binary did not arrive.
    #[error("the supervisor could not be written to {folder}: {cause}")]
    Write {
        /// Folder on the host.
        folder: String,
        /// What the host said.
        cause: String,
    },
}

/// How to call the supervisor on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The start of every command line: `sudo` where needed, program, state folder.
    pub command: String,
    /// The home of the connection's user, for paths that begin with `~/`.
    pub home: String,
}

/// What a pool asks of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The pool's state folder, if it names one.
    pub state_dir: Option<String>,
    /// Whether slots are isolated by user, which needs root.
    pub needs_root: bool,
}

impl Supervisors {
    /// Reads the binaries from a folder that holds `dormouse-supervisor-<machine>` files.
    ///
    /// # Errors
    /// When the folder holds none.
    pub fn read(folder: &Path) -> Result<Self, std::io::Error> {
        let mut by_machine = BTreeMap::new();
        for machine in MACHINES {
            let path = folder.join(format!("dormouse-supervisor-{machine}"));
            match std::fs::read(&path) {
                Ok(binary) => {
                    let sha256 = hex(&Sha256::digest(&binary));
                    let supervisor = Supervisor { binary: Bytes::from(binary), sha256 };
                    by_machine.insert(machine.to_owned(), Arc::new(supervisor));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if by_machine.is_empty() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("{} holds no dormouse-supervisor-<machine> file", folder.display()),
            ));
        }
        Ok(Self { by_machine })
    }

    /// Makes sure that the supervisor is on the host and says how to call it.
    ///
    /// # Errors
    /// When the host is of an unknown kind or the binary cannot be put there.
    pub async fn ensure(&self, host: &Connection, wanted: &Wanted) -> Result<Installed, InstallError> {
        let probe = probe(host).await?;
        let known = || self.by_machine.keys().cloned().collect::<Vec<_>>().join(", ");
        let unsupported = || InstallError::Unsupported {
            machine: probe.machine.clone(),
            system: probe.system.clone(),
            known: known(),
        };
        let supervisor = self
            .by_machine
            .get(&probe.machine)
            .filter(|_| probe.system == "Linux")
            .ok_or_else(unsupported)?;
        let elevated = wanted.needs_root && !probe.root && probe.sudo;
        let base = match &wanted.state_dir {
            Some(folder) => folder.replacen("~/", &format!("{}/", probe.home), 1),
            None if probe.root => "/var/lib/dormouse".to_owned(),
            None => format!("{}/.dormouse", probe.home),
        };
        let folder = format!("{base}/bin");
        let path = format!("{folder}/dormouse-supervisor-{}", supervisor.short_hash());
        self.put(host, supervisor, &folder, &path).await?;
        // With sudo the state belongs to root and must not lie where the connection's user could replace it.
        let state_dir = match (&wanted.state_dir, elevated) {
            (None, true) => "/var/lib/dormouse".to_owned(),
            (Some(_), _) | (None, false) => base,
        };
        let sudo = if elevated { "sudo -n " } else { "" };
        Ok(Installed {
            command: format!("{sudo}{} --state-dir {}", quote(&path), quote(&state_dir)),
            home: probe.home.clone(),
        })
    }

    async fn put(
        &self,
        host: &Connection,
        supervisor: &Supervisor,
        folder: &str,
        path: &str,
    ) -> Result<(), InstallError> {
        let present = host.run(&format!("test -x {}", quote(path)), Bytes::new()).await?;
        if present.code == 0 {
            return Ok(());
        }
        let script = format!(
            "set -e; umask 077; mkdir -p {folder}; cat > {path}.$$; \
             echo '{hash}  '{path}.$$ | sha256sum -c --status || {{ rm -f {path}.$$; echo 'checksum differs' >&2; exit 1; }}; \
             chmod 755 {path}.$$; mv -f {path}.$$ {path}",
            folder = quote(folder),
            path = quote(path),
            hash = supervisor.sha256,
        );
        let written = host.run(&format!("sh -c {}", quote(&script)), supervisor.binary.clone()).await?;
        if written.code == 0 {
            return Ok(());
        }
        let cause = match written.stderr.is_empty() {
            true => format!("exit code {}", written.code),
            false => written.stderr,
        };
        Err(InstallError::Write { folder: folder.to_owned(), cause })
    }
}

impl Supervisor {
    fn short_hash(&self) -> &str {
        self.sha256.get(..16).unwrap_or(&self.sha256)
    }
}

struct Probe {
    system: String,
    machine: String,
    root: bool,
    sudo: bool,
    home: String,
}

async fn probe(host: &Connection) -> Result<Probe, InstallError> {
    let script = "uname -s; uname -m; id -u; if sudo -n true 2>/dev/null; then echo yes; else echo no; fi; \
                  printf '%s\\n' \"$HOME\"";
    let output = host.run(&format!("sh -c {}", quote(script)), Bytes::new()).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        // A login shell may print a greeting first; the probe's lines are the last five.
        [.., system, machine, uid, sudo, home] => Ok(Probe {
            system: (*system).to_owned(),
            machine: (*machine).to_owned(),
            root: *uid == "0",
            sudo: *sudo == "yes",
            home: (*home).to_owned(),
        }),
        _ => Err(InstallError::Probe(text.chars().take(200).collect())),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
