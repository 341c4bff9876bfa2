//! The control plane of the test bed does what tests rely on.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::testbed::control_plane::{ControlPlane, Options, Part, audit};
use crate::testbed::scratch::Scratch;
use crate::testbed::wait;

#[tokio::test]
async fn service_accounts_get_what_rbac_grants_and_writes_are_counted() -> Result<()> {
    let scratch = Scratch::new("control-plane")?;
    let plane = ControlPlane::start(scratch.path(), Options::default()).await?;
    plane
        .client()
        .apply(
            "
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: default}
rules:
- {apiGroups: [''], resources: [configmaps], verbs: [get, list, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: default}
",
        )
        .await?;
    let reader = plane.service_account_kubeconfig("default", "reader").await?;
    let as_reader = async |args: &'static [&'static str]| plane.client().kubectl_as(&reader, args).await;

    as_reader(&["create", "configmap", "note", "--from-literal=a=b"]).await?;
    let listed = as_reader(&["get", "configmaps", "-o", "name"]).await?;
    ensure!(listed.contains("configmap/note"), "listed only: {listed}");
    let refusal = as_reader(&["get", "secrets"]).await.expect_err("no rule allows secrets");
    ensure!(format!("{refusal:#}").contains("Forbidden"), "unexpected: {refusal:#}");

    let writes = audit::writes(plane.audit_log())?;
    let ours: Vec<_> = writes
        .iter()
        .filter(|write| write.user == "system:serviceaccount:default:reader" && write.is_counted())
        .map(|write| (write.verb.as_str(), write.resource.as_str(), write.code))
        .collect();
    ensure!(ours == [("create", "configmaps", 201)], "counted: {ours:?}");

    let releases = plane.helm(&["list", "-A", "-o", "json"]).await?;
    ensure!(releases.trim() == "[]", "helm lists: {releases}");
    plane.stop().await
}

#[tokio::test]
async fn data_survives_the_death_of_each_part_and_a_frozen_server_answers_nobody() -> Result<()> {
    let scratch = Scratch::new("outages")?;
    let options = Options { controller_manager: false, ..Options::default() };
    let plane = ControlPlane::start(scratch.path(), options).await?;
    plane.kubectl(&["create", "configmap", "kept"]).await?;

    for part in [Part::ApiServer, Part::Etcd] {
        plane.kill(part)?;
        plane
            .kubectl(&["get", "configmap", "kept", "--request-timeout=1s"])
            .await
            .expect_err("a part is down");
        plane.restart(part).await?;
        until_kept(&plane).await?;
    }

    plane.freeze(Part::ApiServer)?;
    plane.kubectl(&["get", "configmap", "kept", "--request-timeout=1s"]).await.expect_err("it is frozen");
    plane.thaw(Part::ApiServer)?;
    until_kept(&plane).await
}

/// A server that has just come back may still answer its first requests with what broke before.
async fn until_kept(plane: &ControlPlane) -> Result<()> {
    let limit = std::time::Duration::from_secs(60);
    wait::until("what was written can be read", limit, async || {
        plane.kubectl(&["get", "configmap", "kept", "--request-timeout=5s"]).await.map(|_| Some(()))
    })
    .await
}

#[tokio::test]
async fn servers_die_with_a_program_that_is_killed() -> Result<()> {
    const ROLE: &str = "DORMOUSE_BED_VICTIM";
    if let Some(dir) = std::env::var_os(ROLE) {
        let options = Options { controller_manager: false, ..Options::default() };
        let plane = ControlPlane::start(Path::new(&dir), options).await?;
        std::fs::write(Path::new(&dir).join("endpoint"), plane.endpoint())?;
        return std::future::pending().await;
    }
    let scratch = Scratch::new("victim")?;
    let mut victim = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "bed_control_plane::servers_die_with_a_program_that_is_killed"])
        .env(ROLE, scratch.path())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let limit = std::time::Duration::from_secs(60);
    let endpoint = wait::until("the victim's servers run", limit, async || {
        Ok(std::fs::read_to_string(scratch.path().join("endpoint")).ok().filter(|text| !text.is_empty()))
    })
    .await?;
    let address = endpoint.strip_prefix("https://").context("an https URL")?;
    std::net::TcpStream::connect(address)?;

    victim.kill().await?;
    wait::until("the victim's servers are gone", limit, async || {
        Ok(std::net::TcpStream::connect(address).is_err().then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_restored_snapshot_takes_everything_back() -> Result<()> {
    let scratch = Scratch::new("restore")?;
    let plane = ControlPlane::start(scratch.path(), Options::default()).await?;
    let names = async || {
        plane
            .kubectl(&["get", "configmaps", "--field-selector=metadata.name!=kube-root-ca.crt", "-o", "name"])
            .await
    };
    plane.kubectl(&["create", "configmap", "before"]).await?;
    let snapshot = plane.snapshot(&scratch.path().join("snapshot")).await?;
    plane.kubectl(&["create", "configmap", "after"]).await?;
    ensure!(names().await? == "configmap/after\nconfigmap/before\n");
    // More than once, and from the same snapshot.
    for _ in 0..2 {
        plane.restore(&snapshot).await?;
        ensure!(names().await? == "configmap/before\n", "it holds {}", names().await?);
        plane.kubectl(&["create", "configmap", "again"]).await?;
    }
    plane.stop().await
}
