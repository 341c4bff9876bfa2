//! What a job may need that is not built yet. Such a job is refused with a reason, never run wrong. Pure.

use serde_json::Value;

use super::wire::JobPayload;

/// Why a job cannot run here, naming the field, the value and the way out; `None` when it can.
pub fn unsupported(job: &JobPayload) -> Option<String> {
    let needs = |what: &str| Some(format!("{what}; run it on another runner, chosen by its tags"));
    if job.secrets.as_object().is_some_and(|secrets| !secrets.is_empty()) {
        return needs("the job has `secrets`, which this runner does not resolve");
    }
    let has_steps = match &job.run {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(steps) => !steps.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::Object(_) => true,
    };
    if has_steps {
        return needs("the job has native steps in `run`, which this runner does not run");
    }
    None
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
        for run in [json!(null), json!(""), json!([])] {
            assert_eq!(unsupported(&job(json!({"id": 1, "run": run}))), None);
        }
        assert_eq!(
            unsupported(&job(json!({"id": 1, "dependencies": [{"id": 2, "artifacts_file": null}]}))),
            None
        );
    }

    #[test]
    fn each_missing_feature_is_named_with_the_way_out() {
        let native =
            [json!("[]"), json!([{"name": "a", "script": "b"}])].map(|run| (json!({"run": run}), "run"));
        let secrets = (json!({"secrets": {"A": {}}}), "secrets");
        for (fields, word) in native.into_iter().chain([secrets]) {
            let why = unsupported(&job(fields)).unwrap();
            assert!(why.contains(word), "{why}");
        }
    }
}
