"""What happens to an account without a call of its owner: `POST /lab/act`."""

from typing import Any

import backends
import group as groups
import machines
import refresh
import snapshots
import users
from clock import stamp
from errors import CloudError
from world import WORLD, Machine


def act(body: dict[str, Any]) -> dict[str, Any]:
    name = body.get("do")
    deed = DEEDS.get(name)
    if deed is None:
        raise CloudError("lab", f"do: {name!r} is none of {sorted(DEEDS)}")
    return deed(body) or {}


def _machine(body: dict[str, Any]) -> Machine:
    machine = WORLD.machines.get(body.get("instance", ""))
    if machine is None:
        raise CloudError("lab", f"instance: {body.get('instance')!r} does not exist")
    return machine


def _spot_notice(body: dict[str, Any]) -> dict[str, Any]:
    """The metadata tells it; at the end of the notice the instance is taken. Hibernation gives no notice."""
    machine, action = _machine(body), body.get("action", "terminate")
    if action not in ("terminate", "stop", "hibernate"):
        raise CloudError("lab", f"action: {action!r} is none of terminate, stop, hibernate")
    default = 0.0 if action == "hibernate" else WORLD.settings.spot_notice_seconds
    seconds = float(body.get("seconds", default))
    machine.spot_action = {"action": action, "time": (stamp(WORLD.clock.now() + seconds) or "")[:19] + "Z"}
    WORLD.clock.later(seconds, lambda: _reclaim(machine, action))
    return machine.spot_action


def _reclaim(machine: Machine, action: str) -> None:
    if machine.state not in ("running", "pending"):
        return
    WORLD.happened("spot-reclaimed", instance=machine.instance_id, action=action)
    if action == "terminate":
        machines.begin_termination(machine, "Server.SpotInstanceTermination", "Spot instance termination")
    else:
        machines.begin_stop(
            machine,
            action == "hibernate",
            "Server.SpotInstanceShutdown",
            "Instance was stopped: no spot capacity",
        )


def _rebalance(body: dict[str, Any]) -> None:
    _machine(body).rebalance = (stamp(WORLD.clock.now()) or "")[:19] + "Z"


def _terminate(body: dict[str, Any]) -> None:
    """By hand, in the console: termination protection was taken off before."""
    machines.begin_termination(_machine(body), "Client.UserInitiatedShutdown", "User initiated shutdown")


def _stop(body: dict[str, Any]) -> None:
    """By hand, or from inside."""
    machine = _machine(body)
    if machine.state != "running":
        raise CloudError("lab", f"instance: {machine.instance_id} is {machine.state}, not running")
    machines.begin_stop(machine, False, "Client.InstanceInitiatedShutdown", "Instance initiated shutdown")


def _unhealthy(body: dict[str, Any]) -> None:
    group, member = groups.group_of(WORLD.region, body.get("instance", ""))
    member.healthy = False
    WORLD.clock.later(WORLD.settings.health_seconds, lambda: groups.check_health(group, member))


def _refresh(body: dict[str, Any]) -> dict[str, Any]:
    group = groups.find(body.get("region", WORLD.region), body.get("group"))
    return {"id": refresh.start(group, body.get("preferences") or {}).id}


def _remove_tags(body: dict[str, Any]) -> None:
    """By hand; all but those of AWS, or the named ones."""
    tags = backends.ec2(body.get("region", WORLD.region)).tags.get(body.get("resource", ""), {})
    for key in body.get("keys") or [key for key in tags if not key.startswith("aws:")]:
        tags.pop(key, None)


def _fail_snapshot(body: dict[str, Any]) -> None:
    record = snapshots.find(body.get("region", WORLD.region), body.get("snapshot", ""))
    record.pending = False
    record.failed = True
    record.snapshot.status = "error"


def _trouble(name: str, value: Any = True) -> Any:
    def begin(body: dict[str, Any]) -> None:
        WORLD.troubles[name] = value

    return begin


def _stop_hangs(body: dict[str, Any]) -> None:
    """All stops from now on, or those of one instance."""
    instance = body.get("instance")
    if instance is None:
        WORLD.troubles["stop_hangs"] = True
    elif WORLD.troubles.get("stop_hangs") is not True:
        WORLD.troubles.setdefault("stop_hangs", set()).add(instance)


def _close_zone(body: dict[str, Any]) -> None:
    WORLD.troubles.setdefault("closed_zones", set()).add(body["zone"])


def _deny(body: dict[str, Any]) -> None:
    """Actions as in a policy: `ec2:StopInstances`, `autoscaling:*`."""
    WORLD.troubles.setdefault("denied", set()).update(body["actions"])


def _expire(body: dict[str, Any]) -> None:
    kind = body.get("kind", "expired")
    if kind not in ("expired", "wrong"):
        raise CloudError("lab", f"kind: {kind!r} is none of expired, wrong")
    WORLD.troubles["credentials"] = kind


def _restore(body: dict[str, Any]) -> None:
    """Ends one trouble, or all; what hung because of it goes on."""
    what = body.get("what")
    for name in [what] if what else list(WORLD.troubles):
        WORLD.troubles.pop(name, None)
    if "stop_hangs" not in WORLD.troubles:
        for machine in WORLD.machines.values():
            if machine.stop_hangs:
                machine.stop_hangs = False
                if not WORLD.settings.followed:
                    machines.stopped(machine)
    if "snapshot_hangs" not in WORLD.troubles:
        for record in WORLD.shots.values():
            if record.hangs:
                record.hangs = False
                if not WORLD.settings.followed:
                    snapshots.complete(record)


def _pass_time(body: dict[str, Any]) -> None:
    WORLD.clock.skip(float(body["seconds"]))


DEEDS = {
    "spot-notice": _spot_notice,
    "rebalance": _rebalance,
    "terminate": _terminate,
    "stop": _stop,
    "unhealthy": _unhealthy,
    "instance-refresh": _refresh,
    "remove-tags": _remove_tags,
    "fail-snapshot": _fail_snapshot,
    "stop-hangs": _stop_hangs,
    "snapshot-hangs": _trouble("snapshot_hangs"),
    "no-capacity": _trouble("no_capacity"),
    "hibernate-degrades": _trouble("hibernate_degrades"),
    "kms-disabled": _trouble("kms_disabled"),
    "az-closed": _close_zone,
    "deny": _deny,
    "expire-credentials": _expire,
    "restore": _restore,
    "pass-time": _pass_time,
    "add-user": users.add,
    "add-role": users.add_role,
    "remove-key": users.remove_key,
}
