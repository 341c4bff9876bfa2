//! The bed that `demo` and `up` run on: a cluster with the chart installed, a GitLab, hosts, an operator.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::control_plane::client::Client;
use super::control_plane::{ControlPlane, Options as ControlPlaneOptions};
use super::gitlab::{GitLab, Options as GitLabOptions, Restarts, Runner};
use super::hosts::{Host, Hosts};
use super::operator::Operator;
use super::scratch::Scratch;
use super::tools;

/// Namespace of the operator's release.
pub const SYSTEM: &str = "dormouse-system";
/// Namespace of the pool.
pub const NAMESPACE: &str = "ci";
/// Name of the pool.
pub const POOL: &str = "linux";

/// A running bed.
pub struct Bed {
    /// kubectl and helm.
    pub client: Client,
    /// The GitLab.
    pub gitlab: GitLab,
    /// Its runner.
    pub runner: Runner,
    /// The machines.
    pub hosts: Vec<Host>,
    /// The operator.
    pub operator: Operator,
    /// Where kubectl and helm are.
    pub programs: PathBuf,
    control_plane: Option<ControlPlane>,
    bed: Hosts,
    scratch: Scratch,
}

/// Says what happens next.
pub fn say(text: &str) {
    println!("\n\x1b[1m==> {text}\x1b[0m");
}

impl Bed {
    /// Brings everything up.
    pub async fn start() -> Result<Self> {
        let scratch = Scratch::new("demo")?;
        let programs =
            tools::folder(&["etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "helm"]).await?;
        let (control_plane, client) = match std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(path) => {
                say(&format!("Using the cluster of KUBECONFIG {}", Path::new(&path).display()));
                (None, Client::new(&programs, Path::new(&path), scratch.path())?)
            }
            None => {
                say("Starting etcd, kube-apiserver and kube-controller-manager");
                let plane = ControlPlane::start(scratch.path(), ControlPlaneOptions::default()).await?;
                let client = Client::new(&programs, plane.kubeconfig(), scratch.path())?;
                (Some(plane), client)
            }
        };
        println!("{}", client.kubectl(&["version"]).await?.trim());

        say("Installing the chart");
        // There is no kubelet in this bed, so the Deployment has no pods: the operator runs as a process here, with
        // the rights of the chart's own service account and nothing else.
        let chart = project().join("charts/dormouse");
        let chart = chart.to_str().context("the project's path is not UTF-8")?;
        let values = "--set=replicas=0,image.repository=local/dormouse,crds.keep=false";
        client
            .helm(&["install", "dormouse", chart, "--namespace", SYSTEM, "--create-namespace", values])
            .await?;
        println!("{}", client.kubectl(&["get", "crd", "-o", "name"]).await?.trim());
        let account = client.service_account_kubeconfig(SYSTEM, "dormouse").await?;

        say("Starting a GitLab stand-in and two hosts with sshd");
        let gitlab = GitLab::start(GitLabOptions {
            hold: std::time::Duration::from_secs(20),
            restarts: Restarts::OnNewConnection,
            ..GitLabOptions::default()
        })
        .await?;
        let runner = gitlab.register_runner(&["dormouse"]);
        let bed = Hosts::new(scratch.path()).await?;
        let hosts = bed.boot_all(&["alder", "birch"]).await?;
        println!("GitLab   {}", gitlab.url());
        for host in &hosts {
            println!("{:<8} ssh {}@{} -p {}", host.name(), host.admin()?, host.address(), host.port());
        }

        say("Starting the operator");
        let operator = Operator::start("operator", &account, "", scratch.path()).await?;
        let bed = Self { client, gitlab, runner, hosts, operator, programs, control_plane, bed, scratch };
        bed.create_secrets().await?;
        Ok(bed)
    }

    /// Where the bed keeps its files.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The pool's manifest, as a person would write it.
    pub fn pool(&self) -> Result<Value> {
        let hosts: Vec<Value> = self
            .hosts
            .iter()
            .map(|host| json!({ "name": host.name(), "address": host.address(), "port": host.port() }))
            .collect();
        let username = self.hosts.first().context("there is no host")?.admin()?;
        Ok(json!({
            "apiVersion": "dormouse.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": { "name": POOL, "namespace": NAMESPACE },
            "spec": {
                "gitlab": { "url": self.gitlab.url(), "tokenSecretRef": { "name": "runner-token", "key": "token" } },
                "concurrency": 4,
                "capacityPerInstance": 2,
                "isolation": "Shared",
                "provider": { "static": { "hosts": hosts } },
                "ssh": { "username": username, "privateKeySecretRef": { "name": "ssh-key", "key": "key" } },
            },
        }))
    }

    /// kubectl in the pool's namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", NAMESPACE];
        all.extend_from_slice(args);
        self.client.kubectl(&all).await
    }

    async fn create_secrets(&self) -> Result<()> {
        self.client.kubectl(&["create", "namespace", NAMESPACE]).await?;
        let token = format!("--from-literal=token={}", self.runner.token);
        self.kubectl(&["create", "secret", "generic", "runner-token", &token]).await?;
        let key = format!("--from-file=key={}", self.bed.client_key().display());
        self.kubectl(&["create", "secret", "generic", "ssh-key", &key]).await?;
        Ok(())
    }

    /// Ends everything, in the documented order: environments, pool, release; then the servers.
    pub async fn end(self) -> Result<()> {
        let wait = "--timeout=60s";
        self.kubectl(&["delete", "suspendedenvironments", "--all", wait]).await?;
        self.kubectl(&["delete", "runnerpools", "--all", wait]).await?;
        self.operator.terminate().await?;
        if self.control_plane.is_none() {
            self.client.helm(&["uninstall", "dormouse", "--namespace", SYSTEM, "--no-hooks"]).await?;
            self.client.kubectl(&["delete", "namespace", NAMESPACE, SYSTEM, wait]).await?;
        }
        drop(self.hosts);
        if let Some(plane) = self.control_plane {
            plane.stop().await?;
        }
        Ok(())
    }
}

/// The project's folder.
pub fn project() -> PathBuf {
    tools::sources().join("../..")
}
