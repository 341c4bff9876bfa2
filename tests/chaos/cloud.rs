//! Environments of a cloud change tiers, wake and expire while their operator is killed at random.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use serde_json::json;

use super::plan::{self, Blow, Seed, between};
use super::{can_look_into_hosts, deal, kills_wanted};
use crate::fleet::failures::leap;
use crate::suspension::until_gone;
use crate::testbed::checker::{Doing, Expectation, Facts, Swept, Woken, script};
use crate::testbed::chronicle::Chronicle;
use crate::testbed::gitlab::{JobSpec, JobView, Options};
use crate::testbed::stage::{CloudSetting, Setting, Stage};
use crate::testbed::wait::until;

/// Chains under way at the same time.
const AT_ONCE: usize = 3;
/// A job on a busy machine, through kills, faults and the boot of an instance, and once more if nobody acknowledged it.
const LIMIT: Duration = Duration::from_secs(400);
/// Until everything is at rest: what nobody owns is marked two minutes after it was made, by a sweep a minute.
const REST: Duration = Duration::from_secs(300);

fn setting() -> Setting {
    let pool = json!({
        "workspaceVolume": { "sizeGiB": 1 },
        "policies": [{ "idleTime": "5s" }],
        "suspension": { "slotFloor": 0 },
        "deletionPolicy": "Release",
    });
    let mut setting = Setting::cloud(pool).in_cloud(CloudSetting { zones: 1, ..CloudSetting::default() });
    let hold = Duration::from_secs(3);
    setting.gitlab = Options { hold, acknowledge_within: Duration::from_secs(40), ..Options::default() };
    setting
}

/// Chains of jobs: each but the last leaves its environment asleep, which is sent to a tier before the next wakes it; one
/// of four is let expire in place of that.
struct Workload {
    seed: Seed,
    name: String,
    least_chains: u64,
    chronicle: Chronicle,
    next_chain: AtomicU64,
    is_enough: AtomicBool,
    /// Taken for lines only.
    expectations: Mutex<Vec<Expectation>>,
}

/// What becomes of an environment that has just gone to sleep.
#[derive(Clone, Copy, Debug)]
struct Sleep {
    tier: Option<&'static str>,
    lasts: Duration,
    expires: bool,
}

fn sleeps(seed: Seed, chain: u64) -> Vec<Sleep> {
    let mut dice = seed.dice(5000 + chain);
    let count = dice.random_range(1..3);
    let sleep = |number| Sleep {
        tier: [None, Some("Stopped"), Some("Detached"), Some("Snapshotted")][dice.random_range(0..4)],
        lasts: between(&mut dice, 0..6000),
        expires: number + 1 == count && chain % 4 == 3,
    };
    (0..count).map(sleep).collect()
}

impl Workload {
    fn expectations(&self) -> Vec<Expectation> {
        self.expectations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn run(&self, stage: &Stage) -> Result<()> {
        let work = async || {
            loop {
                let number = self.next_chain.fetch_add(1, Ordering::SeqCst);
                if self.is_enough.load(Ordering::SeqCst) && number >= self.least_chains {
                    return anyhow::Ok(());
                }
                self.chain(stage, number).await.with_context(|| format!("chain {number}"))?;
            }
        };
        futures::future::try_join_all((0..AT_ONCE).map(|_| work())).await.map(|_| ())
    }

    async fn chain(&self, stage: &Stage, number: u64) -> Result<()> {
        let mut woken: Option<Woken> = None;
        for (index, sleep) in sleeps(self.seed, number).into_iter().enumerate() {
            let name = format!("{}-{number}-{index}", self.name);
            let over = self.job(stage, &name, woken.clone(), Some(sleep)).await?;
            // One that ended as it should not have is told of by the checker.
            let Some(key) = over.environment_key.clone() else { return Ok(()) };
            if let Some(tier) = sleep.tier {
                stage.ask_tier(&key, tier).await?;
            }
            // Here time itself is the input: the next wish comes at whatever point the way there has come to.
            tokio::time::sleep(sleep.lasts).await;
            if sleep.expires {
                return expire(stage, &key).await;
            }
            stage.forget_asked_tier(&key).await?;
            let of = woken.map_or(over.id, |woken| woken.of);
            woken = Some(Woken { key, of });
        }
        self.job(stage, &format!("{}-{number}-last", self.name), woken, None).await.map(|_| ())
    }

    /// Runs a job, and the one that GitLab queues in its place if nobody acknowledges it.
    async fn job(
        &self,
        stage: &Stage,
        name: &str,
        woken: Option<Woken>,
        sleep: Option<Sleep>,
    ) -> Result<JobView> {
        let settles = woken.is_none();
        let doing = Doing {
            lines: 20,
            pause_milliseconds: 20,
            exit_code: 0,
            settles,
            wakes: !settles,
            chronicle: Some(self.chronicle.port()),
        };
        let mut spec = JobSpec::new(name).suspendable().script(script(doing));
        if let Some(woken) = &woken {
            spec = spec.environment_key(&woken.key);
        }
        if sleep.is_some() {
            spec = spec.suspend_on_success();
        }
        let mut id = stage.gitlab.enqueue(spec);
        let expires = sleep.is_some_and(|sleep| sleep.expires);
        let wanted =
            Expectation { job: id, lines: 20, exit_code: 0, sleeps: sleep.is_some(), wakes: woken, expires };
        self.expectations.lock().unwrap_or_else(PoisonError::into_inner).push(wanted);
        loop {
            let over = stage.gitlab.wait_until_over(id, LIMIT).await;
            let over = over.with_context(|| format!("{name} does not end\n{}", stage.operator_log()))?;
            match over.retried_as {
                Some(next) => id = next,
                None => return Ok(over),
            }
        }
    }
}

async fn expire(stage: &Stage, key: &str) -> Result<()> {
    stage.expire(key).await?;
    until("it is gone", LIMIT, async || Ok(until_gone(stage, key).await.ok())).await
}

/// Deals the blows while the workload runs, and fails with every promise that is broken once all is at rest.
async fn endure(stage: &Stage, workload: &Workload, blows: Vec<Blow>) -> Result<()> {
    let (made, dealt) = tokio::join!(workload.run(stage), async {
        let dealt = deal(stage, blows).await;
        workload.is_enough.store(true, Ordering::SeqCst);
        dealt
    });
    dealt?;
    made?;
    at_rest(stage, workload, Swept::NotYet).await?;
    // The last of them may still be on its way out.
    let mut left = Vec::new();
    until("no environment is left", REST, async || {
        left = stage.list("suspendedenvironments").await?;
        Ok(left.is_empty().then_some(()))
    })
    .await
    .with_context(|| format!("nothing sleeps any more, and yet there is {left:#?}\n{}", stage.operator_log()))
}

/// Waits until no promise is broken.
async fn at_rest(stage: &Stage, workload: &Workload, swept: Swept) -> Result<()> {
    let mut broken = Vec::new();
    until("every promise is kept", REST, async || {
        let mut facts = Facts::gather_in_cloud(stage, &workload.chronicle, workload.expectations()).await?;
        if let Some(cloud) = &mut facts.cloud {
            cloud.swept = swept;
        }
        broken = facts.broken_promises();
        Ok(broken.is_empty().then_some(()))
    })
    .await
    .with_context(|| format!("broken promises:\n{}\n{}", broken.join("\n"), stage.operator_log()))
}

/// Lets the time of the sweep pass, and fails with what it leaves: nothing may be marked, young or nobody's then.
async fn sweep(stage: &Stage, workload: &Workload) -> Result<()> {
    // What was made a moment ago is old enough to be marked, and then for long enough marked to go.
    leap(stage, 5 * 60).await?;
    at_rest(stage, workload, Swept::Marked).await.context("what nobody owns is marked")?;
    leap(stage, 25 * 60).await?;
    at_rest(stage, workload, Swept::Whole).await.context("what was marked goes")
}

async fn storm(name: &str, kills: usize) -> Result<()> {
    let seed = Seed::pick()?;
    println!("{seed}");
    let stage = Stage::start(name, setting()).await?;
    let workload = Workload {
        seed,
        name: name.to_owned(),
        least_chains: 8,
        chronicle: Chronicle::open().await?,
        next_chain: AtomicU64::new(0),
        is_enough: AtomicBool::new(false),
        expectations: Mutex::default(),
    };
    let endured = endure(&stage, &workload, plan::in_a_cloud(seed, kills)).await;
    endured.with_context(|| seed.to_string())?;
    sweep(&stage, &workload).await.with_context(|| seed.to_string())?;
    // And then everything else.
    crate::crash_points::cloud::give_everything_back(stage).await.with_context(|| seed.to_string())
}

#[tokio::test]
async fn environments_outlive_an_operator_that_is_killed_at_random_in_a_cloud() -> Result<()> {
    if !can_look_into_hosts().await? {
        return Ok(());
    }
    storm("chaos-cloud", kills_wanted("DORMOUSE_CLOUD_KILLS", 8)?).await
}

/// The long one: `make soak`.
#[tokio::test]
#[ignore = "takes most of an hour; make soak runs it"]
async fn soak() -> Result<()> {
    ensure!(can_look_into_hosts().await?, "looking into hosts takes root");
    storm("soak-cloud", kills_wanted("DORMOUSE_SOAK_CLOUD_KILLS", 200)?).await
}
