//! Machines that follow a cloud: each of its instances is a real host with an sshd, each of its volumes a real disk.
//!
//! What the cloud says comes about: an instance boots, stops, sleeps with its memory and ends; a volume is made, becomes
//! a block device of one instance, goes, is copied to a snapshot and back. The cloud is told when it has. May assume
//! root. Leaves no process, mount, loop device or cgroup behind, not even when the program is killed. Must never have
//! an opinion of its own about what should run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::cloud::Cloud;
use super::hosts::{Host, Hosts};
use super::{hosts, scratch, wait};

mod deeds;
mod follower;
pub mod loops;
mod machine;
mod plan;
pub mod state;
mod store;

use deeds::Power;
use follower::Core;
use machine::Machine;
use state::Lab;
use store::Store;

/// Until a machine is as the cloud has it: a boot, with the waits of the cloud itself.
const SOON: Duration = Duration::from_secs(60);
/// Until nothing of it is left, at the end.
const END: Duration = Duration::from_secs(10);

/// The machines of one cloud. Dropping it ends them.
pub struct Machines {
    dir: PathBuf,
    /// None while it is dropped.
    core: Option<Arc<Core>>,
    /// A thread that follows the cloud whatever a test does with its own, until its first half is dropped.
    follower: Option<(oneshot::Sender<Never>, JoinHandle<()>)>,
}

/// What is never sent.
enum Never {}

impl Machines {
    /// Follows a cloud, which waits for them from now on; disks lie in `dir`, which must not be on an overlay.
    pub async fn follow(cloud: &Cloud, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        loops::remove_orphans(&scratch::parent()).await?;
        let instances = dir.join("instances");
        let hosts = Hosts::new(&instances).await?;
        ensure!(hosts.are_isolated(), "machines of a cloud take root");
        let lab = Lab::new(cloud.endpoint())?;
        cloud.config(json!({ "followed": true })).await?;
        let core = Arc::new(Core {
            lab,
            hosts,
            store: Store::open(&dir)?,
            instances,
            late: Mutex::new(Duration::ZERO),
            machines: Mutex::new(BTreeMap::new()),
            troubles: Mutex::new(BTreeMap::new()),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (keep, dropped) = oneshot::channel::<Never>();
        let following = Arc::clone(&core);
        let follower = std::thread::Builder::new().name("machines".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    _ = dropped => {}
                    () = follower::follow(following) => {}
                }
            });
        })?;
        Ok(Self { dir, core: Some(core), follower: Some((keep, follower)) })
    }

    /// The number for the cloud's network: they follow instances in 127.77.N.0/24 only.
    pub fn subnet(&self) -> Result<u8> {
        Ok(self.core()?.hosts.subnet())
    }

    /// The private key that opens every account of a machine whose instance was launched with a key pair, whatever its
    /// name (OpenSSH, ed25519, no passphrase).
    pub fn client_key(&self) -> Result<&Path> {
        Ok(self.core()?.hosts.client_key())
    }

    /// Its public half, as the cloud is to know it.
    pub fn public_key(&self) -> Result<String> {
        let line = std::fs::read_to_string(self.client_key()?.with_extension("pub"))?;
        Ok(line.trim().to_owned())
    }

    /// The machine of an instance, on or off: to log in, to cut its line, to look at its disk. It is another one when the
    /// instance has got another root volume.
    pub fn machine(&self, id: &str) -> Result<Arc<Host>> {
        Ok(Arc::clone(self.core()?.machine(id)?.host()))
    }

    /// The file or folder that is a volume.
    pub fn volume(&self, id: &str) -> Result<PathBuf> {
        Ok(self.core()?.store.volume(id))
    }

    /// The file or folder that is a snapshot.
    pub fn snapshot(&self, id: &str) -> Result<PathBuf> {
        Ok(self.core()?.store.snapshot(id))
    }

    /// Lets boots from now on take so long after the cloud says that the instance runs, as real ones do: until then
    /// connections are refused.
    pub fn boot_late(&self, by: Duration) -> Result<()> {
        *self.core()?.late.lock().unwrap_or_else(PoisonError::into_inner) = by;
        Ok(())
    }

    /// Waits until an instance runs and can be logged in to.
    pub async fn running(&self, id: &str) -> Result<Arc<Host>> {
        self.until(id, "runs", |machine| machine.is_some_and(Machine::is_reachable)).await?;
        self.machine(id)
    }

    /// Waits until an instance is off, its disks at rest.
    pub async fn off(&self, id: &str) -> Result<()> {
        self.until(id, "is off", |machine| has_power(machine, |power| power == Power::Off)).await
    }

    /// Waits until an instance is frozen with its memory.
    pub async fn asleep(&self, id: &str) -> Result<()> {
        self.until(id, "sleeps", |machine| has_power(machine, |power| matches!(power, Power::Asleep(_))))
            .await
    }

    /// Waits until nothing is left of an instance but volumes.
    pub async fn gone(&self, id: &str) -> Result<()> {
        self.until(id, "is gone", |machine| machine.is_none()).await
    }

    /// What does not work now with an instance, a volume or a snapshot.
    pub fn trouble_of(&self, id: &str) -> Result<Option<String>> {
        Ok(self.core()?.trouble_of(id))
    }

    async fn until(&self, id: &str, what: &str, is_so: impl Fn(Option<&Machine>) -> bool) -> Result<()> {
        let core = self.core()?;
        wait::until(&format!("{id} {what}"), SOON, async || {
            if is_so(core.machine(id).ok().as_deref()) {
                return Ok(Some(()));
            }
            core.trouble_of(id).map_or(Ok(None), |trouble| Err(anyhow!(trouble)))
        })
        .await
    }

    fn core(&self) -> Result<&Arc<Core>> {
        self.core.as_ref().context("the machines are being taken down")
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if let Some((keep, follower)) = self.follower.take() {
            drop(keep);
            if follower.join().is_err() {
                eprintln!("the machines' follower had panicked");
            }
        }
        if let Some(core) = self.core.take() {
            // A test may still hold hosts of them.
            core.machines().values().for_each(|machine| machine.pull_the_plug());
        }
        let deadline = Instant::now() + END;
        while !loops::devices_below(&self.dir).is_ok_and(|devices| devices.is_empty()) {
            if Instant::now() > deadline {
                eprintln!("left for the next bed: loop devices of {}", self.dir.display());
                return;
            }
            if let Err(error) = loops::detach_below(&self.dir) {
                eprintln!("failed to detach loop devices of {}: {error:#}", self.dir.display());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn has_power(machine: Option<&Machine>, is_so: impl Fn(Power) -> bool) -> bool {
    machine.is_some_and(|machine| is_so(machine.power()))
}

/// Runs a command to its success.
async fn run(command: &mut Command) -> Result<String> {
    let output = hosts::run(command).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}: {}", command.as_std(), output.status, errors.trim());
    Ok(String::from_utf8(output.stdout)?)
}
