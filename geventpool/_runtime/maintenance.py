"""Looks after buckets when they are due: the keepalive and the reaper of each pool, and the watch
over uses that last for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from geventpool import events
from geventpool._runtime.introspection import (
    held_for_long,
    holder_of,
    stack_now,
    where_acquired,
)
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._scheduler.scheduler import Scheduler
from geventpool._scheduler.state import AT_ONCE, IN_USE, NEVER
from geventpool._util.clock import monotonic
from geventpool._util.heap import Heap

__all__ = ["Maintenance", "MaintenanceLoop"]

_BREAK = 0.001  # seconds at least from one run of the keepalive or the reaper to the next


class Maintenance:
    """Has the keepalive, the reaper and the watch over long uses of a pool look after its buckets,
    as far as they need it."""

    def __init__(self, scheduler: Scheduler, notifier: Notifier) -> None:
        self._scheduler = scheduler
        self._notifier = notifier

    def schedule(self, bucket: PoolBucket, drained_at: float | None = None) -> None:
        """Look after *bucket* from now on; if it is being drained, the reaper at that time."""
        owner = bucket.owner()
        if bucket.closed or owner is None:
            return
        if owner.maintenance is None:
            owner.maintenance = (
                MaintenanceLoop(self._keep_alive, owner.keepalive or NEVER),
                MaintenanceLoop(self._reap, NEVER),
                MaintenanceLoop(self._watch_uses, owner.leak_threshold or NEVER),
            )
        bucket.maintenance = owner.maintenance
        keepalive, reaper, watch = owner.maintenance
        spans = [bucket.idle_timeout, bucket.max_lifetime]
        # Nothing opened later is due before that (with full jitter: hardly anything).
        shortest = min((span for span in spans if span is not None), default=NEVER)
        reaper.longest = min(reaper.longest, shortest * max(0.01, 1.0 - bucket.jitter))
        now = monotonic()
        if drained_at is not None:
            reaper.add(bucket, drained_at)
            return
        reaper.add(bucket, now + reaper.longest)
        watch.add(bucket, now + watch.longest)
        if bucket.has_keepalive:
            keepalive.add(bucket, now + keepalive.longest)

    def stop(self, bucket: PoolBucket) -> None:
        """Have nothing look after *bucket* any more, which is closed or empty."""
        for each in bucket.maintenance:
            each.discard(bucket)

    def _keep_alive(self, bucket: PoolBucket, now: float, longest: float) -> float:
        again = self._scheduler.start_checks(bucket, longest, now)
        return max(again, now + longest / 100, monotonic() + _BREAK)

    def _reap(self, bucket: PoolBucket, now: float, longest: float) -> float:
        again = self._scheduler.reap(bucket, now)
        return max(min(again, now + longest), monotonic() + _BREAK)

    def _watch_uses(self, bucket: PoolBucket, now: float, threshold: float) -> float:
        """Have told, once for each use, which of them last for long; what is handed out from now on
        is not due before *threshold* is over."""
        for slot in held_for_long(bucket, threshold, now):
            self._report(slot, now)
        since = [slot.since for slot in bucket.slots if slot.state is IN_USE]
        again = min((at for at in since if at + threshold > now), default=now) + threshold
        # A little late: not one wake-up for each of many.
        return max(again, now + threshold / 20, monotonic() + _BREAK)

    def _report(self, slot: ConnectionSlot, now: float) -> None:
        bucket = slot.bucket
        owner, conn, greenlet = bucket.owner(), slot.ref(), holder_of(slot)
        if owner is None or conn is None:
            return
        bucket.held_long += 1
        where, stack = where_acquired(slot), stack_now(greenlet)
        event = events.ConnectionHeldLong(
            owner, conn, greenlet, now - slot.since, where, stack, endpoint=bucket.endpoint
        )
        # In a greenlet of the notifier: a listener that waits holds up no other report.
        self._notifier.workers.put((owner, "connection_held_long", event))


class MaintenanceLoop:
    """A greenlet that looks after the buckets of one pool, each when it is due.

    It runs while there are any.  *run_due* does what is due for one, and returns when to come
    again, NEVER for not at all; it is given *longest*, the seconds that no bucket may be left alone
    for.  Others run between any two calls: what is due may wait for them.
    """

    def __init__(
        self, run_due: Callable[[PoolBucket, float, float], float], longest: float
    ) -> None:
        self.longest = longest
        self.buckets: Heap[PoolBucket] = Heap()  # by when they are due
        self.greenlet: Any = None
        self._run_due = run_due
        self._until = NEVER  # when the greenlet looks again

    def add(self, bucket: PoolBucket, at: float) -> None:
        """Look after *bucket* at that time, and then whenever it is due."""
        if at == NEVER:
            return
        self.buckets.put(bucket, at)
        if self.greenlet is not None and at < self._until:
            greenlet, self.greenlet = self.greenlet, None
            greenlet.kill(block=False)
        self._start()

    def discard(self, bucket: PoolBucket) -> None:
        """Do not look after *bucket* any more."""
        if bucket in self.buckets:
            self.buckets.discard(bucket)
            if not self.buckets and self.greenlet is not None:
                self.greenlet.kill(block=False)

    def _start(self) -> None:
        if self.greenlet is None and self.buckets:
            self._until = AT_ONCE
            self.greenlet = gevent.spawn(self._run)
            self.greenlet.rawlink(self._left)

    def _run(self) -> None:
        while self.buckets:
            now = monotonic()
            at = self.buckets.first()[0]
            if at > now:
                self._until = at
                # Without keeping a program alive that has nothing else to do; if it is early by
                # our clock, it sleeps again.  Of less, a loop on libuv would warn.
                gevent.sleep(max(at - now, _BREAK), ref=False)
            else:
                self._run_first(now)
                gevent.sleep(0)

    def _run_first(self, now: float) -> None:
        # Not in _run, which would keep alive the bucket it has looked after last while it sleeps.
        bucket = self.buckets.first()[1]
        self.buckets.discard(bucket)
        self.add(bucket, self._run_due(bucket, now, self.longest))

    def _left(self, greenlet: Any) -> None:
        """It has ended; if it was killed, and not by the pool, its work goes on."""
        if greenlet is self.greenlet:
            self.greenlet = None
            self._start()
