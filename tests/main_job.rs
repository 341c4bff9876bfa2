//! The main job: a job runs, fails, sleeps, wakes in the same place, and outlives the death of its manager.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{GitRepo, JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage};
use crate::traces;

#[tokio::test]
async fn a_plain_job_runs_and_its_log_and_exit_code_arrive() -> Result<()> {
    let stage = Stage::start("plain", Setting::default()).await?;
    let passed = stage.run(JobSpec::new("greet").script(["echo hello from $CI_JOB_NAME"])).await?;
    ensure!(passed.state == JobState::Success, "{}", passed.log_text());
    ensure!(passed.log_contains("hello from greet"), "{}", passed.log_text());
    ensure!(passed.log_contains("Job succeeded"), "{}", passed.log_text());

    let failed = stage.run(JobSpec::new("fail").script(["echo before", "exit 3", "echo after"])).await?;
    ensure!(failed.state == JobState::Failed && failed.exit_code == Some(3), "{failed:?}");
    ensure!(failed.failure_reason.as_deref() == Some("script_failure"), "{failed:?}");
    let lease = stage.lease_over(failed.id).await?;
    ensure!(lease["status"]["exitCode"] == 3, "{lease:#}");
    stage.end().await
}

#[tokio::test]
async fn jobs_share_a_host_sleep_by_their_triggers_and_wake_in_the_same_place() -> Result<()> {
    let setting = Setting {
        hosts: vec!["alder", "birch"],
        pool: json!({
            "capacityPerInstance": 2, "isolation": "Shared", "concurrency": 3,
            "suspension": { "slotFloor": 0 },
        }),
        ..Setting::default()
    };
    let stage = Stage::start("story", setting).await?;
    let repo = GitRepo::create("group/project")?;
    repo.commit("first", &[("README.md", "hello")])?;
    stage.gitlab.host(&repo);
    let job = |name: &str| JobSpec::new(name).project(7, "group/project").suspendable();
    let hold = "while [ ! -e /tmp/go ]; do sleep 0.05; done";
    let a = stage.gitlab.enqueue(job("a").git(&repo, "main").suspend_on_failure().script([
        "echo kept > marker",
        "(while true; do date +%s%N > beat; sleep 0.1; done) & echo $! > pid",
        hold,
        "pwd",
        "exit 9",
    ]));
    stage.until_log(a, "while").await?;
    let b = stage.gitlab.enqueue(job("b").suspend_on_success().script([hold, "echo b done"]));
    stage.until_log(b, "while").await?;
    let c = stage.gitlab.enqueue(job("c").script([hold, "echo c done"]));
    stage.until_log(c, "while").await?;
    for host in &stage.hosts {
        host.ssh("touch /tmp/go").await?;
    }
    let (a, b, c) = (stage.until_over(a).await?, stage.until_over(b).await?, stage.until_over(c).await?);
    ensure!((a.state, a.exit_code) == (JobState::Failed, Some(9)), "{}", a.log_text());
    ensure!(b.state == JobState::Success && c.state == JobState::Success);
    let place = async |id| {
        let lease = stage.lease_over(id).await?;
        anyhow::Ok((
            lease["status"]["instance"].as_str().unwrap_or_default().to_owned(),
            lease["status"]["slot"].clone(),
        ))
    };
    ensure!(place(a.id).await? == ("alder".to_owned(), json!(0)));
    ensure!(place(b.id).await? == ("alder".to_owned(), json!(1)));
    ensure!(place(c.id).await? == ("birch".to_owned(), json!(0)));

    let key = a.environment_key.clone().expect("a was suspended, so its key is known");
    ensure!(b.environment_key.is_some() && c.environment_key.is_none());
    ensure!(a.log_contains(&format!("Job environment suspended: {key}")), "{}", a.log_text());
    stage.asleep(&key).await?;
    let beat = async || {
        anyhow::Ok(String::from_utf8(stage.hosts[0].ssh("cat ~/builds/0/group/project/beat").await?.stdout)?)
    };
    let frozen = beat().await?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    ensure!(beat().await? == frozen, "the background process is not frozen");

    let fetches = a.fetches.len();
    let resumed = stage
        .run(job("resume a").git(&repo, "main").environment_key(&key).script([
            "cat marker", "pwd", "kill -0 $(cat pid) && echo alive", "echo token ${#CI_JOB_TOKEN}",
            "old=$(cat beat); for i in $(seq 100); do [ \"$(cat beat)\" != \"$old\" ] && break; sleep 0.1; done; [ \"$(cat beat)\" != \"$old\" ] && echo thawed",
        ]))
        .await?;
    ensure!(resumed.state == JobState::Success, "{}", resumed.log_text());
    for text in
        ["kept", "alive", "thawed", &format!("Job environment resumed: {key}"), "/builds/0/group/project"]
    {
        ensure!(resumed.log_contains(text), "{text}: {}", resumed.log_text());
    }
    ensure!(fetches > 0 && resumed.fetches.is_empty(), "sources were fetched again");
    ensure!(place(resumed.id).await? == ("alder".to_owned(), json!(0)));
    // Resumed without a trigger: the environment is released. Only b's is left.
    stage
        .until_object("runnerpool", "pool", "one environment is left", |pool| {
            pool["status"]["environments"]["hot"] == 1
        })
        .await?;
    stage.end().await
}

#[tokio::test]
async fn a_job_outlives_sigkill_of_its_manager_without_losing_a_byte() -> Result<()> {
    let stage = Stage::start("outlive", Setting::default()).await?;
    let script = "for i in $(seq 1 200); do echo line $i; sleep 0.02; done; exit 5";
    let id = stage.gitlab.enqueue(JobSpec::new("count").script([script]));
    stage.until_log(id, "line 20").await?;
    stage.crash_operator().await?;
    let job = stage.until_over(id).await?;
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(5)), "{}", job.log_text());
    traces::each_line_once(&job, 200)?;
    stage.end().await
}
