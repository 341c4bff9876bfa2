//! How long to wait before GitLab is asked again. Pure: chance is an argument.

use std::time::Duration;

/// The longest wait that is granted when GitLab asks for one. It gives a waiting job away after 120 s of silence and
/// ends a silent running one after half an hour, so a longer wait (a proxy may ask for a day) would cost the job; and
/// one request a minute and job is no load.
pub const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// The first and the longest wait where GitLab asks for none.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// The failures in a row, and what follows from them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Takes a failure in; answers how long to wait. `chance`, from 0 to 1, spreads what many jobs say at GitLab's
    /// return: up to half earlier where the wait is ours to choose, up to a quarter later where it was asked for.
    pub fn failed(&mut self, asked: Option<Duration>, chance: f64) -> Duration {
        let doublings = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        let chance = chance.clamp(0.0, 1.0);
        match asked {
            Some(asked) => asked.clamp(FIRST, LONGEST_ASKED).mul_f64(1.0 + chance / 4.0),
            None => FIRST.saturating_mul(1 << doublings).min(LONGEST).mul_f64(1.0 - chance / 2.0),
        }
    }

    /// Takes a success in.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Whether the last try failed.
    pub fn is_failing(self) -> bool {
        self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_is_never_zero_nor_longer_than_the_longest(
            failures in 0u32..100,
            asked in proptest::option::of(0u64..u64::MAX),
            chance in 0.0f64..=1.0,
        ) {
            let asked = asked.map(Duration::from_secs);
            let wait = Backoff { failures }.failed(asked, chance);
            prop_assert!(wait >= FIRST / 2);
            prop_assert!(wait <= LONGEST_ASKED.mul_f64(1.25));
            if let Some(asked) = asked {
                // What GitLab asks for is never undercut, but where it is too long.
                prop_assert!(wait >= asked.min(LONGEST_ASKED));
            }
        }

        #[test]
        fn waits_grow_with_failures_and_begin_anew_with_a_success(chance in 0.0f64..=1.0) {
            let mut backoff = Backoff::default();
            let waits: Vec<Duration> = (0..20).map(|_| backoff.failed(None, chance)).collect();
            prop_assert!(waits.is_sorted());
            prop_assert!(waits.last() <= Some(&LONGEST));
            backoff.succeeded();
            prop_assert_eq!(Some(&backoff.failed(None, chance)), waits.first());
        }
    }
}
