//! Where the keys to a bucket come from: a Secret of the pool, or what the operator's pod has.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use secrecy::SecretString;

use super::answer::Problem;
use super::sign::Keys;
use crate::api::cache::S3Cache;

const FIELD: &str = "spec.cache.s3.credentialsSecretRef";

/// Why keys could not be read.
pub enum Unread {
    /// The API server could not be asked.
    Passing(Problem),
    /// They are not there, or not what they should be.
    Wrong(Problem),
}

/// Where keys come from.
pub enum Source {
    /// The pool's Secret, as it was read last.
    Given(Keys),
    /// What the process has.
    #[cfg(feature = "aws")]
    Ambient(ambient::Ambient),
}

impl Source {
    /// Finds out where a bucket's keys come from.
    ///
    /// # Errors
    /// When a Secret is named that cannot be used.
    pub async fn read(client: &Client, namespace: &str, s3: &S3Cache) -> Result<Self, Unread> {
        let Some(reference) = &s3.credentials_secret_ref else { return Self::ambient(s3).await };
        let name = &reference.name;
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|error| {
            Unread::Passing(Problem::new(
                "ReadFailed",
                format!("cannot read Secret {name:?} of {FIELD}: {error}"),
            ))
        })?;
        let missing = |what: &str| {
            Unread::Wrong(Problem::new(
                "SecretMissing",
                format!(
                    "{FIELD} names Secret {name:?}{what}, which does not exist; create it in the pool's namespace"
                ),
            ))
        };
        let data = found.ok_or_else(|| missing(""))?.data.unwrap_or_default();
        let value = |key: &str| {
            let text = data.get(key).and_then(|value| std::str::from_utf8(&value.0).ok())?.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let needed = |key: &str| value(key).ok_or_else(|| missing(&format!(" with key {key:?}")));
        let ends_at = match value("AWS_CREDENTIAL_EXPIRATION") {
            None => None,
            Some(text) => Some(text.parse::<Timestamp>().map_err(|_| {
                Unread::Wrong(Problem::new(
                    "SecretInvalid",
                    format!(
                        "AWS_CREDENTIAL_EXPIRATION in Secret {name:?} of {FIELD} is no time such as 2026-01-02T15:04:05Z"
                    ),
                ))
            })?),
        };
        Ok(Self::Given(Keys {
            id: needed("AWS_ACCESS_KEY_ID")?,
            secret: SecretString::from(needed("AWS_SECRET_ACCESS_KEY")?),
            session: value("AWS_SESSION_TOKEN").map(SecretString::from),
            ends_at,
        }))
    }

    /// Whether both give the same keys.
    pub fn same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Given(own), Self::Given(others)) => own.same_as(others) && own.ends_at == others.ends_at,
            #[cfg(feature = "aws")]
            (Self::Ambient(_), Self::Ambient(_)) => true,
            #[cfg(feature = "aws")]
            (Self::Given(_), Self::Ambient(_)) | (Self::Ambient(_), Self::Given(_)) => false,
        }
    }

    /// The keys of now.
    ///
    /// # Errors
    /// When the process has none.
    pub async fn keys(&self) -> Result<Keys, Problem> {
        match self {
            Self::Given(keys) => Ok(keys.clone()),
            #[cfg(feature = "aws")]
            Self::Ambient(ambient) => ambient.keys().await,
        }
    }

    #[cfg(feature = "aws")]
    async fn ambient(s3: &S3Cache) -> Result<Self, Unread> {
        Ok(Self::Ambient(ambient::Ambient::new(s3).await))
    }

    /// A build without the SDK says so.
    #[cfg(not(feature = "aws"))]
    async fn ambient(_: &S3Cache) -> Result<Self, Unread> {
        let message = format!("this operator was built without feature aws, so {FIELD} has to be given");
        Err(Unread::Wrong(Problem::new("CacheSettingsInvalid", message)))
    }
}

#[cfg(feature = "aws")]
pub mod ambient {
    //! Keys of the process itself, by the SDK's chain.

    use std::time::Duration;

    use aws_config::{BehaviorVersion, Region};
    use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
    use jiff::{SignedDuration, Timestamp};
    use secrecy::SecretString;
    use tokio::sync::Mutex;
    use tokio::time::Instant;

    use super::super::answer::Problem;
    use super::super::sign::Keys;
    use crate::api::cache::S3Cache;
    use crate::clock;

    /// How long keys are used before they are asked for again: each asking is a call to a service.
    const FRESH: Duration = Duration::from_secs(5 * 60);

    /// What keys must have left to be used again.
    const ENOUGH: SignedDuration = SignedDuration::from_mins(20);

    /// The SDK's chain, with the keys it gave last.
    pub struct Ambient {
        provider: Option<SharedCredentialsProvider>,
        last: Mutex<Option<(Instant, Keys)>>,
    }

    impl Ambient {
        /// The chain of this process.
        pub async fn new(s3: &S3Cache) -> Self {
            let config = aws_config::defaults(BehaviorVersion::latest())
                .region(Region::new(s3.region.clone()))
                .load()
                .await;
            Self { provider: config.credentials_provider(), last: Mutex::new(None) }
        }

        /// The keys of now.
        ///
        /// # Errors
        /// When the process has none.
        pub async fn keys(&self) -> Result<Keys, Problem> {
            let mut last = self.last.lock().await;
            let has_enough =
                |keys: &Keys| keys.ends_at.is_none_or(|end| end.duration_since(clock::now()) > ENOUGH);
            if let Some((since, keys)) = last.as_ref()
                && since.elapsed() < FRESH
                && has_enough(keys)
            {
                return Ok(keys.clone());
            }
            let none = |why: String| {
                Problem::new(
                    "CredentialsMissing",
                    format!(
                        "spec.cache.s3 has no credentialsSecretRef, and the operator's pod has no keys of its own{why}; give \
                         either"
                    ),
                )
            };
            let provider = self.provider.as_ref().ok_or_else(|| none(String::new()))?;
            let given = provider.provide_credentials().await.map_err(|error| none(format!(": {error}")))?;
            let keys = Keys {
                id: given.access_key_id().to_owned(),
                secret: SecretString::from(given.secret_access_key().to_owned()),
                session: given.session_token().map(|token| SecretString::from(token.to_owned())),
                ends_at: given.expiry().and_then(|end| Timestamp::try_from(end).ok()),
            };
            *last = Some((Instant::now(), keys.clone()));
            Ok(keys)
        }
    }
}
