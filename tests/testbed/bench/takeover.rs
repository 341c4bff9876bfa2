//! How long a running job's log stands still when its leader ends, and whether a byte is lost or doubled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;

use super::super::gitlab::{JobId, JobSpec, JobState, JobView};
use super::super::operator::Operator;
use super::super::stage::{POOL, Setting, Stage};
use super::Options;
use super::budget::{Bound, Budget, Report};
use super::{figures, load};

const TERMINATED: Budget = Budget { name: "take-over-sigterm", bound: Bound::Below, limit: 2.0, unit: "s" };
const KILLED: Budget = Budget { name: "take-over-sigkill", bound: Bound::Below, limit: 20.0, unit: "s" };
const BYTES: Budget =
    Budget { name: "take-over-bytes-lost-or-doubled", bound: Bound::AtMost, limit: 0.0, unit: "bytes" };

/// Time for a successor to show itself.
const LIMIT: Duration = Duration::from_secs(60);

/// How the leader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Terminated,
    Killed,
}

/// Ends the leader in the middle of a job, while another replica waits.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let stage = Stage::start("takeover", Setting::default()).await?;
    let second = stage.start_operator("operator-b").await?;
    let replicas = [("operator-a_", stage.operator()?), ("operator-b_", &second)];
    let mut bytes = 0;
    for (budget, end) in [(TERMINATED, End::Terminated), (KILLED, End::Killed)] {
        let mut samples = Vec::new();
        for _ in 0..options.repeat(3, 1) {
            // A pool at rest goes to the replica that is to hold it, whichever that is.
            let pool = stage.get("runnerpool", POOL).await?;
            let holder =
                pool.pointer("/status/holder").and_then(|holder| holder.as_str()).unwrap_or_default();
            let leader = replicas.iter().find(|(name, _)| holder.starts_with(name));
            let (_, leader) = leader.with_context(|| format!("{holder:?} holds the pool"))?;
            let (seconds, wrong) = once(&stage, leader, end).await?;
            samples.push(seconds);
            bytes += wrong;
            leader.start_again().await?;
        }
        let method = format!(
            "from the signal to the first log bytes the other replica sends to GitLab, of a job that writes fifty lines a \
             second; the largest of {}",
            samples.len()
        );
        report.add(budget, figures::largest(&samples), method, &samples);
    }
    let method = "bytes of numbered lines missing from GitLab's log, or there twice, over all jobs above; GitLab's own \
                  check of length and CRC-32 passed too";
    report.add(BYTES, figures::count(bytes), method, &[]);
    second.terminate().await?;
    load::leave(stage).await
}

/// Ends the leader once: seconds until the other replica goes on, and the bytes that are wrong in the log.
async fn once(stage: &Stage, leader: &Operator, end: End) -> Result<(f64, usize)> {
    let host = stage.hosts.first().context("the stage has no host")?;
    host.exec_root("rm -f /tmp/enough").await?;
    let script = "number=0; while [ ! -e /tmp/enough ]; do number=$((number + 1)); echo line $number; sleep 0.02; done; \
                  echo lines=$number";
    let id = stage.gitlab.enqueue(JobSpec::new("count").git_strategy_none().script([script]));
    stage.until_log(id, "line 100").await?;
    let known: BTreeSet<u64> = stage.gitlab.requests().iter().map(|request| request.connection).collect();
    stage.gitlab.client_restarted();
    let at = Timestamp::now();
    match end {
        End::Terminated => leader.terminate().await?,
        End::Killed => leader.kill()?,
    }
    let taken_over = |request: &super::super::gitlab::Request| {
        is_log(request, id) && request.at > at && !known.contains(&request.connection)
    };
    stage
        .gitlab
        .wait_for_request(taken_over, LIMIT)
        .await
        .with_context(|| format!("nobody took over; {}", stage.operator_log()))?;
    host.exec_root("touch /tmp/enough").await?;
    let view = stage.until_over(id).await?;
    ensure!(view.state == JobState::Success, "the job ended as {:?}:\n{}", view.state, view.log_text());
    stage.lease_over(id).await?;
    let log: Vec<_> = stage.gitlab.requests().into_iter().filter(|request| is_log(request, id)).collect();
    let last_of_leader =
        log.iter().filter(|request| known.contains(&request.connection)).map(|request| request.at).max();
    let first_of_other = log
        .iter()
        .filter(|request| !known.contains(&request.connection))
        .map(|request| request.at)
        .filter(|at| last_of_leader.is_none_or(|last| *at > last))
        .min()
        .context("the successor sent no log")?;
    Ok((figures::milliseconds(at, first_of_other) / 1000.0, wrong_bytes(&view)?))
}

fn is_log(request: &super::super::gitlab::Request, id: JobId) -> bool {
    request.job == Some(id) && request.method == "PATCH"
}

/// Bytes of lines that are not in the log exactly once.
fn wrong_bytes(view: &JobView) -> Result<usize> {
    let log = view.log_text();
    let last = load::lines(&log).rev().find_map(|line| line.trim_end().strip_prefix("lines="));
    let last: usize =
        last.with_context(|| format!("the job did not say how many lines it wrote:\n{log}"))?.parse()?;
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for line in load::lines(&log).filter(|line| line.starts_with("line ")) {
        *seen.entry(line.trim_end()).or_default() += 1;
    }
    let wrong = (1..=last).map(|number| {
        let line = format!("line {number}");
        let times = seen.remove(line.as_str()).unwrap_or(0);
        times.abs_diff(1) * (line.len() + 1)
    });
    let wrong: usize = wrong.sum();
    // Halves of lines and lines out of nowhere.
    let foreign: usize = seen.iter().map(|(line, times)| (line.len() + 1) * times).sum();
    Ok(wrong + foreign)
}
