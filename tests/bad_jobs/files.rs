//! Jobs and their files: names of any bytes, trees of any depth, folders nobody may write to. Each is cleaned up.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{GitRepo, JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, on, told, until_on};

/// Everything a folder can be made of by somebody without privileges.
const ODD: &str = "mkdir -p odd && cd odd && touch -- $'new\\nline' -rf '*' $'\\377\\376' ' ' \"$(printf 'x%.0s' $(seq 250))\" \
     && mkfifo pipe && ln -s / root && ln -s loop loop && mkdir -p -- -- $'\\001' && cd .. \
     && (for i in $(seq 1 200); do mkdir deep-folder-of-some-length && cd deep-folder-of-some-length || exit 3; done; touch bottom)";
const CLOSED: &str =
    "mkdir -p closed/within && touch closed/within/file && chmod -R a-w . && chmod 000 closed/within";

fn unprivileged(stage: &Stage) -> Result<serde_json::Value> {
    Ok(json!({ "ssh": { "username": stage.hosts[0].unprivileged()? } }))
}

#[tokio::test]
async fn a_workspace_of_any_kind_sleeps_wakes_and_is_removed_whole() -> Result<()> {
    let mut stage = Stage::without_operator("odd-files", &Setting::default()).await?;
    if super::super::bad_hosts::left_out(&stage).await {
        return Ok(());
    }
    // Without root, whose rights would hide what a closed folder means.
    stage.raise(unprivileged(&stage)?).await?;
    stage.until_hosts("Ready").await?;
    let sleeper = JobSpec::new("sleeper").suspendable().suspend_on_success();
    let first = stage.run(sleeper.script([ODD, "ls odd | wc -l"])).await?;
    ensure!(first.state == JobState::Success, "{}", told(&first));
    let key = first.environment_key.clone().unwrap_or_default();
    stage.asleep(&key).await?;
    let resume = JobSpec::new("wake").suspendable().suspend_on_success().environment_key(&key);
    let woken = stage.run(resume.script(["ls odd | grep -c .", CLOSED])).await?;
    // A workspace that may not be written to takes no marker: the suspend says so, and the environment stays.
    ensure!(woken.log_contains("Permission denied"), "{}", told(&woken));
    stage.kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"]).await?;
    until_on(&stage.hosts[0], "find /home/ci/builds -mindepth 2 | wc -l", "1").await?;
    ensure!(on(&stage.hosts[0], "ls /home/ci/builds/0/group").await?.is_empty());
    stage.end().await
}

#[tokio::test]
async fn sources_are_fetched_into_a_workspace_that_the_last_job_has_made_read_only() -> Result<()> {
    let mut stage = Stage::without_operator("closed-files", &Setting::default()).await?;
    if super::super::bad_hosts::left_out(&stage).await {
        return Ok(());
    }
    stage.raise(unprivileged(&stage)?).await?;
    stage.until_hosts("Ready").await?;
    let repo = GitRepo::create("group/project")?;
    repo.commit("first", &[("README.md", "hello"), ("folder/file", "one")])?;
    for strategy in ["fetch", "clone", "fetch"] {
        repo.commit(strategy, &[("folder/file", strategy)])?;
        let spec = JobSpec::new(strategy).git(&repo, "main").git_strategy(strategy);
        let job = stage.run(spec.script(["ls -A; cat folder/file", CLOSED])).await?;
        ensure!(job.state == JobState::Success && job.log_contains(strategy), "{}", told(&job));
        let listed = job.log_text().lines().any(|line| line.ends_with("01O closed"));
        ensure!(!listed, "what the last job left is still there: {}", told(&job));
    }
    stage.end().await
}

#[tokio::test]
async fn immutable_files_in_a_workspace_are_removed_where_the_host_gives_the_right_to() -> Result<()> {
    let stage = Stage::start("immutable", Setting::default()).await?;
    if super::super::bad_hosts::left_out(&stage).await {
        return stage.end().await;
    }
    let sleeper = JobSpec::new("sleeper").suspendable().suspend_on_success();
    let script = [
        "mkdir fixed; echo x > fixed/file; chattr +i fixed/file fixed || echo no such marks here; lsattr -d fixed",
    ];
    let first = stage.run(sleeper.script(script)).await?;
    ensure!(first.state == JobState::Success, "{}", told(&first));
    stage.asleep(&first.environment_key.clone().unwrap_or_default()).await?;
    stage.kubectl(&["delete", "suspendedenvironments", "--all", "--timeout=60s"]).await?;
    until_on(&stage.hosts[0], "ls ~/builds/0/group", "").await?;
    traces::end(stage).await
}
