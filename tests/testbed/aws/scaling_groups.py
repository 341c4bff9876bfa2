"""Auto Scaling's calls about groups. None of moto's model of groups is used; its policies and schedules are."""

from typing import Any

import backends
import group as groups
import hooks
from errors import CloudError, validation
from group import Group
from listing import filtered, page
from moto.core.responses import ActionResult
from scaling_settings import check_bounds, take_settings
from scaling_views import activity_view, group_view, tag_view, truth
from world import WORLD


def _found(self: Any) -> Group:
    return groups.find(self.region, self._get_param("AutoScalingGroupName"))


class Groups:
    """Taken over by moto's class of the same calls."""

    def create_auto_scaling_group(self: Any) -> ActionResult:
        params = self._get_params()
        name = params["AutoScalingGroupName"]
        if (self.region, name) in WORLD.groups:
            raise CloudError("AlreadyExists", f"AutoScalingGroup by this name already exists - {name}")
        group = Group(name, self.region, 0, 0, 0, [], {}, {}, WORLD.clock.now())
        take_settings(group, params, name_given=True)
        if not group.template:
            raise validation(
                "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or "
                "MixedInstancesPolicy parameter."
            )
        if not group.subnets:
            raise validation("At least one Availability Zone or VPC Subnet is required.")
        for hook in params.get("LifecycleHookSpecificationList") or []:
            hooks.put(group, hook)
        for tag in params.get("Tags") or []:
            group.tags[tag["Key"]] = (tag.get("Value", ""), truth(tag.get("PropagateAtLaunch", False)))
        WORLD.groups[(self.region, name)] = group
        groups.soon(group)
        return ActionResult(None)

    def update_auto_scaling_group(self: Any) -> ActionResult:
        group = _found(self)
        take_settings(group, self._get_params(), name_given=False)
        groups.soon(group)
        return ActionResult(None)

    def delete_auto_scaling_group(self: Any) -> ActionResult:
        group = _found(self)
        if group.members and not self._get_bool_param("ForceDelete", False):
            raise CloudError(
                "ResourceInUse",
                "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance request(s) "
                "still in the group.",
            )
        group.deleting = True
        group.low = group.desired = 0
        for member in list(group.members.values()):
            if not member.is_leaving:
                groups.leave(
                    group, member, "was taken out of service in response to the deletion of its group"
                )
        groups.settle(group)
        return ActionResult(None)

    def describe_auto_scaling_groups(self: Any) -> ActionResult:
        names = self._get_param("AutoScalingGroupNames", [])
        found = [
            group
            for (region, name), group in WORLD.groups.items()
            if region == self.region and (not names or name in names)
        ]
        found = filtered(
            found,
            self._get_param("Filters", []),
            {},
            lambda group: {k: v for k, (v, _) in group.tags.items()},
        )
        size = self._get_int_param("MaxRecords")
        if size is not None and not 1 <= size <= 100:
            raise validation("MaxRecords must be between 1 and 100.")
        shown, following = page(found, self._get_param("NextToken"), size or 50, 100)
        return ActionResult(
            {"AutoScalingGroups": [group_view(group) for group in shown], "NextToken": following}
        )

    def describe_scaling_activities(self: Any) -> ActionResult:
        name = self._get_param("AutoScalingGroupName")
        chosen = [_found(self)] if name else [g for g in WORLD.groups.values() if g.region == self.region]
        found = [activity_view(group, activity) for group in chosen for activity in group.activities]
        shown, following = page(found, self._get_param("NextToken"), self._get_int_param("MaxRecords"), 100)
        return ActionResult({"Activities": shown, "NextToken": following})

    def set_desired_capacity(self: Any) -> ActionResult:
        group = _found(self)
        desired = int(self._get_param("DesiredCapacity"))
        check_bounds(desired, group.low, group.high)
        group.desired = desired
        groups.soon(group)
        return ActionResult(None)

    def launch_instances(self: Any) -> ActionResult:
        group = _found(self)
        params = dict(self._get_params())
        asked = repr(sorted(params.items(), key=str))
        result = WORLD.once(
            self.region,
            "LaunchInstances " + group.name,
            params.get("ClientToken"),
            asked,
            lambda: _launch(group, params),
        )
        return ActionResult(result)

    def create_or_update_tags(self: Any) -> ActionResult:
        for tag in self._get_param("Tags", []):
            group = groups.find(self.region, tag.get("ResourceId"))
            group.tags[tag["Key"]] = (tag.get("Value", ""), truth(tag.get("PropagateAtLaunch", False)))
        return ActionResult(None)

    def delete_tags(self: Any) -> ActionResult:
        for tag in self._get_params().get("Tags", []):
            groups.find(self.region, tag.get("ResourceId")).tags.pop(tag["Key"], None)
        return ActionResult(None)

    def describe_tags(self: Any) -> ActionResult:
        found = [
            tag_view(group, key)
            for group in WORLD.groups.values()
            if group.region == self.region
            for key in group.tags
        ]
        readers = {
            "auto-scaling-group": lambda tag: tag["ResourceId"],
            "key": lambda tag: tag["Key"],
            "value": lambda tag: tag["Value"],
            "propagate-at-launch": lambda tag: str(tag["PropagateAtLaunch"]).lower(),
        }
        found = filtered(found, self._get_param("Filters", []), readers, lambda tag: {})
        return ActionResult({"Tags": found})

    def put_scaling_policy(self: Any) -> ActionResult:
        _found(self)
        return MOTO["put_scaling_policy"](self)

    def put_scheduled_update_group_action(self: Any) -> ActionResult:
        _found(self)
        return MOTO["put_scheduled_update_group_action"](self)


def _launch(group: Group, params: dict[str, Any]) -> dict[str, Any]:
    """Members at once, with their ids; the desired capacity rises by those that came."""
    count = int(params["RequestedCapacity"])
    subnets = _launch_subnets(group, params)
    if group.desired + count > group.high and WORLD.strict("bounds"):
        raise validation(f"LaunchInstances would exceed the max size ({group.high}) of the group.")
    if not group.does("Launch"):
        raise validation("The Launch process is suspended for the group.")
    launched, errors = [], []
    for _ in range(count):
        subnet = groups.next_subnet(group, subnets)
        try:
            launched.append(groups.launch(group, subnet))
        except CloudError as error:
            zone = backends.subnet(group.region, subnet).availability_zone
            errors.append(
                {
                    "SubnetId": subnet,
                    "AvailabilityZone": zone,
                    "MarketType": "OnDemand",
                    "ErrorCode": error.code,
                    "ErrorMessage": error.message,
                }
            )
            break
    group.desired += len(launched)
    if errors and params.get("RetryStrategy") == "retry-with-group-configuration":
        group.desired += count - len(launched)
        groups.soon(group)
    collections: dict[str, dict[str, Any]] = {}
    for member in launched:
        instance = member.machine.instance
        one = collections.setdefault(
            instance.subnet_id,
            {
                "InstanceType": instance.instance_type,
                "MarketType": "Spot" if member.machine.spot_request else "OnDemand",
                "SubnetId": instance.subnet_id,
                "AvailabilityZone": member.zone,
                "InstanceIds": [],
            },
        )
        one["InstanceIds"].append(member.id)
    return {
        "AutoScalingGroupName": group.name,
        "ClientToken": params.get("ClientToken"),
        "Instances": list(collections.values()),
        "Errors": errors,
    }


def _launch_subnets(group: Group, params: dict[str, Any]) -> list[str]:
    zones, subnets = params.get("AvailabilityZones") or [], params.get("SubnetIds") or []
    if len(group.zones()) > 1 and not zones and not subnets:
        raise validation(
            "Either AvailabilityZones or SubnetIds must be specified for groups with multiple Availability Zones."
        )
    chosen = [
        subnet
        for subnet in group.subnets
        if (not subnets or subnet in subnets)
        and (not zones or backends.subnet(group.region, subnet).availability_zone in zones)
    ]
    if not chosen:
        raise validation("The Availability Zones or subnets of the request are not among those of the group.")
    return chosen


# moto's own methods, by name, filled when ours take their places.
MOTO: dict[str, Any] = {}
