//! The checker: looks at GitLab, the hosts and the API server after the fact and lists every promise that was broken.
//!
//! It knows the product's documented words and nothing of its code. What it judges are [`Facts`], plain values, so that
//! its own tests can hand it broken worlds: a checker that cannot fail proves nothing. Scripts written by
//! [`script`] leave a journal on their host, outside of log and workspace: what ran, when, and where.

use serde_json::Value;

use super::gitlab::{JobId, JobView};

mod cloud;
mod environments;
mod journal;
mod leftovers;
mod logs;
mod look;
mod results;
mod slots;
#[cfg(test)]
mod tests;

pub use cloud::{CloudFacts, Swept};
pub use journal::{Doing, Entry, Verb, script};

/// What whoever queued a job wants of it.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// The job as it was first queued.
    pub job: JobId,
    /// Its log has this many numbered lines.
    pub lines: u32,
    /// How its script ends.
    pub exit_code: i64,
    /// Whether its environment sleeps after it.
    pub sleeps: bool,
    /// The sleeping environment it wakes.
    pub wakes: Option<Woken>,
    /// Its environment is let expire.
    pub expires: bool,
}

/// A sleeping environment, as told by the job that first put it to sleep.
#[derive(Clone, Debug)]
pub struct Woken {
    /// Its key.
    pub key: String,
    /// The job whose workspace it is.
    pub of: JobId,
}

/// One host.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// Its name.
    pub name: String,
    /// What scripts have written down.
    pub journal: Vec<Entry>,
    /// Names in the folder of environments.
    pub environments: Vec<String>,
    /// Logs of jobs that the host still keeps.
    pub logs: Vec<(JobId, Vec<u8>)>,
    /// Command lines of processes that are not the host's own.
    pub processes: Vec<String>,
    /// Control groups that are not the host's own.
    pub cgroups: Vec<String>,
}

/// The pool's namespace.
#[derive(Clone, Debug, Default)]
pub struct ClusterFacts {
    /// The JobLeases.
    pub leases: Vec<Value>,
    /// The SuspendedEnvironments.
    pub environments: Vec<Value>,
    /// Names of Secrets with a job's payload.
    pub payloads: Vec<String>,
    /// Replicas that run.
    pub replicas: usize,
    /// Names of the Leases, of one pool and the replicas.
    pub claims: Vec<String>,
    /// Events that say of an environment that what kept it is gone: whose, the reason, and the note.
    pub accidents: Vec<(String, String, String)>,
}

/// Everything that can be known from outside, at rest: no job is queued or runs.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What was wanted.
    pub expectations: Vec<Expectation>,
    /// GitLab's record of every job.
    pub jobs: Vec<JobView>,
    /// What GitLab saw that a correct runner would not do.
    pub violations: Vec<String>,
    /// The hosts.
    pub hosts: Vec<HostFacts>,
    /// The API server.
    pub cluster: ClusterFacts,
    /// The cloud the hosts are of, if they are.
    pub cloud: Option<CloudFacts>,
}

impl Facts {
    /// Every broken promise, in words; none when all were kept.
    pub fn broken_promises(&self) -> Vec<String> {
        let mut broken = self.violations.clone();
        broken.extend(self.expectations.iter().flat_map(|wanted| results::broken(self, wanted)));
        broken.extend(self.expectations.iter().flat_map(|wanted| logs::broken(self, wanted)));
        broken.extend(slots::broken(self));
        broken.extend(environments::broken(self));
        broken.extend(leftovers::broken(self));
        broken.extend(self.cloud.iter().flat_map(|cloud| cloud::broken(self, cloud)));
        broken
    }

    /// GitLab's record of a job.
    fn job(&self, id: JobId) -> Option<&JobView> {
        self.jobs.iter().find(|job| job.id == id)
    }

    /// The job that was run in the end: GitLab queues one anew that no runner has acknowledged.
    fn last_of(&self, id: JobId) -> Option<&JobView> {
        let mut job = self.job(id)?;
        while let Some(next) = job.retried_as.and_then(|next| self.job(next)) {
            job = next;
        }
        Some(job)
    }

    /// What the hosts' journals say of a job.
    fn entries(&self, id: JobId) -> impl Iterator<Item = (&HostFacts, &Entry)> {
        let all = self.hosts.iter().flat_map(|host| host.journal.iter().map(move |entry| (host, entry)));
        all.filter(move |(_, entry)| entry.job == id)
    }
}
