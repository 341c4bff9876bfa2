//! Who holds a pool, and that a job does not notice when that changes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::testbed::gitlab::{JobId, JobSpec, JobState, JobView};
use crate::testbed::operator::Operator;
use crate::testbed::stage::{POOL, Setting, Stage, host};
use crate::testbed::wait::until;
use crate::traces;

mod fence;
mod outage;
mod restore;
mod spread;

/// Time for a change of the holder on a busy machine: far above what it takes.
const HAND_OVER: Duration = Duration::from_secs(45);

/// The Lease of the stage's pool.
const LEASE: &str = "dormouse-pool-pool";

/// A job of two hundred lines, which takes a few seconds and ends with exit code 5. In the middle it waits until
/// `/tmp/go` is there.
fn count() -> JobSpec {
    JobSpec::new("count").script([
        "for i in $(seq 1 100); do echo line $i; sleep 0.02; done",
        "while [ ! -e /tmp/go ]; do sleep 0.05; done",
        "for i in $(seq 101 200); do echo line $i; sleep 0.01; done",
        "exit 5",
    ])
}

/// Starts the job and waits until it is in the middle of its script.
async fn begin(stage: &Stage) -> Result<JobId> {
    let id = stage.gitlab.enqueue(count());
    stage.until_log(id, "line 20").await?;
    Ok(id)
}

/// Lets the job go on to its end, and fails unless each line of it arrived once and its exit code is right.
async fn end_whole(stage: &Stage, id: JobId) -> Result<JobView> {
    stage.touch("/tmp/go").await?;
    let job = stage.until_over(id).await?;
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(5)), "{}", job.log_text());
    traces::each_line_once(&job, 200)?;
    let lease = stage.lease_over(id).await?;
    ensure!(lease["status"]["phase"] == "Reported" && lease["status"]["exitCode"] == 5, "{lease:#}");
    Ok(job)
}

/// Waits until the pool's status and the job's lease are written by a replica of that name.
async fn until_held_by(stage: &Stage, name: &str) -> Result<Value> {
    let prefix = format!("{name}_");
    until(&format!("{name} holds the pool"), HAND_OVER, async || {
        let pool = stage.get("runnerpool", POOL).await?;
        let holder = pool["status"]["holder"].as_str().unwrap_or_default();
        Ok(holder.starts_with(&prefix).then_some(pool))
    })
    .await
    .with_context(|| stage.operator_log())
}

/// Waits until an Event says that a replica of that name has attached to the job.
async fn until_attached_by(stage: &Stage, id: JobId, name: &str) -> Result<()> {
    let lease = format!("{POOL}-{id}");
    until(&format!("{name} is attached to job {id}"), HAND_OVER, async || {
        let events = stage.list("events").await?;
        let attached = events.iter().any(|event| {
            event["reason"] == "JobReattached"
                && event["involvedObject"]["name"] == lease
                && event["message"].as_str().is_some_and(|note| note.contains(&format!("by {name}_")))
        });
        Ok(attached.then_some(()))
    })
    .await
}

/// How often a replica says that it was refused for its epoch by a guard.
async fn refusals(operator: &Operator, by: &str) -> Result<u64> {
    let metrics = operator.metrics().await?;
    let line = metrics.lines().find(|line| {
        line.starts_with("dormouse_epoch_refusals_total") && line.contains(&format!("by=\"{by}\""))
    });
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
}

fn epoch(pool: &Value) -> u64 {
    pool["status"]["epoch"].as_u64().unwrap_or_default()
}

/// A stage with a second replica, which stands by.
async fn with_standby(name: &str) -> Result<(Stage, Operator)> {
    let stage = Stage::start(name, Setting::pool(json!({}))).await?;
    let standby = stage.start_operator("operator-b").await?;
    ensure!(standby.page("/readyz").await?.0 == 200, "a standby is ready too");
    until_held_by(&stage, "operator-a").await?;
    Ok((stage, standby))
}

#[tokio::test]
async fn the_holder_is_terminated_in_the_middle_of_a_job_and_the_other_one_goes_on() -> Result<()> {
    let (mut stage, standby) = with_standby("term").await?;
    let id = begin(&stage).await?;
    let before = stage.get("runnerpool", POOL).await?;
    stage.gitlab.client_restarted();
    let begun = Instant::now();
    let handed_over = async {
        until_attached_by(&stage, id, "operator-b").await?;
        anyhow::Ok(begun.elapsed())
    };
    let (ended, took) = tokio::join!(stage.operator()?.terminate(), handed_over);
    ended?;
    println!("after SIGTERM another replica was attached within {:?}", took?);
    let pool = until_held_by(&stage, "operator-b").await?;
    ensure!(epoch(&pool) == epoch(&before) + 1, "{pool:#}");
    stage.operator = Some(standby);
    end_whole(&stage, id).await?;
    stage.end().await
}

#[tokio::test]
async fn the_holder_is_killed_in_the_middle_of_a_job_and_the_other_one_goes_on() -> Result<()> {
    let (mut stage, standby) = with_standby("kill").await?;
    let id = begin(&stage).await?;
    stage.gitlab.client_restarted();
    let begun = Instant::now();
    stage.operator()?.kill()?;
    until_attached_by(&stage, id, "operator-b").await?;
    println!("after SIGKILL another replica was attached within {:?}", begun.elapsed());
    until_held_by(&stage, "operator-b").await?;
    stage.operator = Some(standby);
    end_whole(&stage, id).await?;
    stage.end().await
}

#[tokio::test]
async fn a_holder_that_stood_still_for_longer_than_its_lease_does_not_act_on_it() -> Result<()> {
    let (stage, standby) = with_standby("still").await?;
    let id = begin(&stage).await?;
    stage.gitlab.client_restarted();
    stage.operator()?.freeze()?;
    let taken = until_held_by(&stage, "operator-b").await?;
    until_attached_by(&stage, id, "operator-b").await?;
    // What the frozen one had read but not sent is offered to GitLab at most once more.
    stage.gitlab.client_restarted();
    stage.operator()?.thaw()?;
    until("the old holder is refused for its epoch", HAND_OVER, async || {
        let said = stage.operator_log();
        let is_refused = said.contains("refused: this replica's epoch is over");
        Ok((is_refused && refusals(stage.operator()?, "lease").await? > 0).then_some(()))
    })
    .await?;
    end_whole(&stage, id).await?;
    let pool = until_held_by(&stage, "operator-b").await?;
    ensure!(epoch(&pool) == epoch(&taken), "the old holder took the pool back: {pool:#}");

    // It stands by like any other, and takes over when it is its turn.
    stage.gitlab.client_restarted();
    standby.terminate().await?;
    let pool = until_held_by(&stage, "operator-a").await?;
    ensure!(epoch(&pool) > epoch(&taken), "{pool:#}");
    let over = stage.run(JobSpec::new("after").script(["echo after"])).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_deleted_lease_disturbs_no_job_and_locks_nobody_out() -> Result<()> {
    let (mut stage, standby) = with_standby("deleted").await?;
    let id = begin(&stage).await?;
    let before = stage.get("runnerpool", POOL).await?;
    // Until the former holder finds out, at its next renewal, both may send the log, and either may find that GitLab
    // has more of it than it knew.
    for _ in 0..8 {
        stage.gitlab.client_restarted();
    }
    stage.kubectl(&["delete", "lease", LEASE]).await?;
    until("the Lease is there again", HAND_OVER, async || {
        Ok(stage.list("leases").await?.iter().any(|lease| lease["metadata"]["name"] == LEASE).then_some(()))
    })
    .await?;
    end_whole(&stage, id).await?;
    let over = stage.run(JobSpec::new("after").script(["echo after"])).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(epoch(&pool) >= epoch(&before), "the epoch went back: {pool:#}");
    ensure!(pool["status"]["hosts"][0]["state"] == "Ready", "{pool:#}");

    // Either replica may hold the pool by now; the one that is left has it in the end.
    stage.gitlab.client_restarted();
    stage.operator()?.terminate().await?;
    stage.operator = Some(standby);
    until_held_by(&stage, "operator-b").await?;
    stage.end().await
}

#[tokio::test]
async fn a_lease_that_begins_anew_is_raised_above_what_the_hosts_have_seen() -> Result<()> {
    let stage = Stage::start("anew", Setting::pool(json!({}))).await?;
    for number in 2..=3 {
        stage.operator()?.terminate().await?;
        stage.gitlab.client_restarted();
        stage.operator()?.start_again().await?;
        // One look of one holder: its epoch, and the host that has heard of it.
        let what = format!("the host is ready for epoch {number}");
        stage
            .until_object("runnerpool", POOL, &what, |pool| {
                epoch(pool) == number && host(pool, "alder")["state"] == "Ready"
            })
            .await?;
    }
    let before = stage.get("runnerpool", POOL).await?;
    stage.operator()?.terminate().await?;
    // Nothing in the cluster knows of the epochs before, as after a restore: only the host does.
    stage.kubectl(&["delete", "lease", LEASE]).await?;
    let forget = r#"[{"op": "remove", "path": "/status/epoch"}]"#;
    stage
        .kubectl(&["patch", "runnerpool", POOL, "--subresource=status", "--type=json", "-p", forget])
        .await?;
    stage.gitlab.client_restarted();
    stage.operator()?.start_again().await?;
    let pool = stage
        .until_object("runnerpool", POOL, "its epoch is above the one before", |pool| {
            epoch(pool) > epoch(&before)
        })
        .await?;
    let lease = stage.get("lease", LEASE).await?;
    ensure!(lease["spec"]["leaseTransitions"].as_u64() >= Some(epoch(&pool)), "{lease:#}");
    let over = stage.run(JobSpec::new("after").script(["echo after"])).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_host_refuses_a_holder_of_an_older_epoch() -> Result<()> {
    let stage = Stage::start("stale", Setting::pool(json!({}))).await?;
    let id = begin(&stage).await?;
    let lease = stage.get("joblease", &format!("{POOL}-{id}")).await?;
    let environment = lease["spec"]["environmentId"].as_str().context("no environment")?.to_owned();
    let uid = stage.get("runnerpool", POOL).await?["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let said = async |verb: &str| {
        let command = format!(
            "for folder in /var/lib/dormouse ~/.dormouse; do test -d $folder/bin && \
             echo '\"x\"' | $folder/bin/dormouse-supervisor-* --state-dir $folder {verb} --epoch 0; done; true"
        );
        let output = stage.hosts[0].ssh(&command).await?;
        anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for verb in [
        format!("cancel --environment {environment} --job {id}"),
        format!("release --environment {environment} --force"),
        format!("append --environment {environment} --job {id} --once x"),
        format!("hello --pool other/pool --pool-uid {uid}"),
    ] {
        let answer = said(&verb).await?;
        ensure!(answer.contains("StaleEpoch") && answer.contains("epoch 0 is older"), "{verb}: {answer}");
    }
    end_whole(&stage, id).await?;
    stage.end().await
}

#[tokio::test]
async fn a_job_that_is_handed_out_during_the_shutdown_is_run_by_the_next_holder() -> Result<()> {
    let mut setting = Setting::pool(json!({}));
    setting.gitlab.hold = Duration::from_secs(30);
    let stage = Stage::start("late", setting).await?;
    stage.gitlab.wait_until_polled(HAND_OVER).await?;
    let late = async {
        until("the operator hands its pools over", HAND_OVER, async || {
            Ok(stage.operator_log().contains("the pool is not held any more").then_some(()))
        })
        .await?;
        anyhow::Ok(stage.gitlab.enqueue(count()))
    };
    let (ended, id) = tokio::join!(stage.operator()?.terminate(), late);
    ended?;
    let id = id?;
    ensure!(
        stage.gitlab.job(id).is_some_and(|job| job.picked_up_at.is_some()),
        "the request was not answered"
    );
    let lease = stage.get("joblease", &format!("{POOL}-{id}")).await?;
    ensure!(lease["status"].is_null(), "the job was begun by a process that was ending: {lease:#}");
    stage.gitlab.client_restarted();
    stage.operator()?.start_again().await?;
    end_whole(&stage, id).await?;
    stage.end().await
}
