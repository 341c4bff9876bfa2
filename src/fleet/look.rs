//! Everything a plan for a fleet looks at, gathered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::facts::Facts;
use super::policy::Active;
use super::scale::Wake;
use super::view::{HostStand, Memory, Pool, Sleeping, Stand, Use, View};
use crate::api::job_lease::LeasePhase;
use crate::api::runner_pool::RunnerPoolSpec;
use crate::api::suspended_environment::{Phase, Tier, object_name};
use crate::api::{JobLease, SuspendedEnvironment};
use crate::clock;
use crate::environment::moves;
use crate::pool::Held;
use crate::pool::slots::SlotUse;
use crate::provider::{Ids, Instance, InstanceState, Lifecycle, tags};

/// How long the throttle of launches looks back.
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

/// What environments mean for the fleet.
pub struct Sleepers {
    by_name: BTreeMap<String, Sleeping>,
    /// Places of environments.
    pub places: BTreeSet<(String, u32)>,
    /// The instance of each environment that has an object, by id.
    pub known: BTreeMap<String, Option<String>>,
    /// Volumes they own.
    pub volumes: BTreeSet<String>,
    /// What their volumes and snapshots carry, by id.
    pub kept_tags: BTreeMap<String, BTreeMap<String, String>>,
    /// Those that come back from a volume or a snapshot.
    pub wakes: Vec<Wake>,
}

impl Sleepers {
    /// Reads all environments of the pool.
    pub fn read(held: &Held, facts: &Facts, now: Timestamp) -> Self {
        let mut all = Self {
            by_name: BTreeMap::new(),
            places: BTreeSet::new(),
            known: BTreeMap::new(),
            volumes: BTreeSet::new(),
            kept_tags: BTreeMap::new(),
            wakes: Vec::new(),
        };
        let environments = held.environments();
        let evicted = moves::evicted(held, &environments);
        let news = held.fleet.evict(evicted.clone());
        if !news.is_empty() {
            held.book(|book| news.into_iter().for_each(|name| book.environment_has_news(&name)));
            held.wake();
        }
        for environment in &environments {
            let name = environment.name_any();
            let id = environment.spec.environment_id.clone();
            let status = environment.status.clone().unwrap_or_default();
            let place = held.book(|book| book.place_of(&name)).map(|slot| (slot.instance, slot.index));
            let place =
                place.or_else(|| environment.place().map(|(instance, slot)| (instance.to_owned(), slot)));
            all.known.insert(id.clone(), place.as_ref().map(|(instance, _)| instance.clone()));
            all.volumes.extend(status.volume.iter().map(|volume| volume.id.clone()));
            // What is being given back loses its tags on purpose; of what is lost nothing is there. What was written a moment
            // ago is not in the look yet, and not missing.
            let is_kept =
                environment.metadata.deletion_timestamp.is_none() && environment.phase() != Phase::Lost;
            if is_kept && held.fleet.is_fresh(&name) {
                let volume = status.volume.as_ref().map(|volume| &volume.id);
                let snapshot = status.snapshot.as_ref().map(|snapshot| &snapshot.id);
                let tags = tags::of_environment(environment, &held.shared.cluster_id);
                all.kept_tags.extend(volume.into_iter().chain(snapshot).map(|id| (id.clone(), tags.clone())));
            }
            let moving_to = status.moving.as_ref().map(|moving| moving.to);
            let is_cold = environment.tier() >= Tier::Detached;
            // One that a job waits for is on its way between two moves too: out of its zone it goes by a snapshot first.
            let is_waking =
                moving_to == Some(Tier::Hot) || moving_to.is_none() && environment.bound_lease().is_some();
            if is_cold && is_waking {
                let zone = status.volume.as_ref().map(|volume| volume.zone.clone());
                let slot = environment.spec.origin.slot;
                all.wakes.push(Wake { environment: id.clone(), zone, slot, has_place: place.is_some() });
            }
            let Some(place) = place else { continue };
            all.places.insert(place);
            let known = sleeping(held, environment, facts, evicted.contains(&name), now);
            all.by_name.insert(name, known);
        }
        all
    }

    /// What is known of each instance.
    pub fn stands(&self, held: &Held, facts: &Facts) -> BTreeMap<String, Stand> {
        let hosts: BTreeMap<String, HostStand> =
            held.hosts.view().into_iter().map(|host| (host.name.clone(), stand_of(&host.state))).collect();
        let stand = |id: &String| {
            let uses = held.book(|book| book.occupancy.uses_on(id));
            let by_name = |name: &String| self.by_name.get(name).cloned();
            let slots = uses.into_iter().map(|(slot, kept)| (slot, use_of(kept, by_name))).collect();
            Stand {
                host: hosts.get(id).cloned().unwrap_or_default(),
                slots,
                is_announced_to_go: held.fleet.is_announced_to_go(id),
            }
        };
        facts.instances.keys().map(|id| (id.clone(), stand(id))).collect()
    }
}

fn use_of(kept: SlotUse, sleeping: impl Fn(&String) -> Option<Sleeping>) -> Use {
    Use {
        has_job: kept.has_job,
        environments: kept.environments.iter().filter_map(sleeping).collect(),
        is_in_doubt: kept.is_in_doubt,
    }
}

/// What an environment means for the instance it is on.
fn sleeping(
    held: &Held,
    environment: &SuspendedEnvironment,
    facts: &Facts,
    is_evicted: bool,
    now: Timestamp,
) -> Sleeping {
    let status = environment.status.as_ref();
    let moving_to = status.and_then(|status| status.moving.as_ref()).map(|moving| moving.to);
    let due = moves::target(held, environment, facts, is_evicted, now);
    let is_wanted = moving_to == Some(Tier::Hot) || environment.bound_lease().is_some();
    let is_there = environment.tier() == Tier::Stopped && !is_wanted;
    Sleeping {
        id: environment.spec.environment_id.clone(),
        // It may have been called back since it was claimed.
        is_to_stop: moving_to == Some(Tier::Stopped) && due == Some(Tier::Stopped) || is_there,
        is_due_to_stop: due == Some(Tier::Stopped),
        is_wanted,
        is_stopped: environment.tier() == Tier::Stopped,
        has_volume: held.settings().is_some_and(|settings| settings.spec.workspace_volume.is_some()),
        expires_at: environment.expires_at(),
        tags: tags::of_environment(environment, &held.shared.cluster_id),
    }
}

/// What keeps the slots of an instance by now. A plan is a moment old when its turn comes.
pub fn stand_now(held: &Held, instance: &str) -> Stand {
    let (facts, now) = (held.fleet.facts().unwrap_or_default(), clock::now());
    let by_name = |name: &String| {
        let environment = held.environment(name)?;
        Some(sleeping(held, &environment, &facts, held.fleet.is_evicted(name), now))
    };
    let uses = held.book(|book| book.occupancy.uses_on(instance));
    let slots = uses.into_iter().map(|(slot, kept)| (slot, use_of(kept, by_name))).collect();
    Stand { slots, ..Stand::default() }
}

fn stand_of(state: &crate::host::keeper::HostState) -> HostStand {
    match state.link() {
        Some(link) => HostStand::Ready { mounts: link.mounts(), jobs: link.jobs() },
        None => HostStand::Connecting { why: state.message() },
    }
}

/// Enters what has become of instances since the last look.
pub fn remember(memory: &mut Memory, facts: &Facts, stands: &BTreeMap<String, Stand>, now: Timestamp) {
    let is_there = |id: &String| facts.instances.get(id).is_some_and(|instance| !instance.state.is_gone());
    memory.idle_since.retain(|id, _| is_there(id) && stands.get(id).is_some_and(Stand::is_free));
    memory
        .failing_since
        .retain(|id, _| is_there(id) && stands.get(id).is_some_and(|stand| !stand.is_ready()));
    memory.were_ready.retain(is_there);
    memory.up_since.retain(|id, _| facts.instances.get(id).is_some_and(is_up));
    memory.started_at.retain(|id, _| is_there(id));
    memory.cannot_hibernate.retain(is_there);
    for (id, _) in facts.instances.iter().filter(|(_, instance)| is_up(instance)) {
        memory.up_since.entry(id.clone()).or_insert(now);
    }
    memory.first_look.get_or_insert(now);
    memory.heartbeats.retain(|(id, _), _| is_there(id));
    let waits = |instance: &Instance| {
        instance.member.as_ref().is_some_and(|member| member.lifecycle == Lifecycle::TerminatingWait)
    };
    memory.waiting_since.retain(|id, _| facts.instances.get(id).is_some_and(waits));
    for (id, _) in facts.instances.iter().filter(|(_, instance)| waits(instance)) {
        memory.waiting_since.entry(id.clone()).or_insert(now);
    }
    memory.told_to_go.retain(|id, _| is_there(id));
    // What a look has shown since is remembered for a while, in case the next one lags.
    let kept_for = SignedDuration::from_mins(10);
    memory.touched.retain(|_, at| now.duration_since(*at) < kept_for);
    for (id, stand) in stands.iter().filter(|(id, _)| is_there(id)) {
        if stand.is_ready() && memory.were_ready.insert(id.clone()) {
            // So instances can come.
            memory.given_up = None;
        }
        if stand.is_free() && stand.is_ready() {
            memory.idle_since.entry(id.clone()).or_insert(now);
        }
        if !stand.is_ready() && memory.were_ready.contains(id) {
            memory.failing_since.entry(id.clone()).or_insert(now);
        }
    }
}

fn is_up(instance: &Instance) -> bool {
    match instance.state {
        InstanceState::Pending | InstanceState::Running => true,
        InstanceState::Stopping
        | InstanceState::Stopped
        | InstanceState::ShuttingDown
        | InstanceState::Terminated => false,
    }
}

/// The group's desired capacity where somebody else has changed it, from and to, once for each change. `is_quiet` says
/// that nothing of ours is under way or too new to be seen.
pub fn strangers_wish(memory: &mut Memory, facts: &Facts, is_quiet: bool) -> Option<(u32, u32)> {
    let now = facts.group.as_ref().map(|group| group.desired).filter(|_| is_quiet)?;
    let before = memory.desired.replace(now)?;
    (before != now).then_some((before, now))
}

/// How many instances may still be asked for in this minute.
pub fn may_launch(
    launches: &mut std::collections::VecDeque<Timestamp>,
    per_minute: u32,
    now: Timestamp,
) -> u32 {
    while launches.front().is_some_and(|at| now.duration_since(*at) >= MINUTE) {
        launches.pop_front();
    }
    match per_minute {
        0 => u32::MAX,
        most => most.saturating_sub(u32::try_from(launches.len()).unwrap_or(u32::MAX)),
    }
}

/// Everything together.
#[expect(clippy::too_many_arguments, reason = "one call site, which gathers them")]
pub fn view<'a>(
    held: &'a Held,
    spec: &'a RunnerPoolSpec,
    cluster: &'a str,
    facts: &'a Facts,
    sleepers: Sleepers,
    stands: BTreeMap<String, Stand>,
    policy: Active,
    may_launch: u32,
    memory: &'a Memory,
    now: Timestamp,
) -> View<'a> {
    let scaling = spec.scaling();
    let span =
        |duration: std::time::Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    let group = spec.provider.aws.as_ref().map_or("", |aws| aws.auto_scaling_group.as_str());
    let pool = Pool {
        uid: &held.uid,
        name: &held.name,
        namespace: &held.namespace,
        cluster,
        group,
        capacity: spec.capacity_per_instance,
        max_instances: spec.max_instances(),
        max_uses: spec.max_use_count,
        max_age: spec.instance_max_age.map(|age| span(age.std())),
        ready_timeout: span(spec.instance_ready_timeout.std()),
        failure_threshold: scaling.failure_threshold,
        deletion_retry: span(scaling.deletion_retry_interval.std()),
        grow_with: spec.provider.aws.as_ref().map(|aws| aws.grow_with).unwrap_or_default(),
        stop_mode: spec.provider.aws.as_ref().map(|aws| aws.stop_mode).unwrap_or_default(),
        volume: spec.workspace_volume.as_ref(),
        is_deleting: held.pool().is_none_or(|pool| pool.metadata.deletion_timestamp.is_some()),
        epoch: held.epoch(),
    };
    // A slot whose job has ended is free in a moment: no instance is launched for a job that takes it then.
    let waiting = held.book(|book| book.occupancy.waiting()).saturating_sub(ending(held));
    View {
        pool,
        facts,
        stands,
        places: sleepers.places,
        known: sleepers.known,
        owned_volumes: sleepers.volumes,
        kept_tags: sleepers.kept_tags,
        policy,
        waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
        wakes: sleepers.wakes,
        may_launch,
        memory,
        now,
    }
}

/// Slots of jobs that have ended and whose end is being told, where nothing sleeps in them from now on.
fn ending(held: &Held) -> usize {
    let is_ending = |lease: &Arc<JobLease>| {
        let frees = |(instance, _): (&str, u32)| {
            let name = lease.name_any();
            held.book(|book| book.occupancy.leases_on(instance).any(|known| known == name))
                && held.environment(&name_of(held, &lease.spec.environment_id)).is_none()
        };
        lease.phase() == LeasePhase::Finalizing && lease.place().is_some_and(frees)
    };
    held.leases().iter().filter(|lease| is_ending(lease)).count()
}

/// The object's name of an environment id in this pool.
pub fn name_of(held: &Held, id: &str) -> String {
    object_name(&held.name, id)
}

/// How long what was made may stay out of looks. After that it counts as never made.
const SHOWN_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// What this holder has made is shown late sometimes. Nothing else is done about the thing it was made for until then: it
/// would be made again.
pub fn await_made(memory: &mut Memory, facts: &Facts, now: Timestamp) {
    memory.made.retain(|_, (id, at)| {
        let is_shown = facts.volumes.contains_key(id) || facts.snapshots.contains_key(id);
        !is_shown && now.duration_since(*at) < SHOWN_WITHIN
    });
    for subject in memory.made.keys() {
        let touched = memory.touched.entry(subject.clone()).or_insert(facts.at);
        *touched = (*touched).max(facts.at);
    }
}

/// What an environment's object relies on. Of one that is lost nothing is left to be looked for, until it is given back: then
/// it is gone only when it was looked for in vain.
pub fn relied_on_by(environment: &SuspendedEnvironment) -> Ids {
    let mut ids = Ids::default();
    if environment.phase() == Phase::Lost && environment.metadata.deletion_timestamp.is_none() {
        return ids;
    }
    let status = environment.status.clone().unwrap_or_default();
    ids.instances.extend(environment.place().map(|(instance, _)| instance.to_owned()));
    ids.volumes.extend(status.volume.map(|volume| volume.id));
    ids.snapshots.extend(status.snapshot.map(|snapshot| snapshot.id));
    ids
}

/// Environments that a change of these things of the cloud concerns.
pub fn concerned(environments: &[std::sync::Arc<SuspendedEnvironment>], changed: &[String]) -> Vec<String> {
    let is_of = |environment: &SuspendedEnvironment| {
        let status = environment.status.as_ref();
        let is_moving = status.is_some_and(|status| status.moving.is_some());
        let place = environment.place().map(|(instance, _)| instance);
        let volume = status.and_then(|status| status.volume.as_ref()).map(|volume| volume.id.as_str());
        let snapshot =
            status.and_then(|status| status.snapshot.as_ref()).map(|snapshot| snapshot.id.as_str());
        let is_touched =
            [place, volume, snapshot].into_iter().flatten().any(|id| changed.iter().any(|known| known == id));
        is_moving || is_touched || environment.metadata.deletion_timestamp.is_some()
    };
    environments.iter().filter(|known| is_of(known)).map(|known| known.name_any()).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::fleet::facts::{Fate, Owner};
    use crate::provider::{Group, Observation, Volume, VolumeState};

    fn lost() -> SuspendedEnvironment {
        let object = json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "SuspendedEnvironment", "metadata": { "name": "p-e" },
            "spec": {
                "pool": "p", "poolUid": "u", "environmentId": "abcdefghijklmnopqrst",
                "expiresAt": "2026-01-02T00:00:00Z", "notAfter": "2026-01-03T00:00:00Z", "workspacePath": "/b/0/g/p",
                "origin": {
                    "projectId": 1, "projectPath": "g/p", "ref": "main", "protected": false, "commit": "c",
                    "jobId": 1, "jobName": "j", "userId": 1, "outcome": "Failed", "lease": "p-1", "leaseUid": "l",
                    "instance": "i-1", "slot": 0,
                },
            },
            "status": { "phase": "Lost", "tier": "Stopped", "instance": "i-1", "slot": 0, "revision": 0 },
        });
        serde_json::from_value(object).unwrap()
    }

    /// The fate of i-1 after three looks in a row that do not show it, to a holder that has never seen it.
    fn fate_after_three_looks(environment: &SuspendedEnvironment) -> Fate {
        let relied_on = relied_on_by(environment);
        let owner = Owner { pool_uid: "u", group: "g", may_use_group: true };
        let mut known: Option<Facts> = None;
        for second in [0, 30, 60] {
            let at = Timestamp::from_second(second).unwrap();
            let seen = Observation {
                at,
                groups: BTreeMap::new(),
                instances: BTreeMap::new(),
                volumes: BTreeMap::new(),
                snapshots: BTreeMap::new(),
            };
            let mut facts = Facts::of(&seen, owner, &relied_on, known.as_ref());
            facts.expect(relied_on.iter(), known.as_ref());
            known = Some(facts);
        }
        known.unwrap().fate("i-1")
    }

    #[test]
    fn a_lost_environment_is_given_back_by_a_holder_that_never_saw_its_instance() {
        let mut environment = lost();
        assert_eq!(relied_on_by(&environment), Ids::default());
        environment.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(fate_after_three_looks(&environment), Fate::Gone);
    }

    fn free_volume(id: &str) -> Volume {
        Volume {
            id: id.to_owned(),
            state: VolumeState::Available,
            zone: "a".to_owned(),
            size_gib: 1,
            attachment: None,
            created_at: None,
            snapshot: None,
            tags: BTreeMap::new(),
        }
    }

    #[test]
    fn what_was_made_is_awaited_until_it_is_shown_or_for_a_minute() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut memory = Memory::default();
        for (subject, id) in [("pool-a", "snap-1"), ("i-1 slot 0", "vol-1")] {
            memory.made.insert(subject.to_owned(), (id.to_owned(), at(10)));
            memory.touched.insert(subject.to_owned(), at(10));
        }
        let mut look = |second, volume: Option<&str>| {
            let mut facts = Facts::default();
            facts.at = at(second);
            facts.volumes = volume.map(free_volume).into_iter().collect();
            await_made(&mut memory, &facts, at(second));
            let is_fresh = |subject| memory.touched.get(subject).is_none_or(|touched| facts.at > *touched);
            (is_fresh("pool-a"), is_fresh("i-1 slot 0"))
        };
        assert_eq!(look(11, None), (false, false));
        assert_eq!(look(12, None), (false, false), "in the next look neither");
        assert_eq!(look(13, Some("vol-1")), (false, true));
        assert_eq!(look(69, None), (false, true), "a look that lags does not bring it back");
        assert_eq!(look(70, None), (true, true));
    }

    #[test]
    fn an_instance_has_come_when_an_earlier_look_did_not_show_it_up() {
        let instance = |id: &str, state| Instance { state, ..Instance::for_test(id) };
        let mut memory = Memory::default();
        let mut look = |second, seen: &[(&str, InstanceState)]| {
            let mut facts = Facts::default();
            facts.instances = seen.iter().map(|(id, state)| ((*id).into(), instance(id, *state))).collect();
            remember(&mut memory, &facts, &BTreeMap::new(), Timestamp::from_second(second).unwrap());
            let ids = memory.up_since.keys().filter(|id| memory.seen_to_come_up(id).is_some());
            ids.cloned().collect::<Vec<_>>()
        };
        use InstanceState::{Pending, Running, Stopped};
        // Its holder came later: how old it is, only the cloud can tell.
        assert!(look(1, &[("i-old", Running), ("i-asleep", Stopped)]).is_empty());
        assert_eq!(look(2, &[("i-old", Running), ("i-asleep", Stopped), ("i-new", Pending)]), ["i-new"]);
        // To the cloud it is launched anew.
        let woken = [("i-old", Running), ("i-asleep", Pending), ("i-new", Running)];
        assert_eq!(look(3, &woken), ["i-asleep", "i-new"]);
        assert_eq!(look(4, &[("i-old", Running), ("i-asleep", Stopped)]), Vec::<String>::new());
        assert!(!memory.up_since.contains_key("i-new"));
    }

    #[test]
    fn what_a_stranger_asks_of_a_group_is_told_once_and_what_we_ask_never() {
        let mut memory = Memory::default();
        let facts = |desired| {
            let mut facts = Facts::default();
            facts.group = Some(Group { desired, ..Group::default() });
            facts
        };
        // Whoever set it before this holder came is not known.
        assert_eq!(strangers_wish(&mut memory, &facts(2), true), None);
        assert_eq!(strangers_wish(&mut memory, &facts(2), true), None);
        // Our own deed, which a look that was begun before it does not show.
        memory.desired = Some(3);
        assert_eq!(strangers_wish(&mut memory, &facts(2), false), None);
        assert_eq!(strangers_wish(&mut memory, &facts(3), true), None);
        assert_eq!(strangers_wish(&mut memory, &facts(5), true), Some((3, 5)));
        assert_eq!(strangers_wish(&mut memory, &facts(5), true), None);
        // What came of a call whose answer was lost may be ours.
        memory.desired = None;
        assert_eq!(strangers_wish(&mut memory, &facts(6), true), None);
    }
}
