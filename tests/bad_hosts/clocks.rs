//! Clocks that are off by an hour, of the operator and of a host: nothing expires, waits or times out by them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::json;

use super::{ensure_next_job_runs, lease};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;
use crate::traces::{self, on, text, told};

const OFFSET: &str = "DORMOUSE_CLOCK_OFFSET_SECONDS";

/// Restarts the stage's operator with a clock that is off.
async fn shift(stage: &Stage, seconds: Option<&str>) -> Result<()> {
    let operator = stage.operator()?;
    let noticed =
        || Ok::<_, anyhow::Error>(operator.log()?.matches("clock and the API server's differ").count());
    let before = noticed()?;
    operator.kill()?;
    stage.gitlab.client_restarted();
    stage.give_up_lease().await?;
    operator.set_variable(OFFSET, seconds);
    operator.start_again().await?;
    until("it has noticed", SOON, async || Ok((noticed()? > before).then_some(()))).await
}

fn time(text: &str) -> Result<Timestamp> {
    text.parse().with_context(|| format!("{text:?} is no time"))
}

#[tokio::test]
async fn an_operator_whose_clock_is_off_expires_nothing_too_early_and_stamps_as_the_others_do() -> Result<()>
{
    let pool = json!({ "retention": { "defaultTTL": "30m" }, "instanceAcquireTimeout": "10m" });
    let stage = Stage::start("clock", Setting::pool(pool)).await?;
    let sleeper = || JobSpec::new("sleeper").suspendable().suspend_on_success().script(["echo kept > file"]);
    let first = stage.run(sleeper()).await?;
    let key = first.environment_key.clone().unwrap_or_default();
    let stamped = stage.asleep(&key).await?;
    // A job that waits for the slot: an hour more or less must not count as waiting.
    let resume = || JobSpec::new("wake").suspendable().suspend_on_success().environment_key(&key);
    for offset in ["3600", "-3600"] {
        let waits = stage.gitlab.enqueue(JobSpec::new("waits").script(["echo had its slot"]));
        stage
            .until_object("joblease", &format!("{POOL}-{waits}"), "it waits for a slot", |lease| {
                lease["status"]["instance"].is_null()
            })
            .await?;
        // It dies soon, and a lease without its payload would only be closed.
        let payload = format!("{POOL}-{waits}-payload-0");
        until("the job's payload is kept", SOON, async || stage.get("secret", &payload).await.map(Some))
            .await?;
        shift(&stage, Some(offset)).await?;
        stage.until_hosts("Ready").await?;
        let asleep = stage.asleep(&key).await?;
        ensure!(asleep["spec"]["expiresAt"] == stamped["spec"]["expiresAt"], "{asleep:#}");
        // Woken and put to sleep again, it is stamped by the same time as before.
        let woken = stage.run(resume().script(["cat file"])).await?;
        ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
        let again = stage.asleep(&key).await?;
        let moved = time(&text(&again["spec"]["expiresAt"]))?
            .duration_since(time(&text(&stamped["spec"]["expiresAt"]))?);
        ensure!(moved.as_secs() < 15 * 60 && moved.as_secs() > -60, "{offset}: {again:#}");
        let waiting = lease(&stage, waits).await?;
        ensure!(waiting["status"]["phase"] != "Failed", "{waiting:#}");
        stage.gitlab.cancel(waits);
        stage.until_over(waits).await?;
        // Put back, so that the next round begins as this one did.
        let expires = json!({ "spec": { "expiresAt": stamped["spec"]["expiresAt"] } }).to_string();
        let name = text(&again["metadata"]["name"]);
        stage.kubectl(&["patch", "suspendedenvironment", &name, "--type=merge", "-p", &expires]).await?;
    }
    // One that is due is due, whatever the operator's own clock says.
    let due = (Timestamp::now() + Duration::from_secs(2)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let name = text(&stamped["metadata"]["name"]);
    let patch = json!({ "spec": { "expiresAt": due } }).to_string();
    stage.kubectl(&["patch", "suspendedenvironment", &name, "--type=merge", "-p", &patch]).await?;
    stage.until_none("suspendedenvironments").await?;
    ensure_next_job_runs(&stage).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_host_whose_clock_is_off_keeps_every_limit_and_only_dates_its_lines_by_it() -> Result<()> {
    for (name, offset) in [("host-ahead", 3600), ("host-behind", -3600)] {
        let mut stage = Stage::without_operator(name, &Setting::pool(json!({}))).await?;
        if super::left_out(&stage).await {
            return Ok(());
        }
        // As sshd hands it to every session, the supervisor's too.
        let config = "/etc/ssh/bed_sshd_config";
        stage.hosts[0].exec_root(&format!("echo 'SetEnv {OFFSET}={offset}' >> {config}")).await?;
        stage.hosts[0].reboot().await?;
        stage.raise(json!({ "retention": { "defaultTTL": "20m" } })).await?;
        stage.until_hosts("Ready").await?;
        ensure!(on(&stage.hosts[0], &format!("echo ${OFFSET}")).await? == offset.to_string());

        let sleeper = JobSpec::new("sleeper").suspendable().suspend_on_success();
        let first = stage.run(sleeper.timeout(Duration::from_secs(60)).script(["echo kept > file"])).await?;
        ensure!(first.state == JobState::Success, "{}", told(&first));
        let over = stage.lease_over(first.id).await?;
        let own = time(&text(&over["spec"]["acceptedAt"]))?;
        let hosts = time(&text(&over["status"]["startedAt"]))?;
        let ahead = hosts.duration_since(own).as_secs();
        ensure!((ahead - offset).abs() < 300, "the host's clock is not off: {over:#}");
        let key = first.environment_key.clone().unwrap_or_default();
        let asleep = stage.asleep(&key).await?;
        let left = time(&text(&asleep["spec"]["expiresAt"]))?.duration_since(Timestamp::now()).as_secs();
        ensure!((15 * 60..=20 * 60).contains(&left), "{asleep:#}");

        let late = JobSpec::new("late").suspendable().environment_key(&key);
        let late = stage.run(late.timeout(Duration::from_secs(2)).script(["cat file; sleep 600"])).await?;
        ensure!(late.failure_reason.as_deref() == Some("job_execution_timeout"), "{}", told(&late));
        stage.lease_over(late.id).await?;
        let woken = JobSpec::new("wake").suspendable().environment_key(&key).script(["cat file"]);
        let woken = stage.run(woken).await?;
        ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
        traces::end(stage).await?;
    }
    Ok(())
}
