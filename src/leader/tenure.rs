//! The right to act for a pool, from its acquisition to its end.
//!
//! *Acting*: the Lease was renewed less than [`ACT_UNTIL`] ago. *Past*: it was not, because the API server is away or
//! this process stood still; nothing durable is begun, but streams that are attached go on, and no task ends. Once
//! the Lease could be acquired again with nobody in between, the tenure acts on, under a higher epoch. *Ended*:
//! another replica holds the pool, or it was released; every task of the tenure ends.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ACT_UNTIL;
use super::epoch::Epoch;
use super::moment::Moment;

/// The right to act for a pool. Dropping it gives up nothing; [`super::claim::Claim::release`] does.
#[derive(Debug)]
pub struct Tenure {
    ended: CancellationToken,
    epoch: Epoch,
    renewal: watch::Sender<Renewal>,
    leaving: AtomicBool,
}

/// How the last renewals of a tenure went.
#[derive(Debug, Clone, Copy)]
pub struct Renewal {
    /// When the last successful one was begun.
    at: Moment,
    /// Whether one has failed since.
    failed: bool,
}

impl Tenure {
    pub(super) fn new(epoch: Epoch, acquired_at: Moment) -> Self {
        Self {
            ended: CancellationToken::new(),
            epoch,
            renewal: watch::Sender::new(Renewal { at: acquired_at, failed: false }),
            leaving: AtomicBool::new(false),
        }
    }

    /// Cancelled when the tenure has ended.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// The epoch.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Whether anything durable may be done for the pool now. Looks at the clock itself: a process that stood still
    /// is told so by this before any of its tasks could have noticed.
    pub fn may_act(&self) -> bool {
        !self.ended.is_cancelled() && self.renewal.borrow().at.elapsed() < ACT_UNTIL
    }

    /// Waits until the holder may act. Never returns once the tenure has ended: its tasks are being ended.
    pub async fn acting(&self) {
        let mut renewal = self.renewal.subscribe();
        loop {
            renewal.borrow_and_update();
            if self.may_act() {
                return;
            }
            // The sender lives in `self`: waiting cannot fail.
            let _ = renewal.changed().await;
        }
    }

    /// Whether the holder may act and its last renewal succeeded: what is taken on now can be made durable.
    pub fn is_sure(&self) -> bool {
        self.may_act() && !self.renewal.borrow().failed
    }

    /// A signal that moves with every renewal and every failure of one.
    pub fn renewals(&self) -> watch::Receiver<Renewal> {
        self.renewal.subscribe()
    }

    /// Whether the pool is to be given up as soon as it is at rest, for a replica that is to hold it rather.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    pub(super) fn set_leaving(&self, leaving: bool) -> bool {
        self.leaving.swap(leaving, Ordering::SeqCst) != leaving
    }

    /// The Lease was renewed by a request begun at that moment.
    pub(super) fn renewed(&self, at: Moment, epoch: u64) {
        // The epoch first: whoever may act again acts under the new one.
        self.epoch.set(epoch);
        self.renewal.send_replace(Renewal { at, failed: false });
    }

    /// A renewal did not succeed.
    pub(super) fn not_renewed(&self) {
        self.renewal.send_modify(|renewal| renewal.failed = true);
    }

    /// Ends it: the pool is given up, or it is another's.
    pub fn end(&self) {
        self.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Metrics;

    fn ago(time: Duration) -> Moment {
        Moment::after_boot(Moment::now().since(Moment::after_boot(time)))
    }

    fn tenure(renewed: Moment) -> Tenure {
        Tenure::new(Epoch::new("p", 3, Metrics::new()), renewed)
    }

    #[test]
    fn a_holder_may_act_until_its_renewal_is_too_old_and_after_it_was_renewed_again() {
        let tenure = tenure(ago(ACT_UNTIL - Duration::from_secs(5)));
        assert!(tenure.may_act());
        tenure.renewed(ago(ACT_UNTIL), 3);
        assert!(!tenure.may_act());
        tenure.renewed(Moment::now(), 4);
        assert!(tenure.may_act());
        assert_eq!(tenure.epoch().get(), 4);
    }

    #[test]
    fn after_a_failed_renewal_it_acts_on_but_is_not_sure() {
        let tenure = tenure(Moment::now());
        assert!(tenure.is_sure());
        tenure.not_renewed();
        assert!(tenure.may_act() && !tenure.is_sure());
        tenure.renewed(Moment::now(), 3);
        assert!(tenure.is_sure());
    }

    #[test]
    fn an_ended_tenure_acts_never_again() {
        let tenure = tenure(Moment::now());
        tenure.end();
        tenure.renewed(Moment::now(), 9);
        assert!(!tenure.may_act());
    }

    #[tokio::test]
    async fn who_waits_to_act_goes_on_with_the_renewal() {
        let tenure = tenure(ago(ACT_UNTIL));
        let (_, ()) = tokio::join!(tenure.acting(), async {
            tokio::task::yield_now().await;
            tenure.renewed(Moment::now(), 4);
        });
        assert_eq!(tenure.epoch().get(), 4);
    }
}
