//! What is said to GitLab next about a job: log, a sign of life, or nothing yet. Pure: the time is an argument.
//!
//! One thing is said at a time; the next is decided when GitLab has answered, or has not.

use std::time::{Duration, Instant};

use super::backoff::Backoff;

/// How often a waiting or silent job is kept alive; GitLab gives a waiting one 120 s.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// When a job that waits is first spoken of. One that has its slot sooner is never said to wait.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// The interval between log updates until the server names one.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(3);

/// The least time between two log updates, whatever the server says: each costs it a request.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

/// What to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// The next bytes of the log.
    Log,
    /// That the job is alive.
    SignOfLife,
    /// Nothing until then.
    Nothing {
        /// When to ask again.
        until: Instant,
    },
}

/// How much there is to send of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Nothing.
    Empty,
    /// Some bytes; more will follow.
    Waiting,
    /// As much as is held here, or the end of the log: nothing is gained by waiting.
    Pressing,
}

/// When what is said about one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    interval: Duration,
    backoff: Backoff,
    /// When log bytes were first and last sent.
    sent: Option<(Instant, Instant)>,
    /// When a sign of life is due.
    alive_at: Instant,
    /// GitLab wants to hear nothing before that.
    quiet_until: Option<Instant>,
    /// A sign of life is due now: GitLab has to say whether it knows the job.
    asks: bool,
}

impl Pace {
    /// The pace of a job of which nothing was said.
    pub fn new(now: Instant) -> Self {
        Self {
            interval: DEFAULT_INTERVAL,
            backoff: Backoff::default(),
            sent: None,
            alive_at: now + FIRST_WORD,
            quiet_until: None,
            asks: false,
        }
    }

    /// What to say now.
    pub fn next(&self, log: Log, now: Instant) -> Say {
        if let Some(until) = self.quiet_until.filter(|until| now < *until) {
            return Say::Nothing { until };
        }
        if self.asks {
            return Say::SignOfLife;
        }
        let log_at = match log {
            Log::Empty => None,
            Log::Waiting => Some(self.sent.map_or(now, |(first, last)| self.next_update_at(first, last))),
            Log::Pressing => Some(now),
        };
        match log_at {
            Some(at) if at <= now => Say::Log,
            _ if self.alive_at <= now => Say::SignOfLife,
            Some(at) => Say::Nothing { until: at.min(self.alive_at) },
            None => Say::Nothing { until: self.alive_at },
        }
    }

    /// The log is sent at the server's interval, but while the job is young no later than as long as the log has
    /// been sent for. The runner's own first lines would else keep the script's back for a whole interval.
    fn next_update_at(&self, first: Instant, last: Instant) -> Instant {
        last + (last - first).max(SHORTEST_INTERVAL).min(self.interval)
    }

    /// Bytes of the log are being sent.
    pub fn sends_log(&mut self, now: Instant) {
        self.sent = Some((self.sent.map_or(now, |(first, _)| first), now));
    }

    /// GitLab answered what was said at a time, and may have named an interval.
    pub fn answered(&mut self, said_at: Instant, interval: Option<Duration>) {
        self.interval = interval.unwrap_or(self.interval);
        self.alive_at = said_at + KEEP_ALIVE;
        self.quiet_until = None;
        // An answer to a question says nothing about the failure that led to it.
        if !std::mem::take(&mut self.asks) {
            self.backoff.succeeded();
        }
    }

    /// GitLab did not answer, or asks to be left alone; what was said is due again after the wait.
    pub fn unanswered(&mut self, asked: Option<Duration>, chance: f64, now: Instant) {
        self.quiet_until = Some(now + self.backoff.failed(asked, chance));
    }

    /// GitLab does not find the log: whether it knows the job has to be asked, after a wait.
    pub fn log_not_found(&mut self, chance: f64, now: Instant) {
        self.unanswered(None, chance, now);
        self.asks = true;
    }

    /// A sign of life is due now.
    pub fn ask(&mut self) {
        self.asks = true;
    }

    /// Whether what was said last has to be said again.
    pub fn is_failing(&self) -> bool {
        self.backoff.is_failing()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gitlab::backoff::LONGEST_ASKED;

    /// What may come of something said.
    #[derive(Debug, Clone, Copy)]
    enum Outcome {
        Answered(Option<u64>),
        Unanswered(Option<u64>),
        NotFound,
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            4 => proptest::option::of(1u64..60).prop_map(Outcome::Answered),
            2 => proptest::option::of(0u64..100_000).prop_map(Outcome::Unanswered),
            1 => Just(Outcome::NotFound),
        ]
    }

    fn log() -> impl Strategy<Value = Log> {
        prop_oneof![Just(Log::Empty), Just(Log::Waiting), Just(Log::Pressing)]
    }

    proptest! {
        #[test]
        fn a_job_is_spoken_of_again_and_again_and_never_before_gitlab_wants_to_hear(
            steps in proptest::collection::vec((log(), outcome(), 0u64..70_000), 1..60),
            chance in 0.0f64..=1.0,
        ) {
            let mut now = Instant::now();
            let mut pace = Pace::new(now);
            let mut quiet_until = now;
            for (log, outcome, took) in steps {
                let mut waited = Duration::ZERO;
                let said = loop {
                    match pace.next(log, now) {
                        Say::Nothing { until } => {
                            // It says when to look again, and that is in the future: no busy loop, no standstill.
                            prop_assert!(until > now);
                            waited += until - now;
                            now = until;
                        }
                        said => break said,
                    }
                };
                prop_assert!(now >= quiet_until);
                let longest = KEEP_ALIVE.max(LONGEST_ASKED.mul_f64(1.25));
                prop_assert!(waited <= longest, "silent for {waited:?}");
                prop_assert!(said != Say::Log || log != Log::Empty);
                let said_at = now;
                if said == Say::Log {
                    pace.sends_log(now);
                }
                now += Duration::from_millis(took);
                match outcome {
                    Outcome::Answered(interval) => {
                        pace.answered(said_at, interval.map(Duration::from_secs));
                    }
                    Outcome::Unanswered(asked) => {
                        let asked = asked.map(Duration::from_secs);
                        pace.unanswered(asked, chance, now);
                        quiet_until = now + asked.unwrap_or_default().min(LONGEST_ASKED);
                    }
                    Outcome::NotFound => {
                        pace.log_not_found(chance, now);
                        let until = match pace.next(Log::Pressing, now) {
                            Say::Nothing { until } => until,
                            said => panic!("{said:?} at once"),
                        };
                        prop_assert_eq!(pace.next(Log::Pressing, until), Say::SignOfLife);
                    }
                }
            }
        }

        #[test]
        fn log_is_sent_at_the_servers_interval_but_its_end_at_once(seconds in 1u64..60) {
            let begin = Instant::now();
            let mut pace = Pace::new(begin);
            prop_assert_eq!(pace.next(Log::Waiting, begin), Say::Log);
            pace.sends_log(begin);
            pace.answered(begin, Some(Duration::from_secs(seconds)));
            let later = begin + Duration::from_secs(60);
            pace.sends_log(later);
            pace.answered(later, None);
            let until = later + Duration::from_secs(seconds).min(KEEP_ALIVE);
            prop_assert_eq!(pace.next(Log::Waiting, later), Say::Nothing { until });
            prop_assert_eq!(pace.next(Log::Pressing, later), Say::Log);
        }
    }

    #[test]
    fn a_log_that_is_never_found_is_offered_less_and_less_often() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert_eq!(pace.next(Log::Waiting, now), Say::Log);
            pace.sends_log(now);
            pace.log_not_found(0.0, now);
            let Say::Nothing { until } = pace.next(Log::Waiting, now) else { panic!("no wait") };
            waits.push(until - now);
            now = until;
            pace.answered(now, None);
            now += Duration::from_secs(5);
        }
        assert!(waits.is_sorted() && waits.last() > waits.first(), "{waits:?}");
    }
}
