"""Who gets which connection or place next.

A waiter is served by an idle slot, by a dial under way, or by a place for a dial of its own: one in
each limit of its bucket.  A place that is not free yet but comes free, as a slot is closing, is
*claimed* for it, so that no later change has to find out anew whose it is:

- the first ``connecting`` waiters of a bucket are served by its dials under way, the next
  ``coming`` by its claims, and the one after those is its first unserved;
- ``limit.spare`` is how many places are free or coming free and not claimed.  It falls below zero
  only where a maximum was lowered;
- a bucket with a claim that cannot dial yet is ``ripe`` at one limit that is full: when a place is
  free there, the oldest dials, or moves on to the next of its limits that is full;
- a bucket whose first unserved waiter could use a place is in the ``queue`` of one limit that has
  none for it: nothing spare, nothing idle, nothing claimed for one that came later.  When that
  changes, the oldest gets it, or moves on to the next of its limits that has none.

A bucket in a back-off, with as many dials under way as its window allows, or with no place left in
its own limit, stands in no queue: places are of no use to it, and what changes that is an event of
its own.  So an event looks at one bucket, at the heads of the queues of its limits, and at those
that these push aside: O(limits x log n), however many buckets and callers there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from geventpool._scheduler.dial_outcomes import DialOutcomes
from geventpool._scheduler.ledger import Ledger
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.refusals import backing_off, no_place, out_of_sockets, overloaded
from geventpool._scheduler.state import NEVER
from geventpool._util.errors import copy_of
from geventpool.events import Reason

__all__ = ["Arbiter"]

Touched = dict[Limit, None]  # limits where something may have come free, or may be awaited anew


class Arbiter:
    """Decides what every change makes possible; read ``reconcile`` first."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.outcomes = DialOutcomes(ledger, self._refill)

    def reconcile(self, bucket: Bucket, now: float) -> None:
        """Decide everything that a change of *bucket* made possible.

        Waiters come first, in the order they arrived, also across buckets that share a limit.  Only
        then are minimums refilled, and only with places that no waiter could use: refilled first,
        they starve a waiter for ever.
        """
        touched: Touched = dict.fromkeys(bucket.shared) if bucket.shared else {}
        if bucket.troubled:
            self.outcomes.send_away(bucket, now)
        if bucket.retiring:
            self._retire_due(bucket, now)
        if bucket.waiters:
            self.pass_over(bucket, now)
        if bucket.waiters or bucket.shared or bucket.coming:
            self._trim_claims(bucket, now)
            self._dial_ripe(bucket.limits, now)
            self._assign(bucket, touched, now)
        self._refill(bucket, now)
        if bucket.retiring or bucket.open > bucket.size:
            # What lies idle now is of use to no waiter, and so is the place that it leaves.
            self._retire_due(bucket, now)
            self._shrink(bucket)
        if not (bucket.connecting or bucket.coming):
            bucket.dials.burst_is_over()
        self._ledger.update_fast_path(bucket)
        if touched:
            self._leave(touched, now)
        if bucket.troubled:
            self.outcomes.look_ahead(bucket, now)

    def reconcile_limit(self, limit: Limit, now: float) -> None:
        """Bring *limit* down to its maximum, or use its new room, after the maximum was set."""
        touched: Touched = {limit: None}
        while limit.overfull and (victim := limit.longest_idle()):
            self._evict(victim, touched)
        while limit.spare < 0 and (claim := limit.youngest_claim()):
            self._push_aside(claim[1], limit, touched)
        self._dial_ripe(touched, now)
        self._assign(None, touched, now)
        for bucket in limit._buckets:  # what was evicted before may not have been missed yet
            self._refill(bucket, now)
        self._leave(touched, now)
        for bucket in limit._few:
            self._ledger.update_fast_path(bucket)

    def _leave(self, touched: Touched, now: float) -> None:
        """Use for minimums what no waiter could, and tell who shares the limits how they stand."""
        for limit in touched:
            while limit._below_minimum and not limit.reserved:
                other = next(iter(limit._below_minimum))
                del limit._below_minimum[other]
                self._refill(other, now)
            if limit._crowded is not bool(limit._queue):
                limit._crowded = not limit._crowded
                for other in limit._few:
                    self._ledger.update_fast_path(other)

    # Waiters

    def _assign(self, bucket: Bucket | None, touched: Touched, now: float) -> None:
        """Serve the waiters of *bucket* and those at the head of the queues, as far as that goes,
        in the order in which they came."""
        if bucket is not None:
            self._ledger.block(bucket, None)
        open_for = bucket  # whether it, which stands in no queue, may yet be served
        while True:
            first, ticket, queued_at = None, NEVER, None
            if open_for is not None:
                first = open_for
                idle = first.waiters and first.idle
                ticket = first.waiters.oldest.ticket if idle else first.next_unserved
            for limit in touched:
                if limit._queue:
                    came, other = limit._queue.first()
                    if came < ticket and _may_help(limit, came, bucket):
                        first, ticket, queued_at = other, came, limit
            if first is None:
                break
            served = self._serve(first, touched, now)
            if queued_at is None:
                open_for = first if served else None
            elif served:
                self._queue_again(first, queued_at, now)
        if bucket is not None:
            self._ledger.file(bucket)

    def _serve(self, bucket: Bucket, touched: Touched, now: float) -> bool:
        """Do something for the next waiter of *bucket*; False if nothing (more) can be done."""
        ledger = self._ledger
        touched.update(dict.fromkeys(bucket.shared))
        if bucket.waiters and bucket.idle:
            shed = bucket.delay_control is not None and self.shed_late(bucket, now)
            if shed or self.pass_over(bucket, now):
                self._trim_claims(bucket, now)
            elif slot := ledger.next_idle(bucket, now):
                ledger.hand_over(slot, bucket.waiters.oldest, now)
                self._trim_claims(bucket, now)
            return True
        ticket = bucket.next_unserved
        ledger.block(bucket, None)
        if ticket == NEVER:
            return False
        if not bucket.dials.may_dial(bucket.connecting + bucket.coming, now):
            self._wait_for_dials(bucket, ticket, now)
            return False
        barrier, victims, losers = _ways_to_make_room(bucket, ticket)
        if barrier is not None:
            if bucket.fail_when_full:
                self._fail_unserved(bucket, no_place(bucket))
            elif barrier is not bucket.own:
                ledger.block(bucket, barrier, ticket)
            ledger.file(bucket)
            return False
        for victim in victims:
            self._evict(victim, touched)
        for loser, limit in losers:
            self._push_aside(loser, limit, touched)
        if bucket.has_room:
            ledger.begin_dial(bucket, now)
        else:
            ledger.claim(bucket)
        ledger.file(bucket)
        return True

    def _queue_again(self, bucket: Bucket, limit: Limit, now: float) -> None:
        """Have the next waiter of *bucket*, which is out of the queue of *limit* now that one was
        served, stand there, if a place is of any use to it."""
        dials = bucket.dials.may_dial(bucket.connecting + bucket.coming, now)
        if dials and bucket.own.spare > 0 and bucket.next_unserved < NEVER:
            self._ledger.block(bucket, limit, bucket.next_unserved)

    def _wait_for_dials(self, bucket: Bucket, ticket: float, now: float) -> None:
        """No more may be dialed yet: fail those that do not wait for that."""
        if now < bucket.retry_at:
            if bucket.fail_when_down:
                self._fail_unserved(bucket, backing_off(bucket))
        elif bucket.fail_when_full and _ways_to_make_room(bucket, ticket)[0] is not None:
            self._fail_unserved(bucket, no_place(bucket))

    def _fail_unserved(self, bucket: Bucket, error: BaseException) -> None:
        """Fail the waiters of *bucket* for which nothing is under way."""
        served = bucket.connecting + bucket.coming
        for waiter in list(itertools.islice(bucket.waiters, served, None)):
            self._ledger.fail(waiter, copy_of(error))
        self._ledger.update_fast_path(bucket)

    def pass_over(self, bucket: Bucket, now: float) -> bool:
        """Send away those at the head of the line that have no use for a connection any more;
        whether there was one.  The caller sees to the claims of the bucket."""
        waiters = bucket.waiters
        found = False
        while waiters and waiters.oldest.useless_after <= now:
            self._ledger.expire(waiters.oldest)
            found = True
        return found

    def shed_late(self, bucket: Bucket, now: float, spared: int = 0) -> bool:
        """Send away those at the head of a slow line, behind as many as are *spared*, that have
        waited too long; whether there was one.  Only for a bucket with a DelayControl; the caller
        sees to its claims."""
        control = bucket.delay_control
        first = bucket.waiters.at(spared)
        if control is None or first is None or not control.is_slow(now - first.came, now):
            return False
        late = []
        for waiter in itertools.islice(bucket.waiters, spared, None):
            if now - waiter.came <= control.longest:
                break
            late.append(waiter)
        seconds = control.drains_in(len(bucket.waiters) - len(late), now)
        for waiter in late:
            # Apart from one another, so that they do not all come back together.
            retry_after = seconds * (0.5 + bucket.rng.random())
            self._ledger.fail(waiter, overloaded(bucket, now - waiter.came, retry_after))
        return bool(late)

    def _evict(self, victim: Slot, touched: Touched) -> None:
        """Close an idle slot for the sake of its places."""
        touched.update(dict.fromkeys(victim.bucket.shared))
        self._ledger.begin_close(victim, Reason.EVICTED)

    def _push_aside(self, loser: Bucket, limit: Limit, touched: Touched) -> None:
        """Take the last claim of *loser* from it, as *limit* has no place left for that."""
        touched.update(dict.fromkeys(loser.shared))
        self._ledger.unclaim(loser)
        if loser.fail_when_full:
            self._fail_unserved(loser, out_of_sockets(loser))
        else:
            self._ledger.block(loser, limit, loser.next_unserved)
        if not (loser.connecting or loser.coming):
            loser.dials.burst_is_over()
        self._ledger.file(loser)

    def _trim_claims(self, bucket: Bucket, now: float) -> None:
        """Drop the claims that *bucket* has no use for any more."""
        if bucket.coming:
            may_be = min(bucket.dials.width, len(bucket.waiters)) - bucket.connecting
            most = 0 if bucket.closed or now < bucket.retry_at else max(0, may_be)
            while bucket.coming > most or (bucket.coming and bucket.own.spare < 0):
                self._ledger.unclaim(bucket)
            self._ledger.file(bucket)

    def _dial_ripe(self, limits: Iterable[Limit], now: float) -> None:
        """Use places that have come free for those that have claimed them, the oldest first."""
        while True:
            ripe = [limit._ripe.first() for limit in limits if limit._ripe and not limit.full]
            if not ripe:
                return
            bucket = min(ripe)[1]  # tickets are unique: buckets are never compared
            if bucket.has_room:
                self._ledger.unclaim(bucket)
                self._ledger.begin_dial(bucket, now)
            self._ledger.file(bucket)

    # Minimums, and what is due to go

    def _refill(self, bucket: Bucket, now: float) -> None:
        """Dial what *bucket* lacks to its minimum, with places no waiter could use."""
        wanted = min(bucket.dials.width, bucket.missing)
        barrier = None
        if bucket.connecting < wanted and now >= bucket.dials.retry_at:
            own = bucket.own
            while bucket.connecting < wanted and own.used < own._maximum:
                for limit in bucket.shared:
                    if limit.reserved:
                        barrier = limit
                        break
                if barrier is not None:
                    break
                self._ledger.begin_dial(bucket, now)
                if bucket.waiters:
                    self._ledger.file(bucket)
        if bucket.shared:
            self._ledger.note_below_minimum(bucket, barrier)

    def _retire_due(self, bucket: Bucket, now: float) -> None:
        """Close the idle slots that are due to go, as far as that costs no caller anything."""
        while bucket.retiring:
            slot = next(iter(bucket.retiring))
            if not self.may_retire(slot, now):
                break
            self._ledger.begin_close(slot, slot.retire_for)

    def may_retire(self, slot: Slot, now: float) -> bool:
        """Whether a slot past its retire_at should be closed now rather than kept a while.

        Above the minimum: yes.  Else, where the limits allow, ``_refill`` dials a replacement
        first.  Where they do not: one at a time, and not during a back-off.  One that has expired
        can serve no caller; it stays only for a replacement that is on its way.
        """
        bucket = slot.bucket
        if bucket.open > bucket.effective_min_size:
            return True
        expired = now >= slot.expires_at
        if bucket.has_room and not any(limit.reserved for limit in bucket.shared):
            return expired and bucket.failing
        return expired or not (bucket.connecting or bucket.closing or now < bucket.retry_at)

    def reason_to_close(
        self, slot: Slot, now: float, besides: Reason | None = None
    ) -> Reason | None:
        """Why a slot that is not held any more must not be kept, or None; that it was marked for
        closing for the reason *besides* does not count."""
        bucket = slot.bucket
        if bucket.closed:
            return Reason.POOL_CLOSED
        if slot.close_reason is not None and slot.close_reason is not besides:
            return slot.close_reason
        if bucket.max_uses is not None and slot.uses >= bucket.max_uses:
            return Reason.WORN_OUT
        if now >= slot.expires_at:
            return Reason.EXPIRED
        if bucket.overfull:
            return Reason.SURPLUS
        if now >= slot.retire_at and self.may_retire(slot, now):
            return slot.retire_for
        return None

    def may_salvage(self, slot: Slot, now: float) -> bool:
        """Whether a slot that is held, and whose use was cut short, should be salvaged rather than
        closed: it is worth it, and not half of the connections are being salvaged already."""
        bucket = slot.bucket
        if bucket.salvaging >= max(1, bucket.size // 2):
            return False
        if bucket.open > bucket.size and not bucket.waiters:
            return False  # surplus
        return self.reason_to_close(slot, now, besides=Reason.CUT_SHORT) is None

    def _shrink(self, bucket: Bucket) -> None:
        """Close idle slots beyond *size*, longest idle first."""
        while bucket.open > bucket.size and (oldest := bucket.longest_idle()):
            self._ledger.begin_close(oldest, Reason.SURPLUS)


def _may_help(limit: Limit, ticket: float, bucket: Bucket | None) -> bool:
    """Whether *limit* has a place for the waiter of that ticket at the head of its queue, now that
    *bucket* (None: a limit) has changed."""
    spare = limit.spare
    if spare:
        return spare > 0
    if bucket is None:  # its maximum was set: what lies idle was of no use while it was overfull
        if limit.longest_idle() is not None:
            return True
    elif bucket.idle and limit in bucket.shared:
        return True
    claim = limit.youngest_claim()
    return claim is not None and claim[0] > ticket


def _ways_to_make_room(
    bucket: Bucket, ticket: float
) -> tuple[Limit | None, list[Slot], list[tuple[Bucket, Limit]]]:
    """How to get a place in each limit of *bucket* for its waiter of that ticket: the idle slots
    to evict, and the buckets to push aside, as their waiters came later; or what bars it."""
    victims: list[Slot] = []
    losers: list[tuple[Bucket, Limit]] = []
    for limit in bucket.limits:
        spare = limit.spare
        if spare > 0:
            continue
        if spare < 0 or limit is bucket.own:
            return limit, [], []
        if any(limit in victim.bucket.limits for victim in victims):
            continue
        if any(limit in loser.limits for loser, _ in losers):
            continue
        if (victim := limit.longest_idle()) is not None:
            victims.append(victim)
            continue
        claim = limit.youngest_claim()
        if claim is None or claim[0] < ticket:
            return limit, [], []
        losers.append((claim[1], limit))
    return None, victims, losers
