//! What an environment keeps while it sleeps, and what it must not.

use anyhow::{Result, ensure};

use super::{job, put_to_sleep};
use crate::testbed::gitlab::{GitRepo, JobState};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, on, told};

#[tokio::test]
async fn folder_variables_and_background_processes_wake_as_they_were() -> Result<()> {
    let stage = Stage::start("keeps", Setting::default()).await?;
    let first = job("first").variable("GIVEN", "first").script([
        "(while true; do date +%s%N > /tmp/beat.new; mv /tmp/beat.new /tmp/beat; sleep 0.05; done) & echo $! > /tmp/clock",
        "mkdir -p deep/er && cd deep/er",
        "export KEPT='two words' GIVEN=changed",
        "unexported=gone",
    ]);
    let (_, key) = put_to_sleep(&stage, first).await?;
    let beat = on(&stage.hosts[0], "cat /tmp/beat").await?;
    let woken = job("wake").environment_key(&key).variable("GIVEN", "second").script([
        "pwd",
        "echo \"kept=$KEPT given=$GIVEN unexported=${unexported-none}\"",
        "kill -0 $(cat /tmp/clock) && echo alive",
        "old=$(cat /tmp/beat); until [ \"$(cat /tmp/beat)\" != \"$old\" ]; do sleep 0.05; done; echo first $old",
    ]);
    let woken = stage.run(woken).await?;
    ensure!(woken.state == JobState::Success, "{}", told(&woken));
    for text in
        ["/builds/0/group/project/deep/er", "kept=two words given=second unexported=none", "alive", "first "]
    {
        ensure!(woken.log_contains(text), "{text}: {}", woken.log_text());
    }
    ensure!(!beat.is_empty());
    traces::end(stage).await
}

#[tokio::test]
async fn secrets_are_wiped_before_it_sleeps_and_the_next_job_brings_its_own() -> Result<()> {
    let stage = Stage::start("wipes", Setting::default()).await?;
    let repo = GitRepo::create("group/project")?;
    repo.commit("first", &[("README.md", "hello")])?;
    stage.gitlab.host(&repo);
    let first = job("first").git(&repo, "main").file_variable("KUBECONFIG", "file-content-of-first");
    let first = first.masked_variable("SECRET", "hush-hush-first").script([
        "ls -d $CI_PROJECT_DIR.tmp && cat \"$KUBECONFIG\" > /dev/null",
        "export COPY=\"$SECRET\"",
        "printf %s \"$CI_JOB_TOKEN\" > /tmp/token",
    ]);
    let (slept, key) = put_to_sleep(&stage, first).await?;
    let host = &stage.hosts[0];
    ensure!(on(host, "cat /tmp/token").await? == slept.token);
    for secret in [slept.token.as_str(), "hush-hush-first", "file-content-of-first"] {
        let search = format!("grep -rlF -- '{secret}' /var/lib/dormouse ~/builds || true");
        let found = on(host, &search).await?;
        ensure!(found.is_empty(), "{secret} is in {found}");
        let processes = "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'";
        let found = on(host, &format!("{processes} | grep -cF -- '{secret}' || true")).await?;
        ensure!(found == "0", "{secret} is in the environment of a process");
    }
    ensure!(on(host, "ls -d ~/builds/0/group/*.tmp 2>/dev/null || true").await?.is_empty());

    let woken = job("wake").git(&repo, "main").environment_key(&key);
    let woken = woken.file_variable("KUBECONFIG", "file-content-of-second").script([
        "printf %s \"$CI_JOB_TOKEN\" > /tmp/token",
        "cat \"$KUBECONFIG\"",
        "echo copy=${COPY-none} secret=${SECRET-none}",
        "git ls-remote origin main",
    ]);
    let woken = stage.run(woken).await?;
    ensure!(woken.state == JobState::Success, "{}", told(&woken));
    ensure!(on(host, "cat /tmp/token").await? == woken.token && woken.token != slept.token);
    for text in ["file-content-of-second", "copy=none secret=none", "refs/heads/main"] {
        ensure!(woken.log_contains(text), "{text}: {}", woken.log_text());
    }
    traces::end(stage).await
}
