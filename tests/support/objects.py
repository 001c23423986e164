"""Connections that are no sockets, for tests of the pool where sockets are not the point."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

__all__ = ["Conn", "Maker"]


class Conn:
    """A connection with a number; its maker is told when it is closed."""

    def __init__(self, maker: Maker, number: int) -> None:
        self._maker = maker
        self.number = number
        self.closed = False

    def __repr__(self) -> str:
        return f"<Conn {self.number}>"

    def close(self) -> None:
        self.closed = True
        self._maker.open.discard(self.number)
        self._maker.changed()

    def double(self, number: int, plus: int = 0) -> int:
        """Something to ask of a connection."""
        return 2 * number + plus


class Maker:
    """Opens Conns and counts them: give it to a pool as *connect*.

    *dials* is the number of attempts so far, *opened* that of successes, *open* has the numbers of
    the connections that are open, *peak* is the most that were open at once.  An *error* is raised
    by each dial.  While it is *slow*, dials wait, and ``let_in`` lets the first of them go on.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.slow = False
        self.dials = self.opened = self.peak = 0
        self.open: set[int] = set()
        self.waiting: list[Event] = []
        self._conditions: list[tuple[Callable[[], bool], Event]] = []

    def __call__(self) -> Conn:
        self.dials += 1
        self.changed()
        if self.slow:
            turn = Event()
            self.waiting.append(turn)
            try:
                turn.wait()
            finally:
                self.waiting.remove(turn)
        if self.error is not None:
            raise self.error.with_traceback(None)
        self.opened += 1
        self.open.add(self.opened)
        self.peak = max(self.peak, len(self.open))
        self.changed()
        return Conn(self, self.opened)

    def let_in(self, count: int = 1) -> None:
        """Let *count* of the dials that wait go on, and let what follows from it happen."""
        for turn in self.waiting[:count]:
            turn.set()
        gevent.idle()

    def changed(self) -> None:
        for condition, event in self._conditions:
            if condition():
                event.set()

    def wait_until(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Wait until *condition* holds; it is asked whenever a dial begins, succeeds, or a
        connection is closed."""
        __tracebackhide__ = True
        waiting = (condition, Event())
        self._conditions.append(waiting)
        try:
            if not condition() and not waiting[1].wait(timeout):
                pytest.fail(
                    f"waited {timeout} s in vain: {self.dials} dials, {self.opened} opened,"
                    f" open: {sorted(self.open)}"
                )
        finally:
            self._conditions.remove(waiting)
