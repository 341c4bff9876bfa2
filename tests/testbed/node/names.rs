//! A name server as a cluster has one: pods resolve through it, and it knows the API server's name and what tests add.
//!
//! Answers A questions over UDP, and says of every other name that it does not exist.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// The port that `resolv.conf` cannot change.
const PORT: u16 = 53;
const HEADER: usize = 12;
const TYPE_A: [u8; 2] = [0, 1];
/// Response, authoritative, recursion available.
const ANSWER: u8 = 0b1000_0100;
const NO_SUCH_NAME: u8 = 0b1000_0011;
const FINE: u8 = 0b1000_0000;

type Names = Arc<Mutex<BTreeMap<String, Ipv4Addr>>>;

/// A running name server; dropping it ends it.
pub struct NameServer {
    /// Read for each question, written by tests; never held across an await.
    names: Names,
    task: JoinHandle<()>,
}

impl NameServer {
    /// Listens on the DNS port of a loopback address.
    pub async fn start(address: Ipv4Addr) -> Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::from((address, PORT)))
            .await
            .with_context(|| format!("failed to listen on {address}:{PORT}"))?;
        let names = Names::default();
        let task = tokio::spawn(serve(socket, Arc::clone(&names)));
        Ok(Self { names, task })
    }

    /// Makes a name known, or known with another address.
    pub fn set(&self, name: &str, address: Ipv4Addr) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), address);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, names: Names) {
    let mut question = [0; 512];
    loop {
        // A client that is gone makes the next receive fail once.
        let Ok((length, client)) = socket.recv_from(&mut question).await else { continue };
        let answer = question.get(..length).and_then(|question| answer(question, &names));
        if let Some(answer) = answer
            && let Err(error) = socket.send_to(&answer, client).await
        {
            eprintln!("the name server failed to answer {client}: {error}");
        }
    }
}

/// The answer to a message with one question; none to anything that is not.
fn answer(message: &[u8], names: &Names) -> Option<Vec<u8>> {
    let (name, end) = question_name(message)?;
    let question = message.get(HEADER..end + 4)?;
    let known = names.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
    let address = known.filter(|_| message.get(end..end + 2) == Some(&TYPE_A));

    let mut answer = message.get(..2)?.to_vec();
    answer.extend([ANSWER | message.get(2)? & 1, if known.is_some() { FINE } else { NO_SUCH_NAME }]);
    answer.extend([0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = address {
        // The name as a pointer to the question's, type A, class IN, no time to live, four bytes.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The name asked for, in lower case, and where it ends.
fn question_name(message: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = message.get(at..at + length)?;
        labels.push(String::from_utf8(label.to_ascii_lowercase()).ok()?);
        at += length;
    }
}
