//! What scripts print: anything, as GitLab must get it, and never a masked value.

use anyhow::{Result, ensure};

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
