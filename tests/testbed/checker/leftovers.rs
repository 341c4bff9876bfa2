//! Nothing stays behind: what hosts and API server hold is what a sleeping environment needs.

use std::collections::BTreeSet;

use super::Facts;

/// What is there and should not be.
pub fn broken(facts: &Facts) -> Vec<String> {
    let mut broken = Vec::new();
    for lease in &facts.cluster.leases {
        let phase = lease["status"]["phase"].as_str().unwrap_or("without a phase");
        if phase != "Reported" && !is_given_back(facts, lease["spec"]["jobId"].as_u64()) {
            broken.push(format!("JobLease {} is {phase}", lease["metadata"]["name"]));
        }
    }
    broken.extend(facts.cluster.payloads.iter().map(|name| format!("Secret {name} is left")));
    let replicas = facts.cluster.replicas;
    for (kind, most, whose) in [("pool", 1, "one pool"), ("replica", replicas, "replicas that are gone")] {
        let prefix = format!("dormouse-{kind}-");
        let leases: Vec<&String> =
            facts.cluster.claims.iter().filter(|name| name.contains(&prefix)).collect();
        if leases.len() > most {
            broken.push(format!("there are Leases of {whose}: {leases:?}"));
        }
    }
    let keys = facts.cluster.environments.iter();
    let asleep: BTreeSet<&str> = keys.filter_map(|known| known["spec"]["environmentId"].as_str()).collect();
    for host in &facts.hosts {
        let names: BTreeSet<&str> = host.environments.iter().map(String::as_str).collect();
        for name in names.difference(&asleep) {
            broken.push(format!("{} keeps environment {name}, which no object knows", host.name));
        }
        // What a sleeping environment keeps is seen when it wakes.
        if names.is_empty() {
            broken.extend(host.processes.iter().map(|line| format!("{} still runs {line:?}", host.name)));
            broken
                .extend(host.cgroups.iter().map(|path| format!("{} still has the cgroup {path}", host.name)));
        }
    }
    broken
}

/// Whether GitLab queued the job anew: its lease had no payload yet, and could only be closed.
fn is_given_back(facts: &Facts, job: Option<u64>) -> bool {
    facts.jobs.iter().any(|known| Some(known.id.0) == job && known.retried_as.is_some())
}
