//! EC2 and Auto Scaling: the one implementation of [`Cloud`].
//!
//! Owns the clients of one account and region, and how often they call. Speaks AWS's words inwards and ours outwards: no
//! type of the SDK leaves this module. Decides nothing: a [`Change`] says all, and what is so already counts as done.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region};
use aws_credential_types::Credentials as SdkCredentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_async::time::TimeSource;
use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use url::Url;

use self::action::Action;
use self::gate::Gate;
use self::limit::Limits;
use crate::clock;
use crate::provider::observer::AccountKey;
use crate::provider::{Change, Changed, Cloud, CloudError, ErrorClass, Observation, Wanted};
use crate::telemetry::Metrics;

mod action;
mod change;
mod error;
mod gate;
mod instances;
pub mod limit;
mod look;
mod members;
mod shape;
mod shortage;
mod storage;

pub use self::action::ACTIONS;

/// Tries of a call, the first included, where AWS or the way to it failed.
const ATTEMPTS: u32 = 3;

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// Time for one try.
const ATTEMPT: Duration = Duration::from_secs(15);

/// Time for a call with all its tries.
const OPERATION: Duration = Duration::from_secs(30);

/// An account in a region, and how to get in.
#[derive(Debug, Clone)]
pub struct AwsSettings {
    /// The region.
    pub region: String,
    /// Address of the APIs, if not AWS's own.
    pub endpoint_url: Option<String>,
    /// What calls are signed with.
    pub credentials: Credentials,
    /// How often AWS is called.
    pub limits: Limits,
}

/// What calls are signed with.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// What the process has: web identity, pod identity, environment, instance role. Renewed by themselves.
    Ambient,
    /// Keys of a pool of its own.
    Keys {
        /// The key's id.
        access_key_id: String,
        /// The key.
        secret_access_key: SecretString,
        /// What goes with a key that ends.
        session_token: Option<SecretString>,
    },
}

impl AwsSettings {
    /// Whose these are: pools with the same key share looks and limits. Holds no secret.
    pub fn account_key(&self) -> AccountKey {
        let credentials = match &self.credentials {
            Credentials::Ambient => "ambient".to_owned(),
            Credentials::Keys { access_key_id, secret_access_key, session_token } => {
                let token = session_token.as_ref().map(ExposeSecret::expose_secret).unwrap_or_default();
                let mut digest = Sha256::new();
                for part in [access_key_id.as_str(), secret_access_key.expose_secret(), token] {
                    digest.update(part.len().to_be_bytes());
                    digest.update(part);
                }
                format!("{:x}", digest.finalize())
            }
        };
        AccountKey { region: self.region.clone(), endpoint: self.endpoint_url.clone(), credentials }
    }
}

/// What calls are dated by: the API server's clock where this machine's is off, for AWS refuses what was signed minutes too
/// early or too late.
#[derive(Debug)]
struct Clock;

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        clock::of_others().into()
    }
}

/// An account in a region.
pub struct AwsCloud {
    ec2: aws_sdk_ec2::Client,
    groups: aws_sdk_autoscaling::Client,
    connect: aws_sdk_ec2instanceconnect::Client,
    gate: Gate,
    metrics: Metrics,
    /// What changes rarely of groups, with when it was seen.
    kept: Mutex<HashMap<String, look::Kept>>,
    /// Groups that have fewer members than they wish.
    short: Mutex<HashMap<String, shortage::Shortage>>,
}

impl AwsCloud {
    /// The clients of an account. Nothing is called yet, and nothing signed: wrong credentials show at the first call.
    ///
    /// # Errors
    /// When the region or the address cannot be one.
    pub async fn new(settings: AwsSettings, metrics: Metrics) -> Result<Self, CloudError> {
        check(&settings)?;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .operation_attempt_timeout(ATTEMPT)
            .operation_timeout(OPERATION)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(settings.region))
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .time_source(Clock)
            .timeout_config(timeouts);
        // The name is a constant that can be one; without it calls are the same.
        if let Ok(name) = AppName::new(concat!("dormouse-", env!("CARGO_PKG_VERSION"))) {
            loader = loader.app_name(name);
        }
        if let Some(endpoint) = settings.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        if let Credentials::Keys { access_key_id, secret_access_key, session_token } = settings.credentials {
            let keys = SdkCredentials::new(
                access_key_id,
                secret_access_key.expose_secret(),
                session_token.map(|token| token.expose_secret().to_owned()),
                None,
                "the pool's Secret",
            );
            loader = loader.credentials_provider(SharedCredentialsProvider::new(keys));
        }
        let config = loader.load().await;
        Ok(Self {
            ec2: aws_sdk_ec2::Client::new(&config),
            groups: aws_sdk_autoscaling::Client::new(&config),
            connect: aws_sdk_ec2instanceconnect::Client::new(&config),
            gate: Gate::new(&settings.limits),
            metrics,
            kept: Mutex::default(),
            short: Mutex::default(),
        })
    }

    /// Makes a call when its turn has come, counts it, and says in our words what came of it.
    async fn call<T, E>(
        &self,
        action: Action,
        attempt: &str,
        sent: impl Future<Output = Result<T, SdkError<E>>> + Send,
    ) -> Result<T, CloudError>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let family = action.family();
        if !self.gate.enter(family).await {
            self.metrics.cloud_call(action.service().as_str(), action.as_str(), "Held");
            return Err(CloudError {
                class: ErrorClass::Retry,
                attempt: attempt.to_owned(),
                code: "TooManyCalls".to_owned(),
                message: "too many calls wait to be made to the account: later".to_owned(),
            });
        }
        // The SDK's futures are large; many of them are held at once.
        let outcome = Box::pin(sent).await.map_err(|failed| error::from_sdk(attempt, &failed));
        let label = outcome.as_ref().map_or_else(|failed| failed.class.as_str(), |_| "Done");
        self.metrics.cloud_call(action.service().as_str(), action.as_str(), label);
        if let Err(failed) = &outcome
            && error::is_throttling(&failed.code)
        {
            self.metrics.cloud_throttled(action.service().as_str());
            self.gate.throttled(family);
        }
        outcome
    }
}

impl Cloud for AwsCloud {
    fn observe<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<Observation, CloudError>> {
        self.look(wanted).boxed()
    }

    fn change<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Changed, CloudError>> {
        self.carry_out(change).boxed()
    }

    fn is_throttled(&self) -> bool {
        self.gate.is_slow()
    }
}

/// What the SDK would only find at the first call, in words of its own.
fn check(settings: &AwsSettings) -> Result<(), CloudError> {
    let wrong = |field: &str, value: &str, way_out: &str| CloudError {
        class: ErrorClass::Invalid,
        attempt: "reach AWS".to_owned(),
        code: "InvalidSettings".to_owned(),
        message: error::shorten(&format!("{field} {value:?} {way_out}")),
    };
    let region = &settings.region;
    let may_be_one = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if region.is_empty() || !region.chars().all(may_be_one) {
        return Err(wrong("region", region, "is not a region: give one such as eu-central-1"));
    }
    if let Some(endpoint) = &settings.endpoint_url {
        let url = Url::parse(endpoint).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
        });
        if url.is_none() {
            return Err(wrong(
                "endpointUrl",
                without_user(endpoint),
                "is not an address: give one such as https://ec2.example.com, without user and password",
            ));
        }
    }
    Ok(())
}

/// An address that holds a password is not repeated.
fn without_user(endpoint: &str) -> &str {
    if endpoint.contains('@') { "(with a user)" } else { endpoint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(secret: &str) -> AwsSettings {
        AwsSettings {
            region: "eu-central-1".to_owned(),
            endpoint_url: None,
            credentials: Credentials::Keys {
                access_key_id: "AKIA1".to_owned(),
                secret_access_key: SecretString::from(secret),
                session_token: None,
            },
            limits: Limits::default(),
        }
    }

    #[test]
    fn accounts_are_told_apart_without_telling_the_secret() {
        let (one, other) = (settings("first-secret"), settings("second-secret"));
        assert_eq!(one.account_key(), settings("first-secret").account_key());
        assert_ne!(one.account_key(), other.account_key());
        let ambient = AwsSettings { credentials: Credentials::Ambient, ..settings("") };
        assert_ne!(ambient.account_key(), one.account_key());
        let shown = format!("{one:?} {:?}", one.account_key());
        assert!(!shown.contains("first-secret"), "{shown}");
    }

    #[test]
    fn a_region_or_address_that_cannot_be_one_is_named() {
        assert_eq!(check(&settings("s")), Ok(()));
        let region = AwsSettings { region: "Frankfurt am Main".to_owned(), ..settings("s") };
        assert!(check(&region).unwrap_err().message.contains("\"Frankfurt am Main\""));
        for endpoint in ["ec2.example.com", "ftp://x", "https://", "http://me:hunter2@example.com"] {
            let told = AwsSettings { endpoint_url: Some(endpoint.to_owned()), ..settings("s") };
            let error = check(&told).unwrap_err();
            assert_eq!(error.class, ErrorClass::Invalid);
            assert!(error.message.contains("endpointUrl") && !error.message.contains("hunter2"), "{error}");
        }
    }
}
