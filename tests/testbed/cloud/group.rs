//! Auto Scaling groups.

use anyhow::{Context, Result};
use aws_sdk_autoscaling::types::{
    InstanceLifecyclePolicy, InstanceReusePolicy, LaunchTemplateSpecification, LifecycleHookSpecification,
    RetentionAction, RetentionTriggers, WarmPoolState,
};

use super::{Cloud, Network};

/// A group to be.
#[derive(Clone, Debug)]
pub struct Group {
    /// Of the group.
    pub name: String,
    /// The least number of members.
    pub min: i32,
    /// The greatest number of members.
    pub max: i32,
    /// The number of members to begin with.
    pub desired: i32,
    /// New members are protected from scale-in.
    pub protected: bool,
    /// Members whose terminate hook is abandoned stay, as `Terminating:Retained`.
    pub retain: bool,
    /// Waits on the way in and out.
    pub hooks: Vec<Hook>,
    /// Members started ahead.
    pub warm: Option<Warm>,
    /// In how many of the network's zones; 0: all.
    pub zones: usize,
}

/// A warm pool.
#[derive(Clone, Debug)]
pub struct Warm {
    /// The least number of warm members.
    pub min: i32,
    /// Members in service and warm ones are kept at this many together; None: at the group's greatest number.
    pub prepared: Option<i32>,
    /// How they rest.
    pub state: WarmPoolState,
    /// Members that are taken out of service return to it.
    pub reuse: bool,
}

/// A lifecycle hook.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Of the hook.
    pub name: String,
    /// Which members wait for it.
    pub way: Way,
    /// How long it waits for a heartbeat; below 30 needs `hook_minimum_seconds` set.
    pub timeout_seconds: i32,
    /// The result when none comes: CONTINUE or ABANDON.
    pub result: String,
}

/// Which way members go that wait for a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into service.
    In,
    /// Out of the group.
    Out,
}

impl Group {
    /// From zero to `max`, new members protected, as a pool needs it.
    pub fn new(name: &str, max: i32) -> Self {
        Self {
            name: name.to_owned(),
            min: 0,
            max,
            desired: 0,
            protected: true,
            retain: false,
            hooks: Vec::new(),
            warm: None,
            zones: 0,
        }
    }

    /// With a hook on the way out that ends in CONTINUE.
    #[must_use]
    pub fn with_terminate_hook(mut self, name: &str, timeout_seconds: i32) -> Self {
        let name = name.to_owned();
        self.hooks.push(Hook { name, way: Way::Out, timeout_seconds, result: "CONTINUE".to_owned() });
        self
    }

    /// Keeps members whose hook on the way out runs out: the policy, and the hooks' result that it acts on.
    #[must_use]
    pub fn retaining(mut self) -> Self {
        self.retain = true;
        for hook in self.hooks.iter_mut().filter(|hook| hook.way == Way::Out) {
            hook.result = "ABANDON".to_owned();
        }
        self
    }
}

impl Hook {
    fn spec(&self) -> LifecycleHookSpecification {
        let transition = match self.way {
            Way::In => "autoscaling:EC2_INSTANCE_LAUNCHING",
            Way::Out => "autoscaling:EC2_INSTANCE_TERMINATING",
        };
        LifecycleHookSpecification::builder()
            .lifecycle_hook_name(&self.name)
            .lifecycle_transition(transition)
            .heartbeat_timeout(self.timeout_seconds)
            .default_result(&self.result)
            .build()
    }
}

impl Cloud {
    /// Makes the group, of instances of a template, in a network.
    pub async fn group(&self, group: &Group, template: &str, network: &Network) -> Result<()> {
        if group.hooks.iter().any(|hook| hook.timeout_seconds < 30) {
            self.config(serde_json::json!({"hook_minimum_seconds": 0})).await?;
        }
        let zones = if group.zones == 0 { network.subnets.len() } else { group.zones };
        let subnets: Vec<&str> =
            network.subnets.iter().take(zones).map(|subnet| subnet.id.as_str()).collect();
        let action = if group.retain { RetentionAction::Retain } else { RetentionAction::Terminate };
        let policy = InstanceLifecyclePolicy::builder()
            .retention_triggers(RetentionTriggers::builder().terminate_hook_abandon(action).build())
            .build();
        let hooks: Vec<_> = group.hooks.iter().map(Hook::spec).collect();
        self.scaling
            .create_auto_scaling_group()
            .auto_scaling_group_name(&group.name)
            .min_size(group.min)
            .max_size(group.max)
            .desired_capacity(group.desired)
            .vpc_zone_identifier(subnets.join(","))
            .launch_template(LaunchTemplateSpecification::builder().launch_template_id(template).build())
            .new_instances_protected_from_scale_in(group.protected)
            .instance_lifecycle_policy(policy)
            .set_lifecycle_hook_specification_list((!hooks.is_empty()).then_some(hooks))
            .send()
            .await
            .with_context(|| format!("failed to make the group {}", group.name))?;
        if let Some(warm) = &group.warm {
            self.scaling
                .put_warm_pool()
                .auto_scaling_group_name(&group.name)
                .min_size(warm.min)
                .set_max_group_prepared_capacity(warm.prepared)
                .pool_state(warm.state.clone())
                .instance_reuse_policy(InstanceReusePolicy::builder().reuse_on_scale_in(warm.reuse).build())
                .send()
                .await
                .with_context(|| format!("failed to give the group {} a warm pool", group.name))?;
        }
        Ok(())
    }

    /// Its members and their lifecycle states, warm ones too, oldest first.
    pub async fn members(&self, group: &str) -> Result<Vec<(String, String)>> {
        let state = self.state().await?;
        let of_group = state.instances.into_iter().filter(|one| one.group.as_deref() == Some(group));
        Ok(of_group.filter_map(|one| Some((one.id, one.lifecycle?))).collect())
    }
}
