//! The bed that `demo` and `up` run on: a cluster with the chart installed, a GitLab, machines, an operator.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::control_plane::client::Client;
use super::control_plane::{ControlPlane, Options as ControlPlaneOptions};
use super::gitlab::{GitLab, Options as GitLabOptions, Restarts, Runner};
use super::hosts::{Host, Hosts};
use super::operator::Operator;
use super::scratch::Scratch;
use super::stage::{CloudSetting, CloudStage, SOON, merge};
use super::tools;
use super::wait::until;

/// Namespace of the operator's release.
pub const SYSTEM: &str = "dormouse-system";
/// Namespace of the pool.
pub const NAMESPACE: &str = "ci";
/// Name of the pool.
pub const POOL: &str = "linux";

/// Where the pool's machines come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Two hosts that are always there.
    Static,
    /// An Auto Scaling group of the cloud stand-in.
    Aws,
}

impl Provider {
    /// By the word for it; none is hosts.
    pub fn parse(word: Option<&str>) -> Result<Self> {
        match word {
            None | Some("" | "static") => Ok(Self::Static),
            Some("aws") => Ok(Self::Aws),
            Some(other) => bail!("the provider '{other}' is not known: PROVIDER is static or aws"),
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Aws => "aws",
        }
    }
}

/// A running bed.
pub struct Bed {
    /// kubectl and helm.
    pub client: Client,
    /// The GitLab.
    pub gitlab: GitLab,
    /// Its runner.
    pub runner: Runner,
    /// The machines, where they are hosts.
    pub hosts: Vec<Host>,
    /// The cloud they come from, where they do.
    pub cloud: Option<CloudStage>,
    /// Snapshots that the cloud had before the pool: those of machine images.
    pub images: BTreeSet<String>,
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
    pub async fn start(provider: Provider) -> Result<Self> {
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

        say(match provider {
            Provider::Static => "Starting a GitLab stand-in and two hosts with sshd",
            Provider::Aws => "Starting a GitLab stand-in and a stand-in for EC2 and Auto Scaling",
        });
        let gitlab = GitLab::start(GitLabOptions {
            hold: std::time::Duration::from_secs(20),
            restarts: Restarts::OnNewConnection,
            ..GitLabOptions::default()
        })
        .await?;
        let runner = gitlab.register_runner(&["dormouse"]);
        let bed = Hosts::new(scratch.path()).await?;
        println!("GitLab   {}", gitlab.url());
        let (hosts, cloud) = match provider {
            Provider::Static => (bed.boot_all(&["alder", "birch"]).await?, None),
            Provider::Aws => {
                (Vec::new(), Some(CloudStage::open(scratch.path(), &CloudSetting::default()).await?))
            }
        };
        for host in &hosts {
            println!("{:<8} ssh {}@{} -p {}", host.name(), host.admin()?, host.address(), host.port());
        }
        let mut images = BTreeSet::new();
        if let Some(cloud) = &cloud {
            // The stand-in shows a snapshot once somebody has asked for it.
            cloud.cloud.ec2().describe_snapshots().send().await?;
            images.extend(cloud.cloud.state().await?.snapshots.into_iter().map(|known| known.id));
            println!("AWS      {}, its instances are real machines with sshd", cloud.cloud.endpoint());
        }

        say("Starting the operator");
        let operator = Operator::new("operator", &account, "", scratch.path()).await?;
        if let Some(cloud) = &cloud {
            cloud.equip(&operator, scratch.path(), NAMESPACE)?;
        }
        operator.start_again().await?;
        let bed = Self {
            client,
            gitlab,
            runner,
            hosts,
            cloud,
            images,
            operator,
            programs,
            control_plane,
            bed,
            scratch,
        };
        bed.create_secrets().await?;
        Ok(bed)
    }

    /// Where the bed keeps its files.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The pool's manifest, as a person would write it.
    pub fn pool(&self) -> Result<Value> {
        let mut spec = json!({
            "gitlab": { "url": self.gitlab.url(), "tokenSecretRef": { "name": "runner-token", "key": "token" } },
            "concurrency": 4,
            "ssh": { "username": "root", "privateKeySecretRef": { "name": "ssh-key", "key": "key" } },
        });
        let of_provider = match &self.cloud {
            None => self.of_hosts()?,
            Some(cloud) => json!({
                "provider": cloud.provider(),
                "maxInstances": 3,
                // Short, so that what a person sees in minutes can be shown in seconds.
                "policies": [{ "idleCount": 0, "idleTime": "3s" }],
                "scaling": { "updateInterval": "1s", "updateIntervalWhenExpecting": "1s" },
                "workspaceVolume": { "sizeGiB": 1 },
            }),
        };
        merge(&mut spec, of_provider);
        Ok(json!({
            "apiVersion": "dormouse.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": { "name": POOL, "namespace": NAMESPACE },
            "spec": spec,
        }))
    }

    fn of_hosts(&self) -> Result<Value> {
        let hosts: Vec<Value> = self
            .hosts
            .iter()
            .map(|host| json!({ "name": host.name(), "address": host.address(), "port": host.port() }))
            .collect();
        let username = self.hosts.first().context("there is no host")?.admin()?;
        Ok(json!({
            "capacityPerInstance": 2,
            "isolation": "Shared",
            "provider": { "static": { "hosts": hosts } },
            "ssh": { "username": username },
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
        let key = match &self.cloud {
            Some(cloud) => cloud.machines.client_key()?,
            None => self.bed.client_key(),
        };
        let key = format!("--from-file=key={}", key.display());
        self.kubectl(&["create", "secret", "generic", "ssh-key", &key]).await?;
        Ok(())
    }

    /// Ends everything, in the documented order: environments, pool, release; then the servers.
    pub async fn end(self) -> Result<()> {
        let wait = "--timeout=60s";
        self.kubectl(&["delete", "suspendedenvironments", "--all", wait]).await?;
        self.kubectl(&["delete", "runnerpools", "--all", wait]).await?;
        if let Some(cloud) = &self.cloud {
            nothing_is_left_in(cloud, &self.images).await?;
        }
        self.operator.terminate().await?;
        if self.control_plane.is_none() {
            self.client.helm(&["uninstall", "dormouse", "--namespace", SYSTEM, "--no-hooks"]).await?;
            self.client.kubectl(&["delete", "namespace", NAMESPACE, SYSTEM, wait]).await?;
        }
        drop(self.hosts);
        drop(self.cloud);
        if let Some(plane) = self.control_plane {
            plane.stop().await?;
        }
        Ok(())
    }
}

/// Fails if something that costs money is left in the cloud after the pool is gone.
async fn nothing_is_left_in(cloud: &CloudStage, images: &BTreeSet<String>) -> Result<()> {
    until("nothing is left in the cloud", SOON, async || {
        let state = cloud.cloud.state().await?;
        let ends = ["terminated", "shutting-down"];
        let runs = state.instances.iter().any(|instance| !ends.contains(&instance.state.as_str()));
        Ok((!runs
            && state.volumes.is_empty()
            && state.snapshots.iter().all(|known| images.contains(&known.id)))
        .then_some(()))
    })
    .await?;
    println!("The cloud has no instance, volume or snapshot left.");
    Ok(())
}

/// The project's folder.
pub fn project() -> PathBuf {
    tools::sources().join("../..")
}
