//! What a pool is set to: its spec with the Secrets and ConfigMaps it names, read and understood.
//!
//! Read again on every change of the pool and once a minute, since Secrets are read by name and never watched. So what
//! changes in a Secret or ConfigMap is in force within a minute, for conversations that are under way too.
//! What cannot be used is said with the field, the value and the way out, and the last good settings stay. A runner token
//! is needed to ask for jobs and for nothing else: without a good one a pool that GitLab knew before goes on with the
//! jobs and environments it has.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, decode_secret_key};
use secrecy::{ExposeSecret, SecretString};

use super::registration::{self, RegistrationError};
use super::{Held, runner_secret};
use crate::api::RunnerPool;
use crate::api::key::system_id;
use crate::api::registration::GitLabSpec;
use crate::api::runner_pool::{
    Authentication, EnvironmentVariable, Isolation, KeyRef, ObjectRef, RunnerPoolSpec,
};
use crate::bucket::Caches;
use crate::environment::check::PoolIdentity;
use crate::gitlab::client::{Client as GitLab, JobCredentials, UrlError, VerifyAnswer};
use crate::gitlab::transport::{Transport, TransportError, Trust};
use crate::gitlab::wire::{JobPayload, Variable};
use crate::provider::Cloud;
use crate::provider::observer::AccountKey;
use crate::spool::order;
use crate::telemetry::{Metrics, RunnerLabels};

/// A pool that can work.
pub struct Settings {
    /// The spec they were read from.
    pub spec: RunnerPoolSpec,
    /// The generation they were read from.
    pub generation: Option<i64>,
    /// GitLab, as this runner.
    pub gitlab: GitLab,
    /// Who the pool is to GitLab.
    pub identity: PoolIdentity,
    /// First characters of the token, for logs and paths.
    pub short_token: String,
    /// The pool in metrics.
    pub labels: RunnerLabels,
    /// When the token expires, if it does.
    pub token_expires_at: Option<Timestamp>,
    /// PEM certificates to trust besides the system's.
    pub ca_bundle: Option<String>,
    /// What is shown GitLab where it asks for a certificate, in PEM: that and its key; empty without one.
    pub client_pem: SecretString,
    /// The key to log in to hosts with.
    pub ssh_key: Arc<PrivateKey>,
    /// The cloud of its instances, where it has one.
    pub cloud: Option<Arc<CloudAccess>>,
    /// Where the caches of its jobs are kept.
    pub caches: Caches,
    /// Whether GitLab accepted the token.
    verified: bool,
    /// What was read from outside the spec, to see whether it changed.
    fingerprint: [u8; 32],
}

impl Settings {
    /// How neighbours on a host of that many slots are kept apart.
    pub fn isolation(&self, slots: u32) -> order::Isolation {
        match self.spec.isolation {
            Some(Isolation::PerSlotUser) => order::Isolation::PerSlotUser,
            Some(Isolation::Shared) if slots > 1 => order::Isolation::Shared,
            Some(Isolation::Shared) | None => order::Isolation::Single,
        }
    }

    /// What GitLab is told of a job with.
    pub fn credentials(&self, job: &JobPayload) -> JobCredentials {
        JobCredentials::of(job, &self.environment())
    }

    /// The pool's variables for its jobs.
    pub fn environment(&self) -> Vec<Variable> {
        let variable = |each: &EnvironmentVariable| Variable {
            key: each.name.clone(),
            value: each.value.clone(),
            public: true,
            ..Variable::default()
        };
        self.spec.environment.iter().flatten().map(variable).collect()
    }

    /// Whether two settings lead to the same connections and conversations.
    pub fn same_as(&self, other: &Self) -> bool {
        self.spec == other.spec && self.fingerprint == other.fingerprint
    }

    /// Whether two settings ask GitLab with the same token.
    pub fn same_token_as(&self, other: &Self) -> bool {
        self.gitlab.same_token_as(&other.gitlab)
    }
}

/// A cloud with the account it is used as.
pub struct CloudAccess {
    /// The account and region: pools that share it share the looks at it.
    pub account: AccountKey,
    /// The cloud.
    pub cloud: Arc<dyn Cloud>,
}

/// Why a pool cannot work.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The API server could not be asked.
    #[error("cannot read {what}")]
    Kubernetes {
        /// The object.
        what: String,
        /// The error.
        #[source]
        cause: kube::Error,
    },
    /// A Secret or ConfigMap, or its key, is not there.
    #[error(
        "{field} names {kind} {name:?} with key {key:?}, which does not exist; create it in the pool's namespace"
    )]
    Missing {
        /// The field of the spec.
        field: &'static str,
        /// Secret or ConfigMap.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The private key cannot be read.
    #[error(
        "spec.ssh.privateKeySecretRef holds no private key that can be read; it must be PEM or OpenSSH, without a \
         passphrase"
    )]
    PrivateKey,
    /// GitLab's address cannot be used.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// Its certificates cannot be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The pool's own runner cannot be used.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// A policy cannot be read.
    #[error(transparent)]
    Policy(#[from] crate::fleet::policy::PolicyError),
    /// The client of the cloud cannot be built.
    #[error("spec.provider.aws cannot be used: {0}")]
    Cloud(String),
    /// GitLab does not accept the token.
    #[error(
        "GitLab does not accept the runner token in spec.gitlab.tokenSecretRef; create a runner and put its glrt- \
         token there"
    )]
    InvalidToken,
    /// GitLab does not accept the token that the pool keeps.
    #[error(
        "GitLab does not accept the token of the pool's own runner, which Secret {secret:?} keeps: the runner was removed \
         at GitLab, or its token reset; delete the Secret to register anew"
    )]
    OwnTokenRefused {
        /// The Secret.
        secret: String,
    },
    /// GitLab could not be asked.
    #[error("the runner token could not be checked: {0}")]
    Unverified(String),
}

impl SettingsError {
    /// A stable reason for conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kubernetes { .. } => "ReadFailed",
            Self::Missing { kind: "ConfigMap", .. } => "ConfigMapMissing",
            Self::Missing { .. } => "SecretMissing",
            Self::PrivateKey => "PrivateKeyUnreadable",
            Self::Policy(_) => "PolicyInvalid",
            Self::Cloud(_) => "CloudSettingsInvalid",
            Self::Url(_) => "GitLabSettingsInvalid",
            Self::Transport(TransportError::Identity(_)) => "ClientCertificateUnreadable",
            Self::Transport(
                TransportError::CaBundle(_) | TransportError::Tls(_) | TransportError::Http(_),
            ) => "GitLabSettingsInvalid",
            Self::Registration(error) => error.reason(),
            Self::InvalidToken | Self::OwnTokenRefused { .. } => "TokenRefused",
            Self::Unverified(_) => "GitLabUnreachable",
        }
    }

    /// Whether the last good settings may go on: nothing is known to be wrong, it just could not be asked.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Kubernetes { .. } | Self::Unverified(_) => true,
            Self::Registration(error) => error.is_passing(),
            Self::Missing { .. }
            | Self::PrivateKey
            | Self::Policy(_)
            | Self::Cloud(_)
            | Self::Url(_)
            | Self::Transport(_)
            | Self::InvalidToken
            | Self::OwnTokenRefused { .. } => false,
        }
    }
}

/// What was read of a pool's settings.
pub struct Reading {
    /// The settings, where there is enough to work with hosts and jobs.
    pub settings: Option<Arc<Settings>>,
    /// Why the pool cannot do all it should.
    pub problem: Option<SettingsError>,
}

/// Reads a pool's settings and checks its token. Settings that are the same as the known ones are not checked with
/// GitLab again.
pub async fn read(held: &Held, pool: &RunnerPool, known: Option<&Arc<Settings>>) -> Reading {
    match try_read(held, pool, known).await {
        Ok((settings, problem)) => Reading { settings: Some(settings), problem },
        Err(problem) => Reading { settings: None, problem: Some(problem) },
    }
}

async fn try_read(
    held: &Held,
    pool: &RunnerPool,
    known: Option<&Arc<Settings>>,
) -> Result<(Arc<Settings>, Option<SettingsError>), SettingsError> {
    let (client, metrics) = (&held.shared.client, &held.shared.metrics);
    let namespace = pool.metadata.namespace.clone().unwrap_or_default();
    let name = pool.metadata.name.clone().unwrap_or_default();
    let uid = pool.metadata.uid.clone().unwrap_or_default();
    let spec = pool.spec.clone();
    let system_id = system_id(spec.system_id_seed.as_deref().unwrap_or(&uid));
    let identity_before = identity_before(pool, &system_id);
    let trust = trust(client, &namespace, &spec.gitlab).await?;
    let ca_bundle = trust.ca_bundle.clone();
    let identity_pem = trust.identity.clone().unwrap_or_default();
    let transport = held.transport(trust)?;
    let (token, missing) = match token(held, pool, &transport).await {
        Ok(token) => (token, None),
        // Without a token a pool that GitLab knew before goes on with what it has.
        Err(missing) if known.is_none() && identity_before.is_some() && is_about_the_token(&missing) => {
            (SecretString::default(), Some(missing))
        }
        Err(missing @ SettingsError::Missing { .. }) if identity_before.is_some() => {
            (SecretString::default(), Some(missing))
        }
        Err(error) => return Err(error),
    };
    let key = match &spec.ssh.private_key_secret_ref {
        Some(reference) => secret(client, &namespace, "spec.ssh.privateKeySecretRef", reference).await?,
        None => SecretString::default(),
    };
    crate::fleet::work::check_policies(&spec)?;
    let cloud = cloud(client, &namespace, &spec, known, metrics).await?;
    // People make Secrets with echo: a line break at the end is not part of a token.
    let token = SecretString::from(token.expose_secret().trim().to_owned());
    let short_token = match known {
        // Without the token, caches stay where they were.
        Some(known) if token.expose_secret().is_empty() => known.short_token.clone(),
        Some(_) | None => short_token(token.expose_secret()),
    };
    let known_caches = known.map(|known| &known.caches);
    let caches =
        Caches::read(client, &namespace, &spec, &short_token, ca_bundle.as_deref(), known_caches).await;
    let fingerprint = fingerprint(&[
        token.expose_secret(),
        key.expose_secret(),
        ca_bundle.as_deref().unwrap_or_default(),
        identity_pem.expose_secret(),
    ]);
    if let Some(known) = known
        && known.verified
        && known.fingerprint == fingerprint
        && known.spec.gitlab == spec.gitlab
        && known.identity.system_id == system_id
    {
        let settings = Settings {
            spec,
            generation: pool.metadata.generation,
            gitlab: known.gitlab.clone(),
            identity: known.identity.clone(),
            short_token: known.short_token.clone(),
            labels: known.labels.clone(),
            token_expires_at: known.token_expires_at,
            ca_bundle,
            client_pem: identity_pem,
            ssh_key: Arc::clone(&known.ssh_key),
            cloud,
            caches,
            verified: true,
            fingerprint,
        };
        return Ok((Arc::new(settings), None));
    }
    let ssh_key = match spec.ssh.authentication {
        Authentication::PrivateKey => decode_secret_key(key.expose_secret(), None),
        // Known to this process only; each connection is let in by EC2 Instance Connect.
        Authentication::InstanceConnect => Ok(PrivateKey::from(Ed25519Keypair::from_seed(&rand::random()))),
    };
    let ssh_key = ssh_key.map_err(|_| SettingsError::PrivateKey)?;
    let labels =
        RunnerLabels { runner: short_token.clone(), runner_name: name.clone(), system_id: system_id.clone() };
    let gitlab = GitLab::new(&spec.gitlab.url, token, labels.clone(), transport, metrics.clone())?;
    let mut token_expires_at = None;
    let checked = match missing {
        Some(missing) => Err(missing),
        None => match gitlab.verify().await {
            VerifyAnswer::Valid { runner_id, expires_at } => {
                token_expires_at = expires_at;
                Ok(PoolIdentity { runner_id, system_id, uid })
            }
            VerifyAnswer::Invalid => {
                metrics.token_refused(&labels);
                Err(refused(&spec.gitlab, &name))
            }
            VerifyAnswer::Retry { cause } => Err(SettingsError::Unverified(cause)),
        },
    };
    let (identity, problem) = match (checked, identity_before) {
        (Ok(identity), _) => (identity, None),
        (Err(problem), Some(before)) => (before, Some(problem)),
        (Err(problem), None) => return Err(problem),
    };
    let settings = Settings {
        spec,
        generation: pool.metadata.generation,
        gitlab,
        identity,
        short_token,
        labels,
        token_expires_at,
        ca_bundle,
        client_pem: identity_pem,
        ssh_key: Arc::new(ssh_key),
        cloud,
        caches,
        verified: problem.is_none(),
        fingerprint,
    };
    Ok((Arc::new(settings), problem))
}

/// The runner token: given, or of the runner that the pool makes itself.
async fn token(held: &Held, pool: &RunnerPool, transport: &Transport) -> Result<SecretString, SettingsError> {
    let gitlab = &pool.spec.gitlab;
    match (&gitlab.token_secret_ref, &gitlab.registration) {
        (Some(reference), _) => {
            let client = &held.shared.client;
            secret(client, &held.namespace, "spec.gitlab.tokenSecretRef", reference).await
        }
        (None, Some(spec)) => Ok(registration::token(held, pool, spec, transport).await?),
        // The API server refuses such a pool.
        (None, None) => Err(SettingsError::InvalidToken),
    }
}

/// Whether an error is about the runner's token, which is needed to ask for jobs and for nothing else.
fn is_about_the_token(error: &SettingsError) -> bool {
    matches!(error, SettingsError::Registration(_))
}

/// What is said of a token that GitLab does not accept.
pub fn refused(gitlab: &GitLabSpec, pool: &str) -> SettingsError {
    match gitlab.registration {
        Some(_) => SettingsError::OwnTokenRefused { secret: runner_secret::name(pool) },
        None => SettingsError::InvalidToken,
    }
}

/// Whom a pool's connections to GitLab trust, and what they show.
///
/// # Errors
/// When what the spec names is not there, or the API server cannot be asked.
pub async fn trust(client: &Client, namespace: &str, gitlab: &GitLabSpec) -> Result<Trust, SettingsError> {
    let ca_bundle = match &gitlab.ca_bundle {
        Some(reference) => Some(config_map(client, namespace, reference).await?),
        None => None,
    };
    let identity = match &gitlab.client_certificate_secret_ref {
        Some(ObjectRef { name }) => {
            let field = "spec.gitlab.clientCertificateSecretRef";
            let key = |key: &str| KeyRef { name: name.clone(), key: key.to_owned() };
            let certificate = secret(client, namespace, field, &key("tls.crt")).await?;
            let private = secret(client, namespace, field, &key("tls.key")).await?;
            let pem = format!("{}\n{}\n", certificate.expose_secret(), private.expose_secret());
            Some(SecretString::from(pem))
        }
        None => None,
    };
    Ok(Trust { ca_bundle, identity })
}

/// The cloud of a pool. While account and credentials stay the same it is the known one, with its connections and limits.
#[cfg(feature = "aws")]
async fn cloud(
    client: &Client,
    namespace: &str,
    spec: &RunnerPoolSpec,
    known: Option<&Arc<Settings>>,
    metrics: &Metrics,
) -> Result<Option<Arc<CloudAccess>>, SettingsError> {
    use crate::provider::aws::AwsCloud;
    let Some(settings) = account(client, namespace, spec).await? else { return Ok(None) };
    let account = settings.account_key();
    let before = known.and_then(|known| known.cloud.clone()).filter(|before| before.account == account);
    if before.is_some() {
        return Ok(before);
    }
    let cloud = AwsCloud::new(settings, metrics.clone())
        .await
        .map_err(|error| SettingsError::Cloud(error.to_string()))?;
    Ok(Some(Arc::new(CloudAccess { account, cloud: Arc::new(cloud) })))
}

/// The account of a pool and how to get in, where it has one.
///
/// # Errors
/// When the Secret with its keys cannot be read.
#[cfg(feature = "aws")]
pub async fn account(
    client: &Client,
    namespace: &str,
    spec: &RunnerPoolSpec,
) -> Result<Option<crate::provider::aws::AwsSettings>, SettingsError> {
    use crate::provider::aws::{AwsSettings, Credentials, limit::Limits};
    let Some(aws) = &spec.provider.aws else { return Ok(None) };
    let credentials = match &aws.credentials_secret_ref {
        None => Credentials::Ambient,
        Some(reference) => {
            let field = "spec.provider.aws.credentialsSecretRef";
            let key = |key: &str| KeyRef { name: reference.name.clone(), key: key.to_owned() };
            let id = secret(client, namespace, field, &key("AWS_ACCESS_KEY_ID")).await?;
            let secret_key = secret(client, namespace, field, &key("AWS_SECRET_ACCESS_KEY")).await?;
            let session = match secret(client, namespace, field, &key("AWS_SESSION_TOKEN")).await {
                Ok(session) => Some(trimmed(&session)),
                Err(SettingsError::Missing { .. }) => None,
                Err(error) => return Err(error),
            };
            Credentials::Keys {
                access_key_id: trimmed(&id).expose_secret().to_owned(),
                secret_access_key: trimmed(&secret_key),
                session_token: session,
            }
        }
    };
    Ok(Some(AwsSettings {
        region: aws.region.clone(),
        endpoint_url: aws.endpoint_url.clone(),
        credentials,
        limits: Limits::default(),
    }))
}

/// A build without the cloud says so.
#[cfg(not(feature = "aws"))]
async fn cloud(
    _: &Client,
    _: &str,
    spec: &RunnerPoolSpec,
    _: Option<&Arc<Settings>>,
    _: &Metrics,
) -> Result<Option<Arc<CloudAccess>>, SettingsError> {
    match spec.provider.aws {
        None => Ok(None),
        Some(_) => Err(SettingsError::Cloud("this operator was built without feature aws".to_owned())),
    }
}

#[cfg(feature = "aws")]
fn trimmed(secret: &SecretString) -> SecretString {
    SecretString::from(secret.expose_secret().trim().to_owned())
}

/// Who the pool was to GitLab when that last accepted its token, if it is still the same manager.
fn identity_before(pool: &RunnerPool, system_id: &str) -> Option<PoolIdentity> {
    let status = pool.status.as_ref()?;
    Some(PoolIdentity {
        runner_id: status.runner_id?,
        system_id: status.system_id.clone().filter(|known| known == system_id)?,
        uid: pool.metadata.uid.clone()?,
    })
}

/// One key of a Secret.
///
/// # Errors
/// When it is not there, or the API server cannot be asked.
pub async fn secret(
    client: &Client,
    namespace: &str,
    field: &'static str,
    reference: &KeyRef,
) -> Result<SecretString, SettingsError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let missing = || SettingsError::Missing {
        field,
        kind: "Secret",
        name: reference.name.clone(),
        key: reference.key.clone(),
    };
    let found = api.get_opt(&reference.name).await.map_err(|cause| SettingsError::Kubernetes {
        what: format!("Secret {:?} of {field}", reference.name),
        cause,
    })?;
    let data = found.and_then(|secret| secret.data).unwrap_or_default();
    let value = data.get(&reference.key).ok_or_else(missing)?;
    let text = String::from_utf8(value.0.clone()).map_err(|_| missing())?;
    Ok(SecretString::from(text))
}

async fn config_map(client: &Client, namespace: &str, reference: &KeyRef) -> Result<String, SettingsError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(&reference.name).await.map_err(|cause| SettingsError::Kubernetes {
        what: format!("ConfigMap {:?} of spec.gitlab.caBundle", reference.name),
        cause,
    })?;
    found.and_then(|map| map.data?.remove(&reference.key)).ok_or_else(|| SettingsError::Missing {
        field: "spec.gitlab.caBundle",
        kind: "ConfigMap",
        name: reference.name.clone(),
        key: reference.key.clone(),
    })
}

fn fingerprint(parts: &[&str]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// The first nine characters of a token after its prefixes: what people know a runner by.
fn short_token(token: &str) -> String {
    let rest = token.strip_prefix("glrt-").unwrap_or(token);
    let rest = ["t1_", "t2_", "t3_"].iter().find_map(|prefix| rest.strip_prefix(prefix)).unwrap_or(rest);
    rest.chars().take(9).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_token_shows_neither_prefix_nor_the_rest() {
        assert_eq!(short_token("glrt-t1_abcdefghijklmnop"), "abcdefghi");
        assert_eq!(short_token("glrt-ABC"), "ABC");
    }
}
