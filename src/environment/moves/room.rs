//! Which environments at tier Hot have to make room for jobs and for one another. Changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;

use crate::api::SuspendedEnvironment;
use crate::api::runner_pool::Overflow;
use crate::api::suspended_environment::Phase;
use crate::fleet::group;
use crate::pool::Held;

/// Environments at tier Hot that have to make room: the longest asleep, as many as there are too many, and as many as
/// jobs wait that no growth can serve. Derived on every look, so that nobody has to remember it.
pub fn evicted(held: &Held, environments: &[Arc<SuspendedEnvironment>]) -> BTreeSet<String> {
    let Some(settings) = held.settings() else { return BTreeSet::new() };
    let spec = &settings.spec;
    if spec.overflow() != Overflow::DemoteOldest || !held.fleet.is_cloud() {
        return BTreeSet::new();
    }
    let hot: Vec<&Arc<SuspendedEnvironment>> = environments.iter().filter(|known| known.is_hot()).collect();
    let most = spec.total_slots().saturating_sub(spec.slot_floor()) as usize;
    let (waiting, free) = held.view(|view| (view.occupancy.waiting(), view.free_count()));
    // Room in a group where nothing may be begun would serve no job.
    let is_blocked = group::blocks(&held.fleet.problems());
    let short = match held.fleet.growth() {
        0 if !is_blocked => waiting.saturating_sub(free),
        _ => 0,
    };
    let too_many = hot.len().saturating_sub(most).max(short);
    let mut sleeping: Vec<(Option<Timestamp>, String)> = hot
        .into_iter()
        .filter(|known| known.bound_lease().is_none() && known.phase() != Phase::Suspending)
        .map(|known| {
            let slept_at = known.status.as_ref().and_then(|status| status.suspended_at.as_ref());
            (slept_at.map(|at| at.0), known.name_any())
        })
        .collect();
    sleeping.sort();
    sleeping.into_iter().take(too_many).map(|(_, name)| name).collect()
}

/// Whether an environment at tier Hot can be moved to make room for one more.
pub fn can_make_room(held: &Held, others: &[Arc<SuspendedEnvironment>]) -> bool {
    let overflow = held.settings().map(|settings| settings.spec.overflow());
    held.fleet.is_cloud()
        && overflow == Some(Overflow::DemoteOldest)
        && others.iter().any(|known| known.is_hot() && known.bound_lease().is_none())
}
