"""Time for tests: ``no_retry_delays()`` and ``FakeClock``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gevent
import gevent.local
from gevent.event import Event
from gevent.monkey import get_original

from geventpool._runtime.jump import clock_jumped, read_by, real
from geventpool.pools.extension import check_seconds
from geventpool.retry import retry
from geventpool.sockets import MonitoredSocket, SocketFactory

__all__ = ["FakeClock", "no_retry_delays"]


@contextlib.contextmanager
def no_retry_delays() -> Iterator[None]:
    """In this ``with``, ``@retry`` sleeps nothing; all else is as it would have been.

    Each wait is skipped, and for the greenlet that would have waited the time moves on by it: there
    are as many attempts, a *deadline* is over after as many of them, and *on_retry* is told the
    same waits.  Other greenlets run in between.  A *budget* has its own clock: give it a FakeClock.

    A function that retries for ever does so without a pause, until its server is back.

    For all threads of the process, until the last one has left such a ``with``.  It may stand
    inside another one, or a FakeClock, or round it.
    """
    this = object()
    _skipping.append(this)
    try:
        with _retry_bent:
            yield
    finally:
        _skipping.remove(this)


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
    *idle_timeout*, *max_lifetime*, *check_after*, *leak_threshold*, ``drain(over)``, the back-off
    after a failed dial, the ages in ``stats()`` and ``holders()``, the deadlines of callers that
    wait in line and the waits and deadlines of ``@retry`` all see it.  What it makes due begins as
    soon as other greenlets run: ``advance`` itself does not switch.  As ever, of the connections
    that are due for a *keepalive* every other one is checked first: advance once more for the rest.

    What is limited because a server may be slow stays in real time: *connect_timeout*,
    *keepalive_timeout*, *salvage_timeout*, the *timeout* of ``close()``, a SocketFactory, a look-up
    of a name; so do gevent.sleep and gevent.Timeout.  A Deadline strikes in real time, too; what
    pools and ``@retry`` see left of it is by this clock.

    At the end of the ``with`` the jumps are taken back.  So close in it the pools that it has made
    older, as in the example; one that lives on will live longer than it says.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = float(start)
        self._ahead = 0.0  # by how much the time has jumped in this ``with``

    def __call__(self) -> float:
        return self._now

    def __repr__(self) -> str:
        return f"<FakeClock at {self._now:g} s>"

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass at once; raises ValueError if they are negative."""
        check_seconds("seconds", seconds, zero=True, none=False)
        self._now += seconds
        if self in _jumping:
            self._ahead += seconds
            _jump()
            clock_jumped(_now())

    def __enter__(self) -> FakeClock:
        if self in _jumping:
            raise RuntimeError(f"{self!r} is in a with already")
        self._ahead = 0.0
        _jumping.append(self)
        _retry_bent.__enter__()
        _pools_bent.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        _jumping.remove(self)
        _pools_bent.__exit__()
        _retry_bent.__exit__()


# What is read for the time while it is bent.  The ``with``s of several threads or greenlets
# may overlap in any way, so none of them puts back what it has found.

_jumping: list[FakeClock] = []  # in their ``with``
_skipping: list[object] = []  # the ``with``s of no_retry_delays()
_skipped = gevent.local.local()  # seconds, of each greenlet, as several may retry at once
_jumped = Event()  # set, and replaced, at each jump


def _now() -> float:
    return real() + sum(clock._ahead for clock in _jumping)


def _now_for_retry() -> float:
    return _now() + (getattr(_skipped, "seconds", 0.0) if _skipping else 0.0)


def _sleep_for_retry(seconds: float) -> None:
    """Skipped, or gevent.sleep, shortened by the jumps."""
    if _skipping:
        _skipped.seconds = getattr(_skipped, "seconds", 0.0) + seconds
    if _skipping or seconds <= 0:
        gevent.sleep(0)
        return
    ends_at = _now() + seconds
    while (left := ends_at - _now()) > 0:
        _jumped.wait(left)


def _jump() -> None:
    global _jumped
    jumped, _jumped = _jumped, Event()
    jumped.set()


class _Replaced:
    """Modules have other functions as long as any greenlet is in the ``with`` of this; *tell* is
    called with whether they have."""

    def __init__(
        self,
        find: Callable[[], Iterable[tuple[Any, str, object]]],
        tell: Callable[[bool], object] = bool,
    ) -> None:
        self._find = find
        self._tell = tell
        self._entered = 0
        self._originals: list[tuple[Any, str, object]] = []
        self._lock = get_original("_thread", "allocate_lock")()

    def __enter__(self) -> None:
        with self._lock:
            self._entered += 1
            if self._entered == 1:
                for module, name, function in self._find():
                    self._originals.append((module, name, getattr(module, name)))
                    setattr(module, name, function)
                self._tell(True)

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered:
                self._tell(False)
            while self._originals and not self._entered:
                setattr(*self._originals.pop())


def _of_retry() -> Iterable[tuple[Any, str, object]]:
    # As an attribute of the package it is the decorator.
    module = sys.modules[retry.__module__]
    return [(module, "_sleep", _sleep_for_retry), (module, "_clock", _now_for_retry)]


def _of_pools() -> Iterable[tuple[Any, str, object]]:
    # A dial waits for a server, which is as fast as it is: what it may take stays real.  Of the
    # sockets' files only that of MonitoredSocket has ages to tell.  (In _util is the real one.)
    ours, testing = __name__.split(".")[:2]
    sockets = SocketFactory.__module__.rpartition(".")[0]
    others = (f"{sockets}.", f"{ours}.{testing}.", f"{ours}._util.")
    modules = {name: each for name, each in sys.modules.items() if name.startswith(f"{ours}.")}
    return [
        (module, "monotonic", _now)
        for name, module in modules.items()
        if "monotonic" in vars(module)
        and (name == MonitoredSocket.__module__ or not name.startswith(others))
    ]


_retry_bent = _Replaced(_of_retry)
# What is compiled asks no module for its functions: it has a clock that can be exchanged.
_pools_bent = _Replaced(_of_pools, lambda bent: read_by(_now if bent else real))
