"""Salvages connections whose use was cut short: a Timeout or a kill, and not the server, ended it.

The request may be under way at the server, and its reply come at any moment.  The hook of the pool
knows what brings the protocol back into step, and all that can be seen is looked at after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent import getcurrent

from geventpool import events
from geventpool._runtime.calls import call_bounded
from geventpool._runtime.connections import ConnectionIndex
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._runtime.workers import WorkerGroup
from geventpool._scheduler.state import SALVAGING
from geventpool._util.clock import monotonic, perf_counter
from geventpool._util.errors import to_ms
from geventpool.errors import PoolClosed
from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["Salvager"]

_TICK = 0.001


class Salvager:
    """Carries out the salvages that the scheduler wants, which wants few of each pool at a time."""

    def __init__(self, runtime: Runtime, index: ConnectionIndex, notifier: Notifier) -> None:
        self._runtime = runtime
        self._index = index
        self._notifier = notifier
        self.make_workers()

    def make_workers(self) -> None:
        """Begin with none, as in a forked child."""
        self.workers = WorkerGroup(self._salvage)

    def start(self, slot: ConnectionSlot) -> None:
        """Have a greenlet salvage the connection; what cut its use short is its ``broken_by``."""
        self.workers.put((slot, slot.bucket.owner()))

    def _salvage(
        self, item: tuple[ConnectionSlot, PoolHooks | None]
    ) -> Callable[[], object] | None:
        slot, owner = item
        if slot.state is not SALVAGING:
            return None
        # None: collected just now, its _close_orphans is on the way
        if owner is None or slot.bucket.closed or slot.close_reason is not None:
            self._runtime.scheduler.salvaged(slot, False, monotonic())
            return None
        began, conn, error = perf_counter(), slot.conn, slot.broken_by
        fit, raised = False, None
        try:
            fit, raised = self._try(owner, slot, error)
        except BaseException as exc:
            raised = exc
            if not isinstance(exc, gevent.Timeout):  # one that a hook let out is a failure, too
                raise
        finally:
            fit = self._book(slot, fit, raised)
        if fit:
            took = perf_counter() - began
            return partial(self._say_salvaged, owner, slot.bucket, conn, took, error)
        return partial(self._say_failed, owner, slot.bucket, conn, raised)

    def _try(
        self, owner: PoolHooks, slot: ConnectionSlot, error: BaseException | None
    ) -> tuple[bool, BaseException | None]:
        """Whether it is fit for use now, and what a hook raised if not."""
        key, conn, bound = slot.bucket.key, slot.conn, owner.salvage_timeout
        if (probe := slot.why_unusable) is not None:
            probe.forgive()  # a wait that is cut short from now on is one of the salvage
        began = perf_counter()  # of real time, as the bound is, in a test with a clock of its own
        raised = call_bounded(bound, owner._salvage_connection, *key, conn, error)
        # The hook has swallowed that; a timer of libuv, which counts milliseconds, may be early.
        if raised is None and perf_counter() - began > bound - _TICK:
            raised = TimeoutError(f"_salvage_connection has taken longer than {to_ms(bound)} s")
        if raised is not None:
            return False, raised
        reason = self._look(owner, slot)
        if reason is None and slot.close_reason is None and owner.has_reset:
            raised = call_bounded(owner.keepalive_timeout, owner._reset_connection, *key, conn)
            reason = Reason.RESET if raised is not None else None
        if reason is not None:
            self._runtime.scheduler.mark_for_closing(slot, reason)
        return reason is None, raised

    def _look(self, owner: PoolHooks, slot: ConnectionSlot) -> Reason | None:
        """Why it must not be used again, as far as can be seen: the late reply may be there."""
        if slot.state is not SALVAGING:
            return slot.close_reason or Reason.SALVAGE  # closed by force meanwhile
        try:
            return self._index.look(owner, slot, slot.conn)
        except Exception:
            return Reason.GONE

    def _book(self, slot: ConnectionSlot, fit: bool, raised: BaseException | None) -> bool:
        """Have the scheduler know; whether it was salvaged."""
        bucket = slot.bucket
        if slot.forked:
            return False  # this is the copy of a greenlet of the parent, which goes on there
        fit = fit and slot.state is SALVAGING and slot.close_reason is None and not bucket.closed
        if slot.state is SALVAGING:  # else it is being closed
            slot.broken_by = None if fit else raised or slot.broken_by
        bucket.salvaged += fit
        bucket.salvage_failed += not fit
        self._runtime.scheduler.salvaged(slot, fit, monotonic())
        return fit

    def _say_salvaged(
        self,
        owner: PoolHooks,
        bucket: PoolBucket,
        conn: Any,
        seconds: float,
        error: BaseException | None,
    ) -> None:
        text = "salvaged a connection in %.3f s"
        self._notifier.log(owner, logging.DEBUG, text, seconds)
        if "connection_salvaged" in owner.listening:
            event = events.ConnectionSalvaged(owner, conn, seconds, error, endpoint=bucket.endpoint)
            self._notifier.notify(owner, "connection_salvaged", event)

    def _say_failed(
        self, owner: PoolHooks, bucket: PoolBucket, conn: Any, raised: BaseException | None
    ) -> None:
        if raised is None or bucket.closed:
            return
        self._notifier.log(owner, logging.INFO, "a connection could not be salvaged: %r", raised)
        if "connection_failed" in owner.listening:
            event = events.ConnectionFailed(owner, raised, conn, endpoint=bucket.endpoint)
            self._notifier.notify(owner, "connection_failed", event)

    def stop(self, bucket: PoolBucket) -> None:
        """End the salvages of *bucket*, which was closed, a little later."""
        for greenlet, item in list(self.workers.active.items()):
            if item is not None and item[0].bucket is bucket and greenlet is not getcurrent():
                self._runtime.loop.run_callback(self._stop_one, greenlet, item)

    def _stop_one(self, greenlet: Any, item: tuple[ConnectionSlot, PoolHooks]) -> None:
        # It may be at another salvage by now.
        if self.workers.active.get(greenlet) is item:
            greenlet.throw(PoolClosed("the pool was closed"))
