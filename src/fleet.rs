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

/// How long a step rests that only a person can help, or that waits for capacity.
const LONG_RETRY: SignedDuration = SignedDuration::from_secs(30);

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
    /// Sequences that are being carried out, by what they are about.
    running: BTreeSet<String>,
    /// Whether one of them sets the group's size.
    is_being_resized: bool,
    /// When instances were asked for, for the throttle.
    launches: VecDeque<Timestamp>,
    /// Environments at tier Hot that have to make room.
    evicted: BTreeSet<String>,
    /// Instances that their cloud has announced to take away.
    announced: BTreeSet<String>,
    /// Changes that environments wait for: the next look is to be soon.
    is_expected: bool,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub error: CloudError,
    /// How often in a row.
    pub times: u32,
    /// When it is tried again.
    pub again_at: Timestamp,
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
        let looked_at = state.facts.as_ref().map(|facts| facts.at);
        let now = clock::now();
        let is_waiting = state.failures.get(subject).is_some_and(|failure| failure.again_at > now);
        !is_waiting
            && state
                .memory
                .touched
                .get(subject)
                .is_none_or(|touched| looked_at.is_some_and(|at| at > *touched))
    }

    /// Whether nothing is under way about an instance, and the last look shows what was done about it.
    pub fn is_at_rest(&self, instance: &str) -> bool {
        let state = self.state();
        let looked_at = state.facts.as_ref().map(|facts| facts.at);
        let touched = state.memory.touched.get(instance);
        !state.running.contains(instance)
            && touched.is_none_or(|touched| looked_at.is_some_and(|at| at > *touched))
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
        self.state().announced.contains(instance)
    }

    /// Enters what the cloud has announced about an instance, which takes no job from now on; answers whether that is news.
    pub fn announce(&self, instance: &str) -> bool {
        let mut state = self.state();
        // The next plan closes it too, and may be a look away.
        if let Some(plan) = &mut state.plan {
            Arc::make_mut(plan).open.remove(instance);
        }
        state.announced.insert(instance.to_owned())
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
        let wait = match error.class {
            ErrorClass::Retry | ErrorClass::Refused | ErrorClass::Gone => {
                (RETRY * 2_i32.saturating_pow(times.min(6).saturating_sub(1))).min(LONGEST_RETRY)
            }
            ErrorClass::NoCapacity | ErrorClass::Denied | ErrorClass::Quota | ErrorClass::Invalid => {
                LONG_RETRY
            }
        };
        let again_at = now.checked_add(wait).unwrap_or(Timestamp::MAX);
        state.failures.insert(subject.to_owned(), Failure { error, times, again_at });
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
