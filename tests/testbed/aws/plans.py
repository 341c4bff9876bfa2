"""What a launch is made of: a request merged over a launch template, as EC2 merges them.

moto drops a template's hibernation and metadata options, its network interfaces and its market; this keeps them.
"""

from typing import Any

import backends
from errors import CloudError
from moto.ec2.utils import parse_user_data

ROOT_GIB = 8
# Kept of a template or a request, by the request's name.
PLAIN = (
    "ImageId",
    "InstanceType",
    "KeyName",
    "UserData",
    "HibernationOptions",
    "MetadataOptions",
    "EbsOptimized",
    "DisableApiTermination",
    "DisableApiStop",
    "InstanceInitiatedShutdownBehavior",
    "InstanceMarketOptions",
    "IamInstanceProfile",
    "PrivateIpAddress",
    "Placement",
)


def plan(
    region: str, request: dict[str, Any], template_spec: dict[str, Any] | None, subnet_id: str | None
) -> dict[str, Any]:
    """Checks it too; the errors are those of RunInstances."""
    data = backends.template(region, template_spec).data if template_spec else {}
    merged = {name: request.get(name) or data.get(name) for name in PLAIN}
    nics = request.get("NetworkInterfaces") or data.get("NetworkInterfaces") or []
    nic = nics[0] if nics else {}
    subnet_id = subnet_id or request.get("SubnetId") or data.get("SubnetId") or nic.get("SubnetId")
    if not subnet_id:
        raise CloudError("MissingInput", "No subnets found for the default VPC. Please specify a subnet.")
    groups = (
        request.get("SecurityGroupIds")
        or data.get("SecurityGroupIds")
        or nic.get("Groups")
        or nic.get("SecurityGroupId")
        or []
    )
    image = _image(region, merged["ImageId"])
    blocks = _blocks(region, image, data.get("BlockDeviceMappings"), request.get("BlockDeviceMappings"))
    hibernation = _truth((merged["HibernationOptions"] or {}).get("Configured"))
    root = next(block for block in blocks if block["DeviceName"] == image.root_device_name)
    if hibernation and not _truth(root["Ebs"].get("Encrypted")):
        raise CloudError(
            "UnsupportedHibernationConfiguration",
            "Hibernation requires an encrypted EBS root volume; the root volume of this launch is not encrypted.",
        )
    market = merged["InstanceMarketOptions"] or {}
    spot = market.get("MarketType") == "spot" and (
        (market.get("SpotOptions") or {}).get("SpotInstanceType") or "one-time"
    )
    tags = backends.tag_specification(data.get("TagSpecifications"))
    for kind, values in backends.tag_specification(request.get("TagSpecifications")).items():
        tags.setdefault(kind, {}).update(values)
    arguments: dict[str, Any] = {
        "region_name": region,
        "instance_type": merged["InstanceType"] or "m1.small",
        "is_instance_type_default": False,
        "key_name": _key(region, merged["KeyName"]),
        "security_group_ids": list(groups),
        "private_ip": merged["PrivateIpAddress"] or nic.get("PrivateIpAddress"),
        "associate_public_ip": False,
        "ebs_optimized": _truth(merged["EbsOptimized"]),
        "disable_api_stop": _truth(merged["DisableApiStop"]),
        "disable_api_termination": _truth(merged["DisableApiTermination"]),
        "hibernation_options": {"Configured": hibernation},
        "metadata_options": merged["MetadataOptions"] or {},
        "instance_initiated_shutdown_behavior": merged["InstanceInitiatedShutdownBehavior"],
        "block_device_mappings": blocks,
        "client_token": request.get("ClientToken"),
    }
    if template_spec:
        arguments["launch_template"] = template_spec
    return {
        "image_id": image.id,
        "user_data": parse_user_data(merged["UserData"]),
        "subnet_id": subnet_id,
        "tags": tags,
        "spot": spot or None,
        "arguments": arguments,
    }


def _truth(value: Any) -> bool:
    return str(value).lower() == "true"


def _image(region: str, image_id: str | None) -> Any:
    if not image_id:
        raise CloudError("MissingParameter", "The request must contain the parameter ImageId")
    image = backends.ec2(region).amis.get(image_id)
    if image is None:
        raise CloudError("InvalidAMIID.NotFound", f"The image id '[{image_id}]' does not exist")
    return image


def _key(region: str, name: str | None) -> str | None:
    if name and name not in backends.ec2(region).key_pairs:
        raise CloudError("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")
    return name


def _blocks(region: str, image: Any, *layers: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """One mapping a device: the image's root, then the template's, then the request's."""
    merged: dict[str, dict[str, Any]] = {
        image.root_device_name: {"VolumeSize": ROOT_GIB, "DeleteOnTermination": True, "VolumeType": "gp3"}
    }
    for layer in layers:
        for block in layer or []:
            if block.get("NoDevice") is not None:
                merged.pop(block["DeviceName"], None)
            else:
                merged.setdefault(block["DeviceName"], {}).update(block.get("Ebs") or {})
    snapshots = backends.ec2(region).snapshots
    blocks = []
    for device, wanted in merged.items():
        ebs = dict(wanted)
        snapshot_id = ebs.get("SnapshotId")
        if snapshot_id:
            snapshot = snapshots.get(snapshot_id)
            if snapshot is None:
                raise CloudError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
            if snapshot.status != "completed":
                raise CloudError("IncorrectState", f"Snapshot is in invalid state - {snapshot.status}")
            ebs.setdefault("VolumeSize", snapshot.volume.size)
        ebs["VolumeSize"] = int(ebs.get("VolumeSize") or ROOT_GIB)
        ebs["Encrypted"] = _truth(ebs.get("Encrypted"))
        # A data volume stays behind unless it is told otherwise; a root goes with its instance.
        ebs["DeleteOnTermination"] = _truth(ebs.get("DeleteOnTermination", False))
        blocks.append({"DeviceName": device, "Ebs": ebs})
    return blocks
