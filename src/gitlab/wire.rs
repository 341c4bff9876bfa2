//! The runner API's JSON, as GitLab sends and reads it.
//!
//! Owns: field names and shapes. Tolerates unknown fields, nulls and both spellings of renamed fields, because
//! servers of several releases talk to one build. Never decides anything and never prints a secret: `Debug` of a
//! payload shows its identifiers only.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Reads `null` as the type's default; GitLab sends `null` for most absent values.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// One job as handed out by `POST jobs/request`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobPayload {
    /// GitLab's job id.
    pub id: u64,
    /// The job's token: authenticates every call about this job.
    #[serde(deserialize_with = "nullable")]
    pub token: String,
    /// Whether sources may be fetched into an existing work tree.
    #[serde(deserialize_with = "nullable")]
    pub allow_git_fetch: bool,
    /// Names and ids for logs, metrics and the project fence.
    #[serde(deserialize_with = "nullable")]
    pub job_info: JobInfo,
    /// What to check out.
    #[serde(deserialize_with = "nullable")]
    pub git_info: GitInfo,
    /// The server's view of the runner.
    #[serde(deserialize_with = "nullable")]
    pub runner_info: RunnerInfo,
    /// Job variables in GitLab's order; the last of equal names wins.
    #[serde(deserialize_with = "nullable")]
    pub variables: Vec<Variable>,
    /// Scripts, in order; `after_script` is one of them.
    #[serde(deserialize_with = "nullable")]
    pub steps: Vec<Step>,
    /// Artifacts to upload.
    #[serde(deserialize_with = "nullable")]
    pub artifacts: Vec<serde_json::Value>,
    /// Caches to restore and save.
    #[serde(deserialize_with = "nullable")]
    pub cache: Vec<serde_json::Value>,
    /// Jobs whose artifacts are wanted.
    #[serde(deserialize_with = "nullable")]
    pub dependencies: Vec<serde_json::Value>,
    /// Secrets to resolve before the job; refused while not supported.
    #[serde(deserialize_with = "nullable")]
    pub secrets: serde_json::Value,
    /// Native steps, a JSON text; refused while not supported.
    #[serde(deserialize_with = "nullable")]
    pub run: String,
    /// Typed job inputs; refused while not supported.
    #[serde(deserialize_with = "nullable")]
    pub inputs: Vec<serde_json::Value>,
    /// Scripts around fetching the sources.
    #[serde(deserialize_with = "nullable")]
    pub hooks: Vec<Hook>,
    /// Container image; an instance executor ignores it with a line in the log.
    #[serde(deserialize_with = "nullable")]
    pub image: serde_json::Value,
    /// Service containers; ignored like `image`.
    #[serde(deserialize_with = "nullable")]
    pub services: Vec<serde_json::Value>,
    /// What the server can understand.
    #[serde(deserialize_with = "nullable")]
    pub features: ServerFeatures,
    /// Suspend triggers and the key to resume.
    #[serde(deserialize_with = "nullable")]
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
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Its stage.
    #[serde(deserialize_with = "nullable")]
    pub stage: String,
    /// Pipeline id.
    #[serde(deserialize_with = "nullable")]
    pub pipeline_id: u64,
    /// Project id: the fence of a resume.
    #[serde(deserialize_with = "nullable")]
    pub project_id: u64,
    /// The project's last path component.
    #[serde(deserialize_with = "nullable")]
    pub project_name: String,
    /// `group/project`; older servers do not send it.
    #[serde(deserialize_with = "nullable")]
    pub project_full_path: String,
    /// The user the job runs for.
    #[serde(deserialize_with = "nullable")]
    pub user_id: u64,
    /// Seconds the job waited in GitLab's queue.
    #[serde(deserialize_with = "nullable")]
    pub time_in_queue_seconds: Seconds,
}

/// A number of seconds that may come as an integer, a float or a string; rounded down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Seconds(pub u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let seconds = match &value {
            serde_json::Value::Number(number) => number.as_f64().unwrap_or_default(),
            serde_json::Value::String(text) => text.parse().unwrap_or_default(),
            _ => 0.0,
        };
        Ok(Self(seconds.max(0.0) as u64))
    }
}

/// What to check out and how.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GitInfo {
    /// The repository's URL with the job's credentials in it.
    #[serde(deserialize_with = "nullable")]
    pub repo_url: String,
    /// `sha1` or `sha256`.
    #[serde(deserialize_with = "nullable")]
    pub repo_object_format: String,
    /// Branch or tag name.
    #[serde(rename = "ref", deserialize_with = "nullable")]
    pub ref_name: String,
    /// The commit to run.
    #[serde(deserialize_with = "nullable")]
    pub sha: String,
    /// The commit before it.
    #[serde(deserialize_with = "nullable")]
    pub before_sha: String,
    /// `branch` or `tag`.
    #[serde(deserialize_with = "nullable")]
    pub ref_type: String,
    /// What to fetch.
    #[serde(deserialize_with = "nullable")]
    pub refspecs: Vec<String>,
    /// History depth; 0 is all of it.
    #[serde(deserialize_with = "nullable")]
    pub depth: u32,
    /// Whether the ref is protected; `None` from servers that do not say.
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
    #[serde(deserialize_with = "nullable")]
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
    #[serde(deserialize_with = "nullable")]
    pub key: String,
    /// Value, unexpanded.
    #[serde(deserialize_with = "nullable")]
    pub value: String,
    /// Whether anybody may see it.
    #[serde(deserialize_with = "nullable")]
    pub public: bool,
    /// Written to a file whose path becomes the value.
    #[serde(deserialize_with = "nullable")]
    pub file: bool,
    /// Hidden in the log.
    #[serde(deserialize_with = "nullable")]
    pub masked: bool,
    /// Not expanded.
    #[serde(deserialize_with = "nullable")]
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
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Lines.
    #[serde(deserialize_with = "nullable")]
    pub script: Vec<String>,
    /// Seconds the step may take.
    #[serde(deserialize_with = "nullable")]
    pub timeout: i64,
    /// `on_success`, `on_failure` or `always`.
    #[serde(deserialize_with = "nullable")]
    pub when: String,
    /// Whether its failure is ignored.
    #[serde(deserialize_with = "nullable")]
    pub allow_failure: bool,
}

/// A script around fetching the sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// `pre_get_sources_script` or `post_get_sources_script`.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Lines.
    #[serde(deserialize_with = "nullable")]
    pub script: Vec<String>,
}

/// What the server understands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerFeatures {
    /// Whether the log may carry section marks.
    #[serde(deserialize_with = "nullable")]
    pub trace_sections: bool,
    /// Token prefixes to mask besides the built-in ones.
    #[serde(deserialize_with = "nullable")]
    pub token_mask_prefixes: Vec<String>,
    /// Failure reasons the server lists.
    #[serde(deserialize_with = "nullable")]
    pub failure_reasons: Vec<String>,
}

/// Suspend triggers and the key to resume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SuspendOptions {
    /// Suspend when the script succeeded.
    #[serde(deserialize_with = "nullable")]
    pub suspend_on_success: bool,
    /// Suspend when the script failed.
    #[serde(deserialize_with = "nullable")]
    pub suspend_on_failure: bool,
    /// The key's name since 19.4.
    #[serde(deserialize_with = "nullable")]
    pub runtime_environment_key: String,
    /// The key's name in 19.0 to 19.3.
    #[serde(deserialize_with = "nullable")]
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
