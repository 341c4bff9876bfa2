//! Instances that are logged in to with a key of EC2 Instance Connect, valid for a minute.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::tiers::{ask, leaves_marks, looks_for_marks, until_tier};
use crate::suspension::{put_to_sleep, until_gone};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{CloudSetting, Setting, Stage};
use crate::traces::{self, told};

#[tokio::test]
async fn an_instance_without_a_key_pair_lets_a_key_of_instance_connect_in_at_each_login() -> Result<()> {
    // No key pair: nobody gets in but with a key that was pushed.
    let in_cloud = CloudSetting { template: |template| template.key = None, ..CloudSetting::default() };
    let pool = json!({ "ssh": { "authentication": "InstanceConnect", "privateKeySecretRef": null } });
    let stage = Stage::start("connect", Setting::cloud(pool).in_cloud(in_cloud)).await?;
    let cloud = stage.cloud()?;
    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let pushed = pushes(&stage).await?;
    ensure!(!pushed.is_empty(), "no key was pushed");

    // Another login: the instance was off meanwhile, and a key is good for a minute only.
    ask(&stage, &key, "Stopped").await?;
    let stopped = until_tier(&stage, &key, "Stopped").await?;
    let instance = stopped["status"]["instance"].as_str().context("no instance")?;
    cloud.cloud.act(crate::testbed::cloud::Act::PassTime { seconds: 61.0 }).await?;
    ensure!(cloud.cloud.state().await?.pushed_keys.is_empty(), "a key is older than a minute");
    let woken = stage.run(looks_for_marks("wake", &key)).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    let all = pushes(&stage).await?;
    ensure!(all.len() > pushed.len(), "nothing was pushed for the second login: {all:?}");
    ensure!(all.iter().all(|(of, user)| of == instance && user == "root"), "{all:?}");
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}

/// The pushes so far, each with its instance and account.
async fn pushes(stage: &Stage) -> Result<Vec<(String, String)>> {
    let calls = stage.cloud()?.cloud.calls(0).await?;
    let pushes = calls.iter().filter(|call| call.action == "SendSSHPublicKey" && call.answer == "ok");
    let of = |call: &crate::testbed::cloud::Call, name: &str| {
        call.params.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
    };
    Ok(pushes.map(|call| (of(call, "InstanceId"), of(call, "InstanceOSUser"))).collect())
}
