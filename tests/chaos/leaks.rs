//! What an operator holds while it has nothing to do: it must not grow with what it has been through.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::testbed::operator::Operator;
use crate::testbed::stage::Stage;
use crate::testbed::wait::until;

/// Time for connections that are not needed any more to be closed. HTTP clients keep an idle one for 90 s.
const REST: Duration = Duration::from_secs(180);

/// Whether idle connections to GitLab and the API server are waited for, which takes more than a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// They count when they have had the time to be closed.
    Counts,
    /// They do not count.
    Ignored,
}

/// Counts that a leak would raise, over all replicas: which of them holds the pool makes no difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Open files, connections to hosts among them.
    files: usize,
    /// Connections to GitLab and the API server.
    http: usize,
    /// Threads.
    threads: usize,
    /// Asynchronous tasks, connections to GitLab and the API server apart: each of those is one.
    tasks: usize,
    /// Processes of sshd that serve a connection, on all hosts.
    sessions: usize,
    /// Secrets, Leases and jobs' environments in the namespace.
    objects: usize,
    /// Folders of environments, on all hosts.
    folders: usize,
}

impl Holdings {
    /// What is held when nothing has changed for a while.
    pub async fn at_rest(stage: &Stage) -> Result<Self> {
        let mut last = Self::now(stage).await?;
        until("the operator has come to rest", REST, async || {
            let now = Self::now(stage).await?;
            let rests = now == last;
            last = now;
            Ok(rests.then(|| last.clone()))
        })
        .await
    }

    /// Waits until nothing is more than this.
    pub async fn until_no_more(&self, stage: &Stage, idle: Idle) -> Result<()> {
        let mut last = None;
        until("nothing has leaked", REST, async || {
            let now = Self::now(stage).await?;
            let is_less = self.counts(idle).iter().zip(now.counts(idle)).all(|(before, now)| now <= *before);
            last = Some(now);
            Ok(is_less.then_some(()))
        })
        .await
        .with_context(|| format!("before: {self:?}; now: {last:?}"))
    }

    fn counts(&self, idle: Idle) -> [usize; 7] {
        let Self { files, http, threads, tasks, sessions, objects, folders } = *self;
        [files, if idle == Idle::Counts { http } else { 0 }, threads, tasks, sessions, objects, folders]
    }

    async fn now(stage: &Stage) -> Result<Self> {
        let mut holdings = Self::default();
        for replica in stage.replicas() {
            let process = format!("/proc/{}", replica.pid().context("a replica does not run")?);
            let (files, http) = files(&process, &servers(stage)?)?;
            holdings.files += files;
            holdings.http += http;
            holdings.tasks += tasks(replica).await?.saturating_sub(http);
            holdings.threads += fs::read_dir(format!("{process}/task"))?.count();
        }
        for host in &stage.hosts {
            let sessions = host.exec_root("pgrep -c -x 'sshd|sshd-session' || true").await?;
            holdings.sessions += sessions.trim().parse::<usize>()?;
            let folders = "ls -A /var/lib/dormouse/environments 2>/dev/null | wc -l";
            holdings.folders += host.exec_root(folders).await?.trim().parse::<usize>()?;
        }
        let kinds = "secrets,leases.coordination.k8s.io,suspendedenvironments";
        holdings.objects = stage.kubectl(&["get", kinds, "-o", "name"]).await?.lines().count();
        Ok(holdings)
    }
}

async fn tasks(replica: &Operator) -> Result<usize> {
    let metrics = replica.metrics().await?;
    let tasks = metrics.lines().find_map(|line| line.strip_prefix("dormouse_tasks "));
    Ok(tasks.context("the operator does not count its tasks")?.parse()?)
}

/// Ports on which operators reach GitLab and the API server.
fn servers(stage: &Stage) -> Result<BTreeSet<u16>> {
    let mut urls = vec![stage.gitlab.url(), stage.cluster.control_plane.endpoint().to_owned()];
    if let Some(paths) = &stage.paths {
        urls.extend([paths.gitlab.address().to_string(), paths.api_server.address().to_string()]);
    }
    let port = |url: &String| Ok(url.rsplit(':').next().unwrap_or_default().parse()?);
    urls.iter().map(port).collect()
}

/// How many open files a process has: connections to these ports apart.
fn files(process: &str, ports: &BTreeSet<u16>) -> Result<(usize, usize)> {
    let table = fs::read_to_string(format!("{process}/net/tcp"))?;
    // Fields of a line: number, local and remote address and port in hexadecimal, ..., the tenth is the inode.
    let connections = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(2)?.split_once(':')?;
        let is_one = ports.contains(&u16::from_str_radix(port, 16).ok()?);
        is_one.then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
    });
    let connections: BTreeSet<String> = connections.collect();
    let (mut files, mut http) = (0, 0);
    for entry in fs::read_dir(format!("{process}/fd"))? {
        // One that is closed between the two looks is not open.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        if connections.contains(target.to_string_lossy().as_ref()) {
            http += 1;
        } else {
            files += 1;
        }
    }
    Ok((files, http))
}
