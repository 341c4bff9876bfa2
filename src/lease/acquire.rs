//! Waiting for a slot: the planner's reservation for a plain job, the environment's own slot for a resume.

use kube::ResourceExt;
use tokio::time::Instant;

use super::conversation::{Counted, Waiting};
use super::record::Step;
use super::resume::{self, Look};
use super::stream::until;
use super::{DriveError, Driver};
use crate::gitlab::reason::FailureReason;

/// How often a resume that waits looks again although nothing was told, and how long it waits for one thing before its
/// status says so: most waits are shorter, and are not worth a write.
const RESUME_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);

/// What came of waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// The lease's status names a slot.
    Slot,
    /// The job is refused.
    Refused {
        /// Why, for GitLab.
        reason: FailureReason,
        /// Why, for people.
        message: String,
    },
    /// The time was over and GitLab gives the job to somebody else by itself.
    GivenBack,
    /// The job was canceled.
    Canceled,
    /// GitLab does not want the job any more.
    Gone,
}

/// Waits until the lease has a slot.
pub async fn acquire(driver: &mut Driver) -> Result<Acquired, DriveError> {
    let deadline = deadline(driver);
    let mut turns = driver.held.signal(&driver.lease.name_any());
    let mut waiting_for = "a free slot".to_owned();
    let mut told = Told::new();
    let mut was_told = true;
    loop {
        turns.borrow_and_update();
        if driver.is_deleted() {
            return Ok(Acquired::Canceled);
        }
        let slot = if !driver.held.tenure().may_act() {
            waiting_for = "the API server to answer".to_owned();
            None
        } else if driver.lease.spec.resume_from.is_some() {
            match resume::look(driver).await? {
                Look::Bound(slot) => Some(slot),
                Look::Wait(on) => {
                    waiting_for = on;
                    None
                }
                Look::Refused(message) => {
                    let reason = FailureReason::RuntimeEnvironmentUnavailable;
                    return Ok(Acquired::Refused { reason, message });
                }
            }
        } else {
            driver.held.reservation(&driver.lease.name_any())
        };
        if let Some(slot) = slot {
            if !was_told {
                tracing::info!(waiting_for, "the job's wait was over, and nobody had said so");
            }
            // (4)
            driver.record(&Step::Assigned { instance: slot.instance, slot: slot.index }).await?;
            driver.held.settle_reservation(&driver.lease.name_any());
            return Ok(Acquired::Slot);
        }
        let is_late = Instant::now() >= deadline;
        if is_late && let Some(over) = out_of_time(driver, &waiting_for) {
            return Ok(over);
        }
        if driver.lease.spec.resume_from.is_some()
            && driver.held.tenure().may_act()
            && told.is_due(&waiting_for)
        {
            // (3a) Whoever takes over looks for itself, and says so in place of this.
            tracing::info!(waiting_for, "the job waits");
            driver.record(&Step::Waiting { on: waiting_for.clone() }).await?;
        }
        let look_at = driver.conversation.speak_of_waiting();
        was_told = true;
        tokio::select! {
            // The sender lives in `held`: waiting cannot fail.
            _ = turns.changed() => {}
            // What a resume waits for is told, but for a host that did not answer when it was asked.
            () = tokio::time::sleep(RESUME_INTERVAL), if driver.lease.spec.resume_from.is_some() => {
                was_told = false;
            }
            answer = driver.conversation.answer() => match driver.conversation.take_in_waiting(answer) {
                Waiting::GoOn => {}
                Waiting::Canceled => return Ok(Acquired::Canceled),
                Waiting::Gone => return Ok(Acquired::Gone),
            },
            () = until(look_at) => {}
            () = tokio::time::sleep_until(deadline), if !is_late => {}
        }
    }
}

/// What the lease's status says it waits for.
struct Told {
    on: String,
    since: Instant,
    is_written: bool,
}

impl Told {
    fn new() -> Self {
        Self { on: String::new(), since: Instant::now(), is_written: false }
    }

    /// Whether it has waited for the same long enough, and the status does not say so yet.
    fn is_due(&mut self, on: &str) -> bool {
        if self.on != on {
            *self = Self { on: on.to_owned(), ..Self::new() };
        }
        let is_due = !self.is_written && self.since.elapsed() >= RESUME_INTERVAL;
        self.is_written |= is_due;
        is_due
    }
}

fn deadline(driver: &Driver) -> Instant {
    let limit = driver.settings.spec.instance_acquire_timeout.std();
    let waited = crate::clock::now().duration_since(driver.lease.spec.accepted_at.0);
    let waited = std::time::Duration::try_from(waited).unwrap_or_default();
    Instant::now() + limit.saturating_sub(waited)
}

/// A server that counts the job as waiting gives it to somebody else when we fall silent, and the sooner the less it was
/// told; any other has to be told that it failed. A resume can go nowhere else: it is always told. `None` while GitLab has
/// not said as what it counts the job: then the wait goes on until it does.
fn out_of_time(driver: &mut Driver, waiting_for: &str) -> Option<Acquired> {
    let limit = driver.settings.spec.instance_acquire_timeout.std();
    let message = format!(
        "no slot within {} s (spec.instanceAcquireTimeout): waited for {waiting_for}",
        limit.as_secs()
    );
    if driver.lease.spec.resume_from.is_some() {
        return Some(Acquired::Refused { reason: FailureReason::RuntimeEnvironmentUnavailable, message });
    }
    match driver.conversation.counted() {
        Counted::Waiting => Some(Acquired::GivenBack),
        Counted::Running => Some(Acquired::Refused { reason: FailureReason::RunnerSystemFailure, message }),
        Counted::Unknown => {
            driver.conversation.ask();
            None
        }
    }
}
