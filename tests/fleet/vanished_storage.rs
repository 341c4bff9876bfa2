//! Volumes that go by hand, with and without something else that keeps the workspace.

use anyhow::{Context, Result, ensure};
use aws_sdk_ec2::types::{EbsInstanceBlockDeviceSpecification, InstanceBlockDeviceMappingSpecification};
use serde_json::{Value, json};

use super::failures::{next_job_runs, snapshots, until_waits_for};
use super::tiers::{ask, leaves_marks, resume_and_see, until_tier, with_volumes};
use crate::suspension::{environment, job, object_of, put_to_sleep, until_gone};
use crate::testbed::cloud::Act;
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{SOON, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, text, told};

#[tokio::test]
async fn an_environment_whose_volume_is_deleted_goes_on_from_its_complete_snapshot() -> Result<()> {
    let stage = Stage::start("rescued-snapshot", with_volumes(json!({}))).await?;
    let cloud = &stage.cloud()?.cloud;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    cloud.act(Act::SnapshotHangs).await?;
    ask(&stage, &key, "Snapshotted").await?;
    let waits = until_waits_for(&stage, &key, "to be complete").await?;
    ensure!(waits["status"]["tier"] == "Detached", "{waits:#}");
    let volume = text(&waits["status"]["volume"]["id"]);
    let snapshot = snapshots(&stage).await?.first().context("no snapshot")?.clone();
    // Nobody looks while the snapshot becomes complete and somebody deletes the volume.
    let operator = stage.operator()?;
    operator.kill()?;
    cloud.act(Act::Restore).await?;
    until("the snapshot is complete", SOON, async || {
        let known = cloud.state().await?.snapshots;
        Ok(known.iter().any(|one| one.id == snapshot && one.state == "completed").then_some(()))
    })
    .await?;
    cloud.ec2().delete_volume().volume_id(&volume).send().await?;
    stage.give_up_lease().await?;
    stage.gitlab.client_restarted();
    operator.start_again().await?;

    let object = object_of(&key)?;
    // One look that does not show the volume is not enough.
    until("it is rescued", SOON * 2, async || {
        Ok((environment(&stage, &key).await?["status"]["tier"] == "Snapshotted").then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    let (note, _) = traces::event(&stage, &object, "Rescued").await?;
    ensure!(note.starts_with("what held it is gone") && note.contains("Snapshotted"), "{note}");
    let rescued = until_tier(&stage, &key, "Snapshotted").await?;
    ensure!(rescued["status"]["snapshot"]["id"] == snapshot.as_str(), "{rescued:#}");
    resume_and_see(&stage, &key, "processes 0").await?;
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_volume_that_was_told_to_go_with_its_instance_loses_its_environment_and_says_so() -> Result<()> {
    let stage = Stage::start("goes-along", with_volumes(json!({}))).await?;
    let cloud = &stage.cloud()?.cloud;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let object = object_of(&key)?;
    let asleep = stage
        .until_object("suspendedenvironment", &object, "its volume is known", |senv| {
            senv["status"]["volume"]["id"].is_string()
        })
        .await?;
    let (instance, volume) = (text(&asleep["status"]["instance"]), text(&asleep["status"]["volume"]["id"]));
    let attached = cloud.instance(&instance).await?.volumes.into_iter().find(|one| one.id == volume);
    let device = attached.context("its volume is not attached")?.device;
    let goes = EbsInstanceBlockDeviceSpecification::builder().delete_on_termination(true).build();
    let goes = InstanceBlockDeviceMappingSpecification::builder().device_name(device).ebs(goes).build();
    let change = cloud.ec2().modify_instance_attribute().instance_id(&instance);
    change.block_device_mappings(goes).send().await?;
    cloud.act(Act::Terminate { instance }).await?;

    let mut lost = Value::Null;
    until("it is Lost", SOON * 2, async || {
        lost = environment(&stage, &key).await?;
        Ok((lost["status"]["phase"] == "Lost").then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    ensure!(cloud.state().await?.volumes.iter().all(|one| one.id != volume), "its volume is there");
    let why = text(&lost["status"]["lastAccident"]);
    ensure!(why.contains("on no volume that survives it"), "{why}");
    let (note, _) = traces::event(&stage, &object, "Lost").await?;
    ensure!(note.contains(&why), "{note}");
    let refused = stage.run(job("wake").environment_key(&key).script(["true"])).await?;
    ensure!(refused.state == JobState::Failed && refused.log_contains("is lost"), "{}", told(&refused));
    next_job_runs(&stage).await?;
    traces::end(stage).await
}
