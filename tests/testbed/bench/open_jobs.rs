//! What one leader takes for 1, 20, 100 and 1,000 open jobs, on light hosts.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::json;

use super::super::crowd::{Crowd, PATIENCE, Size};
use super::super::gitlab::{JobId, JobSpec, JobState, JobView};
use super::Options;
use super::arrivals::Arrivals;
use super::budget::{Bound, Budget, Report, Series};
use super::{figures, load, usage};

const MEMORY: Budget =
    Budget { name: "open-jobs-1000-memory", bound: Bound::Below, limit: 200.0, unit: "MiB" };

/// Hosts and slots: room for the most jobs at once.
const SIZE: Size = Size { hosts: 20, slots: 50 };

/// The mean rate at which jobs come.
const PER_SECOND: f64 = 20.0;

/// What the arrivals begin with: the same jobs come at the same times in every run.
const SEED: u64 = 4;

/// Each job prints a line this often, and GitLab asks for the log every three seconds, as it does while somebody reads
/// along.
const LINE_EVERY: Duration = Duration::from_secs(1);
const UPDATE_INTERVAL: u64 = 3;

/// Opens more and more jobs and looks at the operator each time.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let mut crowd = Crowd::gather("open-jobs", SIZE, json!({})).await?;
    crowd.raise().await?;
    let pid = crowd.stage.operator()?.pid().context("the operator does not run")?;
    let mut arrivals = Arrivals::new(SEED, PER_SECOND);
    let mut ids: Vec<JobId> = Vec::new();
    let mut memory = Series::new("open-jobs-memory", "open jobs", "MiB");
    let mut processor = Series::new("open-jobs-processor", "open jobs", "% of one processor");
    let mut first_byte = Series::new("open-jobs-first-byte-p95", "open jobs", "ms");
    let mut writes = Series::new("open-jobs-writes-to-open-one", "open jobs", "writes");
    let counts: &[usize] = if options.quick { &[1, 20, 100] } else { &[1, 20, 100, 1000] };
    let settle = Duration::from_secs(if options.quick { 10 } else { 30 });
    let mut method = String::new();
    for count in counts {
        let more = count - ids.len();
        let written_before = crowd.stage.writes()?.len();
        let new = arrivals.enqueue(&crowd.stage.gitlab, more, job).await;
        let started = new.iter().map(|id| crowd.stage.gitlab.wait_for_log(*id, "tick 1\n", PATIENCE));
        let views = try_join_all(started).await.with_context(|| crowd.stage.operator_log())?;
        let waits = views.iter().map(wait).collect::<Result<Vec<_>>>()?;
        let written = crowd.stage.writes()?.len() - written_before;
        ids.extend(new);
        for id in &ids {
            crowd.stage.gitlab.set_update_interval(*id, UPDATE_INTERVAL);
        }
        let (before, after) = usage::over(pid, settle).await?;
        let x = figures::count(*count);
        memory.add(x, after.resident);
        processor.add(x, after.processor_since(&before));
        first_byte.add(x, figures::percentile(&waits, 95)?);
        writes.add(x, figures::count(written) / figures::count(more));
        method = format!(
            "resident memory of the operator with {count} open jobs on {} light hosts, {} s after the last one printed its \
             first line; each prints a line every {} s and its log goes to GitLab every {UPDATE_INTERVAL} s; jobs came as a \
             Poisson process of {PER_SECOND} a second, seed {SEED}; the most it ever had was {} MiB",
            SIZE.hosts,
            settle.as_secs(),
            LINE_EVERY.as_secs(),
            figures::shown(after.peak),
        );
    }
    let largest = memory.last().context("nothing was measured")?;
    if !options.quick {
        report.add(MEMORY, largest, method, &[]);
    }
    let connections: usize = crowd.hosts.iter().map(|host| host.connections()).sum();
    eprintln!("{} jobs on {connections} SSH connections", ids.len());
    for series in [memory, processor, first_byte, writes] {
        report.plot(series);
    }
    crowd.let_jobs_end();
    let ended = ids.iter().map(|id| crowd.stage.gitlab.wait_until_over(*id, PATIENCE));
    for view in try_join_all(ended).await.with_context(|| crowd.stage.operator_log())? {
        ensure_whole(&view)?;
    }
    crowd.ensure_clean()?;
    load::leave(crowd.stage).await
}

/// A job that stays open until all may end.
fn job() -> JobSpec {
    JobSpec::new("open").script([format!("tick {}", LINE_EVERY.as_millis())])
}

/// From its hand-out to its first line in GitLab, in milliseconds.
fn wait(view: &JobView) -> Result<f64> {
    let picked_up = view.picked_up_at.context("the job was never handed out")?;
    let arrived = view.arrived_at("tick 1\n").context("its first line never arrived")?;
    Ok(figures::milliseconds(picked_up, arrived))
}

/// Fails unless every line of the job is in its log once.
fn ensure_whole(view: &JobView) -> Result<()> {
    let log = view.log_text();
    ensure!(view.state == JobState::Success, "job {} ended as {:?}:\n{log}", view.id, view.state);
    let ticks =
        log.lines().find_map(|line| line.strip_prefix("ticks=")).context("it did not count its lines")?;
    let seen: Vec<u64> = log
        .lines()
        .filter_map(|line| line.strip_prefix("tick "))
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let distinct: BTreeSet<u64> = seen.iter().copied().collect();
    let expected = ticks.parse::<usize>()?;
    ensure!(
        seen.len() == expected && distinct.len() == expected,
        "job {} has {} lines, {} of them different, of {expected}",
        view.id,
        seen.len(),
        distinct.len(),
    );
    Ok(())
}
