"""Work that is done once at a time for all that want it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["OneAtATime"]


class Worker(Protocol):
    """A greenlet, or the like."""

    def ready(self) -> bool: ...


K = TypeVar("K", bound=Hashable)
W = TypeVar("W", bound=Worker)


class OneAtATime(Generic[K, W]):
    """Whoever does something now, by what it is: begun where there is none, or else joined."""

    def __init__(self) -> None:
        self.running: dict[K, W] = {}

    def start_or_join(self, key: K, start: Callable[[], W]) -> W:
        """Who does it; *start* must not switch."""
        worker = self.running.get(key)
        if worker is None or worker.ready():
            worker = self.running[key] = start()
        return worker

    def discard(self, key: K, worker: W) -> None:
        """*worker* has done it, or will not."""
        if self.running.get(key) is worker:
            del self.running[key]
