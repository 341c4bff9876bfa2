//! What a pool has in its cloud by number, and what that costs. Pure.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::cost::{self, Disk, Machine, Rates, Sleeper};
use super::facts::Facts;
use super::prices::Prices;
use crate::api::SuspendedEnvironment;
use crate::api::runner_pool::{CostStatus, FleetStatus, RunnerPoolSpec, RunnerPoolStatus};
use crate::api::usage::UsageStatus;
use crate::provider::{Instance, InstanceState, Lifecycle};

/// By number.
pub fn count(facts: &Facts) -> FleetStatus {
    let mut fleet = FleetStatus {
        desired: facts.group.as_ref().map_or(0, |group| group.desired),
        volumes: number(facts.volumes.len()),
        snapshots: number(facts.snapshots.len()),
        ..FleetStatus::default()
    };
    for instance in facts.instances.values() {
        let counter = match (instance.member.as_ref().map(|member| &member.lifecycle), instance.state) {
            (_, InstanceState::Terminated) => continue,
            (_, InstanceState::ShuttingDown) => &mut fleet.leaving,
            (Some(Lifecycle::Launching), _) => &mut fleet.launching,
            (Some(Lifecycle::InService), _) => &mut fleet.in_service,
            (
                Some(
                    Lifecycle::Terminating
                    | Lifecycle::TerminatingWait
                    | Lifecycle::Retained
                    | Lifecycle::Detaching
                    | Lifecycle::WarmedTerminatingWait,
                ),
                _,
            ) => &mut fleet.leaving,
            (Some(Lifecycle::Standby), _) => &mut fleet.kept,
            (Some(Lifecycle::Warmed), _) => continue,
            (Some(Lifecycle::Gone) | None, InstanceState::Pending | InstanceState::Running) => {
                &mut fleet.kept
            }
            (Some(Lifecycle::Gone) | None, InstanceState::Stopping | InstanceState::Stopped) => {
                &mut fleet.stopped
            }
        };
        *counter += 1;
    }
    fleet
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What one environment costs in an hour, at its tier.
pub fn environment_hour(
    environment: &SuspendedEnvironment,
    facts: &Facts,
    spec: &RunnerPoolSpec,
    prices: &Prices,
) -> f64 {
    cost::sleeper_hour(prices, &sleeper(environment, facts, spec))
}

/// What one environment has used up to now. Its tier is the one it has had since the last reckoning: whatever moves it
/// reckons up.
pub fn environment_usage(
    environment: &SuspendedEnvironment,
    facts: &Facts,
    spec: &RunnerPoolSpec,
    prices: &Prices,
    now: Timestamp,
) -> Option<UsageStatus> {
    let status = environment.status.as_ref()?;
    let since = status.suspended_at.as_ref()?.0;
    let rates = cost::sleeper_rates(prices, &sleeper(environment, facts, spec));
    Some(cost::reckon(status.usage.as_ref(), since, &rates, now))
}

/// How long rates that are the same are not reckoned up again: what is rounded away would add up.
const RECKON_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// What a pool has used up to now, when its status is written anyhow. Each change of what it has and costs writes the status,
/// so that what stood there has held since the last reckoning, whoever held the pool.
pub fn pool_usage(old: &RunnerPoolStatus, new: &RunnerPoolStatus, now: Timestamp) -> Option<UsageStatus> {
    let Some(held) = &old.cost else {
        // What it had before is not known.
        return old.usage.clone().or_else(|| {
            let begin = || cost::reckon(None, now, &Rates::default(), now);
            new.cost.as_ref().map(|_| begin())
        });
    };
    let is_recent =
        |usage: &UsageStatus| old.cost == new.cost && now.duration_since(usage.until.0) < RECKON_EVERY;
    if old.usage.as_ref().is_some_and(is_recent) {
        return old.usage.clone();
    }
    Some(cost::reckon(old.usage.as_ref(), now, &rates_of(held), now))
}

fn rates_of(cost: &CostStatus) -> Rates {
    let read = |amount: &String| amount.parse().unwrap_or(0.0);
    Rates {
        instances: f64::from(cost.running),
        volume_gib: cost.volume_gib as f64,
        snapshot_gib: cost.snapshot_gib as f64,
        dollars_per_hour: read(&cost.per_hour),
        saved_per_hour: read(&cost.saved_per_hour),
    }
}

/// What the pool costs, and what its tiers save.
pub fn cost(
    environments: &[Arc<SuspendedEnvironment>],
    facts: &Facts,
    spec: &RunnerPoolSpec,
    prices: &Prices,
) -> (CostStatus, Rates) {
    let instances = facts.instances.values().filter(|instance| !instance.state.is_gone());
    let machines: Vec<Machine<'_>> = instances.map(|instance| machine(instance, spec)).collect();
    let type_ = volume_type(spec);
    let volumes: Vec<Disk<'_>> =
        facts.volumes.values().map(|volume| Disk { type_, size_gib: volume.size_gib }).collect();
    let snapshots: Vec<u32> = facts.snapshots.values().map(|snapshot| snapshot.size_gib).collect();
    let sleepers: Vec<Sleeper<'_>> =
        environments.iter().map(|environment| sleeper(environment, facts, spec)).collect();
    let rates = cost::rates(prices, &machines, &volumes, &snapshots, &sleepers);
    let environments: f64 = sleepers.iter().map(|sleeper| cost::sleeper_hour(prices, sleeper)).sum();
    let status = CostStatus {
        per_hour: cost::dollars(rates.dollars_per_hour),
        environments_per_hour: cost::dollars(environments),
        saved_per_hour: cost::dollars(rates.saved_per_hour),
        running: number(machines.iter().filter(|machine| machine.is_running).count()),
        // Whole numbers all of them.
        volume_gib: rates.volume_gib as u64,
        snapshot_gib: rates.snapshot_gib as u64,
        prices: prices.origin(),
    };
    (status, rates)
}

fn machine<'a>(instance: &'a Instance, spec: &RunnerPoolSpec) -> Machine<'a> {
    let is_running = match instance.state {
        InstanceState::Pending | InstanceState::Running => true,
        InstanceState::Stopping
        | InstanceState::Stopped
        | InstanceState::ShuttingDown
        | InstanceState::Terminated => false,
    };
    Machine {
        machine_type: &instance.machine_type,
        slots: spec.capacity_per_instance,
        is_running,
        has_public_address: instance.public_address.is_some(),
    }
}

fn sleeper<'a>(
    environment: &SuspendedEnvironment,
    facts: &'a Facts,
    spec: &'a RunnerPoolSpec,
) -> Sleeper<'a> {
    let place = environment.place().map(|(instance, _)| instance);
    // One that is on no instance would be on one like those that are there.
    let here = place.and_then(|instance| facts.instances.get(instance));
    let like = here.or_else(|| facts.instances.values().next());
    let by_default = Machine {
        machine_type: "",
        slots: spec.capacity_per_instance,
        is_running: true,
        has_public_address: false,
    };
    let size_gib = environment.status.as_ref().and_then(|status| {
        let volume = status.volume.as_ref().map(|volume| volume.size_gib);
        volume.or(status.snapshot.as_ref().map(|snapshot| snapshot.size_gib))
    });
    let size_gib = size_gib.or(spec.workspace_volume.as_ref().map(|volume| volume.size_gib));
    Sleeper {
        tier: environment.tier(),
        machine: like.map_or(by_default, |instance| machine(instance, spec)),
        volume: size_gib.map(|size_gib| Disk { type_: volume_type(spec), size_gib }),
    }
}

fn volume_type(spec: &RunnerPoolSpec) -> &str {
    spec.workspace_volume.as_ref().map_or("gp3", |volume| &volume.type_)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_pool_is_charged_for_what_it_had_since_its_status_was_written() {
        let having =
            |running: u32| CostStatus { running, per_hour: format!("{running}"), ..CostStatus::default() };
        let mut status = RunnerPoolStatus::default();
        let mut write = |second, cost: Option<CostStatus>| {
            let next = RunnerPoolStatus { cost, ..status.clone() };
            let usage = pool_usage(&status, &next, at(second));
            status = RunnerPoolStatus { usage: usage.clone(), ..next };
            usage.map(|usage| (usage.until.0.as_second(), usage.instance_hours, usage.dollars))
        };
        let used = |until, hours: &str| Some((until, hours.to_owned(), hours.to_owned()));
        assert_eq!(write(0, None), None, "nothing was seen yet");
        assert_eq!(write(10, Some(having(1))), used(10, "0.000000"));
        assert_eq!(write(20, Some(having(1))), used(10, "0.000000"), "nothing has changed");
        assert_eq!(write(3_610, Some(having(3))), used(3_610, "1.000000"));
        assert_eq!(write(5_410, Some(having(0))), used(5_410, "2.500000"));
        assert_eq!(write(9_999, Some(having(2))), used(9_999, "2.500000"));
    }
}
