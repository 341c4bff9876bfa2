//! What the API server refuses, with words a person can act on.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::testbed::stage::{POOL, Setting, Stage};

#[tokio::test]
async fn a_pool_that_cannot_be_meant_is_refused_with_a_reason() -> Result<()> {
    let stage = Stage::without_operator("refused", &Setting::default()).await?;
    let alder = json!({ "name": "alder", "address": "127.0.0.1" });
    let cases: [(Value, &[&str]); 9] = [
        (json!({ "provider": { "gcp": {} } }), &["unknown field", "spec.provider.gcp"]),
        (json!({ "concurency": 3 }), &["unknown field", "spec.concurency"]),
        (json!({ "capacityPerInstance": 2 }), &["spec.isolation must be given", "PerSlotUser", "Shared"]),
        (
            json!({ "isolation": "PerSlotUser", "buildsDir": "~/builds" }),
            &["spec.buildsDir must be an absolute path", "/builds"],
        ),
        (
            json!({ "provider": { "static": { "hosts": [{ "name": "a", "address": "127.0.0.1", "slots": 2 }] } } }),
            &["spec.isolation must be given", "more than one slot"],
        ),
        (
            json!({ "provider": { "static": { "hosts": [alder, alder] } } }),
            &["hosts must have different names"],
        ),
        (
            json!({ "retention": { "defaultTTL": "48h", "maxTTL": "24h" } }),
            &["retention.defaultTTL must not be longer than retention.maxTTL"],
        ),
        (json!({ "mode": "Asleep" }), &["spec.mode", "Active", "Draining"]),
        (json!({ "connectionGrace": "ten minutes" }), &["spec.connectionGrace"]),
    ];
    for (changes, words) in cases {
        stage.refused(&stage.pool(changes)?, words).await?;
    }

    let mut without = stage.pool(json!({}))?;
    without["spec"]["provider"] = json!({});
    stage.refused(&without, &["must have exactly one of static"]).await?;
    without["spec"].as_object_mut().context("the spec is no object")?.remove("provider");
    stage.refused(&without, &["spec.provider", "Required"]).await?;

    let mut long = stage.pool(json!({}))?;
    long["metadata"]["name"] = json!("p".repeat(41));
    stage.refused(&long, &["at most 40 characters"]).await?;
    ensure!(stage.list("runnerpools").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_seed_of_the_system_id_can_never_be_changed() -> Result<()> {
    let stage = Stage::without_operator("seed", &Setting::default()).await?;
    let words = ["spec.systemIdSeed is immutable"];
    stage.apply_pool(json!({ "systemIdSeed": "one" })).await?;
    stage.refused(&stage.pool(json!({ "systemIdSeed": "two" }))?, &words).await?;
    stage.refused(&stage.pool(json!({}))?, &words).await?;
    stage.apply_pool(json!({ "systemIdSeed": "one", "concurrency": 4 })).await?;
    ensure!(stage.get("runnerpool", POOL).await?["spec"]["concurrency"] == 4);
    Ok(())
}

#[tokio::test]
async fn every_field_of_every_kind_is_explained() -> Result<()> {
    let stage = Stage::without_operator("explained", &Setting::default()).await?;
    let explained = stage.kubectl(&["explain", "runnerpool.spec"]).await?;
    for word in ["connectionGrace", "runner_system_failure", "How the slots of one instance are kept apart"] {
        ensure!(explained.contains(word), "{word:?} is not in: {explained}");
    }
    let definitions: Value = serde_json::from_str(&stage.kubectl(&["get", "crd", "-o", "json"]).await?)?;
    for definition in definitions["items"].as_array().context("no definitions")? {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap_or_default();
        for version in definition["spec"]["versions"].as_array().context("no versions")? {
            let schema = &version["schema"]["openAPIV3Schema"];
            for part in ["spec", "status"] {
                let part_schema = &schema["properties"][part];
                unexplained(part_schema, &format!("{kind}.{part}"))?;
            }
        }
    }
    Ok(())
}

/// Fails at the first field below `path` without a description.
fn unexplained(schema: &Value, path: &str) -> Result<()> {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        ensure!(field["description"].as_str().is_some_and(|text| text.len() > 8), "{path} is not explained");
        unexplained(field, &path)?;
        unexplained(&field["items"], &path)?;
    }
    Ok(())
}
