//! From nothing to a runner, and its changes.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{BY_ITSELF, SECRET, give_access, made, registration, start, tells_no_secret, the_runner};
use crate::testbed::gitlab::{Action, Fault, JobSpec, JobState, Scope, Target};
use crate::testbed::stage::{POOL, SOON, Setting, Stage, condition};
use crate::testbed::wait::until;
use crate::traces::next_job_runs;

#[tokio::test]
async fn a_pool_makes_its_runner_once_and_works_on_without_the_access_token() -> Result<()> {
    let pool =
        registration(&json!({ "description": "made here", "maximumTimeout": "1h", "protected": true }));
    let stage = start("made", Setting::pool(pool), Scope::ManageRunner).await?;
    let runner = the_runner(&stage)?;
    ensure!(runner.tags == ["dormouse", "linux"], "{runner:?}");
    for (field, value) in [
        ("runner_type", json!("instance_type")),
        ("description", json!("made here")),
        ("access_level", json!("ref_protected")),
        ("maximum_timeout", json!(3600)),
        ("run_untagged", json!(true)),
    ] {
        ensure!(runner.settings[field] == value, "{field}: {:#}", runner.settings);
    }
    let status = stage
        .until_object("runnerpool", POOL, "its tags are shown", |pool| {
            pool["status"]["runner"]["tags"] == json!(["dormouse", "linux"])
        })
        .await?;
    ensure!(status["status"]["runnerId"] == runner.id.0, "{status:#}");
    stage.until_finding("Registered", "True", "Registered").await?;
    stage.until_event("RunnerRegistered").await?;
    let secret = stage.get("secret", SECRET).await?;
    ensure!(secret["metadata"]["ownerReferences"].is_null(), "{secret:#}");

    // The token is all that is needed from now on, by the next process too.
    stage.kubectl(&["delete", "secret", "access-token"]).await?;
    stage.succeed_operator().await?;
    let job = stage.run(JobSpec::new("works").tag("linux").protected(true).script(["true"])).await?;
    ensure!(job.state == JobState::Success && job.runner == Some(runner.id), "{}", job.log_text());
    stage.until_finding("Registered", "True", "Registered").await?;
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(
        pool["status"]["runner"]["tags"] == json!(["dormouse", "linux"]),
        "the tags went with the access"
    );
    ensure!(the_runner(&stage)?.id == runner.id);
    tells_no_secret(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn a_change_of_the_spec_is_applied_where_the_access_token_is_there_and_waits_where_it_is_not()
-> Result<()> {
    let stage = start("changed", Setting::pool(registration(&json!({}))), Scope::ManageRunner).await?;
    let id = the_runner(&stage)?.id;
    stage.apply_pool(registration(&json!({ "tags": ["mac"], "runUntagged": false }))).await?;
    until("the runner is changed", SOON, async || {
        let runner = the_runner(&stage)?;
        Ok((runner.tags == ["mac"] && runner.settings["run_untagged"] == false).then_some(()))
    })
    .await?;
    stage.until_event("RunnerChanged").await?;
    stage
        .until_object("runnerpool", POOL, "the new tag is shown", |pool| {
            pool["status"]["runner"]["tags"] == json!(["mac"])
        })
        .await?;

    stage.kubectl(&["delete", "secret", "access-token"]).await?;
    stage.apply_pool(registration(&json!({ "tags": ["bsd"] }))).await?;
    let message = stage.until_finding("Registered", "False", "ChangePending").await?;
    ensure!(message.contains("access token"), "{message}");
    // It works as it was.
    stage.until_finding("Ready", "True", "Ready").await?;
    ensure!(the_runner(&stage)?.tags == ["mac"]);
    let job = stage.run(JobSpec::new("works").tag("mac").script(["true"])).await?;
    ensure!(job.state == JobState::Success, "{}", job.log_text());

    give_access(&stage, Scope::ManageRunner).await?;
    // Secrets are not watched: any change of the pool has them read again.
    stage.apply_pool(registration(&json!({ "tags": ["bsd"], "description": "now" }))).await?;
    stage.until_finding("Registered", "True", "Registered").await?;
    let runner = the_runner(&stage)?;
    ensure!(runner.tags == ["bsd"] && runner.id == id, "{runner:?}");
    stage.end().await
}

#[tokio::test]
async fn tags_that_a_person_changes_at_gitlab_are_shown_and_left_as_they_are() -> Result<()> {
    let stage = start("retagged", Setting::pool(registration(&json!({}))), Scope::ManageRunner).await?;
    let runner = the_runner(&stage)?;
    stage
        .until_object("runnerpool", POOL, "its tags are shown", |pool| {
            pool["status"]["runner"]["tags"] == json!(["dormouse", "linux"])
        })
        .await?;
    stage.gitlab.retag_runner(runner.id, &["moved"]);
    until("the server's tags are shown", BY_ITSELF, async || {
        let pool = stage.get("runnerpool", POOL).await?;
        Ok((pool["status"]["runner"]["tags"] == json!(["moved"])).then_some(()))
    })
    .await?;
    // The spec did not change, so nobody has changed them back.
    ensure!(the_runner(&stage)?.tags == ["moved"]);
    let job = stage.run(JobSpec::new("works").tag("moved").script(["true"])).await?;
    ensure!(job.state == JobState::Success && job.runner == Some(runner.id), "{}", job.log_text());
    stage.end().await
}

#[tokio::test]
async fn a_lost_answer_leaves_no_second_runner() -> Result<()> {
    let pool = registration(&json!({ "type": "Project", "projectId": 7, "locked": true }));
    let mut stage = Stage::without_operator("lost", &Setting::pool(json!({}))).await?;
    give_access(&stage, Scope::ManageRunner).await?;
    stage.gitlab.inject(Fault::on(Target::CreateRunner, Action::CutAfterHandling).once());
    stage.raise(pool).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    let runner = the_runner(&stage)?;
    ensure!(runner.id.0 > 2, "the first one was kept: {runner:?}");
    ensure!(runner.settings["project_id"] == 7 && runner.settings["locked"] == true, "{runner:?}");
    next_job_runs(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn an_access_token_that_may_only_create_is_enough_and_what_it_cannot_see_is_said() -> Result<()> {
    let mut stage = Stage::without_operator("narrow", &Setting::pool(json!({}))).await?;
    give_access(&stage, Scope::CreateRunner).await?;
    stage.gitlab.inject(Fault::on(Target::CreateRunner, Action::CutAfterHandling).once());
    stage.raise(registration(&json!({ "type": "Group", "groupId": 3 }))).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    let event = stage.until_event("RunnerLeftBehind").await?;
    let runners = made(&stage);
    ensure!(runners.len() == 2, "{runners:?}");
    let note = runners[0].settings["maintenance_note"].as_str().unwrap_or_default();
    let message = event["message"].as_str().unwrap_or_default();
    ensure!(!note.is_empty() && message.contains(note), "{message}");
    next_job_runs(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn what_keeps_a_runner_from_being_made_is_said_with_the_way_out() -> Result<()> {
    let mut stage = Stage::without_operator("unmade", &Setting::pool(json!({}))).await?;
    stage.raise(registration(&json!({ "tags": ["forbidden"] }))).await?;
    let message = stage.until_finding("Registered", "False", "AccessTokenMissing").await?;
    for word in ["spec.gitlab.registration.accessTokenSecretRef", "\"access-token\"", "create it"] {
        ensure!(message.contains(word), "{word:?} is not in: {message}");
    }
    stage.until_finding("CredentialsValid", "False", "AccessTokenMissing").await?;

    let wrong = "--from-literal=token=glpat-nobodys";
    stage.kubectl(&["create", "secret", "generic", "access-token", wrong]).await?;
    let message = stage.until_finding("Registered", "False", "AccessTokenRefused").await?;
    ensure!(message.contains("401") && message.contains("create a runner"), "{message}");

    give_access(&stage, Scope::ManageRunner).await?;
    let message = stage.until_finding("Registered", "False", "RegistrationRefused").await?;
    ensure!(message.contains("forbidden is reserved"), "GitLab's words are not told: {message}");
    ensure!(made(&stage).is_empty() && stage.job_requests() == 0);
    tells_no_secret(&stage).await?;

    stage.apply_pool(registration(&json!({ "tags": ["allowed"] }))).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    the_runner(&stage)?;
    stage.end().await
}

#[tokio::test]
async fn a_secret_that_is_not_ours_is_left_alone() -> Result<()> {
    let mut stage = Stage::without_operator("taken", &Setting::pool(json!({}))).await?;
    give_access(&stage, Scope::ManageRunner).await?;
    stage.kubectl(&["create", "secret", "generic", SECRET, "--from-literal=token=mine"]).await?;
    stage.raise(registration(&json!({}))).await?;
    let message = stage.until_finding("Registered", "False", "SecretTaken").await?;
    ensure!(message.contains(SECRET) && message.contains("delete it"), "{message}");
    ensure!(made(&stage).is_empty());
    stage.kubectl(&["delete", "secret", SECRET]).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.end().await
}

#[tokio::test]
async fn a_runner_that_was_removed_at_gitlab_is_not_made_again_by_itself() -> Result<()> {
    let stage = start("removed", Setting::pool(registration(&json!({}))), Scope::ManageRunner).await?;
    let first = the_runner(&stage)?;
    stage.gitlab.remove_runner(first.id);
    let message = stage.until_finding("CredentialsValid", "False", "TokenRefused").await?;
    ensure!(message.contains(SECRET) && message.contains("delete the Secret"), "{message}");
    ensure!(made(&stage).is_empty());
    stage.kubectl(&["delete", "secret", SECRET]).await?;
    stage.until_finding("CredentialsValid", "True", "TokenAccepted").await?;
    ensure!(the_runner(&stage)?.id != first.id);
    let pool = stage.get("runnerpool", POOL).await?;
    ensure!(condition(&pool, "Registered").0 == "True", "{pool:#}");
    stage.end().await
}
