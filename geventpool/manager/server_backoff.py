"""How long no dial to a server begins after those that failed, for any of its endpoints.

A bucket of the pool comes and goes with its callers, and several may lead to one address; what is
known of the failed dials stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from geventpool._util.clock import monotonic
from geventpool.backoff import Backoff
from geventpool.manager.health import ServerModel

__all__ = ["DialFailures", "ServerBackoff"]

_KEPT = 60.0  # seconds after which a failure is none in a row


class DialFailures:
    """The failed dials to one server in a row, and connections that died unused.

    *error* is what the last one raised.  Until *retry_at* none is to begin; then one, by the caller
    that comes first, and the others when that has succeeded: *probing* is the endpoint that it is
    for.
    """

    __slots__ = ("_count", "_failed_at", "_opened_at", "error", "probing", "retry_at")

    def __init__(self) -> None:
        self.probing: object = None
        self.forget()

    def forget(self) -> None:
        """A connection was used in good order: the server is well."""
        self._count = 0
        self._failed_at = self.retry_at = -math.inf
        self._opened_at = math.inf
        self.error: BaseException | None = None

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def paused(self) -> bool:
        """Whether the last failure was followed by a pause, and no dial has succeeded since."""
        return self.retry_at > -math.inf

    def opened(self, now: float) -> None:
        """A dial has succeeded, which may yet turn out to be of no use."""
        self._opened_at = now
        self.error = None
        if self.paused and now >= self.retry_at:
            self.retry_at = -math.inf

    def count(self, now: float, well_after: float) -> int:
        """How many in a row there are with the one that is now; a connection that lived for more
        than *well_after* seconds has ended the row."""
        if now - self._opened_at > well_after or now - self._failed_at > _KEPT:
            self._count = 0
        self._count += 1
        self._failed_at, self._opened_at = now, math.inf
        return self._count


@dataclass(frozen=True)
class ServerBackoff(Backoff):
    """How long no dial begins after a failed one.

    While the server is up, the first failures are followed by no pause: they count, and it is the
    markdown that keeps callers away.  The pauses are for when there is no other server, and for one
    that accepts connections and closes them at once.
    """

    server: ServerModel = field(kw_only=True)
    dials: DialFailures = field(kw_only=True)
    first: float = 0.02

    def delay(self, failures: int) -> float:
        """The wait after the failure that is now; *failures* is what one bucket knows."""
        now = monotonic()
        in_a_row = self.dials.count(now, self.longest)
        up = self.server.down_until is None
        seconds = super().delay(in_a_row - 2 if up else in_a_row)
        self.dials.retry_at = max(self.dials.retry_at, now + seconds)
        return seconds
