//! Jobs that need what is not there: features of the runner, programs of the host.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::testbed::gitlab::{GitRepo, JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, told};

#[tokio::test]
async fn a_feature_that_is_not_built_is_refused_with_the_way_out() -> Result<()> {
    let stage = Stage::start("features", Setting::default()).await?;
    let other = "run it on another runner, chosen by its tags";
    let cases: [(&str, Value, &str, &str); 2] = [
        ("secrets", json!({ "PASSWORD": { "vault": {} } }), "`secrets`", other),
        ("run", json!("[{\"step\": \"s\"}]"), "`run`", other),
    ];
    let reason = "runner_configuration_error";
    for (field, value, what, way_out) in cases {
        let spec = JobSpec::new(field).script(["echo never"]).payload_field(field, value);
        let refused = stage.run(spec).await?;
        ensure!(refused.state == JobState::Failed && !refused.log_contains("never"), "{}", told(&refused));
        ensure!(refused.failure_reason.as_deref() == Some(reason), "{}", told(&refused));
        ensure!(refused.log_contains(what) && refused.log_contains(way_out), "{field}: {}", told(&refused));
        let lease = stage.lease_over(refused.id).await?;
        ensure!(lease["status"]["instance"].is_null(), "it was given a slot: {lease:#}");
        ensure!(lease["status"]["failureReason"] == reason, "{lease:#}");
    }
    {
        let (variable, value) = ("GIT_CLONE_PATH", "/elsewhere");
        let spec = JobSpec::new(variable).variable(variable, value).script(["echo never"]);
        // A server that does not list the reason is told the nearest one it knows.
        let refused = stage.run(spec.failure_reasons(["script_failure"])).await?;
        ensure!(refused.failure_reason.as_deref() == Some("script_failure"), "{}", told(&refused));
        ensure!(refused.log_contains(variable) && !refused.log_contains("never"), "{}", told(&refused));
    }
    traces::end(stage).await
}

#[tokio::test]
async fn without_git_on_the_host_the_log_says_so_and_jobs_without_sources_run() -> Result<()> {
    let stage = Stage::start("no-git", Setting::default()).await?;
    let repo = GitRepo::create("group/project")?;
    repo.commit("first", &[("README.md", "hello")])?;
    stage.gitlab.host(&repo);
    stage.hosts[0].remove_program("git").await?;
    let failed = stage.run(JobSpec::new("sources").git(&repo, "main").script(["echo never"])).await?;
    ensure!(failed.state == JobState::Failed && !failed.log_contains("never"), "{}", told(&failed));
    ensure!(failed.log_contains("git: command not found"), "{}", told(&failed));
    ensure!(failed.log_contains("fetching the sources failed"), "{}", told(&failed));
    let plain = stage.run(JobSpec::new("plain").script(["echo ran"])).await?;
    ensure!(plain.state == JobState::Success && plain.log_contains("ran"), "{}", told(&plain));
    traces::end(stage).await
}
