//! etcd is taken back to an older snapshot, with jobs and environments on the hosts.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::epoch;
use crate::testbed::control_plane::Snapshot;
use crate::testbed::gitlab::{JobId, JobSpec, JobState};
use crate::testbed::stage::{Cluster, POOL, SOON, Setting, Stage, host};
use crate::testbed::wait::until;
use crate::traces;

async fn stage(name: &str) -> Result<Stage> {
    let cluster = Cluster::own(name).await?;
    let pool = json!({ "capacityPerInstance": 6, "isolation": "Shared" });
    Stage::start_on(Arc::clone(&cluster), name, Setting::pool(pool)).await
}

async fn snapshot(stage: &Stage) -> Result<Snapshot> {
    stage.cluster.control_plane.snapshot(&stage.folder().join("snapshot")).await
}

/// Takes etcd back, and waits until the pool is held and its host is ready again.
async fn restore(stage: &Stage, snapshot: &Snapshot) -> Result<()> {
    stage.gitlab.client_restarted();
    stage.cluster.control_plane.restore(snapshot).await?;
    // What the restored status says is of the past: a job is needed to see that the pool works.
    let over = stage.run(JobSpec::new("afterwards").script(["echo afterwards"])).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    Ok(())
}

/// A job that counts its runs in a file of the host, writes lines, and waits in the middle.
fn counted(name: &str) -> JobSpec {
    let runs = format!("echo run >> /tmp/runs-{name}");
    let waits = format!("while [ ! -e /tmp/go-{name} ]; do sleep 0.1; done");
    JobSpec::new(name).script([
        runs.as_str(),
        "for i in $(seq 1 50); do echo line $i; done",
        waits.as_str(),
        "for i in $(seq 51 100); do echo line $i; done",
        "exit 4",
    ])
}

async fn end(stage: &Stage, name: &str, id: JobId) -> Result<()> {
    stage.touch(&format!("/tmp/go-{name}")).await?;
    let job = stage.until_over(id).await?;
    let text = job.log_text();
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(4)), "{text}");
    traces::each_line_once(&job, 100)?;
    ensure_ran_once(stage, name).await
}

async fn ensure_ran_once(stage: &Stage, name: &str) -> Result<()> {
    let runs = stage.hosts[0].exec_root(&format!("cat /tmp/runs-{name}")).await?;
    ensure!(runs.trim() == "run", "{name} ran so often: {runs}");
    Ok(())
}

fn sleeper(name: &str) -> JobSpec {
    let script = [format!("echo run >> /tmp/runs-{name}"), "echo kept > marker".to_owned()];
    JobSpec::new(name).suspendable().suspend_on_success().script(script)
}

async fn put_to_sleep(stage: &Stage, name: &str) -> Result<(JobId, String)> {
    let job = stage.run(sleeper(name)).await?;
    ensure!(job.state == JobState::Success, "{}", job.log_text());
    let key = job.environment_key.clone().context("GitLab was told no key")?;
    stage.asleep(&key).await?;
    stage.lease_over(job.id).await?;
    Ok((job.id, key))
}

async fn wake(stage: &Stage, key: &str) -> Result<crate::testbed::gitlab::JobView> {
    stage.run(JobSpec::new("wake").suspendable().environment_key(key).script(["cat marker"])).await
}

#[tokio::test]
async fn jobs_and_environments_newer_than_the_snapshot_are_not_lost_with_it() -> Result<()> {
    let stage = stage("restored").await?;
    let (_, old) = put_to_sleep(&stage, "old").await?;
    let known = stage.gitlab.enqueue(counted("known"));
    stage.until_log(known, "line 50").await?;
    stage
        .until_object("joblease", &format!("{POOL}-{known}"), "it runs", |lease| {
            lease["status"]["phase"] == "Running"
        })
        .await?;
    let snapshot = snapshot(&stage).await?;

    let before = stage.get("runnerpool", POOL).await?;
    let unknown = stage.gitlab.enqueue(counted("unknown"));
    stage.until_log(unknown, "line 50").await?;
    stage
        .until_object("joblease", &format!("{POOL}-{unknown}"), "it runs", |lease| {
            lease["status"]["phase"] == "Running"
        })
        .await?;
    let finished = stage.gitlab.enqueue(counted("finished"));
    end(&stage, "finished", finished).await?;
    stage.lease_over(finished).await?;
    let (_, new) = put_to_sleep(&stage, "new").await?;

    restore(&stage, &snapshot).await?;
    // The manager knows what the objects do not.
    let event = stage.until_event("LeaseMadeAgain").await?;
    ensure!(event["involvedObject"]["name"] == format!("{POOL}-{unknown}"), "{event:#}");
    end(&stage, "unknown", unknown).await?;
    end(&stage, "known", known).await?;
    for id in [unknown, known] {
        let lease = stage.lease_over(id).await?;
        ensure!(lease["status"]["phase"] == "Reported", "{lease:#}");
    }
    ensure_ran_once(&stage, "finished").await?;
    let woken = wake(&stage, &old).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", woken.log_text());

    // Of this one no object and no process knows: it is refused, and not removed at first sight.
    let refused = wake(&stage, &new).await?;
    ensure!(refused.state == JobState::Failed, "{}", refused.log_text());
    ensure!(refused.log_contains("cannot be resumed"), "{}", refused.log_text());
    let id = new.rsplit_once('=').context("no id")?.1;
    let listed = stage.hosts[0]
        .exec_root(&format!(
            "ls -d /var/lib/dormouse/environments/{id} ~*/.dormouse/environments/{id} 2>/dev/null; true"
        ))
        .await?;
    ensure!(listed.contains(id), "removed at first sight: {listed:?}");
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(epoch(&pool) >= epoch(&before) && host(&pool, "alder")["state"] == "Ready", "{pool:#}");
    stage.end().await
}

#[tokio::test]
async fn what_has_ended_since_the_snapshot_is_not_run_again_and_its_environment_is_kept() -> Result<()> {
    let stage = stage("rewound").await?;
    let ends = stage.gitlab.enqueue(counted("ends"));
    stage.until_log(ends, "line 50").await?;
    let wait = "echo begun; while [ ! -e /tmp/go-sleeps ]; do sleep 0.1; done";
    let sleeps = stage.gitlab.enqueue(sleeper("sleeps").script([
        "echo run >> /tmp/runs-sleeps",
        "echo kept > marker",
        wait,
    ]));
    stage.until_log(sleeps, "begun").await?;
    for id in [ends, sleeps] {
        let lease = format!("{POOL}-{id}");
        stage
            .until_object("joblease", &lease, "it runs", |lease| lease["status"]["phase"] == "Running")
            .await?;
    }
    let snapshot = snapshot(&stage).await?;
    end(&stage, "ends", ends).await?;
    stage.touch("/tmp/go-sleeps").await?;
    let slept = stage.until_over(sleeps).await?;
    let key = slept.environment_key.clone().context("GitLab was told no key")?;
    for id in [ends, sleeps] {
        stage.lease_over(id).await?;
    }

    // Nobody remembers what came after: the next holder has the objects, the hosts and GitLab.
    stage.operator()?.terminate().await?;
    stage.gitlab.client_restarted();
    stage.cluster.control_plane.restore(&snapshot).await?;
    stage.operator()?.start_again().await?;
    for id in [ends, sleeps] {
        stage.lease_over(id).await?;
    }
    let job = stage.gitlab.job(ends).context("the job is gone")?;
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(4)), "{job:?}");
    ensure_ran_once(&stage, "ends").await?;
    ensure_ran_once(&stage, "sleeps").await?;
    stage.asleep(&key).await?;
    let woken = wake(&stage, &key).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", woken.log_text());
    until("nothing is left of the woken one", SOON, async || {
        Ok(stage.list("suspendedenvironments").await?.is_empty().then_some(()))
    })
    .await?;
    stage.end().await
}
