//! What each host lists, and the removal of what nobody owns there.
//!
//! A host is asked when it becomes reachable and every few minutes. Its answer verifies environments, freezes again
//! what sleeps by its object but not on its host, and feeds the sweep of leftovers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Held;
use crate::api::JobLease;
use crate::api::suspended_environment::object_name;
use crate::clock;
use crate::deed::Point;
use crate::environment::plan::HostWord;
use crate::environment::sweep::{self, Known};
use crate::host::link::Link;
use crate::lease::quarantine;
use crate::spool::record::EnvironmentPhase;
use crate::spool::verb::Listed;

/// How often a reachable host is asked again, and how often while a slot of it waits for its answer.
const INTERVAL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(5);

/// How long a host that has become reachable is left to the jobs on it before it is asked.
const JOBS_FIRST: Duration = Duration::from_secs(30);

/// What hosts have listed, by host.
#[derive(Default)]
pub struct Inventories {
    /// Locked for lines only.
    by_host: Mutex<BTreeMap<String, Inventory>>,
}

#[derive(Default)]
struct Inventory {
    /// The link that was asked: a new one is asked at once. Weak, and still no later one has its address.
    link: Weak<Link>,
    /// The link that is to be asked next, and since when it is there.
    next: Option<(Weak<Link>, Instant)>,
    asked_at: Option<Instant>,
    words: Option<BTreeMap<String, HostWord>>,
    /// The slot of each environment that was listed.
    slots: BTreeMap<String, u32>,
    /// When unknown environments were first seen. Forgotten at a take-over, which only makes a removal later.
    first_seen: BTreeMap<String, Timestamp>,
}

impl Inventories {
    /// What a host says about an environment.
    pub fn word(&self, host: &str, environment: &str) -> HostWord {
        let by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        match by_host.get(host).and_then(|inventory| inventory.words.as_ref()) {
            None => HostWord::NotAsked,
            Some(words) => words.get(environment).copied().unwrap_or(HostWord::Unknown),
        }
    }

    /// Records what has just been done on a host, so that the last list does not speak against it.
    pub fn note(&self, host: &str, environment: &str, word: Option<HostWord>) {
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(words) = by_host.get_mut(host).and_then(|inventory| inventory.words.as_mut()) {
            match word {
                Some(word) => words.insert(environment.to_owned(), word),
                None => words.remove(environment),
            };
        }
        if let Some(inventory) = by_host.get_mut(host).filter(|_| word.is_none()) {
            inventory.first_seen.remove(environment);
        }
    }

    /// Environments on a host that no object knew at its last list, with their slots.
    fn strangers(&self, host: &str) -> Vec<(String, u32)> {
        let by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inventory) = by_host.get(host) else { return Vec::new() };
        let slot = |id: &String| Some((id.clone(), *inventory.slots.get(id)?));
        inventory.first_seen.keys().filter_map(slot).collect()
    }

    /// Whether a host is to be asked now. A new link is first left to the jobs that have still to be attached to.
    fn is_due(
        &self,
        host: &str,
        link: &Arc<Link>,
        interval: Duration,
        attaches: impl FnOnce() -> bool,
    ) -> bool {
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        let inventory = by_host.entry(host.to_owned()).or_default();
        let is_asked = inventory.link.ptr_eq(&Arc::downgrade(link));
        if !is_asked && attaches() {
            let since = match &inventory.next {
                Some((known, since)) if known.ptr_eq(&Arc::downgrade(link)) => *since,
                Some(_) | None => Instant::now(),
            };
            inventory.next = Some((Arc::downgrade(link), since));
            if since.elapsed() < JOBS_FIRST {
                return false;
            }
        }
        let due = !is_asked || inventory.asked_at.is_none_or(|at| at.elapsed() >= interval);
        if due {
            inventory.link = Arc::downgrade(link);
            inventory.asked_at = Some(Instant::now());
        }
        due
    }

    /// Keeps what a host has listed; answers the environments about which it says another thing than before.
    fn keep(&self, host: &str, listed: &[Listed], boot_id: &str) -> BTreeSet<String> {
        let words: BTreeMap<String, HostWord> = listed
            .iter()
            .map(|listed| (listed.environment.environment.clone(), word(listed, boot_id)))
            .collect();
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        let inventory = by_host.entry(host.to_owned()).or_default();
        let slot = |listed: &Listed| (listed.environment.environment.clone(), listed.environment.slot);
        inventory.slots = listed.iter().map(slot).collect();
        let before = inventory.words.replace(words.clone());
        let Some(before) = before else { return words.into_keys().collect() };
        let ids: BTreeSet<&String> = before.keys().chain(words.keys()).collect();
        ids.into_iter().filter(|id| before.get(*id) != words.get(*id)).cloned().collect()
    }

    fn listed(&self, host: &str) -> BTreeSet<String> {
        let by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        let words = by_host.get(host).and_then(|inventory| inventory.words.as_ref());
        words.into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    fn sweep(&self, host: &str, listed: &BTreeSet<String>, known: &Known, now: Timestamp) -> Vec<String> {
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inventory) = by_host.get_mut(host) else { return Vec::new() };
        let swept = sweep::sweep(listed, known, &inventory.first_seen, now);
        inventory.first_seen = swept.first_seen;
        swept.remove
    }
}

/// What a host that runs in this boot says about an environment by listing it.
fn word(listed: &Listed, boot_id: &str) -> HostWord {
    let environment = &listed.environment;
    let had_processes = environment.context.as_ref().is_some_and(|context| context.processes > 0);
    match environment.phase {
        EnvironmentPhase::Suspended if had_processes && environment.boot_id != boot_id => HostWord::Restarted,
        EnvironmentPhase::Suspended => HostWord::Asleep,
        EnvironmentPhase::Active | EnvironmentPhase::Releasing => HostWord::Active,
    }
}

/// Asks the hosts that are due.
pub fn look(held: &Arc<Held>) {
    for host in held.hosts.view() {
        let Some(link) = host.state.link() else { continue };
        let waits = held.book(|book| book.occupancy.quarantines_on(&host.name).next().is_some());
        let interval = if waits { SOON } else { INTERVAL };
        let attaches = || held.has_jobs_to_attach(&host.name);
        if !held.inventories.is_due(&host.name, &link, interval, attaches) {
            continue;
        }
        let held_by_task = Arc::clone(held);
        held.spawn(async move {
            let _place = held_by_task.shared.bounds.host_lists.enter().await;
            ask(&held_by_task, &host.name, &link).await;
            held_by_task.wake();
        });
    }
}

async fn ask(held: &Held, host: &str, link: &Link) {
    // Whose jobs had ended before the host was asked: of these its answer speaks.
    let doubted = quarantine::of_instance(held, host);
    match link.list().await {
        Ok(listed) => {
            let first = held.inventories.listed(host).is_empty();
            let mut news = held.inventories.keep(host, &listed, &link.hello.boot_id);
            held.book(|book| {
                // An environment that is not on its host's first list is news as much as one that is.
                if first {
                    news.extend(book.occupancy.environment_ids_on(host).map(str::to_owned));
                }
                for id in &news {
                    book.environment_has_news(&object_name(&held.name, id));
                }
            });
            tidy(held, host, link, doubted).await;
        }
        Err(error) => {
            tracing::warn!(pool = held.name, host, %error, "the host's environments were not listed")
        }
    }
}

/// Asks a host and removes from it what no object owns: a job found its slot taken there.
pub async fn tidy_now(held: &Held, host: &str, link: &Link) {
    ask(held, host, link).await;
}

/// Removes from a host what no object owns.
async fn tidy(held: &Held, host: &str, link: &Link, doubted: Vec<Arc<JobLease>>) {
    let caches = [held.shared.leases.cache.is_synced(), held.shared.environments.cache.is_synced()];
    if caches.contains(&false) {
        return;
    }
    let listed = held.inventories.listed(host);
    let mut known = Known::default();
    for id in &listed {
        if held.environment(&object_name(&held.name, id)).is_some() {
            known.owned.insert(id.clone());
        }
        for lease in held.leases_of(id) {
            let list = if lease.phase().is_open() { &mut known.owned } else { &mut known.over };
            list.insert(id.clone());
        }
    }
    for environment in held.inventories.sweep(host, &listed, &known, clock::now()) {
        // Two watches may lag by different times: the API server itself says whether an object owns it.
        let name = object_name(&held.name, &environment);
        match held.shared.environments.read(&held.namespace, &name).await {
            Ok(None) => {}
            Ok(Some(_)) => continue,
            Err(error) => {
                tracing::warn!(pool = held.name, host, environment, %error, "a leftover was not looked up");
                continue;
            }
        }
        match link.release(held.deed(Point::LeftoverRemoved).await, &environment, true).await {
            Ok(()) => {
                tracing::info!(pool = held.name, host, environment, "removed a leftover from the host");
                held.inventories.note(host, &environment, None);
            }
            Err(error) => {
                tracing::warn!(pool = held.name, host, environment, %error, "a leftover was not removed yet");
            }
        }
    }
    let strangers = held.inventories.strangers(host);
    held.book(|book| book.occupancy.set_strangers(host, strangers));
    lift_quarantine(held, host, doubted).await;
}

/// Gives the slots of those leases back whose environments the host does not have any more.
async fn lift_quarantine(held: &Held, host: &str, doubted: Vec<Arc<JobLease>>) {
    for lease in doubted {
        if held.inventories.word(host, &lease.spec.environment_id) != HostWord::Unknown {
            continue;
        }
        if let Err(error) = quarantine::lift(held, &lease).await {
            tracing::warn!(pool = held.name, host, %error, "a slot that is clean was not given back yet");
        }
    }
}
