"""Lifecycle hooks: members that wait on their way in or out, heartbeats, and what an abandoned wait ends in."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import group as groups
from errors import validation
from group import Group, Member
from world import WORLD

LAUNCHING = "autoscaling:EC2_INSTANCE_LAUNCHING"
TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"
LONGEST = 172_800
BEATS_AT_MOST = 100


@dataclass
class Hook:
    """A hook of a group."""

    name: str
    transition: str
    timeout: float
    result: str
    target: str | None = None
    role: str | None = None
    metadata: str | None = None

    @property
    def global_timeout(self) -> float:
        return min(LONGEST, BEATS_AT_MOST * self.timeout)


@dataclass
class Wait:
    """A member waiting for one hook."""

    hook: Hook
    token: str
    begun: float
    alarm: Any = None


def put(group: Group, wanted: dict[str, Any]) -> None:
    name = wanted["LifecycleHookName"]
    known = group.hooks.get(name)
    transition = wanted.get("LifecycleTransition") or (known and known.transition)
    if transition not in (LAUNCHING, TERMINATING):
        raise validation(
            f"Lifecycle transition {transition} is not valid. Use one of {LAUNCHING}, {TERMINATING}."
        )
    timeout = float(wanted.get("HeartbeatTimeout") or (known.timeout if known else 3600))
    if WORLD.strict("hooks") and not WORLD.settings.hook_minimum_seconds <= timeout <= 7200:
        raise validation("HeartbeatTimeout must be between 30 and 7200 seconds.")
    result = wanted.get("DefaultResult") or (known.result if known else "ABANDON")
    if result not in ("CONTINUE", "ABANDON"):
        raise validation(f"Lifecycle action result {result} is not valid. Use CONTINUE or ABANDON.")
    group.hooks[name] = Hook(
        name,
        transition,
        timeout,
        result,
        wanted.get("NotificationTargetARN"),
        wanted.get("RoleARN"),
        wanted.get("NotificationMetadata"),
    )


def delete(group: Group, name: str) -> None:
    """Who waits for it goes on: in with ABANDON, out with CONTINUE."""
    hook = group.hooks.pop(name, None)
    if hook is None:
        raise validation(f"No Lifecycle Hook found with name {name} in Auto Scaling group {group.name}.")
    for member in list(group.members.values()):
        if name in member.waits:
            finish(group, member, name, "CONTINUE" if hook.transition == TERMINATING else "ABANDON")


def arrive(group: Group, member: Member) -> None:
    """The instance runs: wait for the hooks, else go into service (or to rest in the warm pool)."""
    wait(group, member, LAUNCHING, "Warmed:Pending" if member.is_warm else "Pending")


def depart(group: Group, member: Member) -> None:
    for name in list(member.waits):
        drop(member, name)
    wait(group, member, TERMINATING, "Warmed:Terminating" if member.is_warm else "Terminating")


def wait(group: Group, member: Member, transition: str, state: str) -> None:
    member.state = state
    hooks = (
        [hook for hook in group.hooks.values() if hook.transition == transition]
        if WORLD.strict("hooks")
        else []
    )
    if not hooks:
        return passed(group, member)
    member.state = f"{state}:Wait"
    for hook in hooks:
        waiting = member.waits[hook.name] = Wait(hook, str(uuid.uuid4()), WORLD.clock.now())
        ring(group, member, waiting)


def ring(group: Group, member: Member, waiting: Wait) -> None:
    """Starts its time-out again, within the limit of all its time-outs together."""
    if waiting.alarm:
        waiting.alarm.cancel()
    now = WORLD.clock.now()
    left = max(0.0, min(waiting.hook.timeout, waiting.begun + waiting.hook.global_timeout - now))
    waiting.alarm = WORLD.clock.later(left, lambda: expire(group, member, waiting.hook))


def expire(group: Group, member: Member, hook: Hook) -> None:
    if hook.name not in member.waits:
        return
    WORLD.happened(
        "hook-expired",
        group=group.name,
        instance=member.id,
        hook=hook.name,
        result=hook.result,
        state=member.state,
    )
    finish(group, member, hook.name, hook.result)


def drop(member: Member, name: str) -> None:
    waiting = member.waits.pop(name)
    if waiting.alarm:
        waiting.alarm.cancel()


def finish(group: Group, member: Member, name: str, result: str) -> None:
    drop(member, name)
    if result == "ABANDON":
        member.abandoned = True
        for other in list(member.waits):
            drop(member, other)
    if not member.waits:
        passed(group, member)


def passed(group: Group, member: Member) -> None:
    """All its hooks are done, or there are none."""
    import warm

    state = member.state.removesuffix(":Wait")
    if state == "Terminating":
        if member.abandoned and group.retain and member.machine.state not in ("shutting-down", "terminated"):
            member.state = "Terminating:Retained"
            member.abandoned = False
            WORLD.happened("retained", group=group.name, instance=member.id)
            return groups.soon(group)
        return groups.end(group, member)
    if state == "Warmed:Terminating":
        return groups.end(group, member)
    if member.abandoned:
        groups.leave(group, member, "was taken out of service because its launch was abandoned")
        return
    if state == "Warmed:Pending":
        return warm.settle_down(group, member)
    member.state = "InService"
    if group.protect_new:
        member.protected = True
    groups.look_at_health(group, member)
    groups.soon(group)


def action(group: Group, name: str, instance_id: str | None, token: str | None) -> Member:
    """The member whose wait a call means."""
    if name not in group.hooks:
        raise validation(f"No Lifecycle Hook found with name {name} in Auto Scaling group {group.name}.")
    for member in group.members.values():
        waiting = member.waits.get(name)
        if waiting and (member.id == instance_id or token is not None and waiting.token == token):
            return member
    raise validation(
        f"No active Lifecycle Action found with token {token}"
        if token
        else f"No active Lifecycle Action found with instance ID {instance_id}"
    )
