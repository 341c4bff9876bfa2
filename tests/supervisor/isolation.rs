//! A user for each slot: neighbours can neither read nor signal nor forge.

use std::process::Command;

use dormouse::spool::order::{Isolation, JobOrder, SuspendPlan};
use dormouse::spool::record::{EnvironmentPhase, Outcome};

use super::{Host, is_root, order, refused, resuming, until};

/// Slots that nothing else on the machine uses; their users go away with the test.
struct Users;

impl Drop for Users {
    fn drop(&mut self) {
        for slot in SLOTS {
            let _gone = Command::new("/usr/sbin/userdel")
                .arg("--remove")
                .arg(format!("dormouse-slot{slot}"))
                .output();
        }
    }
}

const SLOTS: [u32; 2] = [7070, 7071];

fn in_slot(slot: u32, order: JobOrder) -> JobOrder {
    JobOrder { slot, isolation: Isolation::PerSlotUser, ..order }
}

#[test]
fn a_neighbour_can_neither_read_nor_signal_nor_forge() {
    if !is_root() {
        eprintln!("left out: a user per slot takes root");
        return;
    }
    // Gone after the host, whose release would make them again.
    let _users = Users;
    let host = Host::new();
    let [first, second] = SLOTS;
    let quiet = &[
        "echo precious > file",
        "sleep 1000 & echo $! > pid",
        "echo hi > /dev/stdout",
        "id -un; echo $HOME",
        "echo up",
    ];
    let mut one = in_slot(first, order(&host, "env1", 1, quiet));
    one.suspend = SuspendPlan { on_success: true, on_failure: false };
    let ran = host.run(&one);
    let text = ran.text();
    assert!(text.contains("01O dormouse-slot7070\n"), "{text}");
    assert!(text.contains("01O /home/dormouse-slot7070\n"), "{text}");
    assert!(text.contains("01O hi\n"), "{text}");
    assert_eq!(host.suspend("env1", 1).phase, EnvironmentPhase::Suspended);
    let workspace = host.path(&format!("builds/{first}/group/project"));
    let pid = std::fs::read_to_string(workspace.join("pid")).unwrap();

    let attempts = [
        format!("! cat {}/file", workspace.display()),
        format!("! ls {}", host.path(&format!("builds/{first}")).display()),
        format!("! kill -9 {}", pid.trim()),
        format!("! cat /proc/{}/environ", pid.trim()),
        format!("! ls {}", host.path("state").display()),
        format!("! touch {}/environments/env1/jobs/1/cancel", host.path("state").display()),
        "echo tried everything".to_owned(),
    ];
    let attempts: Vec<&str> = attempts.iter().map(String::as_str).collect();
    let ran = host.run(&in_slot(second, order(&host, "env2", 2, &attempts)));
    let text = ran.text();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Success, "{text}");
    assert!(text.contains("01O tried everything"), "{text}");
    assert!(!text.contains("precious\n"), "{text}");
    let mut third = resuming(&host, "env1", 3, &["cat file; kill -0 $(cat pid) && echo alive"]);
    third.resume.as_mut().unwrap().workspace = workspace.to_str().unwrap().into();
    let text = host.run(&in_slot(first, third)).text();
    assert!(text.contains("01O precious\n") && text.contains("01O alive\n"), "{text}");
    host.release("env1");
    let proc_entry = std::path::PathBuf::from(format!("/proc/{}", pid.trim()));
    until("the sleeper's process is gone", || (!proc_entry.exists()).then_some(()));
    assert!(!workspace.exists());
}

#[test]
fn a_user_per_slot_without_root_is_refused_with_the_way_out() {
    if !is_root() {
        let host = Host::new();
        let ran = host.start(&in_slot(0, order(&host, "env1", 1, &["true"]))).into_end();
        refused(ran.answer.unwrap());
    }
}
