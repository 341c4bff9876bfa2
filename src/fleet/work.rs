//! The driver of a pool's fleet: looks at the cloud, plans, starts what is planned; for as long as the pool is held.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::cost::{self, Accrued};
use super::facts::{Facts, Fate, Owner};
use super::group;
use super::look::{self, Sleepers};
use super::orphans;
use super::plan::{self, Plan, Step, members};
use super::policy::Policies;
use super::view::{GivenUp, View};
use super::{carry, policy, tally};
use crate::api::SuspendedEnvironment;
use crate::api::runner_pool::{AwsProvider, Notices, ScalingSpec};
use crate::api::suspended_environment::Tier;
use crate::clock;
use crate::environment::adopt;
use crate::pool::Held;
use crate::pool::settings::{CloudAccess, Settings};
use crate::pool::status::CloudView;
use crate::provider::observer::{Intervals, Subscription};
use crate::provider::{Change, Cloud, CloudError, ErrorClass, Ids, tags};

/// Plans are made no more often than that, however much happens.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// A plan is made at least so often, whatever nobody told.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long after a change the cloud is looked at more often.
const EXPECT_FOR: Duration = Duration::from_secs(30);

/// How long a step that failed is remembered when it is due again and is not tried.
const FORGET_AFTER: SignedDuration = SignedDuration::from_mins(2);

/// How often orphans are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The same while the pool is being deleted and waits for what is left of it.
const LAST_SWEEP_INTERVAL: Duration = Duration::from_secs(3);

/// How often instances are asked for notices of their cloud.
const NOTICES_INTERVAL: Duration = Duration::from_secs(5);

/// Works for the pool's cloud until the tenure ends.
pub async fn work(held: Arc<Held>) {
    if !held.fleet.is_cloud() {
        return;
    }
    let mut looking: Option<Looking> = None;
    let mut last_sweep = None;
    let mut last_notices = None;
    let mut measured_at = Instant::now();
    loop {
        let Some(settings) = held.settings() else {
            held.wait_for_change().await;
            continue;
        };
        let Some(access) = settings.cloud.clone() else {
            held.wait_for_change().await;
            continue;
        };
        let Some(aws) = settings.spec.provider.aws.clone() else { return };
        if looking.as_ref().is_none_or(|looking| !Arc::ptr_eq(&looking.access, &access)) {
            looking = Some(Looking::begin(&held, &access, &aws, intervals(&settings.spec.scaling())));
        }
        let Some(looking) = &mut looking else { continue };
        // The account's own: all pools that share it keep one limit.
        let cloud = Arc::clone(looking.subscription.cloud());
        step(&held, &settings, &cloud, looking).await;
        if let Some(facts) = held.fleet.facts() {
            measure(&held, &settings, &facts, measured_at.elapsed());
            measured_at = Instant::now();
        }
        if is_due(&mut last_notices, NOTICES_INTERVAL) {
            ask_for_notices(&held, aws.notices);
        }
        let may_sweep = held.tenure().may_act() && looking.subscription.latest().is_some();
        let is_deleting = held.pool().is_none_or(|pool| pool.metadata.deletion_timestamp.is_some());
        let sweep_interval = if is_deleting { LAST_SWEEP_INTERVAL } else { SWEEP_INTERVAL };
        if may_sweep && is_due(&mut last_sweep, sweep_interval) {
            sweep(&held, cloud.as_ref(), looking).await;
        }
        tokio::time::sleep(SHORTEST_PAUSE).await;
        let pause = until_next(&held);
        tokio::select! {
            () = looking.subscription.changed() => {}
            () = held.fleet.wake.notified() => {}
            () = held.wait_for_change() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The pool's part in the shared look at its account.
struct Looking {
    access: Arc<CloudAccess>,
    subscription: Subscription,
    /// Forgotten at a take-over: then a new one is written if it differs.
    said: Option<String>,
    /// Environments that were told of a slot they may have.
    offered: BTreeSet<String>,
}

impl Looking {
    fn begin(held: &Held, access: &Arc<CloudAccess>, aws: &AwsProvider, intervals: Intervals) -> Self {
        let observers = &held.shared.observers;
        let group = aws.auto_scaling_group.clone();
        let cluster = held.shared.cluster_id.clone();
        let subscription =
            observers.join(access.account.clone(), Arc::clone(&access.cloud), group, cluster, intervals);
        *held.fleet.cloud_slot() = Some(Arc::clone(subscription.cloud()));
        Self { access: Arc::clone(access), subscription, said: None, offered: BTreeSet::new() }
    }
}

fn intervals(scaling: &ScalingSpec) -> Intervals {
    Intervals {
        update: scaling.update_interval.std(),
        expecting: scaling.update_interval_when_expecting.std(),
    }
}

fn is_due(last: &mut Option<Instant>, every: Duration) -> bool {
    let is_due = last.is_none_or(|at| at.elapsed() >= every);
    if is_due {
        *last = Some(Instant::now());
    }
    is_due
}

fn until_next(held: &Held) -> Duration {
    let now = clock::now();
    let state = held.fleet.state();
    let planned = state.plan.as_ref().and_then(|plan| plan.look_again_at);
    let failures = state.failures.values().map(|failure| failure.again_at(state.is_awaited));
    let failures = failures.filter(|at| *at > now);
    let next = planned.into_iter().chain(failures).min();
    let wait = next.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    wait.map_or(LONGEST_PAUSE, |wait| wait.min(LONGEST_PAUSE))
}

/// One look at what the cloud shows, and what follows from it.
async fn step(held: &Arc<Held>, settings: &Settings, cloud: &Arc<dyn Cloud>, looking: &mut Looking) {
    let spec = &settings.spec;
    let scaling = spec.scaling();
    looking.subscription.set_intervals(intervals(&scaling));
    let blindness = looking.subscription.problem();
    let before = std::mem::replace(&mut held.fleet.state().blindness, blindness.clone());
    if blindness.is_some() && before.is_none() {
        held.shared.metrics.missed_update(&held.namespace, &held.name);
    }
    if before != blindness {
        // The pool's conditions say so, and it may be over soon.
        held.wake();
    }
    let Some(observation) = looking.subscription.latest() else { return };
    let Some(aws) = &spec.provider.aws else { return };
    let before = held.fleet.facts();
    let relied_on = relied_on(held, before.as_deref());
    // Within the cluster the older pool has the group, whatever the tag says.
    let rival = held.older_pool_of_the_same_group();
    let is_allowed = held.shared.allowed_groups.allows(&held.namespace, &aws.auto_scaling_group);
    if before.as_ref().is_none_or(|before| before.at < observation.at) {
        let owner = Owner {
            pool_uid: &held.uid,
            group: &aws.auto_scaling_group,
            may_use_group: is_allowed && rival.is_none(),
        };
        let mut facts = Facts::of(&observation, owner, &relied_on, before.as_deref());
        facts.expect(relied_on.iter(), before.as_deref());
        take_in(held, Arc::new(facts), before.as_deref());
    }
    looking.subscription.rely_on(relied_on);
    let Some(facts) = held.fleet.facts() else { return };
    let now = clock::now();
    let policies = Policies::compile(spec.policies.as_deref().unwrap_or_default()).unwrap_or_default();
    let problems = group::check(
        facts.group.as_ref(),
        &group::Facts {
            region: &aws.region,
            namespace: &held.namespace,
            group_name: &aws.auto_scaling_group,
            pool_uid: &held.uid,
            max_instances: spec.max_instances(),
            uses_tiers: spec.suspension.demotion.is_some(),
            has_workspace_volume: spec.workspace_volume.is_some(),
            allowed: is_allowed,
            claimed_by: rival.as_deref(),
        },
    );
    let (is_ours, is_blocked) = (group::is_ours(&problems), group::blocks(&problems));
    held.fleet.state().problems = problems;
    let sleepers = Sleepers::read(held, &facts, now);
    let stands = sleepers.stands(held, &facts);
    let (memory, strangers_wish) = {
        let mut state = held.fleet.state();
        look::remember(&mut state.memory, &facts, &stands, now);
        let is_quiet = state.running.is_empty() && state.memory.touched.values().all(|at| *at < facts.at);
        let wish = look::strangers_wish(&mut state.memory, &facts, is_quiet);
        (state.memory.clone(), wish)
    };
    let active = policies.at(now);
    let may_launch = {
        let mut state = held.fleet.state();
        look::may_launch(&mut state.launches, scaling.launches_per_minute, now)
    };
    let cluster = held.shared.cluster_id.clone();
    let view = look::view(held, spec, &cluster, &facts, sleepers, stands, active, may_launch, &memory, now);
    held.fleet.state().is_awaited = view.is_awaited();
    let mut plan = match is_ours {
        true => plan::plan(&view),
        // Another pool's group, or one that we may not use: nothing is done there.
        false => Plan::default(),
    };
    if is_ours && is_blocked {
        plan.begin_nothing(&view);
    }
    // Without credentials nothing can be held against a scale-in: what runs goes on, nothing new is begun.
    if looking.subscription.problem().is_some_and(|error| error.class == ErrorClass::Denied) {
        plan.open.clear();
        plan.growth = 0;
    }
    // What is being done about an instance may be its end.
    {
        let state = held.fleet.state();
        plan.open.retain(|id, _| !state.running.contains(id));
    }
    if let Some(at) = policies.next_change(now) {
        plan.look_again_at = Some(plan.look_again_at.map_or(at, |known| known.min(at)));
    }
    tracing::debug!(
        pool = held.name,
        is_blocked,
        seen_at = %facts.at,
        sequences = ?plan.sequences,
        open = ?plan.open,
        scale = ?plan.scale,
        "the fleet was planned"
    );
    let claim = claim_group(held, &facts, is_blocked);
    // Before anything is waited for: jobs are placed by the plan that is published.
    publish(held, plan.clone());
    offer(held, looking, members::offered(&view, &plan).map(str::to_owned).collect());
    if let (Some((from, to)), Some(pool)) = (strangers_wish, held.pool()) {
        let group = &aws.auto_scaling_group;
        let note = format!(
            "somebody changed the desired capacity of group {group} from {from} to {to}; the pool goes on by its own \
             policies: leave it to the pool"
        );
        held.shared.events.warning(pool.as_ref(), "DesiredCapacityChanged", "Scale", note).await;
    }
    report(held, looking, &view, &plan).await;
    if !held.tenure().may_act() {
        return;
    }
    if plan.is_expecting || std::mem::take(&mut held.fleet.state().is_expected) {
        looking.subscription.expect_until(std::time::Instant::now() + EXPECT_FOR);
    }
    if let Some(touched) = memory.touched.values().max()
        && *touched >= facts.at
    {
        looking.subscription.look_after(*touched);
    }
    if let Some(claim) = claim {
        carry::start(held, cloud, &[claim]);
    }
    count_launches(held, &plan, facts.group.as_ref().map_or(0, |group| group.desired), now);
    carry::start(held, cloud, &plan.sequences);
}

/// Ids that objects rely on, whether or not a look has ever shown them, and those of the volumes in slots.
fn relied_on(held: &Held, before: Option<&Facts>) -> Ids {
    let mut ids = Ids::default();
    for environment in held.environments() {
        ids.extend(&look::relied_on_by(&environment));
    }
    for lease in held.leases().iter().filter(|lease| lease.phase().is_open()) {
        ids.instances.extend(lease.place().map(|(instance, _)| instance.to_owned()));
    }
    ids.volumes.extend(before.into_iter().flat_map(Facts::volumes_in_slots).map(str::to_owned));
    ids
}

/// Makes facts known, and has everything looked at again that they concern.
fn take_in(held: &Held, facts: Arc<Facts>, before: Option<&Facts>) {
    let changed = match before {
        Some(before) => facts.changed_since(before),
        None => facts.changed_since(&Facts::default()),
    };
    {
        let mut state = held.fleet.state();
        look::await_made(&mut state.memory, &facts, clock::now());
        state.facts = Some(Arc::clone(&facts));
    }
    let environments = held.environments();
    let concerned = match before {
        Some(_) => look::concerned(&environments, &changed),
        None => environments.iter().map(|known| kube::ResourceExt::name_any(known.as_ref())).collect(),
    };
    let now = clock::now();
    let due: Vec<String> = {
        let mut state = held.fleet.state();
        // What nobody has tried again for so long is not wanted any more.
        let is_awaited = state.is_awaited;
        state.failures.retain(|_, failure| now.duration_since(failure.again_at(is_awaited)) < FORGET_AFTER);
        let due = state.failures.iter().filter(|(_, failure)| failure.again_at(is_awaited) <= now);
        // What has waited for a look that is newer than its own deed: this is the first.
        let is_shown = |at: &Timestamp| *at < facts.at && before.is_none_or(|before| before.at <= *at);
        let shown = state.memory.touched.iter().filter(|(_, at)| is_shown(at));
        due.map(|(subject, _)| subject).chain(shown.map(|(subject, _)| subject)).cloned().collect()
    };
    held.book(|book| {
        let known =
            |name: &String| environments.iter().any(|it| kube::ResourceExt::name_any(it.as_ref()) == *name);
        for name in concerned.into_iter().chain(due.into_iter().filter(known)) {
            book.environment_has_news(&name);
        }
        for id in &changed {
            if facts.fate(id) == Fate::Gone {
                book.look_at_instance(id);
            }
        }
    });
    held.wake();
}

fn publish(held: &Held, mut plan: Plan) {
    let mut state = held.fleet.state();
    // Announced since it was planned.
    plan.open.retain(|id, _| !state.announced.contains_key(id));
    let is_news =
        state.plan.as_ref().is_none_or(|known| known.open != plan.open || known.growth != plan.growth);
    if let Some(wait) = plan.report.iter().rev().find_map(plan::Report::given_up) {
        state.memory.given_up = Some(GivenUp { wait, at: clock::now() });
    }
    state.memory.dry_zones.extend(plan.dry_zones.iter().map(|zone| (zone.clone(), clock::now())));
    state.plan = Some(Arc::new(plan));
    drop(state);
    if is_news {
        held.wake();
    }
}

/// Has environments that waited for a slot looked at now that they may have one.
fn offer(held: &Held, looking: &mut Looking, offered: BTreeSet<String>) {
    let news: Vec<String> = offered.difference(&looking.offered).map(|id| look::name_of(held, id)).collect();
    looking.offered = offered;
    if !news.is_empty() {
        held.book(|book| news.into_iter().for_each(|name| book.environment_has_news(&name)));
        held.wake();
    }
}

fn count_launches(held: &Held, plan: &Plan, desired: u32, now: Timestamp) {
    let mut state = held.fleet.state();
    for sequence in &plan.sequences {
        if state.running.contains(&sequence.subject) {
            continue;
        }
        for step in &sequence.steps {
            let count = match step {
                Step::Cloud(Change::SetDesired { to, .. }) => to.saturating_sub(desired),
                Step::Cloud(Change::Launch { count, .. }) => *count,
                Step::Cloud(_) | Step::Mount { .. } | Step::Unmount { .. } | Step::Quiet { .. } => 0,
            };
            state.launches.extend((0..count).map(|_| now));
        }
    }
}

/// The group carries the pool's tag: another cluster's pool sees it.
fn claim_group(held: &Held, facts: &Facts, is_blocked: bool) -> Option<plan::Sequence> {
    let group = facts.group.as_ref()?;
    let is_deleting = held.pool().is_none_or(|pool| pool.metadata.deletion_timestamp.is_some());
    if is_blocked || is_deleting || group.tags.get(tags::POOL).is_some_and(|uid| *uid == held.uid) {
        return None;
    }
    // The cluster's tag is whoever's who made the group: what may be done to it at all hangs on it.
    let tags = [
        (tags::POOL, held.uid.clone()),
        (tags::POOL_NAME, held.name.clone()),
        (tags::NAMESPACE, held.namespace.clone()),
    ];
    let tags = tags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let subject = format!("{} claim", group.name);
    if !held.fleet.is_fresh(&subject) {
        return None;
    }
    let claim = Change::ClaimGroup { group: group.name.clone(), tags };
    Some(plan::Sequence { subject, steps: vec![Step::Cloud(claim)] })
}

/// Says what people should know, once for each news.
async fn report(held: &Held, looking: &mut Looking, view: &View<'_>, plan: &Plan) {
    let said = format!("{:?}", plan.report);
    if looking.said.as_ref() == Some(&said) {
        return;
    }
    looking.said = Some(said);
    let Some(pool) = held.pool() else { return };
    let events = &held.shared.events;
    for report in &plan.report {
        tracing::warn!(
            pool = held.name,
            ?report,
            desired = view.facts.group.as_ref().map(|g| g.desired),
            "the fleet waits"
        );
        let (reason, note) = report.tell();
        events.warning(pool.as_ref(), reason, "Scale", note).await;
    }
}

/// What is tagged as the pool's and known to no object: marked, and deleted when it stays so. Never while the caches may
/// not have everything.
async fn sweep(held: &Arc<Held>, cloud: &dyn Cloud, looking: &Looking) {
    let Some(observation) = looking.subscription.latest() else { return };
    let is_synced = held.shared.leases.cache.is_synced() && held.shared.environments.cache.is_synced();
    let is_deleting = held.pool().is_none_or(|pool| pool.metadata.deletion_timestamp.is_some());
    let known = adopt::known(held, is_synced);
    let grace = if is_deleting { Duration::ZERO } else { orphans::GRACE };
    let found = orphans::sweep(&observation, &known, clock::now(), grace);
    for orphan in found {
        if held.fleet.state().running.contains(&orphan.id) || !held.fleet.is_fresh(&orphan.id) {
            continue;
        }
        adopt::deal_with(held, cloud, &orphan).await;
    }
}

/// Asks instances whether their cloud is about to take them away.
fn ask_for_notices(held: &Arc<Held>, notices: Notices) {
    let Some(facts) = held.fleet.facts() else { return };
    for instance in facts.instances.values() {
        let is_asked = match notices {
            Notices::Never => false,
            Notices::Always => true,
            Notices::WhenSpot => instance.is_spot,
        };
        let Some(link) = held.hosts.link(&instance.id).filter(|_| is_asked) else { continue };
        // The advice to leave may be followed by the end itself.
        if held.fleet.notice(&instance.id).is_some() {
            continue;
        }
        let (held_by_task, id) = (Arc::clone(held), instance.id.clone());
        held.spawn(async move {
            match link.notices().await {
                Ok(notices) => {
                    let what = match (&notices.spot, &notices.rebalance) {
                        (Some(spot), _) => {
                            Some(format!(
                                "its cloud takes it at {} ({:?}), and a job that still runs there is ended before",
                                spot.time, spot.action
                            ))
                        }
                        (None, Some(at)) => Some(format!("its cloud advises since {at} to move elsewhere")),
                        (None, None) => None,
                    };
                    let Some(what) = what else { return };
                    if held_by_task.fleet.announce(&id, notices.spot) {
                        tracing::warn!(pool = held_by_task.name, instance = id, what, "an instance is to go");
                        if let Some(pool) = held_by_task.pool() {
                            let note = format!("{id}: {what}; it takes no new job");
                            let events = &held_by_task.shared.events;
                            events.warning(pool.as_ref(), "InterruptionNotice", "Scale", note).await;
                        }
                        held_by_task.instance_announced(&id);
                    }
                }
                Err(error) => tracing::debug!(instance = id, %error, "the instance's notices were not read"),
            }
        });
    }
}

/// Whether nothing of the pool is left in its cloud, for its deletion; what is left is on its way.
pub fn is_given_back(held: &Held) -> bool {
    if !held.fleet.is_cloud() {
        return true;
    }
    let Some(facts) = held.fleet.facts() else {
        return held.settings().is_none_or(|settings| settings.cloud.is_none());
    };
    let members = facts.instances.values().filter(|instance| !instance.state.is_gone()).count();
    let least = facts.group.as_ref().map_or(0, |group| group.min) as usize;
    members <= least && facts.volumes.is_empty() && facts.snapshots.is_empty()
}

/// Takes the pool's tags from its group, where it carries them.
pub async fn leave_group(held: &Held) -> Result<(), CloudError> {
    let Some(cloud) = held.fleet.cloud() else { return Ok(()) };
    let group = held.fleet.facts().and_then(|facts| facts.group.clone());
    let Some(group) = group.filter(|group| group.tags.get(tags::POOL) == Some(&held.uid)) else {
        return Ok(());
    };
    let keys = [tags::POOL, tags::POOL_NAME, tags::NAMESPACE].map(str::to_owned).to_vec();
    carry::make(held, cloud.as_ref(), &Change::LeaveGroup { group: group.name, keys }).await?;
    Ok(())
}

/// Policies that cannot be read are a problem of the settings; see there.
pub fn check_policies(spec: &crate::api::runner_pool::RunnerPoolSpec) -> Result<(), policy::PolicyError> {
    Policies::compile(spec.policies.as_deref().unwrap_or_default()).map(|_| ())
}

/// The pool's part of its cloud, for its status; `None` where it has no cloud.
pub fn cloud_view(held: &Held, environments: &[Arc<SuspendedEnvironment>]) -> Option<CloudView> {
    if !held.fleet.is_cloud() {
        return None;
    }
    let facts = held.fleet.facts();
    let settings = held.settings();
    let cost = facts
        .as_ref()
        .zip(settings)
        .map(|(facts, settings)| tally::cost(environments, facts, &settings.spec, &held.shared.prices).0);
    Some(CloudView {
        fleet: facts.map(|facts| tally::count(&facts)),
        cost,
        problems: held.fleet.problems(),
        blindness: held.fleet.blindness(),
        failures: held.fleet.failures(),
        scale: held.fleet.plan().map(|plan| plan.scale.clone()),
    })
}

/// Counts and costs as metrics: what has come together since the last time.
fn measure(held: &Held, settings: &Settings, facts: &Facts, since: Duration) {
    let metrics = &held.shared.metrics;
    let environments = held.environments();
    let (_, rates) = tally::cost(&environments, facts, &settings.spec, &held.shared.prices);
    metrics.cost(&held.name, &rates, &cost::accrue(&Accrued::default(), &rates, since));
    for tier in [Tier::Hot, Tier::Stopped, Tier::Detached, Tier::Snapshotted] {
        let count = environments.iter().filter(|known| known.tier() == tier).count();
        metrics.environments_at(&held.name, tier, u32::try_from(count).unwrap_or(u32::MAX));
    }
    let fleet = tally::count(facts);
    for (state, count) in [
        ("in_service", fleet.in_service),
        ("launching", fleet.launching),
        ("leaving", fleet.leaving),
        ("kept", fleet.kept),
        ("stopped", fleet.stopped),
    ] {
        metrics.instances(&held.name, state, count);
    }
}
