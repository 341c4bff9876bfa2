//! Hosts that are away, come back, answer late, lack something or belong to another pool.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{GitRepo, JobSpec, JobState};
use crate::testbed::hosts::{HostSpec, Line};
use crate::testbed::stage::{POOL, Setting, Stage, condition};

/// A job that leaves its words in the log.
fn job(words: &str) -> JobSpec {
    JobSpec::new("job").script([format!("echo {words}")])
}

#[tokio::test]
async fn a_pool_without_a_reachable_host_asks_for_nothing_and_goes_on_when_one_is_back() -> Result<()> {
    let mut stage = Stage::without_operator("down", &Setting::pool(json!({}))).await?;
    stage.hosts[0].stop().await?;
    stage.raise(json!({})).await?;
    let id = stage.gitlab.enqueue(job("waited"));
    let message = stage.until_host("alder", "Unreachable").await?;
    ensure!(message.contains("cannot connect to"), "{message}");
    stage.until_finding("ProviderReachable", "False", "NoReachableHost").await?;
    stage.until_finding("Polling", "False", "NoReachableHost").await?;
    stage.until_finding("Ready", "False", "NoReachableHost").await?;
    stage.until_finding("CredentialsValid", "True", "TokenAccepted").await?;
    ensure!(stage.job_requests() == 0, "GitLab was asked for jobs that could not run");

    stage.hosts[0].start().await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success && over.log_contains("waited"), "{}", over.log_text());
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.end().await
}

#[tokio::test]
async fn a_pool_works_on_with_the_hosts_it_has() -> Result<()> {
    let setting = Setting::pool(json!({})).hosts(&["alder", "birch"]);
    let mut stage = Stage::without_operator("half", &setting).await?;
    stage.hosts[0].stop().await?;
    stage.raise(json!({})).await?;
    stage.until_host("birch", "Ready").await?;
    stage.until_host("alder", "Unreachable").await?;
    let over = stage.run(job("on the other")).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    ensure!(stage.lease_over(over.id).await?["status"]["instance"] == "birch");
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(condition(&pool, "Ready").0 == "True" && pool["status"]["instances"] == "1/2", "{pool:#}");
    stage.end().await
}

#[tokio::test]
async fn a_host_that_goes_and_comes_while_nothing_runs_is_used_again() -> Result<()> {
    let stage = Stage::start("nap", Setting::pool(json!({}))).await?;
    stage.hosts[0].stop().await?;
    stage.until_host("alder", "Unreachable").await?;
    stage.until_finding("Polling", "False", "NoReachableHost").await?;
    stage.hosts[0].start().await?;
    stage.until_hosts("Ready").await?;
    let over = stage.run(job("again")).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_host_that_takes_connections_and_never_says_a_word_is_noticed() -> Result<()> {
    let mut stage = Stage::without_operator("silent", &Setting::pool(json!({}))).await?;
    stage.hosts[0].cut(Line::Silent).await?;
    stage.raise(json!({ "ssh": { "dialTimeout": "2s" } })).await?;
    let message = stage.until_host("alder", "Unreachable").await?;
    ensure!(message.contains("does not answer within 2 s"), "{message}");
    stage.hosts[0].heal().await?;
    stage.until_hosts("Ready").await?;
    stage.end().await
}

#[tokio::test]
async fn no_job_is_placed_before_the_ready_command_succeeds() -> Result<()> {
    let mut stage = Stage::without_operator("prepared", &Setting::pool(json!({}))).await?;
    let command = "test -e /tmp/prepared || { echo not prepared >&2; exit 7; }";
    stage.raise(json!({ "instanceReadyCommand": command })).await?;
    let message = stage.until_host("alder", "NotReady").await?;
    ensure!(message.contains("exit code 7") && message.contains("not prepared"), "{message}");
    stage.until_finding("Polling", "False", "NoReachableHost").await?;
    ensure!(stage.job_requests() == 0);
    stage.touch("/tmp/prepared").await?;
    stage.until_hosts("Ready").await?;
    let over = stage.run(job("prepared")).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_host_without_bash_is_not_used_and_the_reason_is_said() -> Result<()> {
    let mut stage = Stage::without_operator("nobash", &Setting::pool(json!({}))).await?;
    if !stage.bed.are_isolated() {
        eprintln!("skipped: taking a program away takes a disk of its own, and that takes root");
        return Ok(());
    }
    stage.hosts[0].remove_program("bash").await?;
    stage.raise(json!({})).await?;
    let message = stage.until_host("alder", "Unsupported").await?;
    ensure!(message.contains("bash is missing") && message.contains("Install bash"), "{message}");
    let message = stage.until_finding("HostsCapable", "False", "HostsLackSomething").await?;
    ensure!(message.contains("alder: bash is missing"), "{message}");
    stage.end().await
}

#[tokio::test]
async fn a_host_without_git_runs_the_jobs_that_need_none() -> Result<()> {
    let mut stage = Stage::without_operator("nogit", &Setting::pool(json!({}))).await?;
    if !stage.bed.are_isolated() {
        eprintln!("skipped: taking a program away takes a disk of its own, and that takes root");
        return Ok(());
    }
    stage.hosts[0].remove_program("git").await?;
    stage.raise(json!({})).await?;
    stage.until_hosts("Ready").await?;
    let message = stage.until_finding("HostsCapable", "False", "HostsLackSomething").await?;
    ensure!(message.contains("git is missing"), "{message}");
    let over = stage.run(job("no sources")).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());

    let repo = GitRepo::create("group/project")?;
    repo.commit("first", &[("README.md", "hello")])?;
    let failed = stage.run(job("sources").git(&repo, "main")).await?;
    ensure!(failed.state == JobState::Failed, "{}", failed.log_text());
    ensure!(failed.log_contains("git: command not found"), "{}", failed.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_host_belongs_to_one_pool_and_passes_on_when_that_is_deleted() -> Result<()> {
    let stage = Stage::start("claimed", Setting::pool(json!({}))).await?;
    let other = stage.gitlab.register_runner(&["dormouse"]);
    let token = format!("--from-literal=token={}", other.token);
    stage.kubectl(&["create", "secret", "generic", "other-token", &token]).await?;
    let mut second = stage.pool(json!({ "gitlab": { "tokenSecretRef": { "name": "other-token" } } }))?;
    second["metadata"]["name"] = json!("second");
    stage.apply(&second).await?;
    let claimed = stage
        .until_object("runnerpool", "second", "its host is Claimed", |pool| {
            pool["status"]["hosts"][0]["state"] == "Claimed"
        })
        .await?;
    let message = claimed["status"]["hosts"][0]["message"].as_str().unwrap_or_default();
    ensure!(message.contains(&format!("{}/{POOL}", stage.namespace)), "{message}");
    ensure!(condition(&claimed, "Ready").0 == "False", "{claimed:#}");
    // The one that has it is not disturbed.
    let over = stage.run(job("mine").for_runner(stage.runner.id)).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());

    stage.kubectl(&["delete", "runnerpool", POOL, "--timeout=60s"]).await?;
    stage.until_condition("runnerpool", "second", "Ready").await?;
    let over = stage.run(job("passed on").for_runner(other.id)).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    stage.end().await
}

#[tokio::test]
async fn hosts_behind_another_host_are_reached_through_it() -> Result<()> {
    let setting = Setting::pool(json!({})).hosts(&["alder", "gate"]);
    let mut stage = Stage::without_operator("jump", &setting).await?;
    let (alder, gate) = (&stage.hosts[0], &stage.hosts[1]);
    let jump = json!({
        "address": gate.address().to_string(), "port": gate.port(), "username": gate.admin()?,
        "hostKey": gate.host_key()?,
    });
    let host = json!({ "name": "alder", "address": alder.address().to_string(), "port": alder.port() });
    let changes = json!({ "ssh": { "proxyJump": jump }, "provider": { "static": { "hosts": [host] } } });
    stage.raise(changes.clone()).await?;
    stage.until_host("alder", "Ready").await?;
    let over = stage.run(job("through")).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());

    // The way is the gate's: without it there is none.
    stage.hosts[1].stop().await?;
    let message = stage.until_host("alder", "Unreachable").await?;
    stage.hosts[1].start().await?;
    stage.until_host("alder", "Ready").await?;
    ensure!(!message.is_empty());

    // A gate with another key than the pinned one is no way either.
    stage.hosts[1].new_host_key().await?;
    stage.hosts[1].reboot().await?;
    let message = stage.until_host("alder", "KeyRefused").await?;
    ensure!(message.contains(&stage.hosts[1].address().to_string()), "{message}");
    stage.end().await
}

#[tokio::test]
async fn more_jobs_run_on_a_host_than_its_sshd_allows_sessions_on_a_connection() -> Result<()> {
    let mut stage = Stage::without_operator("sessions", &Setting::pool(json!({}))).await?;
    let narrow = HostSpec { max_sessions: 2, ..HostSpec::default() };
    stage.hosts = vec![stage.bed.boot("narrow", narrow).await?];
    stage.raise(json!({ "capacityPerInstance": 6, "isolation": "Shared" })).await?;
    let hold = "while [ ! -e /tmp/go ]; do sleep 0.1; done";
    let script = ["echo begun", hold, "echo ended"];
    let ids: Vec<_> = (0..6)
        .map(|number| stage.gitlab.enqueue(JobSpec::new(format!("job {number}")).script(script)))
        .collect();
    for id in &ids {
        stage.until_log(*id, "begun").await?;
    }
    stage.touch("/tmp/go").await?;
    for id in ids {
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success && over.log_contains("ended"), "{}", over.log_text());
    }
    stage.end().await
}
