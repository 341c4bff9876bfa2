//! The cloud stand-in behaves as EC2 and Auto Scaling do, where Dormouse depends on it.
//!
//! Each test has an account of its own. What it must show is a promise of the real services; the rows of
//! `docs/testbed-aws.md` say which.

mod account;
mod groups;
mod hooks;
mod instances;
mod lenient;
mod replacement;
mod volumes;
mod warm;
mod whole;

use std::time::Duration;

use anyhow::{Result, ensure};
use aws_sdk_autoscaling::error::ProvideErrorMetadata;
use serde_json::json;

use crate::testbed::cloud::{Cloud, Group, Instance, Network, Template};
use crate::testbed::scratch::Scratch;
use crate::testbed::wait::until;

const SOON: Duration = Duration::from_secs(10);
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL0l4cPj2vY0XkLTFvEcPhbyWTnDDBh2hJtY8ARAFdqJ lab@example";

/// An account with a network of two zones, a key and a template.
struct Lab {
    cloud: Cloud,
    network: Network,
    template: String,
    _scratch: Scratch,
}

impl Lab {
    async fn new(name: &str) -> Result<Self> {
        Self::with(name, |_| {}).await
    }

    /// The same with another template.
    async fn with(name: &str, change: impl FnOnce(&mut Template)) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let cloud = Cloud::start(scratch.path()).await?;
        let network = cloud.network(200, 2).await?;
        cloud.key_pair("lab", KEY).await?;
        let mut template = Template::new("lab", "lab");
        change(&mut template);
        let template = cloud.template(&template, &network).await?;
        Ok(Self { cloud, network, template, _scratch: scratch })
    }

    fn subnet(&self) -> &str {
        &self.network.subnets[0].id
    }

    fn zone(&self) -> &str {
        &self.network.subnets[0].zone
    }

    /// An instance that runs.
    async fn running(&self) -> Result<String> {
        let id = self.cloud.launch(&self.template, self.subnet()).await?;
        self.until_state(&id, "running").await?;
        Ok(id)
    }

    async fn until_state(&self, id: &str, state: &str) -> Result<Instance> {
        until(&format!("{id} is {state}"), SOON, async || {
            let instance = self.cloud.instance(id).await?;
            Ok((instance.state == state).then_some(instance))
        })
        .await
    }

    async fn group(&self, group: &Group) -> Result<()> {
        self.cloud.group(group, &self.template, &self.network).await
    }

    /// The members, once there are `count` in that state.
    async fn until_members(&self, group: &str, state: &str, count: usize) -> Result<Vec<String>> {
        until(&format!("{group} has {count} members {state}"), SOON, async || {
            let members = self.cloud.members(group).await?;
            let fitting: Vec<_> =
                members.into_iter().filter(|(_, one)| one == state).map(|(id, _)| id).collect();
            Ok((fitting.len() == count).then_some(fitting))
        })
        .await
    }

    /// The state of a member; None if it is none.
    async fn lifecycle(&self, id: &str) -> Result<Option<String>> {
        Ok(self.cloud.instance(id).await?.lifecycle)
    }

    async fn until_lifecycle(&self, id: &str, state: Option<&str>) -> Result<()> {
        until(&format!("{id} is {state:?}"), SOON, async || {
            Ok((self.lifecycle(id).await?.as_deref() == state).then_some(()))
        })
        .await
    }

    /// Nothing that takes time is over before the test lets time pass, an hour at most.
    async fn slow(&self) -> Result<()> {
        self.cloud
            .config(json!({
                "pending_seconds": 600, "stopping_seconds": 600, "terminating_seconds": 600,
                "creating_seconds": 600, "attaching_seconds": 600, "detaching_seconds": 600,
                "snapshot_seconds": 600, "member_seconds": 600, "health_seconds": 600,
            }))
            .await
    }

    async fn pass(&self, seconds: f64) -> Result<()> {
        self.cloud.act(crate::testbed::cloud::Act::PassTime { seconds }).await.map(drop)
    }
}

/// The code of the error a call was refused with; `ok` if it was not.
fn code<T, E: ProvideErrorMetadata>(answer: Result<T, E>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.code().unwrap_or("no code").to_owned(),
    }
}

#[track_caller]
fn refused<T, E: ProvideErrorMetadata>(answer: Result<T, E>, with: &str) {
    assert_eq!(code(answer), with);
}

#[tokio::test]
async fn twenty_instances_are_launched_and_listed_in_no_long_time() -> Result<()> {
    let lab = Lab::new("cloud-speed").await?;
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        lab.cloud.launch(&lab.template, lab.subnet()).await?;
    }
    let launched = begun.elapsed();
    let begun = std::time::Instant::now();
    for _ in 0..10 {
        let found = lab.cloud.ec2().describe_instances().send().await?;
        ensure!(found.reservations().len() == 20);
    }
    // A second and less where nothing else runs; generous, for a machine that does other things too.
    ensure!(launched < Duration::from_secs(120), "20 launches took {launched:?}");
    ensure!(begun.elapsed() < Duration::from_secs(60), "10 listings took {:?}", begun.elapsed());
    Ok(())
}
