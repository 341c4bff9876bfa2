//! How often a job makes the API server write, from its audit log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::super::control_plane::audit::{self, Write};
use super::super::stage::{SOON, Setting, Stage};
use super::super::wait::until;
use super::Options;
use super::budget::{Bound, Budget, Report};
use super::{figures, load};

const PLAIN: Budget = Budget { name: "api-writes-per-job", bound: Bound::AtMost, limit: 8.0, unit: "writes" };
const SUSPENDED: Budget =
    Budget { name: "api-writes-per-suspend", bound: Bound::AtMost, limit: 14.0, unit: "writes" };

/// Nothing was written for so long: whatever was to be written has been. Longer than the pauses of every retry and
/// every gathering of status changes.
const QUIET: Duration = Duration::from_secs(5);

/// Counts the writes of plain jobs and of jobs that are suspended.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let jobs = options.repeat(10, 3);
    let setting = Setting {
        pool: json!({
            "capacityPerInstance": jobs, "isolation": "Shared", "concurrency": jobs,
            "suspension": { "slotFloor": 0 },
        }),
        ..Setting::default()
    };
    let stage = Stage::start("writes", setting).await?;
    for (budget, suspended) in [(PLAIN, false), (SUSPENDED, true)] {
        until_quiet(&stage).await?;
        let before = written(&stage)?.len();
        for _ in 0..jobs {
            let job = load::trivial("count");
            let job = if suspended { job.suspendable().suspend_on_success() } else { job };
            load::run_alone(&stage, job).await?;
        }
        // A finished lease is kept for people for a while; that it goes in the end belongs to the job.
        stage.kubectl(&["delete", "jobleases", "--all"]).await?;
        until_quiet(&stage).await?;
        let all = written(&stage)?;
        let new = all.get(before..).unwrap_or_default();
        let figure = figures::count(new.len()) / figures::count(jobs);
        let kinds = kinds(new, jobs);
        let method = format!(
            "creates, updates, patches and deletes in the pool's namespace by the API server's audit log, without \
             Events and Lease renewals, from the hand-out of {jobs} jobs, one at a time, to the deletion of their \
             leases, for each job: {kinds}"
        );
        eprintln!("{}: {kinds}", budget.name);
        report.add(budget, figure, method, &[]);
    }
    load::leave(stage).await
}

/// All counted writes in the stage's namespace so far.
fn written(stage: &Stage) -> Result<Vec<Write>> {
    let mut writes = audit::writes(stage.cluster.control_plane.audit_log())?;
    writes.retain(|write| write.is_counted() && write.namespace == stage.namespace);
    Ok(writes)
}

async fn until_quiet(stage: &Stage) -> Result<()> {
    let mut last = (0, Instant::now());
    until("the pool's namespace is quiet", SOON, async || {
        let count = written(stage)?.len();
        if count != last.0 {
            last = (count, Instant::now());
        }
        Ok((last.1.elapsed() >= QUIET).then_some(()))
    })
    .await
}

/// What was written how often for each job, most often first.
fn kinds(writes: &[Write], jobs: usize) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for write in writes {
        *counts.entry(format!("{} {}", write.verb, write.resource)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let each = |(kind, count): (String, usize)| {
        format!("{} {kind}", figures::shown(figures::count(count) / figures::count(jobs)))
    };
    counts.into_iter().map(each).collect::<Vec<_>>().join(", ")
}
