//! Looks at objects, over a connection that is kept.
//!
//! Waiting for an object to be as wished takes many looks, and a kubectl for each of them costs a machine more than what
//! is tested. What a person sees and does is still tested with kubectl.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

/// Longer than a busy API server takes, and shorter than a test may wait for one that is frozen.
const LIMIT: Duration = Duration::from_secs(10);

/// Reads the objects of one control plane.
pub struct Reader {
    endpoint: String,
    http: reqwest::Client,
    token: String,
}

impl Reader {
    /// Reads at `endpoint`, with this bearer token. Its connection belongs to the runtime it is used in.
    pub fn new(endpoint: &str, certificate: &Path, token: &str) -> Result<Self> {
        let http = super::http_client(certificate, LIMIT)?;
        Ok(Self { endpoint: endpoint.to_owned(), http, token: token.to_owned() })
    }

    /// One object of a namespace.
    pub async fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        self.read(&format!("{}/{name}", collection(namespace, kind)?)).await
    }

    /// All objects of a kind in a namespace.
    pub async fn list(&self, namespace: &str, kind: &str) -> Result<Vec<Value>> {
        let list = self.read(&collection(namespace, kind)?).await?;
        list.get("items").and_then(Value::as_array).cloned().with_context(|| format!("not a list: {list}"))
    }

    async fn read(&self, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.endpoint);
        let answer = self.http.get(&url).bearer_auth(&self.token).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "GET {path} was answered with {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }
}

/// What a Secret holds under a key; nothing where it has none such.
pub fn secret_value(secret: &Value, key: &str) -> Result<Vec<u8>> {
    let secret: Secret = serde_json::from_value(secret.clone()).context("not a Secret")?;
    Ok(secret.data.and_then(|mut data| data.remove(key)).unwrap_or_default().0)
}

/// The path of a kind's objects in a namespace, by any name kubectl knows it under that tests use.
fn collection(namespace: &str, kind: &str) -> Result<String> {
    let (group, plural) = match kind {
        "runnerpool" | "runnerpools" => ("apis/dormouse.dev/v1alpha1", "runnerpools"),
        "joblease" | "jobleases" => ("apis/dormouse.dev/v1alpha1", "jobleases"),
        "suspendedenvironment" | "suspendedenvironments" | "senv" => {
            ("apis/dormouse.dev/v1alpha1", "suspendedenvironments")
        }
        "lease" | "leases" | "leases.coordination.k8s.io" => ("apis/coordination.k8s.io/v1", "leases"),
        "events.v1.events.k8s.io" => ("apis/events.k8s.io/v1", "events"),
        "secret" | "secrets" => ("api/v1", "secrets"),
        "event" | "events" => ("api/v1", "events"),
        _ => bail!("nobody has told the reader where a {kind} is"),
    };
    Ok(format!("/{group}/namespaces/{namespace}/{plural}"))
}
