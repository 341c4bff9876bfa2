//! One shared look at each cloud account and region, for all pools of the replica.
//!
//! Owns the looking: one task for each account, which lives as long as somebody subscribes. However many pools there
//! are, a group and what is tagged is looked at once. May miss what was done a moment ago, as any look at a cloud; never
//! changes anything there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::schedule::{Course, Wish};
use super::{Cloud, CloudError, ErrorClass, Ids, Observation, Wanted};
use crate::telemetry::Metrics;

pub use self::schedule::Intervals;

pub mod schedule;

/// The longest a look may take with all its calls.
const PATIENCE: Duration = Duration::from_secs(180);

/// An account in a region, reached in one way. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccountKey {
    /// The region.
    pub region: String,
    /// Address of the APIs, if not the cloud's own.
    pub endpoint: Option<String>,
    /// A digest of the credentials.
    pub credentials: String,
}

/// The accounts that are looked at. Cloning shares them.
#[derive(Clone)]
pub struct Observers {
    metrics: Metrics,
    accounts: Arc<Mutex<Accounts>>,
}

/// Accounts that somebody subscribes to, by how they are reached and the cluster whose tag is looked for.
type Accounts = HashMap<(AccountKey, String), Weak<Account>>;

/// An account that somebody subscribes to; dropping the last share of it ends its looks.
struct Account {
    eye: Arc<Eye>,
    _ends: DropGuard,
}

/// What looks at an account.
struct Eye {
    cloud: Arc<dyn Cloud>,
    cluster: String,
    metrics: Metrics,
    wishes: Mutex<Wishes>,
    /// Somebody wishes something else than before.
    changed: Notify,
    seen: watch::Sender<Seen>,
}

#[derive(Default)]
struct Wishes {
    next: u64,
    by_subscriber: BTreeMap<u64, Subscriber>,
}

/// What one pool looks for, and how often.
struct Subscriber {
    group: String,
    ids: Ids,
    wish: Wish,
}

/// What the looks have shown so far.
#[derive(Clone, Default)]
struct Seen {
    observation: Option<Arc<Observation>>,
    /// The groups that were looked for in it. One that is not among them may exist.
    groups: Arc<BTreeSet<String>>,
    problem: Option<CloudError>,
}

/// A pool's share of the looks at its account. Dropping it ends it.
pub struct Subscription {
    account: Arc<Account>,
    id: u64,
    group: String,
    seen: watch::Receiver<Seen>,
}

impl Observers {
    /// Nothing is looked at yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, accounts: Arc::default() }
    }

    /// Joins the looks at an account, or begins them. `cloud` is used when nobody looks at that account yet; else the one
    /// that is there is, with its limits: see [`Subscription::cloud`].
    pub fn join(
        &self,
        key: AccountKey,
        cloud: Arc<dyn Cloud>,
        group: String,
        cluster: String,
        intervals: Intervals,
    ) -> Subscription {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|_, account| account.strong_count() > 0);
        let key = (key, cluster);
        let account = accounts.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let account = Arc::new(Account::open(cloud, key.1.clone(), self.metrics.clone()));
            accounts.insert(key, Arc::downgrade(&account));
            account
        });
        drop(accounts);
        let id = {
            let mut wishes = account.eye.wishes();
            wishes.next += 1;
            let id = wishes.next;
            let wish = Wish::new(intervals, Instant::now());
            wishes.by_subscriber.insert(id, Subscriber { group: group.clone(), ids: Ids::default(), wish });
            id
        };
        account.eye.changed.notify_one();
        let seen = account.eye.seen.subscribe();
        Subscription { account, id, group, seen }
    }
}

impl Subscription {
    /// The cloud of the account, with the limits that all its pools share.
    pub fn cloud(&self) -> &Arc<dyn Cloud> {
        &self.account.eye.cloud
    }

    /// What was seen last, once a look has looked for this group.
    pub fn latest(&self) -> Option<Arc<Observation>> {
        let seen = self.seen.borrow();
        seen.observation.clone().filter(|_| seen.groups.contains(&self.group))
    }

    /// Why the last look failed, if it did.
    pub fn problem(&self) -> Option<CloudError> {
        self.seen.borrow().problem.clone()
    }

    /// Waits for the next look to end, well or not. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            // The looks end with the last subscription; this one is there, so they have not.
            std::future::pending::<()>().await;
        }
    }

    /// How often this pool wants to see from now on, and how often while it expects something.
    pub fn set_intervals(&self, intervals: Intervals) {
        self.wish(|wish| wish.intervals = intervals);
    }

    /// This pool relies on things with these ids: they are looked for from the next look on, whatever tags they carry.
    pub fn rely_on(&self, ids: Ids) {
        if let Some(subscriber) = self.account.eye.wishes().by_subscriber.get_mut(&self.id) {
            subscriber.ids = ids;
        }
    }

    /// This pool expects something to change until then.
    pub fn expect_until(&self, until: impl Into<Instant>) {
        let until = until.into();
        self.wish(|wish| wish.expecting_until = wish.expecting_until.max(Some(until)));
    }

    /// This pool expects nothing any more.
    pub fn expect_nothing(&self) {
        self.wish(|wish| wish.expecting_until = None);
    }

    /// This pool wants a fresh look.
    pub fn nudge(&self) {
        self.wish(|wish| wish.begun_after = Some(Instant::now()));
    }

    /// This pool wants to see a look that was begun after that time, at which it changed something.
    pub fn look_after(&self, changed: Timestamp) {
        if self.latest().is_none_or(|observation| observation.at <= changed) {
            self.nudge();
        }
    }

    fn wish(&self, change: impl FnOnce(&mut Wish)) {
        let eye = &self.account.eye;
        let has_changed = eye.wishes().by_subscriber.get_mut(&self.id).is_some_and(|subscriber| {
            let before = subscriber.wish.clone();
            change(&mut subscriber.wish);
            subscriber.wish != before
        });
        if has_changed {
            eye.changed.notify_one();
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.account.eye.wishes().by_subscriber.remove(&self.id);
        self.account.eye.changed.notify_one();
    }
}

impl Account {
    fn open(cloud: Arc<dyn Cloud>, cluster: String, metrics: Metrics) -> Self {
        let eye = Arc::new(Eye {
            cloud,
            cluster,
            metrics,
            wishes: Mutex::default(),
            changed: Notify::new(),
            seen: watch::Sender::default(),
        });
        let end = CancellationToken::new();
        let looking = Arc::clone(&eye);
        let ended = end.clone();
        tokio::spawn(async move { ended.run_until_cancelled(looking.keep_looking()).await });
        Self { eye, _ends: end.drop_guard() }
    }
}

impl Eye {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, again and again. May be dropped at any point: it only reads.
    async fn keep_looking(&self) {
        let mut course = Course::default();
        loop {
            self.wait(course).await;
            let began = Instant::now();
            course.last = Some(began);
            let outcome = self.look().await;
            self.metrics.cloud_look(began.elapsed(), outcome.is_ok());
            course.failures = if outcome.is_ok() { 0 } else { course.failures.saturating_add(1) };
            course.is_throttled = self.cloud.is_throttled();
            self.seen.send_modify(|seen| match outcome {
                Ok((observation, groups)) => {
                    seen.observation = Some(Arc::new(observation));
                    seen.groups = Arc::new(groups);
                    seen.problem = None;
                }
                Err(problem) => seen.problem = Some(problem),
            });
        }
    }

    /// Waits until a look is due, whatever is wished meanwhile.
    async fn wait(&self, course: Course) {
        let chance = rand::random::<f64>();
        loop {
            let now = Instant::now();
            let due = {
                let wishes = self.wishes();
                let wishes = wishes.by_subscriber.values().map(|subscriber| &subscriber.wish);
                schedule::next(wishes, course, chance, now)
            };
            match due {
                Some(due) if due <= now => return,
                Some(due) => {
                    // Woken or not, what is due is asked anew.
                    let _ = tokio::time::timeout_at(due.into(), self.changed.notified()).await;
                }
                None => self.changed.notified().await,
            }
        }
    }

    async fn look(&self) -> Result<(Observation, BTreeSet<String>), CloudError> {
        let mut wanted = Wanted { cluster: self.cluster.clone(), ..Wanted::default() };
        for subscriber in self.wishes().by_subscriber.values() {
            wanted.groups.insert(subscriber.group.clone());
            wanted.ids.extend(&subscriber.ids);
        }
        match tokio::time::timeout(PATIENCE, self.cloud.observe(&wanted)).await {
            Ok(outcome) => outcome.map(|observation| (observation, wanted.groups)),
            Err(_) => Err(CloudError {
                class: ErrorClass::Retry,
                attempt: "look at the account".to_owned(),
                code: "TimedOut".to_owned(),
                message: format!("the look did not end within {} s", PATIENCE.as_secs()),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
