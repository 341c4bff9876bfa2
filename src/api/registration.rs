//! The part of a RunnerPool that says which runner it is: one that was made by hand, or one that it makes itself.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::Duration;
use super::runner_pool::{KeyRef, ObjectRef};

/// The GitLab runner a pool is.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.tokenSecretRef) != has(self.registration)").message("spec.gitlab must have exactly one of tokenSecretRef (a runner that you made) and registration (the pool makes its runner itself)"),
    validation = Rule::new("!has(self.clientCertificateSecretRef) || self.url.startsWith('https://')").message("spec.gitlab.clientCertificateSecretRef needs a url that begins with https://: a certificate is shown in a TLS handshake only")
)]
pub struct GitLabSpec {
    /// GitLab's address, such as https://gitlab.example.com.
    #[schemars(regex(pattern = r"^https?://[^\s]+$"), length(max = 2048))]
    pub url: String,
    /// The Secret with the runner authentication token (`glrt-...`) of a runner that you made, in this namespace. It is
    /// read again within a minute of a change; it is never written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<KeyRef>,
    /// Makes the runner: the pool creates it at GitLab, keeps its token in the Secret `<pool>-gitlab-runner` and replaces
    /// the token before it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<RegistrationSpec>,
    /// What deleting the pool does at GitLab. RemoveRunner removes the runner, and the Secret with its token;
    /// RemoveManager removes this pool from the runner's managers; Keep leaves everything as it is. Default: RemoveRunner
    /// with registration, Keep with tokenSecretRef.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_deletion: Option<OnDeletion>,
    /// A ConfigMap in this namespace with PEM certificates to trust besides the system's, for the runner API and
    /// for git on the instances. It is read again within a minute of a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<KeyRef>,
    /// A Secret of type kubernetes.io/tls in this namespace, with the certificate that this pool shows GitLab and its
    /// key. It is read again within a minute of a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<ObjectRef>,
}

/// The runner that a pool makes itself. Changes are applied at GitLab as long as the access token is there; what somebody
/// changes at GitLab stays until the spec changes.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.groupId) == (self.type == 'Group')").message("spec.gitlab.registration.groupId must be given with type Group, and with no other"),
    validation = Rule::new("has(self.projectId) == (self.type == 'Project')").message("spec.gitlab.registration.projectId must be given with type Project, and with no other"),
    validation = Rule::new("self.runUntagged || (has(self.tags) && size(self.tags) > 0)").message("spec.gitlab.registration.tags must name a tag when runUntagged is false: the runner would get no job"),
    validation = Rule::new("!self.locked || self.type == 'Project'").message("spec.gitlab.registration.locked is for type Project: it keeps a runner from being given to other projects"),
    validation = Rule::new("!has(self.maximumTimeout) || duration(self.maximumTimeout) >= duration('10m')").message("spec.gitlab.registration.maximumTimeout must be at least 10m: GitLab takes no less"),
    validation = Rule::new("self.type == oldSelf.type && has(self.groupId) == has(oldSelf.groupId) && (!has(self.groupId) || self.groupId == oldSelf.groupId) && has(self.projectId) == has(oldSelf.projectId) && (!has(self.projectId) || self.projectId == oldSelf.projectId)").message("spec.gitlab.registration.type, groupId and projectId are immutable: GitLab moves no runner; make another pool")
)]
pub struct RegistrationSpec {
    /// The Secret with an access token that may create runners, in this namespace: scope `create_runner` is enough to
    /// create, `manage_runner` or `api` is needed to change the runner later, to show its tags and to bring a lost token
    /// back. Once the runner is made the pool works without it.
    pub access_token_secret_ref: KeyRef,
    /// Whose jobs the runner takes: Instance all of the server's, Group those of groupId, Project those of projectId.
    /// Immutable.
    #[serde(rename = "type")]
    pub type_: RunnerType,
    /// The group's id at GitLab, with type Group. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub group_id: Option<u64>,
    /// The project's id at GitLab, with type Project. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub project_id: Option<u64>,
    /// Tags of the runner. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(min = 1, max = 255), regex(pattern = r"^[^,\s][^,]*$")))]
    pub tags: Vec<String>,
    /// Whether it takes jobs without tags. Default: true.
    #[serde(default = "yes")]
    pub run_untagged: bool,
    /// Whether a project's runner is kept from other projects. Default: false.
    #[serde(default)]
    pub locked: bool,
    /// Whether it takes jobs of protected branches and tags only. Default: false.
    #[serde(default)]
    pub protected: bool,
    /// Whether GitLab gives it no jobs. Unlike spec.mode this is said at GitLab. Default: false.
    #[serde(default)]
    pub paused: bool,
    /// The longest a job may take, whatever its project says; at least 10m. Default: no limit of the runner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_timeout: Option<Duration>,
    /// What GitLab shows as the runner's description. Default: `<namespace>/<pool>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub description: Option<String>,
}

/// Whose jobs a runner takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunnerType {
    /// The whole server's.
    Instance,
    /// A group's.
    Group,
    /// A project's.
    Project,
}

/// What deleting a pool does at GitLab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDeletion {
    /// The runner is removed, and the Secret that the pool keeps its token in.
    RemoveRunner,
    /// This pool is removed from the runner's managers; the runner stays, with its token.
    RemoveManager,
    /// Nothing is said to GitLab.
    Keep,
}

/// What GitLab says of the pool's runner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerStatus {
    /// Its tags, as GitLab has them; what it last said while it may not be asked.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub tags: Vec<String>,
    /// Whether GitLab gives it no jobs.
    #[serde(default)]
    pub paused: bool,
    /// When its token expires, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_expires_at: Option<String>,
}

impl GitLabSpec {
    /// What deleting the pool does at GitLab.
    pub fn on_deletion(&self) -> OnDeletion {
        let by_default =
            if self.registration.is_some() { OnDeletion::RemoveRunner } else { OnDeletion::Keep };
        self.on_deletion.unwrap_or(by_default)
    }
}

fn yes() -> bool {
    true
}
