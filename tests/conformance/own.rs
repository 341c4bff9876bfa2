//! Stages that a case has for itself: a pool that makes its runner, certificates, a proxy, tokens that do not live long,
//! and what is done to them while jobs run.
//!
//! Such a stage ends with its case. What changes a Secret, a certificate or the pool would disturb every other case.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::case::{Case, Deed, FaultSeed};
use super::play::{self, fault};
use super::stages::{self, Playground};
use crate::manager::connections;
use crate::registration::{give_access, made, registration, tells_no_secret};
use crate::testbed::gitlab::{FaultId, Options, Runner, RunnerId, RunnerView, Scope};
use crate::testbed::stage::{POOL, Setting, Stage, merge};
use crate::testbed::tls::{Authority, TlsFront};

/// Stages of their own that there are at the same time.
static TURNS: Semaphore = Semaphore::const_new(3);

/// A host name that nobody can look up: only the proxy, which is the stand-in itself, can know where it leads.
const BEHIND: &str = "http://gitlab.behind.invalid";

/// What a stage of a case's own is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Own {
    /// The pool makes its runner itself, with these changes of the registration.
    pub registration: Option<Value>,
    /// What the access token for that may do.
    pub access: Access,
    /// Seconds for which a token lives that is issued; for ever without it.
    pub token_life: Option<u64>,
    /// What the certificates of the server are for; it has none without it.
    pub tls: Option<Tls>,
    /// The server has a name that only the proxy of the operator's environment can look up.
    pub proxy: bool,
    /// Seconds for which a request for a job is held; 3 without it.
    pub hold: Option<u64>,
    /// Slots of its one host; 2 without it.
    pub slots: Option<u32>,
    /// What goes wrong from before the operator starts.
    pub faults: Vec<FaultSeed>,
}

/// What an access token may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Create runners.
    Create,
    /// All there is to do with runners.
    #[default]
    Manage,
}

/// Certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// The server's is of an authority that the pool's bundle names.
    Ca,
    /// And it wants one to be shown.
    Mutual,
}

/// A runner of the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The one the pool had when the case began.
    First,
    /// Another one, registered by hand.
    Second,
}

/// A token for the pool's Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Given {
    /// The first runner's.
    First,
    /// The second one's.
    Second,
    /// Nobody's.
    Wrong,
}

/// What a stage of a case's own has besides.
pub struct Ground {
    /// The pool's runner when the case began.
    first: RunnerView,
    is_registered: bool,
    second: Mutex<Option<Runner>>,
    front: Option<(TlsFront, Tls)>,
    /// What went wrong from before the operator started.
    pub faults: Vec<(FaultId, FaultSeed)>,
}

/// Plays a case on a stage of its own, and ends that.
pub async fn play(case: &Case, own: &Own) -> Result<()> {
    let _own = TURNS.acquire().await?;
    let _all = stages::TURNS.acquire().await?;
    let playground = open(case, own).await.context("its stage cannot be opened")?;
    let stage = &playground.stage;
    play::play(&playground, case).await.with_context(|| stage.operator_log())?;
    tells_no_secret(stage).await?;
    let broken: Vec<String> = stage.gitlab.violations().iter().map(ToString::to_string).collect();
    ensure!(broken.is_empty(), "the protocol was broken:\n- {}", broken.join("\n- "));
    if own.hold.is_some() {
        // Requests that are held end with the server.
        stage.gitlab.down().await?;
    }
    playground.stage.end().await
}

async fn open(case: &Case, own: &Own) -> Result<Playground> {
    let usual = Setting::pool(json!({}));
    let mut gitlab = Options { token_life: own.token_life.map(Duration::from_secs), ..usual.gitlab };
    if let Some(seconds) = own.hold {
        // Requests for each job that there is room for may be open at once.
        (gitlab.hold, gitlab.asks_in_parallel) = (Duration::from_secs(seconds), true);
    }
    let mut stage = Stage::without_operator("own", &Setting { gitlab, ..Setting::default() }).await?;
    let mut pool = json!({
        "capacityPerInstance": own.slots.unwrap_or(2), "isolation": "PerSlotUser", "suspension": { "slotFloor": 0 },
    });
    if let Some(changes) = &own.registration {
        merge(&mut pool, registration(changes));
        give_access(&stage, own.access.scope()).await?;
    }
    let front = match own.tls {
        Some(tls) => {
            let (front, changes) = secured(&stage, tls).await?;
            merge(&mut pool, changes);
            Some((front, tls))
        }
        None => None,
    };
    if own.proxy {
        merge(&mut pool, json!({ "gitlab": { "url": BEHIND } }));
    }
    merge(&mut pool, case.pool.clone().unwrap_or(json!({})));
    let mut faults = Vec::new();
    for seed in &own.faults {
        faults.push((stage.gitlab.inject(fault(seed)?), seed.clone()));
    }
    stage.apply_pool(pool).await?;
    let operator = stage.new_operator("operator-a").await?;
    if own.proxy {
        operator.set_variable("HTTP_PROXY", Some(&stage.gitlab.url()));
    }
    operator.start_again().await?;
    stage.operator = Some(operator);
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.until_hosts("Ready").await?;
    let is_registered = own.registration.is_some();
    let first = the_runner(&stage, is_registered).context("the pool has no runner")?;
    let ground = Ground { first, is_registered, second: Mutex::new(None), front, faults };
    Ok(Playground { stage, turns: Semaphore::new(1), own: Some(ground) })
}

/// Puts TLS before the server; answers what the pool needs for it.
async fn secured(stage: &Stage, tls: Tls) -> Result<(TlsFront, Value)> {
    let authority = Authority::new(&stage.folder().join("first-authority")).await?;
    let clients = (tls == Tls::Mutual).then_some(&authority);
    let server = authority.issue("gitlab").await?;
    let front = TlsFront::start(connections::address(stage)?, &server, clients).await?;
    connections::trust(stage, &[&authority]).await?;
    let mut pool = connections::certificates();
    match tls {
        Tls::Ca => merge(&mut pool, json!({ "gitlab": { "clientCertificateSecretRef": null } })),
        Tls::Mutual => connections::show(stage, &authority.issue("pool").await?).await?,
    }
    let pool = connections::over(&front, pool);
    Ok((front, pool))
}

/// The pool's runner as GitLab has it; the latest, where an answer was lost and nobody could remove what it left.
fn the_runner(stage: &Stage, is_registered: bool) -> Option<RunnerView> {
    if is_registered {
        return made(stage).pop();
    }
    stage.gitlab.runners().into_iter().find(|runner| runner.id == stage.runner.id)
}

impl Access {
    fn scope(self) -> Scope {
        match self {
            Self::Create => Scope::CreateRunner,
            Self::Manage => Scope::ManageRunner,
        }
    }
}

impl Ground {
    /// The token of the pool's runner when the case began.
    pub fn first_token(&self) -> &str {
        &self.first.token
    }

    /// The first runner as GitLab has it now.
    pub fn first_runner(&self, stage: &Stage) -> Option<RunnerView> {
        stage.gitlab.runners().into_iter().find(|runner| runner.id == self.first.id)
    }

    /// The runners that could be the pool's.
    pub fn runners(&self, stage: &Stage) -> Vec<RunnerView> {
        if self.is_registered { made(stage) } else { self.first_runner(stage).into_iter().collect() }
    }

    /// The Secret that the pool takes its token from.
    pub fn secret(&self) -> &'static str {
        if self.is_registered { crate::registration::SECRET } else { "runner-token" }
    }

    /// A runner's id; the second one is registered when it is first spoken of.
    pub fn runner(&self, stage: &Stage, which: Which) -> RunnerId {
        match which {
            Which::First => self.first.id,
            Which::Second => self.second(stage).id,
        }
    }

    fn second(&self, stage: &Stage) -> Runner {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        second.get_or_insert_with(|| stage.gitlab.register_runner(&["dormouse"])).clone()
    }

    /// Does what is done to the stage and not to a job.
    pub async fn carry_out(&self, stage: &Stage, deed: &Deed) -> Result<()> {
        match deed {
            Deed::Pool(changes) => {
                let patch = json!({ "spec": changes }).to_string();
                stage.kubectl(&["patch", "runnerpool", POOL, "--type=merge", "-p", &patch]).await?;
            }
            Deed::Token(given) => {
                let token = match given {
                    Given::First => self.first.token.clone(),
                    Given::Second => self.second(stage).token,
                    Given::Wrong => "glrt-t1_nobodys_token_at_all".to_owned(),
                };
                let patch = json!({ "stringData": { "token": token } }).to_string();
                stage.kubectl(&["patch", "secret", self.secret(), "--type=merge", "-p", &patch]).await?;
            }
            Deed::Access(access) => give_access(stage, access.scope()).await?,
            Deed::DeleteSecret(name) => drop(stage.kubectl(&["delete", "secret", name]).await?),
            Deed::DeletePool => {
                drop(stage.kubectl(&["delete", "runnerpool", POOL, "--wait=false"]).await?);
            }
            Deed::ReplaceCertificates => self.replace_certificates(stage).await?,
            other => bail!("{other:?} is done to a job, not to a stage"),
        }
        Ok(())
    }

    /// Both sides replace their certificates by those of another authority, and every connection is cut.
    async fn replace_certificates(&self, stage: &Stage) -> Result<()> {
        let (front, tls) = self.front.as_ref().context("its server has no certificate")?;
        let authority = Authority::new(&stage.folder().join("second-authority")).await?;
        connections::trust(stage, &[&authority]).await?;
        let mut clients = None;
        if *tls == Tls::Mutual {
            connections::show(stage, &authority.issue("pool").await?).await?;
            clients = Some(&authority);
        }
        front.change(&authority.issue("gitlab").await?, clients)?;
        stage.gitlab.down().await?;
        stage.gitlab.up()
    }
}
