//! The checker is handed worlds in which one promise is broken, and says so.

use jiff::Timestamp;
use serde_json::json;

use super::{Entry, Expectation, Facts, HostFacts, Verb, Woken};
use crate::testbed::gitlab::{JobId, JobState, JobView, Put};

const KEY: &str = "1/s_0123456789ab/acquisition-key=abcdefghijklmnopqrst";
const FOLDER: &str = "/root/builds/0/group/project";

fn log(id: u64, lines: u32, end: &str) -> Vec<u8> {
    let numbered: String = (1..=lines).map(|number| format!("job-{id} line {number}.\n")).collect();
    format!("$ echo begun\n{numbered}{end}\n").into_bytes()
}

fn job(id: u64, log: Vec<u8>) -> JobView {
    let now = Timestamp::UNIX_EPOCH;
    let put = Put {
        at: now,
        state: "success".to_owned(),
        failure_reason: None,
        exit_code: Some(0),
        environment_key: None,
        checksum: Some(format!("crc32:{:08x}", crc32fast::hash(&log))),
        bytesize: u64::try_from(log.len()).ok(),
        answer: 200,
    };
    JobView {
        id: JobId(id),
        name: format!("job-{id}"),
        project: "group/project".to_owned(),
        token: String::new(),
        state: JobState::Success,
        log,
        exit_code: Some(0),
        failure_reason: None,
        environment_key: None,
        runner: None,
        machine: None,
        puts: vec![put],
        patches: Vec::new(),
        fetches: Vec::new(),
        artifacts: Vec::new(),
        enqueued_at: now,
        picked_up_at: None,
        running_at: None,
        first_byte_at: None,
        finished_at: None,
        retried_as: None,
        retry_of: None,
    }
}

fn entry(verb: Verb, job: u64, at: u64, word: &str) -> Entry {
    Entry { verb, job: JobId(job), at, folder: FOLDER.to_owned(), word: word.to_owned() }
}

fn wanted(job: u64, lines: u32) -> Expectation {
    Expectation { job: JobId(job), lines, exit_code: 0, sleeps: false, wakes: None, expires: false }
}

/// Job 1 puts an environment to sleep, job 2 wakes it and puts it to sleep again, and there it is. Job 3 ran in
/// another slot and has left nothing.
fn world() -> Facts {
    let suspended = format!("Job environment suspended: {KEY}\nJob succeeded");
    let woke = format!("Job environment resumed: {KEY}\n{suspended}");
    let mut jobs = vec![
        job(1, log(1, 3, &suspended)),
        job(2, log(2, 2, &woke)),
        job(3, log(3, 1, "Job failed: exit code 7")),
    ];
    for job in &mut jobs[..2] {
        job.environment_key = Some(KEY.to_owned());
    }
    (jobs[2].state, jobs[2].exit_code) = (JobState::Failed, Some(7));
    jobs[2].failure_reason = Some("script_failure".to_owned());
    jobs[2].puts[0].state = "failed".to_owned();
    let mut journal = vec![
        entry(Verb::Begin, 1, 10, "-"),
        entry(Verb::End, 1, 20, "-"),
        entry(Verb::Begin, 2, 30, "-"),
        entry(Verb::Found, 2, 31, "1"),
        entry(Verb::Alive, 2, 32, "-"),
        entry(Verb::End, 2, 40, "-"),
        entry(Verb::Begin, 3, 15, "-"),
        entry(Verb::End, 3, 35, "-"),
    ];
    for entry in &mut journal[6..] {
        entry.folder = FOLDER.replace('0', "1");
    }
    let lease = |id: u64| {
        json!({ "metadata": { "name": format!("pool-{id}") }, "spec": { "jobId": id },
        "status": { "phase": "Reported" } })
    };
    let woken = Woken { key: KEY.to_owned(), of: JobId(1) };
    let mut facts = Facts {
        expectations: vec![
            Expectation { sleeps: true, ..wanted(1, 3) },
            Expectation { sleeps: true, wakes: Some(woken), ..wanted(2, 2) },
            Expectation { exit_code: 7, ..wanted(3, 1) },
        ],
        hosts: vec![HostFacts {
            name: "alder".to_owned(),
            journal,
            environments: vec!["abcdefghijklmnopqrst".to_owned()],
            logs: vec![(JobId(2), jobs[1].log.clone())],
            ..HostFacts::default()
        }],
        jobs,
        ..Facts::default()
    };
    facts.cluster.leases = (1..=3).map(lease).collect();
    facts.cluster.replicas = 1;
    facts.cluster.claims =
        ["pool-pool", "replica-0123"].map(|name| format!("lease/dormouse-{name}")).to_vec();
    facts.cluster.environments = vec![json!({
        "spec": { "environmentId": "abcdefghijklmnopqrst" },
        "status": { "phase": "Suspended", "environmentKey": KEY },
    })];
    facts
}

/// Breaks the world, and fails unless that is said.
#[track_caller]
fn says(words: &str, break_it: impl FnOnce(&mut Facts)) {
    let mut facts = world();
    break_it(&mut facts);
    let broken = facts.broken_promises();
    assert!(broken.iter().any(|what| what.contains(words)), "{words:?} is not in {broken:#?}");
}

/// Gives a job another log, and a result that claims it.
fn relog(facts: &mut Facts, index: usize, edit: impl FnOnce(String) -> String) {
    let job = &mut facts.jobs[index];
    job.log = edit(job.log_text()).into_bytes();
    job.puts[0].checksum = Some(format!("crc32:{:08x}", crc32fast::hash(&job.log)));
    job.puts[0].bytesize = u64::try_from(job.log.len()).ok();
}

#[test]
fn a_world_with_every_promise_kept_is_called_so() {
    assert_eq!(world().broken_promises(), Vec::<String>::new());
}

#[test]
fn what_gitlab_saw_is_passed_on() {
    says("a chunk with a gap", |facts| facts.violations.push("a chunk with a gap".to_owned()));
}

#[test]
fn a_log_that_lacks_repeats_or_swaps_lines_is_told_of() {
    says("2 numbered lines instead of 3; after 1", |facts| {
        relog(facts, 0, |log| log.replace("job-1 line 2.\n", ""));
    });
    says("4 numbered lines instead of 3; after 2", |facts| {
        relog(facts, 0, |log| log.replace("job-1 line 2.\n", "job-1 line 2.\njob-1 line 2.\n"));
    });
    says("after 1 right ones comes Some(3)", |facts| {
        relog(facts, 0, |log| {
            log.replace("line 2.", "line x.").replace("line 3.", "line 2.").replace('x', "3")
        });
    });
    says("0 numbered lines", |facts| relog(facts, 0, |_| String::new()));
    says("is there 2 times", |facts| relog(facts, 0, |log| log + "Job succeeded\n"));
    says("is there 0 times", |facts| relog(facts, 1, |log| log.replace("resumed", "fresh")));
    says("they differ from byte 0 on", |facts| facts.hosts[0].logs[0].1[0] = b'#');
}

#[test]
fn a_result_that_does_not_fit_the_log_is_told_of() {
    says("its result claims", |facts| facts.jobs[0].log.push(b'\n'));
    says("bytes, its log has", |facts| facts.jobs[0].puts[0].bytesize = Some(1));
    says("GitLab has taken no result", |facts| facts.jobs[0].puts[0].answer = 500);
}

#[test]
fn a_wrong_end_is_told_of() {
    says("is Failed", |facts| facts.jobs[0].state = JobState::Failed);
    says("is Running", |facts| facts.jobs[0].state = JobState::Running);
    says("exit code Some(8), not 7", |facts| facts.jobs[2].exit_code = Some(8));
    says("runner_system_failure", |facts| {
        facts.jobs[2].failure_reason = Some("runner_system_failure".to_owned());
    });
    says("environment key None", |facts| facts.jobs[0].environment_key = None);
    says("environment key Some", |facts| facts.jobs[2].environment_key = Some(KEY.to_owned()));
    says("job 3 is unknown", |facts| drop(facts.jobs.pop()));
}

#[test]
fn a_job_that_is_run_twice_or_never_is_told_of() {
    says("job 3 (job-3): begun 2 times", |facts| {
        let again = entry(Verb::Begin, 3, 100, "-");
        facts.hosts.push(HostFacts {
            name: "birch".to_owned(),
            journal: vec![again],
            ..HostFacts::default()
        });
    });
    says("job 3 (job-3): begun 0 times", |facts| {
        facts.hosts[0].journal.retain(|entry| entry.job != JobId(3));
    });
    says("job 3 (job-3): ended 0 times", |facts| drop(facts.hosts[0].journal.pop()));
}

#[test]
fn a_job_that_gitlab_queued_anew_counts_by_its_successor_and_must_not_have_run() {
    let retry = |facts: &mut Facts| {
        facts.expectations[2].job = JobId(0);
        facts.jobs.push(job(0, Vec::new()));
        let dropped = facts.jobs.last_mut().unwrap();
        (dropped.state, dropped.retried_as) = (JobState::Failed, Some(JobId(3)));
    };
    let mut facts = world();
    retry(&mut facts);
    assert_eq!(facts.broken_promises(), Vec::<String>::new());
    says("job 0 (job-0) was given back to GitLab and run all the same", |facts| {
        retry(facts);
        facts.hosts[0].journal.push(entry(Verb::Begin, 0, 50, "-"));
    });
}

#[test]
fn a_slot_with_two_owners_is_told_of() {
    let move_job_3 = |facts: &mut Facts, from: u64, to: u64| {
        for (entry, at) in facts.hosts[0].journal[6..].iter_mut().zip([from, to]) {
            (entry.folder, entry.at) = (FOLDER.to_owned(), at);
        }
    };
    says("slot 0 of alder has two owners: job 1 (job-1) and job 3", |facts| move_job_3(facts, 15, 17));
    says("environment 1/s_0123456789ab/acquisition-key=abcdefghijklmnopqrst and job 3", |facts| {
        move_job_3(facts, 22, 25);
    });
    says("and job 3 (job-3)", |facts| move_job_3(facts, 1000, 1001));
    let mut facts = world();
    move_job_3(&mut facts, 1, 5);
    assert_eq!(facts.broken_promises(), Vec::<String>::new(), "the slot was free before");
}

#[test]
fn a_lost_or_changed_environment_is_told_of() {
    says("it is lost: the API server", |facts| facts.cluster.environments.clear());
    says("it is lost: alder has nothing of it", |facts| facts.hosts[0].environments.clear());
    says("it is not asleep but \"Resuming\"", |facts| {
        facts.cluster.environments[0]["status"]["phase"] = json!("Resuming");
    });
    says("it woke in", |facts| facts.hosts[0].journal[2].folder = FOLDER.replace('0', "2"));
    says("it found the files of job 9", |facts| facts.hosts[0].journal[3].word = "9".to_owned());
    says("did not live through the sleep", |facts| facts.hosts[0].journal[4].verb = Verb::Dead);
    says("nothing is known of the background process", |facts| drop(facts.hosts[0].journal.remove(4)));
    says("it did not look for its files", |facts| drop(facts.hosts[0].journal.remove(3)));
}

#[test]
fn what_stays_behind_is_told_of() {
    says("JobLease \"pool-2\" is Running", |facts| {
        facts.cluster.leases[1]["status"]["phase"] = json!("Running");
    });
    says("JobLease \"pool-2\" is without a phase", |facts| facts.cluster.leases[1]["status"] = json!(null));
    says("Secret secret/pool-1 is left", |facts| facts.cluster.payloads.push("secret/pool-1".to_owned()));
    for (kind, whose) in [("pool", "one pool"), ("replica", "replicas that are gone")] {
        says(&format!("there are Leases of {whose}"), |facts| {
            facts.cluster.claims.push(format!("lease/dormouse-{kind}-other"))
        });
    }
    says("alder keeps environment stray, which no object knows", |facts| {
        facts.hosts[0].environments.push("stray".to_owned());
    });
    let empty = || HostFacts { name: "birch".to_owned(), ..HostFacts::default() };
    says("birch still runs \"7 sleep 1\"", |facts| {
        facts.hosts.push(HostFacts { processes: vec!["7 sleep 1".to_owned()], ..empty() });
    });
    says("birch still has the cgroup ./job", |facts| {
        facts.hosts.push(HostFacts { cgroups: vec!["./job".to_owned()], ..empty() });
    });
}

#[test]
fn a_journal_that_cannot_be_read_is_an_error() {
    let line = format!("begin 7 12 {FOLDER} -\n");
    assert_eq!(Entry::read_all(&line).unwrap(), [entry(Verb::Begin, 7, 12, "-")]);
    for line in ["begin 7 12", "begun 7 12 /x -", "begin x 12 /x -", "begin 7 12 x -"] {
        assert!(Entry::read_all(line).is_err(), "{line:?} was read");
    }
}
