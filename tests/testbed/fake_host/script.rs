//! The four commands a light host's script may be made of. Pure.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Prints a line.
    Echo(String),
    /// Waits.
    Sleep(Duration),
    /// Prints a numbered line every so often, until jobs may end.
    Tick(Duration),
    /// Ends the script.
    Exit(i32),
}

/// Reads a script.
pub fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Vec<Step>> {
    lines
        .into_iter()
        .map(|line| step(line).with_context(|| format!("a light host cannot run {line:?}")))
        .collect()
}

fn step(line: &str) -> Result<Step> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    Ok(match command {
        "echo" => Step::Echo(rest.to_owned()),
        "sleep" => Step::Sleep(Duration::try_from_secs_f64(rest.parse()?)?),
        "tick" => Step::Tick(Duration::from_millis(rest.parse()?)),
        "exit" => Step::Exit(rest.parse()?),
        _ => bail!("no such command"),
    })
}
