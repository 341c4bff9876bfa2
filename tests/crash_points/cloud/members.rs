//! Deaths while a group is claimed, grows, shrinks, is held by its hook, and is given back.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{alone, counted, give_everything_back, nothing_is_kept, run, run_again, sleeps, wakes, whole};
use crate::crash_points::{MOMENTS, in_turn};
use crate::suspension::until_gone;
use crate::testbed::stage::{CloudSetting, POOL, SOON, Stage};
use crate::testbed::wait::until;

/// What the scenarios here pass.
pub const POINTS: &[&[&str]] = &[&OWN_DISK, &LEAVES, &GROUP];

const OWN_DISK: [&str; 11] = [
    "desired-capacity-set",
    "member-protected",
    "move-claimed",
    // Before it leaves its group, not when it joins: that is done at the same time as its protection.
    "tagged",
    "member-detached",
    "instance-kept",
    "host-quieted",
    "instance-stopped",
    "tier-settled",
    "instance-started",
    "instance-terminated",
];
const LEAVES: [&str; 3] = ["hook-extended", "hook-completed", "member-terminated"];
const GROUP: [&str; 4] = ["group-left", "group-claimed", "instances-launched", "key-pushed"];

/// How many instances a group has launched, and how many members it has put another in the place of.
async fn launched(stage: &Stage) -> Result<(usize, usize)> {
    let calls = stage.cloud()?.cloud.calls(0).await?;
    let count = |action| calls.iter().filter(|call| call.service == "cloud" && call.action == action).count();
    Ok((count("launched"), count("replaced")))
}

#[tokio::test]
async fn an_environment_sleeps_in_a_stopped_instance_that_no_death_makes_two_of() -> Result<()> {
    let setting =
        CloudSetting { zones: 1, group: |group| group.protected = false, ..CloudSetting::default() };
    let stage = Stage::start("crash-stopped", alone(json!({})).in_cloud(setting)).await?;
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        let life = async {
            let key = sleeps(&stage, &format!("sleeps-{moment}")).await?;
            stage.ask_tier(&key, "Stopped").await?;
            let stopped = stage.until_tier(&key, "Stopped").await?;
            let instance = stopped["status"]["instance"].as_str().context("no instance")?.to_owned();
            stage.cloud()?.until_state(&instance, "stopped").await?;
            wakes(&stage, &format!("wakes-{moment}"), &key, 2, false).await?;
            until_gone(&stage, &key).await?;
            stage.cloud()?.machines.gone(&instance).await
        };
        in_turn(&stage, &OWN_DISK, moment, life).await?;
        nothing_is_kept(&stage, 0).await?;
        ensure!(launched(&stage).await? == (number + 1, 0), "{:?}", launched(&stage).await?);
    }
    give_everything_back(stage).await
}

#[tokio::test]
async fn a_member_that_goes_is_held_for_its_job_and_then_let_go() -> Result<()> {
    let pool = json!({ "policies": [{ "idleTime": "1s" }] });
    let stage = Stage::start("crash-leaves", alone(pool)).await?;
    for moment in MOMENTS {
        let cloud = stage.cloud()?;
        let life = async {
            let wait = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.1; done";
            let id = stage.gitlab.enqueue(counted(&format!("held-{moment}"), wait));
            stage.until_log(id, "begun").await?;
            let instance = cloud.until_members(1).await?.remove(0);
            let before = cloud.cloud.calls_so_far().await?;
            let terminate = cloud.cloud.scaling().terminate_instance_in_auto_scaling_group();
            terminate.instance_id(&instance).should_decrement_desired_capacity(true).send().await?;
            until("its hook is told to wait on", SOON, async || {
                let calls = cloud.cloud.calls(before).await?;
                let is_it = |action: &str| action == "RecordLifecycleActionHeartbeat";
                Ok(calls.iter().any(|call| is_it(&call.action) && call.answer == "ok").then_some(()))
            })
            .await?;
            cloud.machine(&instance)?.exec_root("touch /tmp/go").await?;
            whole(&stage.until_over(id).await?)?;
            stage.lease_over(id).await?;
            cloud.machines.gone(&instance).await?;
            // The next one goes because it idles.
            let over = run(&stage, counted(&format!("idles-{moment}"), "true")).await?;
            whole(&over)?;
            until("the group is empty", SOON, async || Ok(cloud.members().await?.is_empty().then_some(())))
                .await
        };
        in_turn(&stage, &LEAVES, moment, life).await?;
        nothing_is_kept(&stage, 0).await?;
    }
    give_everything_back(stage).await
}

#[tokio::test]
async fn a_group_is_left_claimed_and_grown_once() -> Result<()> {
    let pool = json!({
        "provider": { "aws": { "growWith": "LaunchInstances" } },
        "ssh": { "authentication": "InstanceConnect", "privateKeySecretRef": Value::Null },
        "policies": [{ "idleTime": "1s" }],
        "maxInstances": 1,
    });
    let setting = alone(pool.clone());
    let stage = Stage::start("crash-group", setting).await?;
    for moment in MOMENTS {
        let cloud = stage.cloud()?;
        let (before, _) = launched(&stage).await?;
        let again = Cell::new(0);
        let life = async {
            stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?;
            stage.until_none("runnerpools").await?;
            stage.apply_pool(alone(pool.clone()).pool).await?;
            let (over, given) = run_again(&stage, counted(&format!("job-{moment}"), "true")).await?;
            again.set(given);
            whole(&over)?;
            stage.lease_over(over.id).await?;
            until("the group is empty", SOON, async || Ok(cloud.members().await?.is_empty().then_some(())))
                .await
        };
        in_turn(&stage, &GROUP, moment, life).await?;
        nothing_is_kept(&stage, 0).await?;
        let (after, replaced) = launched(&stage).await?;
        // While nobody has the job, for GitLab waits for a dead holder, an instance idles for longer than it may.
        let grown = after - before;
        ensure!((1..=1 + again.get()).contains(&grown) && replaced == 0, "{grown} {again:?} {replaced}");
    }
    give_everything_back(stage).await
}
