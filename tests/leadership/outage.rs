//! The API server or its database is away in the middle of jobs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::epoch;
use crate::testbed::control_plane::Part;
use crate::testbed::gitlab::{JobId, JobSpec, JobState};
use crate::testbed::mishap::Mishap;
use crate::testbed::proxy::Line;
use crate::testbed::stage::{Cluster, POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;

/// Longer than a holder acts without a renewal, and than a Lease lasts.
const OUTLASTS_THE_LEASE: Duration = Duration::from_secs(40);

/// For how long a job may say nothing while the API server is away: none of its steps needs it.
const QUIET: Duration = Duration::from_secs(20);

/// A job that writes a line a second until the file is there, and then ends.
fn ticking(name: &str, until: &str) -> JobSpec {
    let line = format!(
        "n=0; while [ ! -e {until} ]; do n=$((n+1)); echo tick $n; sleep 1; done; echo ticks=$n; exit 3"
    );
    JobSpec::new(name).script([line])
}

/// Number of the last line GitLab has.
fn ticks(stage: &Stage, id: JobId) -> u64 {
    let job = stage.gitlab.job(id);
    let text = job.map(|job| job.log_text()).unwrap_or_default();
    let last = text.lines().rev().find_map(|line| line.trim_end().rsplit_once("tick ")?.1.parse().ok());
    last.unwrap_or(0)
}

/// Fails unless a ticking job's log has each of its lines once.
fn ensure_whole(text: &str) -> Result<()> {
    let said = |line: &str| line.trim_end().rsplit_once("tick ").and_then(|(_, number)| number.parse().ok());
    let numbers: Vec<u64> = text.lines().filter_map(said).collect();
    let last = text.lines().find_map(|line| line.trim_end().rsplit_once("ticks=")?.1.parse().ok());
    let last: u64 = last.with_context(|| format!("the job did not come to its end:\n{text}"))?;
    ensure!(numbers == (1..=last).collect::<Vec<_>>(), "of {last} lines there are {numbers:?}");
    Ok(())
}

/// What the jobs of a stage come to while the API server is away, and after it.
struct Jobs {
    /// Runs through all of it.
    long: JobId,
    /// Ends while it is away.
    ends: JobId,
    /// Ends and is to sleep while it is away.
    sleeps: JobId,
}

impl Jobs {
    async fn begin(stage: &Stage) -> Result<Self> {
        let jobs = Self {
            long: stage.gitlab.enqueue(ticking("long", "/tmp/enough")),
            ends: stage.gitlab.enqueue(ticking("ends", "/tmp/end")),
            sleeps: stage.gitlab.enqueue(
                JobSpec::new("sleeps")
                    .suspendable()
                    .suspend_on_success()
                    .script(["echo begun; echo kept > marker; while [ ! -e /tmp/end ]; do sleep 0.1; done"]),
            ),
        };
        for id in [jobs.long, jobs.ends] {
            stage.until_log(id, "tick 3").await?;
        }
        stage.until_log(jobs.sleeps, "begun").await?;
        Ok(jobs)
    }

    /// The API server is away, and stays so for that long.
    async fn go_on(&self, stage: &Stage, outage: Duration) -> Result<()> {
        let begun = Instant::now();
        let at_first = ticks(stage, self.long);
        // Past the time in which the holder acts.
        until("the log goes on without the API server", SOON, async || {
            Ok((ticks(stage, self.long) > at_first + QUIET.as_secs()).then_some(()))
        })
        .await?;
        stage.touch("/tmp/end").await?;
        let late = stage.gitlab.enqueue(JobSpec::new("late").script(["echo late"]));
        until("the whole log of the job that has ended is at GitLab", SOON, async || {
            Ok(stage.gitlab.job(self.ends).is_some_and(|job| job.log_text().contains("ticks=")).then_some(()))
        })
        .await?;
        until("the outage has lasted long enough", outage + SOON, async || {
            Ok((begun.elapsed() >= outage).then_some(()))
        })
        .await?;
        for id in [self.ends, self.sleeps] {
            let job = stage.gitlab.job(id).context("the job is gone")?;
            ensure!(job.state == JobState::Running, "told without the API server: {job:?}");
        }
        let late = stage.gitlab.job(late).context("the job is gone")?;
        ensure!(late.picked_up_at.is_none(), "a job was taken that could not be made durable");
        let now = ticks(stage, self.long);
        let whole = outage.as_secs();
        ensure!(now > at_first + whole / 2, "{} lines in {whole} s", now - at_first);
        Ok(())
    }

    /// The API server is back.
    async fn end(&self, stage: &Stage) -> Result<()> {
        let ended = stage.until_over(self.ends).await?;
        ensure!((ended.state, ended.exit_code) == (JobState::Failed, Some(3)), "{}", ended.log_text());
        ensure_whole(&ended.log_text())?;
        let slept = stage.until_over(self.sleeps).await?;
        ensure!(slept.state == JobState::Success, "{}", slept.log_text());
        let key = slept.environment_key.clone().context("GitLab was told no key")?;
        stage.asleep(&key).await?;
        for id in [self.ends, self.sleeps] {
            let lease = stage.lease_over(id).await?;
            ensure!(lease["status"]["phase"] == "Reported", "{lease:#}");
        }
        stage.touch("/tmp/enough").await?;
        let long = stage.until_over(self.long).await?;
        ensure!((long.state, long.exit_code) == (JobState::Failed, Some(3)), "{}", long.log_text());
        ensure_whole(&long.log_text())?;
        stage.lease_over(self.long).await?;
        let woken = JobSpec::new("wake").suspendable().environment_key(&key).script(["cat marker"]);
        let woken = stage.run(woken).await?;
        ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", woken.log_text());
        let attached = stage.list("events").await?;
        let attached: Vec<_> = attached.iter().filter(|event| event["reason"] == "JobReattached").collect();
        ensure!(attached.is_empty(), "a stream was ended and begun again: {attached:#?}");
        Ok(())
    }
}

fn slots() -> Setting {
    Setting::pool(json!({ "capacityPerInstance": 4, "isolation": "Shared" }))
}

#[tokio::test]
async fn a_holder_that_cannot_reach_the_api_server_goes_on_with_its_streams_and_begins_nothing() -> Result<()>
{
    for line in [Line::Refused, Line::Silent] {
        let stage = Stage::start("unreached", slots().paths()).await?;
        let jobs = Jobs::begin(&stage).await?;
        let before = stage.get("runnerpool", POOL).await?;
        let trouble = Mishap::ApiServerPath(line).begin(&stage).await?;
        jobs.go_on(&stage, OUTLASTS_THE_LEASE).await?;
        trouble.end(&stage).await?;
        jobs.end(&stage).await?;
        stage
            .until_object("runnerpool", POOL, "it is held on, in a higher epoch", |pool| {
                pool["status"]["holder"] == before["status"]["holder"] && epoch(pool) > epoch(&before)
            })
            .await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_api_server_is_down_for_five_minutes_in_the_middle_of_jobs() -> Result<()> {
    outage(Part::ApiServer, Duration::from_secs(300)).await
}

#[tokio::test]
async fn etcd_is_down_in_the_middle_of_jobs() -> Result<()> {
    outage(Part::Etcd, OUTLASTS_THE_LEASE).await
}

async fn outage(part: Part, lasts: Duration) -> Result<()> {
    let cluster = Cluster::own("outage").await?;
    let stage = Stage::start_on(cluster, "outage", slots()).await?;
    let jobs = Jobs::begin(&stage).await?;
    let trouble = Mishap::PartKilled(part).begin(&stage).await?;
    jobs.go_on(&stage, lasts).await?;
    let begun = Instant::now();
    trouble.end(&stage).await?;
    jobs.end(&stage).await?;
    println!("after {lasts:?} without {part:?} everything was told within {:?}", begun.elapsed());
    stage.end().await
}
