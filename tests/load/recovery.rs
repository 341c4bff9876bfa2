//! What a new holder does first: the jobs, then what is due, then the rest.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::testbed::control_plane::audit::{self, Call};
use crate::testbed::crowd::{Crowd, PATIENCE, Size};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::wait::until;

const JOBS: usize = 12;
const DUE: usize = 60;
const REST: usize = 240;

/// Steps for environments that are under way at a time; one that was begun is not waited for by a more urgent one.
const AT_ONCE: usize = 16;

/// The operator is killed with jobs running; meanwhile environments come to their time, and others have something to
/// be said of. The next one attaches to the jobs of a host before it asks that host for its environments, and lets go
/// of what is due before it says the rest.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_jobs_come_first_then_what_is_due_then_the_rest() -> Result<()> {
    let mut crowd = Crowd::gather("recovery", Size { hosts: 6, slots: 60 }, json!({})).await?;
    let now = Timestamp::now();
    let later = now + SignedDuration::from_hours(100);
    let names = crowd.keep(0..DUE + REST, |_| later).await?;
    crowd.raise().await?;
    let gitlab = crowd.stage.gitlab.clone();
    let ids: Vec<_> = (0..JOBS).map(|_| gitlab.enqueue(JobSpec::new("open").script(["tick 200"]))).collect();
    let running = ids.iter().map(|id| gitlab.wait_for_log(*id, "tick 3\n", PATIENCE));
    try_join_all(running).await.with_context(|| crowd.stage.operator_log())?;
    until("every lease says that its job runs", PATIENCE, async || {
        let leases = crowd.stage.list("jobleases").await?;
        let running = leases.iter().filter(|lease| lease["status"]["phase"] == "Running").count();
        Ok((running == JOBS).then_some(()))
    })
    .await?;

    crowd.stage.operator()?.kill()?;
    gitlab.client_restarted();
    let api = crowd.environments_api().await?;
    for (number, name) in names.iter().enumerate() {
        // The end of its time, or nothing said of it: both wait for the next holder.
        if number < DUE {
            let patch = json!({ "spec": { "expiresAt": now } });
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        } else {
            let patch = json!({ "status": { "conditions": [] } });
            api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
    }
    let killed_at = Timestamp::now();
    let log = crowd.stage.cluster.control_plane.audit_log().to_owned();
    let mark = audit::length(&log)?;
    crowd.stage.give_up_lease().await?;
    crowd.stage.operator()?.start_again().await?;
    let mut writes = Vec::new();
    until("what was due is let go of and the rest is said", PATIENCE, async || {
        writes = environment_writes(&crowd, &audit::calls(&log, mark)?);
        let deleted = writes.iter().filter(|call| call.verb == "delete").count();
        let said = writes.iter().filter(|call| call.verb == "update").count();
        Ok((deleted >= DUE && said >= REST).then_some(()))
    })
    .await
    .with_context(|| crowd.stage.operator_log())?;

    for host in &crowd.hosts {
        let calls: Vec<_> = host.calls().into_iter().filter(|call| call.at > killed_at).collect();
        let first_list = calls.iter().position(|call| call.verb == "list").context("it was never asked")?;
        let attached = calls.iter().rposition(|call| call.verb == "attach");
        ensure!(attached.is_none_or(|attached| attached < first_list), "{}: {calls:#?}", host.name());
    }
    ensure!(crowd.calls("attach") >= JOBS, "not every job was attached to");
    let last_delete = writes.iter().rposition(|call| call.verb == "delete").context("nothing was deleted")?;
    let said_before = writes.iter().take(last_delete).filter(|call| call.verb == "update").count();
    ensure!(said_before <= 2 * AT_ONCE, "{said_before} of the rest came before the last that was due");

    crowd.let_jobs_end();
    let ended = ids.iter().map(|id| gitlab.wait_until_over(*id, PATIENCE));
    for view in try_join_all(ended).await.with_context(|| crowd.stage.operator_log())? {
        ensure!(view.state == JobState::Success, "{view:?}");
    }
    crowd.leave().await
}

/// The operator's writes to environments, in the order they came.
fn environment_writes(crowd: &Crowd, calls: &[Call]) -> Vec<Call> {
    let mut writes: Vec<Call> = calls
        .iter()
        .filter(|call| call.namespace == crowd.stage.namespace)
        .filter(|call| {
            call.resource == "suspendedenvironments" && call.user.starts_with("system:serviceaccount:")
        })
        .filter(|call| ["delete", "update"].contains(&call.verb.as_str()))
        .cloned()
        .collect();
    writes.sort_by_key(|call| call.at);
    writes
}
