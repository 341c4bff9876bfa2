//! The runner API's JSON, as GitLab sends and reads it.
//!
//! Owns: field names and shapes. Tolerates unknown fields, nulls, values in another form (`lenient`) and both spellings
//! of renamed fields, because servers of several releases talk to one build. Never decides anything and never prints a
//! secret: `Debug` of a payload shows its identifiers only.

pub mod artifacts;
mod lenient;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::artifacts::{ArtifactSpec, Dependency};
use self::lenient::{Lenient, lenient, objects};

/// What stands for the revision of this runner.
pub const REVISION: &str = "dormouse";

/// The version of gitlab-runner that jobs are run like, for what reads logs.
pub const LIKE: &str = "19.4.0";

objects!(
    JobInfo,
    GitInfo,
    RunnerInfo,
    Variable,
    Step,
    Cache,
    Hook,
    ServerFeatures,
    PolicyOptions,
    SuspendOptions,
    ArtifactSpec,
    Dependency,
);

/// One job as handed out by `POST jobs/request`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobPayload {
    /// GitLab's job id.
    #[serde(deserialize_with = "lenient")]
    pub id: u64,
    /// The job's token: authenticates every call about this job.
    #[serde(deserialize_with = "lenient")]
    pub token: String,
    /// Whether sources may be fetched into an existing work tree.
    #[serde(deserialize_with = "lenient")]
    pub allow_git_fetch: bool,
    /// Names and ids for logs, metrics and the project fence.
    #[serde(deserialize_with = "lenient")]
    pub job_info: JobInfo,
    /// What to check out.
    #[serde(deserialize_with = "lenient")]
    pub git_info: GitInfo,
    /// The server's view of the runner.
    #[serde(deserialize_with = "lenient")]
    pub runner_info: RunnerInfo,
    /// Job variables in GitLab's order; the last of equal names wins.
    #[serde(deserialize_with = "lenient")]
    pub variables: Vec<Variable>,
    /// Scripts, in order; `after_script` is one of them.
    #[serde(deserialize_with = "lenient")]
    pub steps: Vec<Step>,
    /// Artifacts to upload.
    #[serde(deserialize_with = "lenient")]
    pub artifacts: Vec<ArtifactSpec>,
    /// Caches to restore and save.
    #[serde(deserialize_with = "lenient")]
    pub cache: Vec<Cache>,
    /// Jobs whose artifacts are wanted.
    #[serde(deserialize_with = "lenient")]
    pub dependencies: Vec<Dependency>,
    /// Secrets to resolve before the job; refused while not supported.
    #[serde(deserialize_with = "lenient")]
    pub secrets: Value,
    /// Native steps, a JSON text or the list itself; refused while not supported.
    #[serde(deserialize_with = "lenient")]
    pub run: Value,
    /// Typed job inputs, which scripts name.
    #[serde(deserialize_with = "lenient")]
    pub inputs: Vec<Value>,
    /// Scripts around fetching the sources.
    #[serde(deserialize_with = "lenient")]
    pub hooks: Vec<Hook>,
    /// Container image; an instance executor ignores it with a line in the log.
    #[serde(deserialize_with = "lenient")]
    pub image: Value,
    /// Service containers; ignored like `image`.
    #[serde(deserialize_with = "lenient")]
    pub services: Vec<Value>,
    /// What the server can understand.
    #[serde(deserialize_with = "lenient")]
    pub features: ServerFeatures,
    /// The policy that put the job into its pipeline.
    #[serde(deserialize_with = "lenient")]
    pub policy_options: PolicyOptions,
    /// Suspend triggers and the key to resume.
    #[serde(deserialize_with = "lenient")]
    pub suspend_options: SuspendOptions,
}

impl fmt::Debug for JobPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobPayload")
            .field("id", &self.id)
            .field("project", &self.job_info.project_full_path)
            .field("name", &self.job_info.name)
            .finish_non_exhaustive()
    }
}

/// Names and ids of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobInfo {
    /// The job's name in the pipeline.
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    /// Its stage.
    #[serde(deserialize_with = "lenient")]
    pub stage: String,
    /// Pipeline id.
    #[serde(deserialize_with = "lenient")]
    pub pipeline_id: u64,
    /// Project id: the fence of a resume.
    #[serde(deserialize_with = "lenient")]
    pub project_id: u64,
    /// The project's last path component.
    #[serde(deserialize_with = "lenient")]
    pub project_name: String,
    /// `group/project`; older servers do not send it.
    #[serde(deserialize_with = "lenient")]
    pub project_full_path: String,
    /// The user the job runs for.
    #[serde(deserialize_with = "lenient")]
    pub user_id: u64,
    /// Seconds the job waited in GitLab's queue.
    #[serde(deserialize_with = "lenient")]
    pub time_in_queue_seconds: Seconds,
    /// Jobs of the project that run on the server's instance runners: a number, or `+Inf` where there are many.
    #[serde(deserialize_with = "lenient")]
    pub project_jobs_running_on_instance_runners_count: String,
    /// Jobs in the queue that the job was taken from.
    #[serde(deserialize_with = "lenient")]
    pub queue_size: u64,
    /// How many of them were looked at before it was found.
    #[serde(deserialize_with = "lenient")]
    pub queue_depth: u64,
}

/// A number of seconds that may come as an integer, a float or a string; rounded down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Seconds(pub u64);

impl Lenient for Seconds {
    fn read(value: Value) -> Result<Self, String> {
        // Only a metric: what is none is no reason to refuse a job.
        Ok(Self(u64::read(value).unwrap_or_default()))
    }
}

/// What to check out and how.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GitInfo {
    /// The repository's URL with the job's credentials in it.
    #[serde(deserialize_with = "lenient")]
    pub repo_url: String,
    /// `sha1` or `sha256`.
    #[serde(deserialize_with = "lenient")]
    pub repo_object_format: String,
    /// Branch or tag name.
    #[serde(rename = "ref", deserialize_with = "lenient")]
    pub ref_name: String,
    /// The commit to run.
    #[serde(deserialize_with = "lenient")]
    pub sha: String,
    /// The commit before it.
    #[serde(deserialize_with = "lenient")]
    pub before_sha: String,
    /// `branch` or `tag`.
    #[serde(deserialize_with = "lenient")]
    pub ref_type: String,
    /// What to fetch.
    #[serde(deserialize_with = "lenient")]
    pub refspecs: Vec<String>,
    /// History depth; 0 is all of it.
    #[serde(deserialize_with = "lenient")]
    pub depth: u32,
    /// Whether the ref is protected; `None` from servers that do not say.
    #[serde(deserialize_with = "lenient")]
    pub protected: Option<bool>,
}

impl fmt::Debug for GitInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitInfo").field("ref", &self.ref_name).field("sha", &self.sha).finish_non_exhaustive()
    }
}

/// The server's settings for this runner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunnerInfo {
    /// The job's time-out in seconds; 0 and below mean [`DEFAULT_JOB_TIMEOUT_SECONDS`].
    #[serde(deserialize_with = "lenient")]
    pub timeout: i64,
}

/// The job time-out when the server names none.
pub const DEFAULT_JOB_TIMEOUT_SECONDS: u64 = 7200;

impl JobPayload {
    /// The job's time-out with the server's zero read as the default.
    pub fn timeout_seconds(&self) -> u64 {
        u64::try_from(self.runner_info.timeout)
            .ok()
            .filter(|seconds| *seconds > 0)
            .unwrap_or(DEFAULT_JOB_TIMEOUT_SECONDS)
    }

    /// The last value given for a variable, unexpanded.
    pub fn variable(&self, key: &str) -> Option<&str> {
        self.variables
            .iter()
            .rev()
            .find(|variable| variable.key == key)
            .map(|variable| variable.value.as_str())
    }

    /// `group/project`, read from the variables where the server does not send it in `job_info`.
    pub fn project_path(&self) -> String {
        if !self.job_info.project_full_path.is_empty() {
            return self.job_info.project_full_path.clone();
        }
        self.variable("CI_PROJECT_PATH")
            .map(str::to_owned)
            .unwrap_or_else(|| self.job_info.project_name.clone())
    }

    /// The name of the container image, unexpanded, if there is one.
    pub fn image_name(&self) -> Option<&str> {
        let name = self.image.get("name").unwrap_or(&self.image);
        name.as_str().filter(|name| !name.is_empty())
    }

    /// Whether the ref is protected; servers that do not send it in `git_info` send `CI_COMMIT_REF_PROTECTED`.
    pub fn is_protected(&self) -> bool {
        self.git_info.protected.unwrap_or_else(|| self.variable("CI_COMMIT_REF_PROTECTED") == Some("true"))
    }
}

/// One job variable.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variable {
    /// Name.
    #[serde(deserialize_with = "lenient")]
    pub key: String,
    /// Value, unexpanded.
    #[serde(deserialize_with = "lenient")]
    pub value: String,
    /// Whether anybody may see it.
    #[serde(deserialize_with = "lenient")]
    pub public: bool,
    /// Written to a file whose path becomes the value.
    #[serde(deserialize_with = "lenient")]
    pub file: bool,
    /// Hidden in the log.
    #[serde(deserialize_with = "lenient")]
    pub masked: bool,
    /// Not expanded.
    #[serde(deserialize_with = "lenient")]
    pub raw: bool,
}

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variable").field("key", &self.key).finish_non_exhaustive()
    }
}

/// One script of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// `script`, `after_script`, `release` or any other name.
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    /// Lines.
    #[serde(deserialize_with = "lenient")]
    pub script: Vec<String>,
    /// Seconds the step may take.
    #[serde(deserialize_with = "lenient")]
    pub timeout: i64,
    /// `on_success`, `on_failure` or `always`.
    #[serde(deserialize_with = "lenient")]
    pub when: String,
    /// Whether its failure is ignored.
    #[serde(deserialize_with = "lenient")]
    pub allow_failure: bool,
}

/// One cache of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// Its name, with variables in it; empty is the job's name and ref.
    #[serde(deserialize_with = "lenient")]
    pub key: String,
    /// Whether files that git does not track belong to it.
    #[serde(deserialize_with = "lenient")]
    pub untracked: bool,
    /// `pull-push`, `pull` or `push`, with variables in it.
    #[serde(deserialize_with = "lenient")]
    pub policy: String,
    /// Patterns of what belongs to it.
    #[serde(deserialize_with = "lenient")]
    pub paths: Vec<String>,
    /// `on_success`, `on_failure` or `always`.
    #[serde(deserialize_with = "lenient")]
    pub when: String,
    /// Names to restore from where there is nothing under its own.
    #[serde(deserialize_with = "lenient")]
    pub fallback_keys: Vec<String>,
}

/// A script around fetching the sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// `pre_get_sources_script` or `post_get_sources_script`.
    #[serde(deserialize_with = "lenient")]
    pub name: String,
    /// Lines.
    #[serde(deserialize_with = "lenient")]
    pub script: Vec<String>,
}

/// What the server understands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerFeatures {
    /// Whether the log may carry section marks.
    #[serde(deserialize_with = "lenient")]
    pub trace_sections: bool,
    /// Token prefixes to mask besides the built-in ones.
    #[serde(deserialize_with = "lenient")]
    pub token_mask_prefixes: Vec<String>,
    /// Failure reasons the server lists.
    #[serde(deserialize_with = "lenient")]
    pub failure_reasons: Vec<String>,
}

/// The policy that put a job into its pipeline: something for the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyOptions {
    /// Whether it did.
    #[serde(deserialize_with = "lenient")]
    pub execution_policy_job: bool,
    /// The policy's name.
    #[serde(deserialize_with = "lenient")]
    pub policy_name: String,
    /// Whether variables of users count beside the policy's; `None` where the policy does not say.
    #[serde(deserialize_with = "lenient")]
    pub policy_variables_override_allowed: Option<bool>,
    /// Names of variables for which the opposite holds.
    #[serde(deserialize_with = "lenient")]
    pub policy_variables_override_exceptions: Vec<String>,
}

/// Suspend triggers and the key to resume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SuspendOptions {
    /// Suspend when the script succeeded.
    #[serde(deserialize_with = "lenient")]
    pub suspend_on_success: bool,
    /// Suspend when the script failed.
    #[serde(deserialize_with = "lenient")]
    pub suspend_on_failure: bool,
    /// The key's name since 19.4.
    #[serde(deserialize_with = "lenient")]
    pub runtime_environment_key: String,
    /// The key's name in 19.0 to 19.3.
    #[serde(deserialize_with = "lenient")]
    pub environment_key: String,
}

impl SuspendOptions {
    /// The key to resume under either spelling; the newer one wins.
    pub fn resume_key(&self) -> Option<&str> {
        [&self.runtime_environment_key, &self.environment_key]
            .into_iter()
            .map(String::as_str)
            .find(|key| !key.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_and_unknown_fields_are_read_as_absent() {
        let job: JobPayload = serde_json::from_str(
            r#"{"id": 7, "token": "t", "variables": null, "steps": [{"name": "script", "script": null}],
                "git_info": null, "suspend_options": null, "brand_new": {"a": 1}, "job_info": {"name": "x", "time_in_queue_seconds": 1.5}}"#,
        )
        .unwrap();
        assert_eq!(job.id, 7);
        assert!(job.variables.is_empty());
        assert_eq!(job.job_info.time_in_queue_seconds.0, 1);
        assert_eq!(job.timeout_seconds(), DEFAULT_JOB_TIMEOUT_SECONDS);
    }

    #[test]
    fn values_in_another_form_are_read() {
        let job: JobPayload = serde_json::from_value(json!({
            "id": "7", "token": "t", "allow_git_fetch": "true", "image": "alpine:3",
            "job_info": {
                "name": 5, "project_id": "12", "time_in_queue_seconds": "1.5", "queue_size": 3.0, "queue_depth": -1,
                "project_jobs_running_on_instance_runners_count": 4, "pipeline_id": null,
            },
            "git_info": {"depth": "20", "refspecs": "+refs/heads/main:refs/remotes/origin/main", "protected": "true"},
            "runner_info": {"timeout": "3600"},
            "variables": [null, {"key": "A", "value": 1, "masked": null, "raw": 1}, {"key": "B", "value": true}],
            "steps": [{"name": "script", "script": "echo", "timeout": "10", "allow_failure": "false"}, null],
            "artifacts": {"paths": "out", "expire_in": 3600, "untracked": 0},
            "cache": [{"key": 1, "paths": ["a", null], "fallback_keys": null}],
            "dependencies": [{"id": "3", "token": "u", "artifacts_file": {"filename": "a.zip", "size": "10"}}],
            "features": {"trace_sections": 1, "failure_reasons": null},
            "hooks": [{"name": "pre_get_sources_script", "script": null}],
            "policy_options": {"execution_policy_job": "true", "policy_variables_override_allowed": null},
        }))
        .unwrap();
        assert_eq!((job.id, job.timeout_seconds(), job.git_info.depth), (7, 3600, 20));
        assert!(job.allow_git_fetch && job.is_protected() && job.features.trace_sections);
        assert_eq!(job.image_name(), Some("alpine:3"));
        assert_eq!(job.git_info.refspecs.len(), 1);
        let info = &job.job_info;
        assert_eq!((info.name.as_str(), info.project_id, info.queue_size, info.queue_depth), ("5", 12, 3, 0));
        assert_eq!(info.project_jobs_running_on_instance_runners_count, "4");
        assert_eq!((job.variable("A"), job.variable("B"), job.variables.len()), (Some("1"), Some("true"), 2));
        assert!(job.variables.iter().any(|variable| variable.raw && !variable.masked));
        assert_eq!(job.steps, [Step { script: vec!["echo".into()], timeout: 10, ..step("script") }]);
        assert_eq!((job.artifacts[0].expire_in.as_str(), job.artifacts[0].paths.len()), ("3600", 1));
        assert_eq!((job.cache[0].key.as_str(), job.cache[0].paths.as_slice()), ("1", &["a".to_owned()][..]));
        assert_eq!((job.dependencies[0].id, job.dependencies[0].artifacts_file.size), (3, 10));
        assert_eq!(job.policy_options.policy_variables_override_allowed, None);
        let written = serde_json::to_value(&job).unwrap();
        let again: JobPayload = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(again).unwrap(), written);
    }

    fn step(name: &str) -> Step {
        Step { name: name.into(), ..Step::default() }
    }

    #[test]
    fn a_job_of_next_to_nothing_is_one() {
        for fields in [json!({}), json!({"steps": [], "git_info": {}, "job_info": null, "dependencies": []})]
        {
            let mut all = json!({"id": 1, "token": "t"});
            all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let job: JobPayload = serde_json::from_value(all).unwrap();
            assert!(job.steps.is_empty() && job.git_info.repo_url.is_empty() && job.dependencies.is_empty());
        }
    }

    #[test]
    fn what_would_be_another_job_is_an_error_that_shows_no_value() {
        for fields in [
            json!({"steps": "secret"}),
            json!({"git_info": ["secret"]}),
            json!({"variables": [{"key": "A", "value": {"secret": 1}}]}),
            json!({"runner_info": {"timeout": "secret"}}),
            json!({"artifacts": [{"untracked": "secret"}]}),
        ] {
            let error = serde_json::from_value::<JobPayload>(fields.clone()).unwrap_err().to_string();
            assert!(error.contains("is expected, not") && !error.contains("secret"), "{fields} {error}");
        }
    }

    #[test]
    fn both_spellings_of_the_key_are_read_and_the_newer_wins() {
        let old: SuspendOptions = serde_json::from_str(r#"{"environment_key": "1/s/a=b"}"#).unwrap();
        assert_eq!(old.resume_key(), Some("1/s/a=b"));
        let both: SuspendOptions =
            serde_json::from_str(r#"{"environment_key": "old", "runtime_environment_key": "new"}"#).unwrap();
        assert_eq!(both.resume_key(), Some("new"));
        assert_eq!(SuspendOptions::default().resume_key(), None);
    }

    #[test]
    fn debug_of_a_payload_shows_no_secret() {
        let job = JobPayload {
            id: 1,
            token: "glcbt-secret".into(),
            variables: vec![Variable { key: "K".into(), value: "hush".into(), ..Variable::default() }],
            ..JobPayload::default()
        };
        let shown = format!("{job:?} {:?}", job.variables);
        assert!(!shown.contains("secret") && !shown.contains("hush"), "{shown}");
    }
}
