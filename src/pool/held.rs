//! The state of a held pool. Everything in it can be rebuilt from objects and hosts; nothing else is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::book::Book;
use super::host_owner::HostOwner;
use super::hosts::Hosts;
use super::inventory::Inventories;
use super::machines::{self, Machine};
use super::registration::Notes;
use super::settings::{self, Settings};
use super::slots::{Instance, Slot, View};
use super::told::Told;
use crate::api::runner_pool::HostStatus;
use crate::api::{JobLease, RunnerPool, SuspendedEnvironment};
use crate::app::Shared;
use crate::bucket::watch::Verdict;
use crate::deed::{Deed, Point};
use crate::fleet::Fleet;
use crate::fleet::facts::Fate;
use crate::fleet::plan;
use crate::gitlab::transport::{Transport, TransportError, Trust};
use crate::host::link::{Caller, Link};
use crate::kube_ext::cache::Feed;
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
    /// The pool's part of its cloud, where it has one.
    pub fleet: Fleet,
    /// Held while the limits are checked and an environment is created, so that two jobs that end together do not
    /// both take the last place.
    pub suspend_turn: tokio::sync::Mutex<()>,
    /// Held while the pool's status is written.
    pub(super) status_turn: tokio::sync::Mutex<StatusTurn>,
    pub(super) tenure: Arc<Tenure>,
    /// Locked for lines only, like the rest below; written by the driver, read by everybody.
    pub(super) settings: Mutex<Option<Arc<Settings>>>,
    pub(super) problem: Mutex<Option<(&'static str, String, bool)>>,
    /// What is known of where caches are kept.
    caches: Mutex<Option<Verdict>>,
    /// What the pool's objects say. Never behind the caches: see [`Held::book`].
    pub(super) book: Mutex<Book>,
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
    /// Requests for a job that are under way: ones whose jobs the pool has to take, whatever it wishes by then.
    pub(super) asking: AtomicUsize,
    /// The connections to its GitLab, for as long as the pool is held.
    transport: Mutex<Option<Transport>>,
    /// What is known of its own runner, where it makes that.
    runner: Mutex<Notes>,
    /// Whether the runner's token is being replaced: the one in hand may be dead.
    token_in_doubt: AtomicBool,
}

/// What is kept from one write of the pool's status to the next.
#[derive(Default)]
pub(super) struct StatusTurn {
    /// Since when the pool's load has differed from what is written.
    pub(super) differs_since: Option<Instant>,
    /// What people were told of its conditions; `None` before this holder's first look at them.
    pub(super) told: Option<Told>,
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
            fleet: Fleet::new(pool.spec.provider.aws.is_some()),
            suspend_turn: tokio::sync::Mutex::new(()),
            status_turn: tokio::sync::Mutex::default(),
            tenure,
            settings: Mutex::new(None),
            problem: Mutex::new(None),
            caches: Mutex::new(None),
            busy: Mutex::new(HashSet::new()),
            tasks: TaskTracker::new(),
            wake: Arc::new(Notify::new()),
            turn: watch::Sender::new(0),
            recheck: Notify::new(),
            asking: AtomicUsize::new(0),
            transport: Mutex::new(None),
            runner: Mutex::default(),
            token_in_doubt: AtomicBool::new(false),
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

    /// What is known of where caches are kept.
    pub(super) fn caches(&self) -> Option<Verdict> {
        lock(&self.caches).clone()
    }

    /// Notes what is known of where caches are kept; whether it is news.
    pub fn note_caches(&self, verdict: Verdict) -> bool {
        lock(&self.caches).replace(verdict.clone()) != Some(verdict)
    }

    /// Whether the settings are known to be wrong now, whatever was good before.
    pub fn settings_refused(&self) -> bool {
        self.problem().is_some_and(|(_, _, is_passing)| !is_passing)
    }

    /// GitLab refused the token of these settings in a job request: it was good before, so it is checked again at once.
    /// One that was replaced meanwhile says nothing about the new one.
    pub fn token_was_refused(&self, asked_with: &Settings) {
        let is_current = self.settings().is_some_and(|now| now.same_token_as(asked_with));
        if !is_current || self.is_token_in_doubt() {
            return;
        }
        *lock(&self.settings) = None;
        let error = settings::refused(&asked_with.spec.gitlab, &self.name);
        *lock(&self.problem) = Some((error.reason(), error.to_string(), error.is_passing()));
        self.recheck.notify_one();
        self.wake();
    }

    /// The connections to the pool's GitLab, from now on of this trust.
    ///
    /// # Errors
    /// When its certificates cannot be read.
    pub fn transport(&self, trust: Trust) -> Result<Transport, TransportError> {
        let mut transport = lock(&self.transport);
        if let Some(transport) = transport.as_ref() {
            transport.adopt(trust)?;
            return Ok(transport.clone());
        }
        Ok(transport.insert(Transport::new(trust)?).clone())
    }

    /// What is known of the pool's own runner.
    pub fn runner(&self) -> Notes {
        lock(&self.runner).clone()
    }

    /// Changes what is known of it.
    pub(super) fn note_runner<T>(&self, with: impl FnOnce(&mut Notes) -> T) -> T {
        with(&mut lock(&self.runner))
    }

    /// Whether the runner's token is being replaced.
    pub fn is_token_in_doubt(&self) -> bool {
        self.token_in_doubt.load(Ordering::SeqCst)
    }

    /// Says whether the runner's token is being replaced.
    pub(super) fn set_token_in_doubt(&self, in_doubt: bool) {
        self.token_in_doubt.store(in_doubt, Ordering::SeqCst);
    }

    /// Whether a request for a job is under way.
    pub fn is_asking(&self) -> bool {
        self.open_requests() > 0
    }

    /// How many are.
    pub fn open_requests(&self) -> usize {
        self.asking.load(Ordering::SeqCst)
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

    /// The name of an older pool of this cluster that names the same group, if there is one: a group is one pool's.
    pub fn older_pool_of_the_same_group(&self) -> Option<String> {
        let own = self.pool()?;
        let aws = own.spec.provider.aws.clone()?;
        let age = |pool: &RunnerPool| {
            let created = pool.metadata.creation_timestamp.as_ref().map(|at| at.0);
            (created, pool.uid())
        };
        let rivals = self.shared.pools.cache.select(|pool| {
            let is_same = pool.spec.provider.aws.as_ref().is_some_and(|other| {
                other.region == aws.region
                    && other.auto_scaling_group == aws.auto_scaling_group
                    && other.endpoint_url == aws.endpoint_url
            });
            is_same && age(pool) < age(&own)
        });
        let oldest = rivals.iter().min_by_key(|pool| age(pool))?;
        Some(format!("{}/{}", oldest.namespace().unwrap_or_default(), oldest.name_any()))
    }

    /// An instance is about to be taken away by its cloud: everything on it is looked at again.
    pub fn instance_announced(&self, instance: &str) {
        self.book(|book| book.look_at_instance(instance));
        self.wake();
    }

    /// What became of an instance in the pool's cloud: why it is gone, if it is for good.
    pub fn loss_of(&self, instance: &str) -> Option<String> {
        let facts = self.fleet.facts()?;
        (facts.fate(instance) == Fate::Gone).then(|| {
            let reason = facts.instances.get(instance).and_then(|known| known.state_reason.clone());
            let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("instance {instance} was terminated{reason}")
        })
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
        let growth = self.fleet.growth();
        self.book(|book| {
            with(&View { instances: &instances, occupancy: &book.occupancy, concurrency, growth })
        })
    }

    /// The pool's instances in order of preference, and how many jobs it may have.
    pub(super) fn instances(&self) -> (Vec<Instance>, u32) {
        let hosts: BTreeMap<String, (u32, Option<Arc<Link>>)> =
            self.hosts.view().into_iter().map(|host| (host.name, (host.slots, host.state.link()))).collect();
        let placeable = self.fleet.placeable();
        let instances = self.machines().into_iter().filter_map(|machine| {
            let (slots, link) = hosts.get(&machine.name)?;
            let (ready, closed) = match &placeable {
                None => (link.is_some(), BTreeSet::new()),
                Some(open) => match open.get(&machine.name) {
                    Some(closed) => {
                        (link.as_ref().is_some_and(|link| !self.is_used_up(link)), closed.clone())
                    }
                    None => (false, BTreeSet::new()),
                },
            };
            Some(Instance { name: machine.name, slots: *slots, ready, closed })
        });
        (instances.collect(), self.pool().map_or(0, |pool| pool.spec.concurrency))
    }

    /// Whether an instance of a cloud has had as many jobs as the pool gives to one. Asked when a slot is given away, since
    /// the fleet's plan may be older than the last job there.
    pub fn is_used_up(&self, instance: &Link) -> bool {
        let max_uses = self.settings().map_or(0, |settings| settings.spec.max_use_count);
        plan::is_used_up(max_uses, instance.jobs())
    }

    /// The pool's machines by now, in order of preference.
    pub fn machines(&self) -> Vec<Machine> {
        let Some(pool) = self.pool() else { return Vec::new() };
        machines::machines(&pool, self.fleet.facts().as_deref())
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

    /// Waits until the driver has looked again. Past the tenure's end there is nothing to wait for, and it is over at once,
    /// but not without a pause: a task of [`Self::spawn`] that waits in a loop is ended there.
    pub async fn wait_for_change(&self) {
        let mut turn = self.turn.subscribe();
        tokio::select! {
            // The sender lives in `self`: waiting cannot fail.
            _ = turn.changed() => {}
            () = self.ended().cancelled() => tokio::task::yield_now().await,
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

    pub(super) fn adjust_hosts(self: &Arc<Self>, pool: &RunnerPool, settings: &Settings) {
        let recorded: Vec<HostStatus> =
            pool.status.as_ref().map(|status| status.hosts.clone()).unwrap_or_default();
        let caller = Caller {
            pool: format!("{}/{}", self.namespace, self.name),
            pool_uid: self.uid.clone(),
            epoch: self.tenure.epoch().clone(),
            asks_metadata: pool.spec.provider.aws.is_some(),
        };
        let owner = Arc::new(HostOwner { held: Arc::clone(self) });
        self.hosts.adjust(
            settings,
            &self.machines(),
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

/// A poisoned lock means that a task panicked while it held plain data: the data is as good as before.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
