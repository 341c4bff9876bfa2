//! Hosts on a bad day: away, full, read-only, rebooted, out of step, with a supervisor that was killed or is older.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::testbed::gitlab::{JobId, JobSpec, JobState, JobView};
use crate::testbed::stage::{POOL, Stage, condition};
use crate::traces::told;

mod clocks;
mod disks;
mod network;
mod quarantine;
mod restarts;
mod supervisors;

/// A job that counts until its host has the file `/tmp/go`, and then ends with exit code 3. Takes no space on any disk.
fn counting(name: &str) -> JobSpec {
    let count = "n=0; while [ ! -e /tmp/go ]; do n=$((n+1)); echo line $n; sleep 0.1; done; echo counted to $n; exit 3";
    JobSpec::new(name).script([count])
}

/// Fails unless a counting job came to its own end, with each line in its log exactly once and in order.
fn ensure_counted(job: &JobView) -> Result<()> {
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(3)), "{}", told(job));
    let text = job.log_text();
    let counted = |line: &str| line.rsplit_once(" counted to ")?.1.trim().parse::<usize>().ok();
    let last = text.lines().find_map(counted).with_context(|| format!("it did not count: {}", told(job)))?;
    let lines = text.lines().filter_map(|line| line.rsplit_once(" line ")?.1.trim().parse::<usize>().ok());
    let lines: Vec<usize> = lines.collect();
    ensure!(lines == (1..=last).collect::<Vec<_>>(), "{}", told(job));
    Ok(())
}

/// Fails unless a job ended as a system failure that says this, once, at the end of its log.
fn ensure_system_failure(job: &JobView, words: &str) -> Result<()> {
    ensure!(job.state == JobState::Failed, "{}", told(job));
    ensure!(job.failure_reason.as_deref() == Some("runner_system_failure"), "{}", told(job));
    let text = job.log_text();
    let last = text.trim_end().lines().last().unwrap_or_default();
    ensure!(last.contains("(system failure)") && last.contains(words), "{words:?} is not in: {}", told(job));
    ensure!(text.matches("(system failure)").count() == 1, "{}", told(job));
    Ok(())
}

/// A job that passes and says so.
async fn ensure_next_job_runs(stage: &Stage) -> Result<JobView> {
    let next = stage.run(JobSpec::new("next").script(["echo all is well"])).await?;
    ensure!(next.state == JobState::Success && next.log_contains("all is well"), "{}", told(&next));
    Ok(next)
}

/// A job's lease.
async fn lease(stage: &Stage, id: JobId) -> Result<Value> {
    stage.get("joblease", &format!("{POOL}-{id}")).await
}

/// Waits until what was in doubt at a job's end has been seen clean.
async fn until_seen_clean(stage: &Stage, id: JobId) -> Result<()> {
    let seen = |lease: &Value| condition(lease, "SlotClean") == ("True".to_owned(), "SeenClean".to_owned());
    stage.until_object("joblease", &format!("{POOL}-{id}"), "its slot was seen clean", seen).await?;
    stage.until_finding("SlotsClean", "True", "NoneInDoubt").await?;
    Ok(())
}

/// Whether a test that needs hosts of their own is to be left out.
pub async fn left_out(stage: &Stage) -> bool {
    if stage.bed.are_isolated() {
        return false;
    }
    eprintln!("left out: hosts with a disk and processes of their own take root");
    true
}
