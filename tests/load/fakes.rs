//! Light hosts speak to the product's own client as real ones do.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::testbed::crowd::{Crowd, PATIENCE, Size};
use crate::testbed::gitlab::{JobSpec, JobState};

/// A job goes through a light host from its hand-out to its end, with a suspend, a resume, a failure and a cancel, and
/// GitLab and the host see nothing wrong in it.
#[tokio::test(flavor = "multi_thread")]
async fn light_hosts_run_suspend_resume_and_end_jobs() -> Result<()> {
    let mut crowd = Crowd::gather("fakes", Size { hosts: 2, slots: 2 }, json!({})).await?;
    crowd.raise().await?;
    let gitlab = crowd.stage.gitlab.clone();

    let failed = crowd.stage.run(JobSpec::new("fails").script(["echo before", "exit 7"])).await?;
    ensure!(failed.exit_code == Some(7) && failed.log_contains("before\n"), "{failed:?}");

    let asleep = JobSpec::new("sleeps").script(["echo one"]).suspendable().suspend_on_success();
    let asleep = crowd.stage.run(asleep).await?;
    let key = asleep.environment_key.clone().unwrap_or_default();
    ensure!(asleep.state == JobState::Success && !key.is_empty(), "{asleep:?}");
    crowd.stage.asleep(&key).await?;

    let resumed = JobSpec::new("wakes").script(["echo two"]).suspendable().environment_key(key);
    let resumed = crowd.stage.run(resumed).await?;
    ensure!(resumed.log_contains("Job environment resumed") && resumed.log_contains("two\n"), "{resumed:?}");
    crowd.stage.until_none("suspendedenvironments").await?;

    let id = gitlab.enqueue(JobSpec::new("ticks").script(["tick 20"]));
    gitlab.wait_for_log(id, "tick 3", PATIENCE).await?;
    gitlab.cancel(id);
    let canceled = crowd.stage.until_over(id).await?;
    ensure!(canceled.state == JobState::Canceled, "{canceled:?}");
    crowd.stage.lease_over(id).await?;

    let left: Vec<String> = crowd.hosts.iter().flat_map(|host| host.environments()).collect();
    ensure!(left.is_empty(), "environments are left on the hosts: {left:?}");
    crowd.leave().await
}
