//! A stand-in for GitLab: the runner API, git over HTTP, and a side from which tests steer it.
//!
//! Stateful and strict. It is written from the facts of the protocol and shares no type with the
//! client it judges, so it is a second opinion. Whatever a correct runner would never send is a
//! violation; `assert_clean` makes a test red for it. Dials nothing, listens on loopback, keeps all
//! in memory, and is gone with the last clone of its handle. Where it differs from the real GitLab
//! is told in `docs/testbed-gitlab.md`.

#![allow(dead_code, unused_imports, reason = "the tests and the bed that stays up use different parts")]

mod access;
mod artifacts;
mod assign;
mod conduct;
mod connection;
mod control;
mod endpoint;
mod exchange;
mod fault;
mod front;
mod git_http;
mod job;
mod large_files;
mod ledger;
mod payload;
mod repository;
mod rules;
mod runner;
mod runner_calls;
mod secret;
mod server;
mod spec;
mod steering;
mod trace;
mod update;
mod world;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use axum::Router;
use tokio::{net::TcpSocket, task::JoinHandle};

pub use self::{
    access::Scope,
    conduct::Restarts,
    fault::{Action, Fault, FaultId, Target},
    job::{Artifact, Fetch, JobId, JobState, JobView, Patch, Put},
    ledger::{Request, Violation},
    repository::GitRepo,
    runner::{Runner, RunnerId, RunnerView},
    spec::{JobSpec, KeySpelling},
};
use self::{
    connection::{Connections, Cutter, Door, reserve},
    server::Server,
};
use super::ports::free_port;

/// When a job that was handed out begins to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// At the runner's `running`, for runners that know `two_phase_job_commit`.
    TwoPhase,
    /// At once, as older servers have it.
    Legacy,
}

/// How a held request ends when a job appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldEnd {
    /// With the job.
    Assign,
    /// With 204: the runner asks again and gets the job then.
    NoContent,
}

/// Who is offered a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// The machine that suspended the environment.
    Machine,
    /// Anybody, as servers have it that do not route.
    Anyone,
}

/// The server's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// When a job begins to run.
    pub commit: Commit,
    /// How long GitLab waits for `running`, and again after each `pending`.
    pub acknowledge_within: Duration,
    /// How long after that a job still answers 400 before it is dropped.
    pub drop_after_lease: Duration,
    /// Queue a dropped job again, as a new one.
    pub retry_unacknowledged: bool,
    /// How long a request for a job is held while there is none; zero answers at once.
    pub hold: Duration,
    /// How a held request ends when a job appears.
    pub hold_end: HoldEnd,
    /// Who is offered a resume.
    pub routing: Routing,
    /// Seconds between log updates that runners are asked for.
    pub update_interval: u64,
    /// How the stand-in learns of a new client process.
    pub restarts: Restarts,
    /// Features every runner that asks for jobs has to advertise.
    pub required_features: Vec<String>,
    /// How long runner tokens live that are issued from now on; for ever without one.
    pub token_life: Option<Duration>,
    /// The client asks for jobs in parallel: a request that was sent before another one's answer came may arrive after it,
    /// with a queue value that is not the latest. Values of the last few answers are then no violation.
    pub asks_in_parallel: bool,
}

impl Default for Options {
    fn default() -> Self {
        let required = [
            "variables",
            "refspecs",
            "masking",
            "raw_variables",
            "return_exit_code",
            "trace_checksum",
            "trace_size",
            "cancelable",
        ];
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            commit: Commit::TwoPhase,
            acknowledge_within: Duration::from_secs(120),
            drop_after_lease: Duration::ZERO,
            retry_unacknowledged: true,
            hold: Duration::ZERO,
            hold_end: HoldEnd::Assign,
            routing: Routing::Machine,
            update_interval: 1,
            restarts: Restarts::Told,
            required_features: required.map(str::to_owned).to_vec(),
            token_life: None,
            asks_in_parallel: false,
        }
    }
}

/// The handle on a running stand-in. Clones steer the same one.
#[derive(Clone, Debug)]
pub struct GitLab(Arc<Running>);

#[derive(Debug)]
struct Running {
    server: Arc<Server>,
    address: SocketAddr,
    connections: Arc<Connections>,
    lease_keeper: JoinHandle<()>,
    /// Taken by `down` and `up`.
    listening: Mutex<Listening>,
}

#[derive(Debug)]
enum Listening {
    Yes(JoinHandle<()>),
    /// The port is kept; connections are refused.
    No(TcpSocket),
    /// A change failed half-way.
    Broken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.lease_keeper.abort();
        let listening = self.listening.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Listening::Yes(task) = listening {
            task.abort();
        }
        self.connections.cut_all();
    }
}

/// Starting and stopping.
impl GitLab {
    /// Starts a stand-in on loopback.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        // One that no outgoing connection can take while the stand-in is away.
        let address = match options.listen.port() {
            0 => SocketAddr::new(options.listen.ip(), free_port()?),
            _ => options.listen,
        };
        let socket = reserve(address).await.context("bind the GitLab stand-in")?;
        let address = socket.local_addr()?;
        let server = Arc::new(Server::new(options, format!("http://{address}")));
        let connections = Arc::new(Connections::default());
        let task = listen(socket, &server, &connections)?;
        Ok(Self(Arc::new(Running {
            lease_keeper: tokio::spawn(server::keep_leases(server.clone())),
            server,
            address,
            connections,
            listening: Mutex::new(Listening::Yes(task)),
        })))
    }

    /// Where it is reached, without a trailing slash.
    pub fn url(&self) -> String {
        self.0.server.url.clone()
    }

    /// Goes away: connections are cut, new ones refused. The memory stays.
    pub async fn down(&self) -> anyhow::Result<()> {
        let task = match std::mem::replace(&mut *self.listening(), Listening::Broken) {
            Listening::Yes(task) => task,
            already => {
                *self.listening() = already;
                return Ok(());
            }
        };
        task.abort();
        // The listener is closed only when its task is gone.
        if let Err(error) = task.await
            && !error.is_cancelled()
        {
            bail!("the listener of the GitLab stand-in ended badly: {error}");
        }
        let socket = reserve(self.0.address).await.context("keep the port of the GitLab stand-in")?;
        *self.listening() = Listening::No(socket);
        self.0.connections.cut_all();
        for job in self.0.server.world().jobs.values_mut() {
            job.conduct.excuse();
        }
        Ok(())
    }

    /// Comes back on the same port.
    pub fn up(&self) -> anyhow::Result<()> {
        let mut listening = self.listening();
        match std::mem::replace(&mut *listening, Listening::Broken) {
            Listening::No(socket) => {
                let task = listen(socket, &self.0.server, &self.0.connections)?;
                *listening = Listening::Yes(task);
            }
            already => *listening = already,
        }
        Ok(())
    }

    fn listening(&self) -> std::sync::MutexGuard<'_, Listening> {
        self.0.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(
    socket: TcpSocket,
    server: &Arc<Server>,
    connections: &Arc<Connections>,
) -> anyhow::Result<JoinHandle<()>> {
    let door = Door::open(socket, connections.clone()).context("listen")?;
    let app = Router::new()
        .nest("/-/control", control::router())
        .fallback(front::serve)
        .with_state(server.clone())
        .into_make_service_with_connect_info::<Cutter>();
    Ok(tokio::spawn(async move {
        // It ends only by being aborted: accepting never fails for good.
        let _ = axum::serve(door, app).await;
    }))
}
