//! A Kubernetes control plane without nodes: etcd, kube-apiserver, kube-controller-manager, all on 127.0.0.1.
//!
//! Owns their processes, data, certificates and ports. RBAC, admission policies and the audit log are on, as in a
//! cluster people use. Each part can be frozen, killed and started again on the same port and data; a test that does so
//! needs a control plane of its own. Nothing survives the process that started it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::ports::free_port;
use super::process::Server;
use super::{tools, wait};

pub mod audit;
pub mod client;
pub mod reader;

use client::Client;
use reader::Reader;

/// How long the API server may take until it is ready; it is 2 s on an idle machine.
const READY: Duration = Duration::from_secs(60);
/// Identity of the administrator and of the controller manager, valid on loopback for the life of one bed.
const ADMIN: &str = "bed-admin";
/// Room for the whole life of a bed: the log is counted, so it must not be rotated away.
const AUDIT_LOG_MEGABYTES: &str = "4096";

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Owner references, namespaces' service accounts and Deployments need it.
    pub controller_manager: bool,
    /// Only a bed with a kubelet needs it.
    pub scheduler: bool,
    /// Addresses of Services. Nothing routes them, but a server may listen on one when the range is on loopback.
    pub service_range: String,
    /// Given to kube-apiserver after ours.
    pub api_server_args: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controller_manager: true,
            scheduler: false,
            service_range: "127.96.0.0/24".to_owned(),
            api_server_args: Vec::new(),
        }
    }
}

/// A process of the control plane, for outages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The database.
    Etcd,
    /// The only one clients talk to.
    ApiServer,
    /// The built-in controllers.
    ControllerManager,
}

/// A running control plane; dropping it ends its processes.
pub struct ControlPlane {
    // Order matters: clients go before what they are connected to.
    scheduler: Option<Server>,
    controller_manager: Option<Server>,
    api_server: Server,
    etcd: Server,
    endpoint: String,
    probe: reqwest::Client,
    client: Client,
    /// The API server's own, with its authority.
    certificate: PathBuf,
    audit_log: PathBuf,
    /// Where etcd keeps its data.
    data: PathBuf,
}

/// What etcd held at one moment.
pub struct Snapshot {
    folder: PathBuf,
}

impl ControlPlane {
    /// Starts one with its data, logs and credentials in `dir`, and returns when it is ready to be used.
    pub async fn start(dir: &Path, options: Options) -> Result<Self> {
        let mut programs = vec!["etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "helm"];
        if options.scheduler {
            programs.push("kube-scheduler");
        }
        let programs = tools::folder(&programs).await?;
        fs::create_dir_all(dir)?;

        let etcd_url = format!("http://127.0.0.1:{}", free_port()?);
        let port = free_port()?;
        let endpoint = format!("https://127.0.0.1:{port}");
        let files = Files::write(dir, &endpoint).await?;

        let etcd = start_etcd(&programs, dir, &etcd_url)?;
        let api_server = start_api_server(&programs, dir, &files, &etcd_url, port, &options)?;
        wait::until("kube-apiserver writes its certificate", READY, async || {
            etcd.check()?;
            api_server.check()?;
            // The file is there before it is whole: the server's own certificate, then its authority's.
            let text = fs::read_to_string(&files.certificate)?;
            Ok((text.matches("-----END CERTIFICATE-----").count() >= 2).then_some(()))
        })
        .await?;
        let mut plane = Self {
            scheduler: None,
            controller_manager: None,
            api_server,
            etcd,
            probe: http_client(&files.certificate, Duration::from_secs(2))?,
            endpoint,
            client: Client::new(&programs, &files.kubeconfig, dir)?,
            certificate: files.certificate.clone(),
            audit_log: files.audit_log.clone(),
            data: dir.join("etcd"),
        };
        plane.until_ready().await?;
        if options.controller_manager {
            plane.controller_manager = Some(start_controller_manager(&programs, dir, &files)?);
        }
        if options.scheduler {
            plane.scheduler = Some(start_scheduler(&programs, dir, &files)?);
        }
        plane.until_controllers_work().await?;
        Ok(plane)
    }

    /// kubectl, helm and credentials for this control plane.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A reader of objects, with the administrator's rights.
    pub fn reader(&self) -> Result<Reader> {
        Reader::new(&self.endpoint, &self.certificate, ADMIN)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        self.client.kubeconfig()
    }

    /// The API server's URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// See [`Client::kubectl`].
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.client.kubectl(args).await
    }

    /// See [`Client::helm`].
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        self.client.helm(args).await
    }

    /// See [`Client::service_account_kubeconfig`].
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        self.client.service_account_kubeconfig(namespace, name).await
    }

    /// One JSON line per request, written before the answer; read it with [`audit::writes`].
    pub fn audit_log(&self) -> &Path {
        &self.audit_log
    }

    /// Stops a part where it is: its connections stay open and nothing answers.
    pub fn freeze(&self, part: Part) -> Result<()> {
        self.part(part)?.freeze()
    }

    /// Lets a frozen part go on.
    pub fn thaw(&self, part: Part) -> Result<()> {
        self.part(part)?.thaw()
    }

    /// Ends a part with SIGKILL; its data stays.
    pub fn kill(&self, part: Part) -> Result<()> {
        self.part(part)?.kill()
    }

    /// Starts a killed part on the same port and data, and returns when the API server is ready.
    pub async fn restart(&self, part: Part) -> Result<()> {
        self.part(part)?.start_again()?;
        self.until_ready().await
    }

    /// Keeps what etcd holds now, in a folder that must not exist yet. Clients notice nothing.
    pub async fn snapshot(&self, folder: &Path) -> Result<Snapshot> {
        // Frozen, its files are what its death at this moment would leave, which it can always begin from.
        self.etcd.freeze()?;
        let copied = copy(&self.data, folder).await;
        self.etcd.thaw()?;
        copied?;
        Ok(Snapshot { folder: folder.to_owned() })
    }

    /// Takes everything back to a snapshot, as a restored backup: what was written since was never written, and
    /// resource versions are given a second time. Everybody's connections break.
    pub async fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        let servers = [self.controller_manager.as_ref(), Some(&self.api_server), Some(&self.etcd)];
        for server in servers.into_iter().flatten() {
            server.kill()?;
        }
        fs::remove_dir_all(&self.data)?;
        copy(&snapshot.folder, &self.data).await?;
        // Clients come after what they are connected to.
        for server in servers.into_iter().rev().flatten() {
            server.start_again()?;
        }
        self.until_ready().await
    }

    /// Waits until the API server calls itself ready, its database included.
    pub async fn until_ready(&self) -> Result<()> {
        wait::until("kube-apiserver is ready", READY, async || {
            self.etcd.check()?;
            self.api_server.check()?;
            let url = format!("{}/readyz", self.endpoint);
            let answer = self.probe.get(url).bearer_auth(ADMIN).send().await?;
            Ok(answer.error_for_status().map(|_| Some(()))?)
        })
        .await
    }

    /// Ends everything in order; dropping does the same in haste.
    pub async fn stop(self) -> Result<()> {
        for server in [&self.scheduler, &self.controller_manager].into_iter().flatten() {
            server.stop().await?;
        }
        self.api_server.stop().await?;
        self.etcd.stop().await
    }

    fn part(&self, part: Part) -> Result<&Server> {
        match part {
            Part::Etcd => Ok(&self.etcd),
            Part::ApiServer => Ok(&self.api_server),
            Part::ControllerManager => {
                self.controller_manager.as_ref().context("this bed was started without a controller manager")
            }
        }
    }

    /// Pods and tokens need the service account that the controller manager puts into each namespace.
    async fn until_controllers_work(&self) -> Result<()> {
        let Some(controllers) = &self.controller_manager else { return Ok(()) };
        wait::until("the namespace 'default' has its service account", READY, async || {
            controllers.check()?;
            let url = format!("{}/api/v1/namespaces/default/serviceaccounts/default", self.endpoint);
            let answer = self.probe.get(url).bearer_auth(ADMIN).send().await?;
            Ok(answer.status().is_success().then_some(()))
        })
        .await
    }
}

async fn copy(from: &Path, to: &Path) -> Result<()> {
    let output = tokio::process::Command::new("cp").arg("-a").arg(from).arg(to).output().await?;
    ensure!(output.status.success(), "cp failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What the servers read, and where they write.
struct Files {
    tokens: PathBuf,
    service_account_key: PathBuf,
    audit_policy: PathBuf,
    audit_log: PathBuf,
    certificates: PathBuf,
    /// Written by the API server itself; its own authority follows in the same file.
    certificate: PathBuf,
    kubeconfig: PathBuf,
}

impl Files {
    async fn write(dir: &Path, endpoint: &str) -> Result<Self> {
        let certificates = dir.join("certificates");
        fs::create_dir_all(&certificates)?;
        let files = Self {
            tokens: dir.join("tokens.csv"),
            service_account_key: dir.join("service-account.key"),
            audit_policy: dir.join("audit-policy.yaml"),
            audit_log: dir.join("audit.log"),
            certificate: certificates.join("apiserver.crt"),
            certificates,
            kubeconfig: dir.join("admin.kubeconfig"),
        };
        write_private(&files.tokens, &format!("{ADMIN},{ADMIN},{ADMIN},system:masters\n"))?;
        fs::write(&files.audit_policy, AUDIT_POLICY)?;
        if !files.service_account_key.exists() {
            generate_key(&files.service_account_key).await?;
        }
        write_private(
            &files.kubeconfig,
            &client::kubeconfig(endpoint, &files.certificate, ADMIN, "default"),
        )?;
        Ok(files)
    }
}

/// Every request once, when it is answered; watches and log streams when they end.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: Metadata
";

/// Writes a file only its owner can read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

async fn generate_key(path: &Path) -> Result<()> {
    let output = tokio::process::Command::new("openssl")
        .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
        .arg(path)
        .output()
        .await
        .context("failed to run openssl")?;
    ensure!(output.status.success(), "openssl made no key: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn start_etcd(programs: &Path, dir: &Path, url: &str) -> Result<Server> {
    let peer = format!("http://127.0.0.1:{}", free_port()?);
    let args = [
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Its data need not survive the machine, only its own death.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    Server::start("etcd", &programs.join("etcd"), args, dir)
}

fn start_api_server(
    programs: &Path,
    dir: &Path,
    files: &Files,
    etcd: &str,
    port: u16,
    options: &Options,
) -> Result<Server> {
    let key = files.service_account_key.display();
    let mut args = vec![
        format!("--etcd-servers={etcd}"),
        format!("--bind-address={}", Ipv4Addr::LOCALHOST),
        format!("--advertise-address={}", Ipv4Addr::LOCALHOST),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", files.certificates.display()),
        format!("--service-cluster-ip-range={}", options.service_range),
        "--authorization-mode=Node,RBAC".to_owned(),
        format!("--token-auth-file={}", files.tokens.display()),
        format!("--service-account-key-file={key}"),
        format!("--service-account-signing-key-file={key}"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!("--audit-policy-file={}", files.audit_policy.display()),
        format!("--audit-log-path={}", files.audit_log.display()),
        format!("--audit-log-maxsize={AUDIT_LOG_MEGABYTES}"),
    ];
    args.extend(options.api_server_args.iter().cloned());
    Server::start("kube-apiserver", &programs.join("kube-apiserver"), args, dir)
}

fn start_controller_manager(programs: &Path, dir: &Path, files: &Files) -> Result<Server> {
    let args = [
        format!("--kubeconfig={}", files.kubeconfig.display()),
        format!("--bind-address={}", Ipv4Addr::LOCALHOST),
        format!("--secure-port={}", free_port()?),
        format!("--cert-dir={}", dir.join("controller-manager").display()),
        format!("--service-account-private-key-file={}", files.service_account_key.display()),
        // Without it pods get no authority to trust.
        format!("--root-ca-file={}", files.certificate.display()),
        "--leader-elect=false".to_owned(),
    ];
    Server::start("kube-controller-manager", &programs.join("kube-controller-manager"), args, dir)
}

fn start_scheduler(programs: &Path, dir: &Path, files: &Files) -> Result<Server> {
    let args = [
        format!("--kubeconfig={}", files.kubeconfig.display()),
        format!("--bind-address={}", Ipv4Addr::LOCALHOST),
        format!("--secure-port={}", free_port()?),
        format!("--cert-dir={}", dir.join("scheduler").display()),
        "--leader-elect=false".to_owned(),
    ];
    Server::start("kube-scheduler", &programs.join("kube-scheduler"), args, dir)
}

/// Asks the API server that has this certificate.
fn http_client(certificate: &Path, limit: Duration) -> Result<reqwest::Client> {
    let authorities = reqwest::Certificate::from_pem_bundle(&fs::read(certificate)?)?;
    Ok(reqwest::Client::builder().no_proxy().tls_certs_only(authorities).timeout(limit).build()?)
}
