//! Marks of what is under way for a pool: a task about an object, a request for a job. Each ends when it is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::held::{Held, lock};
use crate::clock;

/// What a running task is about.
#[derive(Debug, Clone)]
pub enum Subject {
    /// The lease of this name.
    Lease(String),
    /// The environment of this name.
    Environment(String),
}

/// The mark of a running task; when it is dropped, its subject is looked at again.
pub struct Busy {
    held: Arc<Held>,
    mark: String,
    subject: Subject,
    pause: Duration,
}

impl Busy {
    /// Lets so much time pass before the subject is looked at again.
    pub fn again_after(&mut self, pause: Duration) {
        self.pause = pause;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.held.busy).remove(&self.mark);
        let mut book = lock(&self.held.book);
        let (agenda, name) = match &self.subject {
            Subject::Lease(name) => (&mut book.lease_agenda, name),
            Subject::Environment(name) => (&mut book.environment_agenda, name),
        };
        if self.pause.is_zero() {
            agenda.now(name.clone());
        } else {
            agenda.at(name, Some(after(self.pause)));
        }
        drop(book);
        self.held.wake();
    }
}

/// The mark of a request for a job that is under way.
pub struct Asking {
    held: Arc<Held>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.held.asking.fetch_sub(1, Ordering::SeqCst);
        self.held.wake();
    }
}

/// The time so long from now.
fn after(pause: Duration) -> Timestamp {
    let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
    clock::now().checked_add(pause).unwrap_or(Timestamp::MAX)
}

impl Held {
    /// One more is, until the answer is dropped.
    pub fn begin_asking(self: &Arc<Self>) -> Asking {
        self.asking.fetch_add(1, Ordering::SeqCst);
        self.wake();
        Asking { held: Arc::clone(self) }
    }

    /// Marks an object as having a task; `None` when it has one.
    pub fn begin(self: &Arc<Self>, uid: Option<String>, subject: Subject) -> Option<Busy> {
        let mark = uid?;
        let is_free = lock(&self.busy).insert(mark.clone());
        is_free.then(|| Busy { held: Arc::clone(self), mark, subject, pause: Duration::ZERO })
    }

    /// Marks a lease as being written by the intake, until the mark is dropped.
    pub fn arriving(self: &Arc<Self>, lease: &str) -> Option<Busy> {
        self.begin(Some(lease.to_owned()), Subject::Lease(lease.to_owned()))
    }

    pub(super) fn is_arriving(&self, lease: &str) -> bool {
        lock(&self.busy).contains(lease)
    }
}
