"""The books: the only writer of what state a slot is in, and of all that is counted.

Nothing is decided here: ``arbiter.py`` does.
"""

from __future__ import annotations

from geventpool._scheduler.effects import Effects
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.state import (
    AT_ONCE,
    CHECKING,
    CLOSED,
    CLOSING,
    CONNECTING,
    IDLE,
    IN_USE,
    NEVER,
    SALVAGING,
    TRANSITIONS,
    State,
)
from geventpool._scheduler.waiter import Waiter
from geventpool.events import Reason

__all__ = ["Ledger"]


class Ledger:
    """Moves slots and waiters, keeps the counts, and has the runtime do what follows from that."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects
        self.wake = effects.wake
        self.with_waiters: dict[Bucket, None] = {}

    # Slots

    def begin_dial(self, bucket: Bucket, now: float) -> None:
        """Have one more slot, and have it dialed."""
        slot = bucket.slot_type(bucket, now)
        bucket.slots[slot] = None
        bucket.connecting += 1
        for limit in bucket.limits:
            limit.used += 1
        self.effects.start_dial(slot)

    def begin_close(self, slot: Slot, reason: Reason) -> None:
        """Have *slot* closed; its place is free when that is done."""
        was_idle = slot.state is IDLE
        self.count_reason(slot, reason)
        slot.fast_path_until = AT_ONCE  # the fast path may yet meet it in the queue, as a tombstone
        self.move(slot, CLOSING)
        if was_idle:
            slot.bucket._idle.take_out(slot)
        self.effects.start_close(slot, reason)

    def begin_check(self, slot: Slot) -> None:
        """Have an idle slot checked; the caller compacts the queue."""
        self.move(slot, CHECKING)
        self.effects.start_check(slot)

    def begin_salvage(self, slot: Slot) -> None:
        """Have a slot that was in use salvaged.  If it was to be closed, then for no more than
        that its use was cut short."""
        slot.close_reason = None
        self.update_fast_path_until(slot)
        self.move(slot, SALVAGING)
        self.effects.start_salvage(slot)

    def next_idle(self, bucket: Bucket, now: float) -> Slot | None:
        """Take the next idle slot that may still be handed out; it is IN_USE from now on."""
        while bucket._idle:
            slot: Slot = bucket.pop_idle()
            if slot.state is not IDLE:
                bucket._idle.tombstones -= 1
                continue
            slot.waiter = None
            self.move(slot, IN_USE)
            reason = _reason_to_skip(slot, now)
            if reason is None:
                slot.idled = now - slot.since
                return slot
            self.begin_close(slot, reason)
        return None

    def make_idle(self, slot: Slot, now: float) -> None:
        """Make *slot* idle: last among the idle ones, or where a check took it from."""
        bucket = slot.bucket
        slot.waiter = None
        self.move(slot, IDLE)
        bucket._idle.push(slot)
        if bucket.transient:
            for limit in bucket.shared:
                limit.note_idle(slot)
        if now >= slot.retire_at:
            bucket.retiring[slot] = None

    def move(self, slot: Slot, state: State) -> None:
        """Move *slot* to *state* and count it: the only place that does."""
        bucket, old = slot.bucket, slot.state
        if state not in TRANSITIONS[old]:
            raise AssertionError(f"{slot!r} cannot become {state.value}")
        slot.state = state
        if old is CONNECTING:
            bucket.connecting -= 1
            bucket.open += state is IDLE
        elif old is CLOSING:
            bucket.closing -= 1
            for limit in bucket.limits:
                limit._closing -= 1
        else:
            bucket.checking += (state is CHECKING) - (old is CHECKING)
            bucket.salvaging += (state is SALVAGING) - (old is SALVAGING)
            if old is IDLE and bucket.retiring:
                bucket.retiring.pop(slot, None)
            if state is CLOSING or state is CLOSED:
                slot.waiter = None
                bucket.open -= 1
            if state is CLOSING:
                bucket.closing += 1
                for limit in bucket.limits:
                    limit._closing += 1
        if state is CLOSED:
            self._let_go(slot)

    def _let_go(self, slot: Slot) -> None:
        """A slot is no more: its places are free."""
        bucket = slot.bucket
        del bucket.slots[slot]
        for limit in bucket.limits:
            limit.used -= 1
            limit._lru.discard(slot)
        if bucket.closed:
            self.forget_if_gone(bucket)

    def mark_for_closing(self, slot: Slot, reason: Reason) -> None:
        """Have *slot* closed as soon as it is not held."""
        before = slot.close_reason
        # The first reason stands.  But a hang-up may yet be forgotten, and what was only cut short
        # be salvaged, which is for no other reason.
        if before is None or before is Reason.PEER_CLOSED or before is Reason.CUT_SHORT:
            if before is None or reason is not Reason.PEER_CLOSED:
                slot.close_reason = reason
                slot.fast_path_until = AT_ONCE

    def forget_hangup(self, slot: Slot) -> None:
        """It was an earlier socket of *slot* whose peer hung up."""
        if slot.close_reason is Reason.PEER_CLOSED:
            slot.close_reason = None
            self.update_fast_path_until(slot)

    def update_fast_path_until(self, slot: Slot) -> None:
        """Say until when the fast path may have *slot* without asking."""
        slow = slot.close_reason is not None or slot.unverified
        slot.fast_path_until = AT_ONCE if slow else min(slot.retire_at, slot.expires_at)

    def count_reason(self, slot: Slot, reason: Reason) -> None:
        """Count why *slot* goes."""
        reasons = slot.bucket.reasons
        reasons[reason] = reasons.get(reason, 0) + 1

    # Waiters.  Each is woken before it leaves the line: wherever that is cut short, it is found
    # there, or runs.

    def hand_over(self, slot: Slot, waiter: Waiter, now: float) -> None:
        """Give *slot*, IN_USE already, to *waiter*, which leaves the line."""
        slot.since = now
        slot.uses += 1
        slot.waiter = waiter
        waiter.slot = slot
        waiter.wake_handle = self.wake(waiter.callback, waiter)
        self.drop(waiter)
        control = slot.bucket.delay_control
        if control is not None:
            control.served(now - waiter.came, now)

    def fail(self, waiter: Waiter, error: BaseException) -> None:
        """End the wait of *waiter*, which leaves the line, with *error*."""
        waiter.error = error
        waiter.wake_handle = self.wake(waiter.callback, waiter)
        self.drop(waiter)

    def expire(self, waiter: Waiter) -> None:
        """End the wait of *waiter*, which leaves the line: its deadline has come."""
        waiter.expired = True
        waiter.wake_handle = self.wake(waiter.callback, waiter)
        self.drop(waiter)

    def drop(self, waiter: Waiter) -> None:
        """Take *waiter* out of the line."""
        bucket = waiter.bucket
        bucket.waiters.drop(waiter)
        if not bucket.waiters:
            self.with_waiters.pop(bucket, None)

    # Buckets and limits

    def set_maximum(self, bucket: Bucket) -> None:
        """Have it open no more than its settings allow, and its server."""
        bucket.own._maximum = min(bucket.maximum, bucket.ceiling.most)

    def claim(self, bucket: Bucket) -> None:
        """Count a place in each of its limits, free or coming free, as that of *bucket*."""
        bucket.coming += 1
        for limit in bucket.limits:
            limit._coming += 1

    def unclaim(self, bucket: Bucket) -> None:
        """Count them as anybody's again."""
        bucket.coming -= 1
        for limit in bucket.limits:
            limit._coming -= 1

    def block(self, bucket: Bucket, limit: Limit | None, ticket: float = NEVER) -> None:
        """Note that the waiter of *bucket* with that ticket waits for a place in *limit*."""
        if bucket.blocked_at is not None and bucket.blocked_at is not limit:
            bucket.blocked_at._queue.discard(bucket)
        bucket.blocked_at = limit
        if limit is not None:
            limit._queue.put(bucket, ticket)

    def file(self, bucket: Bucket) -> None:
        """Note at its limits how many places its waiters could use, and have claimed."""
        demand = bucket.eligible
        if demand != bucket.demand:
            for limit in bucket.shared:
                limit._demand += demand - bucket.demand
            bucket.demand = demand
        if bucket.coming:
            self._file_claims(bucket)
        elif bucket.ripe_at is not None:
            bucket.ripe_at._ripe.discard(bucket)
            bucket.ripe_at = None
            for limit in bucket.shared:
                limit._claims.discard(bucket)

    def _file_claims(self, bucket: Bucket) -> None:
        oldest = bucket.waiters.at(bucket.connecting)
        youngest = bucket.waiters.at(bucket.connecting + bucket.coming - 1)
        if oldest is None or youngest is None:
            raise AssertionError(f"{bucket!r} has claimed a place for no waiter")
        for limit in bucket.shared:
            limit._claims.put(bucket, -youngest.ticket)
        now_at = bucket.ripe_at or bucket.own
        ripe_at = next((limit for limit in bucket.limits if limit.full), now_at)
        if bucket.ripe_at is not None and bucket.ripe_at is not ripe_at:
            bucket.ripe_at._ripe.discard(bucket)
        bucket.ripe_at = ripe_at
        ripe_at._ripe.put(bucket, oldest.ticket)

    def note_below_minimum(self, bucket: Bucket, because_of: Limit | None) -> None:
        """Note that *bucket* lacks connections that a shared limit bars, or none."""
        for limit in bucket.shared:
            if limit is because_of:
                limit._below_minimum[bucket] = None
            else:
                limit._below_minimum.pop(bucket, None)

    def update_fast_path(self, bucket: Bucket) -> None:
        """Open the fast path if no other caller could want what lies idle, shut it otherwise."""
        bucket.fast_path_open = (
            bucket.fast_path_thread if bucket.fast_path_thread and bucket.quiet else 0
        )

    def add(self, bucket: Bucket) -> None:
        """Have its limits know *bucket*."""
        for limit in bucket.limits:
            limit._buckets[bucket] = None
            if not bucket.transient or limit is bucket.own:
                limit._few[bucket] = None

    def forget_if_gone(self, bucket: Bucket) -> None:
        """Leave no trace of a closed bucket in its limits once its last slot is closed."""
        if not bucket.slots:
            self.remove(bucket)

    def remove(self, bucket: Bucket) -> None:
        """Leave no trace of a bucket in its limits."""
        for limit in bucket.limits:
            limit._buckets.pop(bucket, None)
            limit._few.pop(bucket, None)
            limit._below_minimum.pop(bucket, None)
            limit.forget(bucket)
        bucket.blocked_at = bucket.ripe_at = None

    def forget_all(self, bucket: Bucket) -> None:
        """Let go of every slot without closing it, and of every claim; keep the waiters."""
        for limit in bucket.limits:
            limit.used = limit._closing = limit._coming = 0  # as those of all buckets are let go
            limit.forget(bucket)
        bucket.coming = 0
        bucket.blocked_at = bucket.ripe_at = None
        for slot in bucket.slots:
            for limit in bucket.shared:
                limit._lru.discard(slot)
            slot.state = CLOSED
            slot.waiter = None
            slot.fast_path_until = AT_ONCE
        bucket.slots.clear()
        bucket._idle.refill([])
        bucket.retiring.clear()
        bucket.open = bucket.connecting = bucket.closing = 0
        bucket.checking = bucket.salvaging = 0
        bucket.dials.forget()
        bucket.outage.forget()
        bucket.ceiling.forget()
        self.set_maximum(bucket)
        bucket.set_troubled(False)
        bucket.condemned_at, bucket.reconcile_at = AT_ONCE, NEVER
        bucket.fast_path_open = 0


def _reason_to_skip(slot: Slot, now: float) -> Reason | None:
    """Why an idle slot must not be handed out, or None."""
    bucket = slot.bucket
    if now >= slot.expires_at:
        return Reason.EXPIRED
    if (
        bucket.idle_timeout is not None
        and now - slot.since >= bucket.idle_timeout
        and bucket.open > bucket.idle_spared
    ):
        return Reason.IDLE
    return None
