"""The wait of a caller that finds nothing at hand, in its own greenlet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from geventpool import events
from geventpool._runtime import clock, refusals
from geventpool._runtime.checker import Checker
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import Caller, ConnectionSlot, PoolBucket
from geventpool._scheduler.inbox import CUT_SHORT
from geventpool._scheduler.state import IN_USE, NEVER
from geventpool._util.errors import copy_of
from geventpool._util.forks import catch_up, forks_seen
from geventpool.errors import PoolDeadlock, PoolOverloaded, PoolTimeout

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["WaitingLine"]


class WaitingLine:
    """Where callers stand; the scheduler says whose turn it is."""

    def __init__(self, runtime: Runtime, checker: Checker, notifier: Notifier) -> None:
        self._hub = runtime.hub
        self._scheduler = runtime.scheduler
        self._timers = runtime.timers
        self._deadlines = runtime.deadlines
        self._deadlocks = runtime.deadlocks
        self._checker = checker
        self._notifier = notifier

    def wait(
        self,
        owner: PoolHooks,
        waiter: Caller,
        began: float,
        now: float,
        timeout: float | None,
        requeued: bool,
    ) -> ConnectionSlot:
        """Stand in line until there is a slot.  (Only ``wake`` switches here with the waiter.)"""
        bucket: Any = waiter.bucket
        deadline = waiter.deadline
        late = deadline <= now
        if late or bucket.closed or bucket.postponed or owner.max_waiting is not None:
            self._may_wait(owner, bucket, late, began, timeout)
        deadlines, deadlocks = self._deadlines, self._deadlocks
        try:
            self._scheduler.enqueue(waiter, now, requeued)
            if (waiting := len(bucket.waiters)) > bucket.waiting_max:
                bucket.waiting_max = waiting
            if deadline < deadlines.at or (deadlines.idle and deadline < NEVER):
                deadlines.set(deadline)
            if deadlocks.idle:
                deadlocks.start()
            if bucket.retry_timer is not None:
                self._timers.keep_alive(bucket)
            if bucket.checking and waiter.slot is None:
                self._timers.shorten(bucket, self._checker.end_some)
            while self._hub.switch() is not waiter:
                pass
            if not forks_seen:
                catch_up()  # what it was handed, by a caller of this child, is the parent's
            waiter.gone = True
        except BaseException:
            waiter.gone = True
            try:
                self._give_up(waiter)
            except RecursionError:
                # For more than this there is no room on the stack: an audit sees to the rest.
                bucket.waiters.pop(waiter, None)
                self._scheduler.busy = CUT_SHORT
            raise
        if not self._scheduler.with_waiters:
            deadlines.relax()
            if bucket.look_timer is not None:
                bucket.look_timer.ref = False  # it is of no use now: let the program end
        slot: ConnectionSlot | None = waiter.slot
        if slot is None or bucket.closed:
            self._raise(owner, waiter, began, timeout)
        waited = slot.since - began
        bucket.wait_counts[clock.place_of(waited)] += 1
        bucket.wait_sum += waited
        if waited > bucket.wait_max:
            bucket.wait_max = waited
        return slot

    def time_out(
        self,
        owner: PoolHooks,
        bucket: PoolBucket,
        began: float,
        timeout: float | None,
        kind: type[PoolTimeout] = PoolTimeout,
    ) -> NoReturn:
        """Raise the PoolTimeout, of that *kind*, of a caller that began to wait at *began*."""
        now = clock.monotonic()
        error, cause = refusals.no_connection(bucket, timeout, now, began, kind)
        _count(owner, bucket, error)
        if "acquire_timed_out" in owner.listening:
            event = events.AcquireTimedOut(owner, now - began, error, endpoint=bucket.endpoint)
            self._notifier.notify(owner, "acquire_timed_out", event)
        raise error from cause

    def _shed(self, owner: PoolHooks, bucket: PoolBucket, sent: PoolOverloaded) -> NoReturn:
        """Raise the PoolOverloaded of a caller that was sent away."""
        _count(owner, bucket, sent)
        error: Any = copy_of(sent)  # for the waiter must not keep this caller's frames
        try:
            if "acquire_shed" in owner.listening:
                event = events.AcquireShed(owner, error.waited, error, endpoint=bucket.endpoint)
                self._notifier.notify(owner, "acquire_shed", event)
                del event
            raise error
        finally:
            del error  # its traceback leads here: under load these would be the collector's

    def _may_wait(
        self, owner: PoolHooks, bucket: PoolBucket, late: bool, began: float, timeout: float | None
    ) -> None:
        if bucket.postponed:
            bucket.postpone(False)  # its first use: what follows opens its minimum, too
        if bucket.closed:
            raise refusals.pool_closed(bucket)
        if (error := self._scheduler.refusal(bucket, began)) is not None:
            _count(owner, bucket, error)
            raise copy_of(error)
        if late:
            self.time_out(owner, bucket, began, timeout)
        if owner.max_waiting is not None and len(bucket.waiters) >= owner.max_waiting:
            full = refusals.pool_full(bucket, owner.max_waiting, began)
            _count(owner, bucket, full)
            raise full

    def _give_up(self, waiter: Caller) -> None:
        """Leave the line after a Timeout or a kill.

        The caller may have been served in this very loop pass (50 of 50 times, with 5 ms of
        callbacks queued before its wake-up): look, rather than trust how the wait ended.
        """
        bucket: Any = waiter.bucket
        if waiter.wake_handle is not None:
            waiter.wake_handle.stop()
        bucket.abandoned += 1
        self._scheduler.cancel(waiter, clock.monotonic())
        self._deadlines.relax()

    def _raise(
        self, owner: PoolHooks, waiter: Caller, began: float, timeout: float | None
    ) -> NoReturn:
        """Raise what the wait has ended in."""
        bucket: Any = waiter.bucket
        if waiter.slot is not None and waiter.slot.state is IN_USE:
            self._scheduler.return_unused(waiter.slot, clock.monotonic())
        if bucket.closed:
            raise refusals.pool_closed(bucket)
        if isinstance(waiter.error, PoolDeadlock):
            self.time_out(owner, bucket, began, timeout, PoolDeadlock)
        if isinstance(waiter.error, PoolOverloaded):
            self._shed(owner, bucket, waiter.error)
        if waiter.error is not None:
            _count(owner, bucket, waiter.error)
            raise copy_of(waiter.error)  # the pool keeps its own: without this caller's frames
        self.time_out(owner, bucket, began, timeout)


def _count(owner: PoolHooks, bucket: PoolBucket, error: BaseException) -> None:
    """Count a caller that gets *error*; of a manager's pool the manager does, once it has tried
    the other addresses."""
    if not owner._is_managed:
        refusals.count(owner, bucket, error)
