//! Scaling policies by the clock: how many slots are kept idle now, and when that changes. Pure.
//!
//! A period is a cron expression that is read as the minutes in which it holds, in the policy's time zone. Minutes that the
//! clock skips in spring hold nothing; minutes that it repeats in autumn hold twice.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::api::runner_pool::ScalingPolicy;

/// How long an idle instance stays while no policy holds.
pub const DEFAULT_IDLE_TIME: Duration = Duration::from_secs(5 * 60);

/// How far ahead a change is looked for.
const LOOK_AHEAD_MINUTES: u64 = 8 * 24 * 60;

/// How many times an expression may be compared with a minute in one search. Pools with many periods look less far ahead.
const MOST_COMPARISONS: u64 = 50_000;

/// Why a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A period is no cron expression.
    #[error(
        "spec.policies[{policy}].periods[{period}] is {value:?}: {why}; give five fields, minute hour day-of-month month \
         day-of-week, such as \"* 8-17 * * mon-fri\""
    )]
    Period {
        /// Which policy.
        policy: usize,
        /// Which of its periods.
        period: usize,
        /// What it says.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A time zone is not known.
    #[error(
        "spec.policies[{policy}].timezone is {value:?}, which is not known; give a name such as \"Europe/Berlin\", or \"UTC\""
    )]
    TimeZone {
        /// Which policy.
        policy: usize,
        /// What it says.
        value: String,
    },
}

/// What holds now.
#[derive(Debug, Clone, PartialEq)]
pub struct Active {
    /// Which policy; `None` where none holds.
    pub index: Option<usize>,
    /// Slots to keep idle.
    pub idle_count: u32,
    /// How long an instance may be without work before it goes.
    pub idle_time: Duration,
    /// Slots to keep idle for each slot in use.
    pub scale_factor: f64,
    /// Most slots to keep idle by the factor; 0 is no limit.
    pub scale_factor_limit: u32,
    /// Whether jobs are only asked for while a slot is idle.
    pub preemptive: bool,
}

impl Default for Active {
    fn default() -> Self {
        Self {
            index: None,
            idle_count: 0,
            idle_time: DEFAULT_IDLE_TIME,
            scale_factor: 0.0,
            scale_factor_limit: 0,
            preemptive: false,
        }
    }
}

impl Active {
    /// How many slots are to be idle while so many are in use.
    pub fn idle_target(&self, in_use: u32) -> u32 {
        // A factor of 0.1 is a little more than a tenth: ten slots in use shall mean one idle, not two.
        let scaled = (f64::from(in_use) * self.scale_factor.max(0.0) - 1e-9).ceil().max(0.0);
        // A float that is too large becomes the largest number.
        let scaled = scaled as u32;
        let limit = if self.scale_factor_limit == 0 { u32::MAX } else { self.scale_factor_limit };
        self.idle_count.max(scaled.min(limit))
    }
}

/// The policies of a pool, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    policies: Vec<Policy>,
}

#[derive(Debug, Clone)]
struct Policy {
    periods: Vec<Cron>,
    /// Whether one of the periods holds at all times.
    is_always: bool,
    zone: TimeZone,
    active: Active,
}

impl Policies {
    /// Reads the policies of a pool's spec.
    pub fn compile(policies: &[ScalingPolicy]) -> Result<Self, PolicyError> {
        let compile = |(index, policy)| Policy::compile(index, policy);
        Ok(Self { policies: policies.iter().enumerate().map(compile).collect::<Result<_, _>>()? })
    }

    /// What holds at a time: the last policy that matches, or nothing idle and 5 minutes.
    pub fn at(&self, now: Timestamp) -> Active {
        self.ruling(now).map(|policy| policy.active.clone()).unwrap_or_default()
    }

    /// When another policy begins to hold than at a time; `None` if that is not within about a week, or if it would cost
    /// too much to find out. It is a hint for when to look again, and no promise.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        // What comes before a policy that always holds never rules.
        let first = self.policies.iter().rposition(|policy| policy.is_always).unwrap_or(0);
        let changing = self.policies.get(first..)?.iter().filter(|policy| !policy.is_always);
        let comparisons: usize = changing.map(|policy| policy.periods.len()).sum();
        if comparisons == 0 {
            return None;
        }
        let minutes = LOOK_AHEAD_MINUTES.min(MOST_COMPARISONS / (comparisons as u64).max(1));
        let ruling = self.index_at(now);
        let this_minute = now.as_second().div_euclid(60);
        (1..=i64::try_from(minutes).ok()?)
            .filter_map(|ahead| Timestamp::from_second((this_minute + ahead) * 60).ok())
            .find(|time| self.index_at(*time) != ruling)
    }

    fn index_at(&self, now: Timestamp) -> Option<usize> {
        self.ruling(now).and_then(|policy| policy.active.index)
    }

    fn ruling(&self, now: Timestamp) -> Option<&Policy> {
        self.policies.iter().rev().find(|policy| policy.holds(now))
    }
}

impl Policy {
    fn compile(index: usize, policy: &ScalingPolicy) -> Result<Self, PolicyError> {
        // UTC needs no list of time zones, which an image need not have.
        let zone = match policy.timezone.as_str() {
            "UTC" => TimeZone::UTC,
            name => TimeZone::get(name)
                .map_err(|_| PolicyError::TimeZone { policy: index, value: policy.timezone.clone() })?,
        };
        let period = |(number, text): (usize, &String)| {
            parse(text).map_err(|why| PolicyError::Period {
                policy: index,
                period: number,
                value: text.clone(),
                why,
            })
        };
        Ok(Self {
            periods: policy.periods.iter().enumerate().map(period).collect::<Result<_, _>>()?,
            is_always: policy.periods.iter().any(|text| text.split_whitespace().all(|field| field == "*")),
            zone,
            active: Active {
                index: Some(index),
                idle_count: policy.idle_count,
                idle_time: policy.idle_time.std(),
                scale_factor: policy.scale_factor,
                scale_factor_limit: policy.scale_factor_limit,
                preemptive: policy.preemptive_mode.unwrap_or(policy.idle_count > 0),
            },
        })
    }

    fn holds(&self, now: Timestamp) -> bool {
        if self.is_always {
            return true;
        }
        let local = self.zone.to_datetime(now);
        // The seconds are cut off on the wall clock there: expressions without seconds hold at second 0.
        let into_minute = SignedDuration::new(i64::from(local.second()), local.subsec_nanosecond());
        let Ok(minute) = local.checked_sub(into_minute) else { return false };
        self.periods.iter().any(|period| period.is_time_matching(&minute).unwrap_or(false))
    }
}

fn parse(text: &str) -> Result<Cron, String> {
    let fields = text.split_whitespace().count();
    if fields != 5 {
        return Err(format!("it has {fields} fields"));
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::duration::Duration as ApiDuration;

    fn policy(periods: &[&str], timezone: &str, idle_count: u32) -> ScalingPolicy {
        ScalingPolicy {
            periods: periods.iter().map(|text| (*text).to_owned()).collect(),
            timezone: timezone.into(),
            idle_count,
            idle_time: ApiDuration::from_seconds(60),
            scale_factor: 0.0,
            scale_factor_limit: 0,
            preemptive_mode: None,
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn idle(policies: &Policies, time: &str) -> u32 {
        policies.at(at(time)).idle_count
    }

    #[test]
    fn with_no_policy_nothing_is_kept_idle() {
        let policies = Policies::compile(&[]).unwrap();
        let active = policies.at(at("2025-03-03T10:00:00Z"));
        assert_eq!(active, Active::default());
        assert_eq!((active.index, active.idle_time), (None, Duration::from_secs(300)));
        assert_eq!(policies.next_change(at("2025-03-03T10:00:00Z")), None);
    }

    #[test]
    fn the_last_policy_that_matches_rules() {
        let policies = Policies::compile(&[
            policy(&["* * * * *"], "UTC", 1),
            policy(&["* 8-17 * * mon-fri"], "UTC", 5),
            policy(&["* 12 * * *", "* 13 * * *"], "UTC", 2),
        ])
        .unwrap();
        assert_eq!(idle(&policies, "2025-03-03T07:59:59.999Z"), 1);
        assert_eq!(idle(&policies, "2025-03-03T08:00:00Z"), 5);
        assert_eq!(idle(&policies, "2025-03-03T08:00:31Z"), 5, "a period holds for the whole of its minutes");
        assert_eq!(idle(&policies, "2025-03-03T13:30:00Z"), 2);
        assert_eq!(idle(&policies, "2025-03-03T17:59:59Z"), 5);
        assert_eq!(idle(&policies, "2025-03-03T18:00:00Z"), 1);
        assert_eq!(idle(&policies, "2025-03-08T10:00:00Z"), 1, "a Saturday");
        assert_eq!(policies.at(at("2025-03-03T13:30:00Z")).index, Some(2));
    }

    #[test]
    fn the_next_change_is_found_to_the_minute() {
        let policies = Policies::compile(&[policy(&["* 8-17 * * mon-fri"], "UTC", 5)]).unwrap();
        let change = |time: &str| policies.next_change(at(time)).map(|time| time.to_string());
        assert_eq!(change("2025-03-03T07:12:30Z").unwrap(), "2025-03-03T08:00:00Z");
        assert_eq!(change("2025-03-03T08:00:00Z").unwrap(), "2025-03-03T18:00:00Z");
        assert_eq!(change("2025-03-07T18:00:00Z").unwrap(), "2025-03-10T08:00:00Z", "over the weekend");
        let rare = Policies::compile(&[policy(&["* * 1 1 *"], "UTC", 5)]).unwrap();
        assert_eq!(rare.next_change(at("2025-03-03T00:00:00Z")), None, "too far ahead");
        let hidden = [policy(&["* 8 * * *"], "UTC", 5), policy(&["* * * * *"], "UTC", 1)];
        assert_eq!(Policies::compile(&hidden).unwrap().next_change(at("2025-03-03T00:00:00Z")), None);
    }

    #[test]
    fn in_spring_the_hour_that_is_skipped_never_holds() {
        // In Berlin 02:00 becomes 03:00 at 01:00 UTC on 30 March 2025.
        let policies = Policies::compile(&[policy(&["* 2 * * *"], "Europe/Berlin", 1)]).unwrap();
        assert_eq!(idle(&policies, "2025-03-29T01:30:00Z"), 1, "the day before");
        for minute in 0..180 {
            let time = at("2025-03-30T00:00:00Z") + SignedDuration::from_mins(minute);
            assert_eq!(policies.at(time).index, None, "{time}");
        }
        let working = Policies::compile(&[policy(&["* 8-17 * * *"], "Europe/Berlin", 1)]).unwrap();
        assert_eq!(idle(&working, "2025-03-29T07:00:00Z"), 1, "eight o'clock in winter");
        assert_eq!(idle(&working, "2025-03-30T06:00:00Z"), 1, "eight o'clock in summer");
        assert_eq!(idle(&working, "2025-03-29T06:59:00Z"), 0);
        let change = working.next_change(at("2025-03-29T17:00:00Z")).unwrap();
        assert_eq!(change, at("2025-03-30T06:00:00Z"));
    }

    #[test]
    fn in_autumn_the_hour_that_is_repeated_holds_twice() {
        // In Berlin 03:00 becomes 02:00 at 01:00 UTC on 26 October 2025.
        let policies = Policies::compile(&[policy(&["* 2 * * *"], "Europe/Berlin", 1)]).unwrap();
        let held = (0..240)
            .map(|minute| at("2025-10-25T23:00:00Z") + SignedDuration::from_mins(minute))
            .filter(|time| policies.at(*time).index.is_some())
            .count();
        assert_eq!(held, 120);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_a_way_out() {
        let unread = |policies: &[ScalingPolicy]| Policies::compile(policies).unwrap_err().to_string();
        let good = policy(&["* * * * *"], "UTC", 0);
        for bad in ["* * * *", "0 * * * * *", "@hourly", "* 25 * * *", "* * * * mon-", "", "x x x x x"] {
            let error = unread(&[good.clone(), policy(&["* 8 * * *", bad], "UTC", 0)]);
            assert!(error.starts_with(&format!("spec.policies[1].periods[1] is {bad:?}")), "{error}");
            assert!(error.contains("five fields"), "{error}");
        }
        let error = unread(&[policy(&["* * * * *"], "Europe/Atlantis", 0)]);
        assert!(error.starts_with("spec.policies[0].timezone is \"Europe/Atlantis\""), "{error}");
    }

    #[test]
    fn the_factor_adds_to_the_idle_slots_up_to_its_limit() {
        let active = |idle_count, scale_factor, scale_factor_limit| Active {
            idle_count,
            scale_factor,
            scale_factor_limit,
            ..Active::default()
        };
        assert_eq!(active(2, 0.5, 0).idle_target(3), 2);
        assert_eq!(active(2, 0.5, 0).idle_target(7), 4);
        assert_eq!(active(0, 0.1, 0).idle_target(10), 1);
        assert_eq!(active(0, 0.1, 0).idle_target(30), 3, "although 30 x 0.1 is above 3 in floats");
        assert_eq!(active(2, 2.0, 5).idle_target(100), 5);
        assert_eq!(active(9, 2.0, 5).idle_target(100), 9, "the limit is the factor's, not the count's");
        assert_eq!(active(0, f64::MAX, 0).idle_target(u32::MAX), u32::MAX);
        assert_eq!(active(1, f64::NAN, 0).idle_target(7), 1);
    }

    #[test]
    fn preemptive_mode_follows_the_idle_count_unless_it_is_given() {
        let given = ScalingPolicy { preemptive_mode: Some(false), ..policy(&["* * * * *"], "UTC", 3) };
        let active = |policy: ScalingPolicy| Policies::compile(&[policy]).unwrap().at(Timestamp::UNIX_EPOCH);
        assert!(active(policy(&["* * * * *"], "UTC", 3)).preemptive);
        assert!(!active(policy(&["* * * * *"], "UTC", 0)).preemptive);
        assert!(!active(given).preemptive);
    }

    proptest! {
        #![proptest_config(crate::property::cases(64))]
        #[test]
        fn between_now_and_the_next_change_the_same_policy_holds(
            start in 1_735_689_600i64..1_767_225_600, from in 0u32..24, to in 0u32..24, zone in 0usize..4,
        ) {
            let zone = ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"][zone];
            let hours = format!("* {}-{} * * mon-fri", from.min(to), from.max(to));
            let policies = Policies::compile(&[
                policy(&["* * * * *"], "UTC", 0), policy(&[&hours], zone, 3), policy(&["*/20 * * * sat"], zone, 9),
            ]).unwrap();
            let now = Timestamp::from_second(start).unwrap();
            let ruling = policies.at(now);
            let change = policies.next_change(now);
            let until = change.unwrap_or(now + SignedDuration::from_hours(4));
            prop_assert!(change.is_none_or(|change| change > now && policies.at(change).index != ruling.index));
            let mut time = now;
            while time < until {
                prop_assert_eq!(policies.at(time).index, ruling.index);
                time += SignedDuration::from_secs(240);
            }
        }
    }
}
