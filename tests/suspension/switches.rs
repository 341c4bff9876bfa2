//! What switches suspension on and off: the job's flag, the pool's mode and triggers, both names of the key.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{job, key_of, object_of, put_to_sleep, until_gone};
use crate::testbed::gitlab::{JobSpec, JobState, KeySpelling};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, event, told};

fn pool(suspension: serde_json::Value) -> Setting {
    Setting { pool: json!({ "suspension": suspension }), ..Setting::default() }
}

#[tokio::test]
async fn without_the_flag_the_options_are_silently_ignored() -> Result<()> {
    let stage = Stage::start("flag-off", Setting::default()).await?;
    let plain = stage.run(JobSpec::new("plain").suspend_on_success().script(["echo ran"])).await?;
    ensure!(plain.state == JobState::Success, "{}", told(&plain));
    ensure!(plain.puts.iter().all(|put| put.environment_key.is_none()), "{:?}", plain.puts);
    ensure!(!plain.log_contains("suspend") && !plain.log_contains("WARNING"), "{}", told(&plain));

    let key = format!("{}/s_000000000000/acquisition-key=aaaaaaaaaaaaaaaaaaaa", stage.runner.id);
    let keyed = stage.run(JobSpec::new("keyed").environment_key(key).script(["echo ran too"])).await?;
    ensure!(keyed.state == JobState::Success && keyed.log_contains("ran too"), "{}", told(&keyed));
    let lease = stage.lease_over(keyed.id).await?;
    ensure!(lease["spec"]["resumeFrom"].is_null(), "{lease:#}");
    ensure!(stage.list("suspendedenvironments").await?.is_empty());
    traces::end(stage).await
}

#[tokio::test]
async fn an_enabled_pool_needs_no_flag_and_knows_the_older_name_of_the_key() -> Result<()> {
    let stage = Stage::start("enabled", pool(json!({ "mode": "Enabled" }))).await?;
    let (slept, key) = put_to_sleep(&stage, JobSpec::new("sleep").script(["echo kept > marker"])).await?;
    let path = format!("/jobs/{}", slept.id);
    let final_update = stage
        .gitlab
        .requests()
        .into_iter()
        .filter(|request| request.method == "PUT" && request.path.ends_with(&path))
        .filter_map(|request| serde_json::from_str::<serde_json::Value>(&request.body?).ok())
        .find(|body| body["state"] == "success")
        .unwrap_or_default();
    for name in ["runtime_environment_key", "environment_key"] {
        ensure!(final_update[name] == key.as_str(), "{name} is {}", final_update[name]);
    }

    let woken = JobSpec::new("wake").environment_key(&key).key_spelling(KeySpelling::Old);
    let woken = stage.run(woken.script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    ensure!(woken.log_contains(&format!("Job environment resumed: {key}")), "{}", told(&woken));
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_disabled_pool_keeps_nothing_and_refuses_a_key() -> Result<()> {
    let stage = Stage::start("disabled", pool(json!({ "mode": "Disabled" }))).await?;
    let passed = stage.run(job("pass").suspend_on_success().script(["true"])).await?;
    ensure!(passed.state == JobState::Success, "{}", told(&passed));
    ensure!(passed.environment_key.is_none());
    ensure!(stage.list("suspendedenvironments").await?.is_empty());

    let key = format!("{}/s_000000000000/acquisition-key=aaaaaaaaaaaaaaaaaaaa", stage.runner.id);
    let refused = stage.run(job("wake").environment_key(key).script(["echo never"])).await?;
    ensure!(refused.state == JobState::Failed && !refused.log_contains("never"), "{}", told(&refused));
    ensure!(refused.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&refused));
    ensure!(refused.log_contains("suspension is switched off"), "{}", told(&refused));
    let (_, action) = event(&stage, &format!("pool-{}", refused.id), "ResumeRefused").await?;
    ensure!(action == "SuspensionDisabled", "{action}");
    traces::end(stage).await
}

#[tokio::test]
async fn variables_suspend_and_resume_without_a_word_to_gitlab() -> Result<()> {
    let setting = pool(json!({ "triggers": "JobOptionsAndVariables" }));
    let stage = Stage::start("variables", setting).await?;
    let slept =
        job("sleep").variable("DORMOUSE_SUSPEND_ON_FAILURE", "true").script(["echo kept > m", "exit 3"]);
    let slept = stage.run(slept).await?;
    ensure!(slept.exit_code == Some(3) && key_of(&slept).is_err(), "{}", told(&slept));
    ensure!(slept.puts.iter().all(|put| put.environment_key.is_none()), "{:?}", slept.puts);
    let environments = stage.list("suspendedenvironments").await?;
    let key = traces::text(&environments[0]["status"]["environmentKey"]);
    ensure!(environments.len() == 1 && !key.is_empty(), "{environments:#?}");
    ensure!(slept.log_contains(&format!("Job environment suspended: {key}")), "{}", told(&slept));
    ensure!(environments[0]["metadata"]["name"] == object_of(&key)?.as_str());

    let woken = job("wake").variable("DORMOUSE_ENVIRONMENT_KEY", &key).script(["cat m"]);
    let woken = stage.run(woken).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    until_gone(&stage, &key).await?;
    traces::end(stage).await
}
