//! An instance that was taken out of its group for what sleeps on it, and that somebody puts back.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::asleep::{asleep, resumes};
use super::*;
use crate::fleet::tiers::{ask, until_tier};
use crate::testbed::stage::Setting;

#[tokio::test]
async fn the_instance_of_a_stopped_environment_that_somebody_attaches_leaves_its_group_again() -> Result<()> {
    let stage = Stage::start("attached", Setting::cloud(quick(json!({})))).await?;
    let cloud = stage.cloud()?;
    let (key, instance) = asleep(&stage).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    ensure!(until_calls(cloud, "DetachInstances", &instance, 1).await?.len() == 1);
    // Only what runs can be attached, and the pool would stop it again meanwhile.
    go(&stage)?;
    cloud.cloud.ec2().start_instances().instance_ids(&instance).send().await?;
    let scaling = cloud.cloud.scaling();
    until("it can be attached", SOON, async || {
        let attach = scaling.attach_instances().auto_scaling_group_name(GROUP).instance_ids(&instance);
        Ok(attach.send().await.is_ok().then_some(()))
    })
    .await?;
    until_lifecycle(cloud, &instance, "InService").await?;
    ensure!(desired(cloud).await? == 1);
    come_back(&stage).await?;
    let (note, _) = traces::event(&stage, POOL, "KeptInGroup").await?;
    ensure!(note.contains(&instance) && note.contains(GROUP), "{note}");
    let detached =
        until_calls(cloud, "DetachInstances", &instance, 2).await.with_context(|| stage.operator_log())?;
    // Attaching has made the group larger by it.
    ensure!(detached[1].names("ShouldDecrementDesiredCapacity", "true"), "{detached:#?}");
    until("it is no member any more", SOON, async || {
        Ok(lifecycle(cloud, &instance).await?.is_none().then_some(()))
    })
    .await?;
    ensure!(desired(cloud).await? == 0);
    let calls = cloud.cloud.calls(0).await?;
    ensure!(calls.iter().all(|call| call.action != "replaced"), "the group replaced a member: {calls:#?}");
    ensure!(resumes(&stage, &key).await? == instance, "it was resumed elsewhere");
    cloud.machines.gone(&instance).await?;
    traces::end(stage).await
}
