//! What a light host remembers, and what each verb does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use dormouse::spool::order::JobOrder;
use dormouse::spool::record::{Claim, Context as Kept, EnvironmentPhase, EnvironmentRecord};
use dormouse::spool::verb::{Answer, CgroupSupport, Hello, JobStatus, Listed, Refusal, RefusalReason, Stat};
use dormouse::spool::{FORMAT, PROTOCOL};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::FakeSpec;
use super::command::Verb;
use super::job::Job;

/// A verb that was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// When.
    pub at: Timestamp,
    /// The verb.
    pub verb: String,
    /// The environment it was about, if it was about one.
    pub environment: Option<String>,
}

/// Most calls and violations remembered.
const REMEMBERED: usize = 100_000;

/// The memory of a light host.
pub struct Machine {
    pub spec: FakeSpec,
    /// Taken for lines, never across an await.
    state: Mutex<State>,
    may_end: watch::Sender<bool>,
}

struct State {
    boot: u32,
    claim: Option<Claim>,
    /// Moves with the claim's epoch.
    epoch: watch::Sender<u64>,
    environments: BTreeMap<String, Environment>,
    installed: BTreeSet<String>,
    calls: Vec<Called>,
    violations: Vec<String>,
    connections: usize,
    /// The jobs' scripts; they end with the machine.
    scripts: JoinSet<()>,
}

struct Environment {
    record: EnvironmentRecord,
    jobs: BTreeMap<u64, Arc<Job>>,
}

/// A job to stream.
pub struct Stream {
    /// The job.
    pub job: Arc<Job>,
    /// First byte of its log to send.
    pub from: u64,
    /// The epoch of who listens.
    pub epoch: u64,
    /// The highest epoch the host has seen.
    pub seen: watch::Receiver<u64>,
}

/// What a verb comes to.
pub enum Done {
    /// It answers and ends.
    Answer(Answer),
    /// It streams a job.
    Stream(Stream),
}

impl Machine {
    pub fn new(spec: FakeSpec) -> Self {
        let state = State {
            boot: 1,
            claim: None,
            epoch: watch::Sender::new(0),
            environments: BTreeMap::new(),
            installed: BTreeSet::new(),
            calls: Vec::new(),
            violations: Vec::new(),
            connections: 0,
            scripts: JoinSet::new(),
        };
        Self { spec, state: Mutex::new(state), may_end: watch::Sender::new(false) }
    }

    pub fn let_jobs_end(&self) {
        self.may_end.send_replace(true);
    }

    pub fn connected(&self) {
        self.state().connections += 1;
    }

    pub fn connections(&self) -> usize {
        self.state().connections
    }

    pub fn reboot(&self) {
        let mut state = self.state();
        state.boot += 1;
        state.scripts.abort_all();
        for job in state.environments.values().flat_map(|environment| environment.jobs.values()) {
            job.die();
        }
    }

    pub fn keep(&self, record: EnvironmentRecord) {
        let id = record.environment.clone();
        self.state().environments.insert(id, Environment { record, jobs: BTreeMap::new() });
    }

    pub fn boot_id(&self) -> String {
        self.state().boot_id(&self.spec.name)
    }

    pub fn environments(&self) -> Vec<String> {
        self.state().environments.keys().cloned().collect()
    }

    pub fn calls(&self) -> Vec<Called> {
        self.state().calls.clone()
    }

    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Notes what no operator of ours should have sent.
    pub fn violate(&self, what: String) {
        let mut state = self.state();
        if state.violations.len() < REMEMBERED {
            state.violations.push(what);
        }
    }

    pub fn is_present(&self, path: &str) -> bool {
        self.spec.installed || self.state().installed.contains(path)
    }

    /// Keeps a file that came whole.
    pub fn install(&self, path: String, sha256: &str, bytes: &[u8]) -> bool {
        let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let is_whole = hash == sha256;
        if is_whole {
            self.state().installed.insert(path);
        }
        is_whole
    }

    /// Does what a verb says. An error is a mistake of the caller, a refusal an answer.
    pub fn call(&self, verb: &Verb, stdin: &[u8]) -> Result<Done> {
        ensure!(self.is_present(&verb.program), "{} is not installed", verb.program);
        let mut state = self.state();
        if state.calls.len() < REMEMBERED {
            let environment = verb.text("--environment").ok().map(str::to_owned);
            state.calls.push(Called { at: Timestamp::now(), verb: verb.name.clone(), environment });
        }
        let done = match verb.name.as_str() {
            "start" => self.start(&mut state, verb, stdin)?,
            "attach" => match state.admit(verb).and_then(|_| state.job(verb)) {
                Ok(job) => {
                    let (from, epoch) = (verb.number("--from")?, verb.number("--epoch")?);
                    Done::Stream(Stream { job, from, epoch, seen: state.epoch.subscribe() })
                }
                Err(refusal) => Done::Answer(Answer::Refused(refusal)),
            },
            _ => {
                let answer = self.answer(&mut state, verb, stdin);
                Done::Answer(answer.unwrap_or_else(Answer::Refused))
            }
        };
        Ok(done)
    }

    fn answer(&self, state: &mut State, verb: &Verb, stdin: &[u8]) -> Result<Answer, Refusal> {
        let text = || String::from_utf8_lossy(stdin).into_owned();
        if !["status", "stat"].contains(&verb.name.as_str()) {
            state.admit(verb)?;
        }
        Ok(match verb.name.as_str() {
            "hello" => Answer::Hello(Box::new(self.hello(state)?)),
            "unclaim" if state.environments.is_empty() => {
                state.claim = None;
                Answer::Done
            }
            "unclaim" => {
                let message = format!("{} environments are still on the host", state.environments.len());
                return Err(refusal(RefusalReason::InUse, message));
            }
            "list" => Answer::List(state.list()),
            "status" => Answer::Job(Box::new(state.job(verb)?.record())),
            "append" => {
                let sealed = || refusal(RefusalReason::Sealed, "the log is sealed");
                let once = verb.text("--once").map_err(wrong)?;
                Answer::Log(state.job(verb)?.append(once, &text()).ok_or_else(sealed)?)
            }
            "seal" => Answer::Log(state.job(verb)?.seal(&text())),
            "cancel" => {
                state.job(verb)?.cancel();
                Answer::Done
            }
            "suspend" => Answer::Environment(Box::new(state.suspend(verb, &self.spec.name)?)),
            "release" => {
                state.release(verb)?;
                Answer::Done
            }
            _ => Answer::Stat(Stat {
                builds_free_bytes: u64::MAX,
                state_free_bytes: u64::MAX,
                load1: 0.0,
                cpus: 1,
                steal: 0.0,
                uptime_seconds: 1,
            }),
        })
    }

    fn hello(&self, state: &State) -> Result<Hello, Refusal> {
        let claim = state.claim.clone().ok_or_else(|| not_found("the host is not claimed"))?;
        Ok(Hello {
            protocol: PROTOCOL,
            formats: (1..=FORMAT).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: std::env::consts::ARCH.to_owned(),
            hostname: self.spec.name.clone(),
            boot_id: state.boot_id(&self.spec.name),
            root: true,
            cgroup: CgroupSupport::V2,
            counts_processes: true,
            missing_programs: Vec::new(),
            claim,
            jobs_started: 0,
            mounts: Vec::new(),
            instance_id: None,
            quiesced: None,
        })
    }

    fn start(&self, state: &mut State, verb: &Verb, stdin: &[u8]) -> Result<Done> {
        let order: JobOrder = serde_json::from_slice(stdin).context("the order cannot be read")?;
        let from = verb.number("--from").unwrap_or(0);
        let epoch = order.epoch;
        match self.accept(state, order) {
            Ok(job) => Ok(Done::Stream(Stream { job, from, epoch, seen: state.epoch.subscribe() })),
            Err(refusal) => Ok(Done::Answer(Answer::Refused(refusal))),
        }
    }

    fn accept(&self, state: &mut State, order: JobOrder) -> Result<Arc<Job>, Refusal> {
        state.raise(Some(&order.pool_uid), None, order.epoch)?;
        if let Some(known) = state.environments.get(&order.environment)
            && let Some(job) = known.jobs.get(&order.job.id)
        {
            return Ok(Arc::clone(job));
        }
        let boot_id = state.boot_id(&self.spec.name);
        let record = match &order.resume {
            Some(_) => state.resumed(&order)?,
            None => state.fresh(&order, &boot_id)?,
        };
        let job = Arc::new(Job::new(&order, &boot_id));
        let environment = state
            .environments
            .entry(order.environment.clone())
            .or_insert_with(|| Environment { record: record.clone(), jobs: BTreeMap::new() });
        environment.record = record;
        environment.jobs.insert(order.job.id, Arc::clone(&job));
        let (running, may_end) = (Arc::clone(&job), self.may_end.subscribe());
        state.scripts.spawn(async move { running.run(order, may_end).await });
        while state.scripts.try_join_next().is_some() {}
        Ok(job)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn boot_id(&self, name: &str) -> String {
        format!("{name}-boot-{}", self.boot)
    }

    fn admit(&mut self, verb: &Verb) -> Result<(), Refusal> {
        let (uid, pool) = (verb.text("--pool-uid").ok(), verb.text("--pool").ok());
        self.raise(uid, pool, verb.number("--epoch").map_err(wrong)?)
    }

    /// The fence: one pool, and of its holders the newest.
    fn raise(&mut self, uid: Option<&str>, pool: Option<&str>, epoch: u64) -> Result<(), Refusal> {
        if let Some(claim) = &mut self.claim {
            if uid.is_some_and(|uid| uid != claim.pool_uid) {
                let (pool, pool_uid) = (claim.pool.clone(), claim.pool_uid.clone());
                return Err(refusal(
                    RefusalReason::ClaimedByOther { pool, pool_uid },
                    "the host is another pool's",
                ));
            }
            if epoch < claim.epoch {
                let seen = claim.epoch;
                return Err(refusal(RefusalReason::StaleEpoch { seen }, "a newer holder has been here"));
            }
            claim.epoch = epoch;
            self.epoch.send_replace(epoch);
            return Ok(());
        }
        self.epoch.send_replace(epoch);
        self.claim = Some(Claim {
            format: FORMAT,
            pool_uid: uid.unwrap_or_default().to_owned(),
            pool: pool.unwrap_or_default().to_owned(),
            epoch,
        });
        Ok(())
    }

    fn job(&self, verb: &Verb) -> Result<Arc<Job>, Refusal> {
        let id = verb.number("--job").map_err(wrong)?;
        let environment = self.environments.get(verb.text("--environment").map_err(wrong)?);
        let job = environment.and_then(|environment| environment.jobs.get(&id)).cloned();
        job.ok_or_else(|| not_found(format!("the host knows no job {id}")))
    }

    fn list(&self) -> Vec<Listed> {
        let jobs = |environment: &Environment| {
            let status = |job: &Arc<Job>| JobStatus { record: job.record(), alive: job.is_alive() };
            environment.jobs.values().map(status).collect()
        };
        self.environments
            .values()
            .map(|environment| Listed { environment: environment.record.clone(), jobs: jobs(environment) })
            .collect()
    }

    fn fresh(&self, order: &JobOrder, boot_id: &str) -> Result<EnvironmentRecord, Refusal> {
        if let Some(other) = self.environments.values().find(|other| other.record.slot == order.slot) {
            let message = format!("slot {} holds environment {}", order.slot, other.record.environment);
            return Err(refusal(RefusalReason::SlotTaken, message));
        }
        Ok(EnvironmentRecord {
            format: FORMAT,
            environment: order.environment.clone(),
            pool_uid: order.pool_uid.clone(),
            slot: order.slot,
            isolation: order.isolation,
            project_id: order.job.job_info.project_id,
            project_path: order.job.project_path(),
            workspace: format!("{}/{}/{}", order.builds_dir, order.slot, order.job.project_path()),
            phase: EnvironmentPhase::Active,
            job_id: order.job.id,
            resumes: 0,
            context: None,
            boot_id: boot_id.to_owned(),
            since: Timestamp::now(),
        })
    }

    fn resumed(&self, order: &JobOrder) -> Result<EnvironmentRecord, Refusal> {
        let known = self.environments.get(&order.environment);
        let known = known.ok_or_else(|| not_found("the host knows no such environment"))?;
        if known.record.phase != EnvironmentPhase::Suspended {
            return Err(refusal(RefusalReason::InUse, "a job uses the environment"));
        }
        if known.record.project_id != order.job.job_info.project_id {
            return Err(refusal(RefusalReason::ProjectMismatch, "it belongs to another project"));
        }
        if known.record.slot != order.slot {
            return Err(refusal(RefusalReason::WorkspaceMismatch, "it lives in another slot"));
        }
        Ok(EnvironmentRecord {
            phase: EnvironmentPhase::Active,
            job_id: order.job.id,
            resumes: known.record.resumes + 1,
            since: Timestamp::now(),
            ..known.record.clone()
        })
    }

    fn suspend(&mut self, verb: &Verb, name: &str) -> Result<EnvironmentRecord, Refusal> {
        let boot_id = self.boot_id(name);
        let id = verb.text("--environment").map_err(wrong)?;
        let known =
            self.environments.get_mut(id).ok_or_else(|| not_found("the host knows no such environment"))?;
        if known.jobs.values().any(|job| job.is_alive()) {
            return Err(refusal(RefusalReason::InUse, "its job still runs"));
        }
        if known.record.phase != EnvironmentPhase::Suspended {
            known.record.phase = EnvironmentPhase::Suspended;
            known.record.context = Some(Kept { cwd: known.record.workspace.clone(), ..Kept::default() });
            known.record.boot_id = boot_id;
            known.record.since = Timestamp::now();
        }
        Ok(known.record.clone())
    }

    fn release(&mut self, verb: &Verb) -> Result<(), Refusal> {
        let id = verb.text("--environment").map_err(wrong)?;
        let Some(known) = self.environments.get(id) else { return Ok(()) };
        if known.jobs.values().any(|job| job.is_alive()) && !verb.flag("--force") {
            return Err(refusal(RefusalReason::InUse, "its job still runs; cancel it first"));
        }
        for job in known.jobs.values() {
            job.cancel();
        }
        self.environments.remove(id);
        Ok(())
    }
}

fn refusal(reason: RefusalReason, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}

fn not_found(message: impl Into<String>) -> Refusal {
    refusal(RefusalReason::NotFound, message)
}

fn wrong(error: anyhow::Error) -> Refusal {
    refusal(RefusalReason::Unsupported, format!("{error:#}"))
}
