//! Keys that must not open anything: each is refused at once with its own words, and the environment is untouched.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::suspension::{environment, held, job, object_of, put_to_sleep};
use crate::testbed::gitlab::{JobSpec, JobState, JobView, Options, Routing};
use crate::testbed::stage::{POOL, Setting, Stage, condition};
use crate::traces::{self, event, on, text, told};

const LISTED: &str = "runtime_environment_unavailable";

/// A GitLab that gives a resume to whoever asks, so that every key arrives.
fn setting() -> Setting {
    let gitlab = Options { hold: Duration::from_secs(20), routing: Routing::Anyone, ..Options::default() };
    let pool = json!({ "capacityPerInstance": 2, "isolation": "Shared", "suspension": { "slotFloor": 0 } });
    Setting { gitlab, pool, ..Setting::default() }
}

fn project(spec: JobSpec) -> JobSpec {
    spec.project(7, "group/seven")
}

/// The job was refused for this reason, in these words, and ran nowhere.
async fn refused(stage: &Stage, view: &JobView, action: &str, words: &str) -> Result<()> {
    ensure!(view.state == JobState::Failed && !view.log_contains("unwanted"), "{action}: {}", told(view));
    ensure!(view.failure_reason.as_deref() == Some(LISTED), "{action}: {}", told(view));
    let line = "the environment cannot be resumed: ";
    ensure!(view.log_contains(line) && view.log_contains(words), "{action}: {}", told(view));
    let lease = stage.lease_over(view.id).await?;
    ensure!(lease["status"]["instance"].is_null(), "{action}: it was given a slot: {lease:#}");
    let (note, seen) = event(stage, &format!("{POOL}-{}", view.id), "ResumeRefused").await?;
    ensure!(seen == action && note.contains(words), "{action}: {seen}: {note}");
    Ok(())
}

fn wake(key: &str) -> JobSpec {
    let reasons = ["script_failure", "runner_system_failure", "job_execution_timeout", LISTED];
    job("wake").environment_key(key).script(["echo unwanted"]).failure_reasons(reasons)
}

#[tokio::test]
async fn each_foreign_or_malformed_key_is_refused_with_its_own_words() -> Result<()> {
    let stage = Stage::start("keys", setting()).await?;
    let first = project(job("first")).protected(true).script(["echo kept > marker"]);
    let (_, key) = put_to_sleep(&stage, first).await?;
    let before = environment(&stage, &key).await?;
    let id = key.rsplit_once('=').context("the key has no environment id")?.1;
    let pool = stage.get("runnerpool", POOL).await?;
    let (runner, system) = (stage.runner.id, text(&pool["status"]["systemId"]));
    let own = |id: &str| format!("{runner}/{system}/acquisition-key={id}");
    let foreign_runner = format!("{}/{system}/acquisition-key={id}", runner.0 + 1);
    let foreign_system = format!("{runner}/s_000000000000/acquisition-key={id}");
    let cases = [
        ("no key at all".to_owned(), "MalformedKey", "cannot be read"),
        (own("UPPER-and-short"), "MalformedKey", "cannot be read"),
        (format!("{}/../x", own(id)), "MalformedKey", "cannot be read"),
        ("k".repeat(3000), "MalformedKey", "cannot be read"),
        (foreign_runner, "ForeignRunner", "not issued by this runner: it names"),
        (foreign_system, "ForeignSystemId", "not issued by this runner manager"),
        (own("aaaaaaaaaaaaaaaaaaaa"), "UnknownEnvironment", "the environment does not exist"),
    ];
    for (foreign, action, words) in &cases {
        let job = stage.run(project(wake(foreign)).protected(true)).await?;
        refused(&stage, &job, action, words).await?;
    }
    let stranger = stage.run(wake(&key).project(8, "group/eight").protected(true)).await?;
    refused(&stage, &stranger, "ForeignProject", "belongs to another project").await?;
    let unprotected = stage.run(project(wake(&key)).protected(false)).await?;
    refused(&stage, &unprotected, "UnprotectedRef", "comes from a protected ref").await?;
    let unknown = stage.run(project(wake(&key)).protected_unknown()).await?;
    refused(&stage, &unknown, "UnprotectedRef", "comes from a protected ref").await?;

    let after = environment(&stage, &key).await?;
    ensure!(after["spec"] == before["spec"], "{after:#}");
    for field in ["phase", "revision", "suspendedAt", "boundLease", "lastAccident", "lastResumedAt"] {
        ensure!(after["status"][field] == before["status"][field], "{field}: {after:#}");
    }
    // A server that does not list the reason is told the nearest one, and the right job still wakes it.
    let unlisted = project(wake(&own("aaaaaaaaaaaaaaaaaaaa"))).failure_reasons(["script_failure"]);
    let unlisted = stage.run(unlisted).await?;
    ensure!(unlisted.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(&unlisted));
    let woken = stage.run(project(wake(&key)).protected(true).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    traces::end(stage).await
}

#[tokio::test]
async fn an_environment_in_use_is_refused_to_a_second_job() -> Result<()> {
    let stage = Stage::start("in-use", setting()).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo kept > marker"])).await?;
    let user = stage.gitlab.enqueue(job("user").environment_key(&key).script(held(&["cat marker"])));
    stage.until_log(user, "waits").await?;
    let second = stage.run(wake(&key)).await?;
    refused(&stage, &second, "EnvironmentInUse", "in use by another job").await?;
    on(&stage.hosts[0], "touch /tmp/go").await?;
    let user = stage.until_over(user).await?;
    ensure!(user.state == JobState::Success && user.log_contains("kept"), "{}", told(&user));
    traces::end(stage).await
}

/// Makes an object as the operator would, while that is away: it would give up one without a status.
async fn forge(stage: &Stage, object: &Value, status: &Value) -> Result<()> {
    let operator = stage.operator()?;
    operator.kill()?;
    stage.apply(object).await?;
    let name = text(&object["metadata"]["name"]);
    let patch = json!({ "status": status }).to_string();
    stage.kubectl(&["patch", "senv", &name, "--subresource=status", "--type=merge", "-p", &patch]).await?;
    stage.gitlab.client_restarted();
    operator.start_again().await
}

#[tokio::test]
async fn an_object_made_by_hand_for_an_environment_the_host_does_not_know_opens_nothing() -> Result<()> {
    let stage = Stage::start("forged", setting()).await?;
    let (_, key) = put_to_sleep(&stage, job("real").script(["echo kept > marker"])).await?;
    let real = environment(&stage, &key).await?;
    let id = "zzzzzzzzzzzzzzzzzzzz";
    let forged_key = format!("{}={id}", key.rsplit_once('=').context("the key has no environment id")?.0);
    let name = object_of(&forged_key)?;
    let mut spec = real["spec"].clone();
    spec["environmentId"] = json!(id);
    spec["origin"]["slot"] = json!(1);
    let forged = json!({
        "apiVersion": "dormouse.dev/v1alpha1",
        "kind": "SuspendedEnvironment",
        "metadata": { "name": name, "namespace": stage.namespace },
        "spec": spec,
    });
    let mut second = forged.clone();
    second["metadata"]["name"] = json!(format!("{POOL}-second"));
    let error = stage.apply(&second).await.err().context("an object of another name was taken")?;
    ensure!(format!("{error:#}").contains("an environment has one object"), "{error:#}");

    let status = json!({ "phase": "Suspended", "tier": "Hot", "environmentKey": forged_key, "revision": 0 });
    forge(&stage, &forged, &status).await?;
    let job = stage.run(wake(&forged_key)).await?;
    refused(&stage, &job, "UnknownToHost", "the instance has no record of the environment").await?;
    stage
        .until_object("senv", &name, "it is said to be unknown to its host", |environment| {
            condition(environment, "Verified") == ("False".to_owned(), "UnknownToHost".to_owned())
                && condition(environment, "Stalled").0 == "True"
        })
        .await?;
    // Deleting the forgery releases nothing of the real one.
    stage.kubectl(&["delete", "senv", &name, "--timeout=60s"]).await?;
    ensure!(on(&stage.hosts[0], "cat ~/builds/0/group/project/marker").await? == "kept");
    stage.asleep(&key).await?;
    traces::end(stage).await
}
