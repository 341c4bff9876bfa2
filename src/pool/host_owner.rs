//! The pool as the keepers of its hosts see it: who may connect, how a host lets us in, where its key is recorded.

use std::sync::Arc;

use super::held::Held;
use super::status;
use crate::api::runner_pool::Authentication;
use crate::deed::Point;
use crate::fleet::carry;
use crate::host::keeper::Owner;
use crate::kube_ext::is_conflict;
use crate::provider::Change;

/// The pool as the keepers of its hosts see it.
pub(super) struct HostOwner {
    /// The pool.
    pub(super) held: Arc<Held>,
}

impl Owner for HostOwner {
    async fn acting(&self) {
        self.held.tenure.acting().await;
    }

    async fn let_in(&self, host: &str) -> Result<(), String> {
        let settings = self.held.settings().ok_or("the pool's settings are not known")?;
        if settings.spec.ssh.authentication != Authentication::InstanceConnect {
            return Ok(());
        }
        let cloud = self.held.fleet.cloud().ok_or("the cloud was not looked at yet")?;
        let facts = self.held.fleet.facts().ok_or("the cloud was not looked at yet")?;
        let instance = facts.instances.get(host).ok_or("the instance is not seen in the cloud")?;
        let key = settings.ssh_key.public_key().to_openssh().map_err(|error| error.to_string())?;
        let push = Change::PushKey {
            instance: host.to_owned(),
            zone: instance.zone.clone(),
            username: settings.spec.ssh.username.clone(),
            key,
        };
        carry::make(&self.held, cloud.as_ref(), &push).await.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn record_key(&self, host: &str, key: String) -> Result<(), String> {
        let _turn = self.held.status_turn.lock().await;
        loop {
            let pool = self.held.pool().ok_or("the pool is gone")?;
            let machines = self.held.machines();
            let address =
                &machines.iter().find(|known| known.name == host).ok_or("the host is gone")?.address;
            if !self.held.may_overwrite("RunnerPool", pool.status.as_ref().and_then(|status| status.epoch)) {
                return Err("a newer holder has written the pool's status".to_owned());
            }
            let mut next = pool.as_ref().clone();
            let status = next.status.get_or_insert_default();
            if !status::record_key(&mut status.hosts, host, address, &key)? {
                return Ok(());
            }
            let deed = self.held.deed(Point::HostKeyRecorded).await;
            match self.held.shared.pools.replace_status(deed, &next).await {
                Ok(_) => {
                    let note = format!("recorded the host key of {host} at the first connection: {key}");
                    self.held.shared.events.normal(pool.as_ref(), "HostKeyRecorded", "Connect", note).await;
                    return Ok(());
                }
                // The cache holds the newer version now.
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
