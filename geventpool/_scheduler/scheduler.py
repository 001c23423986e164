"""Who gets which connection next: all that is decided about slots, buckets, limits and waiters.

The scheduler decides and nothing else.  It does no I/O, starts no greenlet, reads no clock and
calls no user code; time is passed in, and what it wants done it asks of its *effects* (the
runtime), which only schedule.  So nothing in here can switch, which is why it needs no lock:
between two switches of the caller every change is whole.  What it decides about stands in
``model.py``, the greenlets that carry its decisions out are in ``_runtime``.

                   dial ok           hand-over           release
    CONNECTING ----------> IDLE ---------------> IN_USE ---------> IDLE
        | dial failed        | keepalive due        | discard, to be closed
        v                    v                      v
     CLOSED <--------     CHECKING ------------> CLOSING ---------> CLOSED

(and IN_USE -> CLOSED, when a holder detaches a connection or loses it to the garbage collector).

Read ``Scheduler.reconcile`` first: it is called after every change and makes every decision about
waiters.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

from geventpool._scheduler.limit import Limit, idle_since
from geventpool._scheduler.model import Bucket, Slot, Waiter
from geventpool._scheduler.state import (
    AT_ONCE,
    CHECKING,
    CLOSED,
    CLOSING,
    CONNECTING,
    IDLE,
    IN_USE,
    NEVER,
    OPEN,
    TRANSITIONS,
    State,
)
from geventpool._util.errors import copy_of
from geventpool.errors import ConnectError, OutOfSockets
from geventpool.events import Reason

__all__ = ["Effects", "Scheduler"]


class Effects(Protocol):
    """What the scheduler asks for.  Each only schedules: it may neither switch nor call back.
    A slot is of its bucket's kind."""

    def start_dial(self, slot: Any) -> None:
        """Dial; then call ``opened`` or ``dial_failed``."""

    def start_close(self, slot: Any, reason: Reason) -> None:
        """Close the connection; then call ``closed``."""

    def start_check(self, slot: Any) -> None:
        """Run the keepalive; then call ``checked``."""

    def wake(self, callback: Any, waiter: Waiter) -> Any:
        """Have ``callback(waiter)`` called soon, to let the waiter look at what it has got.  What
        is returned is kept as ``waiter.wake_handle``."""

    def reconcile_later(self, bucket: Any) -> None:
        """Call ``reconcile`` at ``bucket.retry_at``."""

    def reconcile_limit_later(self, limit: Limit) -> None:
        """Call ``reconcile_limit`` soon, with the time (this one from any thread)."""


class Scheduler:
    """The buckets of one hub and everything that is decided about them."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects
        self._wake = effects.wake
        #: The ticket of a caller that comes now; which waiter is served first goes by it.
        self.next_ticket: Callable[[], int] = itertools.count(1).__next__
        self.with_waiters: dict[Bucket, None] = {}  # have waiters
        # A line is nearly always sorted by deadline, too.  Waiters that are due before another that
        # stands ahead of them are also in this heap; those that have left are taken out in time.
        self._early: list[tuple[float, int, Waiter]] = []

    # Buckets

    def add(self, bucket: Bucket, now: float) -> None:
        """Take *bucket* in; its minimum is dialed at once.  ValueError if it cannot fit."""
        for limit in bucket.shared:
            if limit._scheduler is not None and limit._scheduler is not self and limit._buckets:
                raise ValueError(f"limits: {limit!r} is shared by pools of another hub")
        self._check_minimum(bucket, bucket.min_size)
        for limit in bucket.limits:
            limit._scheduler = self
            limit._buckets[bucket] = None
            if not bucket.transient or limit is bucket.own:
                limit._few[bucket] = None
        if not bucket.transient or bucket.min_size:
            self.reconcile(bucket, now)

    def remove(self, bucket: Bucket) -> None:
        """Forget *bucket*, which is empty."""
        for limit in bucket.limits:
            limit._buckets.pop(bucket, None)
            limit._few.pop(bucket, None)
            limit._below_minimum.pop(bucket, None)

    def shut(self, bucket: Bucket, error: BaseException, now: float) -> None:
        """Close *bucket* for good: waiters get *error*, idle slots are closed, others on return."""
        bucket.closed = True
        for waiter in list(bucket.waiters):
            self._fail(waiter, error)
        self.dispose(bucket, Reason.POOL_CLOSED, now)
        self._forget_if_gone(bucket)

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
            self._check_minimum(bucket, min_size)
        bucket.size, bucket.min_size = size, min_size
        if max_overflow is not None:
            bucket.max_overflow = max_overflow
        bucket.own._maximum = size + bucket.max_overflow
        self.reconcile(bucket, now)

    def dispose(self, bucket: Bucket, reason: Reason, now: float) -> None:
        """Close every idle slot, and the ones being checked when that is done."""
        for slot in list(bucket.idle_slots()):
            self._close(slot, reason)
        for slot in bucket.slots:
            if slot.state is CHECKING:
                self.mark_for_closing(slot, reason)
        self.reconcile(bucket, now)

    def drain(self, bucket: Bucket, over: float, now: float) -> None:
        """Have every slot opened so far replaced at a random moment within *over* seconds."""
        for slot in bucket.slots:
            if slot.state is not CLOSING:
                at = now + over * bucket.rng.random()
                if at < slot.retire_at:
                    slot.retire_at, slot.retire_for = at, Reason.DRAINED
                    self._update_fast_path_until(slot)
        self.reap(bucket, now)

    def forget_all(self, bucket: Bucket) -> None:
        """After a fork: let go of every slot without closing it, keep the waiters.

        What still comes back of the old slots is known by its state, CLOSED, and ignored.
        """
        for limit in bucket.limits:
            limit.used = limit._closing = 0
            limit._blocked_here.clear()
        for slot in bucket.slots:
            for limit in bucket.shared:
                limit._lru.discard(slot)
            slot.state = CLOSED
            slot.fast_path_until = AT_ONCE
        bucket.slots.clear()
        bucket._idle.clear()
        bucket.retiring.clear()
        bucket._tombstones = 0
        bucket.open = bucket.connecting = bucket.checking = bucket.closing = 0
        bucket.window, bucket.failures, bucket.retry_at = 1, 0, AT_ONCE
        bucket.fast_path_open = 0

    def _check_minimum(self, bucket: Bucket, min_size: int) -> None:
        for limit in bucket.shared if min_size else ():
            others = (b for b in limit._buckets if b is not bucket and not b.closed)
            minimum = min_size + sum(b.min_size for b in others)
            if minimum > limit._maximum:
                raise ValueError(
                    f"limits: {limit!r} cannot hold the {minimum} connections that its pools"
                    f" keep open at least (min_size of {bucket.name!r} is {min_size})"
                )

    # Callers

    def try_checkout(self, bucket: Bucket, now: float) -> Any:
        """An idle slot for a caller that has just come, now IN_USE; None if it must wait."""
        if bucket.waiters:
            return None
        closing = bucket.closing
        slot = self._next_usable_idle(bucket, now)
        if bucket.closing > closing:
            self.reconcile(bucket, now)  # stale ones were closed: the minimum may lack them
        return slot

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
        waiters = bucket.waiters
        if not waiters:
            self.with_waiters[bucket] = None
            for limit in bucket.shared:
                limit._with_waiters[bucket] = None
        waiters[waiter] = None
        if requeued:
            # It was served something unfit: near the front, as only the oldest are served.
            waiter.requeued = True
            older = list(itertools.takewhile(lambda w: w.ticket < waiter.ticket, waiters))
            for other in (waiter, *reversed(older)):
                waiters.move_to_end(other, last=False)
        for limit in bucket.shared:
            if requeued or bucket not in limit._queue:
                limit._enqueue(bucket)
        deadline = waiter.deadline
        if deadline is None:
            bucket.latest = NEVER
        else:
            if deadline >= bucket.latest and not requeued:
                bucket.latest = deadline
            else:
                self._note_early(waiter, deadline)
        bucket.fast_path_open = 0
        # The crowd's case: only a release, or the end of a close, can do anything for it.
        own = bucket.own
        if (
            bucket._idle
            or own.used < own._maximum
            or bucket.fail_when_full
            or bucket.fail_when_down
        ):
            self.reconcile(bucket, now)

    def cancel(self, waiter: Waiter, now: float) -> None:
        """Let *waiter* go, however its wait ended: not yet served, it leaves the line; already
        served, its slot goes back."""
        slot, waiter.slot = waiter.slot, None
        if slot is not None:
            self.return_unused(slot, now)
        elif waiter in waiter.bucket.waiters:
            self._drop(waiter)
            self.reconcile(waiter.bucket, now)

    def expire(self, now: float) -> None:
        """End the wait of each waiter whose deadline has come."""
        due: list[Waiter] = []
        while self._early and self._early[0][0] <= now:
            due.append(heapq.heappop(self._early)[2])
        for bucket in self.with_waiters:
            # All lines in one go: a thousand callers of a thousand buckets may be due together.
            for waiter in bucket.waiters:
                if not waiter.requeued:
                    if _deadline(waiter) > now:
                        break
                    due.append(waiter)
        for waiter in sorted(due, key=_deadline):
            if not _waits(waiter):
                continue  # served, as another one left; or in both lists
            self._drop(waiter)
            waiter.expired = True
            waiter.wake_handle = self._wake(waiter.callback, waiter)
            if not waiter.bucket.waiters or waiter.bucket.shared:
                self.reconcile(waiter.bucket, now)

    def next_deadline(self) -> float | None:
        """When ``expire`` has work next; None if no waiter has a deadline."""
        waiter = self._next_due()
        return None if waiter is None else waiter.deadline

    def _next_due(self) -> Waiter | None:
        """The waiter whose deadline comes first, or None."""
        early = self._early
        while early and not _waits(early[0][2]):
            heapq.heappop(early)
        first = [early[0][2]] if early else []
        for bucket in self.with_waiters:
            # Those that had to go back in line stand at its front, and are in the heap.
            first.extend(itertools.islice((w for w in bucket.waiters if not w.requeued), 1))
        due = min(first, key=_deadline, default=None)
        return None if due is None or due.deadline is None else due

    def return_unused(self, slot: Slot, now: float) -> None:
        """Take back a slot whose hand-out came to nothing: it has been idle all the while."""
        slot.uses -= 1
        self.release(slot, now, now - slot.idled)

    def release(self, slot: Slot, now: float, idle_since: float | None = None) -> None:
        """Take back a slot that is fit for use: it goes to the oldest waiter, or lies idle."""
        bucket = slot.bucket
        if slot.state is not IN_USE:
            return
        if bucket.simple and bucket.waiters and now < slot.fast_path_until:
            own = bucket.own
            if own.used - own._closing <= own._maximum:
                # The crowd's case: what follows comes to this.
                waiter, _ = bucket.waiters.popitem(last=False)
                slot.idled = 0.0
                slot.since = now
                slot.uses += 1
                waiter.slot = slot
                waiter.wake_handle = self._wake(waiter.callback, waiter)
                if not bucket.waiters:
                    self._line_ended(bucket)
                    self._update_fast_path(bucket)
                return
        reason = self._reason_to_close(slot, now)
        if reason is not None:
            self._close(slot, reason)
            self.reconcile(bucket, now)
            return
        if bucket.waiters and not (bucket.shared and bucket.crowded):
            self._hand_over(slot, next(iter(bucket.waiters)), now)
            slot.idled = 0.0
            if not bucket.waiters:
                if bucket.shared:
                    self.reconcile(bucket, now)  # no place need be kept for it any more
                else:
                    self._update_fast_path(bucket)
            return
        if bucket.open > bucket.size and not bucket.waiters:
            self.discard(slot, Reason.SURPLUS, now)
            return
        slot.since = now if idle_since is None else idle_since
        self._make_idle(slot, now)
        if not bucket.quiet or bucket.retiring:
            self.reconcile(bucket, now)
        else:
            self._update_fast_path(bucket)

    def discard(self, slot: Slot, reason: Reason, now: float) -> None:
        """Close a slot that a caller holds; a replacement is dialed if anybody wants it."""
        bucket = slot.bucket
        if slot.state is not IN_USE:
            return
        if slot.uses <= 1 and (slot.close_reason is Reason.PEER_CLOSED or reason is Reason.DEAD):
            self._died_unused(slot, now)
        self._close(slot, reason)
        self.reconcile(bucket, now)

    def verified(self, slot: Slot) -> None:
        """A caller used the connection in good order: the server is well."""
        slot.unverified = False
        slot.bucket.failures = 0
        self._update_fast_path_until(slot)

    def dismiss(self, slot: Slot, reason: Reason, now: float) -> bool:
        """Close *slot* if it is idle; whether it was."""
        if slot.state is not IDLE:
            return False
        self._close(slot, reason)
        self.reconcile(slot.bucket, now)
        return True

    def detach(self, slot: Slot, reason: Reason, now: float) -> None:
        """Let go of a slot whose connection is not the pool's any more."""
        if slot.state is IN_USE:
            self._count_reason(slot, reason)
            self._move(slot, CLOSED)
            self.reconcile(slot.bucket, now)

    # What the runtime reports

    def wanted(self, slot: Slot) -> bool:
        """Whether this dial, not begun yet, would still serve anybody."""
        bucket = slot.bucket
        return slot.state is CONNECTING and bucket.connecting <= max(
            len(bucket.waiters), bucket.missing
        )

    def cancel_dial(self, slot: Slot, now: float) -> None:
        """Give up a dial that no caller wants any more."""
        if slot.state is CONNECTING:
            self._move(slot, CLOSED)
            self.reconcile(slot.bucket, now)

    def opened(self, slot: Slot, now: float) -> None:
        """The dial succeeded and ``slot.conn`` is set."""
        bucket = slot.bucket
        if slot.state is not CONNECTING:
            return
        slot.dialed_at = slot.since
        if slot.dialed_at >= bucket.failed_at:  # begun before, it tells no more of the server now
            bucket.window = min(2 * bucket.window, bucket.max_connecting)
            bucket.opened_at = now
            bucket.retry_at = AT_ONCE
        bucket.last_error = None
        slot.unverified = bucket.failures > 0
        if bucket.max_lifetime is not None:
            slot.expires_at = now + bucket.max_lifetime
            early = 1.0 - bucket.jitter * bucket.rng.random()
            slot.retire_at = min(slot.retire_at, now + bucket.max_lifetime * early)
        slot.since = slot.checked_at = now
        self._update_fast_path_until(slot)
        self._make_idle(slot, now)
        reason = self._reason_to_close(slot, now)  # as much can happen during a dial
        if reason is not None:
            self._close(slot, reason)
        self.reconcile(bucket, now)

    def dial_failed(self, slot: Slot, error: BaseException, now: float) -> None:
        """The dial failed: one dial at a time from now on, and after a pause."""
        bucket = slot.bucket
        if slot.state is not CONNECTING:
            return
        killed = not isinstance(error, Exception)  # which says nothing about the server
        if not killed:
            bucket.last_error = error
        bucket.dial_failed += 1
        self._move(slot, CLOSED)
        self._record_failure(bucket, slot.since, now)
        if bucket.fail_fast and bucket.waiters and not killed:
            self._fail(next(iter(bucket.waiters)), error)
        self.reconcile(bucket, now)

    def peer_closed(self, slot: Slot, now: float) -> None:
        """The peer hung up: an idle slot is closed now, another as soon as it is not held."""
        if slot.state is IDLE:
            if not slot.uses:
                self._died_unused(slot, now)
            self._close(slot, Reason.PEER_CLOSED)
            self.reconcile(slot.bucket, now)
        else:
            self.mark_for_closing(slot, Reason.PEER_CLOSED)

    def closed(self, slot: Slot, now: float) -> None:
        """The connection is closed: its place is free."""
        if slot.state is CLOSING:
            self._move(slot, CLOSED)
            self.reconcile(slot.bucket, now)

    def start_checks(self, bucket: Bucket, keepalive: float, now: float) -> float:
        """Check those who need it of the slots idle for *keepalive* seconds; returns when to call
        again.  At most every other idle slot at a time, so that callers find one at hand."""
        most = max(1, (bucket.idle + bucket.checking) // 2) - bucket.checking
        chosen: list[Slot] = []
        again = now + keepalive
        for slot in bucket.idle_slots():
            due = max(slot.since, slot.checked_at) + keepalive
            if due <= now and len(chosen) < most:
                chosen.append(slot)
            else:
                again = min(again, due)
        for slot in chosen:
            self._move(slot, CHECKING)
            self.effects.start_check(slot)
        if chosen:
            self._compact(bucket)  # they come back: no tombstone of theirs may stay
        return again

    def checked(self, slot: Slot, ok: bool, now: float) -> None:
        """The check is done; fit, the slot goes back where it was among the idle ones."""
        bucket = slot.bucket
        if slot.state is not CHECKING:
            return
        slot.checked_at = now
        reason = self._reason_to_close(slot, now) if ok or bucket.closed else Reason.KEEPALIVE
        if reason is not None:
            self._close(slot, reason)
        else:
            self._make_idle(slot, now)
        self.reconcile(bucket, now)

    def reap(self, bucket: Bucket, now: float) -> float:
        """Close what has been idle too long, have the old replaced; returns when to call again."""
        again = NEVER
        for slot in bucket.slots:
            if slot.state in OPEN:
                if slot.retire_at > now:
                    again = min(again, slot.retire_at)
                elif slot.state is IDLE:
                    bucket.retiring[slot] = None
                if slot.expires_at > now:
                    again = min(again, slot.expires_at)
        for slot in [slot for slot in bucket.retiring if slot.expires_at <= now]:
            if self._may_retire(slot, now):
                self._close(slot, slot.retire_for)
        if bucket.idle_timeout is not None:
            while bucket.open > bucket.min_kept and (oldest := bucket.longest_idle()):
                ends = oldest.since + bucket.idle_timeout
                if ends > now:
                    again = min(again, ends)
                    break
                self._close(oldest, Reason.IDLE)
        self.reconcile(bucket, now)
        return again

    # Decisions

    def reconcile_limit(self, limit: Limit, now: float) -> None:
        """Bring *limit* down to its maximum, or use its new room, after the maximum was set."""
        while limit.used - limit._closing > limit._maximum and (victim := limit._longest_idle()):
            self._close(victim, Reason.EVICTED)
        if bucket := next(iter(limit._buckets), None):
            self.reconcile(bucket, now)  # which looks after all that wait
        for bucket in limit._few:
            self._update_fast_path(bucket)

    def reconcile(self, bucket: Bucket, now: float) -> None:
        """Decide everything that a change of *bucket* made possible.

        Waiters come first, in the order they arrived, also across buckets that share a limit:
        (1) an idle slot is handed over; (2) a dial under way will serve it; (3) there is room:
        dial; (4) a full shared limit has an idle slot elsewhere: close the longest idle, the place
        is its own; else it waits.  Only then are minimums refilled, and only with places that no
        waiter could use: refilled first, they starve a waiter for ever.

        It looks only at buckets with waiters, or below their minimum, that share a limit with
        *bucket* (or with one of those), so its cost does not grow with the number of pools.
        """
        if bucket.retiring:
            self._retire_due(bucket, now)
        if bucket.waiters or bucket.shared:
            self._assign(bucket, now)
        self._refill(bucket, now)
        for limit in bucket.shared:
            for other in list(limit._below_minimum):
                self._retire_due(other, now)
                self._refill(other, now)
        self._shrink(bucket)
        if not bucket.connecting:
            bucket.window = 1  # nothing more to dial: the burst is over
        self._update_fast_path(bucket)

    def _assign(self, bucket: Bucket, now: float) -> None:
        """Do for the waiters of *bucket*, and of those it shares limits with, what can be done.

        It looks at them in the order of their tickets, and no further than there are places: a
        thousand buckets that wait for the same full limit cost no more than one.  Those that a
        place would be of no use to are not in a limit's queue: see ``_wants_place``.
        """
        incoming: dict[Bucket, int] = {}  # looked at -> waiters for which a place comes free
        reserved: dict[Limit, int] = {}  # -> places, free or coming free, that are theirs
        nothing_idle: set[Limit] = set()  # have nothing idle left
        seen: set[Limit] = set()
        blocked: dict[Bucket, list[Limit]] = {}
        queues = dict.fromkeys(bucket.shared)  # where others stand that this may concern
        ahead: list[tuple[int, Bucket]] = []  # tickets are unique: buckets are never compared
        if bucket.waiters:
            incoming[bucket] = 0
            if ticket := _first_unserved(bucket, 0):
                ahead.append((ticket, bucket))
        while True:
            for limit in list(queues):
                if limit not in seen:
                    seen.add(limit)
                    # Nothing can be done for anybody here.  (Who waits for no place, though, must
                    # know whether those that come free are others'.)
                    if not bucket.fail_when_full and limit.full and limit._longest_idle() is None:
                        nothing_idle.add(limit)
                while limit._queue and limit not in nothing_idle:
                    since, other = limit._queue.first()
                    if ahead and since >= ahead[0][0]:
                        break
                    limit._queue.discard(other)
                    if other not in incoming:
                        incoming[other] = 0
                        queues.update(dict.fromkeys(other.shared))
                        if ticket := _first_unserved(other, 0):
                            heapq.heappush(ahead, (ticket, other))
            if not ahead:
                break
            first = heapq.heappop(ahead)[1]
            if first.idle:
                if slot := self._next_usable_idle(first, now):
                    self._hand_over(slot, next(iter(first.waiters)), now)
            elif now < first.retry_at:
                if first.fail_when_down:
                    self._fail_unserved(first, _backing_off(first))
                continue
            elif first.connecting + incoming[first] >= first.window:
                if first.fail_when_full and (full := _full(first, reserved)):
                    if self._victims(full, reserved, nothing_idle) is None:
                        self._fail_unserved(first, _out_of_sockets(first, full), incoming[first])
                continue
            elif not (full := _full(first, reserved)):
                self._dial(first, now)
            else:
                if full[0] is not first.own:  # else it could not use a place in the others
                    blocked[first] = full
                if not self._make_room(full, reserved, nothing_idle):
                    if first.fail_when_full:
                        blocked.pop(first, None)
                        self._fail_unserved(first, _out_of_sockets(first, full), incoming[first])
                    continue
                # In all its limits: a younger one that took the place that is free in one, while
                # that in another comes free, would be evicted for it, and so on for ever.
                incoming[first] += 1
                for limit in first.limits:
                    reserved[limit] = reserved.get(limit, 0) + 1
            if ticket := _first_unserved(first, incoming[first]):
                heapq.heappush(ahead, (ticket, first))
        for other in incoming:
            wants = _wants_place(other, now)
            for limit in other.shared:
                if not wants:
                    limit._queue.discard(other)
                elif other not in limit._queue:
                    limit._enqueue(other)
                self._note_blocked(other, limit, limit in blocked.get(other, ()))

    def _fail_unserved(self, bucket: Bucket, error: BaseException, incoming: int = 0) -> None:
        """Fail the waiters of *bucket* for which nothing is under way."""
        for waiter in list(itertools.islice(bucket.waiters, bucket.connecting + incoming, None)):
            self._fail(waiter, copy_of(error))

    def _make_room(
        self, full: list[Limit], reserved: dict[Limit, int], nothing_idle: set[Limit]
    ) -> bool:
        """See to it that each of the *full* limits gets one place free, evicting if need be."""
        victims = self._victims(full, reserved, nothing_idle)
        for victim in victims or ():
            self._close(victim, Reason.EVICTED)
        return victims is not None

    def _victims(
        self, full: list[Limit], reserved: dict[Limit, int], nothing_idle: set[Limit]
    ) -> list[Slot] | None:
        """Which idle slots to evict for one place free in each of the *full* limits, or None."""
        victims: list[Slot] = []
        for limit in full:
            free = limit._maximum - limit.used + limit._closing - reserved.get(limit, 0)
            if free > 0 or any(limit in victim.bucket.limits for victim in victims):
                continue
            victim = None if limit in nothing_idle else limit._longest_idle()
            if victim is None:
                nothing_idle.add(limit)
                return None
            victims.append(victim)
        return victims

    def _refill(self, bucket: Bucket, now: float) -> None:
        """Dial what *bucket* lacks to its minimum, with places no waiter could use."""
        wanted = min(bucket.window, bucket.missing)
        if bucket.connecting < wanted and now >= bucket.retry_at:
            while (
                bucket.connecting < wanted
                and bucket.has_room
                and not (bucket.shared and self._all_reserved(bucket))
            ):
                self._dial(bucket, now)
        if bucket.shared:
            self._note_below_minimum(bucket)

    def _all_reserved(self, bucket: Bucket) -> bool:
        """Whether waiters could use all the places left in a limit that *bucket* shares."""
        return any(
            limit.used + sum(b.eligible for b in limit._with_waiters) >= limit._maximum
            for limit in bucket.shared
        )

    def _retire_due(self, bucket: Bucket, now: float) -> None:
        """Close the idle slots that are due to go, as far as that costs no caller anything."""
        while bucket.retiring:
            slot = next(iter(bucket.retiring))
            if not self._may_retire(slot, now):
                break
            self._close(slot, slot.retire_for)

    def _may_retire(self, slot: Slot, now: float) -> bool:
        """Whether a slot past its retire_at should be closed now rather than kept a while.

        Above the minimum: yes.  Else, where the limits allow, ``_refill`` dials a replacement
        first.  Where they do not: one at a time, and not during a back-off.  One that has expired
        can serve no caller; it stays only for a replacement that is on its way.
        """
        bucket = slot.bucket
        if bucket.open > bucket.effective_min_size:
            return True
        expired = now >= slot.expires_at
        if bucket.has_room:
            return expired and bucket.failing
        return expired or not (bucket.connecting or bucket.closing or now < bucket.retry_at)

    def _shrink(self, bucket: Bucket) -> None:
        """Close idle slots beyond *size*, longest idle first."""
        while bucket.open > bucket.size and (oldest := bucket.longest_idle()):
            self._close(oldest, Reason.SURPLUS)

    def _record_failure(self, bucket: Bucket, begun: float, now: float) -> None:
        """A dial failed, or its connection died unused: slow down.

        Dials that were under way together fail together: they count as one.
        """
        if begun < bucket.failed_at or bucket.closed:
            return
        if now - bucket.opened_at > bucket.backoff.longest:
            bucket.failures = 0  # it was well in between: a new outage
        bucket.failures += 1
        bucket.failed_at = now
        bucket.opened_at = NEVER
        bucket.window = 1
        # Even without a pause, let others run first: a dial that fails at once, again and again,
        # would keep its greenlet busy for ever.
        bucket.retry_at = math.nextafter(now + bucket.backoff.delay(bucket.failures), NEVER)
        self.effects.reconcile_later(bucket)

    def _died_unused(self, slot: Slot, now: float) -> None:
        """It was dead for its first user, or before: soon after the dial, that is a setback."""
        if now - slot.dialed_at <= slot.bucket.backoff.longest:
            self._record_failure(slot.bucket, slot.dialed_at, now)

    # Mechanics

    def _dial(self, bucket: Bucket, now: float) -> None:
        slot = bucket.slot_type(bucket, now)
        bucket.slots[slot] = None
        bucket.connecting += 1
        for limit in bucket.limits:
            limit.used += 1
        self.effects.start_dial(slot)

    def _close(self, slot: Slot, reason: Reason) -> None:
        was_idle = slot.state is IDLE
        self._count_reason(slot, reason)
        slot.fast_path_until = AT_ONCE  # the fast path may yet meet it in the queue, as a tombstone
        self._move(slot, CLOSING)
        if was_idle:
            self._remove_idle(slot)
        self.effects.start_close(slot, reason)

    def _hand_over(self, slot: Slot, waiter: Waiter, now: float) -> None:
        """Give *slot*, IN_USE already, to *waiter*, which leaves the line."""
        self._drop(waiter)
        slot.since = now
        slot.uses += 1
        waiter.slot = slot
        waiter.wake_handle = self._wake(waiter.callback, waiter)

    def _fail(self, waiter: Waiter, error: BaseException) -> None:
        """End the wait of *waiter*, which leaves the line, with *error*."""
        self._drop(waiter)
        waiter.error = error
        waiter.wake_handle = self._wake(waiter.callback, waiter)

    def _drop(self, waiter: Waiter) -> None:
        """Take *waiter* out of the line."""
        bucket = waiter.bucket
        del bucket.waiters[waiter]
        if not bucket.waiters:
            self._line_ended(bucket)

    def _line_ended(self, bucket: Bucket) -> None:
        """Book that no caller waits any more."""
        bucket.latest = AT_ONCE
        del self.with_waiters[bucket]
        if not self.with_waiters:
            self._early.clear()  # they would keep alive what is long gone
        for limit in bucket.shared:
            limit._with_waiters.pop(bucket, None)
            limit._queue.discard(bucket)
            self._note_blocked(bucket, limit, False)

    def _note_early(self, waiter: Waiter, deadline: float) -> None:
        """Note a waiter that is due before another ahead of it."""
        heapq.heappush(self._early, (deadline, self.next_ticket(), waiter))
        if len(self._early) > 64 + 2 * sum(len(bucket.waiters) for bucket in self.with_waiters):
            self._early = [entry for entry in self._early if _waits(entry[2])]
            heapq.heapify(self._early)

    def _next_usable_idle(self, bucket: Bucket, now: float) -> Slot | None:
        """Take the next idle slot that may still be handed out; it is IN_USE from now on."""
        while bucket._idle:
            slot = bucket.pop_idle()
            if slot.state is not IDLE:
                bucket._tombstones -= 1
                continue
            self._move(slot, IN_USE)
            reason = self._reason_to_skip(slot, now)
            if reason is None:
                slot.idled = now - slot.since
                return slot
            self._close(slot, reason)
        return None

    def _make_idle(self, slot: Slot, now: float) -> None:
        """Make *slot* idle: last among the idle ones, or where a check took it from."""
        idle = slot.bucket._idle
        self._move(slot, IDLE)
        if idle and idle[-1].since > slot.since:
            idle.insert(bisect.bisect_right(idle, slot.since, key=idle_since), slot)
        else:
            idle.append(slot)
        if slot.bucket.transient:
            for limit in slot.bucket.shared:
                limit._note_idle(slot)
        if now >= slot.retire_at:
            slot.bucket.retiring[slot] = None

    def _remove_idle(self, slot: Slot) -> None:
        """Take a slot that is not idle any more out of the queue, wherever in it it is."""
        bucket = slot.bucket
        if bucket._idle[0] is slot:
            bucket._idle.popleft()
        else:
            bucket._tombstones += 1
            if bucket._tombstones > 32 + bucket.idle:
                self._compact(bucket)

    def _compact(self, bucket: Bucket) -> None:
        """Take the tombstones out, in place: *pop_idle* is bound to this very deque."""
        alive = list(bucket.idle_slots())
        bucket._idle.clear()
        bucket._idle.extend(alive)
        bucket._tombstones = 0

    def _reason_to_close(self, slot: Slot, now: float) -> Reason | None:
        """Why a slot that is not held any more must not be kept, or None."""
        bucket = slot.bucket
        if bucket.closed:
            return Reason.POOL_CLOSED
        if slot.close_reason is not None:
            return slot.close_reason
        if bucket.max_uses is not None and slot.uses >= bucket.max_uses:
            return Reason.WORN_OUT
        if now >= slot.expires_at:
            return Reason.EXPIRED
        if bucket.overfull:
            return Reason.SURPLUS
        if now >= slot.retire_at and self._may_retire(slot, now):
            return slot.retire_for
        return None

    def _reason_to_skip(self, slot: Slot, now: float) -> Reason | None:
        """Why an idle slot must not be handed out, or None."""
        bucket = slot.bucket
        if now >= slot.expires_at:
            return Reason.EXPIRED
        if (
            bucket.idle_timeout is not None
            and now - slot.since >= bucket.idle_timeout
            and bucket.open > bucket.min_kept
        ):
            return Reason.IDLE
        return None

    def mark_for_closing(self, slot: Slot, reason: Reason) -> None:
        """Have *slot* closed as soon as it is not held."""
        if slot.close_reason is None:
            slot.close_reason = reason
            slot.fast_path_until = AT_ONCE

    def _update_fast_path_until(self, slot: Slot) -> None:
        """Say until when the fast path may have *slot* without asking."""
        slow = slot.close_reason is not None or slot.unverified
        slot.fast_path_until = AT_ONCE if slow else min(slot.retire_at, slot.expires_at)

    def _move(self, slot: Slot, state: State) -> None:
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
            if old is IDLE and bucket.retiring:
                bucket.retiring.pop(slot, None)
            if state is CLOSING or state is CLOSED:
                bucket.open -= 1
            if state is CLOSING:
                bucket.closing += 1
                for limit in bucket.limits:
                    limit._closing += 1
        if state is CLOSED:
            del bucket.slots[slot]
            for limit in bucket.limits:
                limit.used -= 1
                limit._lru.discard(slot)
            if bucket.closed:
                self._forget_if_gone(bucket)

    def _forget_if_gone(self, bucket: Bucket) -> None:
        """Leave no trace of a closed bucket in its limits once its last slot is closed."""
        if not bucket.slots:
            self.remove(bucket)

    def _count_reason(self, slot: Slot, reason: Reason) -> None:
        reasons = slot.bucket.reasons
        reasons[reason] = reasons.get(reason, 0) + 1

    def _note_below_minimum(self, bucket: Bucket) -> None:
        """Note at its shared limits whether *bucket* lacks connections that they may bar."""
        below_minimum = bucket.connecting < bucket.missing
        for limit in bucket.shared:
            if below_minimum:
                limit._below_minimum[bucket] = None
            else:
                limit._below_minimum.pop(bucket, None)

    def _note_blocked(self, bucket: Bucket, limit: Limit, blocked: bool) -> None:
        """Note whether waiters of *bucket* wait for a place in *limit*, a shared one."""
        before = bool(limit._blocked_here)
        if blocked:
            limit._blocked_here[bucket] = None
        else:
            limit._blocked_here.pop(bucket, None)
        if before is not bool(limit._blocked_here):
            for other in limit._few:
                self._update_fast_path(other)

    def _update_fast_path(self, bucket: Bucket) -> None:
        """Open the fast path if no other caller could want what lies idle, shut it otherwise."""
        bucket.fast_path_open = (
            bucket.fast_path_thread if bucket.fast_path_thread and bucket.quiet else 0
        )


def _backing_off(bucket: Bucket) -> BaseException:
    """What a caller that will not wait gets during a back-off."""
    text = f"pool {bucket.name!r}: its last connections broke at once, and it waits a moment"
    return bucket.last_error or ConnectError(text)


def _full(bucket: Bucket, reserved: dict[Limit, int]) -> list[Limit]:
    """The limits of *bucket* that have no place left which is not *reserved*: there is none to be
    kept for those that wait for a close that frees one here, too."""
    return [
        x for x in bucket.limits if x.used + max(0, reserved.get(x, 0) - x._closing) >= x._maximum
    ]


def _out_of_sockets(bucket: Bucket, full: list[Limit]) -> OutOfSockets:
    limit = full[-1]  # its own, if it is that, comes first: the widest tells most
    return OutOfSockets(
        f"pool {bucket.name!r}: limit {limit.name!r} is reached, {limit.used} of {limit.maximum}"
        " connections, and none of them is idle",
        pool=bucket.name,
        limit=limit.name,
        used=limit.used,
        maximum=limit.maximum,
    )


def _waits(waiter: Waiter) -> bool:
    return waiter in waiter.bucket.waiters


def _deadline(waiter: Waiter) -> float:
    return NEVER if waiter.deadline is None else waiter.deadline


def _wants_place(bucket: Bucket, now: float) -> bool:
    """Whether a waiter of *bucket* could use a place: not if dials under way will serve them all,
    nor while no more may be dialed.  The end of any of that reconciles *bucket* itself."""
    if _first_unserved(bucket, 0) is None:
        return False
    return bucket.fail_when_full or not (
        now < bucket.retry_at or bucket.connecting >= bucket.window
    )


def _first_unserved(bucket: Bucket, incoming: int) -> int | None:
    """The ticket of the first waiter of *bucket* for which nothing is under way."""
    served = 0 if bucket.idle else bucket.connecting + incoming
    for waiter in itertools.islice(bucket.waiters, served, served + 1):
        return waiter.ticket
    return None
