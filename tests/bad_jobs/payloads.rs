//! Payloads that are broken, strange or large.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::testbed::gitlab::{JobSpec, JobState, Options};
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, event, told};

const REASON: Option<&str> = Some("runner_system_failure");

#[tokio::test]
async fn a_job_that_cannot_be_read_is_failed_with_a_word_on_why_and_the_next_one_runs() -> Result<()> {
    let gitlab = Options {
        hold: Duration::from_secs(20),
        acknowledge_within: Duration::from_secs(3),
        retry_unacknowledged: false,
        ..Options::default()
    };
    let stage = Stage::start("unreadable", Setting { gitlab, ..Setting::default() }).await?;
    let wrong_type = r#"{"id": @ID@, "token": "@TOKEN@", "variables": "hush-hush", "steps": []}"#;
    let failed = stage.run(JobSpec::new("wrong type").raw_payload(wrong_type)).await?;
    ensure!(
        (failed.state, failed.failure_reason.as_deref()) == (JobState::Failed, REASON),
        "{}",
        told(&failed)
    );
    ensure!(failed.log_contains("the job's JSON cannot be read at line 1 column"), "{}", told(&failed));
    ensure!(!failed.log_contains("hush-hush"), "{}", told(&failed));
    let (note, _) = event(&stage, POOL, "JobUnreadable").await?;
    ensure!(note.contains("cannot be read") && !note.contains("hush-hush"), "{note}");

    // Nobody can be told of a job without an id: GitLab's own time-out ends it.
    let cut = stage.run(JobSpec::new("cut").raw_payload(r#"{"id": @ID@, "token": "@TOK"#)).await?;
    ensure!(cut.failure_reason.as_deref() == Some("runner_provisioning_timeout"), "{}", told(&cut));

    let next = stage.run(JobSpec::new("next").script(["echo goes on"])).await?;
    ensure!(next.state == JobState::Success && next.log_contains("goes on"), "{}", told(&next));
    traces::end(stage).await
}

#[tokio::test]
async fn unknown_and_null_fields_do_no_harm() -> Result<()> {
    let stage = Stage::start("nulls", Setting::default()).await?;
    let strange = JobSpec::new("strange").script(["echo ran"]).edit_payload(|payload| {
        payload["brand_new"] = json!({ "deep": [1, null, { "a": "b" }] });
        for field in ["hooks", "services", "cache", "credentials", "dependencies", "inputs", "image"] {
            payload[field] = Value::Null;
        }
        payload["runner_info"]["timeout"] = Value::Null;
        payload["job_info"]["time_in_queue_seconds"] = json!("1.5");
        payload["git_info"]["protected"] = Value::Null;
        payload["steps"][0]["when"] = Value::Null;
        payload["steps"][0]["brand_new"] = json!(true);
        payload["variables"][0]["brand_new"] = json!({});
        payload["variables"][0]["masked"] = Value::Null;
    });
    let strange = stage.run(strange).await?;
    ensure!(strange.state == JobState::Success && strange.log_contains("ran"), "{}", told(&strange));
    let nothing = stage.run(JobSpec::new("nothing").payload_field("steps", Value::Null)).await?;
    ensure!(nothing.state == JobState::Success, "{}", told(&nothing));
    traces::end(stage).await
}

/// Text that compresses to about half, so that its size counts.
fn noise(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 8);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    while text.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let _ = write!(text, "{:08x}", state >> 32);
    }
    text.truncate(bytes);
    text
}

#[tokio::test]
async fn a_variable_of_300_kb_is_seen_by_the_script_and_its_limit_is_said() -> Result<()> {
    let stage = Stage::start("large-variable", Setting::default()).await?;
    let script = ["echo \"length ${#LARGE}\"", "/bin/true && echo a program starts"];
    let job = stage.run(JobSpec::new("large").variable("LARGE", noise(300_000)).script(script)).await?;
    ensure!(job.state == JobState::Success, "{}", told(&job));
    let limit = "variable LARGE is longer than Linux hands to a program";
    for text in ["length 300000", "a program starts", limit] {
        ensure!(job.log_contains(text), "{text}: {}", told(&job));
    }
    traces::end(stage).await
}

#[tokio::test]
async fn a_large_payload_is_kept_in_several_secrets_and_one_above_8_mib_is_refused() -> Result<()> {
    let stage = Stage::start("large-payload", Setting::default()).await?;
    let spec = JobSpec::new("large").variable("A", noise(2_000_000)).variable("B", noise(1_500_000));
    let hold = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo ${#A} ${#B}";
    let id = stage.gitlab.enqueue(spec.script([hold]));
    stage.until_log(id, "begun").await?;
    let selector = "--field-selector=type=dormouse.dev/job-payload";
    let secrets = stage.kubectl(&["get", "secrets", selector, "-o", "name"]).await?;
    ensure!(secrets.lines().count() >= 2, "{secrets}");
    // All of it is read back by the next process.
    stage.crash_operator().await?;
    traces::on(&stage.hosts[0], "touch /tmp/go").await?;
    let large = stage.until_over(id).await?;
    ensure!(large.state == JobState::Success && large.log_contains("2000000 1500000"), "{}", told(&large));

    let refused =
        stage.run(JobSpec::new("too large").variable("A", noise(9_000_000)).script(["true"])).await?;
    ensure!(refused.failure_reason.as_deref() == REASON, "{}", told(&refused));
    ensure!(refused.log_contains("make its variables smaller"), "{}", told(&refused));
    until("the refused job has no lease", SOON, async || {
        let leases = stage.list("jobleases").await?;
        Ok(leases.iter().all(|lease| lease["spec"]["jobId"] != refused.id.0).then_some(()))
    })
    .await?;
    traces::end(stage).await
}
