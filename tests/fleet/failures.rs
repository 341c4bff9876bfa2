//! What can go wrong in a cloud, each with the fault injected: an honest end or a wait that says why, running jobs go
//! on, and after it all is well.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::suspension::{held, job, object_of};
use crate::testbed::cloud::Call;
use crate::testbed::gitlab::{JobId, JobState};
use crate::testbed::stage::{POOL, SOON, Stage};
use crate::testbed::wait::until;
pub use crate::traces::next_job_runs;
use crate::traces::{text, told};

mod account;
mod answers;
mod capacity;
mod stops;
mod vanished;

/// The instance a job is on, once it is on one.
pub async fn instance_of(stage: &Stage, id: JobId) -> Result<String> {
    let lease = stage
        .until_object("joblease", &format!("{POOL}-{id}"), "it has an instance", |lease| {
            lease["status"]["instance"].is_string()
        })
        .await?;
    Ok(text(&lease["status"]["instance"]))
}

/// Lets the held job of an instance go on. A busy sshd turns connections away: it is tried until it is done.
pub async fn go(stage: &Stage, instance: &str) -> Result<()> {
    until("the job is let go on", SOON, async || {
        let machine = stage.cloud()?.machine(instance)?;
        Ok(machine.ssh("touch /tmp/go").await?.status.success().then_some(()))
    })
    .await
}

/// Runs a job that is held through all that happens meanwhile, and fails unless it goes on to its success after it.
pub async fn beside_a_busy_job<T>(stage: &Stage, day: impl Future<Output = Result<T>>) -> Result<T> {
    let busy = stage.gitlab.enqueue(job("busy").script(held(&["echo went on"])));
    stage.until_log(busy, "waits").await?;
    let instance = instance_of(stage, busy).await?;
    let answer = day.await?;
    ensure!(stage.gitlab.job(busy).is_some_and(|job| !job.state.is_final()), "the busy job was ended");
    go(stage, &instance).await?;
    let over = stage.until_over(busy).await?;
    ensure!(over.state == JobState::Success && over.log_contains("went on"), "{}", told(&over));
    stage.lease_over(busy).await?;
    Ok(answer)
}

/// Restarts the operator as if so much time had passed since whatever is written down.
pub async fn leap(stage: &Stage, seconds: u32) -> Result<()> {
    let operator = stage.operator()?;
    operator.terminate().await?;
    stage.gitlab.client_restarted();
    operator.set_variable("DORMOUSE_TIME_LEAP_SECONDS", Some(&seconds.to_string()));
    operator.start_again().await
}

/// Waits until an environment says this in its condition TierReached.
pub async fn until_waits_for(stage: &Stage, key: &str, words: &str) -> Result<Value> {
    let name = object_of(key)?;
    stage
        .until_object("suspendedenvironment", &name, &format!("it waits for {words:?}"), |senv| {
            crate::testbed::stage::message(senv, "TierReached").contains(words)
        })
        .await
}

/// Snapshots that carry our tags; the stand-in has one of its image too.
pub async fn snapshots(stage: &Stage) -> Result<Vec<String>> {
    let filter = aws_sdk_ec2::types::Filter::builder().name("tag-key").values("dormouse.dev/pool").build();
    let shown = stage.cloud()?.cloud.ec2().describe_snapshots().owner_ids("self").filters(filter);
    let shown = shown.send().await?;
    Ok(shown.snapshots().iter().filter_map(|one| one.snapshot_id().map(str::to_owned)).collect())
}

/// Waits until no instance, volume or snapshot of ours is left.
pub async fn until_nothing_is_left(stage: &Stage) -> Result<()> {
    let mut left = String::new();
    until("nothing is left in the cloud", SOON, async || {
        let state = stage.cloud()?.cloud.state().await?;
        let living: Vec<_> = state.instances.iter().filter(|one| one.state != "terminated").collect();
        let snapshots = snapshots(stage).await?;
        left = format!("{living:?} {:?} {snapshots:?}", state.volumes);
        Ok((living.is_empty() && state.volumes.is_empty() && snapshots.is_empty()).then_some(()))
    })
    .await
    .with_context(|| format!("left are {left}\n{}", stage.operator_log()))
}

/// Waits until a call was made.
pub async fn until_called(stage: &Stage, what: &str, is_it: impl Fn(&Call) -> bool) -> Result<Call> {
    let cloud = &stage.cloud()?.cloud;
    until(&format!("a call {what}"), SOON, async || Ok(cloud.calls(0).await?.into_iter().find(&is_it)))
        .await
        .with_context(|| stage.operator_log())
}
