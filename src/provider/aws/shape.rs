//! What AWS shows, in our words. Pure.
//!
//! A word that is not known here is read as the most careful one: nothing is placed on, taken from or deleted for a
//! state that a later AWS may bring.

use std::collections::BTreeMap;

use aws_sdk_autoscaling::types as scaling;
use aws_sdk_ec2::types as ec2;
use jiff::Timestamp;

use crate::provider::{
    Attachment, Group, Hook, Instance, InstanceState, Lifecycle, Member, Snapshot, SnapshotState, Volume,
    VolumeState, WarmPool,
};

/// A group as the list of groups shows it; what other calls show of it is left empty.
pub fn group(seen: &scaling::AutoScalingGroup) -> Option<(String, Group)> {
    let name = seen.auto_scaling_group_name()?.to_owned();
    let triggers = seen.instance_lifecycle_policy().and_then(|policy| policy.retention_triggers());
    let abandoned = triggers.and_then(|triggers| triggers.terminate_hook_abandon());
    let tags = seen.tags().iter().filter_map(|tag| pair(tag.key(), tag.value()));
    let suspended = seen.suspended_processes().iter().filter_map(|process| process.process_name());
    let group = Group {
        name: name.clone(),
        min: count(seen.min_size()),
        max: count(seen.max_size()),
        desired: count(seen.desired_capacity()),
        zones: seen.availability_zones().to_vec(),
        protects_new: seen.new_instances_protected_from_scale_in() == Some(true),
        retains_abandoned: abandoned == Some(&scaling::RetentionAction::Retain),
        hooks: Vec::new(),
        suspended: suspended.map(str::to_owned).collect(),
        scaling_policies: Vec::new(),
        max_instance_lifetime: seen.max_instance_lifetime().and_then(positive),
        rebalances_capacity: seen.capacity_rebalance() == Some(true),
        is_mixed: seen.mixed_instances_policy().is_some(),
        warm_pool: seen.warm_pool_configuration().map(warm_pool),
        is_refreshing: false,
        launch_failure: None,
        tags: tags.collect(),
    };
    Some((name, group))
}

fn warm_pool(seen: &scaling::WarmPoolConfiguration) -> WarmPool {
    WarmPool {
        // What AWS itself takes without one.
        state: seen.pool_state().map_or("Stopped", scaling::WarmPoolState::as_str).to_owned(),
        reuses: seen.instance_reuse_policy().and_then(|policy| policy.reuse_on_scale_in()) == Some(true),
    }
}

/// A member of a group, with its instance's id.
pub fn member(group: &str, seen: &scaling::Instance) -> Option<(String, Member)> {
    let member = Member {
        group: group.to_owned(),
        lifecycle: lifecycle(seen.lifecycle_state().map_or("", scaling::LifecycleState::as_str)),
        is_protected: seen.protected_from_scale_in() == Some(true),
        is_healthy: seen.health_status().is_none_or(|status| status.eq_ignore_ascii_case("healthy")),
    };
    Some((seen.instance_id()?.to_owned(), member))
}

/// Where a member stands. A word that is not known is a member set aside: it is kept, and gets no job.
fn lifecycle(name: &str) -> Lifecycle {
    match name {
        "Pending" | "Pending:Wait" | "Pending:Proceed" => Lifecycle::Launching,
        "InService" => Lifecycle::InService,
        "Terminating" | "Terminating:Proceed" | "Warmed:Terminating" | "Warmed:Terminating:Proceed" => {
            Lifecycle::Terminating
        }
        "Terminating:Wait" => Lifecycle::TerminatingWait,
        "Terminating:Retained" | "Warmed:Terminating:Retained" | "Warmed:Pending:Retained" => {
            Lifecycle::Retained
        }
        "Detaching" => Lifecycle::Detaching,
        "Warmed:Terminating:Wait" => Lifecycle::WarmedTerminatingWait,
        "Terminated" | "Detached" | "Warmed:Terminated" => Lifecycle::Gone,
        warmed if warmed.starts_with("Warmed:") => Lifecycle::Warmed,
        _ => Lifecycle::Standby,
    }
}

/// A lifecycle hook.
pub fn hook(seen: &scaling::LifecycleHook) -> Option<Hook> {
    Some(Hook {
        name: seen.lifecycle_hook_name()?.to_owned(),
        at_termination: seen.lifecycle_transition() == Some("autoscaling:EC2_INSTANCE_TERMINATING"),
        heartbeat_timeout: seen.heartbeat_timeout().and_then(positive).unwrap_or(0),
        global_timeout: seen.global_timeout().and_then(positive).unwrap_or(0),
        // The result that AWS takes where none was set.
        abandons: seen.default_result().is_none_or(|result| result == "ABANDON"),
    })
}

/// Whether an instance refresh may still take members.
pub fn is_under_way(seen: &scaling::InstanceRefresh) -> bool {
    match seen.status().map_or("", scaling::InstanceRefreshStatus::as_str) {
        "Successful" | "Failed" | "Cancelled" | "RollbackSuccessful" | "RollbackFailed" => false,
        "Pending" | "InProgress" | "Cancelling" | "RollbackInProgress" | "Baking" => true,
        _ => true,
    }
}

/// An instance, of which no group has said anything yet.
pub fn instance(seen: &ec2::Instance) -> Option<(String, Instance)> {
    let id = seen.instance_id()?.to_owned();
    let devices = seen.block_device_mappings().iter().filter_map(|mapping| {
        let volume = mapping.ebs()?.volume_id()?;
        Some((mapping.device_name()?.to_owned(), volume.to_owned()))
    });
    let state = seen.state().and_then(|state| state.name()).map_or("", ec2::InstanceStateName::as_str);
    let reason = seen.state_reason().and_then(|reason| reason.code());
    let instance = Instance {
        id: id.clone(),
        state: instance_state(state),
        state_reason: reason.and_then(filled),
        address: seen.private_ip_address().and_then(filled),
        public_address: seen.public_ip_address().and_then(filled),
        zone: seen
            .placement()
            .and_then(|placement| placement.availability_zone())
            .unwrap_or_default()
            .to_owned(),
        machine_type: seen.instance_type().map_or("", ec2::InstanceType::as_str).to_owned(),
        launched_at: seen.launch_time().and_then(time),
        is_spot: seen.instance_lifecycle() == Some(&ec2::InstanceLifecycleType::Spot),
        can_hibernate: seen.hibernation_options().and_then(|options| options.configured()) == Some(true),
        image: seen.image_id().unwrap_or_default().to_owned(),
        member: None,
        devices: devices.collect(),
        tags: tags(seen.tags()),
    };
    Some((id, instance))
}

/// What an instance is doing. A word that is not known is on its way to somewhere: nothing runs there, nothing is gone.
fn instance_state(name: &str) -> InstanceState {
    match name {
        "pending" => InstanceState::Pending,
        "running" => InstanceState::Running,
        "stopped" => InstanceState::Stopped,
        "shutting-down" => InstanceState::ShuttingDown,
        "terminated" => InstanceState::Terminated,
        "stopping" => InstanceState::Stopping,
        _ => InstanceState::Stopping,
    }
}

/// A volume.
pub fn volume(seen: &ec2::Volume) -> Option<(String, Volume)> {
    let id = seen.volume_id()?.to_owned();
    let volume = Volume {
        id: id.clone(),
        state: volume_state(seen.state().map_or("", ec2::VolumeState::as_str)),
        zone: seen.availability_zone().unwrap_or_default().to_owned(),
        size_gib: count(seen.size()),
        attachment: seen.attachments().iter().find_map(attachment),
        created_at: seen.create_time().and_then(time),
        snapshot: seen.snapshot_id().and_then(filled),
        tags: tags(seen.tags()),
    };
    Some((id, volume))
}

/// What a volume is doing. A word that is not known keeps it from being attached and from being deleted.
fn volume_state(name: &str) -> VolumeState {
    match name {
        "creating" => VolumeState::Creating,
        "available" => VolumeState::Available,
        "deleting" | "deleted" => VolumeState::Deleting,
        "error" => VolumeState::Failed,
        "in-use" => VolumeState::InUse,
        _ => VolumeState::InUse,
    }
}

fn attachment(seen: &ec2::VolumeAttachment) -> Option<Attachment> {
    let state = seen.state().map_or("", ec2::VolumeAttachmentState::as_str);
    if state == "detached" {
        return None;
    }
    Some(Attachment {
        instance: seen.instance_id()?.to_owned(),
        device: seen.device().unwrap_or_default().to_owned(),
        is_attached: state == "attached",
        // A busy one was asked to go and is still mounted.
        is_detaching: matches!(state, "detaching" | "busy"),
    })
}

/// A snapshot.
pub fn snapshot(seen: &ec2::Snapshot) -> Option<(String, Snapshot)> {
    let id = seen.snapshot_id()?.to_owned();
    let snapshot = Snapshot {
        id: id.clone(),
        state: snapshot_state(seen.state().map_or("", ec2::SnapshotState::as_str)),
        volume: seen.volume_id().unwrap_or_default().to_owned(),
        size_gib: count(seen.volume_size()),
        started_at: seen.start_time().and_then(time),
        tags: tags(seen.tags()),
    };
    Some((id, snapshot))
}

/// Whether a snapshot is whole. A word that is not known is no reason to delete what it was taken of.
fn snapshot_state(name: &str) -> SnapshotState {
    match name {
        "completed" => SnapshotState::Completed,
        "error" => SnapshotState::Failed,
        "pending" | "recoverable" | "recovering" => SnapshotState::Pending,
        _ => SnapshotState::Pending,
    }
}

fn tags(seen: &[ec2::Tag]) -> BTreeMap<String, String> {
    seen.iter().filter_map(|tag| pair(tag.key(), tag.value())).collect()
}

fn pair(key: Option<&str>, value: Option<&str>) -> Option<(String, String)> {
    Some((key?.to_owned(), value.unwrap_or_default().to_owned()))
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn count(seen: Option<i32>) -> u32 {
    seen.and_then(|seen| u32::try_from(seen).ok()).unwrap_or(0)
}

fn positive(seen: i32) -> Option<u64> {
    u64::try_from(seen).ok().filter(|seen| *seen > 0)
}

fn time(seen: &aws_smithy_types::DateTime) -> Option<Timestamp> {
    Timestamp::new(seen.secs(), i32::try_from(seen.subsec_nanos()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lifecycle_state_of_the_model_has_its_place() {
        for name in scaling::LifecycleState::values() {
            let expected = match *name {
                "Pending" | "Pending:Wait" | "Pending:Proceed" => Lifecycle::Launching,
                "InService" => Lifecycle::InService,
                "Terminating:Wait" => Lifecycle::TerminatingWait,
                "Detaching" => Lifecycle::Detaching,
                "Terminated" | "Detached" | "Warmed:Terminated" => Lifecycle::Gone,
                "Warmed:Terminating:Wait" => Lifecycle::WarmedTerminatingWait,
                name if name.ends_with(":Retained") => Lifecycle::Retained,
                name if name.contains("Terminating") => Lifecycle::Terminating,
                name if name.starts_with("Warmed:") => Lifecycle::Warmed,
                "Standby" | "EnteringStandby" | "Quarantined" | "RootVolumeReplaced" => Lifecycle::Standby,
                name if name.starts_with("ReplacingRootVolume") => Lifecycle::Standby,
                name => panic!("a new state: {name}"),
            };
            assert_eq!(lifecycle(name), expected, "{name}");
        }
        assert_eq!(lifecycle("Daydreaming"), Lifecycle::Standby);
        assert_eq!(lifecycle(""), Lifecycle::Standby);
    }

    #[test]
    fn an_unknown_word_neither_frees_nor_destroys() {
        assert!(!instance_state("petrified").is_gone());
        assert_eq!(volume_state("melting"), VolumeState::InUse);
        assert_eq!(snapshot_state("smudged"), SnapshotState::Pending);
        assert!(is_under_way(&scaling::InstanceRefresh::builder().status("Pondering".into()).build()));
    }

    #[test]
    fn every_state_of_the_models_is_known() {
        for name in ec2::InstanceStateName::values() {
            let known = instance_state(name);
            assert!(known != InstanceState::Stopping || *name == "stopping", "{name}");
        }
        for name in ec2::VolumeState::values() {
            assert!(volume_state(name) != VolumeState::InUse || *name == "in-use", "{name}");
        }
        for name in scaling::InstanceRefreshStatus::values() {
            let refresh = scaling::InstanceRefresh::builder().status((*name).into()).build();
            let is_over = name.ends_with("ful") || name.ends_with("Failed") || *name == "Cancelled";
            assert_eq!(is_under_way(&refresh), !is_over, "{name}");
        }
    }

    #[test]
    fn an_instance_is_read_whole() {
        let ebs = ec2::EbsInstanceBlockDevice::builder().volume_id("vol-1").build();
        let mapping = ec2::InstanceBlockDeviceMapping::builder().device_name("/dev/sda1").ebs(ebs).build();
        let state = ec2::InstanceState::builder().name(ec2::InstanceStateName::Stopped).build();
        let reason = ec2::StateReason::builder().code("Client.UserInitiatedHibernate").build();
        let seen = ec2::Instance::builder()
            .instance_id("i-1")
            .state(state)
            .state_reason(reason)
            .private_ip_address("127.77.1.4")
            .public_ip_address("")
            .placement(ec2::Placement::builder().availability_zone("eu-central-1a").build())
            .instance_type(ec2::InstanceType::M6iLarge)
            .instance_lifecycle(ec2::InstanceLifecycleType::Spot)
            .hibernation_options(ec2::HibernationOptions::builder().configured(true).build())
            .launch_time(aws_smithy_types::DateTime::from_secs(1_700_000_000))
            .block_device_mappings(mapping)
            .tags(ec2::Tag::builder().key("a").value("b").build())
            .build();
        let (id, read) = instance(&seen).unwrap();
        assert_eq!((id.as_str(), read.state), ("i-1", InstanceState::Stopped));
        assert_eq!(read.state_reason.as_deref(), Some("Client.UserInitiatedHibernate"));
        assert_eq!((read.address.as_deref(), read.public_address), (Some("127.77.1.4"), None));
        assert_eq!((read.zone.as_str(), read.machine_type.as_str()), ("eu-central-1a", "m6i.large"));
        assert!(read.is_spot && read.can_hibernate);
        assert_eq!(read.launched_at.map(Timestamp::as_second), Some(1_700_000_000));
        assert_eq!(read.devices.get("/dev/sda1").map(String::as_str), Some("vol-1"));
        assert_eq!(read.tags.get("a").map(String::as_str), Some("b"));
    }

    #[test]
    fn a_volume_on_its_way_off_is_neither_attached_nor_free() {
        let state = |state: &str| {
            let attachment = ec2::VolumeAttachment::builder().instance_id("i-1").device("/dev/sdf");
            let seen = ec2::Volume::builder().volume_id("vol-1").state(ec2::VolumeState::InUse);
            let (_, read) =
                volume(&seen.attachments(attachment.state(state.into()).build()).build()).unwrap();
            read.attachment.map(|at| (at.is_attached, at.is_detaching))
        };
        assert_eq!(state("attached"), Some((true, false)));
        assert_eq!(state("attaching"), Some((false, false)));
        assert_eq!(state("detaching"), Some((false, true)));
        assert_eq!(state("busy"), Some((false, true)));
        assert_eq!(state("detached"), None);
        assert_eq!(state("levitating"), Some((false, false)));
    }
}
