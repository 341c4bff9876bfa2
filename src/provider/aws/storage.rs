//! Changes of volumes and snapshots: calls of EC2.

use std::collections::BTreeMap;

use aws_config::retry::RetryConfig;
use aws_sdk_ec2::types::{Filter, ResourceType, TagSpecification, VolumeType};

use super::AwsCloud;
use super::action::Action;
use super::instances::given;
use super::members::number;
use super::shape;
use crate::provider::{Changed, CloudError, ErrorClass, Volume, VolumeOrder, VolumeState};

impl AwsCloud {
    pub(super) async fn create_volume(
        &self,
        attempt: &str,
        order: &VolumeOrder,
    ) -> Result<Changed, CloudError> {
        let call = self
            .ec2
            .create_volume()
            .availability_zone(&order.zone)
            .size(number(attempt, "size", order.size_gib)?)
            .volume_type(VolumeType::from(order.type_.as_str()))
            // Only ever asked for: to decline it is an error where the snapshot or the account encrypts anyway.
            .set_encrypted(order.encrypted.then_some(true))
            .set_kms_key_id(order.kms_key.clone())
            .set_snapshot_id(order.snapshot.clone())
            .set_tag_specifications(specification(ResourceType::Volume, &order.tags))
            .client_token(&order.token);
        let made = self.call(Action::CreateVolume, attempt, call.send()).await?;
        made_of(attempt, made.volume_id())
    }

    pub(super) async fn attach(
        &self,
        attempt: &str,
        volume: &str,
        instance: &str,
        device: &str,
    ) -> Result<(), CloudError> {
        let call = self.ec2.attach_volume().volume_id(volume).instance_id(instance).device(device);
        let outcome = self.call(Action::AttachVolume, attempt, call.send()).await.map(drop);
        self.unless_so(attempt, volume, outcome, |seen| {
            let attachment = seen.attachment.as_ref();
            attachment.is_some_and(|at| at.instance == instance && at.device == device && !at.is_detaching)
        })
        .await
    }

    pub(super) async fn detach_volume(
        &self,
        attempt: &str,
        volume: &str,
        instance: &str,
        force: bool,
    ) -> Result<(), CloudError> {
        let call = self.ec2.detach_volume().volume_id(volume).instance_id(instance);
        let call = call.set_force(force.then_some(true));
        let outcome = match self.call(Action::DetachVolume, attempt, call.send()).await {
            Err(error) if error.code == "InvalidAttachment.NotFound" => Ok(()),
            outcome => outcome.map(drop),
        };
        self.unless_so(attempt, volume, outcome, |seen| {
            // Elsewhere is not here; on its way off is as far as a call brings it.
            seen.attachment.as_ref().is_none_or(|at| at.instance != instance || (at.is_detaching && !force))
        })
        .await
    }

    pub(super) async fn delete_volume(&self, attempt: &str, volume: &str) -> Result<(), CloudError> {
        let call = self.ec2.delete_volume().volume_id(volume);
        let outcome = self.call(Action::DeleteVolume, attempt, call.send()).await.map(drop);
        self.unless_so(attempt, volume, outcome, |seen| seen.state == VolumeState::Deleting).await
    }

    pub(super) async fn create_snapshot(
        &self,
        attempt: &str,
        volume: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<Changed, CloudError> {
        let call = self
            .ec2
            .create_snapshot()
            .volume_id(volume)
            .set_tag_specifications(specification(ResourceType::Snapshot, tags))
            .customize()
            // There is no token that would make a second try the same snapshot.
            .config_override(aws_sdk_ec2::config::Builder::new().retry_config(RetryConfig::disabled()));
        let made = self.call(Action::CreateSnapshot, attempt, call.send()).await?;
        made_of(attempt, made.snapshot_id())
    }

    /// A second snapshot of the same content, with tags of its own; answers its id. The operator never asks for one: a
    /// person does, who promotes a baseline.
    ///
    /// # Errors
    /// When it is refused or cannot be asked for.
    pub async fn copy_snapshot(
        &self,
        snapshot: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, CloudError> {
        let attempt = &format!("copy snapshot {snapshot}");
        let region = self.ec2.config().region().map(ToString::to_string).unwrap_or_default();
        let call = self
            .ec2
            .copy_snapshot()
            .source_region(region)
            .source_snapshot_id(snapshot)
            .set_tag_specifications(specification(ResourceType::Snapshot, tags))
            .customize()
            // As above: no token.
            .config_override(aws_sdk_ec2::config::Builder::new().retry_config(RetryConfig::disabled()));
        let made = self.call(Action::CopySnapshot, attempt, call.send()).await?;
        made_id(attempt, made.snapshot_id())
    }

    pub(super) async fn delete_snapshot(&self, attempt: &str, snapshot: &str) -> Result<(), CloudError> {
        let call = self.ec2.delete_snapshot().snapshot_id(snapshot);
        self.call(Action::DeleteSnapshot, attempt, call.send()).await.map(drop)
    }

    /// A refusal may only mean that it is so already: then the volume shows it.
    async fn unless_so(
        &self,
        attempt: &str,
        volume: &str,
        outcome: Result<(), CloudError>,
        is_so: impl FnOnce(&Volume) -> bool,
    ) -> Result<(), CloudError> {
        let Err(refused) = outcome else { return Ok(()) };
        if refused.class != ErrorClass::Refused {
            return Err(refused);
        }
        let filter = Filter::builder().name("volume-id").values(volume).build();
        let call = self.ec2.describe_volumes().filters(filter);
        let seen = self.call(Action::DescribeVolumes, attempt, call.send()).await?;
        let seen = seen.volumes().iter().find_map(shape::volume);
        if seen.is_some_and(|(_, seen)| is_so(&seen)) { Ok(()) } else { Err(refused) }
    }
}

fn specification(of: ResourceType, tags: &BTreeMap<String, String>) -> Option<Vec<TagSpecification>> {
    let tags = (!tags.is_empty()).then(|| given(tags))?;
    Some(vec![TagSpecification::builder().resource_type(of).set_tags(Some(tags)).build()])
}

fn made_of(attempt: &str, id: Option<&str>) -> Result<Changed, CloudError> {
    made_id(attempt, id).map(Changed::Made)
}

fn made_id(attempt: &str, id: Option<&str>) -> Result<String, CloudError> {
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| CloudError {
        class: ErrorClass::Retry,
        attempt: attempt.to_owned(),
        code: "UnreadableAnswer".to_owned(),
        message: "the answer names nothing that was made".to_owned(),
    })?;
    Ok(id.to_owned())
}
