"""An Auto Scaling group and what it does by itself: launch, replace, shrink.

`settle` is the whole of it: it compares the members with the desired capacity and takes one step; what it starts
ends in another `settle`. A member's way through its hooks is in `hooks.py`, warm members are in `warm.py`, refreshes
in `refresh.py`; these call back here, so they are imported where they are used.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import backends
import machines
from errors import CloudError, validation
from plans import plan
from world import WORLD, Machine

# Count towards the desired capacity.
ACTIVE = ("Pending", "Pending:Wait", "Pending:Proceed", "InService")
PROCESSES = (
    "Launch",
    "Terminate",
    "AddToLoadBalancer",
    "AlarmNotification",
    "AZRebalance",
    "HealthCheck",
    "InstanceRefresh",
    "ReplaceUnhealthy",
    "ScheduledActions",
)


@dataclass
class Member:
    """An instance of a group."""

    machine: Machine
    state: str
    template_version: str
    born: float
    healthy: bool = True
    protected: bool = False
    # Its hooks that are not completed, by name; see hooks.py.
    waits: dict[str, Any] = field(default_factory=dict)
    abandoned: bool = False
    to_warm: bool = False
    health_alarm: Any = None

    @property
    def id(self) -> str:
        return self.machine.instance_id

    @property
    def zone(self) -> str:
        return self.machine.instance.placement.zone

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def is_warm(self) -> bool:
        return self.state.startswith("Warmed:")

    @property
    def is_leaving(self) -> bool:
        return "Terminating" in self.state or self.state == "Detaching"


@dataclass
class Group:
    """Settings as they were given, and the members."""

    name: str
    region: str
    low: int
    high: int
    desired: int
    subnets: list[str]
    template: dict[str, Any]
    given: dict[str, Any]
    created: float
    protect_new: bool = False
    retain: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, tuple[str, bool]] = field(default_factory=dict)
    hooks: dict[str, Any] = field(default_factory=dict)
    suspended: set[str] = field(default_factory=set)
    members: dict[str, Member] = field(default_factory=dict)
    warm: dict[str, Any] | None = None
    refreshes: list[Any] = field(default_factory=list)
    activities: list[dict[str, Any]] = field(default_factory=list)
    deleting: bool = False
    failures: int = 0
    retry: Any = None

    def active(self) -> list[Member]:
        return [member for member in self.members.values() if member.is_active]

    def does(self, process: str) -> bool:
        return process not in self.suspended or not WORLD.strict("processes")

    def zones(self) -> list[str]:
        return sorted({backends.subnet(self.region, subnet).availability_zone for subnet in self.subnets})

    def tell(
        self, description: str, cause: str, status: str = "Successful", message: str | None = None
    ) -> dict[str, Any]:
        now = WORLD.clock.now()
        activity = {
            "id": str(uuid.uuid4()),
            "description": description,
            "cause": cause,
            "at": now,
            "status": status,
            "message": message,
        }
        self.activities.insert(0, activity)
        return activity


def find(region: str, name: str | None) -> Group:
    group = WORLD.groups.get((region, name or ""))
    if group is None:
        raise validation(f"Group {name} not found")
    return group


def member_of(group: Group, instance_id: str) -> Member:
    member = group.members.get(instance_id)
    if member is None:
        raise validation(f"The instance {instance_id} is not part of Auto Scaling group {group.name}.")
    return member


def group_of(region: str, instance_id: str) -> tuple[Group, Member]:
    for group in WORLD.groups.values():
        if group.region == region and instance_id in group.members:
            return group, group.members[instance_id]
    raise validation(f"Instance Id not found - No managed instance found for instance ID {instance_id}")


def soon(group: Group) -> None:
    """A group reacts a moment after what it reacts to."""
    WORLD.clock.later(WORLD.settings.react_seconds, lambda: settle(group))


def settle(group: Group) -> None:
    import refresh
    import warm

    if (group.region, group.name) not in WORLD.groups:
        return
    if group.deleting and not group.members:
        WORLD.groups.pop((group.region, group.name))
        return
    have = len(group.active())
    if have < group.desired and group.does("Launch"):
        for _ in range(group.desired - have):
            if not (warm.bring_out(group) or launch_or_tell(group)):
                break
    elif have > group.desired and group.does("Terminate"):
        shrink(group, have - group.desired)
    warm.settle(group)
    refresh.settle(group)


def shrink(group: Group, count: int) -> None:
    """Takes unprotected members, from the zone with the most, the oldest first; those not in service yet last."""
    import warm

    for _ in range(count):
        spread = Counter(member.zone for member in group.active())
        free = [member for member in group.active() if not member.protected or not WORLD.strict("protection")]
        if not free:
            group.tell(
                "Could not scale to desired capacity because all remaining instances are protected from scale in.",
                f"At {WORLD.clock.now()}, the desired capacity was lowered to {group.desired}.",
                "Cancelled",
            )
            return
        chosen = min(
            free, key=lambda member: (member.state != "InService", -spread[member.zone], member.born)
        )
        reuse = warm.takes_back(group) and chosen.state == "InService"
        leave(
            group,
            chosen,
            "was taken out of service in response to a difference between desired and actual capacity",
            to_warm=reuse,
        )


def next_subnet(group: Group, subnets: list[str]) -> str:
    """The one whose zone has the fewest active members, the first named one of several."""
    spread = Counter(member.zone for member in group.active())
    closed = WORLD.troubles.get("closed_zones", ())
    zone_of = {subnet: backends.subnet(group.region, subnet).availability_zone for subnet in subnets}
    open_ones = [subnet for subnet in subnets if zone_of[subnet] not in closed] or subnets
    return min(open_ones, key=lambda subnet: (spread[zone_of[subnet]], subnets.index(subnet)))


def launch_or_tell(group: Group) -> bool:
    """Launches a member; a failure is an activity, and the group tries again later and later."""
    try:
        launch(group, next_subnet(group, group.subnets))
    except CloudError as error:
        group.failures += 1
        group.tell(
            "Launching a new EC2 instance.  Status Reason: "
            + error.message
            + " Launching EC2 instance failed.",
            "an instance was started in response to a difference between desired and actual capacity",
            "Failed",
            error.message,
        )
        WORLD.happened("launch-failed", group=group.name, code=error.code)
        try_again(group)
        return False
    group.failures = 0
    return True


def try_again(group: Group) -> None:
    if group.retry:
        group.retry.cancel()
    group.retry = WORLD.clock.later(min(0.2 * 2**group.failures, 30.0), lambda: settle(group))


def launch(group: Group, subnet: str, warm_first: bool = False) -> Member:
    request = {
        "TagSpecifications": [
            {
                "ResourceType": "instance",
                "Tags": [
                    {"Key": key, "Value": value}
                    for key, (value, at_launch) in group.tags.items()
                    if at_launch
                ],
            }
        ],
        **group.overrides,
    }
    made = plan(group.region, request, group.template, subnet)
    machine = machines.launch(group.region, made, group=group.name)
    version = str(backends.template(group.region, group.template).number)
    state = "Warmed:Pending" if warm_first else "Pending"
    member = Member(machine, state, version, WORLD.clock.now())
    group.members[member.id] = member
    group.tell(
        f"Launching a new EC2 instance: {member.id}",
        "an instance was started in response to a difference between desired and actual capacity, "
        f"increasing the capacity to {len(group.active())}.",
    )
    WORLD.happened("launched", group=group.name, instance=member.id, zone=member.zone, warm=warm_first)
    changed(machine)
    return member


def changed(machine: Machine) -> None:
    """Told by machines.py on every change of an instance's state."""
    import hooks
    import warm

    if not machine.group:
        return
    group = WORLD.groups.get((machine.region, machine.group))
    member = group.members.get(machine.instance_id) if group else None
    if group is None or member is None:
        return
    if machine.state == "running" and member.state in ("Pending", "Warmed:Pending"):
        hooks.arrive(group, member)
    elif machine.state == "stopped" and member.state == "Warmed:Pending:Proceed":
        warm.rest(group, member)
    elif (
        machine.state == "terminated"
        and not member.waits
        and not (member.is_active and WORLD.strict("health"))
    ):
        gone(group, member)
    elif machine.state in ("stopping", "stopped", "shutting-down", "terminated"):
        look_at_health(group, member)


def look_at_health(group: Group, member: Member) -> None:
    """A member that does not run is unhealthy, without any grace; seen a moment later by the health check."""
    if member.health_alarm or not WORLD.strict("health") or member.state not in (*ACTIVE, "Warmed:Running"):
        return
    member.health_alarm = WORLD.clock.later(
        WORLD.settings.health_seconds, lambda: check_health(group, member)
    )


def check_health(group: Group, member: Member) -> None:
    member.health_alarm = None
    if group.members.get(member.id) is not member or member.state not in (*ACTIVE, "Warmed:Running"):
        return
    if group.does("HealthCheck") and member.machine.state not in ("running", "pending"):
        member.healthy = False
    replace_unhealthy(group, member)


def replace_unhealthy(group: Group, member: Member) -> None:
    if member.healthy or not group.does("ReplaceUnhealthy") or not group.does("Terminate"):
        return
    WORLD.happened("replaced", group=group.name, instance=member.id, state=member.machine.state)
    leave(
        group,
        member,
        "was taken out of service in response to an EC2 health check indicating it has been terminated or stopped",
    )


def recheck(group: Group) -> None:
    """After a process was resumed: what was seen or missed in the meantime."""
    for member in list(group.members.values()):
        if member.machine.state not in ("pending", "running"):
            look_at_health(group, member)
        if member.is_active:
            replace_unhealthy(group, member)
    soon(group)


def leave(group: Group, member: Member, cause: str, to_warm: bool = False) -> dict[str, Any]:
    """Begins the end of a member; protection does not matter here."""
    import hooks

    activity = group.tell(
        f"Terminating EC2 instance: {member.id}", f"instance {member.id} {cause}", "InProgress"
    )
    member.to_warm = to_warm
    member.abandoned = False
    hooks.depart(group, member)
    soon(group)
    return activity


def end(group: Group, member: Member) -> None:
    """The hooks are done: the instance goes. The group may do it where a user may not (DisableApiTermination)."""
    import warm

    if member.to_warm:
        member.to_warm = False
        return warm.enter(group, member)
    member.state = "Warmed:Terminating:Proceed" if member.is_warm else "Terminating:Proceed"
    if member.machine.state == "terminated":
        return gone(group, member)
    WORLD.happened("terminated", group=group.name, instance=member.id)
    machines.begin_termination(member.machine, "Client.UserInitiatedShutdown", "User initiated shutdown")


def gone(group: Group, member: Member) -> None:
    group.members.pop(member.id, None)
    for activity in group.activities:
        if activity["status"] == "InProgress" and member.id in activity["description"]:
            activity["status"] = "Successful"
    soon(group)


def forget(group: Group, member: Member) -> None:
    """A detached member: an instance like any other, without the group's tag."""
    group.members.pop(member.id, None)
    member.machine.group = None
    backends.ec2(group.region).tags.get(member.id, {}).pop(machines.GROUP_TAG, None)
    soon(group)


machines.LISTENERS.append(changed)
