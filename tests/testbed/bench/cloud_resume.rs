//! How long a job waits for an environment at each tier, and for a pool that has no instance.
//!
//! The cloud is the stand-in: its instances boot in a fraction of a second, its volumes are files. So these figures say
//! what Dormouse itself adds to the cloud's own times, and nothing about those.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::gitlab::JobView;
use super::super::stage::{CloudSetting, SOON, Setting, Stage, merge};
use super::super::wait::until;
use super::Options;
use super::budget::{Bound, Budget, Report};
use super::{figures, load, tiers};

const COLD: Budget = Budget { name: "cold-start", bound: Bound::AtMost, limit: 2.0, unit: "s" };
const STOPPED: Budget = Budget { name: "resume-stopped", bound: Bound::AtMost, limit: 2.0, unit: "s" };
const HIBERNATED: Budget = Budget { name: "resume-hibernated", bound: Bound::AtMost, limit: 2.0, unit: "s" };
const DETACHED: Budget =
    Budget { name: "resume-detached-small", bound: Bound::AtMost, limit: 2.0, unit: "s" };
const DETACHED_LARGE: Budget =
    Budget { name: "resume-detached-large", bound: Bound::AtMost, limit: 2.0, unit: "s" };
const SNAPSHOTTED: Budget =
    Budget { name: "resume-snapshotted", bound: Bound::AtMost, limit: 2.0, unit: "s" };

/// What is in every method.
const LAB: &str = "in the cloud stand-in, whose own time for booting, attaching and making volumes is in it: what AWS \
                   takes for those comes on top; the pool looks at its cloud every second";

/// Measures the cold start and a resume from each tier below Hot.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let rounds = options.repeat(8, 3);
    cold(rounds, report).await?;
    let stage = Stage::start("cloud-stopped", Setting::cloud(without_volumes())).await?;
    stopped(&stage, rounds, report, STOPPED, "Stopped, of an instance whose memory is not kept").await?;
    load::leave(stage).await?;

    let in_cloud =
        CloudSetting { template: |template| template.hibernation = true, ..CloudSetting::default() };
    let mut pool = without_volumes();
    merge(&mut pool, json!({ "provider": { "aws": { "stopMode": "Hibernate" } } }));
    let stage = Stage::start("cloud-hibernated", Setting::cloud(pool).in_cloud(in_cloud)).await?;
    stopped(&stage, rounds, report, HIBERNATED, "Stopped, of an instance that hibernates").await?;
    load::leave(stage).await?;

    volumes(options, rounds, report).await
}

fn without_volumes() -> Value {
    json!({ "policies": [{ "idleCount": 0, "idleTime": "1h" }] })
}

/// A pool from zero: from the group's launch of an instance to the job's first byte.
async fn cold(rounds: usize, report: &mut Report) -> Result<()> {
    let pool = json!({ "policies": [{ "idleCount": 0, "idleTime": "1s" }] });
    let stage = Stage::start("cloud-cold", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    let (mut samples, mut all) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        until("the group is empty", SOON, async || Ok(cloud.members().await?.is_empty().then_some(())))
            .await?;
        let before = cloud.cloud.calls_so_far().await?;
        let view = load::run_alone(&stage, load::trivial("cold")).await?;
        let calls = cloud.cloud.calls(before).await?;
        let launch = calls.iter().find(|call| call.service == "cloud" && call.action == "launched");
        let launched_at: Timestamp = launch.context("the group launched nothing")?.at.parse()?;
        samples.push(figures::milliseconds(launched_at, load::arrival(&view)?) / 1000.0);
        all.push(load::first_byte(&view)? / 1000.0);
    }
    let method = format!(
        "from the group's launch of an instance, by the stand-in's log, to the first byte of the script of the job it was \
         launched for in GitLab's log: {LAB}; median of {rounds}, largest {} s; from GitLab handing the job out {} s",
        figures::shown(figures::largest(&samples)),
        figures::shown(figures::median(&all)?),
    );
    report.add(COLD, figures::median(&samples)?, method, &samples);
    load::leave(stage).await
}

async fn stopped(
    stage: &Stage,
    rounds: usize,
    report: &mut Report,
    budget: Budget,
    what: &str,
) -> Result<()> {
    let key = tiers::put_to_sleep(stage, "first").await?;
    tiers::demote(stage, &key, "Stopped").await?;
    let samples = resume(stage, &key, "Stopped", rounds).await?;
    say(report, budget, what, &samples)
}

/// Detached with little and with much in the workspace, and Snapshotted.
async fn volumes(options: &Options, rounds: usize, report: &mut Report) -> Result<()> {
    let stage = Stage::start("cloud-volumes", Setting::cloud(tiers::pool_that_stays())).await?;
    let (files, bytes) = if options.quick { (2_000, 26_250) } else { (20_000, 53_700) };
    for (budget, files, bytes) in [(DETACHED, 200, 52_500), (DETACHED_LARGE, files, bytes)] {
        let fill = format!(
            "set +o pipefail; mkdir tree && cd tree && yes | head -c {} | split -a 6 -d -b {bytes} - file",
            files * bytes
        );
        let key = tiers::sleeping(&stage, load::trivial("fill").script([fill])).await?;
        tiers::demote(&stage, &key, "Detached").await?;
        let samples = resume(&stage, &key, "Detached", rounds).await?;
        let what = format!(
            "Detached, onto an instance that is Ready; workspace of {} MB in {files} files",
            files * bytes / 1_000_000
        );
        say(report, budget, &what, &samples)?;
        release(&stage).await?;
    }
    let key = tiers::put_to_sleep(&stage, "snapshotted").await?;
    tiers::demote(&stage, &key, "Snapshotted").await?;
    let samples = resume(&stage, &key, "Snapshotted", rounds).await?;
    say(report, SNAPSHOTTED, "Snapshotted, onto an instance that is Ready", &samples)?;
    release(&stage).await?;
    load::leave(stage).await
}

/// Seconds from the hand-out of jobs that resume an environment, one after the other, to their first byte; it goes back
/// to its tier after each.
async fn resume(stage: &Stage, key: &str, tier: &str, rounds: usize) -> Result<Vec<f64>> {
    let mut samples = Vec::new();
    for _ in 0..rounds {
        let job = load::trivial("resume").environment_key(key).suspendable().suspend_on_success();
        let view: JobView = load::run_alone(stage, job).await?;
        samples.push(load::first_byte(&view)? / 1000.0);
        ensure!(view.environment_key.as_deref() == Some(key), "it did not go to sleep again under its key");
        tiers::until_tier(stage, key, tier).await?;
        // What was last done is to be seen: a job that calls an environment in that very moment waits for it too, which is
        // none of its tier's. The first look may have been begun before.
        stage.until_looked_at(2).await?;
    }
    Ok(samples)
}

fn say(report: &mut Report, budget: Budget, what: &str, samples: &[f64]) -> Result<()> {
    let method = format!(
        "resume from tier {what}: from GitLab handing the job out to the first byte of its script in GitLab's log, {LAB}; \
         median of {}, largest {} s",
        samples.len(),
        figures::shown(figures::largest(samples)),
    );
    report.add(budget, figures::median(samples)?, method, samples);
    Ok(())
}

async fn release(stage: &Stage) -> Result<()> {
    stage.kubectl(&["delete", "suspendedenvironments", "--all"]).await?;
    stage.until_none("suspendedenvironments").await
}
