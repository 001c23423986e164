"""Has the books of each bucket of a hub looked at once a minute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from geventpool._runtime.slots import PoolBucket
from geventpool._runtime.timers import Timer
from geventpool._scheduler.scheduler import AUDIT_EVERY, Scheduler
from geventpool._util.clock import monotonic

__all__ = ["Auditor"]

_SLICE = 0.002  # seconds that others may be kept waiting at a time
_BREAK = 0.02  # seconds from one slice to the next


class Auditor:
    """A timer, which keeps no program alive, and what there is to be looked at when it fires."""

    def __init__(self, loop: Any, scheduler: Scheduler, buckets: Iterable[PoolBucket]) -> None:
        self._loop = loop
        self._scheduler = scheduler
        self._buckets = buckets
        self._due: list[PoolBucket] = []
        self._timer: Any = None

    def start(self) -> None:
        """Begin, if that has not been done: there is a bucket."""
        if self._timer is None:
            self._set(AUDIT_EVERY)

    def _set(self, seconds: float) -> None:
        self._timer = Timer(self._loop, monotonic() + seconds, self.run, ref=False)

    def run(self) -> None:
        """Look at some of them, and set the timer for the others."""
        begun = now = monotonic()
        self._due = self._due or list(self._buckets)
        while self._due and now < begun + _SLICE:
            bucket = self._due.pop()
            if not bucket.closed or bucket.slots:
                self._scheduler.audit(bucket, now)
            now = monotonic()
        self._timer = None
        if self._due:
            self._set(_BREAK)
        elif any(True for _ in self._buckets):
            self._set(AUDIT_EVERY)
