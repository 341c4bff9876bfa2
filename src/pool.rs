//! One held pool: its hosts, its intake, its leases and environments, for as long as the Lease is ours.
//!
//! [`hold`] is the driver: on every change it looks at objects and hosts, lets the pure planners decide, and starts
//! what is due. Each open lease has one task; each step for an environment is one task. All of them end with the
//! tenure, at any await, without undoing anything: the next holder finds the rest in the objects and on the hosts.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::runner_pool::{DeletionPolicy, HostStatus};
use crate::api::{JobLease, RunnerPool, SuspendedEnvironment, labels};
use crate::app::Shared;
use crate::environment;
use crate::host::keeper::{HostState, RecordKey};
use crate::host::link::Caller;
use crate::kube_ext::is_conflict;
use crate::leader::Tenure;
use crate::lease;

pub mod hosts;
pub mod intake;
pub mod inventory;
pub mod settings;
pub mod slots;
pub mod status;

use hosts::Hosts;
use inventory::Inventories;
use settings::Settings;
use slots::{Claimant, Instance, Sleeper, Slot, View};

/// How often a held pool looks at everything although nothing seems to have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How often settings are read again: Secrets are not watched.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(60);

/// How soon settings that could not be used are read again.
const SETTINGS_RETRY: Duration = Duration::from_secs(5);

/// How long a lease is kept for people after its end, and how many of one pool at most.
const FINISHED_LEASE_TTL: Duration = Duration::from_secs(15 * 60);
const FINISHED_LEASES_KEPT: usize = 100;

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
    /// Held while the pool's status is written.
    status_turn: tokio::sync::Mutex<()>,
    tenure: Arc<Tenure>,
    /// Locked for lines only, like the rest below; written by the driver, read by everybody.
    settings: Mutex<Option<Arc<Settings>>>,
    problem: Mutex<Option<(&'static str, String, bool)>>,
    /// Slots decided for leases whose status does not say so yet.
    reservations: Mutex<HashMap<String, Slot>>,
    /// Uids of leases and environments with a running task, and names of leases that the intake still writes.
    busy: Mutex<HashSet<String>>,
    tasks: TaskTracker,
    wake: Arc<Notify>,
    /// Moves after every look of the driver.
    turn: watch::Sender<u64>,
}

/// Holds a pool until its tenure ends. Every task has ended then, but for the intake's open request: GitLab may have
/// assigned a job already, so it is awaited by whoever gets it, and its job is made durable for the next holder.
pub async fn hold(shared: Shared, pool: Arc<RunnerPool>, tenure: Arc<Tenure>) -> tokio::task::JoinHandle<()> {
    let held = Arc::new(Held::new(shared, &pool, tenure));
    tracing::info!(pool = held.name, epoch = held.epoch(), "the pool is held");
    held.spawn(refresh_settings(Arc::clone(&held)));
    held.spawn(lease::forget_payloads(Arc::clone(&held)));
    let intake = tokio::spawn(intake::run(Arc::clone(&held)));
    let mut changes = held.shared.changes();
    while !held.ended().is_cancelled() {
        let look_again = look(&held).await;
        held.turn.send_modify(|turn| *turn = turn.wrapping_add(1));
        tokio::select! {
            () = tokio::time::sleep(look_again) => {}
            () = held.wake.notified() => {}
            () = changes.changed() => {}
            () = held.ended().cancelled() => {}
        }
    }
    held.tasks.close();
    held.tasks.wait().await;
    held.shared.metrics.forget_pool(&held.name);
    tracing::info!(pool = held.name, "the pool is not held any more");
    intake
}

/// One look at everything; answers when to look again at the latest.
async fn look(held: &Arc<Held>) -> Duration {
    let Some(pool) = held.pool() else { return LOOK_INTERVAL };
    if pool.metadata.deletion_timestamp.is_none() && !pool.finalizers().iter().any(|f| f == labels::FINALIZER)
    {
        add_finalizer(held, &pool).await;
    }
    if let Some(settings) = held.settings() {
        held.adjust_hosts(&pool, &settings);
    }
    drive_leases(held);
    place(held);
    inventory::look(held);
    let next = environment::look(held);
    collect_finished(held);
    if let Err(error) = write_status(held).await {
        tracing::warn!(pool = held.name, %error, "the pool's status was not written");
    }
    if pool.metadata.deletion_timestamp.is_some() {
        delete(held, &pool).await;
    }
    let until_next =
        next.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO));
    until_next.map_or(LOOK_INTERVAL, |wait| wait.clamp(Duration::from_millis(20), LOOK_INTERVAL))
}

/// Starts a task for each open lease that has none: new ones, and those of earlier holders.
fn drive_leases(held: &Arc<Held>) {
    for lease in held.leases() {
        let is_over = !lease.phase().is_open();
        let is_deleted = lease.metadata.deletion_timestamp.is_some();
        if is_over && !is_deleted {
            continue;
        }
        if held.is_arriving(&lease.name_any()) {
            continue;
        }
        let Some(busy) = held.begin(lease.uid()) else { continue };
        let held_by_task = Arc::clone(held);
        held.spawn(async move {
            if is_over {
                lease::let_go(&held_by_task, &lease).await;
            } else {
                lease::drive(&held_by_task, lease).await;
            }
            drop(busy);
            held_by_task.wake();
        });
    }
}

/// Gives free slots to waiting leases. Their tasks find the reservation after this turn.
fn place(held: &Held) {
    let assignments = slots::assign(&held.view());
    if !assignments.placed.is_empty() {
        let mut reservations = lock(&held.reservations);
        reservations.extend(assignments.placed);
    }
    if !assignments.waiting.is_empty() {
        tracing::debug!(pool = held.name, waiting = ?assignments.waiting, "jobs wait for a slot");
    }
}

/// Deletes leases that have been over for a while.
fn collect_finished(held: &Arc<Held>) {
    let mut over: Vec<Arc<JobLease>> = held
        .leases()
        .into_iter()
        .filter(|lease| !lease.phase().is_open() && lease.metadata.deletion_timestamp.is_none())
        .collect();
    over.sort_by_key(|lease| std::cmp::Reverse(lease.spec.accepted_at.0));
    let now = Timestamp::now();
    for (index, lease) in over.into_iter().enumerate() {
        let ended_at = lease.status.as_ref().and_then(lease::ended_at).unwrap_or(lease.spec.accepted_at.0);
        let age = Duration::try_from(now.duration_since(ended_at)).unwrap_or(Duration::ZERO);
        if index < FINISHED_LEASES_KEPT && age < FINISHED_LEASE_TTL {
            continue;
        }
        let Some(busy) = held.begin(lease.uid()) else { continue };
        let held_by_task = Arc::clone(held);
        held.spawn(async move {
            lease::let_go(&held_by_task, &lease).await;
            drop(busy);
        });
    }
}

async fn add_finalizer(held: &Held, pool: &RunnerPool) {
    let mut finalizers = pool.finalizers().to_vec();
    finalizers.push(labels::FINALIZER.to_owned());
    let patch = json!({ "metadata": {
        "finalizers": finalizers,
        "resourceVersion": pool.resource_version(),
    } });
    if let Err(error) = held.shared.pools.merge(pool, &patch).await {
        tracing::warn!(pool = held.name, %error, "the pool's finalizer was not added yet");
    }
}

/// One step of a pool's deletion: environments as its policy says, then the hosts, then the finalizer.
async fn delete(held: &Arc<Held>, pool: &RunnerPool) {
    let environments = held.environments();
    match pool.spec.deletion_policy {
        DeletionPolicy::Release => {
            for environment in &environments {
                if environment.metadata.deletion_timestamp.is_none()
                    && let Err(error) = held.shared.environments.delete(environment).await
                {
                    tracing::warn!(pool = held.name, %error, "an environment was not released yet");
                }
            }
        }
        DeletionPolicy::Block => {}
    }
    if !environments.is_empty() || held.leases().iter().any(|lease| lease.phase().is_open()) {
        return;
    }
    for lease in held.leases() {
        if lease.metadata.deletion_timestamp.is_none()
            && let Err(error) = held.shared.leases.delete(&lease).await
        {
            tracing::warn!(pool = held.name, %error, "a finished lease was not deleted yet");
            return;
        }
        lease::let_go(held, &lease).await;
    }
    for host in held.hosts.view() {
        let Some(link) = host.state.link() else { continue };
        if let Err(error) = link.unclaim().await {
            tracing::warn!(pool = held.name, host = host.name, %error, "the host was not given back yet");
            return;
        }
    }
    if let Err(error) = held.shared.pools.remove_finalizer(pool).await {
        tracing::warn!(pool = held.name, %error, "the pool's finalizer was not removed yet");
        return;
    }
    held.ended().cancel();
}

/// Reads the settings again and again while the pool is held.
async fn refresh_settings(held: Arc<Held>) {
    let mut changes = held.shared.pools.cache.changes();
    let mut seen = None;
    loop {
        let Some(pool) = held.pool() else { return };
        let known = held.settings();
        let wait =
            match settings::read(&held.shared.client, &pool, known.as_ref(), &held.shared.metrics).await {
                Ok(settings) => {
                    if lock(&held.problem).take().is_some() || known.is_none() {
                        tracing::info!(
                            pool = held.name,
                            runner_id = settings.identity.runner_id,
                            "the pool can work"
                        );
                    }
                    *lock(&held.settings) = Some(settings);
                    SETTINGS_INTERVAL
                }
                Err(error) => {
                    let problem = (error.reason(), error.to_string(), error.is_passing());
                    if lock(&held.problem).replace(problem.clone()).as_ref() != Some(&problem) {
                        tracing::warn!(
                            pool = held.name,
                            reason = problem.0,
                            why = problem.1,
                            "the pool cannot work"
                        );
                        held.shared.events.warning(pool.as_ref(), problem.0, "ReadSettings", problem.1).await;
                    }
                    SETTINGS_RETRY
                }
            };
        held.wake();
        let generation = pool.metadata.generation;
        if seen != generation {
            seen = generation;
        }
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => break,
                Ok(()) = changes.changed() => {
                    if held.pool().is_none_or(|pool| pool.metadata.generation != seen) {
                        break;
                    }
                }
            }
        }
    }
}

async fn write_status(held: &Held) -> Result<(), kube::Error> {
    let _turn = held.status_turn.lock().await;
    let Some(pool) = held.pool() else { return Ok(()) };
    let view = held.view();
    let hosts = held.hosts.view();
    let settings = held.settings();
    let problem = held.problem();
    let observed = status::Observed {
        pool: &pool,
        problem,
        identity: settings.map(|settings| (settings.identity.runner_id, settings.identity.system_id.clone())),
        hosts: &hosts,
        view: &view,
        idle: intake::may_poll(held).err(),
        holder: &held.shared.identity,
        epoch: held.epoch(),
        now: Timestamp::now(),
    };
    let metrics = &held.shared.metrics;
    metrics.pool(&held.name, view.claimants.len(), pool.spec.concurrency, view.sleepers.len(), held.epoch());
    let status = status::status(&observed);
    if pool.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let mut next = pool.as_ref().clone();
    next.status = Some(status);
    match held.shared.pools.replace_status(&next).await {
        Ok(_) => Ok(()),
        // Somebody changed the pool meanwhile; the next look writes on top of that.
        Err(error) if is_conflict(&error) => {
            held.wake();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The mark of a running task; dropping it lets the next look start another.
pub struct Busy {
    held: Arc<Held>,
    uid: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.held.busy).remove(&self.uid);
    }
}

impl Held {
    fn new(shared: Shared, pool: &RunnerPool, tenure: Arc<Tenure>) -> Self {
        Self {
            shared,
            namespace: pool.namespace().unwrap_or_default(),
            name: pool.name_any(),
            uid: pool.uid().unwrap_or_default(),
            hosts: Hosts::default(),
            inventories: Inventories::default(),
            suspend_turn: tokio::sync::Mutex::new(()),
            status_turn: tokio::sync::Mutex::new(()),
            tenure,
            settings: Mutex::new(None),
            problem: Mutex::new(None),
            reservations: Mutex::new(HashMap::new()),
            busy: Mutex::new(HashSet::new()),
            tasks: TaskTracker::new(),
            wake: Arc::new(Notify::new()),
            turn: watch::Sender::new(0),
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
    fn problem(&self) -> Option<(&'static str, String, bool)> {
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
        self.wake();
    }

    /// Cancelled when the right to act for the pool has ended.
    pub fn ended(&self) -> &CancellationToken {
        &self.tenure.ended
    }

    /// The holder's epoch.
    pub fn epoch(&self) -> u64 {
        self.tenure.epoch()
    }

    /// Leases of this pool.
    pub fn leases(&self) -> Vec<Arc<JobLease>> {
        self.shared.leases.cache.select(|lease| {
            lease.spec.pool_uid == self.uid && lease.metadata.namespace.as_deref() == Some(&self.namespace)
        })
    }

    /// Environments of this pool.
    pub fn environments(&self) -> Vec<Arc<SuspendedEnvironment>> {
        self.shared.environments.cache.select(|environment| {
            environment.spec.pool_uid == self.uid
                && environment.metadata.namespace.as_deref() == Some(&self.namespace)
        })
    }

    /// The pool's slots as objects, hosts and this process's own decisions show them.
    pub fn view(&self) -> View {
        let reservations = lock(&self.reservations).clone();
        let hosts: BTreeMap<String, (u32, bool)> = self
            .hosts
            .view()
            .into_iter()
            .map(|host| (host.name, (host.slots, host.state.link().is_some())))
            .collect();
        let pool = self.pool();
        let wanted = pool.iter().flat_map(|pool| &pool.spec.provider.fixed.hosts);
        let instances = wanted
            .filter_map(|host| {
                let (slots, ready) = *hosts.get(&host.name)?;
                Some(Instance { name: host.name.clone(), slots, ready })
            })
            .collect();
        let leases = self.leases();
        let claimants = leases.iter().filter(|lease| lease.phase().is_open()).map(|lease| {
            let name = lease.name_any();
            let slot = lease
                .place()
                .map(|(instance, index)| Slot { instance: instance.to_owned(), index })
                .or_else(|| reservations.get(&name).cloned());
            Claimant {
                lease: name,
                environment: lease.spec.environment_id.clone(),
                slot,
                resumes: lease.spec.resume_from.is_some(),
                accepted_at: lease.spec.accepted_at.0,
            }
        });
        let claimants: Vec<Claimant> = claimants.collect();
        let used: BTreeSet<&str> = claimants
            .iter()
            .filter(|claimant| claimant.slot.is_some())
            .map(|claimant| claimant.environment.as_str())
            .collect();
        let sleepers = self
            .environments()
            .iter()
            .map(|environment| Sleeper {
                environment: environment.spec.environment_id.clone(),
                slot: Slot {
                    instance: environment.spec.origin.instance.clone(),
                    index: environment.spec.origin.slot,
                },
                asleep: environment.bound_lease().is_none()
                    && !used.contains(environment.spec.environment_id.as_str()),
            })
            .collect();
        View {
            instances,
            claimants,
            sleepers,
            concurrency: pool.as_ref().map_or(0, |pool| pool.spec.concurrency),
        }
    }

    /// The slot decided for a lease whose status does not say so yet.
    pub fn reservation(&self, lease: &str) -> Option<Slot> {
        lock(&self.reservations).get(lease).cloned()
    }

    /// The lease's status says so now, or it does not want the slot any more.
    pub fn settle_reservation(&self, lease: &str) {
        lock(&self.reservations).remove(lease);
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

    /// A receiver that moves after every look of the driver.
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.turn.subscribe()
    }

    /// Runs a task that ends with the tenure.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended().clone();
        self.tasks.spawn(async move {
            ended.run_until_cancelled(task).await;
        });
    }

    /// Marks an object as having a task; `None` when it has one.
    pub fn begin(self: &Arc<Self>, uid: Option<String>) -> Option<Busy> {
        let uid = uid?;
        lock(&self.busy).insert(uid.clone()).then(|| Busy { held: Arc::clone(self), uid })
    }

    /// Marks a lease as being written by the intake, until the mark is dropped.
    pub fn arriving(self: &Arc<Self>, lease: &str) -> Option<Busy> {
        self.begin(Some(lease.to_owned()))
    }

    fn is_arriving(&self, lease: &str) -> bool {
        lock(&self.busy).contains(lease)
    }

    fn adjust_hosts(self: &Arc<Self>, pool: &RunnerPool, settings: &Settings) {
        let recorded: Vec<HostStatus> =
            pool.status.as_ref().map(|status| status.hosts.clone()).unwrap_or_default();
        let caller = Caller {
            pool: format!("{}/{}", self.namespace, self.name),
            pool_uid: self.uid.clone(),
            epoch: Arc::clone(&self.tenure.epoch),
        };
        let recorder = Arc::new(KeyRecorder { held: Arc::clone(self) });
        self.hosts.adjust(
            settings,
            &recorded,
            &caller,
            &self.shared.supervisors,
            &recorder,
            &self.tasks,
            self.ended(),
            &self.wake,
        );
        for host in self.hosts.view() {
            if let HostState::Fenced { seen } = host.state {
                // The Lease is still ours, or this task would be gone: it was deleted or restored.
                self.tenure.raise_above(seen);
            }
        }
    }
}

/// Writes first-seen host keys into the pool's status.
struct KeyRecorder {
    held: Arc<Held>,
}

impl RecordKey for KeyRecorder {
    async fn record(&self, host: &str, key: String) -> Result<(), String> {
        let _turn = self.held.status_turn.lock().await;
        let gone = || "the pool is gone".to_owned();
        let pool = self.held.pool().ok_or_else(gone)?;
        let address =
            pool.spec.provider.fixed.hosts.iter().find(|known| known.name == host).ok_or_else(gone)?;
        let recorded_address = Some(address.address.clone());
        let mut next = pool.as_ref().clone();
        let mut status = next.status.take().unwrap_or_default();
        match status.hosts.iter_mut().find(|known| known.name == host) {
            Some(known) if known.recorded_host_key.as_ref() == Some(&key) => return Ok(()),
            Some(known) => {
                known.recorded_host_key = Some(key.clone());
                known.recorded_address = recorded_address;
            }
            None => status.hosts.push(HostStatus {
                name: host.to_owned(),
                state: "Connecting".to_owned(),
                recorded_host_key: Some(key.clone()),
                recorded_address,
                ..HostStatus::default()
            }),
        }
        next.status = Some(status);
        self.held.shared.pools.replace_status(&next).await.map_err(|error| error.to_string())?;
        let note = format!("recorded the host key of {host} at the first connection: {key}");
        self.held
            .shared
            .events
            .normal(pool.as_ref(), "HostKeyRecorded", format!("Connect {host}"), note)
            .await;
        Ok(())
    }
}

/// A poisoned lock means that a task panicked while it held plain data: the data is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
