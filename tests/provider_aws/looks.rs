//! What a look shows, and how many calls it takes.

use std::sync::Arc;

use aws_sdk_autoscaling::types::WarmPoolState;
use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use dormouse::provider::observer::{Intervals, Observers, Subscription};
use dormouse::provider::{Hook, VolumeState, WarmPool};

use super::*;
use crate::testbed::cloud::{Act, Fault, Market, Warm};

/// More than a page of volumes, and of groups.
const MANY_VOLUMES: usize = 510;
const MANY_GROUPS: usize = 60;

#[tokio::test]
async fn a_group_is_seen_with_its_settings_and_members() -> Result<()> {
    let lab = Lab::with_group_like("aws-look", 2, |group| {
        group.protected = true;
        group.warm = Some(Warm { min: 1, prepared: Some(3), state: WarmPoolState::Stopped, reuse: true });
    })
    .await?;
    let scaling = lab.cloud.scaling();
    let policy = scaling.put_scaling_policy().auto_scaling_group_name(GROUP).policy_name("by-load");
    policy.adjustment_type("ChangeInCapacity").scaling_adjustment(1).send().await?;
    let processes = scaling.suspend_processes().auto_scaling_group_name(GROUP);
    processes.scaling_processes("AZRebalance").send().await?;
    lab.until_members(Lifecycle::Warmed, 1).await.context("the warm pool")?;

    // What changes rarely is seen once a minute: an edge that has not looked yet sees it now.
    let fresh = AwsCloud::new(settings(lab.cloud.endpoint()), Metrics::new()).await?;
    let wanted = Wanted {
        cluster: owned(CLUSTER),
        groups: BTreeSet::from([owned(GROUP), owned("nobodys")]),
        ids: Ids::default(),
    };
    let before = dormouse::clock::now();
    let seen = fresh.observe(&wanted).await?;
    ensure!(before <= seen.at && seen.at <= dormouse::clock::now());
    ensure!(seen.groups.len() == 1, "a group that does not exist is missing and no error");
    let group = &seen.groups[GROUP];
    ensure!((group.min, group.max, group.desired) == (0, 6, 2), "{group:?}");
    ensure!(group.zones == [lab.zone()] && group.protects_new && !group.retains_abandoned, "{group:?}");
    let hook = Hook {
        name: owned(HOOK),
        at_termination: true,
        heartbeat_timeout: 600,
        global_timeout: group.hooks.first().map_or(0, |hook| hook.global_timeout),
        abandons: false,
    };
    ensure!(group.hooks == [hook] && group.hooks[0].global_timeout >= 600, "{group:?}");
    ensure!(group.scaling_policies == ["by-load"] && group.suspended.contains("AZRebalance"), "{group:?}");
    ensure!(group.warm_pool == Some(WarmPool { state: owned("Stopped"), reuses: true }), "{group:?}");
    ensure!(!group.is_refreshing && !group.is_mixed && group.max_instance_lifetime.is_none(), "{group:?}");

    let members: Vec<&Instance> = seen.instances.values().filter(|one| one.member.is_some()).collect();
    ensure!(members.len() == 3, "{members:?}");
    for instance in members {
        let member = instance.member.as_ref().context("a member")?;
        ensure!(member.group == GROUP && member.is_healthy, "{member:?}");
        ensure!(instance.address.as_ref().is_some_and(|address| address.starts_with("127.77.")));
        ensure!(instance.machine_type == "m6i.large" && instance.image.starts_with("ami-"), "{instance:?}");
        ensure!(!instance.is_spot && !instance.can_hibernate && instance.launched_at.is_some());
        ensure!(instance.devices.len() == 1, "the root: {instance:?}");
    }

    lab.cloud.act(Act::InstanceRefresh { group: owned(GROUP), preferences: serde_json::json!({}) }).await?;
    let fresh = AwsCloud::new(settings(lab.cloud.endpoint()), Metrics::new()).await?;
    ensure!(fresh.observe(&wanted).await?.groups[GROUP].is_refreshing);
    Ok(())
}

#[tokio::test]
async fn a_member_that_leaves_the_warm_pool_within_a_look_is_seen_as_a_member() -> Result<()> {
    let lab = Lab::with_group_like("aws-torn", 1, |group| {
        group.warm = Some(Warm { min: 1, prepared: Some(2), state: WarmPoolState::Stopped, reuse: true });
    })
    .await?;
    let resting = lab.until_members(Lifecycle::Warmed, 1).await.context("the warm pool")?.remove(0);
    let since = lab.cloud.calls_so_far().await?;
    lab.cloud.fault(Fault::latency("autoscaling", "DescribeWarmPool", Duration::from_secs(2))).await?;
    let leaves = async {
        until("the group was looked at", SOON, async || {
            let looked = lab.calls(since, "DescribeAutoScalingGroups").await?;
            Ok((!looked.is_empty()).then_some(()))
        })
        .await?;
        let grow = lab.cloud.scaling().set_desired_capacity().auto_scaling_group_name(GROUP);
        grow.desired_capacity(2).send().await?;
        Ok(())
    };
    let (seen, ()) = tokio::try_join!(lab.look(), leaves)?;
    let member = seen.instances[&resting].member.as_ref().context("it is shown as nobody's")?;
    ensure!(member.group == GROUP, "{member:?}");
    Ok(())
}

#[tokio::test]
async fn strangers_are_not_seen_and_spot_and_hibernation_are() -> Result<()> {
    let lab = Lab::new("aws-strangers").await?;
    let mut template = Template::new("other", "lab");
    (template.hibernation, template.market) = (true, Market::SpotPersistent);
    let template = lab.cloud.template(&template, &lab.network).await?;
    let stranger = lab.cloud.launch(&template, &lab.network.subnets[0].id).await?;
    let ours = lab.running().await?;
    let seen = lab.look().await?.instances;
    ensure!(seen.keys().eq([&ours]), "{seen:?}");
    lab.change(&Change::Tag { ids: vec![stranger.clone()], tags: super::ours() }).await?;
    let seen = lab.look().await?.instances;
    ensure!(seen.len() == 2 && seen[&stranger].is_spot && seen[&stranger].can_hibernate, "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_list_of_more_than_a_page_is_seen_whole() -> Result<()> {
    let lab = Lab::new("aws-pages").await?;
    let spec = TagSpecification::builder()
        .resource_type(ResourceType::Volume)
        .tags(Tag::builder().key(tags::CLUSTER).value(CLUSTER).build())
        .build();
    for _ in 0..MANY_VOLUMES {
        let volume = lab.cloud.ec2().create_volume().availability_zone(lab.zone()).size(1);
        volume.tag_specifications(spec.clone()).send().await?;
    }
    let names: Vec<String> = (0..MANY_GROUPS).map(|number| format!("group-{number:02}")).collect();
    for name in &names {
        lab.cloud.group(&Group::new(name, 1), &lab.template, &lab.network).await?;
    }
    let wanted =
        Wanted { cluster: owned(CLUSTER), groups: names.iter().cloned().collect(), ids: Ids::default() };
    let since = lab.cloud.calls_so_far().await?;
    let seen = lab.aws.observe(&wanted).await?;
    ensure!(seen.volumes.len() == MANY_VOLUMES && seen.groups.len() == MANY_GROUPS);
    ensure!(seen.volumes.values().all(|volume| volume.state != VolumeState::Failed));
    ensure!(lab.calls(since, "DescribeVolumes").await?.len() == 2, "two pages");
    ensure!(lab.calls(since, "DescribeAutoScalingGroups").await?.len() == 2, "names in two calls");

    // A page that fails fails the look: half of the truth is none.
    lab.cloud.fault(Fault::error("ec2", "DescribeVolumes", 400, "InvalidNextToken").after(1)).await?;
    let error = lab.aws.observe(&wanted).await.err().context("half a list")?;
    ensure!(error.code == "InvalidNextToken", "{error}");
    Ok(())
}

#[tokio::test]
async fn what_changes_rarely_is_not_asked_for_again_within_a_minute() -> Result<()> {
    let lab = Lab::with_group("aws-settings", 1).await?;
    let since = lab.cloud.calls_so_far().await?;
    lab.look().await?;
    lab.look().await?;
    for action in
        ["DescribeLifecycleHooks", "DescribePolicies", "DescribeInstanceRefreshes", "DescribeWarmPool"]
    {
        let calls = lab.calls(since, action).await?;
        ensure!(calls.is_empty(), "it was seen within the minute: {calls:?}");
    }
    for action in ["DescribeAutoScalingGroups", "DescribeInstances", "DescribeVolumes", "DescribeSnapshots"] {
        let calls = lab.calls(since, action).await?.len();
        ensure!(calls == 2, "{action}: {calls} calls for two looks");
    }
    Ok(())
}

#[tokio::test]
async fn fifty_pools_of_an_account_take_one_look() -> Result<()> {
    let lab = Lab::new("aws-fifty").await?;
    let names: Vec<String> = (0..50).map(|number| format!("group-{number:02}")).collect();
    for name in &names {
        lab.cloud.group(&Group::new(name, 1), &lab.template, &lab.network).await?;
    }
    let metrics = Metrics::new();
    let observers = Observers::new(metrics.clone());
    let (update, expecting) = (Duration::from_secs(600), Duration::from_secs(600));
    let intervals = Intervals { update, expecting };
    let since = lab.cloud.calls_so_far().await?;
    let mut pools: Vec<Subscription> = Vec::new();
    for name in &names {
        let own = AwsCloud::new(settings(lab.cloud.endpoint()), metrics.clone()).await?;
        let key = settings(lab.cloud.endpoint()).account_key();
        pools.push(observers.join(key, Arc::new(own), name.clone(), owned(CLUSTER), intervals));
    }
    for (pool, name) in pools.iter_mut().zip(&names) {
        until("the look shows the group", SOON, async || {
            pool.problem().map_or(Ok(()), Err)?;
            Ok(pool.latest().filter(|seen| seen.groups.contains_key(name)).map(drop))
        })
        .await?;
    }
    // The first who joins may be looked for alone; all others are in the next look, whatever their number.
    let calls = lab.calls(since, "DescribeAutoScalingGroups").await?.len();
    ensure!(calls <= 2, "{calls} looks for fifty pools");
    let first = &pools[0];
    ensure!(pools.iter().all(|pool| Arc::ptr_eq(pool.cloud(), first.cloud())), "one limit for all");

    let changed_at = dormouse::clock::now();
    first.cloud().change(&Change::SetDesired { group: names[0].clone(), to: 1 }).await?;
    first.look_after(changed_at);
    until("the look after the change shows it", SOON, async || {
        Ok(first.latest().filter(|seen| seen.at > changed_at && seen.groups[&names[0]].desired == 1))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn what_lost_its_tags_is_seen_by_its_id_and_an_unknown_id_fails_no_look() -> Result<()> {
    let lab = Lab::new("aws-ids").await?;
    let ec2 = lab.cloud.ec2();
    let volume = ec2.create_volume().availability_zone(lab.zone()).size(1).send().await?;
    let volume = volume.volume_id().context("no volume")?.to_owned();
    let snapshot = crate::testbed::wait::until("it can be copied", crate::testbed::stage::SOON, async || {
        Ok(ec2.create_snapshot().volume_id(&volume).send().await.ok().and_then(|taken| taken.snapshot_id))
    })
    .await?;
    let instance = lab.cloud.launch(&lab.template, &lab.network.subnets[0].id).await?;
    let mut wanted = Wanted { cluster: owned(CLUSTER), ..Wanted::default() };
    let strip = Act::RemoveTags { resource: instance.clone(), keys: Vec::new() };
    lab.cloud.act(strip).await?;
    let seen = lab.aws.observe(&wanted).await?;
    ensure!(seen.instances.is_empty() && seen.volumes.is_empty() && seen.snapshots.is_empty(), "{seen:?}");
    wanted.ids.instances.extend([instance.clone(), owned("i-00000000000000000")]);
    wanted.ids.volumes.extend([volume.clone(), owned("vol-00000000000000000")]);
    wanted.ids.snapshots.extend([snapshot.clone(), owned("snap-00000000000000000")]);
    let seen = lab.aws.observe(&wanted).await?;
    ensure!(seen.instances.keys().eq([&instance]), "{seen:?}");
    ensure!(seen.volumes.keys().eq([&volume]), "{seen:?}");
    ensure!(seen.snapshots.keys().eq([&snapshot]), "{seen:?}");
    Ok(())
}
