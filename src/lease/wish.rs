//! What a job wishes of suspension, from what GitLab sent and what the pool is set to. Pure.

use crate::api::runner_pool::{RunnerPoolSpec, SuspensionMode, SuspensionTriggers};
use crate::gitlab::wire::JobPayload;
use crate::spool::order::SuspendPlan;
use crate::spool::record::ScriptEnd;

/// The flag that a job's variables switch on to make its suspend options count.
const FEATURE_FLAG: &str = "FF_SUSPENDABLE_ENVIRONMENTS";

/// What a job wishes of suspension, after the pool's switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuspensionWish {
    /// Which ends of the script put the environment to sleep.
    pub plan: SuspendPlan,
    /// Those of them that GitLab itself asked for: only then it wants to hear the key.
    pub asked_by_gitlab: SuspendPlan,
}

/// Whether a job's suspend options count at all.
pub fn options_count(spec: &RunnerPoolSpec, job: &JobPayload) -> bool {
    match spec.suspension.mode {
        SuspensionMode::Disabled => false,
        SuspensionMode::Enabled => true,
        SuspensionMode::FeatureFlag => job.variable(FEATURE_FLAG).is_some_and(is_true),
    }
}

/// What a job wishes of suspension.
pub fn suspension(spec: &RunnerPoolSpec, job: &JobPayload) -> SuspensionWish {
    if !options_count(spec, job) {
        return SuspensionWish { plan: SuspendPlan::default(), asked_by_gitlab: SuspendPlan::default() };
    }
    let asked = SuspendPlan {
        on_success: job.suspend_options.suspend_on_success,
        on_failure: job.suspend_options.suspend_on_failure,
    };
    let plan = match spec.suspension.triggers {
        SuspensionTriggers::JobOptions => asked,
        SuspensionTriggers::JobOptionsAndVariables => SuspendPlan {
            on_success: asked.on_success || job.variable("DORMOUSE_SUSPEND_ON_SUCCESS").is_some_and(is_true),
            on_failure: asked.on_failure || job.variable("DORMOUSE_SUSPEND_ON_FAILURE").is_some_and(is_true),
        },
    };
    SuspensionWish { plan, asked_by_gitlab: asked }
}

/// The key a job names, if it counts. A pool whose suspension is disabled keeps the key, so that the job is refused
/// and not run in a fresh environment.
pub fn resume_key(spec: &RunnerPoolSpec, job: &JobPayload) -> Option<String> {
    if !options_count(spec, job) && spec.suspension.mode == SuspensionMode::FeatureFlag {
        return None;
    }
    let option = job.suspend_options.resume_key();
    let key = match spec.suspension.triggers {
        SuspensionTriggers::JobOptions => option,
        SuspensionTriggers::JobOptionsAndVariables => {
            option.or_else(|| job.variable("DORMOUSE_ENVIRONMENT_KEY").filter(|key| !key.is_empty()))
        }
    };
    key.map(str::to_owned)
}

/// Whether GitLab is told the key after such an end of the script.
pub fn tells_key(wish: SuspensionWish, script: ScriptEnd) -> bool {
    wish.asked_by_gitlab.is_due(script)
}

/// What a variable may say to mean yes; the words Go's parser takes.
fn is_true(value: &str) -> bool {
    ["1", "t", "T", "TRUE", "true", "True"].contains(&value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(suspension: serde_json::Value) -> RunnerPoolSpec {
        serde_json::from_value(json!({
            "gitlab": {"url": "http://127.0.0.1", "tokenSecretRef": {"name": "t", "key": "token"}},
            "provider": {"static": {"hosts": [{"name": "a", "address": "127.0.0.1"}]}},
            "ssh": {"username": "u", "privateKeySecretRef": {"name": "k", "key": "key"}},
            "suspension": suspension,
        }))
        .unwrap()
    }

    fn job(variables: &[(&str, &str)]) -> JobPayload {
        serde_json::from_value(json!({
            "id": 1, "token": "t",
            "variables": variables.iter().map(|(k, v)| json!({"key": k, "value": v})).collect::<Vec<_>>(),
            "suspend_options": {"suspend_on_failure": true, "runtime_environment_key": "k"},
        }))
        .unwrap()
    }

    #[test]
    fn options_are_ignored_without_the_flag_and_count_with_it() {
        let spec = spec(json!({}));
        assert_eq!(suspension(&spec, &job(&[])).plan, SuspendPlan::default());
        assert_eq!(resume_key(&spec, &job(&[])), None);
        let flagged = job(&[(FEATURE_FLAG, "true")]);
        assert!(suspension(&spec, &flagged).plan.on_failure);
        assert_eq!(resume_key(&spec, &flagged).as_deref(), Some("k"));
    }

    #[test]
    fn a_disabled_pool_keeps_the_key_so_that_the_job_is_refused() {
        let spec = spec(json!({"mode": "Disabled"}));
        let flagged = job(&[(FEATURE_FLAG, "true")]);
        assert_eq!(suspension(&spec, &flagged).plan, SuspendPlan::default());
        assert_eq!(resume_key(&spec, &flagged).as_deref(), Some("k"));
    }

    #[test]
    fn triggers_from_variables_suspend_but_do_not_tell_gitlab_the_key() {
        let variables = [("DORMOUSE_SUSPEND_ON_SUCCESS", "true")];
        let off = spec(json!({"mode": "Enabled"}));
        assert!(!suspension(&off, &job(&variables)).plan.on_success);
        let on = spec(json!({"mode": "Enabled", "triggers": "JobOptionsAndVariables"}));
        let wish = suspension(&on, &job(&variables));
        assert!(wish.plan.on_success && wish.plan.on_failure);
        assert!(!tells_key(wish, ScriptEnd::Success));
        assert!(tells_key(wish, ScriptEnd::Failure));
    }
}
