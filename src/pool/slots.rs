//! Slots: who owns which, and where the next job goes. Pure.
//!
//! A lease and an environment that belong together carry the same environment id, and are *one* owner of a slot.
//! Nothing is counted up and down: occupancy is what the objects say, each under its own name.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

/// A numbered place for one job on an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The instance's name.
    pub instance: String,
    /// `0 .. slots of the instance`.
    pub index: u32,
}

/// An instance as the planner sees it, in order of preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// How many slots it has.
    pub slots: u32,
    /// Whether a job can be started on it now.
    pub ready: bool,
    /// Slots that take no job although nobody owns them: their workspace volume is not there yet.
    pub closed: BTreeSet<u32>,
}

/// An open lease as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// Its environment.
    pub environment: String,
    /// The slot it holds, by its status or by a reservation of this process that the status does not show yet.
    pub slot: Option<Slot>,
    /// Whether it wakes an environment: its slot is the environment's, and no other.
    pub resumes: bool,
    /// When GitLab handed the job out.
    pub accepted_at: Timestamp,
}

/// An environment as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sleeper {
    /// Its id.
    pub environment: String,
    /// The slot it owns; `None` while it is on no instance.
    pub slot: Option<Slot>,
    /// Whether its object says that a job uses it.
    pub bound: bool,
}

/// Who owns which slot, as the objects say. What each object says is put in under its name, in place of what it said
/// before, so this is a way to read the objects and never a count of its own: built in any order, it comes out the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Open leases by name.
    claimants: BTreeMap<String, Claimant>,
    /// Environments that exist, in whatever phase, by the name of their object.
    sleepers: BTreeMap<String, Sleeper>,
    /// Slots whose last job has ended without a word of its host, by that job's lease: what is left there is not known.
    quarantined: BTreeMap<String, Slot>,
    /// Slots that environments keep which no object knows, by their hosts' lists.
    strangers: BTreeMap<String, Slot>,
    /// Who says so, of each slot that somebody owns or that is in quarantine.
    owners: BTreeMap<String, BTreeMap<u32, BTreeSet<Owner>>>,
    /// Claimants that may get any free slot, the longest waiting first.
    waiting: BTreeSet<(Timestamp, String)>,
    /// The environments of claimants that have a slot, with those claimants' names.
    used: BTreeSet<(String, String)>,
    /// Sleepers that no object says a job uses: environment id and name.
    unbound: BTreeSet<(String, String)>,
    /// Those of them that no claimant uses either.
    asleep: BTreeSet<String>,
}

/// An object that owns a slot: a lease and an environment of the same id are one owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    environment: String,
    object: Object,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Lease(String),
    Environment(String),
    /// A lease that is over.
    Quarantine(String),
    /// None but the host's own record.
    Stranger,
}

/// What keeps a slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotUse {
    /// Whether a job does.
    pub has_job: bool,
    /// Names of the environments that do.
    pub environments: Vec<String>,
    /// Whether what is left on it is not known.
    pub is_in_doubt: bool,
}

/// All that slots are decided from: possibly a moment old, but never older than this process's own writes.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Instances in order of preference.
    pub instances: &'a [Instance],
    /// Who owns which slot.
    pub occupancy: &'a Occupancy,
    /// Most open leases.
    pub concurrency: u32,
    /// Slots that may be waited for besides the free ones: of instances that are on their way, or may yet be asked for.
    pub growth: u32,
}

/// Where jobs go, and why others wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignments {
    /// Lease names with the slots they get.
    pub placed: Vec<(String, Slot)>,
    /// How many leases wait for a slot.
    pub waiting: usize,
}

impl Occupancy {
    /// What a lease says now; `None` when it is over or gone.
    pub fn set_claimant(&mut self, lease: &str, claimant: Option<Claimant>) {
        if let Some(old) = self.claimants.remove(lease) {
            match &old.slot {
                Some(slot) => {
                    self.disown(slot, &old.environment, Object::Lease(lease.to_owned()));
                    self.used.remove(&(old.environment.clone(), lease.to_owned()));
                }
                None => {
                    self.waiting.remove(&(old.accepted_at, lease.to_owned()));
                }
            }
            self.settle(&old.environment);
        }
        let Some(claimant) = claimant else { return };
        let environment = claimant.environment.clone();
        match &claimant.slot {
            Some(slot) => {
                self.own(slot, &environment, Object::Lease(lease.to_owned()));
                self.used.insert((environment.clone(), lease.to_owned()));
            }
            None if claimant.resumes => {}
            None => {
                self.waiting.insert((claimant.accepted_at, lease.to_owned()));
            }
        }
        self.claimants.insert(lease.to_owned(), claimant);
        self.settle(&environment);
    }

    /// The slot that a lease which is over has put into quarantine; `None` when it has not, or not any more.
    pub fn set_quarantined(&mut self, lease: &str, slot: Option<Slot>) {
        if let Some(old) = self.quarantined.remove(lease) {
            self.disown(&old, "", Object::Quarantine(lease.to_owned()));
        }
        if let Some(slot) = slot {
            self.own(&slot, "", Object::Quarantine(lease.to_owned()));
            self.quarantined.insert(lease.to_owned(), slot);
        }
    }

    /// What an instance's list has shown that no object knows: environments with their slots.
    pub fn set_strangers(&mut self, instance: &str, listed: Vec<(String, u32)>) {
        let of_instance = self.strangers.iter().filter(|(_, slot)| slot.instance == instance);
        let before: Vec<String> = of_instance.map(|(environment, _)| environment.clone()).collect();
        for environment in before {
            self.know(&environment);
        }
        for (environment, index) in listed {
            let slot = Slot { instance: instance.to_owned(), index };
            self.own(&slot, &environment, Object::Stranger);
            self.strangers.insert(environment, slot);
        }
    }

    /// An object of that environment has shown up.
    pub fn know(&mut self, environment: &str) {
        if let Some(slot) = self.strangers.remove(environment) {
            self.disown(&slot, environment, Object::Stranger);
        }
    }

    /// Whether a slot is kept by what no object knows.
    pub fn is_strangers(&self, slot: &Slot) -> bool {
        self.strangers.values().any(|kept| kept == slot)
    }

    /// Slots in quarantine.
    pub fn quarantined(&self) -> impl Iterator<Item = &Slot> {
        self.quarantined.values()
    }

    /// Names of the leases that have put a slot of an instance into quarantine.
    pub fn quarantines_on(&self, instance: &str) -> impl Iterator<Item = &str> {
        self.objects_on(instance).filter_map(|object| match object {
            Object::Quarantine(name) => Some(name.as_str()),
            Object::Lease(_) | Object::Environment(_) | Object::Stranger => None,
        })
    }

    /// What an environment's object says now; `None` when it is gone.
    pub fn set_sleeper(&mut self, name: &str, sleeper: Option<Sleeper>) {
        if let Some(old) = self.sleepers.remove(name) {
            if let Some(slot) = &old.slot {
                self.disown(slot, &old.environment, Object::Environment(name.to_owned()));
            }
            self.unbound.remove(&(old.environment.clone(), name.to_owned()));
            self.asleep.remove(name);
        }
        let Some(sleeper) = sleeper else { return };
        let environment = sleeper.environment.clone();
        if let Some(slot) = &sleeper.slot {
            self.own(slot, &environment, Object::Environment(name.to_owned()));
        }
        if !sleeper.bound {
            self.unbound.insert((environment.clone(), name.to_owned()));
        }
        self.sleepers.insert(name.to_owned(), sleeper);
        self.settle(&environment);
    }

    /// Open leases.
    pub fn jobs(&self) -> usize {
        self.claimants.len()
    }

    /// Environments that exist.
    pub fn environments(&self) -> usize {
        self.sleepers.len()
    }

    /// Environments that sleep.
    pub fn asleep(&self) -> usize {
        self.asleep.len()
    }

    /// Names of all environments.
    pub fn environment_names(&self) -> impl Iterator<Item = &String> {
        self.sleepers.keys()
    }

    /// Ids of the environments on an instance.
    pub fn environment_ids_on(&self, instance: &str) -> impl Iterator<Item = &str> {
        self.environments_on(instance)
            .filter_map(|name| self.sleepers.get(name))
            .map(|known| known.environment.as_str())
    }

    /// Names of the leases that have a slot on an instance.
    pub fn leases_on(&self, instance: &str) -> impl Iterator<Item = &str> {
        self.objects_on(instance).filter_map(|object| match object {
            Object::Lease(name) => Some(name.as_str()),
            Object::Environment(_) | Object::Quarantine(_) | Object::Stranger => None,
        })
    }

    /// Names of the environments on an instance.
    pub fn environments_on(&self, instance: &str) -> impl Iterator<Item = &str> {
        self.objects_on(instance).filter_map(|object| match object {
            Object::Environment(name) => Some(name.as_str()),
            Object::Lease(_) | Object::Quarantine(_) | Object::Stranger => None,
        })
    }

    /// What keeps each slot of an instance that is kept by something.
    pub fn uses_on(&self, instance: &str) -> BTreeMap<u32, SlotUse> {
        let slots = self.owners.get(instance).into_iter().flatten();
        let uses = slots.map(|(index, owners)| {
            let mut slot = SlotUse::default();
            for owner in owners {
                match &owner.object {
                    Object::Lease(_) => slot.has_job = true,
                    Object::Environment(name) => slot.environments.push(name.clone()),
                    Object::Quarantine(_) | Object::Stranger => slot.is_in_doubt = true,
                }
            }
            (*index, slot)
        });
        uses.collect()
    }

    /// Jobs that wait for a slot and may take any.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn objects_on(&self, instance: &str) -> impl Iterator<Item = &Object> {
        self.owners.get(instance).into_iter().flat_map(BTreeMap::values).flatten().map(|owner| &owner.object)
    }

    fn own(&mut self, slot: &Slot, environment: &str, object: Object) {
        let owner = Owner { environment: environment.to_owned(), object };
        self.owners.entry(slot.instance.clone()).or_default().entry(slot.index).or_default().insert(owner);
    }

    fn disown(&mut self, slot: &Slot, environment: &str, object: Object) {
        let Some(slots) = self.owners.get_mut(&slot.instance) else { return };
        if let Some(owners) = slots.get_mut(&slot.index) {
            owners.remove(&Owner { environment: environment.to_owned(), object });
            if owners.is_empty() {
                slots.remove(&slot.index);
            }
        }
        if slots.is_empty() {
            self.owners.remove(&slot.instance);
        }
    }

    /// Whether the sleepers of an environment sleep, after a change of one of its objects.
    fn settle(&mut self, environment: &str) {
        let is_of = |entry: &&(String, String)| entry.0 == environment;
        let from = (environment.to_owned(), String::new());
        let is_used = self.used.range(from.clone()..).take_while(is_of).next().is_some();
        for (_, name) in self.unbound.range(from..).take_while(is_of) {
            if is_used {
                self.asleep.remove(name);
            } else {
                self.asleep.insert(name.clone());
            }
        }
    }
}

impl View<'_> {
    /// Slots of ready instances that are open, that nobody owns and nothing is left on, in order of preference. An instance
    /// that is full costs one look.
    pub fn free(&self) -> impl Iterator<Item = Slot> {
        self.ready().flat_map(|instance| {
            let taken = self.occupancy.owners.get(&instance.name);
            let indices = if self.free_on(instance) == 0 { 0..0 } else { 0..instance.slots };
            indices
                .filter(move |index| !instance.closed.contains(index))
                .filter(move |index| taken.is_none_or(|taken| !taken.contains_key(index)))
                .map(|index| Slot { instance: instance.name.clone(), index })
        })
    }

    /// How many slots of ready instances are open and nobody owns.
    pub fn free_count(&self) -> usize {
        self.ready().map(|instance| self.free_on(instance)).sum()
    }

    fn free_on(&self, instance: &Instance) -> usize {
        let taken = self.occupancy.owners.get(&instance.name);
        let owned = taken.map_or(0, |taken| taken.range(..instance.slots).count());
        let is_owned = |index: &u32| taken.is_some_and(|taken| taken.contains_key(index));
        let closed = instance.closed.range(..instance.slots).filter(|index| !is_owned(index)).count();
        (instance.slots as usize).saturating_sub(owned + closed)
    }

    /// Slots of ready instances.
    pub fn slots(&self) -> u32 {
        self.ready().map(|instance| instance.slots).sum()
    }

    fn ready(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|instance| instance.ready)
    }
}

/// Gives free slots to waiting leases, the longest waiting first. Jobs are packed: an instance is filled before the
/// next one is begun.
pub fn assign(view: &View<'_>) -> Assignments {
    let mut free = view.free();
    let mut assignments = Assignments::default();
    let waiting = &view.occupancy.waiting;
    for (_, lease) in waiting {
        match free.next() {
            Some(slot) => assignments.placed.push((lease.clone(), slot)),
            None => break,
        }
    }
    assignments.waiting = waiting.len() - assignments.placed.len();
    assignments
}

/// Whether GitLab may be asked for one more job, as far as slots go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Yes,
    /// As many jobs as the pool may have are open.
    AtConcurrency,
    /// No instance can be reached.
    NoReachableHost,
    /// Every slot is in use by a job, or in quarantine.
    NoSlot,
}

/// Whether one more job may be asked for. GitLab cannot be asked for resumes only, and a resume needs no free slot:
/// so a pool with a sleeping environment goes on asking, up to its concurrency, even where every slot is taken. Were
/// the plain jobs that wait by then counted against it, one of them would keep every resume away.
pub fn room(view: &View<'_>) -> Room {
    let occupancy = view.occupancy;
    if occupancy.jobs() >= view.concurrency as usize {
        return Room::AtConcurrency;
    }
    if view.growth == 0 && occupancy.asleep() == 0 && !view.instances.iter().any(|instance| instance.ready) {
        return Room::NoReachableHost;
    }
    if occupancy.asleep() > 0 || occupancy.waiting.len() < view.free_count() + view.growth as usize {
        Room::Yes
    } else {
        Room::NoSlot
    }
}

/// How many jobs may be asked for at the same time: each request may bring one. Where [`room`] says yes it is at least one.
pub fn spare(view: &View<'_>) -> usize {
    let occupancy = view.occupancy;
    let places = (view.concurrency as usize).saturating_sub(occupancy.jobs());
    let slots = (view.free_count() + view.growth as usize).saturating_sub(occupancy.waiting.len());
    // A resume needs no free slot.
    places.min(slots.max(usize::from(occupancy.asleep() > 0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All at once, from which an occupancy is built in order.
    #[derive(Debug, Clone, Default)]
    struct World {
        instances: Vec<Instance>,
        claimants: Vec<(String, Claimant)>,
        sleepers: Vec<Sleeper>,
        quarantined: BTreeSet<Slot>,
        concurrency: u32,
    }

    impl World {
        fn occupancy(&self) -> Occupancy {
            let mut occupancy = Occupancy::default();
            for (lease, claimant) in &self.claimants {
                occupancy.set_claimant(lease, Some(claimant.clone()));
            }
            for sleeper in &self.sleepers {
                occupancy.set_sleeper(&sleeper.environment, Some(sleeper.clone()));
            }
            for slot in &self.quarantined {
                occupancy.set_quarantined(&left_by(slot), Some(slot.clone()));
            }
            occupancy
        }

        fn decide<T>(&self, decide: impl FnOnce(&View<'_>) -> T) -> T {
            let occupancy = self.occupancy();
            decide(&View {
                instances: &self.instances,
                occupancy: &occupancy,
                concurrency: self.concurrency,
                growth: 0,
            })
        }

        /// The world once the assignments have been carried out.
        fn applied(&self, assignments: &Assignments) -> Self {
            let mut next = self.clone();
            for (lease, slot) in &assignments.placed {
                for (name, claimant) in &mut next.claimants {
                    if name == lease {
                        claimant.slot = Some(slot.clone());
                    }
                }
            }
            next
        }
    }

    fn slot(instance: &str, index: u32) -> Slot {
        Slot { instance: instance.into(), index }
    }

    fn claimant(job: u32, slot: Option<Slot>) -> (String, Claimant) {
        let accepted_at = Timestamp::from_second(i64::from(job)).unwrap();
        (format!("p-{job}"), Claimant { environment: format!("e{job}"), slot, resumes: false, accepted_at })
    }

    fn sleeper(environment: &str, slot: Slot, bound: bool) -> Sleeper {
        Sleeper { environment: environment.into(), slot: Some(slot), bound }
    }

    /// The lease that put a slot into quarantine.
    fn left_by(slot: &Slot) -> String {
        format!("left-{}-{}", slot.instance, slot.index)
    }

    fn two_hosts() -> World {
        World {
            instances: ["a", "b"]
                .into_iter()
                .map(|name| Instance { name: name.into(), slots: 2, ready: true, closed: BTreeSet::new() })
                .collect(),
            concurrency: 10,
            ..World::default()
        }
    }

    #[test]
    fn the_first_two_jobs_share_a_host_and_the_third_lands_on_another() {
        let mut world = two_hosts();
        world.claimants = vec![claimant(3, None), claimant(1, None), claimant(2, None)];
        assert_eq!(
            world.decide(assign).placed,
            [("p-1".into(), slot("a", 0)), ("p-2".into(), slot("a", 1)), ("p-3".into(), slot("b", 0))]
        );
    }

    #[test]
    fn a_lease_and_its_environment_are_one_owner() {
        let mut world = two_hosts();
        world.claimants = vec![claimant(1, Some(slot("a", 0)))];
        world.sleepers = vec![sleeper("e1", slot("a", 0), false)];
        assert_eq!(world.decide(|view| view.free_count()), 3);
        assert_eq!(world.occupancy().asleep(), 0, "its job uses it");
    }

    #[test]
    fn a_pool_full_of_sleepers_still_asks_for_the_resume_that_would_free_one() {
        let mut world = two_hosts();
        world.sleepers = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
            .into_iter()
            .enumerate()
            .map(|(n, (host, index))| sleeper(&format!("s{n}"), slot(host, index), false))
            .collect();
        assert_eq!(world.decide(room), Room::Yes);
        for sleeper in &mut world.sleepers {
            sleeper.bound = true;
        }
        assert_eq!(world.decide(room), Room::NoSlot);
    }

    #[test]
    fn an_unreachable_pool_asks_for_nothing() {
        let mut world = two_hosts();
        for instance in &mut world.instances {
            instance.ready = false;
        }
        assert_eq!(world.decide(room), Room::NoReachableHost);
    }

    fn any_world() -> impl Strategy<Value = World> {
        let instances = proptest::collection::vec((1u32..4, any::<bool>()), 0..4);
        let occupants = proptest::collection::btree_map((0usize..4, 0u32..4), any::<(bool, bool)>(), 0..10);
        let quarantined = proptest::collection::btree_set((0usize..4, 0u32..4), 0..4);
        (instances, occupants, quarantined, 0u32..6, 0u32..12).prop_map(
            |(instances, occupants, quarantined, waiting, concurrency)| {
                let mut world = World {
                    instances: instances
                        .into_iter()
                        .enumerate()
                        .map(|(n, (slots, ready))| Instance {
                            name: format!("h{n}"),
                            slots,
                            ready,
                            closed: BTreeSet::new(),
                        })
                        .collect(),
                    quarantined: quarantined
                        .into_iter()
                        .map(|(host, index)| slot(&format!("h{host}"), index))
                        .collect(),
                    concurrency,
                    ..World::default()
                };
                for (n, ((host, index), (with_lease, with_environment))) in occupants.into_iter().enumerate()
                {
                    let n = n as u32 + 100;
                    let slot = slot(&format!("h{host}"), index);
                    if with_lease {
                        world.claimants.push(claimant(n, Some(slot.clone())));
                    }
                    if with_environment {
                        world.sleepers.push(sleeper(&format!("e{n}"), slot, false));
                    }
                }
                for n in 0..waiting {
                    world.claimants.push(claimant(n, None));
                }
                world
            },
        )
    }

    proptest! {
        #[test]
        fn a_slot_is_never_given_twice(world in any_world()) {
            let next = world.applied(&world.decide(assign));
            for (slot, owners) in next.occupancy().owners.values().flatten() {
                let used = owners.iter().filter(|owner| !matches!(owner.object, Object::Quarantine(_)));
                let environments: BTreeSet<&String> = used.map(|owner| &owner.environment).collect();
                prop_assert!(environments.len() <= 1, "{:?}", slot);
            }
        }

        #[test]
        fn a_job_is_placed_only_on_a_ready_instance_within_its_slots_and_not_in_quarantine(world in any_world()) {
            for (_, slot) in world.decide(assign).placed {
                let instance = world.instances.iter().find(|instance| instance.name == slot.instance).unwrap();
                prop_assert!(instance.ready && slot.index < instance.slots);
                prop_assert!(!world.quarantined.contains(&slot));
            }
        }

        #[test]
        fn once_all_is_as_wished_there_is_nothing_to_do(world in any_world()) {
            let next = world.applied(&world.decide(assign));
            prop_assert!(next.decide(assign).placed.is_empty());
            prop_assert_eq!(world.decide(assign), world.decide(assign));
        }

        #[test]
        fn no_job_is_asked_for_at_the_limit(world in any_world()) {
            if world.claimants.len() >= world.concurrency as usize {
                prop_assert_eq!(world.decide(room), Room::AtConcurrency);
            }
        }

        #[test]
        fn a_resume_is_never_given_a_free_slot(mut world in any_world()) {
            for (_, claimant) in &mut world.claimants {
                claimant.resumes = true;
            }
            prop_assert!(world.decide(assign).placed.is_empty());
        }

        #[test]
        fn the_free_slots_are_as_many_as_are_counted(world in any_world()) {
            prop_assert_eq!(world.decide(|view| view.free().count()), world.decide(|view| view.free_count()));
        }

        #[test]
        fn whatever_came_before_the_occupancy_is_what_the_objects_say_now(
            before in any_world(), after in any_world(),
        ) {
            let mut occupancy = before.occupancy();
            for (lease, _) in &before.claimants {
                occupancy.set_claimant(lease, None);
            }
            for sleeper in &after.sleepers {
                occupancy.set_sleeper(&sleeper.environment, Some(sleeper.clone()));
            }
            for (lease, claimant) in after.claimants.iter().rev() {
                occupancy.set_claimant(lease, Some(claimant.clone()));
            }
            for sleeper in &before.sleepers {
                if !after.sleepers.iter().any(|kept| kept.environment == sleeper.environment) {
                    occupancy.set_sleeper(&sleeper.environment, None);
                }
            }
            for slot in &before.quarantined {
                occupancy.set_quarantined(&left_by(slot), None);
            }
            for slot in &after.quarantined {
                occupancy.set_quarantined(&left_by(slot), Some(slot.clone()));
            }
            prop_assert_eq!(occupancy, after.occupancy());
        }
    }
}
