//! One look at an account: groups first, those with a warm pool before and after it, then what they and the cluster's tag
//! name, all at once.
//!
//! Filters name what is looked for, never lists of ids: an id that AWS does not know, not yet or not any more, then is
//! missing from the answer and does not fail it.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::Filter;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::action::Action;
use super::shortage::{self, Shortage};
use super::{AwsCloud, shape};
use crate::clock;
use crate::provider::{
    CloudError, ErrorClass, Group, Hook, Instance, Lifecycle, Member, Observation, Snapshot, Volume, Wanted,
    tags,
};

/// Groups named in one call.
const GROUPS_A_CALL: usize = 50;

/// Values of one filter.
const VALUES_A_FILTER: usize = 200;

/// Rows of a page, of EC2 and of Auto Scaling.
const ROWS: i32 = 500;
const MEMBERS: i32 = 50;
const GROUPS: i32 = 100;

/// The newest activities of a group: the last launch is among them.
const ACTIVITIES: i32 = 20;

/// Pages of one list: a list that never ends is no answer.
const MOST_PAGES: usize = 500;

/// Groups that are asked about at a time.
const GROUPS_AT_A_TIME: usize = 8;

/// How long what changes rarely of a group is taken as seen.
const KEEP: Duration = Duration::from_secs(60);

/// What changes rarely of a group, and is asked for group by group.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    seen: Instant,
    settings: Settings,
}

#[derive(Debug, Clone)]
struct Settings {
    hooks: Vec<Hook>,
    scaling_policies: Vec<String>,
    is_refreshing: bool,
}

/// Groups by name, and their members by the instance's id.
pub(super) type Groups = (BTreeMap<String, Group>, BTreeMap<String, Member>);

impl AwsCloud {
    pub(super) async fn look(&self, wanted: &Wanted) -> Result<Observation, CloudError> {
        let at = clock::now();
        let (mut groups, mut members) = self.groups(&wanted.groups).await?;
        let warm: BTreeSet<String> = groups
            .iter()
            .filter(|(_, group)| group.warm_pool.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        if !warm.is_empty() {
            let resting: Vec<BTreeMap<String, Member>> = stream::iter(warm.iter().cloned())
                .map(|group| async move { self.warm_members(&group).await })
                .buffer_unordered(GROUPS_AT_A_TIME)
                .try_collect()
                .await?;
            // Members go to and fro between a group and its warm pool, which no one call shows together: what went
            // either way meanwhile is in the group before or after. The newest word counts.
            let (again, serving) = self.groups(&warm).await?;
            groups.extend(again);
            members.extend(resting.into_iter().flatten());
            members.extend(serving);
        }
        let ids: BTreeSet<String> = members.keys().chain(&wanted.ids.instances).cloned().collect();
        let names: Vec<String> = groups.keys().cloned().collect();
        let short = short(&groups, &members);
        let (mut instances, volumes, snapshots, settings, failures) = futures::try_join!(
            self.instances(&wanted.cluster, &ids),
            self.volumes(&wanted.cluster, &wanted.ids.volumes),
            self.snapshots(&wanted.cluster, &wanted.ids.snapshots),
            self.settings(&names),
            async { Ok(self.launch_failures(&short).await) },
        )?;
        for (name, failure) in failures {
            if let Some(group) = groups.get_mut(&name) {
                group.launch_failure = Some(failure);
            }
        }
        for (name, seen) in settings {
            if let Some(group) = groups.get_mut(&name) {
                group.hooks = seen.hooks;
                group.scaling_policies = seen.scaling_policies;
                group.is_refreshing = seen.is_refreshing;
            }
        }
        for (id, member) in members {
            if let Some(instance) = instances.get_mut(&id) {
                instance.member = Some(member);
            }
        }
        Ok(Observation { at, groups, instances, volumes, snapshots })
    }

    pub(super) async fn groups(&self, wanted: &BTreeSet<String>) -> Result<Groups, CloudError> {
        let names: Vec<String> = wanted.iter().cloned().collect();
        let mut groups = BTreeMap::new();
        let mut members = BTreeMap::new();
        for names in names.chunks(GROUPS_A_CALL) {
            let call = self.groups.describe_auto_scaling_groups();
            let call = call.set_auto_scaling_group_names(Some(names.to_vec())).max_records(GROUPS);
            let pages = self
                .pages(
                    Action::DescribeAutoScalingGroups,
                    "look at the Auto Scaling groups",
                    |token| call.clone().set_next_token(token).send(),
                    |page| page.next_token(),
                )
                .await?;
            for seen in pages.iter().flat_map(|page| page.auto_scaling_groups()) {
                let Some((name, group)) = shape::group(seen) else { continue };
                members.extend(seen.instances().iter().filter_map(|seen| shape::member(&name, seen)));
                groups.insert(name, group);
            }
        }
        Ok((groups, members))
    }

    async fn warm_members(&self, group: &str) -> Result<BTreeMap<String, Member>, CloudError> {
        let call = self.groups.describe_warm_pool().auto_scaling_group_name(group).max_records(MEMBERS);
        let attempt = format!("look at the warm pool of group {group}");
        let pages = self
            .pages(
                Action::DescribeWarmPool,
                &attempt,
                |token| call.clone().set_next_token(token).send(),
                |page| page.next_token(),
            )
            .await;
        match pages {
            Ok(pages) => {
                let seen = pages.iter().flat_map(|page| page.instances());
                Ok(seen.filter_map(|seen| shape::member(group, seen)).collect())
            }
            // It went between the two calls.
            Err(error) if error.class == ErrorClass::Gone => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    /// Instances that carry the cluster's tag, and these.
    async fn instances(
        &self,
        cluster: &str,
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Instance>, CloudError> {
        let mut instances = self.instances_where(tagged(cluster)).await?;
        for filter in by_id("instance-id", ids, &instances) {
            instances.extend(self.instances_where(filter).await?);
        }
        Ok(instances)
    }

    async fn instances_where(&self, filter: Filter) -> Result<BTreeMap<String, Instance>, CloudError> {
        let call = self.ec2.describe_instances().filters(filter).max_results(ROWS);
        let pages = self
            .pages(
                Action::DescribeInstances,
                "look at the instances",
                |token| call.clone().set_next_token(token).send(),
                |page| page.next_token(),
            )
            .await?;
        let reservations = pages.iter().flat_map(|page| page.reservations());
        Ok(reservations.flat_map(|some| some.instances()).filter_map(shape::instance).collect())
    }

    /// Volumes that carry the cluster's tag, and these.
    async fn volumes(
        &self,
        cluster: &str,
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Volume>, CloudError> {
        let mut volumes = self.volumes_where(tagged(cluster)).await?;
        for filter in by_id("volume-id", ids, &volumes) {
            volumes.extend(self.volumes_where(filter).await?);
        }
        Ok(volumes)
    }

    async fn volumes_where(&self, filter: Filter) -> Result<BTreeMap<String, Volume>, CloudError> {
        let call = self.ec2.describe_volumes().filters(filter).max_results(ROWS);
        let pages = self
            .pages(
                Action::DescribeVolumes,
                "look at the volumes",
                |token| call.clone().set_next_token(token).send(),
                |page| page.next_token(),
            )
            .await?;
        Ok(pages.iter().flat_map(|page| page.volumes()).filter_map(shape::volume).collect())
    }

    /// Snapshots that carry the cluster's tag, and these.
    async fn snapshots(
        &self,
        cluster: &str,
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Snapshot>, CloudError> {
        let mut snapshots = self.snapshots_where(tagged(cluster)).await?;
        for filter in by_id("snapshot-id", ids, &snapshots) {
            snapshots.extend(self.snapshots_where(filter).await?);
        }
        Ok(snapshots)
    }

    async fn snapshots_where(&self, filter: Filter) -> Result<BTreeMap<String, Snapshot>, CloudError> {
        let call = self.ec2.describe_snapshots().owner_ids("self").filters(filter).max_results(ROWS);
        let pages = self
            .pages(
                Action::DescribeSnapshots,
                "look at the snapshots",
                |token| call.clone().set_next_token(token).send(),
                |page| page.next_token(),
            )
            .await?;
        Ok(pages.iter().flat_map(|page| page.snapshots()).filter_map(shape::snapshot).collect())
    }

    /// What changes rarely of groups, asked for where it was not seen of late. What was seen earlier does where it
    /// cannot be had now: it is no reason not to look at all.
    async fn settings(&self, names: &[String]) -> Result<Vec<(String, Settings)>, CloudError> {
        let now = Instant::now();
        let kept = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.retain(|name, _| names.contains(name));
            kept.clone()
        };
        let settings = names.iter().map(|name| {
            let earlier = kept.get(name);
            async move {
                if let Some(earlier) = earlier
                    && now.saturating_duration_since(earlier.seen) < KEEP
                {
                    return Ok((name.clone(), earlier.settings.clone()));
                }
                match (self.settings_of(name).await, earlier) {
                    (Ok(settings), _) => {
                        let fresh = Kept { seen: now, settings: settings.clone() };
                        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), fresh);
                        Ok((name.clone(), settings))
                    }
                    (Err(error), Some(earlier)) if error.class == ErrorClass::Retry => {
                        Ok((name.clone(), earlier.settings.clone()))
                    }
                    (Err(error), _) => Err(error),
                }
            }
        });
        let settings: Vec<_> = settings.collect();
        stream::iter(settings).buffer_unordered(GROUPS_AT_A_TIME).try_collect().await
    }

    async fn settings_of(&self, group: &str) -> Result<Settings, CloudError> {
        let attempt = format!("look at the lifecycle hooks of group {group}");
        let call = self.groups.describe_lifecycle_hooks().auto_scaling_group_name(group);
        let hooks = self.call(Action::DescribeLifecycleHooks, &attempt, call.send()).await?;
        let attempt = format!("look at the scaling policies of group {group}");
        let call = self.groups.describe_policies().auto_scaling_group_name(group).max_records(GROUPS);
        let policies = self
            .pages(
                Action::DescribePolicies,
                &attempt,
                |token| call.clone().set_next_token(token).send(),
                |page| page.next_token(),
            )
            .await?;
        // The newest come first, and only one can be under way.
        let attempt = format!("look at the instance refreshes of group {group}");
        let call = self.groups.describe_instance_refreshes().auto_scaling_group_name(group).max_records(5);
        let refreshes = self.call(Action::DescribeInstanceRefreshes, &attempt, call.send()).await?;
        let policies = policies.iter().flat_map(|page| page.scaling_policies());
        Ok(Settings {
            hooks: hooks.lifecycle_hooks().iter().filter_map(shape::hook).collect(),
            scaling_policies: policies.filter_map(|policy| policy.policy_name()).map(str::to_owned).collect(),
            is_refreshing: refreshes.instance_refreshes().iter().any(shape::is_under_way),
        })
    }

    /// Why the last launch failed of groups that are short for a while.
    async fn launch_failures(&self, short: &BTreeSet<String>) -> Vec<(String, CloudError)> {
        let now = Instant::now();
        let due: Vec<String> = {
            let mut known = self.short.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|name, _| short.contains(name));
            let due = short.iter().filter(|name| {
                let shortage = known.entry((*name).clone()).or_insert_with(|| Shortage::begins(now));
                let is_due = shortage.is_due(now);
                if is_due {
                    shortage.asks(now);
                }
                is_due
            });
            due.cloned().collect()
        };
        stream::iter(due)
            .for_each_concurrent(GROUPS_AT_A_TIME, |name| async move {
                let attempt = format!("look at the activities of group {name}");
                let call = self.groups.describe_scaling_activities();
                let call = call.auto_scaling_group_name(&name).max_records(ACTIVITIES);
                match self.call(Action::DescribeScalingActivities, &attempt, call.send()).await {
                    Ok(answer) => {
                        let failure = shortage::failure(&name, answer.activities());
                        let mut known = self.short.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(shortage) = known.get_mut(&name) {
                            shortage.failure = failure;
                        }
                    }
                    // It only says why something is missing: no reason not to look at all, nor is a policy of before
                    // that does not allow it.
                    Err(error) => tracing::debug!(group = name, %error, "its activities were not read"),
                }
            })
            .await;
        let known = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = known.iter().filter_map(|(name, it)| Some((name.clone(), it.failure.clone()?)));
        failures.collect()
    }

    /// All pages of a list. Each waits for its turn like any call.
    async fn pages<T, E, F>(
        &self,
        action: Action,
        attempt: &str,
        mut ask: impl FnMut(Option<String>) -> F,
        next: impl for<'a> Fn(&'a T) -> Option<&'a str>,
    ) -> Result<Vec<T>, CloudError>
    where
        F: Future<Output = Result<T, SdkError<E>>> + Send,
        E: ProvideErrorMetadata + Error + 'static,
    {
        let mut pages = Vec::new();
        let mut token: Option<String> = None;
        while pages.len() < MOST_PAGES {
            let page = self.call(action, attempt, ask(token.clone())).await?;
            let following = next(&page).filter(|token| !token.is_empty()).map(str::to_owned);
            pages.push(page);
            // The same token again would bring the same page again.
            if following.is_none() || following == token {
                return Ok(pages);
            }
            token = following;
        }
        Err(CloudError {
            class: ErrorClass::Retry,
            attempt: attempt.to_owned(),
            code: "TooManyPages".to_owned(),
            message: format!("the list has not ended after {MOST_PAGES} pages"),
        })
    }
}

/// Groups with fewer members on their way or there than they wish.
fn short(groups: &BTreeMap<String, Group>, members: &BTreeMap<String, Member>) -> BTreeSet<String> {
    let counts = |member: &&Member| match member.lifecycle {
        Lifecycle::Launching | Lifecycle::InService => true,
        Lifecycle::Terminating
        | Lifecycle::TerminatingWait
        | Lifecycle::Retained
        | Lifecycle::Detaching
        | Lifecycle::Standby
        | Lifecycle::Warmed
        | Lifecycle::WarmedTerminatingWait
        | Lifecycle::Gone => false,
    };
    let is_short = |(name, group): &(&String, &Group)| {
        let there = members.values().filter(counts).filter(|member| member.group == **name).count();
        there < group.desired as usize
    };
    groups.iter().filter(is_short).map(|(name, _)| name.clone()).collect()
}

/// Filters for those of the ids that were not found by their tags.
fn by_id<T>(name: &str, ids: &BTreeSet<String>, found: &BTreeMap<String, T>) -> Vec<Filter> {
    let rest: Vec<String> = ids.iter().filter(|id| !found.contains_key(*id)).cloned().collect();
    let filter = |ids: &[String]| Filter::builder().name(name).set_values(Some(ids.to_vec())).build();
    rest.chunks(VALUES_A_FILTER).map(filter).collect()
}

fn tagged(cluster: &str) -> Filter {
    Filter::builder().name(format!("tag:{}", tags::CLUSTER)).values(cluster).build()
}
