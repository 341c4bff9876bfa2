//! A replica that is wrong about who holds a pool does no harm, and notices.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{HAND_OVER, begin, end_whole, epoch, refusals, until_attached_by, until_held_by};
use crate::testbed::operator::Operator;
use crate::testbed::proxy::Line;
use crate::testbed::stage::{POOL, Setting, Stage};
use crate::testbed::wait::until;

#[tokio::test]
async fn a_holder_that_cannot_hear_of_its_successor_is_refused_by_the_host() -> Result<()> {
    let mut stage = Stage::start("deaf", Setting::pool(json!({})).paths()).await?;
    // Its way to the API server is its own.
    let direct = stage.cluster.operator_kubeconfig();
    let other = Operator::start("operator-b", direct, &stage.namespace, &stage.folder()).await?;
    until_held_by(&stage, "operator-a").await?;
    let id = begin(&stage).await?;
    let before = stage.get("runnerpool", POOL).await?;
    stage.gitlab.client_restarted();
    stage.paths()?.api_server.set(Line::Silent).await?;
    until_attached_by(&stage, id, "operator-b").await?;
    let taken = until_held_by(&stage, "operator-b").await?;
    ensure!(epoch(&taken) > epoch(&before), "{taken:#}");
    until("the host refuses the former holder", HAND_OVER, async || {
        Ok((refusals(stage.operator()?, "host").await? > 0).then_some(()))
    })
    .await?;
    let said = stage.operator_log();
    ensure!(said.contains("refused: this replica's epoch is over"), "{said}");
    // Nothing can tell it that the Lease is still its own, so it ends its streams too.
    until("the former holder gives the pool up", HAND_OVER, async || {
        Ok(stage.operator_log().contains("the pool is not held any more").then_some(()))
    })
    .await?;
    stage.paths()?.api_server.set(Line::Up).await?;
    end_whole(&stage, id).await?;
    let pool = until_held_by(&stage, "operator-b").await?;
    ensure!(epoch(&pool) == epoch(&taken), "the former holder took the pool back: {pool:#}");
    stage.gitlab.client_restarted();
    stage.operator()?.terminate().await?;
    stage.operator = Some(other);
    stage.end().await
}

#[tokio::test]
async fn replicas_whose_clocks_differ_by_hours_agree_on_who_holds_a_pool() -> Result<()> {
    let mut stage = Stage::without_operator("skew", &Setting::pool(json!({}))).await?;
    stage.apply_pool(json!({})).await?;
    let early = stage.new_operator("operator-a").await?;
    early.set_variable("DORMOUSE_CLOCK_OFFSET_SECONDS", Some("-3600"));
    early.start_again().await?;
    stage.operator = Some(early);
    stage.until_hosts("Ready").await?;
    let late = stage.new_operator("operator-b").await?;
    late.set_variable("DORMOUSE_CLOCK_OFFSET_SECONDS", Some("3600"));
    late.start_again().await?;
    let id = begin(&stage).await?;
    let before = until_held_by(&stage, "operator-a").await?;
    // Longer than any Lease lasts: to the one that is late it ran out two hours ago.
    let renewals = async || {
        let lease = stage.get("lease", super::LEASE).await?;
        anyhow::Ok(lease["metadata"]["resourceVersion"].clone())
    };
    let mut seen = vec![renewals().await?];
    until("the Lease is renewed five times", HAND_OVER, async || {
        let now = renewals().await?;
        if !seen.contains(&now) {
            seen.push(now);
        }
        Ok((seen.len() > 5).then_some(()))
    })
    .await?;
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(epoch(&pool) == epoch(&before), "it changed hands: {pool:#}");

    stage.gitlab.client_restarted();
    stage.operator()?.kill()?;
    until_attached_by(&stage, id, "operator-b").await?;
    until_held_by(&stage, "operator-b").await?;
    stage.operator = Some(late);
    end_whole(&stage, id).await?;
    stage.end().await
}
