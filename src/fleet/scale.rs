//! How many instances there should be, and which go. Pure.
//!
//! There are to be as many free slots, now or soon, as jobs wait and the policy keeps idle. What was asked for and is not
//! visible yet counts as soon to come, so nothing is asked for twice. An instance goes only while no job and no sleeping
//! environment has a slot there and the others have slots enough; one that takes no new job goes at once. What launches is
//! let come.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::policy::Active;
use crate::api::condition::{Finding, SCALING};

mod waiting;

pub use waiting::Waiting;

/// How soon it is looked again after launches were held back by the throttle.
const THROTTLE_PAUSE: SignedDuration = SignedDuration::from_secs(5);

/// A member of the group that is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its id.
    pub id: String,
    /// Its zone.
    pub zone: String,
    /// Slots it has, or will have.
    pub slots: u32,
    /// Slots that jobs have.
    pub jobs: u32,
    /// Slots kept by sleeping environments or in quarantine.
    pub held: u32,
    /// Where it stands.
    pub stage: Stage,
    /// Since when it has been without a job; its launch without one.
    pub idle_since: Option<Timestamp>,
    /// Whether it takes no new job: used up, too old, failing, late.
    pub is_spent: bool,
    /// When it was launched.
    pub launched_at: Timestamp,
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// On its way to Ready.
    Launching,
    /// It takes jobs.
    Ready,
    /// It does not answer, or its ready command fails.
    Unready,
    /// On its way out, or told to go. The group's desired capacity does not count it any more.
    Leaving,
}

/// What asks for slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// Plain jobs without a slot.
    pub waiting: u32,
    /// Environments that come back from a volume or snapshot for a job.
    pub wakes: Vec<Wake>,
}

/// An environment that comes back and has no slot yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wake {
    /// The zone of its volume; any zone without one.
    pub zone: Option<String>,
    /// The slot it must have.
    pub slot: u32,
    /// Its id.
    pub environment: String,
    /// Whether a ready instance of its zone offers that slot now.
    pub has_place: bool,
}

/// What limits the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most instances of the pool, members or not.
    pub max_instances: u32,
    /// Slots of a new instance; at least 1.
    pub capacity: u32,
    /// Fewest members of the group.
    pub group_min: u32,
    /// Most members of the group.
    pub group_max: u32,
    /// The group's desired capacity.
    pub desired: u32,
    /// Running instances of the pool that are no members.
    pub extra_running: u32,
    /// Instances that the throttle lets launch now.
    pub may_launch: u32,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scale {
    /// Instances to add, each with the zone it must be in, if any.
    pub grow: Vec<Option<String>>,
    /// What the desired capacity is to be, before anything goes: each that goes then lowers it by one.
    pub desired: u32,
    /// Instances to terminate, in this order.
    pub shrink: Vec<String>,
    /// Why it is not as wished yet.
    pub waits: Vec<Waiting>,
    /// Slots of ready instances that are free for new jobs.
    pub idle_slots: u32,
    /// How many the policy wants to be idle.
    pub target_idle: u32,
    /// When something becomes due by time alone.
    pub look_again_at: Option<Timestamp>,
}

impl Scale {
    /// Whether the fleet is as wished: nothing is to be done for a group whose desired capacity is this.
    pub fn is_settled(&self, desired: u32) -> bool {
        self.grow.is_empty() && self.shrink.is_empty() && self.desired == desired
    }

    /// Whether more instances are needed than are ready.
    pub fn is_short(&self) -> bool {
        self.waits.iter().any(|wait| match wait {
            Waiting::AtMaxInstances { .. }
            | Waiting::AtGroupMax { .. }
            | Waiting::Throttled { .. }
            | Waiting::WaitingForInstances { .. } => true,
            Waiting::NoSuchSlot { .. }
            | Waiting::ZoneGetsNone { .. }
            | Waiting::LaunchesFail { .. }
            | Waiting::NotReady { .. }
            | Waiting::Unreachable { .. }
            | Waiting::BelowGroupMin { .. }
            | Waiting::Idle { .. } => false,
        })
    }

    /// The condition Scaling.
    pub fn finding(&self) -> Finding {
        let Some(first) = self.waits.first() else {
            let (idle, target) = (self.idle_slots, self.target_idle);
            return Finding::new(
                SCALING,
                true,
                "AsWished",
                format!("{idle} slots are idle, {target} are to be"),
            );
        };
        let sentences: Vec<String> = self.waits.iter().map(Waiting::sentence).collect();
        Finding::new(SCALING, !first.keeps_away(), first.reason(), sentences.join("; "))
    }
}

/// Decides about the fleet.
pub fn scale(units: &[Unit], demand: &Demand, policy: &Active, bounds: &Bounds, now: Timestamp) -> Scale {
    let fleet = Fleet::count(units, bounds);
    let capacity = bounds.capacity.max(1);
    let target_idle = policy.idle_target(fleet.in_use);
    let mut waits = Vec::new();

    let (wakes, lost): (Vec<&Wake>, Vec<&Wake>) =
        demand.wakes.iter().partition(|wake| wake.has_place || wake.slot < capacity);
    let fresh = fresh_places(&wakes, &fleet);
    let need = total([demand.waiting, target_idle, count(wakes.len())]);
    let supply = total([fleet.free, fleet.launching_slots, fleet.coming.saturating_mul(capacity)]);
    let mut wishes = fresh;
    let by_slots = need.saturating_sub(supply).div_ceil(capacity);
    // More than could ever be allowed is not listed, only counted.
    let wanted = by_slots.max(count(wishes.len()));
    let allowed = allow(wanted, &fleet, bounds, &mut waits);
    wishes.resize(allowed as usize, None);

    // While something that is needed is still to come, nothing goes that could take its place: what is ready counts alone.
    let surplus = fleet.free.saturating_sub(need);
    let is_short = wanted > 0 || fleet.free < need || wakes.iter().any(|wake| !wake.has_place);
    let leave = leave(&fleet, &wakes, surplus, is_short, policy, now);
    let (desired, going) = sizes(&fleet, &leave, allowed, bounds);
    let kept_by_min = count(leave.now.len()).saturating_sub(going);

    if is_short {
        let coming = total([fleet.launching, fleet.coming, allowed]);
        if coming > 0 {
            waits.push(Waiting::WaitingForInstances { coming });
        }
    }
    for wake in lost {
        let environment = wake.environment.clone();
        waits.push(Waiting::NoSuchSlot { environment, slot: wake.slot, capacity });
    }
    if kept_by_min > 0 {
        waits.push(Waiting::BelowGroupMin { by: kept_by_min, limit: bounds.group_min });
    }
    if let Some(until) = leave.next {
        waits.push(Waiting::Idle { instances: leave.later, until });
    }
    waits.sort_by_key(|waiting| !waiting.keeps_away());
    let throttled = waits.iter().any(|waiting| matches!(waiting, Waiting::Throttled { .. }));
    let pause = if throttled { now.checked_add(THROTTLE_PAUSE).ok() } else { None };
    Scale {
        grow: wishes,
        desired,
        shrink: leave.now.into_iter().take(going as usize).collect(),
        waits,
        idle_slots: fleet.free,
        target_idle,
        look_again_at: leave.next.into_iter().chain(pause).min(),
    }
}

/// The desired capacity before anything goes, and how many of those that may go can. Somebody may have lowered the desired
/// capacity below what is needed: it is raised again, but never for what is not needed, which is the group's to take.
fn sizes(fleet: &Fleet<'_>, leave: &Leave, allowed: u32, bounds: &Bounds) -> (u32, u32) {
    let going = count(leave.now.len());
    let above_min = |desired: u32| fleet.live.min(desired).saturating_sub(bounds.group_min);
    if allowed > 0 {
        let desired = bounds.desired.max(fleet.live).saturating_add(allowed);
        return (desired, going.min(above_min(desired)));
    }
    let needed = fleet.live.saturating_sub(leave.unneeded);
    let going = if needed >= bounds.group_min { going } else { going.min(above_min(bounds.desired)) };
    let raised = needed.saturating_add(going).min(bounds.group_max);
    let raised = if needed > bounds.desired.saturating_sub(going) { raised } else { 0 };
    (bounds.desired.max(raised), going.min(above_min(bounds.desired.max(raised))))
}

/// What the units add up to.
struct Fleet<'a> {
    /// Those that are not leaving.
    staying: Vec<&'a Unit>,
    live: u32,
    leaving: u32,
    launching: u32,
    /// Asked for, and not visible yet.
    coming: u32,
    in_use: u32,
    free: u32,
    launching_slots: u32,
}

impl<'a> Fleet<'a> {
    fn count(units: &'a [Unit], bounds: &Bounds) -> Self {
        let staying: Vec<&Unit> = units.iter().filter(|unit| unit.stage != Stage::Leaving).collect();
        let live = count(staying.len());
        let launching = staying.iter().filter(|unit| unit.stage == Stage::Launching);
        let slots_at =
            |stage| total(staying.iter().filter(|unit| unit.stage == stage).map(|unit| unit.offers()));
        Self {
            live,
            leaving: count(units.len()).saturating_sub(live),
            launching: count(launching.count()),
            coming: bounds.desired.saturating_sub(live),
            in_use: total(units.iter().map(|unit| unit.jobs)),
            free: slots_at(Stage::Ready),
            launching_slots: slots_at(Stage::Launching),
            staying,
        }
    }
}

impl Unit {
    /// Slots it has for new jobs, now or once it is ready.
    fn offers(&self) -> u32 {
        if self.is_spent { 0 } else { self.slots.saturating_sub(self.jobs).saturating_sub(self.held) }
    }

    fn is_free(&self) -> bool {
        self.jobs == 0 && self.held == 0
    }
}

/// The zones of new instances that environments need which find their slot neither on a ready instance nor on one that
/// comes. Environments of different slots share a new instance.
fn fresh_places(wakes: &[&Wake], fleet: &Fleet<'_>) -> Vec<Option<String>> {
    struct Place<'a> {
        zone: Option<&'a str>,
        taken: BTreeSet<u32>,
        slots: u32,
    }
    let launching = fleet.staying.iter().filter(|unit| unit.stage == Stage::Launching && !unit.is_spent);
    let empty = launching.filter(|unit| unit.is_free());
    let mut places: Vec<Place<'_>> = empty
        .map(|unit| Place { zone: Some(&unit.zone), taken: BTreeSet::new(), slots: unit.slots })
        .collect();
    // The zone of what is not visible yet is not known: it is taken for the one that was wished for.
    let coming = (0..fleet.coming).take(wakes.len());
    places.extend(coming.map(|_| Place { zone: None, taken: BTreeSet::new(), slots: u32::MAX }));
    let known = places.len();
    let mut homeless: Vec<&&Wake> = wakes.iter().filter(|wake| !wake.has_place).collect();
    // Those that are bound to a zone choose first.
    homeless.sort_by_key(|wake| (wake.zone.is_none(), *wake));
    for wake in homeless {
        let fits = |place: &&mut Place<'_>| {
            let is_zone = place.zone.is_none() || wake.zone.is_none() || place.zone == wake.zone.as_deref();
            is_zone && wake.slot < place.slots && !place.taken.contains(&wake.slot)
        };
        match places.iter_mut().find(fits) {
            Some(place) => {
                place.taken.insert(wake.slot);
                place.zone = place.zone.or(wake.zone.as_deref());
            }
            None => places.push(Place {
                zone: wake.zone.as_deref(),
                taken: BTreeSet::from([wake.slot]),
                slots: u32::MAX,
            }),
        }
    }
    places.split_off(known).into_iter().map(|place| place.zone.map(str::to_owned)).collect()
}

/// How many of the wanted instances the limits allow, and what keeps the others away.
fn allow(wanted: u32, fleet: &Fleet<'_>, bounds: &Bounds, waits: &mut Vec<Waiting>) -> u32 {
    let asked_for = fleet.live.saturating_add(fleet.coming);
    let all = total([asked_for, fleet.leaving, bounds.extra_running]);
    let by_pool = bounds.max_instances.saturating_sub(all);
    let by_group = bounds.group_max.saturating_sub(asked_for);
    let mut allowed = wanted;
    if by_pool < allowed {
        waits.push(Waiting::AtMaxInstances { missing: allowed - by_pool, limit: bounds.max_instances });
        allowed = by_pool;
    }
    if by_group < allowed {
        waits.push(Waiting::AtGroupMax { missing: allowed - by_group, limit: bounds.group_max });
        allowed = by_group;
    }
    if bounds.may_launch < allowed {
        waits.push(Waiting::Throttled { missing: allowed - bounds.may_launch });
        allowed = bounds.may_launch;
    }
    allowed
}

/// What may go.
#[derive(Default)]
struct Leave {
    /// Those that may go now, in this order.
    now: Vec<String>,
    /// How many go later, if all stays as it is.
    later: u32,
    /// When the first of them goes.
    next: Option<Timestamp>,
    /// How many are not needed, those that may go now included.
    unneeded: u32,
}

fn leave(
    fleet: &Fleet<'_>,
    wakes: &[&Wake],
    mut surplus: u32,
    is_short: bool,
    policy: &Active,
    now: Timestamp,
) -> Leave {
    let may_go = |unit: &&&Unit| unit.is_free() && (unit.is_spent || unit.stage != Stage::Launching);
    let mut candidates: Vec<&Unit> = fleet.staying.iter().filter(may_go).copied().collect();
    candidates.sort_by_key(|unit| {
        (!unit.is_spent, unit.idle_since.unwrap_or(unit.launched_at), unit.launched_at, &unit.id)
    });
    let idle_time = SignedDuration::try_from(policy.idle_time).unwrap_or(SignedDuration::MAX);
    let mut leave = Leave::default();
    for unit in candidates {
        let offers = if unit.stage == Stage::Ready { unit.offers() } else { 0 };
        if !unit.is_spent {
            // A place that an environment is about to take is not pulled away under it.
            let is_awaited =
                |wake: &Wake| wake.has_place && wake.zone.as_ref().is_none_or(|zone| *zone == unit.zone);
            if is_short || offers > surplus || wakes.iter().copied().any(is_awaited) {
                continue;
            }
            let due = unit.idle_since.unwrap_or(unit.launched_at).saturating_add(idle_time);
            surplus -= offers;
            leave.unneeded += 1;
            // Past the end of time is never.
            let due = due.unwrap_or(Timestamp::MAX);
            if due > now {
                leave.later += 1;
                leave.next = Some(leave.next.map_or(due, |next| next.min(due)));
                continue;
            }
        } else {
            leave.unneeded += 1;
        }
        leave.now.push(unit.id.clone());
    }
    leave
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn total(numbers: impl IntoIterator<Item = u32>) -> u32 {
    numbers.into_iter().fold(0, u32::saturating_add)
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn unit(id: &str, stage: Stage, slots: u32, jobs: u32, held: u32) -> Unit {
        let zone = "a".to_owned();
        Unit {
            id: id.into(),
            zone,
            slots,
            jobs,
            held,
            stage,
            idle_since: None,
            is_spent: false,
            launched_at: at(0),
        }
    }

    fn bounds(desired: u32, capacity: u32) -> Bounds {
        Bounds {
            max_instances: 10,
            capacity,
            group_min: 0,
            group_max: 20,
            desired,
            extra_running: 0,
            may_launch: 100,
        }
    }

    fn waiting(waiting: u32) -> Demand {
        Demand { waiting, wakes: Vec::new() }
    }

    fn wake(environment: &str, zone: Option<&str>, slot: u32) -> Wake {
        Wake { environment: environment.into(), zone: zone.map(Into::into), slot, has_place: false }
    }

    fn idle(count: u32) -> Active {
        Active { idle_count: count, ..Active::default() }
    }

    #[test]
    fn from_zero_three_jobs_with_two_slots_an_instance_want_two_instances() {
        let plan = scale(&[], &waiting(3), &idle(0), &bounds(0, 2), at(0));
        assert_eq!((plan.grow.len(), plan.desired), (2, 2));
        assert_eq!(plan.waits, [Waiting::WaitingForInstances { coming: 2 }]);
        let asked = scale(&[], &waiting(3), &idle(0), &bounds(2, 2), at(0));
        assert!(asked.is_settled(2), "what was asked for and is not visible yet is not asked for again");
    }

    #[test]
    fn sleeping_environments_take_slots_and_leave_none_for_jobs() {
        let units = [unit("i-1", Stage::Ready, 2, 1, 1), unit("i-2", Stage::Ready, 2, 0, 1)];
        let plan = scale(&units, &waiting(2), &idle(0), &bounds(2, 2), at(10_000));
        assert_eq!((plan.grow.len(), plan.desired, plan.idle_slots), (1, 3, 1));
        assert!(plan.shrink.is_empty(), "one with a sleeping environment does not go");
    }

    #[test]
    fn the_longest_idle_goes_first_and_only_when_it_has_been_idle_for_long_enough() {
        let mut units = [
            unit("i-1", Stage::Ready, 1, 0, 0),
            unit("i-2", Stage::Ready, 1, 0, 0),
            unit("i-3", Stage::Ready, 1, 0, 0),
        ];
        units[0].idle_since = Some(at(900));
        units[1].idle_since = Some(at(100));
        units[2].idle_since = Some(at(100));
        let plan = |now| scale(&units, &waiting(0), &idle(1), &bounds(3, 1), at(now));
        let early = plan(399);
        assert!(early.shrink.is_empty());
        assert_eq!(early.look_again_at, Some(at(400)));
        assert_eq!(early.waits, [Waiting::Idle { instances: 2, until: at(400) }]);
        assert_eq!(plan(400).shrink, ["i-2", "i-3"], "one stays for the idle count");
        assert_eq!(plan(5_000).shrink, ["i-2", "i-3"]);
        assert_eq!(plan(400).desired, 3, "each that goes lowers it by itself");
    }

    #[test]
    fn one_that_is_used_up_goes_at_once_and_its_replacement_may_be_asked_for_with_it() {
        let mut units = [unit("i-1", Stage::Ready, 1, 0, 0), unit("i-2", Stage::Ready, 1, 1, 0)];
        units[0].is_spent = true;
        units[1].is_spent = true;
        let plan = scale(&units, &waiting(1), &idle(0), &bounds(2, 1), at(1));
        assert_eq!((plan.grow.len(), plan.desired), (1, 3));
        assert_eq!(plan.shrink, ["i-1"], "and never the one with a job");
    }

    #[test]
    fn nothing_goes_below_the_least_of_the_group() {
        let units = [unit("i-1", Stage::Ready, 1, 0, 0), unit("i-2", Stage::Ready, 1, 0, 0)];
        let bounds = Bounds { group_min: 1, ..bounds(2, 1) };
        let plan = scale(&units, &waiting(0), &idle(0), &bounds, at(1_000));
        assert_eq!(plan.shrink, ["i-1"]);
        assert_eq!(plan.waits, [Waiting::BelowGroupMin { by: 1, limit: 1 }]);
        assert_eq!(plan.finding().reason, "AtGroupMin");
    }

    #[test]
    fn each_limit_is_named() {
        let at_limit = |bounds: Bounds| scale(&[], &waiting(9), &idle(0), &bounds, at(0));
        let plan = at_limit(Bounds { max_instances: 5, extra_running: 2, ..bounds(0, 1) });
        assert_eq!(plan.desired, 3, "those that are no members count");
        assert_eq!(plan.waits[0], Waiting::AtMaxInstances { missing: 6, limit: 5 });
        assert_eq!((plan.finding().status.as_str(), plan.finding().reason), ("False", "AtMaxInstances"));
        let plan = at_limit(Bounds { group_max: 4, ..bounds(0, 1) });
        assert_eq!((plan.desired, &plan.waits[0]), (4, &Waiting::AtGroupMax { missing: 5, limit: 4 }));
        let plan = at_limit(Bounds { may_launch: 1, ..bounds(0, 1) });
        assert_eq!((plan.desired, &plan.waits[0]), (1, &Waiting::Throttled { missing: 8 }));
        assert_eq!(plan.look_again_at, Some(at(5)));
    }

    #[test]
    fn environments_that_wake_share_a_new_instance_of_their_zone() {
        let demand = Demand {
            waiting: 0,
            wakes: vec![
                wake("e1", Some("b"), 0),
                wake("e2", Some("b"), 1),
                wake("e3", Some("a"), 0),
                wake("e4", None, 1),
            ],
        };
        let plan = scale(&[], &demand, &idle(0), &bounds(0, 2), at(0));
        assert_eq!(
            plan.grow,
            [Some("a".to_owned()), Some("b".to_owned())],
            "the fourth fits beside the third"
        );
        let launching = [unit("i-1", Stage::Launching, 2, 0, 0)];
        let plan = scale(&launching, &demand, &idle(0), &bounds(1, 2), at(0));
        assert_eq!(plan.grow, [Some("b".to_owned())]);
        assert!(scale(&launching, &demand, &idle(0), &bounds(2, 2), at(0)).grow.is_empty());
    }

    #[test]
    fn a_free_slot_of_another_number_is_no_place() {
        // Its slot 1 is free, slot 0 is not: the driver says that there is no place.
        let units = [unit("i-1", Stage::Ready, 2, 1, 0)];
        let demand = Demand { waiting: 0, wakes: vec![wake("e", Some("a"), 0)] };
        assert_eq!(scale(&units, &demand, &idle(0), &bounds(1, 2), at(0)).grow, [Some("a".to_owned())]);
        let lost = Demand { waiting: 0, wakes: vec![wake("e", None, 2)] };
        let plan = scale(&units, &lost, &idle(0), &bounds(1, 2), at(0));
        assert!(plan.grow.is_empty());
        assert_eq!(plan.finding().reason, "NoSuchSlot");
    }

    #[test]
    fn an_instance_that_an_environment_is_about_to_come_to_stays() {
        let units = [unit("i-1", Stage::Ready, 1, 0, 0), unit("i-2", Stage::Ready, 1, 0, 0)];
        let mut demand = Demand { waiting: 0, wakes: vec![wake("e", Some("a"), 0)] };
        demand.wakes[0].has_place = true;
        assert!(scale(&units, &demand, &idle(0), &bounds(2, 1), at(1_000)).shrink.is_empty());
        demand.wakes[0].zone = Some("b".into());
        assert_eq!(scale(&units, &demand, &idle(0), &bounds(2, 1), at(1_000)).shrink, ["i-1"]);
    }

    #[test]
    fn a_desired_capacity_that_somebody_lowered_below_what_is_needed_is_raised_again() {
        let units = [
            unit("i-1", Stage::Ready, 1, 1, 0),
            unit("i-2", Stage::Ready, 1, 0, 1),
            unit("i-3", Stage::Ready, 1, 0, 0),
        ];
        let plan = scale(&units, &waiting(0), &idle(0), &bounds(0, 1), at(1));
        assert_eq!(plan.desired, 2, "the idle one is the group's to take");
        let plan = scale(&units, &waiting(2), &idle(0), &bounds(0, 1), at(1));
        assert_eq!((plan.desired, plan.grow.len()), (4, 1));
    }

    #[test]
    fn what_launches_is_let_come_and_what_launches_for_too_long_goes() {
        let mut units = [unit("i-1", Stage::Launching, 1, 0, 0)];
        assert!(scale(&units, &waiting(0), &idle(0), &bounds(1, 1), at(9_999)).shrink.is_empty());
        units[0].is_spent = true;
        assert_eq!(scale(&units, &waiting(0), &idle(0), &bounds(1, 1), at(9_999)).shrink, ["i-1"]);
    }
}
