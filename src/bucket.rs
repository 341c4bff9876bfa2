//! The bucket that caches of jobs are kept in.
//!
//! Owns a pool's keys to it. Hosts get addresses that are signed here for one job, never a key. `sign` and `answer`
//! decide, purely; [`Bucket`] is the edge: where keys come from, and the trial of whether the bucket takes what is signed.
//! Nothing here keeps a pool from its jobs: a job whose cache cannot be had runs without it, and its log says why.

pub mod answer;
pub mod keys;
pub mod sign;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::Client;
use reqwest::Method;
use tokio::time::timeout;

use self::answer::{Answer, Problem};
use self::keys::Source;
use self::sign::{Keys, Place, lifetime, presign};
use crate::api::cache::{CacheSpec, CacheType, S3Cache};
use crate::api::runner_pool::RunnerPoolSpec;
use crate::clock;
use crate::gitlab::cache::CachePlan;
use crate::spool::cache::{CacheStore, CacheUrls};
use crate::tls;

/// How long keys may take to be had: a job waits for them.
const KEYS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one request of a trial may take.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an address of a trial lives.
const TRIAL_LIFETIME: Duration = Duration::from_secs(60);

/// How much of an answer is read.
const LONGEST_ANSWER: usize = 16 * 1024;

/// Where the caches of a pool's jobs are kept.
#[derive(Clone)]
pub enum Caches {
    /// On each host.
    Host,
    /// In a bucket.
    Bucket(Arc<Bucket>),
    /// Nowhere, for the settings cannot be used.
    Nowhere(Problem),
}

/// A bucket with the keys to it.
pub struct Bucket {
    spec: CacheSpec,
    s3: S3Cache,
    short_token: String,
    source: Source,
    http: reqwest::Client,
}

impl Caches {
    /// Reads where a pool's caches are kept. While nothing has changed it is the known one, with the keys it has.
    pub async fn read(
        client: &Client,
        namespace: &str,
        spec: &RunnerPoolSpec,
        short_token: &str,
        ca_bundle: Option<&str>,
        known: Option<&Self>,
    ) -> Self {
        let cache = spec.cache.clone().unwrap_or_default();
        let s3 = match (cache.type_, &cache.s3) {
            (CacheType::Local, _) => return Self::Host,
            (CacheType::S3, Some(s3)) => s3.clone(),
            (CacheType::S3, None) => {
                let message = "spec.cache.type is S3 without spec.cache.s3; give the bucket there";
                return Self::Nowhere(Problem::new("BucketNotNamed", message));
            }
        };
        let source = match Source::read(client, namespace, &s3).await {
            Ok(source) => source,
            // What was good before is good until something is known to be wrong.
            Err(keys::Unread::Passing(problem)) => match known {
                Some(Self::Bucket(known)) if known.spec == cache => return Self::Bucket(Arc::clone(known)),
                _ => return Self::Nowhere(problem),
            },
            Err(keys::Unread::Wrong(problem)) => return Self::Nowhere(problem),
        };
        if let Some(Self::Bucket(known)) = known
            && known.spec == cache
            && known.short_token == short_token
            && known.source.same_as(&source)
        {
            return Self::Bucket(Arc::clone(known));
        }
        match http(ca_bundle) {
            Ok(http) => Self::Bucket(Arc::new(Bucket {
                spec: cache,
                s3,
                short_token: short_token.to_owned(),
                source,
                http,
            })),
            Err(error) => Self::Nowhere(Problem::new("CacheSettingsInvalid", error.to_string())),
        }
    }

    /// The bucket, where there is one.
    pub fn bucket(&self) -> Option<&Arc<Bucket>> {
        match self {
            Self::Bucket(bucket) => Some(bucket),
            Self::Host | Self::Nowhere(_) => None,
        }
    }

    /// Where a job's caches are kept, with the addresses it needs.
    pub async fn store(
        &self,
        folder: Option<String>,
        plans: &[CachePlan],
        project_id: u64,
        needed_until: Timestamp,
    ) -> CacheStore {
        match self {
            Self::Host => CacheStore::Host { folder },
            Self::Nowhere(problem) => CacheStore::Nowhere { why: problem.message.clone() },
            Self::Bucket(bucket) => match bucket.urls(plans, project_id, needed_until).await {
                Ok(urls) => CacheStore::Bucket(urls),
                Err(problem) => CacheStore::Nowhere { why: problem.message },
            },
        }
    }
}

impl Bucket {
    /// Signs the addresses for a job's caches with the keys of now.
    ///
    /// # Errors
    /// When there are no keys, or nothing can be signed.
    pub async fn urls(
        &self,
        plans: &[CachePlan],
        project_id: u64,
        needed_until: Timestamp,
    ) -> Result<CacheUrls, Problem> {
        let keys = self.keys().await?;
        let now = clock::now();
        let lives = lifetime(now, needed_until, keys.ends_at);
        let urls = self.place().urls(plans, project_id, &keys, now, lives);
        urls.map_err(|error| Problem::new("CacheSettingsInvalid", error.to_string()))
    }

    /// The keys of now.
    ///
    /// # Errors
    /// When there are none.
    pub async fn keys(&self) -> Result<Keys, Problem> {
        let slow = || {
            let seconds = KEYS_TIMEOUT.as_secs();
            Problem::new(
                "CredentialsMissing",
                format!("the keys to the cache's bucket were not had within {seconds} s"),
            )
        };
        let keys = timeout(KEYS_TIMEOUT, self.source.keys()).await.map_err(|_| slow())??;
        match keys.ends_at {
            Some(end) if end <= clock::now() => Err(Problem::new(
                "CredentialsEnded",
                format!("the keys to the bucket {:?} have ended at {end}; renew them", self.s3.bucket),
            )),
            Some(_) | None => Ok(keys),
        }
    }

    /// Tries whether the bucket takes what is signed, by an object of the pool's own that is written once and read from
    /// then on: a bucket that may not be listed does not tell a missing object from a forbidden one.
    ///
    /// # Errors
    /// When it does not.
    pub async fn try_out(&self) -> Result<(), Problem> {
        let keys = self.keys().await?;
        for (method, body) in [(Method::GET, None), (Method::PUT, Some("dormouse")), (Method::GET, None)] {
            match (self.ask(&keys, method.clone(), body).await?, method) {
                (Answer::Done, Method::PUT) | (Answer::NotThere, Method::GET) => {}
                (Answer::Done, _) => return Ok(()),
                (Answer::NotThere, _) => break,
                (Answer::Refused(problem), _) => return Err(problem),
            }
        }
        Err(answer::denied(&self.place().probe(), &self.s3))
    }

    async fn ask(&self, keys: &Keys, method: Method, body: Option<&'static str>) -> Result<Answer, Problem> {
        let place = self.place();
        let invalid = |error: sign::SignError| Problem::new("CacheSettingsInvalid", error.to_string());
        let address = place.address(&place.probe()).map_err(invalid)?;
        let url = presign(method.as_str(), address, &self.s3.region, keys, clock::now(), TRIAL_LIFETIME)
            .map_err(invalid)?;
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.body(body);
        }
        // The address of a failed request is signed.
        let away = |error: reqwest::Error| {
            let message = format!(
                "the bucket {:?} does not answer: {}; see spec.cache.s3.endpointUrl",
                self.s3.bucket,
                causes(&error.without_url())
            );
            Problem::new("BucketUnreachable", message)
        };
        let answer = request.send().await.map_err(away)?;
        let status = answer.status().as_u16();
        let mut text = answer.bytes().await.map_err(away)?;
        text.truncate(LONGEST_ANSWER);
        Ok(answer::read(status, &String::from_utf8_lossy(&text), &self.s3))
    }

    /// For how long addresses that were signed now should be left before newer ones are sent, if the job needs them for
    /// longer than they live.
    pub fn renew_after(valid_until: Timestamp, needed_until: Timestamp, now: Timestamp) -> Option<Duration> {
        (valid_until < needed_until).then(|| {
            let half = valid_until.duration_since(now) / 2;
            let pause = half.max(SignedDuration::from_secs(SOONEST_RENEWAL));
            Duration::from_secs(pause.as_secs().unsigned_abs())
        })
    }

    fn place(&self) -> Place<'_> {
        Place { spec: &self.spec, s3: &self.s3, short_token: &self.short_token }
    }
}

/// The least time, in seconds, between two renewals of a job's addresses.
const SOONEST_RENEWAL: i64 = 5;

fn http(ca_bundle: Option<&str>) -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::http2_config(ca_bundle, None)?)
        .timeout(TRIAL_TIMEOUT)
        // Another region's address is an answer, and not one to follow: it is signed for this one.
        .redirect(reqwest::redirect::Policy::none());
    Ok(builder.build()?)
}

/// What went wrong, with what was below it: the outermost error says only that it did.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        text = format!("{text}: {cause}");
        below = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_outlive_the_job_are_never_renewed() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-01T00:00:00Z");
        let (hour, two) = (at("2026-01-01T01:00:00Z"), at("2026-01-01T02:00:00Z"));
        assert_eq!(Bucket::renew_after(two, hour, now), None);
        assert_eq!(Bucket::renew_after(hour, two, now), Some(Duration::from_secs(1800)));
        assert_eq!(Bucket::renew_after(now, two, hour), Some(Duration::from_secs(5)));
    }
}
