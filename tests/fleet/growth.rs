//! Instances come when jobs wait and go when they idle.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;

use super::failures::instance_of;
use super::slots::{HELD, let_go};
use crate::suspension::job;
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{POOL, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::told;

#[tokio::test]
async fn a_pool_from_zero_runs_three_jobs_on_two_instances_and_goes_back_to_zero() -> Result<()> {
    let pool = json!({
        "capacityPerInstance": 2,
        "isolation": "PerSlotUser",
        "policies": [{ "idleCount": 0, "idleTime": "3s" }],
    });
    let stage = Stage::start("zero", Setting::cloud(pool)).await?;
    let cloud = stage.cloud()?;
    ensure!(cloud.members().await?.is_empty());
    // Held until each of them has its place, so that none follows another in the same slot.
    let jobs: Vec<_> = (0..3).map(|n| stage.gitlab.enqueue(job(&format!("job{n}")).script(HELD))).collect();
    let mut instances = BTreeSet::new();
    for id in &jobs {
        instances.insert(instance_of(&stage, *id).await?);
    }
    ensure!(instances.len() == 2, "{instances:?}");
    for instance in &instances {
        let_go(&stage, instance).await?;
    }
    for id in jobs {
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success, "{}", told(&over));
    }
    until("the group is empty again", crate::testbed::stage::SOON, async || {
        Ok(cloud.members().await?.is_empty().then_some(()))
    })
    .await?;
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(pool["status"]["conditions"][0]["type"] == "Ready", "{pool:#}");
    crate::traces::end(stage).await
}
