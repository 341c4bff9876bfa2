"""Instance refreshes: every member replaced, some at a time."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import backends
import group as groups
from errors import CloudError
from group import Group, Member
from world import WORLD


@dataclass
class Refresh:
    """One, running or over."""

    id: str
    preferences: dict[str, Any]
    begun: float
    left: set[str]
    count: int
    status: str = "InProgress"
    reason: str | None = None
    ended: float | None = None
    waiting_since: float | None = None
    going: set[str] = field(default_factory=set)

    @property
    def protected(self) -> str:
        return self.preferences.get("ScaleInProtectedInstances") or "Wait"

    @property
    def standby(self) -> str:
        return self.preferences.get("StandbyInstances") or "Wait"


def running(group: Group) -> Refresh | None:
    return next((one for one in group.refreshes if one.status == "InProgress"), None)


def start(group: Group, preferences: dict[str, Any]) -> Refresh:
    if running(group):
        raise CloudError(
            "InstanceRefreshInProgress",
            "An Instance Refresh is already in progress and blocks the execution of this Instance Refresh.",
        )
    skip = str(preferences.get("SkipMatching")).lower() == "true"
    current = str(backends.template(group.region, group.template).number)
    left = {
        member.id
        for member in group.members.values()
        if (member.is_active or member.state == "Standby")
        and not (skip and member.template_version == current)
    }
    refresh = Refresh(str(uuid.uuid4()), preferences, WORLD.clock.now(), left, max(len(left), 1))
    group.refreshes.insert(0, refresh)
    groups.soon(group)
    return refresh


def cancel(group: Group) -> Refresh:
    refresh = running(group)
    if refresh is None:
        raise CloudError("ActiveInstanceRefreshNotFound", "No in progress or pending Instance Refresh found.")
    finish(refresh, "Cancelled", "Cancelled due to user request.")
    return refresh


def finish(refresh: Refresh, status: str, reason: str | None) -> None:
    refresh.status = status
    refresh.reason = reason
    refresh.ended = WORLD.clock.now()


def settle(group: Group) -> None:
    """Takes as many members as the least healthy share allows, one at least, once the last ones were replaced."""
    refresh = running(group)
    if refresh is None or not group.does("InstanceRefresh"):
        return
    refresh.left &= set(group.members)
    serving = [member for member in group.active() if member.state == "InService"]
    if refresh.going & set(group.members) or len(serving) < group.desired:
        return
    refresh.going.clear()
    if not refresh.left:
        return finish(refresh, "Successful", None)
    share = refresh.preferences.get("MinHealthyPercentage")
    least = 90 if share is None else int(share)
    batch = max(1, len(serving) * (100 - least) // 100)
    held = []
    for instance_id in sorted(refresh.left, key=lambda one: group.members[one].born):
        member = group.members[instance_id]
        rule = _rule(refresh, member)
        if rule == "Ignore" or member.is_leaving:
            refresh.left.discard(instance_id)
        elif rule == "Wait":
            held.append(instance_id)
        elif batch > 0:
            batch -= 1
            refresh.left.discard(instance_id)
            refresh.going.add(instance_id)
            WORLD.happened("refreshed", group=group.name, instance=instance_id, protected=member.protected)
            groups.leave(group, member, "was taken out of service in response to an instance refresh")
    if not refresh.going and not refresh.left:
        finish(refresh, "Successful", None)
    elif refresh.going:
        refresh.waiting_since = None
    else:
        hold(refresh, held)


def hold(refresh: Refresh, held: list[str]) -> None:
    """Only members are left whose protection or standby has to end first: it waits an hour, then fails.

    The calls that end either let the group settle again.
    """
    refresh.reason = (
        f"Waiting for remaining instances to be available. For example: {held[0]} is protected from scale in."
    )
    if refresh.waiting_since is None:
        refresh.waiting_since = WORLD.clock.now()
        since = refresh.waiting_since
        WORLD.clock.later(WORLD.settings.refresh_wait_seconds, lambda: give_up(refresh, since))


def give_up(refresh: Refresh, since: float) -> None:
    if refresh.status == "InProgress" and refresh.waiting_since == since:
        finish(
            refresh,
            "Failed",
            "The refresh failed because instances stayed protected from scale in or in standby.",
        )


def _rule(refresh: Refresh, member: Member) -> str:
    if member.state == "Standby":
        return refresh.standby
    return refresh.protected if member.protected else "Refresh"
