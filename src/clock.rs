//! The time of day, and whose it is.
//!
//! Nothing is decided by a host's clock: it only dates log lines and records for people. What the operator writes down
//! and later compares (expiry, when a job was accepted, what was seen when) is in the API server's time, so that
//! replicas whose clocks differ agree: each learns how far its own is off ([`follow`]) and corrects it. How long
//! something lasts is never taken from here but from a monotonic clock.
//!
//! A test build (one with debug assertions) can be told to be off, `DORMOUSE_CLOCK_OFFSET_SECONDS`, or that so much time
//! has passed since what is written down, `DORMOUSE_TIME_LEAP_SECONDS`, which no other clock corrects.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

/// What to add to this machine's clock, in milliseconds. Written by [`correct`] alone.
static CORRECTION: AtomicI64 = AtomicI64::new(0);

/// A difference that the way of an answer explains; a correction of it would only make time jump.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

/// The time of day, corrected as far as it is known to be wrong.
pub fn now() -> Timestamp {
    static LEAP: OnceLock<SignedDuration> = OnceLock::new();
    let leap = *LEAP.get_or_init(|| told("DORMOUSE_TIME_LEAP_SECONDS"));
    added(of_others(), leap)
}

/// The same without the leap that a test build was told of: what others compare with their own clocks, as a signature.
pub fn of_others() -> Timestamp {
    added(own(), SignedDuration::from_millis(CORRECTION.load(Ordering::Relaxed)))
}

/// The time of day as this machine has it.
pub fn own() -> Timestamp {
    added(Timestamp::now(), offset())
}

/// Learns the time of a clock that rules, as it was between two looks at the own one; answers the correction when it
/// has changed.
pub fn correct(ruling: Timestamp, before: Timestamp, after: Timestamp) -> Option<SignedDuration> {
    let known = SignedDuration::from_millis(CORRECTION.load(Ordering::Relaxed));
    let correction = correction(known, ruling, before, after)?;
    CORRECTION.store(i64::try_from(correction.as_millis()).unwrap_or(0), Ordering::Relaxed);
    Some(correction)
}

/// The correction that follows from one reading, if it differs from the known one by more than the reading's own
/// error: the ruling clock is told in whole seconds, and the answer took its time.
fn correction(
    known: SignedDuration,
    ruling: Timestamp,
    before: Timestamp,
    after: Timestamp,
) -> Option<SignedDuration> {
    let took = after.duration_since(before);
    let middle = added(before, took / 2);
    // Told in whole seconds, rounded down.
    let found = added(ruling, SignedDuration::from_millis(500)).duration_since(middle);
    let differs = found - known;
    let error = TOLERANCE + took / 2;
    if differs.abs() <= error {
        return None;
    }
    Some(if found.abs() <= error { SignedDuration::ZERO } else { found })
}

fn added(time: Timestamp, by: SignedDuration) -> Timestamp {
    let bound = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    time.checked_add(by).unwrap_or(bound)
}

/// What a test build was told.
fn offset() -> SignedDuration {
    static OFFSET: OnceLock<SignedDuration> = OnceLock::new();
    *OFFSET.get_or_init(|| told("DORMOUSE_CLOCK_OFFSET_SECONDS"))
}

fn told(variable: &str) -> SignedDuration {
    if !cfg!(debug_assertions) {
        return SignedDuration::ZERO;
    }
    let told = std::env::var(variable).ok();
    SignedDuration::from_secs(told.and_then(|text| text.parse().ok()).unwrap_or(0))
}

#[cfg(feature = "operator")]
pub use ruling::{follow, learn};

#[cfg(feature = "operator")]
mod ruling {
    use std::time::Duration;

    use axum::http::Request;
    use axum::http::header::DATE;
    use kube::Client;
    use kube::client::Body;
    use tokio_util::sync::CancellationToken;

    use super::{correct, own};

    /// How often the API server is asked for its time, and how soon again when it did not answer.
    const INTERVAL: Duration = Duration::from_secs(5 * 60);
    const RETRY: Duration = Duration::from_secs(1);

    /// Time for one question.
    const PATIENCE: Duration = Duration::from_secs(4);

    /// Learns the time, however often that takes: nothing is decided by time before.
    pub async fn learn(client: &Client) {
        while !ask(client).await {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Keeps the correction up to date until `stop`.
    pub async fn follow(client: Client, stop: CancellationToken) {
        let follow = async {
            loop {
                tokio::time::sleep(INTERVAL).await;
                learn(&client).await;
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    /// Asks once; says whether it was answered.
    async fn ask(client: &Client) -> bool {
        let Ok(request) = Request::get("/version").body(Body::empty()) else { return false };
        let before = own();
        let answer = tokio::time::timeout(PATIENCE, client.send(request)).await;
        let after = own();
        let Ok(Ok(answer)) = answer else { return false };
        let told = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        // A proxy may keep the time to itself: then there is only the own clock to go by.
        let Some(ruling) = told.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()) else { return true };
        if let Some(correction) = correct(ruling.timestamp(), before, after) {
            tracing::warn!(
                correction_seconds = correction.as_secs(),
                "this machine's clock and the API server's differ: times are taken by the API server's"
            );
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).unwrap()
    }

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        for told in [9_000, 10_000, 11_000] {
            assert_eq!(correction(SignedDuration::ZERO, at(told), at(10_000), at(10_400)), None);
        }
    }

    #[test]
    fn a_clock_that_is_off_is_corrected_once_and_its_mending_is_noticed() {
        let (before, after) = (at(3_610_000), at(3_610_000));
        let found = correction(SignedDuration::ZERO, at(10_000), before, after).unwrap();
        assert_eq!(found.as_secs(), -3599);
        assert_eq!(correction(found, at(70_000), at(3_670_000), at(3_670_000)), None);
        assert_eq!(correction(found, at(130_000), at(130_000), at(130_000)), Some(SignedDuration::ZERO));
        let slow = correction(SignedDuration::ZERO, at(70_000), at(70_000), at(90_000));
        assert_eq!(slow, None, "a slow answer says little");
    }
}
