//! What people do by hand: tags taken, things left behind, pools deleted.

use anyhow::{Context, Result, ensure};
use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use serde_json::{Value, json};

use super::super::failures::{leap, next_job_runs, until_nothing_is_left};
use super::super::tiers::{ask, leaves_marks, resume_and_see, until_tier, with_volumes};
use crate::suspension::put_to_sleep;
use crate::testbed::cloud::Act;
use crate::testbed::stage::cloud::GROUP;
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces;

/// At a tier the tags of what keeps the environment are taken; they come back, and so does the environment.
async fn tags_come_back(
    name: &str,
    setting: Setting,
    tier: &str,
    kept_by: fn(&Value) -> &Value,
) -> Result<()> {
    let stage = Stage::start(name, setting).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, tier).await?;
    let kept = until_tier(&stage, &key, tier).await?;
    let id = kept_by(&kept).as_str().context("nothing keeps it")?.to_owned();
    let cloud = &stage.cloud()?.cloud;
    cloud.act(Act::RemoveTags { resource: id.clone(), keys: Vec::new() }).await?;
    let event = stage.until_event("TagsRestored").await?;
    ensure!(event["message"].as_str().is_some_and(|note| note.contains(&id)), "{event:#}");
    until("its tags are back", SOON, async || {
        let filter = aws_sdk_ec2::types::Filter::builder().name("resource-id").values(&id).build();
        let tags = cloud.ec2().describe_tags().filters(filter).send().await?;
        let keys: Vec<_> = tags.tags().iter().filter_map(|tag| tag.key()).collect();
        Ok(["dormouse.dev/pool", "dormouse.dev/cluster", "dormouse.dev/environment"]
            .iter()
            .all(|key| keys.contains(key))
            .then_some(()))
    })
    .await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn the_tags_of_a_stopped_instance_are_put_back() -> Result<()> {
    let setting = Setting::cloud(json!({}));
    tags_come_back("tags-instance", setting, "Stopped", |senv| &senv["status"]["instance"]).await
}

#[tokio::test]
async fn the_tags_of_a_volume_are_put_back() -> Result<()> {
    let setting = with_volumes(json!({}));
    tags_come_back("tags-volume", setting, "Detached", |senv| &senv["status"]["volume"]["id"]).await
}

#[tokio::test]
async fn the_tags_of_a_snapshot_are_put_back() -> Result<()> {
    let setting = with_volumes(json!({}));
    tags_come_back("tags-snapshot", setting, "Snapshotted", |senv| &senv["status"]["snapshot"]["id"]).await
}

/// Something with the pool's tags that no object knows: a volume, a snapshot of it, an instance.
async fn left_behind(stage: &Stage) -> Result<[String; 3]> {
    let cloud = stage.cloud()?;
    let pool = stage.get("runnerpool", POOL).await?;
    let uid = pool["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    let cluster =
        stage.cluster.control_plane.kubectl(&["get", "namespace", "kube-system", "-o", "json"]).await?;
    let cluster: Value = serde_json::from_str(&cluster)?;
    let cluster = cluster["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    let tags = [("dormouse.dev/cluster", cluster), ("dormouse.dev/pool", uid)]
        .map(|(key, value)| Tag::builder().key(key).value(value).build());
    let of = |kind| TagSpecification::builder().resource_type(kind).set_tags(Some(tags.to_vec())).build();
    let ec2 = cloud.cloud.ec2();
    let subnet = cloud.network.subnets.first().context("no subnet")?;
    let volume = ec2.create_volume().availability_zone(&subnet.zone).size(1);
    let volume = volume.tag_specifications(of(ResourceType::Volume)).send().await?;
    let volume = volume.volume_id().context("no volume")?.to_owned();
    let snapshot = until("the volume can be copied", SOON, async || {
        let taken = ec2.create_snapshot().volume_id(&volume);
        let taken = taken.tag_specifications(of(ResourceType::Snapshot)).send().await;
        Ok(taken.ok().and_then(|taken| taken.snapshot_id))
    })
    .await?;
    let instance = cloud.cloud.launch(&cloud.template, &subnet.id).await?;
    ec2.create_tags().resources(&instance).set_tags(Some(tags.to_vec())).send().await?;
    Ok([volume, snapshot, instance])
}

#[tokio::test]
async fn what_nobody_knows_is_marked_first_and_deleted_after_the_grace() -> Result<()> {
    let stage = Stage::start("orphans", Setting::cloud(json!({}))).await?;
    let cloud = &stage.cloud()?.cloud;
    let [volume, snapshot, instance] = left_behind(&stage).await?;
    // Old enough not to be somebody's who has not come to say so yet.
    leap(&stage, 5 * 60).await?;
    for id in [&volume, &snapshot] {
        until(&format!("{id} is marked"), SOON, async || {
            let filter = aws_sdk_ec2::types::Filter::builder().name("resource-id").values(id).build();
            let tags = cloud.ec2().describe_tags().filters(filter).send().await?;
            Ok(tags.tags().iter().any(|tag| tag.key() == Some("dormouse.dev/orphaned-at")).then_some(()))
        })
        .await
        .with_context(|| stage.operator_log())?;
    }
    let state = cloud.state().await?;
    ensure!(state.volumes.iter().any(|one| one.id == volume), "it was deleted on first sight");
    ensure!(state.snapshots.iter().any(|one| one.id == snapshot), "it was deleted on first sight");
    leap(&stage, 25 * 60).await?;
    until("all of it is gone", SOON, async || {
        let state = cloud.state().await?;
        let is_there = state.volumes.iter().any(|one| one.id == volume)
            || state.snapshots.iter().any(|one| one.id == snapshot)
            || state.instances.iter().any(|one| one.id == instance && one.state != "terminated");
        Ok((!is_there).then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    stage.until_event("OrphanDeleted").await?;
    next_job_runs(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_pool_that_is_deleted_gives_everything_back() -> Result<()> {
    let pool = json!({ "deletionPolicy": "Release" });
    let stage = Stage::start("given-back", with_volumes(pool)).await?;
    let cloud = stage.cloud()?;
    for tier in ["Detached", "Snapshotted", "Stopped"] {
        let (_, key) = put_to_sleep(&stage, leaves_marks(tier)).await?;
        ask(&stage, &key, tier).await?;
        until_tier(&stage, &key, tier).await?;
    }
    next_job_runs(&stage).await?;
    stage
        .kubectl(&["delete", "runnerpool", POOL, "--timeout=90s"])
        .await
        .with_context(|| stage.operator_log())?;
    until_nothing_is_left(&stage).await?;
    let groups = cloud.cloud.scaling().describe_auto_scaling_groups().auto_scaling_group_names(GROUP);
    let groups = groups.send().await?;
    let group = groups.auto_scaling_groups().first().context("the group is gone")?;
    let ours =
        |key: &str| ["dormouse.dev/pool", "dormouse.dev/pool-name", "dormouse.dev/namespace"].contains(&key);
    ensure!(group.tags().iter().all(|tag| !tag.key().is_some_and(ours)), "{:?}", group.tags());
    ensure!(group.desired_capacity() == Some(0), "{group:?}");
    traces::end(stage).await
}
