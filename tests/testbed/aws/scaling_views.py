"""What Auto Scaling's describing calls show of a group."""

from typing import Any

import backends
import warm
from clock import moment
from group import Group, Member

# Shown as they were given, without an effect here.
SHOWN = (
    "DefaultCooldown",
    "HealthCheckType",
    "HealthCheckGracePeriod",
    "CapacityRebalance",
    "MaxInstanceLifetime",
    "TerminationPolicies",
    "DefaultInstanceWarmup",
    "InstanceMaintenancePolicy",
    "DeletionProtection",
    "Context",
    "AvailabilityZoneDistribution",
    "DesiredCapacityType",
    "PlacementGroup",
    "MixedInstancesPolicy",
)


def group_view(group: Group) -> dict[str, Any]:
    given = group.given
    shown: dict[str, Any] = {name: given.get(name) for name in SHOWN}
    shown.update(
        {
            "AutoScalingGroupName": group.name,
            "AutoScalingGroupARN": f"arn:aws:autoscaling:{group.region}:123456789012:autoScalingGroup:"
            f"11111111-2222-3333-4444-555555555555:autoScalingGroupName/{group.name}",
            "MinSize": group.low,
            "MaxSize": group.high,
            "DesiredCapacity": group.desired,
            "DefaultCooldown": number(given.get("DefaultCooldown"), 300),
            "AvailabilityZones": group.zones(),
            "VPCZoneIdentifier": ",".join(group.subnets),
            "HealthCheckType": given.get("HealthCheckType") or "EC2",
            "HealthCheckGracePeriod": number(given.get("HealthCheckGracePeriod"), 0),
            "TerminationPolicies": given.get("TerminationPolicies") or ["Default"],
            "Instances": [
                member_view(group, member) for member in group.members.values() if not member.is_warm
            ],
            "CreatedTime": moment(group.created),
            "SuspendedProcesses": [
                {"ProcessName": name, "SuspensionReason": "User suspended"}
                for name in sorted(group.suspended)
            ],
            "NewInstancesProtectedFromScaleIn": group.protect_new,
            "InstanceLifecyclePolicy": {
                "RetentionTriggers": {"TerminateHookAbandon": "retain" if group.retain else "terminate"}
            },
            "Tags": [tag_view(group, key) for key in group.tags],
            "Status": "Delete in progress" if group.deleting else None,
        }
    )
    if not given.get("MixedInstancesPolicy"):
        shown["LaunchTemplate"] = template_view(group, str(group.template.get("Version") or "$Default"))
    if group.warm:
        shown["WarmPoolConfiguration"] = warm_view(group)
        shown["WarmPoolSize"] = len(warm.members(group))
    return {name: value for name, value in shown.items() if value is not None}


def tag_view(group: Group, key: str) -> dict[str, Any]:
    value, at_launch = group.tags[key]
    return {
        "ResourceId": group.name,
        "ResourceType": "auto-scaling-group",
        "Key": key,
        "Value": value,
        "PropagateAtLaunch": at_launch,
    }


def template_view(group: Group, version: str) -> dict[str, Any]:
    template = backends.template(group.region, group.template).template
    return {"LaunchTemplateId": template.id, "LaunchTemplateName": template.name, "Version": version}


def member_view(group: Group, member: Member) -> dict[str, Any]:
    return {
        "InstanceId": member.id,
        "InstanceType": member.machine.instance.instance_type,
        "AvailabilityZone": member.zone,
        "LifecycleState": member.state,
        "HealthStatus": "Healthy" if member.healthy else "Unhealthy",
        "LaunchTemplate": template_view(group, member.template_version),
        "ProtectedFromScaleIn": member.protected,
    }


def warm_view(group: Group) -> dict[str, Any]:
    assert group.warm is not None
    return {
        "MinSize": group.warm["MinSize"],
        "MaxGroupPreparedCapacity": group.warm["MaxGroupPreparedCapacity"],
        "PoolState": group.warm["PoolState"],
        "InstanceReusePolicy": {"ReuseOnScaleIn": group.warm["ReuseOnScaleIn"]},
    }


def activity_view(group: Group, activity: dict[str, Any]) -> dict[str, Any]:
    return {
        "ActivityId": activity["id"],
        "AutoScalingGroupName": group.name,
        "Description": activity["description"],
        "Cause": activity["cause"],
        "StartTime": moment(activity["at"]),
        "EndTime": None if activity["status"] == "InProgress" else moment(activity["at"]),
        "StatusCode": activity["status"],
        "StatusMessage": activity["message"],
        "Progress": 50 if activity["status"] == "InProgress" else 100,
    }


def truth(value: Any) -> bool:
    return str(value).lower() == "true"


def number(value: Any, default: int | None = None) -> int | None:
    return default if value is None else int(value)
