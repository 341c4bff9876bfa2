//! How a resumed job's own end decides about its environment, and that a full pool still serves resumes.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{environment, job, key_of, object_of, put_to_sleep, until_gone};
use crate::testbed::gitlab::JobState;
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, event, on, text, told, until_on};

const WORKSPACE: &str = "~/builds/0/group/project";

#[tokio::test]
async fn a_resumed_job_with_a_trigger_sleeps_again_under_the_same_key() -> Result<()> {
    let stage = Stage::start("again", Setting::default()).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo one >> rounds"])).await?;
    let before = environment(&stage, &key).await?;
    ensure!(before["status"]["revision"] == 0 && before["status"]["tier"] == "Hot", "{before:#}");

    // Longer than the second that times are rounded to.
    let again = job("again").environment_key(&key).suspend_on_failure();
    let again = stage.run(again.script(["sleep 1.1", "echo two >> rounds", "cat rounds", "exit 6"])).await?;
    ensure!((again.state, again.exit_code) == (JobState::Failed, Some(6)), "{}", told(&again));
    ensure!(key_of(&again)? == key, "{:?}", again.environment_key);
    for line in [format!("Job environment resumed: {key}"), format!("Job environment suspended: {key}")] {
        ensure!(again.log_contains(&line), "{line}: {}", again.log_text());
    }
    stage.lease_over(again.id).await?;
    let after = environment(&stage, &key).await?;
    ensure!(after["status"]["revision"] == 1 && after["status"]["phase"] == "Suspended", "{after:#}");
    ensure!(after["metadata"]["uid"] == before["metadata"]["uid"]);
    ensure!(after["spec"]["origin"] == before["spec"]["origin"], "the origin is the first job's");
    for time in ["expiresAt", "notAfter"] {
        ensure!(
            text(&after["spec"][time]) > text(&before["spec"][time]),
            "{time} was not stamped anew: {after:#}"
        );
    }
    ensure!(
        after["status"]["boundLease"].is_null() && after["status"]["lastAccident"].is_null(),
        "{after:#}"
    );
    until_on(&stage.hosts[0], &format!("cat {WORKSPACE}/rounds | tr '\\n' ' '"), "one two").await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_resumed_job_without_a_trigger_releases_its_environment_however_its_script_ends() -> Result<()> {
    let stage = Stage::start("release", Setting::default()).await?;
    for (script, state) in [("true", JobState::Success), ("exit 2", JobState::Failed)] {
        let background = "(exec -a left-behind sleep 4242) & disown";
        let (_, key) = put_to_sleep(&stage, job("first").script(["touch marker", background])).await?;
        ensure!(on(&stage.hosts[0], "pgrep -c sleep").await? == "1");
        let last = job("last").environment_key(&key).suspend_on_success();
        let last = if state == JobState::Success { job("last").environment_key(&key) } else { last };
        let last = stage.run(last.script(["ls marker", script])).await?;
        ensure!(last.state == state && last.environment_key.is_none(), "{}", told(&last));
        event(&stage, &object_of(&key)?, "Released").await?;
        until_gone(&stage, &key).await?;
        until_on(&stage.hosts[0], &format!("ls -d {WORKSPACE} 2>/dev/null || echo none"), "none").await?;
        until_on(&stage.hosts[0], "pgrep -c sleep || true", "0").await?;
    }
    traces::end(stage).await
}

#[tokio::test]
async fn a_pool_whose_slots_all_sleep_still_receives_and_serves_the_resume() -> Result<()> {
    let pool = json!({ "suspension": { "slotFloor": 0 } });
    let stage = Stage::start("full", Setting { pool, ..Setting::default() }).await?;
    let (_, key) = put_to_sleep(&stage, job("first").script(["echo kept > marker"])).await?;
    let plain = stage.gitlab.enqueue(job("plain").script(["echo plain ran"]));
    stage
        .until_object("joblease", &format!("pool-{plain}"), "it waits", |lease| {
            lease["spec"]["jobId"] == plain.0
        })
        .await?;
    let woken = stage.run(job("wake").environment_key(&key).script(["cat marker"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    // The slot is free by that: the job that waited for one gets it, in an environment of its own.
    let plain = stage.until_over(plain).await?;
    ensure!(plain.state == JobState::Success && plain.log_contains("plain ran"), "{}", told(&plain));
    ensure!(plain.running_at > woken.running_at, "a plain job took a sleeping environment's slot");
    traces::end(stage).await
}
