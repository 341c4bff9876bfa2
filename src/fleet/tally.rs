//! What a pool has in its cloud by number, and what that costs. Pure.

use std::sync::Arc;

use super::cost::{self, Disk, Machine, Rates, Sleeper};
use super::facts::Facts;
use super::prices::Prices;
use crate::api::SuspendedEnvironment;
use crate::api::runner_pool::{CostStatus, FleetStatus, RunnerPoolSpec};
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
