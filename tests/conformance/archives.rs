//! Archives as others make them, hostile ones too: Python writes whatever names and modes it is told.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::case::Archive;

const ZIP: &str = r#"
import io, json, sys, zipfile
out = io.BytesIO()
with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
    for entry in json.load(sys.stdin):
        info = zipfile.ZipInfo("x")
        info.filename, info.create_system, info.compress_type = entry["name"], 3, zipfile.ZIP_DEFLATED
        info.external_attr = int(entry["mode"] or "100644", 8) << 16
        archive.writestr(info, entry["text"] * (entry["times"] or 1))
sys.stdout.buffer.write(out.getvalue())
"#;

const GZIP: &str = "import gzip, sys; sys.stdout.buffer.write(gzip.compress(sys.stdin.buffer.read()))";

/// Makes an archive.
pub fn made(archive: &Archive) -> Result<Vec<u8>> {
    match archive {
        Archive::Zip(entries) => python(ZIP, &serde_json::to_vec(entries)?),
        Archive::Gzip(text) => python(GZIP, text.as_bytes()),
        Archive::Bytes(text) => Ok(text.clone().into_bytes()),
    }
}

fn python(program: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut python = Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start python3")?;
    // It reads all before it writes anything.
    python.stdin.take().context("python3 has no input")?.write_all(input)?;
    let output = python.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
