"""EC2's calls about snapshots: pending with a progress, then completed."""

from typing import Any

import backends
import machines
import volumes
from errors import CloudError
from listing import filtered, page, tag_list
from moto.core.responses import ActionResult
from world import WORLD, Shot

# For one volume; a sixth is refused.
PENDING_AT_MOST = 5

READERS = {
    "snapshot-id": lambda s: s.snapshot.id,
    "status": lambda s: s.snapshot.status,
    "volume-id": lambda s: s.snapshot.volume.id,
    "volume-size": lambda s: s.size,
    "description": lambda s: s.snapshot.description,
    "owner-id": lambda s: s.snapshot.owner_id,
    "progress": lambda s: progress(s),
    "encrypted": lambda s: str(bool(s.snapshot.encrypted)).lower(),
}


def shot(snapshot: Any) -> Shot:
    """Its record; one that moto made for an image is complete."""
    return WORLD.shots.setdefault(
        snapshot.id, Shot(snapshot, WORLD.clock.now(), pending=False, size=snapshot.volume.size)
    )


def find(region: str, snapshot_id: str) -> Shot:
    snapshot = backends.ec2(region).snapshots.get(snapshot_id)
    if snapshot is None:
        raise CloudError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
    return shot(snapshot)


def visible(region: str) -> list[Shot]:
    all_of_them = [shot(snapshot) for snapshot in backends.ec2(region).snapshots.values()]
    return [record for record in all_of_them if not is_unseen(record)]


def is_unseen(record: Shot) -> bool:
    """Too fresh: what describes snapshots is behind what begins them."""
    return WORLD.clock.now() < record.begun + WORLD.settings.eventual_seconds


def _seen(region: str, snapshot_id: str) -> Shot:
    record = find(region, snapshot_id)
    if is_unseen(record):
        raise CloudError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
    return record


def progress(record: Shot) -> str:
    if not record.pending:
        return "100%"
    if record.hangs:
        return "42%"
    spent = (WORLD.clock.now() - record.begun) / max(WORLD.settings.snapshot_seconds, 0.001)
    return f"{min(int(spent * 100), 99)}%"


def complete(record: Shot) -> None:
    if record.pending and not record.hangs:
        record.pending = False
        record.snapshot.status = "completed"
        WORLD.happened("snapshot-completed", snapshot=record.snapshot.id)


def view(region: str, record: Shot) -> dict[str, Any]:
    snapshot = record.snapshot
    shown = {
        "SnapshotId": snapshot.id,
        "VolumeId": snapshot.volume.id,
        "VolumeSize": record.size,
        "State": snapshot.status,
        "Progress": progress(record),
        "StartTime": snapshot.start_time,
        "Description": snapshot.description or "",
        "Encrypted": bool(snapshot.encrypted),
        "OwnerId": snapshot.owner_id,
        "StorageTier": snapshot.storage_tier,
        "Tags": tag_list(backends.tags_of(region, snapshot.id)) or None,
    }
    return {name: value for name, value in shown.items() if value is not None}


def begin(region: str, disk: Any, description: str, tags: dict[str, str]) -> Shot:
    if WORLD.strict("snapshots"):
        _check(disk)
    snapshot = backends.ec2(region).create_snapshot(disk.volume.id, description)
    snapshot.add_tags(tags)
    disk.shot_at = WORLD.clock.now()
    return _pending(Shot(snapshot, disk.shot_at, size=disk.volume.size))


def copy(region: str, source: Shot, description: str, tags: dict[str, str]) -> Shot:
    if source.pending and WORLD.strict("snapshots"):
        raise CloudError("IncorrectState", f"The snapshot '{source.snapshot.id}' is 'pending'.")
    snapshot = backends.ec2(region).copy_snapshot(source.snapshot.id, region, description, None)
    snapshot.add_tags(tags)
    return _pending(Shot(snapshot, WORLD.clock.now(), size=source.size, copy_of=source.snapshot.id))


def _pending(record: Shot) -> Shot:
    snapshot = record.snapshot
    WORLD.shots[snapshot.id] = record
    if not WORLD.strict("snapshots"):
        complete(record)
        return record
    snapshot.status = "pending"
    record.hangs = bool(WORLD.troubles.get("snapshot_hangs"))
    if not WORLD.settings.followed:
        WORLD.clock.later(WORLD.settings.snapshot_seconds, lambda: complete(record))
    return record


class Snapshots:
    """Taken over by moto's class of the same calls."""

    def create_snapshot(self: Any) -> ActionResult:
        disk = volumes.find(self.region, self._get_param("VolumeId"))
        tags = backends.tag_specification(self._get_param("TagSpecifications", []))
        self.error_on_dryrun()
        record = begin(self.region, disk, self._get_param("Description") or "", tags.get("snapshot", {}))
        return ActionResult(view(self.region, record))

    def copy_snapshot(self: Any) -> ActionResult:
        """Within the region. What is copied may be deleted once the copy is complete."""
        source = find(self.region, self._get_param("SourceSnapshotId"))
        tags = backends.tag_specification(self._get_param("TagSpecifications", []))
        self.error_on_dryrun()
        record = copy(self.region, source, self._get_param("Description") or "", tags.get("snapshot", {}))
        return ActionResult({"SnapshotId": record.snapshot.id, "TagSet": tag_list(tags.get("snapshot", {}))})

    def create_snapshots(self: Any) -> ActionResult:
        """Of all volumes of an instance at one moment."""
        machine = machines.find(self.region, self._get_param("InstanceSpecification.InstanceId"))
        no_root = self._get_bool_param("InstanceSpecification.ExcludeBootVolume", False)
        tags = backends.tag_specification(self._get_param("TagSpecifications", []))
        self.error_on_dryrun()
        made = [
            begin(
                self.region,
                volumes.find(self.region, block.volume_id),
                self._get_param("Description") or "",
                tags.get("snapshot", {}),
            )
            for device, block in machine.instance.block_device_mapping.items()
            if not no_root or device != machine.instance.root_device_name
        ]
        return ActionResult({"Snapshots": [view(self.region, record) for record in made]})

    def describe_snapshots(self: Any) -> ActionResult:
        ids = self._get_param("SnapshotIds", [])
        found = [_seen(self.region, item) for item in ids] if ids else visible(self.region)
        found = filtered(
            found,
            self._get_param("Filters", []),
            READERS,
            lambda item: backends.tags_of(self.region, item.snapshot.id),
        )
        shown, following = page(found, self._get_param("NextToken"), self._get_int_param("MaxResults"), 1000)
        return ActionResult(
            {"Snapshots": [view(self.region, item) for item in shown], "NextToken": following}
        )

    def delete_snapshot(self: Any) -> ActionResult:
        record = find(self.region, self._get_param("SnapshotId"))
        self.error_on_dryrun()
        tables = backends.ec2(self.region)
        tables.delete_snapshot(record.snapshot.id)
        tables.tags.pop(record.snapshot.id, None)
        WORLD.shots.pop(record.snapshot.id, None)
        return ActionResult(None)


def _check(disk: Any) -> None:
    if disk.creating:
        raise CloudError("IncorrectState", f"The volume '{disk.volume.id}' is 'creating'.")
    earliest = (disk.shot_at or 0) + WORLD.settings.snapshot_interval_seconds
    if disk.shot_at and WORLD.clock.now() < earliest:
        raise CloudError(
            "SnapshotCreationPerVolumeRateExceeded",
            "The maximum per volume CreateSnapshot request rate has been exceeded. Use an increasing or variable sleep "
            "interval between requests.",
        )
    pending = [shot for shot in WORLD.shots.values() if shot.pending and shot.snapshot.volume is disk.volume]
    if len(pending) >= PENDING_AT_MOST:
        raise CloudError(
            "ConcurrentSnapshotLimitExceeded",
            f"You have exceeded the maximum number of concurrent snapshots of {disk.volume.id}.",
        )
