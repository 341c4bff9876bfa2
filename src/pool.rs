//! One held pool: its hosts, its intake, its leases and environments, for as long as the Lease is ours.
//!
//! [`hold`] is the driver: on every change it looks at objects and hosts, lets the pure planners decide, and starts
//! what is due. Each open lease has one task; each step for an environment is one task. All of them end with the
//! tenure, at any await, without undoing anything: the next holder finds the rest in the objects and on the hosts.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde_json::json;
use tokio::time::Instant;
use tracing::Instrument;

use crate::api::runner_pool::{DeletionPolicy, EnvironmentCounts, RunnerPoolStatus};
use crate::api::suspended_environment::Tier;
use crate::api::{JobLease, RunnerPool, SuspendedEnvironment, labels};
use crate::app::Shared;
use crate::bucket;
use crate::clock;
use crate::deed::Point;
use crate::environment;
use crate::fleet;
use crate::host::keeper::HostState;
use crate::kube_ext::is_conflict;
use crate::leader::Tenure;
use crate::lease;

pub mod agenda;
pub mod book;
pub mod busy;
pub mod held;
mod host_owner;
pub mod hosts;
pub mod intake;
pub mod inventory;
pub mod machines;
pub mod picture;
pub mod registration;
pub mod runner_secret;
pub mod settings;
pub mod slots;
pub mod status;
pub mod told;

use held::lock;
use told::Told;

pub use busy::Subject;
pub use held::Held;

/// How often a held pool looks at everything although nothing seems to have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How often settings are read again: Secrets are not watched.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(60);

/// How long the pool's status may lag behind its load, which every job changes twice: one write in so long, however
/// many jobs there are, and none for jobs that are shorter.
const LOAD_LAG: Duration = Duration::from_secs(2);

/// The least time between two looks at settings that are good: a token's life may be of any length.
const LEAST_SETTINGS_INTERVAL: Duration = Duration::from_secs(1);

/// How soon settings that could not be used are read again.
const SETTINGS_RETRY: Duration = Duration::from_secs(5);

/// How long a lease is kept for people after its end, while there are not too many of the pool.
const FINISHED_LEASE_TTL: Duration = Duration::from_secs(15 * 60);

/// The pause before a lease that could not be deleted is tried again.
const LET_GO_RETRY: Duration = Duration::from_secs(2);

/// Holds a pool until its tenure ends. Every task has ended then, but for the intake's open request: GitLab may have
/// assigned a job already, so it is awaited by whoever gets it, and its job is made durable for the next holder.
pub async fn hold(shared: Shared, pool: Arc<RunnerPool>, tenure: Arc<Tenure>) -> tokio::task::JoinHandle<()> {
    let held = Arc::new(Held::new(shared, &pool, tenure));
    tracing::info!(pool = held.name, epoch = held.epoch(), "the pool is held");
    held.spawn(refresh_settings(Arc::clone(&held)));
    held.spawn(lease::forget_payloads(Arc::clone(&held)));
    held.spawn(environment::work(Arc::clone(&held)));
    held.spawn(fleet::work::work(Arc::clone(&held)));
    held.spawn(bucket::watch::watch(Arc::clone(&held)));
    let intake = tokio::spawn(intake::run(Arc::clone(&held)));
    let mut pools = held.shared.pools.cache.changes();
    let mut renewals = held.tenure.renewals();
    while !held.ended().is_cancelled() {
        renewals.borrow_and_update();
        // Without the right to act there is nothing to begin; what runs goes on.
        let look_again = match held.tenure.may_act() {
            true => held.ended().run_until_cancelled(look(&held)).await.unwrap_or_default(),
            false => LOOK_INTERVAL,
        };
        held.turn.send_modify(|turn| *turn = turn.wrapping_add(1));
        if held.tenure.is_leaving() && held.is_at_rest() {
            held.tenure.end();
        }
        tokio::select! {
            () = tokio::time::sleep(look_again) => {}
            () = held.wake.notified() => {}
            () = held.lease_feed.moved() => {}
            () = held.environment_feed.moved() => {}
            // The sender lives in the cache: waiting cannot fail.
            _ = pools.changed() => {}
            // The sender lives in the tenure: waiting cannot fail.
            _ = renewals.changed() => {}
            () = held.ended().cancelled() => {}
        }
    }
    held.tasks.close();
    held.tasks.wait().await;
    held.shared.metrics.forget_pool(&held.namespace, &held.name);
    tracing::info!(pool = held.name, "the pool is not held any more");
    intake
}

/// One look at what has changed or become due; answers when to look again at the latest.
async fn look(held: &Arc<Held>) -> Duration {
    let Some(pool) = held.pool() else { return LOOK_INTERVAL };
    if pool.metadata.deletion_timestamp.is_none() && !pool.finalizers().iter().any(|f| f == labels::FINALIZER)
    {
        add_finalizer(held, &pool).await;
    }
    let began = Instant::now();
    if let Some(settings) = held.settings() {
        held.adjust_hosts(&pool, &settings);
    }
    held.note_hosts();
    // In order of urgency, which counts most when a pool has just been taken over: jobs, what is due, the rest.
    drive_leases(held);
    place(held);
    environment::look(held);
    inventory::look(held);
    held.shared.metrics.looked(&held.name, began.elapsed());
    let status_due = write_status(held).await.unwrap_or_else(|error| {
        tracing::warn!(pool = held.name, %error, "the pool's status was not written");
        None
    });
    if pool.metadata.deletion_timestamp.is_some() {
        delete(held, &pool).await;
    }
    let next = held
        .book(|book| [book.lease_agenda.next(), book.environment_agenda.next()].into_iter().flatten().min());
    let until_next =
        next.map(|at| Duration::try_from(at.duration_since(clock::now())).unwrap_or(Duration::ZERO));
    let soonest = until_next.into_iter().chain(status_due).min();
    soonest.map_or(LOOK_INTERVAL, |wait| wait.clamp(Duration::from_millis(20), LOOK_INTERVAL))
}

/// Looks at the leases that have changed: an open one gets a task, unless it has one, be it new or an earlier holder's;
/// one that was kept for people long enough is deleted.
fn drive_leases(held: &Arc<Held>) {
    let now = clock::now();
    for name in held.book(|book| book.lease_agenda.take(now)) {
        let Some(lease) = held.lease(&name) else { continue };
        let is_over = !lease.phase().is_open();
        // That its slot is clean, or the host no more the pool's, is news of it.
        if is_over && keeps_a_slot_closed(held, &lease) {
            continue;
        }
        if is_over && lease.metadata.deletion_timestamp.is_none() {
            let kept_until = kept_until(&lease);
            if kept_until > now && !held.book(|book| book.is_surplus(&name)) {
                held.book(|book| book.lease_agenda.at(&name, Some(kept_until)));
                continue;
            }
        }
        if held.is_arriving(&name) {
            // Its mark is dropped when it has arrived, and it is looked at again then.
            continue;
        }
        let Some(mut busy) = held.begin(lease.uid(), Subject::Lease(name.clone())) else { continue };
        let held_by_task = Arc::clone(held);
        let span = tracing::info_span!(
            "job",
            pool = held.name,
            job = lease.spec.job_id,
            environment = lease.spec.environment_id
        );
        let task = async move {
            if is_over {
                lease::let_go(&held_by_task, &lease).await;
                busy.again_after(LET_GO_RETRY);
            } else {
                lease::drive(&held_by_task, lease).await;
                held_by_task.forget_driver(&name);
            }
        };
        held.spawn(task.instrument(span));
    }
}

/// Whether a lease that is over says that its slot is in quarantine. It does not go before that is lifted, or before
/// the pool has no such host any more.
fn keeps_a_slot_closed(held: &Held, lease: &JobLease) -> bool {
    lease.quarantined_place().is_some_and(|(instance, _)| held.hosts.watch(instance).is_some())
}

/// Until when a lease that is over is kept for people.
fn kept_until(lease: &JobLease) -> Timestamp {
    let ended_at = lease.status.as_ref().and_then(lease::ended_at).unwrap_or(lease.spec.accepted_at.0);
    let kept = SignedDuration::try_from(FINISHED_LEASE_TTL).unwrap_or(SignedDuration::MAX);
    ended_at.checked_add(kept).unwrap_or(Timestamp::MAX)
}

/// Gives free slots to waiting leases. Their tasks are told.
fn place(held: &Held) {
    let assignments = held.view(slots::assign);
    for (name, slot) in assignments.placed {
        if let Some(lease) = held.lease(&name) {
            held.book(|book| {
                let link = held.hosts.link(&slot.instance).filter(|_| held.fleet.is_cloud());
                // The fleet may have closed it since, and the one before it in this list may have used it up.
                if !held.fleet.is_open(&slot) || link.as_ref().is_some_and(|link| held.is_used_up(link)) {
                    return;
                }
                if let Some(link) = link {
                    link.expect_job(lease.spec.job_id);
                }
                book.reserve(&lease, slot);
            });
        }
    }
    if assignments.waiting > 0 {
        tracing::debug!(pool = held.name, waiting = assignments.waiting, "jobs wait for a slot");
    }
}

async fn add_finalizer(held: &Held, pool: &RunnerPool) {
    let mut finalizers = pool.finalizers().to_vec();
    finalizers.push(labels::FINALIZER.to_owned());
    let patch = json!({ "metadata": {
        "finalizers": finalizers,
        "resourceVersion": pool.resource_version(),
    } });
    if let Err(error) =
        held.shared.pools.merge(held.deed(Point::PoolFinalizerAdded).await, pool, &patch).await
    {
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
                    && let Err(error) = held
                        .shared
                        .environments
                        .delete(held.deed(Point::PoolEnvironmentReleased).await, environment)
                        .await
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
    // The answer to a request under way may be a job, which would have no pool to run it.
    if held.is_asking() {
        return;
    }
    // Hosts have to be given back: those that have not been asked yet are waited for, those that are away are not.
    let may_yet_connect = match held.settings() {
        Some(_) => held.hosts.view().iter().any(|host| matches!(host.state, HostState::Connecting)),
        None => held.problem().is_none_or(|(_, _, is_passing)| is_passing),
    };
    if may_yet_connect {
        return;
    }
    // While leases still say whose they were: what their jobs left on the hosts goes at once. What nothing knows is
    // swept after its grace, and the host says so until then.
    for host in held.hosts.view() {
        if let Some(link) = host.state.link() {
            inventory::tidy_now(held, &host.name, &link).await;
        }
    }
    for lease in held.leases() {
        if lease.metadata.deletion_timestamp.is_none()
            && let Err(error) =
                held.shared.leases.delete(held.deed(Point::PoolLeaseDeleted).await, &lease).await
        {
            tracing::warn!(pool = held.name, %error, "a finished lease was not deleted yet");
            return;
        }
        lease::let_go(held, &lease).await;
    }
    // Instances, volumes and the group itself are given back before the last word of the pool is gone.
    if !fleet::work::is_given_back(held) {
        held.fleet.wake();
        return;
    }
    if let Err(error) = fleet::work::leave_group(held).await {
        tracing::warn!(pool = held.name, %error, "the group was not given back yet");
        return;
    }
    for host in held.hosts.view() {
        let Some(link) = host.state.link() else { continue };
        if let Err(error) = link.unclaim(held.deed(Point::HostUnclaimed).await).await {
            tracing::warn!(pool = held.name, host = host.name, %error, "the host was not given back yet");
            return;
        }
    }
    if let Err(waits_for) = registration::withdraw(held, pool).await {
        let is_news =
            held.note_runner(|notes| notes.removal.replace(waits_for.clone()).as_ref() != Some(&waits_for));
        if is_news {
            tracing::warn!(pool = held.name, waits_for, "GitLab was not told of the pool's end yet");
        }
        return;
    }
    if let Err(error) =
        held.shared.pools.remove_finalizer(held.deed(Point::PoolFinalizerRemoved).await, pool).await
    {
        tracing::warn!(pool = held.name, %error, "the pool's finalizer was not removed yet");
        return;
    }
    held.tenure.end();
}

/// Reads the settings again and again while the pool is held.
async fn refresh_settings(held: Arc<Held>) {
    let mut changes = held.shared.pools.cache.changes();
    let mut seen = None;
    loop {
        let Some(pool) = held.pool() else { return };
        let known = held.settings();
        let settings::Reading { settings, problem } = settings::read(&held, &pool, known.as_ref()).await;
        let runner_id = settings.as_ref().map(|settings| settings.identity.runner_id);
        if let Some(settings) = settings {
            if problem.is_none() {
                if !known.as_ref().is_some_and(|known| known.same_as(&settings)) {
                    held.shared.metrics.configuration(true);
                }
                // In this order: nobody asks with a token that was replaced.
                *lock(&held.settings) = Some(settings);
                held.set_token_in_doubt(false);
            } else {
                *lock(&held.settings) = Some(settings);
            }
        }
        let wait = match problem {
            None => {
                if lock(&held.problem).take().is_some() || known.is_none() {
                    tracing::info!(pool = held.name, runner_id, "the pool can work");
                }
                until_token_is_due(&held)
            }
            Some(error) => {
                held.shared.metrics.configuration(false);
                let problem = (error.reason(), error.to_string(), error.is_passing());
                if lock(&held.problem).replace(problem.clone()).as_ref() != Some(&problem) {
                    let (reason, why, _) = problem;
                    tracing::warn!(pool = held.name, reason, why, "the pool cannot do all it should");
                    held.shared.events.warning(pool.as_ref(), reason, "ReadSettings", why).await;
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
                () = held.recheck.notified() => break,
                Ok(()) = changes.changed() => {
                    if held.pool().is_none_or(|pool| pool.metadata.generation != seen) {
                        break;
                    }
                }
            }
        }
    }
}

/// How long the settings are good: until the usual time, or until something is due about the runner's token.
fn until_token_is_due(held: &Held) -> Duration {
    let Some(due_at) = held.runner().due_at else { return SETTINGS_INTERVAL };
    let wait = Duration::try_from(due_at.duration_since(clock::now())).unwrap_or(Duration::ZERO);
    wait.clamp(LEAST_SETTINGS_INTERVAL, SETTINGS_INTERVAL)
}

/// Writes the pool's status if it differs; answers when to look again at one whose difference may yet pass.
async fn write_status(held: &Held) -> Result<Option<Duration>, kube::Error> {
    let mut turn = held.status_turn.lock().await;
    let Some(pool) = held.pool() else { return Ok(None) };
    let said = pool.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let told = turn.told.get_or_insert_with(|| Told::by(said));
    let hosts = held.hosts.view();
    let settings = held.settings();
    let problem = held.problem();
    let idle = intake::may_poll(held).err();
    let machines = held.machines();
    let environments = held.environments();
    let tiers = count_tiers(&environments);
    let cloud = fleet::work::cloud_view(held, &environments);
    let metrics = &held.shared.metrics;
    let runner = held.runner();
    let open_requests = held.open_requests();
    let labels = settings.as_ref().map(|settings| settings.labels.clone());
    let token_expires_at = settings.as_ref().and_then(|settings| settings.token_expires_at);
    let status = held.view(|view| {
        metrics.pool(&held.name, view.occupancy.environments(), held.epoch());
        if let Some(labels) = &labels {
            let picture = picture::picture(&pool.spec, view, cloud.as_ref(), &hosts, open_requests);
            metrics.runner(&held.namespace, labels, &picture);
        }
        status::status(&status::Observed {
            pool: &pool,
            problem,
            identity: settings
                .map(|settings| (settings.identity.runner_id, settings.identity.system_id.clone())),
            runner,
            token_expires_at,
            hosts: &hosts,
            machines: &machines,
            cloud,
            caches: held.caches(),
            tiers,
            view,
            idle,
            asking: held.is_asking(),
            holder: &held.shared.identity,
            epoch: held.epoch(),
            now: clock::now(),
        })
    });
    if pool.status.as_ref() == Some(&status) {
        tell(held, &pool, told, &status.conditions).await;
        turn.differs_since = None;
        return Ok(None);
    }
    if pool.status.as_ref().is_some_and(|old| status::may_pass(old, &status)) {
        let left = LOAD_LAG.saturating_sub(turn.differs_since.get_or_insert_with(Instant::now).elapsed());
        if !left.is_zero() {
            return Ok(Some(left));
        }
    }
    turn.differs_since = None;
    if !held.may_overwrite("RunnerPool", pool.status.as_ref().and_then(|status| status.epoch)) {
        return Ok(None);
    }
    let mut next = pool.as_ref().clone();
    let old = pool.status.clone().unwrap_or_default();
    let usage = fleet::tally::pool_usage(&old, &status, clock::now());
    let conditions = status.conditions.clone();
    next.status = Some(RunnerPoolStatus { usage, ..status });
    match held.shared.pools.replace_status(held.deed(Point::PoolStatusWritten).await, &next).await {
        Ok(_) => {
            if let Some(told) = &mut turn.told {
                tell(held, &pool, told, &conditions).await;
            }
            Ok(None)
        }
        // Somebody changed the pool meanwhile; the next look writes on top of that.
        Err(error) if is_conflict(&error) => {
            held.wake();
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Tells people how conditions have turned, once the object says so.
async fn tell(held: &Held, pool: &RunnerPool, told: &mut Told, conditions: &[Condition]) {
    for turn in told.turns(conditions, clock::now()) {
        let (events, name) = (&held.shared.events, held.name.as_str());
        let told::Turn { type_, reason, is_bad, note } = turn;
        if is_bad {
            tracing::warn!(pool = name, reason, note, "a condition has turned");
            events.warning(pool, &reason, type_, note).await;
        } else {
            tracing::info!(pool = name, reason, note, "a condition has turned");
            events.normal(pool, &reason, type_, note).await;
        }
    }
}

fn count_tiers(environments: &[Arc<SuspendedEnvironment>]) -> EnvironmentCounts {
    let mut counts = EnvironmentCounts::default();
    for environment in environments {
        counts.all += 1;
        match environment.tier() {
            Tier::Hot => counts.hot += 1,
            Tier::Stopped => counts.stopped += 1,
            Tier::Detached => counts.detached += 1,
            Tier::Snapshotted => counts.snapshotted += 1,
        }
    }
    counts
}
