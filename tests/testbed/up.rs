//! The bed left running for a person: `up` starts it in the background and says where everything is, `down` ends it.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::bed::{Bed, NAMESPACE, POOL, Provider};
use super::process::Owner;
use super::stage::cloud::GROUP;
use super::wait::until;

/// The word with which the background process is started.
pub const SERVE: &str = "serve";

/// Bringing everything up takes seconds; the rest is for a busy machine.
const START: Duration = Duration::from_secs(180);

/// Files of the bed that is up, in the user's cache folder.
fn folder() -> Result<PathBuf> {
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => Path::new(&home).join(".cache"),
        (None, None) => bail!("neither XDG_CACHE_HOME nor HOME is set"),
    };
    let folder = cache.join("dormouse/up");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn running(folder: &Path) -> Option<(Owner, i32)> {
    let text = fs::read_to_string(folder.join("owner")).ok()?;
    let owner = Owner::parse_prefix(text.trim())?;
    let pid = text.split(['-', '.']).next()?.parse().ok()?;
    owner.is_alive().then_some((owner, pid))
}

/// Starts the bed in the background and waits until it is up.
pub async fn start(provider: Provider) -> Result<()> {
    let folder = folder()?;
    ensure!(running(&folder).is_none(), "it is up already; `make down` ends it");
    let ready = folder.join("ready");
    if ready.exists() {
        fs::remove_file(&ready)?;
    }
    let log = fs::File::create(folder.join("log"))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args([SERVE, provider.word()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    println!("starting; its log is {}", folder.join("log").display());
    let screen = until("the bed is up", START, async || {
        if let Some(status) = child.try_wait()? {
            let log = fs::read_to_string(folder.join("log"))?;
            return Err(super::wait::give_up(anyhow::anyhow!("it ended with {status}:\n{log}")));
        }
        Ok(fs::read_to_string(&ready).ok())
    })
    .await?;
    println!("{screen}");
    Ok(())
}

/// Is the bed, until SIGTERM.
pub async fn serve(provider: Provider) -> Result<()> {
    let folder = folder()?;
    fs::write(folder.join("owner"), Owner::this_process()?.to_string())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let bed = Bed::start(provider).await?;
    let pool = folder.join("pool.yaml");
    fs::write(&pool, serde_saphyr::to_string(&bed.pool()?)?)?;
    let staged = folder.join("ready.new");
    let mut file = fs::File::create(&staged)?;
    writeln!(file, "export KUBECONFIG={}", bed.client.kubeconfig().display())?;
    writeln!(file, "export PATH=\"{}:$PATH\"  (kubectl, helm)", bed.programs.display())?;
    writeln!(file, "GitLab stand-in      {}", bed.gitlab.url())?;
    writeln!(
        file,
        "  runner token       {} (also in Secret runner-token, namespace {NAMESPACE})",
        bed.runner.token
    )?;
    writeln!(file, "  jobs               curl {}/-/control/jobs", bed.gitlab.url())?;
    for host in &bed.hosts {
        let (admin, address, port) = (host.admin()?, host.address(), host.port());
        writeln!(file, "host {:<15} {admin}@{address} port {port} (key in Secret ssh-key)", host.name())?;
    }
    if let Some(cloud) = &bed.cloud {
        let lab = format!("{}/lab", cloud.cloud.endpoint());
        writeln!(file, "EC2 and Auto Scaling {} (group {GROUP})", cloud.cloud.endpoint())?;
        let words: Vec<String> =
            cloud.cloud.environment().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        writeln!(file, "  for AWS programs   export {}", words.join(" "))?;
        writeln!(file, "  what there is      curl {lab}/state   (every call: {lab}/calls?since=0)")?;
        writeln!(file, "  things that happen docs/testbed-aws.md, Steering it")?;
        writeln!(
            file,
            "  instances          ssh -i {} root@<address>",
            cloud.machines.client_key()?.display()
        )?;
    }
    writeln!(file, "a pool to apply      kubectl apply -f {}  (RunnerPool {POOL})", pool.display())?;
    fs::rename(&staged, folder.join("ready"))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let ended = bed.end().await;
    fs::remove_file(folder.join("owner"))?;
    ended
}

/// Ends the bed that is up.
pub async fn stop() -> Result<()> {
    let folder = folder()?;
    let Some((owner, pid)) = running(&folder) else {
        println!("it is not up");
        return Ok(());
    };
    let pid = rustix::process::Pid::from_raw(pid).context("the owner's process id is not one")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    until("the bed is down", START, async || Ok((!owner.is_alive()).then_some(()))).await?;
    println!("it is down");
    Ok(())
}
