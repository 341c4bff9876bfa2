//! A slot's workspaces live on a volume that comes and goes.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use dormouse::spool::order::{Isolation, JobOrder, SuspendPlan};
use dormouse::spool::record::{EnvironmentPhase, Outcome};
use dormouse::spool::verb::{Answer, RefusalReason, Unmounted, Volume};

use super::disk::{Disk, said};
use super::{Host, is_root, order, refused, resuming, until};

/// A user of a slot nothing else uses; see `isolation`.
const SLOT: u32 = 7072;

/// A host and a disk, which is taken away from it before the host's own folder is.
pub fn host_and_disk() -> Option<(Host, Disk)> {
    let disk = Disk::blank()?;
    Some((Host::new(), disk))
}

pub fn mount_line(host: &Host, disk: &Disk, slot: u32) -> String {
    let builds = host.path("builds");
    let (builds, device) = (builds.display(), disk.device.display());
    format!(
        "volume-mount --slot {slot} --volume vol-0test1 --builds-dir {builds} --device {device} --epoch 1"
    )
}

pub fn unmount_line(host: &Host, slot: u32) -> String {
    format!("volume-unmount --slot {slot} --builds-dir {} --epoch 1", host.path("builds").display())
}

pub fn mount(host: &Host, disk: &Disk) -> Volume {
    match host.ask(&mount_line(host, disk, 0)) {
        Answer::Volume(volume) => volume,
        other => panic!("{other:?}"),
    }
}

pub fn unmount(host: &Host) -> u32 {
    match host.ask(&unmount_line(host, 0)) {
        Answer::Unmounted(Unmounted { ended }) => ended,
        other => panic!("{other:?}"),
    }
}

/// The reason and the words of a refusal.
pub fn refusal(host: &Host, line: &str) -> (RefusalReason, String) {
    match host.ask(line) {
        Answer::Refused(refusal) => (refusal.reason, refusal.message),
        other => panic!("not refused: {other:?}"),
    }
}

pub fn sleeping(order: JobOrder) -> JobOrder {
    JobOrder { suspend: SuspendPlan { on_success: true, on_failure: true }, ..order }
}

fn succeeds(host: &Host, order: &JobOrder) -> String {
    let ran = host.run(order);
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Success, "{}", ran.text());
    ran.text()
}

#[test]
fn a_blank_volume_is_formatted_once_and_keeps_what_jobs_put_there() {
    let Some((host, disk)) = host_and_disk() else { return };
    let made = mount(&host, &disk);
    assert!(made.filesystem_made && made.used_bytes < made.size_bytes, "{made:?}");
    assert!(made.size_bytes > 900 * 1024 * 1024, "{made:?}");
    let [(point, options)] = disk.mounts().try_into().unwrap();
    assert_eq!(point, host.path("builds/0").canonicalize().unwrap());
    for option in ["nosuid", "nodev", "noatime"] {
        assert!(options.split(',').any(|found| found == option), "{options}");
    }
    assert_eq!(said("blkid", &["-o", "value", "-s", "LABEL", disk.device.to_str().unwrap()]), "dormouse");
    assert!(!mount(&host, &disk).filesystem_made, "a second mount changes nothing");
    assert_eq!(disk.mounts().len(), 1);

    succeeds(&host, &order(&host, "env1", 1, &["echo kept > file"]));
    host.release("env1");
    assert_eq!(unmount(&host), 0);
    assert_eq!(disk.mounts(), Vec::new());
    assert_eq!(unmount(&host), 0, "unmounted already");
    assert!(!host.workspace().exists(), "it was on the volume");
    let again = mount(&host, &disk);
    assert!(!again.filesystem_made && again.size_bytes == made.size_bytes);
    let text = succeeds(&host, &order(&host, "env2", 2, &["cat file"]));
    assert!(text.contains("01O kept"), "{text}");
}

#[test]
fn a_release_empties_the_workspace_and_never_the_mount() {
    let Some((host, disk)) = host_and_disk() else { return };
    mount(&host, &disk);
    host.run(&sleeping(order(&host, "env1", 1, &["echo x > file; echo y > ../beside"])));
    assert_eq!(host.suspend("env1", 1).phase, EnvironmentPhase::Suspended);
    let text = succeeds(&host, &sleeping(resuming(&host, "env1", 2, &["cat file"])));
    assert!(text.contains("01O x"), "{text}");
    host.suspend("env1", 2);
    host.release("env1");
    assert!(!host.workspace().exists());
    assert!(host.path("builds/0/lost+found").is_dir() && host.path("builds/0/group/beside").is_file());
    assert_eq!(disk.mounts().len(), 1);
    succeeds(&host, &order(&host, "env2", 2, &["true"]));
}

#[test]
fn what_is_not_blank_is_refused_and_left_as_it_is() {
    let Some((host, disk)) = host_and_disk() else { return };
    for (bytes, offset, name) in [
        (&b"precious"[..], 700_000, "data of an unknown kind"),
        (b"\x55\xaa", 510, "a partition table"),
        (b"LUKS\xba\xbe", 0, "a LUKS volume"),
    ] {
        disk.write(bytes, offset);
        let (reason, words) = refusal(&host, &mount_line(&host, &disk, 0));
        assert_eq!(reason, RefusalReason::Unsupported);
        assert!(words.contains("vol-0test1") && words.contains(name), "{words}");
        assert_eq!(disk.read(bytes.len(), offset), bytes);
        disk.write(&vec![0; bytes.len()], offset);
    }
    let line = mount_line(&host, &disk, 0);
    let missing = line.replace(disk.device.to_str().unwrap(), "/dev/dormouse-missing");
    assert_eq!(refusal(&host, &missing).0, RefusalReason::NotFound);
    let character = line.replace(disk.device.to_str().unwrap(), "/dev/null");
    assert_eq!(refusal(&host, &character).0, RefusalReason::HostFailure);
    assert_eq!(disk.mounts(), Vec::new());
    assert!(mount(&host, &disk).filesystem_made, "it is blank again");
}

#[test]
fn a_death_at_any_time_is_finished_by_the_next_call() {
    let Some((host, disk)) = host_and_disk() else { return };
    let note = host.path("state/volumes/0.json");
    let says = |step: &str| std::fs::read_to_string(&note).is_ok_and(|text| text.contains(step));
    let is_mounted = || !disk.mounts().is_empty();
    let finished = |line: &str| {
        // A program that the dead one has started may go on for a moment.
        until("the call is done", || match host.ask(line) {
            Answer::Refused(refusal) => {
                assert!(
                    refusal.message.contains("mkfs.ext4") || refusal.message.contains("busy"),
                    "{refusal:?}"
                );
                None
            }
            answer => Some(answer),
        })
    };
    let (mount, unmount) = (mount_line(&host, &disk, 0), unmount_line(&host, 0));
    let mounting: [&dyn Fn() -> bool; 5] =
        [&|| true, &|| says("Formatting"), &|| says("Mounting"), &is_mounted, &|| says("Mounted")];
    let unmounting: [&dyn Fn() -> bool; 3] = [&|| true, &|| says("Unmounting"), &|| !is_mounted()];
    for round in 0..15 {
        // Blank in two rounds of three.
        if round % 3 != 0 {
            disk.write(&vec![0; 2 * 1024 * 1024], 0);
        }
        killed_when(&host, &mount, b"", mounting[round % mounting.len()]);
        let answer = finished(&mount);
        assert!(matches!(answer, Answer::Volume(_)), "{answer:?}");
        assert!(is_mounted() && disk.mounts().len() == 1 && says("Mounted"));
        let environment = format!("env{round}");
        succeeds(&host, &order(&host, &environment, round as u64 + 1, &["echo x > file"]));
        host.release(&environment);
        killed_when(&host, &unmount, b"", unmounting[round % unmounting.len()]);
        finished(&unmount);
        assert!(!is_mounted() && !note.exists());
    }
}

#[test]
fn a_new_holder_is_told_of_no_mount_that_is_half_done() {
    let Some((host, disk)) = host_and_disk() else { return };
    let note = host.path("state/volumes/0.json");
    let says = |step: &str| std::fs::read_to_string(&note).is_ok_and(|text| text.contains(step));
    let (mount, unmount) = (mount_line(&host, &disk, 0), unmount_line(&host, 0));
    let is_mounted = || !disk.mounts().is_empty();
    let mounting: [&dyn Fn() -> bool; 2] = [&|| says("Mounting"), &is_mounted];
    let mut job = 0;
    for round in 0..12 {
        let line = if round % 2 == 0 { &mount } else { &unmount };
        let seen: &dyn Fn() -> bool =
            if round % 2 == 0 { mounting[round / 2 % 2] } else { &|| says("Unmounting") };
        if round % 3 == 0 {
            // It lives: it is waited for.
            let words: Vec<&str> = line.split(' ').collect();
            let mut child = host.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            drop(child.stdin.take());
            while !seen() && child.try_wait().unwrap().is_none() {}
            assert_eq!(told_and_true(&host, &disk), round % 2 == 0, "round {round}");
            child.wait().unwrap();
        } else {
            killed_when(&host, line, b"", seen);
        }
        if told_and_true(&host, &disk) {
            job += 1;
            let environment = format!("env{job}");
            succeeds(&host, &order(&host, &environment, job, &["echo x > file"]));
            host.release(&environment);
        } else {
            host.ask(&mount);
        }
    }
}

/// Whether the slot's volume is said to be mounted, which it then is, and ready for a job.
fn told_and_true(host: &Host, disk: &Disk) -> bool {
    let told = match host.ask("hello --pool ns/p --pool-uid pool-uid --epoch 1") {
        Answer::Hello(hello) => !hello.mounts.is_empty(),
        other => panic!("{other:?}"),
    };
    assert_eq!(told, !disk.mounts().is_empty());
    told
}

/// Starts a verb and kills it as soon as something is seen, unless it is done before.
pub fn killed_when(host: &Host, line: &str, input: &[u8], seen: &dyn Fn() -> bool) {
    let words: Vec<&str> = line.split(' ').collect();
    let mut child = host.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    while !seen() && child.try_wait().unwrap().is_none() {}
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_volume_half_formatted_is_formatted_again_only_where_it_was_begun() {
    let Some((host, disk)) = host_and_disk() else { return };
    mount(&host, &disk);
    unmount(&host);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let begun = |boot: &str| {
        let note = format!(
            r#"{{"format":1,"slot":0,"volume":"vol-0test1","folder":"{}","device":"{}","step":"Formatting","boot_id":"{boot}"}}"#,
            host.path("builds/0").display(),
            disk.device.display()
        );
        std::fs::write(host.path("state/volumes/0.json"), note).unwrap();
    };
    // It has been mounted: whoever did may have put something there.
    begun(boot.trim());
    assert!(!mount(&host, &disk).filesystem_made);
    unmount(&host);
    // A superblock that did not come to be.
    disk.write(&[0; 1024], 1024);
    disk.write(b"half", 300_000);
    begun("another-boot");
    assert_eq!(refusal(&host, &mount_line(&host, &disk, 0)).0, RefusalReason::Unsupported);
    begun(boot.trim());
    assert!(mount(&host, &disk).filesystem_made);
}

#[test]
fn a_volume_that_was_enlarged_is_grown() {
    let Some((host, disk)) = host_and_disk() else { return };
    let before = mount(&host, &disk);
    succeeds(&host, &order(&host, "env1", 1, &["echo kept > file"]));
    disk.enlarge();
    let grown = mount(&host, &disk);
    match &grown.not_grown {
        None => assert!(grown.size_bytes > before.size_bytes * 3 / 2, "{before:?} {grown:?}"),
        // The kernel grows for those only who may exceed limits, which root may not in every container.
        Some(reason) => {
            assert!(!may_exceed_limits() && reason.contains("Permission denied"), "{reason}");
            assert_eq!(grown.size_bytes, before.size_bytes);
        }
    }
    assert_eq!(std::fs::read_to_string(host.workspace().join("file")).unwrap(), "kept\n");
}

/// Whether this process has the capability `CAP_SYS_RESOURCE`.
fn may_exceed_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(capabilities.trim(), 16).unwrap() & 1 << 24 != 0
}

#[test]
fn a_slot_is_not_unmounted_from_under_an_environment_that_is_awake() {
    let Some((host, disk)) = host_and_disk() else { return };
    mount(&host, &disk);
    let mut job = host.start(&order(&host, "env1", 1, &["echo begun; read x < $(mkfifo p; echo p)"]));
    job.until_log("01O begun");
    let (reason, words) = refusal(&host, &unmount_line(&host, 0));
    assert!(reason == RefusalReason::InUse && words.contains("env1"), "{words}");
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1"), Answer::Done);
    job.into_end();
    assert_eq!(refusal(&host, &unmount_line(&host, 0)).0, RefusalReason::InUse, "it was not released");
    host.release("env1");
    unmount(&host);
}

#[test]
fn the_processes_of_a_sleeper_end_when_its_volume_leaves_and_the_next_job_is_told() {
    let Some((host, disk)) = host_and_disk() else { return };
    mount(&host, &disk);
    let clock = "(while :; do echo tick >> ticks; sleep 0.02; done) & echo $! > pid";
    host.run(&sleeping(order(&host, "env1", 1, &[clock])));
    let asleep = host.suspend("env1", 1).context.unwrap();
    let pid = std::fs::read_to_string(host.workspace().join("pid")).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    assert!(process.exists() && asleep.processes > 0);
    assert_eq!(unmount(&host), asleep.processes);
    until("the clock is gone", || (!process.exists()).then_some(()));
    let Answer::List(listed) = host.ask("list --pool-uid pool-uid --epoch 1") else { panic!("no list") };
    let context = listed[0].environment.context.clone().unwrap();
    assert_eq!((context.processes, context.processes_lost), (0, asleep.processes));
    mount(&host, &disk);
    let text = succeeds(&host, &resuming(&host, "env1", 2, &["test -s ticks && echo there"]));
    let told = format!("its background processes ({}) are gone", asleep.processes);
    assert!(text.contains(&told) && text.contains("01O there"), "{text}");
}

#[test]
fn a_stranger_who_uses_the_volume_is_named_and_not_touched() {
    let Some((host, disk)) = host_and_disk() else { return };
    mount(&host, &disk);
    let mut stranger = Command::new("sleep").arg("1000").current_dir(host.path("builds/0")).spawn().unwrap();
    let (reason, words) = refusal(&host, &unmount_line(&host, 0));
    assert_eq!(reason, RefusalReason::InUse);
    assert!(words.contains(&format!("{} (sleep)", stranger.id())), "{words}");
    assert!(stranger.try_wait().unwrap().is_none());
    let ran = host.start(&order(&host, "env1", 1, &["true"])).into_end();
    assert_eq!(refused(ran.answer.unwrap()), RefusalReason::HostFailure, "no job begins meanwhile");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    unmount(&host);

    // A copy of the mount in a namespace of somebody's own keeps the file system alive.
    mount(&host, &disk);
    let others = r#"for volume in $(grep -o '^/dev/loop[0-9]*' /proc/mounts); do
        [ "$volume" = "$1" ] || umount -l "$volume"
    done; exec sleep 1000"#;
    let mut stranger = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            others,
            "sh",
            disk.device.to_str().unwrap(),
        ])
        .current_dir("/")
        .spawn()
        .unwrap();
    let entered = format!("/proc/{}/comm", stranger.id());
    until("it has a namespace of its own", || {
        std::fs::read_to_string(&entered).is_ok_and(|name| name.trim() == "sleep").then_some(())
    });
    for _ in 0..2 {
        let (reason, words) = refusal(&host, &unmount_line(&host, 0));
        assert_eq!(reason, RefusalReason::InUse);
        assert!(words.contains(&format!("{} (sleep)", stranger.id())), "{words}");
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    unmount(&host);
}

#[test]
fn after_a_reboot_nothing_begins_before_the_volume_is_mounted_again() {
    let Some((host, disk)) = host_and_disk() else { return };
    mount(&host, &disk);
    host.run(&sleeping(order(&host, "env1", 1, &["echo kept > file"])));
    host.suspend("env1", 1);
    disk.unmount();
    let hello = "hello --pool ns/p --pool-uid pool-uid --epoch 1";
    let Answer::Hello(said) = host.ask(hello) else { panic!("no hello") };
    assert_eq!(said.mounts, Vec::new());
    let ran = host.start(&resuming(&host, "env1", 2, &["true"])).into_end();
    assert_eq!(refused(ran.answer.unwrap()), RefusalReason::HostFailure);
    let (reason, words) = refusal(&host, "release --environment env1 --epoch 1");
    assert!(reason == RefusalReason::HostFailure && words.contains("vol-0test1"), "{words}");
    assert!(!mount(&host, &disk).filesystem_made);
    let Answer::Hello(said) = host.ask(hello) else { panic!("no hello") };
    let [mounted] = said.mounts.try_into().unwrap();
    assert_eq!((mounted.slot, mounted.volume.as_str()), (0, "vol-0test1"));
    assert_eq!(mounted.device, disk.device.to_str().unwrap());
    let text = succeeds(&host, &resuming(&host, "env1", 2, &["cat file"]));
    assert!(text.contains("01O kept"), "{text}");
}

#[test]
fn a_mount_hides_nobodys_workspace_and_takes_nobodys_device() {
    let Some((host, disk)) = host_and_disk() else { return };
    let Some(other) = Disk::blank() else { return };
    let line = mount_line(&host, &disk, 0);
    let mut job = host.start(&order(&host, "env1", 1, &["echo begun; read x < $(mkfifo p; echo p)"]));
    job.until_log("01O begun");
    assert_eq!(refusal(&host, &line).0, RefusalReason::InUse);
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1"), Answer::Done);
    job.into_end();
    assert_eq!(refusal(&host, &line).0, RefusalReason::SlotTaken);
    host.release("env1");
    mount(&host, &disk);
    let (reason, words) =
        refusal(&host, &line.replace(disk.device.to_str().unwrap(), other.device.to_str().unwrap()));
    assert!(reason == RefusalReason::WorkspaceMismatch, "{words}");
    assert!(words.contains(disk.device.to_str().unwrap()), "{words}");
    let (reason, words) = refusal(&host, &mount_line(&host, &disk, 1));
    assert!(reason == RefusalReason::InUse && words.contains("/builds/0"), "{words}");
    assert_eq!(other.mounts(), Vec::new());
}

#[test]
fn a_link_in_the_place_of_the_slot_is_not_mounted_at() {
    let Some((host, disk)) = host_and_disk() else { return };
    std::fs::create_dir_all(host.path("builds")).unwrap();
    std::fs::create_dir(host.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(host.path("elsewhere"), host.path("builds/0")).unwrap();
    assert_eq!(refusal(&host, &mount_line(&host, &disk, 0)).0, RefusalReason::HostFailure);
    assert_eq!(disk.mounts(), Vec::new());
}

#[test]
fn files_belong_to_the_slots_user_also_when_another_host_numbered_it_otherwise() {
    struct User;
    impl Drop for User {
        fn drop(&mut self) {
            let name = format!("dormouse-slot{SLOT}");
            let _gone = Command::new("/usr/sbin/userdel").args(["--remove", &name]).output();
        }
    }
    // Gone after the host, whose release would make it again.
    let _user = User;
    let Some((host, disk)) = host_and_disk() else { return };
    let line = format!("{} --isolation PerSlotUser", mount_line(&host, &disk, SLOT));
    let in_slot = |environment: &str, job: u64, script: &[&str]| JobOrder {
        slot: SLOT,
        isolation: Isolation::PerSlotUser,
        ..order(&host, environment, job, script)
    };
    assert!(matches!(host.ask(&line), Answer::Volume(_)));
    let made = in_slot("env1", 1, &["mkdir deep; echo x > deep/file; ln -s /etc/hostname deep/link"]);
    succeeds(&host, &made);
    host.release("env1");
    let root = host.path(&format!("builds/{SLOT}"));
    let file = root.join("group/project/deep/file");
    let owner = std::fs::metadata(&file).unwrap().uid();
    assert_eq!(std::fs::metadata(&root).unwrap().mode() & 0o7777, 0o700);
    let before = std::fs::metadata("/etc/hostname").unwrap().uid();

    // As a host would have left it whose user of the slot has another number.
    said(
        "chown",
        &[
            "--recursive",
            "--no-dereference",
            &format!("--from={owner}"),
            "54321:54321",
            root.to_str().unwrap(),
        ],
    );
    assert_eq!(std::fs::metadata(&file).unwrap().uid(), 54321);
    assert!(matches!(host.ask(&line), Answer::Volume(_)));
    assert_eq!(std::fs::metadata(&file).unwrap().uid(), owner);
    assert_eq!(std::fs::symlink_metadata(root.join("group/project/deep/link")).unwrap().uid(), owner);
    assert_eq!(std::fs::metadata("/etc/hostname").unwrap().uid(), before);
    let text = succeeds(&host, &in_slot("env2", 2, &["echo y >> deep/file; cat deep/file"]));
    assert!(text.contains("01O y"), "{text}");
}

#[test]
fn without_root_it_is_refused_with_the_way_out() {
    let host = Host::new();
    let line = format!(
        "volume-mount --slot 0 --volume vol-0test1 --builds-dir {} --epoch 1",
        host.path("builds").display()
    );
    for line in [line, unmount_line(&host, 0)] {
        let words: Vec<&str> = line.split(' ').collect();
        let mut command = host.command(&words);
        if is_root() {
            std::fs::create_dir_all(host.path("state")).unwrap();
            std::os::unix::fs::chown(host.path("state"), Some(65534), Some(65534)).unwrap();
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Unsupported") && text.contains("allow sudo without a password"), "{text}");
    }
}
