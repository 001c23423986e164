"""How many dials of one bucket may be under way, and when the next may begin after a failure."""

from __future__ import annotations

import math

from geventpool._scheduler.state import AT_ONCE, NEVER
from geventpool.backoff import Backoff

__all__ = ["DialWindow"]

_MANY = 1_000_000  # failures in a row, after which a pause is the longest


class DialWindow:
    """A burst of dials starts with one; each success doubles how many may be under way, up to
    *most*; a failure sets it back to one and starts a pause."""

    __slots__ = (
        "backoff",
        "failed_at",
        "failures",
        "last_error",
        "most",
        "opened_at",
        "retry_at",
        "width",
    )

    def __init__(self, most: int, backoff: Backoff | None) -> None:
        self.most = most
        self.backoff = backoff or Backoff()
        self.last_error: BaseException | None = None
        self.failed_at = AT_ONCE
        self.opened_at = NEVER
        self.forget()

    def forget(self) -> None:
        """Begin as if nothing had been dialed yet."""
        self.width = 1
        self.failures = 0
        self.retry_at = AT_ONCE

    @property
    def failing(self) -> bool:
        """Whether the last dial failed, or its connection died unused."""
        return self.retry_at > AT_ONCE

    def may_dial(self, under_way: int, now: float) -> bool:
        """Whether one more dial may begin beside those *under_way*."""
        return under_way < self.width and now >= self.retry_at

    def opened(self, begun: float, now: float) -> None:
        """A dial succeeded."""
        if begun >= self.failed_at:  # begun before, it tells no more of the server now
            self.width = min(2 * self.width, self.most)
            self.opened_at = now
            self.retry_at = AT_ONCE
        self.last_error = None

    def failed(self, begun: float, now: float, longest: bool = False) -> bool:
        """A dial failed, or its connection died unused: slow down; whether that is news.

        Dials that were under way together fail together: they count as one.  *longest*: the pause
        is the longest at once, as somebody has to mend something first.
        """
        if begun < self.failed_at:
            return False
        if now - self.opened_at > self.backoff.longest:
            self.failures = 0  # it was well in between: a new outage
        self.failures += 1
        self.failed_at = now
        self.opened_at = NEVER
        self.width = 1
        # Even without a pause, let others run first: a dial that fails at once, again and again,
        # would keep its greenlet busy for ever.
        delay = self.backoff.delay(_MANY if longest else self.failures)
        self.retry_at = math.nextafter(now + delay, NEVER)
        return True

    def server_is_full(self, begun: float) -> None:
        """A dial was refused by a server that is well: one at a time, but without a pause."""
        self.width = 1
        if begun >= self.failed_at:
            self.retry_at = AT_ONCE

    def burst_is_over(self) -> None:
        """Nothing more is to be dialed."""
        self.width = 1
