//! Changes of groups and their members: the calls of Auto Scaling.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_autoscaling::types::builders::TagBuilder;
use aws_sdk_autoscaling::types::{RetryStrategy, Tag};

use super::AwsCloud;
use super::action::Action;
use super::change::{in_batches, unless_gone};
use super::error;
use crate::provider::{Changed, CloudError, ErrorClass, Lifecycle};

/// Instances that Auto Scaling takes in one call.
const MOST_INSTANCES: usize = 50;

/// A launch answers when the instances are there.
const LAUNCH: Duration = Duration::from_secs(60);

impl AwsCloud {
    pub(super) async fn set_desired(&self, attempt: &str, group: &str, to: u32) -> Result<(), CloudError> {
        let call = self.groups.set_desired_capacity().auto_scaling_group_name(group);
        let call = call
            .desired_capacity(number(attempt, "capacity", to)?)
            .honor_cooldown(false)
            .customize()
            // The number was right when it was sent. A second try after a lost answer would undo what came in between:
            // whether it is still right is decided by a new look.
            .config_override(
                aws_sdk_autoscaling::config::Builder::new().retry_config(RetryConfig::disabled()),
            );
        self.call(Action::SetDesiredCapacity, attempt, call.send()).await.map(drop)
    }

    pub(super) async fn claim_group(
        &self,
        attempt: &str,
        group: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), CloudError> {
        let tags = tags.iter().map(|(key, value)| group_tag(group, key).value(value).build()).collect();
        let call = self.groups.create_or_update_tags().set_tags(Some(tags));
        self.call(Action::CreateOrUpdateTags, attempt, call.send()).await.map(drop)
    }

    pub(super) async fn leave_group(
        &self,
        attempt: &str,
        group: &str,
        keys: &[String],
    ) -> Result<(), CloudError> {
        let tags = keys.iter().map(|key| group_tag(group, key).build()).collect();
        let call = self.groups.delete_tags().set_tags(Some(tags));
        self.call(Action::DeleteGroupTags, attempt, call.send()).await.map(drop)
    }

    pub(super) async fn launch(
        &self,
        attempt: &str,
        group: &str,
        count: u32,
        zone: Option<&str>,
        token: &str,
    ) -> Result<Changed, CloudError> {
        let timeouts =
            TimeoutConfig::builder().operation_attempt_timeout(LAUNCH).operation_timeout(LAUNCH * 2).build();
        let call = self
            .groups
            .launch_instances()
            .auto_scaling_group_name(group)
            .requested_capacity(number(attempt, "count", count)?)
            .set_availability_zones(zone.map(|zone| vec![zone.to_owned()]))
            .client_token(token)
            // What is not had now is asked for anew, by whoever still needs it then.
            .retry_strategy(RetryStrategy::None)
            .customize()
            .config_override(aws_sdk_autoscaling::config::Builder::new().timeout_config(timeouts));
        let answer = self.call(Action::LaunchInstances, attempt, call.send()).await?;
        let launched: Vec<String> =
            answer.instances().iter().flat_map(|some| some.instance_ids()).cloned().collect();
        if !launched.is_empty() {
            return Ok(Changed::Launched(launched));
        }
        let failed = answer.errors().first();
        let code = failed.and_then(|failed| failed.error_code()).unwrap_or("NothingLaunched");
        let message = failed.and_then(|failed| failed.error_message()).unwrap_or("nothing was launched");
        Err(CloudError {
            class: match failed {
                Some(_) => error::classify(code, message, None),
                None => ErrorClass::Retry,
            },
            attempt: attempt.to_owned(),
            code: code.to_owned(),
            message: error::shorten(message),
        })
    }

    /// A member that is leaving refuses to be passed by; all others are.
    pub(super) async fn protect(
        &self,
        attempt: &str,
        group: &str,
        instances: &[String],
        on: bool,
    ) -> Result<(), CloudError> {
        in_batches(instances, MOST_INSTANCES, async |batch| {
            let call = self.groups.set_instance_protection().auto_scaling_group_name(group);
            let call = call.set_instance_ids(Some(batch.to_vec())).protected_from_scale_in(on);
            let outcome = self.call(Action::SetInstanceProtection, attempt, call.send()).await.map(drop);
            // What is no member is protected by nothing; but a batch has others in it.
            if on || batch.len() > 1 { outcome } else { unless_gone(outcome) }
        })
        .await
    }

    pub(super) async fn terminate_member(&self, attempt: &str, instance: &str) -> Result<(), CloudError> {
        let call = self.groups.terminate_instance_in_auto_scaling_group();
        let call = call.instance_id(instance).should_decrement_desired_capacity(true);
        self.call(Action::TerminateInstanceInAutoScalingGroup, attempt, call.send()).await.map(drop)
    }

    pub(super) async fn detach(
        &self,
        attempt: &str,
        group: &str,
        instance: &str,
        shrinks: bool,
    ) -> Result<(), CloudError> {
        let call = self.groups.detach_instances().auto_scaling_group_name(group);
        let call = call.instance_ids(instance).should_decrement_desired_capacity(shrinks);
        let refused = match self.call(Action::DetachInstances, attempt, call.send()).await {
            Ok(_) => return Ok(()),
            // That a group is not there is another matter than that it lacks this member.
            Err(error) if error.class == ErrorClass::Gone && error.message.contains(instance) => {
                return Ok(());
            }
            Err(error) if error.class != ErrorClass::Refused => return Err(error),
            Err(error) => error,
        };
        // It may be refused because it is on its way out already: then the group shows it.
        let (_, members) = self.groups(&BTreeSet::from([group.to_owned()])).await?;
        match members.get(instance).map(|member| &member.lifecycle) {
            None | Some(Lifecycle::Detaching | Lifecycle::Gone) => Ok(()),
            Some(
                Lifecycle::Launching
                | Lifecycle::InService
                | Lifecycle::Terminating
                | Lifecycle::TerminatingWait
                | Lifecycle::Retained
                | Lifecycle::Standby
                | Lifecycle::Warmed
                | Lifecycle::WarmedTerminatingWait,
            ) => Err(refused),
        }
    }

    pub(super) async fn heartbeat(
        &self,
        attempt: &str,
        group: &str,
        hook: &str,
        instance: &str,
    ) -> Result<(), CloudError> {
        let call = self.groups.record_lifecycle_action_heartbeat().auto_scaling_group_name(group);
        let call = call.lifecycle_hook_name(hook).instance_id(instance);
        self.call(Action::RecordLifecycleActionHeartbeat, attempt, call.send()).await.map(drop)
    }

    pub(super) async fn complete(
        &self,
        attempt: &str,
        group: &str,
        hook: &str,
        instance: &str,
        abandon: bool,
    ) -> Result<(), CloudError> {
        let call = self.groups.complete_lifecycle_action().auto_scaling_group_name(group);
        let call = call.lifecycle_hook_name(hook).instance_id(instance);
        let call = call.lifecycle_action_result(if abandon { "ABANDON" } else { "CONTINUE" });
        self.call(Action::CompleteLifecycleAction, attempt, call.send()).await.map(drop)
    }
}

/// A number as AWS takes it.
pub(super) fn number(attempt: &str, what: &str, value: u32) -> Result<i32, CloudError> {
    i32::try_from(value).map_err(|_| CloudError {
        class: ErrorClass::Invalid,
        attempt: attempt.to_owned(),
        code: "InvalidNumber".to_owned(),
        message: format!("{what} {value} is more than AWS can count"),
    })
}

/// A tag of the group alone: what it launches is tagged by itself.
fn group_tag(group: &str, key: &str) -> TagBuilder {
    let tag = Tag::builder().resource_type("auto-scaling-group").resource_id(group);
    tag.propagate_at_launch(false).key(key)
}
