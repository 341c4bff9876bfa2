//! Disks of a host that are full or cannot be written to: the job says why, nothing hangs, and with room there is work.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{counting, ensure_next_job_runs, ensure_system_failure};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, told, until_on};

/// Where a host that is logged into as root keeps its state, and the workspaces of its first slot.
const STATE: &str = "/var/lib/dormouse";
const WORKSPACES: &str = "/root/builds";
/// More than the supervisor's own file.
const ROOM: u32 = 48;

const FULL: &str = "No space left on device";

#[tokio::test]
async fn a_disk_that_fills_up_under_the_log_fails_the_job_with_the_reason() -> Result<()> {
    let stage = Stage::start("full-log", Setting::pool(json!({}))).await?;
    if super::left_out(&stage).await {
        return stage.end().await;
    }
    let host = &stage.hosts[0];
    host.limit(STATE, ROOM).await?;
    let script = [
        "trap '' TERM; sleep 2345 & setsid -f sleep 2345",
        "n=0; while n=$((n+1)); do echo line $n; sleep 0.05; done",
    ];
    let id = stage.gitlab.enqueue(JobSpec::new("full").script(script));
    stage.until_log(id, "line 3").await?;
    host.fill(STATE).await?;
    let failed = stage.until_over(id).await?;
    ensure_system_failure(&failed, &format!("the job's log cannot be written: {FULL}"))?;
    stage.lease_over(id).await?;
    until_on(host, "pgrep -fc '[s]leep 2345' || true", "0").await?;

    // While it lasts no job can be written down there: each that comes is told so, and none hangs.
    let refused = stage.run(JobSpec::new("refused").script(["echo never"])).await?;
    ensure_system_failure(&refused, FULL)?;
    ensure!(!refused.log_text().contains("01O never"), "{}", told(&refused));
    host.make_room(STATE).await?;
    ensure_next_job_runs(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_full_workspace_is_the_scripts_own_failure_and_leaves_an_environment_that_sleeps() -> Result<()> {
    let stage = Stage::start("full-work", Setting::pool(json!({}))).await?;
    if super::left_out(&stage).await {
        return stage.end().await;
    }
    let host = &stage.hosts[0];
    host.limit(WORKSPACES, 8).await?;
    let fill = "dd if=/dev/zero of=big bs=1M count=64";
    let plain = stage.run(JobSpec::new("plain").script([fill])).await?;
    ensure!((plain.state, plain.exit_code) == (JobState::Failed, Some(1)), "{}", told(&plain));
    ensure!(plain.failure_reason.as_deref() == Some("script_failure"), "{}", told(&plain));
    ensure!(plain.log_contains(FULL), "{}", told(&plain));

    // Not a byte is left for what a suspend leaves in the workspace: it fails in words and the reason stays. The second
    // name of git's settings keeps their room taken when the job's own files go.
    let sleeper = JobSpec::new("sleeper").suspendable().suspend_on_failure();
    let fill = "rm -f big; ln \"$CI_PROJECT_DIR.tmp/.dormouse-git\" kept; cat /dev/zero > big || exit 4";
    let full = stage.run(sleeper.script([fill])).await?;
    ensure!((full.state, full.exit_code) == (JobState::Failed, Some(4)), "{}", told(&full));
    ensure!(full.log_contains("could not be suspended") && full.log_contains(FULL), "{}", told(&full));
    ensure!(full.environment_key.is_none(), "{}", told(&full));
    let next =
        stage.run(JobSpec::new("next").script(["rm -f big; echo room again > file; cat file"])).await?;
    ensure!(next.state == JobState::Success && next.log_contains("room again"), "{}", told(&next));
    traces::end(stage).await
}

#[tokio::test]
async fn a_state_folder_that_turns_read_only_loses_no_byte_that_was_written() -> Result<()> {
    let stage = Stage::start("read-only", Setting::pool(json!({}))).await?;
    if super::left_out(&stage).await {
        return stage.end().await;
    }
    let host = &stage.hosts[0];
    let id = stage.gitlab.enqueue(counting("read-only"));
    stage.until_log(id, "line 3").await?;
    // What is open stays writable, what is replaced does not: the log goes on and the result cannot be written.
    host.forbid_writes(STATE).await?;
    stage.touch("/tmp/go").await?;
    let lost = stage.until_over(id).await?;
    ensure_system_failure(&lost, "the supervisor that ran the job is gone, and its host cannot tell more")?;
    ensure!(lost.log_contains("Read-only file system"), "{}", told(&lost));
    stage.lease_over(id).await?;
    stage.until_finding("SlotsClean", "False", "Quarantined").await?;
    host.allow_writes(STATE).await?;
    super::until_seen_clean(&stage, id).await?;
    ensure_next_job_runs(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_home_that_cannot_be_written_to_is_said_and_used_once_it_can() -> Result<()> {
    let mut stage = Stage::without_operator("home", &Setting::pool(json!({}))).await?;
    if super::left_out(&stage).await {
        return Ok(());
    }
    let host = &stage.hosts[0];
    let user = host.unprivileged()?;
    host.forbid_writes(&format!("/home/{user}")).await?;
    stage.raise(json!({ "ssh": { "username": user } })).await?;
    let message = stage.until_host("alder", "NotReady").await?;
    ensure!(message.contains("/home/ci/.dormouse") && message.contains("Read-only"), "{message}");
    stage.until_finding("Polling", "False", "NoReachableHost").await?;
    stage.hosts[0].allow_writes(&format!("/home/{user}")).await?;
    stage.until_hosts("Ready").await?;
    ensure_next_job_runs(&stage).await?;

    // Under a job whose workspace lies there: the script's own failure, told as such.
    let id = stage.gitlab.enqueue(JobSpec::new("job").script([
        "echo begun; while [ ! -e /tmp/go ]; do sleep 0.1; done",
        "echo more > $CI_PROJECT_DIR/file || exit 5",
    ]));
    stage.until_log(id, "begun").await?;
    stage.hosts[0].forbid_writes(&format!("/home/{user}/builds")).await?;
    stage.touch("/tmp/go").await?;
    let failed = stage.until_over(id).await?;
    ensure!(failed.exit_code == Some(5) && failed.log_contains("Read-only file system"), "{}", told(&failed));
    stage.hosts[0].allow_writes(&format!("/home/{user}/builds")).await?;
    ensure_next_job_runs(&stage).await?;
    stage.end().await
}
