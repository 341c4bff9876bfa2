//! GitLab asks to be left alone for a while (429 with Retry-After): it is, up to a minute, and nobody else waits.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{count, each_line_once, ensure_told_once, roomy, until_hit, until_over_after};
use crate::testbed::gitlab::{Fault, JobId, Target};
use crate::testbed::stage::Stage;

/// The longest wait that is granted.
const GRANTED: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_wait_is_granted_up_to_a_minute_and_holds_up_no_other_job() -> Result<()> {
    let stage = Stage::start("limited", roomy()).await?;
    let limited = |target, seconds: &str| Fault::refuse(target, 429).header("retry-after", seconds).once();
    let faults = [
        limited(Target::Trace, "86400").job(JobId(1)),
        limited(Target::UpdateTo("running"), "86400").job(JobId(2)),
        limited(Target::FinalUpdate, "86400").job(JobId(3)),
        limited(Target::Trace, "5").after(1).job(JobId(4)),
    ];
    let faults = faults.map(|fault| stage.gitlab.inject(fault));
    let waiting = ["log for a day", "running for a day", "result for a day", "log for five seconds"]
        .map(|name| stage.gitlab.enqueue(count(name)));
    for fault in faults {
        until_hit(&stage, fault).await?;
    }
    // Meanwhile others come and go.
    for _ in 0..3 {
        let job = stage.run(count("not limited")).await?;
        each_line_once(&job, 40)?;
    }
    let unlimited = stage.gitlab.jobs().last().and_then(|job| job.finished_at).context("it is over")?;
    for (id, asked) in waiting.into_iter().zip([86_400, 86_400, 86_400, 5]) {
        let job = until_over_after(&stage, id, GRANTED).await?;
        ensure_told_once(&job)?;
        each_line_once(&job, 40)?;
        let mut said = stage.gitlab.requests();
        said.retain(|request| request.job == Some(id));
        let at = said.iter().position(|request| request.answer == Some(429)).context("it was limited")?;
        let (limited, next) = (&said[at], said.get(at + 1).context("nothing was said afterwards")?);
        let quiet = Duration::try_from(next.at.duration_since(limited.at))?;
        let granted = Duration::from_secs(asked).min(GRANTED);
        ensure!(quiet >= granted, "{}: spoken of after {quiet:?}, asked for {asked} s", job.name);
        let finished = job.finished_at.context("it is over")?;
        ensure!(asked < 60 || finished > unlimited, "{} was over before the others", job.name);
    }
    stage.end().await
}
