//! The edge to EC2 and Auto Scaling, against the cloud stand-in: each change and its second time, what calls that go
//! wrong become, and what a look shows. Each test has an account of its own.

mod faults;
mod instances;
mod looks;
mod members;
mod storage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse::provider::aws::limit::Limits;
use dormouse::provider::aws::{AwsCloud, AwsSettings, Credentials};
use dormouse::provider::{
    Change, Changed, Cloud as _, CloudError, ErrorClass, Ids, Instance, InstanceState, Lifecycle,
    Observation, Volume, Wanted, tags,
};
use dormouse::telemetry::Metrics;
use secrecy::SecretString;

use crate::testbed::cloud::{Call, Cloud, Group, Network, Template};
use crate::testbed::scratch::Scratch;
use crate::testbed::wait::until;

const SOON: Duration = Duration::from_secs(60);
const CLUSTER: &str = "a-cluster";
const GROUP: &str = "runners";
const HOOK: &str = "wait";
const NOWHERE: &str = "i-0123456789abcdef0";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL0l4cPj2vY0XkLTFvEcPhbyWTnDDBh2hJtY8ARAFdqJ lab@example";

/// An account with a network of two zones and a template whose instances carry the cluster's tag; and our edge to it.
struct Lab {
    cloud: Cloud,
    aws: AwsCloud,
    metrics: Metrics,
    network: Network,
    template: String,
    _scratch: Scratch,
}

impl Lab {
    async fn new(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let cloud = Cloud::start(scratch.path()).await?;
        let network = cloud.network(210, 2).await?;
        cloud.key_pair("lab", KEY).await?;
        let mut template = Template::new("lab", "lab");
        template.tags.push((tags::CLUSTER.to_owned(), CLUSTER.to_owned()));
        let template = cloud.template(&template, &network).await?;
        let metrics = Metrics::new();
        let aws = AwsCloud::new(settings(cloud.endpoint()), metrics.clone()).await?;
        Ok(Self { cloud, aws, metrics, network, template, _scratch: scratch })
    }

    /// The same with a group of so many members, one zone, a terminate hook and members that protection has to be
    /// given to.
    async fn with_group(name: &str, desired: i32) -> Result<Self> {
        Self::with_group_like(name, desired, |_| {}).await
    }

    async fn with_group_like(name: &str, desired: i32, change: impl FnOnce(&mut Group)) -> Result<Self> {
        let lab = Self::new(name).await?;
        let mut group = Group::new(GROUP, 6).with_terminate_hook(HOOK, 600);
        (group.desired, group.protected, group.zones) = (desired, false, 1);
        change(&mut group);
        lab.cloud.group(&group, &lab.template, &lab.network).await?;
        lab.until_members(Lifecycle::InService, usize::try_from(desired)?).await?;
        Ok(lab)
    }

    fn zone(&self) -> &str {
        &self.network.subnets[0].zone
    }

    async fn change(&self, change: &Change) -> Result<Changed, CloudError> {
        self.aws.change(change).await
    }

    /// A change that brings what it shall, and a second time the same.
    async fn twice(&self, change: &Change) -> Result<()> {
        for time in ["once", "twice"] {
            let changed = self.change(change).await.with_context(|| format!("{change:?} {time}"))?;
            ensure!(changed == Changed::Done, "{change:?} {time} brought {changed:?}");
        }
        Ok(())
    }

    /// How a change is refused.
    async fn refused(&self, change: &Change) -> Result<CloudError> {
        let changed = self.change(change).await;
        changed.err().with_context(|| format!("{change:?} was not refused"))
    }

    async fn look(&self) -> Result<Observation> {
        let groups = BTreeSet::from([GROUP.to_owned()]);
        Ok(self.aws.observe(&Wanted { cluster: CLUSTER.to_owned(), groups, ids: Ids::default() }).await?)
    }

    /// Instances that our edge shows as members in that state, when there are so many.
    async fn until_members(&self, lifecycle: Lifecycle, count: usize) -> Result<Vec<String>> {
        let mut last = BTreeMap::new();
        until(&format!("{count} members are {lifecycle:?}"), SOON, async || {
            last = self.look().await?.instances;
            let is_so =
                |one: &Instance| one.member.as_ref().is_some_and(|member| member.lifecycle == lifecycle);
            let members: Vec<String> =
                last.values().filter(|one| is_so(one)).map(|one| one.id.clone()).collect();
            Ok((members.len() == count).then_some(members))
        })
        .await
        .with_context(|| format!("there are {last:#?}"))
    }

    async fn until_instance(&self, id: &str, what: &str, is: impl Fn(&Instance) -> bool) -> Result<Instance> {
        until(&format!("{id} {what}"), SOON, async || {
            Ok(self.look().await?.instances.remove(id).filter(|instance| is(instance)))
        })
        .await
    }

    async fn until_state(&self, id: &str, state: InstanceState) -> Result<Instance> {
        self.until_instance(id, &format!("is {state:?}"), |instance| instance.state == state).await
    }

    async fn until_volume(&self, id: &str, what: &str, is: impl Fn(&Volume) -> bool) -> Result<Volume> {
        until(&format!("{id} {what}"), SOON, async || {
            Ok(self.look().await?.volumes.remove(id).filter(|volume| is(volume)))
        })
        .await
    }

    /// An instance of no group that runs.
    async fn running(&self) -> Result<String> {
        let id = self.cloud.launch(&self.template, &self.network.subnets[0].id).await?;
        self.until_state(&id, InstanceState::Running).await?;
        Ok(id)
    }

    /// The calls of an action since a number.
    async fn calls(&self, since: u64, action: &str) -> Result<Vec<Call>> {
        let calls = self.cloud.calls(since).await?;
        Ok(calls.into_iter().filter(|call| call.action == action && call.service != "cloud").collect())
    }

    fn metric(&self, line: &str) -> Result<bool> {
        Ok(self.metrics.text()?.lines().any(|found| found == line))
    }
}

fn settings(endpoint: &str) -> AwsSettings {
    AwsSettings {
        region: crate::testbed::cloud::REGION.to_owned(),
        endpoint_url: Some(endpoint.to_owned()),
        credentials: Credentials::Keys {
            access_key_id: "AKIADORMOUSELAB00001".to_owned(),
            secret_access_key: SecretString::from("a-secret-that-is-told-nobody"),
            session_token: None,
        },
        limits: Limits::default(),
    }
}

fn owned(text: &str) -> String {
    text.to_owned()
}

fn tagged(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (owned(key), owned(value))).collect()
}

/// The cluster's tag.
fn ours() -> BTreeMap<String, String> {
    tagged(&[(tags::CLUSTER, CLUSTER)])
}
