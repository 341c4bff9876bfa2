//! What one leader takes for 0, 1,000 and 10,000 sleeping environments, on light hosts, and how late it lets go of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::super::control_plane::audit;
use super::super::crowd::{Crowd, PATIENCE, Size};
use super::super::wait::until;
use super::Options;
use super::budget::{Bound, Budget, Report, Series};
use super::{figures, load, usage};

const EXPIRY: Budget =
    Budget { name: "environments-10000-expiry", bound: Bound::Below, limit: 5.0, unit: "s" };
const FLAT: Budget =
    Budget { name: "environments-reconcile-10000-to-1000", bound: Bound::AtMost, limit: 1.5, unit: "ratio" };

/// As many slots as hosts may have: ten thousand environments need 157 hosts.
const SIZE: Size = Size { hosts: 160, slots: 64 };

/// How many environments change one after the other, and how many expire at one time.
const CHANGED: usize = 100;
const EXPIRED: usize = 100;

/// Puts more and more environments to sleep and looks at the operator each time.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let mut crowd = Crowd::gather("environments", SIZE, json!({ "mode": "Paused" })).await?;
    let mut memory = Series::new("environments-memory", "environments", "MiB");
    let mut processor = Series::new("environments-processor-idle", "environments", "% of one processor");
    let mut calls = Series::new("environments-api-calls-idle", "environments", "calls an hour");
    let mut change = Series::new("environments-processor-per-change", "environments", "ms");
    let mut expiry = Series::new("environments-expiry-delay", "environments", "s");
    let counts: &[usize] = if options.quick { &[0, 100, 1000] } else { &[0, 1000, 10_000] };
    let idle = Duration::from_secs(if options.quick { 15 } else { 60 });
    let mut names: Vec<String> = Vec::new();
    let mut kept = 0;
    for count in counts {
        let far = Timestamp::now() + SignedDuration::from_hours(100);
        // Those that expired have left their slots; the numbers go on behind them.
        let more = count - names.len();
        names.extend(crowd.keep(kept..kept + more, |_| far).await?);
        kept += more;
        crowd.raise().await?;
        let x = figures::count(*count);
        let operator = crowd.stage.operator()?;
        let pid = operator.pid().context("the operator does not run")?;
        until_idle(&crowd).await?;
        let log = crowd.stage.cluster.control_plane.audit_log().to_owned();
        let mark = audit::length(&log)?;
        let (before, after) = usage::over(pid, idle).await?;
        memory.add(x, after.resident);
        processor.add(x, after.processor_since(&before));
        let asked = audit::calls(&log, mark)?.into_iter().filter(|call| is_operator(&call.user)).count();
        calls.add(x, figures::count(asked) * 3600.0 / idle.as_secs_f64());
        if *count > 0 {
            change.add(x, per_change(&crowd, pid, &names).await?);
            let gone: Vec<String> = names.drain(..EXPIRED.min(names.len() / 2)).collect();
            expiry.add(x, delay(&crowd, &gone).await?);
        }
        crowd.stage.operator.take().context("the operator does not run")?.terminate().await?;
    }
    let (small, large) = (counts.get(1), counts.last());
    let (small, large) = (small.context("no size")?, large.context("no size")?);
    let (small, large) = (figures::count(*small), figures::count(*large));
    let at = |series: &Series, x: f64| series.at(x).context("it was not measured");
    let method = format!(
        "the latest of {EXPIRED} environments that expire at the same time among {} on {} light hosts: from expiresAt to \
         the operator's request to delete it, by the API server's audit log",
        figures::shown(large),
        SIZE.hosts,
    );
    report.add(EXPIRY, at(&expiry, large)?, method, &[]);
    let method = format!(
        "processor time of the operator for a change of one environment among {} by that among {}: {CHANGED} changes, one \
         after the other",
        figures::shown(large),
        figures::shown(small),
    );
    report.add(FLAT, at(&change, large)? / at(&change, small)?, method, &[]);
    for series in [memory, processor, calls, change, expiry] {
        report.plot(series);
    }
    crowd.ensure_clean()?;
    load::leave(crowd.stage).await
}

fn is_operator(user: &str) -> bool {
    user.starts_with("system:serviceaccount:dormouse-system:")
}

/// Waits until the operator has asked the API server for nothing but its Lease for some seconds.
async fn until_idle(crowd: &Crowd) -> Result<()> {
    let log = crowd.stage.cluster.control_plane.audit_log().to_owned();
    let mut mark = audit::length(&log)?;
    let mut since = Instant::now();
    until("the operator has nothing to do", PATIENCE, async || {
        let calls = audit::calls(&log, mark)?;
        if calls.iter().any(|call| is_operator(&call.user) && call.resource != "leases" && call.verb != "get")
        {
            mark = audit::length(&log)?;
            since = Instant::now();
        }
        Ok((since.elapsed() >= Duration::from_secs(6)).then_some(()))
    })
    .await
}

/// Processor time, in milliseconds, that the change of one environment costs.
async fn per_change(crowd: &Crowd, pid: u32, names: &[String]) -> Result<f64> {
    let api = crowd.environments_api().await?;
    let before = usage::Usage::of(pid)?;
    for name in names.iter().rev().take(CHANGED) {
        let patch =
            json!({ "metadata": { "annotations": { "example.com/seen": Timestamp::now().to_string() } } });
        api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let after = usage::Usage::of(pid)?;
    let changed = figures::count(names.len().min(CHANGED));
    Ok(after.seconds_since(&before) * 1000.0 / changed)
}

/// How long after their common time the last of some environments is let go of, in seconds.
async fn delay(crowd: &Crowd, names: &[String]) -> Result<f64> {
    let api = crowd.environments_api().await?;
    let log = crowd.stage.cluster.control_plane.audit_log().to_owned();
    let mark = audit::length(&log)?;
    let at = Timestamp::from_second(Timestamp::now().as_second() + 20)?;
    let patch = json!({ "spec": { "expiresAt": at } });
    stream::iter(names.iter().map(anyhow::Ok))
        .try_for_each_concurrent(8, async |name| {
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
            Ok(())
        })
        .await?;
    ensure!(Timestamp::now() < at, "the machine is too slow to set all times before they come");
    until("all of them are gone", PATIENCE, async || {
        let gone = async |name: &String| anyhow::Ok(api.get_metadata_opt(name).await?.is_none());
        for name in names {
            if !gone(name).await? {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
    .with_context(|| crowd.stage.operator_log())?;
    let mut deleted: BTreeMap<String, Timestamp> = BTreeMap::new();
    for call in audit::calls(&log, mark)? {
        if is_operator(&call.user) && call.verb == "delete" && call.resource == "suspendedenvironments" {
            deleted.entry(call.name).or_insert(call.at);
        }
    }
    let delays = names.iter().map(|name| {
        let deleted = deleted.get(name).with_context(|| format!("nobody deleted {name}"))?;
        Ok(figures::milliseconds(at, *deleted) / 1000.0)
    });
    let delays = delays.collect::<Result<Vec<_>>>()?;
    ensure!(delays.iter().all(|delay| *delay >= 0.0), "an environment was let go of before its time");
    Ok(figures::largest(&delays))
}
