"""EC2's calls about volumes: made, attached, detached and deleted in states that last."""

from typing import Any

import backends
import machines
from errors import CloudError
from listing import filtered, page, tag_list
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ec2.models.block_device import BlockDeviceType
from moto.ec2.models.elastic_block_store import VolumeAttachment
from world import WORLD, Disk, Machine

READERS = {
    "volume-id": lambda d: d.volume.id,
    "status": lambda d: state(d),
    "availability-zone": lambda d: d.volume.zone.name,
    "snapshot-id": lambda d: d.volume.snapshot_id,
    "size": lambda d: d.volume.size,
    "volume-type": lambda d: d.volume.volume_type,
    "encrypted": lambda d: str(bool(d.volume.encrypted)).lower(),
    "attachment.instance-id": lambda d: d.volume.attachment and d.volume.attachment.instance.id,
    "attachment.device": lambda d: d.volume.attachment and d.volume.attachment.device,
    "attachment.status": lambda d: d.volume.attachment and d.volume.attachment.status,
}


def find(region: str, volume_id: str) -> Disk:
    tables = backends.ec2(region)
    volume = tables.volumes.get(volume_id)
    if volume is None:
        raise CloudError("InvalidVolume.NotFound", f"The volume '{volume_id}' does not exist.")
    return WORLD.disks.setdefault(volume_id, Disk(volume))


def visible(region: str) -> list[Disk]:
    return [
        disk
        for volume in backends.ec2(region).volumes.values()
        if not is_unseen(disk := WORLD.disks.setdefault(volume.id, Disk(volume)))
    ]


def is_unseen(disk: Disk) -> bool:
    """Too fresh: what describes volumes is behind what makes them."""
    return disk.born is not None and WORLD.clock.now() < disk.born + WORLD.settings.eventual_seconds


def _seen(region: str, volume_id: str) -> Disk:
    disk = find(region, volume_id)
    if is_unseen(disk):
        raise CloudError("InvalidVolume.NotFound", f"The volume '{volume_id}' does not exist.")
    return disk


def state(disk: Disk) -> str:
    if disk.deleted:
        return "deleting"
    if disk.creating:
        return "creating"
    return "in-use" if disk.volume.attachment else "available"


def view(region: str, disk: Disk) -> dict[str, Any]:
    volume = disk.volume
    shown = {
        "VolumeId": volume.id,
        "Size": volume.size,
        "State": state(disk),
        "AvailabilityZone": volume.zone.name,
        "CreateTime": volume.create_time,
        "SnapshotId": volume.snapshot_id or "",
        "VolumeType": volume.volume_type,
        "Iops": volume.iops,
        "Throughput": volume.throughput,
        "Encrypted": bool(volume.encrypted),
        "KmsKeyId": volume.kms_key_id,
        "MultiAttachEnabled": False,
        "Attachments": [attachment_view(volume.attachment)] if volume.attachment else [],
        "Tags": tag_list(backends.tags_of(region, volume.id)) or None,
    }
    return {name: value for name, value in shown.items() if value is not None}


def attachment_view(attachment: Any) -> dict[str, Any]:
    block = attachment.instance.block_device_mapping.get(attachment.device)
    return {
        "VolumeId": attachment.volume.id,
        "InstanceId": attachment.instance.id,
        "Device": attachment.device,
        "State": attachment.status,
        "AttachTime": attachment.attach_time,
        "DeleteOnTermination": bool(block and block.delete_on_termination),
    }


def created(disk: Disk) -> None:
    disk.creating = False


def attached(disk: Disk, instance_id: str) -> None:
    attachment = disk.volume.attachment
    if attachment and attachment.instance.id == instance_id and attachment.status == "attaching":
        attachment.status = "attached"


def detached(disk: Disk, instance_id: str) -> None:
    attachment = disk.volume.attachment
    if attachment and attachment.instance.id == instance_id and attachment.status == "detaching":
        attachment.instance.block_device_mapping.pop(attachment.device, None)
        attachment.status = "detached"
        disk.volume.attachment = None


class Volumes:
    """Taken over by moto's class of the same calls."""

    def create_volume(self: Any) -> ActionResult:
        request = dict(self._get_params())
        asked = repr(sorted(request.items(), key=str))
        disk = WORLD.once(
            self.region, "CreateVolume", request.get("ClientToken"), asked, lambda: _create(self, request)
        )
        return ActionResult(view(self.region, disk))

    def describe_volumes(self: Any) -> ActionResult:
        ids = self._get_param("VolumeIds", [])
        found = [_seen(self.region, item) for item in ids] if ids else visible(self.region)
        found = filtered(
            found,
            self._get_param("Filters", []),
            READERS,
            lambda disk: backends.tags_of(self.region, disk.volume.id),
        )
        shown, following = page(found, self._get_param("NextToken"), self._get_int_param("MaxResults"), 500)
        return ActionResult({"Volumes": [view(self.region, disk) for disk in shown], "NextToken": following})

    def attach_volume(self: Any) -> ActionResult:
        disk = find(self.region, self._get_param("VolumeId"))
        machine = machines.find(self.region, self._get_param("InstanceId"))
        device = self._get_param("Device")
        self.error_on_dryrun()
        if WORLD.strict("attachments"):
            _check_attachment(disk, machine, device)
        elif disk.volume.attachment:
            disk.volume.attachment.instance.block_device_mapping.pop(disk.volume.attachment.device, None)
        attachment = VolumeAttachment(disk.volume, machine.instance, device, "attaching")
        disk.volume.attachment = attachment
        machine.instance.block_device_mapping[device] = BlockDeviceType(
            volume_id=disk.volume.id, size=disk.volume.size, attach_time=utcnow(), delete_on_termination=False
        )
        if not WORLD.strict("attachments"):
            attached(disk, machine.instance.id)
        else:
            _after(WORLD.settings.attaching_seconds, disk, lambda: attached(disk, machine.instance.id))
        return ActionResult(attachment_view(attachment))

    def detach_volume(self: Any) -> ActionResult:
        disk = find(self.region, self._get_param("VolumeId"))
        instance_id = self._get_param("InstanceId")
        device = self._get_param("Device")
        force = self._get_bool_param("Force", False)
        self.error_on_dryrun()
        attachment = disk.volume.attachment
        if attachment is None:
            raise CloudError("IncorrectState", f"Volume '{disk.volume.id}' is in the 'available' state.")
        if instance_id and instance_id != attachment.instance.id or device and device != attachment.device:
            raise CloudError(
                "InvalidAttachment.NotFound",
                f"The volume '{disk.volume.id}' is not attached to instance '{instance_id}' as device '{device}'.",
            )
        machine = WORLD.machines[attachment.instance.id]
        if attachment.device == machine.instance.root_device_name and machine.state != "stopped":
            raise CloudError(
                "OperationNotPermitted",
                f"Unable to detach root volume '{attachment.device}' from instance '{machine.instance.id}'",
            )
        attachment.status = "detaching"
        shown = attachment_view(attachment)
        done = lambda: detached(disk, machine.instance.id)  # noqa: E731
        if force or not WORLD.strict("attachments"):
            done()
        elif not WORLD.settings.hold_detaching:
            _after(WORLD.settings.detaching_seconds, disk, done)
        return ActionResult(shown)

    def delete_volume(self: Any) -> ActionResult:
        disk = find(self.region, self._get_param("VolumeId"))
        self.error_on_dryrun()
        if disk.volume.attachment:
            raise CloudError(
                "VolumeInUse",
                f"Volume {disk.volume.id} is currently attached to {disk.volume.attachment.instance.id}",
            )
        if disk.creating:
            raise CloudError("IncorrectState", f"The volume '{disk.volume.id}' is 'creating'.")
        tables = backends.ec2(self.region)
        tables.volumes.pop(disk.volume.id)
        tables.tags.pop(disk.volume.id, None)
        disk.deleted = True
        return ActionResult(None)


def _create(self: Any, request: dict[str, Any]) -> Disk:
    zone = request.get("AvailabilityZone")
    snapshot_id = request.get("SnapshotId")
    size = request.get("Size")
    tables = backends.ec2(self.region)
    if not any(item.name == zone for item in tables.describe_availability_zones()):
        raise CloudError("InvalidParameterValue", f"Invalid availability zone: [{zone}]")
    if zone in WORLD.troubles.get("closed_zones", ()):
        raise CloudError(
            "InsufficientVolumeCapacity", f"There is not enough capacity in {zone} for this volume.", 500
        )
    if snapshot_id:
        snapshot = tables.snapshots.get(snapshot_id)
        if snapshot is None:
            raise CloudError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
        if snapshot.status != "completed" and WORLD.strict("snapshots"):
            raise CloudError("IncorrectState", f"Snapshot is in invalid state - {snapshot.status}")
        least = WORLD.shots[snapshot_id].size if snapshot_id in WORLD.shots else snapshot.volume.size
        if size is not None and int(size) < least:
            raise CloudError(
                "InvalidParameterValue",
                f"Volume of {size}GiB is smaller than snapshot '{snapshot_id}', {least}GiB",
            )
        size = size or least
    if size is None:
        raise CloudError("MissingParameter", "The request must contain the parameter size/snapshot")
    tags = backends.tag_specification(request.get("TagSpecifications"))
    self.error_on_dryrun()
    volume = tables.create_volume(
        size=int(size),
        zone_name=zone,
        snapshot_id=snapshot_id,
        encrypted=bool(self._get_bool_param("Encrypted", False)),
        kms_key_id=request.get("KmsKeyId"),
        volume_type=request.get("VolumeType"),
        iops=request.get("Iops"),
        throughput=request.get("Throughput"),
    )
    volume.add_tags(tags.get("volume", {}))
    disk = WORLD.disks[volume.id] = Disk(volume, creating=True, born=WORLD.clock.now())
    _after(WORLD.settings.creating_seconds, disk, lambda: created(disk))
    return disk


def _check_attachment(disk: Disk, machine: Machine, device: str) -> None:
    volume, instance = disk.volume, machine.instance
    if machine.state not in ("running", "stopped"):
        raise CloudError("IncorrectState", f"Instance '{instance.id}' is not 'running'.")
    if volume.zone.name != instance.placement.zone:
        raise CloudError(
            "InvalidVolume.ZoneMismatch",
            f"The volume '{volume.id}' is not in the same availability zone as instance '{instance.id}'",
        )
    if volume.attachment:
        raise CloudError("VolumeInUse", f"{volume.id} is already attached to an instance")
    if disk.creating:
        raise CloudError("IncorrectState", f"The volume '{volume.id}' is not 'available'.")
    if device in instance.block_device_mapping:
        raise CloudError(
            "InvalidParameterValue",
            f"Invalid value '{device}' for unixDevice. Attachment point {device} is already in use",
        )


def _after(seconds: float, disk: Disk, done: Any) -> None:
    """By the clock, or, when machines follow, once they say so."""
    if disk.alarm:
        disk.alarm.cancel()
        disk.alarm = None
    if not WORLD.settings.followed:
        disk.alarm = WORLD.clock.later(seconds, done)
