//! How many jobs a second one leader brings from GitLab to GitLab.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use jiff::Timestamp;
use serde_json::json;

use super::super::gitlab::JobState;
use super::super::stage::{Setting, Stage};
use super::Options;
use super::budget::{Bound, Budget, Report};
use super::{figures, load};

const JOBS: Budget = Budget { name: "jobs-per-second", bound: Bound::Above, limit: 20.0, unit: "jobs/s" };

/// Hosts and slots of each.
const HOSTS: [&str; 4] = ["alder", "birch", "cedar", "dogwood"];
const SLOTS: usize = 5;

/// Jobs before the first that counts.
const WARM_UP: usize = 20;

/// Time for all of them.
const LIMIT: Duration = Duration::from_secs(300);

/// Hands out many trivial jobs at once.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let setting = Setting {
        hosts: HOSTS.to_vec(),
        pool: json!({
            "capacityPerInstance": SLOTS, "isolation": "Shared", "concurrency": HOSTS.len() * SLOTS,
        }),
        ..Setting::default()
    };
    let stage = Stage::start("throughput", setting).await?;
    all(&stage, WARM_UP).await?;
    let before = Spent::so_far()?;
    let jobs = options.repeat(400, 60);
    let (from, to) = all(&stage, jobs).await?;
    let spent = Spent::so_far()?.since(&before);
    let seconds = figures::milliseconds(from, to) / 1000.0;
    let method = format!(
        "{jobs} trivial jobs queued at once, from the first hand-out to the last accepted end, {SLOTS} slots on each of {} \
         hosts, one leader; processor time for each job: {}",
        HOSTS.len(),
        spent.for_each(jobs, seconds),
    );
    eprintln!("{}: {}", JOBS.name, spent.for_each(jobs, seconds));
    report.add(JOBS, figures::count(jobs) / seconds, method, &[]);
    load::leave(stage).await
}

/// When the first of some jobs was handed out and the last one ended.
async fn all(stage: &Stage, jobs: usize) -> Result<(Timestamp, Timestamp)> {
    let ids: Vec<_> = (0..jobs).map(|_| stage.gitlab.enqueue(load::trivial("many"))).collect();
    let views = try_join_all(ids.into_iter().map(|id| stage.gitlab.wait_until_over(id, LIMIT)))
        .await
        .with_context(|| stage.operator_log())?;
    if let Some(failed) = views.iter().find(|view| view.state != JobState::Success) {
        let reason = failed.failure_reason.as_deref().unwrap_or("no reason given");
        bail!(
            "job {} is {:?}, {reason}:\n{}\n{}",
            failed.id,
            failed.state,
            failed.log_text(),
            stage.operator_log()
        );
    }
    let first = views.iter().filter_map(|view| view.picked_up_at).min().context("no job was handed out")?;
    let last = views.iter().filter_map(|view| view.finished_at).max().context("no job has ended")?;
    Ok((first, last))
}

/// Processor time, in clock ticks, of this program's servers and of the whole machine.
struct Spent {
    machine: u64,
    servers: BTreeMap<String, u64>,
}

/// Linux counts processor time for programs in hundredths of a second on every machine it runs on.
const TICKS: f64 = 100.0;

impl Spent {
    fn so_far() -> Result<Self> {
        let mut servers = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            // One that has ended meanwhile is no server of ours.
            let Ok(text) = fs::read_to_string(entry?.path().join("stat")) else { continue };
            let Some((name, rest)) = text.split_once(") ") else { continue };
            let fields: Vec<&str> = rest.split(' ').collect();
            let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
            // Fields 4, 14 and 15 of proc(5): parent, time as a user, time in the kernel.
            let (parent, ticks) = (number(1), number(11) + number(12));
            let name = name.split_once('(').map(|(_, name)| name).unwrap_or_default();
            if parent == u64::from(std::process::id()) && SERVERS.contains(&name) {
                *servers.entry(name.to_owned()).or_default() += ticks;
            }
        }
        Ok(Self { machine: busy()?, servers })
    }

    fn since(self, before: &Self) -> Self {
        let servers = self.servers.into_iter().map(|(name, ticks)| {
            let earlier = before.servers.get(&name).copied().unwrap_or(0);
            (name, ticks.saturating_sub(earlier))
        });
        Self { machine: self.machine.saturating_sub(before.machine), servers: servers.collect() }
    }

    fn for_each(&self, jobs: usize, seconds: f64) -> String {
        let each = |ticks: u64| {
            let ticks = u32::try_from(ticks).map_or(f64::INFINITY, f64::from);
            format!("{} ms", figures::shown(ticks / TICKS * 1000.0 / figures::count(jobs)))
        };
        let servers: Vec<String> =
            self.servers.iter().map(|(name, ticks)| format!("{name} {}", each(*ticks))).collect();
        let rest = self.machine.saturating_sub(self.servers.values().sum());
        let busy = u32::try_from(self.machine).map_or(f64::INFINITY, f64::from) / TICKS / seconds;
        format!(
            "{}, all else (hosts with their sshd, supervisors and shells, and the GitLab) {}; {} processors were busy",
            servers.join(", "),
            each(rest),
            figures::shown(busy),
        )
    }
}

/// The names the kernel knows our servers by.
const SERVERS: [&str; 4] = ["dormouse", "kube-apiserver", "etcd", "kube-controller"];

/// Ticks in which any processor of the machine was not idle.
fn busy() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks = line.split_whitespace().skip(1).map(|text| text.parse::<u64>());
    let ticks = ticks.collect::<Result<Vec<_>, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq; the rest is counted in these or is others' time.
    Ok([0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum())
}
