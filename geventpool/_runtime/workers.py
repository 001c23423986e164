"""Standing greenlets: a WorkerGroup works off a queue, a MaintenanceLoop looks after buckets when
they are due."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import gevent
from gevent import GreenletExit, getcurrent

from geventpool._scheduler.model import Bucket
from geventpool._scheduler.state import AT_ONCE, NEVER
from geventpool._util.heap import Heap

__all__ = ["MaintenanceLoop", "WorkerGroup", "leave_behind"]


class Worker(gevent.Greenlet):  # type: ignore[type-arg]  # no generic at run time
    """A greenlet of a WorkerGroup.  Its copy in a forked child can be kept from ever going on."""

    left_behind = False

    def switch(self, *args: Any) -> Any:
        """Go on; but what a copy waited for, it is not told: its sockets are the parent's."""
        if self.left_behind:
            return self.throw(GreenletExit)
        return super().switch(*args)


def leave_behind(copies: Iterable[Any]) -> None:
    """End the *copies* of the parent's workers, in the child, without another step of theirs.

    An event for one of them may be pending in the loop as the program forks, and that comes before
    whatever is scheduled now.
    """
    for copy in copies:
        copy.left_behind = True
        copy.kill(block=False)


class WorkerGroup:
    """Greenlets that work off a queue, at most *most* at a time; idle ones end."""

    def __init__(self, work: Callable[[Any], None], most: float = NEVER) -> None:
        self.queue: deque[Any] = deque()
        self.active: dict[Any, Any] = {}  # greenlet -> what it works on
        self.polling = 0  # 1 while one of them is about to look at the queue again
        self._work = work
        self._most = most

    def put(self, item: Any) -> None:
        self.queue.append(item)
        if self.polling:
            self.polling = 0
        else:
            self._spawn_worker()

    def _spawn_worker(self) -> None:
        if len(self.active) < self._most:
            greenlet = Worker.spawn(self._run)
            self.active[greenlet] = None
            greenlet.rawlink(self._left)

    def _run(self) -> None:
        me = getcurrent()
        try:
            while self.queue:
                self.active[me] = self.queue.popleft()
                self._work(self.active[me])
        finally:
            del self.active[me]

    def _left(self, greenlet: Any) -> None:
        """One has ended; if it was killed, perhaps before it began, its work goes on."""
        self.active.pop(greenlet, None)
        if self.queue:
            # Those that work may be long at it: only one that has not begun yet will take what is
            # left.
            fresh = sum(item is None for item in self.active.values())
            if len(self.queue) > fresh:
                self._spawn_worker()


class MaintenanceLoop:
    """A greenlet that looks after the buckets of one pool, each when it is due.

    It runs while there are any.  *run_due* does what is due for one, and returns when to come
    again, NEVER for not at all; it is given *longest*, the seconds that no bucket may be left alone
    for.  Others run between any two calls: what is due may wait for them.
    """

    def __init__(self, run_due: Callable[[Bucket, float, float], float], longest: float) -> None:
        self.longest = longest
        self.buckets: Heap[Bucket] = Heap()  # by when they are due
        self.greenlet: Any = None
        self._run_due = run_due
        self._until = NEVER  # when the greenlet looks again

    def add(self, bucket: Bucket, at: float) -> None:
        """Look after *bucket* at that time, and then whenever it is due."""
        if at == NEVER:
            return
        self.buckets.put(bucket, at)
        if self.greenlet is not None and at < self._until:
            greenlet, self.greenlet = self.greenlet, None
            greenlet.kill(block=False)
        self._start()

    def discard(self, bucket: Bucket) -> None:
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
                # our clock, it sleeps again.
                gevent.sleep(at - now, ref=False)
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
