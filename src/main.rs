//! The operator's command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// A Kubernetes operator that is a GitLab runner manager and puts job environments to sleep.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the CustomResourceDefinitions, to standard output or into a folder.
    Crds {
        /// Folder to write one file per kind into.
        #[arg(long)]
        output: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Crds { output } => write_crds(output),
    }
}

fn write_crds(output: Option<PathBuf>) -> anyhow::Result<()> {
    for file in dormouse::api::crds::all()? {
        match &output {
            Some(folder) => std::fs::write(folder.join(file.name), &file.yaml)?,
            None => println!("---\n{}", file.yaml),
        }
    }
    Ok(())
}
