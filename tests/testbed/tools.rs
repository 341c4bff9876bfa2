//! Finds the programs of the control plane, building them first if this machine has not yet.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The folder of this project's test bed sources.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed")
}

/// The folder that holds `programs`, built if need be: minutes the first time, with progress on stderr.
pub async fn folder(programs: &[&str]) -> Result<PathBuf> {
    let script = sources().join("build-tools.sh");
    let mut build = Command::new(&script);
    build.args(programs).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || build.output())
        .await?
        .with_context(|| format!("failed to run {}", script.display()))?;
    ensure!(output.status.success(), "{} failed, see its messages above", script.display());
    let stdout = String::from_utf8(output.stdout)?;
    let folder = stdout.lines().last().context("build-tools.sh named no folder")?;
    Ok(PathBuf::from(folder))
}
