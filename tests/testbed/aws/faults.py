"""Faults that are injected into calls, and the account's own limits of rate."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Any

from errors import CloudError
from world import WORLD


@dataclass
class Fault:
    """Applies to calls of a service and an action whose parameters have the values of `match`."""

    kind: str
    service: str = "*"
    action: str = "*"
    match: dict[str, Any] = field(default_factory=dict)
    times: int | None = 1
    skip: int = 0
    status: int = 503
    code: str = "RequestLimitExceeded"
    message: str = "Request limit exceeded."
    seconds: float = 0.0

    def fits(self, service: str, action: str, params: dict[str, Any]) -> bool:
        """Counts down, too: ask once for each call."""
        if self.times is not None and self.times <= 0:
            return False
        if not fnmatch.fnmatchcase(service, self.service) or not fnmatch.fnmatchcase(action, self.action):
            return False
        for name, value in self.match.items():
            found = params.get(name)
            if value not in found if isinstance(found, list) else str(found) != str(value):
                return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


FAULTS: list[Fault] = []


def add(wanted: dict[str, Any]) -> None:
    if wanted.get("kind") not in ("error", "cut", "latency"):
        raise CloudError("lab", f"kind: {wanted.get('kind')!r} is none of error, cut, latency")
    try:
        fault = Fault(**wanted)
    except TypeError as error:
        raise CloudError("lab", f"a fault has unknown or missing fields: {error}") from error
    fault.match = fault.match or {}
    FAULTS.append(fault)


def matching(service: str, action: str, params: dict[str, Any]) -> list[Fault]:
    return [fault for fault in FAULTS if fault.fits(service, action, params)]


# Tokens left and when they were counted, by pattern.
_BUCKETS: dict[str, tuple[float, float]] = {}


def check_rate(service: str, action: str) -> None:
    """Token buckets by pattern of action, as `throttle: {"Describe*": {"burst": 100, "rate": 20}}`."""
    for pattern, limit in WORLD.settings.throttle.items():
        if not fnmatch.fnmatchcase(action, pattern):
            continue
        now = WORLD.clock.now()
        tokens, at = _BUCKETS.get(pattern, (limit["burst"], now))
        tokens = min(limit["burst"], tokens + (now - at) * limit["rate"])
        _BUCKETS[pattern] = (max(tokens - 1, tokens if tokens < 1 else 0), now)
        if tokens < 1:
            if service == "autoscaling":
                raise CloudError("Throttling", "Rate exceeded")
            raise CloudError("RequestLimitExceeded", "Request limit exceeded.", 503)
