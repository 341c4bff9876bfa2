//! Jobs and their processes: killed from inside, left behind, reading where nothing comes, without number.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, on, told, until_on};

#[tokio::test]
async fn a_script_that_kills_its_own_process_group_fails_by_its_signal() -> Result<()> {
    let stage = Stage::start("own-group", Setting::default()).await?;
    for (kill, code) in [("kill -KILL 0", 137), ("kill -TERM 0; sleep 60", 1), ("kill -KILL $$", 137)] {
        let spec =
            JobSpec::new(kill).script(["echo begun", kill]).after_script(["echo after $CI_JOB_STATUS"]);
        let killed = stage.run(spec).await?;
        ensure!((killed.state, killed.exit_code) == (JobState::Failed, Some(code)), "{}", told(&killed));
        ensure!(killed.failure_reason.as_deref() == Some("script_failure"), "{}", told(&killed));
        ensure!(killed.log_contains("after failed"), "{}", told(&killed));
    }
    traces::end(stage).await
}

/// A child of its own session, a grandchild nobody waits for, and one that has taken its name and descriptors away.
const DAEMONS: &str = "setsid -f bash -c 'while :; do date +%N > one; sleep 0.05; done'; \
     (bash -c '(while :; do date +%N > two; sleep 0.05; done) &' &); \
     setsid -f env -i bash -c 'exec -a innocent bash -c \"exec >/dev/null 2>&1 </dev/null; \
     while :; do date +%N > three; sleep 0.05; done\"'; \
     until [ -s one ] && [ -s two ] && [ -s three ]; do sleep 0.05; done";
const FILES: &str = "cd ~/builds/0/group/project && cat one two three";
const ALIVE: &str = "pgrep -fc 'date [+]%N' || true";

#[tokio::test]
async fn daemons_are_gone_at_the_end_and_kept_still_by_a_suspend() -> Result<()> {
    let stage = Stage::start("daemons", Setting::default()).await?;
    let host = &stage.hosts[0];
    let plain = stage.run(JobSpec::new("plain").script([DAEMONS])).await?;
    ensure!(plain.state == JobState::Success, "{}", told(&plain));
    stage.lease_over(plain.id).await?;
    until_on(host, ALIVE, "0").await?;

    let sleeper = JobSpec::new("sleeper").suspendable().suspend_on_success();
    let asleep = stage.run(sleeper.script(["rm -f one two three", DAEMONS])).await?;
    let key = asleep.environment_key.clone().unwrap_or_default();
    stage.asleep(&key).await?;
    let still = on(host, FILES).await?;
    ensure!(on(host, ALIVE).await?.parse::<u32>()? >= 3, "they are gone");
    on(host, "sleep 0.5").await?;
    ensure!(on(host, FILES).await? == still, "they run in their sleep");

    let moved = "for file in one two three; do old=$(cat $file); \
                 until [ \"$(cat $file)\" != \"$old\" ]; do sleep 0.05; done; done; echo all of them run";
    let woken = stage.run(JobSpec::new("wake").suspendable().environment_key(&key).script([moved])).await?;
    ensure!(woken.log_contains("01O all of them run"), "{}", told(&woken));
    stage.until_none("suspendedenvironments").await?;
    until_on(host, ALIVE, "0").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn whoever_reads_from_the_terminal_or_from_standard_input_reads_nothing_and_does_not_wait() -> Result<()>
{
    let stage = Stage::start("stdin", Setting::default()).await?;
    let readers = JobSpec::new("readers").script([
        "cat; echo read by cat: $?",
        "read -r line || echo nothing to read",
        "bash -c 'cat' | wc -c",
        "(head -c 1 /dev/tty) 2>&1 || echo no terminal",
        "test -t 0 || echo not a terminal",
    ]);
    let readers = stage.run(readers.after_script(["cat; echo after has read"])).await?;
    ensure!(readers.state == JobState::Success, "{}", told(&readers));
    for text in
        ["read by cat: 0", "01O nothing to read", "01O no terminal", "01O not a terminal", "after has read"]
    {
        ensure!(readers.log_contains(text), "{text:?}: {}", told(&readers));
    }
    traces::end(stage).await
}

#[tokio::test]
async fn a_job_that_only_starts_processes_is_stopped_at_its_limit_and_its_neighbours_work_on() -> Result<()> {
    let pool = json!({ "pidsLimit": 200, "capacityPerInstance": 2, "isolation": "Shared" });
    let stage = Stage::start("bomb", Setting { pool, ..Setting::default() }).await?;
    let host = &stage.hosts[0];
    if super::super::bad_hosts::left_out(&stage).await {
        return stage.end().await;
    }
    let neighbour = JobSpec::new("neighbour").script([
        "echo begun; until [ -e /tmp/go ]; do sleep 0.1; done; for i in $(seq 1 50); do /bin/true; done; echo unharmed",
    ]);
    let neighbour = stage.gitlab.enqueue(neighbour);
    stage.until_log(neighbour, "begun").await?;
    // Bounded in case nothing stops it: a thousand at most, each for a minute.
    let bomb = "for i in $(seq 1 1000); do sleep 61 & done; echo all were started";
    let bomb = stage.gitlab.enqueue(JobSpec::new("bomb").script([bomb]));
    let bombed = stage.until_over(bomb).await?;
    stage.touch("/tmp/go").await?;
    ensure!(bombed.state == JobState::Failed, "{}", told(&bombed));
    ensure!(bombed.failure_reason.as_deref() == Some("script_failure"), "{}", told(&bombed));
    ensure!(bombed.log_contains("Resource temporarily unavailable"), "{}", told(&bombed));
    let said = "the job had as many processes as it may, 200 (spec.pidsLimit): further ones were refused";
    ensure!(bombed.log_text().matches(said).count() == 1, "{}", told(&bombed));
    ensure!(!bombed.log_contains("01O all were started"), "{}", told(&bombed));
    let unharmed = stage.until_over(neighbour).await?;
    ensure!(unharmed.log_contains("01O unharmed"), "{}", told(&unharmed));
    stage.lease_over(bomb).await?;
    until_on(host, "pgrep -fc '[s]leep 61' || true", "0").await?;
    // Nothing that counted them is left, in either tree.
    until_on(host, "find /sys/fs/cgroup /run/pids -name 'dormouse-*' 2>/dev/null | wc -l", "0").await?;
    traces::end(stage).await
}
