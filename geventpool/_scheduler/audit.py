"""The states of slots are the truth, and all that is counted a cache: this sets the cache right.

A KeyboardInterrupt, a RecursionError or a MemoryError may cut a verb short between any two lines,
or a caller between the verb and its own part.  What such a one leaves behind is found here by what
else there is to be seen: what greenlets the runtime has at work, who waits, and who has what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from typing import Any

from geventpool._scheduler.idle_queue import idle_since
from geventpool._scheduler.ledger import Ledger
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.state import (
    CHECKING,
    CLOSED,
    CLOSING,
    CONNECTING,
    IDLE,
    IN_USE,
    OPEN,
    SALVAGING,
)
from geventpool.events import Reason

__all__ = ["AUDIT_EVERY", "Audit"]

AUDIT_EVERY = 60.0  # seconds from one audit of a bucket to the next, if nothing was cut short


class Audit:
    """Recounts buckets and limits.  Who calls it reconciles them after it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._effects = ledger.effects

    def of(self, buckets: Iterable[Bucket], now: float | None = None, but: object = None) -> None:
        """Set the books of *buckets* right, and say what was wrong.

        *now*: a shared limit that was looked at within a minute is left alone, if no bucket of its
        was wrong, as that takes a step for each of a thousand.  *but*: a slot or a waiter with
        which a verb is about to begin, and which therefore is as it should be.
        """
        buckets = list(buckets)
        at_work = self._effects.at_work_on()
        notes: dict[Bucket, list[str]] = {bucket: [] for bucket in buckets}
        for bucket in buckets:
            self._recount(bucket, notes[bucket])
            self._recount_idle(bucket, notes[bucket])
        limits = {limit: bucket for bucket in buckets for limit in bucket.limits}
        for limit, bucket in limits.items():
            if now is None or notes[bucket] or now >= limit._audited_at + AUDIT_EVERY:
                _recount_limit(limit, notes[bucket])
                limit._audited_at = limit._audited_at if now is None else now
        for bucket in buckets:
            self._look_at_waiters(bucket, notes[bucket], but)
            self._look_at_slots(bucket, notes[bucket], at_work, but)
            self._ledger.file(bucket)
            if notes[bucket]:
                self._effects.mended(bucket, "; ".join(notes[bucket]))

    def _recount(self, bucket: Bucket, notes: list[str]) -> None:
        """Count the slots by their states; its claims are made anew when it is reconciled."""
        for slot in [slot for slot in bucket.slots if slot.state is CLOSED]:
            notes.append("a slot was closed and not let go")
            del bucket.slots[slot]
            for limit in bucket.shared:
                limit._lru.discard(slot)
        states = Counter(slot.state for slot in bucket.slots)
        counted: dict[str, int] = {
            "open": sum(states[state] for state in OPEN),
            "connecting": states[CONNECTING],
            "checking": states[CHECKING],
            "salvaging": states[SALVAGING],
            "closing": states[CLOSING],
        }
        for name, count in counted.items():
            _set(bucket, name, count, notes)
        for limit in bucket.limits:
            limit._coming -= bucket.coming
            limit.forget(bucket)
        bucket.coming = 0
        bucket.blocked_at = bucket.ripe_at = None

    def _recount_idle(self, bucket: Bucket, notes: list[str]) -> None:
        idle = dict.fromkeys(slot for slot in bucket.slots if slot.state is IDLE)
        queue = bucket._idle
        living = list(queue.slots())
        if len(living) != len(idle) or set(living) != idle.keys() or queue.living != len(idle):
            notes.append(f"{len(idle)} slots lay idle, {queue.living} were counted")
            queue.refill(sorted(idle, key=idle_since))
        if bucket.transient:
            for slot in idle:
                for limit in bucket.shared:
                    limit.note_idle(slot)
        for slot in [slot for slot in bucket.retiring if slot not in idle]:
            del bucket.retiring[slot]

    def _look_at_waiters(self, bucket: Bucket, notes: list[str], but: object) -> None:
        """Drop those that are served or gone, and have the line in order."""
        ledger = self._ledger
        waiters = bucket.waiters
        for waiter in list(waiters):
            if not waiter.pending:
                notes.append("a waiter was served and not let go")
                ledger.drop(waiter)
                if waiter.wake_handle is None:
                    waiter.wake_handle = ledger.wake(waiter.callback, waiter)
            elif waiter is not but and not self._effects.waits(waiter):
                notes.append("a waiter was gone")
                ledger.drop(waiter)
        if waiters:
            ledger.with_waiters[bucket] = None
            waiters.set_right()
        else:
            ledger.with_waiters.pop(bucket, None)

    def _look_at_slots(
        self, bucket: Bucket, notes: list[str], at_work: Container[Any], but: object
    ) -> None:
        """Take back those that no greenlet has to do with any more."""
        for slot in list(bucket.slots):
            if slot.state is IDLE or slot is but or slot in at_work:
                continue
            if slot.state is IN_USE and (self._effects.has_out(slot) or self._is_due(slot)):
                continue
            notes.append(f"no greenlet had to do with a slot that was {slot.state.value}")
            if slot.state is CONNECTING:
                self._ledger.move(slot, CLOSED)
            elif slot.state is CLOSING:
                self._effects.start_close(slot, Reason.LOST)
            else:
                self._ledger.begin_close(slot, Reason.LOST)

    def _is_due(self, slot: Slot) -> bool:
        """Whether a waiter is about to have it."""
        waiter = slot.waiter
        if waiter is None or waiter.slot is not slot or not self._effects.waits(waiter):
            return False
        if waiter.wake_handle is None:
            waiter.wake_handle = self._ledger.wake(waiter.callback, waiter)
        return True


def _recount_limit(limit: Limit, notes: list[str]) -> None:
    """Count what its buckets have; those counts are right by now."""
    buckets = limit._buckets
    _set(limit, "used", sum(len(bucket.slots) for bucket in buckets), notes)
    _set(limit, "_closing", sum(bucket.closing for bucket in buckets), notes)
    limit._coming = sum(bucket.coming for bucket in buckets)
    limit._demand = sum(bucket.demand for bucket in buckets)


def _set(thing: Any, name: str, count: int, notes: list[str]) -> None:
    before = getattr(thing, name)
    if before != count:
        notes.append(f"{name.strip('_')} was {before} and is {count}")
        setattr(thing, name, count)
