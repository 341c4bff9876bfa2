//! What a person sees: kubectl's columns and the admin pages.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{POOL, SOON, Setting, Stage, row};
use crate::testbed::wait::until;

/// Fails unless the columns are these, with these values where one is given.
fn expect(screen: &str, columns: &[(&str, Option<&str>)]) -> Result<()> {
    let row = row(screen)?;
    let names: Vec<&str> = row.iter().map(|(name, _)| name.as_str()).collect();
    let wanted: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    ensure!(names == wanted, "columns {names:?} in:\n{screen}");
    for ((name, value), (_, wanted)) in row.iter().zip(columns) {
        match wanted {
            Some(wanted) => ensure!(value == wanted, "{name} is {value:?} in:\n{screen}"),
            None => ensure!(!value.is_empty() && value != "<none>", "{name} is empty in:\n{screen}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_columns_of_each_kind_say_what_matters() -> Result<()> {
    let stage = Stage::start("screens", Setting::pool(json!({ "concurrency": 3 }))).await?;
    let job = JobSpec::new("sleeper").suspendable().suspend_on_failure().script(["exit 6"]);
    let over = stage.run(job).await?;
    let key = over.environment_key.clone().context("no key")?;
    let environment = stage.asleep(&key).await?;
    let environment = environment["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    stage.lease_over(over.id).await?;
    stage
        .until_object("runnerpool", POOL, "the environment is counted", |pool| {
            pool["status"]["environments"]["hot"] == 1 && pool["status"]["jobs"] == "0/3"
        })
        .await?;
    let lease = format!("{POOL}-{}", over.id);
    let id = over.id.to_string();

    let screen = stage.kubectl(&["get", "rp"]).await?;
    let pool = [
        ("NAME", Some(POOL)),
        ("MODE", Some("Active")),
        ("READY", Some("True")),
        ("JOBS", Some("0/3")),
        ("INSTANCES", Some("1/1")),
        ("SLOTS", Some("0/1")),
        ("SUSPENDED", Some("1")),
        ("AGE", None),
    ];
    expect(&screen, &pool)?;
    let screen = stage.kubectl(&["get", "jl"]).await?;
    let columns = [
        ("NAME", Some(lease.as_str())),
        ("POOL", Some(POOL)),
        ("JOB", Some(id.as_str())),
        ("PROJECT", Some("group/project")),
        ("REF", None),
        ("PHASE", Some("Reported")),
        ("INSTANCE", Some("alder")),
        ("SLOT", Some("0")),
        ("EXIT", Some("6")),
        ("AGE", None),
    ];
    expect(&screen, &columns)?;
    let screen = stage.kubectl(&["get", "senv"]).await?;
    let columns = [
        ("NAME", Some(environment.as_str())),
        ("POOL", Some(POOL)),
        ("TIER", Some("Hot")),
        ("PHASE", Some("Suspended")),
        ("PROJECT", Some("group/project")),
        ("REF", None),
        ("JOB", Some(id.as_str())),
        ("INSTANCE", Some("alder")),
        ("SLOT", Some("0")),
        // Hosts of one's own have no volumes.
        ("STORAGE", Some("")),
        ("EXPIRES", None),
        ("AGE", None),
    ];
    expect(&screen, &columns)?;
    let wide = stage.kubectl(&["get", "senv", "-o", "wide"]).await?;
    ensure!(wide.contains("KEY") && wide.contains(&key), "{wide}");
    let wide = stage.kubectl(&["get", "rp", "-o", "wide"]).await?;
    for column in ["POLLING", "SYSTEM-ID", "HOLDER", "REASON", "s_"] {
        ensure!(wide.contains(column), "{column} is missing in:\n{wide}");
    }
    let all = stage.kubectl(&["get", "dormouse", "-o", "name"]).await?;
    for kind in ["runnerpool.dormouse.dev/", "joblease.dormouse.dev/", "suspendedenvironment.dormouse.dev/"] {
        ensure!(all.contains(kind), "{kind} is missing in:\n{all}");
    }
    stage.end().await
}

#[tokio::test]
async fn the_admin_pages_tell_life_readiness_and_figures() -> Result<()> {
    let stage = Stage::start("admin", Setting::pool(json!({ "concurrency": 7 }))).await?;
    let passed = stage.run(JobSpec::new("passes").script(["true"])).await?;
    let failed = stage.run(JobSpec::new("fails").script(["exit 1"])).await?;
    ensure!(passed.state == JobState::Success && failed.state == JobState::Failed);
    stage.lease_over(failed.id).await?;
    let operator = stage.operator()?;
    let (status, life) = operator.page("/livez").await?;
    ensure!(status == 200 && life == "ok", "{status} {life}");
    let (status, gates) = operator.page("/readyz").await?;
    ensure!(status == 200, "{gates}");
    for gate in ["runnerpools-synced", "jobleases-synced", "suspendedenvironments-synced"] {
        ensure!(gates.contains(&format!("[+] {gate}")), "{gates}");
    }
    ensure!(operator.page("/elsewhere").await?.0 == 404);
    // A job is counted after its lease is over.
    let counted = "failure_reason=\"script_failure\",mode=\"traditional\"} 1";
    let metrics = until("the failed job is counted", SOON, async || {
        let metrics = operator.metrics().await?;
        Ok(metrics.contains(counted).then_some(metrics))
    })
    .await?;
    let lines = [
        "gitlab_runner_concurrent 7",
        "executor=\"instance\"} 2",
        "endpoint=\"update_job\",status=\"200\",method=\"put\"}",
        "dormouse_pool_epoch{runner_name=\"pool\"} 1",
        "dormouse_suspended_environments{runner_name=\"pool\"} 0",
        "# EOF",
    ];
    for line in lines {
        ensure!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }
    ensure!(
        !metrics.contains(&stage.runner.token) && !metrics.contains("glrt-"),
        "a token is in the metrics"
    );
    stage.end().await
}
