//! What an upload of artifacts costs on the host.

use std::io::Write as _;

use anyhow::Result;

use super::super::errand::{Wanted, upload};
use super::super::operator::supervisor_folder;
use super::budget::{Bound, Budget, Report};
use super::noise::Noise;
use super::{Options, figures};

const MEMORY: Budget =
    Budget { name: "artifact-upload-memory", bound: Bound::Below, limit: 32.0, unit: "MiB" };

/// Content of a size that compresses as builds do, halfway: as much noise as zeros.
fn fill(file: &std::path::Path, size: u64) -> Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(file)?);
    let (mut noise, mut block) = (Noise::default(), [0_u8; 8192]);
    for _ in 0..size / 8192 {
        noise.fill(&mut block[..4096]);
        out.write_all(&block)?;
    }
    Ok(out.flush()?)
}

/// Uploads a file of 1 GiB as zip and as it is.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let supervisor =
        supervisor_folder().await?.join(format!("dormouse-supervisor-{}", std::env::consts::ARCH));
    let size: u64 = if options.quick { 64 << 20 } else { 1 << 30 };
    let folder = std::env::temp_dir().join(format!("dormouse-bench-artifacts-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let measured = measure_in(&folder, &supervisor, size, report);
    std::fs::remove_dir_all(&folder)?;
    measured
}

fn measure_in(
    folder: &std::path::Path,
    supervisor: &std::path::Path,
    size: u64,
    report: &mut Report,
) -> Result<()> {
    fill(&folder.join("big"), size)?;
    let mut memory: Vec<f64> = Vec::new();
    for format in ["zip", "raw"] {
        let done = upload(supervisor, folder, &Wanted { format, path: "big" })?;
        println!(
            "figure artifact-upload-{format} {} MiB: {} s",
            size >> 20,
            figures::shown(done.took.as_secs_f64())
        );
        memory.push(done.memory as f64 / 1024.0);
    }
    let method = format!(
        "VmHWM of the errand at the end of an upload of {} MiB, as zip and as it is, to a server that only counts",
        size >> 20
    );
    report.add(MEMORY, figures::largest(&memory), method, &memory);
    Ok(())
}
