//! The Secret of a runner that a pool has made: its token, and what is remembered about it.
//!
//! Its name comes from the pool's, and nothing owns it: it outlives the pool's object, so that a pool that is installed again
//! is the same runner. It is deleted only with the runner.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Api, ResourceExt};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::Held;
use crate::api::labels;
use crate::deed::Deed;
use crate::gitlab::registration::Kept;
use crate::kube_ext::{is_conflict, is_not_found};

const KEY: &str = "token";
const TYPE: &str = "dormouse.dev/gitlab-runner";

/// A Secret as it was read, to be written over only while it is that.
#[derive(Debug, Clone)]
pub struct Known {
    /// What it says.
    pub kept: Kept,
    version: Option<String>,
}

/// Why a Secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server refused or could not be asked.
    #[error("Secret {name:?} of the pool's runner: {cause}")]
    Kubernetes {
        /// Its name.
        name: String,
        /// The error.
        #[source]
        cause: kube::Error,
    },
    /// A Secret of that name is not ours.
    #[error(
        "Secret {name:?}, where the pool would keep its runner's token, is there already and was not made by Dormouse; \
         delete it, or name it in spec.gitlab.tokenSecretRef in place of spec.gitlab.registration"
    )]
    Taken {
        /// Its name.
        name: String,
    },
}

/// The name of a pool's Secret.
pub fn name(pool: &str) -> String {
    format!("{pool}-gitlab-runner")
}

fn api(held: &Held) -> Api<Secret> {
    Api::namespaced(held.shared.client.clone(), &held.namespace)
}

fn failed(held: &Held) -> impl Fn(kube::Error) -> SecretError {
    let name = name(&held.name);
    move |cause| SecretError::Kubernetes { name: name.clone(), cause }
}

/// Reads it.
///
/// # Errors
/// When it is not ours, or the API server cannot be asked.
pub async fn read(held: &Held) -> Result<Option<Known>, SecretError> {
    let found = api(held).get_opt(&name(&held.name)).await.map_err(failed(held))?;
    found.map(|secret| known(held, &secret)).transpose()
}

fn known(held: &Held, secret: &Secret) -> Result<Known, SecretError> {
    if secret.type_.as_deref() != Some(TYPE) {
        return Err(SecretError::Taken { name: name(&held.name) });
    }
    let note = |key: &str| secret.annotations().get(key).cloned();
    let time = |key: &str| note(key).and_then(|text| text.parse::<Timestamp>().ok());
    let token = secret.data.as_ref().and_then(|data| data.get(KEY));
    let token = token.and_then(|token| String::from_utf8(token.0.clone()).ok());
    Ok(Known {
        version: secret.resource_version(),
        kept: Kept {
            url: note(labels::RUNNER_URL).unwrap_or_default(),
            marker: note(labels::RUNNER_MARKER).unwrap_or_default(),
            token: token.filter(|token| !token.is_empty()).map(SecretString::from),
            runner_id: note(labels::RUNNER_ID).and_then(|id| id.parse().ok()),
            applied: note(labels::RUNNER_APPLIED),
            obtained_at: time(labels::TOKEN_OBTAINED_AT),
            expires_at: time(labels::TOKEN_EXPIRES_AT),
            is_rotating: note(labels::TOKEN_ROTATION).is_some(),
        },
    })
}

/// Creates it without a token; one that is there already is read.
///
/// # Errors
/// When it is not ours, or the API server refuses or cannot be asked.
pub async fn intend(held: &Held, deed: Deed, kept: &Kept) -> Result<Known, SecretError> {
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name(&held.name)),
            labels: Some(BTreeMap::from([
                (labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned()),
                (labels::POOL.to_owned(), held.name.clone()),
            ])),
            annotations: Some(BTreeMap::from([
                (labels::RUNNER_URL.to_owned(), kept.url.clone()),
                (labels::RUNNER_MARKER.to_owned(), kept.marker.clone()),
            ])),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.to_owned()),
        ..Secret::default()
    };
    let api = api(held);
    let _place = held.shared.bounds.api_writes.enter().await;
    held.shared.metrics.kubernetes_write("Secret", "create");
    let params = PostParams::default();
    let secret = match deed.make(api.create(&params, &secret), |answer| answer).await {
        Ok(secret) => secret,
        Err(error) if is_conflict(&error) => api.get(&name(&held.name)).await.map_err(failed(held))?,
        Err(error) => return Err(failed(held)(error)),
    };
    known(held, &secret)
}

/// Writes over it, if it is still what was read.
///
/// # Errors
/// When it has changed since, and when the API server refuses or cannot be asked.
pub async fn save(held: &Held, deed: Deed, before: &Known, kept: &Kept) -> Result<Known, SecretError> {
    let token = kept.token.as_ref().map(|token| ByteString(token.expose_secret().as_bytes().to_vec()));
    let patch = json!({
        "metadata": {
            "resourceVersion": before.version,
            "annotations": {
                labels::RUNNER_URL: kept.url,
                labels::RUNNER_MARKER: kept.marker,
                labels::RUNNER_ID: kept.runner_id.map(|id| id.to_string()),
                labels::RUNNER_APPLIED: kept.applied,
                labels::TOKEN_OBTAINED_AT: kept.obtained_at.map(|at| at.to_string()),
                labels::TOKEN_EXPIRES_AT: kept.expires_at.map(|at| at.to_string()),
                labels::TOKEN_ROTATION: kept.is_rotating.then_some("begun"),
            },
        },
        "data": { KEY: token },
    });
    let api = api(held);
    let _place = held.shared.bounds.api_writes.enter().await;
    held.shared.metrics.kubernetes_write("Secret", "patch");
    let (name, params, patch) = (name(&held.name), PatchParams::default(), Patch::Merge(patch));
    let saved = deed.make(api.patch(&name, &params, &patch), |answer| answer).await;
    known(held, &saved.map_err(failed(held))?)
}

/// Deletes it; one that is gone already is fine.
///
/// # Errors
/// When the API server refuses or cannot be asked.
pub async fn delete(held: &Held, deed: Deed) -> Result<(), SecretError> {
    let api = api(held);
    let _place = held.shared.bounds.api_writes.enter().await;
    held.shared.metrics.kubernetes_write("Secret", "delete");
    let (name, params) = (name(&held.name), DeleteParams::default());
    match deed.make(api.delete(&name, &params), |answer| answer).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(failed(held)(error)),
    }
}
