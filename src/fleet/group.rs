//! Whether a group is set so that no job and no environment is taken from under us. Pure.
//!
//! Each problem names the field to change as AWS calls it. A group that is not the pool's is left alone. One that is set so
//! that it must not be used gets no new job and no new instance, and what runs and sleeps there is seen to as ever. What is a
//! risk is said, and the pool goes on.

use std::collections::BTreeSet;

use crate::api::condition::{Finding, GROUP_SUITABLE};
use crate::provider::{Group, tags};

/// Seconds that a terminate hook should wait at least: a leader may be taken over, and a cloud be slow, within them.
const SHORTEST_HOOK: u64 = 300;

/// Most characters of the condition's message.
const LONGEST_MESSAGE: usize = 2_000;

/// What the group is to be suitable for.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The pool's region.
    pub region: &'a str,
    /// The group's name in the pool's spec.
    pub group_name: &'a str,
    /// The pool's namespace.
    pub namespace: &'a str,
    /// The pool's uid.
    pub pool_uid: &'a str,
    /// Most instances of the pool.
    pub max_instances: u32,
    /// Whether environments may move to tiers other than Hot.
    pub uses_tiers: bool,
    /// Whether slots have workspace volumes.
    pub has_workspace_volume: bool,
    /// Whether the operator's settings let the pool's namespace use the group.
    pub allowed: bool,
    /// Another pool, by namespace and name, that has the group already.
    pub claimed_by: Option<&'a str>,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The group is not the pool's: nothing is done there.
    NotOurs,
    /// Nothing new may be begun in the group.
    Blocks,
    /// A job or an environment may be lost by it, or a change of tier may not be possible.
    Risks,
}

/// What is wrong with a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The condition's reason.
    pub reason: &'static str,
    /// The field to change.
    pub field: &'static str,
    /// One sentence with the way out.
    pub message: String,
}

/// What is wrong with a group, the worst first.
pub fn check(group: Option<&Group>, facts: &Facts<'_>) -> Vec<Problem> {
    let mut problems = Problems::default();
    if !facts.allowed {
        let (namespace, name) = (facts.namespace, facts.group_name);
        problems.not_ours(
            "GroupNotAllowed",
            "aws.groups",
            format!("pools of namespace {namespace} may not use group {name}; allow it in the operator's settings (chart value aws.groups)"),
        );
    }
    let Some(group) = group else {
        let (name, region) = (facts.group_name, facts.region);
        problems.blocks(
            "GroupMissing",
            "AutoScalingGroupName",
            format!("there is no group {name} in region {region}; create it there, or make a pool that names the right one"),
        );
        return problems.0;
    };
    claims(group, facts, &mut problems);
    processes(group, &mut problems);
    let policies = &group.scaling_policies;
    if !policies.is_empty() {
        problems.blocks(
            "ScalingPolicies",
            "ScalingPolicies",
            format!("scaling policies {} change the desired capacity too; delete them", policies.join(", ")),
        );
    }
    sizes(group, facts, &mut problems);
    hooks(group, &mut problems);
    takers(group, facts, &mut problems);
    problems.0.sort_by_key(|problem| problem.severity);
    problems.0
}

/// Whether nothing new may be begun in the group.
pub fn blocks(problems: &[Problem]) -> bool {
    problems.iter().any(|problem| problem.severity <= Severity::Blocks)
}

/// Whether the group is the pool's to touch at all.
pub fn is_ours(problems: &[Problem]) -> bool {
    problems.iter().all(|problem| problem.severity != Severity::NotOurs)
}

/// The condition GroupSuitable: false for risks too, for then something may be taken. [`blocks`] says whether the pool may
/// use the group all the same.
pub fn finding(problems: &[Problem]) -> Finding {
    let Some(first) = problems.first() else {
        return Finding::new(GROUP_SUITABLE, true, "Suitable", "nothing takes instances from under jobs");
    };
    let sentences: Vec<String> =
        problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect();
    let mut message = sentences.join("; ");
    if message.chars().count() > LONGEST_MESSAGE {
        message = message.chars().take(LONGEST_MESSAGE).collect();
        message.push('…');
    }
    Finding::new(GROUP_SUITABLE, false, first.reason, message)
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn not_ours(&mut self, reason: &'static str, field: &'static str, message: impl Into<String>) {
        self.0.push(Problem { severity: Severity::NotOurs, reason, field, message: message.into() });
    }

    fn blocks(&mut self, reason: &'static str, field: &'static str, message: impl Into<String>) {
        self.0.push(Problem { severity: Severity::Blocks, reason, field, message: message.into() });
    }

    fn risks(&mut self, reason: &'static str, field: &'static str, message: impl Into<String>) {
        self.0.push(Problem { severity: Severity::Risks, reason, field, message: message.into() });
    }
}

/// A group is one pool's: two would set its desired capacity in turns.
fn claims(group: &Group, facts: &Facts<'_>, problems: &mut Problems) {
    let claim = match (facts.claimed_by, group.pool_besides(facts.pool_uid)) {
        (Some(pool), _) => format!("the group is used by pool {pool}; use a group of this pool's own"),
        (None, Some(uid)) => format!(
            "the group has tag {} of another pool, uid {uid}; use a group of this pool's own, or remove the tag if that pool is gone",
            tags::POOL
        ),
        (None, None) => return,
    };
    problems.not_ours("GroupClaimed", "Tags", claim);
}

/// Processes that must run, and one that must not.
fn processes(group: &Group, problems: &mut Problems) {
    const FIELD: &str = "SuspendedProcesses";
    let is_suspended = |process: &str| group.suspended.contains(process);
    if is_suspended("Launch") {
        problems.blocks(
            "LaunchSuspended",
            FIELD,
            "process Launch is suspended, so no instance comes; resume it",
        );
    }
    if is_suspended("Terminate") {
        problems.blocks(
            "TerminateSuspended",
            FIELD,
            "process Terminate is suspended, so no instance goes; resume it",
        );
    }
    for process in ["HealthCheck", "ReplaceUnhealthy"].into_iter().filter(|process| is_suspended(process)) {
        problems.risks(
            "HealthCheckSuspended",
            FIELD,
            format!("process {process} is suspended, so members that died are not replaced; resume it"),
        );
    }
    if group.zones.len() > 1 && !is_suspended("AZRebalance") {
        problems.risks(
            "AZRebalance",
            FIELD,
            "the group moves members between zones, also busy ones that are not protected yet; suspend process AZRebalance",
        );
    }
}

fn sizes(group: &Group, facts: &Facts<'_>, problems: &mut Problems) {
    if facts.uses_tiers && group.min > 0 {
        problems.risks(
            "GroupMinAboveZero",
            "MinSize",
            format!(
                "MinSize is {}: the last {} members cannot leave the group, so their environments stay Hot; set it to 0 and use spec.policies[].idleCount",
                group.min, group.min
            ),
        );
    }
    if group.max < facts.max_instances {
        problems.risks(
            "GroupMaxTooSmall",
            "MaxSize",
            format!(
                "MaxSize is {}, but the pool may have {} instances; raise it, or lower spec.maxInstances",
                group.max, facts.max_instances
            ),
        );
    }
}

/// What holds a member that is to go until its job is over.
fn hooks(group: &Group, problems: &mut Problems) {
    let mut held = false;
    for hook in group.hooks.iter().filter(|hook| hook.at_termination) {
        held = true;
        if hook.heartbeat_timeout < SHORTEST_HOOK {
            problems.risks(
                "HookTooShort",
                "HeartbeatTimeout",
                format!(
                    "terminate hook {} waits {} s; set its heartbeat time-out to 1800 s, at least {SHORTEST_HOOK} s: so long the operator may be away",
                    hook.name, hook.heartbeat_timeout
                ),
            );
        }
        if !hook.abandons {
            problems.risks(
                "HookDefaultContinues",
                "DefaultResult",
                format!(
                    "terminate hook {} ends in CONTINUE when its time is over, and TerminateHookAbandon keeps a member only after ABANDON; set its default result to ABANDON",
                    hook.name
                ),
            );
        }
    }
    if !held {
        problems.risks(
            "NoTerminateHook",
            "LifecycleHooks",
            "nothing holds members that are to go until their jobs are over; put a hook on autoscaling:EC2_INSTANCE_TERMINATING with a heartbeat time-out of 1800 s",
        );
    } else if !group.retains_abandoned {
        problems.risks(
            "HookAbandonTerminates",
            "InstanceLifecyclePolicy.RetentionTriggers.TerminateHookAbandon",
            "a member whose hook expires is terminated with its job, should the operator be away for longer than that; set it to retain",
        );
    }
}

/// What takes members by itself.
fn takers(group: &Group, facts: &Facts<'_>, problems: &mut Problems) {
    if let Some(seconds) = group.max_instance_lifetime.filter(|seconds| *seconds > 0) {
        problems.risks(
            "MaxInstanceLifetime",
            "MaxInstanceLifetime",
            format!("members are replaced after {seconds} s, whatever runs there; set it to 0 and use spec.instanceMaxAge"),
        );
    }
    if group.rebalances_capacity {
        problems.risks(
            "CapacityRebalance",
            "CapacityRebalance",
            "spot members are replaced when they are only at risk; switch it off, spec.provider.aws.notices is enough",
        );
    }
    if group.is_refreshing {
        problems.risks(
            "InstanceRefresh",
            "InstanceRefresh",
            "an instance refresh replaces members; jobs end first, but environments at tier Hot there have to move; wait for its end, or cancel it",
        );
    }
    if group.is_mixed && facts.uses_tiers {
        problems.risks(
            "MixedInstances",
            "MixedInstancesPolicy",
            "members may be spot instances, which can be neither stopped nor kept; use on-demand ones only, or tiers Detached and Snapshotted",
        );
    }
    if group.warm_pool.as_ref().is_some_and(|pool| pool.reuses) {
        let volumes = if facts.has_workspace_volume { ", with its workspace volumes" } else { "" };
        problems.risks(
            "WarmPoolReuse",
            "WarmPool.InstanceReusePolicy.ReuseOnScaleIn",
            format!("an instance that goes returns to the warm pool with what its jobs left{volumes}, and comes back as a fresh one; set it to false"),
        );
    }
    let known: BTreeSet<&str> = BTreeSet::from(["Stopped", "Running", "Hibernated"]);
    if let Some(pool) = group.warm_pool.as_ref().filter(|pool| !known.contains(pool.state.as_str())) {
        problems.risks(
            "WarmPoolState",
            "WarmPool.PoolState",
            format!(
                "the state of the warm pool is {:?}, which is not known; set Stopped, Running or Hibernated",
                pool.state
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::provider::{Hook, WarmPool};

    fn facts() -> Facts<'static> {
        Facts {
            region: "eu-central-1",
            group_name: "ci-linux",
            namespace: "ci",
            pool_uid: "uid-1",
            max_instances: 10,
            uses_tiers: true,
            has_workspace_volume: true,
            allowed: true,
            claimed_by: None,
        }
    }

    fn good() -> Group {
        Group {
            name: "ci-linux".into(),
            min: 0,
            max: 10,
            zones: vec!["a".into(), "b".into()],
            retains_abandoned: true,
            hooks: vec![Hook {
                name: "drain".into(),
                at_termination: true,
                heartbeat_timeout: 1_800,
                global_timeout: 172_800,
                abandons: true,
            }],
            suspended: BTreeSet::from(["AZRebalance".to_owned()]),
            ..Group::default()
        }
    }

    fn found(group: &Group, facts: &Facts<'_>) -> Vec<(Severity, &'static str, &'static str)> {
        check(Some(group), facts).into_iter().map(|it| (it.severity, it.reason, it.field)).collect()
    }

    #[test]
    fn a_group_that_is_set_well_has_no_problem() {
        assert_eq!(check(Some(&good()), &facts()), []);
        let protecting = Group { protects_new: true, ..good() };
        assert_eq!(check(Some(&protecting), &facts()), []);
        let mut own = good();
        own.tags.insert(tags::POOL.into(), "uid-1".into());
        assert_eq!(check(Some(&own), &facts()), []);
        assert_eq!(finding(&[]).status.as_str(), "True");
        let plain = Facts { uses_tiers: false, ..facts() };
        assert_eq!(check(Some(&Group { min: 2, is_mixed: true, ..good() }), &plain), []);
    }

    #[test]
    fn each_problem_names_its_field() {
        use Severity::{Blocks, NotOurs, Risks};
        type Case = (fn(&mut Group), (Severity, &'static str, &'static str));
        let cases: [Case; 19] = [
            (|it| it.min = 1, (Risks, "GroupMinAboveZero", "MinSize")),
            (|it| it.max = 9, (Risks, "GroupMaxTooSmall", "MaxSize")),
            (|it| it.scaling_policies = vec!["cpu".into()], (Blocks, "ScalingPolicies", "ScalingPolicies")),
            (|it| it.hooks.clear(), (Risks, "NoTerminateHook", "LifecycleHooks")),
            (|it| it.hooks[0].at_termination = false, (Risks, "NoTerminateHook", "LifecycleHooks")),
            (|it| it.hooks[0].heartbeat_timeout = 299, (Risks, "HookTooShort", "HeartbeatTimeout")),
            (|it| it.hooks[0].abandons = false, (Risks, "HookDefaultContinues", "DefaultResult")),
            (
                |it| it.retains_abandoned = false,
                (
                    Risks,
                    "HookAbandonTerminates",
                    "InstanceLifecyclePolicy.RetentionTriggers.TerminateHookAbandon",
                ),
            ),
            (
                |it| it.max_instance_lifetime = Some(86_400),
                (Risks, "MaxInstanceLifetime", "MaxInstanceLifetime"),
            ),
            (|it| it.suspended.clear(), (Risks, "AZRebalance", "SuspendedProcesses")),
            (|it| it.rebalances_capacity = true, (Risks, "CapacityRebalance", "CapacityRebalance")),
            (|it| it.is_refreshing = true, (Risks, "InstanceRefresh", "InstanceRefresh")),
            (|it| it.is_mixed = true, (Risks, "MixedInstances", "MixedInstancesPolicy")),
            (
                |it| it.suspended.extend(["Launch".to_owned()]),
                (Blocks, "LaunchSuspended", "SuspendedProcesses"),
            ),
            (
                |it| it.suspended.extend(["Terminate".to_owned()]),
                (Blocks, "TerminateSuspended", "SuspendedProcesses"),
            ),
            (
                |it| it.suspended.extend(["HealthCheck".to_owned()]),
                (Risks, "HealthCheckSuspended", "SuspendedProcesses"),
            ),
            (
                |it| it.warm_pool = Some(WarmPool { state: "Stopped".into(), reuses: true }),
                (Risks, "WarmPoolReuse", "WarmPool.InstanceReusePolicy.ReuseOnScaleIn"),
            ),
            (
                |it| it.warm_pool = Some(WarmPool { state: "Frozen".into(), reuses: false }),
                (Risks, "WarmPoolState", "WarmPool.PoolState"),
            ),
            (|it| drop(it.tags.insert(tags::POOL.into(), "uid-2".into())), (NotOurs, "GroupClaimed", "Tags")),
        ];
        for (change, expected) in cases {
            let mut group = good();
            change(&mut group);
            assert_eq!(found(&group, &facts()), [expected]);
        }
    }

    #[test]
    fn a_group_that_is_missing_not_allowed_or_another_pools_blocks() {
        let missing = check(None, &facts());
        assert!(blocks(&missing));
        assert_eq!(finding(&missing).reason, "GroupMissing");
        assert!(missing[0].message.contains("ci-linux in region eu-central-1"));
        let forbidden = check(Some(&good()), &Facts { allowed: false, ..facts() });
        assert_eq!((forbidden[0].reason, forbidden[0].field), ("GroupNotAllowed", "aws.groups"));
        let claimed = check(Some(&good()), &Facts { claimed_by: Some("ci/other"), ..facts() });
        assert!(claimed[0].message.contains("ci/other"));
        // What runs in a group that is only set badly is the pool's all the same.
        for problems in [&forbidden, &claimed] {
            assert!(blocks(problems) && !is_ours(problems));
        }
        let by_load = check(Some(&Group { scaling_policies: vec!["cpu".into()], ..good() }), &facts());
        for problems in [&missing, &by_load] {
            assert!(blocks(problems) && is_ours(problems));
        }
    }

    #[test]
    fn a_warm_pool_without_reuse_and_a_single_zone_are_fine() {
        let warm = Some(WarmPool { state: "Hibernated".into(), reuses: false });
        let group = Group { warm_pool: warm, zones: vec!["a".into()], suspended: BTreeSet::new(), ..good() };
        assert_eq!(check(Some(&group), &facts()), []);
    }

    proptest! {
        #[test]
        fn what_blocks_comes_first_and_gives_the_reason(
            min in 0u32..3, policies in any::<bool>(), launch in any::<bool>(), hook in 0u64..600, long in 0usize..3_000,
        ) {
            let mut group = Group { min, ..good() };
            group.hooks[0].heartbeat_timeout = hook;
            if policies {
                group.scaling_policies.push("p".repeat(long));
            }
            if launch {
                group.suspended.insert("Launch".into());
            }
            let problems = check(Some(&group), &facts());
            prop_assert_eq!(blocks(&problems), policies || launch);
            prop_assert!(problems.is_sorted_by_key(|problem| problem.severity));
            let finding = finding(&problems);
            prop_assert_eq!(finding.reason, problems.first().map_or("Suitable", |problem| problem.reason));
            prop_assert!(finding.message.chars().count() <= LONGEST_MESSAGE + 1);
            prop_assert!(finding.reason.chars().all(|char| char.is_ascii_alphanumeric()));
        }
    }
}
