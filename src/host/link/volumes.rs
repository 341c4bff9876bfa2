//! The verbs by which an environment leaves its host and comes to another one, and those around an instance's end.
//!
//! Each can be called again after its answer was lost: what is done already is answered as done.

use std::sync::PoisonError;

use bytes::Bytes;

use super::{Link, LinkError, quote};
use crate::deed::Deed;
use crate::spool::export::EnvironmentExport;
use crate::spool::order::Isolation;
use crate::spool::record::EnvironmentRecord;
use crate::spool::verb::{Answer, Notices, Unmounted, Volume};

/// A workspace volume and the slot it belongs into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOrder {
    /// The slot.
    pub slot: u32,
    /// The cloud's id of the volume, `vol-…`.
    pub volume: String,
    /// The pool's folder of workspaces, as its spec names it; the volume is mounted at the slot's folder in it.
    pub builds_dir: String,
    /// The device name it was attached by, for instances on which a volume cannot be found by its id.
    pub device: Option<String>,
    /// How the pool keeps slots apart: whose the files on the volume are to be.
    pub isolation: Isolation,
}

impl Link {
    /// Mounts an attached volume at its slot: formats it if it is blank, grows its file system to the volume's size,
    /// gives its files to the slot's user. Refused with `NotFound` while the device has not appeared.
    ///
    /// # Errors
    /// See [`LinkError`]; so with every verb below.
    pub async fn volume_mount(&self, deed: Deed, order: &VolumeOrder) -> Result<Volume, LinkError> {
        let device = order.device.as_deref();
        let device = device.map_or_else(String::new, |device| format!(" --device {}", quote(device)));
        let place = self.place(order.slot, &order.builds_dir);
        let (volume, isolation) = (quote(&order.volume), order.isolation.word());
        let arguments = format!("{place} --volume {volume} --isolation {isolation}{device}");
        deed.make(self.call("volume-mount", &arguments, Bytes::new()), |answer| match answer? {
            Answer::Volume(volume) => {
                self.mounted(order.slot, Some(&order.volume));
                Ok(volume)
            }
            _ => Err(LinkError::Answer { verb: "volume-mount" }),
        })
        .await
    }

    /// Writes a slot's volume out and unmounts it, so that it can be detached. Processes of the environment that
    /// sleeps in the slot are ended if they use it; a slot whose environment is awake is refused with `InUse`.
    pub async fn volume_unmount(
        &self,
        deed: Deed,
        slot: u32,
        builds_dir: &str,
    ) -> Result<Unmounted, LinkError> {
        let arguments = self.place(slot, builds_dir);
        deed.make(self.call("volume-unmount", &arguments, Bytes::new()), |answer| match answer? {
            Answer::Unmounted(unmounted) => {
                self.mounted(slot, None);
                Ok(unmounted)
            }
            _ => Err(LinkError::Answer { verb: "volume-unmount" }),
        })
        .await
    }

    /// What the host knows of an environment that sleeps there: all that its next host needs besides the workspace.
    pub async fn export(&self, environment: &str) -> Result<EnvironmentExport, LinkError> {
        let arguments = format!("--environment {}", quote(environment));
        match self.call("export", &arguments, Bytes::new()).await? {
            Answer::Exported(export) => Ok(*export),
            _ => Err(LinkError::Answer { verb: "export" }),
        }
    }

    /// Makes an exported environment sleep on this host, in a slot whose volume is mounted and carries its workspace.
    pub async fn import(
        &self,
        deed: Deed,
        slot: u32,
        builds_dir: &str,
        export: &EnvironmentExport,
    ) -> Result<EnvironmentRecord, LinkError> {
        let arguments = self.place(slot, builds_dir);
        let stdin = Bytes::from(serde_json::to_vec(export).map_err(LinkError::Order)?);
        deed.make(self.call("import", &arguments, stdin), |answer| match answer? {
            Answer::Environment(record) => Ok(*record),
            _ => Err(LinkError::Answer { verb: "import" }),
        })
        .await
    }

    /// Forgets an environment on this host and ends its processes; its workspace stays as it is, on its volume.
    pub async fn leave(&self, deed: Deed, environment: &str) -> Result<(), LinkError> {
        let leaving = self.done_verb("leave", format!("--environment {}", quote(environment)));
        deed.make(leaving, |done| done).await
    }

    /// Has everything written to disks, before the instance is stopped.
    pub async fn quiesce(&self, deed: Deed) -> Result<(), LinkError> {
        deed.make(self.done_verb("quiesce", String::new()), |done| done).await
    }

    /// What the cloud has announced about the instance.
    pub async fn notices(&self) -> Result<Notices, LinkError> {
        match self.call("notices", "", Bytes::new()).await? {
            Answer::Notices(notices) => Ok(notices),
            _ => Err(LinkError::Answer { verb: "notices" }),
        }
    }

    fn mounted(&self, slot: u32, volume: Option<&str>) {
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        match volume {
            Some(volume) => mounts.insert(slot, volume.to_owned()),
            None => mounts.remove(&slot),
        };
    }

    fn place(&self, slot: u32, builds_dir: &str) -> String {
        format!("--slot {slot} --builds-dir {}", quote(&self.absolute(builds_dir)))
    }
}
