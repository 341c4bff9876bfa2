//! One environment through simulated hours: a cloud that is late, a host, a fleet that stops and starts instances, jobs
//! that come and go, and accidents. Steps are carried out as the driver does; what no step may ever do is asserted here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::api::runner_pool::{ColdTier, Demotion};
use crate::api::suspended_environment::{
    BoundLease, DesiredTier, Moving, Origin, ScriptOutcome, SnapshotStatus, SuspendedEnvironmentSpec,
    SuspendedEnvironmentStatus, VolumeStatus,
};
use crate::environment::surrender;
use crate::fleet::facts::Owner;
use crate::provider::{
    Attachment, Group, Instance, InstanceState, Lifecycle, Member, Observation, Snapshot, SnapshotState,
};

/// Seconds of a look.
pub const STEP: i64 = 10;
const POOL: &str = "pool-uid";
const GROUP: &str = "group";
const OWNER: Owner<'_> = Owner { pool_uid: POOL, group: GROUP, may_use_group: true };
pub const ID: &str = "abcdefghijklmnop2345";

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// An instance with what its supervisor has.
#[derive(Debug, Clone)]
pub struct Machine {
    pub cloud: Instance,
    answers: bool,
    has_record: bool,
    mounted: Option<String>,
    /// The workspace on its own disk, where the pool has no volumes.
    workspace: Option<u32>,
    gone_at: i64,
}

/// A volume or snapshot with the version of the workspace it holds.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    pub cloud: T,
    content: Option<u32>,
    ready_at: i64,
}

/// What comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Pass,
    Bind,
    Unbind,
    Ask(Tier),
    Forget,
    InstanceGone,
    VolumeGone,
    SnapshotGone,
    SnapshotFails,
    Reboot,
    Notice,
    /// The zone of its volume has no instances to give.
    Drought,
    Rain,
}

#[derive(Debug, Clone)]
pub struct World {
    pub now: i64,
    pub environment: SuspendedEnvironment,
    pub instances: BTreeMap<String, Machine>,
    pub volumes: BTreeMap<String, Stored<Volume>>,
    pub snapshots: BTreeMap<String, Stored<Snapshot>>,
    has_volumes: bool,
    demotion: Vec<Demotion>,
    facts: Facts,
    touched_at: i64,
    /// When the fleet last stopped its instance.
    stopped_at: i64,
    next_id: u32,
    leaving: Option<String>,
    /// The zone that has no instances to give.
    dry: Option<String>,
    /// When something was last taken away: a look from before does not know.
    taken_at: i64,
    /// The newest version of the workspace of which a copy is left.
    version: u32,
    tokens: BTreeMap<String, String>,
}

impl World {
    pub fn new(has_volumes: bool, demotion: &[(u32, ColdTier)]) -> Self {
        let origin = Origin {
            project_id: 1,
            project_path: "a/b".into(),
            ref_name: "main".into(),
            protected: false,
            commit: "c".into(),
            job_id: 1,
            job_name: "j".into(),
            user_id: 1,
            outcome: ScriptOutcome::Failed,
            lease: "p-1".into(),
            lease_uid: "lease".into(),
            instance: "i-1".into(),
            slot: 0,
        };
        let spec = SuspendedEnvironmentSpec {
            pool: "p".into(),
            pool_uid: POOL.into(),
            environment_id: ID.into(),
            expires_at: Time(at(10_000_000)),
            not_after: Time(at(10_000_000)),
            desired_tier: None,
            workspace_path: "/w".into(),
            origin,
        };
        let mut environment = SuspendedEnvironment::new("p-e", spec);
        environment.status = Some(SuspendedEnvironmentStatus {
            tier: Some(Tier::Hot),
            phase: Some(Phase::Suspended),
            instance: Some("i-1".into()),
            slot: Some(0),
            suspended_at: Some(Time(at(0))),
            ..SuspendedEnvironmentStatus::default()
        });
        let demotion = demotion
            .iter()
            .map(|(after, to)| Demotion {
                after: crate::api::duration::Duration::from_seconds(u64::from(*after)),
                to: *to,
            })
            .collect();
        let mut world = Self {
            now: 0,
            environment,
            instances: BTreeMap::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            has_volumes,
            demotion,
            facts: Facts::default(),
            touched_at: -1,
            stopped_at: -1,
            next_id: 0,
            leaving: None,
            dry: None,
            taken_at: -1,
            version: 1,
            tokens: BTreeMap::new(),
        };
        world.launch("a");
        for _ in 0..3 {
            world.pass();
        }
        let machine = world.instances.get_mut("i-1").unwrap();
        machine.has_record = true;
        match has_volumes {
            true => world.volumes.values_mut().for_each(|volume| volume.content = Some(1)),
            false => machine.workspace = Some(1),
        }
        world.look();
        world
    }

    pub fn status(&mut self) -> &mut SuspendedEnvironmentStatus {
        self.environment.status.get_or_insert_default()
    }

    fn moving_to(&self) -> Option<Tier> {
        self.environment.status.as_ref()?.moving.as_ref().map(|moving| moving.to)
    }

    fn id(&mut self, prefix: &str) -> String {
        self.next_id += 1;
        format!("{prefix}-{}", self.next_id)
    }

    /// A member of the group, with a fresh volume in its slot.
    fn launch(&mut self, zone: &str) -> String {
        let id = self.id("i");
        let member = Member {
            group: GROUP.into(),
            lifecycle: Lifecycle::InService,
            is_protected: true,
            is_healthy: true,
        };
        let cloud = Instance {
            state: InstanceState::Pending,
            zone: zone.into(),
            member: Some(member),
            ..Instance::for_test(&id)
        };
        let mut machine =
            Machine { cloud, answers: false, has_record: false, mounted: None, workspace: None, gone_at: 0 };
        if self.has_volumes {
            let tags = [(tags::SLOT_OF, id.as_str()), (tags::SLOT, "0")];
            let volume = self.create_volume(zone, None, &tags);
            self.attach(&volume, &id);
            machine.mounted = Some(volume);
        }
        self.instances.insert(id.clone(), machine);
        id
    }

    fn create_volume(&mut self, zone: &str, content: Option<u32>, tags: &[(&str, &str)]) -> String {
        let id = self.id("vol");
        let ours = [(tags::POOL, POOL)];
        let tags = ours.iter().chain(tags).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let cloud = Volume {
            id: id.clone(),
            state: VolumeState::Creating,
            zone: zone.into(),
            size_gib: 1,
            attachment: None,
            created_at: None,
            snapshot: None,
            tags: tags.collect(),
        };
        self.volumes.insert(id.clone(), Stored { cloud, content, ready_at: self.now + STEP });
        id
    }

    fn attach(&mut self, volume: &str, instance: &str) {
        let is_taken = self
            .volumes
            .values()
            .any(|v| v.cloud.attachment.as_ref().is_some_and(|a| a.instance == instance));
        assert!(!is_taken, "the device of {instance} is not free");
        let volume = self.volumes.get_mut(volume).unwrap();
        assert!(volume.cloud.attachment.is_none(), "{volume:?} is attached twice");
        volume.cloud.attachment = Some(Attachment {
            instance: instance.into(),
            device: device_of(0),
            is_attached: false,
            is_detaching: false,
        });
        volume.ready_at = self.now + STEP;
    }

    /// Where an environment's workspace is whole in its newest version.
    fn copies(&self, version: Option<u32>) -> Vec<String> {
        let is_it = |content: Option<u32>| content.is_some() && (version.is_none() || content == version);
        let volumes = self.volumes.values().filter(|known| is_it(known.content)).map(|known| &known.cloud.id);
        let snapshots = self
            .snapshots
            .values()
            .filter(|known| is_it(known.content) && known.cloud.state != SnapshotState::Failed);
        let machines = self.instances.values().filter(|known| is_it(known.workspace));
        volumes
            .cloned()
            .chain(snapshots.map(|known| known.cloud.id.clone()))
            .chain(machines.map(|known| known.cloud.id.clone()))
            .collect()
    }

    /// What is left after an accident is the newest there is.
    fn survive(&mut self) {
        self.taken_at = self.now;
        let contents = self.volumes.values().map(|known| known.content);
        let shots = self.snapshots.values().filter(|known| known.cloud.state != SnapshotState::Failed);
        let contents = contents.chain(shots.map(|known| known.content));
        let contents = contents.chain(self.instances.values().map(|known| known.workspace));
        self.version = contents.flatten().max().unwrap_or(0);
    }

    fn is_wanted(&self) -> bool {
        self.moving_to() == Some(Tier::Hot) || self.environment.bound_lease().is_some()
    }

    /// Time passes: what was asked of the cloud is done, and the fleet stops and starts the environment's instance.
    pub fn pass(&mut self) {
        self.now += STEP;
        let now = self.now;
        for volume in self.volumes.values_mut().filter(|known| known.ready_at <= now) {
            match &mut volume.cloud.attachment {
                Some(attachment) if attachment.is_detaching => volume.cloud.attachment = None,
                Some(attachment) => attachment.is_attached = true,
                None => {}
            }
            volume.cloud.state = match volume.cloud.attachment {
                Some(_) => VolumeState::InUse,
                None => VolumeState::Available,
            };
        }
        for snapshot in self.snapshots.values_mut() {
            if snapshot.ready_at <= now && snapshot.cloud.state == SnapshotState::Pending {
                snapshot.cloud.state = SnapshotState::Completed;
            }
        }
        for machine in self.instances.values_mut() {
            match machine.cloud.state {
                InstanceState::Pending => {
                    machine.cloud.state = InstanceState::Running;
                    machine.answers = true;
                }
                // Until then its host may still answer.
                InstanceState::Stopping => {
                    machine.cloud.state = InstanceState::Stopped;
                    machine.answers = false;
                    machine.mounted = None;
                }
                InstanceState::ShuttingDown => machine.cloud.state = InstanceState::Terminated,
                InstanceState::Running | InstanceState::Stopped | InstanceState::Terminated => {}
            }
        }
        self.instances.retain(|_, known| !known.cloud.state.is_gone() || known.gone_at + 600 > now);
        self.fleet();
    }

    fn fleet(&mut self) {
        let kept = self.environment.place().map(|(instance, _)| instance.to_owned());
        let is_left = |known: &&Machine| {
            known.cloud.member.is_none()
                && !known.cloud.state.is_gone()
                && Some(&known.cloud.id) != kept.as_ref()
        };
        let left: Vec<String> =
            self.instances.values().filter(is_left).map(|known| known.cloud.id.clone()).collect();
        left.iter().for_each(|id| self.terminate(id));
        let Some(place) = self.environment.place().map(|(instance, _)| instance.to_owned()) else { return };
        let is_wanted = self.is_wanted();
        let is_to_stop =
            self.moving_to() == Some(Tier::Stopped) || self.environment.tier() == Tier::Stopped && !is_wanted;
        let phase = self.environment.phase();
        let Some(machine) = self.instances.get_mut(&place) else { return };
        match machine.cloud.state {
            InstanceState::Running if is_to_stop && !is_wanted && phase != Phase::Suspending => {
                machine.cloud.state = InstanceState::Stopping;
                self.stopped_at = self.now;
                machine.cloud.member = None;
                machine.cloud.tags.insert(tags::POOL.into(), POOL.into());
            }
            InstanceState::Stopped if is_wanted => machine.cloud.state = InstanceState::Pending,
            InstanceState::Pending
            | InstanceState::Running
            | InstanceState::Stopping
            | InstanceState::Stopped
            | InstanceState::ShuttingDown
            | InstanceState::Terminated => {}
        }
    }

    /// The job that is bound to it goes one step on.
    pub fn job(&mut self) {
        let place = self.environment.place().map(|(instance, _)| instance.to_owned());
        let machine = place.as_ref().and_then(|id| self.instances.get(id));
        let runs = machine.is_some_and(|known| known.answers && known.has_record);
        let mounted = machine.and_then(|known| known.mounted.clone());
        let is_stopping = machine.is_some_and(|known| known.cloud.state == InstanceState::Stopping);
        match self.environment.phase() {
            Phase::Resuming if self.environment.is_hot() && runs && self.moving_to().is_none() => {
                assert!(!is_stopping, "a job began on an instance that goes off: {self:#?}");
                let newest = self.version + 1;
                match (self.has_volumes, mounted) {
                    (true, Some(mounted)) => {
                        let volume = self.volumes.get_mut(&mounted).unwrap();
                        assert_eq!(volume.content, Some(self.version), "another workspace is mounted");
                        volume.content = Some(newest);
                    }
                    // It would be refused.
                    (true, None) => return,
                    (false, _) => {
                        self.instances.get_mut(&place.unwrap()).unwrap().workspace = Some(newest);
                    }
                }
                self.version = newest;
                let now = Time(at(self.now));
                let status = self.status();
                status.phase = Some(Phase::InUse);
                status.last_resumed_at = Some(now);
            }
            Phase::InUse if runs => {
                let now = Time(at(self.now));
                let status = self.status();
                status.revision += 1;
                status.bound_lease = None;
                status.phase = Some(Phase::Suspended);
                status.tier = Some(Tier::Hot);
                status.moving = None;
                status.suspended_at = Some(now);
            }
            Phase::InUse => self.let_go(),
            Phase::Suspending
            | Phase::Suspended
            | Phase::Demoting
            | Phase::Promoting
            | Phase::Resuming
            | Phase::Releasing
            | Phase::Lost => {}
        }
    }

    fn let_go(&mut self) {
        let status = self.status();
        status.phase = Some(Phase::Suspended);
        status.bound_lease = None;
    }

    /// Something comes from outside.
    pub fn happen(&mut self, event: Event) {
        let is_asleep =
            matches!(self.environment.phase(), Phase::Suspended | Phase::Demoting | Phase::Promoting);
        let place = self.environment.place().map(|(instance, _)| instance.to_owned());
        match event {
            Event::Pass => self.pass(),
            Event::Bind if is_asleep => {
                let status = self.status();
                status.phase = Some(Phase::Resuming);
                status.bound_lease = Some(BoundLease { name: "l".into(), uid: "u".into() });
            }
            Event::Unbind if self.environment.phase() == Phase::Resuming => self.let_go(),
            Event::Bind | Event::Unbind => {}
            Event::Ask(tier) => {
                let until = Time(at(self.now + 1_000_000));
                self.environment.spec.desired_tier = Some(DesiredTier { tier, until });
            }
            Event::Forget => self.environment.spec.desired_tier = None,
            Event::InstanceGone => {
                let gone = self.leaving.take().or(place);
                if let Some(id) = gone {
                    self.terminate(&id);
                    self.survive();
                }
            }
            Event::VolumeGone => {
                // One that is attached cannot be deleted. One that nothing says to be the environment's yet is on its
                // instance, but for a moment.
                let own = self.volumes.values().find(|known| {
                    known.content == Some(self.version)
                        && known.cloud.attachment.is_none()
                        && known.cloud.tags.contains_key(tags::ENVIRONMENT)
                });
                if let Some(id) = own.map(|known| known.cloud.id.clone()) {
                    self.volumes.remove(&id);
                    for machine in self.instances.values_mut() {
                        machine.mounted = machine.mounted.take().filter(|mounted| *mounted != id);
                    }
                    self.survive();
                }
            }
            Event::SnapshotGone => {
                if let Some(id) = self.snapshots.keys().next().cloned() {
                    self.snapshots.remove(&id);
                    self.survive();
                }
            }
            Event::SnapshotFails => {
                let pending = |known: &&mut Stored<Snapshot>| known.cloud.state == SnapshotState::Pending;
                if let Some(snapshot) = self.snapshots.values_mut().find(pending) {
                    snapshot.cloud.state = SnapshotState::Failed;
                    self.survive();
                }
            }
            Event::Reboot => {
                if let Some(machine) = place.and_then(|id| self.instances.get_mut(&id))
                    && machine.cloud.state == InstanceState::Running
                {
                    machine.mounted = None;
                }
            }
            Event::Notice => self.leaving = place,
            Event::Drought => self.dry = self.volume_zone(),
            Event::Rain => self.dry = None,
        }
    }

    /// Ends all instances there are.
    pub fn end_instances(&mut self) {
        let ids: Vec<String> = self.instances.keys().cloned().collect();
        ids.iter().for_each(|id| self.terminate(id));
    }

    fn terminate(&mut self, id: &str) {
        let now = self.now;
        let Some(machine) = self.instances.get_mut(id).filter(|known| !known.cloud.state.is_gone()) else {
            return;
        };
        machine.cloud.state = InstanceState::ShuttingDown;
        machine.gone_at = now;
        machine.answers = false;
        machine.mounted = None;
        machine.workspace = None;
        for volume in self.volumes.values_mut() {
            if let Some(attachment) = volume.cloud.attachment.as_mut().filter(|known| known.instance == id) {
                attachment.is_detaching = true;
                volume.ready_at = now + STEP;
            }
        }
    }

    /// The cloud is looked at.
    pub fn look(&mut self) {
        let mut instances: BTreeMap<String, Instance> =
            self.instances.iter().map(|(id, known)| (id.clone(), known.cloud.clone())).collect();
        for volume in self.volumes.values() {
            if let Some(attachment) = &volume.cloud.attachment
                && let Some(instance) = instances.get_mut(&attachment.instance)
            {
                instance.devices.insert(attachment.device.clone(), volume.cloud.id.clone());
            }
        }
        let group = Group { name: GROUP.into(), ..Group::default() };
        let seen = Observation {
            at: at(self.now),
            groups: BTreeMap::from([(GROUP.into(), group)]),
            instances,
            volumes: self.volumes.iter().map(|(id, known)| (id.clone(), known.cloud.clone())).collect(),
            snapshots: self.snapshots.iter().map(|(id, known)| (id.clone(), known.cloud.clone())).collect(),
        };
        let before = self.facts.clone();
        let mut facts = Facts::of(&seen, OWNER, &crate::provider::Ids::default(), Some(&before));
        let status = self.environment.status.clone().unwrap_or_default();
        let ids = status.instance.into_iter().chain(status.volume.map(|volume| volume.id));
        let ids: Vec<String> = ids.chain(status.snapshot.map(|snapshot| snapshot.id)).collect();
        facts.expect(ids.iter().map(String::as_str), Some(&before));
        self.facts = facts;
    }

    fn host(&self) -> Option<&Machine> {
        let (instance, _) = self.environment.place()?;
        self.instances.get(instance).filter(|known| known.answers)
    }

    pub fn view(&self) -> View<'_> {
        View {
            environment: &self.environment,
            rules: Rules { demotion: &self.demotion, has_volumes: self.has_volumes },
            facts: &self.facts,
            host: self.host().map_or(Host::Away, |known| Host::Answers {
                has_record: Some(known.has_record),
                mounted: known.mounted.as_deref(),
            }),
            is_bound: self.environment.bound_lease().is_some(),
            is_evicted: false,
            is_leaving: self.leaving.is_some()
                && self.environment.place().map(|(instance, _)| instance) == self.leaving.as_deref(),
            is_zone_dry: self.is_zone_dry(),
            may_stop: true,
            is_fresh: self.facts.at > at(self.touched_at),
            is_place_at_rest: self.facts.at > at(self.stopped_at),
            now: at(self.now),
        }
    }

    fn volume_zone(&self) -> Option<String> {
        let status = self.environment.status.as_ref();
        status.and_then(|status| status.volume.as_ref()).map(|volume| volume.zone.clone())
    }

    /// What the fleet says: nothing is to be had where the volume is.
    fn is_zone_dry(&self) -> bool {
        let dry = self.dry.as_ref().filter(|dry| self.volume_zone().as_ref() == Some(dry));
        let is_there = |known: &Machine| Some(&known.cloud.zone) == dry && !known.cloud.state.is_gone();
        dry.is_some() && !self.instances.values().any(is_there)
    }

    /// Plans, and does one step; answers whether there was one.
    pub fn act(&mut self) -> Option<Step> {
        let step = plan(&self.view()).step?;
        self.apply(step.clone());
        Some(step)
    }

    fn machine(&mut self) -> &mut Machine {
        let (instance, _) = self.environment.place().unwrap();
        self.instances.get_mut(instance).unwrap()
    }

    fn touch(&mut self) {
        self.touched_at = self.now;
    }

    fn all_tags(&self) -> Vec<(String, String)> {
        let revision = self.environment.status.as_ref().map_or(0, |status| status.revision).to_string();
        let resumed_at = self.environment.status.as_ref().and_then(|status| status.last_resumed_at.as_ref());
        let mut all = vec![
            (tags::ENVIRONMENT.into(), ID.into()),
            (tags::REVISION.into(), revision),
            (tags::POOL.into(), POOL.into()),
        ];
        all.extend(resumed_at.map(|at| (tags::RESUMED_AT.into(), at.0.as_second().to_string())));
        all
    }

    fn volume_status(&self, id: &str) -> Option<VolumeStatus> {
        let known = self.facts.volumes.get(id)?;
        Some(VolumeStatus { id: known.id.clone(), zone: known.zone.clone(), size_gib: known.size_gib })
    }

    fn detach(&mut self, volume: &str, instance: &str) {
        if let Some(machine) = self.instances.get(instance) {
            assert!(machine.mounted.as_deref() != Some(volume), "{volume} is torn from under {instance}");
        }
        let now = self.now;
        if let Some(volume) = self.volumes.get_mut(volume)
            && let Some(attachment) = &mut volume.cloud.attachment
        {
            attachment.is_detaching = true;
            volume.ready_at = now + STEP;
        }
        self.touch();
    }

    /// Nothing that holds the newest workspace goes, unless another does too.
    fn delete_volume(&mut self, id: &str) {
        if let Some(volume) = self.volumes.get(id) {
            assert!(volume.cloud.attachment.is_none(), "{id} is attached");
        }
        self.volumes.remove(id);
        let status = self.status();
        status.volume = status.volume.take().filter(|known| known.id != id);
        self.touch();
    }

    fn delete_snapshot(&mut self, id: &str) {
        self.snapshots.remove(id);
        let status = self.status();
        status.snapshot = status.snapshot.take().filter(|known| known.id != id);
        self.touch();
    }

    fn assert_kept(&self, step: &Step, had: bool) {
        let is_kept = !self.copies(Some(self.version)).is_empty();
        let knows = self.facts.at > at(self.taken_at);
        assert!(is_kept || !had || !knows, "{step:?} took the only copy of the workspace: {self:#?}");
    }

    fn apply(&mut self, step: Step) {
        let had = !self.copies(Some(self.version)).is_empty();
        match step.clone() {
            Step::Claim(target) => {
                let (since, status) = (Time(at(self.now)), self.status());
                let was = status.moving.clone().filter(|was| was.to == target.tier);
                status.moving = Some(Moving {
                    to: target.tier,
                    why: target.why.into(),
                    since,
                    epoch: 1,
                    retries: was.map_or(0, |was| was.retries),
                });
                if status.bound_lease.is_none() {
                    let to_hot = target.tier == Tier::Hot;
                    status.phase = Some(if to_hot { Phase::Promoting } else { Phase::Demoting });
                }
            }
            Step::Save { volume } => {
                assert!(self.machine().has_record, "nothing to save");
                if let Some(id) = &volume {
                    let all = self.all_tags();
                    let known = self.volumes.get_mut(id);
                    known.into_iter().for_each(|known| known.cloud.tags.extend(all.clone()));
                    self.touch();
                }
                let known = volume.and_then(|id| self.volume_status(&id));
                let status = self.status();
                status.saved_revision = Some(status.revision);
                status.volume = known;
            }
            Step::Reserve { zone, slot } => {
                let fits = |known: &&Machine| {
                    known.answers && zone.as_ref().is_none_or(|zone| known.cloud.zone == *zone)
                };
                let found = self.instances.values().find(fits).map(|known| known.cloud.id.clone());
                match found {
                    Some(id) => {
                        let status = self.status();
                        status.instance = Some(id);
                        status.slot = Some(slot);
                    }
                    // The fleet grows.
                    None if self
                        .instances
                        .values()
                        .any(|known| known.cloud.state == InstanceState::Pending) => {}
                    None => {
                        let any = if self.dry.as_deref() == Some("b") { "a" } else { "b" };
                        let zone = zone.as_deref().unwrap_or(any).to_owned();
                        if self.dry.as_ref() != Some(&zone) {
                            self.launch(&zone);
                        }
                    }
                }
            }
            Step::Unmount => self.machine().mounted = None,
            Step::Leave => self.machine().has_record = false,
            Step::Detach { volume, instance, .. } => self.detach(&volume, &instance),
            Step::Attach { volume } => {
                let instance = self.environment.place().unwrap().0.to_owned();
                let is_there =
                    self.instances.get(&instance).is_some_and(|known| !known.cloud.state.is_gone());
                let is_whole = self.volumes.contains_key(&volume);
                if is_there && is_whole {
                    self.attach(&volume, &instance);
                }
                self.touch();
            }
            Step::Mount { volume } => {
                let attachment = self.volumes.get(&volume).and_then(|known| known.cloud.attachment.clone());
                let place = self.environment.place().unwrap().0.to_owned();
                if attachment.is_some_and(|known| known.instance == place && known.is_attached) {
                    self.machine().mounted = Some(volume);
                }
            }
            Step::Import => self.machine().has_record = true,
            Step::Restore { snapshot, zone, .. } => {
                let since =
                    self.environment.status.as_ref().and_then(|status| status.moving.clone()).unwrap().since;
                let token = format!("{snapshot} {zone} {}", since.0);
                let content = self.snapshots.get(&snapshot).and_then(|known| known.content);
                if content.is_some() && !self.tokens.contains_key(&token) {
                    let all = self.all_tags();
                    let all: Vec<(&str, &str)> = all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                    let id = self.create_volume(&zone, content, &all);
                    self.tokens.insert(token, id);
                }
                self.touch();
            }
            Step::Snapshot { volume } => {
                if let Some(known) = self.volumes.get(&volume).cloned() {
                    assert!(known.cloud.attachment.is_none(), "a snapshot of a volume in use");
                    let id = self.id("snap");
                    let cloud = Snapshot {
                        id: id.clone(),
                        state: SnapshotState::Pending,
                        volume,
                        size_gib: 1,
                        started_at: Some(at(self.now)),
                        tags: self.all_tags().into_iter().collect(),
                    };
                    let ready_at = self.now + 3 * STEP;
                    self.snapshots.insert(id, Stored { cloud, content: known.content, ready_at });
                }
                self.touch();
            }
            Step::DeleteVolume { volume } => self.delete_volume(&volume),
            Step::DeleteSnapshot { snapshot } => self.delete_snapshot(&snapshot),
            Step::ForceStop { .. } => self.touch(),
            Step::Settle(settled) => self.settle(&settled),
            Step::GiveUp { again, .. } => self.give_up(again),
            Step::Lose { .. } => {
                assert_eq!(self.copies(None), Vec::<String>::new(), "lost, and there is a copy: {self:#?}");
                let status = self.status();
                status.phase = Some(Phase::Lost);
                status.moving = None;
            }
        }
        self.assert_kept(&step, had);
        if self.copies(Some(self.version)).is_empty() {
            self.survive();
        }
    }

    fn settle(&mut self, settled: &Settled) {
        let volume = settled.volume.as_ref().and_then(|id| self.volume_status(id));
        let seen = settled.snapshot.as_ref().and_then(|id| self.facts.snapshots.get(id)).cloned();
        let status = self.status();
        status.tier = Some(settled.tier);
        status.volume = volume
            .or_else(|| status.volume.take().filter(|known| Some(&known.id) == settled.volume.as_ref()));
        status.snapshot = match seen {
            Some(seen) => {
                Some(SnapshotStatus { id: seen.id, revision: status.revision, size_gib: seen.size_gib })
            }
            None => status.snapshot.take().filter(|known| Some(&known.id) == settled.snapshot.as_ref()),
        };
        if !settled.keeps_place {
            status.instance = None;
            status.slot = None;
        }
        if settled.ends_move {
            status.moving = None;
            status.rest_until = None;
            if status.bound_lease.is_none() {
                status.phase = Some(Phase::Suspended);
            }
        }
    }

    fn give_up(&mut self, again: bool) {
        let now = at(self.now);
        let status = self.status();
        let Some(moving) = status.moving.take() else { return };
        if again {
            if moving.to == Tier::Hot && status.tier >= Some(Tier::Detached) {
                status.instance = None;
                status.slot = None;
            }
            let retries = moving.retries + 1;
            status.moving = Some(Moving { since: Time(now), retries, ..moving });
            return;
        }
        status.rest_until = Some(Time(now + deadline(moving.to).rest));
        if status.bound_lease.is_none() {
            status.phase = Some(Phase::Suspended);
        }
    }

    /// Nothing comes from outside any more: everything is done that is to be done. Answers whether it came to rest.
    pub fn settle_down(&mut self) -> bool {
        if self.leaving.is_some() {
            self.happen(Event::InstanceGone);
        }
        let mut quiet = 0;
        for round in 0..5_000 {
            // A job waits for so long only.
            if round % 500 == 499 && self.environment.phase() == Phase::Resuming {
                self.let_go();
            }
            self.pass();
            self.look();
            self.job();
            let plan = plan(&self.view());
            let is_quiet = plan.step.is_none() && plan.waits_for.is_none() && !self.view().is_bound;
            if let Some(step) = plan.step {
                self.apply(step);
            }
            quiet = if is_quiet { quiet + 1 } else { 0 };
            if quiet > 50 || self.environment.phase() == Phase::Lost {
                return true;
            }
        }
        false
    }

    /// Whether the world is what the status says.
    pub fn check(&self) {
        let place = self.environment.place().map(|(instance, _)| instance);
        let machine = place.and_then(|id| self.instances.get(id));
        let own = |tags: &BTreeMap<String, String>| tags.get(tags::ENVIRONMENT).is_some_and(|id| id == ID);
        let volumes = self.volumes.values().filter(|known| own(&known.cloud.tags)).count();
        let snapshots = self.snapshots.values().filter(|known| own(&known.cloud.tags)).count();
        let newest = self.copies(Some(self.version));
        assert!(!newest.is_empty(), "nothing is left, and it is not lost: {self:#?}");
        let status = self.environment.status.clone().unwrap_or_default();
        let holder = match self.environment.tier() {
            Tier::Hot => {
                let machine = machine.unwrap_or_else(|| panic!("Hot on nothing: {self:#?}"));
                assert_eq!(machine.cloud.state, InstanceState::Running, "{self:#?}");
                assert!(machine.has_record, "its host does not know it: {self:#?}");
                assert!(!self.has_volumes || machine.mounted.is_some(), "nothing is mounted: {self:#?}");
                machine.mounted.clone().unwrap_or_else(|| machine.cloud.id.clone())
            }
            Tier::Stopped => {
                let machine = machine.unwrap_or_else(|| panic!("Stopped on nothing: {self:#?}"));
                assert_eq!(machine.cloud.state, InstanceState::Stopped, "{self:#?}");
                let attached = self.volumes.values().find(|known| {
                    known.cloud.attachment.as_ref().is_some_and(|on| on.instance == machine.cloud.id)
                });
                attached.map_or_else(|| machine.cloud.id.clone(), |known| known.cloud.id.clone())
            }
            Tier::Detached => status.volume.unwrap_or_else(|| panic!("no volume: {self:#?}")).id,
            Tier::Snapshotted => status.snapshot.unwrap_or_else(|| panic!("no snapshot: {self:#?}")).id,
        };
        assert!(newest.contains(&holder), "{holder} has not the newest workspace: {self:#?}");
        let most = if self.has_volumes { 1 } else { 0 };
        match self.environment.tier() {
            Tier::Snapshotted => assert_eq!((volumes, snapshots), (0, 1), "something is left: {self:#?}"),
            Tier::Hot | Tier::Stopped | Tier::Detached => {
                assert!(volumes <= most, "something is left: {self:#?}");
            }
        }
    }

    /// Its object is deleted: one step of giving back. Answers whether nothing is left to do.
    pub fn surrender(&mut self) -> bool {
        self.pass();
        self.look();
        let record = self.host().map(|known| known.has_record);
        let on_host = record.unwrap_or(self.environment.place().is_some() && self.environment.is_hot());
        let step = surrender::next(&self.view(), true, on_host);
        match step {
            surrender::Step::Host => {
                let machine = self.machine();
                machine.has_record = false;
                machine.workspace = None;
                let mounted = machine.mounted.clone();
                if let Some(volume) = mounted.and_then(|id| self.volumes.get_mut(&id)) {
                    volume.content = None;
                }
            }
            surrender::Step::Unmount => self.machine().mounted = None,
            surrender::Step::FreeVolume { volume, keys } => {
                let known = self.volumes.get_mut(&volume).unwrap();
                known.cloud.tags.retain(|key, _| !keys.contains(key));
                assert!(known.content.is_none(), "the next job reads what it left: {self:#?}");
                self.touch();
            }
            surrender::Step::LeaveInstance { instance, key } => {
                let machine = self.instances.get_mut(&instance).unwrap();
                machine.cloud.tags.remove(&key);
                self.touch();
            }
            surrender::Step::EndInstance { instance } => {
                self.terminate(&instance);
                self.touch();
            }
            surrender::Step::Detach { volume, instance } => self.detach(&volume, &instance),
            surrender::Step::DeleteVolume { volume } => self.delete_volume(&volume),
            surrender::Step::DeleteSnapshot { snapshot } => self.delete_snapshot(&snapshot),
            surrender::Step::Wait(_) => {}
            surrender::Step::Done => return true,
        }
        false
    }

    /// Nothing in the cloud is the environment's any more.
    pub fn check_nothing_is_left(&self) {
        let own = |tags: &BTreeMap<String, String>| tags.get(tags::ENVIRONMENT).is_some_and(|id| id == ID);
        let volumes = self.volumes.values().filter(|known| own(&known.cloud.tags));
        assert_eq!(volumes.count(), 0, "{self:#?}");
        assert_eq!(self.snapshots.values().filter(|known| own(&known.cloud.tags)).count(), 0, "{self:#?}");
        // What its workspace was on is deleted, or was emptied for the next job.
        assert_eq!(self.copies(None), Vec::<String>::new(), "{self:#?}");
        let kept = self.instances.values().filter(|known| {
            known.cloud.member.is_none()
                && !known.cloud.state.is_gone()
                && known.cloud.state != InstanceState::Running
        });
        assert_eq!(kept.count(), 0, "an instance stays for nobody: {self:#?}");
    }
}
