"""The life of an instance: pending, running, stopping, stopped, shutting-down, terminated; each state lasts."""

import uuid
from typing import Any

import backends
from clock import stamp
from errors import CloudError, no_capacity
from moto.ec2.models.instances import StateReason
from world import WORLD, Disk, Machine

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
GROUP_TAG = "aws:autoscaling:groupName"

# Told when an instance changes its state; the groups listen.
LISTENERS: list[Any] = []


def set_state(machine: Machine, name: str) -> None:
    machine.instance._state.name = name
    machine.instance._state.code = CODES[name]
    if machine.alarm:
        machine.alarm.cancel()
        machine.alarm = None
    for listener in LISTENERS:
        listener(machine)


def reason(machine: Machine, code: str, message: str) -> None:
    machine.instance.state_reason = StateReason(f"{code}: {message}", code)
    initiator = "User initiated" if code.startswith("Client.User") else "Service initiated"
    machine.instance._reason = f"{initiator} ({stamp(WORLD.clock.now())[:19].replace('T', ' ')} GMT)"


def check_zone(zone: str) -> None:
    if zone in WORLD.troubles.get("closed_zones", ()) or WORLD.troubles.get("no_capacity"):
        raise no_capacity(zone)


def launch(region: str, plan: dict[str, Any], group: str | None = None) -> Machine:
    """Starts one instance by a plan of `plans.py`."""
    network = backends.subnet(region, plan["subnet_id"])
    check_zone(network.availability_zone)
    arguments = dict(plan["arguments"])
    tags = {kind: dict(values) for kind, values in plan["tags"].items()}
    address = arguments.pop("private_ip") or backends.free_address(region, plan["subnet_id"])
    if address in network._subnet_ips:
        raise CloudError("InvalidIPAddress.InUse", f"Address {address} is in use.")
    reservation = backends.ec2(region).run_instances(
        plan["image_id"],
        1,
        plan["user_data"],
        [],
        private_ip=address,
        subnet_id=plan["subnet_id"],
        tags=tags,
        **arguments,
    )
    instance = reservation.instances[0]
    instance.lifecycle = "spot" if plan["spot"] else None
    machine = Machine(instance, region, WORLD.clock.now(), group=group)
    if plan["spot"]:
        machine.spot_request = f"sir-{uuid.uuid4().hex[:8]}"
        machine.can_stop_spot = plan["spot"] == "persistent"
    if group:
        backends.ec2(region).tags[instance.id][GROUP_TAG] = group
    WORLD.machines[instance.id] = machine
    for block in instance.block_device_mapping.values():
        WORLD.disks[block.volume_id] = Disk(backends.ec2(region).volumes[block.volume_id])
    machine.instance_id = instance.id
    begin_boot(machine, awake=False)
    return machine


def begin_boot(machine: Machine, awake: bool) -> None:
    """From here the instance is pending; `awake`: it comes out of hibernation."""
    machine.instance.state_reason = StateReason()
    machine.instance._reason = ""
    if not awake:
        machine.boots += 1
    machine.hibernated = False
    if not WORLD.strict("states"):
        return running(machine)
    set_state(machine, "pending")
    if WORLD.troubles.get("kms_disabled") and has_encrypted_disk(machine):
        machine.alarm = WORLD.clock.later(WORLD.settings.pending_seconds, lambda: fail_boot(machine))
    elif not WORLD.settings.followed:
        machine.alarm = WORLD.clock.later(WORLD.settings.pending_seconds, lambda: running(machine))


def has_encrypted_disk(machine: Machine) -> bool:
    volumes = backends.ec2(machine.region).volumes
    return any(volumes[block.volume_id].encrypted for block in machine.instance.block_device_mapping.values())


def fail_boot(machine: Machine) -> None:
    """A start that cannot read its encrypted disk ends as it began: off, or gone if it was the first one."""
    machine.boots -= 1
    if machine.boots == 0:
        set_state(machine, "shutting-down")
        terminated(machine)
    else:
        set_state(machine, "stopped")
    reason(machine, "Client.InternalError", "Client error on launch")


def running(machine: Machine) -> None:
    machine.running_since = WORLD.clock.now()
    set_state(machine, "running")


def begin_stop(machine: Machine, hibernate: bool, code: str, message: str) -> None:
    machine.degrade = hibernate and bool(WORLD.troubles.get("hibernate_degrades"))
    machine.hibernated = hibernate and not machine.degrade
    machine.running_since = None
    set_state(machine, "stopping")
    reason(machine, code, message)
    if not WORLD.strict("states"):
        return set_state(machine, "stopped")
    hangs = WORLD.troubles.get("stop_hangs")
    machine.stop_hangs = hangs is True or (isinstance(hangs, set) and machine.instance.id in hangs)
    if not WORLD.settings.followed and not machine.stop_hangs:
        machine.alarm = WORLD.clock.later(WORLD.settings.stopping_seconds, lambda: stopped(machine))


def stopped(machine: Machine) -> None:
    if machine.state == "stopping" and not machine.stop_hangs:
        set_state(machine, "stopped")


def force_stop(machine: Machine) -> None:
    """A second stop with Force ends one that hangs."""
    machine.stop_hangs = False
    machine.hibernated = False
    if not WORLD.settings.followed:
        machine.alarm = WORLD.clock.later(WORLD.settings.stopping_seconds, lambda: stopped(machine))


def begin_termination(machine: Machine, code: str, message: str) -> None:
    if machine.state in ("shutting-down", "terminated"):
        return
    machine.running_since = None
    machine.hibernated = False
    set_state(machine, "shutting-down")
    reason(machine, code, message)
    if not WORLD.strict("states"):
        return terminated(machine)
    machine.alarm = WORLD.clock.later(WORLD.settings.terminating_seconds, lambda: terminated(machine))


def terminated(machine: Machine) -> None:
    """Volumes go or come free, the address too; the record stays for about an hour."""
    instance = machine.instance
    tables = backends.ec2(machine.region)
    for device in list(instance.block_device_mapping):
        block = instance.block_device_mapping.pop(device)
        volume = tables.volumes.get(block.volume_id)
        if volume is None:
            continue
        volume.attachment = None
        disk = WORLD.disks[volume.id]
        if disk.alarm:
            disk.alarm.cancel()
        if block.delete_on_termination:
            tables.volumes.pop(volume.id)
            disk.deleted = True
    for nic in instance.nics.values():
        nic.status = "available"
        tables.enis.pop(nic.id, None)
    backends.give_back(machine.region, instance.subnet_id, instance.private_ip_address)
    set_state(machine, "terminated")
    WORLD.clock.later(WORLD.settings.terminated_seconds, lambda: vanish(machine))


def vanish(machine: Machine) -> None:
    machine.vanished = True
    reservations = backends.ec2(machine.region).reservations
    for key in [key for key, one in reservations.items() if machine.instance in one.instances]:
        del reservations[key]
    backends.ec2(machine.region).tags.pop(machine.instance.id, None)


def find(region: str, instance_id: str) -> Machine:
    """The instance of that id, as a call sees it."""
    if not instance_id.startswith("i-") or not all(
        letter in "0123456789abcdef" for letter in instance_id[2:]
    ):
        raise CloudError("InvalidInstanceID.Malformed", f'Invalid id: "{instance_id}" (expecting "i-...")')
    machine = WORLD.machines.get(instance_id)
    if machine is None or machine.vanished or machine.region != region or is_unseen(machine):
        raise CloudError("InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist")
    return machine


def is_unseen(machine: Machine) -> bool:
    """Too fresh: what describes instances is behind what starts them."""
    return WORLD.clock.now() < machine.born + WORLD.settings.eventual_seconds


def visible(region: str) -> list[Machine]:
    return [
        machine
        for machine in WORLD.machines.values()
        if machine.region == region and not machine.vanished and not is_unseen(machine)
    ]
