"""Auto Scaling's calls about members: protection, health, and the ways in and out."""

from typing import Any

import backends
import group as groups
import machines
from errors import CloudError, validation
from group import Group, Member
from listing import page
from moto.core.responses import ActionResult
from scaling_views import activity_view, member_view, truth
from world import WORLD


def _found(self: Any) -> Group:
    return groups.find(self.region, self._get_param("AutoScalingGroupName"))


def _chosen(self: Any, group: Group, most: int) -> list[Member]:
    ids = self._get_param("InstanceIds", [])
    if not ids:
        raise validation("You must specify at least one instance ID.")
    if len(ids) > most:
        raise validation(f"The number of instances is {len(ids)}; at most {most} are allowed.")
    return [groups.member_of(group, instance_id) for instance_id in ids]


class Members:
    """Taken over by moto's class of the same calls."""

    def describe_auto_scaling_instances(self: Any) -> ActionResult:
        ids = self._get_param("InstanceIds", [])
        if len(ids) > 50:
            raise validation("The number of instances that may be passed in is limited to 50")
        found = [
            {
                **member_view(group, member),
                "AutoScalingGroupName": group.name,
                "HealthStatus": "HEALTHY" if member.healthy else "UNHEALTHY",
            }
            for group in WORLD.groups.values()
            if group.region == self.region
            for member in group.members.values()
            if not ids or member.id in ids
        ]
        shown, following = page(found, self._get_param("NextToken"), self._get_int_param("MaxRecords"), 50)
        return ActionResult({"AutoScalingInstances": shown, "NextToken": following})

    def set_instance_protection(self: Any) -> ActionResult:
        group = _found(self)
        wanted = self._get_bool_param("ProtectedFromScaleIn", False)
        chosen = _chosen(self, group, 50)
        for member in chosen:
            if (
                wanted
                and member.state not in ("InService", "EnteringStandby", "Standby")
                and WORLD.strict("protection")
            ):
                raise validation(
                    f"The instance {member.id} is not in InService or EnteringStandby or Standby."
                )
        for member in chosen:
            member.protected = wanted
        groups.soon(group)
        return ActionResult(None)

    def set_instance_health(self: Any) -> ActionResult:
        group, member = groups.group_of(self.region, self._get_param("InstanceId"))
        status = self._get_param("HealthStatus")
        if status not in ("Healthy", "Unhealthy"):
            raise validation("HealthStatus must be Healthy or Unhealthy.")
        respects = self._get_bool_param("ShouldRespectGracePeriod", True)
        grace = float(group.given.get("HealthCheckGracePeriod") or WORLD.settings.grace_seconds)
        if status == "Unhealthy" and respects and WORLD.clock.now() < member.born + grace:
            return ActionResult(None)
        member.healthy = status == "Healthy"
        if WORLD.strict("health"):
            WORLD.clock.later(WORLD.settings.health_seconds, lambda: groups.check_health(group, member))
        return ActionResult(None)

    def terminate_instance_in_auto_scaling_group(self: Any) -> ActionResult:
        params = self._get_params()
        ids = params.get("InstanceIds") or [params.get("InstanceId")]
        decrement = truth(params.get("ShouldDecrementDesiredCapacity"))
        found = [groups.group_of(self.region, instance_id) for instance_id in ids]
        group = found[0][0]
        counted = sum(member.is_active for _, member in found)
        for _, member in found:
            _check_termination(member, decrement)
        if decrement and counted and group.desired - counted < group.low and WORLD.strict("bounds"):
            raise validation(
                f"Currently, desiredSize equals minSize ({group.low}). Terminating instance without replacement will "
                "violate group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower "
                "group's min size."
            )
        if decrement:
            group.desired -= counted
        made = []
        for _, member in found:
            activity = groups.leave(group, member, "was taken out of service in response to a user request")
            made.append(activity_view(group, activity))
        return ActionResult({"Activities": made} if params.get("InstanceIds") else {"Activity": made[0]})

    def detach_instances(self: Any) -> ActionResult:
        group = _found(self)
        decrement = truth(self._get_param("ShouldDecrementDesiredCapacity"))
        chosen = _chosen(self, group, 20)
        counted = 0
        for member in chosen:
            retained = member.state == "Terminating:Retained"
            if member.state not in ("InService", "Standby") and not (retained and not decrement):
                raise validation(f"The instance {member.id} is not in InService or Standby.")
            counted += member.state == "InService"
        if decrement and group.desired - counted < group.low and WORLD.strict("bounds"):
            raise validation(
                f"Detaching {counted} instances would bring the desired capacity below the min size ({group.low})."
            )
        made = []
        for member in chosen:
            if decrement and member.state == "InService":
                group.desired -= 1
            member.state = "Detaching"
            member.protected = False
            _after_member(lambda member=member: _detached(group, member))
            made.append(
                activity_view(
                    group,
                    group.tell(
                        f"Detaching EC2 instance: {member.id}",
                        f"instance {member.id} was detached in response to a user request",
                        "InProgress",
                    ),
                )
            )
        groups.soon(group)
        return ActionResult({"Activities": made})

    def attach_instances(self: Any) -> ActionResult:
        group = _found(self)
        ids = self._get_param("InstanceIds", [])
        found = [machines.find(self.region, instance_id) for instance_id in ids]
        for machine in found:
            _check_attachment(group, machine)
        if group.desired + len(found) > group.high and WORLD.strict("bounds"):
            raise validation(
                f"Attaching {len(found)} instances would exceed the max size ({group.high}) of the group."
            )
        if not group.does("Launch"):
            raise validation("The Launch process is suspended for the group.")
        for machine in found:
            machine.group = group.name
            backends.ec2(group.region).tags[machine.instance_id][machines.GROUP_TAG] = group.name
            version = str(backends.template(group.region, group.template).number)
            member = Member(machine, "Pending", version, WORLD.clock.now())
            group.members[member.id] = member
            group.desired += 1
            _after_member(lambda machine=machine: groups.changed(machine))
        return ActionResult(None)

    def enter_standby(self: Any) -> ActionResult:
        group = _found(self)
        decrement = truth(self._get_param("ShouldDecrementDesiredCapacity"))
        chosen = _chosen(self, group, 20)
        for member in chosen:
            if member.state != "InService":
                raise validation(f"The instance {member.id} is not in InService.")
        if decrement and group.desired - len(chosen) < group.low and WORLD.strict("bounds"):
            raise validation(
                f"EnterStandby would bring the desired capacity below the min size ({group.low}) of the group."
            )
        made = []
        for member in chosen:
            group.desired -= int(decrement)
            member.state = "EnteringStandby"
            _after_member(lambda member=member: _stand_by(group, member))
            told = group.tell(
                f"Moving EC2 instance to Standby: {member.id}",
                f"instance {member.id} was moved to standby in response to a user request",
            )
            made.append(activity_view(group, told))
        groups.soon(group)
        return ActionResult({"Activities": made})

    def exit_standby(self: Any) -> ActionResult:
        group = _found(self)
        chosen = _chosen(self, group, 20)
        if not group.does("Launch"):
            raise validation("The Launch process is suspended for the group.")
        for member in chosen:
            if member.state != "Standby":
                raise validation(f"The instance {member.id} is not in Standby.")
        if group.desired + len(chosen) > group.high and WORLD.strict("bounds"):
            raise validation(f"ExitStandby would exceed the max size ({group.high}) of the group.")
        made = []
        for member in chosen:
            group.desired += 1
            member.state = "Pending"
            _after_member(lambda member=member: groups.changed(member.machine))
            told = group.tell(
                f"Moving EC2 instance out of Standby: {member.id}",
                f"instance {member.id} was moved out of standby in response to a user request",
                "PreInService",
            )
            made.append(activity_view(group, told))
        return ActionResult({"Activities": made})


def _after_member(deed: Any) -> None:
    if WORLD.strict("detaching"):
        WORLD.clock.later(WORLD.settings.member_seconds, deed)
    else:
        deed()


def _detached(group: Group, member: Member) -> None:
    if member.state == "Detaching":
        groups.forget(group, member)


def _stand_by(group: Group, member: Member) -> None:
    if member.state == "EnteringStandby":
        member.state = "Standby"
        groups.soon(group)


def _check_termination(member: Member, decrement: bool) -> None:
    if member.is_warm:
        raise validation(
            f"The instance {member.id} is in a warm pool; this operation cannot be called on it."
        )
    if member.state == "Terminating:Retained":
        if decrement:
            raise validation(
                f"The instance {member.id} is retained and does not count as capacity: it cannot be decremented."
            )
    elif member.is_leaving:
        raise CloudError(
            "ScalingActivityInProgress",
            f"The instance {member.id} is already leaving the group ({member.state}).",
        )


def _check_attachment(group: Group, machine: Any) -> None:
    if not WORLD.strict("members"):
        return
    if machine.state != "running":
        raise validation(
            f"Invalid Instance ID {machine.instance_id}. Instance is not in correct state. It must be running."
        )
    if machine.group:
        raise validation(
            f"Instance {machine.instance_id} is already part of AutoScalingGroup:{machine.group}."
        )
    if machine.instance.placement.zone not in group.zones():
        raise validation(f"Instance {machine.instance_id} is not in an Availability Zone of the group.")
    if machine.instance.image_id not in backends.ec2(group.region).amis:
        raise validation(f"The image of instance {machine.instance_id} does not exist any more.")
