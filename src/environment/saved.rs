//! What an instance knows of an environment, kept in a Secret while the environment may have to go on elsewhere: its
//! record there and its context, whose exported variables nobody else should read. The Secret goes with the environment.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Api, Resource, ResourceExt};

use super::StepError;
use crate::api::{SuspendedEnvironment, labels};
use crate::clock;
use crate::deed::Point;
use crate::kube_ext::{is_conflict, is_not_found};
use crate::pool::Held;
use crate::pool::settings::Settings;
use crate::spool::FORMAT;
use crate::spool::export::EnvironmentExport;
use crate::spool::record::{EnvironmentPhase, EnvironmentRecord};

const KEY: &str = "environment.json";

fn name(environment: &SuspendedEnvironment) -> String {
    format!("{}-state", environment.name_any())
}

fn api(held: &Held) -> Api<Secret> {
    Api::namespaced(held.shared.client.clone(), &held.namespace)
}

/// Writes it, in place of what an earlier sleep left.
pub async fn write(
    held: &Held,
    environment: &SuspendedEnvironment,
    export: &EnvironmentExport,
) -> Result<(), StepError> {
    let bytes = serde_json::to_vec(export).map_err(|error| StepError::Saved(error.to_string()))?;
    let data = BTreeMap::from([(KEY.to_owned(), ByteString(bytes))]);
    let owner = environment.owner_ref(&()).map(|reference| OwnerReference {
        block_owner_deletion: None,
        controller: None,
        ..reference
    });
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name(environment)),
            labels: Some(BTreeMap::from([
                (labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned()),
                (labels::POOL.to_owned(), held.name.clone()),
                (labels::ENVIRONMENT_ID.to_owned(), environment.spec.environment_id.clone()),
            ])),
            owner_references: Some(owner.into_iter().collect()),
            ..ObjectMeta::default()
        },
        data: Some(data.clone()),
        type_: Some("dormouse.dev/environment-state".to_owned()),
        ..Secret::default()
    };
    let api = api(held);
    let _place = held.shared.bounds.api_writes.enter().await;
    held.shared.metrics.kubernetes_write("Secret", "create");
    let deed = held.deed(Point::StateSaved).await;
    let params = PostParams::default();
    match deed.make(api.create(&params, &secret), |answer| answer).await {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => {
            held.shared.metrics.kubernetes_write("Secret", "patch");
            let patch = Patch::Merge(serde_json::json!({ "data": data }));
            let deed = held.deed(Point::StateSavedAgain).await;
            let (name, params) = (name(environment), PatchParams::default());
            deed.make(api.patch(&name, &params, &patch), |answer| answer).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads it. Where there is none, because its instance was lost before it could be asked, what the object says is
/// enough to go on in its workspace, without a context.
pub async fn read_or_make(
    held: &Held,
    environment: &SuspendedEnvironment,
    settings: &Settings,
) -> Result<EnvironmentExport, StepError> {
    let found = match api(held).get_opt(&name(environment)).await {
        Ok(found) => found,
        Err(error) if is_not_found(&error) => None,
        Err(error) => return Err(error.into()),
    };
    let owned = found.filter(|secret| {
        secret.owner_references().iter().any(|owner| Some(&owner.uid) == environment.uid().as_ref())
    });
    let bytes = owned.and_then(|secret| secret.data?.remove(KEY));
    match bytes {
        Some(bytes) => serde_json::from_slice(&bytes.0).map_err(|error| StepError::Saved(error.to_string())),
        None => Ok(made(environment, settings)),
    }
}

fn made(environment: &SuspendedEnvironment, settings: &Settings) -> EnvironmentExport {
    let (spec, origin) = (&environment.spec, &environment.spec.origin);
    let slot = environment.place().map_or(origin.slot, |(_, slot)| slot);
    EnvironmentExport {
        format: FORMAT,
        environment: EnvironmentRecord {
            format: FORMAT,
            environment: spec.environment_id.clone(),
            pool_uid: spec.pool_uid.clone(),
            slot,
            isolation: settings.isolation(settings.spec.capacity_per_instance),
            project_id: origin.project_id,
            project_path: origin.project_path.clone(),
            workspace: spec.workspace_path.clone(),
            phase: EnvironmentPhase::Suspended,
            job_id: origin.job_id,
            resumes: environment.status.as_ref().map_or(0, |status| status.revision),
            context: None,
            boot_id: String::new(),
            since: clock::now(),
        },
        context: None,
    }
}
