"""Where callers get connections and give them back: lend, take back, discard, detach.

The scheduler decides who gets which; here the caller's own greenlet waits, looks at what it got
before it goes out of the house, and books what comes back.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from geventpool import events
from geventpool._runtime import clock
from geventpool._runtime.calls import call_bounded
from geventpool._runtime.checker import Checker
from geventpool._runtime.connections import ConnectionIndex, has_out
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.inspector import Inspector
from geventpool._runtime.introspection import remember_caller
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import (
    Caller,
    ConnectionSlot,
    Hold,
    PoolBucket,
    hold_of,
    is_held,
)
from geventpool._runtime.timeout_losses import TimeoutLosses
from geventpool._runtime.waiting import WaitingLine
from geventpool._scheduler.inbox import CUT_SHORT
from geventpool._scheduler.state import IDLE, IN_USE, NEVER, SALVAGING
from geventpool._util.deadlines import active as deadlines
from geventpool._util.forks import forks_seen
from geventpool.errors import NotInUse
from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["Desk"]


class Desk:
    """What callers do.  Every verb that takes a connection back takes the Hold it was lent by."""

    def __init__(
        self, runtime: Runtime, index: ConnectionIndex, checker: Checker, notifier: Notifier
    ) -> None:
        self._runtime = runtime
        self._hub = runtime.hub
        self._ident = runtime.ident
        self._scheduler = runtime.scheduler
        self._line = WaitingLine(runtime, checker, notifier)
        self._index = index
        self._notifier = notifier
        self._timeout_losses = TimeoutLosses(notifier)
        #: Looks at what callers have been given, before they take it.
        self.inspector = Inspector(runtime, index, checker, notifier, self._line, self._end)

    # Lend

    def acquire(
        self, owner: PoolHooks, bucket: PoolBucket, timeout: float | None
    ) -> tuple[ConnectionSlot, Any]:
        """A connection for the current greenlet, and the slot that it has this use of."""
        me, hub = clock.getcurrent(), self._hub
        if clock.get_ident() != self._ident or me is hub or clock.is_dead(hub) or not forks_seen:
            self._runtime.assert_usable_here(bucket)
        began = now = clock.monotonic()
        listening = owner.listening
        if listening and timeout != 0 and bucket.own.full:
            self._say_at_max(owner, bucket)
        deadline = NEVER if timeout is None else began + timeout
        useless_after = NEVER
        if deadlines:
            useless_after, deadline = self._bounded(owner, bucket, deadline, began, timeout)
        ticket, requeued = next(self._scheduler.tickets), False
        while True:
            slot: Any = None
            if bucket._idle and not bucket.waiters:
                slot = self._scheduler.try_checkout(bucket, now)
            if slot is not None:
                slot.handed_out(now)
            else:
                waiter = Caller.__new__(Caller)  # in parts: as a call it takes twice as long
                waiter.begin(bucket, ticket, deadline, me.switch, began, useless_after)
                waiter.gone = False
                slot = self._line.wait(owner, waiter, began, now, timeout, requeued)
            if not owner.checks_on_checkout and slot.since < slot.fast_path_until:
                if slot.why_unusable is None or (slot.uses > 1 and slot.is_quiet()):
                    break  # the plain case of what follows
            try:
                if self.inspector.passes_checks(owner, slot, began, deadline, timeout):
                    break
            except BaseException:
                if slot.state is IN_USE:
                    # Cut short before the look had begun, as by the end of the stack.
                    self._scheduler.busy = CUT_SHORT
                    self._runtime.catch_up_later()
                raise
            requeued = True
            now = clock.monotonic()
        if useless_after < NEVER and useless_after <= clock.monotonic():
            self._scheduler.return_unused(slot, clock.monotonic())
            self._line.time_out(owner, bucket, began, timeout)
        conn = slot.conn
        slot.conn = None
        slot.holder = clock.proxy(me)
        if owner.track:
            remember_caller(slot)
        if listening and "connection_checked_out" in listening:
            self._say_checked_out(owner, hold_of(slot), conn, clock.monotonic() - began)
        return slot, conn

    def _bounded(
        self,
        owner: PoolHooks,
        bucket: PoolBucket,
        deadline: float,
        began: float,
        timeout: float | None,
    ) -> tuple[float, float]:
        """From when on a connection is of no use to the current greenlet, by the Deadlines that it
        is under, and until when it waits for one.  It is told at once if that is now."""
        useless_after = bucket.useless_after(clock.getcurrent())
        if useless_after == NEVER:
            return useless_after, deadline
        if useless_after <= began and not bucket.closed:
            self._line.time_out(owner, bucket, began, timeout)
        return useless_after, min(deadline, useless_after)

    def _say_at_max(self, owner: PoolHooks, bucket: PoolBucket) -> None:
        if not bucket.idle and bucket.connecting <= len(bucket.waiters):
            event = events.PoolAtMax(owner, bucket.own.maximum, endpoint=bucket.endpoint)
            self._notifier.notify(owner, "pool_at_max", event)

    def _say_checked_out(self, owner: PoolHooks, hold: Hold, conn: Any, waited: float) -> None:
        endpoint = hold[0].bucket.endpoint
        event = events.ConnectionCheckedOut(owner, conn, waited, endpoint=endpoint)
        try:
            self._notifier.notify(owner, "connection_checked_out", event)
        except BaseException:
            self.checkin(owner, hold, conn)
            raise
        if not is_held(hold):
            raise NotInUse(
                f"pool {owner.name!r}: a listener gave the connection back before the caller had"
                " it, or it was closed by force meanwhile",
                pool=owner.name,
                connection=conn,
            )

    # Take back

    def checkin(self, owner: PoolHooks, hold: Hold, conn: Any, suspect: bool = False) -> None:
        """Take back a connection that its holder thinks fit for use.

        *suspect*: an exception left the ``with``, so look closer.
        """
        slot = hold[0]
        bucket = slot.bucket
        self._runtime.assert_own_thread(bucket)
        if not is_held(hold) or slot.returning:
            return
        used = clock.monotonic() - slot.since
        if (slot.close_reason is None or suspect or owner._may_reconnect) and not bucket.closed:
            reason, error = self._reason_to_refuse(owner, hold, conn, suspect)
            # In good order it was used if no more is said than that its peer has hung up since.
            if reason is not None and (suspect or reason is not slot.close_reason):
                self._lose(hold, conn, reason, error)
            if not is_held(hold):
                return
        if owner.has_reset and slot.close_reason is None and not bucket.closed:
            if not self._reset(owner, hold, conn):
                return
        bucket.count_use(used)
        if slot.unverified and not suspect:
            self._scheduler.verified(slot)
        slot.conn = conn
        slot.where = None
        slot.holder = None
        self._scheduler.release(slot, clock.monotonic())
        if "connection_checked_in" in owner.listening and slot.state in (IDLE, IN_USE):
            event = events.ConnectionCheckedIn(owner, conn, used, endpoint=bucket.endpoint)
            self._notifier.notify(owner, "connection_checked_in", event)

    def _reason_to_refuse(
        self, owner: PoolHooks, hold: Hold, conn: Any, suspect: bool
    ) -> tuple[Reason | None, BaseException | None]:
        """Why a connection that comes back must not be used again.  A reset, which is to come,
        would read what lies unread as the answer to its own request."""
        slot, index = hold[0], self._index
        look = index.look_whose if owner.has_is_alive and not suspect else index.look
        try:
            return look(owner, slot, conn), None
        except Exception as exc:
            return Reason.GONE, exc
        except BaseException as exc:
            self._lose(hold, conn, Reason.GONE, exc)
            raise

    def _reset(self, owner: PoolHooks, hold: Hold, conn: Any) -> bool:
        """Call the hook; whether the connection is as good as new, and still this caller's."""
        slot = hold[0]
        if clock.getcurrent() is self._hub:  # where nothing may wait
            self._lose(hold, conn, Reason.RESET)
            return False
        bound = owner.keepalive_timeout
        slot.returning = True  # released a second time, it is not in use
        try:
            raised = call_bounded(bound, owner._reset_connection, *slot.bucket.key, conn)
        except BaseException as exc:
            self._lose(hold, conn, Reason.RESET, exc)
            raise
        finally:
            slot.returning = False
        if raised is None:
            self._index.look_for_a_reconnect(owner, slot, conn)
            return is_held(hold)  # else closed by force meanwhile
        self._lose(hold, conn, Reason.RESET, raised)
        self._notifier.log(owner, logging.WARNING, "_reset_connection raised %r", raised)
        return False

    def _lose(
        self, hold: Hold, conn: Any, reason: Reason, error: BaseException | None = None
    ) -> None:
        """Have a connection closed that came back in no state to be used again."""
        if is_held(hold):
            slot, bucket = hold[0], hold[0].bucket
            self._count_lost_use(slot)
            self._end(hold, conn, reason, error)
            if slot.state is not SALVAGING:
                self._timeout_losses.note(bucket.last_owner, bucket, reason, error)

    def return_unused(self, hold: Hold, conn: Any) -> None:
        """Take back a connection that its holder has not used: it has been idle all the while."""
        slot = hold[0]
        slot.conn = conn
        slot.where = None
        slot.holder = None
        self._scheduler.return_unused(slot, clock.monotonic())

    def discard(
        self,
        owner: PoolHooks,
        hold: Hold,
        conn: Any,
        reason: Reason,
        error: BaseException | None = None,
    ) -> None:
        """Take back a connection that must not be used again, unless it can be salvaged."""
        slot = hold[0]
        bucket = slot.bucket
        self._runtime.assert_own_thread(bucket)
        if not is_held(hold):
            return
        self._count_lost_use(slot)
        self._end(hold, conn, reason, error)
        if slot.state is SALVAGING:
            return  # whether it has failed is yet to be seen
        self._timeout_losses.note(owner, bucket, reason, error)
        if error is not None:
            bucket.note_failure(error)
        if error is not None and "connection_failed" in owner.listening:
            event = events.ConnectionFailed(owner, error, conn, endpoint=bucket.endpoint)
            self._notifier.notify(owner, "connection_failed", event)

    def take_away(self, slot: ConnectionSlot) -> None:
        """The pool is closed: close a connection under its holder, or before it has one."""
        if slot.state is not IN_USE:
            return
        conn = slot.conn
        if conn is None:
            conn = slot.ref()
            self._count_lost_use(slot)
        if conn is not None:  # else its collection is being booked
            self._end(hold_of(slot), conn, Reason.POOL_CLOSED)

    def detach(self, owner: PoolHooks, hold: Hold) -> None:
        """Let the holder keep the connection: it is not the pool's any more."""
        slot = hold[0]
        bucket = slot.bucket
        self._runtime.assert_own_thread(bucket)
        if not is_held(hold):
            return
        conn = slot.ref()
        self._count_lost_use(slot)
        self._index.forget(owner, slot)
        self._scheduler.detach(slot, Reason.DETACHED, clock.monotonic())
        self._runtime.changed(bucket)
        self._notifier.disposed(owner, bucket, conn, Reason.DETACHED)

    def find(self, owner: PoolHooks, conn: Any) -> Hold:
        """By what the caller has *conn*; NotInUse if it has not.

        The slot is CLOSED if the caller has had it since before a fork: it is the parent's.
        """
        slot = owner.slots_by_id.get(id(conn))
        if slot is None or not has_out(slot, conn):
            self._runtime.assert_own_thread(owner)
            slot = self._index.search(owner, conn)
        return slot, slot.uses

    def _end(
        self, hold: Hold, conn: Any, reason: Reason, error: BaseException | None = None
    ) -> None:
        """Have the connection closed, or salvaged, if that use still lasts."""
        if not is_held(hold):
            return
        slot = hold[0]
        slot.conn = conn
        slot.where = None
        slot.holder = None
        slot.broken_by = error
        owner = slot.bucket.owner() if reason is Reason.CUT_SHORT else None
        if owner is not None and owner.has_salvage:
            self._scheduler.salvage(slot, clock.monotonic())
        else:
            self._scheduler.discard(slot, reason, clock.monotonic())

    def _count_lost_use(self, slot: ConnectionSlot) -> None:
        """Book the end of a use that its connection has not come through fit for the next."""
        slot.bucket.lost_uses += 1
        slot.bucket.count_use(clock.monotonic() - slot.since)
