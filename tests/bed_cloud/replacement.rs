//! What a group does to members by itself: replaces what does not run, refreshes, shrinks; and what spot does.

use anyhow::{Result, ensure};
use aws_sdk_autoscaling::types::InstanceRefreshStatus;
use serde_json::json;

use super::{Lab, SOON, refused};
use crate::testbed::cloud::{Act, Group, Market, Reclaim};
use crate::testbed::wait::until;

impl Lab {
    async fn suspend(&self, processes: &[&str]) -> Result<()> {
        let suspend = self.cloud.scaling().suspend_processes().auto_scaling_group_name("pool");
        let names = processes.iter().map(|&name| name.to_owned()).collect();
        suspend.set_scaling_processes(Some(names)).send().await?;
        Ok(())
    }

    async fn resume(&self, processes: &[&str]) -> Result<()> {
        let resume = self.cloud.scaling().resume_processes().auto_scaling_group_name("pool");
        let names = processes.iter().map(|&name| name.to_owned()).collect();
        resume.set_scaling_processes(Some(names)).send().await?;
        Ok(())
    }

    async fn pool(&self, desired: i32) -> Result<Vec<String>> {
        self.group(&Group { desired, ..Group::new("pool", 4) }).await?;
        self.until_members("pool", "InService", usize::try_from(desired)?).await
    }

    async fn refresh(&self, protected: &str) -> Result<()> {
        let preferences = json!({"ScaleInProtectedInstances": protected, "MinHealthyPercentage": 0});
        let group = "pool".to_owned();
        self.cloud.act(Act::InstanceRefresh { group, preferences }).await.map(drop)
    }

    async fn until_refresh(&self, status: InstanceRefreshStatus) -> Result<()> {
        until(&format!("the refresh is {status}"), SOON, async || {
            let describe = self.cloud.scaling().describe_instance_refreshes().auto_scaling_group_name("pool");
            let found = describe.send().await?;
            let last = found.instance_refreshes().first().and_then(|one| one.status());
            Ok((last == Some(&status)).then_some(()))
        })
        .await
    }
}

#[tokio::test]
async fn a_member_that_is_stopped_is_replaced_protected_or_not() -> Result<()> {
    let lab = Lab::new("cloud-stopped").await?;
    let members = lab.pool(2).await?;
    ensure!(lab.cloud.instance(&members[0]).await?.protected);
    ensure!(lab.stop(&members[0]).await == "ok", "nobody refuses it");
    lab.until_state(&members[0], "terminated").await?;
    let now = lab.until_members("pool", "InService", 2).await?;
    ensure!(!now.contains(&members[0]) && now.contains(&members[1]));
    let calls = lab.cloud.calls(0).await?;
    ensure!(calls.iter().any(|call| call.action == "replaced" && call.names("instance", &members[0])));

    // Terminated by hand, or found unhealthy: the same.
    lab.cloud.act(Act::Terminate { instance: now[0].clone() }).await?;
    lab.until_lifecycle(&now[0], None).await?;
    let now = lab.until_members("pool", "InService", 2).await?;
    lab.cloud.act(Act::Unhealthy { instance: now[0].clone() }).await?;
    lab.until_state(&now[0], "terminated").await?;
    let now = lab.until_members("pool", "InService", 2).await?;

    // A grace period is for health that was reported, not for instances that do not run.
    let update = lab.cloud.scaling().update_auto_scaling_group().auto_scaling_group_name("pool");
    update.health_check_grace_period(3600).send().await?;
    let health = lab.cloud.scaling().set_instance_health().instance_id(&now[1]).health_status("Unhealthy");
    health.clone().send().await?;
    lab.pass(60.0).await?;
    ensure!(lab.lifecycle(&now[1]).await?.as_deref() == Some("InService"), "within its grace");
    health.should_respect_grace_period(false).send().await?;
    lab.until_state(&now[1], "terminated").await?;
    let strange = lab.cloud.scaling().set_instance_health().instance_id("i-0123456789abcdef0");
    refused(strange.health_status("Unhealthy").send().await, "ValidationError");
    Ok(())
}

#[tokio::test]
async fn suspended_processes_do_nothing_until_they_are_resumed() -> Result<()> {
    let lab = Lab::new("cloud-processes").await?;
    let members = lab.pool(2).await?;
    lab.suspend(&["HealthCheck"]).await?;
    ensure!(lab.stop(&members[0]).await == "ok");
    lab.until_state(&members[0], "stopped").await?;
    lab.pass(3600.0).await?;
    ensure!(lab.lifecycle(&members[0]).await?.as_deref() == Some("InService"), "nobody looked");
    lab.suspend(&["ReplaceUnhealthy"]).await?;
    lab.resume(&["HealthCheck"]).await?;
    let unhealthy = async || {
        let found =
            lab.cloud.scaling().describe_auto_scaling_instances().instance_ids(&members[0]).send().await?;
        let health = found.auto_scaling_instances()[0].health_status().unwrap_or_default().to_owned();
        Ok((health == "UNHEALTHY").then_some(()))
    };
    until("it is found unhealthy", SOON, unhealthy).await?;
    lab.pass(3600.0).await?;
    ensure!(lab.lifecycle(&members[0]).await?.as_deref() == Some("InService"), "nobody replaces it");
    let shown = lab.shown_group("pool").await?;
    ensure!(shown.suspended_processes().iter().any(|one| one.process_name() == Some("ReplaceUnhealthy")));

    lab.suspend(&["Launch"]).await?;
    lab.resume(&["ReplaceUnhealthy"]).await?;
    lab.until_state(&members[0], "terminated").await?;
    lab.pass(3600.0).await?;
    ensure!(lab.cloud.members("pool").await?.len() == 1, "nobody is launched");
    let launch = lab.cloud.scaling().launch_instances().auto_scaling_group_name("pool").client_token("x");
    let launch = launch.requested_capacity(1).availability_zones(lab.zone());
    refused(launch.send().await, "ValidationError");
    lab.resume(&["Launch"]).await?;
    let now = lab.until_members("pool", "InService", 2).await?;

    lab.suspend(&["Terminate"]).await?;
    for id in &now {
        ensure!(lab.protect("pool", id, false).await == "ok");
    }
    ensure!(lab.desire("pool", 0).await == "ok");
    lab.pass(3600.0).await?;
    ensure!(lab.cloud.members("pool").await?.len() == 2);
    lab.resume(&[]).await?;
    lab.until_members("pool", "InService", 0).await?;
    Ok(())
}

#[tokio::test]
async fn a_refresh_replaces_protected_members_as_it_is_told() -> Result<()> {
    let lab = Lab::new("cloud-refresh").await?;
    let members = lab.pool(2).await?;
    ensure!(lab.protect("pool", &members[1], false).await == "ok");
    lab.refresh("Ignore").await?;
    lab.until_refresh(InstanceRefreshStatus::Successful).await?;
    ensure!(lab.cloud.instance(&members[1]).await?.lifecycle.is_none(), "the unprotected one went");
    ensure!(lab.lifecycle(&members[0]).await?.as_deref() == Some("InService"));
    let now = lab.until_members("pool", "InService", 2).await?;

    lab.refresh("Wait").await?;
    lab.pass(1800.0).await?;
    lab.until_refresh(InstanceRefreshStatus::InProgress).await?;
    ensure!(lab.until_members("pool", "InService", 2).await? == now, "it waits for protection to end");
    let second = lab.cloud.scaling().start_instance_refresh().auto_scaling_group_name("pool");
    refused(second.send().await, "InstanceRefreshInProgress");
    ensure!(lab.protect("pool", &now[0], false).await == "ok");
    lab.until_state(&now[0], "terminated").await?;
    lab.until_members("pool", "InService", 2).await?;
    lab.pass(1.0).await?;
    lab.pass(3601.0).await?;
    lab.until_refresh(InstanceRefreshStatus::Failed).await?;
    ensure!(lab.lifecycle(&now[1]).await?.as_deref() == Some("InService"));

    let before = lab.until_members("pool", "InService", 2).await?;
    lab.refresh("Refresh").await?;
    lab.until_refresh(InstanceRefreshStatus::Successful).await?;
    let after = lab.until_members("pool", "InService", 2).await?;
    ensure!(before.iter().all(|id| !after.contains(id)), "protection did not help");
    lab.refresh("Wait").await?;
    lab.cloud.scaling().cancel_instance_refresh().auto_scaling_group_name("pool").send().await?;
    lab.until_refresh(InstanceRefreshStatus::Cancelled).await?;
    Ok(())
}

#[tokio::test]
async fn spot_takes_an_instance_at_the_end_of_its_notice() -> Result<()> {
    let lab = Lab::with("cloud-spot", |template| template.market = Market::SpotPersistent).await?;
    let members = lab.pool(2).await?;
    let notice = |instance: &str, action: Reclaim, seconds: Option<f64>| Act::SpotNotice {
        instance: instance.to_owned(),
        action,
        seconds,
    };
    lab.cloud.act(notice(&members[0], Reclaim::Terminate, None)).await?;
    let told = lab.cloud.instance(&members[0]).await?;
    ensure!(told.state == "running" && told.spot_action.is_some_and(|one| one.action == "terminate"));
    lab.pass(119.0).await?;
    ensure!(lab.cloud.instance(&members[0]).await?.state == "running");
    lab.pass(2.0).await?;
    let taken = lab.until_state(&members[0], "terminated").await?;
    ensure!(taken.state_reason.as_deref() == Some("Server.SpotInstanceTermination"));
    lab.until_members("pool", "InService", 2).await?;

    let alone = lab.running().await?;
    lab.cloud.act(notice(&alone, Reclaim::Stop, Some(0.0))).await?;
    lab.pass(0.0).await?;
    let stopped = lab.until_state(&alone, "stopped").await?;
    ensure!(stopped.state_reason.as_deref() == Some("Server.SpotInstanceShutdown") && !stopped.hibernated);
    Ok(())
}
