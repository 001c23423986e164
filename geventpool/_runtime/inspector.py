"""Looks at what a caller is about to get, in the caller's own greenlet."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent import getcurrent

from geventpool._runtime.checker import Checker
from geventpool._runtime.connections import ConnectionIndex
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import ConnectionSlot, Hold, PoolBucket, hold_of, is_held
from geventpool._runtime.waiting import WaitingLine
from geventpool._scheduler.state import IN_USE
from geventpool._util.clock import monotonic
from geventpool.errors import PoolClosed
from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["Inspector"]


class Inspector:
    """Says whether a connection is fit to be handed out; one that is not has ended then, by *end*
    (of the desk)."""

    def __init__(
        self,
        runtime: Runtime,
        index: ConnectionIndex,
        checker: Checker,
        notifier: Notifier,
        line: WaitingLine,
        end: Callable[..., None],
    ) -> None:
        self._loop = runtime.loop
        self._scheduler = runtime.scheduler
        self._index = index
        self._checker = checker
        self._notifier = notifier
        self._line = line
        self._end = end
        self._asking: dict[Any, Hold] = {}  # greenlet -> what it has checked before it gets it
        #: What callers have been given and are looking at before they take it.
        #: By look, as one that is over may end after the next one at that slot has begun.
        self.looked_at: dict[object, ConnectionSlot] = {}

    def passes_checks(
        self,
        owner: PoolHooks,
        slot: ConnectionSlot,
        began: float,
        deadline: float,
        timeout: float | None,
    ) -> bool:
        """Whether the slot just given to this caller is fit to be handed out; if not, it is gone.
        The one probe per cycle: the hub's state cannot change between it and the hand-out."""
        if slot.state is not IN_USE:
            return False  # handed over in the very loop pass of a fork: it is the parent's
        look = object()
        self.looked_at[look] = slot
        try:
            return self._is_fit(owner, slot, began, deadline, timeout)
        finally:
            del self.looked_at[look]

    def _is_fit(
        self,
        owner: PoolHooks,
        slot: ConnectionSlot,
        began: float,
        deadline: float,
        timeout: float | None,
    ) -> bool:
        hold, conn = hold_of(slot), slot.conn
        try:
            reason = self._reason_to_close(owner, hold)
        except BaseException as exc:
            self._end(hold, conn, Reason.DEAD, exc)
            if not isinstance(exc, Exception):
                raise
            hook = "_is_alive" if owner.has_is_alive else "a probe"
            self._notifier.log(owner, logging.WARNING, hook + " raised %r", exc)
            return False
        if reason is not None:
            self._end(hold, conn, reason)
        if not is_held(hold):
            return False
        # It may have been checked by the pool itself meanwhile.
        since = min(slot.idled, monotonic() - slot.checked_at)
        if owner.check_after is None or since <= owner.check_after:
            return True
        bound = min(owner.keepalive_timeout, deadline - monotonic())
        if bound <= 0:
            self._scheduler.return_unused(slot, monotonic())
            self._line.time_out(owner, slot.bucket, began, timeout)
        return self._answers(owner, hold, bound)

    def _reason_to_close(self, owner: PoolHooks, hold: Hold) -> Reason | None:
        """Why a slot must not be handed out, as far as can be told without asking the server."""
        slot = hold[0]
        if slot.close_reason is not None:
            return slot.close_reason
        if slot.uses > 1 and not owner.has_is_alive:
            return self._index.look(owner, slot, slot.conn)
        # No caller has used it yet, so what lies unread is a server's greeting; or it is for the
        # hook to say whether it is alive.
        reason = self._index.look_whose(owner, slot, slot.conn)
        if reason is not None:
            return reason if slot.uses > 1 else Reason.DEAD
        if owner.has_is_alive:
            return None if owner._is_alive(*slot.bucket.key, slot.conn) else Reason.DEAD
        self._index.hangups.poll()  # the hub may not have run since its peer hung up
        return slot.close_reason

    def _answers(self, owner: PoolHooks, hold: Hold, bound: float) -> bool:
        """Whether the server answers within *bound* seconds; if not, the slot is gone."""
        slot = hold[0]
        conn, me = slot.conn, getcurrent()
        self._asking[me] = hold
        try:
            raised = self._checker.ask(owner, slot.bucket, conn, bound)
        except BaseException as exc:
            self._end(hold, conn, Reason.KEEPALIVE, exc)
            raise
        finally:
            del self._asking[me]
        if raised is not None:
            self._end(hold, conn, Reason.KEEPALIVE, raised)
            self._doubt_the_others(owner, slot.bucket, raised)
            text = "the check before hand-out failed: %r"
            self._notifier.log(owner, logging.INFO, text, raised)
            return False
        slot.check_begins(monotonic())
        self._index.look_for_a_reconnect(owner, slot, conn)
        if slot.bucket.closed:
            self._end(hold, conn, Reason.POOL_CLOSED)
        elif slot.close_reason is not None:
            self._end(hold, conn, slot.close_reason)
        return is_held(hold)

    def _doubt_the_others(
        self, owner: PoolHooks, bucket: PoolBucket, raised: BaseException
    ) -> None:
        """A check failed.  If it met silence, others idle as long are likely silent, too: the pool
        checks them meanwhile, and the caller gets a fresh connection or one just used."""
        bucket.check_failed(raised, monotonic())
        if isinstance(raised, gevent.Timeout) and owner.check_after is not None:
            self._scheduler.start_checks(bucket, owner.check_after, monotonic(), at_once=True)
            self._scheduler.reconcile(bucket, monotonic())

    def stop(self, bucket: PoolBucket) -> None:
        """The bucket was closed: end the checks that callers wait for, a little later."""
        for greenlet, hold in self._asking.items():
            if hold[0].bucket is bucket and greenlet is not getcurrent():
                self._loop.run_callback(self._stop_asking, greenlet, hold)

    def _stop_asking(self, greenlet: Any, hold: Hold) -> None:
        if self._asking.get(greenlet) is hold:
            greenlet.throw(PoolClosed("the pool was closed"))
