//! Machines are what the cloud says of its instances, volumes and snapshots, and nothing of them stays behind.
//!
//! Each test has an account and machines of its own. They take root; without it a test is left out and says so.

mod ends;
mod instances;
mod volumes;

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_ec2::types::VolumeState;
use serde_json::json;

use crate::testbed::cloud::{Cloud, Network, Template};
use crate::testbed::hosts::Host;
use crate::testbed::machines::Machines;
use crate::testbed::scratch::Scratch;
use crate::testbed::wait::until;

const SOON: Duration = Duration::from_secs(30);
const KEY: &str = "bed";
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// An account with a network of three zones, and the machines that follow it.
struct Lab {
    // Ends before what it follows does.
    machines: Machines,
    cloud: Cloud,
    network: Network,
    template: String,
    scratch: Scratch,
}

impl Lab {
    async fn open(name: &str) -> Result<Option<Self>> {
        Self::with(name, |_| {}).await
    }

    /// The same with another template.
    async fn with(name: &str, change: impl FnOnce(&mut Template)) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: machines of a cloud take root");
            return Ok(None);
        }
        let scratch = Scratch::new(name)?;
        let cloud = Cloud::start(scratch.path()).await?;
        let machines = Machines::follow(&cloud, scratch.path()).await?;
        let network = cloud.network(machines.subnet()?, 3).await?;
        cloud.key_pair(KEY, &machines.public_key()?).await?;
        let mut template = Template::new("machines", KEY);
        change(&mut template);
        let template = cloud.template(&template, &network).await?;
        Ok(Some(Self { machines, cloud, network, template, scratch }))
    }

    /// Starts an instance in a zone.
    async fn launch(&self, zone: usize) -> Result<String> {
        self.cloud.launch(&self.template, &self.network.subnets[zone].id).await
    }

    /// Waits until an instance runs, for its cloud too.
    async fn running(&self, id: &str) -> Result<Arc<Host>> {
        self.until_state(id, "running").await?;
        self.machines.running(id).await
    }

    /// An instance in the first zone, running.
    async fn boot(&self) -> Result<(String, Arc<Host>)> {
        let id = self.launch(0).await?;
        let host = self.running(&id).await?;
        Ok((id, host))
    }

    async fn until_state(&self, id: &str, state: &str) -> Result<()> {
        until(&format!("{id} is {state}"), SOON, async || {
            Ok((self.cloud.instance(id).await?.state == state).then_some(()))
        })
        .await
    }

    /// Waits until the machines follow a group to so many members in service, and gives them.
    async fn members(&self, group: &str, count: usize) -> Result<Vec<(String, Arc<Host>)>> {
        let ids = until(&format!("{group} has {count} members"), SOON, async || {
            let members = self.cloud.members(group).await?;
            let is_done = members.len() == count && members.iter().all(|(_, state)| state == "InService");
            Ok(is_done.then_some(members))
        })
        .await?;
        let mut hosts = Vec::new();
        for (id, _) in ids {
            let host = self.running(&id).await?;
            hosts.push((id, host));
        }
        Ok(hosts)
    }

    /// Stops an instance, to its end.
    async fn stop(&self, id: &str, hibernate: bool) -> Result<()> {
        self.cloud.ec2().stop_instances().instance_ids(id).hibernate(hibernate).send().await?;
        self.until_state(id, "stopped").await
    }

    /// Starts it again, to the end.
    async fn start(&self, id: &str) -> Result<Arc<Host>> {
        self.cloud.ec2().start_instances().instance_ids(id).send().await?;
        self.running(id).await
    }

    async fn terminate(&self, id: &str) -> Result<()> {
        self.cloud.ec2().terminate_instances().instance_ids(id).send().await?;
        self.machines.gone(id).await
    }

    /// A volume in a zone, available; of 2 GiB and blank, or of a snapshot.
    async fn volume(&self, zone: usize, snapshot: Option<&str>) -> Result<String> {
        let zone = &self.network.subnets[zone].zone;
        let create = self.cloud.ec2().create_volume().availability_zone(zone);
        let create = create.set_size(snapshot.is_none().then_some(2));
        let made = create.set_snapshot_id(snapshot.map(str::to_owned)).send().await?;
        let id = made.volume_id.context("no id")?;
        self.until_free(&id).await?;
        Ok(id)
    }

    /// Waits until a volume is on no instance.
    async fn until_free(&self, volume: &str) -> Result<()> {
        until(&format!("{volume} is free"), SOON, async || {
            let found = self.cloud.ec2().describe_volumes().volume_ids(volume).send().await?;
            let state = found.volumes().first().and_then(|one| one.state());
            Ok((state == Some(&VolumeState::Available)).then_some(()))
        })
        .await
    }

    /// Puts a volume on an instance, to the end.
    async fn attach(&self, volume: &str, instance: &str, device: &str) -> Result<()> {
        let attach = self.cloud.ec2().attach_volume().volume_id(volume).instance_id(instance);
        attach.device(device).send().await?;
        until(&format!("{volume} is attached"), SOON, async || {
            Ok((self.attachment(volume, instance).await?.as_deref() == Some("attached")).then_some(()))
        })
        .await
    }

    async fn detach(&self, volume: &str, force: bool) -> Result<()> {
        self.cloud.ec2().detach_volume().volume_id(volume).force(force).send().await?;
        Ok(())
    }

    async fn attachment(&self, volume: &str, instance: &str) -> Result<Option<String>> {
        let volumes = self.cloud.instance(instance).await?.volumes;
        Ok(volumes.into_iter().find(|one| one.id == volume).map(|one| one.state))
    }

    /// A snapshot of a volume, completed.
    async fn snapshot(&self, volume: &str) -> Result<String> {
        let made = self.cloud.ec2().create_snapshot().volume_id(volume).send().await?;
        let id = made.snapshot_id.context("no id")?;
        until(&format!("{id} is complete"), SOON, async || {
            let snapshots = self.cloud.state().await?.snapshots;
            Ok(snapshots.iter().any(|one| one.id == id && one.state == "completed").then_some(()))
        })
        .await?;
        Ok(id)
    }

    async fn root_of(&self, instance: &str) -> Result<String> {
        self.cloud.instance(instance).await?.root_volume.context("no root volume")
    }

    /// Loop devices of files of this lab.
    fn devices(&self) -> Result<Vec<std::path::PathBuf>> {
        crate::testbed::machines::loops::devices_below(self.scratch.path())
    }

    /// Addresses come back as soon as they are free.
    async fn reuse_addresses(&self) -> Result<()> {
        self.cloud.config(json!({ "reuse_addresses": true })).await
    }
}

async fn said(host: &Host, command: &str) -> Result<String> {
    text(host.ssh(command).await?)
}

fn text(output: Output) -> Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
