//! How often AWS is called for a job and for a sleep, from the stand-in's log of calls.
//!
//! Looks come by time and are the same for every pool of an account, however many jobs there are: they are counted apart
//! from the calls that change something, of which a job on a warm instance has none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::super::cloud::Call;
use super::super::stage::{SOON, Setting, Stage};
use super::super::wait::until;
use super::Options;
use super::budget::{Bound, Budget, Report};
use super::{figures, load, tiers};

const LOOK: Budget = Budget { name: "aws-calls-per-look", bound: Bound::AtMost, limit: 8.0, unit: "calls" };
const PLAIN: Budget = Budget { name: "aws-changes-per-job", bound: Bound::AtMost, limit: 0.0, unit: "calls" };
// Saved, woken and freed: a tag each for whoever has only the account left.
const HOT: Budget =
    Budget { name: "aws-changes-per-suspend-hot", bound: Bound::AtMost, limit: 3.0, unit: "calls" };
const DETACHED: Budget =
    Budget { name: "aws-changes-per-suspend-detached", bound: Bound::AtMost, limit: 14.0, unit: "calls" };

/// Nothing was changed for so long: whatever was to be changed has been.
const QUIET: Duration = Duration::from_secs(4);

/// Counts the calls of plain jobs, of sleeps at tier Hot and of sleeps at tier Detached.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let rounds = options.repeat(5, 2);
    let stage = Stage::start("cloud-calls", Setting::cloud(tiers::pool_that_stays())).await?;
    load::run_alone(&stage, load::trivial("warm-up")).await?;
    let before = quiet(&stage).await?;

    for _ in 0..rounds * 2 {
        load::run_alone(&stage, load::trivial("plain")).await?;
    }
    let calls = since(&stage, before).await?;
    let looks = calls.iter().filter(|call| call.action == "DescribeAutoScalingGroups").count();
    let reads = calls.iter().filter(|call| is_look(call)).count();
    ensure!(looks > 0, "the cloud was not looked at");
    let method = format!(
        "calls that show, by the stand-in's log, for each look at an account with one pool: {}. A look is made every \
         spec.scaling.updateInterval (30 s), every updateIntervalWhenExpecting (2 s) while something is on its way, and \
         once after each change, for all pools of an account together",
        kinds(calls.iter().filter(|call| is_look(call)), looks),
    );
    report.add(LOOK, figures::count(reads) / figures::count(looks), method, &[]);
    count(report, PLAIN, &calls, rounds * 2, "plain job on an instance that is Ready");

    let before = quiet(&stage).await?;
    for round in 0..rounds {
        let key = tiers::put_to_sleep(&stage, &format!("hot-{round}")).await?;
        load::run_alone(&stage, load::trivial("resume").suspendable().environment_key(key.as_str())).await?;
        stage.until_none("suspendedenvironments").await?;
    }
    let calls = since(&stage, before).await?;
    count(
        report,
        HOT,
        &calls,
        rounds,
        "suspend and resume at tier Hot, with a workspace volume, and the release after it",
    );

    let before = quiet(&stage).await?;
    for round in 0..rounds {
        let key = tiers::put_to_sleep(&stage, &format!("detached-{round}")).await?;
        tiers::demote(&stage, &key, "Detached").await?;
        load::run_alone(&stage, load::trivial("resume").suspendable().environment_key(key.as_str())).await?;
        stage.until_none("suspendedenvironments").await?;
    }
    let calls = since(&stage, before).await?;
    count(
        report,
        DETACHED,
        &calls,
        rounds,
        "suspend, demotion to tier Detached, resume on an instance that is Ready, and the release after it; the slot that \
         the volume left gets another",
    );
    load::leave(stage).await
}

fn count(report: &mut Report, budget: Budget, calls: &[Call], rounds: usize, what: &str) {
    let changes: Vec<&Call> = calls.iter().filter(|call| !is_look(call)).collect();
    let kinds = kinds(changes.iter().copied(), rounds);
    eprintln!("{}: {kinds}", budget.name);
    let method = format!(
        "calls that change something, by the stand-in's log, for each {what}; {rounds} of them: {kinds}"
    );
    report.add(budget, figures::count(changes.len()) / figures::count(rounds), method, &[]);
}

/// The operator's calls from a number on, once it changes nothing any more.
async fn since(stage: &Stage, number: u64) -> Result<Vec<Call>> {
    quiet(stage).await?;
    all_since(stage, number).await
}

async fn all_since(stage: &Stage, number: u64) -> Result<Vec<Call>> {
    let calls = stage.cloud()?.cloud.calls(number).await?;
    // What the cloud did by itself is none of the operator's.
    Ok(calls.into_iter().filter(|call| call.service != "cloud").collect())
}

/// Waits until nothing is changed for a while; the number of the next call.
async fn quiet(stage: &Stage) -> Result<u64> {
    let mut last = (0, Instant::now());
    until("the operator changes nothing in the cloud", SOON, async || {
        let changes = all_since(stage, 0).await?.iter().filter(|call| !is_look(call)).count();
        if changes != last.0 {
            last = (changes, Instant::now());
        }
        Ok((last.1.elapsed() >= QUIET).then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())?;
    stage.cloud()?.cloud.calls_so_far().await
}

fn is_look(call: &Call) -> bool {
    call.action.starts_with("Describe")
}

/// What was called how often for each round, most often first.
fn kinds<'a>(calls: impl Iterator<Item = &'a Call>, rounds: usize) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for call in calls {
        *counts.entry(call.action.as_str()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let each = |(kind, count): (&str, usize)| {
        format!("{} {kind}", figures::shown(figures::count(count) / figures::count(rounds)))
    };
    let kinds = counts.into_iter().map(each).collect::<Vec<_>>().join(", ");
    if kinds.is_empty() { "none".to_owned() } else { kinds }
}
