//! A cluster that was restored from a backup has forgotten environments: they get their objects again.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::failures::leap;
use super::tiers::{ask, leaves_marks, resume_and_see, until_tier, with_volumes};
use crate::suspension::{job, object_of, put_to_sleep, until_gone};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, told};

/// Longer than anything is left alone because it is new.
const AN_AGE: u32 = 5 * 60;

/// Longer than what nobody knows is left alone once it is marked.
const THE_GRACE: u32 = 16 * 60;

/// Takes objects away as a restored backup does: at once, past their finalizers, while no operator looks.
async fn forget(stage: &Stage, keys: &[String]) -> Result<()> {
    stage.operator()?.terminate().await?;
    for key in keys {
        let name = object_of(key)?;
        let released = json!({ "metadata": { "finalizers": null } }).to_string();
        stage.kubectl(&["patch", "senv", &name, "--type=merge", "-p", &released]).await?;
        stage.kubectl(&["delete", "senv", &name, "--wait=true"]).await?;
    }
    stage.gitlab.client_restarted();
    stage.operator()?.start_again().await
}

/// Waits for the marks of so many things, and lets their grace pass.
async fn until_marked(stage: &Stage, things: usize) -> Result<()> {
    leap(stage, AN_AGE).await?;
    until("what nobody knows is marked", SOON, async || {
        let calls = stage.cloud()?.cloud.calls(0).await?;
        let marks = calls.iter().filter(|call| {
            call.action == "CreateTags" && json!(call.params).to_string().contains("dormouse.dev/orphaned-at")
        });
        Ok((marks.count() >= things).then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    ensure!(
        stage.list("suspendedenvironments").await?.is_empty(),
        "it has an object before the grace is over"
    );
    leap(stage, AN_AGE + THE_GRACE).await
}

/// Waits for the object.
async fn until_adopted(stage: &Stage, key: &str, tier: &str) -> Result<Value> {
    let adopted = until_tier(stage, key, tier).await?;
    traces::event(stage, &object_of(key)?, "Adopted").await?;
    ensure!(adopted["status"]["environmentKey"] == key, "{adopted:#}");
    Ok(adopted)
}

/// An environment whose object was lost and made again, before and after.
struct Adopted {
    key: String,
    before: Value,
    now: Value,
}

/// Puts one to sleep at a tier, has its object forgotten, and waits until it is adopted.
async fn adopted_at(stage: &Stage, tier: &str) -> Result<Adopted> {
    let (_, key) = put_to_sleep(stage, leaves_marks("first")).await?;
    ask(stage, &key, tier).await?;
    let before = until_tier(stage, &key, tier).await?;
    if tier == "Snapshotted" {
        // Until then what it came from is there too, and would be adopted first.
        let is_alone = |known: &Value| known["status"]["volume"].is_null();
        stage.until_object("suspendedenvironment", &object_of(&key)?, "its volume is gone", is_alone).await?;
    }
    forget(stage, std::slice::from_ref(&key)).await?;
    until_marked(stage, 1).await?;
    let now = until_adopted(stage, &key, tier).await?;
    Ok(Adopted { key, before, now })
}

/// Resumes one whose object was all that knew its working directory: its workspace is whole, and the job is told.
async fn resume_in_the_project_folder(stage: &Stage, key: &str) -> Result<()> {
    let wake = job("wake").environment_key(key).script(["cat marker", "git -C repo log --oneline | cat"]);
    let woken = stage.run(wake).await?;
    ensure!(woken.state == JobState::Success, "{}\n{}", told(&woken), stage.operator_log());
    for line in ["kept", "one", "the script begins in the project folder"] {
        ensure!(woken.log_contains(line), "{line}: {}", told(&woken));
    }
    until_gone(stage, key).await
}

#[tokio::test]
async fn an_environment_on_a_stopped_instance_gets_its_object_again_and_is_resumed() -> Result<()> {
    let stage = Stage::start("adopt-instance", Setting::cloud(json!({}))).await?;
    let Adopted { key, before, now } = adopted_at(&stage, "Stopped").await?;
    ensure!(now["status"]["instance"] == before["status"]["instance"], "{now:#}");
    ensure!(now["spec"]["origin"] == before["spec"]["origin"], "{now:#}");
    ensure!(now["spec"]["expiresAt"] == before["spec"]["expiresAt"], "{now:#}");
    resume_and_see(&stage, &key, "processes 0").await?;
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn environments_that_share_a_stopped_instance_get_their_objects_again_and_are_resumed() -> Result<()> {
    let pool = json!({ "capacityPerInstance": 2, "isolation": "PerSlotUser" });
    let stage = Stage::start("adopt-both", with_volumes(pool)).await?;
    let mut keys = Vec::new();
    for name in ["one", "two"] {
        keys.push(put_to_sleep(&stage, leaves_marks(name)).await?.1);
    }
    let mut before = Vec::new();
    for key in &keys {
        ask(&stage, key, "Stopped").await?;
    }
    for key in &keys {
        before.push(until_tier(&stage, key, "Stopped").await?);
    }
    ensure!(before[0]["status"]["instance"] == before[1]["status"]["instance"], "not packed: {before:#?}");
    forget(&stage, &keys).await?;
    // The instance and two volumes.
    until_marked(&stage, 3).await?;
    for (key, before) in keys.iter().zip(&before) {
        let now = until_adopted(&stage, key, "Stopped").await?;
        for field in ["instance", "slot", "volume"] {
            ensure!(now["status"][field] == before["status"][field], "{field}: {now:#}");
        }
        ensure!(now["spec"]["origin"] == before["spec"]["origin"], "{now:#}");
    }
    for key in &keys {
        resume_and_see(&stage, key, "processes 0").await?;
        until_gone(&stage, key).await?;
    }
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_on_a_volume_gets_its_object_again_and_is_resumed() -> Result<()> {
    let stage = Stage::start("adopt-volume", with_volumes(json!({}))).await?;
    let Adopted { key, before, now } = adopted_at(&stage, "Detached").await?;
    ensure!(now["status"]["volume"] == before["status"]["volume"], "{now:#}");
    resume_in_the_project_folder(&stage, &key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_in_a_snapshot_gets_its_object_again_and_is_resumed() -> Result<()> {
    let stage = Stage::start("adopt-snapshot", with_volumes(json!({}))).await?;
    let Adopted { key, before, now } = adopted_at(&stage, "Snapshotted").await?;
    ensure!(now["status"]["snapshot"]["id"] == before["status"]["snapshot"]["id"], "{now:#}");
    resume_in_the_project_folder(&stage, &key).await?;
    traces::end(stage).await
}
