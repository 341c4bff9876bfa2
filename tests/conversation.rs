//! What goes wrong between the operator and GitLab, or between it and a host, and that a job comes out whole.

use anyhow::{Result, ensure};

use crate::testbed::gitlab::{JobSpec, JobView};

mod acquire;
mod faults;
mod host;
mod outage;

/// A job of forty lines within about a second, which ends with exit code 3.
fn count(name: impl Into<String>) -> JobSpec {
    JobSpec::new(name).script(["for i in $(seq 1 40); do echo line $i; sleep 0.03; done", "exit 3"])
}

/// Fails unless each of the first `lines` lines of a counting job is in its log exactly once.
fn ensure_whole(job: &JobView, lines: u32) -> Result<()> {
    let text = job.log_text();
    for number in 1..=lines {
        let line = format!("line {number}");
        let count = text.lines().filter(|found| found.trim_end().ends_with(&line)).count();
        ensure!(count == 1, "{}: {line} is there {count} times:\n{text}", job.name);
    }
    Ok(())
}
