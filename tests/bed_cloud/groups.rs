//! Groups: capacity, zones, protection, and the ways out of them.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Lab, SOON, code, refused};
use crate::testbed::cloud::{Act, Group};
use crate::testbed::wait::until;

impl Lab {
    pub(super) async fn desire(&self, group: &str, desired: i32) -> String {
        let set = self.cloud.scaling().set_desired_capacity().auto_scaling_group_name(group);
        code(set.desired_capacity(desired).send().await)
    }

    pub(super) async fn desired(&self, group: &str) -> Result<i32> {
        Ok(self.shown_group(group).await?.desired_capacity().unwrap_or(-1))
    }

    pub(super) async fn shown_group(
        &self,
        group: &str,
    ) -> Result<aws_sdk_autoscaling::types::AutoScalingGroup> {
        let describe = self.cloud.scaling().describe_auto_scaling_groups();
        let found = describe.auto_scaling_group_names(group).send().await?;
        Ok(found.auto_scaling_groups()[0].clone())
    }

    pub(super) async fn protect(&self, group: &str, id: &str, protected: bool) -> String {
        let set = self.cloud.scaling().set_instance_protection().auto_scaling_group_name(group);
        code(set.instance_ids(id).protected_from_scale_in(protected).send().await)
    }

    pub(super) async fn detach_member(&self, group: &str, id: &str, decrement: bool) -> String {
        let detach = self.cloud.scaling().detach_instances().auto_scaling_group_name(group).instance_ids(id);
        code(detach.should_decrement_desired_capacity(decrement).send().await)
    }

    pub(super) async fn terminate_member(&self, id: &str, decrement: bool) -> String {
        let end = self.cloud.scaling().terminate_instance_in_auto_scaling_group().instance_id(id);
        code(end.should_decrement_desired_capacity(decrement).send().await)
    }

    /// Whether it carries the tag of a group, as DescribeTags tells.
    async fn has_group_tag(&self, id: &str) -> Result<bool> {
        let filter = aws_sdk_ec2::types::Filter::builder().name("resource-id").values(id).build();
        let found = self.cloud.ec2().describe_tags().filters(filter).send().await?;
        Ok(found.tags().iter().any(|tag| tag.key() == Some("aws:autoscaling:groupName")))
    }
}

#[tokio::test]
async fn capacity_is_bounded_and_spread_over_the_zones() -> Result<()> {
    let lab = Lab::new("cloud-capacity").await?;
    lab.group(&Group { min: 1, desired: 1, ..Group::new("pool", 5) }).await?;
    lab.until_members("pool", "InService", 1).await?;
    ensure!(lab.desire("pool", 6).await == "ValidationError");
    ensure!(lab.desire("pool", 0).await == "ValidationError");
    ensure!(lab.desired("pool").await? == 1, "a refusal changes nothing");
    ensure!(lab.desire("stranger", 1).await == "ValidationError");
    ensure!(lab.desire("pool", 4).await == "ok");
    let members = lab.until_members("pool", "InService", 4).await?;
    let mut zones = Vec::new();
    for id in &members {
        let instance = lab.cloud.instance(id).await?;
        ensure!(instance.protected, "new members are protected");
        ensure!(lab.has_group_tag(id).await?);
        zones.push(instance.zone);
    }
    zones.sort();
    zones.dedup_by_key(|zone| zone.clone());
    ensure!(zones.len() == 2, "two in each zone: {zones:?}");

    let scaling = lab.cloud.scaling();
    let create = scaling.create_auto_scaling_group().auto_scaling_group_name("pool").min_size(0).max_size(1);
    refused(create.clone().send().await, "AlreadyExists");
    let other = create.auto_scaling_group_name("other");
    refused(other.clone().send().await, "ValidationError"); // Of what, and where?
    refused(other.vpc_zone_identifier("subnet-0123456789abcdef0").send().await, "ValidationError");
    let update = || scaling.update_auto_scaling_group().auto_scaling_group_name("pool");
    refused(update().min_size(7).max_size(6).send().await, "ValidationError");
    update()
        .max_size(6)
        .new_instances_protected_from_scale_in(false)
        .max_instance_lifetime(86_400)
        .send()
        .await?;
    let shown = lab.shown_group("pool").await?;
    ensure!(shown.new_instances_protected_from_scale_in() == Some(false));
    ensure!(shown.max_instance_lifetime() == Some(86_400) && shown.max_size() == Some(6));

    let none = scaling.describe_auto_scaling_groups().auto_scaling_group_names("stranger").send().await?;
    ensure!(none.auto_scaling_groups().is_empty(), "an unknown group is not an error here");
    let policy = scaling.put_scaling_policy().policy_name("cpu").policy_type("SimpleScaling");
    let policy = policy.adjustment_type("ChangeInCapacity").scaling_adjustment(1);
    refused(policy.clone().auto_scaling_group_name("stranger").send().await, "ValidationError");
    policy.auto_scaling_group_name("pool").send().await?;
    let shown = scaling.describe_policies().auto_scaling_group_name("pool").send().await?;
    ensure!(shown.scaling_policies().len() == 1);

    let delete = || scaling.delete_auto_scaling_group().auto_scaling_group_name("pool");
    refused(delete().send().await, "ResourceInUse");
    delete().force_delete(true).send().await?;
    until("the group is gone", SOON, async || {
        let found = scaling.describe_auto_scaling_groups().send().await?;
        Ok(found.auto_scaling_groups().is_empty().then_some(()))
    })
    .await
}

#[tokio::test]
async fn launching_gives_ids_at_once_and_the_same_ones_for_a_token() -> Result<()> {
    let lab = Lab::new("cloud-launch").await?;
    lab.group(&Group::new("pool", 3)).await?;
    let launch = |count: i32, token: &str| {
        let launch = lab.cloud.scaling().launch_instances().auto_scaling_group_name("pool");
        launch.requested_capacity(count).client_token(token)
    };
    let ids =
        |answer: &aws_sdk_autoscaling::operation::launch_instances::LaunchInstancesOutput| -> Vec<String> {
            answer.instances().iter().flat_map(|one| one.instance_ids()).cloned().collect()
        };
    refused(launch(1, "a").send().await, "ValidationError"); // Two zones, and none was named.
    let zone = &lab.network.subnets[1].zone;
    let first = launch(2, "a").availability_zones(zone).send().await?;
    ensure!(ids(&first).len() == 2);
    for id in ids(&first) {
        ensure!(lab.cloud.instance(&id).await?.zone == *zone);
    }
    ensure!(ids(&launch(2, "a").availability_zones(zone).send().await?) == ids(&first));
    refused(launch(1, "a").availability_zones(zone).send().await, "IdempotentParameterMismatch");
    ensure!(lab.desired("pool").await? == 2);
    lab.until_members("pool", "InService", 2).await?;
    refused(launch(2, "b").availability_zones(zone).send().await, "ValidationError"); // More than the most.
    refused(launch(1, "b").availability_zones("eu-central-1c").send().await, "ValidationError");

    lab.cloud.act(Act::ZoneClosed { zone: zone.clone() }).await?;
    let failed = launch(1, "c").availability_zones(zone).send().await?;
    ensure!(ids(&failed).is_empty());
    ensure!(failed.errors()[0].error_code() == Some("InsufficientInstanceCapacity"));
    ensure!(lab.desired("pool").await? == 2, "what did not come is not desired");
    // The group itself goes to the zone that is open.
    ensure!(lab.desire("pool", 3).await == "ok");
    lab.until_members("pool", "InService", 3).await?;
    Ok(())
}

#[tokio::test]
async fn scale_in_takes_unprotected_members_only() -> Result<()> {
    let lab = Lab::new("cloud-scale-in").await?;
    lab.group(&Group { desired: 3, ..Group::new("pool", 3) }).await?;
    let members = lab.until_members("pool", "InService", 3).await?;
    ensure!(lab.protect("pool", &members[2], false).await == "ok");
    ensure!(lab.desire("pool", 0).await == "ok");
    lab.until_state(&members[2], "terminated").await?;
    let cancelled = async || {
        let describe = lab.cloud.scaling().describe_scaling_activities().auto_scaling_group_name("pool");
        let found = describe.send().await?;
        Ok(found
            .activities()
            .iter()
            .any(|one| one.status_code().is_some_and(|code| code.as_str() == "Cancelled"))
            .then_some(()))
    };
    until("the rest of the scale-in is cancelled", SOON, cancelled).await?;
    for id in &members[..2] {
        ensure!(lab.lifecycle(id).await?.as_deref() == Some("InService"));
    }
    ensure!(lab.desired("pool").await? == 0, "the desired capacity stays lowered");
    ensure!(lab.protect("pool", &members[0], false).await == "ok");
    lab.until_state(&members[0], "terminated").await?;
    ensure!(lab.lifecycle(&members[1]).await?.as_deref() == Some("InService"));
    // By its id a protected one goes too.
    ensure!(lab.terminate_member(&members[1], false).await == "ok");
    lab.until_state(&members[1], "terminated").await?;
    ensure!(lab.protect("pool", &members[1], false).await == "ValidationError", "it is no member");
    ensure!(lab.terminate_member("i-0123456789abcdef0", true).await == "ValidationError");
    Ok(())
}

#[tokio::test]
async fn detaching_takes_time_and_two_things_with_it() -> Result<()> {
    let lab = Lab::new("cloud-detach").await?;
    lab.group(&Group { min: 1, desired: 2, ..Group::new("pool", 3) }).await?;
    let members = lab.until_members("pool", "InService", 2).await?;
    lab.slow().await?;
    ensure!(lab.detach_member("pool", &members[0], true).await == "ok");
    ensure!(lab.desired("pool").await? == 1);
    let leaving = lab.cloud.instance(&members[0]).await?;
    ensure!(leaving.lifecycle.as_deref() == Some("Detaching") && !leaving.protected);
    let listed = async |id: &str| -> Result<bool> {
        let describe = lab.cloud.scaling().describe_auto_scaling_instances().instance_ids(id);
        Ok(!describe.send().await?.auto_scaling_instances().is_empty())
    };
    ensure!(listed(&members[0]).await?, "it is a member still");
    ensure!(lab.protect("pool", &members[0], true).await == "ValidationError");
    ensure!(lab.detach_member("pool", &members[0], true).await == "ValidationError");
    lab.pass(601.0).await?;
    ensure!(!listed(&members[0]).await?);
    ensure!(!lab.has_group_tag(&members[0]).await?, "the group's tag is gone");
    let free = lab.cloud.instance(&members[0]).await?;
    ensure!(free.state == "running" && free.group.is_none());

    ensure!(lab.detach_member("pool", &members[1], true).await == "ValidationError", "below the least");
    ensure!(lab.terminate_member(&members[1], true).await == "ValidationError", "below the least");
    // Without the decrement another one comes for it.
    ensure!(lab.detach_member("pool", &members[1], false).await == "ok");
    lab.pass(1300.0).await?;
    let after = lab.until_members("pool", "InService", 1).await?;
    ensure!(!members.contains(&after[0]));

    // The way back: running, of no group, below the most.
    let attach = async |id: &str| {
        let attach = lab.cloud.scaling().attach_instances().auto_scaling_group_name("pool").instance_ids(id);
        code(attach.send().await)
    };
    ensure!(attach(&after[0]).await == "ValidationError", "it is a member already");
    ensure!(lab.stop(&members[0]).await == "ok");
    lab.pass(601.0).await?;
    ensure!(attach(&members[0]).await == "ValidationError", "it is stopped");
    ensure!(attach(&members[1]).await == "ok");
    lab.pass(601.0).await?;
    let back = lab.cloud.instance(&members[1]).await?;
    ensure!(back.lifecycle.as_deref() == Some("InService") && back.protected);
    ensure!(lab.desired("pool").await? == 2);
    Ok(())
}

#[tokio::test]
async fn standby_keeps_what_detaching_loses() -> Result<()> {
    let lab = Lab::new("cloud-standby").await?;
    lab.group(&Group { desired: 2, ..Group::new("pool", 2) }).await?;
    let members = lab.until_members("pool", "InService", 2).await?;
    let id = &members[0];
    let enter = lab.cloud.scaling().enter_standby().auto_scaling_group_name("pool").instance_ids(id);
    enter.should_decrement_desired_capacity(true).send().await?;
    lab.until_lifecycle(id, Some("Standby")).await?;
    ensure!(lab.cloud.instance(id).await?.protected && lab.has_group_tag(id).await?);
    ensure!(lab.protect("pool", id, true).await == "ok");
    ensure!(lab.stop(id).await == "ok");
    lab.until_state(id, "stopped").await?;
    lab.pass(60.0).await?;
    ensure!(lab.lifecycle(id).await?.as_deref() == Some("Standby"), "its health is not checked");
    ensure!(lab.start(id).await == "ok");
    lab.until_state(id, "running").await?;
    let leave = || lab.cloud.scaling().exit_standby().auto_scaling_group_name("pool").instance_ids(id).send();
    ensure!(lab.desire("pool", 2).await == "ok");
    lab.until_members("pool", "InService", 2).await?;
    refused(leave().await, "ValidationError"); // More than the most.
    lab.cloud
        .scaling()
        .update_auto_scaling_group()
        .auto_scaling_group_name("pool")
        .max_size(3)
        .send()
        .await?;
    leave().await?;
    lab.until_members("pool", "InService", 3).await?;
    lab.cloud.config(json!({"lenient": false})).await
}
