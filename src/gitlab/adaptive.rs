//! How many requests for a job are open at the same time. Pure.
//!
//! The limit follows the answers: it grows while they bring jobs and shrinks while they do not, between one and what the
//! pool allows. So an idle pool keeps one request open, and one with a queue before it fills its slots in a few rounds.

/// Growth after a job, and shrinking after an answer without one or one that asks for less.
const JOB: f64 = 1.1;
const EMPTY: f64 = 0.95;
const PUSHED_BACK: f64 = 0.5;

/// The limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adaptive {
    limit: f64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { limit: 1.0 }
    }
}

/// What an answer says about the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It brought a job.
    Job,
    /// It brought none.
    Empty,
    /// The server asks for fewer requests, or cannot answer.
    PushedBack,
}

impl Adaptive {
    /// Takes an answer in, with the most that the pool allows.
    pub fn told(&mut self, told: Told, most: u32) {
        let factor = match told {
            Told::Job => JOB,
            Told::Empty => EMPTY,
            Told::PushedBack => PUSHED_BACK,
        };
        self.limit = (self.limit * factor).clamp(1.0, f64::from(most.max(1)));
    }

    /// How many requests may be open, of the most that the pool allows.
    pub fn limit(&self, most: u32) -> u32 {
        // A limit that has grown at all lets one more in: from one, a tenth would else need eight jobs to matter.
        (self.limit.ceil() as u32).clamp(1, most.max(1))
    }

    /// The limit as it is.
    pub fn exact(&self) -> f64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_grows_with_jobs_shrinks_without_and_halves_when_pushed_back() {
        let mut adaptive = Adaptive::default();
        assert_eq!(adaptive.limit(10), 1);
        for _ in 0..40 {
            adaptive.told(Told::Job, 10);
        }
        assert_eq!(adaptive.limit(10), 10);
        adaptive.told(Told::PushedBack, 10);
        assert_eq!(adaptive.limit(10), 5);
        adaptive.told(Told::Empty, 10);
        assert!((adaptive.exact() - 4.75).abs() < 1e-9);
        for _ in 0..100 {
            adaptive.told(Told::Empty, 10);
        }
        assert_eq!(adaptive.limit(10), 1);
        adaptive.told(Told::Job, 10);
        assert_eq!(adaptive.limit(10), 2, "the first job after a pause lets a second request in");
    }

    fn told() -> impl Strategy<Value = Told> {
        prop_oneof![Just(Told::Job), Just(Told::Empty), Just(Told::PushedBack)]
    }

    proptest! {
        #[test]
        fn it_is_never_below_one_nor_above_what_is_allowed(
            answers in proptest::collection::vec((told(), 0u32..200), 0..200),
        ) {
            let mut adaptive = Adaptive::default();
            for (answer, most) in answers {
                adaptive.told(answer, most);
                prop_assert!(adaptive.limit(most) >= 1);
                prop_assert!(adaptive.limit(most) <= most.max(1));
            }
        }
    }
}
