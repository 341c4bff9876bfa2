//! An upload of artifacts as the supervisor's errand does it, by itself, against a server that only counts.
//!
//! The server reads what comes in chunks and asks the kernel for the errand's memory before it answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

/// What became of an upload.
#[derive(Debug)]
pub struct Uploaded {
    /// What it printed.
    pub said: String,
    /// Bytes of the body that arrived.
    pub bytes: u64,
    /// The most memory it took, in KiB.
    pub memory: u64,
    /// How long it took.
    pub took: Duration,
}

/// What is uploaded of a project.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// `zip`, `gzip` or `raw`.
    pub format: &'a str,
    /// The path.
    pub path: &'a str,
}

/// Uploads.
pub fn upload(supervisor: &Path, project: &Path, wanted: &Wanted<'_>) -> Result<Uploaded> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let order = order(&format!("http://{}", listener.local_addr()?), project, wanted);
    let begun = Instant::now();
    let mut errand = Command::new(supervisor)
        .args(["launch", "--errand"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the supervisor")?;
    let pid = errand.id();
    let server = thread::spawn(move || serve(listener.accept()?.0, pid));
    let mut stdin = errand.stdin.take().context("the errand has no input")?;
    stdin.write_all(order.to_string().as_bytes())?;
    drop(stdin);
    let output = errand.wait_with_output()?;
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // The server waits for ever for one that has given up before it connected.
    ensure!(output.status.success(), "the errand ended with {}: {said}", output.status);
    let (bytes, memory) = server.join().map_err(|_| anyhow!("the server ended"))??;
    Ok(Uploaded { said, bytes, memory, took })
}

fn order(gitlab: &str, project: &Path, wanted: &Wanted<'_>) -> Value {
    json!({"UploadArtifacts": {
        "project": project,
        "gitlab": gitlab,
        "job": 7,
        "token": "token",
        "compression": "fastest",
        "given": {"values": {}, "gitlab_env": "/dev/null"},
        "http": {"ca_bundle": null, "proxy": {"http": null, "https": null, "none": null}},
        "items": [{
            "name": "a",
            "choice": {"paths": [wanted.path], "exclude": [], "untracked": false},
            "format": wanted.format,
            "kind": "archive",
            "expire_in": "",
        }],
    }})
}

/// Reads one request in chunks; how long its body was, and the memory of who sent it.
fn serve(mut answer: TcpStream, pid: u32) -> Result<(u64, u64)> {
    let mut stream = BufReader::with_capacity(1 << 20, answer.try_clone()?);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the request has no body");
    }
    let (mut bytes, mut chunk) = (0, Vec::new());
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let length =
            u64::from_str_radix(line.trim(), 16).with_context(|| format!("a chunk's length: {line:?}"))?;
        chunk.clear();
        stream.by_ref().take(length + 2).read_to_end(&mut chunk)?;
        if length == 0 {
            break;
        }
        bytes += length;
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let memory = most.trim().trim_end_matches(" kB").parse()?;
    answer.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")?;
    Ok((bytes, memory))
}
