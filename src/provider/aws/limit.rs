//! How often AWS is called: a bucket of tokens for each family of calls. Pure: the time is an argument.
//!
//! AWS counts the calls of the whole account, also those of strangers, and refuses what is beyond. These limits stay
//! below its own, and become smaller for a while each time it says that they were not.

use std::time::{Duration, Instant};

use super::action::Family;

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Calls that may be made at once after a rest.
    pub burst: f64,
    /// Calls a second in the long run.
    pub per_second: f64,
}

/// The limit of each family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Calls that show.
    pub read: Rate,
    /// Calls that change.
    pub mutate: Rate,
    /// Calls that need capacity.
    pub launch: Rate,
}

impl Default for Limits {
    /// Below what AWS grants an account that never asked for more.
    fn default() -> Self {
        Self {
            read: Rate { burst: 80.0, per_second: 15.0 },
            mutate: Rate { burst: 40.0, per_second: 4.0 },
            launch: Rate { burst: 5.0, per_second: 1.5 },
        }
    }
}

impl Limits {
    /// The limit of a family.
    pub fn of(&self, family: Family) -> Rate {
        match family {
            Family::Read => self.read,
            Family::Mutate => self.mutate,
            Family::Launch => self.launch,
        }
    }
}

/// How long a slower pace lasts after AWS asked for it last.
const SLOW_FOR: Duration = Duration::from_secs(60);

/// How often the rate is halved at most.
const MOST_HALVINGS: i32 = 4;

/// The longest wait for a token. What would have to wait longer is better told so, and decided anew.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Tokens of one family.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    rate: Rate,
    tokens: f64,
    /// Up to when tokens are counted. In the future where calls wait: each of them has taken the time of its token.
    counted_to: Instant,
    halvings: i32,
    slow_until: Option<Instant>,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, counted_to: now, halvings: 0, slow_until: None }
    }

    /// Takes a token; answers how long to wait before it may be used, or that there are too many before it. The first
    /// to ask is the first to go.
    pub fn take(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Some(Duration::ZERO);
        }
        let missing = Duration::try_from_secs_f64((1.0 - self.tokens) / self.per_second()).ok()?;
        let at = self.counted_to.checked_add(missing)?;
        let wait = at.saturating_duration_since(now);
        if wait > LONGEST_WAIT {
            return None;
        }
        self.tokens = 0.0;
        self.counted_to = at;
        Some(wait)
    }

    /// AWS asked for fewer calls.
    pub fn throttled(&mut self, now: Instant) {
        self.fill(now);
        self.tokens = 0.0;
        self.halvings = (self.halvings + 1).min(MOST_HALVINGS);
        self.slow_until = Some(now + SLOW_FOR);
    }

    /// Whether AWS asked for fewer calls of late.
    pub fn is_slow(&self, now: Instant) -> bool {
        self.slow_until.is_some_and(|until| now < until)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted_to).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second()).min(self.rate.burst);
        self.counted_to = self.counted_to.max(now);
        if let Some(until) = self.slow_until
            && until <= now
        {
            // One step back at a time: full speed at once would be refused again.
            self.halvings -= 1;
            self.slow_until = (self.halvings > 0).then(|| now + SLOW_FOR);
        }
    }

    fn per_second(&self) -> f64 {
        self.rate.per_second / 2f64.powi(self.halvings)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { burst: 5.0, per_second: 2.0 };

    /// Asks as fast as it may for so long; answers how many calls were made.
    fn calls(bucket: &mut Bucket, begin: Instant, time: Duration) -> usize {
        let (mut now, mut count) = (begin, 0);
        while now < begin + time {
            now += bucket.take(now).unwrap();
            count += 1;
        }
        count
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(RATE, now);
        let waits: Vec<u128> = (0..8).map(|_| bucket.take(now).unwrap().as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 500, 1000, 1500]);
    }

    #[test]
    fn what_would_wait_too_long_is_refused_and_takes_no_token() {
        let now = Instant::now();
        let mut bucket = Bucket::new(RATE, now);
        let granted = std::iter::from_fn(|| bucket.take(now)).count();
        assert_eq!(granted, 45, "a burst of 5 and 20 s at 2 a second");
        assert_eq!(bucket.take(now), None);
        assert!(bucket.take(now + Duration::from_secs(1)).is_some());
    }

    #[test]
    fn a_throttled_bucket_is_slower_and_recovers_step_by_step() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(RATE, begin);
        bucket.throttled(begin);
        bucket.throttled(begin);
        assert!(bucket.is_slow(begin));
        let slow = calls(&mut bucket, begin, Duration::from_secs(50));
        assert!((20..=30).contains(&slow), "a quarter of 2 a second: {slow}");
        let later = begin + Duration::from_secs(61);
        let middle = calls(&mut bucket, later, Duration::from_secs(50));
        assert!((45..=62).contains(&middle), "half of it: {middle}");
        let last = later + Duration::from_secs(70);
        bucket.take(last).unwrap();
        assert!(!bucket.is_slow(last));
        assert!(calls(&mut bucket, last, Duration::from_secs(50)) >= 100);
    }

    proptest! {
        #[test]
        fn no_second_sees_more_than_a_burst_and_the_rate(
            gaps in proptest::collection::vec((0u64..2_000, prop::bool::weighted(0.1)), 1..200),
        ) {
            let begin = Instant::now();
            let mut bucket = Bucket::new(RATE, begin);
            let mut now = begin;
            let mut went: Vec<Instant> = Vec::new();
            for (gap, throttles) in gaps {
                now += Duration::from_millis(gap);
                if throttles {
                    bucket.throttled(now);
                }
                if let Some(wait) = bucket.take(now) {
                    prop_assert!(wait <= LONGEST_WAIT);
                    // The order in which they asked is the order in which they go.
                    prop_assert!(went.last().is_none_or(|last| *last <= now + wait));
                    went.push(now + wait);
                }
            }
            for (index, first) in went.iter().enumerate() {
                let within = went[index..].iter().take_while(|at| **at < *first + Duration::from_secs(1)).count();
                prop_assert!(within <= 5 + 2 + 1, "{within} calls in a second");
            }
        }
    }
}
