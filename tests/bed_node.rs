//! The node of the test bed does what tests rely on.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::testbed::control_plane::ControlPlane;
use crate::testbed::node::{KubeletAccess, Node};
use crate::testbed::scratch::Scratch;
use crate::testbed::wait;

const KUBELET_PORT: u16 = 10_250;
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_pod_dies_with_a_program_that_is_killed_and_the_next_node_tidies_up_after_it() -> Result<()> {
    const ROLE: &str = "DORMOUSE_NODE_VICTIM";
    if let Some(dir) = std::env::var_os(ROLE) {
        let dir = Path::new(&dir);
        let (plane, node) = start(dir).await?;
        let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "held"}, "spec": {"hostNetwork": true,
            "containers": [{"name": "pause", "image": "dormouse.test/pause:1", "imagePullPolicy": "Never"}]}}"#;
        plane.client().apply(pod).await?;
        plane.kubectl(&["wait", "--for=condition=Ready", "pod/held", "--timeout=60s"]).await?;
        fs::write(dir.join("partial"), node.address().to_string())?;
        fs::rename(dir.join("partial"), dir.join("address"))?;
        return std::future::pending().await;
    }
    let scratch = Scratch::new("node-victim")?;
    let mut victim = tokio::process::Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "bed_node::a_pod_dies_with_a_program_that_is_killed_and_the_next_node_tidies_up_after_it",
        ])
        .env(ROLE, scratch.path())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let address: Ipv4Addr = wait::until("the victim's pod runs", LIMIT, async || {
        ensure!(victim.try_wait()?.is_none(), "the victim ended");
        Ok(fs::read_to_string(scratch.path().join("address")).ok())
    })
    .await?
    .parse()?;
    let id = victim.id().map(|id| format!("dormouse-node.{id}-"));
    let prefix = id.as_deref().unwrap_or_default();
    ensure!(count_cgroups(prefix)? > 0, "no cgroup of the victim begins with {prefix}");

    victim.kill().await?;
    wait::until("the kubelet is gone", LIMIT, async || {
        Ok(TcpStream::connect((address, KUBELET_PORT)).is_err().then_some(()))
    })
    .await?;
    wait::until("no process of the victim's folder is left", LIMIT, async || {
        Ok((!is_used(scratch.path())?).then_some(()))
    })
    .await?;

    let next = Scratch::new("node-after")?;
    let (plane, node) = start(next.path()).await?;
    ensure!(count_cgroups(prefix)? == 0, "cgroups of the victim are left");
    drop(node);
    plane.stop().await
}

async fn start(dir: &Path) -> Result<(ControlPlane, Node)> {
    let access = KubeletAccess::generate(&dir.join("access")).await?;
    let plane = ControlPlane::start(&dir.join("control-plane"), access.control_plane()).await?;
    let node = Node::start(&dir.join("node"), &plane, &access).await?;
    Ok((plane, node))
}

/// Folders of that name in any cgroup hierarchy, at its top.
fn count_cgroups(prefix: &str) -> Result<usize> {
    let root = Path::new("/sys/fs/cgroup");
    let named = |folder: &Path| -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(folder)? {
            count += usize::from(entry?.file_name().to_string_lossy().starts_with(prefix));
        }
        Ok(count)
    };
    let mut count = named(root)?;
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.is_dir() {
            count += named(&path)?;
        }
    }
    Ok(count)
}

/// Whether any process has `folder` in its command line.
fn is_used(folder: &Path) -> Result<bool> {
    let wanted = folder.to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc")? {
        // A process that ends while we look is none.
        let arguments = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(&wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}
