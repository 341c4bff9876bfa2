//! Environments move to cheaper tiers and come back as they were.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::suspension::{environment, job, key_of, object_of, put_to_sleep, until_gone};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{CloudSetting, SOON, Setting, Stage, row};
use crate::testbed::wait::until;
use crate::traces::{self, text, told};

/// A job that leaves a marker, a repository and a process behind.
pub fn leaves_marks(name: &str) -> JobSpec {
    job(name).script([
        "echo kept > marker",
        "git init -q repo && cd repo && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m one",
        "(exec -a left-behind sleep 4242) & disown",
        "mkdir -p deep && cd deep && export GREETING=hello",
    ])
}

/// A job that looks for them.
pub fn looks_for_marks(name: &str, key: &str) -> JobSpec {
    job(name).environment_key(key).script([
        "cat ../../marker",
        "git log --oneline | cat",
        "echo greeting $GREETING",
        "pgrep -c sleep | sed 's/^/processes /' || echo processes 0",
        "pwd",
    ])
}

/// Asks for a tier.
pub async fn ask(stage: &Stage, key: &str, tier: &str) -> Result<()> {
    let wish = json!({ "spec": { "desiredTier": { "tier": tier, "until": "2099-01-01T00:00:00Z" } } });
    stage.kubectl(&["patch", "senv", &object_of(key)?, "--type=merge", "-p", &wish.to_string()]).await?;
    Ok(())
}

/// Waits until an environment is at a tier and rests there.
pub async fn until_tier(stage: &Stage, key: &str, tier: &str) -> Result<Value> {
    stage
        .until_object("suspendedenvironment", &object_of(key)?, &format!("it is at tier {tier}"), |senv| {
            senv["status"]["tier"] == tier
                && senv["status"]["phase"] == "Suspended"
                && senv["status"]["moving"].is_null()
        })
        .await
}

/// Resumes it, and fails unless everything is there; `processes` says how many of its own the job saw.
pub async fn resume_and_see(stage: &Stage, key: &str, processes: &str) -> Result<()> {
    let woken = stage.run(looks_for_marks("wake", key)).await?;
    ensure!(woken.state == JobState::Success, "{}\n{}", told(&woken), stage.operator_log());
    for line in
        ["kept", "one", "greeting hello", processes, "Skipping the sources: the environment was resumed"]
    {
        ensure!(woken.log_contains(line), "{line}: {}", told(&woken));
    }
    Ok(())
}

/// Fails unless `kubectl get senv` shows where it is kept.
async fn shown(stage: &Stage, key: &str, tier: &str, instance: &str, storage: &str) -> Result<()> {
    let screen = stage.kubectl(&["get", "senv", &object_of(key)?]).await?;
    let row: BTreeMap<String, String> = row(&screen)?.into_iter().collect();
    for (column, wanted) in
        [("TIER", tier), ("PHASE", "Suspended"), ("INSTANCE", instance), ("STORAGE", storage)]
    {
        ensure!(
            row.get(column).is_some_and(|value| value == wanted),
            "{column} is not {wanted:?}:\n{screen}"
        );
    }
    let expires: Timestamp = row.get("EXPIRES").context("no expiry")?.parse().context(screen)?;
    let kept = environment(stage, key).await?;
    ensure!(
        kept["spec"]["expiresAt"] == expires.to_string() && expires > Timestamp::now(),
        "{expires} {kept:#}"
    );
    Ok(())
}

#[tokio::test]
async fn an_environment_that_stays_hot_wakes_at_once_with_its_processes() -> Result<()> {
    let stage = Stage::start("hot", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let instance = text(&environment(&stage, &key).await?["status"]["instance"]);
    shown(&stage, &key, "Hot", &instance, "").await?;
    resume_and_see(&stage, &key, "processes 1").await?;
    until_gone(&stage, &key).await?;
    // It was the same instance all along, and the only one.
    ensure!(cloud.until_members(1).await? == [instance], "{:?}", cloud.members().await?);
    let calls = cloud.cloud.calls(0).await?;
    let launched = calls.iter().filter(|call| call.action == "launched").count();
    ensure!(launched == 1, "{launched} instances were launched");
    traces::end(stage).await
}

#[tokio::test]
async fn a_stopped_environment_leaves_its_group_first_and_comes_back_on_its_disk() -> Result<()> {
    let stage = Stage::start("stopped", Setting::cloud(json!({}))).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let hot = environment(&stage, &key).await?;
    let instance = hot["status"]["instance"].as_str().context("no instance")?.to_owned();
    ask(&stage, &key, "Stopped").await?;
    let stopped = until_tier(&stage, &key, "Stopped").await?;
    ensure!(stopped["status"]["instance"] == instance.as_str(), "{stopped:#}");
    ensure!(cloud.members().await?.is_empty(), "it is still a member");
    shown(&stage, &key, "Stopped", &instance, "").await?;
    stopped_after_detach(&stage, &instance).await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    until_gone(&stage, &key).await?;
    cloud.machines.gone(&instance).await?;
    traces::end(stage).await
}

/// Marked, taken out of its group, protected, and only then stopped: proved from the call log.
async fn stopped_after_detach(stage: &Stage, instance: &str) -> Result<()> {
    let cloud = stage.cloud()?;
    let stop: (&str, &[&str]) = ("StopInstances", &[instance]);
    cloud
        .called_in_order(&[
            ("CreateTags", &[instance, "dormouse.dev/slot-0"]),
            ("DetachInstances", &[instance]),
            stop,
        ])
        .await?;
    cloud.called_in_order(&[("ModifyInstanceAttribute", &[instance, "DisableApiTermination"]), stop]).await?;
    let calls = cloud.cloud.calls(0).await?;
    ensure!(calls.iter().all(|call| call.action != "replaced"), "the group replaced a member: {calls:#?}");
    Ok(())
}

#[tokio::test]
async fn a_hibernated_environment_keeps_its_processes() -> Result<()> {
    let setting =
        CloudSetting { template: |template| template.hibernation = true, ..CloudSetting::default() };
    let pool = json!({ "provider": { "aws": { "stopMode": "Hibernate" } } });
    let stage = Stage::start("hibernated", Setting::cloud(pool).in_cloud(setting)).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    resume_and_see(&stage, &key, "processes 1").await?;
    traces::end(stage).await
}

/// A pool whose slots have volumes.
pub fn with_volumes(changes: Value) -> Setting {
    let mut pool = json!({ "workspaceVolume": { "sizeGiB": 1 } });
    crate::testbed::stage::merge(&mut pool, changes);
    Setting::cloud(pool)
}

#[tokio::test]
async fn a_stopped_environment_on_a_volume_of_its_own_finds_it_mounted_again() -> Result<()> {
    let stage = Stage::start("stopped-volume", with_volumes(json!({}))).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    ask(&stage, &key, "Stopped").await?;
    let stopped = until_tier(&stage, &key, "Stopped").await?;
    let (instance, volume) = (text(&stopped["status"]["instance"]), text(&stopped["status"]["volume"]["id"]));
    shown(&stage, &key, "Stopped", &instance, &format!("{volume} 1Gi")).await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_detached_environment_gives_its_instance_back_and_goes_on_elsewhere() -> Result<()> {
    let pool = json!({ "policies": [{ "idleTime": "2s" }] });
    let stage = Stage::start("detached", with_volumes(pool)).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let instance = environment(&stage, &key).await?["status"]["instance"].clone();
    ask(&stage, &key, "Detached").await?;
    let detached = until_tier(&stage, &key, "Detached").await?;
    let volume = detached["status"]["volume"]["id"].as_str().context("no volume")?.to_owned();
    ensure!(detached["status"]["instance"].is_null() && detached["status"]["processes"] == 0, "{detached:#}");
    shown(&stage, &key, "Detached", "", &format!("{volume} 1Gi")).await?;
    let used = &detached["status"]["usage"];
    ensure!(used["until"].is_string() && used["dollars"].as_str() > Some("0.000000"), "{detached:#}");
    // Nothing needs the instance any more.
    let instance = instance.as_str().context("no instance")?;
    cloud.machines.gone(instance).await?;
    cloud
        .called_in_order(&[
            ("DetachVolume", &[&volume]),
            ("TerminateInstanceInAutoScalingGroup", &[instance]),
        ])
        .await?;
    resume_and_see(&stage, &key, "processes 0").await?;
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_snapshotted_environment_keeps_no_volume_and_comes_back_from_its_snapshot() -> Result<()> {
    let pool = json!({
        "policies": [{ "idleTime": "2s" }],
        "suspension": { "demotion": [{ "after": "1s", "to": "Detached" }, { "after": "2s", "to": "Snapshotted" }] },
    });
    let stage = Stage::start("snapshotted", with_volumes(pool)).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let kept = until_tier(&stage, &key, "Snapshotted").await?;
    let snapshot = kept["status"]["snapshot"]["id"].as_str().context("no snapshot")?.to_owned();
    let name = object_of(&key)?;
    stage
        .until_object("suspendedenvironment", &name, "its volume is gone", |senv| {
            senv["status"]["volume"].is_null()
        })
        .await?;
    shown(&stage, &key, "Snapshotted", "", &format!("{snapshot} 1Gi")).await?;
    // Its volume was there until the snapshot held everything.
    let shots = stage.cloud()?.cloud.state().await?.snapshots;
    let volume = shots.into_iter().find(|known| known.id == snapshot).context("no snapshot")?.volume;
    stage
        .cloud()?
        .called_in_order(&[
            ("CreateSnapshot", &[&volume]),
            ("snapshot-completed", &[&snapshot]),
            ("DeleteVolume", &[&volume]),
        ])
        .await?;
    // Long enough awake to be looked at: it sleeps again, and is demoted again under the same key.
    let again = looks_for_marks("again", &key).suspend_on_success();
    let again = stage.run(again).await?;
    ensure!(again.state == JobState::Success && again.log_contains("kept"), "{}", told(&again));
    ensure!(key_of(&again)? == key);
    let kept = until_tier(&stage, &key, "Snapshotted").await?;
    ensure!(kept["status"]["revision"] == 1, "{kept:#}");
    ensure!(
        kept["status"]["snapshot"]["id"] != snapshot.as_str(),
        "an old snapshot was taken for the new: {kept:#}"
    );
    stage.kubectl(&["delete", "senv", &name, "--wait=false"]).await?;
    until_gone(&stage, &key).await?;
    let last = kept["status"]["snapshot"]["id"].as_str().context("no snapshot")?.to_owned();
    until("nothing is left of it in the cloud", SOON, async || {
        let state = stage.cloud()?.cloud.state().await?;
        let is_left = state.snapshots.iter().any(|known| [&snapshot, &last].contains(&&known.id));
        Ok((!is_left).then_some(()))
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_cloud_that_shows_every_change_late_costs_an_environment_nothing() -> Result<()> {
    let late = CloudSetting { config: json!({ "eventual_seconds": 3 }), zones: 1, ..CloudSetting::default() };
    let stage = Stage::start("late", with_volumes(json!({})).in_cloud(late)).await?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    for (number, tier) in ["Stopped", "Detached", "Snapshotted"].into_iter().enumerate() {
        ask(&stage, &key, tier).await?;
        until_tier(&stage, &key, tier).await?;
        // It would go there again after the job.
        stage.forget_asked_tier(&key).await?;
        let again = looks_for_marks(&format!("from-{tier}"), &key).suspend_on_success();
        let again = stage.run(again).await?;
        ensure!(again.state == JobState::Success && again.log_contains("kept"), "{}", told(&again));
        ensure!(key_of(&again)? == key, "{tier}: another key");
        let asleep = stage.asleep(&key).await?;
        ensure!(asleep["status"]["revision"] == number + 1, "{asleep:#}");
        stage.lease_over(again.id).await?;
    }
    let late = stage.cloud()?.cloud.calls(0).await?;
    for (action, count) in [("CreateSnapshot", 1), ("StopInstances", 1), ("DetachInstances", 1)] {
        let made = late.iter().filter(|call| call.did(action, &[])).count();
        ensure!(made == count, "{action} was called {made} times: what is not shown yet was done again");
    }
    stage.kubectl(&["delete", "senv", &object_of(&key)?, "--wait=false"]).await?;
    until_gone(&stage, &key).await?;
    until("no snapshot is left", SOON, async || {
        Ok(super::failures::snapshots(&stage).await?.is_empty().then_some(()))
    })
    .await?;
    traces::end(stage).await
}
