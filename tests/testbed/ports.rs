//! Loopback ports that stay ours for the life of a server, also across its restarts.
//!
//! Ports are taken below the range the kernel gives to outgoing connections, so that no connection
//! sits on the port of a server that is down for a moment.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use anyhow::{Result, anyhow};

const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// Ports handed out by this process; the lock is held for the search only.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port on 127.0.0.1 on which nobody listens and which this process has not handed out before.
pub fn free_port() -> Result<u16> {
    let mut taken = TAKEN.lock().map_err(|_| anyhow!("a thread died while it searched a port"))?;
    // Processes start their search apart from each other, so that two rarely want the same port at once.
    let start = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(COUNT))?;
    for step in 0..COUNT {
        let port = FIRST + (start + step) % COUNT;
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return Ok(port);
        }
    }
    Err(anyhow!("no free port between {FIRST} and {}", FIRST + COUNT - 1))
}
