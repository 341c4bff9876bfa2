//! Changes of volumes and snapshots.

use dormouse::provider::{SnapshotState, VolumeOrder, VolumeState};

use super::*;
use crate::testbed::cloud::Fault;

const DEVICE: &str = "/dev/sdf";

fn order(zone: &str, token: &str) -> VolumeOrder {
    VolumeOrder {
        zone: owned(zone),
        size_gib: 2,
        type_: owned("gp3"),
        encrypted: true,
        kms_key: None,
        snapshot: None,
        tags: ours(),
        token: owned(token),
    }
}

async fn made(lab: &Lab, change: &Change) -> Result<String> {
    match lab.change(change).await? {
        Changed::Made(id) => Ok(id),
        other => anyhow::bail!("{change:?} brought {other:?}"),
    }
}

async fn volume(lab: &Lab, token: &str) -> Result<String> {
    let id = made(lab, &Change::CreateVolume(order(lab.zone(), token))).await?;
    lab.until_volume(&id, "is available", |volume| volume.state == VolumeState::Available).await?;
    Ok(id)
}

fn attach(volume: &str, instance: &str) -> Change {
    Change::Attach { volume: owned(volume), instance: owned(instance), device: owned(DEVICE) }
}

fn detach(volume: &str, instance: &str, force: bool) -> Change {
    Change::DetachVolume { volume: owned(volume), instance: owned(instance), force }
}

fn delete(volume: &str) -> Change {
    Change::DeleteVolume { volume: owned(volume) }
}

#[tokio::test]
async fn a_volume_is_made_once_for_a_wish_even_when_the_answer_is_lost() -> Result<()> {
    let lab = Lab::new("aws-volume").await?;
    let first = volume(&lab, "a-wish").await?;
    ensure!(volume(&lab, "a-wish").await? == first);
    lab.cloud.fault(Fault::cut("ec2", "CreateVolume")).await?;
    let second = volume(&lab, "another-wish").await?;
    let seen = lab.look().await?.volumes;
    ensure!(seen.keys().eq([&first, &second].into_iter().collect::<BTreeSet<_>>()), "{seen:?}");
    let one = &seen[&first];
    ensure!((one.size_gib, one.zone.as_str()) == (2, lab.zone()) && one.tags == ours(), "{one:?}");
    ensure!(one.created_at.is_some() && one.snapshot.is_none() && one.attachment.is_none(), "{one:?}");
    let nowhere = Change::CreateVolume(order("eu-central-1z", "a-third-wish"));
    ensure!(lab.refused(&nowhere).await?.class == ErrorClass::Invalid);
    lab.twice(&delete(&first)).await?;
    lab.twice(&delete("vol-0123456789abcdef0")).await
}

#[tokio::test]
async fn a_volume_goes_on_one_instance_and_off_again() -> Result<()> {
    let lab = Lab::new("aws-attach").await?;
    let (here, there) = (lab.running().await?, lab.running().await?);
    let volume = volume(&lab, "a-wish").await?;
    lab.twice(&attach(&volume, &here)).await?;
    let attached = lab
        .until_volume(&volume, "is attached", |volume| {
            volume.attachment.as_ref().is_some_and(|attachment| attachment.is_attached)
        })
        .await?;
    let attachment = attached.attachment.context("an attachment")?;
    ensure!((attachment.instance.as_str(), attachment.device.as_str()) == (here.as_str(), DEVICE));
    ensure!(lab.look().await?.instances[&here].devices[DEVICE] == volume);
    ensure!(lab.refused(&attach(&volume, &there)).await?.class == ErrorClass::Refused, "it is elsewhere");
    ensure!(lab.refused(&delete(&volume)).await?.class == ErrorClass::Refused, "it is in use");
    lab.twice(&detach(&volume, &there, false)).await.context("it is not on that one")?;
    ensure!(lab.look().await?.volumes[&volume].attachment.is_some());

    // It is busy there: asked twice to go it goes once it can, or by force.
    lab.cloud.config(serde_json::json!({"hold_detaching": true})).await?;
    lab.twice(&detach(&volume, &here, false)).await?;
    let leaving = lab.look().await?.volumes.remove(&volume).and_then(|volume| volume.attachment);
    ensure!(leaving.is_some_and(|attachment| attachment.is_detaching && !attachment.is_attached));
    ensure!(lab.refused(&attach(&volume, &here)).await?.class == ErrorClass::Refused, "it is on its way off");
    lab.change(&detach(&volume, &here, true)).await?;
    lab.until_volume(&volume, "is free", |volume| volume.state == VolumeState::Available).await?;
    lab.twice(&detach(&volume, &here, true)).await?;
    lab.twice(&delete(&volume)).await?;
    ensure!(lab.refused(&detach(&volume, &here, false)).await?.class == ErrorClass::Gone);
    Ok(())
}

#[tokio::test]
async fn a_snapshot_whose_answer_is_lost_is_not_taken_again() -> Result<()> {
    let lab = Lab::new("aws-snapshot").await?;
    let volume = volume(&lab, "a-wish").await?;
    let take = Change::CreateSnapshot { volume: volume.clone(), tags: ours() };
    lab.cloud.fault(Fault::cut("ec2", "CreateSnapshot")).await?;
    let error = lab.refused(&take).await?;
    ensure!(error.class == ErrorClass::Retry, "{error}");
    let snapshot = until("the snapshot is complete", SOON, async || {
        let mut seen = lab.look().await?.snapshots;
        ensure!(seen.len() == 1, "there is no token: whoever asks again looks first: {seen:?}");
        let (_, one) = seen.pop_first().context("one")?;
        Ok((one.state == SnapshotState::Completed).then_some(one))
    })
    .await?;
    ensure!((&snapshot.volume, snapshot.size_gib) == (&volume, 2) && snapshot.tags == ours(), "{snapshot:?}");
    let of_it = VolumeOrder {
        snapshot: Some(snapshot.id.clone()),
        zone: lab.network.subnets[1].zone.clone(),
        ..order(lab.zone(), "of-it")
    };
    let copy = made(&lab, &Change::CreateVolume(of_it)).await?;
    let copy =
        lab.until_volume(&copy, "is available", |volume| volume.state == VolumeState::Available).await?;
    ensure!(copy.snapshot.as_ref() == Some(&snapshot.id) && copy.zone != lab.zone(), "{copy:?}");
    lab.twice(&Change::DeleteSnapshot { snapshot: snapshot.id }).await?;
    lab.twice(&Change::DeleteSnapshot { snapshot: owned("snap-0123456789abcdef0") }).await?;
    let nothing = Change::CreateSnapshot { volume: owned("vol-0123456789abcdef0"), tags: ours() };
    ensure!(lab.refused(&nothing).await?.class == ErrorClass::Gone);
    Ok(())
}
