//! The operator as a process, with the rights of the chart's own service account.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::sync::OnceCell;

use super::ports;
use super::process::Server;
use super::tools;
use super::wait::until;

/// The variable that names the folder with the supervisors an operator puts on hosts.
pub const SUPERVISOR_DIR: &str = "DORMOUSE_SUPERVISOR_DIR";

/// How long an operator may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// One operator process. Dropping it kills it.
pub struct Operator {
    name: String,
    server: Server,
    admin: String,
}

impl Operator {
    /// Starts an operator for one namespace and waits until it is ready.
    pub async fn start(name: &str, kubeconfig: &Path, namespace: &str, logs: &Path) -> Result<Self> {
        let operator = Self::new(name, kubeconfig, namespace, logs).await?;
        operator.start_again().await?;
        Ok(operator)
    }

    /// An operator that is not started yet: [`Operator::set_variable`] first, then [`Operator::launch`] for one that
    /// may die before it is ready, or [`Operator::start_again`].
    pub async fn new(name: &str, kubeconfig: &Path, namespace: &str, logs: &Path) -> Result<Self> {
        let admin = format!("127.0.0.1:{}", ports::free_port()?);
        let supervisors = supervisor_folder().await?;
        let args = [
            format!("KUBECONFIG={}", kubeconfig.display()),
            binary()?.display().to_string(),
            "operator".to_owned(),
            format!("--watch-namespace={namespace}"), // empty: all namespaces
            format!("--identity={name}"),
            format!("--admin-address={admin}"),
            "--log-format=pretty".to_owned(),
            format!("--log={}", std::env::var("DORMOUSE_TEST_LOG").unwrap_or_else(|_| "info".to_owned())),
        ];
        let server = Server::new(name, Path::new("/usr/bin/env"), args, logs);
        let operator = Self { name: name.to_owned(), server, admin };
        // A variable, so that a test can put other supervisors in their place.
        operator.set_variable(SUPERVISOR_DIR, Some(&supervisors.display().to_string()));
        Ok(operator)
    }

    /// Sets a variable of its environment from its next start on, for instance `DORMOUSE_CLOCK_OFFSET_SECONDS`;
    /// `None` takes it away again.
    pub fn set_variable(&self, name: &str, value: Option<&str>) {
        self.server.set_variable(name, value);
    }

    /// The name in its identity, before an underscore and what tells its processes apart.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it and waits for nothing.
    pub fn launch(&self) -> Result<()> {
        self.server.start_again()
    }

    /// How it ended, if it did so by itself; `None` while it runs, and once [`Operator::kill`] has ended it.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        self.server.ended()
    }

    /// Waits until it has ended by itself, by a signal of its own or not; [`Operator::start_again`] may follow.
    pub async fn until_ended(&self, limit: Duration) -> Result<ExitStatus> {
        until("the operator ends", limit, async || self.server.ended())
            .await
            .with_context(|| format!("it said:\n{}", self.log_tail()))
    }

    /// Waits until it says that it is ready.
    pub async fn until_ready(&self) -> Result<()> {
        until("the operator is ready", READY, async || {
            self.server.check()?;
            Ok(reqwest::get(format!("http://{}/readyz", self.admin))
                .await?
                .status()
                .is_success()
                .then_some(()))
        })
        .await
    }

    /// Status and body of one of its admin pages.
    pub async fn page(&self, path: &str) -> Result<(u16, String)> {
        let answer = reqwest::get(format!("http://{}{path}", self.admin)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Stops it where it is (SIGSTOP).
    pub fn freeze(&self) -> Result<()> {
        self.server.freeze()
    }

    /// Lets it go on after [`Operator::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.server.thaw()
    }

    /// Its metrics.
    pub async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://{}/metrics", self.admin)).await?.error_for_status()?.text().await?)
    }

    /// Ends it with SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.server.kill()
    }

    /// Starts it again after it has ended, and waits until it is ready.
    pub async fn start_again(&self) -> Result<()> {
        self.server.start_again()?;
        self.until_ready().await
    }

    /// Ends it with SIGTERM and waits for its end.
    pub async fn terminate(&self) -> Result<()> {
        self.server.stop().await
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// All of its log, from every start.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.server.log())?).into_owned())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.server.log_tail()
    }
}

/// The operator's binary: `$DORMOUSE_OPERATOR`, or the one that stands two folders above a test's and one above an
/// example's.
pub fn binary() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("DORMOUSE_OPERATOR") {
        return Ok(PathBuf::from(given));
    }
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("the program has no folder")?;
    let binary = folder.join("dormouse");
    ensure!(binary.exists(), "{} is missing; build it with `cargo build --bin dormouse`", binary.display());
    Ok(binary)
}

/// The folder with the static supervisor: of `$DORMOUSE_SUPERVISOR`, or built, once a process.
pub async fn supervisor_folder() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("DORMOUSE_SUPERVISOR") {
        return Ok(PathBuf::from(given).parent().context("$DORMOUSE_SUPERVISOR has no folder")?.to_owned());
    }
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    FOLDER
        .get_or_try_init(|| async {
            let script = tools::sources().join("build-supervisor.sh");
            // Built inside the test runner's own lock on the target folder it would wait for itself: it has its own.
            let target = tools::sources().join("../../target/supervisor");
            let output = Command::new(script).arg("--test").env("CARGO_TARGET_DIR", target).output().await?;
            ensure!(
                output.status.success(),
                "the supervisor cannot be built: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let path = PathBuf::from(String::from_utf8(output.stdout)?.trim().to_owned());
            Ok(path.parent().context("the supervisor has no folder")?.to_owned())
        })
        .await
        .cloned()
}
