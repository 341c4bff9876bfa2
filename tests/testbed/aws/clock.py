"""The cloud's time and what is due in it.

Nothing happens between two requests that a client could see, so nothing runs between them: each request first lets
happen what has become due, in its order and at its own time. `skip` lets hours pass at once.
"""

import heapq
import itertools
import sys
import time
import traceback
from datetime import datetime, timezone
from typing import Callable


class Alarm:
    """Something that will happen, unless it is cancelled."""

    def __init__(self, due: float, deed: Callable[[], None]):
        self.due = due
        self.deed = deed
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Seconds since 1970, plus what was skipped."""

    def __init__(self) -> None:
        self._start = time.time() - time.monotonic()
        self._skipped = 0.0
        self._at: float | None = None
        self._order = itertools.count()
        self._due: list[tuple[float, int, Alarm]] = []
        self.bugs: list[str] = []

    def now(self) -> float:
        """While something that was due happens, the time at which it was due."""
        return self._at if self._at is not None else self._wall()

    def _wall(self) -> float:
        return self._start + time.monotonic() + self._skipped

    def later(self, seconds: float, deed: Callable[[], None]) -> Alarm:
        alarm = Alarm(self.now() + seconds, deed)
        heapq.heappush(self._due, (alarm.due, next(self._order), alarm))
        return alarm

    def advance(self) -> None:
        """Lets happen all that is due by now, and what becomes due by that."""
        end = self._wall()
        while self._due and self._due[0][0] <= end:
            self._at, _, alarm = heapq.heappop(self._due)
            if not alarm.cancelled:
                try:
                    alarm.deed()
                except (
                    Exception
                ):  # a bug of ours must be seen, and must not be the answer to a stranger's request
                    self.bugs.append(traceback.format_exc())
                    print(self.bugs[-1], file=sys.stderr, flush=True)
        self._at = None

    def skip(self, seconds: float) -> None:
        self._skipped += seconds
        self.advance()


def stamp(seconds: float | None) -> str | None:
    """RFC 3339 with milliseconds."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def moment(seconds: float | None) -> datetime | None:
    """For the serializers, which take times without a zone."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)
