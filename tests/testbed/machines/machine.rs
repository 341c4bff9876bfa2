//! One machine that follows an instance: a host, with the cloud's volumes as its devices.
//!
//! Only one deed at a time changes it, which the plan sees to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::AbortHandle;

use super::super::hosts::{Host, Line, disk};
use super::deeds::{self, Boot, Held, Keys, Power};
use super::loops::LoopDevice;
use super::store::Store;

/// Where an instance reads where its metadata is, on its disk.
pub const METADATA: &str = "etc/dormouse/metadata";

/// A machine, on or off.
pub struct Machine {
    host: Arc<Host>,
    root: String,
    inside: Mutex<Inside>,
}

struct Inside {
    power: Power,
    /// Whether its network is up.
    is_reachable: bool,
    /// What is about to bring that up.
    rise: Option<AbortHandle>,
    attached: BTreeMap<String, Attached>,
    keys: Keys,
}

/// A volume that is a device on the machine.
struct Attached {
    device: LoopDevice,
    /// The name that was asked for.
    asked: String,
    /// What it is called in there: as was asked for, and by its id.
    names: [String; 2],
}

impl Machine {
    /// One that is off.
    pub fn new(host: Host, root: &str) -> Self {
        let inside = Inside {
            power: Power::Off,
            is_reachable: false,
            rise: None,
            attached: BTreeMap::new(),
            keys: Keys::new(),
        };
        Self { host: Arc::new(host), root: root.to_owned(), inside: Mutex::new(inside) }
    }

    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub fn root(&self) -> &str {
        &self.root
    }

    pub fn power(&self) -> Power {
        self.inside().power
    }

    /// Whether it runs and its network is up.
    pub fn is_reachable(&self) -> bool {
        self.inside().is_reachable
    }

    /// What the plan needs to know of it; `asks` says of which volumes whether they are in use.
    pub fn look(&self, asks: impl Fn(&str) -> bool) -> Result<deeds::Machine> {
        let inside = self.inside();
        let mut attached = BTreeMap::new();
        for (volume, known) in &inside.attached {
            // Asking has the device for itself for a moment, so a mount at that very time would fail.
            let is_in_use = asks(volume) && known.device.is_in_use()?;
            attached.insert(volume.clone(), Held { device: known.asked.clone(), is_in_use });
        }
        let (power, keys) = (inside.power, inside.keys.clone());
        Ok(deeds::Machine { power, root: self.root.clone(), attached, keys })
    }

    /// Boots it with its volumes; its network comes up `late` after that. Runs in a `LocalSet`.
    pub async fn boot(
        self: &Arc<Self>,
        boot: &Boot,
        metadata: &str,
        store: &Store,
        late: Duration,
    ) -> Result<()> {
        let booted = async {
            self.write_metadata(metadata)?;
            self.write_keys(&Keys::new())?;
            self.host.power_on().await?;
            for (volume, device) in &boot.volumes {
                self.attach(volume, device, &store.volume(volume)).await?;
            }
            match late.is_zero() {
                true => self.connect().await,
                false => {
                    self.connect_after(late);
                    Ok(())
                }
            }
        }
        .await;
        match booted {
            Ok(()) => {
                self.inside().power = Power::On(boot.number);
                Ok(())
            }
            Err(error) => {
                self.kill().await.with_context(|| format!("after {error:#}"))?;
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<()> {
        self.host.heal().await?;
        self.inside().is_reachable = true;
        Ok(())
    }

    fn connect_after(self: &Arc<Self>, late: Duration) {
        let machine = Arc::clone(self);
        let rise = tokio::task::spawn_local(async move {
            tokio::time::sleep(late).await;
            if let Err(error) = machine.connect().await {
                eprintln!("{} does not come up: {error:#}", machine.host.name());
            }
        });
        self.inside().rise = Some(rise.abort_handle());
    }

    async fn disconnect(&self) -> Result<()> {
        if let Some(rise) = self.inside().rise.take() {
            rise.abort();
        }
        self.inside().is_reachable = false;
        self.host.cut(Line::Refused).await
    }

    /// Ends its processes and gives its devices back.
    pub async fn kill(&self) -> Result<()> {
        self.disconnect().await?;
        self.host.stop().await?;
        let attached = std::mem::take(&mut self.inside().attached);
        for mut gone in attached.into_values() {
            gone.device.release().await?;
        }
        let mut inside = self.inside();
        inside.power = Power::Off;
        inside.keys = Keys::new();
        Ok(())
    }

    /// The same at once and for good, for one who cannot wait.
    pub fn pull_the_plug(&self) {
        self.host.pull_the_plug();
        self.inside().attached.clear();
    }

    /// Keeps its processes where they are; nothing of its connections survives that.
    pub async fn freeze(&self) -> Result<()> {
        self.disconnect().await?;
        self.host.freeze().await?;
        let mut inside = self.inside();
        if let Power::On(boot) = inside.power {
            inside.power = Power::Asleep(boot);
        }
        Ok(())
    }

    /// Lets it go on.
    pub async fn thaw(&self) -> Result<()> {
        self.host.thaw().await?;
        self.connect().await?;
        let mut inside = self.inside();
        if let Power::Asleep(boot) = inside.power {
            inside.power = Power::On(boot);
        }
        Ok(())
    }

    /// Makes a volume's file a device under the name that was asked for, and under that of its id.
    pub async fn attach(&self, volume: &str, asked: &str, file: &Path) -> Result<()> {
        let name = asked.strip_prefix("/dev/").unwrap_or(asked);
        ensure!(
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "'{name}' is no name of a device"
        );
        let device = LoopDevice::of(file).await?;
        let (major, minor) = device.numbers()?;
        let names = [format!("/dev/{name}"), link(volume)];
        let [by_name, by_id] = &names;
        let command = format!(
            "set -e; mkdir -p /dev/disk/by-id; rm -f {by_name} {by_id}
             mknod -m 660 {by_name} b {major} {minor}; ln -s ../../{name} {by_id}"
        );
        self.host.exec_root(&command).await?;
        self.inside().attached.insert(volume.to_owned(), Attached { device, asked: asked.to_owned(), names });
        Ok(())
    }

    /// Takes a device that nobody uses away.
    pub async fn detach(&self, volume: &str) -> Result<()> {
        let mut gone = self.take(volume)?;
        let detached = async {
            self.forget_names(&gone).await?;
            gone.device.release().await
        }
        .await;
        if detached.is_err() {
            // Somebody has it open. It stays ours to take away.
            self.inside().attached.insert(volume.to_owned(), gone);
        }
        detached
    }

    /// Pulls a device out: a file system on it fails from now on, and what was not written back is lost. Says whether
    /// somebody has its file still.
    pub async fn pull_out(&self, volume: &str) -> Result<bool> {
        let mut gone = self.take(volume)?;
        self.forget_names(&gone).await?;
        if gone.device.is_in_use()? {
            let (major, minor) = gone.device.numbers()?;
            self.host.exec_root(&format!("python3 -c '{SHUT_DOWN}' {major}:{minor}")).await?;
        }
        gone.device.let_go();
        gone.device.is_there()
    }

    fn take(&self, volume: &str) -> Result<Attached> {
        let attached = self.inside().attached.remove(volume);
        attached.with_context(|| format!("{volume} is not attached to {}", self.host.name()))
    }

    async fn forget_names(&self, gone: &Attached) -> Result<()> {
        self.host.exec_root(&format!("rm -f {}", gone.names.join(" "))).await.map(|_| ())
    }

    /// Lets these keys, besides the bed's, log in.
    pub fn set_keys(&self, keys: Keys) -> Result<()> {
        self.write_keys(&keys)?;
        self.inside().keys = keys;
        Ok(())
    }

    fn write_keys(&self, keys: &Keys) -> Result<()> {
        let folder = self.host.disk().join(disk::PUSHED_KEYS);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir(&folder)?;
        for (user, keys) in keys {
            ensure!(!user.contains('/') && !user.starts_with('.'), "'{user}' is no name of an account");
            fs::write(folder.join(user), keys.join("\n") + "\n")?;
        }
        Ok(())
    }

    fn write_metadata(&self, url: &str) -> Result<()> {
        let file = self.host.disk().join(METADATA);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&file, format!("{url}\n"))?;
        let mut permissions = fs::metadata(&file)?.permissions();
        permissions.set_readonly(true);
        Ok(fs::set_permissions(&file, permissions)?)
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name under which a volume is found whatever its device is called.
fn link(volume: &str) -> String {
    format!("/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{}", volume.replace('-', ""))
}

/// Ends the file system on a device without writing anything back; ext4 and xfs have the same call for that.
const SHUT_DOWN: &str = r#"
import fcntl, os, struct, sys
for line in open("/proc/self/mountinfo"):
    fields = line.split()
    if fields[2] == sys.argv[1]:
        place = os.open(fields[4].encode().decode("unicode_escape"), os.O_RDONLY)
        fcntl.ioctl(place, 0x8004587D, struct.pack("I", 2))
        break
"#;
