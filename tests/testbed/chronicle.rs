//! A journal that outlives the machines it is written on: scripts send each line over loopback, and go on when it is kept.
//!
//! Instances of a cloud take their disks with them; see `checker/journal.rs` for what is written.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// An open chronicle. Dropping it closes it.
pub struct Chronicle {
    address: SocketAddr,
    /// Taken for lines only.
    lines: Arc<Mutex<Vec<String>>>,
    listener: JoinHandle<()>,
}

impl Chronicle {
    /// Opens an empty one.
    pub async fn open() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let listener = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(take(stream, Arc::clone(&kept)));
            }
        });
        Ok(Self { address, lines, listener })
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Every line so far: the machine's name, and what was written.
    pub fn lines(&self) -> Vec<(String, String)> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let split =
            |line: &String| line.split_once(' ').map(|(host, text)| (host.to_owned(), text.to_owned()));
        lines.iter().filter_map(split).collect()
    }
}

impl Drop for Chronicle {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn take(stream: TcpStream, lines: Arc<Mutex<Vec<String>>>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read).lines();
    while let Ok(Some(line)) = read.next_line().await {
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        if write.write_all(b"kept\n").await.is_err() {
            return;
        }
    }
}
