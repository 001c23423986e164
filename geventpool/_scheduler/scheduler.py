"""Who gets which connection next: all that is decided about slots, buckets, limits and waiters.

The scheduler decides and nothing else.  It does no I/O, starts no greenlet, reads no clock and
calls no user code; time is passed in, and what it wants done it asks of its *effects* (the
runtime), which only schedule.  What it decides about stands in ``model.py``, the greenlets that
carry its decisions out are in ``_runtime``.

                   dial ok           hand-over           release
    CONNECTING ----------> IDLE ---------------> IN_USE ---------> IDLE
        | dial failed        | keepalive due        | discard, to be closed
        v                    v                      v
     CLOSED <--------     CHECKING ------------> CLOSING ---------> CLOSED

(and IN_USE -> CLOSED, when a holder detaches a connection or loses it to the garbage collector).

There is one verb at a time, and what cuts one short is set right: see ``inbox.py``.

Read ``Arbiter.reconcile`` next, which each of the verbs (``verbs.py``) ends in.
"""

from __future__ import annotations

import itertools
from typing import Any

from geventpool._scheduler.arbiter import Arbiter
from geventpool._scheduler.audit import AUDIT_EVERY
from geventpool._scheduler.effects import Effects
from geventpool._scheduler.inbox import AT_WORK, CUT_SHORT, FREE, Inbox
from geventpool._scheduler.ledger import Ledger
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.state import CONNECTING, IDLE, IN_USE, NEVER
from geventpool._scheduler.verbs import Verbs
from geventpool._scheduler.waiter import Waiter
from geventpool.errors import Verdict
from geventpool.events import Reason

__all__ = ["AUDIT_EVERY", "Effects", "Scheduler"]


class Scheduler(Inbox):
    """The buckets of one hub and everything that is decided about them."""

    def __init__(self, effects: Effects) -> None:
        ledger = Ledger(effects)
        super().__init__(ledger, Arbiter(ledger))
        self._verbs = Verbs(ledger, self.arbiter)
        self._wake = effects.wake
        self.with_waiters = ledger.with_waiters
        #: Each caller draws one as it comes; which waiter is served first goes by it.
        self.tickets = itertools.count(1)

    # Buckets

    def add(self, bucket: Bucket, now: float) -> None:
        """Take *bucket* in; its minimum is dialed at once.  ValueError if it cannot fit."""
        for limit in bucket.shared:
            if limit._scheduler is not None and limit._scheduler is not self and limit._buckets:
                raise ValueError(f"limits: {limit!r} is shared by pools of another hub")
        _check_minimum(bucket, bucket.min_size)
        bucket.scheduler = self
        for limit in bucket.limits:
            limit._scheduler = self
        self._buckets.add(bucket)
        self._do(self._verbs.add, bucket, now)

    def remove(self, bucket: Bucket) -> None:
        """Forget *bucket*, which is empty."""
        self._buckets.discard(bucket)
        self._do(self.ledger.remove, bucket)

    def shut(self, bucket: Bucket, error: BaseException, now: float) -> None:
        """Close *bucket* for good: waiters get *error*, idle slots are closed, others on return."""
        self._do(self._verbs.shut, bucket, error, now)

    def resize(
        self,
        bucket: Bucket,
        size: int,
        min_size: int,
        now: float,
        max_overflow: float | None = None,
    ) -> None:
        """Keep *size* connections at most and *min_size* at least from now on, and open
        *max_overflow* more than *size* (None: as before) at most.  ValueError if a larger minimum
        than before cannot fit."""
        if min_size > bucket.min_size:
            _check_minimum(bucket, min_size)
        self._do(self._verbs.resize, bucket, size, min_size, now, max_overflow)

    def dispose(self, bucket: Bucket, reason: Reason, now: float) -> None:
        """Close every idle slot, and the ones being checked or salvaged when that is done."""
        self._do(self._verbs.dispose, bucket, reason, now)

    def drain(self, bucket: Bucket, over: float, now: float) -> None:
        """Have every slot opened so far replaced at a random moment within *over* seconds."""
        self._do(self._verbs.drain, bucket, over, now)

    def forget_all(self, bucket: Bucket) -> None:
        """After a fork: let go of every slot without closing it, keep the waiters.

        What still comes back of the old slots is known by its state, CLOSED, and ignored.
        """
        self.ledger.forget_all(bucket)

    # Callers

    def try_checkout(self, bucket: Bucket, now: float) -> Any:
        """An idle slot for a caller that has just come, now IN_USE; None if it must wait."""
        if bucket.waiters or self.busy == AT_WORK:
            return None
        return self._do(self._verbs.try_checkout, bucket, now)

    def put_back(self, slot: Slot) -> None:
        """Put back a slot that the fast path has popped and does not want to judge."""
        bucket = slot.bucket
        if bucket.lifo:
            bucket._idle.append(slot)
        else:
            bucket._idle.appendleft(slot)

    def enqueue(self, waiter: Waiter, now: float, requeued: bool = False) -> None:
        """Put *waiter* in line: at the end, or *requeued* by the ticket it drew when it came."""
        bucket = waiter.bucket
        waiters, own = bucket.waiters, bucket.own
        if (
            self.busy
            or not waiters
            or requeued
            or bucket._idle
            or own.used - own._closing + own._coming < own._maximum
            or not bucket.patient
        ):
            self._do(self._verbs.enqueue, waiter, now, requeued)
            return
        # The crowd's case: only a release, or a close, can do anything for it.  What the verb and
        # ``Line.join`` come to then is spelled out, as every caller of a crowd comes by.
        try:
            self.busy = AT_WORK
            waiters[waiter] = None
            deadline = waiter.deadline
            if deadline >= waiters.latest:
                waiters.latest = deadline
            else:
                waiters.note_early(waiter, deadline)
            self.busy = FREE
        except BaseException:
            self.busy = CUT_SHORT
            self._catch_up_soon()
            raise
        if self._put_aside:
            self._work_off()

    def cancel(self, waiter: Waiter, now: float) -> None:
        """Let *waiter* go, however its wait ended: not yet served, it leaves the line; already
        served, its slot goes back."""
        self._do(self._verbs.cancel, waiter, now)

    def expire(self, now: float) -> None:
        """End the wait of each waiter whose deadline has come."""
        self._do(self._verbs.expire, now)

    def look_at_line(self, bucket: Bucket, now: float) -> None:
        """Send away those that wait too long in a slow line, though nothing may have come back."""
        self._do(self._verbs.look_at_line, bucket, now)

    def next_deadline(self) -> float | None:
        """When ``expire`` has work next; None if no waiter has a deadline."""
        first = min((bucket.waiters.next_deadline() for bucket in self.with_waiters), default=NEVER)
        return None if first == NEVER else first

    def refuse(self, waiter: Waiter, error: BaseException, now: float) -> None:
        """End the wait of *waiter*, if it still lasts, with *error*."""
        self._do(self._verbs.refuse, waiter, error, now)

    def return_unused(self, slot: Slot, now: float) -> None:
        """Take back a slot whose hand-out came to nothing: it has been idle all the while."""
        self._do(self._verbs.return_unused, slot, now)

    def release(self, slot: Slot, now: float) -> None:
        """Take back a slot that is fit for use: it goes to the oldest waiter, or lies idle."""
        bucket = slot.bucket
        waiters, own = bucket.waiters, bucket.own
        if (
            not (waiters and bucket.simple and now < slot.fast_path_until)
            or self.busy
            or slot.state is not IN_USE
            or bucket.closing
            or own.used > own._maximum
        ):
            self._do(self._verbs.release, slot, now)
            return
        # The crowd's case, in which that comes to this: nothing closes, so no place is claimed.
        try:
            # First of all: the collector may run at the look for the oldest, too, and a finalizer
            # that gives back another slot would hand it to the same waiter.
            self.busy = AT_WORK
            for waiter in waiters:  # noqa: B007 - the oldest; next(iter()) is two calls
                break
            if waiter.useless_after <= now:
                self._verbs.release(slot, now)
            else:
                slot.idled = 0.0
                slot.since = now
                slot.uses += 1
                slot.waiter = waiter
                waiter.slot = slot
                wake = self._wake  # a field, and no method: so it is found sooner
                waiter.wake_handle = wake(waiter.callback, waiter)
                del waiters[waiter]
                if not waiters:
                    waiters.ended()
                    del self.with_waiters[bucket]
                    self.ledger.update_fast_path(bucket)
            self.busy = FREE
        except BaseException:
            self.busy = CUT_SHORT
            self._catch_up_soon()
            raise
        if self._put_aside:
            self._work_off()

    def discard(self, slot: Slot, reason: Reason, now: float) -> None:
        """Close a slot that a caller holds; a replacement is dialed if anybody wants it."""
        self._do(self._verbs.discard, slot, reason, now)

    def salvage(self, slot: Slot, now: float) -> None:
        """Have a slot that a caller holds, and whose use was cut short, salvaged if that is worth
        it, closed otherwise."""
        self._do(self._verbs.salvage, slot, now)

    def verified(self, slot: Slot) -> None:
        """A caller used the connection in good order: the server is well."""
        self._do(self._verbs.verified, slot)

    def mark_for_closing(self, slot: Slot, reason: Reason) -> None:
        """Have *slot* closed as soon as it is not held."""
        self.ledger.mark_for_closing(slot, reason)

    def forget_hangup(self, slot: Slot) -> None:
        """It was an earlier socket of *slot* whose peer hung up."""
        self.ledger.forget_hangup(slot)

    def wrong_server(self, slot: Slot, now: float) -> bool:
        """A holder has learnt that *slot*, which it has yet to give back, is connected to the wrong
        server: so is all that was dialed before now.  False if that was known."""
        return bool(self._do(self._verbs.wrong_server, slot, now))

    def refusal(self, bucket: Bucket, now: float) -> BaseException | None:
        """What a caller gets that would stand in line while no dial succeeds; None: it may."""
        return self.arbiter.outcomes.refusal(bucket, now)

    def dismiss(self, slot: Slot, reason: Reason, now: float) -> bool:
        """Close *slot* if it is idle; whether it was."""
        if slot.state is not IDLE or self.busy == AT_WORK:
            return False
        return bool(self._do(self._verbs.dismiss, slot, reason, now))

    def detach(self, slot: Slot, reason: Reason, now: float) -> None:
        """Let go of a slot whose connection is not the pool's any more."""
        self._do(self._verbs.detach, slot, reason, now)

    # What the runtime reports

    def wanted(self, slot: Slot) -> bool:
        """Whether this dial, not begun yet, would still serve anybody."""
        bucket = slot.bucket
        return slot.state is CONNECTING and bucket.connecting <= max(
            len(bucket.waiters), bucket.missing
        )

    def cancel_dial(self, slot: Slot, now: float) -> None:
        """Give up a dial that no caller wants any more."""
        self._do(self._verbs.cancel_dial, slot, now)

    def opened(self, slot: Slot, now: float) -> None:
        """The dial succeeded and the slot has its connection."""
        self._do(self._verbs.opened, slot, now)

    def dial_failed(
        self, slot: Slot, error: BaseException, now: float, verdict: Verdict = Verdict.BROKEN
    ) -> None:
        """The dial failed: one dial at a time from now on, and after a pause, unless it was refused
        by a server that is full."""
        self._do(self._verbs.dial_failed, slot, error, now, verdict)

    def peer_closed(self, slot: Slot, now: float) -> None:
        """The peer hung up: an idle slot is closed now, another as soon as it is not held."""
        self._do(self._verbs.peer_closed, slot, now)

    def closed(self, slot: Slot, now: float) -> None:
        """The connection is closed: its place is free."""
        self._do(self._verbs.closed, slot, now)

    def start_checks(
        self, bucket: Bucket, keepalive: float, now: float, *, at_once: bool = False
    ) -> float:
        """Check those who need it of the slots idle for *keepalive* seconds; returns when to call
        again.  At most every other idle slot at a time, so that callers find one at hand, but all
        of them *at_once* if they are more likely dead than not."""
        if self.busy == AT_WORK:
            return now
        return float(self._do(self._verbs.start_checks, bucket, keepalive, now, at_once))

    def checked(self, slot: Slot, ok: bool, now: float) -> None:
        """The check is done; fit, the slot goes back where it was among the idle ones."""
        self._do(self._verbs.checked, slot, ok, now)

    def salvaged(self, slot: Slot, ok: bool, now: float) -> None:
        """The salvage is done; fit, the slot goes to the oldest waiter, or lies idle."""
        self._do(self._verbs.salvaged, slot, ok, now)

    def reap(self, bucket: Bucket, now: float) -> float:
        """Close what has been idle too long, have the old replaced; returns when to call again."""
        if self.busy == AT_WORK:
            return now
        return float(self._do(self._verbs.reap, bucket, now))

    def reconcile(self, bucket: Bucket, now: float) -> None:
        """Look at *bucket* again: a back-off is over, or a caller of ``fill`` has come."""
        self._do(self.arbiter.reconcile, bucket, now)

    def reconcile_limit(self, limit: Limit, now: float) -> None:
        """Keep the new maximum of *limit*, or use it."""
        self._do(self.arbiter.reconcile_limit, limit, now)


def _check_minimum(bucket: Bucket, min_size: int) -> None:
    for limit in bucket.shared if min_size else ():
        others = (b for b in limit._buckets if b is not bucket and not b.closed)
        minimum = min_size + sum(b.min_size for b in others)
        if minimum > limit._maximum:
            raise ValueError(
                f"limits: {limit!r} cannot hold the {minimum} connections that its pools"
                f" keep open at least (min_size of {bucket.name!r} is {min_size})"
            )
