//! Faults at random, from a seed that is printed and replays, while jobs run; then the checker lists broken promises.
//!
//! A plan is a pure function of its seed. What the machine makes of it is not: a replay has the same jobs and the same
//! blows in the same order, not the same microseconds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::testbed::checker::{Expectation, Facts};
use crate::testbed::gitlab::Options;
use crate::testbed::hosts::Hosts;
use crate::testbed::scratch::Scratch;
use crate::testbed::stage::{Cluster, Setting, Stage};
use crate::testbed::wait::until;

mod cloud;
mod leaks;
mod plan;
mod workload;

use leaks::{Holdings, Idle};
use plan::{Blow, Seed};
use workload::Workload;

/// Time for everything to come to rest after the last job.
const REST: Duration = Duration::from_secs(120);

/// Four hosts with three slots each.
fn setting(acknowledge_within: Duration) -> Setting {
    let pool = json!({
        "capacityPerInstance": 3, "isolation": "Shared", "concurrency": 12,
        "suspension": { "slotFloor": 0 },
    });
    let hold = Duration::from_secs(3);
    let gitlab = Options { hold, acknowledge_within, ..Options::default() };
    Setting { pool, gitlab, ..Setting::default() }.hosts(&["alder", "birch", "cedar", "dogwood"])
}

/// Deals the blows while the workload runs, and fails with every promise that is broken once all is at rest.
async fn endure(
    stage: &Stage,
    workload: &Workload,
    blows: Vec<Blow>,
    earlier: &mut Vec<Expectation>,
) -> Result<()> {
    let (made, dealt) = tokio::join!(workload.run(stage), async {
        let dealt = deal(stage, blows).await;
        workload.enough();
        dealt
    });
    dealt?;
    let asleep = made?;
    earlier.extend(workload.expectations());
    at_rest(stage, earlier).await?;
    // What still sleeps is alive: it wakes, and then nothing is left.
    earlier.extend(workload.wake(stage, asleep).await?);
    at_rest(stage, earlier).await?;
    stage.until_none("suspendedenvironments").await
}

/// One blow after the other.
async fn deal(stage: &Stage, blows: Vec<Blow>) -> Result<()> {
    let count = blows.len();
    for (number, blow) in blows.into_iter().enumerate() {
        // Here time itself is the input; nothing is waited for.
        tokio::time::sleep(blow.pause).await;
        println!("{}/{count}: {blow}", number + 1);
        let mut troubles = Vec::new();
        for mishap in blow.mishaps {
            troubles.push(mishap.begin(stage).await?);
        }
        tokio::time::sleep(blow.lasts).await;
        for trouble in troubles {
            trouble.end(stage).await.with_context(|| stage.operator_log())?;
        }
    }
    Ok(())
}

/// Waits until no promise is broken: what an operator tidies up it tidies up soon, not at once.
async fn at_rest(stage: &Stage, expectations: &[Expectation]) -> Result<()> {
    let mut broken = Vec::new();
    let kept = until("every promise is kept", REST, async || {
        broken = Facts::gather(stage, expectations.to_vec()).await?.broken_promises();
        Ok(broken.is_empty().then_some(()))
    });
    kept.await.with_context(|| format!("broken promises:\n{}\n{}", broken.join("\n"), stage.operator_log()))
}

#[tokio::test]
async fn the_checker_sees_what_lies_around() -> Result<()> {
    if !can_look_into_hosts().await? {
        return Ok(());
    }
    let stage = Stage::without_operator("lying", &Setting::default()).await?;
    let clean = Facts::gather(&stage, Vec::new()).await?.broken_promises();
    ensure!(clean.is_empty(), "{clean:#?}");
    let host = &stage.hosts[0];
    host.exec_root("mkdir /sys/fs/cgroup/stray; setsid sleep 4242 >/dev/null 2>&1 &").await?;
    stage.kubectl(&["create", "secret", "generic", "stray", "--type=dormouse.dev/job-payload"]).await?;
    let broken = Facts::gather(&stage, Vec::new()).await?.broken_promises().join("\n");
    for words in ["sleep 4242", "the cgroup ./stray", "Secret secret/stray is left"] {
        ensure!(broken.contains(words), "{words:?} is not in:\n{broken}");
    }
    host.exec_root("mkdir -p /var/lib/dormouse/environments/stray").await?;
    let broken = Facts::gather(&stage, Vec::new()).await?.broken_promises().join("\n");
    ensure!(broken.contains("alder keeps environment stray, which no object knows"), "{broken}");
    Ok(())
}

/// Whether hosts are machines here, which the checker has to look into.
async fn can_look_into_hosts() -> Result<bool> {
    let scratch = Scratch::new("isolated")?;
    let isolated = Hosts::new(scratch.path()).await?.are_isolated();
    if !isolated {
        eprintln!("skipped: looking into hosts takes root");
    }
    Ok(isolated)
}

#[tokio::test]
async fn forty_jobs_outlive_an_operator_that_is_killed_at_random() -> Result<()> {
    if !can_look_into_hosts().await? {
        return Ok(());
    }
    let seed = Seed::pick()?;
    println!("{seed}");
    let stage = Stage::start("chaos", setting(Duration::from_secs(40))).await?;
    let before = Holdings::at_rest(&stage).await?;
    let workload = Workload::new(seed, "kills", 40);
    let kills = kills_wanted("DORMOUSE_KILLS", 8)?;
    let endured = endure(&stage, &workload, plan::kills(seed, kills), &mut Vec::new()).await;
    endured.with_context(|| seed.to_string())?;
    before.until_no_more(&stage, Idle::Ignored).await.with_context(|| seed.to_string())?;
    stage.end().await
}

/// The long one, of every kind of mishap: `make soak`.
#[tokio::test]
#[ignore = "takes hours; make soak runs it"]
async fn soak() -> Result<()> {
    /// Blows between two looks of the checker.
    const ROUND: usize = 50;
    ensure!(can_look_into_hosts().await?, "looking into hosts takes root");
    let seed = Seed::pick()?;
    println!("{seed}");
    let cluster = Cluster::own("soak").await?;
    let mut stage = Stage::start_on(cluster, "soak", setting(Duration::from_secs(120)).paths()).await?;
    stage.standby = Some(stage.start_operator("operator-b").await?);
    let before = Holdings::at_rest(&stage).await?;
    let mut earlier = Vec::new();
    let mut left = kills_wanted("DORMOUSE_SOAK_KILLS", 1000)?;
    for round in 0.. {
        if left == 0 {
            break;
        }
        let kills = left.min(ROUND);
        left -= kills;
        println!("round {round}: {kills} kills, {left} left after it");
        let seed = seed.of_round(round);
        let workload = Workload::new(seed, &format!("round{round}"), 40);
        let blows = plan::everything(seed, kills);
        let endured = endure(&stage, &workload, blows, &mut earlier).await;
        endured.with_context(|| format!("round {round}, {seed}"))?;
        before.until_no_more(&stage, Idle::Counts).await.with_context(|| format!("round {round}, {seed}"))?;
    }
    stage.end().await
}

/// How many kills a run has: as the variable says, or as usual.
fn kills_wanted(variable: &str, usual: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text:?} is no number")),
        Err(_) => Ok(usual),
    }
}
