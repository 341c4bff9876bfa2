//! What deciding costs for 1,000 instances and 10,000 environments. Pure: there is no cloud, no API server and no clock
//! in it, only the two planners and the views they are given.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Result, ensure};
use dormouse::api::SuspendedEnvironment;
use dormouse::api::runner_pool::{Demotion, GrowWith, RunnerPoolSpec, StopMode, WorkspaceVolume};
use dormouse::api::suspended_environment::{Phase, Tier};
use dormouse::environment::tier;
use dormouse::fleet::facts::{Facts, Owner, device_of};
use dormouse::fleet::plan;
use dormouse::fleet::policy::Active;
use dormouse::fleet::view::{HostStand, Memory, Pool, Sleeping, Stand, Use, View};
use dormouse::provider::{
    Attachment, Group, Ids, Instance, InstanceState, Lifecycle, Member, Observation, Snapshot, SnapshotState,
    Volume, VolumeState, tags,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Options;
use super::budget::{Bound, Budget, Report};
use super::figures;

const FLEET_AT_REST: Budget =
    Budget { name: "plan-fleet-1000-at-rest", bound: Bound::Below, limit: 100.0, unit: "ms" };
const FLEET_BUSY: Budget =
    Budget { name: "plan-fleet-1000-busy", bound: Bound::Below, limit: 500.0, unit: "ms" };
const TIERS_AT_REST: Budget =
    Budget { name: "plan-tiers-10000-at-rest", bound: Bound::Below, limit: 500.0, unit: "ms" };
const TIERS_DUE: Budget =
    Budget { name: "plan-tiers-10000-due", bound: Bound::Below, limit: 500.0, unit: "ms" };

const POOL_UID: &str = "5f0c6d5e-0d0a-4d0a-8d0a-000000000001";
const CLUSTER: &str = "bench";
const GROUP: &str = "ci-linux";
const OWNER: Owner<'_> = Owner { pool_uid: POOL_UID, group: GROUP, may_use_group: true };
const ZONES: [&str; 3] = ["eu-central-1a", "eu-central-1b", "eu-central-1c"];
const CAPACITY: u32 = 10;

/// How many instances there are in each state, at full size: 1,000 in all.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// In the group, every slot kept by an environment at tier Hot.
    sleeping: usize,
    /// Out of the group and stopped, every slot kept by an environment at tier Stopped.
    stopped: usize,
    /// In the group, half of the slots with a job.
    working: usize,
    /// Environments at tier Detached, and as many at tier Snapshotted.
    cold: usize,
}

const FULL: Size = Size { sleeping: 400, stopped: 200, working: 400, cold: 2000 };
const QUICK: Size = Size { sleeping: 40, stopped: 20, working: 40, cold: 200 };

/// A pool's cloud and its environments.
struct World {
    now: Timestamp,
    facts: Facts,
    stands: BTreeMap<String, Stand>,
    environments: Vec<SuspendedEnvironment>,
    memory: Memory,
    volume: WorkspaceVolume,
}

/// Times both planners over a pool at rest, and over one where much is to be done.
pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let size = if options.quick { QUICK } else { FULL };
    let rounds = options.repeat(20, 5);
    let mut world = World::build(size)?;
    let instances = world.facts.instances.len();
    let sleepers = world.environments.len();
    let what =
        format!("{instances} instances of {CAPACITY} slots and {sleepers} environments at all four tiers");

    let (samples, decided) = world.time_fleet(rounds, 0);
    ensure!(decided == 0, "a fleet at rest has {decided} things to do");
    let method = format!("fleet::plan::plan over a view of {what}, nothing to do; median of {rounds}");
    report.add(FLEET_AT_REST, figures::median(&samples)?, method, &samples);

    let (samples, decided) = world.time_tiers(rounds, &[]);
    ensure!(decided == 0, "environments at rest have {decided} things to do");
    let method = format!(
        "environment::tier::plan for each of {sleepers} environments of the same world, nothing to do; \
                          all of them, median of {rounds}"
    );
    report.add(TIERS_AT_REST, figures::median(&samples)?, method, &samples);

    let demotion = [serde_json::from_value(json!({ "after": "1h", "to": "Snapshotted" }))?];
    let (samples, decided) = world.time_tiers(rounds, &demotion);
    ensure!(decided >= sleepers * 8 / 10, "only {decided} of {sleepers} have something to do");
    let method = format!("the same while {decided} of them are due for tier Snapshotted; median of {rounds}");
    report.add(TIERS_DUE, figures::median(&samples)?, method, &samples);

    world.lose_volumes();
    let waiting = u32::try_from(instances / 2)?;
    let (samples, decided) = world.time_fleet(rounds, waiting);
    ensure!(decided >= size.working, "only {decided} things to do");
    let method = format!(
        "fleet::plan::plan over the same view while {waiting} jobs wait and the volumes of the working instances are to be \
         attached anew: {decided} sequences of steps; median of {rounds}"
    );
    report.add(FLEET_BUSY, figures::median(&samples)?, method, &samples);
    Ok(())
}

impl World {
    fn build(size: Size) -> Result<Self> {
        let now = Timestamp::now();
        let mut building = Building::new(now);
        for _ in 0..size.sleeping {
            building.instance(InstanceState::Running, &mut |_| Some(Tier::Hot))?;
        }
        for _ in 0..size.stopped {
            building.instance(InstanceState::Stopped, &mut |_| Some(Tier::Stopped))?;
        }
        for _ in 0..size.working {
            building.instance(InstanceState::Running, &mut |_| None)?;
        }
        for _ in 0..size.cold {
            building.detached()?;
            building.snapshotted()?;
        }
        building.done()
    }

    /// Milliseconds of each round, and how many sequences a plan has.
    fn time_fleet(&self, rounds: usize, waiting: u32) -> (Vec<f64>, usize) {
        let view = self.view(waiting);
        let mut decided = 0;
        let samples = time(rounds, || decided = plan::plan(&view).sequences.len());
        (samples, decided)
    }

    /// Milliseconds of each round over all environments, and how many have a step.
    fn time_tiers(&self, rounds: usize, demotion: &[Demotion]) -> (Vec<f64>, usize) {
        let rules = tier::Rules { demotion, has_volumes: true };
        let mut decided = 0;
        let samples = time(rounds, || {
            decided = self
                .environments
                .iter()
                .filter(|environment| {
                    let mounted = environment.status.as_ref().and_then(|status| status.volume.as_ref());
                    let host = match environment.tier() {
                        Tier::Hot => tier::Host::Answers {
                            has_record: Some(true),
                            mounted: mounted.map(|volume| volume.id.as_str()),
                        },
                        Tier::Stopped | Tier::Detached | Tier::Snapshotted => tier::Host::Away,
                    };
                    let view = tier::View {
                        environment,
                        rules,
                        facts: &self.facts,
                        host,
                        is_bound: false,
                        is_evicted: false,
                        is_leaving: false,
                        is_zone_dry: false,
                        may_stop: true,
                        is_fresh: true,
                        is_place_at_rest: true,
                        now: self.now,
                    };
                    tier::plan(&view).step.is_some()
                })
                .count();
        });
        (samples, decided)
    }

    /// The volumes of the instances that run jobs are free again, as after an instance refresh.
    fn lose_volumes(&mut self) {
        for (id, instance) in &mut self.facts.instances {
            let is_working = self.stands.get(id).is_some_and(|stand| stand.has_job());
            if !is_working {
                continue;
            }
            for (_, id) in std::mem::take(&mut instance.devices) {
                if let Some(volume) = self.facts.volumes.get(&id).cloned() {
                    let state = VolumeState::Available;
                    self.facts.volumes.put(Volume { attachment: None, state, ..volume });
                }
            }
        }
    }

    fn view(&self, waiting: u32) -> View<'_> {
        let mut places = BTreeSet::new();
        let mut known = BTreeMap::new();
        let mut owned_volumes = BTreeSet::new();
        for environment in &self.environments {
            let place = environment.place().map(|(instance, slot)| (instance.to_owned(), slot));
            known.insert(
                environment.spec.environment_id.clone(),
                place.as_ref().map(|(instance, _)| instance.clone()),
            );
            places.extend(place);
            let volume = environment.status.as_ref().and_then(|status| status.volume.as_ref());
            owned_volumes.extend(volume.map(|volume| volume.id.clone()));
        }
        View {
            pool: Pool {
                uid: POOL_UID,
                name: "linux",
                namespace: "ci",
                cluster: CLUSTER,
                group: GROUP,
                capacity: CAPACITY,
                max_instances: 2000,
                max_uses: 0,
                max_age: None,
                ready_timeout: SignedDuration::from_mins(10),
                failure_threshold: 3,
                deletion_retry: SignedDuration::from_mins(1),
                grow_with: GrowWith::SetDesiredCapacity,
                stop_mode: StopMode::Stop,
                volume: Some(&self.volume),
                is_deleting: false,
                epoch: 1,
            },
            facts: &self.facts,
            stands: self.stands.clone(),
            places,
            known,
            owned_volumes,
            kept_tags: BTreeMap::new(),
            policy: Active::default(),
            waiting,
            wakes: Vec::new(),
            may_launch: 100,
            memory: &self.memory,
            now: self.now,
        }
    }
}

/// Milliseconds of each round, after one that does not count.
fn time(rounds: usize, mut round: impl FnMut()) -> Vec<f64> {
    round();
    (0..rounds)
        .map(|_| {
            let begun = Instant::now();
            round();
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect()
}

/// A world that is being made.
struct Building {
    now: Timestamp,
    instances: BTreeMap<String, Instance>,
    volumes: BTreeMap<String, Volume>,
    snapshots: BTreeMap<String, Snapshot>,
    stands: BTreeMap<String, Stand>,
    environments: Vec<SuspendedEnvironment>,
    things: u64,
}

impl Building {
    fn new(now: Timestamp) -> Self {
        Self {
            now,
            instances: BTreeMap::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            stands: BTreeMap::new(),
            environments: Vec::new(),
            things: 0,
        }
    }

    fn id(&mut self, kind: &str) -> String {
        self.things += 1;
        format!("{kind}-{:017x}", self.things)
    }

    fn zone(&self) -> String {
        let index = usize::try_from(self.things).unwrap_or_default() % ZONES.len();
        ZONES.get(index).copied().unwrap_or_default().to_owned()
    }

    /// An instance whose slots are kept by environments of a tier, or, without one, half of them by jobs.
    fn instance(&mut self, state: InstanceState, tier: &mut dyn FnMut(u32) -> Option<Tier>) -> Result<()> {
        let id = self.id("i");
        let zone = self.zone();
        let mut devices = BTreeMap::from([("/dev/sda1".to_owned(), self.id("vol"))]);
        let mut tags = self.tags();
        let mut stand = Stand::default();
        let mut mounts = BTreeMap::new();
        for slot in 0..CAPACITY {
            let volume = self.volume(&zone, Some((&id, slot)));
            devices.insert(device_of(slot), volume.clone());
            mounts.insert(slot, volume.clone());
            let Some(tier) = tier(slot) else {
                if slot % 2 == 0 {
                    stand.slots.insert(slot, Use { has_job: true, ..Use::default() });
                }
                continue;
            };
            let place = Some((id.as_str(), slot));
            let environment = self.environment(tier, place, Some((&volume, &zone)), None)?;
            if tier == Tier::Stopped {
                tags.insert(tags::slot_key(slot), environment.clone());
            }
            let sleeping = Sleeping {
                id: environment,
                is_to_stop: tier == Tier::Stopped,
                has_volume: true,
                expires_at: self.now + SignedDuration::from_hours(100),
                ..Sleeping::default()
            };
            stand.slots.insert(slot, Use { environments: vec![sleeping], ..Use::default() });
        }
        let is_running = state == InstanceState::Running;
        if is_running {
            stand.host = HostStand::Ready { mounts, jobs: 10 };
        }
        self.stands.insert(id.clone(), stand);
        let member = Member {
            group: GROUP.to_owned(),
            lifecycle: Lifecycle::InService,
            is_protected: true,
            is_healthy: true,
        };
        let instance = Instance {
            id: id.clone(),
            state,
            state_reason: None,
            address: Some("192.0.2.1".to_owned()),
            public_address: None,
            zone,
            machine_type: "m6i.large".to_owned(),
            launched_at: Some(self.now - SignedDuration::from_hours(1)),
            is_spot: false,
            can_hibernate: false,
            image: "ami-1".to_owned(),
            member: is_running.then_some(member),
            devices,
            tags,
        };
        self.instances.insert(id, instance);
        Ok(())
    }

    fn detached(&mut self) -> Result<()> {
        let zone = self.zone();
        let volume = self.volume(&zone, None);
        self.environment(Tier::Detached, None, Some((&volume, &zone)), None).map(drop)
    }

    fn snapshotted(&mut self) -> Result<()> {
        let id = self.id("snap");
        self.environment(Tier::Snapshotted, None, None, Some(&id)).map(drop)
    }

    /// A volume, on a slot or on nothing.
    fn volume(&mut self, zone: &str, place: Option<(&str, u32)>) -> String {
        let id = self.id("vol");
        let attachment = place.map(|(instance, slot)| Attachment {
            instance: instance.to_owned(),
            device: device_of(slot),
            is_attached: true,
            is_detaching: false,
        });
        let mut tags = self.tags();
        if let Some((instance, slot)) = place {
            tags.insert(tags::SLOT_OF.to_owned(), instance.to_owned());
            tags.insert(tags::SLOT.to_owned(), slot.to_string());
        }
        let volume = Volume {
            id: id.clone(),
            state: if place.is_some() { VolumeState::InUse } else { VolumeState::Available },
            zone: zone.to_owned(),
            size_gib: 20,
            attachment,
            created_at: Some(self.now),
            snapshot: None,
            tags,
        };
        self.volumes.insert(id.clone(), volume);
        id
    }

    /// An environment that has slept for two hours, on what keeps it; its id.
    fn environment(
        &mut self,
        tier: Tier,
        place: Option<(&str, u32)>,
        volume: Option<(&str, &str)>,
        snapshot: Option<&str>,
    ) -> Result<String> {
        self.things += 1;
        let id = environment_id(self.things);
        if let Some(volume) = volume.and_then(|(volume, _)| self.volumes.get_mut(volume)) {
            volume.tags.insert(tags::ENVIRONMENT.to_owned(), id.clone());
            volume.tags.insert(tags::REVISION.to_owned(), "0".to_owned());
        }
        if let Some(snapshot) = snapshot {
            let mut tags = self.tags();
            tags.insert(tags::ENVIRONMENT.to_owned(), id.clone());
            let made = Snapshot {
                id: snapshot.to_owned(),
                state: SnapshotState::Completed,
                volume: "vol-gone".to_owned(),
                size_gib: 20,
                started_at: Some(self.now),
                tags,
            };
            self.snapshots.insert(snapshot.to_owned(), made);
        }
        let far = self.now + SignedDuration::from_hours(100);
        let (instance, slot) = place.unwrap_or(("i-gone", 0));
        let object: Value = json!({
            "apiVersion": "dormouse.dev/v1alpha1",
            "kind": "SuspendedEnvironment",
            "metadata": { "name": format!("linux-{id}"), "namespace": "ci", "uid": id },
            "spec": {
                "pool": "linux", "poolUid": POOL_UID, "environmentId": id, "expiresAt": far, "notAfter": far,
                "workspacePath": "/builds/0/group/project",
                "origin": {
                    "projectId": 1, "projectPath": "group/project", "ref": "main", "protected": false,
                    "commit": "0123", "jobId": self.things, "jobName": "build", "userId": 1, "outcome": "Succeeded",
                    "lease": "linux-1", "leaseUid": "1", "instance": instance, "slot": slot,
                },
            },
            "status": {
                "tier": tier, "phase": Phase::Suspended, "savedRevision": 0, "conditions": [],
                "instance": place.map(|(instance, _)| instance), "slot": place.map(|(_, slot)| slot),
                "suspendedAt": self.now - SignedDuration::from_hours(2),
                "volume": volume.map(|(id, zone)| json!({ "id": id, "zone": zone, "sizeGiB": 20 })),
                "snapshot": snapshot.map(|id| json!({ "id": id, "revision": 0, "sizeGiB": 20 })),
            },
        });
        self.environments.push(serde_json::from_value(object)?);
        Ok(id)
    }

    fn tags(&self) -> BTreeMap<String, String> {
        let pairs = [
            (tags::CLUSTER, CLUSTER),
            (tags::POOL, POOL_UID),
            (tags::POOL_NAME, "linux"),
            (tags::NAMESPACE, "ci"),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect()
    }

    fn done(self) -> Result<World> {
        let members = self.instances.values().filter(|instance| instance.member.is_some()).count();
        let group = Group {
            name: GROUP.to_owned(),
            max: 2000,
            desired: u32::try_from(members)?,
            zones: ZONES.map(str::to_owned).to_vec(),
            protects_new: true,
            retains_abandoned: true,
            ..Group::default()
        };
        let observation = Observation {
            at: self.now,
            groups: BTreeMap::from([(GROUP.to_owned(), group)]),
            instances: self.instances,
            volumes: self.volumes,
            snapshots: self.snapshots,
        };
        let spec: RunnerPoolSpec = serde_json::from_value(json!({
            "gitlab": { "url": "https://gitlab.example.com", "tokenSecretRef": { "name": "a", "key": "b" } },
            "concurrency": 1,
            "provider": { "aws": { "region": "eu-central-1", "autoScalingGroup": GROUP } },
            "ssh": { "username": "root", "privateKeySecretRef": { "name": "a", "key": "b" } },
            "workspaceVolume": { "sizeGiB": 20 },
        }))?;
        Ok(World {
            now: self.now,
            facts: Facts::of(&observation, OWNER, &Ids::default(), None),
            stands: self.stands,
            environments: self.environments,
            memory: Memory::default(),
            volume: spec.workspace_volume.ok_or_else(|| anyhow::anyhow!("no workspace volume"))?,
        })
    }
}

/// Twenty characters of base32, as environments have.
fn environment_id(number: u64) -> String {
    let digits = "abcdefghijklmnopqrstuvwxyz234567".as_bytes();
    (0..20)
        .map(|place| {
            let value = number.checked_shr(place * 5).unwrap_or(0) % 32;
            usize::try_from(value)
                .ok()
                .and_then(|index| digits.get(index))
                .map_or('a', |digit| char::from(*digit))
        })
        .collect()
}
