//! How fast a log goes from a script to the host's file and to GitLab, and what that costs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::super::gitlab::{JobSpec, JobState, JobView};
use super::super::hosts::Host;
use super::super::stage::{Setting, Stage};
use super::budget::{Bound, Budget, Report};
use super::usage::Usage;
use super::{Options, figures, load};

const INTO_FILE: Budget =
    Budget { name: "log-into-host-file", bound: Bound::Above, limit: 50.0, unit: "MB/s" };
const TO_GITLAB: Budget = Budget { name: "log-to-gitlab", bound: Bound::Above, limit: 20.0, unit: "MB/s" };
/// What one processor has for each megabyte at 50 MB/s.
const SUPERVISOR: Budget =
    Budget { name: "log-supervisor-processor", bound: Bound::Below, limit: 0.02, unit: "s/MB" };
/// What one processor has for each megabyte at 20 MB/s.
const OPERATOR: Budget =
    Budget { name: "log-operator-processor", bound: Bound::Below, limit: 0.05, unit: "s/MB" };

const BEGIN: &str = "begin=";
const END: &str = "end=";

/// One line of the output, without its end. Compilers write such lines.
const LINE: &str =
    "[ 42%] Building CXX object src/library/CMakeFiles/library.dir/module/component/implementation.cpp.o";

/// The file a job waits for, so that its processes are still there when what they took is read.
const SEEN: &str = "/tmp/log-is-seen";

/// Time for all of a log to arrive.
const LIMIT: Duration = Duration::from_secs(300);

/// Runs jobs that print as fast as they can, one at a time.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let megabytes = options.repeat(200, 40);
    let setting = Setting {
        // In KiB. Each line of the log has 32 bytes of time and stream before what was printed.
        pool: json!({ "isolation": "Shared", "concurrency": 1, "outputLimit": megabytes * 2048 }),
        ..Setting::default()
    };
    let stage = Stage::start("logs", setting).await?;
    load::run_alone(&stage, load::trivial("warm-up")).await?;
    let (mut into_file, mut to_gitlab) = (Vec::new(), Vec::new());
    let (mut supervisor, mut operator) = (Vec::new(), Vec::new());
    for _ in 0..options.repeat(3, 1) {
        let printed = print(&stage, megabytes).await?;
        into_file.push(printed.into_file);
        to_gitlab.push(printed.to_gitlab);
        supervisor.push(printed.supervisor);
        operator.push(printed.operator);
    }
    let what = format!(
        "a job prints {megabytes} MB in lines of {} bytes as fast as they are taken; bytes as printed, without the time \
         that each line gets; median of {} jobs, one at a time",
        LINE.len() + 1,
        into_file.len(),
    );
    let rate = "from the script's time before the first line to";
    for (budget, samples, how) in [
        (
            INTO_FILE,
            &into_file,
            format!(
                "{rate} its time after the last one: the script waits for the pipe, which \
                                          the supervisor reads into the file"
            ),
        ),
        (
            TO_GITLAB,
            &to_gitlab,
            format!(
                "{rate} the arrival of the last byte at the stand-in for GitLab, which runs on \
                                          the same machine"
            ),
        ),
        (
            SUPERVISOR,
            &supervisor,
            "processor time, from its start, of the process that runs the job and of the one \
                                   that reads the log for the operator; sshd is not in it"
                .to_owned(),
        ),
        (
            OPERATOR,
            &operator,
            "processor time of the operator from the hand-out of the job to the arrival of the last \
                               byte"
                .to_owned(),
        ),
    ] {
        report.add(budget, figures::median(samples)?, format!("{what}; {how}"), samples);
    }
    load::leave(stage).await
}

/// What one job showed: megabytes a second, and processor seconds for each.
struct Printed {
    into_file: f64,
    to_gitlab: f64,
    supervisor: f64,
    operator: f64,
}

async fn print(stage: &Stage, megabytes: usize) -> Result<Printed> {
    let host = stage.hosts.first().context("the stage has no host")?;
    host.exec_root(&format!("rm -f {SEEN}")).await?;
    let pid = stage.operator()?.pid().context("the operator is gone")?;
    let before = Usage::of(pid)?;
    let job = JobSpec::new("print").git_strategy_none().log_limit(u64::MAX).script([
        // `yes` ends by a signal.
        "set +o pipefail".to_owned(),
        format!("echo {BEGIN}$EPOCHREALTIME"),
        format!("yes '{LINE}' | head -c {}", megabytes * 1_000_000),
        format!("echo; echo {END}$EPOCHREALTIME"),
        format!("until test -e {SEEN}; do sleep 0.05; done"),
    ]);
    let id = stage.gitlab.enqueue(job);
    // A chunk may end within the stamp.
    let is_whole = |log: &[u8]| log.ends_with(b"\n") && stamp(tail(log), END).is_ok();
    let is_there = |job: &JobView| job.state.is_final() || is_whole(&job.log);
    let view = stage.gitlab.wait_for(id, is_there, LIMIT).await.with_context(|| stage.operator_log())?;
    let operator = Usage::of(pid)?.seconds_since(&before);
    let supervisor = supervisors(host)?;
    host.exec_root(&format!("touch {SEEN}")).await?;
    ensure!(view.state == JobState::Running, "the job ended as {:?} before it was seen", view.state);
    ensure!(view.log.len() > megabytes * 1_000_000, "only {} bytes of log arrived", view.log.len());
    let arrived = view.patches.iter().rfind(|patch| patch.answer == 202).context("no log arrived")?.at;
    let begun = stamp(head(&view.log), BEGIN)?;
    let ended = stamp(tail(&view.log), END)?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success, "the job ended as {:?}", over.state);
    stage.lease_over(id).await?;
    let megabytes = figures::count(megabytes);
    let rate = |end| megabytes / (figures::milliseconds(begun, end) / 1000.0);
    Ok(Printed {
        into_file: rate(ended),
        to_gitlab: rate(arrived),
        supervisor: supervisor / megabytes,
        operator: operator / megabytes,
    })
}

/// Processor time that the supervisor's processes on a host have taken so far, in seconds.
fn supervisors(host: &Host) -> Result<f64> {
    let ids = host.processes("dormouse-supervisor")?;
    ensure!(!ids.is_empty(), "no supervisor runs on {}", host.name());
    ids.into_iter().map(|id| Ok(Usage::of(id)?.seconds())).sum()
}

fn stamp(part: &[u8], mark: &str) -> Result<jiff::Timestamp> {
    load::stamped(&String::from_utf8_lossy(part), mark)
}

/// The parts of a log that have the stamps; to search all of it for each chunk would be measured instead.
fn head(log: &[u8]) -> &[u8] {
    log.get(..16 << 10).unwrap_or(log)
}

fn tail(log: &[u8]) -> &[u8] {
    log.get(log.len().saturating_sub(512)..).unwrap_or(log)
}
