//! Changes of a group and its members.

use super::*;
use crate::testbed::cloud::{Act, Fault};

fn protect(instances: &[String], on: bool) -> Change {
    Change::Protect { group: owned(GROUP), instances: instances.to_vec(), on }
}

fn terminate(instance: &str) -> Change {
    Change::TerminateMember { instance: owned(instance) }
}

#[tokio::test]
async fn a_group_gets_the_size_it_is_given_and_never_one_beyond_its_limits() -> Result<()> {
    let lab = Lab::with_group("aws-desired", 0).await?;
    let desired = |to| Change::SetDesired { group: owned(GROUP), to };
    lab.twice(&desired(2)).await?;
    lab.until_members(Lifecycle::InService, 2).await?;
    ensure!(lab.look().await?.groups[GROUP].desired == 2);
    let error = lab.refused(&desired(7)).await?;
    ensure!(error.class == ErrorClass::Invalid && error.code == "ValidationError", "{error}");
    ensure!(error.message.contains("above max value 6"), "{error}");
    let elsewhere = Change::SetDesired { group: owned("nobodys"), to: 1 };
    ensure!(lab.refused(&elsewhere).await?.class == ErrorClass::Gone);
    Ok(())
}

#[tokio::test]
async fn a_group_is_claimed_and_given_back() -> Result<()> {
    let lab = Lab::with_group("aws-claim", 1).await?;
    let claim =
        |group: &str| Change::ClaimGroup { group: owned(group), tags: tagged(&[(tags::POOL, "a-uid")]) };
    let leave = |group: &str| Change::LeaveGroup { group: owned(group), keys: vec![owned(tags::POOL)] };
    lab.twice(&claim(GROUP)).await?;
    ensure!(lab.look().await?.groups[GROUP].tags[tags::POOL] == "a-uid");
    lab.change(&Change::SetDesired { group: owned(GROUP), to: 2 }).await?;
    lab.until_members(Lifecycle::InService, 2).await?;
    let seen = lab.look().await?.instances;
    ensure!(
        seen.values().all(|one| !one.tags.contains_key(tags::POOL)),
        "the tag is the group's alone: {seen:?}"
    );
    lab.twice(&leave(GROUP)).await?;
    ensure!(!lab.look().await?.groups[GROUP].tags.contains_key(tags::POOL));
    let error = lab.refused(&claim("nobodys")).await?;
    ensure!(error.class == ErrorClass::Gone, "{error}");
    lab.twice(&leave("nobodys")).await
}

#[tokio::test]
async fn a_launch_says_what_it_launched_and_asking_twice_is_asking_once() -> Result<()> {
    let lab = Lab::with_group("aws-launch", 0).await?;
    let launch = |token: &str| Change::Launch {
        group: owned(GROUP),
        count: 2,
        zone: Some(owned(lab.zone())),
        token: owned(token),
    };
    let first = lab.change(&launch("a-wish")).await?;
    ensure!(lab.change(&launch("a-wish")).await? == first, "the same wish");
    let Changed::Launched(ids) = first else { anyhow::bail!("{first:?}") };
    ensure!(ids.len() == 2);
    ensure!(
        lab.until_members(Lifecycle::InService, 2).await?
            == BTreeSet::from_iter(ids).into_iter().collect::<Vec<_>>()
    );
    // The answer is cut off after the deed: the SDK tries again, with the same token.
    lab.cloud.fault(Fault::cut("autoscaling", "LaunchInstances")).await?;
    lab.change(&launch("another-wish")).await?;
    lab.until_members(Lifecycle::InService, 4).await?;
    lab.cloud.act(Act::NoCapacity).await?;
    let error = lab.refused(&launch("a-third-wish")).await?;
    ensure!(error.class == ErrorClass::NoCapacity, "{error}");
    Ok(())
}

#[tokio::test]
async fn protection_is_given_to_all_but_those_that_are_leaving() -> Result<()> {
    let lab = Lab::with_group("aws-protect", 3).await?;
    let members = lab.until_members(Lifecycle::InService, 3).await?;
    lab.twice(&protect(&members, true)).await?;
    let seen = lab.look().await?.instances;
    ensure!(members.iter().all(|id| seen[id].member.as_ref().is_some_and(|member| member.is_protected)));
    lab.twice(&protect(&members, false)).await?;

    lab.change(&terminate(&members[1])).await?;
    lab.until_members(Lifecycle::TerminatingWait, 1).await?;
    let error = lab.refused(&protect(&members, true)).await?;
    ensure!(error.class == ErrorClass::Refused && error.message.contains(&members[1]), "{error}");
    let seen = lab.look().await?.instances;
    for (id, is_protected) in [(&members[0], true), (&members[1], false), (&members[2], true)] {
        let member = seen[id].member.as_ref().context("a member")?;
        ensure!(member.is_protected == is_protected, "{member:?}");
    }
    lab.change(&protect(&[owned(NOWHERE), members[0].clone()], false)).await.context("what is no member")?;
    let error = lab.refused(&protect(&[owned(NOWHERE)], true)).await?;
    ensure!(error.class == ErrorClass::Gone, "{error}");
    Ok(())
}

#[tokio::test]
async fn a_member_that_goes_makes_the_group_smaller_once_and_its_hook_is_served() -> Result<()> {
    let lab = Lab::with_group("aws-terminate", 3).await?;
    let members = lab.until_members(Lifecycle::InService, 3).await?;
    lab.change(&terminate(&members[0])).await?;
    lab.until_members(Lifecycle::TerminatingWait, 1).await?;
    ensure!(lab.look().await?.groups[GROUP].desired == 2);
    // While it leaves, asking again is no harm, and changes nothing more.
    let again = lab.change(&terminate(&members[0])).await;
    ensure!(
        again.as_ref().is_ok_and(|changed| *changed == Changed::Done)
            || again.as_ref().is_err_and(|error| error.class == ErrorClass::Refused),
        "{again:?}"
    );
    ensure!(lab.look().await?.groups[GROUP].desired == 2);

    let (group, hook, instance) = (owned(GROUP), owned(HOOK), members[0].clone());
    let beat = Change::Heartbeat { group: group.clone(), hook: hook.clone(), instance: instance.clone() };
    lab.twice(&beat).await?;
    lab.twice(&Change::Complete { group, hook, instance, abandon: false }).await?;
    lab.until_state(&members[0], InstanceState::Terminated).await?;
    ensure!(lab.refused(&beat).await?.class == ErrorClass::Gone, "nothing waits any more");
    lab.twice(&terminate(&members[0])).await.context("a member that is gone")?;
    lab.twice(&terminate(NOWHERE)).await
}

#[tokio::test]
async fn an_abandoned_member_is_kept_where_the_group_says_so_and_can_be_detached() -> Result<()> {
    let lab = Lab::with_group_like("aws-retain", 1, |group| group.retain = true).await?;
    let member = lab.until_members(Lifecycle::InService, 1).await?.remove(0);
    ensure!(lab.look().await?.groups[GROUP].retains_abandoned);
    lab.change(&terminate(&member)).await?;
    lab.until_members(Lifecycle::TerminatingWait, 1).await?;
    let (group, instance) = (owned(GROUP), member.clone());
    lab.change(&Change::Complete { group, hook: owned(HOOK), instance, abandon: true }).await?;
    lab.until_members(Lifecycle::Retained, 1).await?;
    let detach = |shrinks| Change::Detach { group: owned(GROUP), instance: member.clone(), shrinks };
    let error = lab.refused(&detach(true)).await?;
    ensure!(error.class == ErrorClass::Refused, "it does not count as capacity: {error}");
    lab.twice(&detach(false)).await?;
    let detached = lab.until_instance(&member, "is no member", |instance| instance.member.is_none()).await?;
    ensure!(detached.state == InstanceState::Running);
    Ok(())
}

#[tokio::test]
async fn a_detached_member_runs_on_and_is_found_by_its_tag() -> Result<()> {
    let lab = Lab::with_group("aws-detach", 2).await?;
    let members = lab.until_members(Lifecycle::InService, 2).await?;
    let detach = |group: &str, index: usize, shrinks| Change::Detach {
        group: owned(group),
        instance: members[index].clone(),
        shrinks,
    };
    lab.twice(&detach(GROUP, 0, true)).await?;
    let left = lab.until_instance(&members[0], "is no member", |instance| instance.member.is_none()).await?;
    ensure!(left.state == InstanceState::Running && left.tags[tags::CLUSTER] == CLUSTER);
    ensure!(lab.look().await?.groups[GROUP].desired == 1);
    lab.twice(&detach(GROUP, 0, true)).await.context("it has left")?;
    ensure!(lab.look().await?.groups[GROUP].desired == 1, "it was counted once");
    lab.twice(&detach(GROUP, 1, false)).await?;
    lab.until_instance(&members[1], "is no member", |instance| instance.member.is_none()).await?;
    lab.until_members(Lifecycle::InService, 1).await.context("another takes its place")?;
    ensure!(lab.refused(&detach("nobodys", 0, true)).await?.class == ErrorClass::Gone, "no such group");
    // The answer is cut off after the deed: the SDK tries again, and that it has left is no error.
    let last = lab.until_members(Lifecycle::InService, 1).await?.remove(0);
    lab.cloud.fault(Fault::cut("autoscaling", "DetachInstances")).await?;
    lab.change(&Change::Detach { group: owned(GROUP), instance: last, shrinks: true }).await?;
    lab.until_members(Lifecycle::InService, 0).await?;
    ensure!(lab.look().await?.groups[GROUP].desired == 0);
    Ok(())
}
