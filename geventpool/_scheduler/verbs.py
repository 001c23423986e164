"""What follows from each thing that callers and pools say.

Each verb ends in ``Arbiter.reconcile``, which makes every decision about waiters; the ``Ledger`` is
told what to change.  What the runtime reports is in ``reports.py``; ``scheduler.py`` sees to it
that one verb is carried out at a time.
"""

from __future__ import annotations

from geventpool._scheduler.line import deadline_of
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.reports import Reports
from geventpool._scheduler.state import (
    CHECKING,
    CLOSED,
    CLOSING,
    IDLE,
    IN_USE,
    SALVAGING,
)
from geventpool._scheduler.waiter import Waiter
from geventpool.events import Reason

__all__ = ["Verbs"]


class Verbs(Reports):
    """The verbs, each whole in itself; ``Scheduler`` has their signatures, too."""

    # Buckets

    def add(self, bucket: Bucket, now: float) -> None:
        """Take *bucket* in; its minimum is dialed at once."""
        self.ledger.add(bucket)
        if not bucket.transient or bucket.min_size:
            self._reconcile(bucket, now)

    def shut(self, bucket: Bucket, error: BaseException, now: float) -> None:
        """Close *bucket* for good: waiters get *error*, idle slots are closed, others on return."""
        bucket.closed = True
        for waiter in list(bucket.waiters):
            self.ledger.fail(waiter, error)
        self.dispose(bucket, Reason.POOL_CLOSED, now)
        self.ledger.forget_if_gone(bucket)

    def resize(
        self,
        bucket: Bucket,
        size: int,
        min_size: int,
        now: float,
        max_overflow: float | None = None,
    ) -> None:
        """Keep so many connections."""
        bucket.size, bucket.min_size = size, min_size
        if max_overflow is not None:
            bucket.max_overflow = max_overflow
        self.ledger.set_maximum(bucket)
        self._reconcile(bucket, now)

    def dispose(self, bucket: Bucket, reason: Reason, now: float) -> None:
        """Close every idle slot, and the ones being checked or salvaged when that is done."""
        for slot in list(bucket.idle_slots()):
            self.ledger.begin_close(slot, reason)
        for slot in bucket.slots:
            if slot.state is CHECKING or slot.state is SALVAGING:
                self.ledger.mark_for_closing(slot, reason)
        self._reconcile(bucket, now)

    def drain(self, bucket: Bucket, over: float, now: float) -> None:
        """Have every slot opened so far replaced at a random moment within *over* seconds."""
        for slot in bucket.slots:
            if slot.state is not CLOSING:
                at = now + over * bucket.rng.random()
                if at < slot.retire_at:
                    slot.retire_at, slot.retire_for = at, Reason.DRAINED
                    self.ledger.update_fast_path_until(slot)
        self.reap(bucket, now)

    # Callers

    def try_checkout(self, bucket: Bucket, now: float) -> Slot | None:
        """An idle slot for a caller that has just come, now IN_USE; None if it must wait."""
        if bucket.waiters:
            return None
        closing = bucket.closing
        slot = self.ledger.next_idle(bucket, now)
        if bucket.closing > closing:
            self._reconcile(bucket, now)  # stale ones were closed: the minimum may lack them
        return slot

    def enqueue(self, waiter: Waiter, now: float, requeued: bool = False) -> None:
        """Put *waiter* in line: at the end, or *requeued* by the ticket it drew when it came."""
        bucket = waiter.bucket
        waiters = bucket.waiters
        if not waiters:
            self.ledger.with_waiters[bucket] = None
            if bucket.delay_control is not None:
                bucket.delay_control.begins(now)
                self.ledger.effects.look_later(bucket, bucket.delay_control.next_look(now))
        bucket.fast_path_open = 0
        if requeued:
            waiters.rejoin(waiter)
        else:
            waiters.join(waiter)
            own = bucket.own
            if bucket.patient and not bucket._idle:
                if own.used - own._closing + own._coming >= own._maximum:
                    return  # the crowd's case: only a release, or a close, can do anything for it
                if bucket.blocked_at is not None:
                    self.ledger.file(bucket)  # others came before it, and they wait as well
                    return
        self._reconcile(bucket, now)

    def cancel(self, waiter: Waiter, now: float) -> None:
        """Let *waiter* go, however its wait ended: not yet served, it leaves the line; already
        served, its slot goes back."""
        slot, waiter.slot = waiter.slot, None
        if slot is not None:
            self.return_unused(slot, now)
        elif waiter in waiter.bucket.waiters:
            self.ledger.drop(waiter)
            self._reconcile(waiter.bucket, now)

    def expire(self, now: float) -> None:
        """End the wait of each waiter whose deadline has come."""
        due: list[Waiter] = []
        for bucket in self.ledger.with_waiters:
            # All lines in one go: a thousand callers of a thousand buckets may be due together.
            due += bucket.waiters.due(now)
        for waiter in sorted(due, key=deadline_of):
            if waiter in waiter.bucket.waiters:  # else it was served, as another one left
                self.ledger.expire(waiter)
                self._reconcile(waiter.bucket, now)

    def refuse(self, waiter: Waiter, error: BaseException, now: float) -> None:
        """End the wait of *waiter*, if it still lasts, with *error*."""
        if waiter in waiter.bucket.waiters:
            self.ledger.fail(waiter, error)
            self._reconcile(waiter.bucket, now)

    def look_at_line(self, bucket: Bucket, now: float) -> None:
        """Send away those that wait too long in a slow line, though nothing may have come back."""
        control = bucket.delay_control
        if control is None or not bucket.waiters:
            return
        if bucket.unserved <= bucket.coming:
            control.is_fine(now)
        elif self.arbiter.shed_late(bucket, now, spared=bucket.connecting + bucket.coming):
            self._reconcile(bucket, now)
        if bucket.waiters:
            self.ledger.effects.look_later(bucket, control.next_look(now))

    def return_unused(self, slot: Slot, now: float) -> None:
        """Take back a slot whose hand-out came to nothing: it has been idle all the while."""
        slot.uses -= 1
        self.release(slot, now, now - slot.idled)

    def release(self, slot: Slot, now: float, idle_since: float | None = None) -> None:
        """Take back a slot that is fit for use: it goes to the oldest waiter, or lies idle."""
        bucket = slot.bucket
        if slot.state is not IN_USE:
            return
        reason = self.arbiter.reason_to_close(slot, now)
        if reason is not None:
            self.ledger.begin_close(slot, reason)
            self._reconcile(bucket, now)
            return
        shed = False
        if bucket.delay_control is not None and not (bucket.shared and bucket.crowded):
            shed = self.arbiter.shed_late(bucket, now)
        if bucket.waiters and self.arbiter.pass_over(bucket, now):
            shed = True
        if bucket.waiters and not (bucket.shared and bucket.crowded):
            self.ledger.hand_over(slot, bucket.waiters.oldest, now)
            slot.idled = 0.0
            if shed or bucket.coming or (bucket.shared and not bucket.waiters):
                self._reconcile(bucket, now)  # no place need be kept for it any more
            elif not bucket.waiters:
                self.ledger.update_fast_path(bucket)
            elif bucket.demand:
                self.ledger.file(bucket)
            return
        if bucket.open > bucket.size and not bucket.waiters:
            self.discard(slot, Reason.SURPLUS, now)
            return
        slot.since = now if idle_since is None else idle_since
        self.ledger.make_idle(slot, now)
        if shed or not bucket.quiet or bucket.retiring:
            self._reconcile(bucket, now)
        else:
            self.ledger.update_fast_path(bucket)

    def wrong_server(self, slot: Slot, now: float) -> bool:
        """A holder has learnt that *slot*, which it has yet to give back, is connected to the wrong
        server: so is all that was dialed before now.  False if that was known."""
        bucket = slot.bucket
        if slot.dialed_at < bucket.condemned_at:
            return False
        bucket.condemned_at = now
        for each in list(bucket.idle_slots()):
            self.ledger.begin_close(each, Reason.DRAINED)
        for each in bucket.slots:
            if each is not slot and each.state is not CLOSING:
                self.ledger.mark_for_closing(each, Reason.DRAINED)
        self._reconcile(bucket, now)
        return True

    def discard(self, slot: Slot, reason: Reason, now: float) -> None:
        """Close a slot that a caller holds; a replacement is dialed if anybody wants it."""
        bucket = slot.bucket
        if slot.state is not IN_USE:
            return
        if slot.uses <= 1 and (slot.close_reason is Reason.PEER_CLOSED or reason is Reason.DEAD):
            self._died_unused(slot, now)
        self.ledger.begin_close(slot, reason)
        self._reconcile(bucket, now)

    def salvage(self, slot: Slot, now: float) -> None:
        """Have a slot that a caller holds, and whose use was cut short, salvaged if that is worth
        it, closed otherwise."""
        if slot.state is not IN_USE:
            return
        if self.arbiter.may_salvage(slot, now):
            self.ledger.begin_salvage(slot)  # it is open as before: nothing follows
        else:
            self.discard(slot, Reason.CUT_SHORT, now)

    def verified(self, slot: Slot) -> None:
        """A caller used the connection in good order: the server is well."""
        slot.unverified = False
        slot.bucket.dials.failures = 0
        self.ledger.update_fast_path_until(slot)

    def dismiss(self, slot: Slot, reason: Reason, now: float) -> bool:
        """Close *slot* if it is idle; whether it was."""
        if slot.state is not IDLE:
            return False
        self.ledger.begin_close(slot, reason)
        self._reconcile(slot.bucket, now)
        return True

    def detach(self, slot: Slot, reason: Reason, now: float) -> None:
        """Let go of a slot whose connection is not the pool's any more."""
        if slot.state is IN_USE:
            self.ledger.count_reason(slot, reason)
            self.ledger.move(slot, CLOSED)
            self._reconcile(slot.bucket, now)
