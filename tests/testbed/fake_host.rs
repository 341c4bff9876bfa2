//! Light hosts: SSH servers in this process that speak the supervisor's protocol and run no process at all.
//!
//! They are for numbers, where a thousand real hosts would measure the machine and not the operator. Strict: a command
//! or an option the real host does not know is answered as an error and kept as a violation. They share the product's
//! types of the wire (`dormouse::spool`), so they prove nothing about that format; the real supervisor does.
//!
//! Where they differ from a real host:
//! - a script knows four commands: `echo WORDS`, `sleep SECONDS`, `exit CODE` and `tick MILLISECONDS`, which prints a
//!   numbered line every so often until [`FakeHost::let_jobs_end`];
//! - nothing is on a disk: [`FakeHost::reboot`] keeps the environments, as a disk would, and ends the jobs;
//! - there are no sources, stages, artifacts, users or time-outs, and a graceful cancel ends a job like any other;
//! - the supervisor is there already, unless [`FakeSpec::installed`] says no.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse::spool::record::EnvironmentRecord;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PublicKey};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

mod command;
mod job;
mod machine;
mod script;
mod session;

pub use machine::Called;
use machine::Machine;

/// What a light host is like.
#[derive(Clone, Debug)]
pub struct FakeSpec {
    /// Its name.
    pub name: String,
    /// Sessions it allows on one connection; sshd allows ten.
    pub max_sessions: usize,
    /// Whether the supervisor is there already.
    pub installed: bool,
    /// How long it takes to answer a verb, as a host that is far away or busy.
    pub delay: Duration,
}

impl FakeSpec {
    /// One as sshd is by default, with the supervisor on it.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), max_sessions: 10, installed: true, delay: Duration::ZERO }
    }
}

/// A light host. Dropping it ends it and every connection to it.
pub struct FakeHost {
    machine: Arc<Machine>,
    address: SocketAddr,
    key: PrivateKey,
    client: PublicKey,
    server: Option<AbortOnDropHandle<()>>,
    up: CancellationToken,
}

impl FakeHost {
    /// Starts one that lets this key in.
    pub async fn start(spec: FakeSpec, client_key: &Path) -> Result<Self> {
        let public = std::fs::read_to_string(client_key.with_extension("pub"))?;
        let client = PublicKey::from_openssh(public.trim())?;
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&rand::random()));
        let socket = listen((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = socket.local_addr()?;
        let mut host = Self {
            machine: Arc::new(Machine::new(spec)),
            address,
            key,
            client,
            server: None,
            up: CancellationToken::new(),
        };
        host.serve(socket);
        Ok(host)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.machine.spec.name
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its public key, as a pool pins it.
    pub fn host_key(&self) -> Result<String> {
        Ok(self.key.public_key().to_openssh()?)
    }

    /// Cuts every connection and listens no more. Its jobs run on.
    pub fn go_away(&mut self) {
        self.up.cancel();
        self.server = None;
    }

    /// Listens again on the same port.
    pub fn come_back(&mut self) -> Result<()> {
        let socket = listen(self.address).context("a light host listens again")?;
        self.up = CancellationToken::new();
        self.serve(socket);
        Ok(())
    }

    /// Ends all jobs without a word and gives the machine another boot id; its connections are cut.
    pub fn reboot(&mut self) -> Result<()> {
        self.go_away();
        self.machine.reboot();
        self.come_back()
    }

    /// Lets every `tick` end, those of jobs that are still to come too.
    pub fn let_jobs_end(&self) {
        self.machine.let_jobs_end();
    }

    /// Puts an environment on it, as an earlier job would have left it.
    pub fn keep(&self, environment: EnvironmentRecord) {
        self.machine.keep(environment);
    }

    /// The boot id its environments carry.
    pub fn boot_id(&self) -> String {
        self.machine.boot_id()
    }

    /// Ids of the environments on it.
    pub fn environments(&self) -> Vec<String> {
        self.machine.environments()
    }

    /// Every verb it was called with, in order.
    pub fn calls(&self) -> Vec<Called> {
        self.machine.calls()
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.machine.connections()
    }

    /// What no operator of ours should have sent.
    pub fn violations(&self) -> Vec<String> {
        self.machine.violations()
    }

    fn serve(&mut self, socket: TcpListener) {
        let config = Arc::new(russh::server::Config {
            keys: vec![self.key.clone()],
            auth_rejection_time: Duration::ZERO,
            inactivity_timeout: None,
            nodelay: true,
            ..russh::server::Config::default()
        });
        let (machine, client, up) = (Arc::clone(&self.machine), self.client.clone(), self.up.clone());
        let accepting = async move {
            let mut sessions = JoinSet::new();
            while let Ok((stream, _)) = socket.accept().await {
                machine.connected();
                // A peer that hung up before it was served needs no care.
                let _ = stream.set_nodelay(true);
                sessions.spawn(session::serve(
                    Arc::clone(&config),
                    stream,
                    Arc::clone(&machine),
                    client.clone(),
                    up.clone(),
                ));
                while sessions.try_join_next().is_some() {}
            }
        };
        self.server = Some(AbortOnDropHandle::new(tokio::spawn(accepting)));
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.up.cancel();
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(1024)?)
}
