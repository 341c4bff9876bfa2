//! Whatever happens to an environment on its way, and at whichever step.

use proptest::prelude::*;

use super::simulation::{Event, World};
use super::*;
use crate::api::runner_pool::ColdTier;

fn any_tier() -> impl Strategy<Value = Tier> {
    prop_oneof![Just(Tier::Hot), Just(Tier::Stopped), Just(Tier::Detached), Just(Tier::Snapshotted)]
}

/// Mostly time passes, and minds are changed.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Pass),
        2 => Just(Event::Bind),
        1 => Just(Event::Unbind),
        4 => any_tier().prop_map(Event::Ask),
        1 => Just(Event::Forget),
        1 => Just(Event::Reboot),
    ]
}

/// The same with what takes things away.
fn any_accident() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => any_event(),
        1 => Just(Event::InstanceGone),
        1 => Just(Event::VolumeGone),
        1 => Just(Event::SnapshotGone),
        1 => Just(Event::SnapshotFails),
        1 => Just(Event::Notice),
        2 => Just(Event::Drought),
        1 => Just(Event::Rain),
    ]
}

fn any_rules() -> impl Strategy<Value = Vec<(u32, ColdTier)>> {
    let cold = prop_oneof![Just(ColdTier::Stopped), Just(ColdTier::Detached), Just(ColdTier::Snapshotted)];
    proptest::collection::vec((0u32..400, cold), 0..3)
}

/// One thing after another, each with whether the cloud is looked at, how many steps follow, and whether a job goes on.
fn live(world: &mut World, life: &[(Event, bool, usize, bool)]) {
    for (event, look, steps, job) in life {
        world.happen(*event);
        if *look {
            world.look();
        }
        for _ in 0..*steps {
            world.act();
        }
        if *job {
            world.job();
        }
    }
}

fn any_life(event: impl Strategy<Value = Event>) -> impl Strategy<Value = Vec<(Event, bool, usize, bool)>> {
    proptest::collection::vec((event, proptest::bool::weighted(0.7), 0usize..3, any::<bool>()), 0..90)
}

fn rest(world: &mut World) {
    assert!(world.settle_down(), "it never comes to rest: {:?}\n{world:#?}", plan(&world.view()));
    if world.environment.phase() == Phase::Lost {
        return;
    }
    assert_eq!(target(&world.view()), None, "{world:#?}");
    world.check();
}

proptest! {
    #![proptest_config(crate::property::cases(150))]

    #[test]
    fn an_environment_comes_to_where_it_is_to_be_whoever_changes_their_mind(
        has_volumes in any::<bool>(), rules in any_rules(), life in any_life(any_event()),
    ) {
        let mut world = World::new(has_volumes, &rules);
        live(&mut world, &life);
        rest(&mut world);
        prop_assert!(world.environment.phase() == Phase::Suspended);
    }

    #[test]
    fn an_accident_loses_an_environment_only_with_its_last_copy(
        has_volumes in any::<bool>(), rules in any_rules(), life in any_life(any_accident()),
    ) {
        let mut world = World::new(has_volumes, &rules);
        live(&mut world, &life);
        rest(&mut world);
    }

    #[test]
    fn what_has_come_to_rest_stays_so(
        has_volumes in any::<bool>(), rules in any_rules(), life in any_life(any_accident()),
    ) {
        let mut world = World::new(has_volumes, &rules);
        live(&mut world, &life);
        rest(&mut world);
        let before = world.environment.clone();
        for _ in 0..50 {
            world.pass();
            world.look();
            prop_assert_eq!(world.act(), None);
        }
        prop_assert_eq!(before, world.environment);
    }

    #[test]
    fn whatever_was_under_way_a_deleted_environment_leaves_nothing(
        has_volumes in any::<bool>(), rules in any_rules(), life in any_life(any_accident()),
    ) {
        let mut world = World::new(has_volumes, &rules);
        live(&mut world, &life);
        let is_done = (0..500).any(|_| world.surrender());
        prop_assert!(is_done, "{:#?}", world);
        world.check_nothing_is_left();
    }
}

#[test]
fn a_look_from_before_its_instance_goes_off_again_brings_no_job_there() {
    let mut world = World::new(false, &[]);
    let passes = |world: &mut World, times: usize| {
        for _ in 0..times {
            world.pass();
            world.look();
            world.act();
        }
    };
    world.happen(Event::Ask(Tier::Stopped));
    passes(&mut world, 4);
    assert_eq!(world.environment.tier(), Tier::Stopped);
    // A job calls it, its instance boots, and the job is canceled: the instance goes off again.
    world.happen(Event::Bind);
    world.act();
    world.pass();
    world.pass();
    world.look();
    world.happen(Event::Unbind);
    world.act();
    world.pass();
    // The next job comes before a look has shown it.
    world.happen(Event::Bind);
    world.act();
    world.act();
    world.job();
    assert_eq!(world.environment.phase(), Phase::Resuming);
    passes(&mut world, 6);
    world.job();
    assert_eq!(world.environment.phase(), Phase::InUse);
}

#[test]
fn the_slot_is_emptied_while_its_volume_is_made() {
    let mut world = World::new(true, &[]);
    let look = |world: &mut World| {
        world.pass();
        world.look();
        std::iter::from_fn(|| world.act()).take(20).collect::<Vec<Step>>()
    };
    world.happen(Event::Ask(Tier::Snapshotted));
    let is_snapshotted = |world: &mut World| world.environment.tier() == Tier::Snapshotted;
    assert!((0..40).any(|_| !look(&mut world).is_empty() && is_snapshotted(&mut world)), "{world:#?}");
    // The instance that comes for it has another volume in its slot.
    world.end_instances();
    world.happen(Event::Bind);
    let steps: Vec<Vec<Step>> = (0..40).map(|_| look(&mut world)).collect();
    assert_eq!(world.environment.tier(), Tier::Hot, "{world:#?}");
    let at = |is: fn(&Step) -> bool| steps.iter().position(|steps| steps.iter().any(is)).unwrap();
    let restored = at(|step| matches!(step, Step::Restore { .. }));
    let detached = at(|step| matches!(step, Step::Detach { .. }));
    let attached = at(|step| matches!(step, Step::Attach { .. }));
    let mounted = at(|step| matches!(step, Step::Mount { .. }));
    assert_eq!([detached, attached, mounted].map(|look| look - restored), [1, 2, 3], "{steps:#?}");
}
