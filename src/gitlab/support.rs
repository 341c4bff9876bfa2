//! What a job may need that is not built yet. Such a job is refused with a reason, never run wrong. Pure.

use super::wire::JobPayload;

/// Why a job cannot run here, naming the field, the value and the way out; `None` when it can.
pub fn unsupported(job: &JobPayload) -> Option<String> {
    let needs = |what: &str| Some(format!("{what}; run it on another runner, chosen by its tags"));
    if !job.artifacts.is_empty() {
        return needs("the job uploads `artifacts`, which this runner does not do yet");
    }
    if !job.cache.is_empty() {
        return needs("the job uses `cache`, which this runner does not do yet");
    }
    let has_file = |dependency: &serde_json::Value| {
        dependency.pointer("/artifacts_file/filename").is_some_and(|name| !name.is_null())
    };
    if job.dependencies.iter().any(has_file) {
        return needs(
            "the job downloads artifacts of other jobs, which this runner does not do yet (`dependencies: []` \
             switches it off)",
        );
    }
    if job.secrets.as_object().is_some_and(|secrets| !secrets.is_empty()) {
        return needs("the job has `secrets`, which this runner does not resolve");
    }
    if !job.run.is_empty() {
        return needs("the job has native steps in `run`, which this runner does not run");
    }
    if !job.inputs.is_empty() {
        return needs("the job has `inputs`, which this runner does not resolve");
    }
    variable(job).or_else(|| step(job))
}

fn variable(job: &JobPayload) -> Option<String> {
    let given = |key: &str| job.variable(key).filter(|value| !value.is_empty());
    if let Some(strategy) = given("GIT_SUBMODULE_STRATEGY").filter(|strategy| *strategy != "none") {
        return Some(format!(
            "the variable GIT_SUBMODULE_STRATEGY is {strategy:?}; submodules are not fetched yet: set it to none, or \
             run `git submodule update --init` in the script"
        ));
    }
    given("GIT_CLONE_PATH").map(|_| {
        "the variable GIT_CLONE_PATH is set; workspaces have a fixed path on this runner: remove it"
            .to_owned()
    })
}

fn step(job: &JobPayload) -> Option<String> {
    job.steps.iter().find(|step| step.name == "release").map(|_| {
        "the job has a `release`, which needs a release tool this runner does not ship yet; call it in the script"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(fields: serde_json::Value) -> JobPayload {
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn a_plain_job_is_supported() {
        assert_eq!(unsupported(&job(json!({"id": 1, "steps": [{"name": "script"}]}))), None);
        assert_eq!(
            unsupported(&job(json!({"id": 1, "dependencies": [{"id": 2, "artifacts_file": null}]}))),
            None
        );
    }

    #[test]
    fn each_missing_feature_is_named_with_the_way_out() {
        for (fields, word) in [
            (json!({"artifacts": [{}]}), "artifacts"),
            (json!({"cache": [{}]}), "cache"),
            (json!({"dependencies": [{"artifacts_file": {"filename": "a.zip"}}]}), "dependencies"),
            (json!({"secrets": {"A": {}}}), "secrets"),
            (json!({"run": "[]"}), "run"),
            (json!({"inputs": [{}]}), "inputs"),
            (json!({"variables": [{"key": "GIT_SUBMODULE_STRATEGY", "value": "recursive"}]}), "none"),
            (json!({"variables": [{"key": "GIT_CLONE_PATH", "value": "/x"}]}), "GIT_CLONE_PATH"),
            (json!({"steps": [{"name": "release"}]}), "release"),
        ] {
            let why = unsupported(&job(fields)).unwrap();
            assert!(why.contains(word), "{why}");
        }
    }
}
