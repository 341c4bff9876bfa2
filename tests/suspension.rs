//! Environments that sleep and wake: every switch, limit, accident and end, on real hosts.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::testbed::gitlab::{JobSpec, JobState, JobView};
use crate::testbed::stage::{POOL, Stage};

mod accidents;
mod away;
mod crashes;
mod keeps;
mod limits;
mod releases;
mod resumes;
mod switches;

/// A job whose suspend options count.
pub fn job(name: &str) -> JobSpec {
    JobSpec::new(name).suspendable()
}

/// A job that waits for a file on its host, and then runs these lines.
pub fn held<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    [&["echo waits; while [ ! -e /tmp/go ]; do sleep 0.05; done"], lines].concat()
}

/// Runs a job that passes and is put to sleep by it; answers with it and its key.
pub async fn put_to_sleep(stage: &Stage, spec: JobSpec) -> Result<(JobView, String)> {
    let job = stage.run(spec.suspend_on_success()).await?;
    ensure!(job.state == JobState::Success, "{:?}: {}", job.failure_reason, job.log_text());
    let key = key_of(&job)?;
    stage.asleep(&key).await?;
    stage.lease_over(job.id).await?;
    Ok((job, key))
}

/// The key that GitLab was told.
pub fn key_of(job: &JobView) -> Result<String> {
    job.environment_key.clone().with_context(|| format!("GitLab was told no key: {}", job.log_text()))
}

/// The name of the object a key stands for.
pub fn object_of(key: &str) -> Result<String> {
    let id = key.rsplit_once('=').context("the key has no environment id")?.1;
    Ok(format!("{POOL}-{id}"))
}

/// The object a key stands for, as it is now.
pub async fn environment(stage: &Stage, key: &str) -> Result<Value> {
    stage.get("suspendedenvironment", &object_of(key)?).await
}

/// Waits until the object a key stands for is gone.
pub async fn until_gone(stage: &Stage, key: &str) -> Result<()> {
    let name = object_of(key)?;
    crate::testbed::wait::until(&format!("{name} is gone"), crate::testbed::stage::SOON, async || {
        let all = stage.list("suspendedenvironments").await?;
        Ok(all.iter().all(|known| known["metadata"]["name"] != name.as_str()).then_some(()))
    })
    .await
    .with_context(|| stage.operator_log())
}
