//! Hosts for jobs: each a real sshd on an address of its own, with its own disk, processes and cgroup.
//!
//! As root a host is a machine in all but its network: it boots, reboots with a new boot id, freezes, loses its cable,
//! keeps its disk. Without root a host is an sshd on a high port that shares everything with the machine: it can be
//! stopped, started and cut off, nothing more. The machine's files outside its system folders are never seen or changed.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::process::Command;
use tokio::runtime::Runtime;

pub use super::proxy::Line;
use super::proxy::Proxy;
use super::{process, tools, wait};

mod addresses;
pub mod cgroup;
pub mod disk;
mod room;
mod sshd;

use addresses::Subnet;
use cgroup::Cgroup;
use disk::Disk;

/// A boot takes about 0.2 s on an idle machine.
const BOOT: Duration = Duration::from_secs(20);
/// Longest command a test may run over [`Host::ssh`] or [`Host::exec_root`].
const COMMAND: Duration = Duration::from_secs(120);
const ROOT_PORT: u16 = 22;
const USER_PORT: u16 = 2222;

/// A set of hosts that share a client key and a subnet.
pub struct Hosts {
    bed: Arc<Bed>,
}

/// What a host needs as long as it lives; held by each of them.
struct Bed {
    dir: PathBuf,
    subnet: Subnet,
    client_key: PathBuf,
    sshd: PathBuf,
    /// None without root.
    cgroup: Option<Cgroup>,
    /// Runs the network paths, so that a test that blocks its threads does not cut its hosts off; taken when dropped.
    runtime: Option<Runtime>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Plain dropping waits, which is not allowed inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// How a host differs from the usual.
#[derive(Clone, Debug)]
pub struct HostSpec {
    /// A loopback address for it; without one it gets a free one.
    pub address: Option<Ipv4Addr>,
    /// The folder of its disk, with whatever a host has left there; without one it gets a new disk in its own folder.
    pub disk: Option<PathBuf>,
    /// Whether the bed's key opens it; without that only keys that are pushed to it do.
    pub takes_client_key: bool,
    /// Channels on one connection (sshd's own default).
    pub max_sessions: u32,
    /// Connections that have not logged in yet (sshd's own default).
    pub max_startups: String,
}

impl Default for HostSpec {
    fn default() -> Self {
        Self {
            address: None,
            disk: None,
            takes_client_key: true,
            max_sessions: 10,
            max_startups: "10:30:100".to_owned(),
        }
    }
}

impl Hosts {
    /// Prepares for hosts whose disks lie in `dir`, which must not be on an overlay itself.
    pub async fn new(dir: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let cgroup = match rustix::process::geteuid().is_root() {
            true => Some(Cgroup::for_bed(COUNT.fetch_add(1, Ordering::Relaxed)).await?),
            false => None,
        };
        let client_key = dir.join("client_key");
        if !client_key.exists() {
            sshd::generate_key(&client_key, "client").await?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("paths")
            .enable_all()
            .build()?;
        let bed = Bed {
            subnet: Subnet::claim()?,
            sshd: sshd::find()?,
            dir,
            client_key,
            cgroup,
            runtime: Some(runtime),
        };
        Ok(Self { bed: Arc::new(bed) })
    }

    /// Whether hosts are apart from the machine and each other, which takes root.
    pub fn are_isolated(&self) -> bool {
        self.bed.cgroup.is_some()
    }

    /// The private key every account of every host accepts (OpenSSH, ed25519, no passphrase).
    pub fn client_key(&self) -> &Path {
        &self.bed.client_key
    }

    /// The number of the hosts' subnet, the third byte of their addresses.
    pub fn subnet(&self) -> u8 {
        self.bed.subnet.number()
    }

    /// Makes a host that is off; `name` becomes its host name.
    pub async fn create(&self, name: &str, spec: HostSpec) -> Result<Host> {
        Host::create(Arc::clone(&self.bed), name, spec).await
    }

    /// Makes a host and boots it; `name` becomes its host name.
    pub async fn boot(&self, name: &str, spec: HostSpec) -> Result<Host> {
        let host = self.create(name, spec).await?;
        host.start().await?;
        Ok(host)
    }

    /// Boots usual hosts of these names, all at once.
    pub async fn boot_all(&self, names: &[&str]) -> Result<Vec<Host>> {
        self.boot_alike(names, &HostSpec::default()).await
    }

    /// Boots hosts of these names that all differ from the usual in the same way.
    pub async fn boot_alike(&self, names: &[&str], spec: &HostSpec) -> Result<Vec<Host>> {
        futures::future::try_join_all(names.iter().map(|name| self.boot(name, spec.clone()))).await
    }
}

/// One host. Its disk lives as long as its folder, its processes end when it is dropped.
pub struct Host {
    bed: Arc<Bed>,
    name: String,
    address: SocketAddr,
    /// Where its sshd really listens.
    behind: SocketAddr,
    dir: PathBuf,
    path: Proxy,
    /// None without root; made anew with each boot, so that nothing of the last one is left in it.
    disk: Option<Disk>,
    /// Taken for the length of a system call, never across an await.
    running: Mutex<Option<Running>>,
}

struct Running {
    child: Child,
    /// Process 1 of the host as the machine sees it; sshd itself without root.
    init: u32,
    cgroup: Option<Arc<Cgroup>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = process::end(&mut self.child) {
            eprintln!("failed to end a host: {error:#}");
        }
    }
}

impl Host {
    async fn create(bed: Arc<Bed>, name: &str, spec: HostSpec) -> Result<Self> {
        ensure!(
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
            "'{name}' is no host name"
        );
        let dir = bed.dir.join(name);
        fs::create_dir(&dir).with_context(|| format!("a host '{name}' exists already"))?;
        let disk = match bed.cgroup {
            Some(_) => Some(Disk::open(spec.disk.as_deref().unwrap_or(&dir))?),
            None => None,
        };
        let port = if disk.is_some() { ROOT_PORT } else { USER_PORT };
        let addresses = bed.subnet.next(spec.address)?;
        let address = SocketAddr::from((addresses.public, port));
        let behind = SocketAddr::from((addresses.behind, port));
        let runtime = bed.runtime.as_ref().context("the bed is being taken down")?;
        let path = Proxy::new(runtime.handle(), address, behind);
        let host =
            Self { bed, name: name.to_owned(), address, behind, dir, path, disk, running: Mutex::new(None) };
        host.write_sshd_files(&spec).await?;
        Ok(host)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address to dial.
    pub fn address(&self) -> std::net::IpAddr {
        self.address.ip()
    }

    /// 22, or a high port without root.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Its public key as one OpenSSH line, without a comment.
    pub fn host_key(&self) -> Result<String> {
        let line = fs::read_to_string(self.file(disk::HOST_KEY)?.with_extension("pub"))?;
        let mut words = line.split_whitespace();
        let (kind, key) = (words.next().context("an empty key")?, words.next().context("half a key")?);
        Ok(format!("{kind} {key}"))
    }

    /// The account with all rights the host gives: `root`, or without root whoever runs this.
    pub fn admin(&self) -> Result<String> {
        if self.disk.is_some() {
            return Ok("root".to_owned());
        }
        let output = std::process::Command::new("id").arg("-un").output().context("failed to run id")?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// The account without privileges, on hosts that have one of their own.
    pub fn unprivileged(&self) -> Result<&'static str> {
        ensure!(self.disk.is_some(), "without root a host has the machine's accounts only");
        Ok(disk::CI.0)
    }

    /// The folder that is the host's `/`. While it is off, only what it has changed is in there.
    pub fn disk(&self) -> PathBuf {
        let running = self.running();
        match (&self.disk, running.as_ref()) {
            (Some(_), Some(running)) => PathBuf::from(format!("/proc/{}/root", running.init)),
            (Some(disk), None) => disk.upper(),
            (None, _) => PathBuf::from("/"),
        }
    }

    /// Runs a shell command over SSH as the admin; what it printed and how it ended is the caller's to judge.
    pub async fn ssh(&self, command: &str) -> Result<Output> {
        self.ssh_as(&self.admin()?, command).await
    }

    /// The same as another account.
    pub async fn ssh_as(&self, user: &str, command: &str) -> Result<Output> {
        run(self.ssh_command(user)?.arg("--").arg(command)).await
    }

    /// An ssh client with the bed's key and this host's key pinned, for a caller that adds arguments.
    pub fn ssh_command(&self, user: &str) -> Result<Command> {
        let known = self.dir.join("known_hosts");
        // By a name of its own first: another client reads the file at the same time.
        let mut written = tempfile::NamedTempFile::new_in(&self.dir)?;
        writeln!(written, "{} {}", self.name, self.host_key()?)?;
        written.persist(&known)?;
        let mut command = Command::new("ssh");
        command
            .args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none"])
            .args(["-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR"])
            .args(["-o", &format!("HostKeyAlias={}", self.name)])
            .args(["-o", &format!("UserKnownHostsFile={}", known.display())])
            .arg("-i")
            .arg(&self.bed.client_key)
            .args(["-p", &self.port().to_string(), "-l", user])
            .arg(self.address().to_string());
        Ok(command)
    }

    /// Runs a shell command inside the host as root without SSH, and returns its stdout; a failure carries its stderr.
    pub async fn exec_root(&self, command: &str) -> Result<String> {
        ensure!(self.disk.is_some(), "looking into a host from outside takes root");
        let init = self.running().as_ref().context("the host is off")?.init.to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter
            .args(["--target", &init, "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd"])
            .args([
                "env",
                "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
            ])
            .args(["sh", "-c", command]);
        let output = run(&mut nsenter).await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "on {}: {command}: {}: {errors}", self.name, output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Boots it; returns when its sshd answers.
    pub async fn start(&self) -> Result<()> {
        self.power_on().await?;
        self.heal().await
    }

    /// Boots it without its network: nobody reaches its sshd before [`Host::heal`].
    pub async fn power_on(&self) -> Result<()> {
        ensure!(self.running().is_none(), "{} is running", self.name);
        let cgroup = self.bed.cgroup.as_ref().map(|bed| bed.child(&self.name)).transpose()?;
        let child = process::spawn(self.boot_command(cgroup.as_ref())?)?;
        // From here on it is ended when dropped.
        let mut running = Running { init: child.id(), child, cgroup: cgroup.map(Arc::new) };
        wait::until(&format!("sshd of {} answers", self.name), BOOT, async || {
            if let Some(status) = running.child.try_wait()? {
                return Err(wait::give_up(anyhow!("it ended with {status}")));
            }
            sshd::greets(self.behind).await
        })
        .await
        .with_context(|| format!("{} does not boot: {}", self.name, self.boot_log()))?;
        if self.disk.is_some() {
            running.init = first_child(running.child.id())?;
        }
        *self.running() = Some(running);
        Ok(())
    }

    /// Pulls the plug: processes are gone, connections reset, the disk stays.
    pub async fn stop(&self) -> Result<()> {
        self.path.set(Line::Refused).await?;
        let Some(running) = self.running().take() else { return Ok(()) };
        if let Some(cgroup) = &running.cgroup {
            // All in one moment: killed one by one, a supervisor could see its job's processes go and write that down.
            cgroup.freeze().await?;
            cgroup.kill().await?;
        }
        Ok(())
    }

    /// The same at once, for one who cannot wait; a frozen host too.
    pub fn pull_the_plug(&self) {
        drop(self.running().take());
    }

    /// Stops and starts it: the disk is as it was, processes are gone, the boot id is another.
    pub async fn reboot(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Stops all its processes where they are, as a hibernated or starved machine: connects work, nothing answers.
    pub async fn freeze(&self) -> Result<()> {
        self.cgroup()?.freeze().await
    }

    /// Lets a frozen host go on.
    pub async fn thaw(&self) -> Result<()> {
        self.cgroup()?.thaw().await
    }

    /// Whether [`Host::freeze`] was the last of the two.
    pub fn is_frozen(&self) -> bool {
        self.cgroup().is_ok_and(|cgroup| cgroup.is_frozen())
    }

    /// Changes its network: [`Line::Silent`] hangs connections until [`Host::heal`] (a new one never sees a banner),
    /// [`Line::Refused`] breaks them, [`Line::Slow`] makes them crawl.
    pub async fn cut(&self, line: Line) -> Result<()> {
        self.path.set(line).await
    }

    /// Resets every connection to it once, as a router that forgets them.
    pub async fn reset_connections(&self) -> Result<()> {
        self.path.reset().await
    }

    /// Gives its network back.
    pub async fn heal(&self) -> Result<()> {
        self.path.set(Line::Up).await
    }

    /// Replaces its host key, as a reinstalled machine at the same address; sessions go on.
    pub async fn new_host_key(&self) -> Result<()> {
        let key = self.file(disk::HOST_KEY)?;
        fs::remove_file(&key)?;
        fs::remove_file(key.with_extension("pub"))?;
        sshd::generate_key(&key, &self.name).await?;
        self.reload_sshd().await?;
        let key = self.host_key()?;
        wait::until("sshd has read its new key", BOOT, async || {
            let mut scan = Command::new("ssh-keyscan");
            scan.args(["-t", "ed25519", "-p", &self.behind.port().to_string()])
                .arg(self.behind.ip().to_string());
            Ok(String::from_utf8(run(&mut scan).await?.stdout)?.contains(&key).then_some(()))
        })
        .await
    }

    /// Lets its sshd begin anew with these settings, as after an edit of its configuration; sessions go on, and new
    /// ones are served by the new one.
    pub async fn restart_sshd(&self, spec: &HostSpec) -> Result<()> {
        self.write_sshd_config(spec)?;
        self.reload_sshd().await
    }

    /// Kills every process of sshd that serves a connection; what was started through it lives or dies by itself.
    pub async fn kill_sessions(&self) -> Result<()> {
        // The listener is process 1 of the host; all others of that name belong to connections, and may end by themselves.
        self.exec_root(
            "for id in $(pgrep -x 'sshd|sshd-session'); do [ $id = 1 ] || kill -KILL $id || true; done",
        )
        .await
        .map(|_| ())
    }

    /// Has sshd begin anew, and waits until it listens: the one before may still greet for a moment.
    async fn reload_sshd(&self) -> Result<()> {
        let Some(init) = self.running().as_ref().map(|running| running.init) else { return Ok(()) };
        let file = self.file(disk::SSHD_PID)?;
        let written = || fs::metadata(&file).ok().map(|seen| (seen.ino(), seen.mtime(), seen.mtime_nsec()));
        let before = written();
        let init = rustix::process::Pid::from_raw(i32::try_from(init)?).context("process 0")?;
        rustix::process::kill_process(init, rustix::process::Signal::HUP)?;
        wait::until("sshd is back", BOOT, async || Ok(written().filter(|now| Some(*now) != before).map(drop)))
            .await
    }

    /// Deletes a program from its disk for good. Without bash the accounts get `sh` as their login shell.
    pub async fn remove_program(&self, name: &str) -> Result<()> {
        let shells = if name == "bash" { "sed -i s,/bin/bash$,/bin/sh, /etc/passwd;" } else { "" };
        let places = "/usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin";
        let command =
            format!("{shells} for folder in {places}; do rm -f $folder/{name}; done; ! command -v {name}");
        self.exec_root(&command).await.map(|_| ())
    }

    /// The machine's ids of its processes that run a program whose file's name begins so.
    pub fn processes(&self, program: &str) -> Result<Vec<u32>> {
        let all = self.cgroup()?.processes()?;
        let is_wanted = |id: &u32| {
            // One that has ended meanwhile is not there. By its file: one may have called itself anything.
            let file = fs::read_link(format!("/proc/{id}/exe")).unwrap_or_default();
            file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(program))
        };
        Ok(all.into_iter().filter(is_wanted).collect())
    }

    fn cgroup(&self) -> Result<Arc<Cgroup>> {
        let running = self.running();
        let cgroup = running.as_ref().context("the host is off")?.cgroup.as_ref();
        cgroup.cloned().context("without root a host has no cgroup")
    }

    /// A file of sshd: on the host's disk, or in its folder without root.
    fn file(&self, name: &str) -> Result<PathBuf> {
        if self.disk.is_some() {
            return Ok(self.disk().join(name));
        }
        Ok(self.dir.join(Path::new(name).file_name().context("a file's name")?))
    }

    async fn write_sshd_files(&self, spec: &HostSpec) -> Result<()> {
        let key = self.file(disk::HOST_KEY)?;
        // A disk that had another host before keeps its key.
        if !key.exists() {
            sshd::generate_key(&key, &self.name).await?;
        }
        let authorized = match spec.takes_client_key {
            true => fs::read_to_string(self.bed.client_key.with_extension("pub"))?,
            false => String::new(),
        };
        fs::write(self.file(disk::AUTHORIZED_KEYS)?, authorized)?;
        self.write_sshd_config(spec)
    }

    fn write_sshd_config(&self, spec: &HostSpec) -> Result<()> {
        // Paths as the host sees them.
        let inside = |name: &str, outside: &Path| match self.disk {
            Some(_) => Path::new("/").join(name),
            None => outside.to_owned(),
        };
        let config = sshd::config(
            self.behind,
            &inside(disk::HOST_KEY, &self.file(disk::HOST_KEY)?),
            &inside(disk::AUTHORIZED_KEYS, &self.file(disk::AUTHORIZED_KEYS)?),
            self.disk.as_ref().map(|_| Path::new("/").join(disk::PUSHED_KEYS)).as_deref(),
            &inside(disk::SSHD_PID, &self.file(disk::SSHD_PID)?),
            spec,
        );
        Ok(fs::write(self.file(disk::SSHD_CONFIG)?, config)?)
    }

    fn boot_command(&self, cgroup: Option<&Cgroup>) -> Result<std::process::Command> {
        let log = fs::File::create(self.dir.join("boot.log"))?;
        let mut command = match (cgroup, &self.disk) {
            (Some(cgroup), Some(disk)) => {
                let mut command = process::bound_command("sh");
                command
                    .arg(tools::sources().join("hosts/boot.sh"))
                    .arg("enter")
                    .args([cgroup.path(), cgroup.pids().unwrap_or(Path::new(""))])
                    .args([disk.path(), Path::new(&self.name), &self.bed.sshd])
                    .env_clear()
                    .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
                command
            }
            (None, _) | (_, None) => {
                let mut command = process::bound_command(&self.bed.sshd);
                command.arg("-D").arg("-f").arg(self.file(disk::SSHD_CONFIG)?);
                command.arg("-E").arg(self.dir.join("sshd.log"));
                command
            }
        };
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    fn boot_log(&self) -> String {
        let inside = self.disk.as_ref().map(|disk| disk.upper().join("var/log/sshd.log"));
        let logs = [self.dir.join("boot.log"), self.dir.join("sshd.log")].into_iter().chain(inside);
        logs.filter_map(|log| fs::read_to_string(log).ok()).collect()
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first process of a new process space is the only child of the `unshare` that made it.
fn first_child(unshare: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
    let child = children.split_whitespace().next().context("the host has no first process")?;
    Ok(child.parse()?)
}

/// Runs a command to its end, which may be a failure.
pub async fn run(command: &mut Command) -> Result<Output> {
    let shown = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    tokio::time::timeout(COMMAND, output)
        .await
        .with_context(|| format!("no end after {COMMAND:?}: {shown}"))?
        .with_context(|| format!("failed to run {shown}"))
}
