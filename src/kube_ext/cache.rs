//! A cache of one kind, fed by a watch and by our own writes.
//!
//! A watch alone lags behind what this process wrote a moment ago, and a slot decided on such a view could be given
//! away twice. So every write of ours is recorded here with the object the API server answered, and of two versions
//! of an object the one with the higher resource version is kept. A list rules over both, but for what was written
//! since it was begun: after a restore of the API server's database versions are lower than they were. What may be
//! assumed: it never shows less than this process has written. What may not: that it shows what another writer wrote
//! a moment ago.
//!
//! Objects can be grouped, by the pool they belong to. Who looks after a group follows its [`Feed`], which names the
//! objects that have changed: what nothing happened to costs nothing, however much of it there is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch as signal};
use tokio_util::sync::CancellationToken;

/// Namespace and name of an object.
pub type ObjectKey = (String, String);

/// A cache of one kind. Cloning shares it.
pub struct Cache<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<K> {
    group_of: fn(&K) -> Option<&str>,
    /// Locked for lines, never across an await; taken by the watch task and by every reader.
    state: Mutex<State<K>>,
    changed: signal::Sender<u64>,
    /// Asks for a list.
    list_anew: Notify,
    synced: signal::Sender<bool>,
}

struct State<K> {
    objects: HashMap<ObjectKey, Arc<K>>,
    groups: HashMap<String, BTreeSet<ObjectKey>>,
    /// Those who follow a group; one that is gone is forgotten at the group's next change.
    feeds: HashMap<String, Vec<Weak<News>>>,
    listing: Option<Listing>,
    /// Uids of objects that are gone: a late event must not bring one back.
    deleted: HashSet<String>,
}

/// A list in progress.
#[derive(Default)]
struct Listing {
    /// Objects it has shown.
    shown: HashSet<ObjectKey>,
    /// Objects that were written or deleted since it began.
    written: HashSet<ObjectKey>,
}

/// What has changed in a group since it was last asked. One object counts once, however often it changed, so this is
/// never longer than the group.
#[derive(Default)]
struct News {
    changed: Mutex<BTreeSet<ObjectKey>>,
    came: Notify,
}

/// The changes of one group, from its whole content on.
pub struct Feed {
    news: Arc<News>,
}

impl Feed {
    /// Keys of what has changed, or is gone, since this was last called.
    pub fn take(&self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.news.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something has changed since the last wait. Cancel-safe.
    pub async fn moved(&self) {
        self.news.came.notified().await;
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self::grouped(|_| None)
    }
}

impl<K> Cache<K> {
    /// A cache whose objects belong to groups.
    pub fn grouped(group_of: fn(&K) -> Option<&str>) -> Self {
        Self {
            inner: Arc::new(Inner {
                group_of,
                state: Mutex::new(State {
                    objects: HashMap::new(),
                    groups: HashMap::new(),
                    feeds: HashMap::new(),
                    listing: None,
                    deleted: HashSet::new(),
                }),
                changed: signal::Sender::new(0),
                list_anew: Notify::new(),
                synced: signal::Sender::new(false),
            }),
        }
    }
}

/// From a broken watch to the next list, and the longest this grows to when watches break at once.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Most uids of deleted objects remembered; far more than can be in flight between a delete and its event.
const DELETED_REMEMBERED: usize = 10_000;

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + DeserializeOwned + 'static,
    ObjectKey: Hash,
{
    /// Records an object as the API server answered it to a write of ours.
    pub fn record(&self, object: K) -> Arc<K> {
        let object = Arc::new(strip(object));
        let mut state = self.lock();
        if let Some(listing) = state.listing.as_mut() {
            listing.written.insert(key_of(object.as_ref()));
        }
        self.insert_newer(state, Arc::clone(&object));
        object
    }

    /// Records an object as the API server answered it when it was asked for. An answer older than what was known
    /// before means that its database was restored: everything is listed anew.
    pub fn record_read(&self, object: K, known: Option<&K>) -> Arc<K> {
        if known.is_some_and(|known| known.uid() == object.uid() && version(known) > version(&object)) {
            self.inner.list_anew.notify_one();
        }
        self.record(object)
    }

    /// Records that an object is gone.
    pub fn forget(&self, object: &K) {
        let mut state = self.lock();
        if state.deleted.len() >= DELETED_REMEMBERED {
            state.deleted.clear();
        }
        if let Some(uid) = object.uid() {
            state.deleted.insert(uid);
        }
        let key = key_of(object);
        if state.objects.get(&key).is_some_and(|known| known.uid() == object.uid()) {
            self.put(&mut state, key.clone(), None);
        }
        if let Some(listing) = state.listing.as_mut() {
            listing.written.insert(key);
        }
        drop(state);
        self.signal_change();
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.lock().objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The objects that a test picks, in no order.
    pub fn select(&self, mut pick: impl FnMut(&K) -> bool) -> Vec<Arc<K>> {
        self.lock().objects.values().filter(|object| pick(object)).cloned().collect()
    }

    /// The objects of a group, in no order.
    pub fn group(&self, group: &str) -> Vec<Arc<K>> {
        let state = self.lock();
        let keys = state.groups.get(group).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// Follows a group. All of its objects are news at first.
    pub fn feed(&self, group: &str) -> Feed {
        let news = Arc::new(News::default());
        let mut state = self.lock();
        let known = state.groups.get(group).cloned().unwrap_or_default();
        *news.changed.lock().unwrap_or_else(PoisonError::into_inner) = known;
        state.feeds.entry(group.to_owned()).or_default().push(Arc::downgrade(&news));
        news.came.notify_one();
        Feed { news }
    }

    /// A signal that moves with every change.
    pub fn changes(&self) -> signal::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Whether the first list is complete.
    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Waits for the first list to be complete.
    pub async fn synced(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.inner.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Follows the API server until cancelled. A watch that broke starts again with a list, as it does when `rewound`
    /// moves: the API server may have been restored meanwhile, and a watch from a version that is no more shows nothing.
    pub async fn follow(
        self,
        api: Api<K>,
        config: watcher::Config,
        mut rewound: signal::Receiver<u64>,
        cancel: CancellationToken,
    ) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return,
            }
            rewound.borrow_and_update();
            let begun = Instant::now();
            let stream = watch(api.clone(), config.clone()).default_backoff();
            futures::pin_mut!(stream);
            loop {
                let event = tokio::select! {
                    // Cancel-safe: a watch event dropped here is listed again by the next watch.
                    event = stream.next() => event,
                    Ok(()) = rewound.changed() => break,
                    () = self.inner.list_anew.notified() => break,
                    () = cancel.cancelled() => return,
                };
                match event {
                    Some(Ok(event)) => self.on(event),
                    Some(Err(error)) => {
                        tracing::warn!(kind = %K::kind(&()), %error, "the watch broke; starting it again");
                        if matches!(
                            error,
                            watcher::Error::WatchStartFailed(_) | watcher::Error::WatchFailed(_)
                        ) {
                            break;
                        }
                    }
                    None => return,
                }
            }
            let lasted = begun.elapsed() >= LONGEST_PAUSE;
            pause = if lasted { PAUSE } else { (pause * 2).clamp(PAUSE, LONGEST_PAUSE) };
        }
    }

    fn on(&self, event: Event<K>) {
        match event {
            Event::Init => self.lock().listing = Some(Listing::default()),
            Event::InitApply(object) => self.insert_listed(Arc::new(strip(object))),
            Event::Apply(object) => self.insert_newer(self.lock(), Arc::new(strip(object))),
            Event::Delete(object) => self.forget(&object),
            Event::InitDone => {
                let mut state = self.lock();
                if let Some(Listing { shown, written }) = state.listing.take() {
                    let is_gone = |key: &&ObjectKey| !shown.contains(*key) && !written.contains(*key);
                    let gone: Vec<ObjectKey> = state.objects.keys().filter(is_gone).cloned().collect();
                    for key in gone {
                        self.put(&mut state, key, None);
                    }
                }
                drop(state);
                self.inner.synced.send_replace(true);
                self.signal_change();
            }
        }
    }

    fn insert_listed(&self, object: Arc<K>) {
        let key = key_of(object.as_ref());
        let mut state = self.lock();
        let is_ours = state.listing.as_ref().is_some_and(|listing| listing.written.contains(&key));
        if let Some(listing) = state.listing.as_mut() {
            listing.shown.insert(key.clone());
        }
        if is_ours {
            return self.insert_newer(state, object);
        }
        // Deleted and still there: the database was restored.
        if let Some(uid) = object.uid() {
            state.deleted.remove(&uid);
        }
        self.put(&mut state, key, Some(object));
        drop(state);
        self.signal_change();
    }

    fn insert_newer(&self, mut state: MutexGuard<'_, State<K>>, object: Arc<K>) {
        let key = key_of(object.as_ref());
        let is_gone = object.uid().is_some_and(|uid| state.deleted.contains(&uid));
        let is_older = state.objects.get(&key).is_some_and(|known| {
            known.uid() == object.uid() && version(known.as_ref()) >= version(object.as_ref())
        });
        if is_gone || is_older {
            return;
        }
        self.put(&mut state, key, Some(object));
        drop(state);
        self.signal_change();
    }

    /// Puts an object into its place, or takes away what is there, and tells those who follow its group.
    fn put(&self, state: &mut State<K>, key: ObjectKey, object: Option<Arc<K>>) {
        let group_of = |object: &Arc<K>| (self.inner.group_of)(object).map(str::to_owned);
        let group = object.as_ref().and_then(group_of);
        let old = match object {
            Some(object) => state.objects.insert(key.clone(), object),
            None => state.objects.remove(&key),
        };
        let old_group = old.as_ref().and_then(group_of);
        if let Some(old_group) = old_group.filter(|old_group| Some(old_group) != group.as_ref()) {
            if let Some(members) = state.groups.get_mut(&old_group) {
                members.remove(&key);
                if members.is_empty() {
                    state.groups.remove(&old_group);
                }
            }
            state.tell(&old_group, &key);
        }
        if let Some(group) = group {
            state.tell(&group, &key);
            state.groups.entry(group).or_default().insert(key);
        }
    }

    fn signal_change(&self) {
        self.inner.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> State<K> {
    fn tell(&mut self, group: &str, key: &ObjectKey) {
        let Some(feeds) = self.feeds.get_mut(group) else { return };
        feeds.retain(|feed| {
            let Some(news) = feed.upgrade() else { return false };
            news.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
            news.came.notify_one();
            true
        });
        if feeds.is_empty() {
            self.feeds.remove(group);
        }
    }
}

fn key_of<K: ResourceExt>(object: &K) -> ObjectKey {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Resource versions of one API server compare as numbers; anything else counts as oldest.
fn version<K: ResourceExt>(object: &K) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Managed fields are a large part of an object and nothing here reads them.
fn strip<K: ResourceExt>(mut object: K) -> K {
    object.managed_fields_mut().clear();
    object
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::ObjectMeta;

    use super::*;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn version_of(cache: &Cache<ConfigMap>, name: &str) -> Option<u64> {
        cache.get("ns", name).map(|object| version(object.as_ref()))
    }

    #[test]
    fn a_late_event_does_not_hide_our_own_write() {
        let cache = Cache::default();
        cache.record(object("a", "1", 10));
        cache.on(Event::Apply(object("a", "1", 7)));
        assert_eq!(version_of(&cache, "a"), Some(10));
        cache.on(Event::Apply(object("a", "1", 12)));
        assert_eq!(version_of(&cache, "a"), Some(12));
    }

    #[test]
    fn an_object_of_the_same_name_and_another_uid_replaces_the_old_one() {
        let cache = Cache::default();
        cache.record(object("a", "1", 10));
        cache.forget(&object("a", "1", 10));
        cache.on(Event::Apply(object("a", "1", 9)));
        assert_eq!(version_of(&cache, "a"), None, "a late event must not bring it back");
        cache.on(Event::Apply(object("a", "2", 11)));
        assert_eq!(version_of(&cache, "a"), Some(11));
    }

    fn by_label(object: &ConfigMap) -> Option<&str> {
        object.metadata.labels.as_ref()?.get("group").map(String::as_str)
    }

    fn member(name: &str, uid: &str, version: u64, group: &str) -> ConfigMap {
        let mut object = object(name, uid, version);
        object.metadata.labels = Some([("group".to_owned(), group.to_owned())].into());
        object
    }

    fn names(feed: &Feed) -> Vec<String> {
        feed.take().into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn a_feed_begins_with_all_there_is_and_then_names_what_changed_once() {
        let cache = Cache::grouped(by_label);
        cache.record(member("a", "1", 1, "p"));
        cache.record(member("b", "2", 1, "p"));
        cache.record(member("c", "3", 1, "q"));
        let feed = cache.feed("p");
        assert_eq!(names(&feed), ["a", "b"]);
        assert!(names(&feed).is_empty());
        cache.record(member("a", "1", 2, "p"));
        cache.record(member("a", "1", 3, "p"));
        cache.on(Event::Apply(member("a", "1", 2, "p")));
        cache.record(member("c", "3", 2, "q"));
        assert_eq!(names(&feed), ["a"]);
        cache.forget(&member("b", "2", 1, "p"));
        assert_eq!(names(&feed), ["b"]);
        assert_eq!(cache.group("p").len(), 1);
    }

    #[test]
    fn what_a_relist_drops_and_what_moves_to_another_group_is_news_to_the_old_one() {
        let cache = Cache::grouped(by_label);
        cache.record(member("gone", "1", 1, "p"));
        cache.record(member("moves", "2", 1, "p"));
        let feed = cache.feed("p");
        feed.take();
        cache.on(Event::Init);
        cache.on(Event::InitApply(member("moves", "3", 5, "q")));
        cache.on(Event::InitDone);
        assert_eq!(names(&feed), ["gone", "moves"]);
        assert!(cache.group("p").is_empty());
        assert_eq!(cache.group("q").len(), 1);
    }

    #[test]
    fn a_relist_drops_what_is_gone_but_keeps_what_we_wrote_meanwhile() {
        let cache = Cache::default();
        cache.record(object("gone", "1", 1));
        cache.on(Event::Init);
        cache.record(object("fresh", "2", 20));
        cache.on(Event::InitApply(object("kept", "3", 3)));
        cache.on(Event::InitDone);
        assert_eq!(version_of(&cache, "gone"), None);
        assert_eq!(version_of(&cache, "fresh"), Some(20));
        assert_eq!(version_of(&cache, "kept"), Some(3));
        assert!(cache.is_synced());
    }

    #[test]
    fn a_list_after_a_restore_brings_back_what_was_although_its_versions_are_lower() {
        let cache = Cache::default();
        cache.record(object("changed", "1", 50));
        cache.record(object("deleted", "2", 40));
        cache.forget(&object("deleted", "2", 51));
        cache.on(Event::Init);
        cache.on(Event::InitApply(object("changed", "1", 20)));
        cache.on(Event::InitApply(object("deleted", "2", 21)));
        cache.record(object("written", "3", 30));
        cache.on(Event::InitApply(object("written", "3", 29)));
        cache.forget(&object("removed", "4", 31));
        cache.on(Event::InitApply(object("removed", "4", 28)));
        cache.on(Event::InitDone);
        assert_eq!(version_of(&cache, "changed"), Some(20));
        assert_eq!(version_of(&cache, "deleted"), Some(21));
        assert_eq!(version_of(&cache, "written"), Some(30));
        assert_eq!(version_of(&cache, "removed"), None, "it was deleted after the list was made");
    }
}
