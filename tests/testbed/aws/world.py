"""What the stand-in knows besides moto's tables: settings, records by id, the log of calls, and the one lock.

moto keeps networks, security groups, templates, keys, images, tags and users. Instances, volumes and snapshots are
moto's objects too, with a record here for what moto does not model. Groups are ours alone.
All is in memory: a server that is started again is an empty account.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import Any

from clock import Alarm, Clock, stamp
from errors import CloudError

# What can be switched to moto's own, lenient behaviour.
STRICT = frozenset(
    {
        "states",
        "hibernation",
        "tokens",
        "attachments",
        "snapshots",
        "bounds",
        "members",
        "detaching",
        "protection",
        "health",
        "hooks",
        "processes",
    }
)


@dataclass
class Settings:
    """Set by `POST /lab/config`. Seconds are the cloud's."""

    followed: bool = False
    pending_seconds: float = 0.1
    stopping_seconds: float = 0.1
    terminating_seconds: float = 0.1
    creating_seconds: float = 0.05
    attaching_seconds: float = 0.05
    detaching_seconds: float = 0.1
    snapshot_seconds: float = 0.2
    snapshot_interval_seconds: float = 0.0
    terminated_seconds: float = 3600.0
    eventual_seconds: float = 0.0
    hibernate_ready_seconds: float = 0.0
    spot_notice_seconds: float = 120.0
    hold_detaching: bool = False
    reuse_addresses: bool = False
    react_seconds: float = 0.05
    member_seconds: float = 0.2
    health_seconds: float = 0.2
    grace_seconds: float = 0.0
    hook_minimum_seconds: float = 30.0
    refresh_wait_seconds: float = 3600.0
    access_keys: list[str] | None = None
    skew_seconds: float = 0.0
    iam: bool = False
    throttle: dict[str, dict[str, float]] = field(default_factory=dict)
    lenient: Any = False

    def take(self, changes: dict[str, Any]) -> None:
        known = {item.name for item in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise CloudError("lab", f"unknown settings {unknown}; known: {sorted(known)}")
        if isinstance(changes.get("lenient"), list):
            strange = sorted(set(changes["lenient"]) - STRICT)
            if strange:
                raise CloudError("lab", f"lenient: unknown {strange}; known: {sorted(STRICT)}")
        for name, value in changes.items():
            setattr(self, name, value)

    def strict(self, what: str) -> bool:
        assert what in STRICT, what
        return what not in self.lenient if isinstance(self.lenient, list) else not self.lenient


@dataclass
class Machine:
    """An instance."""

    instance: Any
    region: str
    born: float
    boots: int = 0
    running_since: float | None = None
    hibernated: bool = False
    group: str | None = None
    spot_action: dict[str, str] | None = None
    rebalance: str | None = None
    spot_request: str | None = None
    can_stop_spot: bool = False
    instance_id: str = ""
    alarm: Alarm | None = None
    stop_hangs: bool = False
    degrade: bool = False
    vanished: bool = False

    @property
    def state(self) -> str:
        return self.instance._state.name


@dataclass
class Disk:
    """A volume."""

    volume: Any
    creating: bool = False
    deleted: bool = False
    alarm: Alarm | None = None
    shot_at: float | None = None
    born: float | None = None


@dataclass
class Shot:
    """A snapshot."""

    snapshot: Any
    begun: float
    pending: bool = True
    failed: bool = False
    hangs: bool = False
    size: int = 0
    copy_of: str | None = None


class World:
    """There is one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clock = Clock()
        self.settings = Settings()
        self.region = "eu-central-1"
        self.machines: dict[str, Machine] = {}
        self.disks: dict[str, Disk] = {}
        self.shots: dict[str, Shot] = {}
        self.groups: dict[tuple[str, str], Any] = {}
        self.tokens: dict[tuple[str, str, str], tuple[Any, Any]] = {}
        self.pushed: list[dict[str, Any]] = []
        # What happens to the account: see events.py.
        self.troubles: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []

    def strict(self, what: str) -> bool:
        return self.settings.strict(what)

    def happened(self, action: str, /, **params: Any) -> None:
        """Notes in the log of calls what the cloud did by itself."""
        self.note("cloud", action, params)["answer"] = "ok"

    def note(self, service: str, action: str, params: dict[str, Any]) -> dict[str, Any]:
        """A call has its place before what follows from it; its answer is filled in."""
        call = {
            "n": len(self.calls),
            "at": stamp(self.clock.now()),
            "service": service,
            "action": action,
            "params": params,
            "answer": None,
        }
        self.calls.append(call)
        return call

    def once(self, region: str, action: str, token: str | None, asked: Any, make: Any) -> Any:
        """What `make` gives, or what it gave for the same token."""
        if not token or not self.strict("tokens"):
            return make()
        key = (region, action, token)
        known = self.tokens.get(key)
        if known is None:
            known = self.tokens[key] = (asked, make())
        elif known[0] != asked:
            raise CloudError(
                "IdempotentParameterMismatch",
                f"The client token {token} was used before with other parameters.",
            )
        return known[1]


WORLD = World()
