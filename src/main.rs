//! The operator's command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use dormouse::app;
use dormouse::telemetry::{self, LogFormat};

/// A Kubernetes operator that is a GitLab runner manager and puts job environments to sleep.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator.
    Operator(OperatorArguments),
    /// Write the CustomResourceDefinitions, to standard output or into a folder.
    Crds {
        /// Folder to write one file per kind into.
        #[arg(long)]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct OperatorArguments {
    /// Namespace to work in; all namespaces without one.
    #[arg(long, env = "DORMOUSE_WATCH_NAMESPACE")]
    watch_namespace: Option<String>,
    /// Name of this replica.
    #[arg(long, env = "POD_NAME", default_value = "dormouse")]
    identity: String,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "DORMOUSE_ADMIN_ADDRESS", default_value = "0.0.0.0:9252")]
    admin_address: SocketAddr,
    /// Folder with dormouse-supervisor-<machine> files to put on hosts.
    #[arg(long, env = "DORMOUSE_SUPERVISOR_DIR", default_value = "/usr/libexec/dormouse")]
    supervisor_dir: PathBuf,
    /// How log lines look.
    #[arg(long, env = "DORMOUSE_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,
    /// What is logged, such as `info` or `dormouse=debug`.
    #[arg(long, env = "DORMOUSE_LOG", default_value = "info")]
    log: String,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Operator(arguments) => run_operator(arguments),
        Command::Crds { output } => write_crds(output),
    }
}

fn run_operator(arguments: OperatorArguments) -> anyhow::Result<()> {
    let OperatorArguments { watch_namespace, identity, admin_address, supervisor_dir, log_format, log } =
        arguments;
    telemetry::start_logging(log_format, &log)?;
    // One TLS provider for everything; installed before the first handshake could choose another.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let watch_namespace = watch_namespace.filter(|namespace| !namespace.is_empty());
    let options = app::Options { watch_namespace, identity, admin_address, supervisor_dir };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(app::run(options))
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
