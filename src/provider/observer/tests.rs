use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::timeout;

use super::*;
use crate::clock;
use crate::provider::{Change, Changed, Group};

/// A cloud of the edge's own trait that counts looks: what is tested is who is looked for, when, and what they are told.
#[derive(Default)]
struct Sky {
    looks: AtomicUsize,
    fails: AtomicBool,
    wanted: Mutex<Vec<Wanted>>,
}

impl Cloud for Sky {
    fn observe<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<Observation, CloudError>> {
        let at = clock::now();
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.wanted.lock().unwrap().push(wanted.clone());
        let failure = self.fails.load(Ordering::SeqCst).then(|| CloudError {
            class: ErrorClass::Denied,
            attempt: "look".to_owned(),
            code: "AuthFailure".to_owned(),
            message: "no".to_owned(),
        });
        let group = |name: &String| (name.clone(), Group { name: name.clone(), ..Group::default() });
        let observation = Observation {
            at,
            groups: wanted.groups.iter().map(group).collect(),
            instances: BTreeMap::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        };
        async move { failure.map_or(Ok(observation), Err) }.boxed()
    }

    fn change<'a>(&'a self, _: &'a Change) -> BoxFuture<'a, Result<Changed, CloudError>> {
        async { Ok(Changed::Done) }.boxed()
    }
}

const HOURLY: Intervals = Intervals { update: Duration::from_secs(3600), expecting: Duration::from_secs(2) };

const PATIENT: Duration = Duration::from_secs(20);

fn key(credentials: &str) -> AccountKey {
    AccountKey { region: "eu-central-1".to_owned(), endpoint: None, credentials: credentials.to_owned() }
}

fn join(observers: &Observers, sky: &Arc<Sky>, group: &str) -> Subscription {
    let cloud: Arc<dyn Cloud> = sky.clone();
    observers.join(key("one"), cloud, group.to_owned(), "cluster".to_owned(), HOURLY)
}

async fn seen(subscription: &mut Subscription) -> Arc<Observation> {
    let look = async {
        loop {
            if let Some(observation) = subscription.latest() {
                return observation;
            }
            subscription.changed().await;
        }
    };
    timeout(PATIENT, look).await.unwrap()
}

#[tokio::test]
async fn many_pools_of_an_account_share_one_look() {
    let (observers, sky) = (Observers::new(Metrics::new()), Arc::new(Sky::default()));
    let mut pools: Vec<Subscription> =
        (0..50).map(|number| join(&observers, &sky, &format!("group-{number}"))).collect();
    for pool in &mut pools {
        let observation = seen(pool).await;
        assert_eq!(observation.groups.len(), 50);
    }
    assert_eq!(sky.looks.load(Ordering::SeqCst), 1);
    assert_eq!(sky.wanted.lock().unwrap()[0].cluster, "cluster");
}

#[tokio::test]
async fn a_pool_that_joins_later_is_told_nothing_before_its_group_was_looked_for() {
    let (observers, sky) = (Observers::new(Metrics::new()), Arc::new(Sky::default()));
    let mut first = join(&observers, &sky, "a");
    seen(&mut first).await;
    let mut second = join(&observers, &sky, "b");
    assert_eq!(second.latest(), None, "the group would seem not to exist");
    assert!(seen(&mut second).await.groups.contains_key("b"));
    assert_eq!(sky.looks.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_account_is_looked_at_with_its_own_credentials() {
    let (observers, sky, other) =
        (Observers::new(Metrics::new()), Arc::new(Sky::default()), Arc::new(Sky::default()));
    let mut first = join(&observers, &sky, "a");
    let cloud: Arc<dyn Cloud> = other.clone();
    let mut second = observers.join(key("two"), cloud, "a".to_owned(), "cluster".to_owned(), HOURLY);
    seen(&mut first).await;
    seen(&mut second).await;
    let looks = (sky.looks.load(Ordering::SeqCst), other.looks.load(Ordering::SeqCst));
    assert_eq!(looks, (1, 1));
}

#[tokio::test]
async fn what_was_changed_is_seen_by_a_look_begun_after_it() {
    let (observers, sky) = (Observers::new(Metrics::new()), Arc::new(Sky::default()));
    let mut pool = join(&observers, &sky, "a");
    let before = seen(&mut pool).await;
    let changed_at = clock::now();
    pool.look_after(changed_at);
    let look = async {
        while pool.latest().is_none_or(|observation| observation.at <= changed_at) {
            pool.changed().await;
        }
    };
    timeout(PATIENT, look).await.unwrap();
    pool.look_after(before.at);
    assert_eq!(sky.looks.load(Ordering::SeqCst), 2, "there was such a look already");
}

#[tokio::test]
async fn a_failed_look_keeps_what_was_seen_and_says_why() {
    let (observers, sky) = (Observers::new(Metrics::new()), Arc::new(Sky::default()));
    let mut pool = join(&observers, &sky, "a");
    let before = seen(&mut pool).await;
    assert_eq!(pool.problem(), None);
    sky.fails.store(true, Ordering::SeqCst);
    pool.nudge();
    timeout(PATIENT, pool.changed()).await.unwrap();
    assert_eq!(pool.problem().map(|problem| problem.class), Some(ErrorClass::Denied));
    assert_eq!(pool.latest(), Some(before));
    sky.fails.store(false, Ordering::SeqCst);
    let mended = async {
        while pool.problem().is_some() {
            pool.changed().await;
        }
    };
    timeout(PATIENT, mended).await.unwrap();
}

#[tokio::test]
async fn looks_end_with_the_last_who_wants_to_see() {
    let (observers, sky) = (Observers::new(Metrics::new()), Arc::new(Sky::default()));
    let mut first = join(&observers, &sky, "a");
    let mut second = join(&observers, &sky, "b");
    seen(&mut first).await;
    seen(&mut second).await;
    drop(second);
    first.nudge();
    timeout(PATIENT, first.changed()).await.unwrap();
    let last = sky.wanted.lock().unwrap().last().cloned().unwrap();
    assert_eq!(last.groups, BTreeSet::from(["a".to_owned()]), "a group nobody wants is not looked for");
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1);
    drop(first);
    let ended = async {
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENT, ended).await.unwrap();
    // Whoever comes back sees anew, with a cloud of its own.
    let fresh = Arc::new(Sky::default());
    let mut again = join(&observers, &fresh, "a");
    seen(&mut again).await;
    assert_eq!(fresh.looks.load(Ordering::SeqCst), 1);
}
