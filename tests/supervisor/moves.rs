//! An environment leaves its host and comes to another one.

use std::path::Path;

use dormouse::spool::export::{EnvironmentExport, LONGEST_EXPORT};
use dormouse::spool::order::JobOrder;
use dormouse::spool::record::{EnvironmentPhase, EnvironmentRecord, Outcome};
use dormouse::spool::verb::{Answer, Hello, RefusalReason};

use super::disk::Disk;
use super::volumes::{
    host_and_disk, killed_when, mount, mount_line, refusal, sleeping, unmount, unmount_line,
};
use super::{Host, order, refused, resuming, until};

const CLOCK: &str = "(while :; do echo tick >> ticks; sleep 0.02; done) & echo $! > pid";

fn export(host: &Host) -> EnvironmentExport {
    match host.ask("export --environment env1 --epoch 1") {
        Answer::Exported(export) => *export,
        other => panic!("{other:?}"),
    }
}

fn import_line(builds: &Host, slot: u32) -> String {
    format!("import --slot {slot} --builds-dir {} --epoch 1", builds.path("builds").display())
}

fn give(host: &Host, line: &str, input: &[u8]) -> Answer {
    let words: Vec<&str> = line.split(' ').collect();
    let output = host.give(&words, input);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Imports to a host that has its builds where `builds` has them: a path stays what it is.
fn import(host: &Host, builds: &Host, export: &EnvironmentExport) -> Answer {
    give(host, &import_line(builds, 0), &serde_json::to_vec(export).unwrap())
}

fn imported(host: &Host, builds: &Host, export: &EnvironmentExport) -> EnvironmentRecord {
    match import(host, builds, export) {
        Answer::Environment(record) => *record,
        other => panic!("{other:?}"),
    }
}

fn hello(host: &Host) -> Hello {
    match host.ask("hello --pool ns/p --pool-uid pool-uid --epoch 1") {
        Answer::Hello(hello) => *hello,
        other => panic!("{other:?}"),
    }
}

/// Puts an environment to sleep on a volume of its host.
fn put_to_sleep(host: &Host, disk: &Disk, script: &[&str]) {
    mount(host, disk);
    host.run(&sleeping(order(host, "env1", 1, script)));
    assert_eq!(host.suspend("env1", 1).phase, EnvironmentPhase::Suspended);
}

/// What a job on one host is with the builds folder of another.
fn with_builds(builds: &Host, order: JobOrder) -> JobOrder {
    let mut order = JobOrder { builds_dir: builds.path("builds").to_str().unwrap().into(), ..order };
    if let Some(resume) = &mut order.resume {
        resume.workspace = builds.workspace().to_str().unwrap().into();
    }
    order
}

fn until_gone(pid: &str) {
    let process = Path::new("/proc").join(pid.trim());
    until("the process is gone", || (!process.exists()).then_some(()));
}

/// Mounts with one host's supervisor in the builds folder of another.
fn mount_there(host: &Host, builds: &Host, disk: &Disk) {
    let answer = host.ask(&mount_line(builds, disk, 0));
    assert!(matches!(answer, Answer::Volume(_)), "{answer:?}");
}

#[test]
fn folder_and_variables_wake_on_another_host_and_processes_are_reported_gone() {
    let second = Host::new();
    let Some((first, disk)) = host_and_disk() else { return };
    put_to_sleep(&first, &disk, &[CLOCK, "export KEPT='my value'; mkdir deep; cd deep; echo work > file"]);
    let taken = export(&first);
    let processes = taken.environment.context.as_ref().unwrap().processes;
    assert!(processes > 0);
    let pid = std::fs::read_to_string(first.workspace().join("pid")).unwrap();
    assert_eq!(unmount(&first), processes);
    until_gone(&pid);
    for _ in 0..2 {
        assert_eq!(first.ask("leave --environment env1 --epoch 1"), Answer::Done);
        assert_eq!(first.ask("list --pool-uid pool-uid --epoch 1"), Answer::List(Vec::new()));
    }

    mount_there(&second, &first, &disk);
    let asleep = imported(&second, &first, &taken);
    assert_eq!(asleep.phase, EnvironmentPhase::Suspended);
    let context = asleep.context.clone().unwrap();
    assert_eq!((context.processes, context.processes_lost, context.variables), (0, processes, 1));
    assert_eq!(imported(&second, &first, &taken), asleep, "a second import changes nothing");
    let woken = second.run(&sleeping(with_builds(
        &first,
        resuming(&second, "env1", 2, &["echo \"kept=$KEPT in $PWD\"", "cat file"]),
    )));
    let text = woken.text();
    for wanted in [
        "Job environment resumed:".to_owned(),
        format!("01O kept=my value in {}", first.workspace().join("deep").display()),
        "01O work".to_owned(),
        format!("its background processes ({processes}) are gone"),
    ] {
        assert!(text.contains(&wanted), "{wanted:?} is not in {text}");
    }
    assert!(!text.contains("restarted"), "{text}");
    let again = second.suspend("env1", 2);
    assert_eq!((again.resumes, again.context.unwrap().processes_lost), (1, 0));
    // What was taken before is not what sleeps here now.
    assert_eq!(refused(import(&second, &first, &taken)), RefusalReason::SlotTaken);
    let line = unmount_line(&first, 0);
    second.release("env1");
    assert!(!first.workspace().exists() && matches!(second.ask(&line), Answer::Unmounted(_)));
}

#[test]
fn only_what_sleeps_can_leave() {
    let Some((host, disk)) = host_and_disk() else { return };
    mount(&host, &disk);
    assert_eq!(host.refusal("export --environment env1 --epoch 1"), RefusalReason::NotFound);
    assert_eq!(host.ask("leave --environment env1 --epoch 1"), Answer::Done);
    host.run(&sleeping(order(&host, "env1", 1, &["echo work > file"])));
    assert_eq!(host.refusal("export --environment env1 --epoch 1"), RefusalReason::InUse);
    assert_eq!(host.refusal("leave --environment env1 --epoch 1"), RefusalReason::InUse);
    host.suspend("env1", 1);
    let (reason, words) = refusal(&host, "leave --environment env1 --epoch 1");
    assert!(reason == RefusalReason::InUse && words.contains("vol-0test1"), "{words}");
    unmount(&host);
    assert_eq!(host.ask("leave --environment env1 --epoch 1"), Answer::Done);
    mount(&host, &disk);
    assert_eq!(std::fs::read_to_string(host.workspace().join("file")).unwrap(), "work\n");
}

#[test]
fn a_sleeper_without_a_volume_leaves_its_workspace_where_it_is() {
    let host = Host::new();
    host.run(&sleeping(order(&host, "env1", 1, &[CLOCK])));
    host.suspend("env1", 1);
    let pid = std::fs::read_to_string(host.workspace().join("pid")).unwrap();
    assert_eq!(host.ask("leave --environment env1 --epoch 1"), Answer::Done);
    until_gone(&pid);
    assert!(host.workspace().join("ticks").exists());
    assert_eq!(host.ask("list --pool-uid pool-uid --epoch 1"), Answer::List(Vec::new()));
}

#[test]
fn what_does_not_belong_together_is_not_imported() {
    let second = Host::new();
    let Some((first, disk)) = host_and_disk() else { return };
    put_to_sleep(&first, &disk, &["echo work > file"]);
    let taken = export(&first);
    unmount(&first);
    let refused = |export: &EnvironmentExport| refused(import(&second, &first, export));
    assert_eq!(refused(&taken), RefusalReason::WorkspaceMismatch, "nothing is mounted");
    mount_there(&second, &first, &disk);

    let changed = |change: &dyn Fn(&mut EnvironmentRecord)| {
        let mut export = taken.clone();
        change(&mut export.environment);
        export
    };
    for (export, wanted) in [
        (changed(&|record| record.environment = "env2".into()), RefusalReason::WorkspaceMismatch),
        (changed(&|record| record.environment = "../env2".into()), RefusalReason::Unsupported),
        (changed(&|record| record.project_path = "group/other".into()), RefusalReason::WorkspaceMismatch),
        (changed(&|record| record.workspace.push_str("/../../x")), RefusalReason::WorkspaceMismatch),
        (changed(&|record| record.phase = EnvironmentPhase::Active), RefusalReason::Unsupported),
        (changed(&|record| record.format = 99), RefusalReason::Unsupported),
    ] {
        assert_eq!(refused(&export), wanted, "{export:?}");
    }
    let json = serde_json::to_vec(&taken).unwrap();
    let (line, in_slot_1) = (import_line(&first, 0), import_line(&first, 1));
    for (line, input, wanted) in [
        (&in_slot_1, &json[..], "use the same slot"),
        (&import_line(&second, 0), &json[..], "use the same slot and builds folder"),
        (&line, &json[..json.len() - 1], "cannot be read"),
        (&line, b"", "cannot be read"),
        (&line, &vec![b' '; LONGEST_EXPORT + 1], "longer than"),
    ] {
        let Answer::Refused(refusal) = give(&second, line, input) else { panic!("not refused: {wanted}") };
        assert!(refusal.message.contains(wanted), "{}", refusal.message);
    }
    let marker = first.workspace().join(dormouse::spool::MARKER);
    let text = std::fs::read_to_string(&marker).unwrap();
    std::fs::write(&marker, "env9\n").unwrap();
    assert_eq!(refused(&taken), RefusalReason::WorkspaceMismatch);
    std::fs::write(&marker, text).unwrap();

    second.ask("hello --pool ns/p --pool-uid pool-uid --epoch 1");
    let foreign = changed(&|record| record.pool_uid = "other".into());
    assert!(matches!(refused(&foreign), RefusalReason::ClaimedByOther { .. }));
    second.run(&with_builds(&first, order(&second, "env3", 3, &["true"])));
    assert_eq!(refused(&taken), RefusalReason::SlotTaken);
    second.release("env3");
    imported(&second, &first, &taken);
    second.start(&with_builds(&first, resuming(&second, "env1", 2, &["true"]))).into_end();
    assert_eq!(refused(&taken), RefusalReason::InUse, "it is awake");
}

#[test]
fn an_import_that_died_on_its_way_is_done_by_the_next() {
    let Some((host, disk)) = host_and_disk() else { return };
    put_to_sleep(&host, &disk, &["export KEPT=1; echo work > file"]);
    let taken = export(&host);
    let folder = host.path("state/environments/env1");
    let is_there = |name: &str| folder.join(name).exists();
    let seen: [&dyn Fn() -> bool; 5] = [
        &|| is_there(""),
        &|| is_there("context"),
        &|| is_there("context/saved.json"),
        &|| is_there("holdings.json"),
        &|| is_there("environment.json"),
    ];
    let json = serde_json::to_vec(&taken).unwrap();
    for seen in seen {
        unmount(&host);
        assert_eq!(host.ask("leave --environment env1 --epoch 1"), Answer::Done);
        mount(&host, &disk);
        killed_when(&host, &import_line(&host, 0), &json, seen);
        imported(&host, &host, &taken);
    }
    let ran = host.run(&resuming(&host, "env1", 2, &["cat file; echo kept=$KEPT"]));
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Success, "{}", ran.text());
    assert!(ran.text().contains("01O work") && ran.text().contains("01O kept=1"), "{}", ran.text());
}

#[test]
fn a_host_at_rest_says_so_until_the_next_job() {
    let host = Host::new();
    assert_eq!((hello(&host).jobs_started, hello(&host).quiesced), (0, None));
    let mut job = host.start(&order(&host, "env1", 1, &["echo begun; read x < $(mkfifo p; echo p)"]));
    job.until_log("01O begun");
    assert_eq!(host.refusal("quiesce --epoch 1"), RefusalReason::InUse);
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1"), Answer::Done);
    job.into_end();
    for _ in 0..2 {
        assert_eq!(host.ask("quiesce --epoch 1"), Answer::Done);
    }
    let said = hello(&host);
    assert_eq!(said.quiesced.unwrap().boot_id, said.boot_id);
    assert_eq!(said.jobs_started, 1);
    // The same job again is no new one, and refused ones are none.
    host.start(&order(&host, "env1", 1, &["true"])).into_end();
    host.start(&order(&host, "env2", 2, &["true"])).into_end();
    assert!(hello(&host).quiesced.is_some() && hello(&host).jobs_started == 1);
    host.release("env1");
    host.run(&order(&host, "env2", 2, &["true"]));
    assert_eq!((hello(&host).jobs_started, hello(&host).quiesced), (2, None));
}
