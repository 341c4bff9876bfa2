//! Writes to our kinds: every write is counted, recorded in the cache and made only when it changes something.

use std::fmt::Debug;
use std::sync::Arc;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::cache::Cache;
use super::{is_conflict, is_not_found};
use crate::api::labels;
use crate::bounds::{Bound, Bounds};
use crate::deed::Deed;
use crate::telemetry::Metrics;

/// One kind's cache with the means to write it. Cloning shares it.
#[derive(Clone)]
pub struct Store<K> {
    client: Client,
    /// What is known of the kind.
    pub cache: Cache<K>,
    metrics: Metrics,
    writes: Bound,
    kind: &'static str,
}

impl<K> Store<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Send
        + Sync
        + Serialize
        + DeserializeOwned
        + 'static,
{
    /// A store over a cache.
    pub fn new(
        client: Client,
        cache: Cache<K>,
        metrics: Metrics,
        bounds: &Bounds,
        kind: &'static str,
    ) -> Self {
        Self { client, cache, metrics, writes: bounds.api_writes.clone(), kind }
    }

    fn api(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reads an object from the API server itself.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn read(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, kube::Error> {
        let known = self.cache.get(namespace, name);
        let object = self.api(namespace).get_opt(name).await?;
        Ok(object.map(|object| self.cache.record_read(object, known.as_deref())))
    }

    /// Creates an object. One of the same name that is there already is answered as it is, with `false`.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn create(
        &self,
        deed: Deed,
        namespace: &str,
        object: &K,
    ) -> Result<(Arc<K>, bool), kube::Error> {
        let _place = self.writes.enter().await;
        self.metrics.kubernetes_write(self.kind, "create");
        let api = self.api(namespace);
        let created = deed.make(api.create(&post_params(), object), |answer| self.take(answer)).await;
        match created {
            Ok(created) => Ok((created, true)),
            Err(error) if is_conflict(&error) => {
                let known = self.api(namespace).get(&object.name_any()).await?;
                Ok((self.cache.record(known), false))
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces the status of an object, if it is still the version in hand.
    ///
    /// # Errors
    /// A conflict when it changed since, and when the API server refuses or cannot be asked.
    pub async fn replace_status(&self, deed: Deed, object: &K) -> Result<Arc<K>, kube::Error> {
        let _place = self.writes.enter().await;
        self.metrics.kubernetes_write(self.kind, "update");
        let namespace = object.namespace().unwrap_or_default();
        let api = self.api(&namespace);
        let (name, params) = (object.name_any(), post_params());
        let result = deed.make(api.replace_status(&name, &params, object), |answer| self.take(answer)).await;
        if result.as_ref().is_err_and(is_conflict) {
            // The next look must see what changed, whether or not the watch has brought it yet.
            self.read(&namespace, &object.name_any()).await?;
        }
        result
    }

    /// Merges a patch into an object's metadata or spec.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn merge(
        &self,
        deed: Deed,
        object: &K,
        patch: &serde_json::Value,
    ) -> Result<Arc<K>, kube::Error> {
        let _place = self.writes.enter().await;
        self.metrics.kubernetes_write(self.kind, "patch");
        let namespace = object.namespace().unwrap_or_default();
        let api = self.api(&namespace);
        let (name, params, patch) = (object.name_any(), PatchParams::default(), Patch::Merge(patch));
        deed.make(api.patch(&name, &params, &patch), |answer| self.take(answer)).await
    }

    /// Takes in what the API server answered to a write.
    fn take(&self, answer: Result<K, kube::Error>) -> Result<Arc<K>, kube::Error> {
        answer.map(|object| self.cache.record(object))
    }

    /// Deletes an object; one that is gone already is fine.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn delete(&self, deed: Deed, object: &K) -> Result<(), kube::Error> {
        let _place = self.writes.enter().await;
        self.metrics.kubernetes_write(self.kind, "delete");
        let namespace = object.namespace().unwrap_or_default();
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        let (api, name) = (self.api(&namespace), object.name_any());
        deed.make(api.delete(&name, &params), |answer| match answer {
            Ok(either) => {
                // An object with a finalizer is answered as it stays; one without is gone.
                match either.left() {
                    Some(marked) if !marked.finalizers().is_empty() => {
                        self.cache.record(marked);
                    }
                    Some(_) | None => self.cache.forget(object),
                }
                Ok(())
            }
            Err(error) if is_not_found(&error) => {
                self.cache.forget(object);
                Ok(())
            }
            Err(error) => Err(error),
        })
        .await
    }

    /// Removes our finalizer; an object that was waiting for it is gone after that.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn remove_finalizer(&self, deed: Deed, object: &K) -> Result<(), kube::Error> {
        let rest: Vec<&String> =
            object.finalizers().iter().filter(|finalizer| *finalizer != labels::FINALIZER).collect();
        if rest.len() == object.finalizers().len() {
            return Ok(());
        }
        let patch = json!({ "metadata": {
            "finalizers": rest,
            "uid": object.uid(),
            "resourceVersion": object.resource_version(),
        } });
        match self.merge(deed, object, &patch).await {
            Ok(patched) => {
                if patched.meta().deletion_timestamp.is_some() && patched.finalizers().is_empty() {
                    self.cache.forget(object);
                }
                Ok(())
            }
            Err(error) if is_not_found(&error) => {
                self.cache.forget(object);
                Ok(())
            }
            Err(error) => {
                if is_conflict(&error) {
                    self.read(&object.namespace().unwrap_or_default(), &object.name_any()).await?;
                }
                Err(error)
            }
        }
    }
}

fn post_params() -> PostParams {
    PostParams { field_manager: Some(labels::MANAGER.to_owned()), ..PostParams::default() }
}
