//! Changes of instances, tags, and keys for a minute.

use aws_sdk_ec2::types::AttributeBooleanValue;

use super::*;
use crate::testbed::cloud::{Act, Fault};

fn stop(instance: &str, hibernate: bool) -> Change {
    Change::Stop { instance: owned(instance), hibernate, force: false }
}

fn start(instance: &str) -> Change {
    Change::Start { instance: owned(instance) }
}

fn terminate(instance: &str) -> Change {
    Change::Terminate { instance: owned(instance) }
}

#[tokio::test]
async fn an_instance_stops_and_starts_and_says_what_it_cannot() -> Result<()> {
    let lab = Lab::new("aws-stop").await?;
    let instance = lab.running().await?;
    lab.twice(&start(&instance)).await.context("it runs")?;
    lab.twice(&stop(&instance, false)).await?;
    let stopped = lab.until_state(&instance, InstanceState::Stopped).await?;
    ensure!(stopped.state_reason.as_deref() == Some("Client.UserInitiatedShutdown"), "{stopped:?}");
    lab.twice(&stop(&instance, false)).await.context("it is stopped")?;
    lab.twice(&start(&instance)).await?;
    lab.until_state(&instance, InstanceState::Running).await?;

    let error = lab.refused(&stop(&instance, true)).await?;
    ensure!(
        error.class == ErrorClass::Refused && error.code == "UnsupportedHibernationConfiguration",
        "{error}"
    );
    ensure!(lab.refused(&stop(NOWHERE, false)).await?.class == ErrorClass::Gone);
    ensure!(lab.refused(&start(NOWHERE)).await?.class == ErrorClass::Gone);
    lab.twice(&terminate(&instance)).await?;
    lab.until_state(&instance, InstanceState::Terminated).await?;
    ensure!(lab.refused(&start(&instance)).await?.class == ErrorClass::Refused);
    Ok(())
}

#[tokio::test]
async fn what_hangs_is_stopped_by_force() -> Result<()> {
    let lab = Lab::new("aws-force").await?;
    let instance = lab.running().await?;
    lab.cloud.act(Act::StopHangs { instance: Some(instance.clone()) }).await?;
    lab.change(&stop(&instance, false)).await?;
    lab.until_state(&instance, InstanceState::Stopping).await?;
    lab.twice(&Change::Stop { instance: instance.clone(), hibernate: false, force: true }).await?;
    lab.until_state(&instance, InstanceState::Stopped).await?;
    Ok(())
}

#[tokio::test]
async fn a_kept_instance_is_terminated_by_us_and_by_nobodys_slip() -> Result<()> {
    let lab = Lab::new("aws-keep").await?;
    let instance = lab.running().await?;
    lab.twice(&Change::Keep { instance: instance.clone() }).await?;
    let slip = lab.cloud.ec2().terminate_instances().instance_ids(&instance).send().await;
    ensure!(slip.is_err(), "it was protected from that");
    // A stranger's guard is taken away as well.
    let guard = AttributeBooleanValue::builder().value(true).build();
    let attribute = lab.cloud.ec2().modify_instance_attribute().instance_id(&instance);
    attribute.disable_api_stop(guard).send().await?;
    lab.twice(&terminate(&instance)).await?;
    lab.until_state(&instance, InstanceState::Terminated).await?;
    lab.twice(&terminate(&instance)).await.context("it is gone")?;
    lab.twice(&terminate(NOWHERE)).await.context("it never was")?;
    let keep = Change::Keep { instance: owned(NOWHERE) };
    ensure!(lab.refused(&keep).await?.class == ErrorClass::Gone);
    Ok(())
}

#[tokio::test]
async fn tags_are_put_on_and_taken_off_and_others_stay() -> Result<()> {
    let lab = Lab::new("aws-tags").await?;
    let (one, other) = (lab.running().await?, lab.running().await?);
    let both = vec![one.clone(), other.clone()];
    let odd = "a/b%20c+d=e ü";
    lab.twice(&Change::Tag { ids: both.clone(), tags: tagged(&[("a", odd), ("b", ""), ("c", "3")]) }).await?;
    let seen = lab.look().await?.instances;
    ensure!(both.iter().all(|id| seen[id].tags["a"] == odd && seen[id].tags["b"].is_empty()));
    lab.twice(&Change::Untag { ids: both.clone(), keys: vec![owned("a"), owned("never")] }).await?;
    let seen = lab.look().await?.instances;
    ensure!(both.iter().all(|id| !seen[id].tags.contains_key("a") && seen[id].tags["c"] == "3"));
    lab.twice(&Change::Untag { ids: both.clone(), keys: Vec::new() }).await.context("nothing is nothing")?;
    ensure!(lab.look().await?.instances[&one].tags["c"] == "3");

    // One that does not exist does not keep the others from it.
    for action in ["CreateTags", "DeleteTags"] {
        let fault = Fault::error("ec2", action, 400, "InvalidInstanceID.NotFound");
        lab.cloud.fault(fault.only("ResourceId", NOWHERE).always()).await?;
    }
    let with_nowhere = vec![owned(NOWHERE), one.clone(), other];
    let error = lab.refused(&Change::Tag { ids: with_nowhere.clone(), tags: tagged(&[("d", "4")]) }).await?;
    ensure!(error.class == ErrorClass::Gone, "{error}");
    ensure!(lab.look().await?.instances[&one].tags["d"] == "4");
    lab.twice(&Change::Untag { ids: with_nowhere, keys: vec![owned("d")] }).await?;
    ensure!(!lab.look().await?.instances[&one].tags.contains_key("d"));
    Ok(())
}

#[tokio::test]
async fn a_key_is_put_on_a_running_instance() -> Result<()> {
    let lab = Lab::new("aws-connect").await?;
    let instance = lab.running().await?;
    let push = |instance: &str, zone: &str| Change::PushKey {
        instance: owned(instance),
        zone: owned(zone),
        username: owned("ci"),
        key: owned(KEY),
    };
    lab.twice(&push(&instance, lab.zone())).await?;
    let keys = lab.cloud.state().await?.pushed_keys;
    ensure!(
        keys.iter().any(|key| key.instance == instance && key.user == "ci" && key.key == KEY),
        "{keys:?}"
    );
    ensure!(lab.refused(&push(&instance, "eu-central-1z")).await?.class == ErrorClass::Invalid);
    ensure!(lab.refused(&push(NOWHERE, lab.zone())).await?.class == ErrorClass::Gone);
    lab.change(&stop(&instance, false)).await?;
    lab.until_state(&instance, InstanceState::Stopped).await?;
    ensure!(lab.refused(&push(&instance, lab.zone())).await?.class == ErrorClass::Refused);
    Ok(())
}
