//! What a pool is set to: its spec with the Secrets and ConfigMaps it names, read and understood.
//!
//! Read again on every change of the pool and once a minute, since Secrets are read by name and never watched.
//! What cannot be used is said with the field, the value and the way out, and the last good settings stay. A runner token
//! is needed to ask for jobs and for nothing else: without a good one a pool that GitLab knew before goes on with the
//! jobs and environments it has.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use russh::keys::{PrivateKey, decode_secret_key};
use secrecy::{ExposeSecret, SecretString};

use crate::api::RunnerPool;
use crate::api::key::system_id;
use crate::api::runner_pool::{Isolation, KeyRef, RunnerPoolSpec};
use crate::environment::check::PoolIdentity;
use crate::gitlab::client::{Client as GitLab, VerifyAnswer};
use crate::spool::order;
use crate::telemetry::Metrics;

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
    /// PEM certificates to trust besides the system's.
    pub ca_bundle: Option<String>,
    /// The key to log in to hosts with.
    pub ssh_key: Arc<PrivateKey>,
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

    /// Whether two settings lead to the same connections and conversations.
    pub fn same_as(&self, other: &Self) -> bool {
        self.spec == other.spec && self.fingerprint == other.fingerprint
    }
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
    /// The GitLab client cannot be built.
    #[error(transparent)]
    GitLab(#[from] crate::gitlab::client::BuildError),
    /// GitLab does not accept the token.
    #[error(
        "GitLab does not accept the runner token in spec.gitlab.tokenSecretRef; create a runner and put its glrt- \
         token there"
    )]
    InvalidToken,
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
            Self::GitLab(_) => "GitLabSettingsInvalid",
            Self::InvalidToken => "TokenRefused",
            Self::Unverified(_) => "GitLabUnreachable",
        }
    }

    /// Whether the last good settings may go on: nothing is known to be wrong, it just could not be asked.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Kubernetes { .. } | Self::Unverified(_) => true,
            Self::Missing { .. } | Self::PrivateKey | Self::GitLab(_) | Self::InvalidToken => false,
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
pub async fn read(
    client: &Client,
    pool: &RunnerPool,
    known: Option<&Arc<Settings>>,
    metrics: &Metrics,
) -> Reading {
    match try_read(client, pool, known, metrics).await {
        Ok((settings, problem)) => Reading { settings: Some(settings), problem },
        Err(problem) => Reading { settings: None, problem: Some(problem) },
    }
}

async fn try_read(
    client: &Client,
    pool: &RunnerPool,
    known: Option<&Arc<Settings>>,
    metrics: &Metrics,
) -> Result<(Arc<Settings>, Option<SettingsError>), SettingsError> {
    let namespace = pool.metadata.namespace.clone().unwrap_or_default();
    let name = pool.metadata.name.clone().unwrap_or_default();
    let uid = pool.metadata.uid.clone().unwrap_or_default();
    let spec = pool.spec.clone();
    let system_id = system_id(spec.system_id_seed.as_deref().unwrap_or(&uid));
    let identity_before = identity_before(pool, &system_id);
    let token = secret(client, &namespace, "spec.gitlab.tokenSecretRef", &spec.gitlab.token_secret_ref).await;
    let (token, missing) = match token {
        Ok(token) => (token, None),
        Err(missing @ SettingsError::Missing { .. }) if identity_before.is_some() => {
            (SecretString::default(), Some(missing))
        }
        Err(error) => return Err(error),
    };
    let key =
        secret(client, &namespace, "spec.ssh.privateKeySecretRef", &spec.ssh.private_key_secret_ref).await?;
    let ca_bundle = match &spec.gitlab.ca_bundle {
        Some(reference) => Some(config_map(client, &namespace, reference).await?),
        None => None,
    };
    let fingerprint =
        fingerprint(&[token.expose_secret(), key.expose_secret(), ca_bundle.as_deref().unwrap_or_default()]);
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
            ca_bundle,
            ssh_key: Arc::clone(&known.ssh_key),
            verified: true,
            fingerprint,
        };
        return Ok((Arc::new(settings), None));
    }
    let ssh_key = decode_secret_key(key.expose_secret(), None).map_err(|_| SettingsError::PrivateKey)?;
    // People make Secrets with echo: a line break at the end is not part of a token.
    let token = SecretString::from(token.expose_secret().trim().to_owned());
    let short_token = short_token(token.expose_secret());
    let gitlab =
        GitLab::new(&spec.gitlab.url, token, &system_id, &name, ca_bundle.as_deref(), metrics.clone())?;
    let checked = match missing {
        Some(missing) => Err(missing),
        None => match gitlab.verify().await {
            VerifyAnswer::Valid { runner_id } => Ok(PoolIdentity { runner_id, system_id, uid }),
            VerifyAnswer::Invalid => Err(SettingsError::InvalidToken),
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
        ca_bundle,
        ssh_key: Arc::new(ssh_key),
        verified: problem.is_none(),
        fingerprint,
    };
    Ok((Arc::new(settings), problem))
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

async fn secret(
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
