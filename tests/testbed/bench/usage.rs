//! What a process takes of the machine, from /proc.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Linux counts processor time for programs in hundredths of a second on every machine it runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// A look at a process.
pub struct Usage {
    /// Resident memory in MiB.
    pub resident: f64,
    /// The most resident memory it has ever had, in MiB.
    pub peak: f64,
    ticks: f64,
    at: Instant,
}

impl Usage {
    /// Looks at a process.
    pub fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mebibytes = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("an odd stat line")?;
        // Fields 14 and 15 of proc(5): time as a user, time in the kernel.
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(Self { resident: mebibytes("VmRSS:")?, peak: mebibytes("VmHWM:")?, ticks, at: Instant::now() })
    }

    /// Processor time since it began, in seconds.
    pub fn seconds(&self) -> f64 {
        self.ticks / TICKS_PER_SECOND
    }

    /// Processor time since an earlier look, in seconds.
    pub fn seconds_since(&self, earlier: &Self) -> f64 {
        (self.ticks - earlier.ticks) / TICKS_PER_SECOND
    }

    /// Processor time since an earlier look, as a share of one processor in percent.
    pub fn processor_since(&self, earlier: &Self) -> f64 {
        self.seconds_since(earlier) / (self.at - earlier.at).as_secs_f64() * 100.0
    }
}

/// Two looks at a process with this time between.
pub async fn over(pid: u32, time: Duration) -> Result<(Usage, Usage)> {
    let before = Usage::of(pid)?;
    // Nothing is waited for: what the process does in this time is the figure.
    tokio::time::sleep(time).await;
    Ok((before, Usage::of(pid)?))
}
