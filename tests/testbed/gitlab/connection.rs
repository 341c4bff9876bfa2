//! Connections that can be cut from the inside, and the door they come through.
//!
//! Owns the listening port: closed and opened again, it stays ours, so that a client finds the
//! same server at the same place. Knows nothing of HTTP.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::super::ports::bind;

/// Connections waiting to be accepted.
const BACKLOG: u32 = 1024;

/// How long a child that is being started may hold copies of our sockets.
const COPIES_CLOSE: Duration = Duration::from_secs(5);

/// The handle on one connection.
#[derive(Clone, Debug)]
pub(super) struct Cutter(Arc<Line>);

#[derive(Debug)]
struct Line {
    number: u64,
    is_cut: AtomicBool,
    /// Wakes the task that serves the connection, so that it sees the cut.
    waker: AtomicWaker,
}

impl Cutter {
    /// Counts connections since the start.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// Closes the connection; what was not yet sent is lost.
    pub fn cut(&self) {
        self.0.is_cut.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

impl Connected<IncomingStream<'_, Door>> for Cutter {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().cutter.clone()
    }
}

/// Every connection that is open.
#[derive(Debug, Default)]
pub(super) struct Connections {
    counted: AtomicU64,
    open: Mutex<Vec<Weak<Line>>>,
}

impl Connections {
    fn admit(&self, stream: TcpStream) -> CuttableStream {
        let number = self.counted.fetch_add(1, Ordering::Relaxed) + 1;
        let line = Arc::new(Line { number, is_cut: AtomicBool::new(false), waker: AtomicWaker::new() });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|line| line.strong_count() > 0);
        open.push(Arc::downgrade(&line));
        CuttableStream { stream, cutter: Cutter(line) }
    }

    /// Cuts all of them.
    pub fn cut_all(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for line in open.drain(..).filter_map(|line| line.upgrade()) {
            Cutter(line).cut();
        }
    }
}

/// A TCP stream that fails from the moment it is cut.
#[derive(Debug)]
pub(super) struct CuttableStream {
    stream: TcpStream,
    cutter: Cutter,
}

impl CuttableStream {
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.cutter.0.waker.register(context.waker());
        if self.cutter.0.is_cut.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for CuttableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for CuttableStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Accepts connections and makes them cuttable.
#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    connections: Arc<Connections>,
}

impl Door {
    /// Listens on the socket.
    pub fn open(socket: TcpSocket, connections: Arc<Connections>) -> io::Result<Self> {
        Ok(Self { listener: socket.listen(BACKLOG)?, connections })
    }
}

impl Listener for Door {
    type Io = CuttableStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    // Without it small answers wait for the client's acknowledgement.
                    if stream.set_nodelay(true).is_err() {
                        continue;
                    }
                    return (self.connections.admit(stream), address);
                }
                // Out of descriptors, or a client that has left already.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Keeps a port without listening on it. A child that is just being started
/// has a copy of everything open here, a listener that was closed a moment ago too: until it runs, the port is in use.
pub(super) async fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let deadline = tokio::time::Instant::now() + COPIES_CLOSE;
    loop {
        match bind(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            bound => return bound,
        }
    }
}
