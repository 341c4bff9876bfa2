//! The tier an environment should have, by the pool's rules and by what is asked, and how long the way there may take.
//! Pure.

use jiff::{SignedDuration, Timestamp};

use super::View;
use crate::api::SuspendedEnvironment;
use crate::api::runner_pool::Demotion;
use crate::api::suspended_environment::Tier;

/// How long a move may take, how often it is tried, and how long it rests when it was given up. A move that is given up
/// lands in Suspended, at the tier that the world shows.
pub const DEADLINES: [Deadline; 4] = [
    // A cold start of an instance, or a volume that loads lazily.
    Deadline {
        to: Tier::Hot,
        within: SignedDuration::from_mins(15),
        tries: 3,
        rest: SignedDuration::from_mins(5),
    },
    // EC2 takes minutes to stop an instance now and then; after one deadline it is forced.
    Deadline {
        to: Tier::Stopped,
        within: SignedDuration::from_mins(10),
        tries: 3,
        rest: SignedDuration::from_mins(30),
    },
    Deadline {
        to: Tier::Detached,
        within: SignedDuration::from_mins(10),
        tries: 3,
        rest: SignedDuration::from_mins(30),
    },
    // A first snapshot of a large volume takes hours.
    Deadline {
        to: Tier::Snapshotted,
        within: SignedDuration::from_hours(6),
        tries: 3,
        rest: SignedDuration::from_hours(1),
    },
];

/// A row of [`DEADLINES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The tier moved to.
    pub to: Tier,
    /// How long one try may take.
    pub within: SignedDuration,
    /// How often it is tried.
    pub tries: u32,
    /// How long it is left alone after the last try.
    pub rest: SignedDuration,
}

/// The row of a tier.
pub fn deadline(to: Tier) -> Deadline {
    let [hot, stopped, detached, snapshotted] = DEADLINES;
    match to {
        Tier::Hot => hot,
        Tier::Stopped => stopped,
        Tier::Detached => detached,
        Tier::Snapshotted => snapshotted,
    }
}

/// What a pool lets its environments do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Steps by age.
    pub demotion: &'a [Demotion],
    /// Whether slots have volumes.
    pub has_volumes: bool,
}

/// The tier it should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The tier.
    pub tier: Tier,
    /// Why, in one CamelCase word.
    pub why: &'static str,
}

/// The tier an environment should have by rule and wish; `None` when it is well where it is.
pub fn target(view: &View<'_>) -> Option<Target> {
    let environment = view.environment;
    let tier = environment.tier();
    if view.is_bound {
        return (tier != Tier::Hot).then_some(Target { tier: Tier::Hot, why: "Resume" });
    }
    let coldest = if view.rules.has_volumes { Tier::Snapshotted } else { Tier::Stopped };
    let asked = environment.spec.desired_tier.as_ref().filter(|asked| asked.until.0 > view.now);
    let mut target = Target { tier, why: "Age" };
    if let Some(asked) = asked {
        // From a colder tier only Hot can be reached: a wish for one between is fulfilled already.
        let wished = asked.tier.min(coldest);
        let wished = if wished == Tier::Hot { wished } else { wished.max(tier) };
        target = Target { tier: wished, why: "Asked" };
    } else if let Some(slept_at) = slept_at(environment) {
        let due = view
            .rules
            .demotion
            .iter()
            .filter(|rule| slept_at.checked_add(span(rule.after)).is_ok_and(|at| at <= view.now));
        let due = due.map(|rule| Tier::from(rule.to)).max();
        target.tier = target.tier.max(due.unwrap_or(tier).min(coldest));
        if view.is_evicted && target.tier == Tier::Hot {
            let next = if view.rules.has_volumes { Tier::Detached } else { Tier::Stopped };
            target = Target { tier: next, why: "Quota" };
        }
    }
    // Its instance goes, whoever wishes what.
    if view.is_leaving && view.rules.has_volumes && target.tier < Tier::Detached {
        target = Target { tier: Tier::Detached, why: "InstanceLeaving" };
    }
    (target.tier != tier).then_some(target)
}

/// When rule or wish says another thing by time alone.
pub fn next_change(
    environment: &SuspendedEnvironment,
    rules: Rules<'_>,
    now: Timestamp,
) -> Option<Timestamp> {
    let by_age = slept_at(environment).into_iter().flat_map(|slept_at| {
        rules.demotion.iter().filter_map(move |rule| slept_at.checked_add(span(rule.after)).ok())
    });
    let by_wish = environment.spec.desired_tier.as_ref().map(|asked| asked.until.0);
    by_age.chain(by_wish).filter(|at| *at > now).min()
}

fn slept_at(environment: &SuspendedEnvironment) -> Option<Timestamp> {
    environment.status.as_ref().and_then(|status| status.suspended_at.as_ref()).map(|at| at.0)
}

fn span(duration: crate::api::duration::Duration) -> SignedDuration {
    SignedDuration::try_from(duration.std()).unwrap_or(SignedDuration::MAX)
}
