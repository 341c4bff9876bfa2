//! Members of the group: marked as ours, passed by at scale-in, opened for jobs. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, Step, is_in_service, lifecycle, spent};
use crate::fleet::facts::device_of;
use crate::fleet::scale::Wake;
use crate::fleet::view::{HostStand, View};
use crate::provider::{Change, Lifecycle, tags};

/// What members carry.
pub fn own_tags(view: &View<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([
        (tags::CLUSTER.to_owned(), view.pool.cluster.to_owned()),
        (tags::POOL.to_owned(), view.pool.uid.to_owned()),
        (tags::POOL_NAME.to_owned(), view.pool.name.to_owned()),
        (tags::NAMESPACE.to_owned(), view.pool.namespace.to_owned()),
    ])
}

/// Tags new members: a group launches them, so they cannot carry our tags from birth unless its template says so.
pub fn mark(view: &View<'_>, plan: &mut Plan) {
    let own = own_tags(view);
    for instance in view.facts.instances.values() {
        let is_marked = own.iter().all(|(key, value)| instance.tags.get(key) == Some(value));
        let is_here = match lifecycle(instance) {
            Some(Lifecycle::Gone) | None => false,
            Some(
                Lifecycle::Launching
                | Lifecycle::InService
                | Lifecycle::Terminating
                | Lifecycle::TerminatingWait
                | Lifecycle::Retained
                | Lifecycle::Detaching
                | Lifecycle::Standby
                | Lifecycle::Warmed
                | Lifecycle::WarmedTerminatingWait,
            ) => true,
        };
        if is_here && !is_marked && !instance.state.is_gone() {
            let tag = Change::Tag { ids: vec![instance.id.clone()], tags: own.clone() };
            plan.add(view, &format!("{} tags", instance.id), vec![Step::Cloud(tag)]);
        }
    }
}

/// Has scale-in pass members by from the moment they are in service: a job is placed on none that is not. One that is
/// chosen to go in the meantime refuses; nothing of ours is on it then.
pub fn protect(view: &View<'_>, plan: &mut Plan) {
    if view.pool.is_deleting {
        return;
    }
    let unprotected = view.facts.instances.values().filter(|instance| {
        is_in_service(instance) && instance.member.as_ref().is_some_and(|member| !member.is_protected)
    });
    for instance in unprotected {
        let protect = Change::Protect {
            group: view.pool.group.to_owned(),
            instances: vec![instance.id.clone()],
            on: true,
        };
        plan.add(view, &format!("{} protection", instance.id), vec![Step::Cloud(protect)]);
    }
}

/// Environments that come back from a volume and for which an open member has their slot free by now.
pub fn offered<'a>(view: &'a View<'_>, plan: &'a Plan) -> impl Iterator<Item = &'a str> {
    let is_free = |wake: &Wake| {
        plan.open.keys().any(|id| {
            let zone = view.facts.instances.get(id).map(|instance| &instance.zone);
            let is_in_zone = wake.zone.is_none() || wake.zone.as_ref() == zone;
            is_in_zone && !view.stand(id).slots.contains_key(&wake.slot)
        })
    };
    let waiting = view.wakes.iter().filter(|wake| !wake.has_place);
    waiting.filter(move |wake| is_free(wake)).map(|wake| wake.environment.as_str())
}

/// Opens members for jobs: in service, protected, not worn, not about to be stopped or taken out of the group again; and
/// of those the slots whose volume is mounted.
pub fn open(view: &View<'_>, plan: &mut Plan) {
    for instance in view.facts.instances.values().filter(|instance| is_in_service(instance)) {
        let stand = view.stand(&instance.id);
        let is_protected = instance.member.as_ref().is_some_and(|member| member.is_protected);
        let leaves = stand.environments().any(|it| it.is_due_to_stop || it.is_to_stop || it.is_stopped);
        // Looks lag: one that was told to go may be shown in service for a while.
        let told_at = view.memory.told_to_go.get(&instance.id);
        let is_told_to_go = told_at.is_some_and(|at| view.now.duration_since(*at) < view.pool.deletion_retry);
        if is_told_to_go || view.is_under_way(&instance.id) {
            continue;
        }
        let HostStand::Ready { mounts, .. } = &stand.host else { continue };
        if !is_protected || leaves || view.pool.is_deleting || spent(view, instance, &stand).is_some() {
            continue;
        }
        let closed: BTreeSet<u32> = match view.pool.volume {
            None => BTreeSet::new(),
            Some(_) => (0..view.pool.capacity)
                .filter(|slot| {
                    let attached = instance.devices.get(&device_of(*slot));
                    attached.is_none() || attached != mounts.get(slot)
                })
                .collect(),
        };
        plan.open.insert(instance.id.clone(), closed);
    }
}
