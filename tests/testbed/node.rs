//! A real node: containerd, runc and the kubelet, so that pods of the control plane run.
//!
//! Needs root and the packages of `install-packages.sh pod`. It has pid and mount namespaces of its own and the machine's
//! network: pods need `hostNetwork`, and resolve names through the bed's name server. Ending the first process of its
//! namespaces ends every pod, shim and mount with it, in whatever state they are; its cgroups are removed here, or by
//! the next node when this process is killed.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal};
use tokio::process::Command;

use super::control_plane::{ControlPlane, Options};
use super::image::{self, Image};
use super::process::Server;
use super::tls::self_signed;
use super::{tools, wait};

mod cgroups;
mod names;

use cgroups::Cgroups;
use names::NameServer;

/// A node is Ready about 5 s after its start on an idle machine.
const READY: Duration = Duration::from_secs(90);
/// From SIGKILL to the last process of the namespaces.
const END: Duration = Duration::from_secs(30);
const KUBELET_PORT: u16 = 10_250;
/// What pods call the API server.
pub const API_SERVER_NAME: &str = "kubernetes.default.svc";
const CLUSTER_DOMAIN: &str = "cluster.local";

/// How the API server proves to the kubelet that it may read logs and run commands.
pub struct KubeletAccess {
    certificate: PathBuf,
    key: PathBuf,
}

impl KubeletAccess {
    /// Makes a key for it; needed before the control plane starts.
    pub async fn generate(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let access =
            Self { certificate: dir.join("kubelet-access.crt"), key: dir.join("kubelet-access.key") };
        let subject = ["-subj", "/CN=bed-api-server", "-addext", "extendedKeyUsage=clientAuth", "-days", "7"];
        self_signed(dir, "kubelet-access", &subject).await.context("failed to make a key for the kubelet")?;
        Ok(access)
    }

    /// A control plane for a node.
    pub fn control_plane(&self) -> Options {
        Options {
            scheduler: true,
            api_server_args: vec![
                format!("--kubelet-client-certificate={}", self.certificate.display()),
                format!("--kubelet-client-key={}", self.key.display()),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
            ],
            ..Options::default()
        }
    }
}

/// A running node; dropping it ends its pods.
pub struct Node {
    dir: PathBuf,
    address: Ipv4Addr,
    names: NameServer,
    /// `unshare`, which waits for the first process of the namespaces.
    server: Server,
    // After the server: a cgroup with a process in it cannot be removed.
    _cgroups: Cgroups,
}

impl Node {
    /// Starts a node for `plane` with its data in `dir`, and returns when pods can be scheduled to it.
    pub async fn start(dir: &Path, plane: &ControlPlane, access: &KubeletAccess) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(
            rustix::process::geteuid().is_root(),
            "a node needs root: it makes namespaces, mounts and cgroups"
        );
        let programs = tools::folder(&["kubelet"]).await?;
        fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;

        let (address, names) = claim_address().await?;
        names.set(API_SERVER_NAME, Ipv4Addr::LOCALHOST);
        names.set(&format!("{API_SERVER_NAME}.{CLUSTER_DOMAIN}"), Ipv4Addr::LOCALHOST);

        let cgroups = Cgroups::create(COUNT.fetch_add(1, Ordering::Relaxed))?;
        let pause = image::pause(&dir).await?;
        write_settings(&dir, address, &cgroups, &pause, access)?;
        let server =
            Server::start("node", Path::new("unshare"), arguments(&dir, &programs, plane, address), &dir)?;
        let node = Self { dir, address, names, server, _cgroups: cgroups };
        node.until_containers_can_be_made().await?;
        node.import(&pause).await?;
        node.until_ready(plane).await?;
        Ok(node)
    }

    /// The address its pods have.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The name server of its pods.
    pub fn names(&self) -> &NameServer {
        &self.names
    }

    /// Gives an image to its containerd. Pods need `imagePullPolicy: Never`.
    pub async fn import(&self, image: &Image) -> Result<()> {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.dir.join("containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&image.archive)
            .output()
            .await
            .context("failed to run ctr; see install-packages.sh pod")?;
        ensure!(
            output.status.success(),
            "failed to import {}: {}",
            image.name(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    async fn until_containers_can_be_made(&self) -> Result<()> {
        wait::until("containerd answers", READY, async || {
            self.server.check()?;
            let version = Command::new("ctr")
                .arg("--address")
                .arg(self.dir.join("containerd.sock"))
                .args(["--timeout", "2s", "version"])
                .output()
                .await?;
            Ok(version.status.success().then_some(()))
        })
        .await
    }

    /// The kubelet leaves its addresses and the taint to a cloud provider, because it refuses to take a loopback
    /// address for its own. Here this is the cloud provider.
    async fn until_ready(&self, plane: &ControlPlane) -> Result<()> {
        let name = self.name();
        let addresses = serde_json::json!({"status": {"addresses": [
            {"type": "InternalIP", "address": self.address},
            {"type": "Hostname", "address": name},
        ]}})
        .to_string();
        wait::until("the node is registered", READY, async || {
            self.server.check()?;
            plane
                .kubectl(&["patch", "node", &name, "--subresource=status", "--type=merge", "-p", &addresses])
                .await
                .map(Some)
        })
        .await?;
        plane.kubectl(&["taint", "node", &name, "node.cloudprovider.kubernetes.io/uninitialized-"]).await?;
        let limit = format!("--timeout={}s", READY.as_secs());
        let ready = plane.kubectl(&["wait", "--for=condition=Ready", "node", &name, &limit]).await;
        self.server.check()?;
        ready.map(drop).with_context(|| format!("the kubelet's log ends:\n{}", self.kubelet_log()))
    }

    fn name(&self) -> String {
        node_name(self.address)
    }

    fn kubelet_log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("kubelet.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
    }

    /// Ends every process of the namespaces, and returns when they are gone.
    fn end(&self) -> Result<()> {
        let Some(unshare) = self.server.pid() else { return Ok(()) };
        if let Some(first) = only_child(unshare)? {
            // The kernel ends all others before this one is gone, and only then does `unshare` return.
            match rustix::process::kill_process(first, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context("failed to kill the node"),
            }
            let deadline = Instant::now() + END;
            while self.server.check().is_ok() {
                ensure!(Instant::now() < deadline, "the node does not end");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.server.kill()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("failed to end the node {}: {error:#}", self.name());
        }
    }
}

/// An address of 127.88.0.0/24 nobody uses; its name server, which holds the DNS port, is the claim on it.
async fn claim_address() -> Result<(Ipv4Addr, NameServer)> {
    for host in 1..=254 {
        let address = Ipv4Addr::new(127, 88, 0, host);
        if let Ok(names) = NameServer::start(address).await
            && TcpListener::bind((address, KUBELET_PORT)).is_ok()
        {
            return Ok((address, names));
        }
    }
    Err(anyhow!("all addresses of 127.88.0.0/24 are in use by other nodes"))
}

fn node_name(address: Ipv4Addr) -> String {
    format!("node-{}", address.octets()[3])
}

fn arguments(dir: &Path, programs: &Path, plane: &ControlPlane, address: Ipv4Addr) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "--propagation=private", "--"]
            .map(OsString::from)
            .into();
    arguments.push(tools::sources().join("node/boot.sh").into());
    arguments.push(dir.into());
    arguments.push(programs.join("kubelet").into());
    arguments.extend([
        format!("--config={}", dir.join("kubelet.yaml").display()).into(),
        format!("--kubeconfig={}", plane.kubeconfig().display()).into(),
        format!("--hostname-override={}", node_name(address)).into(),
        "--cloud-provider=external".into(),
    ]);
    arguments
}

fn write_settings(
    dir: &Path,
    address: Ipv4Addr,
    cgroups: &Cgroups,
    pause: &Image,
    access: &KubeletAccess,
) -> Result<()> {
    let folder = dir.display();
    // Raising a process above others in the eyes of the OOM killer needs a capability that root may lack.
    let containerd = format!(
        "\
version = 2
root = '{folder}/containerd'
state = '/run/containerd'
disabled_plugins = ['io.containerd.internal.v1.opt']
[grpc]
address = '{folder}/containerd.sock'
[plugins.'io.containerd.grpc.v1.cri']
restrict_oom_score_adj = true
disable_apparmor = true
sandbox_image = '{pause}'
[plugins.'io.containerd.grpc.v1.cri'.cni]
conf_dir = '{folder}/cni'
",
        pause = pause.name()
    );
    write_private(&dir.join("containerd.toml"), &containerd)?;

    // Without any network configuration a node is not Ready, although pods on the host's network need none.
    fs::create_dir_all(dir.join("cni"))?;
    let network = r#"{"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "loopback"}]}"#;
    write_private(&dir.join("cni/none.conflist"), network)?;

    let kubelet = format!(
        "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
port: {KUBELET_PORT}
healthzPort: 0
containerRuntimeEndpoint: unix://{folder}/containerd.sock
clusterDNS: ['{address}']
clusterDomain: {CLUSTER_DOMAIN}
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
# The machine's disk may be as full as it likes.
evictionHard: {{imagefs.available: 1Mi, nodefs.available: 1Mi}}
imageGCHighThresholdPercent: 100
syncFrequency: 1s
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: false}}
  x509: {{clientCAFile: '{authority}'}}
authorization: {{mode: AlwaysAllow}}
",
        cgroup = cgroups.name(),
        authority = access.certificate.display(),
    );
    write_private(&dir.join("kubelet.yaml"), &kubelet)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// The child of a process that has at most one.
fn only_child(parent: u32) -> Result<Option<Pid>> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .with_context(|| format!("failed to read the children of process {parent}"))?;
    let Some(child) = children.split_whitespace().next() else { return Ok(None) };
    Ok(Pid::from_raw(child.parse()?))
}
