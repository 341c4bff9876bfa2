//! How a sleeping environment ends: by kubectl, by its TTL, and what of it may be edited.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{environment, held, job, object_of, put_to_sleep, until_gone};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{SOON, Setting, Stage, condition};
use crate::testbed::wait::until;
use crate::traces::{self, event, on, text, told, until_on};

const WORKSPACE: &str = "~/builds/0/group/project";
const SLEEPER: &str = "(exec -a left-behind sleep 4242) & disown";

#[tokio::test]
async fn deleting_it_gives_back_workspace_processes_and_state() -> Result<()> {
    let stage = Stage::start("delete", Setting::default()).await?;
    let host = &stage.hosts[0];
    let (_, key) = put_to_sleep(&stage, job("first").script(["touch marker", SLEEPER])).await?;
    let asleep = environment(&stage, &key).await?;
    ensure!(asleep["status"]["processes"].as_u64() >= Some(1), "{asleep:#}");
    ensure!(
        on(host, "pgrep -c sleep").await? == "1" && on(host, &format!("ls {WORKSPACE}")).await? == "marker"
    );
    let columns = stage.kubectl(&["get", "senv", "--no-headers"]).await?;
    for word in ["pool", "Hot", "Suspended", "group/project", "alder"] {
        ensure!(columns.split_whitespace().any(|column| column == word), "{word}: {columns}");
    }

    stage.kubectl(&["delete", "senv", &object_of(&key)?, "--timeout=60s"]).await?;
    ensure!(on(host, "pgrep -c sleep || true").await? == "0", "a process of it is left");
    ensure!(on(host, &format!("ls -d {WORKSPACE} {WORKSPACE}.tmp 2>/dev/null || true")).await?.is_empty());
    ensure!(on(host, "ls /var/lib/dormouse/environments").await?.is_empty());
    let late = stage.run(job("late").environment_key(&key).script(["echo never"])).await?;
    ensure!(late.log_contains("the environment does not exist"), "{}", told(&late));
    traces::end(stage).await
}

#[tokio::test]
async fn deleted_while_a_job_runs_in_it_the_job_keeps_its_result_and_the_trigger_is_ignored() -> Result<()> {
    let stage = Stage::start("delete-bound", Setting::default()).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["touch marker"])).await?;
    let spec = job("again").environment_key(&key).suspend_on_success().suspend_on_failure();
    let id = stage.gitlab.enqueue(spec.script(held(&["ls marker", "exit 8"])));
    stage.until_log(id, "waits").await?;
    let name = object_of(&key)?;
    stage.kubectl(&["delete", "senv", &name, "--wait=false"]).await?;
    stage
        .until_object("senv", &name, "it waits for its job", |environment| {
            condition(environment, "Released").1 == "BoundToJob"
        })
        .await?;
    on(&stage.hosts[0], "touch /tmp/go").await?;
    let over = stage.until_over(id).await?;
    ensure!((over.state, over.exit_code) == (JobState::Failed, Some(8)), "{}", told(&over));
    ensure!(over.failure_reason.as_deref() == Some("script_failure") && over.environment_key.is_none());
    let line = "The job environment was released while the job ran; it is not suspended again";
    ensure!(over.log_contains(line), "{}", told(&over));
    until_gone(&stage, &key).await?;
    until_on(&stage.hosts[0], &format!("ls -d {WORKSPACE} 2>/dev/null || echo none"), "none").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn it_expires_at_its_time_and_not_under_a_running_job() -> Result<()> {
    let pool = json!({ "retention": { "defaultTTL": "4s", "maxTTL": "1h" } });
    let stage = Stage::start("expiry", Setting { pool, ..Setting::default() }).await?;
    let (first, key) = put_to_sleep(&stage, job("first").script(["touch marker"])).await?;
    let name = object_of(&key)?;
    let expires_at: jiff::Timestamp =
        text(&environment(&stage, &key).await?["spec"]["expiresAt"]).parse().context("expiresAt")?;
    let held_job = job("hold").environment_key(&key).script(held(&["ls marker"]));
    let held_job = stage.gitlab.enqueue(held_job);
    stage.until_log(held_job, "waits").await?;
    until("its time is over", SOON, async || Ok((jiff::Timestamp::now() > expires_at).then_some(()))).await?;
    let late = stage.run(job("late").environment_key(&key).script(["echo never"])).await?;
    ensure!(late.log_contains("the environment expired at"), "{}", told(&late));
    let bound = environment(&stage, &key).await?;
    ensure!(
        bound["status"]["phase"] == "InUse" && bound["metadata"]["deletionTimestamp"].is_null(),
        "{bound:#}"
    );
    on(&stage.hosts[0], "touch /tmp/go").await?;
    let over = stage.until_over(held_job).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    until_gone(&stage, &key).await?;

    let (_, key) = put_to_sleep(&stage, job("second").script(["touch marker"])).await?;
    let name_of_second = object_of(&key)?;
    until_gone(&stage, &key).await?;
    event(&stage, &name_of_second, "Expired").await?;
    ensure!(on(&stage.hosts[0], &format!("ls -d {WORKSPACE} 2>/dev/null || true")).await?.is_empty());
    ensure!(name != name_of_second && first.environment_key.is_some());
    traces::end(stage).await
}

#[tokio::test]
async fn people_may_move_its_expiry_up_to_the_ceiling_and_change_nothing_else() -> Result<()> {
    let pool = json!({ "retention": { "defaultTTL": "10m", "maxTTL": "1h" } });
    let stage = Stage::start("edits", Setting { pool, ..Setting::default() }).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["true"])).await?;
    let name = object_of(&key)?;
    let spec = environment(&stage, &key).await?["spec"].clone();
    let patch = async |change: serde_json::Value| {
        let change = json!({ "spec": change }).to_string();
        stage.kubectl(&["patch", "senv", &name, "--type=merge", "-p", &change]).await
    };
    patch(json!({ "expiresAt": spec["notAfter"] })).await?;
    for (change, words) in [
        (json!({ "expiresAt": "2199-01-01T00:00:00Z" }), "must not be after spec.notAfter"),
        (json!({ "origin": { "projectId": 8 } }), "only spec.expiresAt and spec.desiredTier may be changed"),
        (json!({ "workspacePath": "/etc" }), "only spec.expiresAt and spec.desiredTier may be changed"),
        (json!({ "notAfter": "2199-01-01T00:00:00Z" }), "only expiresAt may be"),
    ] {
        let refused = patch(change.clone()).await.err().with_context(|| format!("{change} was taken"))?;
        ensure!(format!("{refused:#}").contains(words), "{change}: {refused:#}");
    }
    let now = jiff::Timestamp::now().to_string();
    patch(json!({ "expiresAt": now })).await?;
    until_gone(&stage, &key).await?;
    event(&stage, &name, "Expired").await?;
    traces::end(stage).await
}
