//! `start`: hands the order to a process of its own, and streams the job from there like `attach`.
//!
//! The order goes on whole or not at all: a connection that breaks before its last byte leaves text that is no
//! order, and nothing is written. After it, the process runs whether or not anybody listens.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::attach::{self, Reader};
use super::refuse::{OrRefuse, refusal, unsupported};
use super::run::LONGEST_ORDER;
use super::state::StateFolder;
use crate::spool::order::JobOrder;
use crate::spool::verb::{Answer, Refusal, RefusalReason};

/// Starts the job on standard input and streams it.
///
/// # Errors
/// When standard output breaks.
pub fn start(state: &StateFolder, from: u64) -> io::Result<()> {
    match hand_over(state) {
        Ok((order, Answer::Job(record))) => {
            let job = state.environment(&order.environment).job(record.job_id);
            attach::stream(state, &job, *record, Reader { from, epoch: order.epoch })
        }
        Ok((_, answer)) => attach::only(answer),
        Err(refusal) => attach::only(Answer::Refused(refusal)),
    }
}

fn hand_over(state: &StateFolder) -> Result<(JobOrder, Answer), Refusal> {
    let mut text = Vec::new();
    io::stdin().lock().take(LONGEST_ORDER).read_to_end(&mut text).or_refuse("failed to read the order")?;
    let order: JobOrder = serde_json::from_slice(&text)
        .map_err(|error| unsupported(format!("the order cannot be read: {error}")))?;
    if runs_under_systemd() {
        // Without systemd-run's help the job still runs; logind may then end it with the connection.
        if let Ok(answer) = run_in(scope(state, &order), &text) {
            return Ok((order, answer));
        }
    }
    let answer = run_in(plain(state), &text)?;
    Ok((order, answer))
}

fn plain(state: &StateFolder) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("run").arg("--state-dir").arg(state.root());
    command
}

/// What a scope may have beyond the job's own processes: the supervisor's.
const OWN_PROCESSES: u32 = 16;

/// A scope of its own, which a login session's end does not touch, in which cgroups may be made, and whose processes
/// systemd lets the kernel count.
fn scope(state: &StateFolder, order: &JobOrder) -> Command {
    let mut command = Command::new("systemd-run");
    let most = format!("--property=TasksMax={}", order.pids_limit().saturating_add(OWN_PROCESSES));
    command.args(["--scope", "--quiet", "--collect", "--property=Delegate=yes", &most, "--"]);
    let own = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    command.arg(own).arg("run").arg("--state-dir").arg(state.root());
    command
}

/// Whether jobs get a scope of their own from systemd.
pub fn runs_under_systemd() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/run/systemd/system").is_dir()
}

fn run_in(mut command: Command, order: &[u8]) -> Result<Answer, Refusal> {
    let attempt = "failed to start the job's process";
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.current_dir("/").spawn().or_refuse(attempt)?;
    give(&mut child, order).or_refuse("failed to hand over the order")?;
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut said).or_refuse("failed to hear from the job's process")?;
    }
    serde_json::from_slice(&said).map_err(|error| {
        refusal(RefusalReason::HostFailure, format!("the job's process did not answer: {error}"))
    })
}

fn give(child: &mut Child, order: &[u8]) -> io::Result<()> {
    child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(order))
}
