"""RetryBudget: retries that never grow beyond a share of the calls."""

from __future__ import annotations

import time
from collections.abc import Callable

from geventpool._util.arguments import check_callable, check_number, check_seconds

__all__ = ["RetryBudget"]

_PARTS = 50  # of the window


class RetryBudget:
    """Keeps retries to a share of the calls; give one to all functions that use one server.

    When a server is in trouble, every call fails, and retries multiply the load that it cannot
    bear.  So each call deposits *share* of a token (0.2: one retry for five calls) and each retry
    withdraws a whole one.  Functions that are called rarely live on a reserve of *min_per_second*
    times *window* tokens.  All is forgotten after *window* seconds: deposits that were not used
    expire, and what was taken from the reserve is there again.

    The promise: whenever a retry is granted, the retries of the last *window* seconds, that one
    included, are at most *share* times the calls of these seconds, plus the reserve.

    This is the RetryBudget of Finagle (``com.twitter.finagle.service.RetryBudget``; there *window*
    is ``ttl``, *min_per_second* ``minRetriesPerSec`` and *share* ``percentCanRetry``).  Like it,
    this one counts in parts of the window, here 50, so the cost of a call and the memory do not
    grow with the number of calls.

    *clock*: returns seconds.  Not for several threads: there is no lock, as nothing here switches.
    """

    def __init__(
        self,
        share: float = 0.2,
        min_per_second: float = 10.0,
        window: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_number("share", share)
        check_number("min_per_second", min_per_second)
        check_seconds("window", window, none=False)
        check_callable("clock", clock)
        self.share = share
        self.min_per_second = min_per_second
        self.window = window
        self._clock = clock
        self._started_at = clock()
        # The part under way is incomplete.  Calls that may be too old are left out, retries that
        # may still be recent are counted: the promise holds for any window, not only for those
        # that begin with a part.  Finagle counts both alike, and grants the reserve twice
        # in nine tenths of its window.  The price: up to 1/50 fewer retries than the share.
        self._calls = _Recent(parts=_PARTS)
        self._retries = _Recent(parts=_PARTS + 1)

    def deposit(self) -> None:
        """Count a call: its first attempt, not its retries."""
        self._calls.add(self._part())

    def withdraw(self) -> bool:
        """Whether a retry is granted now; if so, its token is taken."""
        if self.balance < 1:
            return False
        self._retries.add(self._part())
        return True

    @property
    def balance(self) -> float:
        """The tokens at hand; a retry needs one."""
        part = self._part()
        tokens = self.share * self._calls.total(part) + self.min_per_second * self.window
        # Rounded, as 0.29 * 100 is a little less than 29, and would pay for 28 only.
        return max(0.0, round(tokens - self._retries.total(part), 9))

    def __repr__(self) -> str:
        return (
            f"<RetryBudget share={self.share:g} min_per_second={self.min_per_second:g}"
            f" window={self.window:g} s: {self.balance:g} left>"
        )

    def _part(self) -> int:
        return int((self._clock() - self._started_at) / self.window * _PARTS)


class _Recent:
    """Counts what happened in the part of time under way and the *parts* - 1 before it."""

    __slots__ = ("_counts", "_newest", "_total")

    def __init__(self, parts: int) -> None:
        self._counts = [0] * parts
        self._newest = 0
        self._total = 0

    def add(self, part: int) -> None:
        self._forget_until(part)
        self._counts[self._newest % len(self._counts)] += 1
        self._total += 1

    def total(self, part: int) -> int:
        self._forget_until(part)
        return self._total

    def _forget_until(self, part: int) -> None:
        size = len(self._counts)
        for passed in range(1, min(part - self._newest, size) + 1):
            place = (self._newest + passed) % size
            self._total -= self._counts[place]
            self._counts[place] = 0
        self._newest = max(self._newest, part)
