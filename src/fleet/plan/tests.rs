//! Random worlds: whatever a pool's cloud and hosts look like, no plan takes an instance from under a job or an
//! environment, gives two owners to a slot, or goes above a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::api::runner_pool::{GrowWith, StopMode, WorkspaceVolume};
use crate::fleet::facts::{Facts, device_of};
use crate::fleet::policy::Active;
use crate::fleet::scale::Wake;
use crate::fleet::view::{Memory, Pool, Sleeping, Use};
use crate::provider::{Attachment, Group, Hook, Member, Snapshot, SnapshotState, Volume, VolumeState, tags};

const SLOTS: u32 = 2;
const NOW: i64 = 100_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

/// All that a view borrows.
#[derive(Debug, Clone)]
struct World {
    facts: Facts,
    memory: Memory,
    stands: BTreeMap<String, Stand>,
    volume: Option<WorkspaceVolume>,
    owned_volumes: BTreeSet<String>,
    policy: Active,
    waiting: u32,
    wakes: Vec<Wake>,
    now: Timestamp,
    max_instances: u32,
    may_launch: u32,
    max_uses: u32,
    max_age: Option<SignedDuration>,
    grow_with: GrowWith,
    stop_mode: StopMode,
    is_deleting: bool,
}

impl World {
    fn view(&self) -> View<'_> {
        let environments = |(id, stand): (&String, &Stand)| {
            let known = stand.environments().map(|it| (it.id.clone(), Some(id.clone())));
            known.collect::<Vec<_>>()
        };
        let kept = |(id, stand): (&String, &Stand)| {
            let slots = stand.slots.iter().filter(|(_, slot)| !slot.environments.is_empty());
            slots.map(|(slot, _)| (id.clone(), *slot)).collect::<Vec<_>>()
        };
        View {
            pool: Pool {
                uid: "p",
                name: "pool",
                namespace: "ci",
                cluster: "c",
                group: "g",
                capacity: SLOTS,
                max_instances: self.max_instances,
                max_uses: self.max_uses,
                max_age: self.max_age,
                ready_timeout: SignedDuration::from_mins(5),
                failure_threshold: 3,
                deletion_retry: SignedDuration::from_mins(1),
                grow_with: self.grow_with,
                stop_mode: self.stop_mode,
                volume: self.volume.as_ref(),
                is_deleting: self.is_deleting,
                epoch: 1,
            },
            facts: &self.facts,
            stands: self.stands.clone(),
            places: self.stands.iter().flat_map(kept).collect(),
            known: self.stands.iter().flat_map(environments).collect(),
            owned_volumes: self.owned_volumes.clone(),
            kept_tags: BTreeMap::new(),
            policy: self.policy.clone(),
            waiting: self.waiting,
            wakes: self.wakes.clone(),
            may_launch: self.may_launch,
            memory: &self.memory,
            now: self.now,
        }
    }

    fn stand(&self, instance: &str) -> Stand {
        self.stands.get(instance).cloned().unwrap_or_default()
    }
}

fn lifecycles() -> impl Strategy<Value = Option<Lifecycle>> {
    prop_oneof![
        4 => Just(Some(Lifecycle::InService)),
        2 => Just(None),
        1 => Just(Some(Lifecycle::Launching)),
        1 => Just(Some(Lifecycle::Terminating)),
        2 => Just(Some(Lifecycle::TerminatingWait)),
        1 => Just(Some(Lifecycle::Retained)),
        1 => Just(Some(Lifecycle::Detaching)),
        1 => Just(Some(Lifecycle::Standby)),
        1 => Just(Some(Lifecycle::Warmed)),
        1 => Just(Some(Lifecycle::WarmedTerminatingWait)),
        1 => Just(Some(Lifecycle::Gone)),
    ]
}

fn states() -> impl Strategy<Value = InstanceState> {
    prop_oneof![
        6 => Just(InstanceState::Running),
        1 => Just(InstanceState::Pending),
        1 => Just(InstanceState::Stopping),
        2 => Just(InstanceState::Stopped),
        1 => Just(InstanceState::ShuttingDown),
        1 => Just(InstanceState::Terminated),
    ]
}

fn uses(id: u32) -> impl Strategy<Value = BTreeMap<u32, Use>> {
    let one = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.1), any::<[bool; 5]>());
    let slot = prop::option::weighted(0.4, one);
    prop::collection::vec(slot, SLOTS as usize).prop_map(move |slots| {
        let mut all = BTreeMap::new();
        for (slot, kept) in (0..).zip(slots) {
            let Some((has_job, has_environment, is_in_doubt, [stop, due, wanted, is_stopped, has_volume])) =
                kept
            else {
                continue;
            };
            let sleeping = Sleeping {
                id: format!("environment{id:04}{slot:05}"),
                is_to_stop: stop,
                is_due_to_stop: stop || due,
                is_wanted: wanted,
                is_stopped,
                has_volume,
                expires_at: now(),
                tags: BTreeMap::new(),
            };
            let environments = if has_environment { vec![sleeping] } else { Vec::new() };
            all.insert(slot, Use { has_job, environments, is_in_doubt });
        }
        all
    })
}

fn hosts() -> impl Strategy<Value = HostStand> {
    let mounts = prop::collection::btree_map(0..SLOTS, (0..6_u32).prop_map(|id| format!("vol-{id}")), 0..3);
    prop_oneof![
        1 => Just(HostStand::NotKept),
        1 => any::<bool>().prop_map(|said| HostStand::Connecting { why: said.then(|| "refused".to_owned()) }),
        4 => (mounts, 0..6_u64).prop_map(|(mounts, jobs)| HostStand::Ready { mounts, jobs }),
    ]
}

fn instance(number: u32) -> impl Strategy<Value = (Instance, Stand, Option<i64>)> {
    let touched = prop::option::weighted(0.2, prop_oneof![Just(NOW - 100), Just(NOW)]);
    let member = (lifecycles(), any::<bool>(), any::<bool>());
    let devices = prop::collection::btree_map(0..SLOTS, (0..6_u32).prop_map(|id| format!("vol-{id}")), 0..3);
    (
        states(),
        member,
        devices,
        uses(number),
        hosts(),
        0..20_000_i64,
        prop::bool::weighted(0.1),
        any::<bool>(),
        touched,
    )
        .prop_map(
            move |(
                state,
                (lifecycle, is_protected, is_healthy),
                devices,
                slots,
                host,
                age,
                goes,
                marked,
                touched,
            )| {
                let member = lifecycle.map(|lifecycle| Member {
                    group: "g".into(),
                    lifecycle,
                    is_protected,
                    is_healthy,
                });
                let own = if marked { vec![(tags::POOL, "p"), (tags::CLUSTER, "c")] } else { Vec::new() };
                let instance = Instance {
                    state,
                    zone: if number.is_multiple_of(2) { "a" } else { "b" }.into(),
                    launched_at: Timestamp::from_second(NOW - age).ok(),
                    can_hibernate: true,
                    member,
                    devices: devices.into_iter().map(|(slot, id)| (device_of(slot), id)).collect(),
                    tags: own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
                    ..Instance::for_test(&format!("i-{number}"))
                };
                (instance, Stand { host, slots, is_announced_to_go: goes }, touched)
            },
        )
}

/// Volumes with a number each, some of them an environment's.
fn volumes() -> impl Strategy<Value = (Vec<Volume>, BTreeSet<String>)> {
    let states =
        prop_oneof![Just(VolumeState::Available), Just(VolumeState::InUse), Just(VolumeState::Creating)];
    let one = (states, any::<bool>(), any::<bool>(), any::<bool>());
    prop::collection::vec(one, 0..6).prop_map(|all| {
        let mut owned = BTreeSet::new();
        let mut volumes = Vec::new();
        for (number, (state, is_in_a, is_owned, is_tagged)) in all.into_iter().enumerate() {
            let id = format!("vol-{number}");
            let mut marks = BTreeMap::from([(tags::POOL.to_owned(), "p".to_owned())]);
            if is_tagged {
                marks.insert(tags::ENVIRONMENT.to_owned(), "someone".to_owned());
            }
            if is_owned {
                owned.insert(id.clone());
            }
            let attachment = (state == VolumeState::InUse).then(|| Attachment {
                instance: "i-0".into(),
                device: device_of(0),
                is_attached: true,
                is_detaching: false,
            });
            volumes.push(Volume {
                id,
                state,
                zone: if is_in_a { "a" } else { "b" }.into(),
                size_gib: 8,
                attachment,
                created_at: None,
                snapshot: None,
                tags: marks,
            });
        }
        (volumes, owned)
    })
}

fn group() -> impl Strategy<Value = Option<Group>> {
    let group =
        (0..3_u32, 0..8_u32, 0..9_u32, any::<bool>()).prop_map(|(min, more, desired, retains)| Group {
            name: "g".into(),
            min,
            max: min + more,
            desired: desired.clamp(min, min + more),
            zones: vec!["a".into(), "b".into()],
            retains_abandoned: retains,
            hooks: vec![Hook {
                name: "leave".into(),
                at_termination: true,
                heartbeat_timeout: 60,
                global_timeout: 6000,
                abandons: true,
            }],
            ..Group::default()
        });
    prop::option::weighted(0.95, group)
}

fn worlds() -> impl Strategy<Value = World> {
    let policy = (0..4_u32, 0..1200_u64, any::<bool>()).prop_map(|(idle_count, seconds, preemptive)| {
        Active { idle_count, idle_time: Duration::from_secs(seconds), preemptive, ..Active::default() }
    });
    let instances = (0..7_usize)
        .prop_flat_map(|count| (0..u32::try_from(count).unwrap()).map(instance).collect::<Vec<_>>());
    let settings = (0..8_u32, 0..5_u32, 0..4_u32, any::<[bool; 5]>());
    (group(), instances, volumes(), policy, 0..8_u32, settings).prop_map(
        |(
            group,
            instances,
            (volumes, owned_volumes),
            policy,
            waiting,
            (max_instances, may_launch, max_uses, flags),
        )| {
            let [launches, hibernates, has_age, has_volumes, is_deleting] = flags;
            let mut facts = Facts::default();
            (facts.at, facts.group) = (Timestamp::from_second(NOW - 5).unwrap(), group);
            let (mut memory, mut stands) = (Memory::default(), BTreeMap::new());
            for (instance, stand, touched) in instances {
                if let Some(at) = touched {
                    memory.touched.insert(instance.id.clone(), Timestamp::from_second(at).unwrap());
                    if has_age {
                        memory
                            .told_to_go
                            .insert(instance.id.clone(), Timestamp::from_second(NOW - 1).unwrap());
                    }
                }
                memory.up_since.extend(instance.launched_at.map(|at| (instance.id.clone(), at)));
                memory.idle_since.extend(instance.launched_at.map(|at| (instance.id.clone(), at)));
                stands.insert(instance.id.clone(), stand);
                facts.instances.insert(instance.id.clone(), instance);
            }
            facts.volumes = volumes.into_iter().collect();
            let volume: WorkspaceVolume =
                serde_json::from_value(serde_json::json!({ "sizeGiB": 8 })).unwrap();
            World {
                facts,
                memory,
                stands,
                volume: has_volumes.then_some(volume),
                owned_volumes,
                policy,
                waiting,
                wakes: Vec::new(),
                now: now(),
                max_instances,
                may_launch,
                max_uses,
                max_age: has_age.then(|| SignedDuration::from_hours(4)),
                grow_with: if launches { GrowWith::LaunchInstances } else { GrowWith::SetDesiredCapacity },
                stop_mode: if hibernates { StopMode::Hibernate } else { StopMode::Stop },
                is_deleting,
            }
        },
    )
}

/// A member that runs, with nothing to be done about it.
fn serving(id: &str) -> Instance {
    let own = [(tags::CLUSTER, "c"), (tags::POOL, "p"), (tags::POOL_NAME, "pool"), (tags::NAMESPACE, "ci")];
    Instance {
        state: InstanceState::Running,
        zone: "b".into(),
        launched_at: Timestamp::from_second(NOW - 10_000).ok(),
        member: Some(Member {
            group: "g".into(),
            lifecycle: Lifecycle::InService,
            is_protected: true,
            is_healthy: true,
        }),
        tags: own.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Instance::for_test(id)
    }
}

fn steps(plan: &Plan) -> impl Iterator<Item = &Step> {
    plan.sequences.iter().flat_map(|sequence| &sequence.steps)
}

fn changes(plan: &Plan) -> impl Iterator<Item = &Change> {
    steps(plan).filter_map(|step| match step {
        Step::Cloud(change) => Some(change),
        Step::Mount { .. } | Step::Unmount { .. } | Step::Quiet { .. } => None,
    })
}

fn grows(change: &Change) -> bool {
    matches!(change, Change::SetDesired { .. } | Change::Launch { .. })
}

fn makes(change: &Change) -> bool {
    matches!(change, Change::CreateVolume(_) | Change::Attach { .. } | Change::Launch { .. })
}

proptest! {
    #[test]
    fn nothing_is_taken_from_under_a_job_or_an_environment(world in worlds()) {
        let plan = plan(&world.view());
        for change in changes(&plan) {
            match change {
                Change::TerminateMember { instance } | Change::Terminate { instance } => {
                    prop_assert!(world.stand(instance).is_free(), "{change:?}");
                }
                Change::Complete { instance, abandon, .. } => {
                    let state = world.facts.instances[instance].state;
                    let stand = world.stand(instance);
                    let is_trimmed = lifecycle(&world.facts.instances[instance]) == Some(&Lifecycle::WarmedTerminatingWait);
                    let may = stand.is_free() || state.is_gone() || is_trimmed || (*abandon && !stand.has_job());
                    prop_assert!(may, "{change:?}");
                }
                Change::Detach { instance, shrinks: true, .. } => {
                    let stand = world.stand(instance);
                    // One that had left its group with what sleeps there leaves it again.
                    let had_left = stand.environments().any(|known| known.is_stopped);
                    prop_assert!(stand.may_stop() || had_left, "{change:?}");
                }
                Change::Stop { instance, .. } => {
                    prop_assert!(world.stand(instance).may_stop(), "{change:?}");
                    // A member that stops would be replaced at once.
                    prop_assert_eq!(&world.facts.instances[instance].member, &None);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn no_instance_is_ended_or_emptied_and_opened_in_one_plan(world in worlds()) {
        let plan = plan(&world.view());
        for change in changes(&plan) {
            if let Change::TerminateMember { instance } | Change::Terminate { instance } | Change::Stop { instance, .. }
            | Change::Detach { instance, .. } | Change::Complete { instance, .. } = change {
                prop_assert!(!plan.open.contains_key(instance), "{change:?}");
            }
        }
        for id in plan.open.keys() {
            prop_assert!(!world.view().is_under_way(id), "what was done to it is not seen yet");
            prop_assert!(!world.memory.told_to_go.contains_key(id), "it was told to go a moment ago");
            let instance = &world.facts.instances[id];
            prop_assert!(is_in_service(instance) && world.stand(id).is_ready() && !world.is_deleting);
            prop_assert!(instance.member.as_ref().unwrap().is_protected);
        }
    }

    #[test]
    fn a_volume_goes_to_one_free_slot_of_its_zone_and_is_nobodys(world in worlds()) {
        let plan = plan(&world.view());
        let (mut volumes, mut places) = (BTreeSet::new(), BTreeSet::new());
        for change in changes(&plan) {
            let Change::Attach { volume, instance, device } = change else { continue };
            prop_assert!(volumes.insert(volume.clone()) && places.insert((instance.clone(), device.clone())));
            let known = &world.facts.volumes[volume];
            prop_assert!(!known.tags.contains_key(tags::ENVIRONMENT) && !world.owned_volumes.contains(volume));
            prop_assert_eq!(known.state, VolumeState::Available);
            let there = &world.facts.instances[instance];
            prop_assert_eq!(&known.zone, &there.zone);
            prop_assert!(!there.devices.contains_key(device), "{change:?}");
            let slot = crate::fleet::facts::slot_at(device).unwrap();
            prop_assert!(!world.stand(instance).slots.contains_key(&slot), "a kept slot's device was taken: {change:?}");
        }
    }

    #[test]
    fn the_fleet_grows_within_its_limits(world in worlds()) {
        let plan = plan(&world.view());
        let Some(group) = &world.facts.group else {
            prop_assert!(changes(&plan).all(|change| !grows(change)));
            return Ok(());
        };
        let mut launched = 0;
        for change in changes(&plan) {
            match change {
                Change::SetDesired { to, .. } => {
                    prop_assert!((group.min..=group.max).contains(to), "{change:?}, {group:?}");
                    // What restores a size that somebody has lowered launches nothing.
                    launched += u32::try_from(plan.scale.grow.len()).unwrap();
                }
                Change::Launch { count, .. } => launched += count,
                _ => {}
            }
        }
        prop_assert!(launched <= world.may_launch);
        prop_assert!(launched == 0 || !world.is_deleting);
        let running = size::running(&world.view());
        prop_assert!(launched == 0 || running + launched <= world.max_instances, "{running} + {launched}");
    }

    #[test]
    fn one_thing_is_done_about_a_subject_and_none_that_no_look_can_show_yet(world in worlds()) {
        let plan = plan(&world.view());
        let mut subjects = BTreeSet::new();
        for sequence in &plan.sequences {
            prop_assert!(subjects.insert(&sequence.subject), "{} twice", sequence.subject);
            prop_assert!(!sequence.steps.is_empty());
            let view = world.view();
            prop_assert!(!view.is_under_way(&sequence.subject) || sequence.subject.ends_with(" hooks"));
        }
    }

    #[test]
    fn a_pool_that_goes_makes_nothing_new(world in worlds()) {
        let world = World { is_deleting: true, ..world };
        let plan = plan(&world.view());
        prop_assert!(plan.open.is_empty() && plan.growth == 0);
        for change in changes(&plan) {
            let is_new = makes(change);
            prop_assert!(!is_new, "{:?}", change);
        }
    }

    #[test]
    fn a_group_that_must_not_be_used_grows_not_and_what_is_there_is_seen_to_all_the_same(
        world in worlds(), ends_none in any::<bool>(),
    ) {
        let mut world = world;
        if let Some(group) = world.facts.group.as_mut().filter(|_| ends_none) {
            group.suspended.insert("Terminate".to_owned());
        }
        let free = plan(&world.view());
        let mut blocked = free.clone();
        blocked.begin_nothing(&world.view());
        prop_assert!(blocked.open.is_empty() && blocked.growth == 0);
        let is_senseless =
            |change: &Change| grows(change) || ends_none && matches!(change, Change::TerminateMember { .. });
        let kept: Vec<&Change> = changes(&free).filter(|change| !is_senseless(change)).collect();
        prop_assert_eq!(changes(&blocked).collect::<Vec<_>>(), kept);
        prop_assert_eq!(&blocked.report, &free.report);
    }

    #[test]
    fn only_volumes_that_are_nobodys_are_taken_back_and_only_from_members_that_stay(world in worlds()) {
        let mut plan = Plan::default();
        volumes::take_back(&world.view(), &mut plan);
        let stays = world.facts.group.as_ref().is_some_and(|group| group.desired <= group.min);
        prop_assert!(plan.sequences.is_empty() || world.is_deleting && stays);
        for step in steps(&plan) {
            match step {
                Step::Unmount { instance, slot } => {
                    prop_assert!(!world.stand(instance).slots.contains_key(slot), "{step:?}");
                }
                Step::Cloud(
                    Change::DetachVolume { volume, .. } | Change::DeleteVolume { volume },
                ) => {
                    let known = &world.facts.volumes[volume];
                    let is_someones = known.tags.contains_key(tags::ENVIRONMENT) || world.owned_volumes.contains(volume);
                    prop_assert!(!is_someones, "{step:?}");
                }
                _ => prop_assert!(false, "{step:?}"),
            }
        }
    }

    #[test]
    fn a_slot_is_offered_where_one_is_free_in_the_zone(world in worlds(), slot in 0..SLOTS, zone in any::<bool>()) {
        let zone = if zone { Some("a".to_owned()) } else { None };
        let mut view = world.view();
        let wake = Wake { environment: "waits".into(), zone: zone.clone(), slot, has_place: false };
        view.wakes = vec![wake.clone(), Wake { environment: "has one".into(), has_place: true, ..wake }];
        let plan = plan(&view);
        let is_free = plan.open.keys().any(|id| {
            let there = &world.facts.instances[id];
            zone.as_ref().is_none_or(|zone| *zone == there.zone) && !world.stand(id).slots.contains_key(&slot)
        });
        let offered: Vec<&str> = members::offered(&view, &plan).collect();
        prop_assert_eq!(offered, if is_free { vec!["waits"] } else { Vec::new() });
    }

    #[test]
    fn what_this_holder_has_seen_to_come_up_is_as_old_as_that_by_whatever_clock_it_was_launched(
        world in worlds(), launched in -100_000..100_000_i64, seen in 0..20_000_i64, was_there in any::<bool>(),
    ) {
        let mut world = world;
        let most = SignedDuration::from_hours(1);
        world.max_age = Some(most);
        let first_look = NOW - seen - if was_there { 0 } else { 1 };
        world.memory.first_look = Timestamp::from_second(first_look).ok();
        for (id, instance) in &mut world.facts.instances {
            instance.launched_at = Timestamp::from_second(NOW - launched).ok();
            world.memory.up_since.insert(id.clone(), Timestamp::from_second(NOW - seen).unwrap());
        }
        let age = SignedDuration::from_secs(if was_there { launched } else { seen });
        let view = world.view();
        for instance in world.facts.instances.values() {
            let stand = world.stand(&instance.id);
            if !stand.is_announced_to_go {
                prop_assert_eq!(spent(&view, instance, &stand) == Some(Spent::Age), age >= most);
            }
        }
    }

    #[test]
    fn one_that_is_given_up_goes_unless_a_job_or_an_environment_has_a_slot_there(
        world in worlds(), slots in uses(0), has_answered in any::<bool>(), minutes in 0..8_i64,
    ) {
        let mut world = World { waiting: 0, max_age: None, is_deleting: false, ..world };
        world.policy = Active { idle_time: Duration::from_secs(1_000_000), ..Active::default() };
        world.facts.group = Some(Group { name: "g".into(), max: 8, desired: 1, ..Group::default() });
        world.facts.instances = BTreeMap::from([("i-0".to_owned(), serving("i-0"))]);
        let mut slots = slots;
        for slot in slots.values_mut().filter(|slot| !slot.has_job && slot.environments.is_empty()) {
            slot.is_in_doubt = true;
        }
        let stand = Stand { host: HostStand::Connecting { why: None }, slots, is_announced_to_go: false };
        world.stands = BTreeMap::from([("i-0".to_owned(), stand)]);
        world.memory = Memory::default();
        let since = BTreeMap::from([("i-0".to_owned(), Timestamp::from_second(NOW - 60 * minutes).unwrap())]);
        let most = match has_answered {
            true => {
                world.memory.were_ready.insert("i-0".to_owned());
                world.memory.failing_since = since;
                i64::from(world.view().pool.failure_threshold)
            }
            false => {
                world.memory.up_since = since;
                world.view().pool.ready_timeout.as_mins()
            }
        };
        let plan = plan(&world.view());
        let goes = changes(&plan).any(|change| matches!(change, Change::TerminateMember { .. }));
        prop_assert_eq!(goes, minutes >= most && world.stand("i-0").is_free());
        let lost = Waiting::Unreachable { instance: "i-0".into() };
        let late = Waiting::NotReady { instance: "i-0".into(), why: "it has not answered".into() };
        let wait = if has_answered { lost } else { late };
        prop_assert_eq!(plan.report.contains(&Report::GivenUp { wait: wait.clone() }), minutes >= most);
        prop_assert_eq!(plan.scale.waits.first() == Some(&wait), minutes >= most);
        prop_assert!(minutes < most || !wait.sentence().is_empty() && wait.keeps_away());
    }

    #[test]
    fn jobs_are_asked_for_up_to_the_limit_while_instances_launch(
        world in worlds(), ready in 0..4_usize, launching in 0..4_usize, max in 0..9_u32,
    ) {
        let mut world = World { volume: None, max_age: None, max_uses: 0, is_deleting: false, ..world };
        world.max_instances = max;
        world.policy.preemptive = false;
        world.memory = Memory::default();
        world.facts.instances.clear();
        world.stands.clear();
        for number in 0..ready + launching {
            let mut instance = serving(&format!("i-{number}"));
            if number < ready {
                let host = HostStand::Ready { mounts: BTreeMap::new(), jobs: 0 };
                world.stands.insert(instance.id.clone(), Stand { host, ..Stand::default() });
            } else if let Some(member) = &mut instance.member {
                member.lifecycle = Lifecycle::Launching;
            }
            world.facts.instances.insert(instance.id.clone(), instance);
        }
        let there = u32::try_from(ready + launching).unwrap();
        world.facts.group = Some(Group { name: "g".into(), max: 8, desired: there, ..Group::default() });
        let ready = u32::try_from(ready).unwrap();
        let plan = plan(&world.view());
        prop_assert_eq!(plan.growth + ready * SLOTS, max.min(8).max(there) * SLOTS);
    }

    #[test]
    fn the_same_world_gives_the_same_plan(world in worlds()) {
        prop_assert_eq!(plan(&world.view()), plan(&world.view()));
    }
}

/// A member that stays with its group when its pool goes gives the volume of its slot back, one look after the other.
#[test]
fn a_member_that_stays_keeps_no_volume() {
    let member =
        Member { group: "g".into(), lifecycle: Lifecycle::InService, is_protected: true, is_healthy: true };
    let mut facts = Facts::default();
    facts.group = Some(Group { name: "g".into(), min: 1, max: 1, desired: 1, ..Group::default() });
    let instance = Instance { member: Some(member), ..Instance::for_test("i-1") };
    facts.instances.insert("i-1".into(), instance);
    let attachment =
        Attachment { instance: "i-1".into(), device: device_of(0), is_attached: true, is_detaching: false };
    let mut volume = Volume {
        id: "vol-1".into(),
        state: VolumeState::InUse,
        zone: "a".into(),
        size_gib: 8,
        attachment: Some(attachment),
        created_at: None,
        snapshot: None,
        tags: BTreeMap::from([(tags::SLOT_OF.to_owned(), "i-1".to_owned())]),
    };
    let ready = |mounts: &[(u32, &str)]| Stand {
        host: HostStand::Ready {
            mounts: mounts.iter().map(|(slot, id)| (*slot, (*id).to_owned())).collect(),
            jobs: 1,
        },
        ..Stand::default()
    };
    let taken_back = |facts: &Facts, stand: Stand, is_deleting: bool| {
        let world = World { is_deleting, ..around(facts.clone(), stand) };
        let mut plan = Plan::default();
        volumes::take_back(&world.view(), &mut plan);
        steps(&plan).cloned().collect::<Vec<_>>()
    };
    facts.volumes.put(volume.clone());
    let mounted = ready(&[(0, "vol-1")]);
    assert_eq!(taken_back(&facts, mounted.clone(), false), []);
    assert_eq!(
        taken_back(&facts, mounted.clone(), true),
        [Step::Unmount { instance: "i-1".into(), slot: 0 }]
    );
    let in_use = Use { has_job: true, ..Use::default() };
    assert_eq!(taken_back(&facts, Stand { slots: [(0, in_use)].into(), ..mounted }, true), []);
    let detach = Change::DetachVolume { volume: "vol-1".into(), instance: "i-1".into(), force: false };
    assert_eq!(taken_back(&facts, ready(&[]), true), [Step::Cloud(detach)]);
    (volume.attachment, volume.state) = (None, VolumeState::Available);
    facts.volumes.put(volume);
    let delete = Change::DeleteVolume { volume: "vol-1".into() };
    assert_eq!(taken_back(&facts, ready(&[]), true), [Step::Cloud(delete)]);
}

/// A world of one member, with an environment on it.
fn one_member(lifecycle: Lifecycle, state: InstanceState, sleeping: Sleeping) -> World {
    let mut facts = Facts::default();
    let hook = Hook {
        name: "leave".into(),
        at_termination: true,
        heartbeat_timeout: 60,
        global_timeout: 6000,
        abandons: true,
    };
    facts.at = Timestamp::from_second(NOW - 5).unwrap();
    facts.group = Some(Group { name: "g".into(), max: 8, desired: 1, hooks: vec![hook], ..Group::default() });
    let member = Member { group: "g".into(), lifecycle, is_protected: true, is_healthy: true };
    let instance = Instance { state, member: Some(member), ..serving("i-1") };
    facts.instances.insert("i-1".into(), instance);
    let used = Use { environments: vec![sleeping], ..Use::default() };
    let host = HostStand::Ready { mounts: BTreeMap::new(), jobs: 1 };
    let stand = Stand { host, slots: [(0, used)].into(), ..Stand::default() };
    around(facts, stand)
}

/// A world in which nothing is asked for, of what the cloud shows and how the one instance is.
fn around(facts: Facts, stand: Stand) -> World {
    World {
        facts,
        memory: Memory::default(),
        stands: BTreeMap::from([("i-1".to_owned(), stand)]),
        volume: None,
        owned_volumes: BTreeSet::new(),
        policy: Active::default(),
        waiting: 0,
        wakes: Vec::new(),
        now: now(),
        max_instances: 1,
        may_launch: 1,
        max_uses: 0,
        max_age: None,
        grow_with: GrowWith::default(),
        stop_mode: StopMode::default(),
        is_deleting: false,
    }
}

#[test]
fn the_end_of_a_hooks_whole_time_is_announced_two_time_outs_before_and_what_is_there_is_held_until_then() {
    let sleeping = Sleeping { id: "e".into(), has_volume: true, ..Sleeping::default() };
    let world = one_member(Lifecycle::TerminatingWait, InstanceState::Running, sleeping);
    let seen = |seconds: i64| {
        let mut world = world.clone();
        let since = Timestamp::from_second(NOW - seconds).unwrap();
        world.memory.waiting_since.insert("i-1".into(), since);
        let plan = plan(&world.view());
        let beats = changes(&plan).any(|change| matches!(change, Change::Heartbeat { .. }));
        let releases = changes(&plan).any(|change| matches!(change, Change::Complete { .. }));
        assert!(beats && !releases, "{seconds}: {plan:?}");
        plan
    };
    let before = seen(6000 - 121);
    assert_eq!(before.report, []);
    assert!(before.look_again_at.is_some_and(|at| at <= Timestamp::from_second(NOW + 1).unwrap()));
    for left in [120, 1, 0] {
        let at = Timestamp::from_second(NOW + left).unwrap();
        assert_eq!(seen(6000 - left).report, [Report::HookEnds { instance: "i-1".into(), at }]);
    }
    // A new holder does not know since when the member waits.
    assert_eq!(plan(&world.view()).report, []);
    let mut free = world.clone();
    free.stands.clear();
    free.memory.waiting_since.insert("i-1".into(), Timestamp::from_second(NOW - 5999).unwrap());
    assert_eq!(plan(&free.view()).report, [], "nothing is lost with it");
}

#[test]
fn a_stopped_environments_instance_that_somebody_attached_leaves_the_group_again() {
    let sleeping = Sleeping { id: "e".into(), is_to_stop: true, is_stopped: true, ..Sleeping::default() };
    for state in [InstanceState::Running, InstanceState::Stopping, InstanceState::Stopped] {
        for (min, shrinks) in [(0, true), (1, false)] {
            let mut world = one_member(Lifecycle::InService, state, sleeping.clone());
            world.facts.group.as_mut().unwrap().min = min;
            let plan = plan(&world.view());
            let report = Report::KeptInGroup { instance: "i-1".into(), group: "g".into() };
            assert!(plan.report.contains(&report), "{plan:?}");
            let detach = Change::Detach { group: "g".into(), instance: "i-1".into(), shrinks };
            let about: Vec<&Change> = changes(&plan).collect();
            assert_eq!(about, [&detach], "{state:?}, {min}");
        }
    }
    // One that is about to be stopped for the first time leaves it without a word.
    let first = Sleeping { is_stopped: false, ..sleeping };
    let plan = plan(&one_member(Lifecycle::InService, InstanceState::Running, first).view());
    assert!(plan.report.is_empty() && changes(&plan).any(|it| matches!(it, Change::Detach { .. })));
}

mod dry {
    //! A zone that gets no instance, through the time that a snapshot takes: the fleet comes to rest.

    use super::*;

    /// Seconds of a look.
    const STEP: i64 = 10;

    /// A pool whose group launches in zone b alone, and environments that come back from volumes in zone a.
    fn closed(environments: u32, idle_seconds: u64) -> World {
        let mut facts = Facts::default();
        facts.group =
            Some(Group { name: "g".into(), max: 8, zones: vec!["a".into(), "b".into()], ..Group::default() });
        let wake = |number| Wake {
            zone: Some("a".into()),
            slot: number % SLOTS,
            environment: format!("e{number}"),
            has_place: false,
        };
        World {
            facts,
            memory: Memory::default(),
            stands: BTreeMap::new(),
            volume: None,
            owned_volumes: BTreeSet::new(),
            policy: Active { idle_time: Duration::from_secs(idle_seconds), ..Active::default() },
            waiting: 0,
            wakes: (0..environments).map(wake).collect(),
            now: now(),
            max_instances: 8,
            may_launch: 8,
            max_uses: 0,
            max_age: None,
            grow_with: GrowWith::SetDesiredCapacity,
            stop_mode: StopMode::Stop,
            is_deleting: false,
        }
    }

    impl World {
        /// Carries a plan out, and lets a look's time pass; answers how many were launched, and how many went.
        fn pass(&mut self, plan: &Plan) -> (usize, usize) {
            let (mut launched, mut gone) = (0, 0);
            for change in changes(plan) {
                let group = self.facts.group.as_mut().unwrap();
                match change {
                    Change::SetDesired { to, .. } => {
                        while group.desired < *to {
                            group.desired += 1;
                            launched += 1;
                            let id = format!("i-{}-{launched}", self.now.as_second());
                            let came = Instance { launched_at: Some(self.now), ..serving(&id) };
                            self.facts.instances.insert(id.clone(), came);
                            let host = HostStand::Ready { mounts: BTreeMap::new(), jobs: 0 };
                            self.stands.insert(id, Stand { host, ..Stand::default() });
                        }
                    }
                    Change::TerminateMember { instance } => {
                        group.desired -= 1;
                        gone += 1;
                        self.facts.instances.remove(instance);
                        self.stands.remove(instance);
                    }
                    _ => {}
                }
            }
            for zone in &plan.dry_zones {
                self.memory.dry_zones.insert(zone.clone(), self.now);
            }
            self.now = Timestamp::from_second(self.now.as_second() + STEP).unwrap();
            self.facts.at = self.now;
            (launched, gone)
        }

        fn is_given_up(&self, plan: &Plan, environment: &str) -> bool {
            let is_it = |wait: &Waiting| matches!(wait, Waiting::ZoneGetsNone { environment: known, .. } if known == environment);
            plan.scale.waits.iter().any(is_it)
        }
    }

    fn snapshot(environment: &str, state: SnapshotState) -> Snapshot {
        Snapshot {
            id: format!("snap-{environment}"),
            state,
            volume: "vol-1".into(),
            size_gib: 8,
            started_at: None,
            tags: [(tags::ENVIRONMENT.to_owned(), environment.to_owned())].into(),
        }
    }

    proptest! {
        #[test]
        fn a_zone_that_gets_none_is_not_tried_again_while_a_snapshot_leaves_it(
            environments in 1..4_u32, idle_seconds in 0..400_u64, steps in 1..400_usize,
        ) {
            let mut world = closed(environments, idle_seconds);
            let (mut launched, mut gone) = (0, 0);
            let mut is_known = false;
            for _ in 0..steps {
                let plan = plan(&world.view());
                for wake in world.wakes.clone() {
                    let is_given_up = world.is_given_up(&plan, &wake.environment);
                    prop_assert!(is_given_up || !is_known, "{} was given another try", wake.environment);
                    is_known |= is_given_up;
                    if is_given_up {
                        let taken = snapshot(&wake.environment, SnapshotState::Pending);
                        world.facts.snapshots.put(taken);
                    }
                }
                let (came, went) = world.pass(&plan);
                (launched, gone) = (launched + came, gone + went);
            }
            // As many as show it, once.
            prop_assert!(launched <= environments.max(2) as usize, "{launched} were launched");
            prop_assert!(gone <= launched);
            let is_over = steps as i64 * STEP > idle_seconds as i64 + 100;
            prop_assert!(!is_over || (launched, world.facts.instances.len()) == (gone, 0), "{launched} came, {gone} went");
        }
    }

    #[test]
    fn a_zone_is_tried_again_when_no_snapshot_is_under_way_and_left_when_its_snapshot_is_whole() {
        let mut world = closed(1, 0);
        world.memory.dry_zones.insert("a".into(), now());
        for (state, is_tried) in
            [(None, true), (Some(SnapshotState::Failed), true), (Some(SnapshotState::Completed), false)]
        {
            let mut world = world.clone();
            world.facts.snapshots = state.map(|state| snapshot("e0", state)).into_iter().collect();
            let mut tries = 0;
            for _ in 0..60 {
                let plan = plan(&world.view());
                tries += world.pass(&plan).0;
            }
            assert_eq!(tries > 0, is_tried, "{state:?}: {tries}");
        }
    }
}
