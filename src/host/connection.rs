//! SSH to one host: commands run over channels of as few connections as the host's sshd allows.
//!
//! A channel that ends without an exit status says nothing about the command: it may run on. That is its own error
//! ([`SshError::Lost`]), and whoever asked looks at the supervisor's files for the truth.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::client;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client::Msg};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::trust::{self, Expected, TrustError};
use crate::bounds::Bound;

/// A silent peer is asked for a sign of life this often; after three without an answer it is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_MAX: usize = 2;

/// Most connections to one host. sshd allows 10 sessions a connection by default, so this is room for 640.
const MAX_CONNECTIONS: usize = 64;

/// Longest output of a command that is not a stream.
const MAX_OUTPUT: usize = 16 * 1024 * 1024;

/// Where to connect and as whom.
#[derive(Clone)]
pub struct Target {
    /// Host name or address.
    pub address: String,
    /// Port.
    pub port: u16,
    /// User.
    pub username: String,
    /// What to expect of the host's key.
    pub expected: Expected,
    /// Time for connecting, for the banner and for logging in, each.
    pub dial_timeout: Duration,
    /// The private key to log in with.
    pub key: Arc<PrivateKey>,
    /// A host to connect through.
    pub jump: Option<Box<Target>>,
    /// How many connections are made at a time.
    pub dials: Bound,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}", self.username, self.address, self.port)
    }
}

/// Why SSH did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// No TCP connection.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        /// Address and port.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// Connected, but the peer does not speak SSH in time.
    #[error("{address} accepts connections but its SSH server does not answer within {seconds} s")]
    NoBanner {
        /// Address and port.
        address: String,
        /// The deadline.
        seconds: u64,
    },
    /// The host's key is not the one it should be.
    #[error("the host key of {address} is refused: {cause}")]
    Trust {
        /// Address and port.
        address: String,
        /// Why.
        cause: TrustError,
    },
    /// The server does not let us in.
    #[error("{address} does not accept the pool's key for user {username:?}")]
    Denied {
        /// Address and port.
        address: String,
        /// User.
        username: String,
    },
    /// The connection or the channel ended before the command did.
    #[error("the connection was lost")]
    Lost,
    /// The server does not open more channels on any connection.
    #[error("the SSH server opens no more sessions; raise its MaxSessions or MaxStartups")]
    NoMoreSessions,
    /// A command printed more than it may.
    #[error("the command printed more than {MAX_OUTPUT} bytes")]
    TooMuchOutput,
    /// The SSH library failed.
    #[error("SSH failed")]
    Protocol(#[source] russh::Error),
}

/// A logged-in host.
pub struct Connection {
    target: Target,
    config: Arc<client::Config>,
    /// Open connections; the first is the oldest. Locked for lines only.
    handles: Mutex<Vec<Arc<Session>>>,
    /// Held while one more connection is made: commands that find all full together need one more, not one each.
    growing: tokio::sync::Mutex<()>,
    /// The key the host showed at the first connection.
    pub host_key: PublicKey,
}

struct Session {
    handle: client::Handle<KeyCheck>,
    /// The connection to the jump host must outlive the one that runs through it.
    _jump: Option<Box<Session>>,
}

/// Checks the host's key and keeps it.
struct KeyCheck {
    expected: Expected,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    key: Option<PublicKey>,
    refused: Option<TrustError>,
}

impl client::Handler for KeyCheck {
    type Error = russh::Error;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let key = match offered {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.clone(),
            PublicKeyOrCertificate::Certificate(certificate) => {
                PublicKey::new(certificate.public_key().clone(), "")
            }
        };
        let verdict = trust::check(&self.expected, &key);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.key = Some(key);
        seen.refused = verdict.clone().err();
        Ok(verdict.is_ok())
    }
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: u32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// The end of its standard error.
    pub stderr: String,
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When the host cannot be reached, trusted or logged in to.
    pub async fn open(mut target: Target) -> Result<Self, SshError> {
        let config = Arc::new(client::Config {
            keepalive_interval: Some(KEEPALIVE_INTERVAL),
            keepalive_max: KEEPALIVE_MAX,
            nodelay: true,
            ..client::Config::default()
        });
        let (session, host_key) = connect(&target, &config).await?;
        // A first use is one connection: every further one to the host must find the same key.
        target.expected = Expected::Key(host_key.clone());
        Ok(Self {
            target,
            config,
            handles: Mutex::new(vec![Arc::new(session)]),
            growing: tokio::sync::Mutex::new(()),
            host_key,
        })
    }

    /// Whether the oldest connection is gone.
    pub fn is_closed(&self) -> bool {
        self.sessions().first().is_none_or(|session| session.handle.is_closed())
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When the connection is lost before the exit status is known.
    pub async fn run(&self, command: &str, stdin: Bytes) -> Result<Output, SshError> {
        let mut stream = self.stream(command, stdin).await?;
        let mut stdout = Vec::new();
        while let Some(bytes) = stream.next().await {
            if stdout.len() + bytes.len() > MAX_OUTPUT {
                return Err(SshError::TooMuchOutput);
            }
            stdout.extend_from_slice(&bytes);
        }
        let code = stream.exit_code.ok_or(SshError::Lost)?;
        Ok(Output { code, stdout, stderr: stream.stderr() })
    }

    /// Starts a command and gives its output as it comes.
    ///
    /// # Errors
    /// When no channel can be opened or the command cannot be handed over.
    pub async fn stream(&self, command: &str, stdin: Bytes) -> Result<Stream, SshError> {
        let (read, write) = self.channel().await?.split();
        write.exec(true, command).await.map_err(lost)?;
        let (open, dropped) = oneshot::channel();
        tokio::spawn(feed(write, stdin, dropped));
        Ok(Stream { read, _open: open, exit_code: None, stderr: Vec::new() })
    }

    async fn channel(&self) -> Result<Channel<Msg>, SshError> {
        if let Some(channel) = self.channel_on(&self.sessions()).await? {
            return Ok(channel);
        }
        let known = self.sessions();
        let _growing = self.growing.lock().await;
        // Another command may have made a connection meanwhile, with room on it.
        let mut fresh = self.sessions();
        fresh.retain(|session| !known.iter().any(|known| Arc::ptr_eq(known, session)));
        if let Some(channel) = self.channel_on(&fresh).await? {
            return Ok(channel);
        }
        if self.sessions().len() >= MAX_CONNECTIONS {
            return Err(SshError::NoMoreSessions);
        }
        let (session, _) = connect(&self.target, &self.config).await?;
        let session = Arc::new(session);
        let channel = session.handle.channel_open_session().await.map_err(|error| match error {
            russh::Error::ChannelOpenFailure(_) => SshError::NoMoreSessions,
            other => lost(other),
        })?;
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        Ok(channel)
    }

    /// A channel on the first of some connections that has room for it.
    async fn channel_on(&self, sessions: &[Arc<Session>]) -> Result<Option<Channel<Msg>>, SshError> {
        for session in sessions {
            match timeout(self.target.dial_timeout, session.handle.channel_open_session()).await {
                Ok(Ok(channel)) => return Ok(Some(channel)),
                // The server has as many sessions on this connection as it allows: try the next one.
                Ok(Err(russh::Error::ChannelOpenFailure(_))) => {}
                Ok(Err(_)) | Err(_) => {
                    self.drop_session(session);
                    if self.sessions().is_empty() {
                        return Err(SshError::Lost);
                    }
                }
            }
        }
        Ok(None)
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn drop_session(&self, session: &Arc<Session>) {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.retain(|known| !Arc::ptr_eq(known, session));
    }
}

/// The output of a running command. Dropping it closes its channel, so that the host has the session back.
pub struct Stream {
    read: ChannelReadHalf,
    /// Dropped with the stream, which closes the channel.
    _open: oneshot::Sender<Infallible>,
    /// The exit code, once the command has ended and the server said so.
    pub exit_code: Option<u32>,
    stderr: Vec<u8>,
}

/// Bytes of standard error kept for messages.
const STDERR_KEPT: usize = 2048;

impl Stream {
    /// The next bytes of standard output, or `None` at the end of the channel.
    pub async fn next(&mut self) -> Option<Bytes> {
        // Exit status, end of file and close come in any order; only the end of messages is the end.
        while let Some(message) = self.read.wait().await {
            match message {
                ChannelMsg::Data { data } => return Some(data),
                ChannelMsg::ExtendedData { data, .. } => {
                    let room = STDERR_KEPT.saturating_sub(self.stderr.len());
                    self.stderr.extend(data.iter().take(room));
                }
                ChannelMsg::ExitStatus { exit_status } => self.exit_code = Some(exit_status),
                _ => {}
            }
        }
        None
    }

    /// What the command printed to standard error.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

/// Gives a command its input, and closes its channel once nobody wants its output any more. A command may end before
/// it has read all of its input, which would otherwise be waited for in vain.
async fn feed(write: ChannelWriteHalf<Msg>, stdin: Bytes, dropped: oneshot::Receiver<Infallible>) {
    let written = async {
        if !stdin.is_empty() {
            write.data_bytes(stdin).await?;
        }
        write.eof().await
    };
    let fed = async {
        // What went wrong with it shows in the end of the output.
        if written.await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = fed => {}
        _ = dropped => {}
    }
    // A connection that is gone has no channel to close.
    let _ = write.close().await;
}

fn lost(error: russh::Error) -> SshError {
    match error {
        russh::Error::Disconnect | russh::Error::SendError | russh::Error::HUP => SshError::Lost,
        other => SshError::Protocol(other),
    }
}

/// Dials when it is its turn.
async fn connect(target: &Target, config: &Arc<client::Config>) -> Result<(Session, PublicKey), SshError> {
    let _place = target.dials.enter().await;
    dial(target, config).await
}

async fn dial(target: &Target, config: &Arc<client::Config>) -> Result<(Session, PublicKey), SshError> {
    let address = format!("{}:{}", target.address, target.port);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let check = KeyCheck { expected: target.expected.clone(), seen: Arc::clone(&seen) };
    let deadline = target.dial_timeout;
    let no_banner = || SshError::NoBanner { address: address.clone(), seconds: deadline.as_secs() };
    let (result, jump) = match &target.jump {
        None => {
            let connect = |cause: String| SshError::Connect { address: address.clone(), cause };
            let socket =
                timeout(deadline, tokio::net::TcpStream::connect((target.address.as_str(), target.port)))
                    .await
                    .map_err(|_| connect(format!("no answer within {} s", deadline.as_secs())))?
                    .map_err(|error| connect(error.to_string()))?;
            socket.set_nodelay(true).map_err(|error| connect(error.to_string()))?;
            let shake = client::connect_stream(Arc::clone(config), socket, check);
            (timeout(deadline, shake).await.map_err(|_| no_banner())?, None)
        }
        Some(through) => {
            let (jump, _) = Box::pin(dial(through, config)).await?;
            let channel = jump
                .handle
                .channel_open_direct_tcpip(target.address.clone(), u32::from(target.port), "127.0.0.1", 0)
                .await
                .map_err(|error| SshError::Connect {
                    address: address.clone(),
                    cause: format!("through {}: {error}", through.address),
                })?;
            let shake = client::connect_stream(Arc::clone(config), channel.into_stream(), check);
            (timeout(deadline, shake).await.map_err(|_| no_banner())?, Some(Box::new(jump)))
        }
    };
    let (key, refused) = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.key.take(), seen.refused.take())
    };
    if let Some(cause) = refused {
        return Err(SshError::Trust { address, cause });
    }
    let mut handle =
        result.map_err(|error| SshError::Connect { address: address.clone(), cause: error.to_string() })?;
    timeout(deadline, log_in(&mut handle, target)).await.map_err(|_| no_banner())??;
    let key = key.ok_or(SshError::Lost)?;
    Ok((Session { handle, _jump: jump }, key))
}

async fn log_in(handle: &mut client::Handle<KeyCheck>, target: &Target) -> Result<(), SshError> {
    let hash = handle.best_supported_rsa_hash().await.map_err(lost)?.flatten();
    let key = PrivateKeyWithHashAlg::new(Arc::clone(&target.key), hash);
    let result = handle.authenticate_publickey(target.username.clone(), key).await.map_err(lost)?;
    if result.success() {
        Ok(())
    } else {
        Err(SshError::Denied {
            address: format!("{}:{}", target.address, target.port),
            username: target.username.clone(),
        })
    }
}
