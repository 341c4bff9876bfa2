//! A host whose supervisor answers: its verbs as calls, its frames as a stream.

mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::volumes::VolumeOrder;
use super::connection::{Connection, SshError, Stream};
use super::install::Installed;
use super::quote;
use crate::deed::{Deed, Point};
use crate::leader::epoch::Epoch;
use crate::spool::cache::CacheUrls;
use crate::spool::frame::{Decoder, Frame, FrameError};
use crate::spool::order::JobOrder;
use crate::spool::record::EnvironmentRecord;
use crate::spool::verb::{Answer, Hello, Interruption, Listed, LogEnd, Refusal, RefusalReason};
use crate::telemetry::EpochGuard;

/// Time for a verb that answers at once. Removing a large workspace is the slowest of them.
const VERB_TIMEOUT: Duration = Duration::from_secs(120);

/// Silence on an attached stream after which the host counts as lost: a live one sends a beat every few seconds.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a verb did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// SSH failed.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The verb took too long.
    #[error("the supervisor did not answer {verb} within {} s", VERB_TIMEOUT.as_secs())]
    Slow {
        /// The verb.
        verb: &'static str,
    },
    /// The supervisor did nothing, and says why.
    #[error("the supervisor refused: {}", .0.message)]
    Refused(Refusal),
    /// The supervisor could not be run.
    #[error("the supervisor ended with exit code {code} at {verb}: {stderr}")]
    Crashed {
        /// The verb.
        verb: &'static str,
        /// Exit code.
        code: u32,
        /// What it printed.
        stderr: String,
    },
    /// The answer is not one to this verb.
    #[error("the supervisor's answer to {verb} cannot be understood")]
    Answer {
        /// The verb.
        verb: &'static str,
    },
    /// The stream is not ours.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The order cannot be written.
    #[error("the job order cannot be written")]
    Order(#[source] serde_json::Error),
}

impl LinkError {
    /// Whether the host may simply be away: the job or environment there is untouched by this error.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Ssh(_) | Self::Slow { .. } => true,
            Self::Refused(_)
            | Self::Crashed { .. }
            | Self::Answer { .. }
            | Self::Frame(_)
            | Self::Order(_) => false,
        }
    }

    /// Whether the host answers and cannot do what it should: a full disk, a folder that cannot be written to.
    pub fn is_hosts_own(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.reason == RefusalReason::HostFailure,
            Self::Crashed { .. } => true,
            Self::Ssh(_) | Self::Slow { .. } | Self::Answer { .. } | Self::Frame(_) | Self::Order(_) => false,
        }
    }

    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Ssh(_)
            | Self::Slow { .. }
            | Self::Crashed { .. }
            | Self::Answer { .. }
            | Self::Frame(_)
            | Self::Order(_) => None,
        }
    }
}

/// The pool in whose name verbs are called.
#[derive(Debug, Clone)]
pub struct Caller {
    /// `namespace/name`, for people.
    pub pool: String,
    /// The pool's uid.
    pub pool_uid: String,
    /// The holder's epoch.
    pub epoch: Epoch,
    /// Whether hosts are to ask their instance's metadata service who they are. A host that is no instance of a cloud
    /// would wait a second for nobody.
    pub asks_metadata: bool,
}

impl Caller {
    /// The supervisor did nothing. That it has seen a newer holder is told on.
    fn refused(&self, verb: &'static str, refusal: Refusal) -> LinkError {
        if let RefusalReason::StaleEpoch { seen } = refusal.reason {
            self.epoch.refused(EpochGuard::Host, verb, seen);
        }
        LinkError::Refused(refusal)
    }
}

/// A host whose supervisor answers.
pub struct Link {
    connection: Connection,
    installed: Installed,
    caller: Caller,
    /// What the host said of itself.
    pub hello: Hello,
    /// Locked for lines only.
    jobs: Mutex<Jobs>,
    /// Workspace volumes mounted there, by the greeting and by what this link has done since. Locked for lines only.
    mounts: Mutex<BTreeMap<u32, String>>,
}

/// Jobs since the greeting, which counts those before.
#[derive(Debug, Default)]
struct Jobs {
    started: u64,
    /// Those for which a slot is decided, and which have not been started.
    expected: BTreeSet<u64>,
}

/// A job on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPath {
    /// Environment id.
    pub environment: String,
    /// GitLab job id.
    pub job_id: u64,
}

impl Link {
    /// Greets the supervisor: claims the host for the pool and raises the epoch there.
    ///
    /// # Errors
    /// When the supervisor cannot be run or refuses.
    pub async fn open(
        connection: Connection,
        installed: Installed,
        caller: Caller,
    ) -> Result<Self, LinkError> {
        let metadata = if caller.asks_metadata { " --metadata" } else { "" };
        let arguments =
            format!("--pool {} --pool-uid {}{metadata}", quote(&caller.pool), quote(&caller.pool_uid));
        // A holder of the past is refused by the host itself, which compares epochs.
        let deed = Deed::unfenced(Point::HostGreeted);
        let greeting = call(&connection, &installed, &caller, "hello", &arguments, Bytes::new());
        let Answer::Hello(hello) = deed.make(greeting, |answer| answer).await? else {
            return Err(LinkError::Answer { verb: "hello" });
        };
        let mounts = hello.mounts.iter().map(|mount| (mount.slot, mount.volume.clone())).collect();
        Ok(Self {
            connection,
            installed,
            caller,
            jobs: Mutex::default(),
            mounts: Mutex::new(mounts),
            hello: *hello,
        })
    }

    /// How many jobs the host was given since its state folder was made.
    pub fn jobs(&self) -> u64 {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = u64::try_from(jobs.expected.len()).unwrap_or(u64::MAX);
        self.hello.jobs_started.saturating_add(jobs.started).saturating_add(expected)
    }

    /// Counts a job as soon as a slot is decided for it: one that starts late is not one less.
    pub fn expect_job(&self, job: u64) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).expected.insert(job);
    }

    /// A start that is done a second time counts twice, until the host is greeted anew: a replacement comes a job early by
    /// that.
    fn count_start(&self, job: u64) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.expected.remove(&job);
        jobs.started = jobs.started.saturating_add(1);
    }

    /// The workspace volumes that are mounted, by slot.
    pub fn mounts(&self) -> BTreeMap<u32, String> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The SSH connection below.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A path of the pool's spec as an absolute one on this host.
    pub fn absolute(&self, path: &str) -> String {
        match path.strip_prefix("~/") {
            Some(rest) => format!("{}/{rest}", self.installed.home),
            None => path.to_owned(),
        }
    }

    /// Environments on the host that belong to the pool.
    ///
    /// # Errors
    /// See [`LinkError`]; so with every verb below.
    pub async fn list(&self) -> Result<Vec<Listed>, LinkError> {
        let arguments = format!("--pool-uid {}", quote(&self.caller.pool_uid));
        match self.call("list", &arguments, Bytes::new()).await? {
            Answer::List(listed) => Ok(listed),
            _ => Err(LinkError::Answer { verb: "list" }),
        }
    }

    /// Starts a job, or attaches to it if it was started before, and streams it.
    pub async fn start(&self, deed: Deed, order: &JobOrder) -> Result<Attached, LinkError> {
        let stdin = Bytes::from(serde_json::to_vec(order).map_err(LinkError::Order)?);
        self.count_start(order.job.id);
        deed.make(self.attach_with("start", "", stdin), |attached| attached).await
    }

    /// Streams a job from an offset of its log.
    pub async fn attach(&self, job: &JobPath, from: u64) -> Result<Attached, LinkError> {
        self.attach_with("attach", &format!("{} --from {from}", job.arguments()), Bytes::new()).await
    }

    /// Appends the last lines and closes the log for good.
    pub async fn seal(&self, deed: Deed, job: &JobPath, text: &str) -> Result<LogEnd, LinkError> {
        let arguments = job.arguments();
        let text = Bytes::from(serde_json::to_vec(text).map_err(LinkError::Order)?);
        let sealing = self.call("seal", &arguments, text);
        deed.make(sealing, |answer| match answer? {
            Answer::Log(end) => Ok(end),
            _ => Err(LinkError::Answer { verb: "seal" }),
        })
        .await
    }

    /// Asks a job to stop.
    pub async fn cancel(&self, deed: Deed, job: &JobPath, graceful: bool) -> Result<(), LinkError> {
        let flag = if graceful { " --graceful" } else { "" };
        deed.make(self.done_verb("cancel", format!("{}{flag}", job.arguments())), |done| done).await
    }

    /// Asks a job to stop because its instance is about to be taken away.
    pub async fn interrupt(
        &self,
        deed: Deed,
        job: &JobPath,
        interruption: &Interruption,
    ) -> Result<(), LinkError> {
        let text = Bytes::from(serde_json::to_vec(interruption).map_err(LinkError::Order)?);
        deed.make(self.done_verb_with("interrupt", job.arguments(), text), |done| done).await
    }

    /// Gives a running job newer addresses for its caches.
    pub async fn renew(&self, deed: Deed, job: &JobPath, urls: &CacheUrls) -> Result<(), LinkError> {
        let urls = Bytes::from(serde_json::to_vec(urls).map_err(LinkError::Order)?);
        deed.make(self.done_verb_with("renew", job.arguments(), urls), |done| done).await
    }

    /// Freezes an environment whose job has ended and records its context.
    pub async fn suspend(&self, deed: Deed, job: &JobPath) -> Result<EnvironmentRecord, LinkError> {
        let arguments = job.arguments();
        deed.make(self.call("suspend", &arguments, Bytes::new()), |answer| match answer? {
            Answer::Environment(record) => Ok(*record),
            _ => Err(LinkError::Answer { verb: "suspend" }),
        })
        .await
    }

    /// Removes an environment: processes, state and, if it was ever suspended, its workspace.
    pub async fn release(&self, deed: Deed, environment: &str, force: bool) -> Result<(), LinkError> {
        let flag = if force { " --force" } else { "" };
        let removal = self.done_verb("release", format!("--environment {}{flag}", quote(environment)));
        deed.make(removal, |done| match done {
            Err(LinkError::Refused(Refusal { reason: RefusalReason::NotFound, .. })) => Ok(()),
            other => other,
        })
        .await
    }

    /// Gives the host back, so that another pool may claim it.
    pub async fn unclaim(&self, deed: Deed) -> Result<(), LinkError> {
        let giving_back = self.done_verb("unclaim", format!("--pool-uid {}", quote(&self.caller.pool_uid)));
        deed.make(giving_back, |done| done).await
    }

    async fn done_verb(&self, verb: &'static str, arguments: String) -> Result<(), LinkError> {
        self.done_verb_with(verb, arguments, Bytes::new()).await
    }

    async fn done_verb_with(
        &self,
        verb: &'static str,
        arguments: String,
        stdin: Bytes,
    ) -> Result<(), LinkError> {
        match self.call(verb, &arguments, stdin).await? {
            Answer::Done => Ok(()),
            _ => Err(LinkError::Answer { verb }),
        }
    }

    async fn call(&self, verb: &'static str, arguments: &str, stdin: Bytes) -> Result<Answer, LinkError> {
        call(&self.connection, &self.installed, &self.caller, verb, arguments, stdin).await
    }

    async fn attach_with(
        &self,
        verb: &'static str,
        arguments: &str,
        stdin: Bytes,
    ) -> Result<Attached, LinkError> {
        let command = command(&self.installed, &self.caller, verb, arguments);
        let stream = self.connection.stream(&command, stdin).await?;
        let caller = self.caller.clone();
        let mut attached =
            Attached { stream, decoder: Decoder::default(), heard_at: Instant::now(), verb, caller };
        match timeout(VERB_TIMEOUT, attached.next()).await {
            Err(_) => Err(LinkError::Slow { verb }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Some(Frame::Answer(Answer::Job(_))))) => Ok(attached),
            Ok(Ok(Some(_))) => Err(LinkError::Answer { verb }),
            Ok(Ok(None)) => Err(match attached.stream.exit_code {
                Some(code) => LinkError::Crashed { verb, code, stderr: attached.stream.stderr() },
                None => LinkError::Ssh(SshError::Lost),
            }),
        }
    }
}

impl JobPath {
    fn arguments(&self) -> String {
        format!("--environment {} --job {}", quote(&self.environment), self.job_id)
    }
}

/// An attached job: frames as they come.
pub struct Attached {
    stream: Stream,
    decoder: Decoder,
    heard_at: Instant,
    verb: &'static str,
    caller: Caller,
}

impl Attached {
    /// When the host was last heard.
    pub fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// The next frame, or `None` at the end of the stream, which says nothing about the job. Cancel-safe: bytes
    /// read so far stay in the decoder.
    ///
    /// # Errors
    /// When the stream is not ours, silent for too long, or ended by the supervisor with a refusal: a newer holder
    /// has shown itself there.
    pub async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        loop {
            match self.decoder.next_frame()? {
                Some(Frame::Answer(Answer::Refused(refusal))) => {
                    return Err(self.caller.refused(self.verb, refusal));
                }
                Some(frame) => return Ok(Some(frame)),
                None => {}
            }
            match timeout_at(self.heard_at + SILENCE_TIMEOUT, self.stream.next()).await {
                Err(_) => return Err(LinkError::Ssh(SshError::Lost)),
                Ok(None) => return Ok(None),
                Ok(Some(bytes)) => {
                    self.heard_at = Instant::now();
                    self.decoder.feed(&bytes);
                }
            }
        }
    }
}

fn command(installed: &Installed, caller: &Caller, verb: &str, arguments: &str) -> String {
    // The order of `start` carries the epoch itself.
    let epoch = match verb {
        "start" => String::new(),
        _ => format!(" --epoch {}", caller.epoch.get()),
    };
    format!("{} {verb} {arguments}{epoch}", installed.command)
}

async fn call(
    connection: &Connection,
    installed: &Installed,
    caller: &Caller,
    verb: &'static str,
    arguments: &str,
    stdin: Bytes,
) -> Result<Answer, LinkError> {
    let command = command(installed, caller, verb, arguments);
    let output = timeout(VERB_TIMEOUT, connection.run(&command, stdin))
        .await
        .map_err(|_| LinkError::Slow { verb })??;
    if output.code != 0 {
        return Err(LinkError::Crashed { verb, code: output.code, stderr: output.stderr });
    }
    // A login shell may print before the answer: the answer is the last line.
    let line = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut json = serde_json::Deserializer::from_slice(line);
    match Answer::deserialize(&mut json) {
        Ok(Answer::Refused(refusal)) => Err(caller.refused(verb, refusal)),
        Ok(answer) => Ok(answer),
        Err(_) => Err(LinkError::Answer { verb }),
    }
}
