"""The runtime's timers.

A timer of the loop counts from the loop's own time, which stands still while a greenlet computes:
started after two seconds of that, one of two seconds would fire at once.  So this file alone makes
them.  Each is set by the clock, after the loop's time was brought up to date, and one that fires
early all the same is not believed but set again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from geventpool._runtime.fields import Alarm
from geventpool._runtime.slots import PoolBucket
from geventpool._scheduler.scheduler import Scheduler
from geventpool._scheduler.state import CHECKING, NEVER
from geventpool._util.clock import monotonic, perf_counter

__all__ = ["DeadlineTimer", "HubLag", "Timer", "Timers"]

_TICK = 0.5  # seconds from one look at how late the hub is to the next
_WINDOW = 30.0  # seconds; the worst of this one and of the one before are told


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
        # libuv counts in milliseconds, and warns of less.
        seconds = max(self._loop.approx_timer_resolution, self.at - monotonic())
        self._timer = self._loop.timer(seconds, ref=ref)
        self._timer.start(self._fire, update=True)

    def _fire(self) -> None:
        ref = self.ref
        self.stop()
        if monotonic() < self.at:
            self._start(ref)
        else:
            self._call(*self._args)


class DeadlineTimer(Alarm):
    """The one timer for the deadlines of all that wait in line."""

    def __init__(self, loop: Any, scheduler: Scheduler) -> None:
        self.at = NEVER
        self.idle = False  # it runs, and no waiter cares
        self._loop = loop
        self._scheduler = scheduler
        self._timer: Timer | None = None

    def set(self, deadline: float) -> None:
        """Fire at *deadline*, or before it."""
        if self._timer is not None:
            self.idle = False
            if deadline >= self.at:
                self._timer.ref = True  # it fires early enough, only no waiter had cared
                return
            self._timer.stop()
        self._timer = Timer(self._loop, deadline, self._fire)
        self.at = deadline

    def relax(self) -> None:
        """Do not let the timer of a wait that is over keep the program alive."""
        if self._timer is not None and not self._scheduler.with_waiters:
            self._timer.ref = False
            self.idle = True

    def _fire(self) -> None:
        self.at = NEVER
        self._timer = None
        self.idle = False
        self._scheduler.expire(monotonic())
        deadline = self._scheduler.next_deadline()
        if deadline is not None:
            self.set(deadline)


class HubLag:
    """How late timers fire, as long as there are buckets: a greenlet that computes keeps all the
    others waiting, and looks like a slow server.

    By the real time: a clock that jumps in a test is no lag.
    """

    def __init__(self, loop: Any, buckets: Iterable[PoolBucket]) -> None:
        self._loop = loop
        self._buckets = buckets
        self._timer: Any = None
        self.forget()

    def forget(self) -> None:
        """Begin anew, as in a forked child."""
        self._due = NEVER
        self._worst = self._worst_before = 0.0
        self._window_ends = perf_counter() + _WINDOW
        if self._timer is not None:
            self._stop()
            self._set()

    def start(self) -> None:
        """Begin, if that has not been done: there is a bucket."""
        if self._timer is None:
            self._set()

    @property
    def seconds(self) -> float:
        """How late the timer was, at worst in the last half a minute to a minute, or is just now;
        0.0 if it is not late."""
        return max(self._worst, self._worst_before, perf_counter() - self._due, 0.0)

    def _set(self) -> None:
        self._due = perf_counter() + _TICK
        # A new one each time: libev's, started again, would fire at once.
        self._timer = self._loop.timer(_TICK, ref=False)
        self._timer.start(self._fire, update=True)

    def _stop(self) -> None:
        self._timer.stop()
        self._timer.close()
        self._timer, self._due = None, NEVER

    def _fire(self) -> None:
        now = perf_counter()
        if now >= self._window_ends:
            self._worst_before, self._worst = self._worst, 0.0
            self._window_ends = now + _WINDOW
        self._worst = max(self._worst, now - self._due)
        self._stop()
        if any(True for _ in self._buckets):
            self._set()


class Timers:
    """The timers of a bucket: the end of its back-off, and of the patience with its checks; the
    next look at its line."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def soon(self, seconds: float, call: Callable[[], object]) -> None:
        """Call *call* in about so many seconds of real time, perhaps a little early."""
        timer = self._loop.timer(seconds)

        def over() -> None:
            timer.close()
            call()

        timer.start(over, update=True)

    def retry(self, bucket: PoolBucket, call: Callable[[PoolBucket], object]) -> None:
        """Call *call* when *bucket* is to be looked at again: when its back-off is over, mostly."""
        self._set(bucket, bucket.reconcile_at, call, ref=bool(bucket.waiters or bucket.filling))

    def remember(self, bucket: PoolBucket, call: Callable[[PoolBucket], object]) -> None:
        """Call *call* when the failures of *bucket* do not matter any more, if by then none has
        come anew: after twice the longest pause."""
        if bucket.retry_timer is None:
            self._set(bucket, monotonic() + 2 * bucket.backoff.longest, call, ref=False)

    def _set(
        self, bucket: PoolBucket, at: float, call: Callable[[PoolBucket], object], ref: bool
    ) -> None:
        self.stop(bucket)

        def over() -> None:
            bucket.retry_timer = None
            call(bucket)

        bucket.retry_timer = Timer(self._loop, at, over, ref=ref)

    def shorten(self, bucket: PoolBucket, call: Callable[[PoolBucket], object]) -> None:
        """A caller waits, and only connections that are being checked are left: call *call* when
        the checks have had twice what a dial takes, so that it does not wait for a hung peer."""
        if bucket.shorten_timer is not None or bucket.connecting:
            return
        max_wait = 0.05
        if bucket.connect_count:
            max_wait = max(max_wait, 2 * bucket.connect_sum / bucket.connect_count)
        begun = min(slot.checked_at for slot in bucket.slots if slot.state is CHECKING)

        def over() -> None:
            bucket.shorten_timer = None
            call(bucket)

        bucket.shorten_timer = Timer(self._loop, begun + max_wait, over)

    def look(self, bucket: PoolBucket, at: float, call: Callable[[PoolBucket], object]) -> None:
        """Call *call* at that time, if it is not called before by what was asked for already."""
        if bucket.look_timer is not None:
            bucket.look_timer.ref = True
            return

        def over() -> None:
            bucket.look_timer = None
            call(bucket)

        bucket.look_timer = Timer(self._loop, at, over)

    def stop(self, bucket: PoolBucket) -> None:
        """End the wait for the end of its back-off, and look at its line no more."""
        if bucket.look_timer is not None:
            bucket.look_timer.stop()
            bucket.look_timer = None
        if bucket.retry_timer is not None:
            bucket.retry_timer.stop()
            bucket.retry_timer = None

    def keep_alive(self, bucket: PoolBucket) -> None:
        """A caller waits for the end of a back-off, if there is one: it keeps the program alive."""
        if bucket.retry_timer is not None:
            bucket.retry_timer.ref = True
