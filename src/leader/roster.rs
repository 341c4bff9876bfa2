//! The replicas that are alive, and how long this one has been in touch with the API server.
//!
//! Each replica keeps a Lease of its own in the operator's namespace, labelled with what it watches, so that replicas
//! of another installation are not counted. Who renews it is alive; deleting it says good-bye. Silence counts only
//! while this replica is in touch itself. What a replica that was killed leaves behind is removed by another one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lease::{held, holder, version};
use super::moment::Moment;
use super::{CALL_TIMEOUT, LeaderError, RETRY_INTERVAL, call, rank, write};
use crate::api::labels;
use crate::clock;
use crate::deed::Point;
use crate::kube_ext::cache::Cache;
use crate::kube_ext::{is_code, is_conflict, is_not_found};

/// Time between renewals of a replica's own Lease.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(10);

/// How long a replica is believed to live without a renewal. Who holds a pool and dies is found out sooner, by the
/// pool's own Lease.
const ALIVE_FOR: Duration = Duration::from_secs(30);

/// How long the Lease of a silent replica is kept.
const FORGET_AFTER: Duration = Duration::from_secs(120);

/// The replicas of one installation, as this one knows them. Cloning shares it.
#[derive(Clone)]
pub struct Roster {
    inner: Arc<Inner>,
}

struct Inner {
    api: Api<Lease>,
    namespace: String,
    identity: String,
    name: String,
    scope: String,
    seen: Cache<Lease>,
    alive: watch::Sender<Vec<String>>,
    touch: watch::Sender<Option<Touch>>,
    /// Moves when the API server is back after an outage, and when versions of its objects have gone back.
    rewound: watch::Sender<u64>,
}

/// An unbroken row of answers from the API server.
#[derive(Debug, Clone, Copy)]
struct Touch {
    since: Moment,
    last: Moment,
}

impl Touch {
    /// The row with an answer to what was asked at that moment.
    fn with(row: Option<Self>, asked_at: Moment) -> Self {
        let unbroken = row.filter(|row| !row.is_broken(asked_at));
        Self { since: unbroken.map_or(asked_at, |row| row.since), last: asked_at }
    }

    /// Whether the next answer is overdue: this process stood still, or it cannot ask.
    fn is_broken(self, now: Moment) -> bool {
        now.since(self.last) > ANNOUNCE_INTERVAL + CALL_TIMEOUT
    }

    /// For how long the row has lasted.
    fn lasted(self, now: Moment) -> Duration {
        if self.is_broken(now) { Duration::ZERO } else { now.since(self.since) }
    }
}

impl Roster {
    /// The roster of replicas that watch the same namespaces, kept in the operator's own.
    pub fn new(client: Client, namespace: &str, watched: Option<&str>, identity: &str, process: u64) -> Self {
        let inner = Inner {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            identity: identity.to_owned(),
            name: format!("dormouse-replica-{process:016x}"),
            scope: watched.unwrap_or_default().to_owned(),
            seen: Cache::default(),
            alive: watch::Sender::new(vec![identity.to_owned()]),
            touch: watch::Sender::new(None),
            rewound: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// This process's name among replicas.
    pub fn identity(&self) -> &str {
        &self.inner.identity
    }

    /// Replicas that are alive, this one included, as they change.
    pub fn replicas(&self) -> watch::Receiver<Vec<String>> {
        self.inner.alive.subscribe()
    }

    /// Waits until the announcements of others are known.
    pub async fn synced(&self) {
        self.inner.seen.synced().await;
    }

    /// For how long this replica has been in touch with the API server without a gap.
    pub fn in_touch(&self) -> Duration {
        self.inner.touch.borrow().map_or(Duration::ZERO, |touch| touch.lasted(Moment::now()))
    }

    /// A signal that moves when the API server is back after an outage, or was restored to an earlier state: everything
    /// is to be listed anew.
    pub fn rewound(&self) -> watch::Receiver<u64> {
        self.inner.rewound.subscribe()
    }

    /// What other replicas have announced.
    pub fn announcements(&self, client: Client) -> (Cache<Lease>, Api<Lease>, watcher::Config) {
        let scope = format!("{}={}", labels::REPLICA, self.inner.scope);
        let api = Api::namespaced(client, &self.inner.namespace);
        (self.inner.seen.clone(), api, watcher::Config::default().labels(&scope))
    }

    /// Announces this replica until stopped, and says good-bye.
    pub async fn announce(self, stop: CancellationToken) {
        let mut own: Option<Lease> = None;
        let mut heard = Moment::now();
        loop {
            let begun = Moment::now();
            let renewed = self.renew(&mut own).await;
            if let Err(error) = &renewed {
                tracing::warn!(lease = self.inner.name, %error, "this replica could not announce itself");
            }
            let answered = renewed.as_ref().err().is_none_or(is_answer);
            self.inner.touch.send_modify(|touch| {
                *touch = answered.then(|| Touch::with(*touch, begun));
            });
            if answered {
                // Watches wait longer and longer while nobody answers: they need not wait any more.
                if begun.since(heard) > ANNOUNCE_INTERVAL * 2 {
                    self.inner.rewound.send_modify(|count| *count = count.wrapping_add(1));
                }
                heard = begun;
            }
            let wait = if renewed.is_ok() { ANNOUNCE_INTERVAL } else { RETRY_INTERVAL };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
        if own.is_some() {
            self.remove(&self.inner.name, None).await;
        }
    }

    async fn renew(&self, own: &mut Option<Lease>) -> Result<(), LeaderError> {
        let before = own.as_ref().map_or(0, version);
        let written = match self.write(own.as_ref()).await {
            Err(LeaderError::Api(error)) if is_conflict(&error) || is_not_found(&error) => {
                let current = call(self.inner.api.get_opt(&self.inner.name)).await?;
                self.write(current.as_ref()).await?
            }
            other => other?,
        };
        if version(&written) < before {
            tracing::warn!("the API server was restored to an earlier state: everything is read anew");
            self.inner.rewound.send_modify(|count| *count = count.wrapping_add(1));
        }
        *own = Some(written);
        Ok(())
    }

    async fn write(&self, current: Option<&Lease>) -> Result<Lease, LeaderError> {
        let inner = &self.inner;
        let mut spec = held(&inner.identity, 0, current, clock::now());
        spec.lease_duration_seconds = i32::try_from(ALIVE_FOR.as_secs()).ok();
        spec.lease_transitions = None;
        let (params, point) = (PostParams::default(), Point::ReplicaAnnounced);
        match current {
            Some(current) => {
                let lease = Lease { spec: Some(spec), ..current.clone() };
                write(point, inner.api.replace(&inner.name, &params, &lease)).await
            }
            None => {
                let labels = [(labels::MANAGED_BY, labels::MANAGER), (labels::REPLICA, &inner.scope)];
                let metadata = ObjectMeta {
                    name: Some(inner.name.clone()),
                    labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                    ..ObjectMeta::default()
                };
                write(point, inner.api.create(&params, &Lease { metadata, spec: Some(spec) })).await
            }
        }
    }

    async fn remove(&self, name: &str, resource_version: Option<String>) {
        let preconditions =
            resource_version.map(|version| Preconditions { uid: None, resource_version: Some(version) });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match write(Point::ReplicaWithdrawn, self.inner.api.delete(name, &params)).await {
            Ok(_) => {}
            Err(LeaderError::Api(error)) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => tracing::warn!(lease = name, %error, "the Lease of a replica was not deleted"),
        }
    }

    /// Removes what an earlier process of this replica's name announced: it was killed, or it could not have been
    /// started again. One that lives after all announces itself anew.
    async fn replace_former_self(&self) {
        for lease in self.inner.seen.select(|_| true) {
            let is_former = holder(&lease).is_some_and(|identity| {
                identity != self.inner.identity
                    && replica_name(identity) == replica_name(&self.inner.identity)
            });
            if is_former {
                self.remove(&lease.name_any(), lease.resource_version()).await;
                self.inner.seen.forget(&lease);
            }
        }
    }

    /// Keeps the roster until stopped.
    pub async fn keep(self, stop: CancellationToken) {
        let mut changes = self.inner.seen.changes();
        if stop.run_until_cancelled(self.inner.seen.synced()).await.is_none() {
            return;
        }
        self.replace_former_self().await;
        let mut sightings = Sightings::default();
        loop {
            changes.borrow_and_update();
            let now = Moment::now();
            sightings.look(&self.inner.seen.select(|_| true), now);
            let mut alive = sightings.alive(now, self.in_touch());
            if !alive.contains(&self.inner.identity) {
                alive.push(self.inner.identity.clone());
            }
            alive.sort_unstable();
            self.inner.alive.send_if_modified(|known| {
                let changes = *known != alive;
                if changes {
                    tracing::info!(replicas = ?alive, "the replicas that are alive have changed");
                    known.clone_from(&alive);
                }
                changes
            });
            for (name, version) in sightings.forgotten(now, self.in_touch()) {
                // One of us is enough.
                if rank::rank(alive.iter().map(String::as_str), &name, &self.inner.identity) == 0 {
                    self.remove(&name, Some(version)).await;
                }
            }
            tokio::select! {
                // The sender lives in the cache: waiting cannot fail.
                _ = changes.changed() => {}
                () = tokio::time::sleep(ANNOUNCE_INTERVAL / 2) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// A replica's name, of its identity: what stays the same when its process is started again.
fn replica_name(identity: &str) -> &str {
    identity.rsplit_once('_').map_or(identity, |(name, _)| name)
}

/// Whether the API server has answered, if only with a refusal.
fn is_answer(error: &LeaderError) -> bool {
    match error {
        LeaderError::Api(error) => (400..500).any(|code| is_code(error, code)),
        LeaderError::Timeout | LeaderError::Lost { .. } => false,
    }
}

/// When each announcement was last seen to change.
#[derive(Debug, Default)]
struct Sightings {
    by_name: BTreeMap<String, Sighting>,
}

#[derive(Debug)]
struct Sighting {
    identity: String,
    version: String,
    since: Moment,
}

impl Sightings {
    fn look(&mut self, announcements: &[Arc<Lease>], now: Moment) {
        self.by_name.retain(|name, _| announcements.iter().any(|lease| lease.name_any() == *name));
        for lease in announcements {
            let (Some(identity), Some(version)) = (holder(lease), lease.resource_version()) else { continue };
            let fresh = Sighting { identity: identity.to_owned(), version, since: now };
            match self.by_name.get_mut(&lease.name_any()) {
                Some(known) if known.version == fresh.version => {}
                Some(known) => *known = fresh,
                None => {
                    self.by_name.insert(lease.name_any(), fresh);
                }
            }
        }
    }

    /// Replicas not known to be silent for too long.
    fn alive(&self, now: Moment, in_touch: Duration) -> Vec<String> {
        self.by_name
            .values()
            .filter(|seen| now.since(seen.since).min(in_touch) < ALIVE_FOR)
            .map(|seen| seen.identity.clone())
            .collect()
    }

    /// Names and versions of the announcements nobody will renew any more.
    fn forgotten(&self, now: Moment, in_touch: Duration) -> Vec<(String, String)> {
        self.by_name
            .iter()
            .filter(|(_, seen)| now.since(seen.since).min(in_touch) >= FORGET_AFTER)
            .map(|(name, seen)| (name.clone(), seen.version.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> Moment {
        Moment::after_boot(Duration::from_secs(seconds))
    }

    fn announcement(name: &str, version: u64) -> Arc<Lease> {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        };
        Arc::new(Lease { metadata, spec: Some(held(name, 0, None, jiff::Timestamp::UNIX_EPOCH)) })
    }

    #[test]
    fn a_replica_is_alive_while_its_announcement_changes_whatever_time_stands_in_it() {
        let mut seen = Sightings::default();
        seen.look(&[announcement("a", 1), announcement("b", 2)], at(0));
        seen.look(&[announcement("a", 1), announcement("b", 3)], at(20));
        assert_eq!(seen.alive(at(29), LONG), ["a", "b"]);
        assert_eq!(seen.alive(at(30), LONG), ["b"]);
        assert!(seen.forgotten(at(119), LONG).is_empty());
        assert_eq!(seen.forgotten(at(120), LONG), [("a".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn nobody_is_silent_for_one_that_cannot_hear() {
        let mut seen = Sightings::default();
        seen.look(&[announcement("a", 1)], at(0));
        assert_eq!(seen.alive(at(500), Duration::from_secs(10)), ["a"]);
        assert!(seen.forgotten(at(500), Duration::from_secs(10)).is_empty());
    }

    #[test]
    fn an_announcement_that_was_deleted_is_a_good_bye() {
        let mut seen = Sightings::default();
        seen.look(&[announcement("a", 1), announcement("b", 2)], at(0));
        seen.look(&[announcement("b", 2)], at(1));
        assert_eq!(seen.alive(at(1), LONG), ["b"]);
    }

    #[test]
    fn a_replica_that_was_started_again_knows_itself() {
        assert_eq!(replica_name("dormouse_0-x_00ff00ff00ff00ff"), "dormouse_0-x");
    }

    #[test]
    fn an_answer_that_is_overdue_breaks_the_touch() {
        let touch = Touch { since: at(0), last: at(100) };
        assert_eq!(touch.lasted(at(101)), Duration::from_secs(101));
        assert_eq!(Touch::with(Some(touch), at(110)).lasted(at(111)), Duration::from_secs(111));
        assert_eq!(touch.lasted(at(200)), Duration::ZERO);
        assert_eq!(Touch::with(Some(touch), at(200)).lasted(at(201)), Duration::from_secs(1));
    }
}
