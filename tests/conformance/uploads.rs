//! What was uploaded, taken apart by Python's own zip and gzip: a second opinion about our archives.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::header::CONTENT_TYPE;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::testbed::gitlab::Artifact;

/// An upload.
#[derive(Debug)]
pub struct Upload {
    /// `artifact_type`.
    pub kind: String,
    /// `artifact_format`.
    pub format: String,
    /// `expire_in`.
    pub expire_in: String,
    /// The name of the file.
    pub file: String,
    /// Contents by path: an archive's, or the one of the file itself under its name.
    pub entries: BTreeMap<String, String>,
    /// Modes by path, in octal.
    pub modes: BTreeMap<String, String>,
    /// Bytes of the file.
    pub bytes: usize,
}

#[derive(Debug, Deserialize)]
struct Listing {
    entries: BTreeMap<String, String>,
    modes: BTreeMap<String, String>,
}

const TAKE_APART: &str = r#"
import gzip, io, json, stat, sys, zipfile
form, name, data = sys.argv[1], sys.argv[2], sys.stdin.buffer.read()
entries, modes = {}, {}
if form == "zip":
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            mode, text = info.external_attr >> 16, archive.read(info).decode("utf-8", "replace")
            entries[info.filename] = "-> " + text if stat.S_ISLNK(mode) else text
            modes[info.filename] = format(mode & 0o7777, "o")
else:
    entries[name] = (gzip.decompress(data) if form == "gzip" else data).decode("utf-8", "replace")
json.dump({"entries": entries, "modes": modes}, sys.stdout)
"#;

/// Takes an upload apart.
pub async fn read(artifact: &Artifact) -> Result<Upload> {
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(artifact.query.as_bytes()).into_owned().collect();
    let field = |name: &str| query.get(name).cloned().unwrap_or_default();
    let (file, data) = one_part(artifact).await?;
    let format = field("artifact_format");
    let mut python = Command::new("python3")
        .args(["-c", TAKE_APART, &format, &file])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start python3")?;
    let mut stdin = python.stdin.take().context("python3 has no input")?;
    // It reads all before it writes anything.
    stdin.write_all(&data).await?;
    drop(stdin);
    let output = python.wait_with_output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listing: Listing = serde_json::from_slice(&output.stdout)?;
    Ok(Upload {
        kind: field("artifact_type"),
        format,
        expire_in: field("expire_in"),
        file,
        entries: listing.entries,
        modes: listing.modes,
        bytes: data.len(),
    })
}

/// The one part of the body, `file`, with its name.
async fn one_part(artifact: &Artifact) -> Result<(String, Vec<u8>)> {
    let first = artifact.body.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let boundary = String::from_utf8_lossy(first).trim_start_matches("--").to_owned();
    let request = Request::builder()
        .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
        .body(axum::body::Body::from(artifact.body.clone()))?;
    let mut parts = Multipart::from_request(request, &()).await.map_err(anyhow::Error::msg)?;
    let part = parts.next_field().await?.context("the upload has no part")?;
    ensure!(part.name() == Some("file"), "the part is called {:?}, not file", part.name());
    let name = part.file_name().context("the part has no file name")?.to_owned();
    Ok((name, part.bytes().await?.to_vec()))
}
