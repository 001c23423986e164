"""What a FleetLimit asks of the store that all processes of a fleet share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from geventpool.fleet.document import Document
from geventpool.fleet.share import Grant, Report

__all__ = ["MemoryStore", "Store"]


class Store(Protocol):
    """Where the records of a fleet are.  Each call is atomic, goes by the store's own clock, and
    may switch; the caller bounds it.  What it raises: the store cannot be reached."""

    def renew(self, report: Report) -> Grant:
        """Note what a process reports, and say what it may have."""

    def release(self, name: str, id: str) -> None:
        """Forget the process *id* of the cap *name*: all its connections are closed."""


class MemoryStore:
    """For the hubs of one process, and for tests.  *clock* tells the time in seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {clock!r}")
        self._clock = clock
        self._lock = threading.Lock()  # hubs are threads; nothing in it switches
        self._caps: dict[str, Document] = {}

    def renew(self, report: Report) -> Grant:
        """See Store.  Does not block."""
        with self._lock:
            now = self._clock()
            cap = self._caps.get(report.name) or Document(now + report.lease)
            answer, self._caps[report.name] = cap.renewed(report, now)
            return answer

    def release(self, name: str, id: str) -> None:
        """See Store.  Does not block."""
        with self._lock:
            if name in self._caps:
                self._caps[name] = self._caps[name].without(id)

    def clear(self) -> None:
        """Forget all, as a store that was started anew."""
        with self._lock:
            self._caps.clear()
