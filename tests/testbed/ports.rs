//! Loopback ports that stay ours for the life of a server, also across its restarts.
//!
//! Ports are taken below the range the kernel gives to outgoing connections, so that no connection
//! sits on the port of a server that is down for a moment. A port is claimed by a lock on a file for
//! as long as this process lives: a server is slow to listen, and another bed must not come first.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpSocket;

const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// Ports claimed by this process, with the locked files; the lock is held for the search only.
static CLAIMED: Mutex<BTreeMap<u16, File>> = Mutex::new(BTreeMap::new());

/// A port on 127.0.0.1 on which nobody listens and which no bed of this user has claimed.
pub fn free_port() -> Result<u16> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let mut claimed = CLAIMED.lock().map_err(|_| anyhow!("a thread died while it searched a port"))?;
    // Processes start their search apart from each other, so that two rarely look at the same port.
    let start = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(COUNT))?;
    for step in 0..COUNT {
        let port = FIRST + (start + step) % COUNT;
        if claimed.contains_key(&port) {
            continue;
        }
        let lock = File::options().create(true).append(true).open(folder.join(port.to_string()))?;
        let is_ours = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_ours && is_free(port) {
            claimed.insert(port, lock);
            return Ok(port);
        }
    }
    Err(anyhow!("no free port between {FIRST} and {}", FIRST + COUNT - 1))
}

/// Whether nobody listens there. Looked at without listening: a child that is just being started has a copy of everything
/// open here, and a listener in it would keep the port for that long from the one it is for.
fn is_free(port: u16) -> bool {
    bind((Ipv4Addr::LOCALHOST, port).into()).is_ok()
}

/// Binds without listening: connections are refused, and nobody else can listen there.
pub fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn folder() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("dormouse-ports-{user}"))
}
