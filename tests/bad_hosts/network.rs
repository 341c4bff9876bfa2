//! The network between the operator and a host: gone for a while, for too long, or only good for a banner that never
//! comes.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{counting, ensure_counted, ensure_next_job_runs};
use crate::testbed::gitlab::JobSpec;
use crate::testbed::hosts::{HostSpec, Line};
use crate::testbed::stage::{POOL, Setting, Stage};
use crate::traces::{self, told};

#[tokio::test]
async fn a_job_goes_on_while_its_host_is_silent_for_longer_than_a_connection_lasts() -> Result<()> {
    let stage = Stage::start("silence", Setting::pool(json!({ "ssh": { "dialTimeout": "3s" } }))).await?;
    let id = stage.gitlab.enqueue(counting("silence"));
    stage.until_log(id, "line 3").await?;
    stage.hosts[0].cut(Line::Silent).await?;
    // The stream is given up after 30 s; every new connection waits for a banner that never comes.
    stage.until_host("alder", "Unreachable").await?;
    stage.hosts[0].exec_root("touch /tmp/go").await?;
    stage.hosts[0].heal().await?;
    ensure_counted(&stage.until_over(id).await?)?;
    ensure_next_job_runs(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn resets_killed_sessions_and_a_new_sshd_are_not_seen_in_a_jobs_log() -> Result<()> {
    let stage = Stage::start("sshd", Setting::pool(json!({}))).await?;
    if super::left_out(&stage).await {
        return stage.end().await;
    }
    let host = &stage.hosts[0];
    let id = stage.gitlab.enqueue(counting("sshd"));
    stage.until_log(id, "line 3").await?;
    host.reset_connections().await?;
    stage.until_log(id, "line 15").await?;
    host.kill_sessions().await?;
    stage.until_log(id, "line 40").await?;
    host.restart_sshd(&HostSpec::default()).await?;
    host.kill_sessions().await?;
    stage.until_log(id, "line 70").await?;
    stage.touch("/tmp/go").await?;
    ensure_counted(&stage.until_over(id).await?)?;
    traces::end(stage).await
}

#[tokio::test]
async fn an_sshd_that_allows_one_session_a_connection_is_enough_for_jobs_that_sleep_and_wake() -> Result<()> {
    let pool = json!({ "capacityPerInstance": 3, "isolation": "Shared" });
    let host = HostSpec { max_sessions: 1, ..HostSpec::default() };
    let stage = Stage::start("one-session", Setting { host, pool, ..Setting::default() }).await?;
    let hold = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo kept > file";
    let spec = |n: u32| JobSpec::new(format!("job {n}")).suspendable().suspend_on_success().script([hold]);
    let ids: Vec<_> = (0..2).map(|n| stage.gitlab.enqueue(spec(n))).collect();
    for id in &ids {
        stage.until_log(*id, "begun").await?;
    }
    stage.touch("/tmp/go").await?;
    for id in ids {
        let over = stage.until_over(id).await?;
        let key = over.environment_key.clone().unwrap_or_default();
        stage.asleep(&key).await?;
        let woken = JobSpec::new("wake").suspendable().environment_key(key).script(["cat file"]);
        let woken = stage.run(woken).await?;
        ensure!(woken.log_contains("kept"), "{}", told(&woken));
    }
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(pool["status"]["hosts"][0]["state"] == "Ready", "{pool:#}");
    traces::end(stage).await
}

#[tokio::test]
async fn a_slow_line_carries_a_job_whole() -> Result<()> {
    let stage = Stage::start("slow", Setting::pool(json!({}))).await?;
    let id = stage.gitlab.enqueue(counting("slow"));
    stage.until_log(id, "line 3").await?;
    let slow = Line::Slow { bytes_per_second: 20_000, latency: Duration::from_millis(300) };
    stage.hosts[0].cut(slow).await?;
    stage.until_log(id, "line 60").await?;
    stage.hosts[0].exec_root("touch /tmp/go").await?;
    ensure_counted(&stage.until_over(id).await?)?;
    stage.hosts[0].heal().await?;
    stage.end().await
}
