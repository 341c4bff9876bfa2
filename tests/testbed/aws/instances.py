"""EC2's calls about instances."""

from typing import Any

import backends
import machines
from clock import moment
from errors import CloudError, no_capacity
from listing import filtered, page, tag_list
from moto.core.responses import ActionResult
from plans import plan
from world import WORLD, Machine

USER_STOP = ("Client.UserInitiatedShutdown", "User initiated shutdown")
USER_HIBERNATE = ("Client.UserInitiatedHibernate", "User initiated hibernate")

READERS = {
    "instance-id": lambda m: m.instance.id,
    "instance-state-name": lambda m: m.state,
    "instance-state-code": lambda m: m.instance._state.code,
    "availability-zone": lambda m: m.instance.placement.zone,
    "client-token": lambda m: m.instance.client_token,
    "image-id": lambda m: m.instance.image_id,
    "instance-lifecycle": lambda m: m.instance.lifecycle,
    "instance-type": lambda m: m.instance.instance_type,
    "key-name": lambda m: m.instance.key_name,
    "private-ip-address": lambda m: m.instance.private_ip_address,
    "subnet-id": lambda m: m.instance.subnet_id,
    "vpc-id": lambda m: m.instance.vpc_id,
    "block-device-mapping.volume-id": lambda m: [
        b.volume_id for b in m.instance.block_device_mapping.values()
    ],
    "instance.group-id": lambda m: [group.id for group in m.instance.security_groups],
    "root-device-name": lambda m: m.instance.root_device_name,
}


def view(machine: Machine) -> dict[str, Any]:
    """As DescribeInstances shows it; never a public address, which nobody here may dial."""
    instance = machine.instance
    gone = machine.state == "terminated"
    shown: dict[str, Any] = {
        "InstanceId": instance.id,
        "ImageId": instance.image_id,
        "State": {"Code": instance._state.code, "Name": machine.state},
        "StateTransitionReason": instance._reason,
        "InstanceType": instance.instance_type,
        "KeyName": instance.key_name,
        "AmiLaunchIndex": instance.ami_launch_index,
        "LaunchTime": moment(machine.born),
        "Placement": {"AvailabilityZone": instance.placement.zone, "GroupName": "", "Tenancy": "default"},
        "Monitoring": {"State": instance.monitoring_state},
        "Architecture": instance.architecture,
        "ClientToken": instance.client_token or "",
        "EbsOptimized": instance.ebs_optimized,
        "Hypervisor": "xen",
        "RootDeviceName": instance.root_device_name,
        "RootDeviceType": "ebs",
        "SecurityGroups": [
            {"GroupId": group.id, "GroupName": group.name} for group in instance.security_groups
        ],
        "SourceDestCheck": True,
        "VirtualizationType": "hvm",
        "HibernationOptions": {"Configured": bool((instance.hibernation_options or {}).get("Configured"))},
        "MetadataOptions": {
            "State": "applied",
            "HttpTokens": instance.metadata_options.http_tokens,
            "HttpPutResponseHopLimit": instance.metadata_options.http_put_response_hop_limit,
            "HttpEndpoint": instance.metadata_options.http_endpoint,
        },
        "BlockDeviceMappings": [
            {"DeviceName": device, "Ebs": _block(machine, block)}
            for device, block in instance.block_device_mapping.items()
        ],
        "Tags": tag_list(backends.tags_of(machine.region, instance.id)) or None,
    }
    if instance.state_reason.code:
        shown["StateReason"] = {"Code": instance.state_reason.code, "Message": instance.state_reason.message}
    if machine.spot_request:
        shown["InstanceLifecycle"] = "spot"
        shown["SpotInstanceRequestId"] = machine.spot_request
    if not gone:
        shown["PrivateIpAddress"] = instance.private_ip_address
        shown["PrivateDnsName"] = instance.private_dns_name
        shown["SubnetId"] = instance.subnet_id
        shown["VpcId"] = instance.vpc_id
    return {name: value for name, value in shown.items() if value is not None}


def _block(machine: Machine, block: Any) -> dict[str, Any]:
    volume = backends.ec2(machine.region).volumes.get(block.volume_id)
    status = volume.attachment.status if volume is not None and volume.attachment else "detached"
    return {
        "VolumeId": block.volume_id,
        "Status": status,
        "AttachTime": block.attach_time,
        "DeleteOnTermination": bool(block.delete_on_termination),
    }


def _change(machine: Machine, before: tuple[str, int]) -> dict[str, Any]:
    return {
        "InstanceId": machine.instance.id,
        "CurrentState": {"Name": machine.state, "Code": machine.instance._state.code},
        "PreviousState": {"Name": before[0], "Code": before[1]},
    }


def _state(machine: Machine) -> tuple[str, int]:
    return machine.state, machine.instance._state.code


def _wrong_state(machine: Machine, what: str) -> CloudError:
    return CloudError(
        "IncorrectInstanceState",
        f"The instance '{machine.instance.id}' is not in a state from which it can be {what}.",
    )


def _many(self: Any) -> list[Machine]:
    ids = self._get_param("InstanceIds", [])
    if not ids:
        raise CloudError("MissingParameter", "The request must contain the parameter InstanceId")
    return [machines.find(self.region, instance_id) for instance_id in ids]


class Instances:
    """Taken over by moto's class of the same calls."""

    def run_instances(self: Any) -> ActionResult:
        request = dict(self._get_params())
        token = request.get("ClientToken")
        count = int(request.get("MaxCount") or 1)

        def start() -> list[Machine]:
            placed = _placed(self.region, request)
            made = plan(self.region, request, request.get("LaunchTemplate"), placed)
            self.error_on_dryrun()
            return [machines.launch(self.region, made) for _ in range(count)]

        started = WORLD.once(
            self.region, "RunInstances", token, repr(sorted(request.items(), key=str)), start
        )
        reservation = {
            "ReservationId": "r-" + started[0].instance.id[2:],
            "OwnerId": self.current_account,
            "Instances": [view(machine) for machine in started],
        }
        return ActionResult(reservation)

    def describe_instances(self: Any) -> ActionResult:
        self.error_on_dryrun()
        ids = self._get_param("InstanceIds", [])
        size = self._get_int_param("MaxResults")
        if ids and size:
            raise CloudError(
                "InvalidParameterCombination",
                "The parameter instancesSet cannot be used with the parameter maxResults",
            )
        found = [machines.find(self.region, item) for item in ids] if ids else machines.visible(self.region)
        found = filtered(
            found,
            self._get_param("Filters", []),
            READERS,
            lambda machine: backends.tags_of(machine.region, machine.instance.id),
        )
        shown, following = page(found, self._get_param("NextToken"), size, 1000)
        reservations = [
            {
                "ReservationId": "r-" + machine.instance.id[2:],
                "OwnerId": self.current_account,
                "Instances": [view(machine)],
            }
            for machine in shown
        ]
        return ActionResult({"Reservations": reservations, "NextToken": following})

    def describe_instance_status(self: Any) -> ActionResult:
        ids = self._get_param("InstanceIds", [])
        found = [machines.find(self.region, item) for item in ids] if ids else machines.visible(self.region)
        if not self._get_bool_param("IncludeAllInstances", False):
            found = [machine for machine in found if machine.state == "running"]
        shown, following = page(found, self._get_param("NextToken"), self._get_int_param("MaxResults"), 1000)
        return ActionResult(
            {"InstanceStatuses": [_status(machine) for machine in shown], "NextToken": following}
        )

    def start_instances(self: Any) -> ActionResult:
        chosen = _many(self)
        self.error_on_dryrun()
        for machine in chosen:
            if machine.state not in ("stopped", "pending", "running") and WORLD.strict("states"):
                raise _wrong_state(machine, "started")
            machines.check_zone(machine.instance.placement.zone)
            if WORLD.troubles.get("no_start"):
                raise no_capacity(machine.instance.placement.zone)
        changes = []
        for machine in chosen:
            before = _state(machine)
            if machine.state not in ("pending", "running"):
                machines.begin_boot(machine, awake=machine.hibernated)
            changes.append(_change(machine, before))
        return ActionResult({"StartingInstances": changes})

    def stop_instances(self: Any) -> ActionResult:
        chosen = _many(self)
        hibernate = self._get_bool_param("Hibernate", False)
        force = self._get_bool_param("Force", False)
        self.error_on_dryrun()
        for machine in chosen:
            _check_stop(machine, hibernate)
        changes = []
        for machine in chosen:
            before = _state(machine)
            if machine.state == "stopping" and force:
                machines.force_stop(machine)
            elif machine.state not in ("stopping", "stopped"):
                machines.begin_stop(machine, hibernate, *(USER_HIBERNATE if hibernate else USER_STOP))
            changes.append(_change(machine, before))
        return ActionResult({"StoppingInstances": changes})

    def terminate_instances(self: Any) -> ActionResult:
        chosen = _many(self)
        self.error_on_dryrun()
        for machine in chosen:
            if machine.instance.disable_api_termination and machine.state != "terminated":
                raise CloudError(
                    "OperationNotPermitted",
                    f"The instance '{machine.instance.id}' may not be terminated. "
                    "Modify its 'disableApiTermination' instance attribute and try again.",
                )
        changes = []
        for machine in chosen:
            before = _state(machine)
            machines.begin_termination(machine, *USER_STOP)
            changes.append(_change(machine, before))
        return ActionResult({"TerminatingInstances": changes})

    def reboot_instances(self: Any) -> ActionResult:
        chosen = _many(self)
        self.error_on_dryrun()
        for machine in chosen:
            if machine.state != "running":
                raise _wrong_state(machine, "rebooted")
            machine.boots += 1
        return ActionResult(None)

    def modify_instance_attribute(self: Any) -> ActionResult:
        machine = machines.find(self.region, self._get_param("InstanceId"))
        for name in ("UserData", "InstanceType", "Kernel", "Ramdisk", "EbsOptimized"):
            if (
                self._get_param(f"{name}.Value") is not None
                and machine.state != "stopped"
                and WORLD.strict("states")
            ):
                raise CloudError(
                    "IncorrectInstanceState",
                    f"The instance '{machine.instance.id}' is not in the 'stopped' state.",
                )
        for block in self._get_param("BlockDeviceMappings", []):
            if block.get("DeviceName") not in machine.instance.block_device_mapping:
                raise CloudError(
                    "InvalidInstanceAttributeValue",
                    f"No device is currently mapped at {block.get('DeviceName')}",
                )
        return MOTO["modify_instance_attribute"](self)


def _placed(region: str, request: dict[str, Any]) -> str | None:
    """The subnet, by name or, with a zone and no subnet, one that lies in it."""
    if request.get("SubnetId"):
        return request["SubnetId"]
    zone = (request.get("Placement") or {}).get("AvailabilityZone")
    if not zone:
        return None
    for network in backends.ec2(region).get_default_subnets().values():
        if network.availability_zone == zone:
            return network.id
    return None


def _check_stop(machine: Machine, hibernate: bool) -> None:
    instance = machine.instance
    if instance.disable_api_stop:
        raise CloudError(
            "OperationNotPermitted",
            f"The instance '{instance.id}' may not be stopped. "
            "Modify its 'disableApiStop' instance attribute and try again.",
        )
    if machine.state not in ("running", "stopping", "stopped") and WORLD.strict("states"):
        raise _wrong_state(machine, "stopped")
    if machine.spot_request and not machine.can_stop_spot and WORLD.strict("states"):
        raise CloudError(
            "UnsupportedOperation",
            f"You can't stop the Spot Instance '{instance.id}' because it is associated with a one-time Spot Instance "
            "request. You can only stop Spot Instances associated with persistent Spot Instance requests.",
        )
    if hibernate and WORLD.strict("hibernation"):
        if not (instance.hibernation_options or {}).get("Configured"):
            raise CloudError(
                "UnsupportedHibernationConfiguration",
                f"Instance {instance.id} was not configured for hibernation when it was launched.",
            )
        ready = (machine.running_since or 0) + WORLD.settings.hibernate_ready_seconds
        if machine.state == "running" and WORLD.clock.now() < ready:
            raise CloudError(
                "UnsupportedOperation",
                f"Instance {instance.id} is not ready to hibernate yet, retry in a few minutes.",
            )


def _status(machine: Machine) -> dict[str, Any]:
    on = machine.state == "running"
    check: dict[str, Any] = {"Status": "ok" if on else "not-applicable"}
    if on:
        check["Details"] = [{"Name": "reachability", "Status": "passed"}]
    return {
        "InstanceId": machine.instance.id,
        "AvailabilityZone": machine.instance.placement.zone,
        "InstanceState": {"Code": machine.instance._state.code, "Name": machine.state},
        "InstanceStatus": check,
        "SystemStatus": check,
    }


# moto's own methods, by name, filled when ours take their places.
MOTO: dict[str, Any] = {}
