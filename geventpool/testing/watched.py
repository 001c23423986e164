"""Waiting until the counters of a server say what a test expects."""

from __future__ import annotations

from collections.abc import Callable

from gevent.event import Event

__all__ = ["Watched"]


class Watched:
    """Something whose counters change; a test waits for what they shall be, and never sleeps."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], bool], Event]] = []

    def wait_until(
        self, condition: Callable[[], bool], timeout: float = 10.0, wanted: str = "the condition"
    ) -> None:
        """Wait until *condition* holds; it is asked whenever a counter changes.

        Raises AssertionError, which says what was *wanted* and what there is, if it does not hold
        after *timeout* seconds.
        """
        __tracebackhide__ = True
        waiting = (condition, Event())
        self._waiting.append(waiting)
        try:
            if not condition() and not waiting[1].wait(timeout):
                raise AssertionError(f"waited {timeout} s for {wanted}: {self!r}")
        finally:
            self._waiting.remove(waiting)

    def _changed(self) -> None:
        for condition, event in self._waiting:
            if condition():
                event.set()
