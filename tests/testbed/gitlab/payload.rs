//! From a job to the JSON a runner gets for it.
//!
//! The shape is that of a 19.4 server, with null where GitLab sends null.

use serde_json::{Value, json};

use super::{
    job::JobView,
    runner::RunnerRecord,
    spec::{JobSpec, KeySpelling, Variable},
};

/// The commit of a job without a repository.
const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

/// The body of the 201 for `job`.
pub(super) fn render(job: &JobView, spec: &JobSpec, runner: &RunnerRecord, url: &str) -> Vec<u8> {
    if let Some(raw) = &spec.raw_payload {
        let filled = raw.replace("@ID@", &job.id.to_string()).replace("@TOKEN@", &job.token);
        return filled.into_bytes();
    }
    let sources = Sources::of(job, spec, url);
    let mut payload = json!({
        "id": job.id.0,
        "token": job.token,
        "allow_git_fetch": spec.allow_git_fetch,
        "job_info": job_info(job, spec),
        "git_info": git_info(spec, &sources),
        "runner_info": {
            "timeout": spec.timeout.as_secs(),
            "runner_session_url": null,
            "uuid": format!("runner-{}", runner.id),
        },
        "inputs": [],
        "variables": variables(job, spec, runner, url, &sources),
        "steps": steps(spec),
        "hooks": [],
        "image": null,
        "services": [],
        "artifacts": null,
        "cache": [],
        "credentials": [],
        "dependencies": [],
        "features": {
            "trace_sections": true,
            "token_mask_prefixes": ["glpat-", "gloas-", "gldt-", "glrt-", "glcbt-"],
            "failure_reasons": spec.failure_reasons,
            "tracing": null,
        },
        "secrets": null,
        "run": null,
        "policy_options": null,
        "suspend_options": suspend_options(spec),
    });
    for edit in &spec.edits {
        edit(&mut payload);
    }
    payload.to_string().into_bytes()
}

/// Where the sources of a job are.
struct Sources {
    url: String,
    sha: String,
    before_sha: String,
    reference: String,
    ref_type: &'static str,
    refspecs: Vec<String>,
}

impl Sources {
    fn of(job: &JobView, spec: &JobSpec, url: &str) -> Self {
        let (_, host) = url.split_once("://").unwrap_or(("http", url));
        let url = format!("http://gitlab-ci-token:{}@{host}/{}.git", job.token, spec.project);
        let (reference, resolved) = match &spec.git {
            Some((repo, reference)) => (reference.clone(), repo.resolve(reference)),
            None => ("main".to_owned(), None),
        };
        let sha = resolved.as_ref().map_or(NO_COMMIT.to_owned(), |found| found.sha.clone());
        let is_tag = resolved.is_some_and(|found| found.is_tag);
        let refspec = if is_tag {
            format!("+refs/tags/{reference}:refs/tags/{reference}")
        } else {
            format!("+refs/heads/{reference}:refs/remotes/origin/{reference}")
        };
        let pipeline = format!("+{sha}:refs/pipelines/{}", pipeline_id(job));
        Self {
            url,
            sha,
            before_sha: NO_COMMIT.to_owned(),
            reference,
            ref_type: if is_tag { "tag" } else { "branch" },
            refspecs: vec![pipeline, refspec],
        }
    }
}

fn pipeline_id(job: &JobView) -> u64 {
    10_000 + job.id.0
}

fn job_info(job: &JobView, spec: &JobSpec) -> Value {
    let (namespace, name) = spec.project.rsplit_once('/').unwrap_or(("", &spec.project));
    json!({
        "id": job.id.0,
        "name": spec.name,
        "stage": spec.stage,
        "pipeline_id": pipeline_id(job),
        "project_id": spec.project_id,
        "project_name": name,
        "project_full_path": format!("{namespace}/{name}"),
        "namespace_id": 501,
        "root_namespace_id": 501,
        "organization_id": 1,
        "instance_id": "00000000-0000-4000-8000-000000000001",
        "instance_uuid": "00000000-0000-4000-8000-000000000001",
        "user_id": spec.user.0,
        "scoped_user_id": null,
        "time_in_queue_seconds": 1,
        "project_jobs_running_on_instance_runners_count": "+Inf",
        "queue_size": 1,
        "queue_depth": 1,
    })
}

fn git_info(spec: &JobSpec, sources: &Sources) -> Value {
    json!({
        "repo_url": sources.url,
        "repo_object_format": spec.git.as_ref().map_or("sha1", |(repo, _)| repo.object_format()),
        "ref": sources.reference,
        "sha": sources.sha,
        "before_sha": sources.before_sha,
        "ref_type": sources.ref_type,
        "refspecs": sources.refspecs,
        "depth": spec.git_depth,
        "protected": spec.protected,
    })
}

fn steps(spec: &JobSpec) -> Value {
    let timeout = spec.timeout.as_secs();
    let mut steps = vec![json!({
        "name": "script",
        "script": spec.script,
        "timeout": timeout,
        "when": spec.script_when,
        "allow_failure": false,
    })];
    if !spec.after_script.is_empty() {
        steps.push(json!({
            "name": "after_script",
            "script": spec.after_script,
            "timeout": timeout,
            "when": "always",
            "allow_failure": true,
        }));
    }
    Value::Array(steps)
}

fn suspend_options(spec: &JobSpec) -> Value {
    if !spec.suspend_on_success && !spec.suspend_on_failure && spec.environment_key.is_none() {
        return Value::Null;
    }
    let key_field = match spec.key_spelling {
        KeySpelling::New => "runtime_environment_key",
        KeySpelling::Old => "environment_key",
    };
    json!({
        "suspend_on_success": spec.suspend_on_success,
        "suspend_on_failure": spec.suspend_on_failure,
        key_field: spec.environment_key,
    })
}

fn variables(job: &JobView, spec: &JobSpec, runner: &RunnerRecord, url: &str, sources: &Sources) -> Value {
    let (_, host) = url.split_once("://").unwrap_or(("http", url));
    let (host, port) = host.rsplit_once(':').unwrap_or((host, "80"));
    let (namespace, project) = spec.project.rsplit_once('/').unwrap_or(("", &spec.project));
    let slug = sources.reference.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let pipeline = pipeline_id(job);
    let mut all = vec![
        Variable::public("CI_PIPELINE_ID", pipeline.to_string()),
        Variable::public("CI_PIPELINE_URL", format!("{url}/{}/-/pipelines/{pipeline}", spec.project)),
        Variable::public("CI_JOB_ID", job.id.to_string()),
        Variable::public("CI_JOB_URL", format!("{url}/{}/-/jobs/{}", spec.project, job.id)),
        Variable::masked("CI_JOB_TOKEN", &job.token),
        Variable::public("CI_JOB_STARTED_AT", job.enqueued_at.to_string()),
        Variable::public("CI_REGISTRY_USER", "gitlab-ci-token"),
        Variable::masked("CI_REGISTRY_PASSWORD", &job.token),
        Variable::masked("CI_REPOSITORY_URL", &sources.url),
        Variable::public("CI_DEPENDENCY_PROXY_USER", "gitlab-ci-token"),
        Variable::masked("CI_DEPENDENCY_PROXY_PASSWORD", &job.token),
        Variable::public("CI_JOB_NAME", &spec.name),
        Variable::public("CI_JOB_STAGE", &spec.stage),
        Variable::public("CI_NODE_TOTAL", "1"),
        Variable::public("CI", "true"),
        Variable::public("GITLAB_CI", "true"),
        Variable::public("CI_SERVER_FQDN", format!("{host}:{port}")),
        Variable::public("CI_SERVER_URL", url),
        Variable::public("CI_SERVER_HOST", host),
        Variable::public("CI_SERVER_PORT", port),
        Variable::public("CI_SERVER_PROTOCOL", "http"),
        Variable::public("CI_SERVER_NAME", "GitLab"),
        Variable::public("CI_SERVER_VERSION", "19.4.0"),
        Variable::public("CI_SERVER_VERSION_MAJOR", "19"),
        Variable::public("CI_SERVER_VERSION_MINOR", "4"),
        Variable::public("CI_SERVER_VERSION_PATCH", "0"),
        Variable::public("CI_PROJECT_ID", spec.project_id.to_string()),
        Variable::public("CI_PROJECT_NAME", project),
        Variable::public("CI_PROJECT_PATH", &spec.project),
        Variable::public("CI_PROJECT_PATH_SLUG", spec.project.replace(['/', '.', '_'], "-")),
        Variable::public("CI_PROJECT_NAMESPACE", namespace),
        Variable::public("CI_PROJECT_URL", format!("{url}/{}", spec.project)),
        Variable::public("CI_DEFAULT_BRANCH", "main"),
        Variable::public("CI_API_V4_URL", format!("{url}/api/v4")),
        Variable::public("CI_PIPELINE_IID", job.id.to_string()),
        Variable::public("CI_PIPELINE_SOURCE", "push"),
        Variable::public("CI_COMMIT_SHA", &sources.sha),
        Variable::public("CI_COMMIT_SHORT_SHA", sources.sha.get(..8).unwrap_or(&sources.sha)),
        Variable::public("CI_COMMIT_BEFORE_SHA", &sources.before_sha),
        Variable::public("CI_COMMIT_REF_NAME", &sources.reference),
        Variable::public("CI_COMMIT_REF_SLUG", slug),
        Variable::public("CI_COMMIT_REF_PROTECTED", spec.protected.unwrap_or(false).to_string()),
        Variable::public("CI_RUNNER_ID", runner.id.to_string()),
        Variable::public("CI_RUNNER_TAGS", json!(runner.tags).to_string()),
        Variable::public("GITLAB_USER_ID", spec.user.0.to_string()),
        Variable::public("GITLAB_USER_LOGIN", &spec.user.1),
        Variable::public("GITLAB_USER_NAME", &spec.user.1),
        Variable::public("GITLAB_USER_EMAIL", format!("{}@example.com", spec.user.1)),
    ];
    if sources.ref_type == "tag" {
        all.push(Variable::public("CI_COMMIT_TAG", &sources.reference));
    } else {
        all.push(Variable::public("CI_COMMIT_BRANCH", &sources.reference));
    }
    if spec.git.is_none() && !spec.variables.iter().any(|own| own.key == "GIT_STRATEGY") {
        all.push(Variable::public("GIT_STRATEGY", "none"));
    }
    all.iter()
        .chain(&spec.variables)
        .map(|variable| {
            json!({
                "key": variable.key,
                "value": variable.value,
                "public": variable.public,
                "file": variable.file,
                "masked": variable.masked,
                "raw": variable.raw,
            })
        })
        .collect()
}
