//! What a pool looks like to a dashboard that knows fleeting and taskscaler. Pure.

use super::hosts::HostView;
use super::slots::View;
use super::status::CloudView;
use crate::api::runner_pool::RunnerPoolSpec;
use crate::telemetry::{Instances, PoolPicture, Tasks};

/// The picture of a pool by its slots, and by its cloud or its hosts.
pub fn picture(
    spec: &RunnerPoolSpec,
    view: &View<'_>,
    cloud: Option<&CloudView>,
    hosts: &[HostView],
    open_requests: usize,
) -> PoolPicture {
    let occupancy = view.occupancy;
    let (jobs, pending) = (occupancy.jobs(), occupancy.waiting());
    let free = view.free_count();
    let reserved = open_requests.min(free);
    let tasks = Tasks {
        idle: free - reserved,
        pending,
        reserved,
        acquired: jobs.saturating_sub(pending),
        unavailable: occupancy.asleep(),
        unhealthy: occupancy.quarantined().count(),
    };
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let fleet = cloud.and_then(|cloud| cloud.fleet.as_ref());
    let (instances, desired_instances, max_instances) = match fleet {
        Some(fleet) => {
            let there = fleet.in_service + fleet.launching;
            let instances = Instances {
                requested: fleet.desired.saturating_sub(there),
                creating: fleet.launching,
                running: fleet.in_service + fleet.kept,
                suspended: fleet.stopped,
                deleting: fleet.leaving,
            };
            (instances, fleet.desired, spec.max_instances())
        }
        None => {
            let running = count(hosts.iter().filter(|host| host.state.link().is_some()).count());
            let all = count(spec.fixed_hosts().len());
            (Instances { running, ..Instances::default() }, all, all)
        }
    };
    PoolPicture {
        concurrency: spec.concurrency,
        tasks,
        instances,
        max_instances,
        desired_instances,
        capacity_per_instance: spec.capacity_per_instance,
        max_use_count: spec.max_use_count,
    }
}
