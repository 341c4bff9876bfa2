//! The fleet through simulated hours: a group that launches late and shows it later still, jobs that come and go, limits.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::api::duration::Duration as ApiDuration;
use crate::api::runner_pool::ScalingPolicy;
use crate::fleet::policy::Policies;

/// Seconds of a look.
const STEP: i64 = 10;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A group that does what real ones do, late.
struct World {
    units: Vec<Unit>,
    desired: u32,
    /// When instances that were asked for become visible.
    asked: VecDeque<i64>,
    /// Ends of the running jobs, with their instance.
    jobs: Vec<(i64, String)>,
    waiting: u32,
    next_id: u32,
    visible_after: i64,
    ready_after: i64,
    served: u32,
    /// +1 for each step that grew, -1 for each that shrank, as they came.
    directions: Vec<i8>,
}

impl World {
    fn new(visible_after: i64, ready_after: i64) -> Self {
        Self {
            units: Vec::new(),
            desired: 0,
            asked: VecDeque::new(),
            jobs: Vec::new(),
            waiting: 0,
            next_id: 0,
            visible_after,
            ready_after,
            served: 0,
            directions: Vec::new(),
        }
    }

    /// Time passes to a second: instances come and become ready, jobs end, waiting ones begin.
    fn pass(&mut self, now: i64, capacity: u32, job_seconds: i64) {
        self.units.retain(|unit| unit.stage != Stage::Leaving);
        while self.asked.front().is_some_and(|visible| *visible <= now) {
            self.asked.pop_front();
            self.next_id += 1;
            self.units.push(Unit {
                id: format!("i-{:04}", self.next_id),
                zone: ["a", "b"][self.next_id as usize % 2].into(),
                slots: capacity,
                jobs: 0,
                held: 0,
                stage: Stage::Launching,
                idle_since: None,
                is_spent: false,
                launched_at: at(now),
            });
        }
        for unit in &mut self.units {
            if unit.stage == Stage::Launching && unit.launched_at <= at(now - self.ready_after) {
                unit.stage = Stage::Ready;
                unit.idle_since = Some(at(now));
            }
        }
        let (over, running) = std::mem::take(&mut self.jobs).into_iter().partition(|(end, _)| *end <= now);
        self.jobs = running;
        for (_, instance) in Vec::from_iter::<Vec<(i64, String)>>(over) {
            let unit =
                self.units.iter_mut().find(|unit| unit.id == instance).expect("no job loses its instance");
            unit.jobs -= 1;
            if unit.jobs == 0 {
                unit.idle_since = Some(at(now));
            }
        }
        // Packed: an instance is filled before the next one is begun.
        for unit in self.units.iter_mut().filter(|unit| unit.stage == Stage::Ready && !unit.is_spent) {
            while self.waiting > 0 && unit.jobs + unit.held < unit.slots {
                self.waiting -= 1;
                self.served += 1;
                unit.jobs += 1;
                unit.idle_since = None;
                self.jobs.push((now + job_seconds, unit.id.clone()));
            }
        }
    }

    fn plan(&self, policy: &Active, bounds: &Bounds, now: i64) -> Scale {
        let bounds = Bounds { desired: self.desired, ..*bounds };
        scale(&self.units, &Demand { waiting: self.waiting, wakes: Vec::new() }, policy, &bounds, at(now))
    }

    fn apply(&mut self, plan: &Scale, now: i64) {
        let before = self.desired;
        for _ in before..plan.desired {
            self.asked.push_back(now + self.visible_after);
        }
        self.desired = plan.desired;
        for gone in &plan.shrink {
            let unit = self.units.iter_mut().find(|unit| unit.id == *gone).unwrap();
            unit.stage = Stage::Leaving;
            self.desired -= 1;
        }
        if plan.desired > before {
            self.directions.push(1);
        }
        if !plan.shrink.is_empty() {
            self.directions.push(-1);
        }
    }

    fn turns(&self) -> usize {
        self.directions.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

fn bounds(max_instances: u32, capacity: u32) -> Bounds {
    Bounds {
        max_instances,
        capacity,
        group_min: 0,
        group_max: max_instances,
        desired: 0,
        extra_running: 0,
        may_launch: u32::MAX,
    }
}

prop_compose! {
    fn any_unit()(
        id in 0u32..10_000, zone in 0usize..3, slots in 1u32..5, jobs in 0u32..4, held in 0u32..3,
        stage in 0usize..4, idle_since in proptest::option::of(0i64..2_000), is_spent in proptest::bool::weighted(0.2),
        launched_at in 0i64..2_000,
    ) -> Unit {
        let stage = [Stage::Launching, Stage::Ready, Stage::Unready, Stage::Leaving][stage];
        let (jobs, held) = if stage == Stage::Launching { (0, 0) } else { (jobs.min(slots), held) };
        Unit {
            id: format!("i-{id:05}"), zone: ["a", "b", "c"][zone].into(), slots, jobs, held: held.min(slots - jobs),
            stage, idle_since: idle_since.map(at), is_spent, launched_at: at(launched_at),
        }
    }
}

prop_compose! {
    fn any_wake()(
        id in 0u32..1_000, zone in 0usize..4, slot in 0u32..5, has_place in proptest::bool::weighted(0.3),
    ) -> Wake {
        let zone = ["a", "b", "c"].get(zone).map(|zone| (*zone).to_owned());
        Wake { environment: format!("e{id}"), zone, slot, has_place }
    }
}

#[derive(Debug, Clone)]
struct Moment {
    units: Vec<Unit>,
    demand: Demand,
    policy: Active,
    bounds: Bounds,
    now: Timestamp,
}

impl Moment {
    fn plan(&self) -> Scale {
        scale(&self.units, &self.demand, &self.policy, &self.bounds, self.now)
    }

    /// The moment after a plan was carried out; nothing that was asked for is visible yet.
    fn applied(&self, plan: &Scale) -> Self {
        let mut next = self.clone();
        next.bounds.desired = plan.desired - count(plan.shrink.len());
        for unit in &mut next.units {
            if plan.shrink.contains(&unit.id) {
                unit.stage = Stage::Leaving;
            }
        }
        next.bounds.may_launch = next.bounds.may_launch.saturating_sub(count(plan.grow.len()));
        next
    }
}

prop_compose! {
    fn any_moment()(
        units in proptest::collection::vec(any_unit(), 0..12),
        waiting in 0u32..12, wakes in proptest::collection::vec(any_wake(), 0..5),
        idle_count in 0u32..6, scale_factor in 0.0f64..2.0, scale_factor_limit in 0u32..5, idle_seconds in 0u64..900,
        limits in (0u32..16, 1u32..5, 0u32..4, 0u32..16, 0u32..3, 0u32..8),
        desired in 0u32..14, now in 0i64..4_000,
    ) -> Moment {
        let (max_instances, capacity, group_min, group_max, extra_running, may_launch) = limits;
        let mut units = units;
        units.sort_by(|a, b| a.id.cmp(&b.id));
        units.dedup_by(|a, b| a.id == b.id);
        Moment {
            units, now: at(now), demand: Demand { waiting, wakes },
            policy: Active {
                index: None, idle_count, idle_time: Duration::from_secs(idle_seconds), scale_factor,
                scale_factor_limit, preemptive: false,
            },
            bounds: Bounds { max_instances, capacity, group_min, group_max, desired, extra_running, may_launch },
        }
    }
}

proptest! {
    #![proptest_config(crate::property::cases(4_000))]

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(moment in any_moment()) {
        let plan = moment.plan();
        prop_assert_eq!(&plan, &moment.plan());
        // What the throttle held back comes later by design.
        let is_throttled = |plan: &Scale| plan.waits.iter().any(|wait| matches!(wait, Waiting::Throttled { .. }));
        let mut next = moment.applied(&plan);
        // Two things take another look: a spent instance that goes makes room in a full group, and a limit that was
        // lowered below what there is lets the desired capacity follow only step by step, one for each that is too many.
        let staying = count(moment.units.iter().filter(|unit| unit.stage != Stage::Leaving).count());
        let is_full = plan.waits.iter().any(|wait| matches!(wait, Waiting::AtGroupMax { .. }));
        let looks = if staying.max(moment.bounds.desired) > moment.bounds.group_max {
            staying.max(2)
        } else if is_full && !plan.shrink.is_empty() {
            2
        } else {
            0
        };
        let mut throttled = is_throttled(&plan);
        for _ in 0..looks {
            let plan = next.plan();
            throttled |= is_throttled(&plan);
            next = next.applied(&plan);
        }
        let again = next.plan();
        throttled |= is_throttled(&again);
        prop_assert!(throttled || again.is_settled(next.bounds.desired), "{:?} then {:?}", plan, again);
    }

    #[test]
    fn what_goes_has_no_job_and_no_sleeper_and_is_not_needed(moment in any_moment()) {
        let plan = moment.plan();
        let unit = |id: &String| moment.units.iter().find(|unit| unit.id == *id).unwrap();
        for gone in plan.shrink.iter().map(unit) {
            prop_assert!(gone.jobs == 0 && gone.held == 0 && gone.stage != Stage::Leaving);
            let idle_since = gone.idle_since.unwrap_or(gone.launched_at);
            let idled = moment.now.duration_since(idle_since) >= SignedDuration::try_from(moment.policy.idle_time).unwrap();
            prop_assert!(gone.is_spent || (idled && gone.stage != Stage::Launching && plan.grow.is_empty()));
        }
        if plan.shrink.iter().map(unit).any(|gone| !gone.is_spent && gone.stage == Stage::Ready) {
            let left = moment.units.iter().filter(|unit| !plan.shrink.contains(&unit.id));
            let free: u32 = left.filter(|unit| matches!(unit.stage, Stage::Ready | Stage::Launching))
                .filter(|unit| !unit.is_spent).map(|unit| unit.slots - unit.jobs - unit.held).sum();
            let staying = moment.units.iter().filter(|unit| unit.stage != Stage::Leaving).count() as u32;
            let coming = moment.bounds.desired.saturating_sub(staying) * moment.bounds.capacity;
            prop_assert!(free + coming >= moment.demand.waiting + plan.target_idle, "{:?}", plan);
        }
    }

    #[test]
    fn no_limit_is_passed(moment in any_moment()) {
        let plan = moment.plan();
        let bounds = moment.bounds;
        let staying = count(moment.units.iter().filter(|unit| unit.stage != Stage::Leaving).count());
        let asked_for = staying.max(bounds.desired);
        let grown = count(plan.grow.len());
        prop_assert!(grown <= bounds.may_launch);
        if grown > 0 {
            prop_assert!(plan.desired <= bounds.group_max);
            prop_assert_eq!(plan.desired, asked_for + grown);
            prop_assert!(count(moment.units.len()).max(plan.desired) + bounds.extra_running <= bounds.max_instances);
        }
        prop_assert!(plan.desired >= bounds.desired && plan.desired <= asked_for + grown);
        if !plan.shrink.is_empty() {
            prop_assert!(plan.desired - count(plan.shrink.len()) >= bounds.group_min);
            prop_assert!(staying - count(plan.shrink.len()) >= bounds.group_min);
        }
    }

    #[test]
    fn whatever_order_the_units_are_in_the_plan_is_the_same(moment in any_moment()) {
        let mut turned = moment.clone();
        turned.units.reverse();
        turned.demand.wakes.reverse();
        let (mut plan, mut again) = (moment.plan(), turned.plan());
        plan.waits.clear();
        again.waits.clear();
        prop_assert_eq!(plan, again);
    }

    #[test]
    fn each_environment_that_wakes_finds_its_slot_on_what_comes(wakes in proptest::collection::vec(any_wake(), 0..8)) {
        let mut wakes = wakes;
        wakes.sort_by(|a, b| a.environment.cmp(&b.environment));
        wakes.dedup_by(|a, b| a.environment == b.environment);
        let demand = Demand { waiting: 0, wakes };
        let plan = scale(&[], &demand, &Active::default(), &bounds(100, 5), at(0));
        // For each zone there are as many instances as environments that want the same slot there.
        for zone in ["a", "b", "c"] {
            for slot in 0..5 {
                let want = demand.wakes.iter().filter(|wake| {
                    !wake.has_place && wake.zone.as_deref() == Some(zone) && wake.slot == slot
                });
                let come = plan.grow.iter().filter(|wish| wish.as_deref() == Some(zone)).count();
                prop_assert!(want.count() <= come, "{:?}", plan.grow);
            }
        }
        for slot in 0..5 {
            let want = demand.wakes.iter().filter(|wake| !wake.has_place && wake.slot == slot).count();
            prop_assert!(want <= plan.grow.len());
        }
    }
}

proptest! {
    #![proptest_config(crate::property::cases(300))]

    #[test]
    fn a_steady_demand_gives_a_steady_fleet(
        running in 0u32..20, capacity in 1u32..4, idle_count in 0u32..5, visible in 0i64..40, ready in 0i64..200,
        scale_factor in 0.0f64..1.0, job_seconds in 30i64..900,
    ) {
        let policy = Active { idle_count, scale_factor, idle_time: Duration::from_secs(300), ..Active::default() };
        let bounds = bounds(100, capacity);
        let mut world = World::new(visible, ready);
        let mut peak = 0;
        for now in (0..4 * 3_600).step_by(STEP as usize) {
            // As many jobs as ever: one that ends is followed by the next.
            world.pass(now, capacity, job_seconds);
            world.waiting = running - count(world.jobs.len());
            world.pass(now, capacity, job_seconds);
            let plan = world.plan(&policy, &bounds, now);
            world.apply(&plan, now);
            peak = peak.max(world.desired);
        }
        prop_assert!(world.turns() <= 1, "{:?}", world.directions);
        prop_assert_eq!(world.waiting, 0);
        let needed = (running + policy.idle_target(running)).div_ceil(capacity);
        prop_assert_eq!(world.desired, needed, "peak {}", peak);
    }

    #[test]
    fn every_job_is_served_and_nothing_is_left_at_the_end(
        arrivals in proptest::collection::vec((0i64..3_600, 1u32..6), 0..25), capacity in 1u32..4,
        max_instances in 1u32..12, visible in 0i64..40, ready in 0i64..120, per_look in 1u32..4,
    ) {
        let policy = Active::default();
        let bounds = Bounds { may_launch: per_look, ..bounds(max_instances, capacity) };
        let mut world = World::new(visible, ready);
        let all: u32 = arrivals.iter().map(|(_, jobs)| jobs).sum();
        for now in (0..12 * 3_600).step_by(STEP as usize) {
            world.waiting += arrivals.iter().filter(|(time, _)| (now - STEP + 1..=now).contains(time)).map(|(_, jobs)| jobs).sum::<u32>();
            world.pass(now, capacity, 240);
            let plan = world.plan(&policy, &bounds, now);
            for gone in &plan.shrink {
                prop_assert!(!world.jobs.iter().any(|(_, instance)| instance == gone));
            }
            world.apply(&plan, now);
            prop_assert!(world.units.len() + world.asked.len() <= max_instances as usize);
        }
        prop_assert_eq!((world.served, world.waiting, world.units.len(), world.desired), (all, 0, 0, 0));
    }
}

#[test]
fn the_fleet_follows_its_policies_through_a_week() {
    let policy = |periods: &str, idle_count| ScalingPolicy {
        periods: vec![periods.into()],
        timezone: "Europe/Berlin".into(),
        idle_count,
        idle_time: ApiDuration::from_seconds(600),
        scale_factor: 0.0,
        scale_factor_limit: 0,
        preemptive_mode: None,
    };
    let policies =
        Policies::compile(&[policy("* 8-17 * * mon-fri", 6), policy("* 12 * * mon-fri", 3)]).unwrap();
    let monday: Timestamp = "2025-03-24T00:00:00+01:00".parse().unwrap();
    let mut world = World::new(20, 60);
    let (mut sizes, mut grown) = (Vec::new(), 0);
    // Through the Sunday on which summer time begins, to the Monday after it.
    for step in 0..(8 * 24 * 60) {
        let now = monday.as_second() + step * 60;
        world.pass(now, 2, 60);
        let plan = world.plan(&policies.at(at(now)), &bounds(10, 2), now);
        grown += plan.grow.len();
        world.apply(&plan, now);
        let local = at(now).to_zoned(jiff::tz::TimeZone::get("Europe/Berlin").unwrap());
        if local.minute() == 30 {
            sizes.push((
                local.day(),
                local.hour(),
                world.units.iter().filter(|unit| unit.stage == Stage::Ready).count(),
            ));
        }
    }
    for (day, hour, size) in sizes {
        let is_workday = !matches!(day, 29 | 30);
        let expected = match hour {
            12 if is_workday => 2,
            8..=17 if is_workday => 3,
            _ => 0,
        };
        assert_eq!(size, expected, "day {day}, {hour}:30");
    }
    // Three in the morning and one after each noon, on six workdays.
    assert_eq!(grown, 6 * 4);
}

#[test]
fn a_thousand_instances_are_planned_at_once() {
    let units: Vec<Unit> = (0..1_000)
        .map(|n| Unit {
            id: format!("i-{n:04}"),
            zone: ["a", "b", "c"][n % 3].into(),
            slots: 4,
            jobs: (n % 4) as u32,
            held: 1,
            stage: Stage::Ready,
            idle_since: None,
            is_spent: false,
            launched_at: at(n as i64),
        })
        .collect();
    let wakes = (0..1_000)
        .map(|n| Wake { environment: format!("e{n}"), zone: Some("a".into()), slot: n % 4, has_place: false })
        .collect();
    let bounds = Bounds { desired: 1_000, ..bounds(1_000, 4) };
    let plan = scale(&units, &Demand { waiting: 5_000, wakes }, &Active::default(), &bounds, at(2_000));
    assert!(plan.grow.is_empty());
    assert_eq!(plan.finding().reason, "AtMaxInstances");
}
