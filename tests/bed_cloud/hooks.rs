//! Lifecycle hooks: members that wait, and what becomes of them.

use anyhow::{Result, ensure};

use super::{Lab, code, refused};
use crate::testbed::cloud::{Group, Hook, Way};

impl Lab {
    async fn beat(&self, hook: &str, id: &str) -> String {
        let beat = self.cloud.scaling().record_lifecycle_action_heartbeat().auto_scaling_group_name("pool");
        code(beat.lifecycle_hook_name(hook).instance_id(id).send().await)
    }

    async fn complete(&self, hook: &str, id: &str, result: &str) -> String {
        let complete = self.cloud.scaling().complete_lifecycle_action().auto_scaling_group_name("pool");
        let complete = complete.lifecycle_hook_name(hook).instance_id(id).lifecycle_action_result(result);
        code(complete.send().await)
    }

    /// A group of one unprotected member with a hook on its way out that was told to go.
    async fn leaving(&self, retain: bool, result: &str) -> Result<String> {
        let hook =
            Hook { name: "bye".to_owned(), way: Way::Out, timeout_seconds: 60, result: result.to_owned() };
        let group =
            Group { protected: false, retain, desired: 1, hooks: vec![hook], ..Group::new("pool", 2) };
        self.group(&group).await?;
        let id = self.until_members("pool", "InService", 1).await?.remove(0);
        ensure!(self.desire("pool", 0).await == "ok");
        self.until_lifecycle(&id, Some("Terminating:Wait")).await?;
        Ok(id)
    }
}

#[tokio::test]
async fn a_leaving_member_waits_for_its_hook() -> Result<()> {
    let lab = Lab::new("cloud-hook").await?;
    let id = lab.leaving(false, "CONTINUE").await?;
    ensure!(lab.cloud.instance(&id).await?.state == "running", "it works on while it waits");
    ensure!(lab.protect("pool", &id, true).await == "ValidationError", "too late");
    ensure!(lab.protect("pool", &id, false).await == "ok");
    ensure!(lab.detach_member("pool", &id, false).await == "ValidationError");
    ensure!(lab.terminate_member(&id, false).await == "ScalingActivityInProgress");
    ensure!(lab.beat("none", &id).await == "ValidationError");
    ensure!(lab.beat("bye", "i-0123456789abcdef0").await == "ValidationError");
    // Each heartbeat begins the minute again.
    for _ in 0..5 {
        lab.pass(50.0).await?;
        ensure!(lab.beat("bye", &id).await == "ok");
    }
    ensure!(lab.lifecycle(&id).await?.as_deref() == Some("Terminating:Wait"));
    ensure!(lab.complete("bye", &id, "SOMETHING").await == "ValidationError");
    ensure!(lab.complete("bye", &id, "CONTINUE").await == "ok");
    ensure!(lab.complete("bye", &id, "CONTINUE").await == "ValidationError", "the second one");
    ensure!(lab.beat("bye", &id).await == "ValidationError", "it waits no longer");
    lab.until_state(&id, "terminated").await?;
    let calls = lab.cloud.calls(0).await?;
    let completed =
        calls.iter().position(|call| call.action == "CompleteLifecycleAction" && call.answer == "ok");
    let ended = calls.iter().position(|call| call.service == "cloud" && call.action == "terminated");
    ensure!(completed < ended, "{completed:?} {ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_hook_expires_without_heartbeats_and_in_the_end_with_them() -> Result<()> {
    let lab = Lab::new("cloud-expiry").await?;
    let id = lab.leaving(false, "CONTINUE").await?;
    lab.pass(61.0).await?;
    lab.until_state(&id, "terminated").await?;
    let calls = lab.cloud.calls(0).await?;
    ensure!(calls.iter().any(|call| call.action == "hook-expired" && call.names("instance", &id)));

    // A hundred time-outs are the most, whatever the heart does.
    ensure!(lab.desire("pool", 1).await == "ok");
    let id = lab.until_members("pool", "InService", 1).await?.remove(0);
    ensure!(lab.desire("pool", 0).await == "ok");
    lab.until_lifecycle(&id, Some("Terminating:Wait")).await?;
    for _ in 0..119 {
        lab.pass(50.0).await?;
        ensure!(lab.beat("bye", &id).await == "ok");
    }
    lab.pass(51.0).await?;
    ensure!(lab.beat("bye", &id).await == "ValidationError");
    lab.until_state(&id, "terminated").await?;

    let put = || {
        let put = lab.cloud.scaling().put_lifecycle_hook().auto_scaling_group_name("pool");
        put.lifecycle_hook_name("more").lifecycle_transition("autoscaling:EC2_INSTANCE_TERMINATING")
    };
    refused(put().heartbeat_timeout(10).send().await, "ValidationError");
    refused(put().heartbeat_timeout(7201).send().await, "ValidationError");
    refused(put().default_result("STAY").send().await, "ValidationError");
    put().heartbeat_timeout(7200).send().await?;
    let shown = lab.cloud.scaling().describe_lifecycle_hooks().auto_scaling_group_name("pool").send().await?;
    let more = shown.lifecycle_hooks().iter().find(|hook| hook.lifecycle_hook_name() == Some("more"));
    ensure!(more.and_then(|hook| hook.global_timeout()) == Some(172_800));
    Ok(())
}

#[tokio::test]
async fn a_retained_member_stays_until_it_is_freed() -> Result<()> {
    let lab = Lab::new("cloud-retain").await?;
    let id = lab.leaving(true, "ABANDON").await?;
    lab.pass(61.0).await?;
    ensure!(lab.lifecycle(&id).await?.as_deref() == Some("Terminating:Retained"));
    lab.pass(3600.0).await?;
    ensure!(lab.cloud.instance(&id).await?.state == "running", "nothing takes it");
    ensure!(lab.protect("pool", &id, true).await == "ValidationError");
    let standby = lab.cloud.scaling().enter_standby().auto_scaling_group_name("pool").instance_ids(&id);
    refused(standby.should_decrement_desired_capacity(false).send().await, "ValidationError");
    ensure!(lab.detach_member("pool", &id, true).await == "ValidationError");
    ensure!(lab.terminate_member(&id, true).await == "ValidationError");
    // It does not count: there is room for as many as ever.
    ensure!(lab.desire("pool", 2).await == "ok");
    lab.until_members("pool", "InService", 2).await?;

    ensure!(lab.detach_member("pool", &id, false).await == "ok");
    lab.until_lifecycle(&id, None).await?;
    let free = lab.cloud.instance(&id).await?;
    ensure!(free.state == "running" && free.group.is_none());

    // The other way: a second round of the hook, which may end well.
    ensure!(lab.desire("pool", 1).await == "ok");
    let id = lab.until_members("pool", "Terminating:Wait", 1).await?.remove(0);
    ensure!(lab.complete("bye", &id, "ABANDON").await == "ok");
    lab.until_lifecycle(&id, Some("Terminating:Retained")).await?;
    ensure!(lab.terminate_member(&id, false).await == "ok");
    lab.until_lifecycle(&id, Some("Terminating:Wait")).await?;
    ensure!(lab.complete("bye", &id, "CONTINUE").await == "ok");
    lab.until_state(&id, "terminated").await?;
    Ok(())
}

#[tokio::test]
async fn a_coming_member_waits_too_and_is_replaced_if_abandoned() -> Result<()> {
    let lab = Lab::new("cloud-arrival").await?;
    let hook =
        Hook { name: "hello".to_owned(), way: Way::In, timeout_seconds: 60, result: "ABANDON".to_owned() };
    lab.group(&Group { desired: 1, hooks: vec![hook], ..Group::new("pool", 2) }).await?;
    let id = lab.until_members("pool", "Pending:Wait", 1).await?.remove(0);
    let waiting = lab.cloud.instance(&id).await?;
    ensure!(waiting.state == "running" && !waiting.protected, "protection begins in service");
    ensure!(lab.protect("pool", &id, true).await == "ValidationError");
    ensure!(lab.complete("hello", &id, "CONTINUE").await == "ok");
    lab.until_lifecycle(&id, Some("InService")).await?;
    ensure!(lab.cloud.instance(&id).await?.protected);

    ensure!(lab.desire("pool", 2).await == "ok");
    let late = lab.until_members("pool", "Pending:Wait", 1).await?.remove(0);
    lab.pass(61.0).await?;
    lab.until_state(&late, "terminated").await?;
    let next = lab.until_members("pool", "Pending:Wait", 1).await?.remove(0);
    ensure!(next != late);
    // Without the hook, whoever waits for it on the way in is abandoned.
    let delete = lab.cloud.scaling().delete_lifecycle_hook().auto_scaling_group_name("pool");
    delete.lifecycle_hook_name("hello").send().await?;
    lab.until_members("pool", "InService", 2).await?;
    lab.until_state(&next, "terminated").await?;
    Ok(())
}
