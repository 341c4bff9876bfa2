//! Deaths while newer addresses for a job's caches are sent.

use anyhow::{Result, ensure};
use serde_json::json;

use super::at_each;
use crate::cache::{Scene, job, keys};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::POOL;
use crate::traces::{self, told, until_on};

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&RENEWED];

const RENEWED: [&str; 1] = ["cache-renewed"];

#[tokio::test]
async fn newer_addresses_are_sent_by_the_next_holder() -> Result<()> {
    let scene = Scene::start("crash-cache", json!({})).await?;
    scene.stage.until_condition("runnerpool", POOL, "CacheReady").await?;
    // Keys of which nobody knows how long they live are signed with anew by each holder.
    scene.bucket.lab(json!({ "keys": [{ "id": "AKIATEMPORARY", "secret": "s", "token": "t" }] })).await?;
    keys(&scene.stage, "AKIATEMPORARY", "s", &[("AWS_SESSION_TOKEN", "t")]).await?;
    scene.stage.apply_pool(json!({ "cache": scene.bucket.spec(), "outputLimit": 5000 })).await?;
    scene.bucket.until_asked_with("AKIATEMPORARY").await?;
    at_each(&scene.stage, &RENEWED, async |stage, death| {
        let go_on = format!("/tmp/go-on-{}", death.name());
        let wait = format!("until [ -e {go_on} ]; do sleep 0.2; done");
        let script = ["mkdir deps; echo left > deps/x; echo ready.", &wait];
        let id = stage.gitlab.enqueue(job(&death.name(), json!({ "policy": "push" }), &script));
        stage.until_log(id, "ready.").await?;
        death.arm(stage).await?;
        death.fall(stage).await?;
        let renewed = "ls /var/lib/dormouse/environments/*/jobs/*/cache-urls 2>/dev/null | wc -l";
        until_on(&stage.hosts[0], renewed, "1").await?;
        traces::on(&stage.hosts[0], &format!("touch {go_on}")).await?;
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success && over.log_contains("Created cache"), "{}", told(&over));
        Ok(())
    })
    .await?;
    traces::end(scene.stage).await
}
