//! Orphans: what carries the pool's tags in its cloud and no object owns. Marked, unmarked, deleted; or, where its tags
//! say of which environment it is, given an object again: a cluster that was restored from a backup has forgotten it, and
//! an environment survives everything but its own TTL.
//!
//! Writes of an adoption: (1) the object from the tags, (2) its status. Death between them: the object is seen without a
//! status and with a mark of its adoption, is left alone, and the next sweep writes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;

use super::StepError;
use crate::api::key::EnvironmentKey;
use crate::api::suspended_environment::{Phase, SnapshotStatus, Tier, VolumeStatus, object_name};
use crate::api::{SuspendedEnvironment, labels};
use crate::clock;
use crate::deed::Point;
use crate::fleet::carry;
use crate::fleet::facts::{Facts, slot_at};
use crate::fleet::orphans::{Kind, Known, Orphan, Step};
use crate::pool::Held;
use crate::provider::tags::{self, AdoptedEnvironment};
use crate::provider::{Change, Cloud, Volume};

/// What the pool's objects own.
pub fn known(held: &Held, is_synced: bool) -> Known {
    let environments = held.environments();
    let mut known = Known {
        cluster: held.shared.cluster_id.clone(),
        pool: held.uid.clone(),
        is_synced,
        ..Known::default()
    };
    for environment in &environments {
        let status = environment.status.clone().unwrap_or_default();
        // Nobody's yet: the sweep comes back to what it is adopted from, and writes the rest.
        if environment.is_half_adopted() {
            continue;
        }
        known.environments.insert(environment.spec.environment_id.clone());
        known.instances.extend(environment.place().map(|(instance, _)| instance.to_owned()));
        known.volumes.extend(status.volume.map(|volume| volume.id));
        known.snapshots.extend(status.snapshot.map(|snapshot| snapshot.id));
    }
    for lease in held.leases().iter().filter(|lease| lease.phase().is_open()) {
        known.instances.extend(lease.place().map(|(instance, _)| instance.to_owned()));
        // Its environment may be about to get its object.
        known.environments.insert(lease.spec.environment_id.clone());
    }
    known
}

/// Does what is due for one orphan.
pub async fn deal_with(held: &Arc<Held>, cloud: &dyn Cloud, orphan: &Orphan) {
    let ids = vec![orphan.id.clone()];
    let change = match (&orphan.step, orphan.kind) {
        (Step::Mark { at }, _) => {
            let tags = BTreeMap::from([(tags::ORPHANED_AT.to_owned(), at.to_string())]);
            Change::Tag { ids, tags }
        }
        (Step::Unmark, _) => Change::Untag { ids, keys: vec![tags::ORPHANED_AT.to_owned()] },
        (Step::Delete, Kind::Instance) => Change::Terminate { instance: orphan.id.clone() },
        (Step::Delete, Kind::Volume) => Change::DeleteVolume { volume: orphan.id.clone() },
        (Step::Delete, Kind::Snapshot) => Change::DeleteSnapshot { snapshot: orphan.id.clone() },
        (Step::Adopt { environment }, _) => {
            match adopt(held, orphan).await {
                Ok(true) => tracing::warn!(pool = held.name, environment, id = orphan.id, "adopted"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(pool = held.name, environment, id = orphan.id, %error, "not adopted");
                }
            }
            return;
        }
    };
    let is_deletion = orphan.step == Step::Delete;
    let done = carry::make(held, cloud, &change).await;
    held.fleet.touch(&orphan.id, clock::now());
    if let (Ok(_), true, Some(pool)) = (done, is_deletion, held.pool()) {
        held.shared.metrics.orphan_deleted(&held.name);
        let note = format!("{} carried this pool's tags and no object knew it: deleted", orphan.id);
        held.shared.events.warning(pool.as_ref(), "OrphanDeleted", "Sweep", note).await;
    }
}

/// Gives an environment its object again; whether that was needed and could be done.
async fn adopt(held: &Held, orphan: &Orphan) -> Result<bool, StepError> {
    let Some(facts) = held.fleet.facts() else { return Ok(false) };
    let Some(settings) = held.settings() else { return Ok(false) };
    let Some(found) = tags_of(&facts, orphan) else { return Ok(false) };
    let adopted = match tags::read_environment(found) {
        Ok(adopted) => adopted,
        Err(error) => {
            if let Some(pool) = held.pool() {
                let note = format!("{}: {error}", orphan.id);
                held.shared.events.warning(pool.as_ref(), "NotAdoptable", "Sweep", note).await;
            }
            return Ok(false);
        }
    };
    let name = object_name(&held.name, &adopted.spec.environment_id);
    // Two watches may lag by different times: the API server itself says whether there is an object.
    if held
        .shared
        .environments
        .read(&held.namespace, &name)
        .await?
        .is_some_and(|known| known.status.is_some())
    {
        return Ok(false);
    }
    let wanted = object(held, &name, &adopted, &orphan.id);
    // (1)
    let deed = held.deed(Point::EnvironmentAdopted).await;
    let (created, _) = held.shared.environments.create(deed, &held.namespace, &wanted).await?;
    // (2)
    let mut next = created.as_ref().clone();
    let key = EnvironmentKey {
        runner_id: settings.identity.runner_id,
        system_id: settings.identity.system_id.clone(),
        environment: adopted.spec.environment_id.parse().map_err(|_| StepError::Away)?,
    };
    let status = next.status.get_or_insert_default();
    status.phase = Some(Phase::Suspended);
    status.revision = adopted.revision;
    status.environment_key = Some(key.to_string());
    status.suspended_at = Some(Time(clock::now()));
    match orphan.kind {
        Kind::Instance => {
            status.tier = Some(Tier::Stopped);
            status.instance = Some(orphan.id.clone());
            status.slot = Some(adopted.slot);
        }
        Kind::Volume => {
            let volume = facts.volumes.get(&orphan.id);
            match volume.and_then(|volume| sleeps_on(&facts, volume)) {
                Some((instance, slot)) => {
                    status.tier = Some(Tier::Stopped);
                    status.instance = Some(instance);
                    status.slot = Some(slot);
                }
                None => {
                    status.tier = Some(Tier::Detached);
                    status.processes = Some(0);
                }
            }
            status.volume = volume.map(|volume| VolumeStatus {
                id: volume.id.clone(),
                zone: volume.zone.clone(),
                size_gib: volume.size_gib,
            });
        }
        Kind::Snapshot => {
            status.tier = Some(Tier::Snapshotted);
            status.processes = Some(0);
            status.snapshot = facts.snapshots.get(&orphan.id).map(|snapshot| SnapshotStatus {
                id: snapshot.id.clone(),
                revision: adopted.revision,
                size_gib: snapshot.size_gib,
            });
        }
    }
    let deed = held.deed(Point::AdoptionTold).await;
    let written = held.shared.environments.replace_status(deed, &next).await?;
    let note = format!("its object was gone; it was made again from the tags of {}", orphan.id);
    held.shared.events.warning(written.as_ref(), "Adopted", "Sweep", note).await;
    Ok(true)
}

/// The instance and slot that an environment sleeps in whose volume is attached.
fn sleeps_on(facts: &Facts, volume: &Volume) -> Option<(String, u32)> {
    let attachment = volume.attachment.as_ref()?;
    let instance = facts.instances.get(&attachment.instance).filter(|instance| !instance.state.is_gone())?;
    Some((instance.id.clone(), slot_at(&attachment.device)?))
}

fn tags_of<'a>(facts: &'a Facts, orphan: &Orphan) -> Option<&'a BTreeMap<String, String>> {
    match orphan.kind {
        Kind::Instance => facts.instances.get(&orphan.id).map(|known| &known.tags),
        Kind::Volume => facts.volumes.get(&orphan.id).map(|known| &known.tags),
        Kind::Snapshot => facts.snapshots.get(&orphan.id).map(|known| &known.tags),
    }
}

fn object(held: &Held, name: &str, adopted: &AdoptedEnvironment, from: &str) -> SuspendedEnvironment {
    let spec = adopted.spec.clone();
    let labels = BTreeMap::from([
        (labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned()),
        (labels::POOL.to_owned(), held.name.clone()),
        (labels::PROJECT_ID.to_owned(), spec.origin.project_id.to_string()),
        (labels::JOB_ID.to_owned(), spec.origin.job_id.to_string()),
        (labels::ENVIRONMENT_ID.to_owned(), spec.environment_id.clone()),
    ]);
    SuspendedEnvironment {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(held.namespace.clone()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(labels::ADOPTED_FROM.to_owned(), from.to_owned())])),
            finalizers: Some(vec![labels::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}
