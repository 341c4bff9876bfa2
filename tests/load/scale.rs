//! What a change costs does not grow with what nothing happens to.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::testbed::crowd::{Crowd, PATIENCE, Size};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::wait::until;

const JOBS: usize = 100;
const ENVIRONMENTS: usize = 500;
const CHANGES: usize = 20;

/// A hundred jobs run beside five hundred environments, and each change of one environment is a look at that one.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_one_environment_is_no_look_at_all_of_them() -> Result<()> {
    let mut crowd = Crowd::gather("scale", Size { hosts: 10, slots: 64 }, json!({})).await?;
    let later = Timestamp::now() + SignedDuration::from_hours(100);
    let names = crowd.keep(0..ENVIRONMENTS, |_| later).await?;
    crowd.raise().await?;
    let gitlab = crowd.stage.gitlab.clone();
    let ids: Vec<_> = (0..JOBS).map(|_| gitlab.enqueue(JobSpec::new("open").script(["tick 500"]))).collect();
    let running = ids.iter().map(|id| gitlab.wait_for_log(*id, "tick 2\n", PATIENCE));
    try_join_all(running).await.with_context(|| crowd.stage.operator_log())?;

    let before = looked_at(&crowd).await?;
    let api = crowd.environments_api().await?;
    for (number, name) in names.iter().take(CHANGES).enumerate() {
        let patch = json!({ "metadata": { "annotations": { "example.com/number": number.to_string() } } });
        api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    until("each change was looked at", PATIENCE, async || {
        Ok((looked_at(&crowd).await? >= before + CHANGES as u64).then_some(()))
    })
    .await?;
    let looks = looked_at(&crowd).await? - before;
    // Hosts are asked what is on them now and then, and may have something new to say.
    ensure!(looks < (CHANGES * 5) as u64, "{looks} environments were looked at for {CHANGES} changes");

    crowd.let_jobs_end();
    let ended = ids.iter().map(|id| gitlab.wait_until_over(*id, PATIENCE));
    for view in try_join_all(ended).await.with_context(|| crowd.stage.operator_log())? {
        ensure!(view.state == JobState::Success, "{view:?}");
    }
    let left = crowd.hosts.iter().map(|host| host.environments().len()).sum::<usize>();
    until("the hosts have the environments and nothing else", PATIENCE, async || {
        let left = crowd.hosts.iter().map(|host| host.environments().len()).sum::<usize>();
        Ok((left == ENVIRONMENTS).then_some(()))
    })
    .await
    .with_context(|| format!("there were {left}"))?;
    crowd.leave().await
}

async fn looked_at(crowd: &Crowd) -> Result<u64> {
    let text = crowd.stage.operator()?.metrics().await?;
    let line = text.lines().find_map(|line| line.strip_prefix("dormouse_environments_looked_at_total{"));
    let (_, count) = line.and_then(|line| line.rsplit_once(' ')).context("no such metric")?;
    Ok(count.parse()?)
}
