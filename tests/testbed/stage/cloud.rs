//! A stage whose pool is an Auto Scaling group: a cloud, machines that follow it, a group with a terminate hook.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::cloud::{Cloud, Group, Network, Template};
use super::super::hosts::Host;
use super::super::machines::Machines;
use super::super::operator::Operator;
use super::super::wait::until;
use super::{POOL, SOON, Stage};

/// The group every such stage has.
pub const GROUP: &str = "ci-linux";
/// Its terminate hook.
pub const HOOK: &str = "drain";
const KEY: &str = "bed";

/// How the cloud of a stage differs from the usual.
#[derive(Clone)]
pub struct CloudSetting {
    /// Availability zones.
    pub zones: u32,
    /// Changes of the launch template.
    pub template: fn(&mut Template),
    /// Changes of the group.
    pub group: fn(&mut Group),
    /// Settings of the stand-in, made before the group.
    pub config: Value,
}

impl Default for CloudSetting {
    fn default() -> Self {
        Self { zones: 2, template: |_| {}, group: |_| {}, config: json!({}) }
    }
}

/// The cloud of a stage.
pub struct CloudStage {
    // Ends before what it follows does.
    /// Machines that follow it.
    pub machines: Machines,
    /// The stand-in for EC2 and Auto Scaling.
    pub cloud: Cloud,
    /// Where its instances are.
    pub network: Network,
    /// What its group launches.
    pub template: String,
}

impl CloudStage {
    /// Everything but the pool.
    pub async fn open(dir: &Path, setting: &CloudSetting) -> Result<Self> {
        let cloud = Cloud::start(dir).await?;
        let machines = Machines::follow(&cloud, dir).await?;
        let network = cloud.network(machines.subnet()?, setting.zones).await?;
        cloud.key_pair(KEY, &machines.public_key()?).await?;
        if setting.config.as_object().is_some_and(|config| !config.is_empty()) {
            cloud.config(setting.config.clone()).await?;
        }
        let mut template = Template::new("machines", KEY);
        (setting.template)(&mut template);
        let template = cloud.template(&template, &network).await?;
        let mut group = Group::new(GROUP, 6).with_terminate_hook(HOOK, 60);
        (setting.group)(&mut group);
        cloud.group(&group, &template, &network).await?;
        Ok(Self { machines, cloud, network, template })
    }

    /// What the pool's provider is.
    pub fn provider(&self) -> Value {
        json!({ "aws": {
            "region": self.cloud.region(),
            "autoScalingGroup": GROUP,
            "endpointUrl": self.cloud.endpoint(),
        } })
    }

    /// What an operator must know to use the group.
    pub fn equip(&self, operator: &Operator, folder: &Path, namespace: &str) -> Result<()> {
        let groups = folder.join("groups.yaml");
        fs::write(&groups, format!("namespaces:\n  {namespace}: [\"ci-*\"]\n"))?;
        operator.set_variable("DORMOUSE_AWS_GROUPS", Some(&groups.display().to_string()));
        for (name, value) in self.cloud.environment() {
            if name != "AWS_ENDPOINT_URL" {
                operator.set_variable(&name, Some(&value));
            }
        }
        Ok(())
    }

    /// Members of the group with where they stand.
    pub async fn members(&self) -> Result<Vec<(String, String)>> {
        self.cloud.members(GROUP).await
    }

    /// Waits until the group has so many members and all are in service.
    pub async fn until_members(&self, count: usize) -> Result<Vec<String>> {
        until(&format!("the group has {count} members in service"), SOON, async || {
            let members = self.members().await?;
            let is_so = members.len() == count && members.iter().all(|(_, state)| state == "InService");
            Ok(is_so.then(|| members.into_iter().map(|(id, _)| id).collect()))
        })
        .await
    }

    /// Waits until the cloud says of an instance that it is in a state.
    pub async fn until_state(&self, id: &str, state: &str) -> Result<()> {
        until(&format!("{id} is {state}"), SOON, async || {
            let found = self.cloud.state().await?.instances.into_iter().find(|known| known.id == id);
            Ok(found.is_some_and(|known| known.state == state).then_some(()))
        })
        .await
    }

    /// Fails unless these calls were carried out, and the first of each kind in this order: an action, and words among its
    /// parameters.
    pub async fn called_in_order(&self, wanted: &[(&str, &[&str])]) -> Result<()> {
        let calls = self.cloud.calls(0).await?;
        let mut last = None;
        for (action, words) in wanted {
            let place = calls.iter().position(|call| call.did(action, words));
            let changes: Vec<_> = calls.iter().filter(|call| !call.action.starts_with("Describe")).collect();
            ensure!(place.is_some(), "{action} of {words:?} was not carried out: {changes:#?}");
            ensure!(
                place > last,
                "{action} of {words:?} came too early, {wanted:?} was wanted: {changes:#?}"
            );
            last = place;
        }
        Ok(())
    }

    /// The machine of an instance.
    pub fn machine(&self, id: &str) -> Result<Arc<Host>> {
        self.machines.machine(id)
    }
}

impl Stage {
    /// Asks for an environment's tier.
    pub async fn ask_tier(&self, key: &str, tier: &str) -> Result<()> {
        self.wish_tier(key, &json!({ "tier": tier, "until": "2099-01-01T00:00:00Z" })).await
    }

    /// Asks for none any more.
    pub async fn forget_asked_tier(&self, key: &str) -> Result<()> {
        self.wish_tier(key, &Value::Null).await
    }

    async fn wish_tier(&self, key: &str, wish: &Value) -> Result<()> {
        let change = json!({ "spec": { "desiredTier": wish } }).to_string();
        self.kubectl(&["patch", "senv", &object_of(key)?, "--type=merge", "-p", &change]).await?;
        Ok(())
    }

    /// Lets an environment's time be over in a second or two.
    pub async fn expire(&self, key: &str) -> Result<()> {
        let soon = Timestamp::now() + SignedDuration::from_secs(2);
        let change = json!({ "spec": { "expiresAt": soon.strftime("%FT%TZ").to_string() } }).to_string();
        self.kubectl(&["patch", "senv", &object_of(key)?, "--type=merge", "-p", &change]).await?;
        Ok(())
    }

    /// Waits until an environment is at a tier and rests there.
    pub async fn until_tier(&self, key: &str, tier: &str) -> Result<Value> {
        self.until_object(
            "suspendedenvironment",
            &object_of(key)?,
            &format!("it is at tier {tier}"),
            |senv| {
                senv["status"]["tier"] == tier
                    && senv["status"]["phase"] == "Suspended"
                    && senv["status"]["moving"].is_null()
            },
        )
        .await
    }

    /// Waits until the cloud was looked at so many times more: once a second, or more often.
    pub async fn until_looked_at(&self, times: usize) -> Result<()> {
        let cloud = &self.cloud()?.cloud;
        let since = cloud.calls_so_far().await?;
        until(&format!("{times} looks at the cloud"), SOON, async || {
            let calls = cloud.calls(since).await?;
            let looks = calls.iter().filter(|call| call.action == "DescribeAutoScalingGroups").count();
            Ok((looks >= times).then_some(()))
        })
        .await
    }

    /// The cloud of a stage that was set with one.
    pub fn cloud(&self) -> Result<&CloudStage> {
        self.cloud.as_ref().context("the stage was set without a cloud")
    }
}

/// The name of the object a key stands for.
fn object_of(key: &str) -> Result<String> {
    let id = key.rsplit_once('=').context("the key has no environment id")?.1;
    Ok(format!("{POOL}-{id}"))
}
