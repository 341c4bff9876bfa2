//! Warm pools.

use anyhow::{Result, ensure};
use aws_sdk_autoscaling::types::WarmPoolState;

use super::{Lab, code, refused};
use crate::testbed::cloud::{Act, Group, Hook, Warm, Way};

#[tokio::test]
async fn warm_members_rest_until_they_are_needed() -> Result<()> {
    let lab = Lab::new("cloud-warm").await?;
    let warm = Warm { min: 0, prepared: Some(2), state: WarmPoolState::Stopped, reuse: true };
    lab.group(&Group { warm: Some(warm), protected: false, ..Group::new("pool", 3) }).await?;
    let resting = lab.until_members("pool", "Warmed:Stopped", 2).await?;
    for id in &resting {
        ensure!(lab.cloud.instance(id).await?.state == "stopped");
    }
    let shown = lab.shown_group("pool").await?;
    ensure!(shown.instances().is_empty() && shown.warm_pool_size() == Some(2));
    let pool = lab.cloud.scaling().describe_warm_pool().auto_scaling_group_name("pool").send().await?;
    ensure!(pool.instances().len() == 2);
    ensure!(pool.warm_pool_configuration().and_then(|one| one.max_group_prepared_capacity()) == Some(2));
    ensure!(lab.protect("pool", &resting[0], true).await == "ValidationError");
    ensure!(lab.terminate_member(&resting[0], false).await == "ValidationError");

    ensure!(lab.desire("pool", 1).await == "ok");
    let serving = lab.until_members("pool", "InService", 1).await?;
    ensure!(resting.contains(&serving[0]), "a warm one, not a fresh one");
    ensure!(lab.cloud.instance(&serving[0]).await?.boots == 2);
    lab.pass(60.0).await?;
    ensure!(lab.until_members("pool", "Warmed:Stopped", 1).await? != serving, "both together are two");

    // With reuse it goes back to rest.
    let before = lab.cloud.calls_so_far().await?;
    ensure!(lab.desire("pool", 0).await == "ok");
    lab.until_lifecycle(&serving[0], Some("Warmed:Stopped")).await?;
    lab.until_members("pool", "Warmed:Stopped", 2).await?;
    let calls = lab.cloud.calls(before).await?;
    ensure!(!calls.iter().any(|call| call.action == "launched" || call.action == "terminated"));

    // Without, it ends, and the pool fills itself.
    let put = lab.cloud.scaling().put_warm_pool().auto_scaling_group_name("pool").min_size(1);
    put.max_group_prepared_capacity(1).send().await?;
    lab.until_members("pool", "Warmed:Stopped", 1).await?;
    ensure!(lab.desire("pool", 1).await == "ok");
    let serving = lab.until_members("pool", "InService", 1).await?;
    ensure!(lab.desire("pool", 0).await == "ok");
    lab.until_state(&serving[0], "terminated").await?;
    lab.until_members("pool", "Warmed:Stopped", 1).await?;

    let warm = lab.cloud.scaling().delete_warm_pool().auto_scaling_group_name("pool");
    warm.send().await?;
    lab.until_members("pool", "Warmed:Stopped", 0).await?;
    let strange = lab.cloud.scaling().put_warm_pool().auto_scaling_group_name("stranger");
    refused(strange.send().await, "ValidationError");
    Ok(())
}

#[tokio::test]
async fn hooks_hold_members_on_their_way_into_the_warm_pool_and_out_of_it() -> Result<()> {
    let lab = Lab::new("cloud-warm-hooks").await?;
    let hook = |name: &str, way| Hook {
        name: name.to_owned(),
        way,
        timeout_seconds: 60,
        result: "CONTINUE".to_owned(),
    };
    // The pool is given after the hooks, so the first warm member meets them.
    let warm = Some(Warm { min: 1, prepared: Some(0), state: WarmPoolState::Running, reuse: false });
    let hooks = vec![hook("hello", Way::In), hook("bye", Way::Out)];
    lab.group(&Group { warm, hooks, protected: false, ..Group::new("pool", 2) }).await?;
    let complete = async |hook: &str, id: &str| {
        let complete = lab.cloud.scaling().complete_lifecycle_action().auto_scaling_group_name("pool");
        let complete = complete.lifecycle_hook_name(hook).instance_id(id).lifecycle_action_result("CONTINUE");
        code(complete.send().await)
    };
    let id = lab.until_members("pool", "Warmed:Pending:Wait", 1).await?.remove(0);
    ensure!(complete("hello", &id).await == "ok");
    lab.until_lifecycle(&id, Some("Warmed:Running")).await?;
    // Into service it meets the hook once more.
    ensure!(lab.desire("pool", 1).await == "ok");
    lab.until_lifecycle(&id, Some("Pending:Wait")).await?;
    ensure!(complete("hello", &id).await == "ok");
    lab.until_lifecycle(&id, Some("InService")).await?;

    let next = lab.until_members("pool", "Warmed:Pending:Wait", 1).await?.remove(0);
    ensure!(complete("hello", &next).await == "ok");
    lab.until_lifecycle(&next, Some("Warmed:Running")).await?;
    lab.cloud.scaling().delete_warm_pool().auto_scaling_group_name("pool").send().await?;
    lab.until_lifecycle(&next, Some("Warmed:Terminating:Wait")).await?;
    ensure!(lab.protect("pool", &next, true).await == "ValidationError");
    ensure!(lab.protect("pool", &next, false).await == "ok");
    ensure!(complete("bye", &next).await == "ok");
    lab.until_state(&next, "terminated").await?;
    // A warm member that dies is replaced like any other.
    lab.cloud.act(Act::Terminate { instance: id.clone() }).await?;
    lab.until_lifecycle(&id, Some("Terminating:Wait")).await?;
    Ok(())
}
