//! The order to run one job, as the operator hands it to `start` on standard input.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::cache::CacheOrder;
use crate::gitlab::variables::Surroundings;
use crate::gitlab::wire::{JobPayload, Variable};

/// Everything the supervisor needs to run a job with nobody attached. Lives in the supervisor's memory only.
#[derive(Clone, Serialize, Deserialize)]
pub struct JobOrder {
    /// [`super::FORMAT`] of the sender.
    pub format: u32,
    /// Environment id: 20 base32 characters.
    pub environment: String,
    /// Uid of the pool that orders.
    pub pool_uid: String,
    /// Epoch of the pool's holder; an older one than the host has seen is refused.
    pub epoch: u64,
    /// Slot index on this host.
    pub slot: u32,
    /// Folder of all workspaces; the workspace is `<builds_dir>/<slot>/<group>/<project>`.
    pub builds_dir: String,
    /// How neighbours are kept apart.
    pub isolation: Isolation,
    /// Who runs the job, for the log's first lines.
    pub runner: RunnerFacts,
    /// GitLab's job.
    pub job: JobPayload,
    /// When the environment is put to sleep at the end of this job.
    pub suspend: SuspendPlan,
    /// The environment to wake, if this job resumes one.
    pub resume: Option<ResumeOrder>,
    /// Lines for the log before the first stage, such as a suspend that the limits will refuse.
    pub notices: Vec<String>,
    /// Bytes of log kept; 0 means [`DEFAULT_LOG_LIMIT`].
    pub log_limit_bytes: u64,
    /// How many processes and threads the job may have at a time; 0 means [`DEFAULT_PIDS_LIMIT`].
    #[serde(default)]
    pub pids_limit: u32,
    /// What the pool says about each of its jobs.
    #[serde(default)]
    pub settings: JobSettings,
    /// The job's caches, if it has any.
    #[serde(default)]
    pub cache: Option<CacheOrder>,
}

/// What a pool says about each of its jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSettings {
    /// Variables, weaker than the job's own.
    pub environment: Vec<Variable>,
    /// Runs before the sources are fetched.
    pub pre_get_sources_script: String,
    /// Runs after the sources have been fetched.
    pub post_get_sources_script: String,
    /// Runs before the commands of each step.
    pub pre_build_script: String,
    /// Runs after the commands of each step.
    pub post_build_script: String,
    /// Seconds that fetching the sources may take, each attempt by itself; 0 is no limit.
    pub get_sources_timeout_seconds: u64,
    /// Whether the host is thrown away after this job.
    pub is_disposable: bool,
}

impl JobOrder {
    /// How many processes and threads the job may have at a time.
    pub fn pids_limit(&self) -> u32 {
        if self.pids_limit == 0 { DEFAULT_PIDS_LIMIT } else { self.pids_limit }
    }

    /// Whether jobs are shown the host's own authorities: GitLab is spoken to over TLS, and the pool names nobody to trust.
    pub fn shows_authorities(&self) -> bool {
        self.runner.ca_bundle.is_none() && is_https(&self.runner.gitlab_url)
    }

    /// What the job's variables tell of where it runs. The operator and the host read them the same way, so that a cache's
    /// key is the same on both sides; `authorities` are those of the host, which only it knows.
    pub fn surroundings<'a>(
        &'a self,
        workspace: &'a str,
        temporary: &'a str,
        machine: &'a str,
        authorities: &'a str,
    ) -> Surroundings<'a> {
        Surroundings {
            builds_dir: &self.builds_dir,
            workspace,
            temporary,
            slot: self.slot,
            version: &self.runner.version,
            short_token: &self.runner.short_token,
            ca_bundle: self.runner.ca_bundle.as_deref().or(self.shows_authorities().then_some(authorities)),
            client: self.runner.client.as_ref().map(|client| (&*client.certificate, &*client.key)),
            environment: &self.settings.environment,
            is_disposable: self.settings.is_disposable,
            machine,
        }
    }
}

fn is_https(url: &str) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("https"))
}

impl fmt::Debug for JobOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobOrder")
            .field("environment", &self.environment)
            .field("slot", &self.slot)
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

/// Bytes of log kept when the order names no limit: GitLab's own default of 4 MiB.
pub const DEFAULT_LOG_LIMIT: u64 = 4 * 1024 * 1024;

/// Processes and threads of a job when the order names no limit: more than builds use, and far fewer than make a host
/// unreachable.
pub const DEFAULT_PIDS_LIMIT: u32 = 4096;

/// How the slots of one host are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// One slot: nothing to keep apart; the job runs as the connection's user.
    Single,
    /// Several slots as one user: neighbours can see each other.
    Shared,
    /// A user per slot, state owned by root.
    PerSlotUser,
}

impl Isolation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Single, Self::Shared, Self::PerSlotUser];

    /// Its name on a command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Single => "Single",
            Self::Shared => "Shared",
            Self::PerSlotUser => "PerSlotUser",
        }
    }
}

/// Who runs the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerFacts {
    /// The pool's name.
    pub name: String,
    /// First characters of the runner token after its prefix.
    pub short_token: String,
    /// The pool's system id.
    pub system_id: String,
    /// The operator's version.
    pub version: String,
    /// The GitLab URL the pool is configured with; `CI_SERVER_URL` comes from the job itself.
    pub gitlab_url: String,
    /// PEM certificates to trust for git over HTTPS, besides the host's own.
    pub ca_bundle: Option<String>,
    /// What git and transfers of artifacts show the server, where it asks for a certificate.
    #[serde(default)]
    pub client: Option<ClientIdentity>,
}

/// A certificate and its key, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientIdentity {
    /// The certificate, with those between it and its root.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl ClientIdentity {
    /// Takes a text with both apart; `None` where one of them is missing.
    pub fn from_pem(pem: &str) -> Option<Self> {
        let (mut certificate, mut key) = (String::new(), String::new());
        let mut within: Option<&str> = None;
        for line in pem.lines().map(str::trim) {
            if let Some(kind) = line.strip_prefix("-----BEGIN ") {
                within = Some(kind);
            }
            let Some(kind) = within else { continue };
            let part = if kind.contains("PRIVATE KEY") { &mut key } else { &mut certificate };
            part.push_str(line);
            part.push('\n');
            if line.starts_with("-----END ") {
                within = None;
            }
        }
        (!certificate.is_empty() && !key.is_empty()).then_some(Self { certificate, key })
    }

    /// Both in one text.
    pub fn pem(&self) -> String {
        format!("{}\n{}", self.certificate, self.key)
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

/// Which ends of the script put the environment to sleep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendPlan {
    /// Suspend when the script succeeded.
    pub on_success: bool,
    /// Suspend when the script failed.
    pub on_failure: bool,
}

/// The environment a job wakes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeOrder {
    /// The key, for the log line.
    pub key: String,
    /// The project the object names; the host's own record must name it too.
    pub project_id: u64,
    /// The workspace path the object names; the host's own record must name it too.
    pub workspace: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_its_key_are_told_apart() {
        let block =
            |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
        let (one, two) = (block("CERTIFICATE", "b25l"), block("CERTIFICATE", "dHdv"));
        let key = block("EC PRIVATE KEY", "c2VjcmV0");
        let read = ClientIdentity::from_pem(&format!("{one}{two}\n{key}\n")).unwrap();
        assert_eq!((&read.certificate, &read.key), (&format!("{one}{two}"), &key));
        assert_eq!(ClientIdentity::from_pem(&read.pem()).as_ref(), Some(&read));
        assert_eq!(ClientIdentity::from_pem(&one), None);
        assert_eq!(ClientIdentity::from_pem(""), None);
        let shown = format!("{:?}", ClientIdentity { certificate: one, key });
        assert!(!shown.contains("c2VjcmV0"), "{shown}");
    }
}
