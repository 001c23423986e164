"""Whether the line of a bucket is slow, by controlled delay (RFC 8289; see ``CoDel``).

Nobody is sent away here: see ``arbiter.py``.
"""

from __future__ import annotations

from geventpool._scheduler.state import AT_ONCE
from geventpool.overload import CoDel

__all__ = ["DelayControl"]

_URGENT = 0.8  # of an interval
_WEIGHT = 0.1  # of the last hand-over in the average time between two


class DelayControl:
    """Keeps when the line was last seen to be fine: empty, or a caller served within *target*.

    That being longer ago than *interval* is the same as the least wait over the last *interval*
    being above *target*.  With fixed intervals, as db_connection has them, that is known one to two
    intervals after the line has begun to grow.  Measured (docs/overload.md), one is too early for a
    burst that would have been served, and two too late for a line under five times its load, where
    callers have left by then.  So it is two; but one where the next caller has waited for so long
    already that there is no time for another.
    """

    __slots__ = ("_fine_at", "_gap", "_judge_at", "_served_at", "_slow", "interval", "target")

    def __init__(self, settings: CoDel) -> None:
        self.target = settings.target
        self.interval = settings.interval
        self._slow = False
        self._judge_at = AT_ONCE  # not judged anew before that
        self._fine_at = AT_ONCE
        self._served_at = AT_ONCE
        self._gap = 0.0  # seconds between two hand-overs, on average

    @property
    def longest(self) -> float:
        """How long a caller may have waited in a slow line when its turn comes."""
        return 2 * self.target

    def begins(self, now: float) -> None:
        """The line has been empty until now."""
        self._fine_at = self._served_at = now

    def is_fine(self, now: float) -> None:
        """Nobody waits for more than a dial of its own: the line is not slow, however long those
        dials take."""
        self._slow = False
        self._judge_at = AT_ONCE
        self._fine_at = now

    def served(self, waited: float, now: float) -> None:
        """A caller gets a connection after so long."""
        if waited <= self.target:
            self._fine_at = now
        self._gap += _WEIGHT * (now - self._served_at - self._gap)
        self._served_at = now

    def is_slow(self, waited: float, now: float) -> bool:
        """Whether the least wait is too long, now that the next caller has *waited*; if it is, that
        holds for an interval."""
        if now >= self._judge_at:
            intervals = 1 if self._slow or waited >= _URGENT * self.interval else 2
            self._slow = now >= self._fine_at + intervals * self.interval
            if self._slow:
                self._judge_at = now + self.interval
        return self._slow

    def next_look(self, now: float) -> float:
        """When to look at the line again, though nothing may have come back."""
        # Twice in an interval, as one between two looks that found it fine must not end unseen.
        return now + min(self.target if self._slow else self.interval, self.interval / 2)

    def drains_in(self, waiting: int, now: float) -> float:
        """In how many seconds so many will have been served, at the pace of late, and the line is
        judged anew."""
        gap = max(self._gap, now - self._served_at)
        return max(waiting * gap, self._judge_at - now)
