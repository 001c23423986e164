"""Closes connections, in greenlets of its own and within a time limit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent

from geventpool._runtime.calls import call_bounded
from geventpool._runtime.connections import ConnectionIndex
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._runtime.workers import WorkerGroup
from geventpool._util.clock import monotonic
from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["CLOSE_TIMEOUT", "Closer"]

CLOSE_TIMEOUT = 5.0  # seconds that one _close_connection may take
_MOST_CLOSERS = 64
_RECYCLED = frozenset({Reason.EXPIRED, Reason.WORN_OUT, Reason.DRAINED})


class Closer:
    """Carries out the closes that the scheduler wants."""

    def __init__(self, runtime: Runtime, index: ConnectionIndex, notifier: Notifier) -> None:
        self._runtime = runtime
        self._index = index
        self._notifier = notifier
        self.make_workers()

    def make_workers(self) -> None:
        """Begin with none, as in a forked child."""
        self.workers = WorkerGroup(self._close, _MOST_CLOSERS)

    def start(self, slot: ConnectionSlot, reason: Reason) -> None:
        """Have a greenlet close the connection, alive or not."""
        bucket = slot.bucket
        owner = bucket.last_owner
        self._index.forget(owner, slot)
        if reason in _RECYCLED and owner is not None and "connection_recycled" in owner.listening:
            # Told by the dial that replaces it, the next one or the one that has just succeeded;
            # what an elastic pool has beyond its minimum is not replaced.
            if bucket.open <= bucket.effective_min_size > 0:
                bucket.recycled.append(slot.conn)
        self.workers.put((slot, reason, owner))

    def hang_up(self, owner: PoolHooks, bucket: PoolBucket, conn: Any) -> BaseException | None:
        """Call the hook, within its time limit; returns what it raised, but lets a kill pass."""
        try:
            return call_bounded(CLOSE_TIMEOUT, owner._close_connection, *bucket.key, conn)
        except gevent.Timeout as exc:
            return exc  # the hook's own

    def _close(
        self, item: tuple[ConnectionSlot, Reason, PoolHooks | None]
    ) -> Callable[[], object] | None:
        slot, reason, owner = item
        bucket, conn, error = slot.bucket, slot.conn, slot.broken_by
        raised: BaseException | None = None
        try:
            if owner is not None:
                raised = self.hang_up(owner, bucket, conn)
        finally:
            slot.conn = slot.broken_by = None
            self._runtime.scheduler.closed(slot, monotonic())
            self._runtime.changed(bucket)
        if owner is None:
            return None
        if raised is None and not (owner.listening or owner.log.isEnabledFor(logging.DEBUG)):
            return None
        return partial(self._say, owner, bucket, conn, reason, error, raised)

    def _say(
        self,
        owner: PoolHooks,
        bucket: PoolBucket,
        conn: Any,
        reason: Reason,
        error: BaseException | None,
        raised: BaseException | None,
    ) -> None:
        self._notifier.log(owner, logging.DEBUG, "closed a connection: %s", reason)
        if raised is not None:
            first = "_close_connection" not in owner.warned
            owner.warned.add("_close_connection")
            level = logging.WARNING if first else logging.DEBUG
            self._notifier.log(owner, level, "_close_connection raised %r", raised)
        self._notifier.disposed(owner, bucket, conn, reason, error)
