"""A gevent hub in which no time is spent waiting: its clock jumps to whatever is due next.

    with virtual_time() as loop:
        with gevent.Timeout(3600, False):
            gevent.sleep(7200)
        loop.now()  # an hour later, and that took microseconds

Everything of gevent that needs a loop only to run greenlets and timers is the real thing on it, and
so is every pool of geventpool.  There is no I/O: a connection is an object that sleeps.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from gevent.hub import Hub, get_hub, set_hub

from geventpool._runtime.clock import read_by

__all__ = ["VirtualLoop", "virtual_time"]

_numbers = itertools.count()


class VirtualLoop:
    """What a hub wants of its loop, but for watchers of files, signals and children."""

    MAXPRI, MINPRI = 2, -2
    default = False
    approx_timer_resolution = 1e-5

    def __init__(self, now: float = 1000.0) -> None:
        self.error_handler: Any = None
        self._now = now
        self._callbacks: deque[_Callback] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []

    def now(self) -> float:
        """The seconds of its clock."""
        return self._now

    def update_now(self) -> None:
        """Nothing: its clock is never late."""

    update = update_now

    def run_callback(self, call: Callable[..., object], *args: Any) -> _Callback:
        """Call *call* in the next pass."""
        callback = _Callback(call, args)
        self._callbacks.append(callback)
        return callback

    run_callback_threadsafe = run_callback  # there is one thread

    def timer(
        self, after: float, repeat: float = 0.0, ref: bool = True, priority: int | None = None
    ) -> _Timer:
        assert not repeat, "no pool has timers that repeat"
        return _Timer(self, after, ref)

    def check(self, ref: bool = True, priority: int | None = None) -> _Never:
        """A watcher that is never called: after a fork there is no virtual time."""
        return _Never()

    def run(self) -> None:
        """Run until nothing is left to wait for."""
        while True:
            for _ in range(len(self._callbacks)):
                callback = self._callbacks.popleft()
                if callback.callback is not None:
                    self._call(callback)
            self._fire_due()
            if self._callbacks:
                continue
            if not any(timer.ref and number == timer.number for _, number, timer in self._timers):
                return
            self._now = max(self._now, self._timers[0][0])

    def destroy(self) -> None:
        self._callbacks.clear()
        self._timers.clear()

    def handle_error(self, context: object, *exc_info: Any) -> None:
        self.error_handler.handle_error(context, *exc_info)

    def _fire_due(self) -> None:
        due = []
        while self._timers and self._timers[0][0] <= self._now:
            due.append(heapq.heappop(self._timers))
        for _, number, timer in due:
            if timer.number == number:
                timer.number = None
                self._call(timer)

    def _call(self, what: _Callback | _Timer) -> None:
        call, args, what.callback = what.callback, what.args, None
        assert call is not None
        try:
            call(*args)
        except BaseException:
            self.handle_error(what, *sys.exc_info())
        finally:
            if what.callback is None:  # it was not started again
                what.args = None


class _Callback:
    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object] | None, args: Any) -> None:
        self.callback, self.args = callback, args

    def __bool__(self) -> bool:
        return self.args is not None

    @property
    def pending(self) -> bool:
        return self.callback is not None

    def stop(self) -> None:
        self.callback = self.args = None

    close = stop


class _Timer:
    __slots__ = ("_after", "_loop", "args", "callback", "number", "ref")

    pending = False

    def __init__(self, loop: VirtualLoop, after: float, ref: bool) -> None:
        self._loop, self._after, self.ref = loop, after, ref
        self.callback: Callable[..., object] | None = None
        self.args: Any = None
        self.number: int | None = None  # of its entry in the loop's heap

    @property
    def active(self) -> bool:
        return self.number is not None

    def start(self, callback: Callable[..., object], *args: Any, update: bool = True) -> None:
        self.callback, self.args, self.number = callback, args, next(_numbers)
        due = self._loop.now() + self._after
        heapq.heappush(self._loop._timers, (due, self.number, self))

    again = start

    def stop(self) -> None:
        self.callback = self.args = self.number = None

    close = stop

    def __enter__(self) -> _Timer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class _Never:
    def start(self, callback: Callable[..., object], *args: Any) -> None: ...

    def stop(self) -> None: ...

    close = stop


@contextlib.contextmanager
def virtual_time() -> Iterator[VirtualLoop]:
    """In this ``with``, this thread has a hub with a VirtualLoop, and geventpool reads its clock.

    What the thread's usual hub has to do waits meanwhile.  Close in it the pools made in it.
    """
    usual = get_hub()
    loop = VirtualLoop()
    hub = Hub(loop=loop)
    set_hub(hub)
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("geventpool.") and "monotonic" in vars(module)
    ]
    real: list[Any] = [vars(module)["monotonic"] for module in modules]
    for module in modules:
        vars(module)["monotonic"] = loop.now
    read_by(loop.now)
    try:
        yield loop
    finally:
        read_by(time.monotonic)
        for module, monotonic in zip(modules, real, strict=True):
            vars(module)["monotonic"] = monotonic
        hub.destroy(destroy_loop=True)
        set_hub(usual)
