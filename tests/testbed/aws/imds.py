"""The instance metadata service (IMDSv2) of every instance, below `/lab/imds/<instance>/`."""

import json
import uuid

from world import WORLD

Answer = tuple[int, str, str]
TEXT = "text/plain"

# Tokens and when they end, by instance.
TOKENS: dict[tuple[str, str], float] = {}


def answer(method: str, path: str, token: str | None, ttl: str | None) -> Answer:
    instance_id, _, wanted = path.partition("/")
    machine = WORLD.machines.get(instance_id)
    if machine is None or machine.state not in ("pending", "running", "stopping", "shutting-down"):
        return 404, TEXT, ""
    if wanted == "latest/api/token":
        if method != "PUT":
            return 405, TEXT, ""
        if not ttl or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return 400, TEXT, ""
        fresh = uuid.uuid4().hex
        TOKENS[(instance_id, fresh)] = WORLD.clock.now() + int(ttl)
        return 200, TEXT, fresh
    if TOKENS.get((instance_id, token or ""), 0.0) < WORLD.clock.now():
        return 401, TEXT, ""
    if method != "GET":
        return 405, TEXT, ""
    instance = machine.instance
    simple = {
        "instance-id": instance_id,
        "instance-type": instance.instance_type,
        "ami-id": instance.image_id,
        "local-ipv4": instance.private_ip_address,
        "local-hostname": instance.private_dns_name,
        "placement/availability-zone": instance.placement.zone,
        "placement/region": machine.region,
        "instance-life-cycle": "spot" if machine.spot_request else "on-demand",
    }
    name = wanted.removeprefix("latest/meta-data/")
    if wanted.startswith("latest/meta-data/") and simple.get(name):
        return 200, TEXT, simple[name]
    if name == "spot/instance-action" and machine.spot_action:
        return 200, "application/json", json.dumps(machine.spot_action)
    if name == "events/recommendations/rebalance" and machine.rebalance:
        return 200, "application/json", json.dumps({"noticeTime": machine.rebalance})
    if wanted == "latest/user-data" and instance.user_data:
        return 200, TEXT, str(instance.user_data)
    return 404, TEXT, ""
