//! A stage for one test: a namespace of the shared control plane, a GitLab, hosts, a pool, an operator.

#![allow(clippy::indexing_slicing, reason = "what a JSON value does not have is null, not a panic")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::control_plane::reader::Reader;
use super::control_plane::{ControlPlane, Options as ControlPlaneOptions};
use super::gitlab::{GitLab, JobId, JobSpec, JobView, Options as GitLabOptions, Runner};
use super::hosts::{Host, HostSpec, Hosts};
use super::operator::Operator;
use super::proxy::Proxy;
use super::scratch::Scratch;
use super::wait::until;

pub mod cloud;
mod look;
pub use cloud::{CloudSetting, CloudStage};
pub use look::{host, message, row};

/// Time for anything that should happen soon on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A control plane with the folder it lives in.
pub struct Cluster {
    /// The servers.
    pub control_plane: ControlPlane,
    /// With the rights of the chart's own service account, where the chart is installed.
    account: Option<PathBuf>,
    _scratch: Scratch,
}

impl Cluster {
    /// Keeps a control plane and its folder together.
    pub fn new(control_plane: ControlPlane, scratch: Scratch) -> Self {
        Self { control_plane, account: None, _scratch: scratch }
    }

    /// Installs the chart, without a pod: operators run as processes with the rights of its service account, and
    /// nothing else.
    async fn install_chart(mut self) -> Result<Self> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/dormouse").display().to_string();
        let values = "--set=replicas=0,image.repository=local/dormouse";
        let install =
            ["install", "dormouse", &chart, "--namespace", "dormouse-system", "--create-namespace", values];
        self.control_plane.helm(&install).await?;
        self.control_plane
            .kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"])
            .await?;
        self.account =
            Some(self.control_plane.service_account_kubeconfig("dormouse-system", "dormouse").await?);
        Ok(self)
    }

    /// One for a test that freezes, kills or rolls back parts of it, with our chart installed.
    pub async fn own(name: &str) -> Result<Arc<Self>> {
        let scratch = Scratch::new(name)?;
        let control_plane = ControlPlane::start(scratch.path(), ControlPlaneOptions::default()).await?;
        Ok(Arc::new(Self::new(control_plane, scratch).install_chart().await?))
    }

    /// What operators connect with.
    pub fn operator_kubeconfig(&self) -> &Path {
        self.account.as_deref().unwrap_or_else(|| self.control_plane.kubeconfig())
    }
}

/// The control plane all tests of one process share, with our chart installed. It ends with the process.
pub async fn cluster() -> Result<Arc<Cluster>> {
    static CLUSTER: OnceCell<Arc<Cluster>> = OnceCell::const_new();
    CLUSTER.get_or_try_init(|| Cluster::own("cluster")).await.cloned()
}

/// What a stage is made of.
pub struct Setting {
    /// Names of the hosts.
    pub hosts: Vec<&'static str>,
    /// How all of them differ from the usual.
    pub host: HostSpec,
    /// Operators reach GitLab and the API server over paths that can fail, [`Stage::paths`]. That leaves every other
    /// test of the shared control plane alone.
    pub with_paths: bool,
    /// The pool's machines are of a cloud, in place of the hosts.
    pub cloud: Option<CloudSetting>,
    /// Merged into the pool's spec.
    pub pool: Value,
    /// The GitLab.
    pub gitlab: GitLabOptions,
}

impl Setting {
    /// One host, and a pool with these changes.
    pub fn pool(changes: Value) -> Self {
        // A request is held for less than an operator is given to end: it then ends by itself.
        let gitlab = GitLabOptions { hold: Duration::from_secs(3), ..GitLabOptions::default() };
        Self { pool: changes, gitlab, ..Self::default() }
    }

    /// The same with these hosts.
    pub fn hosts(mut self, names: &[&'static str]) -> Self {
        self.hosts = names.to_vec();
        self
    }

    /// A pool of a cloud that looks at it every second, with these changes.
    pub fn cloud(changes: Value) -> Self {
        let mut pool = json!({
            "maxInstances": 4,
            "scaling": { "updateInterval": "1s", "updateIntervalWhenExpecting": "1s" },
        });
        merge(&mut pool, changes);
        Self { hosts: Vec::new(), cloud: Some(CloudSetting::default()), ..Self::pool(pool) }
    }

    /// The same with a cloud that differs from the usual.
    pub fn in_cloud(mut self, setting: CloudSetting) -> Self {
        self.cloud = Some(setting);
        self
    }

    /// The same with paths that can fail.
    pub fn paths(mut self) -> Self {
        self.with_paths = true;
        self
    }
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            hosts: vec!["alder"],
            host: HostSpec::default(),
            with_paths: false,
            cloud: None,
            pool: json!({}),
            gitlab: GitLabOptions { hold: Duration::from_secs(20), ..GitLabOptions::default() },
        }
    }
}

/// A stage for one test.
pub struct Stage {
    /// The control plane, shared unless the test brought its own.
    pub cluster: Arc<Cluster>,
    /// The test's own namespace.
    pub namespace: String,
    /// The test's own GitLab.
    pub gitlab: GitLab,
    /// Its runner.
    pub runner: Runner,
    /// The bed the hosts are of.
    pub bed: Hosts,
    /// The hosts, in the order of the setting.
    pub hosts: Vec<Host>,
    /// The cloud of its pool, where the setting asks for one.
    pub cloud: Option<CloudStage>,
    /// The operator, unless it was not started.
    pub operator: Option<Operator>,
    /// A second replica, where the test has started one.
    pub standby: Option<Operator>,
    /// The operators' ways to GitLab and the API server, where the setting asks for them.
    pub paths: Option<Paths>,
    reader: Reader,
    scratch: Arc<Scratch>,
}

/// Paths of the network that can fail. See [`Line`](super::proxy::Line).
pub struct Paths {
    /// From operators to GitLab; hosts have a way of their own, for git and artifacts.
    pub gitlab: Proxy,
    /// From operators to the API server.
    pub api_server: Proxy,
    kubeconfig: PathBuf,
}

impl Paths {
    async fn open(cluster: &Cluster, gitlab: &GitLab, folder: &Path) -> Result<Self> {
        let target = |url: &str| -> Result<SocketAddr> {
            Ok(url.rsplit('/').next().context("an empty URL")?.parse()?)
        };
        let endpoint = cluster.control_plane.endpoint();
        let api_server = Proxy::to(target(endpoint)?).await?;
        let there = format!("https://{}", api_server.address());
        let kubeconfig = folder.join("operator.kubeconfig");
        let direct = fs::read_to_string(cluster.operator_kubeconfig())?;
        ensure!(direct.contains(endpoint), "the kubeconfig leads to another server than {endpoint}");
        fs::write(&kubeconfig, direct.replace(endpoint, &there))?;
        Ok(Self { gitlab: Proxy::to(target(&gitlab.url())?).await?, api_server, kubeconfig })
    }
}

/// The name of every stage's pool.
pub const POOL: &str = "pool";

impl Stage {
    /// Everything but the operator and the pool.
    pub async fn without_operator(name: &str, setting: &Setting) -> Result<Self> {
        Self::on(cluster().await?, name, setting).await
    }

    /// Everything but the operator and the pool, on a control plane of the test's own.
    pub async fn on(cluster: Arc<Cluster>, name: &str, setting: &Setting) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{name}-{number}");
        let scratch = Arc::new(Scratch::new(name)?);
        let bed = Hosts::new(scratch.path()).await?;
        let gitlab = GitLab::start(setting.gitlab.clone()).await?;
        let runner = gitlab.register_runner(&["dormouse"]);
        let create = ["create", "namespace", &namespace];
        let (made, hosts) = tokio::join!(
            cluster.control_plane.kubectl(&create),
            bed.boot_alike(&setting.hosts, &setting.host)
        );
        made?;
        let paths = match setting.with_paths {
            true => Some(Paths::open(&cluster, &gitlab, scratch.path()).await?),
            false => None,
        };
        let cloud = match &setting.cloud {
            Some(cloud) => Some(CloudStage::open(scratch.path(), cloud).await?),
            None => None,
        };
        let stage = Self {
            reader: cluster.control_plane.reader()?,
            cloud,
            cluster,
            namespace,
            gitlab,
            runner,
            hosts: hosts?,
            bed,
            operator: None,
            standby: None,
            paths,
            scratch,
        };
        stage.create_secrets().await?;
        Ok(stage)
    }

    /// Everything, with the pool Ready.
    pub async fn start(name: &str, setting: Setting) -> Result<Self> {
        Self::start_on(cluster().await?, name, setting).await
    }

    /// The same on a control plane of the test's own.
    pub async fn start_on(cluster: Arc<Cluster>, name: &str, setting: Setting) -> Result<Self> {
        let mut stage = Self::on(cluster, name, &setting).await?;
        stage.apply_pool(setting.pool.clone()).await?;
        stage.operator = Some(stage.start_operator("operator-a").await?);
        stage.until_condition("runnerpool", POOL, "Ready").await?;
        if stage.cloud.is_none() {
            // What a pool in a cloud begins with is its group's affair.
            stage.until_hosts("Ready").await?;
        }
        Ok(stage)
    }

    /// Starts an operator for the stage's namespace.
    pub async fn start_operator(&self, name: &str) -> Result<Operator> {
        let operator = self.new_operator(name).await?;
        operator.start_again().await?;
        Ok(operator)
    }

    /// An operator for the stage's namespace that is not started yet, to give it variables first.
    pub async fn new_operator(&self, name: &str) -> Result<Operator> {
        let direct = self.cluster.operator_kubeconfig();
        let kubeconfig = self.paths.as_ref().map_or(direct, |paths| &paths.kubeconfig);
        let operator = Operator::new(name, kubeconfig, &self.namespace, self.scratch.path()).await?;
        if let Some(cloud) = &self.cloud {
            cloud.equip(&operator, self.scratch.path(), &self.namespace)?;
        }
        Ok(operator)
    }

    /// The network paths of a stage whose setting asks for them.
    pub fn paths(&self) -> Result<&Paths> {
        self.paths.as_ref().context("the stage was set without paths that can fail")
    }

    /// The operator.
    pub fn operator(&self) -> Result<&Operator> {
        self.operator.as_ref().context("the stage has no operator")
    }

    /// The replica with this number: 0 is the operator, 1 the standby.
    pub fn replica(&self, number: usize) -> Result<&Operator> {
        let replica = self.replicas().nth(number);
        replica.with_context(|| format!("the stage has no replica {number}"))
    }

    /// All replicas.
    pub fn replicas(&self) -> impl Iterator<Item = &Operator> {
        self.operator.iter().chain(&self.standby)
    }

    /// A folder of the test's own.
    pub fn folder(&self) -> PathBuf {
        self.scratch.path().to_owned()
    }

    async fn create_secrets(&self) -> Result<()> {
        let token = format!("--from-literal=token={}", self.runner.token);
        self.kubectl(&["create", "secret", "generic", "runner-token", &token]).await?;
        let key = match &self.cloud {
            Some(cloud) => cloud.machines.client_key()?.display().to_string(),
            None => self.bed.client_key().display().to_string(),
        };
        let key = format!("--from-file=key={key}");
        self.kubectl(&["create", "secret", "generic", "ssh-key", &key]).await?;
        Ok(())
    }

    /// The pool's manifest, with `changes` merged into its spec.
    pub fn pool(&self, changes: Value) -> Result<Value> {
        let hosts: Vec<Value> = self
            .hosts
            .iter()
            .map(|host| {
                json!({ "name": host.name(), "address": host.address().to_string(), "port": host.port() })
            })
            .collect();
        let username = self.hosts.first().map_or(Ok("root".to_owned()), Host::admin)?;
        let gitlab = match &self.paths {
            Some(paths) => format!("http://{}", paths.gitlab.address()),
            None => self.gitlab.url(),
        };
        let mut spec = json!({
            "gitlab": {
                "url": gitlab,
                "tokenSecretRef": { "name": "runner-token", "key": "token" },
            },
            "provider": match &self.cloud {
                Some(cloud) => cloud.provider(),
                None => json!({ "static": { "hosts": hosts } }),
            },
            "ssh": {
                "username": username,
                "privateKeySecretRef": { "name": "ssh-key", "key": "key" },
            },
        });
        merge(&mut spec, changes);
        Ok(json!({
            "apiVersion": "dormouse.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": { "name": POOL, "namespace": self.namespace },
            "spec": spec,
        }))
    }

    /// Applies the pool, with `changes` merged into its spec.
    pub async fn apply_pool(&self, changes: Value) -> Result<()> {
        self.apply(&self.pool(changes)?).await
    }

    /// Applies an object.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.control_plane.client().apply(&object.to_string()).await?;
        Ok(())
    }

    /// kubectl in the stage's namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend_from_slice(args);
        self.cluster.control_plane.kubectl(&all).await
    }

    /// One object.
    pub async fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.reader.get(&self.namespace, kind, name).await
    }

    /// All objects of a kind.
    pub async fn list(&self, kind: &str) -> Result<Vec<Value>> {
        self.reader.list(&self.namespace, kind).await
    }

    /// Waits until a condition of an object is True.
    pub async fn until_condition(&self, kind: &str, name: &str, type_: &str) -> Result<Value> {
        self.until_object(kind, name, &format!("{type_} is True"), |object| {
            condition(object, type_).0 == "True"
        })
        .await
    }

    /// Waits until an object is as wished; at the deadline shows it.
    pub async fn until_object(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        wished: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let result = until(&format!("{kind} {name}: {what}"), SOON, async || {
            last = self.get(kind, name).await?;
            Ok(wished(&last).then(|| last.clone()))
        })
        .await;
        result.with_context(|| format!("it is {last:#}\n{}", self.operator_log()))
    }

    /// Waits until every host of the pool is in a state.
    pub async fn until_hosts(&self, state: &str) -> Result<Value> {
        self.until_object("runnerpool", POOL, &format!("every host is {state}"), |pool| {
            let hosts = pool["status"]["hosts"].as_array().cloned().unwrap_or_default();
            hosts.len() == self.hosts.len() && hosts.iter().all(|host| host["state"] == state)
        })
        .await
    }

    /// Waits until no object of a kind is left.
    pub async fn until_none(&self, kind: &str) -> Result<()> {
        until(&format!("no {kind} is left"), SOON, async || {
            Ok(self.list(kind).await?.is_empty().then_some(()))
        })
        .await
        .with_context(|| self.operator_log())
    }

    /// Hands a job to GitLab and waits for its end.
    pub async fn run(&self, job: JobSpec) -> Result<JobView> {
        let id = self.gitlab.enqueue(job);
        self.until_over(id).await
    }

    /// Waits for a job's end.
    pub async fn until_over(&self, id: JobId) -> Result<JobView> {
        self.gitlab.wait_until_over(id, SOON).await.with_context(|| self.operator_log())
    }

    /// Waits until a job's log holds a text.
    pub async fn until_log(&self, id: JobId, text: &str) -> Result<JobView> {
        self.gitlab.wait_for_log(id, text, SOON).await.with_context(|| self.operator_log())
    }

    /// The status of a job's lease once it is over.
    pub async fn lease_over(&self, id: JobId) -> Result<Value> {
        let name = format!("{POOL}-{}", id.0);
        self.until_object("joblease", &name, "it is over", |lease| {
            ["Reported", "Failed"].contains(&lease["status"]["phase"].as_str().unwrap_or_default())
        })
        .await
    }

    /// The one sleeping environment, once it sleeps.
    pub async fn asleep(&self, key: &str) -> Result<Value> {
        let id = key.rsplit_once('=').context("the key has no environment id")?.1;
        self.until_object("suspendedenvironment", &format!("{POOL}-{id}"), "it sleeps", |environment| {
            environment["status"]["phase"] == "Suspended"
        })
        .await
    }

    /// Kills the operator with SIGKILL and starts it again.
    pub async fn crash_operator(&self) -> Result<()> {
        let operator = self.operator()?;
        operator.kill()?;
        self.gitlab.client_restarted();
        operator.start_again().await
    }

    /// Kills the operator with SIGKILL, and waits until the next holder of the pool has its hosts. What the pool's status
    /// says is the next holder's word from then on.
    pub async fn succeed_operator(&self) -> Result<()> {
        let before = self.get("runnerpool", POOL).await?;
        self.crash_operator().await?;
        self.until_next_holder(&before).await
    }

    /// Waits until a later holder than that of a pool, as it was read, has every host.
    pub async fn until_next_holder(&self, before: &Value) -> Result<()> {
        let epoch = |pool: &Value| pool["status"]["epoch"].as_u64();
        self.until_object("runnerpool", POOL, "the next holder has its hosts", |pool| {
            let hosts = pool["status"]["hosts"].as_array().cloned().unwrap_or_default();
            let are_ready = !hosts.is_empty() && hosts.iter().all(|host| host["state"] == "Ready");
            epoch(pool) > epoch(before) && are_ready
        })
        .await?;
        Ok(())
    }

    /// Gives the pool's Lease up in the name of the operator, which is dead, so that the next one need not wait until
    /// it has run out.
    pub async fn give_up_lease(&self) -> Result<()> {
        self.give_up_lease_of(self.operator()?.name()).await
    }

    /// The same for another replica. What is held by somebody else by now stays with them.
    pub async fn give_up_lease_of(&self, replica: &str) -> Result<()> {
        let name = format!("dormouse-pool-{POOL}");
        let leases = self.list("leases.coordination.k8s.io").await?;
        // A pool that nobody has held yet, or that is gone, has none.
        let Some(lease) = leases.iter().find(|lease| lease["metadata"]["name"] == name.as_str()) else {
            return Ok(());
        };
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if !holder.starts_with(&format!("{replica}_")) {
            return Ok(());
        }
        let version = &lease["metadata"]["resourceVersion"];
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "holderIdentity": "" } });
        let patched =
            self.kubectl(&["patch", "lease", &name, "--type=merge", "-p", &patch.to_string()]).await;
        match patched {
            Err(error) if format!("{error:#}").contains("Conflict") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Ends its operator. Fails if GitLab saw anything a correct runner would not do, or the operator ended before.
    ///
    /// The namespace stays until the control plane goes. Deleted without an operator, what has a finalizer would keep it,
    /// and the namespace controller tries each such namespace again and again: after a hundred tests that is most of
    /// what the machine does.
    pub async fn end(self) -> Result<()> {
        self.gitlab.assert_clean();
        let operator = self.operator()?;
        ensure!(operator.pid().is_some(), "the operator ended by itself: {}", operator.log_tail());
        operator.terminate().await
    }

    /// The end of the operator's log, for messages.
    pub fn operator_log(&self) -> String {
        self.operator
            .as_ref()
            .map(|operator| format!("the operator said:\n{}", operator.log_tail()))
            .unwrap_or_default()
    }
}

/// Status and reason of a condition.
pub fn condition(object: &Value, type_: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

/// Merges objects into objects; anything else is replaced.
pub fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(into.entry(key).or_insert(Value::Null), change);
            }
        }
        (into, change) => *into = change,
    }
}
