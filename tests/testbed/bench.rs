//! What the project promises of its speed and its load on the API server, measured on the bed.
//!
//! Each figure is compared with its budget and printed as `budget <name> <figure> <limit> <unit> ok|over`; all of them
//! go, with method and machine, to `target/bench.json`. Nothing here is a test: a figure depends on the machine, so a
//! budget that is exceeded is reported and fails nothing but the benchmark itself. May assume root, like the hosts.

use anyhow::Result;

mod arrivals;
mod artifacts;
mod budget;
mod cloud_calls;
mod cloud_resume;
mod figures;
mod latency;
mod load;
mod logs;
mod machine;
mod noise;
mod open_jobs;
mod planner;
mod plot;
mod recovery;
mod sleepers;
mod sources;
mod takeover;
mod throughput;
mod tiers;
mod usage;
mod workspace;
mod writes;

use budget::Report;

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Small workspaces and few repetitions: minutes become seconds, and the figures are rough.
    pub quick: bool,
    /// Only the measurements with these names; all if empty.
    pub only: Vec<String>,
}

impl Options {
    /// How often something is repeated.
    fn repeat(&self, thorough: usize, quick: usize) -> usize {
        if self.quick { quick } else { thorough }
    }
}

/// The names of all measurements, in the order they are made.
pub const MEASUREMENTS: [&str; 14] = [
    "planner",
    "writes",
    "latency",
    "resume",
    "cloud-calls",
    "cloud-resume",
    "throughput",
    "takeover",
    "open-jobs",
    "environments",
    "recovery",
    "artifacts",
    "logs",
    "sources",
];

/// Measures and reports; whether all that was measured is within its budget.
pub async fn run(options: Options) -> Result<bool> {
    let unknown = options.only.iter().find(|name| !MEASUREMENTS.contains(&name.as_str()));
    if let Some(name) = unknown {
        anyhow::bail!("there is no measurement '{name}', only {}", MEASUREMENTS.join(", "));
    }
    let mut report = Report::new(options.quick)?;
    for name in MEASUREMENTS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        eprintln!("measuring {name}");
        let measured = match name {
            "planner" => planner::measure(&options, &mut report),
            "cloud-calls" => cloud_calls::measure(&options, &mut report).await,
            "cloud-resume" => cloud_resume::measure(&options, &mut report).await,
            "writes" => writes::measure(&options, &mut report).await,
            "latency" => latency::measure(&options, &mut report).await,
            "resume" => workspace::measure(&options, &mut report).await,
            "throughput" => throughput::measure(&options, &mut report).await,
            "open-jobs" => open_jobs::measure(&options, &mut report).await,
            "environments" => sleepers::measure(&options, &mut report).await,
            "artifacts" => artifacts::measure(&options, &mut report).await,
            "logs" => logs::measure(&options, &mut report).await,
            "sources" => sources::measure(&options, &mut report).await,
            "recovery" => recovery::measure(&options, &mut report).await,
            _ => takeover::measure(&options, &mut report).await,
        };
        // One that cannot be made says nothing about the others.
        if let Err(error) = measured {
            report.fail(name, &error);
        }
    }
    report.write()?;
    Ok(report.is_all_ok())
}
