//! Changes of instances and of tags: calls of EC2, and the key for a minute.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{AttributeBooleanValue, Tag};

use super::AwsCloud;
use super::action::Action;
use super::change::{in_batches, unless_gone};
use crate::provider::{CloudError, ErrorClass};

/// Things that EC2 tags in one call.
const MOST_TAGGED: usize = 200;

/// What EC2 says of an instance that is protected from being stopped or terminated by a call.
const PROTECTED: &str = "OperationNotPermitted";

/// What a call shall not do to an instance.
#[derive(Clone, Copy)]
enum Guard {
    Termination,
    Stop,
}

impl AwsCloud {
    pub(super) async fn stop(
        &self,
        attempt: &str,
        instance: &str,
        hibernate: bool,
        force: bool,
    ) -> Result<(), CloudError> {
        let call = self.ec2.stop_instances().instance_ids(instance);
        let call = call.set_hibernate(hibernate.then_some(true)).set_force(force.then_some(true));
        self.call(Action::StopInstances, attempt, call.send()).await.map(drop)
    }

    pub(super) async fn start(&self, attempt: &str, instance: &str) -> Result<(), CloudError> {
        let call = self.ec2.start_instances().instance_ids(instance);
        self.call(Action::StartInstances, attempt, call.send()).await.map(drop)
    }

    /// What guards an instance is taken away first. A gone one has no guards to take, and may be terminated again.
    pub(super) async fn terminate(&self, attempt: &str, instance: &str) -> Result<(), CloudError> {
        match self.set_kept(attempt, instance, false).await {
            Err(error) if error.class != ErrorClass::Refused => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match self.terminate_unguarded(attempt, instance).await {
            // A guard against being stopped guards against this too. Hardly any instance has one: it is not asked for.
            Err(error) if error.code == PROTECTED => {
                self.guard(attempt, instance, Guard::Stop, false).await?;
                self.terminate_unguarded(attempt, instance).await
            }
            outcome => outcome,
        }
    }

    async fn terminate_unguarded(&self, attempt: &str, instance: &str) -> Result<(), CloudError> {
        let call = self.ec2.terminate_instances().instance_ids(instance);
        self.call(Action::TerminateInstances, attempt, call.send()).await.map(drop)
    }

    pub(super) async fn set_kept(&self, attempt: &str, instance: &str, on: bool) -> Result<(), CloudError> {
        self.guard(attempt, instance, Guard::Termination, on).await
    }

    async fn guard(&self, attempt: &str, instance: &str, guard: Guard, on: bool) -> Result<(), CloudError> {
        let value = AttributeBooleanValue::builder().value(on).build();
        let call = self.ec2.modify_instance_attribute().instance_id(instance);
        let call = match guard {
            Guard::Termination => call.disable_api_termination(value),
            Guard::Stop => call.disable_api_stop(value),
        };
        self.call(Action::ModifyInstanceAttribute, attempt, call.send()).await.map(drop)
    }

    pub(super) async fn tag(
        &self,
        attempt: &str,
        ids: &[String],
        tags: &BTreeMap<String, String>,
    ) -> Result<(), CloudError> {
        if tags.is_empty() {
            return Ok(());
        }
        in_batches(ids, MOST_TAGGED, async |batch| {
            let call = self.ec2.create_tags().set_resources(Some(batch.to_vec())).set_tags(Some(given(tags)));
            self.call(Action::CreateTags, attempt, call.send()).await.map(drop)
        })
        .await
    }

    pub(super) async fn untag(
        &self,
        attempt: &str,
        ids: &[String],
        keys: &[String],
    ) -> Result<(), CloudError> {
        // Without a key, EC2 would take every tag.
        if keys.is_empty() {
            return Ok(());
        }
        in_batches(ids, MOST_TAGGED, async |batch| {
            let tags = keys.iter().map(|key| Tag::builder().key(key).build()).collect();
            let call = self.ec2.delete_tags().set_resources(Some(batch.to_vec())).set_tags(Some(tags));
            let outcome = self.call(Action::DeleteTags, attempt, call.send()).await.map(drop);
            if batch.len() > 1 { outcome } else { unless_gone(outcome) }
        })
        .await
    }

    pub(super) async fn push_key(
        &self,
        attempt: &str,
        instance: &str,
        zone: &str,
        username: &str,
        key: &str,
    ) -> Result<(), CloudError> {
        let call = self.connect.send_ssh_public_key().instance_id(instance).availability_zone(zone);
        let call = call.instance_os_user(username).ssh_public_key(key);
        self.call(Action::SendSshPublicKey, attempt, call.send()).await.map(drop)
    }
}

/// Tags as EC2 takes them.
pub(super) fn given(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}
