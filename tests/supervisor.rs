//! The supervisor itself, as a process on this machine: its verbs, its streams, what it leaves on the disk.
//!
//! Runs the static binary as the operator does, only without SSH. Each test has a host of its own: a state folder
//! and a builds folder. What takes root is left out without it, and the test says so.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod cache;
mod claims;
mod disk;
mod ends;
mod errands;
mod interrupt;
mod isolation;
mod lines;
mod moves;
mod notices;
mod plain;
mod sleep;
mod sources;
mod volumes;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dormouse::gitlab::wire::{JobInfo, JobPayload, RunnerInfo, ServerFeatures, Step, Variable};
use dormouse::spool::FORMAT;
use dormouse::spool::frame::{Decoder, Frame};
use dormouse::spool::order::{Isolation, JobOrder, JobSettings, ResumeOrder, RunnerFacts, SuspendPlan};
use dormouse::spool::record::{EnvironmentRecord, JobRecord};
use dormouse::spool::verb::{Answer, LogEnd, RefusalReason};

/// How long anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The token of every job here; no test may ever find it in a log or in a file.
const TOKEN: &str = "glcbt-64_AbCdEfGhIjKlMnOpQrSt";

/// The supervisor under test: `$DORMOUSE_SUPERVISOR`, or built now.
fn supervisor() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(given) = std::env::var_os("DORMOUSE_SUPERVISOR") {
            return PathBuf::from(given);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed/build-supervisor.sh");
        let output = Command::new(&script).arg("--test").output().unwrap();
        assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

/// Looks until something is there.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "did not see that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets go of the volumes of tests beside this one, which a mount namespace would keep in use.
const LEAVE_VOLUMES: &str =
    r#"for volume in $(grep -o '^/dev/loop[0-9]*' /proc/mounts); do umount -l "$volume"; done"#;

/// The supervisor where nothing of these kinds is mounted; takes root.
fn without_mounts(kinds: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("{LEAVE_VOLUMES}; umount -a -l -t \"$1\"; shift; exec \"$@\"");
    command.args(["--mount", "--", "sh", "-c", &script, "sh", kinds]);
    command.arg(supervisor());
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A host: folders of its own, and everything on it ended when the test is over.
struct Host {
    folder: tempfile::TempDir,
    cgroups: Cgroups,
}

/// Which cgroups the supervisor of a host finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cgroups {
    /// Those of this machine.
    AsTheyAre,
    /// Version 1 alone.
    OnlyV1,
    /// None.
    None,
}

impl Host {
    fn new() -> Self {
        Self::with_cgroups(Cgroups::AsTheyAre)
    }

    /// A host whose kernel offers less than this machine's.
    fn with_cgroups(cgroups: Cgroups) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        // The users of slots must reach their folders.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, cgroups }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn workspace(&self) -> PathBuf {
        self.path("builds/0/group/project")
    }

    fn job_folder(&self, environment: &str, job: u64) -> PathBuf {
        self.path("state/environments").join(environment).join("jobs").join(job.to_string())
    }

    fn log(&self, environment: &str, job: u64) -> String {
        std::fs::read_to_string(self.job_folder(environment, job).join("log")).unwrap_or_default()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = match self.cgroups {
            Cgroups::AsTheyAre => Command::new(supervisor()),
            Cgroups::OnlyV1 => without_mounts("cgroup2"),
            Cgroups::None => without_mounts("cgroup,cgroup2"),
        };
        command.args(words).arg("--state-dir").arg(self.path("state"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn give(&self, words: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(words).spawn().unwrap();
        match child.stdin.take().unwrap().write_all(input) {
            // A verb that reads nothing may have ended already.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
        child.wait_with_output().unwrap()
    }

    /// A verb that answers with one line.
    fn ask_with(&self, line: &str, input: &str) -> Answer {
        let words: Vec<&str> = line.split(' ').collect();
        let output = self.give(&words, serde_json::to_string(input).unwrap().as_bytes());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn ask(&self, line: &str) -> Answer {
        self.ask_with(line, "")
    }

    fn refusal(&self, line: &str) -> RefusalReason {
        refused(self.ask(line))
    }

    fn status(&self, environment: &str, job: u64) -> JobRecord {
        match self.ask(&format!("status --environment {environment} --job {job}")) {
            Answer::Job(record) => *record,
            other => panic!("{other:?}"),
        }
    }

    fn suspend(&self, environment: &str, job: u64) -> EnvironmentRecord {
        match self.ask(&format!("suspend --environment {environment} --job {job} --epoch 1")) {
            Answer::Environment(record) => *record,
            other => panic!("{other:?}"),
        }
    }

    fn release(&self, environment: &str) {
        let answer = self.ask(&format!("release --environment {environment} --epoch 1"));
        assert_eq!(answer, Answer::Done);
    }

    fn append(&self, environment: &str, job: u64, once: &str, text: &str) -> LogEnd {
        let line = format!("append --environment {environment} --job {job} --once {once} --epoch 1");
        match self.ask_with(&line, text) {
            Answer::Log(end) => end,
            other => panic!("{other:?}"),
        }
    }

    /// Starts a job and follows it to the end of its stream; one that is put to sleep is sealed here.
    fn run(&self, order: &JobOrder) -> Streamed {
        let mut started = self.start(order);
        let environment = order.environment.clone();
        let (id, sleeps) = (order.job.id, order.suspend != SuspendPlan::default());
        if sleeps {
            started.until_status("the job is finished", |record| record.result.is_some());
            let line = format!("seal --environment {environment} --job {id} --epoch 1");
            self.ask_with(&line, "");
        }
        started.into_end()
    }

    /// Starts a job and leaves it running.
    fn start(&self, order: &JobOrder) -> Following {
        let mut child = self.command(&["start"]).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&serde_json::to_vec(order).unwrap()).unwrap();
        Following::new(child)
    }

    fn attach(&self, environment: &str, job: u64, from: u64) -> Following {
        let line = format!("attach --environment {environment} --job {job} --from {from} --epoch 1");
        let words: Vec<&str> = line.split(' ').collect();
        Following::new(self.command(&words).spawn().unwrap())
    }

    /// Every file below a folder whose bytes contain `text`.
    fn files_with(&self, below: &str, text: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path(below)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    let bytes = std::fs::read(entry.path()).unwrap_or_default();
                    if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                        found.push(entry.path());
                    }
                }
            }
        }
        found
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let folder = self.path("state/environments");
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let line =
                ["release", "--force", "--epoch", "999", "--environment", name.to_str().unwrap_or_default()];
            let _ended = self.give(&line, b"");
        }
    }
}

fn refused(answer: Answer) -> RefusalReason {
    match answer {
        Answer::Refused(refusal) => refusal.reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// A stream that is read as it comes.
struct Following {
    child: Child,
    decoder: Decoder,
    streamed: Streamed,
}

/// What a stream has told.
#[derive(Debug, Default)]
struct Streamed {
    answer: Option<Answer>,
    log: Vec<u8>,
    first_offset: Option<u64>,
    crc32: u32,
    record: Option<JobRecord>,
    alive: bool,
}

impl Streamed {
    fn text(&self) -> String {
        String::from_utf8(self.log.clone()).unwrap()
    }

    fn record(&self) -> &JobRecord {
        self.record.as_ref().unwrap_or_else(|| panic!("no record: {self:?}"))
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Answer(answer) => self.answer = Some(answer),
            Frame::Log(chunk) => {
                let next = self.first_offset.map(|first| first + self.log.len() as u64);
                assert!(next.is_none_or(|next| next == chunk.offset), "a gap before {}", chunk.offset);
                self.first_offset.get_or_insert(chunk.offset);
                self.log.extend_from_slice(&chunk.bytes);
                self.crc32 = chunk.crc32;
            }
            Frame::Status(status) => {
                self.record = Some(status.record);
                self.alive = status.alive;
            }
            Frame::Beat => {}
        }
    }
}

impl Following {
    fn new(child: Child) -> Self {
        Self { child, decoder: Decoder::default(), streamed: Streamed::default() }
    }

    /// Reads until `seen` is content; `false` at the end of the stream.
    fn read_until(&mut self, mut seen: impl FnMut(&Streamed) -> bool) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            while let Some(frame) = self.decoder.next_frame().unwrap() {
                self.streamed.take(frame);
                if seen(&self.streamed) {
                    return true;
                }
            }
            let count = self.child.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
            if count == 0 {
                return false;
            }
            self.decoder.feed(&buffer[..count]);
        }
    }

    fn until_log(&mut self, text: &str) {
        let seen = self.read_until(|streamed| String::from_utf8_lossy(&streamed.log).contains(text));
        assert!(seen, "{text:?} never came: {}", String::from_utf8_lossy(&self.streamed.log));
    }

    fn until_status(&mut self, what: &str, wanted: impl Fn(&JobRecord) -> bool) {
        let seen = self.read_until(|streamed| streamed.record.as_ref().is_some_and(&wanted));
        assert!(seen, "did not see that {what}: {:?}", self.streamed);
    }

    fn into_end(mut self) -> Streamed {
        self.read_until(|_| false);
        self.child.wait().unwrap();
        std::mem::take(&mut self.streamed)
    }

    /// As a connection that breaks.
    fn cut(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A job without sources; tests change what they are about.
fn order(host: &Host, environment: &str, job: u64, script: &[&str]) -> JobOrder {
    JobOrder {
        format: FORMAT,
        environment: environment.into(),
        pool_uid: "pool-uid".into(),
        epoch: 1,
        slot: 0,
        builds_dir: host.path("builds").to_str().unwrap().into(),
        isolation: Isolation::Single,
        runner: RunnerFacts {
            name: "pool".into(),
            short_token: "abcdefghi".into(),
            system_id: "s_0123456789ab".into(),
            version: "1.2.3".into(),
            gitlab_url: "http://127.0.0.1".into(),
            ca_bundle: None,
            client: None,
        },
        job: JobPayload {
            id: job,
            token: TOKEN.into(),
            job_info: JobInfo {
                project_id: 7,
                project_full_path: "group/project".into(),
                ..JobInfo::default()
            },
            runner_info: RunnerInfo { timeout: 600 },
            variables: vec![variable("GIT_STRATEGY", "none"), masked("CI_JOB_TOKEN", TOKEN)],
            steps: vec![step("script", script)],
            features: ServerFeatures { trace_sections: true, ..ServerFeatures::default() },
            ..JobPayload::default()
        },
        suspend: SuspendPlan::default(),
        resume: None,
        notices: Vec::new(),
        log_limit_bytes: 0,
        pids_limit: 0,
        settings: JobSettings::default(),
        cache: None,
    }
}

/// A job that resumes what an earlier one of the same environment has left.
fn resuming(host: &Host, environment: &str, job: u64, script: &[&str]) -> JobOrder {
    let resume = ResumeOrder {
        key: format!("9/s_0123456789ab/acquisition-key={environment}"),
        project_id: 7,
        workspace: host.workspace().to_str().unwrap().into(),
    };
    JobOrder { resume: Some(resume), ..order(host, environment, job, script) }
}

fn step(name: &str, script: &[&str]) -> Step {
    Step {
        name: name.into(),
        script: script.iter().map(|line| (*line).to_owned()).collect(),
        ..Step::default()
    }
}

fn variable(key: &str, value: &str) -> Variable {
    Variable { key: key.into(), value: value.into(), public: true, ..Variable::default() }
}

fn masked(key: &str, value: &str) -> Variable {
    Variable { masked: true, public: false, ..variable(key, value) }
}
