//! Time-outs, cancels and accidents: how a job ends when not by itself.

use std::io::Write;

use dormouse::spool::record::{JobState, Outcome, ScriptEnd};
use dormouse::spool::verb::{Answer, RefusalReason};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{Cgroups, Following, Host, is_root, order, refused, step, until, variable};

/// A script that notes its background process and waits for ever.
const ENDLESS: &[&str] = &["sleep 1000 & echo $! > pid", "echo begun", "wait"];

fn background(host: &Host) -> Pid {
    until("the background process is noted", || {
        let text = std::fs::read_to_string(host.workspace().join("pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    })
}

fn assert_gone(pid: Pid) {
    until("the process is gone", || test_kill_process(pid).is_err().then_some(()));
}

#[test]
fn the_jobs_time_out_ends_everything_without_after_script() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, ENDLESS);
    order.job.runner_info.timeout = 1;
    order.job.steps.push(step("after_script", &["echo after"]));
    let ran = host.run(&order);
    let result = ran.record().result.clone().unwrap();
    assert_eq!((result.outcome, result.script), (Outcome::Timeout, ScriptEnd::NotEnded));
    assert!(result.message.contains("1s"), "{}", result.message);
    assert!(!ran.text().contains("01O after"), "{}", ran.text());
    assert_gone(background(&host));
}

#[test]
fn the_scripts_time_out_still_runs_after_script() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, ENDLESS);
    order.job.variables.push(variable("RUNNER_SCRIPT_TIMEOUT", "500ms"));
    order.job.steps.push(step("after_script", &["echo after $CI_JOB_STATUS"]));
    let ran = host.run(&order);
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Timeout);
    assert!(ran.text().contains("after failed"), "{}", ran.text());
    assert_gone(background(&host));
}

#[test]
fn after_script_has_a_time_out_of_its_own_and_its_failure_is_not_the_jobs() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, &["echo done"]);
    order.job.variables.push(variable("RUNNER_AFTER_SCRIPT_TIMEOUT", "300ms"));
    order.job.steps.push(step("after_script", &["echo after", "sleep 1000"]));
    let ran = host.run(&order);
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Success, "{}", ran.text());
    assert!(ran.text().contains("after_script took longer"), "{}", ran.text());
}

#[test]
fn a_graceful_cancel_stops_the_script_and_runs_after_script() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, ENDLESS);
    order.job.steps.push(step("after_script", &["echo after $CI_JOB_STATUS"]));
    let mut following = host.start(&order);
    following.until_log("01O begun");
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1 --graceful"), Answer::Done);
    let ran = following.into_end();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Canceled);
    assert!(ran.text().contains("after canceled"), "{}", ran.text());
    assert!(ran.text().contains("ERROR: Job failed: canceled"), "{}", ran.text());
    assert_gone(background(&host));
}

#[test]
fn an_abort_ends_everything_at_once_even_what_ignores_signals() {
    abort_everything(Host::new());
}

#[test]
fn an_abort_without_cgroups_finds_what_left_the_session() {
    if !is_root() {
        eprintln!("left out: hiding the cgroups takes root");
        return;
    }
    abort_everything(Host::with_cgroups(Cgroups::None));
}

#[test]
fn what_is_asked_to_end_may_clean_up_first() {
    let host = Host::new();
    let script = &[
        "bash -c 'trap \"sleep 0.3; echo cleaned up; exit\" TERM; echo begun; while :; do sleep 0.05; done'",
    ];
    let mut following = host.start(&order(&host, "env1", 1, script));
    following.until_log("01O begun");
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1 --graceful"), Answer::Done);
    let text = following.into_end().text();
    assert!(text.contains("01O cleaned up"), "{text}");
}

fn abort_everything(host: Host) {
    let stubborn = &[
        "trap '' TERM INT HUP",
        "sleep 1000 & echo $! > pid",
        "setsid sleep 1000 & echo $! > pid2",
        "echo begun",
        "while :; do sleep 1; done",
    ];
    let mut order = order(&host, "env1", 1, stubborn);
    order.job.steps.push(step("after_script", &["echo after"]));
    let mut following = host.start(&order);
    following.until_log("01O begun");
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1"), Answer::Done);
    let ran = following.into_end();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Canceled);
    assert!(!ran.text().contains("01O after"), "{}", ran.text());
    assert_gone(background(&host));
    let second = std::fs::read_to_string(host.workspace().join("pid2")).unwrap();
    assert_gone(Pid::from_raw(second.trim().parse().unwrap()).unwrap());
}

#[test]
fn a_cancel_of_a_finished_job_changes_nothing() {
    let host = Host::new();
    host.run(&order(&host, "env1", 1, &["true"]));
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1"), Answer::Done);
    assert_eq!(host.status("env1", 1).result.unwrap().outcome, Outcome::Success);
    assert_eq!(host.refusal("cancel --environment env1 --job 2 --epoch 1"), RefusalReason::NotFound);
}

#[test]
fn background_processes_do_not_outlive_a_plain_job() {
    let host = Host::new();
    host.run(&order(&host, "env1", 1, &["sleep 1000 & echo $! > pid"]));
    assert_gone(background(&host));
}

#[test]
fn a_killed_supervisor_is_told_as_dead_and_what_it_left_can_be_released() {
    let host = Host::new();
    let mut following = host.start(&order(&host, "env1", 1, ENDLESS));
    following.until_log("01O begun");
    let runner = host.status("env1", 1).runner;
    kill_process(Pid::from_raw(runner.pid).unwrap(), Signal::KILL).unwrap();
    let told = following.read_until(|streamed| streamed.record.is_some() && !streamed.alive);
    assert!(told, "the stream ended");
    assert_eq!(host.status("env1", 1).state, JobState::Running);
    let left = background(&host);
    test_kill_process(left).unwrap();

    // The operator ends the log, and only then the stream ends.
    let answer = host.ask_with("seal --environment env1 --job 1 --epoch 1", "the supervisor is gone");
    assert!(matches!(answer, Answer::Log(_)), "{answer:?}");
    let ran = following.into_end();
    assert!(ran.text().ends_with("the supervisor is gone\n"), "{}", ran.text());
    let another = serde_json::to_vec(&order(&host, "env2", 2, &["true"])).unwrap();
    assert!(String::from_utf8_lossy(&host.give(&["start"], &another).stdout).contains("SlotTaken"));
    host.release("env1");
    assert_gone(left);
    host.run(&order(&host, "env2", 2, &["true"]));
}

#[test]
fn a_running_job_is_neither_sealed_nor_suspended_nor_released() {
    let host = Host::new();
    let mut following = host.start(&order(&host, "env1", 1, ENDLESS));
    following.until_log("01O begun");
    for line in [
        "seal --environment env1 --job 1 --epoch 1",
        "suspend --environment env1 --job 1 --epoch 1",
        "release --environment env1 --epoch 1",
    ] {
        assert_eq!(refused(host.ask(line)), RefusalReason::InUse, "{line}");
    }
    let pid = background(&host);
    assert_eq!(host.ask("release --environment env1 --epoch 1 --force"), Answer::Done);
    assert_gone(pid);
    assert!(!host.workspace().exists());
}

#[test]
fn without_bash_the_host_is_at_fault_and_the_log_says_what_to_do() {
    let host = Host::new();
    let mut command = host.command(&["start"]);
    let mut child = command.env("PATH", host.path("no-programs")).spawn().unwrap();
    let order = serde_json::to_vec(&order(&host, "env1", 1, &["echo never"])).unwrap();
    child.stdin.take().unwrap().write_all(&order).unwrap();
    let ran = Following::new(child).into_end();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::SystemFailure, "{}", ran.text());
    assert!(ran.text().contains("(system failure): bash was not found on the host"), "{}", ran.text());
}

#[test]
fn a_code_of_126_of_the_scripts_own_is_the_scripts() {
    let host = Host::new();
    let ran = host.run(&order(&host, "env1", 1, &["exit 126"]));
    let result = ran.record().result.clone().unwrap();
    assert_eq!((result.outcome, result.exit_code), (Outcome::ScriptFailure, 126), "{}", ran.text());
}

#[test]
fn a_kill_for_want_of_memory_is_told_and_is_the_scripts_own_failure() {
    let group = std::path::Path::new("/sys/fs/cgroup/memory");
    if !is_root() || !group.join("memory.limit_in_bytes").exists() {
        eprintln!("left out: a memory limit takes root and the memory controller of cgroup v1");
        return;
    }
    let group = group.join(format!("dormouse-test-{}", std::process::id()));
    std::fs::create_dir(&group).unwrap();
    std::fs::write(group.join("memory.limit_in_bytes"), "16777216").unwrap();
    let host = Host::new();
    let join = format!("echo $BASHPID > {}/cgroup.procs; exec tail /dev/zero", group.display());
    let ran = host.run(&order(&host, "env1", 1, &[&format!("( {join} )")]));
    until("the group is empty", || std::fs::remove_dir(&group).ok());
    let result = ran.record().result.clone().unwrap();
    assert_eq!((result.outcome, result.exit_code), (Outcome::ScriptFailure, 137), "{}", ran.text());
    assert!(ran.text().contains("WARNING: the host ran out of memory meanwhile"), "{}", ran.text());
}
