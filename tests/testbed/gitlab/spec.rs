//! The builder for jobs: what a test says about a job before it is queued.
//!
//! Defaults are loud: project `group/project` (id 1001), protected `false`, one hour, no sources.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use serde_json::Value;

use super::{repository::GitRepo, runner::RunnerId};

/// Which name of the environment key the server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KeySpelling {
    /// `runtime_environment_key`, as 19.4 sends it.
    #[default]
    New,
    /// `environment_key`, as 19.0 to 19.3 send it.
    Old,
}

/// One entry of `variables`.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub key: String,
    pub value: String,
    pub public: bool,
    pub file: bool,
    pub masked: bool,
    pub raw: bool,
}

impl Variable {
    pub fn public(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into(), public: true, file: false, masked: false, raw: false }
    }

    pub fn masked(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { public: false, masked: true, ..Self::public(key, value) }
    }
}

/// A change to the finished payload.
type Edit = Arc<dyn Fn(&mut Value) + Send + Sync>;

/// A job to be queued.
#[derive(Clone)]
pub struct JobSpec {
    pub(super) name: String,
    pub(super) stage: String,
    pub(super) script: Vec<String>,
    pub(super) script_when: String,
    pub(super) after_script: Vec<String>,
    pub(super) variables: Vec<Variable>,
    pub(super) suspend_on_success: bool,
    pub(super) suspend_on_failure: bool,
    pub(super) environment_key: Option<String>,
    pub(super) key_spelling: KeySpelling,
    pub(super) git: Option<(GitRepo, String)>,
    pub(super) git_depth: u32,
    pub(super) allow_git_fetch: bool,
    pub(super) timeout: Duration,
    pub(super) project_id: u64,
    pub(super) project: String,
    pub(super) protected: Option<bool>,
    pub(super) user: (u64, String),
    pub(super) tags: BTreeSet<String>,
    pub(super) runner: Option<RunnerId>,
    pub(super) failure_reasons: Vec<String>,
    pub(super) needs_features: BTreeSet<String>,
    pub(super) chunks_pending: u32,
    pub(super) log_resets: u32,
    pub(super) artifacts_limit: Option<usize>,
    pub(super) archive: Option<Vec<u8>>,
    pub(super) log_limit: u64,
    pub(super) edits: Vec<Edit>,
    pub(super) raw_payload: Option<String>,
}

impl fmt::Debug for JobSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobSpec")
            .field("name", &self.name)
            .field("project", &self.project)
            .finish_non_exhaustive()
    }
}

impl JobSpec {
    /// A job called `name` with an empty script.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            stage: "test".to_owned(),
            script: Vec::new(),
            script_when: "on_success".to_owned(),
            after_script: Vec::new(),
            variables: Vec::new(),
            suspend_on_success: false,
            suspend_on_failure: false,
            environment_key: None,
            key_spelling: KeySpelling::New,
            git: None,
            git_depth: 20,
            allow_git_fetch: true,
            timeout: Duration::from_secs(3600),
            project_id: 1001,
            project: "group/project".to_owned(),
            protected: Some(false),
            user: (2, "developer".to_owned()),
            tags: BTreeSet::new(),
            runner: None,
            failure_reasons: KNOWN_FAILURE_REASONS.iter().map(|&r| r.to_owned()).collect(),
            needs_features: BTreeSet::new(),
            chunks_pending: 0,
            log_resets: 0,
            artifacts_limit: None,
            archive: None,
            log_limit: 100 << 20,
            edits: Vec::new(),
            raw_payload: None,
        }
    }

    /// Sets the lines of `script` (before_script is part of it, as GitLab merges them).
    pub fn script<L: Into<String>>(mut self, lines: impl IntoIterator<Item = L>) -> Self {
        self.script = lines.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the lines of `after_script`.
    pub fn after_script<L: Into<String>>(mut self, lines: impl IntoIterator<Item = L>) -> Self {
        self.after_script = lines.into_iter().map(Into::into).collect();
        self
    }

    /// Sets `when` of the script step.
    pub fn when(mut self, when: impl Into<String>) -> Self {
        self.script_when = when.into();
        self
    }

    /// Sets the stage.
    pub fn stage(mut self, stage: impl Into<String>) -> Self {
        self.stage = stage.into();
        self
    }

    /// Adds a plain variable.
    pub fn variable(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push(Variable::public(key, value));
        self
    }

    /// Adds a variable whose value must not be seen in the log.
    pub fn masked_variable(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push(Variable::masked(key, value));
        self
    }

    /// Adds a variable that the job sees as the path of a file with the value.
    pub fn file_variable(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let variable = Variable { public: false, file: true, ..Variable::public(key, value) };
        self.variables.push(variable);
        self
    }

    /// Adds a variable whose value is not expanded.
    pub fn raw_variable(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push(Variable { raw: true, ..Variable::public(key, value) });
        self
    }

    /// Turns `FF_SUSPENDABLE_ENVIRONMENTS` on for the job.
    pub fn suspendable(self) -> Self {
        self.variable("FF_SUSPENDABLE_ENVIRONMENTS", "true")
    }

    /// Asks for a suspend when the job succeeds.
    pub fn suspend_on_success(mut self) -> Self {
        self.suspend_on_success = true;
        self
    }

    /// Asks for a suspend when the script fails.
    pub fn suspend_on_failure(mut self) -> Self {
        self.suspend_on_failure = true;
        self
    }

    /// Makes the job a resume of the environment with this key.
    pub fn environment_key(mut self, key: impl Into<String>) -> Self {
        self.environment_key = Some(key.into());
        self
    }

    /// Chooses the name under which the key is sent.
    pub fn key_spelling(mut self, spelling: KeySpelling) -> Self {
        self.key_spelling = spelling;
        self
    }

    /// Takes the sources of `reference` (a branch, tag or commit) from `repo`, and its project path.
    pub fn git(mut self, repo: &GitRepo, reference: impl Into<String>) -> Self {
        self.project = repo.project().to_owned();
        self.git = Some((repo.clone(), reference.into()));
        self
    }

    /// Sets the `GIT_STRATEGY` variable.
    pub fn git_strategy(self, strategy: impl Into<String>) -> Self {
        self.variable("GIT_STRATEGY", strategy)
    }

    /// Sets `GIT_STRATEGY` to `none`, which is also the default of a job without a repository.
    pub fn git_strategy_none(self) -> Self {
        self.git_strategy("none")
    }

    /// Sets `git_info.depth`; 0 is the whole history.
    pub fn git_depth(mut self, depth: u32) -> Self {
        self.git_depth = depth;
        self
    }

    /// Sets `allow_git_fetch`: false makes `clone` the default strategy.
    pub fn allow_git_fetch(mut self, allow: bool) -> Self {
        self.allow_git_fetch = allow;
        self
    }

    /// Sets the job's time limit in whole seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the project.
    pub fn project(mut self, id: u64, path: impl Into<String>) -> Self {
        self.project_id = id;
        self.project = path.into();
        self
    }

    /// Says whether the job's ref is protected.
    pub fn protected(mut self, protected: bool) -> Self {
        self.protected = Some(protected);
        self
    }

    /// Leaves it open whether the job's ref is protected, as old servers do.
    pub fn protected_unknown(mut self) -> Self {
        self.protected = None;
        self
    }

    /// Sets the user who started the job.
    pub fn user(mut self, id: u64, login: impl Into<String>) -> Self {
        self.user = (id, login.into());
        self
    }

    /// Adds a tag the runner must have.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.insert(tag.into());
        self
    }

    /// Reserves the job for one runner.
    pub fn for_runner(mut self, runner: RunnerId) -> Self {
        self.runner = Some(runner);
        self
    }

    /// Sets the failure reasons the server says it knows.
    pub fn failure_reasons<R: Into<String>>(mut self, all: impl IntoIterator<Item = R>) -> Self {
        self.failure_reasons = all.into_iter().map(Into::into).collect();
        self
    }

    /// Fails the job as `runner_unsupported` at a runner that does not advertise the feature.
    pub fn needs_feature(mut self, feature: impl Into<String>) -> Self {
        self.needs_features.insert(feature.into());
        self
    }

    /// Answers the first `n` final updates that carry a checksum with 202.
    pub fn chunks_pending(mut self, n: u32) -> Self {
        self.chunks_pending = n;
        self
    }

    /// Artifacts of more than so many bytes are answered with 413.
    pub fn artifacts_limit(mut self, bytes: usize) -> Self {
        self.artifacts_limit = Some(bytes);
        self
    }

    /// What others get as this job's archive, whatever it uploads itself.
    pub fn archive(mut self, bytes: Vec<u8>) -> Self {
        self.archive = Some(bytes);
        self
    }

    /// Answers the first `n` final updates with 412 and forgets the log each time.
    pub fn log_resets(mut self, n: u32) -> Self {
        self.log_resets = n;
        self
    }

    /// Drops the job as `trace_size_exceeded` once the log would be longer than this.
    pub fn log_limit(mut self, bytes: u64) -> Self {
        self.log_limit = bytes;
        self
    }

    /// Replaces a top-level field of the payload.
    pub fn payload_field(self, field: impl Into<String>, value: Value) -> Self {
        let field = field.into();
        self.edit_payload(move |payload| {
            if let Some(payload) = payload.as_object_mut() {
                payload.insert(field.clone(), value.clone());
            }
        })
    }

    /// Changes the finished payload in any way.
    pub fn edit_payload(mut self, edit: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        self.edits.push(Arc::new(edit));
        self
    }

    /// Sends this text as the payload, valid or not; `@ID@` and `@TOKEN@` are filled in.
    pub fn raw_payload(mut self, text: impl Into<String>) -> Self {
        self.raw_payload = Some(text.into());
        self
    }

    /// Whether the end `state` is one the job asks to be suspended at.
    pub(super) fn suspends_at(&self, state: &str) -> bool {
        match state {
            "success" => self.suspend_on_success,
            "failed" => self.suspend_on_failure,
            _ => false,
        }
    }
}

/// The reasons a server lists in `features.failure_reasons` when a test says nothing.
const KNOWN_FAILURE_REASONS: &[&str] = &[
    "unknown_failure",
    "script_failure",
    "api_failure",
    "stuck_or_timeout_failure",
    "runner_system_failure",
    "missing_dependency_failure",
    "runner_unsupported",
    "stale_schedule",
    "job_execution_timeout",
    "archived_failure",
    "unmet_prerequisites",
    "scheduler_failure",
    "data_integrity_failure",
    "forward_deployment_failure",
    "user_blocked",
    "project_deleted",
    "ci_quota_exceeded",
    "pipeline_loop_detected",
    "trace_size_exceeded",
    "builds_disabled",
    "environment_creation_failure",
    "deployment_rejected",
    "protected_environment_failure",
    "image_pull_failure",
    "failed_outdated_deployment_job",
    "runner_provisioning_timeout",
    "job_token_expired",
    "no_updates_running",
    "runner_configuration_error",
    "runner_external_dependency_failure",
    "runner_interrupted",
    "job_canceled",
];
