//! An environment goes to sleep and wakes as it was.

use std::time::{Duration, Instant};

use dormouse::spool::order::{JobOrder, SuspendPlan};
use dormouse::spool::record::{EnvironmentPhase, Freezer, Outcome};
use dormouse::spool::verb::{Answer, RefusalReason};
use rustix::process::{Pid, test_kill_process};

use super::{Cgroups, Host, TOKEN, is_root, masked, order, refused, resuming, step, until, variable};

fn sleeping(order: JobOrder) -> JobOrder {
    JobOrder { suspend: SuspendPlan { on_success: true, on_failure: true }, ..order }
}

fn pid(host: &Host) -> Pid {
    let text = std::fs::read_to_string(host.workspace().join("pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// Runs a first job that leaves a clock ticking in the background, and puts its environment to sleep.
fn put_to_sleep(host: &Host, script: &[&str]) {
    let ran = host.run(&sleeping(order(host, "env1", 1, script)));
    assert!(ran.record().result.as_ref().unwrap().suspend_due);
    assert_eq!(host.suspend("env1", 1).phase, EnvironmentPhase::Suspended);
}

const CLOCK: &str = "(while :; do echo tick >> ticks; sleep 0.02; done) & echo $! > pid";

fn ticks(host: &Host) -> usize {
    std::fs::read_to_string(host.workspace().join("ticks")).unwrap_or_default().len()
}

#[test]
fn folder_variables_and_processes_wake_as_they_were() {
    wake_as_it_was(Host::new(), None);
}

#[test]
fn the_freezer_of_cgroup_v1_does_too() {
    if !is_root() || std::fs::read_to_string("/proc/self/mountinfo").is_ok_and(|all| !all.contains("freezer"))
    {
        eprintln!("left out: takes root and a mounted v1 freezer");
        return;
    }
    wake_as_it_was(Host::with_cgroups(Cgroups::OnlyV1), Some(Freezer::CgroupV1));
}

#[test]
fn signals_do_too() {
    if !is_root() {
        eprintln!("left out: hiding the cgroups takes root");
        return;
    }
    wake_as_it_was(Host::with_cgroups(Cgroups::None), Some(Freezer::Signals));
}

fn wake_as_it_was(host: Host, freezer: Option<Freezer>) {
    let mut first = sleeping(order(
        &host,
        "env1",
        1,
        &[
            CLOCK,
            "export KEPT='my value' HIDDEN_COPY=\"$SECRET\" GIVEN=changed",
            "mkdir -p deep/er; cd deep/er",
            "false",
        ],
    ));
    first.job.variables.extend([variable("GIVEN", "first"), masked("SECRET", "hush-hush-hush")]);
    let ran = host.run(&first);
    let result = ran.record().result.clone().unwrap();
    assert!(result.suspend_due && result.outcome == Outcome::ScriptFailure);
    let asleep = host.suspend("env1", 1);
    let context = asleep.context.clone().unwrap();
    assert_eq!(context.cwd, host.workspace().join("deep/er").to_str().unwrap());
    assert!(context.processes >= 1);
    assert_ne!(context.freezer, Freezer::Nothing);
    assert!(freezer.is_none_or(|freezer| freezer == context.freezer), "{:?}", context.freezer);
    assert_eq!(host.suspend("env1", 1), asleep, "a second suspend changes nothing");
    for folder in ["state", "builds"] {
        for secret in [TOKEN, "hush-hush-hush"] {
            assert_eq!(host.files_with(folder, secret), Vec::<std::path::PathBuf>::new(), "{secret}");
        }
    }
    let clock = pid(&host);
    test_kill_process(clock).unwrap();
    let frozen_at = ticks(&host);

    let mut second = resuming(
        &host,
        "env1",
        2,
        &[
            "pwd",
            "echo \"kept=$KEPT given=$GIVEN hidden=${HIDDEN_COPY-none}\"",
            "kill -0 $(cat ../../pid) && echo alive",
            "ls -A ../..",
        ],
    );
    second.job.variables.push(variable("GIVEN", "second"));
    second.job.variables.retain(|variable| variable.key != "GIT_STRATEGY");
    assert_eq!(ticks(&host), frozen_at, "the clock ticked in its sleep");
    let woken = host.run(&second);
    let text = woken.text();
    for wanted in [
        "Job environment resumed: 9/s_0123456789ab/acquisition-key=env1",
        "Skipping the sources: the environment was resumed",
        &format!("01O {}", host.workspace().join("deep/er").display()),
        "kept=my value given=second hidden=none",
        "01O alive",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    assert!(!text.contains(".dormouse"), "the marker is shown to the job: {text}");
    assert!(woken.record().sealed);
    host.release("env1");
    until("the clock is gone", || test_kill_process(clock).is_err().then_some(()));
    assert!(!host.workspace().exists());
    host.release("env1");
}

#[test]
fn a_shell_that_keeps_a_history_gets_it_back() {
    let host = Host::new();
    let file = host.path("history");
    let script = format!("export HISTFILE={}; set -o history", file.display());
    put_to_sleep(&host, &[&script, "history -s make everything"]);
    std::fs::remove_file(&file).unwrap();
    let text = host.run(&resuming(&host, "env1", 2, &["cat $HISTFILE"])).text();
    assert!(text.contains("01O make everything"), "{text}");
}

#[test]
fn an_environment_sleeps_again_and_its_clock_goes_on() {
    let host = Host::new();
    put_to_sleep(&host, &[CLOCK]);
    let clock = pid(&host);
    for job in 2..4 {
        let before = ticks(&host);
        let script =
            format!("until [ $(wc -c < ticks) -gt {before} ]; do sleep 0.02; done; export ROUND={job}");
        let ran = host.run(&sleeping(resuming(&host, "env1", job, &[&script])));
        assert!(ran.record().result.as_ref().unwrap().suspend_due, "{}", ran.text());
        let asleep = host.suspend("env1", job);
        assert_eq!(asleep.resumes, u32::try_from(job).unwrap() - 1);
        test_kill_process(clock).unwrap();
    }
}

#[test]
fn a_process_that_sleeps_can_go_on_printing_into_the_next_log() {
    let host = Host::new();
    put_to_sleep(&host, &["(while :; do echo from the background; sleep 0.02; done) & echo $! > pid"]);
    let ran = host.run(&resuming(&host, "env1", 2, &["sleep 0.3"]));
    assert!(ran.text().contains("01O from the background"), "{}", ran.text());
}

#[test]
fn a_canceled_resume_ends_its_own_processes_and_keeps_the_environments() {
    let host = Host::new();
    put_to_sleep(&host, &[CLOCK, "export KEPT=1"]);
    let clock = pid(&host);
    let mut second = resuming(&host, "env1", 2, &["sleep 1000 & echo $! > own", "echo begun", "wait"]);
    second.job.steps.push(step("after_script", &["true"]));
    let mut following = host.start(&sleeping(second));
    following.until_log("01O begun");
    let own = std::fs::read_to_string(host.workspace().join("own")).unwrap();
    let own = Pid::from_raw(own.trim().parse().unwrap()).unwrap();
    assert_eq!(host.ask("cancel --environment env1 --job 2 --epoch 1"), Answer::Done);
    let ran = following.into_end();
    let result = ran.record().result.clone().unwrap();
    assert!(result.outcome == Outcome::Canceled && !result.suspend_due);
    until("the job's own process is gone", || test_kill_process(own).is_err().then_some(()));
    test_kill_process(clock).unwrap();
    let asleep = host.suspend("env1", 2);
    assert_eq!(asleep.context.unwrap().variables, 1, "the context of the last script that ended is kept");
    let third = host.run(&resuming(&host, "env1", 3, &["kill -0 $(cat pid) && echo alive $KEPT"]));
    assert!(third.text().contains("alive 1"), "{}", third.text());
}

#[test]
fn a_resume_is_refused_unless_everything_is_as_it_was() {
    let host = Host::new();
    put_to_sleep(&host, &["echo work > file"]);
    let refused = |order: &JobOrder| refused(host.start(order).into_end().answer.unwrap());
    let resume = resuming(&host, "env1", 2, &["true"]);

    let mut other = resume.clone();
    other.job.job_info.project_id = 8;
    assert_eq!(refused(&other), RefusalReason::ProjectMismatch);
    let mut other = resume.clone();
    other.resume.as_mut().unwrap().project_id = 8;
    assert_eq!(refused(&other), RefusalReason::ProjectMismatch);
    let mut other = resume.clone();
    other.resume.as_mut().unwrap().workspace.push('x');
    assert_eq!(refused(&other), RefusalReason::WorkspaceMismatch);
    let mut other = resume.clone();
    other.environment = "env9".into();
    assert_eq!(refused(&other), RefusalReason::NotFound);

    let marker = host.workspace().join(dormouse::spool::MARKER);
    let text = std::fs::read_to_string(&marker).unwrap();
    std::fs::write(&marker, "env9\n").unwrap();
    assert_eq!(refused(&resume), RefusalReason::WorkspaceMismatch);
    std::fs::write(&marker, text).unwrap();
    let aside = host.path("aside");
    std::fs::rename(host.workspace(), &aside).unwrap();
    assert_eq!(refused(&resume), RefusalReason::WorkspaceMismatch);
    std::os::unix::fs::symlink(&aside, host.workspace()).unwrap();
    assert_eq!(refused(&resume), RefusalReason::WorkspaceMismatch);
    std::fs::remove_file(host.workspace()).unwrap();
    let copied =
        std::process::Command::new("cp").arg("-a").args([&aside, &host.workspace()]).status().unwrap();
    assert!(copied.success());
    assert_eq!(refused(&resume), RefusalReason::WorkspaceMismatch, "a copy is not the workspace");
    std::fs::remove_dir_all(host.workspace()).unwrap();
    std::fs::rename(aside, host.workspace()).unwrap();

    let first = host.start(&resume);
    let in_use = resuming(&host, "env1", 3, &["true"]);
    let ran = first.into_end();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Success, "{}", ran.text());
    assert_eq!(refused(&in_use), RefusalReason::InUse);
}

#[test]
fn a_dead_supervisor_in_a_resumed_job_leaves_an_environment_that_can_sleep_again() {
    let host = Host::new();
    put_to_sleep(&host, &[CLOCK]);
    let mut following = host.start(&resuming(&host, "env1", 2, &["echo begun", "sleep 1000"]));
    following.until_log("01O begun");
    let runner = host.status("env1", 2).runner;
    rustix::process::kill_process(Pid::from_raw(runner.pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    until("the supervisor is dead", || {
        let answer = host.ask("suspend --environment env1 --job 2 --epoch 1");
        matches!(answer, Answer::Environment(_)).then_some(())
    });
    let ran = host.run(&resuming(&host, "env1", 3, &["kill -0 $(cat pid) && echo alive"]));
    assert!(ran.text().contains("01O alive"), "{}", ran.text());
}

#[test]
fn a_restart_of_the_host_is_told_in_the_log() {
    let host = Host::new();
    put_to_sleep(&host, &["export KEPT=yes"]);
    let path = host.path("state/environments/env1/environment.json");
    let record = std::fs::read_to_string(&path).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&path, record.replace(boot.trim(), "another-boot")).unwrap();
    let ran = host.run(&resuming(&host, "env1", 2, &["echo kept=$KEPT"]));
    assert!(ran.text().contains("the host has been restarted since"), "{}", ran.text());
    assert!(ran.text().contains("kept=yes"), "{}", ran.text());
}

#[test]
fn nothing_about_a_suspend_depends_on_the_workspaces_size() {
    let host = Host::new();
    let many = "for i in $(seq 1 200); do mkdir d$i; (cd d$i; touch $(seq 1 50)); done";
    let ran = host.run(&sleeping(order(&host, "env1", 1, &[many])));
    assert!(ran.record().result.as_ref().unwrap().suspend_due);
    let begun = Instant::now();
    host.suspend("env1", 1);
    // Generous: a walk over the files would still show on a machine with slow disks, in the count below.
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(host.suspend("env1", 1).context.unwrap().workspace_bytes, None);
}

#[test]
fn a_released_sleeper_is_gone_with_workspace_and_processes_whatever_links_it_holds() {
    let host = Host::new();
    let precious = host.path("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("file"), "keep").unwrap();
    let link = format!("ln -s {} link; ln -s {} ../up", precious.display(), precious.display());
    put_to_sleep(&host, &[CLOCK, &link]);
    let clock = pid(&host);
    host.release("env1");
    until("the clock is gone", || test_kill_process(clock).is_err().then_some(()));
    assert!(!host.workspace().exists());
    assert_eq!(std::fs::read_to_string(precious.join("file")).unwrap(), "keep");
    assert_eq!(host.ask("list --pool-uid pool-uid --epoch 1"), Answer::List(Vec::new()));
}
