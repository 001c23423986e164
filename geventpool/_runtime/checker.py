"""Asks servers for a sign of life: the keepalive, and the check before a hand-out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent import getcurrent

from geventpool._runtime.calls import call_bounded
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._runtime.workers import WorkerGroup
from geventpool._scheduler.state import CHECKING
from geventpool._util.clock import monotonic
from geventpool.errors import ConnectError, PoolClosed
from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["Checker"]

_MOST_CHECKERS = 16


class Checker:
    """Carries out the checks that the scheduler wants."""

    def __init__(self, runtime: Runtime, notifier: Notifier) -> None:
        self._runtime = runtime
        self._notifier = notifier
        self.make_workers()

    def make_workers(self) -> None:
        """Begin with none, as in a forked child."""
        self.workers = WorkerGroup(self._check, _MOST_CHECKERS)

    def start(self, slot: ConnectionSlot) -> None:
        """Have a greenlet run the keepalive."""
        self.workers.put((slot, slot.bucket.owner()))

    def ask(
        self, owner: PoolHooks, bucket: PoolBucket, conn: Any, bound: float
    ) -> BaseException | None:
        """Run the keepalive within *bound* seconds.

        Returns what it raised, its time limit included; a kill, and the Timeout of a caller that
        is asking, pass.
        """
        return call_bounded(bound, owner._keepalive, *bucket.key, conn)

    def _check(self, item: tuple[ConnectionSlot, PoolHooks | None]) -> Callable[[], object] | None:
        slot, owner = item
        bucket = slot.bucket
        if slot.state is not CHECKING:
            return None
        # None: collected just now, its _close_orphans is on the way
        if bucket.closed or owner is None:
            self._runtime.scheduler.checked(slot, False, monotonic())
            return None
        raised: BaseException | None = None
        # An answer that lies unread would be taken for that to the keepalive, and the next for it.
        if reason := self._reason_to_close(owner, slot):
            self._runtime.scheduler.mark_for_closing(slot, reason)
            self._runtime.scheduler.checked(slot, True, monotonic())
            return None
        slot.check_begins(monotonic())
        try:
            raised = self.ask(owner, bucket, slot.conn, owner.keepalive_timeout)
            self._runtime.index.look_for_a_reconnect(owner, slot, slot.conn)
        except BaseException as exc:
            raised = exc
            if not isinstance(exc, gevent.Timeout):  # one that the hook let out is a failure, too
                raise
        finally:
            bucket.checked += 1
            slot.broken_by = raised
            self._runtime.scheduler.checked(slot, raised is None, monotonic())
        if raised is None:
            return None
        bucket.check_failed(raised, monotonic())
        text = "a keepalive failed: %r"
        return partial(self._notifier.log, owner, logging.INFO, text, raised)

    def _reason_to_close(self, owner: PoolHooks, slot: ConnectionSlot) -> Reason | None:
        """Why an idle connection need not be asked, as far as can be seen."""
        index = self._runtime.index
        try:
            if owner.has_is_alive or not slot.uses:
                return index.look_whose(owner, slot, slot.conn)
            return index.look(owner, slot, slot.conn)
        except Exception:
            return Reason.DEAD

    def stop(self, bucket: PoolBucket) -> None:
        """End the checks of *bucket*, which was closed, a little later."""
        for greenlet, item in list(self.workers.active.items()):
            if item is not None and item[0].bucket is bucket and greenlet is not getcurrent():
                self._runtime.loop.run_callback(self._stop_one, greenlet, item)

    def _stop_one(self, greenlet: Any, item: tuple[ConnectionSlot, PoolHooks]) -> None:
        # It may be at another check by now.
        if self.workers.active.get(greenlet) is item:
            greenlet.throw(PoolClosed("the pool was closed"))

    def end_some(self, bucket: PoolBucket) -> None:
        """End as many of the checks of *bucket* as there are callers that wait for nothing else."""
        now = monotonic()
        needed = bucket.unserved
        for greenlet, item in list(self.workers.active.items()):
            slot = item[0] if item is not None else None
            if needed and slot is not None and slot.bucket is bucket and slot.state is CHECKING:
                needed -= 1
                error = ConnectError(
                    f"pool {bucket.name!r}: a keepalive was still unanswered after"
                    f" {now - slot.checked_at:.3f} s, and a caller was waiting"
                )
                greenlet.throw(error)  # now, as later it might be at the next check
