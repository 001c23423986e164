"""Time for tests: ``no_retry_delays()`` and ``FakeClock``."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import gevent
import gevent.local
from gevent.event import Event

from geventpool import _engine
from geventpool._slots import AT_ONCE

__all__ = ["FakeClock", "no_retry_delays"]

# These wait for servers, which are as fast as they are: what a dial may take stays real.
_REAL = frozenset({"geventpool.resolver", "geventpool.sockets", "geventpool._eyeballs"})


@contextlib.contextmanager
def no_retry_delays() -> Iterator[None]:
    """In this ``with``, ``@retry`` sleeps nothing; all else is as it would have been.

    Each wait is skipped, and for the greenlet that would have waited the time moves on by it: there
    are as many attempts, a *deadline* is over after as many of them, and *on_retry* is told the
    same waits.  Other greenlets run in between.  A *budget* has its own clock: give it a FakeClock.

    A function that retries for ever does so without a pause, until its server is back.

    For all threads of the process.  It may stand inside another one, or a FakeClock, or round it.
    """
    retry = _retry_module()
    sleep, clock = retry._sleep, retry._clock
    skipped = gevent.local.local()  # of each greenlet, as several may retry at once

    def skip(seconds: float) -> None:
        skipped.seconds = getattr(skipped, "seconds", 0.0) + seconds
        gevent.sleep(0)

    def later() -> float:
        now: float = clock() + getattr(skipped, "seconds", 0.0)
        return now

    retry._sleep, retry._clock = skip, later
    try:
        yield
    finally:
        retry._sleep, retry._clock = sleep, clock


class FakeClock:
    """A clock that stands still until ``advance(seconds)``; calling it returns seconds.

    Give it to whatever takes a *clock*: a RetryBudget, a resolver.

        clock = FakeClock()
        budget = RetryBudget(share=0.1, clock=clock)
        clock.advance(10)

    What takes none, the pools of this thread and ``@retry``, is told by a ``with``:

        with FakeClock() as clock, MyPool(5, max_lifetime=3600) as pool:
            pool.fill()
            clock.advance(3600)

    There the time goes on as ever, and each ``advance`` is a jump of it: *keepalive*,
    *idle_timeout*, *max_lifetime*, *check_after*, the back-off after a failed dial, the ages in
    ``stats()`` and ``holders()``, the deadlines of callers who wait in line and the waits and
    deadlines of ``@retry`` all see it.  What it makes due begins as soon as other greenlets run:
    ``advance`` itself does not switch.  As ever, of the connections that are due for a *keepalive*
    every other one is checked first: advance once more for the rest.

    What is limited because a server may be slow stays in real time: *connect_timeout*,
    *keepalive_timeout*, a SocketFactory, a look-up of a name; so do gevent.sleep and
    gevent.Timeout.

    At the end of the ``with`` the jumps are taken back.  So close in it the pools that it has made
    older, as in the example; one that lives on will live longer than it says.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = _number("start", start)
        self._ahead = 0.0  # by how much the time has jumped, in all the ``with``s so far
        self._jumped = Event()  # set, and replaced, at each jump
        self._patches: contextlib.ExitStack | None = None

    def __call__(self) -> float:
        return self._now

    def __repr__(self) -> str:
        return f"<FakeClock at {self._now:g} s>"

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass at once; raises ValueError if they are negative."""
        if _number("seconds", seconds) < 0:
            raise ValueError(f"seconds must not be negative, as no clock goes back: {seconds!r}")
        self._now += seconds
        if self._patches is None:
            return
        self._ahead += seconds
        jumped, self._jumped = self._jumped, Event()
        jumped.set()
        _catch_up()

    def __enter__(self) -> FakeClock:
        if self._patches is not None:
            raise RuntimeError(f"{self!r} is in a with already")
        retry = _retry_module()
        with contextlib.ExitStack() as patches:
            for module in _modules_with_a_clock():
                patches.enter_context(
                    _replaced(module, "monotonic", self._jumper(module.monotonic))
                )
            patches.enter_context(_replaced(retry, "_clock", self._jumper(retry._clock)))
            if retry._sleep is gevent.sleep:  # else no_retry_delays() is round this
                patches.enter_context(_replaced(retry, "_sleep", self._sleep))
            self._patches = patches.pop_all()
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        patches, self._patches = self._patches, None
        assert patches is not None
        patches.close()

    def _jumper(self, clock: Callable[[], float]) -> Callable[[], float]:
        """*clock*, with the jumps from now on."""
        began = self._ahead
        return lambda: clock() + (self._ahead - began)

    def _sleep(self, seconds: float) -> None:
        """gevent.sleep, shortened by the jumps."""
        if seconds <= 0:
            gevent.sleep(0)
        ends_at = time.monotonic() + self._ahead + seconds
        while (left := ends_at - self._ahead - time.monotonic()) > 0:
            self._jumped.wait(left)


def _catch_up() -> None:
    """Have the pools of this thread look at the time again: their timers do not know of a jump."""
    engine: _engine.Engine | None = getattr(gevent.get_hub(), "_geventpool_engine", None)
    if engine is None:
        return
    now: float = vars(_engine)["monotonic"]()  # as the engine reads it in the ``with``
    engine.core.expire(now)
    for bucket in list(engine.buckets):
        engine.core.settle(bucket, now)
        for rounds in bucket.rounds:
            if bucket in rounds.buckets:
                rounds.add(bucket, AT_ONCE)


def _modules_with_a_clock() -> list[Any]:
    return [
        module
        for name, module in sys.modules.items()
        if name.startswith("geventpool.")
        and not name.startswith("geventpool.testing")
        and name not in _REAL
        and callable(vars(module).get("monotonic"))
    ]


def _retry_module() -> Any:
    # As an attribute of the package it is the decorator.
    return importlib.import_module("geventpool.retry")


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return float(value)
