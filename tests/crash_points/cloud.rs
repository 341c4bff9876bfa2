//! Deaths around the writes that concern a cloud: instances, groups, volumes, snapshots, and the tiers of environments.
//!
//! One life passes many points here, one death after the other: a stage with a cloud costs seconds. At its end nothing
//! of it is left in the account, whatever died in between.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_ec2::types::Filter;
use serde_json::json;

use crate::suspension::{job, key_of};
use crate::testbed::gitlab::{JobSpec, JobState, JobView};
use crate::testbed::stage::{CloudSetting, POOL, SOON, Setting, Stage, merge};
use crate::testbed::wait::until;
use crate::traces::{self, told};

pub mod accidents;
pub mod expiry;
pub mod members;
pub mod tiers;

const LINES: usize = 20;

/// A pool from zero in one zone, with one instance at most.
fn alone(changes: serde_json::Value) -> Setting {
    let mut pool = json!({ "maxInstances": 1, "deletionPolicy": "Release" });
    merge(&mut pool, changes);
    let mut setting = Setting::cloud(pool);
    setting.gitlab.acknowledge_within = Duration::from_secs(10);
    setting.in_cloud(CloudSetting { zones: 1, ..CloudSetting::default() })
}

/// A job that counts its runs in its workspace, does something, and prints numbered lines.
fn counted(name: &str, then: &str) -> JobSpec {
    let lines = format!("for i in $(seq 1 {LINES}); do echo line $i; done");
    job(name).script(["echo ran >> runs", then, &lines])
}

/// Runs a job to its end. Where a death came before it was durable, GitLab gives it out again under another id.
async fn run(stage: &Stage, spec: JobSpec) -> Result<JobView> {
    run_again(stage, spec).await.map(|(over, _)| over)
}

/// The same; answers too how often it was given out again.
async fn run_again(stage: &Stage, spec: JobSpec) -> Result<(JobView, usize)> {
    let mut id = stage.gitlab.enqueue(spec);
    let mut again = 0;
    loop {
        let over = stage.until_over(id).await?;
        match over.retried_as {
            Some(next) => id = next,
            None => return Ok((over, again)),
        }
        again += 1;
    }
}

/// Runs it to its sleep; answers its key.
async fn sleeps(stage: &Stage, name: &str) -> Result<String> {
    let over = run(stage, counted(name, "true").suspend_on_success()).await?;
    whole(&over)?;
    let key = key_of(&over)?;
    stage.lease_over(over.id).await?;
    stage.asleep(&key).await?;
    Ok(key)
}

/// A job that wakes it: the workspace is there, and was worked in so often, this time included.
async fn wakes(stage: &Stage, name: &str, key: &str, runs: usize, sleeps: bool) -> Result<()> {
    let spec = counted(name, "echo runs $(wc -l <runs)").environment_key(key);
    let over = run(stage, if sleeps { spec.suspend_on_success() } else { spec }).await?;
    whole(&over)?;
    ensure!(over.log_contains(&format!("runs {runs}")), "{}", told(&over));
    stage.lease_over(over.id).await?;
    Ok(())
}

/// It succeeded, and each line is in its log once.
fn whole(over: &JobView) -> Result<()> {
    ensure!(over.state == JobState::Success, "{}", told(over));
    traces::each_line_once(over, LINES)
}

/// The pool is deleted, and then the account is as if it had never been.
pub async fn give_everything_back(stage: Stage) -> Result<()> {
    stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
    stage.until_none("runnerpools").await?;
    for kind in ["suspendedenvironments", "jobleases"] {
        stage.until_none(kind).await?;
    }
    nothing_is_kept(&stage, 0).await?;
    let cloud = &stage.cloud()?.cloud;
    let group = cloud.scaling().describe_auto_scaling_groups().send().await?;
    let group = group.auto_scaling_groups.unwrap_or_default().into_iter().next().context("no group")?;
    let tags = group.tags.unwrap_or_default();
    let ours = tags.iter().find(|tag| tag.key.as_deref() == Some("dormouse.dev/pool"));
    ensure!(ours.is_none() && group.desired_capacity == Some(0), "{ours:?} {:?}", group.desired_capacity);
    stage.end().await
}

/// Waits until the account keeps nothing for an environment: its instances are members in service, and besides their
/// disks there are this many volumes at most, for slots.
async fn nothing_is_kept(stage: &Stage, volumes: usize) -> Result<()> {
    let cloud = &stage.cloud()?.cloud;
    let mut left = String::new();
    until("nothing is kept in the account", SOON, async || {
        let state = cloud.state().await?;
        let is_gone = |state: &str| ["shutting-down", "terminated"].contains(&state);
        let living = || state.instances.iter().filter(|known| !is_gone(&known.state));
        let strays: Vec<_> =
            living().filter(|known| known.lifecycle.as_deref() != Some("InService")).collect();
        let roots: Vec<&String> = living().filter_map(|known| known.root_volume.as_ref()).collect();
        let extra: Vec<_> = state.volumes.iter().filter(|volume| !roots.contains(&&volume.id)).collect();
        // The image has a snapshot of its own.
        let tagged = |key: &str| Filter::builder().name("tag-key").values(key).build();
        let owned = cloud.ec2().describe_volumes().filters(tagged("dormouse.dev/environment")).send().await?;
        let shots = cloud.ec2().describe_snapshots().filters(tagged("dormouse.dev/pool")).send().await?;
        let (owned, shots) = (owned.volumes.unwrap_or_default(), shots.snapshots.unwrap_or_default());
        left = format!("{strays:#?}\n{extra:#?}\n{shots:#?}\n{owned:#?}");
        let is_clean = strays.is_empty() && extra.len() <= volumes && shots.is_empty() && owned.is_empty();
        Ok(is_clean.then_some(()))
    })
    .await
    .with_context(|| format!("left is {left}\n{}", stage.operator_log()))
}
