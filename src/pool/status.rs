//! What a pool says of itself. Pure; the driver writes it when it differs from what is there.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::hosts::HostView;
use super::intake::Idle;
use super::machines::Machine;
use super::registration::Notes;
use super::slots::{Room, Slot, View};
use crate::api::RunnerPool;
use crate::api::condition::{
    self, CACHE_READY, CAPACITY_AVAILABLE, CLOUD_READY, CREDENTIALS_VALID, DRAINED, Finding, GROUP_SUITABLE,
    HOST_KEYS_TRUSTED, HOSTS_CAPABLE, POLLING, PROVIDER_REACHABLE, READY, REGISTERED, SCALING, SLOTS_CLEAN,
    Status,
};
use crate::api::runner_pool::{
    CostStatus, EnvironmentCounts, FleetStatus, HostStatus, Isolation, Mode, RunnerPoolStatus,
};
use crate::bucket::watch::Verdict;
use crate::fleet::Failure;
use crate::fleet::group::{self, Problem};
use crate::fleet::scale::Scale;
use crate::gitlab::registration;
use crate::host::keeper::{self, HostState};
use crate::provider::{CloudError, ErrorClass};

/// All that is looked at.
pub struct Observed<'a> {
    /// The pool.
    pub pool: &'a RunnerPool,
    /// Reason and message of what is wrong with its settings, and whether the last good ones go on.
    pub problem: Option<(&'static str, String, bool)>,
    /// Runner id and system id, once GitLab has said so.
    pub identity: Option<(u64, String)>,
    /// What is known of its own runner, where it makes that.
    pub runner: Notes,
    /// When the runner's token expires, if it does.
    pub token_expires_at: Option<Timestamp>,
    /// Its hosts.
    pub hosts: &'a [HostView],
    /// Its machines, connected to or not.
    pub machines: &'a [Machine],
    /// Its part of its cloud, where it has one.
    pub cloud: Option<CloudView>,
    /// What is known of where caches are kept.
    pub caches: Option<Verdict>,
    /// Environments by tier.
    pub tiers: EnvironmentCounts,
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

/// A pool's part of its cloud.
pub struct CloudView {
    /// What the cloud shows; `None` before the first look.
    pub fleet: Option<FleetStatus>,
    /// What it costs.
    pub cost: Option<CostStatus>,
    /// What is wrong with the group's settings.
    pub problems: Vec<Problem>,
    /// Why the last look failed, if it did.
    pub blindness: Option<CloudError>,
    /// Steps that failed and wait to be tried again.
    pub failures: Vec<Failure>,
    /// How the group's size was decided.
    pub scale: Option<Scale>,
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
        instances: Some(format!("{ready_hosts}/{}", observed.machines.len())),
        slots: Some(format!("{}/{}", observed.view.free_count(), observed.view.slots())),
        environments: observed.tiers.clone(),
        fleet: observed.cloud.as_ref().and_then(|cloud| cloud.fleet.clone()),
        // Until the first look it is what it was.
        cost: observed.cloud.as_ref().and_then(|cloud| cloud.cost.clone().or(old.cost)),
        // Reckoned up only when something else is written.
        usage: old.usage,
        runner: match spec.gitlab.registration {
            Some(_) => observed.runner.shown.clone().or(old.runner),
            None => None,
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
        rest.fleet = None;
        rest.cost = None;
        rest.instances = None;
        let load = [POLLING, CAPACITY_AVAILABLE, SCALING];
        rest.conditions.retain(|known| !load.contains(&known.type_.as_str()));
        rest
    };
    without_load(old) == without_load(new)
}

/// Machines in the order of preference, each with the key recorded for it so far.
fn hosts(observed: &Observed<'_>, old: &[HostStatus]) -> Vec<HostStatus> {
    let old: BTreeMap<&str, &HostStatus> = old.iter().map(|status| (status.name.as_str(), status)).collect();
    let views: BTreeMap<&str, &HostView> =
        observed.hosts.iter().map(|view| (view.name.as_str(), view)).collect();
    let host = |machine: &Machine| {
        let state = views.get(machine.name.as_str()).map(|view| &view.state);
        let recorded = old.get(machine.name.as_str()).filter(|status| {
            machine.is_known_by_name || status.recorded_address.as_deref() == Some(&machine.address)
        });
        HostStatus {
            name: machine.name.clone(),
            state: state.map_or(machine.connection.name(), HostState::name).to_owned(),
            message: state.and_then(HostState::message),
            recorded_host_key: recorded.and_then(|status| status.recorded_host_key.clone()),
            recorded_address: recorded.and_then(|status| status.recorded_address.clone()),
        }
    };
    observed.machines.iter().map(host).collect()
}

fn findings(observed: &Observed<'_>) -> Vec<Finding> {
    let credentials = credentials(observed);
    let provider = match &observed.cloud {
        None => provider(observed.hosts),
        Some(cloud) => provider_of_cloud(observed.hosts, cloud),
    };
    let keys = keys(observed.hosts);
    let capable = capable(observed);
    let cloud = observed.cloud.as_ref().map(cloud_findings).unwrap_or_default();
    // A risk is said and gone on with; what blocks keeps the pool from its group.
    let is_blocked = observed.cloud.as_ref().is_some_and(|cloud| group::blocks(&cloud.problems));
    let is_needed = |finding: &&Finding| match finding.type_ {
        SCALING => false,
        GROUP_SUITABLE => is_blocked || finding.status == Status::Unknown,
        _ => true,
    };
    let needed: Vec<&Finding> =
        [&credentials, &provider, &keys].into_iter().chain(cloud.iter().filter(is_needed)).collect();
    let ready = ready(&needed, observed);
    let mut findings = vec![
        ready,
        credentials,
        provider,
        keys,
        capable,
        polling(observed),
        capacity(observed.view),
        slots_clean(observed.view),
        caches(observed.caches.as_ref()),
        drained(observed),
    ];
    findings.extend(registered(observed));
    findings.extend(cloud);
    findings
}

/// Whether the runner that the pool makes itself is at GitLab as the spec says.
fn registered(observed: &Observed<'_>) -> Option<Finding> {
    observed.pool.spec.gitlab.registration.as_ref()?;
    Some(match (&observed.problem, &observed.runner.pending) {
        (Some((reason, message, passing)), _) => {
            let status = if *passing { Status::Unknown } else { Status::False };
            Finding::new(REGISTERED, status, reason, message.clone())
        }
        (None, _) if observed.identity.is_none() => {
            Finding::new(REGISTERED, Status::Unknown, "NotChecked", "not checked yet")
        }
        (None, Some(why)) => {
            let message = format!("the runner works, but is not as the spec says now: {why}");
            Finding::new(REGISTERED, false, "ChangePending", message)
        }
        (None, None) => Finding::new(REGISTERED, true, "Registered", "the runner is as the spec says"),
    })
}

/// A pool from zero has no instance, and works all the same.
fn provider_of_cloud(hosts: &[HostView], cloud: &CloudView) -> Finding {
    if let Some(error) = &cloud.blindness {
        return Finding::new(PROVIDER_REACHABLE, false, error.class.as_str(), error.with_way_out());
    }
    if cloud.fleet.is_none() {
        return Finding::new(
            PROVIDER_REACHABLE,
            Status::Unknown,
            "NotSeen",
            "the cloud was not looked at yet",
        );
    }
    let ready = hosts.iter().filter(|host| host.state.link().is_some()).count();
    let message = format!("the cloud answers; {ready} of {} running instances do", hosts.len());
    Finding::new(PROVIDER_REACHABLE, true, "CloudAnswers", message)
}

fn cloud_findings(cloud: &CloudView) -> Vec<Finding> {
    let group = match &cloud.fleet {
        None => Finding::new(GROUP_SUITABLE, Status::Unknown, "NotSeen", "the group was not looked at yet"),
        Some(_) => group::finding(&cloud.problems),
    };
    let scaling = match &cloud.scale {
        None => Finding::new(SCALING, Status::Unknown, "NotPlanned", "nothing was planned yet"),
        Some(scale) => scaling(scale, &cloud.failures),
    };
    vec![cloud_ready(cloud), group, scaling]
}

/// Whether the cloud lets us do what is needed: what only a person can mend is said here.
fn cloud_ready(cloud: &CloudView) -> Finding {
    let is_persons = |error: &CloudError| match error.class {
        ErrorClass::Denied | ErrorClass::Invalid | ErrorClass::Quota => true,
        ErrorClass::Retry | ErrorClass::NoCapacity | ErrorClass::Gone | ErrorClass::Refused => false,
    };
    let failures = cloud.failures.iter().map(|failure| &failure.error);
    let worst = cloud.blindness.iter().chain(failures).find(|error| is_persons(error));
    match (worst, &cloud.blindness, &cloud.fleet) {
        (Some(error), _, _) => Finding::new(CLOUD_READY, false, error.class.as_str(), error.with_way_out()),
        (None, Some(error), _) => {
            Finding::new(CLOUD_READY, Status::Unknown, error.class.as_str(), error.with_way_out())
        }
        (None, None, None) => {
            Finding::new(CLOUD_READY, Status::Unknown, "NotSeen", "the cloud was not looked at yet")
        }
        (None, None, Some(_)) => {
            Finding::new(CLOUD_READY, true, "CloudAnswers", "the cloud shows and does what it is asked")
        }
    }
}

/// Whether instances come when they are needed.
fn scaling(scale: &Scale, failures: &[Failure]) -> Finding {
    let is_about_capacity = |failure: &&Failure| match failure.error.class {
        ErrorClass::NoCapacity | ErrorClass::Quota => true,
        ErrorClass::Retry
        | ErrorClass::Gone
        | ErrorClass::Refused
        | ErrorClass::Denied
        | ErrorClass::Invalid => false,
    };
    match failures.iter().find(is_about_capacity) {
        Some(failure) => {
            let error = &failure.error;
            let message = format!("{}; tried {} times so far", error.with_way_out(), failure.times);
            Finding::new(SCALING, false, error.class.as_str(), message)
        }
        None => scale.finding(),
    }
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
        (0, 0) => match &observed.runner.removal {
            Some(why) => format!("waiting for GitLab to be told of it: {why}"),
            None => "the hosts are being given back".to_owned(),
        },
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
            // A token of the pool's own is replaced in time.
            let expires = observed.token_expires_at.filter(|at| {
                observed.pool.spec.gitlab.registration.is_none()
                    && registration::expires_soon(*at, observed.now)
            });
            if let Some(at) = expires {
                let message = format!(
                    "GitLab accepts the runner token until {at}; reset it at GitLab and put the new one into the Secret \
                     of spec.gitlab.tokenSecretRef, for a token that is given is never replaced by the pool"
                );
                return Finding::new(CREDENTIALS_VALID, true, "TokenExpiresSoon", message);
            }
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
        Some(Idle::TokenChanging) => ("TokenChanging", "the runner's token is being replaced"),
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

/// Not needed for Ready: a job whose cache cannot be had runs without it.
fn caches(verdict: Option<&Verdict>) -> Finding {
    match verdict {
        None => Finding::new(CACHE_READY, Status::Unknown, "NotTried", "not tried yet"),
        Some(Verdict::Host) => {
            Finding::new(CACHE_READY, true, "KeptOnHosts", "each host keeps the caches of its jobs")
        }
        Some(Verdict::Good) => {
            Finding::new(CACHE_READY, true, "BucketTakesCaches", "the bucket can be written and read")
        }
        Some(Verdict::Bad(problem)) => {
            Finding::new(CACHE_READY, false, problem.reason, problem.message.clone())
        }
    }
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
