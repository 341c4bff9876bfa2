//! The caches of a job: what is ordered for them at its start, and newer addresses while it runs.
//!
//! Addresses in a bucket are signed for as long as the job may run. Where the keys they are signed with end before that,
//! newer ones are sent to the host beside the stream, from half of the old ones' life on. With nobody attached the host
//! goes on with what it has: a cache whose address has ended by then is skipped, and the job's log says so.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep_until};

use super::Driver;
use crate::bucket::Bucket;
use crate::clock;
use crate::deed::{Deed, Point};
use crate::gitlab::cache::{CachePlan, plan};
use crate::gitlab::inputs::in_place;
use crate::gitlab::variables::JobVariables;
use crate::host::link::{JobPath, Link};
use crate::pool::Held;
use crate::spool::cache::{CacheOrder, CacheStore};
use crate::spool::order::JobOrder;
use crate::spool::place;

/// The pause before newer addresses that could not be had or sent are tried again.
const RETRY: Duration = Duration::from_secs(10);

/// How often it is looked whether a pool's keys have been replaced.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// What is ordered for the caches of the job in an order; nothing where it has none.
pub async fn order(driver: &Driver, link: &Link, order: &JobOrder) -> Option<CacheOrder> {
    let plans = plans(order, &link.hello.machine);
    if plans.is_empty() {
        return None;
    }
    let settings = &driver.settings;
    let spec = settings.spec.cache.clone().unwrap_or_default();
    let folder = settings.spec.cache_dir.as_deref().map(|folder| link.absolute(folder));
    let until = added(clock::now(), order.job.timeout_seconds());
    let store = settings.caches.store(folder, &plans, order.job.job_info.project_id, until).await;
    if let CacheStore::Nowhere { why } = &store {
        tracing::warn!(why, "the job runs without its caches");
    }
    let request_timeout = spec.request_timeout.std().as_secs();
    Some(CacheOrder { plans, store, largest_archive: spec.max_uploaded_archive_size, request_timeout })
}

/// The plan for each cache, by the inputs and variables that the job will have on its host.
fn plans(order: &JobOrder, machine: &str) -> Vec<CachePlan> {
    if order.job.cache.is_empty() {
        return Vec::new();
    }
    // Inputs that do not fit fail the job on its host, before it would look for a cache.
    let Ok(job) = in_place(order.job.clone()) else { return Vec::new() };
    // So does a job without a place to work.
    let Ok(workspace) = place::of_order(order) else { return Vec::new() };
    let temporary = place::temporary(&workspace);
    // A key can name the file of the host's authorities, never what is in it.
    let surroundings = order.surroundings(&workspace, &temporary, machine, "");
    plan(&job, &JobVariables::gather(&job, &surroundings))
}

/// Keeps the addresses of a running job fresh.
pub struct Renewal {
    held: Arc<Held>,
    job: JobPath,
    project_id: u64,
    plans: Vec<CachePlan>,
    needed_until: Timestamp,
    /// What the addresses on the host were signed by, where this process has signed them.
    signed_by: Option<Arc<Bucket>>,
    due: Option<Instant>,
}

impl Renewal {
    /// Of the driver's job. `valid_until` is when the addresses end that this process has sent; those on the host of a job
    /// that is only attached to were signed by who knows whom.
    pub fn new(driver: &Driver, link: &Link, order: &JobOrder, valid_until: Option<Timestamp>) -> Self {
        let now = clock::now();
        // A holder that takes over cannot know when the job began: a little too long does no harm.
        let needed_until = added(now, driver.job.timeout_seconds());
        let due = match valid_until {
            Some(valid_until) => Bucket::renew_after(valid_until, needed_until, now),
            None => Some(Duration::ZERO),
        };
        Self {
            held: Arc::clone(&driver.held),
            job: driver.path(),
            project_id: driver.job.job_info.project_id,
            plans: plans(order, &link.hello.machine),
            needed_until,
            signed_by: valid_until.and(driver.settings.caches.bucket().cloned()),
            due: due.map(|pause| Instant::now() + pause),
        }
    }

    /// The same for a job that may have none yet.
    pub async fn keep_any(renewal: Option<&mut Self>, link: &Link) -> Infallible {
        match renewal {
            Some(renewal) => renewal.keep(link).await,
            None => std::future::pending().await,
        }
    }

    /// Sends newer addresses to the host whenever it is time; never returns, and may be dropped at any await.
    pub async fn keep(&mut self, link: &Link) -> Infallible {
        if self.plans.is_empty() {
            return std::future::pending().await;
        }
        loop {
            if let Some(bucket) = self.bucket()
                && (self.due.is_some_and(|due| due <= Instant::now()) || self.is_signed_by_others(&bucket))
            {
                let pause = self.renew(bucket, link).await;
                self.due = pause.map(|pause| Instant::now() + pause);
            }
            let look_at = Instant::now() + LOOK_INTERVAL;
            sleep_until(self.due.map_or(look_at, |due| due.min(look_at))).await;
        }
    }

    /// The bucket by the settings of now: keys are replaced while jobs run.
    fn bucket(&self) -> Option<Arc<Bucket>> {
        self.held.settings().and_then(|settings| settings.caches.bucket().cloned())
    }

    /// Whether the keys have been replaced since.
    fn is_signed_by_others(&self, bucket: &Arc<Bucket>) -> bool {
        self.signed_by.as_ref().is_none_or(|known| !Arc::ptr_eq(known, bucket))
    }

    /// Sends newer addresses; answers when to do so again.
    async fn renew(&mut self, bucket: Arc<Bucket>, link: &Link) -> Option<Duration> {
        let keys_stay = bucket.keys().await.is_ok_and(|keys| !keys.are_temporary());
        if keys_stay && self.signed_by.is_none() {
            // Whoever has signed them has done so for the job's whole life.
            self.signed_by = Some(bucket);
            return None;
        }
        let urls = match bucket.urls(&self.plans, self.project_id, self.needed_until).await {
            Ok(urls) => urls,
            Err(problem) => {
                tracing::warn!(why = problem.message, "the addresses of the job's caches were not renewed");
                return Some(RETRY);
            }
        };
        // Not fenced by the tenure but by the host: right whoever streams, and of no use to anybody else.
        match link.renew(Deed::unfenced(Point::CacheRenewed), &self.job, &urls).await {
            Ok(()) => {
                self.signed_by = Some(bucket);
                Bucket::renew_after(urls.valid_until, self.needed_until, clock::now())
            }
            Err(error) => {
                tracing::warn!(%error, "the newer addresses of the job's caches were not taken");
                Some(RETRY)
            }
        }
    }
}

fn added(time: Timestamp, seconds: u64) -> Timestamp {
    let seconds = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    time.checked_add(seconds).unwrap_or(Timestamp::MAX)
}
