//! The server on a host: its program, keys and settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::{HostSpec, run};

/// Settings for a server on `address`; paths as the host sees them. Only a host with a disk of its own has a folder for
/// `pushed_keys`, a file for each account.
pub fn config(
    address: SocketAddr,
    host_key: &Path,
    authorized_keys: &Path,
    pushed_keys: Option<&Path>,
    pid: &Path,
    spec: &HostSpec,
) -> String {
    // Without a disk of its own its files lie in folders that others may be allowed to write to.
    let strict = if pushed_keys.is_some() { "yes" } else { "no" };
    let pushed_keys = pushed_keys.map(|folder| format!(" {}/%u", folder.display())).unwrap_or_default();
    format!(
        "\
ListenAddress {address}
HostKey {host_key}
AuthorizedKeysFile {authorized_keys}{pushed_keys}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes {strict}
UsePAM no
UseDNS no
PidFile {pid}
PrintMotd no
LogLevel VERBOSE
MaxSessions {sessions}
MaxStartups {startups}
",
        host_key = host_key.display(),
        pid = pid.display(),
        authorized_keys = authorized_keys.display(),
        sessions = spec.max_sessions,
        startups = spec.max_startups,
    )
}

/// Where sshd is: it insists on being started by its full path.
pub fn find() -> Result<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join("sshd"))
        .find(|sshd| sshd.is_file())
        .context("sshd is not installed; run tests/testbed/install-packages.sh")
}

/// Whether an SSH server sends its banner at once.
pub async fn greets(address: SocketAddr) -> Result<Option<()>> {
    let look = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut banner = [0; 4];
        stream.read_exact(&mut banner).await?;
        anyhow::Ok((&banner == b"SSH-").then_some(()))
    };
    tokio::time::timeout(Duration::from_secs(2), look).await?
}

/// Makes an ed25519 key pair without a passphrase, the public half in `<path>.pub`.
pub async fn generate_key(path: &Path, comment: &str) -> Result<()> {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(path);
    let output = run(&mut keygen).await?;
    ensure!(output.status.success(), "ssh-keygen failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
