//! Gathers what is judged, from outside: GitLab's record, the hosts' file systems, kubectl.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use super::journal::FILE;
use super::{CloudFacts, ClusterFacts, Entry, Expectation, Facts, HostFacts};
use crate::testbed::chronicle::Chronicle;
use crate::testbed::gitlab::JobId;
use crate::testbed::hosts::Host;
use crate::testbed::stage::Stage;

/// Where a host that is logged into as root keeps environments.
const ENVIRONMENTS: &str = "var/lib/dormouse/environments";

impl Facts {
    /// Looks at everything there is now.
    pub async fn gather(stage: &Stage, expectations: Vec<Expectation>) -> Result<Self> {
        let mut hosts = Vec::new();
        for host in &stage.hosts {
            let looked = HostFacts::gather(host).await;
            hosts.push(looked.with_context(|| format!("failed to look at {}", host.name()))?);
        }
        Ok(Self {
            expectations,
            jobs: stage.gitlab.jobs(),
            violations: stage.gitlab.violations().iter().map(ToString::to_string).collect(),
            hosts,
            cluster: ClusterFacts::gather(stage).await?,
            cloud: None,
        })
    }
}

impl Facts {
    /// The same of a stage whose hosts are of a cloud, and write to a chronicle.
    pub async fn gather_in_cloud(
        stage: &Stage,
        chronicle: &Chronicle,
        expectations: Vec<Expectation>,
    ) -> Result<Self> {
        let mut facts = Self::gather(stage, expectations).await?;
        let mut hosts: BTreeMap<String, HostFacts> = BTreeMap::new();
        for (name, line) in chronicle.lines() {
            let host =
                hosts.entry(name.clone()).or_insert_with(|| HostFacts { name, ..HostFacts::default() });
            host.journal.extend(Entry::read_all(&line)?);
        }
        facts.hosts = hosts.into_values().collect();
        facts.cloud = Some(CloudFacts::gather(stage).await?);
        Ok(facts)
    }
}

impl ClusterFacts {
    /// Looks at the stage's namespace.
    pub async fn gather(stage: &Stage) -> Result<Self> {
        let names = async |args: &[&str]| -> Result<Vec<String>> {
            Ok(stage.kubectl(args).await?.lines().map(str::to_owned).collect())
        };
        let payloads = "--field-selector=type=dormouse.dev/job-payload";
        Ok(Self {
            leases: stage.list("jobleases").await?,
            environments: stage.list("suspendedenvironments").await?,
            payloads: names(&["get", "secrets", payloads, "-o", "name"]).await?,
            replicas: stage.replicas().filter(|replica| replica.pid().is_some()).count(),
            claims: names(&["get", "leases.coordination.k8s.io", "-o", "name"]).await?,
            accidents: accidents(stage).await?,
        })
    }
}

async fn accidents(stage: &Stage) -> Result<Vec<(String, String, String)>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let events = stage.list("events.v1.events.k8s.io").await?.into_iter();
    let told = events.filter(|event| ["Rescued", "Lost"].map(Into::into).contains(&event["reason"]));
    Ok(told
        .map(|event| (text(&event["regarding"]["name"]), text(&event["reason"]), text(&event["note"])))
        .collect())
}

impl HostFacts {
    /// Looks at a host that is on.
    pub async fn gather(host: &Host) -> Result<Self> {
        let disk = host.disk();
        let journal = match fs::read_to_string(disk.join(FILE.trim_start_matches('/'))) {
            Ok(text) => Entry::read_all(&text)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let environments = names(&disk.join(ENVIRONMENTS))?;
        let mut logs = Vec::new();
        for environment in &environments {
            let jobs = disk.join(ENVIRONMENTS).join(environment).join("jobs");
            for job in names(&jobs)? {
                logs.push((JobId(job.parse()?), fs::read(jobs.join(&job).join("log"))?));
            }
        }
        // Process 1 and its children of the same name are the host's sshd; the look itself is no child of theirs.
        let processes =
            "ps -eo pid=,args= | grep -vE '^ *[0-9]+ (/usr/sbin/sshd|sshd|ps |grep |sh -c ps)' || true";
        let cgroups = "cd /sys/fs/cgroup && find . -mindepth 1 -type d ! -path ./system.slice ! -path ./system.slice/ssh.service";
        let lines = |text: String| text.lines().map(|line| line.trim().to_owned()).collect();
        Ok(Self {
            name: host.name().to_owned(),
            journal,
            environments,
            logs,
            processes: lines(host.exec_root(processes).await?),
            cgroups: lines(host.exec_root(cgroups).await?),
        })
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
