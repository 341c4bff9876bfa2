//! What scripts print: anything, as GitLab must get it, and never a masked value.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, told};

#[tokio::test]
async fn junk_endless_lines_and_escapes_arrive_and_break_nothing() -> Result<()> {
    let stage = Stage::start("junk", Setting::default()).await?;
    let junk = stage
        .run(JobSpec::new("junk").script([
            "head -c 300000 /dev/urandom",
            "printf '\\033[31mred\\033[0m \\033]0;title\\007 \\r overwritten \\b\\n'",
            "printf '\\377\\376 not UTF-8 \\000 nul\\n'",
            "head -c 200000 /dev/zero | tr '\\0' x",
            "echo; echo the end of the script",
            "printf 'no newline at the end'",
        ]))
        .await?;
    ensure!(junk.state == JobState::Success, "{:?} {:?}", junk.failure_reason, junk.exit_code);
    let line = "x".repeat(5000);
    for text in
        ["\u{1b}[31mred\u{1b}[0m", " not UTF-8 ", &line, "the end of the script", "no newline at the end"]
    {
        ensure!(junk.log_contains(text), "{} is not in the log", text.get(..20).unwrap_or(text));
    }
    ensure!(junk.log_contains("Job succeeded"));
    ensure!(String::from_utf8(junk.log).is_ok(), "the log is not UTF-8");
    traces::end(stage).await
}

#[tokio::test]
async fn a_masked_value_never_reaches_gitlab_however_it_is_printed() -> Result<()> {
    let stage = Stage::start("masked", Setting::default()).await?;
    let secret = "hush-hush-hush-42";
    let spec = JobSpec::new("masked").masked_variable("SECRET", secret).script([
        "echo \"plain $SECRET plain\"",
        "for part in hush- hush- hush-42; do printf %s $part; sleep 0.3; done; echo",
        "printf '%s%s%s' $SECRET $SECRET $SECRET; echo",
        "echo \"$SECRET\" >&2",
        "echo token $CI_JOB_TOKEN",
        "set -x; true \"$SECRET\"; set +x",
        "$SECRET",
    ]);
    let masked = stage.run(spec).await?;
    ensure!(masked.exit_code == Some(127), "{}", told(&masked));
    ensure!(!masked.log_contains(secret), "{}", told(&masked));
    ensure!(!masked.log_contains(&masked.token), "{}", told(&masked));
    ensure!(masked.log_contains("plain [MASKED] plain"), "{}", told(&masked));
    ensure!(masked.log_contains("[MASKED][MASKED][MASKED]"), "{}", told(&masked));
    // Nor does it stand in the cluster or in the operator's log.
    let lease = stage.lease_over(masked.id).await?.to_string();
    let events = stage.kubectl(&["get", "events", "-o", "json"]).await?;
    for text in [lease, events, stage.operator_log()] {
        ensure!(!text.contains(secret) && !text.contains(&masked.token), "{text}");
    }
    traces::end(stage).await
}

/// What is printed in a line, besides its number.
const PADDING: usize = 990;

/// How long a hundred megabytes may take on a busy machine, through a debug build.
const FLOOD: Duration = Duration::from_secs(240);

/// A command that prints so many lines of a thousand bytes, as fast as it can.
fn flood(lines: usize) -> String {
    let awk = format!(
        "BEGIN {{ for (i = 0; i < {PADDING}; i++) p = p \"x\"; for (i = 1; i <= {lines}; i++) printf \"%09d %s\\n\", i, p }}"
    );
    format!("awk '{awk}'")
}

/// A job whose lines stand in the log as they were printed.
fn plain(name: &str) -> JobSpec {
    JobSpec::new(name).variable("FF_TIMESTAMPS", "false")
}

/// The greatest memory a process has had so far, in KiB.
fn peak(status: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim_end_matches("kB").trim().parse()?)
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_byte_by_byte_and_rest_in_nobodys_memory() -> Result<()> {
    let pool = json!({ "outputLimit": 200 * 1024 });
    let stage = Stage::start("flood", Setting { pool, ..Setting::default() }).await?;
    let lines = 100_000;
    // One of the processes: the supervisor's own, which is over with the job.
    let spec = plain("flood")
        .log_limit(1 << 30)
        .script([flood(lines), "grep VmHWM /proc/$(pgrep -f '[/]proc/self/exe run')/status".to_owned()]);
    let operator = format!("/proc/{}/status", stage.operator()?.pid().context("it has ended")?);
    let before = peak(&std::fs::read_to_string(&operator)?)?;
    let id = stage.gitlab.enqueue(spec);
    let over = stage.gitlab.wait_until_over(id, FLOOD).await.with_context(|| stage.operator_log())?;
    ensure!(over.state == JobState::Success, "{:?} after {} bytes", over.failure_reason, over.log.len());
    let text = over.log_text();
    let mut printed = text.lines().filter(|line| line.len() == PADDING + 10);
    let whole =
        (1..=lines).all(|n| printed.next().is_some_and(|line| line.starts_with(&format!("{n:09} x"))));
    ensure!(whole && printed.next().is_none(), "the log of {} bytes is not what was printed", over.log.len());

    let supervisor = peak(&text)?;
    let grown = peak(&std::fs::read_to_string(&operator)?)?.saturating_sub(before);
    // A hundredth of what went through is more than its buffers; a debug build of the operator has larger ones.
    ensure!(supervisor < 32 * 1024, "the supervisor took {supervisor} KiB");
    ensure!(grown < 48 * 1024, "the operator grew by {grown} KiB from {before}");
    traces::end(stage).await
}

#[tokio::test]
async fn a_log_ends_at_the_pools_limit_with_a_word_and_the_job_goes_on() -> Result<()> {
    let pool = json!({ "outputLimit": 64 });
    let stage = Stage::start("limit", Setting { pool, ..Setting::default() }).await?;
    let cut = stage.run(plain("cut").script([flood(5000), "exit 6".to_owned()])).await?;
    ensure!((cut.state, cut.exit_code) == (JobState::Failed, Some(6)), "{}", cut.log.len());
    ensure!(cut.log.len() < 66 * 1024 && cut.log.len() > 64 * 1024, "{} bytes", cut.log.len());
    ensure!(cut.log_contains("The log is full at 65536 bytes"), "{}", told(&cut));
    ensure!(cut.log_text().trim_end().ends_with("exit code 6\u{1b}[0;m"), "{}", told(&cut));
    traces::end(stage).await
}
