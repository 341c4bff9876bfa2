//! A stage with more hosts, jobs and environments than real ones could be had for: its hosts are light.

#![allow(clippy::indexing_slicing, reason = "what a JSON value does not have is null, not a panic")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse::api::SuspendedEnvironment;
use dormouse::api::key::EnvironmentId;
use dormouse::api::labels;
use dormouse::api::suspended_environment::{
    Origin, Phase, ScriptOutcome, SuspendedEnvironmentSpec, SuspendedEnvironmentStatus, Tier, object_name,
};
use dormouse::environment::plan::{self, HostWord, InstanceState, Observed};
use dormouse::spool::FORMAT;
use dormouse::spool::order::Isolation;
use dormouse::spool::record::{EnvironmentPhase, EnvironmentRecord};
use futures::{TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ObjectMeta;
use serde_json::{Value, json};

use super::fake_host::{FakeHost, FakeSpec};
use super::gitlab::Options as GitLabOptions;
use super::stage::{Cluster, POOL, Setting, Stage, cluster, merge};
use super::wait::until;

/// Time for anything with many parts on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Objects written at a time; more would only wait in the API server.
const AT_ONCE: usize = 16;

/// How many hosts, and how many slots each.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Hosts.
    pub hosts: usize,
    /// Slots of each.
    pub slots: u32,
}

/// A stage whose hosts are light.
pub struct Crowd {
    /// The rest of it. It has no real host.
    pub stage: Stage,
    /// The hosts.
    pub hosts: Vec<FakeHost>,
    size: Size,
}

impl Crowd {
    /// Everything but an operator. The pool is there, with `changes` merged into its spec.
    pub async fn gather(name: &str, size: Size, changes: Value) -> Result<Self> {
        Self::gather_on(cluster().await?, name, size, changes).await
    }

    /// The same on a control plane of its own.
    pub async fn gather_on(
        cluster: std::sync::Arc<Cluster>,
        name: &str,
        size: Size,
        changes: Value,
    ) -> Result<Self> {
        let gitlab = GitLabOptions { hold: Duration::from_secs(3), ..GitLabOptions::default() };
        let setting = Setting { hosts: Vec::new(), gitlab, ..Setting::default() };
        let stage = Stage::on(cluster, name, &setting).await?;
        let mut hosts = Vec::new();
        for number in 0..size.hosts {
            hosts.push(FakeHost::start(FakeSpec::new(host_name(number)), stage.bed.client_key()).await?);
        }
        let crowd = Self { stage, hosts, size };
        crowd.apply_pool(changes).await?;
        Ok(crowd)
    }

    /// Applies the pool with `changes` merged into its spec.
    pub async fn apply_pool(&self, changes: Value) -> Result<()> {
        let hosts = self.hosts.iter().map(|host| {
            let address = host.address();
            Ok(json!({
                "name": host.name(), "address": address.ip().to_string(), "port": address.port(),
                "hostKey": host.host_key()?,
            }))
        });
        let hosts = hosts.collect::<Result<Vec<Value>>>()?;
        let slots = self.size.slots;
        let mut spec = json!({
            "provider": { "static": { "hosts": hosts } },
            "capacityPerInstance": slots,
            "concurrency": (self.size.hosts * slots as usize).min(10_000),
            "suspension": { "slotFloor": 0 },
            "instanceAcquireTimeout": "1h",
        });
        if slots > 1 {
            merge(&mut spec, json!({ "isolation": "Shared" }));
        }
        merge(&mut spec, changes);
        self.stage.apply_pool(spec).await
    }

    /// Starts the stage's operator and waits until it has taken the pool and every host is ready.
    pub async fn raise(&mut self) -> Result<()> {
        self.stage.operator = Some(self.stage.start_operator("operator-a").await?);
        self.until_hosts_ready().await
    }

    /// Waits until the pool says that every host is ready.
    pub async fn until_hosts_ready(&self) -> Result<()> {
        let count = self.hosts.len();
        let ready = format!("{count}/{count}");
        let seen = until("every light host is ready", PATIENCE, async || {
            let pool = self.stage.get("runnerpool", POOL).await?;
            Ok((pool["status"]["instances"] == ready.as_str()).then_some(()))
        });
        seen.await.with_context(|| self.stage.operator_log())
    }

    /// Puts environments to sleep without any job: on the hosts first, then as objects with the status an operator
    /// would have given them. No operator may run: it would see objects its hosts have not listed. The environment with
    /// number `n` expires at `expires_at(n)`; its slot is `n` in the order of the hosts. Answers the objects' names.
    pub async fn keep(
        &self,
        numbers: std::ops::Range<usize>,
        expires_at: impl Fn(usize) -> Timestamp,
    ) -> Result<Vec<String>> {
        let room = self.size.hosts * self.size.slots as usize;
        ensure!(numbers.end <= room, "{} environments do not fit into {room} slots", numbers.end);
        let pool = self.stage.get("runnerpool", POOL).await?;
        let uid = pool["metadata"]["uid"].as_str().context("the pool has no uid")?;
        let objects = numbers.map(|number| self.environment(number, uid, expires_at(number)));
        let objects = objects.collect::<Result<Vec<_>>>()?;
        let names = objects.iter().map(|object| object_name(POOL, &object.spec.environment_id)).collect();
        let api = self.environments_api().await?;
        stream::iter(objects.into_iter().map(anyhow::Ok))
            .try_for_each_concurrent(AT_ONCE, async |object| {
                let api = api.clone();
                let mut created = api.create(&PostParams::default(), &object).await?;
                created.status = object.status.clone();
                let name = created.metadata.name.clone().unwrap_or_default();
                api.replace_status(&name, &PostParams::default(), &created).await?;
                Ok(())
            })
            .await?;
        Ok(names)
    }

    /// The environments of the stage's namespace, with the administrator's rights.
    pub async fn environments_api(&self) -> Result<Api<SuspendedEnvironment>> {
        Ok(Api::namespaced(self.client().await?, &self.stage.namespace))
    }

    fn environment(
        &self,
        number: usize,
        pool_uid: &str,
        expires_at: Timestamp,
    ) -> Result<SuspendedEnvironment> {
        let (place, slot) = (number / self.size.slots as usize, number % self.size.slots as usize);
        let host = self.hosts.get(place).context("no such host")?;
        let slot = u32::try_from(slot)?;
        let id = EnvironmentId::from_random(((number as u128) << 64).to_be_bytes()).to_string();
        let (project_id, project_path) = (1001, "group/project".to_owned());
        let workspace = format!("/root/builds/{slot}/{project_path}");
        let job_id = 1_000_000 + u64::try_from(number)?;
        host.keep(EnvironmentRecord {
            format: FORMAT,
            environment: id.clone(),
            pool_uid: pool_uid.to_owned(),
            slot,
            isolation: if self.size.slots > 1 { Isolation::Shared } else { Isolation::Single },
            project_id,
            project_path: project_path.clone(),
            workspace: workspace.clone(),
            phase: EnvironmentPhase::Suspended,
            job_id,
            resumes: 0,
            context: None,
            boot_id: host.boot_id(),
            since: Timestamp::now(),
        });
        let pool_labels = [
            (labels::MANAGED_BY, labels::MANAGER.to_owned()),
            (labels::POOL, POOL.to_owned()),
            (labels::ENVIRONMENT_ID, id.clone()),
        ];
        let mut environment = SuspendedEnvironment {
            metadata: ObjectMeta {
                name: Some(object_name(POOL, &id)),
                labels: Some(pool_labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
                finalizers: Some(vec![labels::FINALIZER.to_owned()]),
                ..ObjectMeta::default()
            },
            spec: SuspendedEnvironmentSpec {
                pool: POOL.to_owned(),
                pool_uid: pool_uid.to_owned(),
                environment_id: id.clone(),
                expires_at: Time(expires_at),
                not_after: Time(expires_at),
                desired_tier: None,
                workspace_path: workspace.clone(),
                origin: Origin {
                    project_id,
                    project_path,
                    ref_name: "main".to_owned(),
                    protected: false,
                    commit: "0".repeat(40),
                    job_id,
                    job_name: "asleep".to_owned(),
                    user_id: 2,
                    outcome: ScriptOutcome::Succeeded,
                    lease: format!("{POOL}-{job_id}"),
                    lease_uid: format!("00000000-0000-4000-8000-{number:012x}"),
                    instance: host.name().to_owned(),
                    slot,
                },
            },
            status: Some(SuspendedEnvironmentStatus {
                phase: Some(Phase::Suspended),
                tier: Some(Tier::Hot),
                environment_key: Some(format!("1/s_000000000000/acquisition-key={id}")),
                suspended_at: Some(Time(Timestamp::now())),
                processes: Some(0),
                cwd: Some(workspace),
                ..SuspendedEnvironmentStatus::default()
            }),
        };
        let findings = plan::findings(&Observed {
            environment: &environment,
            lease_is_open: false,
            instance: InstanceState::Reachable,
            word: HostWord::Asleep,
            now: Timestamp::now(),
        });
        if let Some(status) = environment.status.as_mut() {
            dormouse::environment::describe(status, Some(1), &findings);
        }
        Ok(environment)
    }

    /// A client of the API server with the administrator's rights.
    pub async fn client(&self) -> Result<kube::Client> {
        // A second one for this process is refused, and the first is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let file = Kubeconfig::read_from(self.stage.cluster.control_plane.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// How many times a verb was called on any host.
    pub fn calls(&self, verb: &str) -> usize {
        self.hosts.iter().map(|host| host.calls().iter().filter(|call| call.verb == verb).count()).sum()
    }

    /// Lets every `tick` end.
    pub fn let_jobs_end(&self) {
        for host in &self.hosts {
            host.let_jobs_end();
        }
    }

    /// Fails if a host was sent something it does not know.
    pub fn ensure_clean(&self) -> Result<()> {
        for host in &self.hosts {
            let violations = host.violations();
            ensure!(violations.is_empty(), "{} was misused: {violations:#?}", host.name());
        }
        Ok(())
    }

    /// Ends it; fails when a protocol was broken.
    pub async fn leave(self) -> Result<()> {
        self.ensure_clean()?;
        self.stage.end().await
    }
}

fn host_name(number: usize) -> String {
    format!("host-{number:03}")
}
