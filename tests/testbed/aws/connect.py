"""EC2 Instance Connect: a public key that opens an instance for a minute."""

import json
from typing import Any

import machines
from clock import stamp
from errors import CloudError
from world import WORLD

VALID_SECONDS = 60.0


class Connect:
    """Taken over by moto's class of the same calls."""

    def send_ssh_public_key(self: Any) -> str:
        asked = json.loads(self.body)
        try:
            machine = machines.find(self.region, asked.get("InstanceId", ""))
        except CloudError as error:
            raise CloudError("EC2InstanceNotFoundException", error.message, 404) from error
        if machine.state != "running":
            raise CloudError(
                "EC2InstanceStateInvalidException",
                f"Unable to connect: instance {machine.instance_id} is {machine.state}, not running.",
            )
        zone = asked.get("AvailabilityZone")
        if zone and zone != machine.instance.placement.zone:
            raise CloudError(
                "InvalidArgsException", f"AvailabilityZone {zone} is not that of {machine.instance_id}."
            )
        if not str(asked.get("SSHPublicKey", "")).startswith(("ssh-", "ecdsa-")) or not asked.get(
            "InstanceOSUser"
        ):
            raise CloudError(
                "InvalidArgsException", "InstanceOSUser and SSHPublicKey in OpenSSH format are needed."
            )
        WORLD.pushed.append(
            {
                "instance": machine.instance_id,
                "user": asked["InstanceOSUser"],
                "key": asked["SSHPublicKey"].strip(),
                "at": WORLD.clock.now(),
            }
        )
        return json.dumps({"RequestId": "lab", "Success": True})


def valid_keys() -> list[dict[str, Any]]:
    oldest = WORLD.clock.now() - VALID_SECONDS
    WORLD.pushed = [key for key in WORLD.pushed if key["at"] > oldest]
    return [{**key, "at": stamp(key["at"])} for key in WORLD.pushed]
