//! The operator's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use dormouse::allowed_groups::AllowedGroups;
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
    /// Let fresh slots of a pool begin with what a sleeping environment's workspace holds.
    #[cfg(feature = "aws")]
    PromoteBaseline(PromoteArguments),
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
    /// Where /livez, /readyz, /metrics and /debug/jobs/list are served.
    #[arg(long, env = "DORMOUSE_ADMIN_ADDRESS", default_value = "0.0.0.0:9252")]
    admin_address: SocketAddr,
    /// Folder with dormouse-supervisor-<machine> files to put on hosts.
    #[arg(long, env = "DORMOUSE_SUPERVISOR_DIR", default_value = "/usr/libexec/dormouse")]
    supervisor_dir: PathBuf,
    /// Name of this cluster in the tags of what is made in a cloud, unique among the clusters that share an account; the
    /// uid of namespace kube-system without one. It must stay the same: what carries another is not ours.
    #[arg(long, env = "DORMOUSE_CLUSTER_ID", value_parser = read_cluster_id)]
    cluster_id: Option<String>,
    /// File that says which Auto Scaling groups the pools of a namespace may use, as YAML: `namespaces: {ci: ["ci-*"]}`;
    /// none without one.
    #[arg(long, env = "DORMOUSE_AWS_GROUPS")]
    aws_groups: Option<PathBuf>,
    /// File with prices, as YAML; built-in list prices without one.
    #[arg(long, env = "DORMOUSE_PRICES")]
    prices: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, env = "DORMOUSE_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,
    /// What is logged, such as `info` or `dormouse=debug`.
    #[arg(long, env = "DORMOUSE_LOG", default_value = "info")]
    log: String,
}

#[cfg(feature = "aws")]
#[derive(Debug, clap::Args)]
struct PromoteArguments {
    /// The environment's namespace.
    #[arg(long)]
    namespace: String,
    /// Name of the cluster in the cloud's tags, as the operator has it; the uid of namespace kube-system without one.
    #[arg(long, env = "DORMOUSE_CLUSTER_ID", value_parser = read_cluster_id)]
    cluster_id: Option<String>,
    /// Name of the SuspendedEnvironment. It must be at tier Snapshotted.
    environment: String,
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
        #[cfg(feature = "aws")]
        Command::PromoteBaseline(arguments) => promote_baseline(arguments)?,
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
        cluster_id,
        aws_groups,
        prices,
        log_format,
        log,
    } = arguments;
    telemetry::start_logging(log_format, &log)?;
    install_tls_provider()?;
    let watch_namespace = watch_namespace.filter(|namespace| !namespace.is_empty());
    let options = app::Options {
        watch_namespace,
        namespace,
        identity,
        admin_address,
        supervisor_dir,
        cluster_id: cluster_id.filter(|id| !id.is_empty()),
        allowed_groups: read_allowed_groups(aws_groups)?,
        prices_file: prices.filter(|file| !file.as_os_str().is_empty()),
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(app::run(options))
}

/// The value of a tag, which a condition of an IAM policy may compare.
fn read_cluster_id(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.len() > 63 || !text.bytes().all(allowed) {
        return Err("it may have up to 63 letters, digits, dashes, underscores and dots".to_owned());
    }
    Ok(text.to_owned())
}

fn read_allowed_groups(file: Option<PathBuf>) -> anyhow::Result<AllowedGroups> {
    let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else {
        return Ok(AllowedGroups::default());
    };
    let name = file.display();
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("failed to read {name}, the file of --aws-groups"))?;
    AllowedGroups::parse(&text).with_context(|| format!("failed to use {name}, the file of --aws-groups"))
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

/// Prints what was promoted; what is waited for goes to standard error.
#[cfg(feature = "aws")]
fn promote_baseline(arguments: PromoteArguments) -> anyhow::Result<()> {
    let PromoteArguments { namespace, cluster_id, environment } = arguments;
    install_tls_provider()?;
    let cluster_id = cluster_id.filter(|id| !id.is_empty());
    let promoted = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client = kube::Client::try_default().await.context("failed to find the API server")?;
        let say = |text: &str| eprintln!("{text}");
        anyhow::Ok(
            dormouse::promote::promote(&client, cluster_id.as_deref(), &namespace, &environment, say).await?,
        )
    })?;
    println!("pool {}: fresh volumes begin with {}", promoted.pool, promoted.snapshot);
    if let Some(before) = promoted.before.filter(|before| *before != promoted.snapshot) {
        println!("the baseline before was {before}: it is kept until somebody deletes it");
    }
    Ok(())
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
