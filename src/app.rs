//! The wiring: the only place that builds clients, stores and servers, and decides which pools to campaign for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::watcher;
use kube::{Api, Client, Config, ResourceExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Gates};
use crate::allowed_groups::AllowedGroups;
use crate::api::{JobLease, RunnerPool, SuspendedEnvironment, labels};
use crate::bounds::Bounds;
use crate::clock;
use crate::fleet::prices::Prices;
use crate::host::install::Supervisors;
use crate::kube_ext::cache::Cache;
use crate::kube_ext::events::Events;
use crate::kube_ext::store::Store;
use crate::leader::claim::LastHolder;
use crate::leader::{Claim, Roster, spread};
use crate::lease::driven::Driven;
use crate::pool;
use crate::provider::observer::Observers;
use crate::telemetry::Metrics;

/// What the operator is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The namespace to work in; all of them without one.
    pub watch_namespace: Option<String>,
    /// The namespace the operator runs in, where replicas announce themselves.
    pub namespace: Option<String>,
    /// The replica's name, for people; its uniqueness does not matter.
    pub identity: String,
    /// Where liveness, readiness and metrics are served.
    pub admin_address: SocketAddr,
    /// The folder with `dormouse-supervisor-<machine>` files.
    pub supervisor_dir: PathBuf,
    /// The name of the cluster in the tags of what is made in a cloud; the uid of namespace kube-system without one.
    pub cluster_id: Option<String>,
    /// Which Auto Scaling groups the pools of a namespace may use.
    pub allowed_groups: AllowedGroups,
    /// A file with prices; the built-in list prices without one.
    pub prices_file: Option<PathBuf>,
}

/// What all pools of this replica share. Cloning shares it.
#[derive(Clone)]
pub struct Shared {
    /// Kubernetes.
    pub client: Client,
    /// RunnerPools.
    pub pools: Store<RunnerPool>,
    /// JobLeases.
    pub leases: Store<JobLease>,
    /// SuspendedEnvironments.
    pub environments: Store<SuspendedEnvironment>,
    /// Leases of pools: who holds which.
    pub claims: Cache<Lease>,
    /// The replicas that are alive.
    pub roster: Roster,
    /// Events.
    pub events: Events,
    /// Metrics.
    pub metrics: Metrics,
    /// How much is done at a time.
    pub bounds: Bounds,
    /// The jobs that are driven here.
    pub driven: Driven,
    /// Supervisors to install.
    pub supervisors: Supervisors,
    /// The shared looks at clouds.
    pub observers: Observers,
    /// The cluster, in the tags of what is made in a cloud.
    pub cluster_id: String,
    /// Which groups the pools of a namespace may use.
    pub allowed_groups: Arc<AllowedGroups>,
    /// What machines and storage cost.
    pub prices: Arc<Prices>,
    /// This process: the replica's name and a uuid of its own, so that a restarted replica is another holder.
    pub identity: String,
}

/// How long requests that are under way at SIGTERM may still take: an open job request may bring a job, whose lease
/// is written before we go. Below the chart's termination grace.
const LAST_REQUESTS: Duration = Duration::from_secs(50);

/// How long the API server may take to answer a call: what follows it waits for it.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot be started: no cluster, no supervisors, no port.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let supervisors = Supervisors::read(&options.supervisor_dir)?;
    let mut config = Config::infer().await?;
    let namespace = options.namespace.as_ref().or(options.watch_namespace.as_ref());
    let namespace = namespace.unwrap_or(&config.default_namespace).clone();
    // A watch is silent for minutes; a call that is, is made again.
    let watching = Client::try_from(config.clone())?;
    config.read_timeout = Some(CALL_TIMEOUT);
    let client = Client::try_from(config)?;
    let metrics = Metrics::new();
    let process = rand::random::<u64>();
    let identity = format!("{}_{process:016x}", options.identity);
    let watched = options.watch_namespace.as_deref();
    let bounds = Bounds::new(&metrics);
    let leases = Cache::grouped(|lease: &JobLease| Some(&lease.spec.pool_uid));
    let environments = Cache::grouped(|known: &SuspendedEnvironment| Some(&known.spec.pool_uid));
    let shared = Shared {
        pools: Store::new(client.clone(), Cache::default(), metrics.clone(), &bounds, "RunnerPool"),
        leases: Store::new(client.clone(), leases, metrics.clone(), &bounds, "JobLease"),
        environments: Store::new(
            client.clone(),
            environments,
            metrics.clone(),
            &bounds,
            "SuspendedEnvironment",
        ),
        claims: Cache::default(),
        roster: Roster::new(client.clone(), &namespace, watched, &identity, process),
        events: Events::new(client.clone(), &identity),
        observers: Observers::new(metrics.clone()),
        cluster_id: cluster_id(&client, options.cluster_id.as_deref()).await?,
        allowed_groups: Arc::new(options.allowed_groups.clone()),
        prices: Arc::new(read_prices(options.prices_file.as_deref())?),
        client,
        metrics,
        bounds,
        driven: Driven::default(),
        supervisors,
        identity,
    };
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    follow(&shared, &watching, watched, &tasks, &stop);
    let gates = Gates::new(shared.clone());
    let server = admin::serve(options.admin_address, gates, stop.clone()).await?;
    tasks.spawn(server);
    tasks.spawn(clock::follow(shared.client.clone(), stop.clone()));
    tracing::info!(
        identity = shared.identity,
        version = env!("CARGO_PKG_VERSION"),
        "the operator has started"
    );

    let campaigns = tokio::spawn(campaign(shared.clone(), stop.clone()));
    until_terminated().await?;
    tracing::info!("terminating: pools are handed over, jobs run on");
    stop.cancel();
    let finish = async {
        if campaigns.await.is_err() {
            tracing::error!("the campaign task panicked");
        }
        tasks.close();
        tasks.wait().await;
    };
    if tokio::time::timeout(LAST_REQUESTS, finish).await.is_err() {
        tracing::warn!("a request to GitLab was still open at the end");
    }
    Ok(())
}

/// The cluster's own name: given, or the uid of a namespace that every cluster has and never makes anew.
pub(crate) async fn cluster_id(client: &Client, given: Option<&str>) -> anyhow::Result<String> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    match namespaces.get("kube-system").await {
        Ok(namespace) => Ok(namespace.metadata.uid.unwrap_or_default()),
        // An operator with rights in one namespace only: pools with a cloud say what is missing.
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            tracing::info!(
                "namespace kube-system may not be read: --cluster-id is needed for pools with provider.aws"
            );
            Ok(String::new())
        }
        Err(error) => {
            Err(error).context("failed to read the uid of namespace kube-system; give --cluster-id")
        }
    }
}

fn read_prices(file: Option<&std::path::Path>) -> anyhow::Result<Prices> {
    let Some(file) = file else { return Ok(Prices::built_in()?) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("failed to read {}, the file of --prices", file.display()))?;
    Prices::from_yaml(&text)
        .with_context(|| format!("failed to use {}, the file of --prices", file.display()))
}

fn follow(
    shared: &Shared,
    client: &Client,
    namespace: Option<&str>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }
    let roster = &shared.roster;
    let all = watcher::Config::default;
    let rewound = || roster.rewound();
    tasks.spawn(shared.pools.cache.clone().follow(api(client, namespace), all(), rewound(), stop.clone()));
    tasks.spawn(shared.leases.cache.clone().follow(api(client, namespace), all(), rewound(), stop.clone()));
    let environments = shared.environments.cache.clone();
    tasks.spawn(environments.follow(api(client, namespace), all(), rewound(), stop.clone()));
    // In a cluster there are many more Leases than ours, which change all the time.
    let ours = all().labels(&format!("{}={},!{}", labels::MANAGED_BY, labels::MANAGER, labels::REPLICA));
    tasks.spawn(shared.claims.clone().follow(api(client, namespace), ours, rewound(), stop.clone()));
    let (announcements, namespaced, announced) = roster.announcements(client.clone());
    tasks.spawn(announcements.follow(namespaced, announced, rewound(), stop.clone()));
    tasks.spawn(roster.clone().keep(stop.clone()));
    tasks.spawn(roster.clone().announce(stop.clone()));
}

async fn until_terminated() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Campaigns for every pool there is, for as long as it is there.
async fn campaign(shared: Shared, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let mut running: HashMap<String, CancellationToken> = HashMap::new();
    let mut changes = shared.pools.cache.changes();
    tokio::select! {
        () = synced(&shared) => {}
        () = stop.cancelled() => return,
    }
    while !stop.is_cancelled() {
        changes.borrow_and_update();
        let pools = shared.pools.cache.select(|_| true);
        for pool in &pools {
            let Some(uid) = pool.uid() else { continue };
            running.entry(uid).or_insert_with(|| {
                let over = stop.child_token();
                tasks.spawn(campaign_for(shared.clone(), Arc::clone(pool), over.clone()));
                over
            });
        }
        running.retain(|uid, over| {
            let exists = pools.iter().any(|pool| pool.uid().as_ref() == Some(uid));
            if !exists {
                over.cancel();
            }
            exists
        });
        tokio::select! {
            // The sender lives in the cache: waiting cannot fail.
            _ = changes.changed() => {}
            () = stop.cancelled() => {}
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn synced(shared: &Shared) {
    shared.pools.cache.synced().await;
    shared.leases.cache.synced().await;
    shared.environments.cache.synced().await;
    shared.claims.synced().await;
    shared.roster.synced().await;
    clock::learn(&shared.client).await;
}

/// Acquires a pool, holds it, and gives it up; again and again.
async fn campaign_for(shared: Shared, pool: Arc<RunnerPool>, over: CancellationToken) {
    let namespace = pool.namespace().unwrap_or_default();
    let name = pool.name_any();
    let uid = pool.uid().unwrap_or_default();
    let last = || {
        let pool = shared.pools.cache.get(&namespace, &name);
        let status = pool.and_then(|pool| pool.status.clone()).unwrap_or_default();
        LastHolder { identity: status.holder, epoch: status.epoch.unwrap_or_default() }
    };
    while !over.is_cancelled() {
        let (client, claims, roster) = (shared.client.clone(), shared.claims.clone(), shared.roster.clone());
        let mut claim = Claim::new(client, claims, roster, shared.metrics.clone(), (&namespace, &name, &uid));
        let Some(tenure) = claim.acquire(&over, last).await else { return };
        let tenure = Arc::new(tenure);
        let over_ends_it = async {
            tokio::select! {
                () = over.cancelled() => tenure.end(),
                () = tenure.ended().cancelled() => {}
            }
        };
        let hold = pool::hold(shared.clone(), Arc::clone(&pool), Arc::clone(&tenure));
        let give_way = spread::give_way(&tenure, &shared.roster, &name, &uid);
        let ((), (), (), intake) = tokio::join!(claim.keep(&tenure), over_ends_it, give_way, hold);
        claim.release().await;
        if intake.await.is_err() {
            tracing::error!(pool = name, "the intake panicked");
        }
        let exists = shared.pools.cache.get(&namespace, &name).is_some_and(|now| now.uid() == pool.uid());
        if !exists {
            claim.remove().await;
            return;
        }
    }
}
