//! Volumes, attachments and snapshots.

use anyhow::{Context, Result, ensure};
use aws_sdk_ec2::types::{
    EbsInstanceBlockDeviceSpecification, InstanceBlockDeviceMappingSpecification, ResourceType,
    SnapshotState, Tag, TagSpecification, VolumeState,
};
use serde_json::json;

use super::{Lab, SOON, code, refused};
use crate::testbed::cloud::Act;
use crate::testbed::wait::until;

impl Lab {
    async fn make_volume(&self, zone: &str) -> Result<String> {
        let made = self.cloud.ec2().create_volume().availability_zone(zone).size(2).send().await?;
        made.volume_id.context("no id")
    }

    /// A volume in the first zone, available.
    async fn volume(&self) -> Result<String> {
        let id = self.make_volume(self.zone()).await?;
        self.until_volume(&id, &VolumeState::Available).await?;
        Ok(id)
    }

    async fn volume_state(&self, id: &str) -> Result<VolumeState> {
        let found = self.cloud.ec2().describe_volumes().volume_ids(id).send().await?;
        found.volumes().first().and_then(|one| one.state().cloned()).context("no state")
    }

    async fn until_volume(&self, id: &str, state: &VolumeState) -> Result<()> {
        until(&format!("{id} is {state:?}"), SOON, async || {
            Ok((self.volume_state(id).await? == *state).then_some(()))
        })
        .await
    }

    /// The states of the attachments of a volume.
    async fn attachments(&self, id: &str) -> Result<Vec<String>> {
        let found = self.cloud.ec2().describe_volumes().volume_ids(id).send().await?;
        let one = found.volumes().first().context("no volume")?;
        Ok(one.attachments().iter().filter_map(|one| Some(one.state()?.as_str().to_owned())).collect())
    }

    async fn attach(&self, volume: &str, instance: &str, device: &str) -> String {
        let attach = self.cloud.ec2().attach_volume().volume_id(volume).instance_id(instance).device(device);
        code(attach.send().await)
    }

    async fn detach(&self, volume: &str) -> String {
        code(self.cloud.ec2().detach_volume().volume_id(volume).send().await)
    }

    async fn delete_volume(&self, volume: &str) -> String {
        code(self.cloud.ec2().delete_volume().volume_id(volume).send().await)
    }

    async fn snapshot_of(&self, volume: &str) -> Result<String> {
        let made = self.cloud.ec2().create_snapshot().volume_id(volume).send().await?;
        made.snapshot_id.context("no id")
    }

    async fn shown_snapshot(&self, id: &str) -> Result<(SnapshotState, String)> {
        let found = self.cloud.ec2().describe_snapshots().snapshot_ids(id).send().await?;
        let one = found.snapshots().first().context("no snapshot")?;
        Ok((one.state().cloned().context("no state")?, one.progress().unwrap_or_default().to_owned()))
    }
}

#[tokio::test]
async fn a_volume_goes_on_one_instance_of_its_zone_at_a_free_device() -> Result<()> {
    let lab = Lab::new("cloud-attach").await?;
    let instance = lab.running().await?;
    let other = lab.running().await?;
    let far = lab.make_volume(&lab.network.subnets[1].zone).await?;
    lab.until_volume(&far, &VolumeState::Available).await?;
    ensure!(lab.attach(&far, &instance, "/dev/sdf").await == "InvalidVolume.ZoneMismatch");

    let volume = lab.volume().await?;
    ensure!(
        lab.attach(&volume, &instance, "/dev/sda1").await == "InvalidParameterValue",
        "the root is there"
    );
    lab.slow().await?;
    ensure!(lab.attach(&volume, &instance, "/dev/sdf").await == "ok");
    ensure!(lab.attachments(&volume).await? == ["attaching"]);
    ensure!(lab.volume_state(&volume).await? == VolumeState::InUse);
    lab.pass(601.0).await?;
    ensure!(lab.attachments(&volume).await? == ["attached"]);
    ensure!(lab.attach(&volume, &other, "/dev/sdf").await == "VolumeInUse");
    ensure!(lab.delete_volume(&volume).await == "VolumeInUse");

    let fresh = lab.make_volume(lab.zone()).await?;
    ensure!(lab.volume_state(&fresh).await? == VolumeState::Creating);
    ensure!(lab.attach(&fresh, &instance, "/dev/sdg").await == "IncorrectState", "it is being made");
    ensure!(lab.attach("vol-0123456789abcdef0", &instance, "/dev/sdg").await == "InvalidVolume.NotFound");
    let pending = lab.cloud.launch(&lab.template, lab.subnet()).await?;
    lab.pass(0.0).await?;
    let spare = lab.make_volume(lab.zone()).await?;
    ensure!(lab.attach(&spare, &pending, "/dev/sdf").await == "IncorrectState", "it does not run yet");

    ensure!(lab.detach(&volume).await == "ok", "the instance is inferred");
    ensure!(lab.attachments(&volume).await? == ["detaching"]);
    ensure!(lab.attach(&volume, &other, "/dev/sdf").await == "VolumeInUse", "not free yet");
    lab.pass(601.0).await?;
    ensure!(lab.volume_state(&volume).await? == VolumeState::Available);
    ensure!(lab.detach(&volume).await == "IncorrectState", "it is not attached");
    ensure!(lab.attach(&volume, &other, "/dev/sdf").await == "ok");
    Ok(())
}

#[tokio::test]
async fn a_busy_volume_stays_detaching_and_a_root_can_be_swapped() -> Result<()> {
    let lab = Lab::with("cloud-busy", |template| template.root_goes = false).await?;
    let instance = lab.running().await?;
    let volume = lab.volume().await?;
    ensure!(lab.attach(&volume, &instance, "/dev/sdf").await == "ok");
    lab.cloud.config(json!({"hold_detaching": true})).await?;
    ensure!(lab.detach(&volume).await == "ok");
    lab.pass(3600.0).await?;
    ensure!(lab.attachments(&volume).await? == ["detaching"]);
    ensure!(lab.delete_volume(&volume).await == "VolumeInUse");
    lab.cloud.ec2().detach_volume().volume_id(&volume).force(true).send().await?;
    lab.until_volume(&volume, &VolumeState::Available).await?;
    ensure!(lab.delete_volume(&volume).await == "ok");
    ensure!(lab.delete_volume(&volume).await == "InvalidVolume.NotFound");
    lab.cloud.config(json!({"hold_detaching": false})).await?;

    let root = lab.cloud.instance(&instance).await?.root_volume.context("it has a root")?;
    ensure!(lab.detach(&root).await == "OperationNotPermitted", "it runs on it");
    ensure!(lab.stop(&instance).await == "ok");
    lab.until_state(&instance, "stopped").await?;
    ensure!(lab.detach(&root).await == "ok");
    lab.until_volume(&root, &VolumeState::Available).await?;
    let elsewhere = lab.running().await?;
    ensure!(lab.stop(&elsewhere).await == "ok");
    lab.until_state(&elsewhere, "stopped").await?;
    let own = lab.cloud.instance(&elsewhere).await?.root_volume.context("it has a root")?;
    ensure!(lab.detach(&own).await == "ok");
    lab.until_volume(&own, &VolumeState::Available).await?;
    ensure!(lab.attach(&root, &elsewhere, "/dev/sda1").await == "ok");
    ensure!(lab.start(&elsewhere).await == "ok");
    ensure!(lab.until_state(&elsewhere, "running").await?.root_volume.as_deref() == Some(root.as_str()));

    // The swapped one goes with the instance only if it is told to.
    let ebs = EbsInstanceBlockDeviceSpecification::builder().delete_on_termination(true).build();
    let goes = InstanceBlockDeviceMappingSpecification::builder().device_name("/dev/sda1").ebs(ebs).build();
    let modify = lab.cloud.ec2().modify_instance_attribute().instance_id(&elsewhere);
    modify.block_device_mappings(goes).send().await?;
    ensure!(lab.terminate(&elsewhere).await == "ok");
    lab.until_state(&elsewhere, "terminated").await?;
    let volumes: Vec<_> = lab.cloud.state().await?.volumes.into_iter().map(|one| one.id).collect();
    ensure!(volumes == [own], "{volumes:?}");
    Ok(())
}

#[tokio::test]
async fn a_snapshot_is_pending_and_good_for_nothing_before_it_completes() -> Result<()> {
    let lab = Lab::new("cloud-snapshot").await?;
    let volume = lab.volume().await?;
    lab.slow().await?;
    let snapshot = lab.snapshot_of(&volume).await?;
    ensure!(lab.shown_snapshot(&snapshot).await?.0 == SnapshotState::Pending);
    lab.pass(300.0).await?;
    let (_, progress) = lab.shown_snapshot(&snapshot).await?;
    ensure!(progress == "50%", "{progress}");
    let far = lab.network.subnets[1].zone.clone();
    let from = |id: &str| lab.cloud.ec2().create_volume().availability_zone(&far).snapshot_id(id);
    refused(from(&snapshot).send().await, "IncorrectState");
    lab.pass(301.0).await?;
    ensure!(lab.shown_snapshot(&snapshot).await? == (SnapshotState::Completed, "100%".to_owned()));
    refused(from(&snapshot).size(1).send().await, "InvalidParameterValue");
    let made = from(&snapshot).client_token("once").send().await?;
    ensure!(made.size() == Some(2) && made.snapshot_id() == Some(snapshot.as_str()));
    let again = from(&snapshot).client_token("once").send().await?;
    ensure!(again.volume_id() == made.volume_id());
    refused(from(&snapshot).size(9).client_token("once").send().await, "IdempotentParameterMismatch");

    let instance = lab.cloud.launch(&lab.template, lab.subnet()).await?;
    let of = aws_sdk_ec2::types::InstanceSpecification::builder().instance_id(&instance).build();
    let all = lab.cloud.ec2().create_snapshots().instance_specification(of).send().await?;
    ensure!(all.snapshots().len() == 1 && all.snapshots()[0].state() == Some(&SnapshotState::Pending));

    // Its volume may go while it is taken: the API forgets it, the machines are still told.
    let late = lab.snapshot_of(&volume).await?;
    ensure!(lab.delete_volume(&volume).await == "ok");
    refused(lab.cloud.ec2().describe_volumes().volume_ids(&volume).send().await, "InvalidVolume.NotFound");
    ensure!(lab.cloud.state().await?.volumes.iter().any(|one| one.id == volume));
    lab.pass(601.0).await?;
    ensure!(lab.shown_snapshot(&late).await?.0 == SnapshotState::Completed);
    ensure!(!lab.cloud.state().await?.volumes.iter().any(|one| one.id == volume));
    let delete = || lab.cloud.ec2().delete_snapshot().snapshot_id(&late).send();
    delete().await?;
    refused(delete().await, "InvalidSnapshot.NotFound");
    Ok(())
}

#[tokio::test]
async fn snapshots_hang_fail_and_are_rationed() -> Result<()> {
    let lab = Lab::new("cloud-snapshots").await?;
    let volume = lab.volume().await?;
    lab.cloud.act(Act::SnapshotHangs).await?;
    let hanging = lab.snapshot_of(&volume).await?;
    lab.pass(36_000.0).await?;
    ensure!(lab.shown_snapshot(&hanging).await? == (SnapshotState::Pending, "42%".to_owned()));
    lab.cloud.act(Act::FailSnapshot { snapshot: hanging.clone() }).await?;
    ensure!(lab.shown_snapshot(&hanging).await?.0 == SnapshotState::Error);
    for _ in 0..5 {
        lab.snapshot_of(&volume).await?;
    }
    let create = || lab.cloud.ec2().create_snapshot().volume_id(&volume);
    refused(create().send().await, "ConcurrentSnapshotLimitExceeded");
    lab.cloud.act(Act::Restore).await?;
    lab.cloud.config(json!({"snapshot_interval_seconds": 60})).await?;
    refused(create().send().await, "SnapshotCreationPerVolumeRateExceeded");
    lab.pass(61.0).await?;
    let tags = TagSpecification::builder()
        .resource_type(ResourceType::Snapshot)
        .tags(Tag::builder().key("generation").value("3").build())
        .build();
    create().tag_specifications(tags).send().await?;
    let filter = aws_sdk_ec2::types::Filter::builder().name("tag:generation").values("3").build();
    ensure!(lab.cloud.ec2().describe_snapshots().filters(filter).send().await?.snapshots().len() == 1);
    let reserved = TagSpecification::builder()
        .resource_type(ResourceType::Snapshot)
        .tags(Tag::builder().key("aws:x").value("3").build())
        .build();
    refused(create().tag_specifications(reserved).send().await, "InvalidParameterValue");

    lab.cloud.act(Act::ZoneClosed { zone: lab.zone().to_owned() }).await?;
    let closed = lab.cloud.ec2().create_volume().availability_zone(lab.zone()).size(1);
    refused(closed.send().await, "InsufficientVolumeCapacity");
    let strange = lab.cloud.ec2().create_volume().availability_zone("xy-north-1a").size(1);
    refused(strange.send().await, "InvalidParameterValue");
    Ok(())
}

#[tokio::test]
async fn followed_by_machines_it_waits_for_them() -> Result<()> {
    let lab = Lab::new("cloud-followed").await?;
    lab.cloud.config(json!({"followed": true})).await?;
    let id = lab.cloud.launch(&lab.template, lab.subnet()).await?;
    let volume = lab.make_volume(lab.zone()).await?;
    lab.pass(3600.0).await?;
    ensure!(lab.cloud.instance(&id).await?.state == "pending");
    ensure!(lab.volume_state(&volume).await? == VolumeState::Creating);
    lab.cloud.acknowledge(&json!({"running": [id], "volumes": [volume]})).await?;
    ensure!(lab.cloud.instance(&id).await?.state == "running");
    ensure!(lab.attach(&volume, &id, "/dev/sdf").await == "ok");
    let pair = json!([{"volume": volume, "instance": id}]);
    lab.pass(3600.0).await?;
    ensure!(lab.attachments(&volume).await? == ["attaching"]);
    lab.cloud.acknowledge(&json!({"attached": pair})).await?;
    ensure!(lab.attachments(&volume).await? == ["attached"]);
    ensure!(lab.detach(&volume).await == "ok");
    lab.pass(3600.0).await?;
    ensure!(lab.attachments(&volume).await? == ["detaching"]);
    lab.cloud.acknowledge(&json!({"detached": pair})).await?;
    ensure!(lab.volume_state(&volume).await? == VolumeState::Available);
    let snapshot = lab.snapshot_of(&volume).await?;
    ensure!(lab.stop(&id).await == "ok");
    lab.pass(3600.0).await?;
    ensure!(lab.shown_snapshot(&snapshot).await?.0 == SnapshotState::Pending);
    ensure!(lab.cloud.instance(&id).await?.state == "stopping");
    lab.cloud.acknowledge(&json!({"snapshots": [snapshot], "stopped": [id]})).await?;
    ensure!(lab.shown_snapshot(&snapshot).await?.0 == SnapshotState::Completed);
    ensure!(lab.cloud.instance(&id).await?.state == "stopped");
    // What it does not know, or has changed since, is passed over.
    lab.cloud.acknowledge(&json!({"stopped": ["i-0123456789abcdef0", id], "running": [id]})).await?;
    ensure!(lab.cloud.instance(&id).await?.state == "stopped");
    Ok(())
}
