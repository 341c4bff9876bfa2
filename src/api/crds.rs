//! The CustomResourceDefinitions as YAML, generated from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::{JobLease, RunnerPool, SuspendedEnvironment};

/// One definition with the file name it is kept under.
#[derive(Debug, Clone)]
pub struct CrdFile {
    /// File name in `crds/`.
    pub name: &'static str,
    /// The YAML.
    pub yaml: String,
}

/// Why the definitions cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// Not expressible as JSON.
    #[error("cannot write the definition as JSON")]
    Json(#[from] serde_json::Error),
    /// Not expressible as YAML.
    #[error("cannot write the definition as YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// All definitions.
///
/// # Errors
/// When a type's schema cannot be written.
pub fn all() -> Result<Vec<CrdFile>, CrdError> {
    Ok(vec![
        CrdFile { name: "runnerpools.yaml", yaml: yaml(&RunnerPool::crd())? },
        CrdFile { name: "suspendedenvironments.yaml", yaml: yaml(&SuspendedEnvironment::crd())? },
        CrdFile { name: "jobleases.yaml", yaml: yaml(&JobLease::crd())? },
    ])
}

fn yaml(crd: &CustomResourceDefinition) -> Result<String, CrdError> {
    let mut value = serde_json::to_value(crd)?;
    drop_foreign_formats(&mut value);
    Ok(serde_saphyr::to_string(&value)?)
}

/// Removes formats that JSON schema knows and Kubernetes does not: the API server warns about each at every apply.
fn drop_foreign_formats(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            map.values_mut().for_each(drop_foreign_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_foreign_formats),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
