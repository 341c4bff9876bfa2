//! Deaths while the Lease is taken, renewed and given up, and while a replica announces itself.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{Death, at_each};
use crate::testbed::gitlab::{JobId, JobSpec, JobState};
use crate::testbed::stage::{POOL, Setting, Stage};
use crate::traces::{self, on, told};

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&HELD, &GIVEN_UP, &REMOVED, &MADE_AGAIN];

// A replica that starts again takes its former self's announcement away first.
const HELD: [&str; 4] = ["replica-withdrawn", "replica-announced", "hold-taken", "hold-renewed"];
const GIVEN_UP: [&str; 1] = ["hold-given-up"];
const REMOVED: [&str; 1] = ["hold-removed"];
const MADE_AGAIN: [&str; 2] = ["lease-made-again", "lease-status-made-again"];

/// A job goes on through whatever happens to its manager.
async fn goes_on(
    stage: &Stage,
    death: &Death,
    meanwhile: impl AsyncFnOnce(&Stage, JobId) -> Result<()>,
) -> Result<()> {
    let go = format!("/tmp/go-on-{}", death.name());
    let script = format!("echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo ended");
    let id = stage.gitlab.enqueue(JobSpec::new(death.name()).script([script]));
    stage.until_log(id, "begun").await?;
    meanwhile(stage, id).await?;
    stage.touch(&go).await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    for word in ["begun", "ended"] {
        let count = over.log_text().lines().filter(|line| line.trim_end().ends_with(word)).count();
        ensure!(count == 1, "{word} is there {count} times: {}", told(&over));
    }
    stage.lease_over(id).await?;
    Ok(())
}

#[tokio::test]
async fn a_holder_that_dies_over_its_lease_is_followed_by_another() -> Result<()> {
    let stage = Stage::start("crash-lease", Setting::pool(json!({}))).await?;
    at_each(&stage, &HELD, async |stage, death| {
        goes_on(stage, death, async |stage, _| {
            death.arm(stage).await?;
            death.fall(stage).await
        })
        .await
    })
    .await?;
    at_each(&stage, &GIVEN_UP, async |stage, death| {
        goes_on(stage, death, async |stage, id| {
            death.arm(stage).await?;
            let operator = stage.operator()?;
            operator.until_ready().await?;
            // An Event about this job can only be of the holder that is to die.
            traces::event(stage, &format!("{POOL}-{id}"), "JobReattached").await?;
            let pid = operator.pid().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
            kill_process(pid.context("it does not run")?, Signal::TERM)?;
            death.fall(stage).await
        })
        .await
    })
    .await?;
    traces::end(stage).await
}

#[tokio::test]
async fn the_lease_of_a_removed_pool_stands_in_nobodys_way() -> Result<()> {
    let stage = Stage::start("crash-unheld", Setting::pool(json!({}))).await?;
    at_each(&stage, &REMOVED, async |stage, death| {
        death.arm(stage).await?;
        stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
        death.fall(stage).await?;
        stage.until_none("runnerpools").await?;
        stage.apply_pool(json!({})).await?;
        stage.until_condition("runnerpool", POOL, "Ready").await?;
        stage.until_hosts("Ready").await?;
        goes_on(stage, death, async |_, _| Ok(())).await
    })
    .await?;
    traces::end(stage).await
}

/// The payload went with the lease, and who remembered it is dead: the job cannot be told any more. It is not run again.
#[tokio::test]
async fn a_lease_that_was_half_made_again_starts_nothing() -> Result<()> {
    let setting = Setting::pool(json!({ "capacityPerInstance": 8, "isolation": "Shared" }));
    let stage = Stage::start("crash-again", setting.hosts(&["alder", "birch"])).await?;
    at_each(&stage, &MADE_AGAIN, async |stage, death| {
        death.arm(stage).await?;
        let name = death.name();
        let script = format!("echo ran >> /tmp/ran-{name}; echo begun; sleep 4242");
        let id = stage.gitlab.enqueue(JobSpec::new(&name).script([script]));
        stage.until_log(id, "begun").await?;
        let lease = format!("{POOL}-{id}");
        let bare = r#"{"metadata":{"finalizers":null}}"#;
        stage.kubectl(&["patch", "joblease", &lease, "--type=merge", "-p", bare]).await?;
        stage.kubectl(&["delete", "joblease", &lease, "--wait=false"]).await?;
        death.fall(stage).await?;
        stage.gitlab.drop_job(id, "no_updates_running");
        // The pool works on, and a job that was there before it could have been started again by now.
        goes_on(stage, death, async |_, _| Ok(())).await?;
        let mut runs = 0;
        for host in &stage.hosts {
            let ran = on(host, &format!("cat /tmp/ran-{name} 2>/dev/null || true")).await?;
            runs += ran.lines().count();
        }
        ensure!(runs == 1, "it was run {runs} times");
        let open = stage.list("jobleases").await?.into_iter().find(|known| {
            known["metadata"]["name"] == lease.as_str() && known["status"]["phase"] != "Failed"
        });
        ensure!(open.is_none(), "{open:#?}");
        Ok(())
    })
    .await?;
    stage.end().await
}
