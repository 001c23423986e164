"""Greenlets that dial, close, check and notify, as many as there is work for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent import GreenletExit, getcurrent

from geventpool._scheduler.state import NEVER
from geventpool._util.forks import catch_up, forks_seen

__all__ = ["Worker", "WorkerGroup", "leave_behind"]


_switch = gevent.Greenlet.switch  # at each wake-up, super() takes longer


class Worker(gevent.Greenlet):  # type: ignore[type-arg]  # no generic at run time
    """A greenlet of a WorkerGroup.  Its copy in a forked child can be kept from ever going on."""

    left_behind = False

    def switch(self, *args: Any) -> Any:
        """Go on; but what a copy waited for, it is not told: its sockets are the parent's."""
        if not forks_seen:
            catch_up()  # a fork that Python has not seen: this may be such a copy
        if self.left_behind:
            return self.throw(GreenletExit)
        return _switch(self, *args)


def leave_behind(copies: Iterable[Any]) -> None:
    """End the *copies* of the parent's workers, in the child, without another step of theirs.

    An event for one of them may be pending in the loop as the program forks, and that comes before
    whatever is scheduled now.
    """
    for copy in copies:
        copy.left_behind = True
        copy.kill(block=False)


class WorkerGroup:
    """Greenlets that work off a queue, at most *most* at a time; idle ones end.

    Books first, words after: *work* does what is to be done with a thing of the queue, and returns
    what there is to say of it, a callable, or None.  Listeners and log handlers may take their
    time; the greenlet that waits for them does not count any more, and another takes its place.
    """

    def __init__(
        self, work: Callable[[Any], Callable[[], object] | None], most: float = NEVER
    ) -> None:
        self.queue: deque[Any] = deque()
        self.active: dict[Any, Any] = {}  # greenlet -> what it works on
        self.polling = 0  # 1 while one of them is about to look at the queue again
        self._talking: set[Any] = set()  # greenlets that have done their work
        self._work = work
        self._most = most

    def put(self, item: Any) -> None:
        """Have *item* worked on."""
        self.queue.append(item)
        if self.polling:
            self.polling = 0
        else:
            self._spawn_worker()

    def things(self) -> list[Any]:
        """What is queued or being worked on."""
        return [*self.queue, *(thing for thing in self.active.values() if thing is not None)]

    def dismiss(self) -> list[Any]:
        """Drop what is queued; returns the greenlets there are."""
        self.queue.clear()
        return [*self.active, *self._talking]

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
                words = self._work(self.active[me])
                if words is not None:
                    self._say(me, words)
                    return
        finally:
            self.active.pop(me, None)
            words = None  # they may have a traceback with them, which leads back to this frame

    def _say(self, me: Any, words: Callable[[], object]) -> None:
        del self.active[me]
        self._talking.add(me)
        try:
            self.go_on()
            words()
        finally:
            self._talking.discard(me)

    def _left(self, greenlet: Any) -> None:
        """One has ended; if it was killed, perhaps before it began, its work goes on."""
        self.active.pop(greenlet, None)
        self.go_on()

    def go_on(self) -> None:
        """See to what is queued, if none of them does."""
        if self.queue:
            # Those that work may be long at it: only one that has not begun yet will take what is
            # left.  (A list: the collector may end what adds a worker, between any two of them.)
            fresh = sum(item is None for item in list(self.active.values()))
            if len(self.queue) > fresh:
                self._spawn_worker()
