//! The network cable of a host: a TCP relay between the address clients know and the one its sshd listens on.
//!
//! It can be pulled without the host or the client noticing, which no signal to a process can do. Runs on the bed's own
//! runtime, so a test that blocks its threads does not cut its hosts off.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// What the cable does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Carries them.
    Up,
    /// Keeps them: connections hang, new ones too, and all go on from where they were once it is up.
    Silent,
    /// Resets connections and refuses new ones, as a machine that is off but whose address is routed.
    Refused,
}

/// A relay; dropping it closes its connections.
pub struct Link {
    orders: mpsc::Sender<Order>,
}

struct Order {
    line: Line,
    done: oneshot::Sender<io::Result<()>>,
}

impl Link {
    /// A cable that is not plugged in yet ([`Line::Refused`]).
    pub fn new(runtime: &Handle, public: SocketAddr, target: SocketAddr) -> Self {
        let (orders, inbox) = mpsc::channel(1);
        runtime.spawn(serve(public, target, inbox));
        Self { orders }
    }

    /// Changes the line; connections made from now on see the new state.
    pub async fn set(&self, line: Line) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.orders.send(Order { line, done }).await.context("the bed's runtime is gone")?;
        answer.await.context("the bed's runtime is gone")?.context("failed to listen on a host's address")
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
        Line::Up | Line::Silent if listener.is_none() => *listener = Some(TcpListener::bind(public).await?),
        Line::Up | Line::Silent => {}
    }
    Ok(())
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

/// Relays one connection to its end. An error on one side, or the line's, is a reset on the other.
async fn carry(mut client: TcpStream, target: SocketAddr, mut line: watch::Receiver<Line>) -> io::Result<()> {
    let mut server = match until_up(&mut line).await {
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
        let length = from.read(&mut buffer).await?;
        until_up(&mut line).await?;
        match buffer.get(..length) {
            Some(bytes) if length > 0 => to.write_all(bytes).await?,
            _ => return to.shutdown().await,
        }
    }
}

async fn until_up(line: &mut watch::Receiver<Line>) -> io::Result<()> {
    match line.wait_for(|line| *line != Line::Silent).await.as_deref() {
        Ok(Line::Up) => Ok(()),
        Ok(Line::Silent | Line::Refused) | Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

/// Makes the close that follows a reset; a socket that is already broken needs none.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
