//! The jobs that are measured with.

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;

use super::super::gitlab::{JobSpec, JobState, JobView};
use super::super::stage::Stage;
use super::figures::milliseconds;

/// What a trivial job writes, with the time on the host, which shares the machine's clock. The shell itself knows the
/// time: no program is started. The command is shown before it runs, so only the output has a digit here.
const STAMP: &str = "stamp=";

/// A job without sources whose script is one echo.
pub fn trivial(name: &str) -> JobSpec {
    JobSpec::new(name).git_strategy_none().script([format!("echo {STAMP}$EPOCHREALTIME")])
}

/// The same, whose script then runs on: its first byte is not sent with its last.
pub fn lasting(name: &str) -> JobSpec {
    JobSpec::new(name)
        .git_strategy_none()
        .script([format!("echo {STAMP}$EPOCHREALTIME"), "sleep 2".to_owned()])
}

/// Runs one job to the end of its lease, so that nothing of it is left to disturb the next.
pub async fn run_alone(stage: &Stage, job: JobSpec) -> Result<JobView> {
    let view = stage.run(job).await?;
    ensure!(view.state == JobState::Success, "the job ended as {:?}:\n{}", view.state, view.log_text());
    stage.lease_over(view.id).await?;
    Ok(view)
}

/// From GitLab handing the job out to the first byte of its script in GitLab's log, in milliseconds.
pub fn first_byte(view: &JobView) -> Result<f64> {
    let picked_up = view.picked_up_at.context("the job was never handed out")?;
    Ok(milliseconds(picked_up, arrival(view)?))
}

/// When the first byte of its script was in GitLab's log.
pub fn arrival(view: &JobView) -> Result<Timestamp> {
    view.arrived_at(&format!("{STAMP}1")).context("the script's output never arrived")
}

/// From the script's last line, on the host, to GitLab having the job's end, in milliseconds.
pub fn end(view: &JobView) -> Result<f64> {
    let finished = view.finished_at.context("the job has no end")?;
    Ok(milliseconds(stamp(view)?, finished))
}

/// When the script ran, by its own word.
fn stamp(view: &JobView) -> Result<Timestamp> {
    stamped(&view.log_text(), STAMP)
}

/// The time a script wrote last behind a mark, as `$EPOCHREALTIME`.
pub fn stamped(log: &str, mark: &str) -> Result<Timestamp> {
    let text = log.rsplit_once(&format!("{mark}1")).map(|(_, rest)| rest);
    let text = text.with_context(|| format!("the log has no {mark}"))?;
    let digits: String = text.chars().take_while(|character| !character.is_whitespace()).collect();
    let (seconds, microseconds) = digits.split_once(['.', ',']).context("the stamp is not a time")?;
    let seconds: i64 = format!("1{seconds}").parse()?;
    Ok(Timestamp::new(seconds, microseconds.parse::<i32>()? * 1000)?)
}

/// The lines of a log without the time and stream before each, if it has them.
pub fn lines(log: &str) -> impl DoubleEndedIterator<Item = &str> {
    log.lines().map(|line| match line.split_once("Z ") {
        // Two digits, a letter for the stream, and a blank.
        Some((time, rest)) if time.starts_with(|first: char| first.is_ascii_digit()) => {
            rest.get(4..).unwrap_or_default()
        }
        Some(_) | None => line,
    })
}

/// Ends a stage; a breach of GitLab's protocol makes what was measured on it worthless.
pub async fn leave(stage: Stage) -> Result<()> {
    if let Some(violation) = stage.gitlab.violations().first() {
        bail!("the runner broke the protocol: {violation}");
    }
    stage.end().await
}
