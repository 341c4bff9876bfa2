//! The test bed as a program: `demo` shows the main job, `up` leaves the same bed running, `down` ends it.
#![allow(dead_code, unused_imports, reason = "the program uses a part of the bed")]
#![allow(missing_docs, reason = "the modules are documented; this is a program")]

mod bed;
mod bench;
mod cloud;
mod control_plane;
mod crowd;
mod demo;
mod errand;
mod fake_host;
mod gitlab;
mod hosts;
mod machines;
mod operator;
mod ports;
mod process;
mod proxy;
mod scratch;
mod stage;
mod tools;
mod up;
mod wait;

use std::process::ExitCode;

use bed::Provider;

const USAGE: &str = "usage: testbed demo [static|aws] | up [static|aws] | down | bench [--quick] [NAME]...";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match command.as_str() {
        "demo" => runtime.block_on(async { demo::run(Provider::parse(words.next().as_deref())?).await }),
        "up" => runtime.block_on(async { up::start(Provider::parse(words.next().as_deref())?).await }),
        up::SERVE => runtime.block_on(async { up::serve(Provider::parse(words.next().as_deref())?).await }),
        "down" => runtime.block_on(up::stop()),
        "bench" => runtime.block_on(measure(words.collect())),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ntestbed {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(words: Vec<String>) -> anyhow::Result<()> {
    let (flags, only): (Vec<_>, Vec<_>) = words.into_iter().partition(|word| word.starts_with('-'));
    anyhow::ensure!(flags.iter().all(|flag| flag == "--quick"), "{USAGE}");
    let all_ok = bench::run(bench::Options { quick: !flags.is_empty(), only }).await?;
    anyhow::ensure!(all_ok, "a budget is exceeded");
    Ok(())
}
