//! Plain moto, where it can be had: what the strict cloud shows is invisible there, which is why it is strict.

use anyhow::{Result, ensure};
use serde_json::json;

use super::Lab;
use crate::testbed::cloud::Group;

#[tokio::test]
async fn leniently_everything_is_allowed_and_instant() -> Result<()> {
    let lab = Lab::new("cloud-lenient").await?;
    lab.cloud.config(json!({"lenient": true, "react_seconds": 0})).await?;
    let group = Group { protected: false, desired: 1, ..Group::new("pool", 2) };
    lab.group(&group.with_terminate_hook("bye", 60)).await?;
    let id = lab.until_members("pool", "InService", 1).await?.remove(0);
    // A stopped member stays one, which the real service would replace.
    ensure!(lab.stop(&id).await == "ok");
    ensure!(lab.cloud.instance(&id).await?.state == "stopped");
    lab.pass(3600.0).await?;
    ensure!(lab.lifecycle(&id).await?.as_deref() == Some("InService"));
    ensure!(lab.start(&id).await == "ok");
    ensure!(lab.desire("pool", 50).await == "ok", "beyond the most");
    lab.until_members("pool", "InService", 50).await?;
    ensure!(lab.desire("pool", 0).await == "ok");
    // No hook holds it.
    lab.until_state(&id, "terminated").await?;
    ensure!(lab.start(&id).await == "ok", "it comes back from the dead");
    Ok(())
}

#[tokio::test]
async fn one_behaviour_can_be_lenient_alone() -> Result<()> {
    let lab = Lab::new("cloud-lenient-one").await?;
    lab.cloud.config(json!({"lenient": ["health"]})).await?;
    lab.group(&Group { desired: 1, ..Group::new("pool", 2) }).await?;
    let id = lab.until_members("pool", "InService", 1).await?.remove(0);
    ensure!(lab.stop(&id).await == "ok");
    ensure!(lab.cloud.instance(&id).await?.state == "stopping", "states still last");
    lab.until_state(&id, "stopped").await?;
    lab.pass(3600.0).await?;
    ensure!(lab.lifecycle(&id).await?.as_deref() == Some("InService"));
    ensure!(lab.desire("pool", 3).await == "ValidationError");
    let strange = lab.cloud.config(json!({"lenient": ["no-such-thing"]})).await;
    ensure!(strange.is_err_and(|error| format!("{error:#}").contains("known: ")));
    Ok(())
}
