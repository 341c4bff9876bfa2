//! What the figures were seen on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// The machine and the build.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    processors: usize,
    model: String,
    memory_mib: u64,
    kernel: String,
    /// Cargo's profile, by the folder this program lies in.
    profile: String,
    /// One-minute load when the run began: figures of a busy machine are not the project's.
    load_before: f64,
}

impl Machine {
    /// Looks at this one.
    pub fn look() -> Result<Self> {
        let own = std::env::current_exe()?;
        let profile = own.parent().and_then(Path::parent).and_then(Path::file_name);
        Ok(Self {
            processors: std::thread::available_parallelism()?.get(),
            model: field("/proc/cpuinfo", "model name").unwrap_or_else(|_| "unknown".to_owned()),
            memory_mib: memory()?,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            profile: profile.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            load_before: load()?,
        })
    }
}

fn memory() -> Result<u64> {
    let kib = field("/proc/meminfo", "MemTotal")?;
    let kib: u64 = kib.trim_end_matches(" kB").parse().context("MemTotal is no number")?;
    Ok(kib / 1024)
}

fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split(' ').next().unwrap_or_default().parse().context("/proc/loadavg begins with no number")
}

fn field(file: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(file)?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .with_context(|| format!("{file} has no {name}"))
}
