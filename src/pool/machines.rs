//! The machines of a pool by now: the hosts of its spec, or what its cloud shows. Pure.

use std::collections::BTreeMap;

use crate::api::RunnerPool;
use crate::fleet::facts::Facts;
use crate::provider::{Instance, InstanceState, Lifecycle};

/// One machine as the pool's hosts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name: a host's in the spec, or an instance id.
    pub name: String,
    /// Its address, once it has one.
    pub address: String,
    /// SSH port, if it is not the pool's.
    pub port: Option<u16>,
    /// Its slots.
    pub slots: u32,
    /// Its key, where the spec pins it.
    pub host_key: Option<String>,
    /// Whether a recorded key holds whatever its address is: an instance id is never given twice, an address is.
    pub is_known_by_name: bool,
    /// Whether it is to be connected to; else why it is not, as a state for people.
    pub connection: Connection,
}

/// Whether a machine is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// Yes.
    Wanted,
    /// It boots, or the group has not taken it in yet.
    Launching,
    /// It is stopped, or about to be.
    Stopped,
    /// It goes, and no job and no environment is on it.
    Leaving,
}

impl Connection {
    /// The name of the state, as in status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wanted => "Connecting",
            Self::Launching => "Launching",
            Self::Stopped => "Stopped",
            Self::Leaving => "Leaving",
        }
    }
}

/// The machines of a pool, in order of preference for new jobs.
pub fn machines(pool: &RunnerPool, facts: Option<&Facts>) -> Vec<Machine> {
    let spec = &pool.spec;
    if spec.provider.fixed.is_some() {
        let machine = |host: &crate::api::runner_pool::StaticHost| Machine {
            name: host.name.clone(),
            address: host.address.clone(),
            port: host.port,
            slots: spec.slots_of(host),
            host_key: host.host_key.clone(),
            is_known_by_name: false,
            connection: Connection::Wanted,
        };
        return spec.fixed_hosts().iter().map(machine).collect();
    }
    let Some(facts) = facts else { return Vec::new() };
    // The oldest first: jobs are packed there, so that the youngest fall idle and go.
    let by_age: BTreeMap<_, &Instance> = facts
        .instances
        .values()
        .filter(|instance| !instance.state.is_gone())
        .map(|instance| ((instance.launched_at, &instance.id), instance))
        .collect();
    let machine = |instance: &Instance| {
        let address = match spec.ssh.use_external_address {
            true => instance.public_address.clone(),
            false => instance.address.clone(),
        };
        Machine {
            name: instance.id.clone(),
            connection: if address.is_some() { connection(instance) } else { Connection::Launching },
            address: address.unwrap_or_default(),
            port: None,
            slots: spec.capacity_per_instance,
            host_key: None,
            is_known_by_name: true,
        }
    };
    by_age.into_values().map(machine).collect()
}

fn connection(instance: &Instance) -> Connection {
    match instance.state {
        InstanceState::Pending => return Connection::Launching,
        InstanceState::Stopping | InstanceState::Stopped => return Connection::Stopped,
        InstanceState::ShuttingDown | InstanceState::Terminated => return Connection::Leaving,
        InstanceState::Running => {}
    }
    match instance.member.as_ref().map(|member| &member.lifecycle) {
        Some(Lifecycle::Launching | Lifecycle::Warmed) => Connection::Launching,
        Some(Lifecycle::WarmedTerminatingWait) => Connection::Leaving,
        // What goes may still have a job, and until the cloud has ended it that job goes on.
        Some(
            Lifecycle::InService
            | Lifecycle::Terminating
            | Lifecycle::TerminatingWait
            | Lifecycle::Retained
            | Lifecycle::Detaching
            | Lifecycle::Standby
            | Lifecycle::Gone,
        )
        | None => Connection::Wanted,
    }
}
