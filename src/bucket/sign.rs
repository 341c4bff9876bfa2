//! Addresses in a bucket, signed so that whoever holds one can do one thing for a while. Pure: time is an argument.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningParams, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use jiff::{SignedDuration, Timestamp};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::api::cache::{CacheSpec, S3Cache};
use crate::gitlab::cache::CachePlan;
use crate::spool::cache::{CacheUrl, CacheUrls};

/// What stays as it is in the path of a signed address.
const PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// The longest that S3 takes a signature.
const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What an address lives longer than its job may run: the job begins a little later than its addresses are signed, and
/// clocks differ.
const MARGIN: SignedDuration = SignedDuration::from_mins(10);

/// What a signature is made with.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The key's id.
    pub id: String,
    /// The key.
    pub secret: SecretString,
    /// What goes with a key that ends.
    pub session: Option<SecretString>,
    /// When it ends, where that is known.
    pub ends_at: Option<Timestamp>,
}

impl Keys {
    /// Whether they end before long, known when or not.
    pub fn are_temporary(&self) -> bool {
        self.session.is_some() || self.ends_at.is_some()
    }

    /// Whether they are the same, whatever is known of their end.
    pub fn same_as(&self, other: &Self) -> bool {
        let exposed = |keys: &Self| keys.session.as_ref().map(|token| token.expose_secret().to_owned());
        self.id == other.id
            && self.secret.expose_secret() == other.secret.expose_secret()
            && exposed(self) == exposed(other)
    }
}

/// Why nothing can be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The bucket has no address.
    #[error("spec.cache.s3 gives the address {0:?}, which cannot be one")]
    Address(String),
    /// The signature cannot be made.
    #[error("the request to the bucket cannot be signed")]
    Signature,
}

/// Where in a bucket the caches of a project are.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// The pool's settings.
    pub spec: &'a CacheSpec,
    /// The bucket in them.
    pub s3: &'a S3Cache,
    /// First characters of the runner's token.
    pub short_token: &'a str,
}

impl Place<'_> {
    /// Name of what the pool tries the bucket with.
    pub fn probe(&self) -> String {
        self.below("dormouse-probe")
    }

    /// Name of a cache.
    pub fn object(&self, project_id: u64, key: &str) -> String {
        let project = format!("project/{project_id}/{key}");
        if self.spec.shared {
            self.below(&project)
        } else {
            self.below(&format!("runner/{}/{project}", self.short_token))
        }
    }

    fn below(&self, name: &str) -> String {
        match &self.spec.path {
            Some(path) => format!("{path}/{name}"),
            None => name.to_owned(),
        }
    }

    /// Address of an object.
    ///
    /// # Errors
    /// When the settings give none.
    pub fn address(&self, object: &str) -> Result<Url, SignError> {
        let S3Cache { bucket, region, endpoint_url, path_style, .. } = self.s3;
        // A name with dots is no part of a host name that a certificate covers.
        let in_path = path_style.unwrap_or(endpoint_url.is_some() || bucket.contains('.'));
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let base = endpoint_url.clone().unwrap_or_else(|| format!("https://s3.{region}.{suffix}"));
        let object = utf8_percent_encode(object, &PLAIN);
        let base = base.trim_end_matches('/');
        let text = if in_path {
            format!("{base}/{bucket}/{object}")
        } else {
            let (scheme, host) = base.split_once("://").ok_or_else(|| SignError::Address(base.to_owned()))?;
            format!("{scheme}://{bucket}.{host}/{object}")
        };
        Url::parse(&text).map_err(|_| SignError::Address(base.to_owned()))
    }

    /// The addresses for a job's caches, in the order of the plans.
    ///
    /// # Errors
    /// When they cannot be signed.
    pub fn urls(
        &self,
        plans: &[CachePlan],
        project_id: u64,
        keys: &Keys,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<CacheUrls, SignError> {
        let signed = |method: &str, key: &str| {
            let address = self.address(&self.object(project_id, key))?;
            presign(method, address, &self.s3.region, keys, now, lifetime)
        };
        let caches = plans.iter().map(|plan| {
            let wanted: &[String] = if plan.pulls { &plan.keys } else { &[] };
            Ok(CacheUrl {
                get: wanted.iter().map(|key| signed("GET", key)).collect::<Result<_, _>>()?,
                put: plan.pushes.then(|| signed("PUT", plan.key())).transpose()?,
            })
        });
        let lasts = SignedDuration::try_from(lifetime).unwrap_or(LONGEST);
        Ok(CacheUrls {
            valid_until: now.checked_add(lasts).unwrap_or(now),
            caches: caches.collect::<Result<_, SignError>>()?,
        })
    }
}

/// How long addresses for a job live: as long as the job may, and never longer than the keys or than S3 allows.
pub fn lifetime(now: Timestamp, needed_until: Timestamp, keys_end: Option<Timestamp>) -> Duration {
    let needed = needed_until.duration_since(now).saturating_add(MARGIN);
    let left = keys_end.map_or(LONGEST, |end| end.duration_since(now));
    let whole = needed.min(left).min(LONGEST).max(SignedDuration::from_secs(1));
    Duration::from_secs(whole.as_secs().unsigned_abs())
}

/// Signs an address for one method.
///
/// # Errors
/// When it cannot be signed.
pub fn presign(
    method: &str,
    mut address: Url,
    region: &str,
    keys: &Keys,
    now: Timestamp,
    lifetime: Duration,
) -> Result<String, SignError> {
    let identity = Credentials::new(
        &keys.id,
        keys.secret.expose_secret(),
        keys.session.as_ref().map(|token| token.expose_secret().to_owned()),
        None,
        "dormouse",
    )
    .into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(lifetime);
    // S3 takes a path as it stands.
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    let parameters: SigningParams<'_> = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("s3")
        .time(now.into())
        .settings(settings)
        .build()
        .map_err(|_| SignError::Signature)?
        .into();
    let text = address.to_string();
    let request = SignableRequest::new(method, &text, std::iter::empty(), SignableBody::UnsignedPayload)
        .map_err(|_| SignError::Signature)?;
    let (instructions, _) = sign(request, &parameters).map_err(|_| SignError::Signature)?.into_parts();
    for (name, value) in instructions.params() {
        address.query_pairs_mut().append_pair(name, value);
    }
    Ok(address.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitlab::cache::When;

    fn keys() -> Keys {
        Keys {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned().into(),
            session: None,
            ends_at: None,
        }
    }

    fn s3(endpoint: Option<&str>) -> S3Cache {
        S3Cache {
            bucket: "ci-cache".into(),
            region: "eu-central-1".into(),
            endpoint_url: endpoint.map(str::to_owned),
            path_style: None,
            credentials_secret_ref: None,
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The example in AWS's own documentation of signed addresses.
    #[test]
    fn the_signature_is_the_documented_one() {
        let address = Url::parse("https://examplebucket.s3.amazonaws.com/test.txt").unwrap();
        let day = Duration::from_secs(86400);
        let signed = presign("GET", address, "us-east-1", &keys(), at("2013-05-24T00:00:00Z"), day).unwrap();
        let signed = Url::parse(&signed).unwrap();
        let value = |name: &str| {
            signed.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        assert_eq!(
            value("X-Amz-Signature").as_deref(),
            Some("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")
        );
        assert_eq!(value("X-Amz-Expires").as_deref(), Some("86400"));
        assert_eq!(value("X-Amz-SignedHeaders").as_deref(), Some("host"));
        assert_eq!(
            value("X-Amz-Credential").as_deref(),
            Some("AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request")
        );
    }

    #[test]
    fn method_time_token_and_path_change_the_signature() {
        let now = at("2026-01-02T03:04:05Z");
        let hour = Duration::from_secs(3600);
        let one = |method: &str, path: &str, keys: &Keys, now| {
            let address = Url::parse(&format!("https://s3.example.com/b/{path}")).unwrap();
            presign(method, address, "r", keys, now, hour).unwrap()
        };
        let with_token = Keys { session: Some("t/+=".to_owned().into()), ..keys() };
        let all = [
            one("GET", "k", &keys(), now),
            one("PUT", "k", &keys(), now),
            one("GET", "l", &keys(), now),
            one("GET", "k", &with_token, now),
            one("GET", "k", &keys(), at("2026-01-02T03:04:06Z")),
        ];
        let signature = |url: &String| url.split_once("X-Amz-Signature=").unwrap().1.to_owned();
        let different: std::collections::BTreeSet<String> = all.iter().map(signature).collect();
        assert_eq!(different.len(), all.len());
        assert!(all[3].contains("X-Amz-Security-Token=t%2F%2B%3D"), "{}", all[3]);
        assert_eq!(all[0], one("GET", "k", &keys(), now));
    }

    #[test]
    fn each_project_and_each_runner_has_a_folder_of_its_own() {
        let mut spec = CacheSpec { path: Some("ci/x".into()), ..CacheSpec::default() };
        let s3 = s3(None);
        let place = Place { spec: &spec, s3: &s3, short_token: "abc" };
        assert_eq!(place.object(7, "k/1"), "ci/x/runner/abc/project/7/k/1");
        assert_eq!(place.probe(), "ci/x/dormouse-probe");
        spec.shared = true;
        spec.path = None;
        let place = Place { spec: &spec, s3: &s3, short_token: "abc" };
        assert_eq!(place.object(7, "k/1"), "project/7/k/1");
    }

    #[test]
    fn addresses_follow_the_services_ways() {
        let spec = CacheSpec::default();
        let address = |s3: &S3Cache, object: &str| {
            Place { spec: &spec, s3, short_token: "t" }.address(object).unwrap().to_string()
        };
        assert_eq!(
            address(&s3(None), "a b/ü#?"),
            "https://ci-cache.s3.eu-central-1.amazonaws.com/a%20b/%C3%BC%23%3F"
        );
        assert_eq!(address(&s3(Some("http://127.0.0.1:9000/")), "k"), "http://127.0.0.1:9000/ci-cache/k");
        let virtual_host = S3Cache { path_style: Some(false), ..s3(Some("https://minio.example.com:9000")) };
        assert_eq!(address(&virtual_host, "k"), "https://ci-cache.minio.example.com:9000/k");
        let dotted = S3Cache { bucket: "ci.cache".into(), ..s3(None) };
        assert_eq!(address(&dotted, "k"), "https://s3.eu-central-1.amazonaws.com/ci.cache/k");
        let china = S3Cache { region: "cn-north-1".into(), ..s3(None) };
        assert_eq!(address(&china, "k"), "https://ci-cache.s3.cn-north-1.amazonaws.com.cn/k");
    }

    #[test]
    fn addresses_live_as_long_as_the_job_may_and_no_longer_than_the_keys() {
        let now = at("2026-01-01T00:00:00Z");
        let needed = at("2026-01-01T01:00:00Z");
        assert_eq!(lifetime(now, needed, None), Duration::from_secs(70 * 60));
        assert_eq!(lifetime(now, needed, Some(at("2026-01-01T00:20:00Z"))), Duration::from_secs(20 * 60));
        assert_eq!(lifetime(now, needed, Some(at("2025-12-31T00:00:00Z"))), Duration::from_secs(1));
        assert_eq!(lifetime(now, at("2026-03-01T00:00:00Z"), None), Duration::from_secs(7 * 24 * 3600));
    }

    #[test]
    fn only_what_the_plan_does_is_signed() {
        let spec = CacheSpec::default();
        let s3 = s3(None);
        let place = Place { spec: &spec, s3: &s3, short_token: "t" };
        let plan = |pulls, pushes| CachePlan {
            keys: vec!["k".into(), "f".into()],
            pulls,
            pushes,
            when: When::Always,
            paths: vec![],
            untracked: true,
            notes: vec![],
        };
        let now = at("2026-01-01T00:00:00Z");
        let plans = [plan(true, false), plan(false, true), plan(false, false)];
        let urls = place.urls(&plans, 7, &keys(), now, Duration::from_secs(60)).unwrap();
        let counts: Vec<_> = urls.caches.iter().map(|urls| (urls.get.len(), urls.put.is_some())).collect();
        assert_eq!(counts, [(2, false), (0, true), (0, false)]);
        assert!(urls.caches[0].get[1].contains("/runner/t/project/7/f?"));
        assert_eq!(urls.valid_until, at("2026-01-01T00:01:00Z"));
    }
}
