//! Deaths while environments expire, are released, and are freed from jobs that are gone.

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::at_each;
use crate::suspension::{job, object_of, put_to_sleep, until_gone};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{POOL, Setting, Stage, condition};
use crate::traces::{self, on, text, told, until_on};

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&EXPIRED, &SEEN, &FORCED, &STRAY, &ABANDONED];

const EXPIRED: [&str; 3] = ["environment-expired", "environment-removed", "environment-forgotten"];
const SEEN: [&str; 1] = ["environment-status-written"];
const FORCED: [&str; 1] = ["environment-forced"];
const STRAY: [&str; 3] = ["stray-job-stopped", "environment-refrozen", "environment-unbound"];
const ABANDONED: [&str; 1] = ["environment-abandoned"];

const EMPTY: &str = "ls /var/lib/dormouse/environments";

async fn sleep(stage: &Stage) -> Result<String> {
    Ok(put_to_sleep(stage, job("sleeps").script(["echo kept > marker"])).await?.1)
}

async fn patch(stage: &Stage, object: &str, change: &serde_json::Value) -> Result<()> {
    let change = change.to_string();
    stage.kubectl(&["patch", "suspendedenvironment", object, "--type=merge", "-p", &change]).await?;
    Ok(())
}

#[tokio::test]
async fn an_expired_environment_is_released_whole() -> Result<()> {
    let stage = Stage::start("crash-expired", Setting::pool(json!({}))).await?;
    at_each(&stage, &EXPIRED, async |stage, death| {
        let key = sleep(stage).await?;
        death.arm(stage).await?;
        let soon = Timestamp::now() + SignedDuration::from_secs(2);
        patch(
            stage,
            &object_of(&key)?,
            &json!({ "spec": { "expiresAt": soon.strftime("%FT%TZ").to_string() } }),
        )
        .await?;
        death.fall(stage).await?;
        until_gone(stage, &key).await?;
        until_on(&stage.hosts[0], EMPTY, "").await?;
        until_on(&stage.hosts[0], "ls -d ~/builds/0/group/project 2>/dev/null || echo none", "none").await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn what_is_known_of_an_environment_is_written_again() -> Result<()> {
    let stage = Stage::start("crash-seen", Setting::pool(json!({}))).await?;
    let key = sleep(&stage).await?;
    let name = object_of(&key)?;
    at_each(&stage, &SEEN, async |stage, death| {
        stage.operator()?.kill()?;
        stage.hosts[0].stop().await?;
        death.arm(stage).await?;
        death.fall(stage).await?;
        let is =
            |wanted: &'static str| move |found: &serde_json::Value| condition(found, "Ready").1 == wanted;
        stage.until_object("suspendedenvironment", &name, "its host is away", is("HostUnreachable")).await?;
        stage.hosts[0].start().await?;
        stage.until_object("suspendedenvironment", &name, "it can be resumed", is("Asleep")).await?;
        Ok(())
    })
    .await?;
    // By force it goes although its host is away, and what it left there goes when that returns.
    stage.kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"]).await?;
    at_each(&stage, &FORCED, async |stage, death| {
        let key = sleep(stage).await?;
        stage.operator()?.kill()?;
        stage.hosts[0].stop().await?;
        death.arm(stage).await?;
        let annotation = json!({ "metadata": { "annotations": { "dormouse.dev/force-release": "true" } } });
        patch(stage, &object_of(&key)?, &annotation).await?;
        stage.kubectl(&["delete", "suspendedenvironment", &object_of(&key)?, "--wait=false"]).await?;
        death.fall(stage).await?;
        until_gone(stage, &key).await?;
        stage.hosts[0].start().await?;
        stage.until_hosts("Ready").await?;
        Ok(())
    })
    .await?;
    stage.end().await
}

#[tokio::test]
async fn an_environment_whose_job_vanished_goes_back_to_sleep() -> Result<()> {
    let stage = Stage::start("crash-stray", Setting::pool(json!({}))).await?;
    let key = sleep(&stage).await?;
    at_each(&stage, &STRAY, async |stage, death| {
        let spec = job(&death.name()).environment_key(&key);
        let id = stage.gitlab.enqueue(spec.script(["echo begun; sleep 4242"]));
        stage.until_log(id, "begun").await?;
        stage.operator()?.kill()?;
        // Somebody takes the lease away while nobody looks.
        let lease = format!("{POOL}-{id}");
        let bare = r#"{"metadata":{"finalizers":null}}"#;
        stage.kubectl(&["patch", "joblease", &lease, "--type=merge", "-p", bare]).await?;
        stage.kubectl(&["delete", "joblease", &lease, "--timeout=60s"]).await?;
        stage.gitlab.drop_job(id, "no_updates_running");
        death.arm(stage).await?;
        death.fall(stage).await?;
        let asleep = stage.asleep(&key).await?;
        ensure!(asleep["status"]["boundLease"].is_null(), "{asleep:#}");
        ensure!(!text(&asleep["status"]["lastAccident"]).is_empty(), "{asleep:#}");
        until_on(&stage.hosts[0], "pgrep -fc '[s]leep 4242' || true", "0").await
    })
    .await?;
    let woken = stage.run(job("wakes").environment_key(&key).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_that_never_slept_is_given_up() -> Result<()> {
    let stage = Stage::start("crash-never", Setting::pool(json!({}))).await?;
    at_each(&stage, &ABANDONED, async |stage, death| {
        // One that sleeps lends its spec to one of another id, which no job ever put to sleep.
        let key = sleep(stage).await?;
        let mut object = stage.get("suspendedenvironment", &object_of(&key)?).await?;
        stage.kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"]).await?;
        let name = format!("{POOL}-bbbbbbbbbbbbbbbbbbbb");
        object["metadata"] = json!({
            "name": name, "namespace": stage.namespace, "finalizers": ["dormouse.dev/release"],
        });
        object["spec"]["environmentId"] = json!("bbbbbbbbbbbbbbbbbbbb");
        object.as_object_mut().context("it is no object")?.remove("status");
        death.arm(stage).await?;
        stage.apply(&object).await?;
        death.fall(stage).await?;
        super::until_gone(stage, "suspendedenvironments", &name).await
    })
    .await?;
    // The same after a suspend that the host could not do: its workspace is none any more.
    at_each(&stage, &ABANDONED, async |stage, death| {
        death.arm(stage).await?;
        let script = ["cd /; rm -rf \"$CI_PROJECT_DIR\"; touch \"$CI_PROJECT_DIR\""];
        let id = stage.gitlab.enqueue(job(&death.name()).suspend_on_success().script(script));
        death.fall(stage).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&over));
        stage.lease_over(id).await?;
        on(&stage.hosts[0], "rm -f ~/builds/0/group/project").await?;
        stage.until_none("suspendedenvironments").await
    })
    .await?;
    traces::end(stage).await
}
