//! A pool's instances in its cloud: what is known of them, what is planned, and the driver that carries it out.
//!
//! Writes of a sequence are numbered nowhere but in its plan: each step is looked up in the cloud before it is done, so
//! a death between two of them is finished by whoever looks next. What is kept here besides facts and plan is only what
//! makes things sooner or later, never what makes them right: it is forgotten at a take-over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::clock;
use crate::pool::slots::Slot;
use crate::provider::{Changed, Cloud, CloudError, ErrorClass};
use crate::spool::verb::SpotNotice;

pub mod carry;
pub mod cost;
pub mod facts;
pub mod group;
pub mod look;
pub mod orphans;
pub mod plan;
pub mod policy;
pub mod prices;
pub mod scale;
pub mod tally;
pub mod view;
pub mod work;

use facts::Facts;
use group::Problem;
use plan::Plan;
use scale::Waiting;
use view::Memory;

/// First and longest pause before a step that failed is tried again.
const RETRY: SignedDuration = SignedDuration::from_secs(2);
const LONGEST_RETRY: SignedDuration = SignedDuration::from_secs(60);

/// The same for a step that only a person can help, or that waits for capacity.
const LONG_RETRY: SignedDuration = SignedDuration::from_secs(30);
const LONGEST_LONG_RETRY: SignedDuration = SignedDuration::from_mins(10);

/// The longest pause while a job or an environment waits for the fleet: what is needed may be had by now.
const LONGEST_WHILE_AWAITED: SignedDuration = SignedDuration::from_mins(2);

/// A pool's part of its cloud while the pool is held; empty and idle for a pool of hosts of one's own.
pub struct Fleet {
    is_cloud: bool,
    /// Locked for lines only; written by the fleet's driver, read by everybody.
    state: Mutex<State>,
    /// The account's cloud, with the limits that all its pools share; there once the account is looked at.
    cloud: Mutex<Option<Arc<dyn Cloud>>>,
    /// Asks the fleet's driver for a look.
    wake: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    facts: Option<Arc<Facts>>,
    plan: Option<Arc<Plan>>,
    problems: Vec<Problem>,
    /// Why the last look at the cloud failed.
    blindness: Option<CloudError>,
    memory: Memory,
    /// Steps that failed, by what they are about.
    failures: BTreeMap<String, Failure>,
    /// Whether a job or an environment waits for the fleet.
    is_awaited: bool,
    /// Sequences that are being carried out, by what they are about.
    running: BTreeSet<String>,
    /// Whether one of them sets the group's size.
    is_being_resized: bool,
    /// When instances were asked for, for the throttle.
    launches: VecDeque<Timestamp>,
    /// Environments at tier Hot that have to make room.
    evicted: BTreeSet<String>,
    /// Instances that their cloud has announced to take away, or advises to leave; with the notice of the former.
    announced: BTreeMap<String, Option<SpotNotice>>,
    /// Changes that environments wait for: the next look is to be soon.
    is_expected: bool,
}

impl State {
    /// Whether what is about that thing has failed and is not tried again yet.
    fn rests(&self, subject: &str, now: Timestamp) -> bool {
        self.failures.get(subject).is_some_and(|failure| failure.again_at(self.is_awaited) > now)
    }

    /// Whether the last look was begun after what was last done about a subject.
    fn shows(&self, subject: &str) -> bool {
        let looked_at = self.facts.as_ref().map(|facts| facts.at);
        let touched = self.memory.touched.get(subject);
        touched.is_none_or(|touched| looked_at.is_some_and(|at| at > *touched))
    }
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub error: CloudError,
    /// How often in a row.
    pub times: u32,
    /// When it failed last.
    pub failed_at: Timestamp,
}

impl Failure {
    /// When it is tried again.
    fn again_at(&self, is_awaited: bool) -> Timestamp {
        let pause = pause(self.error.class, self.times);
        let pause = if is_awaited { pause.min(LONGEST_WHILE_AWAITED) } else { pause };
        self.failed_at.checked_add(pause).unwrap_or(Timestamp::MAX)
    }
}

/// How long a step rests that has failed so often in a row.
fn pause(class: ErrorClass, times: u32) -> SignedDuration {
    let (first, longest) = match class {
        // It was not as the last look had it: the next one says what to do. Only what is refused again has to wait.
        ErrorClass::Refused if times <= 1 => return SignedDuration::ZERO,
        ErrorClass::Refused => return pause(ErrorClass::Retry, times - 1),
        ErrorClass::Retry | ErrorClass::Gone => (RETRY, LONGEST_RETRY),
        ErrorClass::NoCapacity | ErrorClass::Denied | ErrorClass::Quota | ErrorClass::Invalid => {
            (LONG_RETRY, LONGEST_LONG_RETRY)
        }
    };
    (first * 2_i32.saturating_pow(times.min(6).saturating_sub(1))).min(longest)
}

impl Fleet {
    /// The fleet of a pool with a cloud, or the empty one.
    pub fn new(is_cloud: bool) -> Self {
        Self { is_cloud, state: Mutex::default(), cloud: Mutex::default(), wake: tokio::sync::Notify::new() }
    }

    /// Whether the pool has a cloud.
    pub fn is_cloud(&self) -> bool {
        self.is_cloud
    }

    /// The account's cloud; `None` before it is looked at.
    pub fn cloud(&self) -> Option<Arc<dyn Cloud>> {
        self.cloud_slot().clone()
    }

    fn cloud_slot(&self) -> MutexGuard<'_, Option<Arc<dyn Cloud>>> {
        self.cloud.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the cloud; `None` before the first look.
    pub fn facts(&self) -> Option<Arc<Facts>> {
        self.state().facts.clone()
    }

    /// What is planned.
    pub fn plan(&self) -> Option<Arc<Plan>> {
        self.state().plan.clone()
    }

    /// What is wrong with the group's settings.
    pub fn problems(&self) -> Vec<Problem> {
        self.state().problems.clone()
    }

    /// Why the cloud was not seen at the last look, if it was not.
    pub fn blindness(&self) -> Option<CloudError> {
        self.state().blindness.clone()
    }

    /// Steps that failed and wait to be tried again.
    pub fn failures(&self) -> Vec<Failure> {
        self.state().failures.values().cloned().collect()
    }

    /// Instances that take new jobs, each with the slots that do not; `None` where hosts are the pool's own, and all do.
    pub fn placeable(&self) -> Option<BTreeMap<String, BTreeSet<u32>>> {
        self.is_cloud.then(|| self.state().plan.as_ref().map(|plan| plan.open.clone()).unwrap_or_default())
    }

    /// Whether a slot takes new jobs. Asked in the same turn of the book in which it is given away, so that what ends an
    /// instance, which looks into the book after it was closed, sees all that was placed on it.
    pub fn is_open(&self, slot: &Slot) -> bool {
        let state = self.state();
        let open = state.plan.as_ref().and_then(|plan| plan.open.get(&slot.instance));
        !self.is_cloud || open.is_some_and(|closed| !closed.contains(&slot.index))
    }

    /// Slots of instances that are on their way, or may yet be asked for.
    pub fn growth(&self) -> u32 {
        self.state().plan.as_ref().map_or(0, |plan| plan.growth)
    }

    /// Whether the cloud has had time to show what was last done about a thing.
    pub fn is_fresh(&self, subject: &str) -> bool {
        let state = self.state();
        !state.rests(subject, clock::now()) && state.shows(subject)
    }

    /// Whether nothing is under way about an instance and a slot of it, and the last look shows what was done about them.
    pub fn is_at_rest(&self, instance: &str, slot: u32) -> bool {
        let state = self.state();
        let is_at_rest = |subject: &str| !state.running.contains(subject) && state.shows(subject);
        is_at_rest(instance) && is_at_rest(&plan::slot_subject(instance, slot))
    }

    /// Whether an environment has to make room.
    pub fn is_evicted(&self, environment: &str) -> bool {
        self.state().evicted.contains(environment)
    }

    /// Enters which environments have to make room; answers those for which that is news.
    pub(crate) fn evict(&self, environments: BTreeSet<String>) -> Vec<String> {
        let mut state = self.state();
        let news = environments.symmetric_difference(&state.evicted).cloned().collect();
        state.evicted = environments;
        news
    }

    /// Whether no instance is to be had in the zone of an environment's volume.
    pub fn gets_none(&self, environment: &str) -> bool {
        let is_it = |wait: &Waiting| matches!(wait, Waiting::ZoneGetsNone { environment: known, .. } if known == environment);
        self.state().plan.as_ref().is_some_and(|plan| plan.scale.waits.iter().any(is_it))
    }

    /// Whether an instance is about to be taken away by its cloud.
    pub fn is_announced_to_go(&self, instance: &str) -> bool {
        self.state().announced.contains_key(instance)
    }

    /// When and how an instance is taken away by its cloud, if that has said so.
    pub fn notice(&self, instance: &str) -> Option<SpotNotice> {
        self.state().announced.get(instance).copied().flatten()
    }

    /// Enters what the cloud has announced about an instance, which takes no job from now on: its end, or the mere advice to
    /// leave it. Answers whether that is news.
    pub fn announce(&self, instance: &str, notice: Option<SpotNotice>) -> bool {
        let mut state = self.state();
        // The next plan closes it too, and may be a look away.
        if let Some(plan) = &mut state.plan {
            Arc::make_mut(plan).open.remove(instance);
        }
        let known = state.announced.get(instance).copied();
        // An advice after a notice takes nothing back.
        let notice = notice.or(known.flatten());
        state.announced.insert(instance.to_owned(), notice);
        known != Some(notice)
    }

    /// Something was done about a thing: what was looked at before does not show it.
    pub(crate) fn touch(&self, subject: &str, now: Timestamp) {
        let mut state = self.state();
        state.memory.touched.insert(subject.to_owned(), now);
        state.failures.remove(subject);
        state.is_expected = true;
        drop(state);
        self.wake.notify_one();
    }

    /// Something was made for a thing: see [`look::await_made`].
    pub(crate) fn made(&self, subject: &str, changed: &Changed, now: Timestamp) {
        if let Changed::Made(id) = changed {
            self.state().memory.made.insert(subject.to_owned(), (id.clone(), now));
        }
    }

    /// A step about a thing failed.
    pub(crate) fn failed(&self, subject: &str, error: CloudError, now: Timestamp) {
        let mut state = self.state();
        let times = state.failures.get(subject).map_or(0, |failure| failure.times).saturating_add(1);
        state.failures.insert(subject.to_owned(), Failure { error, times, failed_at: now });
        // It may have been done although it was not answered: decide on what is there.
        state.memory.touched.insert(subject.to_owned(), now);
        drop(state);
        self.wake.notify_one();
    }

    /// Asks the fleet's driver for a look: a job or an environment waits for something.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock means that a task panicked while it held plain data: the data is as good as before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_a_long_one_is_cut_short_while_somebody_waits() {
        let pauses = |class| [1, 2, 3, 5, 6, 7, 1_000].map(|times| pause(class, times).as_secs());
        for class in [ErrorClass::Retry, ErrorClass::Gone] {
            assert_eq!(pauses(class), [2, 4, 8, 32, 60, 60, 60]);
        }
        assert_eq!(pauses(ErrorClass::Refused), [0, 2, 4, 16, 32, 60, 60]);
        for class in [ErrorClass::NoCapacity, ErrorClass::Denied, ErrorClass::Quota, ErrorClass::Invalid] {
            assert_eq!(pauses(class), [30, 60, 120, 480, 600, 600, 600]);
        }
        let error = CloudError {
            class: ErrorClass::Quota,
            attempt: "start it".to_owned(),
            code: "VcpuLimitExceeded".to_owned(),
            message: String::new(),
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let failure = |times| Failure { error: error.clone(), times, failed_at: at(1_000) };
        assert_eq!((failure(1).again_at(true), failure(1).again_at(false)), (at(1_030), at(1_030)));
        assert_eq!((failure(9).again_at(true), failure(9).again_at(false)), (at(1_120), at(1_600)));
    }
}
