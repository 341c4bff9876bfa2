//! The stages cases play on: one for all that ask for nothing else, one for each pool some ask for, and one with a
//! single slot, on which one case follows another. Those that one case has for itself are in `own`.
//!
//! They live until the last area is over; the runtime that serves them lives as long as the process, like the control plane
//! below them: the areas are tests with threads of their own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, Semaphore};

use super::case::Case;
use super::own::Ground;
use crate::testbed::gitlab::Options;
use crate::testbed::hosts::HostSpec;
use crate::testbed::stage::{Setting, Stage, merge};

/// Cases that play at the same time, on all stages together.
const AT_A_TIME: usize = 8;

/// A stage and who may play on it.
pub struct Playground {
    /// The stage.
    pub stage: Stage,
    /// Turns on it.
    pub turns: Semaphore,
    /// What it has besides where it is one case's own.
    pub own: Option<Ground>,
}

/// What all areas share.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().thread_name("conformance").build().expect("a runtime can be made")
});

/// Turns of all cases.
pub static TURNS: Semaphore = Semaphore::const_new(AT_A_TIME);

type Stages = BTreeMap<String, Arc<OnceCell<Arc<Playground>>>>;

static STAGES: Mutex<Stages> = Mutex::new(BTreeMap::new());

/// The stage a case plays on.
pub async fn stage_for(case: &Case) -> Result<Arc<Playground>> {
    let pool = case.pool.clone().unwrap_or(json!({}));
    let kind = format!("{} {pool}", case.alone);
    let cell = STAGES.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default().clone();
    cell.get_or_try_init(|| open(pool, case.alone)).await.cloned()
}

async fn open(changes: Value, alone: bool) -> Result<Arc<Playground>> {
    let slots = if alone { 1 } else { 8 };
    let mut pool = json!({
        "capacityPerInstance": slots, "isolation": "PerSlotUser", "concurrency": 2 * slots,
        "suspension": { "slotFloor": 0 },
    });
    merge(&mut pool, changes);
    let setting = Setting {
        hosts: if alone { vec!["alder"] } else { vec!["alder", "birch"] },
        host: HostSpec { max_sessions: 40, ..HostSpec::default() },
        gitlab: Options { hold: std::time::Duration::from_secs(3), ..Options::default() },
        pool,
        ..Setting::default()
    };
    let stage = Stage::start("conformance", setting).await?;
    Ok(Arc::new(Playground { stage, turns: Semaphore::new(if alone { 1 } else { AT_A_TIME }), own: None }))
}

/// Ends the stages when the last of all areas is over: operators that nobody needs would slow down every test after them.
/// Where only some areas are played, they live as long as the process.
pub async fn area_is_over(areas: usize) -> Result<()> {
    static OVER: AtomicUsize = AtomicUsize::new(0);
    if OVER.fetch_add(1, Ordering::SeqCst) + 1 < areas {
        return Ok(());
    }
    let stages = std::mem::take(&mut *STAGES.lock().unwrap_or_else(PoisonError::into_inner));
    for cell in stages.into_values() {
        let playground = Arc::into_inner(cell).and_then(OnceCell::into_inner).and_then(Arc::into_inner);
        if let Some(playground) = playground {
            playground.stage.end().await?;
        }
    }
    Ok(())
}

/// What the stages that are open have to say against the product besides what belongs to a job.
pub fn complaints() -> Vec<String> {
    let stages = STAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let open = stages.values().filter_map(|cell| cell.get());
    let mut found = Vec::new();
    for playground in open {
        let of_nobody = playground.stage.gitlab.violations().into_iter().filter(|seen| seen.job.is_none());
        found.extend(of_nobody.map(|seen| format!("the protocol was broken: {seen}")));
        // One that a case of another area has killed, and is about to start again, has not ended by itself.
        match playground.stage.operator().and_then(|operator| Ok((operator.ended()?, operator))) {
            Ok((None, _)) => {}
            Ok((Some(status), operator)) => {
                found.push(format!("the operator ended by itself, with {status}: {}", operator.log_tail()));
            }
            Err(error) => found.push(error.to_string()),
        }
    }
    found
}
