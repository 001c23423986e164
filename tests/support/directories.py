"""A directory of the tests' own, in memory: what a WatchingResolver watches."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import gevent
from gevent.event import Event

from geventpool.addresses import AnyAddress, address
from geventpool.directory.source import Members

__all__ = ["Board"]


class Board:
    """Says what the test has written on it, or raises what it was told to."""

    def __init__(self, **services: list[str]) -> None:
        self.services: dict[str, dict[AnyAddress, float]] = {}
        self.trouble: BaseException | None = None
        self.silent = False  # it neither answers nor fails
        self.begun = 0  # watches
        self.open = 0  # watches that have not ended
        self.closed = 0
        self.greenlets: set[Any] = set()
        self._bells: list[Event] = []
        for name, targets in services.items():
            self.write(name, *targets)

    def write(self, name: str, *targets: str) -> None:
        """These are the servers of *name* now."""
        self.services[name] = {address(each): 1.0 for each in targets}
        self._ring()

    def fail(self, trouble: BaseException) -> None:
        """Be away."""
        self.trouble = trouble
        self._ring()

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()

    # What a source is

    def check(self, name: str) -> None:
        if "/" in name:
            raise ValueError(f"name must have no slash: {name!r}")

    def watch(self, name: str) -> Generator[Members, None, None]:
        self.begun += 1
        self.open += 1
        self.greenlets.add(gevent.getcurrent())
        bell = Event()
        self._bells.append(bell)
        try:
            while True:
                if self.trouble is not None:
                    raise self.trouble
                if not self.silent:
                    yield dict(self.services.get(name, {}))
                bell.wait()
                bell.clear()
        finally:
            self._bells.remove(bell)
            self.open -= 1

    def close(self) -> None:
        self.closed += 1

    def __str__(self) -> str:
        return "the board"
