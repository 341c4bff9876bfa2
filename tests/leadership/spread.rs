//! Which of several replicas holds which of several pools.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse::leader::rank;
use serde_json::{Value, json};

use super::{HAND_OVER, begin, end_whole, epoch, until_held_by};
use crate::testbed::operator::Operator;
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;

/// Time for pools to be given up by those that are not to hold them, and taken.
const SETTLED: Duration = Duration::from_secs(90);

/// The replicas that have announced themselves.
async fn replicas(stage: &Stage) -> Result<BTreeSet<String>> {
    let leases = stage.list("leases").await?;
    let announced =
        leases.iter().filter(|lease| lease["metadata"]["labels"]["dormouse.dev/replica"].is_string());
    Ok(announced.filter_map(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned)).collect())
}

/// Waits until so many replicas have announced themselves.
async fn until_announced(stage: &Stage, number: usize) -> Result<BTreeSet<String>> {
    until(&format!("{number} replicas are there"), HAND_OVER, async || {
        let known = replicas(stage).await?;
        Ok((known.len() == number).then_some(known))
    })
    .await
}

/// The replica that is to hold a pool.
fn first<'a>(replicas: &'a BTreeSet<String>, pool: &Value) -> &'a str {
    let uid = pool["metadata"]["uid"].as_str().unwrap_or_default();
    rank::order(replicas.iter().map(String::as_str), uid)[0]
}

/// Waits until each pool's status says that the replica that is to hold it does; answers holder and epoch of each.
async fn until_spread(stage: &Stage, replicas: &BTreeSet<String>) -> Result<BTreeMap<String, (String, u64)>> {
    until("each pool is held by the replica that is to hold it", SETTLED, async || {
        let pools = stage.list("runnerpools").await?;
        let is_spread = pools.iter().all(|pool| pool["status"]["holder"] == first(replicas, pool));
        Ok(is_spread.then(|| {
            let held = |pool: &Value| {
                let name = pool["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                (name, (pool["status"]["holder"].as_str().unwrap_or_default().to_owned(), epoch(pool)))
            };
            pools.iter().map(held).collect()
        }))
    })
    .await
    .with_context(|| stage.operator_log())
}

/// Fails unless exactly the pools whose holder has changed have changed hands.
fn ensure_moved_only(
    before: &BTreeMap<String, (String, u64)>,
    after: &BTreeMap<String, (String, u64)>,
) -> Result<usize> {
    let mut moved = 0;
    for (pool, (holder, epoch)) in after {
        let (former, former_epoch) = &before[pool];
        if former == holder {
            ensure!(epoch == former_epoch, "{pool} was given up and taken again");
        } else {
            moved += 1;
        }
    }
    Ok(moved)
}

#[tokio::test]
async fn pools_are_spread_over_the_replicas_that_are_there() -> Result<()> {
    let mut stage = Stage::without_operator("spread", &Setting::pool(json!({}))).await?;
    for number in 1..=6 {
        // Nothing listens there: who holds a pool has nothing to do with its hosts.
        let mut pool = stage.pool(json!({
            "provider": { "static": { "hosts": [{ "name": "nobody", "address": "127.77.255.1", "port": 9 }] } },
        }))?;
        pool["metadata"]["name"] = format!("pool-{number}").into();
        stage.apply(&pool).await?;
    }
    stage.operator = Some(stage.start_operator("operator-a").await?);
    let one = until_announced(&stage, 1).await?;
    let mut held = until_spread(&stage, &one).await?;

    let second = stage.start_operator("operator-b").await?;
    let two = until_announced(&stage, 2).await?;
    let now = until_spread(&stage, &two).await?;
    println!("a second replica was given {} of 6 pools", ensure_moved_only(&held, &now)?);
    held = now;

    let third = stage.start_operator("operator-c").await?;
    let three = until_announced(&stage, 3).await?;
    let now = until_spread(&stage, &three).await?;
    println!("a third replica was given {} of 6 pools", ensure_moved_only(&held, &now)?);
    held = now;

    let begun = Instant::now();
    third.terminate().await?;
    ensure!(replicas(&stage).await? == two, "it did not say good-bye");
    let now = until_spread(&stage, &two).await?;
    let moved = ensure_moved_only(&held, &now)?;
    println!("{moved} pools of a terminated replica were held again within {:?}", begun.elapsed());
    held = now;

    let begun = Instant::now();
    second.kill()?;
    let now = until_spread(&stage, &one).await?;
    let moved = ensure_moved_only(&held, &now)?;
    println!("{moved} pools of a killed replica were held again within {:?}", begun.elapsed());
    until_announced(&stage, 2).await?;
    // Started again, it replaces what it was.
    second.start_again().await?;
    until("what it was is forgotten", HAND_OVER, async || {
        let known = replicas(&stage).await?;
        Ok((known.len() == 2 && known != two).then_some(()))
    })
    .await?;
    second.terminate().await?;
    stage.end().await
}

/// Starts a second replica that is to hold the stage's pool: one of two is.
async fn start_preferred(stage: &Stage) -> Result<Operator> {
    let operator = stage.start_operator("operator-b").await?;
    let pool = stage.get("runnerpool", POOL).await?;
    until("the second replica is to hold the pool", SOON * 2, async || {
        let known = until_announced(stage, 2).await?;
        if first(&known, &pool).starts_with("operator-b_") {
            return Ok(Some(()));
        }
        // Another process is another replica.
        operator.terminate().await?;
        operator.start_again().await?;
        Ok(None)
    })
    .await?;
    Ok(operator)
}

#[tokio::test]
async fn a_pool_moves_to_the_replica_that_is_to_hold_it_when_its_jobs_are_over() -> Result<()> {
    let mut stage = Stage::start("rest", Setting::pool(json!({}))).await?;
    let id = begin(&stage).await?;
    let before = until_held_by(&stage, "operator-a").await?;
    let other = start_preferred(&stage).await?;
    until("the holder is about to give the pool up", SETTLED, async || {
        Ok(stage.operator_log().contains("the pool is given up when it is at rest").then_some(()))
    })
    .await?;
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(
        pool["status"]["holder"] == before["status"]["holder"] && epoch(&pool) == epoch(&before),
        "{pool:#}"
    );
    // It takes no job any more, so that it comes to rest.
    let later = stage.gitlab.enqueue(crate::testbed::gitlab::JobSpec::new("later").script(["echo later"]));
    stage.gitlab.client_restarted();
    end_whole(&stage, id).await?;
    let pool = until_held_by(&stage, "operator-b").await?;
    ensure!(epoch(&pool) == epoch(&before) + 1, "{pool:#}");
    let later = stage.until_over(later).await?;
    ensure!(later.log_contains("later"), "{}", later.log_text());
    stage.operator()?.terminate().await?;
    stage.operator = Some(other);
    stage.end().await
}

#[tokio::test]
async fn a_replica_that_stands_by_asks_the_api_server_for_nothing() -> Result<()> {
    let mut stage = Stage::start("standby", Setting::pool(json!({}))).await?;
    let standby = stage.start_operator("operator-b").await?;
    let known = until_announced(&stage, 2).await?;
    let name =
        |identity: &str| format!("dormouse-replica-{}", identity.rsplit('_').next().unwrap_or_default());
    let standing_by = known.iter().find(|known| known.starts_with("operator-b_")).context("no standby")?;
    let of_standby = || {
        let log = stage.cluster.control_plane.audit_log();
        let writes = crate::testbed::control_plane::audit::writes(log)?;
        let own = writes.into_iter().filter(|write| write.namespace == stage.namespace);
        anyhow::Ok(own.filter(|write| write.name == name(standing_by)).count())
    };
    let before = of_standby()?;
    let begun = Instant::now();
    until("it has renewed its own Lease", SOON, async || Ok((of_standby()? >= before + 2).then_some(())))
        .await?;
    let lasted = begun.elapsed();
    let metrics = standby.metrics().await?;
    ensure!(!metrics.contains("dormouse_kubernetes_writes_total{"), "it wrote:\n{metrics}");
    println!("a standby announced itself twice within {lasted:?}, and wrote nothing else");
    stage.gitlab.client_restarted();
    stage.operator()?.terminate().await?;
    until_held_by(&stage, "operator-b").await?;
    stage.operator = Some(standby);
    stage.end().await
}
