//! When a job is ended because its cloud takes its instance, and what is said of it. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::spool::verb::{Interruption, SpotAction, SpotNotice};

/// How long before its instance is taken a job is ended. Until then it may end by itself. The rest is needed: the script
/// has five seconds to end in, its last lines and its result go to GitLab, a workspace is unmounted and its volume
/// detached.
const MARGIN: SignedDuration = SignedDuration::from_secs(30);

/// When a job that still runs is ended. Hibernation begins with its notice and leaves no time: at once.
pub fn ends_at(notice: &SpotNotice, now: Timestamp) -> Timestamp {
    match notice.action {
        SpotAction::Terminate | SpotAction::Stop => {
            notice.time.checked_sub(MARGIN).unwrap_or(Timestamp::MIN).max(now)
        }
        SpotAction::Hibernate => now,
    }
}

/// What its supervisor is told.
pub fn interruption(instance: &str, notice: &SpotNotice, has_volumes: bool) -> Interruption {
    let what = match notice.action {
        SpotAction::Terminate => "terminates",
        SpotAction::Stop => "stops",
        SpotAction::Hibernate => "hibernates",
    };
    let message =
        format!("its cloud {what} instance {instance} at {} (spot interruption notice)", notice.time);
    Interruption { message, can_leave: has_volumes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_job_has_until_shortly_before_the_end_and_none_where_that_begins_at_once() {
        for (action, time, now, expected) in [
            (SpotAction::Terminate, 220, 100, 190),
            (SpotAction::Stop, 220, 100, 190),
            (SpotAction::Terminate, 130, 100, 100),
            (SpotAction::Terminate, 90, 100, 100),
            (SpotAction::Hibernate, 220, 100, 100),
        ] {
            let notice = SpotNotice { action, time: at(time) };
            assert_eq!(ends_at(&notice, at(now)), at(expected), "{notice:?}");
        }
    }

    #[test]
    fn what_is_said_names_the_instance_and_the_time() {
        let notice = SpotNotice { action: SpotAction::Terminate, time: at(60) };
        let said = interruption("i-1", &notice, true);
        assert!(said.can_leave);
        assert_eq!(
            said.message,
            "its cloud terminates instance i-1 at 1970-01-01T00:01:00Z (spot interruption notice)"
        );
    }
}
