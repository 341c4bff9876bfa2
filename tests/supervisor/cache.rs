//! Caches of a host: kept apart by project and by user, whole for every reader, and never a job's failure.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use dormouse::gitlab::cache::{CachePlan, When};
use dormouse::spool::cache::{CacheOrder, CacheStore, CacheUrl, CacheUrls};

use super::*;

fn plan(key: &str) -> CachePlan {
    CachePlan {
        keys: vec![key.to_owned()],
        pulls: true,
        pushes: true,
        when: When::OnSuccess,
        paths: vec!["deps".to_owned()],
        untracked: false,
        notes: Vec::new(),
    }
}

/// A job of a slot with these caches in the host's folder.
fn with_caches(order: JobOrder, slot: u32, plans: Vec<CachePlan>) -> JobOrder {
    let store = CacheStore::Host { folder: None };
    let cache = Some(CacheOrder { plans, store, largest_archive: 0, request_timeout: 5 });
    JobOrder { slot, cache, ..order }
}

#[test]
fn a_slot_finds_what_another_slot_has_left() {
    let host = Host::new();
    let first = order(&host, "first", 1, &["mkdir deps; echo left > deps/x"]);
    let left = host.run(&with_caches(first, 0, vec![plan("k")])).text();
    assert!(
        left.contains("section_start") && left.contains(":archive_cache") && left.contains("Created cache"),
        "{left}"
    );
    let second = order(&host, "second", 2, &["cat deps/x"]);
    let found = host.run(&with_caches(second, 1, vec![plan("k")])).text();
    assert!(found.contains(":restore_cache") && found.contains("left"), "{found}");
    assert!(found.contains("Archive is up to date!"), "{found}");
    let archive = host.path("state/cache/group/project/k/cache.zip");
    let mode = std::fs::metadata(&archive).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "others may read it");
}

#[test]
fn slots_that_save_and_read_one_key_at_a_time_meet_whole_archives_only() {
    let host = Host::new();
    // What a slot saves is two equal halves; a reader that ever sees others has read half of each.
    let script = "mkdir -p deps; head -c 3000000 /dev/urandom > deps/a; cp deps/a deps/b";
    let racing = |slot: u32, job: u64| {
        let plan = CachePlan { pulls: false, ..plan("k") };
        let name = format!("writer{job}");
        host.start(&with_caches(order(&host, &name, job, &[script]), slot, vec![plan]))
    };
    host.run(&with_caches(order(&host, "seed", 1, &[script]), 0, vec![plan("k")]));
    for round in 0..4 {
        let (one, two) = (racing(1, 10 + round), racing(2, 20 + round));
        let reading = CachePlan { pushes: false, ..plan("k") };
        let name = format!("reader{round}");
        let reader = order(
            &host,
            &name,
            30 + round,
            &["rm -rf /nowhere; cmp deps/a deps/b && echo halves are equal."],
        );
        let read = host.run(&with_caches(reader, 3, vec![reading])).text();
        assert!(read.contains("Successfully extracted") && read.contains("halves are equal."), "{read}");
        for writer in [one, two] {
            let wrote = writer.into_end().text();
            assert!(wrote.contains("Created cache"), "{wrote}");
        }
        for id in ["writer1", "writer2", "reader"] {
            for entry in std::fs::read_dir(host.path("state/environments")).into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if name.starts_with(id) {
                    host.release(&name);
                }
            }
        }
    }
    let left: Vec<_> =
        std::fs::read_dir(host.path("state/cache/group/project/k")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "drafts are left: {left:?}");
}

#[test]
fn a_killed_supervisor_leaves_the_old_cache_and_its_draft_is_swept() {
    let host = Host::new();
    host.run(&with_caches(order(&host, "first", 1, &["mkdir deps; echo old > deps/x"]), 0, vec![plan("k")]));
    let script = "rm -rf deps; mkdir deps; head -c 80000000 /dev/urandom > deps/x";
    let pushing = CachePlan { pulls: false, ..plan("k") };
    let mut dying = host.start(&with_caches(order(&host, "second", 2, &[script]), 1, vec![pushing.clone()]));
    dying.until_log("Creating cache k");
    let draft = host.path("state/cache/group/project/k/.draft-2");
    until("the draft is being written", || std::fs::metadata(&draft).ok().filter(|meta| meta.len() > 0));
    let pid = rustix::process::Pid::from_raw(host.status("second", 2).runner.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("the job is dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        // Whoever is the parent now may leave it unburied.
        stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    });
    dying.cut();
    host.release("second");
    let reading = CachePlan { pushes: false, ..plan("k") };
    let read = host.run(&with_caches(order(&host, "third", 3, &["cat deps/x"]), 2, vec![reading])).text();
    assert!(read.contains("old"), "{read}");
    host.run(&with_caches(order(&host, "fourth", 4, &["mkdir deps; echo new > deps/x"]), 3, vec![pushing]));
    assert!(!draft.exists(), "the dead writer's draft is still there");
}

#[test]
fn the_user_of_a_slot_reaches_no_cache_but_through_its_own_stages() {
    if !is_root() {
        return eprintln!("left out: takes root");
    }
    let host = Host::new();
    let per_slot = |order: JobOrder| JobOrder { isolation: Isolation::PerSlotUser, ..order };
    let first = per_slot(order(&host, "first", 1, &["mkdir deps; echo left > deps/x; id -un"]));
    let left = host.run(&with_caches(first, 0, vec![plan("k")])).text();
    assert!(left.contains("dormouse-slot0") && left.contains("Created cache"), "{left}");
    let folder = host.path("state/cache");
    let meta = std::fs::metadata(folder.join("group/project/k/cache.zip")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o600));
    let probe = format!(
        "ls {0} || echo cannot look.; echo x > {0}/group/project/k/cache.zip || echo cannot write.",
        folder.display()
    );
    let second = per_slot(order(&host, "second", 2, &[&probe, "cat deps/x; stat -c %U deps/x"]));
    let found = host.run(&with_caches(second, 1, vec![plan("k")])).text();
    for wanted in ["cannot look.", "cannot write.", "left", "dormouse-slot1"] {
        assert!(found.contains(wanted), "{wanted}: {found}");
    }
}

#[test]
fn a_folder_that_jobs_may_change_is_not_used_for_users_of_slots() {
    if !is_root() {
        return eprintln!("left out: takes root");
    }
    let host = Host::new();
    let open = host.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut order =
        with_caches(order(&host, "first", 1, &["mkdir deps; echo x > deps/x"]), 0, vec![plan("k")]);
    order.isolation = Isolation::PerSlotUser;
    if let Some(cache) = &mut order.cache {
        cache.store = CacheStore::Host { folder: Some(open.to_str().unwrap().to_owned()) };
    }
    let said = host.run(&order);
    assert!(
        said.text().contains("caches are skipped") && said.text().contains("spec.cacheDir"),
        "{}",
        said.text()
    );
    assert!(said.text().contains("Job succeeded"), "{}", said.text());
}

#[test]
fn no_store_and_notes_are_said_once_and_fail_nothing() {
    let host = Host::new();
    let mut order = with_caches(
        order(&host, "first", 1, &["echo ran."]),
        0,
        vec![CachePlan { notes: vec!["something was changed".to_owned()], ..plan("k") }],
    );
    if let Some(cache) = &mut order.cache {
        cache.store = CacheStore::Nowhere { why: "the bucket is closed".to_owned() };
    }
    let text = host.run(&order).text();
    assert_eq!(text.matches("something was changed").count(), 1, "{text}");
    assert!(
        text.contains("the bucket is closed") && text.contains("ran.") && text.contains("Job succeeded"),
        "{text}"
    );
}

#[test]
fn newer_addresses_are_used_and_none_outlives_the_job() {
    let host = Host::new();
    let urls = |port: u16| CacheUrls {
        valid_until: jiff::Timestamp::MAX,
        caches: vec![CacheUrl {
            get: vec![],
            put: Some(format!("http://127.0.0.1:{port}/k?X-Amz-Signature=secret-{port}")),
        }],
    };
    let script = ["mkdir deps; echo x > deps/x; echo ready.; until [ -e go ]; do sleep 0.05; done"];
    let pushing = CachePlan { pulls: false, ..plan("k") };
    let mut order = with_caches(order(&host, "first", 1, &script), 0, vec![pushing]);
    if let Some(cache) = &mut order.cache {
        cache.store = CacheStore::Bucket(urls(1));
    }
    let mut job = host.start(&order);
    job.until_log("ready.");
    // Somebody who takes one upload.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let count = stream.read(&mut head).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        // What is still on its way must not meet a closed door.
        let _rest = stream.read_to_end(&mut Vec::new());
        String::from_utf8_lossy(&head[..count]).into_owned()
    });
    let words = ["renew", "--environment", "first", "--job", "1", "--epoch", "1"];
    let renewed = host.give(&words, &serde_json::to_vec(&urls(port)).unwrap());
    assert_eq!(serde_json::from_slice::<Answer>(&renewed.stdout).unwrap(), Answer::Done);
    std::fs::write(host.workspace().join("go"), "").unwrap();
    let text = job.into_end().text();
    assert!(text.contains("Created cache") && !text.contains("secret-"), "{text}");
    let head = taken.join().unwrap();
    assert!(head.starts_with(&format!("PUT /k?X-Amz-Signature=secret-{port} ")), "{head}");
    assert!(head.to_lowercase().contains("content-length: "), "{head}");
    assert_eq!(host.files_with("state", "secret-"), Vec::<PathBuf>::new());
    let late = host.give(&words, &serde_json::to_vec(&urls(port)).unwrap());
    assert_eq!(serde_json::from_slice::<Answer>(&late.stdout).unwrap(), Answer::Done);
    assert_eq!(host.files_with("state", "secret-"), Vec::<PathBuf>::new());
}
