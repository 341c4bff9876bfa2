//! The state of a held pool. Everything in it can be rebuilt from objects and hosts; nothing else is kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::book::Book;
use super::hosts::Hosts;
use super::inventory::Inventories;
use super::settings::{self, Settings};
use super::slots::{Instance, Slot, View};
use crate::api::runner_pool::HostStatus;
use crate::api::{JobLease, RunnerPool, SuspendedEnvironment};
use crate::app::Shared;
use crate::clock;
use crate::deed::{Deed, Point};
use crate::host::keeper::Owner;
use crate::host::link::Caller;
use crate::kube_ext::cache::Feed;
use crate::kube_ext::is_conflict;
use crate::leader::Tenure;
use crate::telemetry::EpochGuard;

/// A pool while it is held. Everything in it can be rebuilt from objects and hosts; nothing else is kept.
pub struct Held {
    /// What all pools of this replica share.
    pub shared: Shared,
    /// Namespace of the pool and of everything that belongs to it.
    pub namespace: String,
    /// The pool's name.
    pub name: String,
    /// The pool's uid.
    pub uid: String,
    /// The pool's hosts.
    pub hosts: Hosts,
    /// What hosts have listed.
    pub inventories: Inventories,
    /// Held while the limits are checked and an environment is created, so that two jobs that end together do not
    /// both take the last place.
    pub suspend_turn: tokio::sync::Mutex<()>,
    /// Held while the pool's status is written: since when its load has differed from what is written.
    pub(super) status_turn: tokio::sync::Mutex<Option<Instant>>,
    pub(super) tenure: Arc<Tenure>,
    /// Locked for lines only, like the rest below; written by the driver, read by everybody.
    pub(super) settings: Mutex<Option<Arc<Settings>>>,
    pub(super) problem: Mutex<Option<(&'static str, String, bool)>>,
    /// What the pool's objects say. Never behind the caches: see [`Held::book`].
    book: Mutex<Book>,
    pub(super) lease_feed: Feed,
    pub(super) environment_feed: Feed,
    /// Tells the driver of a lease to look again.
    signals: Mutex<HashMap<String, watch::Sender<u64>>>,
    /// Leases whose jobs have been attached to since the pool was taken over.
    attached: Mutex<HashSet<String>>,
    /// An environment waits for its step.
    pub(crate) steps_due: Notify,
    /// Uids of leases and environments with a running task, and names of leases that the intake still writes.
    pub(super) busy: Mutex<HashSet<String>>,
    pub(super) tasks: TaskTracker,
    pub(super) wake: Arc<Notify>,
    /// Moves after every look of the driver.
    pub(super) turn: watch::Sender<u64>,
    /// Asks for the settings to be read again now.
    pub(super) recheck: Notify,
    /// Whether a request for a job is under way: one that the pool has to take, whatever it wishes by then.
    pub(super) asking: AtomicBool,
}

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

/// The time so long from now.
fn after(pause: Duration) -> Timestamp {
    let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
    clock::now().checked_add(pause).unwrap_or(Timestamp::MAX)
}

impl Held {
    pub(super) fn new(shared: Shared, pool: &RunnerPool, tenure: Arc<Tenure>) -> Self {
        let (name, uid) = (pool.name_any(), pool.uid().unwrap_or_default());
        Self {
            book: Mutex::new(Book::new(&name)),
            lease_feed: shared.leases.cache.feed(&uid),
            environment_feed: shared.environments.cache.feed(&uid),
            signals: Mutex::new(HashMap::new()),
            attached: Mutex::new(HashSet::new()),
            steps_due: Notify::new(),
            shared,
            namespace: pool.namespace().unwrap_or_default(),
            name,
            uid,
            hosts: Hosts::default(),
            inventories: Inventories::default(),
            suspend_turn: tokio::sync::Mutex::new(()),
            status_turn: tokio::sync::Mutex::new(None),
            tenure,
            settings: Mutex::new(None),
            problem: Mutex::new(None),
            busy: Mutex::new(HashSet::new()),
            tasks: TaskTracker::new(),
            wake: Arc::new(Notify::new()),
            turn: watch::Sender::new(0),
            recheck: Notify::new(),
            asking: AtomicBool::new(false),
        }
    }

    /// The pool as it is now; `None` once it is gone or another one of its name has taken its place.
    pub fn pool(&self) -> Option<Arc<RunnerPool>> {
        self.shared
            .pools
            .cache
            .get(&self.namespace, &self.name)
            .filter(|pool| pool.uid().as_deref() == Some(&self.uid))
    }

    /// The settings last found good.
    pub fn settings(&self) -> Option<Arc<Settings>> {
        lock(&self.settings).clone()
    }

    /// Reason and message of what is wrong with the settings, and whether the last good ones go on.
    pub(super) fn problem(&self) -> Option<(&'static str, String, bool)> {
        lock(&self.problem).clone()
    }

    /// Whether the settings are known to be wrong now, whatever was good before.
    pub fn settings_refused(&self) -> bool {
        self.problem().is_some_and(|(_, _, is_passing)| !is_passing)
    }

    /// GitLab refused the token in a job request: it was good before, so it is checked again at once.
    pub fn token_was_refused(&self) {
        *lock(&self.settings) = None;
        let message = settings::SettingsError::InvalidToken.to_string();
        *lock(&self.problem) = Some(("TokenRefused", message, false));
        self.recheck.notify_one();
        self.wake();
    }

    /// Whether a request for a job is under way.
    pub fn is_asking(&self) -> bool {
        self.asking.load(Ordering::SeqCst)
    }

    /// Says whether a request for a job is under way.
    pub fn set_asking(&self, asking: bool) {
        self.asking.store(asking, Ordering::SeqCst);
        self.wake();
    }

    /// Cancelled when the right to act for the pool has ended.
    pub fn ended(&self) -> &CancellationToken {
        self.tenure.ended()
    }

    /// The right to act for the pool.
    pub fn tenure(&self) -> &Tenure {
        &self.tenure
    }

    /// The holder's epoch.
    pub fn epoch(&self) -> u64 {
        self.tenure.epoch().get()
    }

    /// The right to make a durable write: waits until the holder may act.
    pub async fn deed(&self, point: Point) -> Deed {
        Deed::permitted(&self.tenure, point).await
    }

    /// Whether nothing of the pool is under way: no job is open, and none is asked for.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.is_asking() && self.book(|book| book.occupancy.jobs()) == 0
    }

    /// Whether a status may be written over one of that epoch. A newer holder's may not: it is looked into instead
    /// whether the pool is still ours.
    pub fn may_overwrite(&self, object: &str, epoch: Option<u64>) -> bool {
        match epoch.filter(|epoch| *epoch > self.epoch()) {
            None => true,
            Some(seen) => {
                self.tenure.epoch().refused(EpochGuard::Object, object, seen);
                false
            }
        }
    }

    /// Leases of this pool.
    pub fn leases(&self) -> Vec<Arc<JobLease>> {
        let mut leases = self.shared.leases.cache.group(&self.uid);
        leases.retain(|lease| lease.metadata.namespace.as_deref() == Some(&self.namespace));
        leases
    }

    /// Environments of this pool.
    pub fn environments(&self) -> Vec<Arc<SuspendedEnvironment>> {
        let mut environments = self.shared.environments.cache.group(&self.uid);
        environments.retain(|known| known.metadata.namespace.as_deref() == Some(&self.namespace));
        environments
    }

    /// A lease of this pool.
    pub fn lease(&self, name: &str) -> Option<Arc<JobLease>> {
        self.shared.leases.cache.get(&self.namespace, name).filter(|lease| lease.spec.pool_uid == self.uid)
    }

    /// An environment of this pool.
    pub fn environment(&self, name: &str) -> Option<Arc<SuspendedEnvironment>> {
        let known = self.shared.environments.cache.get(&self.namespace, name);
        known.filter(|known| known.spec.pool_uid == self.uid)
    }

    /// Leases of an environment, open or over.
    pub fn leases_of(&self, environment: &str) -> Vec<Arc<JobLease>> {
        let names = self.book(|book| book.leases_of(environment));
        names.iter().filter_map(|name| self.lease(name)).collect()
    }

    /// Reads or writes the book, after everything the caches show by now was entered into it.
    pub(crate) fn book<T>(&self, with: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = lock(&self.book);
        for (namespace, name) in self.lease_feed.take() {
            if namespace == self.namespace {
                book.lease_changed(&name, self.lease(&name).as_deref());
            }
        }
        for (namespace, name) in self.environment_feed.take() {
            if namespace == self.namespace {
                book.environment_changed(&name, self.environment(&name).as_deref());
            }
        }
        let answer = with(&mut book);
        let stirred = book.take_stirred();
        drop(book);
        if !stirred.is_empty() {
            let signals = lock(&self.signals);
            for signal in stirred.iter().filter_map(|name| signals.get(name)) {
                signal.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
        answer
    }

    /// The pool's slots as objects, hosts and this process's own decisions show them.
    pub fn view<T>(&self, with: impl FnOnce(&View<'_>) -> T) -> T {
        let (instances, concurrency) = self.instances();
        self.book(|book| with(&View { instances: &instances, occupancy: &book.occupancy, concurrency }))
    }

    /// The pool's instances in order of preference, and how many jobs it may have.
    pub(super) fn instances(&self) -> (Vec<Instance>, u32) {
        let hosts: BTreeMap<String, (u32, bool)> = self
            .hosts
            .view()
            .into_iter()
            .map(|host| (host.name, (host.slots, host.state.link().is_some())))
            .collect();
        let pool = self.pool();
        let wanted = pool.iter().flat_map(|pool| &pool.spec.provider.fixed.hosts);
        let instances = wanted.filter_map(|host| {
            let (slots, ready) = *hosts.get(&host.name)?;
            Some(Instance { name: host.name.clone(), slots, ready })
        });
        (instances.collect(), pool.as_ref().map_or(0, |pool| pool.spec.concurrency))
    }

    /// Enters how the hosts are by now.
    pub(super) fn note_hosts(&self) {
        let hosts = self.hosts.view();
        // Before the settings are known there are no hosts, which says nothing about those that will be.
        let has_settings = self.settings().is_some();
        self.book(|book| {
            for name in book.hosts() {
                if !hosts.iter().any(|host| host.name == name) {
                    book.host_is(&name, None);
                }
            }
            for host in &hosts {
                book.host_is(&host.name, Some(host.state.name()));
            }
            book.settings_are(has_settings);
        });
    }

    /// The slot decided for a lease whose status does not say so yet.
    pub fn reservation(&self, lease: &str) -> Option<Slot> {
        self.book(|book| book.reservation(lease).cloned())
    }

    /// The lease's status says so now, or it does not want the slot any more.
    pub fn settle_reservation(&self, lease: &str) {
        let known = self.lease(lease);
        self.book(|book| book.settle_reservation(lease, known.as_deref()));
    }

    /// Asks the driver for a look.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until the driver has looked again.
    pub async fn wait_for_change(&self) {
        let mut turn = self.turn.subscribe();
        tokio::select! {
            // The sender lives in `self`: waiting cannot fail.
            _ = turn.changed() => {}
            () = self.ended().cancelled() => {}
        }
    }

    /// A receiver that moves when something has changed that the driver of a lease may wait for: the lease, its slot,
    /// its environment, its host.
    pub fn signal(&self, lease: &str) -> watch::Receiver<u64> {
        lock(&self.signals).entry(lease.to_owned()).or_default().subscribe()
    }

    /// The lease has no driver any more.
    pub(super) fn forget_driver(&self, lease: &str) {
        lock(&self.signals).remove(lease);
        lock(&self.attached).remove(lease);
    }

    /// The job of a lease is attached to.
    pub fn note_attached(&self, lease: &str) {
        lock(&self.attached).insert(lease.to_owned());
    }

    /// Whether jobs on an instance have still to be attached to.
    pub(super) fn has_jobs_to_attach(&self, instance: &str) -> bool {
        let leases: Vec<String> =
            self.book(|book| book.occupancy.leases_on(instance).map(str::to_owned).collect());
        let attached = lock(&self.attached);
        leases.iter().any(|lease| !attached.contains(lease))
    }

    /// Runs a task that ends with the tenure.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended().clone();
        self.tasks.spawn(async move {
            ended.run_until_cancelled(task).await;
        });
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

    pub(super) fn adjust_hosts(self: &Arc<Self>, pool: &RunnerPool, settings: &Settings) {
        let recorded: Vec<HostStatus> =
            pool.status.as_ref().map(|status| status.hosts.clone()).unwrap_or_default();
        let caller = Caller {
            pool: format!("{}/{}", self.namespace, self.name),
            pool_uid: self.uid.clone(),
            epoch: self.tenure.epoch().clone(),
        };
        let owner = Arc::new(HostOwner { held: Arc::clone(self) });
        self.hosts.adjust(
            settings,
            &recorded,
            &caller,
            &self.shared.supervisors,
            &self.shared.bounds.dials,
            &owner,
            &self.tasks,
            self.ended(),
            &self.wake,
        );
    }
}

/// The pool as the keepers of its hosts see it.
struct HostOwner {
    held: Arc<Held>,
}

impl Owner for HostOwner {
    async fn acting(&self) {
        self.held.tenure.acting().await;
    }

    async fn record_key(&self, host: &str, key: String) -> Result<(), String> {
        let _turn = self.held.status_turn.lock().await;
        loop {
            let pool = self.held.pool().ok_or("the pool is gone")?;
            let hosts = &pool.spec.provider.fixed.hosts;
            let address = &hosts.iter().find(|known| known.name == host).ok_or("the host is gone")?.address;
            if !self.held.may_overwrite("RunnerPool", pool.status.as_ref().and_then(|status| status.epoch)) {
                return Err("a newer holder has written the pool's status".to_owned());
            }
            let mut next = pool.as_ref().clone();
            let status = next.status.get_or_insert_default();
            if !super::status::record_key(&mut status.hosts, host, address, &key)? {
                return Ok(());
            }
            let deed = self.held.deed(Point::HostKeyRecorded).await;
            match self.held.shared.pools.replace_status(deed, &next).await {
                Ok(_) => {
                    let note = format!("recorded the host key of {host} at the first connection: {key}");
                    self.held.shared.events.normal(pool.as_ref(), "HostKeyRecorded", "Connect", note).await;
                    return Ok(());
                }
                // The cache holds the newer version now.
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// A poisoned lock means that a task panicked while it held plain data: the data is as good as before.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
