//! Keeps one host linked, and says how it is.
//!
//! One task a host and pool. It connects, records a first key before it uses it, installs the supervisor, greets
//! it, runs the ready command, and then watches the connection. A host that is away is tried again with a growing
//! pause; the pool goes on without it meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, SshError, Target};
use super::install::{InstallError, Supervisors, Wanted};
use super::link::{Caller, Link, LinkError};
use super::quote;
use super::trust::{self, Expected, TrustError};
use crate::spool::verb::{CgroupSupport, RefusalReason};

/// First pause after a failure, and the longest: a laptop that comes back is seen within the latter.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How often the connection is looked at. A broken one is usually noticed earlier, by a stream that ends.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Time for one run of the ready command.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How a host is.
#[derive(Clone)]
pub enum HostState {
    /// Being connected to for the first time.
    Connecting,
    /// Its supervisor answers.
    Ready(Arc<Link>),
    /// It cannot be reached now. Left by itself.
    Unreachable(String),
    /// Its key is not the one it should be. Left when a person changes the key here or there.
    KeyRefused(String),
    /// Another pool owns it. Left when that pool gives it back.
    Claimed(String),
    /// It cannot do what the pool asks: kind of machine, root, programs. Left when that changes.
    Unsupported(String),
    /// The ready command has not succeeded yet.
    NotReady(String),
    /// Its supervisor has seen a newer holder of the pool: this process acts no more.
    Fenced {
        /// The epoch the host has seen.
        seen: u64,
    },
}

impl HostState {
    /// The name of the state, as in status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connecting => "Connecting",
            Self::Ready(_) => "Ready",
            Self::Unreachable(_) => "Unreachable",
            Self::KeyRefused(_) => "KeyRefused",
            Self::Claimed(_) => "Claimed",
            Self::Unsupported(_) => "Unsupported",
            Self::NotReady(_) => "NotReady",
            Self::Fenced { .. } => "Fenced",
        }
    }

    /// One sentence for people, when it is not ready.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Connecting | Self::Ready(_) => None,
            Self::Unreachable(why)
            | Self::KeyRefused(why)
            | Self::Claimed(why)
            | Self::Unsupported(why)
            | Self::NotReady(why) => Some(why.clone()),
            Self::Fenced { seen } => {
                Some(format!("the host has seen epoch {seen}; a newer holder owns the pool"))
            }
        }
    }

    /// The link, when it is ready.
    pub fn link(&self) -> Option<Arc<Link>> {
        match self {
            Self::Ready(link) => Some(Arc::clone(link)),
            Self::Connecting
            | Self::Unreachable(_)
            | Self::KeyRefused(_)
            | Self::Claimed(_)
            | Self::Unsupported(_)
            | Self::NotReady(_)
            | Self::Fenced { .. } => None,
        }
    }
}

/// What is expected of a host's key, as it stands now: a person may pin another one or remove the recorded one, and
/// a first use ends with the first connection.
pub type Trust = Result<Expected, TrustError>;

/// What a pool asks of a host.
#[derive(Debug, Clone)]
pub struct HostOrder {
    /// Where to connect and as whom. What is expected of the key is told apart from this, since it changes.
    pub target: Target,
    /// What to install.
    pub wanted: Wanted,
    /// The pool's ready command.
    pub ready_command: Option<String>,
    /// In whose name.
    pub caller: Caller,
}

/// The pool a host is kept for, as the keeper sees it.
pub trait Owner: Send + Sync + 'static {
    /// Waits until the pool's holder may act: a host is greeted in nobody else's name.
    fn acting(&self) -> impl Future<Output = ()> + Send;

    /// Has the host let us in, where it knows our key for a moment only.
    fn let_in(&self, host: &str) -> impl Future<Output = Result<(), String>> + Send;

    /// Makes a first-seen key durable before it is trusted.
    fn record_key(&self, host: &str, key: String) -> impl Future<Output = Result<(), String>> + Send;
}

/// Keeps a host linked until cancelled.
pub async fn keep<O: Owner>(
    name: String,
    mut order: HostOrder,
    mut trust: watch::Receiver<Trust>,
    supervisors: Supervisors,
    owner: Arc<O>,
    state: watch::Sender<HostState>,
    cancel: CancellationToken,
) {
    let mut pause = PAUSE;
    loop {
        let trusted = trust.borrow_and_update().clone();
        let next = match trusted {
            Err(error) => HostState::KeyRefused(error.to_string()),
            Ok(expected) => {
                order.target.expected = expected;
                let linking = async {
                    owner.acting().await;
                    link(&name, &order, &supervisors, owner.as_ref()).await
                };
                tokio::select! {
                    // Dropping a half-made connection leaves nothing behind on the host.
                    next = linking => next,
                    () = cancel.cancelled() => return,
                }
            }
        };
        if let HostState::Ready(link) = &next {
            tracing::info!(host = name, version = link.hello.version, "the host is ready");
            pause = PAUSE;
            let link = Arc::clone(link);
            state.send_replace(next);
            match watch_link(&link, &mut trust, &cancel).await {
                Parted::Cancelled => return,
                Parted::Lost => {
                    tracing::warn!(host = name, "the connection to the host was lost");
                    state.send_replace(HostState::Unreachable("the connection was lost".to_owned()));
                }
                Parted::Distrusted(error) => {
                    tracing::warn!(host = name, %error, "the host's key is not trusted any more");
                    state.send_replace(HostState::KeyRefused(error.to_string()));
                }
            }
        } else {
            if state.borrow().message() != next.message() {
                tracing::warn!(
                    host = name,
                    state = next.name(),
                    why = next.message(),
                    "the host is not ready"
                );
            }
            state.send_replace(next);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            Ok(()) = trust.changed() => pause = PAUSE,
            () = cancel.cancelled() => return,
        }
    }
}

/// Why a ready host is not watched any more.
enum Parted {
    /// The connection is gone.
    Lost,
    /// The key it was made with is not the expected one any more.
    Distrusted(TrustError),
    /// The pool does not want it any more.
    Cancelled,
}

/// Waits until a ready host is not to be used any more.
async fn watch_link(link: &Link, trust: &mut watch::Receiver<Trust>, cancel: &CancellationToken) -> Parted {
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {
                if link.connection().is_closed() {
                    return Parted::Lost;
                }
            }
            Ok(()) = trust.changed() => {
                let verdict = trust.borrow_and_update().clone().and_then(|expected| {
                    trust::check(&expected, &link.connection().host_key)
                });
                if let Err(error) = verdict {
                    return Parted::Distrusted(error);
                }
            }
            () = cancel.cancelled() => return Parted::Cancelled,
        }
    }
}

async fn link<O: Owner>(name: &str, order: &HostOrder, supervisors: &Supervisors, owner: &O) -> HostState {
    if let Err(why) = owner.let_in(name).await {
        return HostState::Unreachable(format!("its cloud did not let us in: {why}"));
    }
    let connection = match Connection::open(order.target.clone()).await {
        Ok(connection) => connection,
        Err(error) => return of_ssh(&error),
    };
    // The key is durable before anything of ours is on the host: a first use happens once.
    if order.target.expected == Expected::FirstUse {
        let key = connection.host_key.to_openssh().unwrap_or_default();
        if let Err(why) = owner.record_key(name, key).await {
            return HostState::Unreachable(format!("its host key could not be recorded: {why}"));
        }
    }
    let installed = match supervisors.ensure(&connection, &order.wanted).await {
        Ok(installed) => installed,
        Err(InstallError::Ssh(error)) => return of_ssh(&error),
        Err(error @ InstallError::Unsupported { .. }) => return HostState::Unsupported(error.to_string()),
        Err(error @ (InstallError::Probe(_) | InstallError::Write { .. })) => {
            return HostState::NotReady(error.to_string());
        }
    };
    let link = match Link::open(connection, installed, order.caller.clone()).await {
        Ok(link) => link,
        Err(error) => return of_link(&error),
    };
    if let Some(why) = shortcoming(&link, &order.wanted) {
        return HostState::Unsupported(why);
    }
    match run_ready_command(&link, order.ready_command.as_deref()).await {
        Ok(()) => HostState::Ready(Arc::new(link)),
        Err(why) => HostState::NotReady(why),
    }
}

/// What the host lacks for this pool.
fn shortcoming(link: &Link, wanted: &Wanted) -> Option<String> {
    if link.hello.missing_programs.iter().any(|program| program == "bash") {
        return Some("bash is missing on the host; jobs cannot run without it. Install bash".to_owned());
    }
    if wanted.needs_root && !link.hello.root {
        return Some(
            "isolation PerSlotUser needs root on the host: log in as root or allow `sudo -n`".to_owned(),
        );
    }
    None
}

/// What works less well than it could on a ready host, for a condition.
pub fn limitations(link: &Link) -> Option<String> {
    let mut limitations = Vec::new();
    if link.hello.missing_programs.iter().any(|program| program == "git") {
        limitations.push("git is missing: only jobs with GIT_STRATEGY none or empty can run");
    }
    match link.hello.cgroup {
        CgroupSupport::V2 | CgroupSupport::V1 => {}
        CgroupSupport::None => {
            limitations.push("no writable cgroup: process trees are held by sessions and signals only");
        }
    }
    if !link.hello.counts_processes {
        limitations.push("no writable pids controller: spec.pidsLimit is not enforced");
    }
    (!limitations.is_empty()).then(|| limitations.join("; "))
}

async fn run_ready_command(link: &Link, command: Option<&str>) -> Result<(), String> {
    let Some(command) = command else { return Ok(()) };
    let command = format!("sh -c {}", quote(command));
    let run = link.connection().run(&command, bytes::Bytes::new());
    match tokio::time::timeout(READY_TIMEOUT, run).await {
        Ok(Ok(output)) if output.code == 0 => Ok(()),
        Ok(Ok(output)) => Err(format!(
            "spec.instanceReadyCommand ended with exit code {}: {}",
            output.code,
            output.stderr.chars().take(300).collect::<String>()
        )),
        Ok(Err(error)) => Err(format!("spec.instanceReadyCommand could not be run: {error}")),
        Err(_) => Err(format!("spec.instanceReadyCommand took longer than {} s", READY_TIMEOUT.as_secs())),
    }
}

fn of_ssh(error: &SshError) -> HostState {
    match error {
        SshError::Trust { .. } => HostState::KeyRefused(error.to_string()),
        SshError::Connect { .. }
        | SshError::NoBanner { .. }
        | SshError::Denied { .. }
        | SshError::Lost
        | SshError::NoMoreSessions
        | SshError::TooMuchOutput
        | SshError::Protocol(_) => HostState::Unreachable(error.to_string()),
    }
}

fn of_link(error: &LinkError) -> HostState {
    match error.refusal().map(|refusal| &refusal.reason) {
        Some(RefusalReason::ClaimedByOther { pool, pool_uid }) => HostState::Claimed(format!(
            "the host belongs to pool {pool} (uid {pool_uid}); remove it there first, or remove claim.json from \
             its state folder if that pool is gone"
        )),
        Some(RefusalReason::StaleEpoch { seen }) => HostState::Fenced { seen: *seen },
        Some(_) => HostState::NotReady(error.to_string()),
        None if error.is_lost() => HostState::Unreachable(error.to_string()),
        None => HostState::NotReady(error.to_string()),
    }
}
