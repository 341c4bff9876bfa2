//! Which turns of a pool's conditions people are told of by an Event. Pure.
//!
//! A condition says how things are now, an Event that they turned, for whoever was not looking. Each turn is told once: what
//! the object said before this holder came was told by whoever wrote it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::condition::{CLOUD_READY, GROUP_SUITABLE, HOST_KEYS_TRUSTED, SCALING};

/// The conditions whose turns are told.
const TOLD: [&str; 4] = [CLOUD_READY, GROUP_SUITABLE, SCALING, HOST_KEYS_TRUSTED];

/// How long something is well again, or not known, before that is told: one look that fails is no news, and a holder that
/// has just come knows of nothing bad yet.
const CALM: SignedDuration = SignedDuration::from_secs(10);

/// Reasons that are no news.
const SILENT: [&str; 7] = [
    // Nobody has looked yet.
    "NotSeen",
    "NotPlanned",
    // What is missing may come, or not: that is told.
    "WaitingForInstances",
    // Limits of the pool's own spec, which a busy pool comes to again and again.
    "AtMaxInstances",
    "Throttled",
    // The fleet tells them itself, of each instance.
    "InstanceNotReady",
    "InstanceUnreachable",
];

/// Status and reason that were last told of each condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<String, (String, String)>);

/// A turn to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The condition.
    pub type_: String,
    /// Its reason.
    pub reason: String,
    /// Whether it is bad news.
    pub is_bad: bool,
    /// What it says.
    pub note: String,
}

impl Told {
    /// What was told by whoever wrote these conditions.
    pub fn by(conditions: &[Condition]) -> Self {
        Self(news(conditions).map(|known| (known.type_.clone(), said(known))).collect())
    }

    /// What is to be told now that the conditions are these. It counts as told from now on.
    pub fn turns(&mut self, conditions: &[Condition], now: Timestamp) -> Vec<Turn> {
        let mut turns = Vec::new();
        for condition in news(conditions) {
            let known = self.0.get(&condition.type_);
            let was_bad = known.is_some_and(|(status, _)| status != "True");
            let is_calm = now.duration_since(condition.last_transition_time.0) >= CALM;
            let is_well = condition.status == "True";
            let (is_told, is_early) = match condition.status.as_str() {
                "True" => (!was_bad, !is_calm),
                "False" => (known == Some(&said(condition)), false),
                _ => (known == Some(&said(condition)), !is_calm),
            };
            if is_early && !is_told {
                continue;
            }
            if !is_told {
                let Condition { type_, status, reason, message, .. } = condition.clone();
                let again = if is_well { " again" } else { "" };
                let note = format!("{type_} is {status}{again}: {message}");
                turns.push(Turn { type_, reason, is_bad: !is_well, note });
            }
            self.0.insert(condition.type_.clone(), said(condition));
        }
        turns
    }
}

fn news(conditions: &[Condition]) -> impl Iterator<Item = &Condition> {
    conditions
        .iter()
        .filter(|known| TOLD.contains(&known.type_.as_str()) && !SILENT.contains(&known.reason.as_str()))
}

fn said(condition: &Condition) -> (String, String) {
    (condition.status.clone(), condition.reason.clone())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// One condition since second 100.
    fn one(type_: &str, status: &str, reason: &str) -> Vec<Condition> {
        vec![Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: "because".to_owned(),
            observed_generation: None,
            last_transition_time: Time(at(100)),
        }]
    }

    fn told(told: &mut Told, conditions: &[Condition], second: i64) -> Vec<(String, bool)> {
        told.turns(conditions, at(second)).into_iter().map(|turn| (turn.reason, turn.is_bad)).collect()
    }

    #[test]
    fn bad_news_is_told_once_for_each_reason_and_with_the_words_of_the_condition() {
        let mut known = Told::default();
        let denied = one(CLOUD_READY, "False", "Denied");
        let turns = known.turns(&denied, at(100));
        assert_eq!(turns[0].note, "CloudReady is False: because");
        assert_eq!((turns[0].type_.as_str(), turns[0].reason.as_str()), (CLOUD_READY, "Denied"));
        assert_eq!(told(&mut known, &denied, 101), []);
        let quota = one(CLOUD_READY, "False", "Quota");
        assert_eq!(told(&mut known, &quota, 102), [("Quota".to_owned(), true)]);
        assert_eq!(told(&mut known, &denied, 103), [("Denied".to_owned(), true)]);
    }

    #[test]
    fn what_is_well_again_is_told_when_it_stays_so() {
        let mut known = Told::default();
        assert_eq!(told(&mut known, &one(GROUP_SUITABLE, "True", "Suitable"), 200), [], "it was never bad");
        told(&mut known, &one(GROUP_SUITABLE, "False", "AZRebalance"), 100);
        let well = one(GROUP_SUITABLE, "True", "Suitable");
        assert_eq!(told(&mut known, &well, 109), []);
        assert_eq!(told(&mut known.clone(), &one(GROUP_SUITABLE, "False", "AZRebalance"), 109), []);
        let turns = known.turns(&well, at(110));
        assert_eq!(turns[0].note, "GroupSuitable is True again: because");
        assert!(!turns[0].is_bad);
        assert_eq!(told(&mut known, &well, 111), []);
    }

    #[test]
    fn what_is_not_known_is_told_when_it_lasts() {
        let mut known = Told::default();
        let away = one(CLOUD_READY, "Unknown", "Retry");
        assert_eq!(told(&mut known, &away, 109), []);
        assert_eq!(told(&mut known, &away, 110), [("Retry".to_owned(), true)]);
        assert_eq!(told(&mut known, &away, 111), []);
    }

    #[test]
    fn the_next_holder_repeats_nothing_while_it_comes_to_know() {
        let failed = one(SCALING, "False", "LaunchFailed");
        let mut known = Told::by(&failed);
        for (status, reason) in
            [("Unknown", "NotPlanned"), ("True", "WaitingForInstances"), ("False", "LaunchFailed")]
        {
            assert_eq!(told(&mut known, &one(SCALING, status, reason), 200), [], "{reason}");
        }
        assert_eq!(
            told(&mut known, &one(SCALING, "True", "AsWished"), 200),
            [("AsWished".to_owned(), false)]
        );
        // Its hosts are not connected to yet.
        let mut known = Told::by(&one(HOST_KEYS_TRUSTED, "False", "HostKeyRefused"));
        assert_eq!(told(&mut known, &one(HOST_KEYS_TRUSTED, "True", "KeysAsExpected"), 101), []);
        assert_eq!(told(&mut known, &one(HOST_KEYS_TRUSTED, "False", "HostKeyRefused"), 102), []);
    }

    #[test]
    fn everyday_life_is_no_news() {
        let mut known = Told::default();
        for reason in ["AtMaxInstances", "Throttled", "InstanceNotReady"] {
            assert_eq!(told(&mut known, &one(SCALING, "False", reason), 200), [], "{reason}");
        }
        for reason in ["Idle", "AsWished", "AtGroupMin"] {
            assert_eq!(told(&mut known, &one(SCALING, "True", reason), 200), [], "{reason}");
        }
        assert_eq!(told(&mut known, &one("Polling", "False", "Paused"), 200), []);
    }
}
