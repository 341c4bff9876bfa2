//! Host keys: recorded at the first use, pinned, changed, and trusted again by a person's word.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{POOL, Setting, Stage, host};

/// The recorded key of the only host.
async fn recorded(stage: &Stage) -> Result<Value> {
    Ok(host(&stage.get("runnerpool", POOL).await?, "alder")["recordedHostKey"].clone())
}

/// The pool's hosts with this pinned key.
fn pinned(stage: &Stage, key: &str) -> Value {
    let alder = &stage.hosts[0];
    let host = json!({
        "name": "alder", "address": alder.address().to_string(), "port": alder.port(), "hostKey": key,
    });
    json!({ "provider": { "static": { "hosts": [host] } } })
}

/// The host comes back as a reinstalled machine does: another key, no connection of before.
async fn reinstall(stage: &Stage) -> Result<()> {
    stage.hosts[0].new_host_key().await?;
    stage.hosts[0].reboot().await
}

async fn expect_refusal(stage: &Stage) -> Result<()> {
    let message = stage.until_host("alder", "KeyRefused").await?;
    ensure!(message.contains("it offers the key SHA256:"), "{message}");
    let message = stage.until_finding("HostKeysTrusted", "False", "HostKeyRefused").await?;
    ensure!(message.contains("remove the recorded one from status.hosts"), "{message}");
    let note = stage.until_told("HostKeysTrusted", "HostKeyRefused").await?;
    ensure!(note.contains("alder") && note.contains("it offers the key SHA256:"), "{note}");
    stage.until_finding("Polling", "False", "NoReachableHost").await?;
    Ok(())
}

async fn expect_work(stage: &Stage) -> Result<()> {
    stage.until_hosts("Ready").await?;
    stage.until_finding("HostKeysTrusted", "True", "KeysAsExpected").await?;
    let over = stage.run(JobSpec::new("job").script(["echo trusted"])).await?;
    ensure!(over.state == JobState::Success, "{}", over.log_text());
    Ok(())
}

#[tokio::test]
async fn a_first_key_is_recorded_and_another_one_refused_until_the_record_is_removed() -> Result<()> {
    let stage = Stage::start("firstuse", Setting::pool(json!({}))).await?;
    let first = stage.hosts[0].host_key()?;
    ensure!(recorded(&stage).await? == json!(first), "{}", recorded(&stage).await?);
    let event = stage.until_event("HostKeyRecorded").await?;
    let note = event["message"].as_str().unwrap_or_default();
    ensure!(note.contains("alder") && note.contains(&first), "{event:#}");

    reinstall(&stage).await?;
    expect_refusal(&stage).await?;
    ensure!(recorded(&stage).await? == json!(first), "a changed key took the place of the recorded one");

    let forget = r#"[{"op": "remove", "path": "/status/hosts/0/recordedHostKey"}]"#;
    stage
        .kubectl(&["patch", "runnerpool", POOL, "--subresource=status", "--type=json", "-p", forget])
        .await?;
    expect_work(&stage).await?;
    ensure!(recorded(&stage).await? == json!(stage.hosts[0].host_key()?));
    stage.end().await
}

#[tokio::test]
async fn a_recorded_key_is_known_to_the_next_operator() -> Result<()> {
    let stage = Stage::start("record", Setting::pool(json!({}))).await?;
    stage.operator()?.kill()?;
    stage.gitlab.client_restarted();
    reinstall(&stage).await?;
    stage.operator()?.start_again().await?;
    expect_refusal(&stage).await?;
    // The way out that needs no look into the status.
    stage.apply_pool(pinned(&stage, &stage.hosts[0].host_key()?)).await?;
    expect_work(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn a_host_with_another_key_than_the_pinned_one_is_refused_until_the_pin_is_right() -> Result<()> {
    let setting = Setting::pool(json!({})).hosts(&["alder", "birch"]);
    let mut stage = Stage::without_operator("pinned", &setting).await?;
    let wrong = stage.hosts[1].host_key()?;
    stage.hosts.truncate(1);
    stage.raise(pinned(&stage, &wrong)).await?;
    let message = stage.until_host("alder", "KeyRefused").await?;
    ensure!(message.contains("expected SHA256:"), "{message}");
    ensure!(recorded(&stage).await?.is_null(), "a refused key was recorded");
    stage.apply_pool(pinned(&stage, &stage.hosts[0].host_key()?)).await?;
    expect_work(&stage).await?;
    // The connection in use ends with the trust it was made with.
    stage.apply_pool(pinned(&stage, &wrong)).await?;
    stage.until_host("alder", "KeyRefused").await?;
    stage.end().await
}

#[tokio::test]
async fn a_pool_that_wants_pinned_keys_uses_no_host_without_one() -> Result<()> {
    let mut stage = Stage::without_operator("nopin", &Setting::pool(json!({}))).await?;
    let policy = json!({ "hostKeyPolicy": "Pinned" });
    stage.raise(json!({ "ssh": policy })).await?;
    let message = stage.until_host("alder", "KeyRefused").await?;
    ensure!(message.contains("spec.ssh.hostKeyPolicy is Pinned and the host has no hostKey"), "{message}");
    let mut changes = pinned(&stage, &stage.hosts[0].host_key()?);
    changes["ssh"] = policy;
    stage.apply_pool(changes).await?;
    expect_work(&stage).await?;
    ensure!(recorded(&stage).await?.is_null(), "a pinned key needs no record");
    stage.end().await
}
