//! Looks at the cloud again and again, and carries out what the plan says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::task::JoinSet;

use super::super::hosts::{HostSpec, Hosts};
use super::deeds::{Boot, Deed, Local, Plan, Power};
use super::machine::Machine;
use super::plan::plan;
use super::state::{AttachmentState, Lab, State};
use super::store::Store;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// After a deed that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How often a volume is copied until nobody writes to it meanwhile; the second half with its machine frozen.
const COPIES: u32 = 10;

/// What the follower works on.
pub struct Core {
    pub lab: Lab,
    pub hosts: Hosts,
    pub store: Store,
    pub instances: PathBuf,
    /// What a boot takes when it is more than it really does.
    pub late: Mutex<Duration>,
    /// Taken for the length of a look-up, never across an await.
    pub machines: Mutex<BTreeMap<String, Arc<Machine>>>,
    /// What does not work now, by the first thing it touches.
    pub troubles: Mutex<BTreeMap<String, String>>,
}

/// Follows the cloud for as long as this is polled; the deeds it has begun live as long. Runs in a [`LocalSet`].
///
/// [`LocalSet`]: tokio::task::LocalSet
pub async fn follow(core: Arc<Core>) {
    let mut busy = BTreeSet::new();
    let mut deeds = JoinSet::new();
    loop {
        match core.look(&busy).await {
            Ok(plan) => {
                core.no_trouble(CLOUD);
                for deed in plan.deeds {
                    busy.extend(deed.touches().into_iter().map(str::to_owned));
                    deeds.spawn_local(Arc::clone(&core).carry_out(deed));
                }
            }
            // A cloud that is down takes nobody's machine away.
            Err(error) => core.trouble(CLOUD, &error),
        }
        let mut done = tokio::select! {
            () = tokio::time::sleep(PAUSE) => None,
            Some(done) = deeds.join_next() => Some(done),
        };
        while let Some(ended) = done {
            match ended {
                Ok(deed) => busy.retain(|id| !deed.touches().contains(&id.as_str())),
                Err(error) => eprintln!("a deed of the machines died: {error}"),
            }
            done = deeds.try_join_next();
        }
    }
}

/// What the cloud's own troubles go by.
const CLOUD: &str = "the cloud";

impl Core {
    async fn look(&self, busy: &BTreeSet<String>) -> Result<Plan> {
        let state = self.lab.state().await?;
        let plan = plan(&state, &self.local(&state, busy)?);
        for stranger in &plan.strangers {
            let network = self.hosts.subnet();
            self.trouble(
                stranger,
                &anyhow!("its address is not in 127.77.{network}.0/24: nothing follows it"),
            );
        }
        if !plan.ack.is_empty() {
            self.lab.acknowledge(&plan.ack).await?;
        }
        Ok(plan)
    }

    fn local(&self, state: &State, busy: &BTreeSet<String>) -> Result<Local> {
        let attachments = state.instances.iter().flat_map(|instance| &instance.volumes);
        let leaving: BTreeSet<_> = attachments
            .filter(|attachment| attachment.state == AttachmentState::Detaching)
            .map(|attachment| attachment.id.as_str())
            .collect();
        let mut machines = BTreeMap::new();
        for (id, machine) in self.machines().iter() {
            machines.insert(id.clone(), machine.look(|volume| leaving.contains(volume))?);
        }
        Ok(Local {
            subnet: self.hosts.subnet(),
            machines,
            volumes: self.store.volumes()?,
            snapshots: self.store.snapshots()?,
            busy: busy.clone(),
        })
    }

    /// Gives the deed back, so that what it touched is free again.
    async fn carry_out(self: Arc<Self>, deed: Deed) -> Deed {
        let subject = deed.touches().first().copied().unwrap_or_default().to_owned();
        match self.try_to(&deed).await {
            Ok(()) => self.no_trouble(&subject),
            Err(error) => {
                self.trouble(&subject, &error.context(format!("{deed:?}")));
                tokio::time::sleep(RETRY).await;
            }
        }
        deed
    }

    async fn try_to(&self, deed: &Deed) -> Result<()> {
        match deed {
            Deed::MakeVolume { volume, blank } => self.store.make(volume, *blank),
            Deed::RestoreVolume { volume, snapshot, gib } => self.store.restore(volume, snapshot, *gib).await,
            Deed::DeleteVolume { volume } => self.store.delete_volume(volume),
            Deed::TakeSnapshot { snapshot, volume, holder } => {
                let holder = holder.as_ref().map(|holder| self.machine(holder)).transpose()?;
                self.take_snapshot(snapshot, volume, holder.as_deref()).await
            }
            Deed::CopySnapshot { snapshot, from } => self.store.copy_snapshot(snapshot, from).await,
            Deed::DeleteSnapshot { snapshot } => self.store.delete_snapshot(snapshot),
            Deed::Boot(boot) => {
                let machine = match self.machine(&boot.instance) {
                    Ok(machine) if machine.root() == boot.root => machine,
                    Ok(_) | Err(_) => self.build(boot).await?,
                };
                let late = *self.late.lock().unwrap_or_else(PoisonError::into_inner);
                machine.boot(boot, &self.lab.metadata_of(&boot.instance), &self.store, late).await
            }
            Deed::Kill { instance } => self.machine(instance)?.kill().await,
            Deed::Freeze { instance } => self.machine(instance)?.freeze().await,
            Deed::Thaw { instance } => self.machine(instance)?.thaw().await,
            Deed::Forget { instance } => {
                self.machines().remove(instance);
                Ok(fs::remove_dir_all(self.instances.join(instance))?)
            }
            Deed::Attach { instance, volume, device } => {
                self.machine(instance)?.attach(volume, device, &self.store.volume(volume)).await
            }
            Deed::Detach { instance, volume } => self.machine(instance)?.detach(volume).await,
            Deed::PullOut { instance, volume } => {
                if self.machine(instance)?.pull_out(volume).await? {
                    self.store.part_from(volume).await?;
                }
                Ok(())
            }
            Deed::SetKeys { instance, keys } => self.machine(instance)?.set_keys(keys.clone()),
        }
    }

    /// A machine that is off, with a root volume that has been another's perhaps.
    async fn build(&self, boot: &Boot) -> Result<Arc<Machine>> {
        let Boot { instance, address, has_key, root, .. } = boot;
        let disk = self.store.volume(root);
        ensure!(
            disk.is_dir(),
            "{instance} cannot boot from {root}: nothing was ever installed on that volume"
        );
        self.machines().remove(instance);
        let folder = self.instances.join(instance);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        let spec = HostSpec {
            address: Some(*address),
            disk: Some(disk),
            takes_client_key: *has_key,
            ..HostSpec::default()
        };
        let machine = Arc::new(Machine::new(self.hosts.create(instance, spec).await?, root));
        self.machines().insert(instance.clone(), Arc::clone(&machine));
        Ok(machine)
    }

    /// As the disk of a machine that lost its power at that moment: what was not written back is not in it.
    async fn take_snapshot(&self, snapshot: &str, volume: &str, holder: Option<&Machine>) -> Result<()> {
        let awake = holder.filter(|machine| matches!(machine.power(), Power::On(_)));
        let is_folder = awake.is_some_and(|machine| machine.root() == volume);
        for turn in 0..COPIES {
            let frozen = awake.filter(|_| is_folder || turn >= COPIES / 2);
            let frozen = frozen.filter(|machine| !machine.host().is_frozen());
            if let Some(machine) = frozen {
                machine.host().freeze().await?;
            }
            let taken = self.store.take(snapshot, volume).await;
            if let Some(machine) = frozen {
                machine.host().thaw().await?;
            }
            if taken? {
                return Ok(());
            }
        }
        bail!("{volume} was written to during each of {COPIES} copies")
    }

    pub fn machine(&self, id: &str) -> Result<Arc<Machine>> {
        self.machines().get(id).cloned().with_context(|| format!("there is no machine {id}"))
    }

    /// What does not work now with one of the cloud's things.
    pub fn trouble_of(&self, id: &str) -> Option<String> {
        let troubles = self.troubles();
        troubles.get(id).or_else(|| troubles.get(CLOUD)).cloned()
    }

    fn trouble(&self, subject: &str, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let before = self.troubles().insert(subject.to_owned(), text.clone());
        if before.as_ref() != Some(&text) {
            eprintln!("the machines have trouble with {subject}: {text}");
        }
    }

    fn no_trouble(&self, subject: &str) {
        self.troubles().remove(subject);
    }

    pub fn machines(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Machine>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
