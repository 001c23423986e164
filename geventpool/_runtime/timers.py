"""The runtime's timers.

A timer of the loop counts from the loop's own time, which stands still while a greenlet computes:
started after two seconds of that, one of two seconds would fire at once.  So this file alone makes
them.  Each is set by the clock, after the loop's time was brought up to date, and one that fires
early all the same is not believed but set again.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["Timer"]


class Timer:
    """Calls ``call(*args)`` once, in the hub, at the moment *at* of the clock or a little later."""

    __slots__ = ("_args", "_call", "_loop", "_timer", "at")

    def __init__(
        self, loop: Any, at: float, call: Callable[..., object], *args: Any, ref: bool = True
    ) -> None:
        self.at = at
        self._loop = loop
        self._call = call
        self._args = args
        self._start(ref)

    @property
    def ref(self) -> bool:
        """Whether it keeps a program alive that has nothing else to wait for."""
        return bool(self._timer.ref)

    @ref.setter
    def ref(self, ref: bool) -> None:
        self._timer.ref = ref

    def stop(self) -> None:
        """Call nothing any more."""
        self._timer.stop()
        self._timer.close()

    def _start(self, ref: bool) -> None:
        self._timer = self._loop.timer(max(0.0, self.at - monotonic()), ref=ref)
        self._timer.start(self._fire, update=True)

    def _fire(self) -> None:
        ref = self.ref
        self.stop()
        if monotonic() < self.at:
            self._start(ref)
        else:
            self._call(*self._args)
