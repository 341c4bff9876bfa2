//! `promote-baseline`: what a sleeping environment's workspace holds becomes what fresh slots of its pool begin with.
//!
//! A verb of a person's, not of the operator: it runs once, with that person's rights. The environment keeps its own
//! snapshot; the baseline is a copy, so that neither a resume, nor an expiry, nor the end of the pool takes it away.
//!
//! Writes: (1) the copy, which says from birth of what it is a copy and for which pool, (2) the pool's spec, once the
//! copy is complete. Death after (1): the next run finds the copy by its tags and goes on. Nothing is ever deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};

use crate::api::suspended_environment::{Phase, Tier};
use crate::api::{RunnerPool, SuspendedEnvironment};
use crate::app;
use crate::pool::settings::{self, SettingsError};
use crate::provider::aws::AwsCloud;
use crate::provider::{Cloud, CloudError, Snapshot, SnapshotState, Wanted, tags};
use crate::telemetry::Metrics;

/// How often the copy is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Who writes the pool's spec, for `managedFields`.
const WRITER: &str = "dormouse-promote-baseline";

/// Why nothing was promoted. Each can be run again.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// The environment or its pool is not such that it can be.
    #[error("{0}")]
    Refused(String),
    /// Kubernetes refused or could not be asked.
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The pool's credentials cannot be read.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The cloud refused or could not be asked.
    #[error("the cloud: {}", .0.with_way_out())]
    Cloud(#[from] CloudError),
    /// Something else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// What was promoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promoted {
    /// The pool.
    pub pool: String,
    /// Its baseline now.
    pub snapshot: String,
    /// Its baseline before.
    pub before: Option<String>,
}

/// What is to be copied, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    snapshot: String,
    pool: String,
    pool_uid: String,
    before: Option<String>,
}

/// Promotes an environment. `say` is told what is waited for, once each.
///
/// # Errors
/// When the environment is not at tier Snapshotted, its pool has no workspace volumes, or something cannot be reached or
/// is not permitted.
pub async fn promote(
    client: &Client,
    cluster: Option<&str>,
    namespace: &str,
    environment: &str,
    mut say: impl FnMut(&str),
) -> Result<Promoted, PromoteError> {
    let environments: Api<SuspendedEnvironment> = Api::namespaced(client.clone(), namespace);
    let pools: Api<RunnerPool> = Api::namespaced(client.clone(), namespace);
    let environment = environments.get(environment).await?;
    let pool = pools.get(&environment.spec.pool).await?;
    let source = source(&environment, &pool).map_err(PromoteError::Refused)?;
    let cluster = app::cluster_id(client, cluster).await?;
    let Some(account) = settings::account(client, namespace, &pool.spec).await? else {
        return Err(PromoteError::Refused(no_volumes(&source.pool)));
    };
    let cloud = AwsCloud::new(account, Metrics::new()).await?;
    let copy = copy(&cloud, &cluster, namespace, &source, &mut say).await?;
    // (2)
    let spec = serde_json::json!({ "workspaceVolume": { "baselineSnapshot": copy } });
    // With the uid, a pool of the same name that was made meanwhile is not changed.
    let patch = serde_json::json!({ "metadata": { "uid": source.pool_uid }, "spec": spec });
    let params = PatchParams { field_manager: Some(WRITER.to_owned()), ..PatchParams::default() };
    pools.patch(&source.pool, &params, &Patch::Merge(patch)).await?;
    Ok(Promoted { pool: source.pool, snapshot: copy, before: source.before })
}

/// (1): found or made, and complete.
async fn copy(
    cloud: &AwsCloud,
    cluster: &str,
    namespace: &str,
    source: &Source,
    say: &mut impl FnMut(&str),
) -> Result<String, PromoteError> {
    let wanted = Wanted { cluster: cluster.to_owned(), ..Wanted::default() };
    let mut waits_for = String::new();
    loop {
        let seen = cloud.observe(&wanted).await?.snapshots;
        let on = match next(&seen, namespace, source, cluster).map_err(PromoteError::Refused)? {
            Next::Use(copy) => return Ok(copy),
            Next::Wait(on) => on,
            // A fresh copy may be missing in a look: it is not asked for twice in one run.
            Next::Copy if waits_for.is_empty() => {
                cloud.copy_snapshot(&source.snapshot, &marks(cluster, namespace, source)).await?
            }
            Next::Copy => waits_for.clone(),
        };
        if on != waits_for {
            say(&format!("waits for snapshot {on}, the copy of {}, to be complete", source.snapshot));
            waits_for = on;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// Ask for a copy.
    Copy,
    /// It is on its way.
    Wait(String),
    /// It is complete.
    Use(String),
}

/// What the cloud shows of the copy. A copy that is complete is as good as a new one: a snapshot never changes.
fn next(
    seen: &BTreeMap<String, Snapshot>,
    namespace: &str,
    source: &Source,
    cluster: &str,
) -> Result<Next, String> {
    let marks = marks(cluster, namespace, source);
    let is_copy = |known: &&Snapshot| marks.iter().all(|(key, value)| known.tags.get(key) == Some(value));
    let copies: Vec<&Snapshot> = seen.values().filter(is_copy).collect();
    let at = |state| copies.iter().find(|known| known.state == state).map(|known| known.id.clone());
    if let Some(copy) = at(SnapshotState::Completed) {
        return Ok(Next::Use(copy));
    }
    if let Some(copy) = at(SnapshotState::Pending) {
        return Ok(Next::Wait(copy));
    }
    if let Some(copy) = at(SnapshotState::Failed) {
        return Err(format!(
            "snapshot {copy}, the copy of {}, has failed: delete it (aws ec2 delete-snapshot --snapshot-id {copy}) \
             and run this again",
            source.snapshot
        ));
    }
    if !seen.contains_key(&source.snapshot) {
        return Err(format!(
            "snapshot {} of the environment is not among those with the tag {}={cluster}: give --cluster-id as the \
             operator has it; or the snapshot is gone",
            source.snapshot,
            tags::CLUSTER
        ));
    }
    Ok(Next::Copy)
}

/// What a copy carries. The cluster's tag is what the operator's rights hang on; the pool's would make it the sweep's.
fn marks(cluster: &str, namespace: &str, source: &Source) -> BTreeMap<String, String> {
    BTreeMap::from([
        (tags::CLUSTER.to_owned(), cluster.to_owned()),
        (tags::BASELINE.to_owned(), format!("{namespace}/{}", source.pool)),
        (tags::BASELINE_OF.to_owned(), source.snapshot.clone()),
    ])
}

/// What is to be copied; or why nothing can be, with the way out.
fn source(environment: &SuspendedEnvironment, pool: &RunnerPool) -> Result<Source, String> {
    let (name, pool_name) = (environment.name_any(), pool.name_any());
    let pool_uid = pool.uid().unwrap_or_default();
    if environment.spec.pool_uid != pool_uid {
        return Err(format!(
            "environment {name} belongs to an earlier pool {pool_name} (uid {}), which is gone: its workspace is \
             nobody's baseline",
            environment.spec.pool_uid
        ));
    }
    let Some(volume) = pool.spec.workspace_volume.as_ref().filter(|_| pool.spec.provider.aws.is_some())
    else {
        return Err(no_volumes(&pool_name));
    };
    let status = environment.status.as_ref();
    let is_resting = environment.phase() == Phase::Suspended && status.is_some_and(|it| it.moving.is_none());
    let snapshot = status.and_then(|status| status.snapshot.as_ref());
    let Some(snapshot) = snapshot.filter(|_| is_resting && environment.tier() == Tier::Snapshotted) else {
        return Err(format!(
            "environment {name} is at tier {} ({:?}), and only one that rests at Snapshotted can be promoted. Ask for \
             that, wait, and run this again:\n  \
             kubectl patch suspendedenvironment {name} --namespace {} --type merge --patch \
             '{{\"spec\":{{\"desiredTier\":{{\"tier\":\"Snapshotted\",\"until\":\"{}\"}}}}}}'\n  \
             kubectl wait suspendedenvironment {name} --namespace {} --timeout 6h \
             --for jsonpath='{{.status.tier}}'=Snapshotted",
            environment.tier().as_str(),
            environment.phase(),
            environment.namespace().unwrap_or_default(),
            environment.expires_at(),
            environment.namespace().unwrap_or_default(),
        ));
    };
    if snapshot.size_gib > volume.size_gib {
        return Err(format!(
            "the workspace of {name} was on a volume of {} GiB, and the pool's are of {} GiB: set \
             spec.workspaceVolume.sizeGiB of pool {pool_name} to at least {}",
            snapshot.size_gib, volume.size_gib, snapshot.size_gib
        ));
    }
    Ok(Source {
        snapshot: snapshot.id.clone(),
        pool: pool_name,
        pool_uid,
        before: volume.baseline_snapshot.clone(),
    })
}

fn no_volumes(pool: &str) -> String {
    format!("pool {pool} has no workspace volumes: set spec.workspaceVolume, which needs spec.provider.aws")
}

#[cfg(test)]
mod tests;
