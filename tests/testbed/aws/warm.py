"""Warm pools: members started ahead, put to rest, and taken into service later."""

from __future__ import annotations

from typing import Any

import group as groups
import machines
from group import Group, Member
from world import WORLD

READY = ("Warmed:Stopped", "Warmed:Running", "Warmed:Hibernated")


def put(group: Group, wanted: dict[str, Any]) -> None:
    prepared = wanted.get("MaxGroupPreparedCapacity")
    group.warm = {
        "MinSize": int(wanted.get("MinSize") or 0),
        "MaxGroupPreparedCapacity": None if prepared in (None, -1) else int(prepared),
        "PoolState": wanted.get("PoolState") or "Stopped",
        "ReuseOnScaleIn": str((wanted.get("InstanceReusePolicy") or {}).get("ReuseOnScaleIn")).lower()
        == "true",
    }
    groups.soon(group)


def takes_back(group: Group) -> bool:
    return bool(group.warm and group.warm["ReuseOnScaleIn"])


def members(group: Group) -> list[Member]:
    return [member for member in group.members.values() if member.is_warm]


def size(group: Group) -> int:
    if not group.warm:
        return 0
    prepared = group.warm["MaxGroupPreparedCapacity"]
    return max(group.warm["MinSize"], (group.high if prepared is None else prepared) - group.desired)


def settle(group: Group) -> None:
    staying = [member for member in members(group) if not member.is_leaving]
    returning = [member for member in group.members.values() if member.to_warm]
    wanted = 0 if group.deleting else size(group)
    have = len(staying) + len(returning)
    if have < wanted and group.does("Launch"):
        for _ in range(wanted - have):
            try:
                groups.launch(group, groups.next_subnet(group, group.subnets), warm_first=True)
            except groups.CloudError as error:
                group.tell(
                    "Launching a new EC2 instance into warm pool.",
                    "the warm pool is too small",
                    "Failed",
                    error.message,
                )
                group.failures += 1
                groups.try_again(group)
                return
    elif have > wanted and group.does("Terminate"):
        for member in sorted(staying, key=lambda one: one.born)[: have - wanted]:
            groups.leave(group, member, "was taken out of the warm pool, which is too large")


def bring_out(group: Group) -> bool:
    """Takes a ready member into service instead of a fresh one."""
    ready = [
        member
        for member in members(group)
        if member.state in READY and member.machine.state in ("stopped", "running")
    ]
    if not ready:
        return False
    member = min(ready, key=lambda one: one.born)
    WORLD.happened("warm-out", group=group.name, instance=member.id)
    member.state = "Pending"
    if member.machine.state == "running":
        groups.changed(member.machine)
    else:
        machines.begin_boot(member.machine, awake=member.machine.hibernated)
    return True


def settle_down(group: Group, member: Member) -> None:
    """Its hooks are done: to rest."""
    if group.warm is None or member.machine.state != "running":
        groups.leave(group, member, "was taken out of the warm pool, which is gone, or does not run")
        return
    if group.warm["PoolState"] == "Running":
        return rest(group, member)
    member.state = "Warmed:Pending:Proceed"
    configured = bool((member.machine.instance.hibernation_options or {}).get("Configured"))
    hibernate = group.warm["PoolState"] == "Hibernated" and configured
    machines.begin_stop(
        member.machine, hibernate, "Client.UserInitiatedShutdown", "Stopped for the warm pool"
    )


def rest(group: Group, member: Member) -> None:
    if member.machine.state == "running":
        member.state = "Warmed:Running"
    else:
        member.state = "Warmed:Hibernated" if member.machine.hibernated else "Warmed:Stopped"
    WORLD.happened("warmed", group=group.name, instance=member.id, state=member.state)
    groups.soon(group)


def enter(group: Group, member: Member) -> None:
    """Back from service, when the pool takes members back."""
    member.protected = False
    if group.warm is None or member.machine.state != "running":
        return groups.end(group, member)
    member.state = "Warmed:Pending"
    groups.changed(member.machine)


def delete(group: Group) -> None:
    group.warm = None
    groups.soon(group)
