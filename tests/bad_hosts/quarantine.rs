//! A host is lost under a job for longer than the grace: the job fails, and its slot takes no other one before the host
//! has said that nothing of it is left.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{counting, ensure_next_job_runs, ensure_system_failure, lease, until_seen_clean};
use crate::testbed::gitlab::{JobId, JobSpec, JobState};
use crate::testbed::hosts::Line;
use crate::testbed::stage::{POOL, Setting, Stage, condition};
use crate::traces::{self, on, until_on};

const GRACE: &str = "2s";

/// Runs a job on the first host and takes that host away until the job is given up.
async fn lose(stage: &Stage, job: JobSpec) -> Result<JobId> {
    let id = stage.gitlab.enqueue(job);
    stage.until_log(id, "line 2").await?;
    stage.hosts[0].cut(Line::Refused).await?;
    let lost = stage.until_over(id).await?;
    ensure_system_failure(&lost, "instance alder has not been reachable for 2 s (spec.connectionGrace): ")?;
    stage.lease_over(id).await?;
    let doubted = lease(stage, id).await?;
    ensure!(
        condition(&doubted, "SlotClean") == ("False".to_owned(), "NotSeenClean".to_owned()),
        "{doubted:#}"
    );
    let message = stage.until_finding("SlotsClean", "False", "Quarantined").await?;
    ensure!(message.contains("slot 0 of alder"), "{message}");
    stage.until_event("SlotQuarantined").await?;
    Ok(id)
}

#[tokio::test]
async fn a_slot_takes_no_job_until_its_host_is_seen_clean_whoever_asks() -> Result<()> {
    let stage = Stage::start("quarantine", Setting::pool(json!({ "connectionGrace": GRACE }))).await?;
    if super::left_out(&stage).await {
        return stage.end().await;
    }
    // A mount in its workspace keeps what the job leaves from being removed.
    let job = JobSpec::new("lost")
        .script(["mkdir held; mount -t tmpfs none held", "echo line 1; echo line 2; exec sleep 6543"]);
    let id = lose(&stage, job).await?;
    stage.hosts[0].heal().await?;
    stage.until_hosts("Ready").await?;
    // The host answers and the job's processes are ended, but not all of it goes: the slot stays closed.
    until_on(&stage.hosts[0], "pgrep -fc '[s]leep 6543' || true", "0").await?;
    let waits = stage.gitlab.enqueue(JobSpec::new("waits").script(["echo all is well"]));
    // Nor does another holder open it: the doubt stands in the lease.
    stage.succeed_operator().await?;
    stage.until_finding("SlotsClean", "False", "Quarantined").await?;
    stage.until_finding("CapacityAvailable", "False", "SlotsInUse").await?;
    stage.until_finding("Polling", "False", "NoSlot").await?;
    ensure!(stage.gitlab.job(waits).is_some_and(|job| job.state == JobState::Pending));

    on(&stage.hosts[0], "umount ~/builds/0/group/project/held").await?;
    until_seen_clean(&stage, id).await?;
    let over = stage.until_over(waits).await?;
    ensure!(over.log_contains("all is well"), "{}", over.log_text());
    traces::end(stage).await
}

#[tokio::test]
async fn other_slots_work_on_and_a_deleted_lease_stays_until_its_slot_is_clean() -> Result<()> {
    let pool = json!({ "connectionGrace": GRACE });
    let stage = Stage::start("closed", Setting::pool(pool).hosts(&["alder", "birch"])).await?;
    let id = lose(&stage, counting("lost")).await?;
    let next = ensure_next_job_runs(&stage).await?;
    ensure!(stage.lease_over(next.id).await?["status"]["instance"] == "birch");
    let name = format!("{POOL}-{id}");
    stage.kubectl(&["delete", "joblease", &name, "--wait=false"]).await?;
    ensure_next_job_runs(&stage).await?;
    stage.until_finding("SlotsClean", "False", "Quarantined").await?;
    ensure!(lease(&stage, id).await?["metadata"]["deletionTimestamp"].is_string());
    stage.hosts[0].heal().await?;
    stage.kubectl(&["wait", "--for=delete", "joblease", &name, "--timeout=60s"]).await?;
    stage.until_finding("SlotsClean", "True", "NoneInDoubt").await?;
    let next = ensure_next_job_runs(&stage).await?;
    ensure!(stage.lease_over(next.id).await?["status"]["instance"] == "alder");
    stage.end().await
}

#[tokio::test]
async fn a_host_that_leaves_the_pool_takes_its_quarantine_with_it() -> Result<()> {
    let pool = json!({ "connectionGrace": GRACE });
    let stage = Stage::start("leaves", Setting::pool(pool).hosts(&["alder", "birch"])).await?;
    let id = lose(&stage, counting("lost")).await?;
    let mut without = stage.pool(json!({ "connectionGrace": GRACE }))?;
    let hosts = without["spec"]["provider"]["static"]["hosts"].as_array().cloned().unwrap_or_default();
    without["spec"]["provider"]["static"]["hosts"] = hosts.into_iter().skip(1).collect();
    stage.apply(&without).await?;
    stage.until_finding("SlotsClean", "True", "NoneInDoubt").await?;
    stage.kubectl(&["delete", "joblease", &format!("{POOL}-{id}"), "--timeout=60s"]).await?;
    ensure_next_job_runs(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn a_resume_waits_until_what_a_lost_one_left_running_is_asleep_again() -> Result<()> {
    let pool = json!({ "connectionGrace": GRACE });
    let stage = Stage::start("lost-resume", Setting::pool(pool)).await?;
    let first = JobSpec::new("first").suspendable().suspend_on_success().script(["echo kept > file"]);
    let first = stage.run(first).await?;
    let key = first.environment_key.clone().unwrap_or_default();
    stage.asleep(&key).await?;
    let resume = |name: &str| JobSpec::new(name).suspendable().environment_key(key.clone());
    let id = stage.gitlab.enqueue(resume("lost").script(["echo begun; sleep 7654"]));
    stage.until_log(id, "begun").await?;
    stage.hosts[0].cut(Line::Refused).await?;
    let lost = stage.until_over(id).await?;
    ensure_system_failure(&lost, "spec.connectionGrace")?;
    let over = stage.lease_over(id).await?;
    // The environment owns the slot: there is nothing in doubt but what it does.
    ensure!(condition(&over, "SlotClean").0.is_empty(), "{over:#}");
    let again = stage.gitlab.enqueue(
        resume("again").suspend_on_success().script(["pgrep -f 'sleep 765[4]' && exit 9; cat file"]),
    );
    stage.hosts[0].heal().await?;
    let again = stage.until_over(again).await?;
    ensure!(again.state == JobState::Success && again.log_contains("kept"), "{}", again.log_text());
    traces::end(stage).await
}
