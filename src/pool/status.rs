//! What a pool says of itself. Pure; the driver writes it when it differs from what is there.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::hosts::HostView;
use super::intake::Idle;
use super::slots::{Room, Slot, View};
use crate::api::RunnerPool;
use crate::api::condition::{
    self, CAPACITY_AVAILABLE, CREDENTIALS_VALID, DRAINED, Finding, HOST_KEYS_TRUSTED, HOSTS_CAPABLE, POLLING,
    PROVIDER_REACHABLE, READY, SLOTS_CLEAN, Status,
};
use crate::api::runner_pool::{EnvironmentCounts, HostStatus, Isolation, Mode, RunnerPoolStatus};
use crate::host::keeper::{self, HostState};

/// All that is looked at.
pub struct Observed<'a> {
    /// The pool.
    pub pool: &'a RunnerPool,
    /// Reason and message of what is wrong with its settings, and whether the last good ones go on.
    pub problem: Option<(&'static str, String, bool)>,
    /// Runner id and system id, once GitLab has said so.
    pub identity: Option<(u64, String)>,
    /// Its hosts.
    pub hosts: &'a [HostView],
    /// Its slots.
    pub view: &'a View<'a>,
    /// Why GitLab is not asked, if it is not.
    pub idle: Option<Idle>,
    /// Whether a request for a job is under way all the same.
    pub asking: bool,
    /// Who holds it.
    pub holder: &'a str,
    /// The holder's epoch.
    pub epoch: u64,
    /// Now.
    pub now: Timestamp,
}

/// The pool's status.
pub fn status(observed: &Observed<'_>) -> RunnerPoolStatus {
    let spec = &observed.pool.spec;
    let old = observed.pool.status.clone().unwrap_or_default();
    let ready_hosts = observed.hosts.iter().filter(|host| host.state.link().is_some()).count();
    let mut conditions = old.conditions.clone();
    let generation = observed.pool.metadata.generation;
    condition::merge(&mut conditions, &findings(observed), generation, observed.now);
    RunnerPoolStatus {
        observed_generation: generation,
        runner_id: observed.identity.as_ref().map(|(id, _)| *id).or(old.runner_id),
        system_id: observed.identity.as_ref().map(|(_, id)| id.clone()).or(old.system_id.clone()),
        holder: Some(observed.holder.to_owned()),
        epoch: Some(observed.epoch),
        jobs: Some(format!("{}/{}", observed.view.occupancy.jobs(), spec.concurrency)),
        instances: Some(format!("{ready_hosts}/{}", spec.provider.fixed.hosts.len())),
        slots: Some(format!("{}/{}", observed.view.free_count(), observed.view.slots())),
        environments: EnvironmentCounts {
            hot: u32::try_from(observed.view.occupancy.environments()).unwrap_or(u32::MAX),
        },
        hosts: hosts(observed, &old.hosts),
        conditions,
    }
}

/// Writes a first-seen key into the hosts of a status; false when it stands there already.
///
/// # Errors
/// When another key stands there for that address: a first use happens once, whoever is first.
pub fn record_key(
    hosts: &mut Vec<HostStatus>,
    host: &str,
    address: &str,
    key: &str,
) -> Result<bool, &'static str> {
    let known = match hosts.iter_mut().find(|known| known.name == host) {
        Some(known) => known,
        None => {
            hosts.push(HostStatus {
                name: host.to_owned(),
                state: HostState::Connecting.name().to_owned(),
                ..HostStatus::default()
            });
            hosts.last_mut().ok_or("the host is gone")?
        }
    };
    if known.recorded_address.as_deref() == Some(address) {
        match known.recorded_host_key.as_deref() {
            Some(recorded) if recorded == key => return Ok(false),
            Some(_) => return Err("another key was recorded for it meanwhile"),
            None => {}
        }
    }
    known.recorded_host_key = Some(key.to_owned());
    known.recorded_address = Some(address.to_owned());
    Ok(true)
}

/// Whether two statuses differ only in the pool's load, which comes and goes with every job.
pub fn may_pass(old: &RunnerPoolStatus, new: &RunnerPoolStatus) -> bool {
    let without_load = |status: &RunnerPoolStatus| {
        let mut rest = status.clone();
        rest.jobs = None;
        rest.slots = None;
        rest.environments = EnvironmentCounts::default();
        rest.conditions.retain(|known| known.type_ != POLLING && known.type_ != CAPACITY_AVAILABLE);
        rest
    };
    without_load(old) == without_load(new)
}

/// Hosts in the order of the spec, each with the key recorded for it so far.
fn hosts(observed: &Observed<'_>, old: &[HostStatus]) -> Vec<HostStatus> {
    observed
        .pool
        .spec
        .provider
        .fixed
        .hosts
        .iter()
        .map(|host| {
            let state = observed.hosts.iter().find(|view| view.name == host.name).map(|view| &view.state);
            let recorded = old.iter().find(|status| {
                status.name == host.name && status.recorded_address.as_deref() == Some(&host.address)
            });
            HostStatus {
                name: host.name.clone(),
                state: state.map_or("Connecting", HostState::name).to_owned(),
                message: state.and_then(HostState::message),
                recorded_host_key: recorded.and_then(|status| status.recorded_host_key.clone()),
                recorded_address: recorded.and_then(|status| status.recorded_address.clone()),
            }
        })
        .collect()
}

fn findings(observed: &Observed<'_>) -> Vec<Finding> {
    let credentials = credentials(observed);
    let provider = provider(observed.hosts);
    let keys = keys(observed.hosts);
    let capable = capable(observed);
    let ready = ready(&[&credentials, &provider, &keys], observed);
    vec![
        ready,
        credentials,
        provider,
        keys,
        capable,
        polling(observed),
        capacity(observed.view),
        slots_clean(observed.view),
        drained(observed),
    ]
}

fn ready(needed: &[&Finding], observed: &Observed<'_>) -> Finding {
    if observed.pool.metadata.deletion_timestamp.is_some() {
        return Finding::new(READY, Status::Unknown, "Deleting", deleting(observed));
    }
    match needed.iter().find(|finding| finding.status != Status::True) {
        Some(finding) => Finding::new(READY, finding.status, finding.reason, finding.message.clone()),
        None => Finding::new(READY, true, "Ready", "jobs can be taken and run"),
    }
}

fn deleting(observed: &Observed<'_>) -> String {
    let (jobs, environments) = (observed.view.occupancy.jobs(), observed.view.occupancy.environments());
    match (jobs, environments) {
        (0, 0) if observed.asking => "waiting for GitLab to answer the last request for a job".to_owned(),
        (0, 0) => "the hosts are being given back".to_owned(),
        (0, _) => format!(
            "waiting for {environments} environments; delete them, or set spec.deletionPolicy to Release"
        ),
        (_, _) => format!("waiting for {jobs} jobs to end"),
    }
}

fn credentials(observed: &Observed<'_>) -> Finding {
    match &observed.problem {
        Some((reason, message, passing)) => {
            let status = if *passing { Status::Unknown } else { Status::False };
            Finding::new(CREDENTIALS_VALID, status, reason, message.clone())
        }
        None if observed.identity.is_some() => {
            Finding::new(CREDENTIALS_VALID, true, "TokenAccepted", "GitLab accepts the runner token")
        }
        None => Finding::new(CREDENTIALS_VALID, Status::Unknown, "NotChecked", "not checked yet"),
    }
}

fn provider(hosts: &[HostView]) -> Finding {
    let ready = hosts.iter().filter(|host| host.state.link().is_some()).count();
    if ready > 0 {
        return Finding::new(
            PROVIDER_REACHABLE,
            true,
            "HostsReachable",
            format!("{ready} of {} hosts answer", hosts.len()),
        );
    }
    let why: Vec<String> = hosts
        .iter()
        .filter_map(|host| host.state.message().map(|message| format!("{}: {message}", host.name)))
        .take(3)
        .collect();
    if why.is_empty() {
        return Finding::new(PROVIDER_REACHABLE, Status::Unknown, "Connecting", "connecting to the hosts");
    }
    Finding::new(PROVIDER_REACHABLE, false, "NoReachableHost", why.join("; "))
}

fn keys(hosts: &[HostView]) -> Finding {
    let refused: Vec<String> = hosts
        .iter()
        .filter_map(|host| match &host.state {
            HostState::KeyRefused(why) => Some(format!("{}: {why}", host.name)),
            HostState::Connecting
            | HostState::Ready(_)
            | HostState::Unreachable(_)
            | HostState::Claimed(_)
            | HostState::Unsupported(_)
            | HostState::NotReady(_)
            | HostState::Fenced { .. } => None,
        })
        .collect();
    if refused.is_empty() {
        Finding::new(HOST_KEYS_TRUSTED, true, "KeysAsExpected", "no host has shown another key")
    } else {
        Finding::new(HOST_KEYS_TRUSTED, false, "HostKeyRefused", refused.join("; "))
    }
}

fn capable(observed: &Observed<'_>) -> Finding {
    let mut lacking: Vec<String> = Vec::new();
    for host in observed.hosts {
        match &host.state {
            HostState::Unsupported(why) => lacking.push(format!("{}: {why}", host.name)),
            HostState::Ready(link) => {
                if let Some(limitation) = keeper::limitations(link) {
                    lacking.push(format!("{}: {limitation}", host.name));
                }
            }
            HostState::Connecting
            | HostState::Unreachable(_)
            | HostState::KeyRefused(_)
            | HostState::Claimed(_)
            | HostState::NotReady(_)
            | HostState::Fenced { .. } => {}
        }
    }
    if !lacking.is_empty() {
        return Finding::new(HOSTS_CAPABLE, false, "HostsLackSomething", lacking.join("; "));
    }
    if observed.pool.spec.isolation == Some(Isolation::Shared)
        && observed.hosts.iter().any(|host| host.slots > 1)
    {
        return Finding::new(
            HOSTS_CAPABLE,
            false,
            "SlotsShared",
            "isolation is Shared: jobs on one host run as one user and can read and signal each other",
        );
    }
    Finding::new(HOSTS_CAPABLE, true, "AsAsked", "hosts can do what the pool asks of them")
}

fn polling(observed: &Observed<'_>) -> Finding {
    let (reason, message) = match &observed.idle {
        None => return Finding::new(POLLING, true, "Polling", "GitLab is asked for jobs"),
        Some(Idle::Mode(Mode::Draining)) => ("Draining", "spec.mode is Draining"),
        Some(Idle::Mode(Mode::Active | Mode::Paused)) => ("Paused", "spec.mode is Paused"),
        Some(Idle::Deleting) => ("Deleting", "the pool is being deleted"),
        Some(Idle::NotConfigured) => ("NotConfigured", "see condition CredentialsValid"),
        Some(Idle::NotSure) => ("LeaseNotRenewed", "the holder could not renew the pool's Lease"),
        // For a moment, while GitLab may still hold the last request.
        Some(Idle::Leaving) => ("ChangingHolder", "the pool is given to another replica"),
        Some(Idle::Room(Room::AtConcurrency)) => {
            ("AtConcurrency", "as many jobs as spec.concurrency are open")
        }
        Some(Idle::Room(Room::NoReachableHost)) => {
            ("NoReachableHost", "no host answers; jobs queue at GitLab until one does")
        }
        Some(Idle::Room(Room::NoSlot | Room::Yes)) => ("NoSlot", "every slot is in use by a job"),
    };
    Finding::new(POLLING, false, reason, message)
}

fn capacity(view: &View<'_>) -> Finding {
    let free = view.free_count();
    if free > 0 {
        Finding::new(CAPACITY_AVAILABLE, true, "SlotsFree", "a job can be placed now")
    } else if view.occupancy.asleep() > 0 {
        Finding::new(
            CAPACITY_AVAILABLE,
            false,
            "HeldByEnvironments",
            "every slot is in use or held by a sleeping environment; only resumes can be placed",
        )
    } else {
        Finding::new(CAPACITY_AVAILABLE, false, "SlotsInUse", "every slot is in use")
    }
}

fn slots_clean(view: &View<'_>) -> Finding {
    let there = |slot: &&Slot| view.instances.iter().any(|instance| instance.name == slot.instance);
    let quarantined: BTreeSet<&Slot> = view.occupancy.quarantined().filter(there).collect();
    let slots: Vec<String> =
        quarantined.into_iter().map(|slot| format!("slot {} of {}", slot.index, slot.instance)).collect();
    if slots.is_empty() {
        return Finding::new(
            SLOTS_CLEAN,
            true,
            "NoneInDoubt",
            "no slot waits for its host to say that it is clean",
        );
    }
    Finding::new(
        SLOTS_CLEAN,
        false,
        "Quarantined",
        format!(
            "{}: the last job there ended without a word of its host; no job is placed there before the host has \
             answered and what was left is removed",
            slots.join(", ")
        ),
    )
}

fn drained(observed: &Observed<'_>) -> Finding {
    match (observed.pool.spec.mode, observed.view.occupancy.jobs()) {
        (Mode::Draining, 0) if observed.asking => Finding::new(
            DRAINED,
            false,
            "RequestOpen",
            "GitLab has not answered the last request for a job yet",
        ),
        (Mode::Draining, 0) => Finding::new(DRAINED, true, "Drained", "no job is open"),
        (Mode::Draining, open) => Finding::new(DRAINED, false, "JobsOpen", format!("{open} jobs are open")),
        (Mode::Active | Mode::Paused, _) => {
            Finding::new(DRAINED, false, "NotDraining", "spec.mode is not Draining")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_load_may_pass() {
        let old = RunnerPoolStatus { jobs: Some("0/3".to_owned()), ..RunnerPoolStatus::default() };
        let busy =
            RunnerPoolStatus { jobs: Some("1/3".to_owned()), slots: Some("2/3".to_owned()), ..old.clone() };
        assert!(may_pass(&old, &busy));
        let taken_over = RunnerPoolStatus { holder: Some("another".to_owned()), ..busy };
        assert!(!may_pass(&old, &taken_over));
    }
}
