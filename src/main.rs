//! The operator's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use dormouse::app;
use dormouse::deed::Point;
use dormouse::telemetry::{self, LogFormat};
use dormouse::uninstall::{self, Running, Scope};

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
    /// Write the API reference as Markdown to standard output.
    ApiReference,
    /// Print the points at which a test build can be told to die: name, sequence and write, separated by tabs.
    CrashPoints,
    /// Say whether the operator may be uninstalled: fails while jobs run or environments are kept.
    UninstallCheck(UninstallArguments),
}

#[derive(Debug, clap::Args)]
struct OperatorArguments {
    /// Namespace to work in; all namespaces without one.
    #[arg(long, env = "DORMOUSE_WATCH_NAMESPACE")]
    watch_namespace: Option<String>,
    /// Namespace the operator runs in, where replicas announce themselves to each other; without one that of
    /// --watch-namespace, or of the cluster credentials.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: Option<String>,
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

#[derive(Debug, clap::Args)]
struct UninstallArguments {
    /// Look at this namespace.
    #[arg(long, required_unless_present = "all_namespaces", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Look at all namespaces.
    #[arg(long)]
    all_namespaces: bool,
    /// Running jobs are no reason to refuse: they run on without an operator.
    #[arg(long)]
    allow_running: bool,
    /// Print what there is and refuse nothing; fails only when that cannot be seen.
    #[arg(long, conflicts_with = "allow_running")]
    report: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Operator(arguments) => run_operator(arguments)?,
        Command::Crds { output } => write_crds(output)?,
        Command::ApiReference => print!("{}", dormouse::api::reference::markdown()),
        Command::CrashPoints => print_crash_points(),
        Command::UninstallCheck(arguments) => return check_uninstall(arguments),
    }
    Ok(ExitCode::SUCCESS)
}

fn run_operator(arguments: OperatorArguments) -> anyhow::Result<()> {
    let OperatorArguments {
        watch_namespace,
        namespace,
        identity,
        admin_address,
        supervisor_dir,
        log_format,
        log,
    } = arguments;
    telemetry::start_logging(log_format, &log)?;
    install_tls_provider()?;
    let watch_namespace = watch_namespace.filter(|namespace| !namespace.is_empty());
    let options = app::Options { watch_namespace, namespace, identity, admin_address, supervisor_dir };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(app::run(options))
}

/// Exits 0 when the operator may go, and 1 with the reasons and the ways out when it may not.
fn check_uninstall(arguments: UninstallArguments) -> anyhow::Result<ExitCode> {
    let UninstallArguments { namespace, all_namespaces: _, allow_running, report } = arguments;
    let scope = namespace.map_or(Scope::All, Scope::Namespace);
    let running = if allow_running { Running::Allow } else { Running::Refuse };
    install_tls_provider()?;
    let remains = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client = kube::Client::try_default().await.context("failed to find the API server")?;
        anyhow::Ok(uninstall::look(&client, &scope).await?)
    })?;
    if report {
        print!("{}", remains.report());
        let complete = remains.unknown_kinds().is_empty();
        return Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let Some(refusal) = remains.refusal(running) else { return Ok(ExitCode::SUCCESS) };
    print!("{refusal}");
    Ok(ExitCode::FAILURE)
}

/// One TLS provider for everything; installed before the first handshake could choose another.
fn install_tls_provider() -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))
}

fn print_crash_points() {
    for point in Point::ALL {
        println!("{}\t{}\t{}", point.name(), point.sequence(), point.what());
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
