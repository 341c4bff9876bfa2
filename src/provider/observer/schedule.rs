//! When an account is looked at next. Pure: time and chance are arguments.

use std::time::{Duration, Instant};

/// However urgent it is, a look begins no sooner than so long after the one before. A job that waits for its environment
/// waits for one such time after each change of the cloud.
pub const SHORTEST: Duration = Duration::from_millis(500);

/// Half of the wait after one look that failed; it doubles with each.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

/// The longest wait after looks that failed.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// How much longer every wait is while the cloud asks for fewer calls.
const THROTTLED: u32 = 4;

/// How far a wait is spread either way, so that replicas and accounts do not look in step.
const SPREAD: f64 = 0.1;

/// How often a subscriber wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// While nothing is expected.
    pub update: Duration,
    /// While something is, such as an instance that starts.
    pub expecting: Duration,
}

/// What one subscriber wishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// How often it wants to see.
    pub intervals: Intervals,
    /// Until when it expects something.
    pub expecting_until: Option<Instant>,
    /// It wants a look that was begun at this time or later.
    pub begun_after: Option<Instant>,
}

impl Wish {
    /// A wish for regular looks, and for a first one at once.
    pub fn new(intervals: Intervals, now: Instant) -> Self {
        Self { intervals, expecting_until: None, begun_after: Some(now) }
    }

    /// When the next look shall begin, the last one having begun then.
    fn due(&self, last: Instant, now: Instant) -> Instant {
        if self.begun_after.is_some_and(|wanted| last < wanted) {
            return last + SHORTEST;
        }
        let Intervals { update, expecting } = self.intervals;
        match self.expecting_until {
            Some(until) if now < until => last + expecting.min(update),
            Some(_) | None => last + update,
        }
    }
}

/// How the last looks went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Course {
    /// When the last one began.
    pub last: Option<Instant>,
    /// How many have failed since one did not.
    pub failures: u32,
    /// Whether the cloud asks for fewer calls.
    pub is_throttled: bool,
}

/// When to look next; `None` when nobody wants to see. `chance` is from 0 to 1.
pub fn next<'a>(
    wishes: impl IntoIterator<Item = &'a Wish>,
    course: Course,
    chance: f64,
    now: Instant,
) -> Option<Instant> {
    let mut wishes = wishes.into_iter().peekable();
    wishes.peek()?;
    // Nobody has seen anything yet: there is nothing to spread, and the cloud has not been asked.
    let Some(last) = course.last else { return Some(now) };
    let wished = wishes.map(|wish| wish.due(last, now)).min()?;
    let mut wait = wished.saturating_duration_since(last).max(SHORTEST);
    if course.failures > 0 {
        // A look that failed has shown nothing: it is made up for, sooner than the next would be, or later.
        let doublings = course.failures.min(16);
        wait = FIRST_BACKOFF.saturating_mul(1 << doublings).min(LONGEST_BACKOFF);
    }
    if course.is_throttled {
        wait = wait.saturating_mul(THROTTLED);
    }
    let spread = 1.0 + SPREAD * (2.0 * chance.clamp(0.0, 1.0) - 1.0);
    Some(last + wait.mul_f64(spread).max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(update: u64, expecting: u64, now: Instant) -> Wish {
        let intervals =
            Intervals { update: Duration::from_secs(update), expecting: Duration::from_secs(expecting) };
        Wish { begun_after: None, ..Wish::new(intervals, now) }
    }

    fn after(last: Instant) -> Course {
        Course { last: Some(last), ..Course::default() }
    }

    #[test]
    fn nobody_who_wants_to_see_is_no_look_and_the_first_is_at_once() {
        let now = Instant::now();
        assert_eq!(next([], Course::default(), 0.5, now), None);
        assert_eq!(next(&[wish(60, 2, now)], Course::default(), 0.5, now), Some(now));
    }

    #[test]
    fn the_most_eager_wish_wins_and_only_while_it_lasts() {
        let now = Instant::now();
        let mut wishes = vec![wish(60, 5, now), wish(120, 2, now)];
        let in_seconds = |wishes: &[Wish], now| {
            next(wishes, after(now), 0.5, now).map(|at| (at - now).as_secs_f64().round() as u64)
        };
        assert_eq!(in_seconds(&wishes, now), Some(60));
        wishes[1].expecting_until = Some(now + Duration::from_secs(30));
        assert_eq!(in_seconds(&wishes, now), Some(2));
        assert_eq!(in_seconds(&wishes, now + Duration::from_secs(30)), Some(60));
    }

    #[test]
    fn a_look_that_was_begun_before_the_wish_does_not_fulfil_it() {
        let begin = Instant::now();
        let now = begin + Duration::from_millis(300);
        let mut wanted = wish(60, 2, begin);
        wanted.begun_after = Some(now);
        assert_eq!(next(&[wanted.clone()], after(begin), 0.5, now), Some(begin + SHORTEST));
        let later = next(&[wanted], after(now), 0.5, now).unwrap();
        assert!(later >= now + Duration::from_secs(54));
    }

    #[test]
    fn failures_and_throttling_make_it_rarer_and_success_makes_it_frequent_again() {
        let now = Instant::now();
        let mut eager = wish(60, 1, now);
        eager.expecting_until = Some(now + Duration::from_secs(600));
        let wait = |failures, is_throttled| {
            let course = Course { last: Some(now), failures, is_throttled };
            (next(&[eager.clone()], course, 0.5, now).unwrap() - now).as_secs()
        };
        let waits: Vec<u64> = (0..8).map(|failures| wait(failures, false)).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!((wait(0, true), wait(3, true)), (4, 32));
        let idle = Course { failures: 1, ..after(now) };
        assert_eq!(next(&[wish(3600, 2, now)], idle, 0.5, now), Some(now + Duration::from_secs(2)));
    }

    proptest! {
        #[test]
        fn a_look_comes_and_never_sooner_than_the_shortest_time_after_another(
            intervals in proptest::collection::vec((0u64..600, 0u64..600, any::<bool>(), any::<bool>()), 1..20),
            failures in 0u32..100,
            is_throttled: bool,
            chance in 0.0f64..=1.0,
            since in 0u64..1_000,
        ) {
            let last = Instant::now();
            let now = last + Duration::from_secs(since);
            let wishes: Vec<Wish> = intervals.iter().map(|(update, expecting, expects, asks)| Wish {
                expecting_until: expects.then(|| now + Duration::from_secs(9)),
                begun_after: asks.then_some(now),
                ..wish(*update, *expecting, now)
            }).collect();
            let at = next(&wishes, Course { last: Some(last), failures, is_throttled }, chance, now).unwrap();
            prop_assert!(at >= last + SHORTEST);
            let longest = Duration::from_secs(600).max(LONGEST_BACKOFF) * THROTTLED;
            prop_assert!(at <= last + longest.mul_f64(1.0 + SPREAD));
        }

        #[test]
        fn one_more_who_wants_to_see_never_makes_it_later(
            intervals in proptest::collection::vec((1u64..600, 1u64..600, any::<bool>()), 2..20),
            chance in 0.0f64..=1.0,
        ) {
            let now = Instant::now();
            let wishes: Vec<Wish> = intervals.iter().map(|(update, expecting, expects)| Wish {
                expecting_until: expects.then(|| now + Duration::from_secs(9)),
                ..wish(*update, *expecting, now)
            }).collect();
            let (_, fewer) = wishes.split_first().unwrap();
            prop_assert!(next(&wishes, after(now), chance, now) <= next(fewer, after(now), chance, now));
        }
    }
}
