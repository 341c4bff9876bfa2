"""The stand-in's own side, below `/lab/`: state for the machines that follow it, and the hands of the tests."""

import json
from typing import Any

import events
import faults
import imds
import machines
import snapshots
import users
import volumes
from clock import stamp
from connect import valid_keys
from errors import CloudError
from world import WORLD, Disk, Machine, Shot

Answer = tuple[int, str, str]


def answer(method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Answer:
    if path.startswith("imds/"):
        return imds.answer(
            method,
            path.removeprefix("imds/"),
            headers.get("X_AWS_EC2_METADATA_TOKEN"),
            headers.get("X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS"),
        )
    try:
        given = json.loads(body) if body else None
        result = _route(method, path, query, given)
    except CloudError as error:
        return 400, "application/json", json.dumps({"error": error.message})
    except (KeyError, TypeError, ValueError) as error:
        return 400, "application/json", json.dumps({"error": f"{type(error).__name__}: {error}"})
    return 200, "application/json", json.dumps(result)


def _route(method: str, path: str, query: dict[str, str], given: Any) -> Any:
    match (method, path):
        case ("GET", "state"):
            return state()
        case ("POST", "ack"):
            acknowledge(given)
        case ("POST", "config"):
            WORLD.settings.take(given)
            users.apply_iam(WORLD.settings.iam)
        case ("POST", "act"):
            return events.act(given)
        case ("GET", "calls"):
            since = int(query.get("since", 0))
            return {"next": len(WORLD.calls), "calls": WORLD.calls[since:]}
        case ("POST", "faults"):
            for fault in given if isinstance(given, list) else [given]:
                faults.add(fault)
        case ("DELETE", "faults"):
            faults.FAULTS.clear()
        case _:
            raise CloudError("lab", f"{method} /lab/{path} is not known here")
    return {}


def state() -> dict[str, Any]:
    return {
        "now": stamp(WORLD.clock.now()),
        "bugs": WORLD.clock.bugs,
        "instances": [_instance(machine) for machine in WORLD.machines.values() if not machine.vanished],
        "volumes": [shown for disk in WORLD.disks.values() if (shown := _volume(disk))],
        "snapshots": [_snapshot(record) for record in WORLD.shots.values()],
        "pushed_keys": valid_keys(),
    }


def _instance(machine: Machine) -> dict[str, Any]:
    instance = machine.instance
    root = instance.block_device_mapping.get(instance.root_device_name)
    group = WORLD.groups.get((machine.region, machine.group or ""))
    member = group.members.get(machine.instance_id) if group else None
    return {
        "id": machine.instance_id,
        "state": machine.state,
        "state_reason": instance.state_reason.code or None,
        "hibernated": machine.hibernated,
        "boots": machine.boots,
        "address": instance.private_ip_address,
        "zone": instance.placement.zone,
        "key": instance.key_name,
        "root_volume": root.volume_id if root else None,
        "volumes": [
            _attachment(machine, device, block) for device, block in instance.block_device_mapping.items()
        ],
        "group": machine.group,
        "lifecycle": member.state if member else None,
        "protected": bool(member and member.protected),
        "spot_action": machine.spot_action,
        "rebalance": machine.rebalance,
    }


def _attachment(machine: Machine, device: str, block: Any) -> dict[str, Any]:
    attachment = WORLD.disks[block.volume_id].volume.attachment
    return {
        "id": block.volume_id,
        "device": device,
        "state": attachment.status if attachment else "detaching",
    }


def _volume(disk: Disk) -> dict[str, Any] | None:
    """A deleted one stays shown while a snapshot of it is still to be taken."""
    if disk.deleted and not any(
        record.pending and record.snapshot.volume is disk.volume for record in WORLD.shots.values()
    ):
        return None
    return {
        "id": disk.volume.id,
        "size": disk.volume.size,
        "state": volumes.state(disk),
        "zone": disk.volume.zone.name,
        "snapshot": disk.volume.snapshot_id or None,
    }


def _snapshot(record: Shot) -> dict[str, Any]:
    return {
        "id": record.snapshot.id,
        "volume": record.snapshot.volume.id,
        "copy_of": record.copy_of,
        "state": record.snapshot.status,
    }


def acknowledge(done: dict[str, list[Any]]) -> None:
    """What the machines have carried out; what is not known, or has changed since, is passed over."""
    for instance_id in done.get("running", []):
        machine = WORLD.machines.get(instance_id)
        if machine and machine.state == "pending" and not machine.alarm:
            machines.running(machine)
    for instance_id in done.get("stopped", []):
        machine = WORLD.machines.get(instance_id)
        if machine:
            machines.stopped(machine)
    for volume_id in done.get("volumes", []):
        if volume_id in WORLD.disks:
            volumes.created(WORLD.disks[volume_id])
    for snapshot_id in done.get("snapshots", []):
        if snapshot_id in WORLD.shots:
            snapshots.complete(WORLD.shots[snapshot_id])
    for pair in done.get("attached", []):
        if pair["volume"] in WORLD.disks:
            volumes.attached(WORLD.disks[pair["volume"]], pair["instance"])
    for pair in done.get("detached", []):
        if pair["volume"] in WORLD.disks and not WORLD.settings.hold_detaching:
            volumes.detached(WORLD.disks[pair["volume"]], pair["instance"])
