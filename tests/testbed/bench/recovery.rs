//! How soon a new holder has everything in hand again, with a thousand jobs and ten thousand environments.

use std::time::Instant;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::super::control_plane::audit;
use super::super::crowd::{Crowd, PATIENCE, Size};
use super::super::gitlab::JobSpec;
use super::super::wait::until;
use super::Options;
use super::arrivals::Arrivals;
use super::budget::{Report, Series};
use super::{figures, load};

/// Room for all of them.
const SIZE: Size = Size { hosts: 176, slots: 64 };

/// Environments that come to their time while nobody holds the pool.
const DUE: usize = 100;

/// Kills the operator and starts it again.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let jobs = options.repeat(1000, 50);
    let environments = options.repeat(10_000, 500);
    let mut crowd = Crowd::gather("recovery", SIZE, json!({})).await?;
    let far = Timestamp::now() + SignedDuration::from_hours(100);
    let names = crowd.keep(0..environments, |_| far).await?;
    crowd.raise().await?;
    let gitlab = crowd.stage.gitlab.clone();
    let job = || JobSpec::new("open").script(["tick 1000"]);
    let ids = Arrivals::new(5, 20.0).enqueue(&gitlab, jobs, job).await;
    let running = ids.iter().map(|id| gitlab.wait_for_log(*id, "tick 3\n", PATIENCE));
    try_join_all(running).await.with_context(|| crowd.stage.operator_log())?;
    crowd.stage.operator()?.kill()?;
    gitlab.client_restarted();
    let api = crowd.environments_api().await?;
    let patch = json!({ "spec": { "expiresAt": Timestamp::now() } });
    for name in names.iter().take(DUE) {
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    crowd.stage.give_up_lease().await?;
    let log = crowd.stage.cluster.control_plane.audit_log().to_owned();
    let mark = audit::length(&log)?;
    let attached_before = crowd.calls("attach");
    let (began, began_at) = (Instant::now(), Timestamp::now());
    crowd.stage.operator()?.start_again().await?;
    until("every job is attached to", PATIENCE, async || {
        Ok((crowd.calls("attach") >= attached_before + jobs).then_some(()))
    })
    .await
    .with_context(|| crowd.stage.operator_log())?;
    let attached = began.elapsed().as_secs_f64();
    let mut last = began_at;
    until("all that is due is let go of", PATIENCE, async || {
        let calls = audit::calls(&log, mark)?;
        let deleted = calls.iter().filter(|call| {
            call.verb == "delete"
                && call.resource == "suspendedenvironments"
                && call.namespace == crowd.stage.namespace
        });
        let deleted: Vec<Timestamp> = deleted.map(|call| call.at).collect();
        last = deleted.iter().copied().max().unwrap_or(last);
        Ok((deleted.len() >= DUE).then_some(()))
    })
    .await
    .with_context(|| crowd.stage.operator_log())?;
    let x = figures::count(jobs);
    let mut to_jobs = Series::new("recovery-jobs-attached", "open jobs", "s");
    to_jobs.add(x, attached);
    let mut to_due = Series::new("recovery-due-let-go", "open jobs", "s");
    to_due.add(x, figures::milliseconds(began_at, last) / 1000.0);
    report.plot(to_jobs);
    report.plot(to_due);
    crowd.let_jobs_end();
    try_join_all(ids.iter().map(|id| gitlab.wait_until_over(*id, PATIENCE))).await?;
    crowd.ensure_clean()?;
    load::leave(crowd.stage).await
}
