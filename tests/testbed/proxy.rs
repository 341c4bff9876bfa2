//! A network path that can fail: a TCP relay between the address clients know and the one a server listens on.
//!
//! It can be cut, hung or slowed without either end noticing, which no signal to a process can do. The path to every
//! host is one; [`Proxy::to`] puts one before any other server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::ports::free_port;

/// How often a slow line carries something.
const TICKS_PER_SECOND: u32 = 20;
/// How long an address may stay in use, and how soon it is tried again.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(15);

/// What the path does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Carries them.
    Up,
    /// Keeps them: connections hang, new ones too, and all go on from where they were once it is up.
    Silent,
    /// Resets connections and refuses new ones, as a machine that is off but whose address is routed.
    Refused,
    /// Carries this many bytes a second in each direction of a connection, each of them late by `latency`.
    Slow {
        /// At least 20.
        bytes_per_second: u32,
        /// Of each way; a round trip takes it twice.
        latency: Duration,
    },
}

/// A relay; dropping it closes its connections.
pub struct Proxy {
    public: SocketAddr,
    orders: mpsc::Sender<Order>,
}

struct Order {
    line: Line,
    done: oneshot::Sender<io::Result<()>>,
}

impl Proxy {
    /// A path that carries nothing yet ([`Line::Refused`]), kept by a runtime that outlives it.
    pub fn new(runtime: &Handle, public: SocketAddr, target: SocketAddr) -> Self {
        let (orders, inbox) = mpsc::channel(1);
        runtime.spawn(serve(public, target, inbox));
        Self { public, orders }
    }

    /// A path to a server that is up, on a free port of its own.
    pub async fn to(target: SocketAddr) -> Result<Self> {
        let public = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let proxy = Self::new(&Handle::current(), public, target);
        proxy.set(Line::Up).await?;
        Ok(proxy)
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.public
    }

    /// Changes the line; connections made from now on see the new state.
    pub async fn set(&self, line: Line) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.orders.send(Order { line, done }).await.context("the proxy's runtime is gone")?;
        let changed = answer.await.context("the proxy's runtime is gone")?;
        changed.with_context(|| format!("failed to listen on {}", self.public))
    }

    /// Resets every connection once; new ones are carried.
    pub async fn reset(&self) -> Result<()> {
        self.set(Line::Refused).await?;
        self.set(Line::Up).await
    }
}

async fn serve(public: SocketAddr, target: SocketAddr, mut orders: mpsc::Receiver<Order>) {
    let line = watch::Sender::new(Line::Refused);
    let mut listener = None;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return };
                let changed = switch(&mut listener, public, order.line).await;
                line.send_replace(order.line);
                if order.line == Line::Refused {
                    // Waited for, or a line that is up again at once would have reset nothing.
                    while connections.join_next().await.is_some() {}
                }
                // Whoever asked may have gone away; the order was carried out all the same.
                let _ = order.done.send(changed);
            }
            accepted = accept(listener.as_ref()) => match accepted {
                Ok(client) => { connections.spawn(carry(client, target, line.subscribe())); }
                Err(error) => eprintln!("{public} failed to accept: {error}"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn switch(listener: &mut Option<TcpListener>, public: SocketAddr, line: Line) -> io::Result<()> {
    match line {
        Line::Refused => *listener = None,
        Line::Up | Line::Silent | Line::Slow { .. } => {
            if listener.is_none() {
                *listener = Some(listen(public).await?);
            }
        }
    }
    Ok(())
}

/// A process that is being started has all that this one has open until its program begins: also a listener that was closed
/// here meanwhile, whose address is in use until then.
async fn listen(public: SocketAddr) -> io::Result<TcpListener> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(public).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            bound => return bound,
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

/// Relays one connection to its end. An error on one side, or the line's, is a reset on the other.
async fn carry(mut client: TcpStream, target: SocketAddr, mut line: watch::Receiver<Line>) -> io::Result<()> {
    let mut server = match until_carried(&mut line, 0).await {
        Ok(()) => TcpStream::connect(target).await,
        Err(error) => Err(error),
    }
    .inspect_err(|_| reset(&client))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let carried = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let mut refused = line.clone();
        tokio::select! {
            both = async { tokio::try_join!(
                copy(from_client, to_server, line.clone()),
                copy(from_server, to_client, line.clone()),
            ) } => both.map(|_| ()),
            _ = refused.wait_for(|line| *line == Line::Refused) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    };
    carried.inspect_err(|_| {
        reset(&client);
        reset(&server);
    })
}

async fn copy(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut line: watch::Receiver<Line>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let room = match *line.borrow() {
            Line::Slow { bytes_per_second, .. } => (bytes_per_second / TICKS_PER_SECOND).max(1) as usize,
            Line::Up | Line::Silent | Line::Refused => buffer.len(),
        };
        let length = match buffer.get_mut(..room) {
            Some(part) => from.read(part).await?,
            None => from.read(&mut buffer).await?,
        };
        until_carried(&mut line, length).await?;
        match buffer.get(..length) {
            Some(bytes) if length > 0 => to.write_all(bytes).await?,
            _ => return to.shutdown().await,
        }
    }
}

/// Waits as long as the line takes for so many bytes.
async fn until_carried(line: &mut watch::Receiver<Line>, length: usize) -> io::Result<()> {
    let now = line.wait_for(|line| *line != Line::Silent).await.map(|line| *line);
    match now {
        Ok(Line::Up) => Ok(()),
        Ok(Line::Slow { bytes_per_second, latency }) => {
            let seconds = length as f64 / f64::from(bytes_per_second.max(1));
            tokio::time::sleep(latency + Duration::from_secs_f64(seconds)).await;
            Ok(())
        }
        Ok(Line::Silent | Line::Refused) | Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

/// Makes the close that follows a reset; a socket that is already broken needs none.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
