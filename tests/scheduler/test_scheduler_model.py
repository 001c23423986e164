"""The scheduler against a model: whatever happens in whatever order, its books and its promises
hold.

Nothing here switches, sleeps or reads a clock.  The machine plays everybody else: callers who come,
release, discard or give up at any moment; dials, closes and checks that end when and how they like;
peers that hang up; time that passes.  After each step it looks at everything (``Machine.books``,
``claims``, ``line``, ``opportunities``); what must hold at the very moment of a decision is looked
at in ``Hub``, the effects.  And at the end of each run, if dials succeed and callers release, every
waiter is served and every minimum reached (promise 10).

It damages the books, too, as a verb does that is cut short: then an audit has to set them right.

How many examples are tried is set by GEVENTPOOL_MODEL_EXAMPLES: 75, but 2,000 at night.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from geventpool import COMPILED
from geventpool._scheduler.delay_control import DelayControl
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.scheduler import Scheduler
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
from geventpool._util.heap import Heap
from geventpool.backoff import Backoff
from geventpool.errors import PoolOverloaded, Verdict
from geventpool.events import Reason
from geventpool.overload import CoDel

THREAD = 7  # the ident of the one thread there is
UNDER_A_DEADLINE = 4.0  # seconds of a caller that has no use for a connection after them
LONG = 10.0  # the keepalive
CODEL = CoDel(target=0.1, interval=1.0)


DAMAGES = ["count", "limit", "claim", "idle", "tombstone", "waiter", "slot", "line"]
DAMAGES += ["state", "salvage", "check"]


class WatchedSlot(Slot):
    """A slot that allows no move that is not in the table: not to the fast path either."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def state(self) -> State:  # type: ignore[override]
        return _STATE.__get__(self)  # type: ignore[no-any-return]

    @state.setter
    def state(self, new: State) -> None:
        assert new in TRANSITIONS[self.state], f"{self.state} -> {new}"
        _STATE.__set__(self, new)


_STATE: Any = vars(Slot)["state"]


class WatchedControl(DelayControl):
    """Finds a line slow when the definition does, by what the machine has seen of that line.

    The definition (``CoDel``): not fine for two intervals, or for one if the line was slow when it
    was judged last or its next caller has waited for 0.8 of one; and so for an interval.
    """

    __slots__ = ("fine_at", "judged_at", "slow")

    def __init__(self, now: float) -> None:
        super().__init__(CODEL)
        self.fine_at, self.judged_at, self.slow = now, -math.inf, False

    def calm(self, now: float) -> None:
        """No waiter waits for more than a dial of its own."""
        self.fine_at, self.judged_at, self.slow = now, -math.inf, False

    def is_slow(self, waited: float, now: float) -> bool:
        if not self.slow or now >= self.judged_at + CODEL.interval:
            one = self.slow or waited >= 0.8 * CODEL.interval
            self.slow = now >= self.fine_at + (1 if one else 2) * CODEL.interval
            self.judged_at = now
        said = super().is_slow(waited, now)
        assert said is self.slow, "slow too early" if said else "slow, and not known"
        return said


class Hub:
    """The effects: notes what is asked for, and checks what must hold just then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dials: list[Slot] = []  # asked for
        self.begun: list[Slot] = []  # under way
        self.closes: list[Slot] = []
        self.checks: list[Slot] = []
        self.salvages: list[Slot] = []
        self.woken: list[Waiter] = []
        self.timers: dict[Bucket, float] = {}
        self.looks: dict[Bucket, float] = {}  # at the lines of those with *overload*
        self.lowered: dict[Limit, None] = {}  # limits to be reconciled
        self.buckets: list[Bucket] = []
        self.held: list[Slot] = []
        self.gone: Waiter | None = None  # its greenlet is
        self.damaged = False
        self.down: set[Bucket] = set()
        self.failed_since: dict[Bucket, float] = {}  # the first failure since a success

    def catch_up_later(self) -> None:
        raise AssertionError("no verb was cut short")

    def at_work_on(self) -> list[Slot]:
        return self.dials + self.begun + self.closes + self.checks + self.salvages

    def has_out(self, slot: Slot) -> bool:
        return slot in self.held

    def waits(self, waiter: Waiter) -> bool:
        here = waiter in waiter.bucket.waiters or waiter in self.woken
        return here and waiter is not self.gone

    def mended(self, bucket: Bucket, what: str) -> None:
        assert self.damaged, what

    def start_dial(self, slot: Slot) -> None:
        if not COMPILED:  # where a field of a slot is no property that could be watched
            slot.__class__ = WatchedSlot
        bucket = slot.bucket
        assert slot.state is CONNECTING
        assert not bucket.closed
        for limit in bucket.limits:
            assert limit.used <= limit.maximum, "promise 4: a dial beyond the maximum"
        assert bucket.connecting <= bucket.dials.width <= bucket.dials.most
        assert self.now >= bucket.retry_at, "a dial during the back-off"
        if bucket.failures:
            assert bucket.connecting == 1 or bucket.dials.opened_at != math.inf, (
                "one dial while down"
            )
        self._look_who_is_overtaken(bucket)
        self.dials.append(slot)

    def _look_who_is_overtaken(self, bucket: Bucket) -> None:
        """No older waiter could have used that very place; no waiter at all, if it is a refill."""
        mine = ticket_at(bucket, bucket.connecting - 1)
        for other in neighbours(bucket, self.buckets):
            theirs = ticket_at(other, other.connecting)
            # A bucket whose timer fires in this very instant, or whose limit was raised, may not
            # know yet.
            knows = other not in self.timers and not set(other.limits) & set(self.lowered)
            if knows and may_dial(other, self.now) and not other.idle and theirs < mine:
                rooms = [
                    limit.used - (limit in bucket.limits) < limit.maximum for limit in other.limits
                ]
                assert not all(rooms), f"{other!r} is overtaken by {bucket!r}"

    def start_close(self, slot: Slot, reason: Reason) -> None:
        assert slot.state is CLOSING
        assert isinstance(reason, Reason)
        self.closes.append(slot)

    def start_check(self, slot: Slot) -> None:
        assert slot.state is CHECKING
        self.checks.append(slot)

    def start_salvage(self, slot: Slot) -> None:
        bucket = slot.bucket
        assert slot.state is SALVAGING
        assert not bucket.closed
        assert bucket.salvaging <= max(1, bucket.size // 2), "more than half"
        fit_for_hand_out(slot, self.now)
        self.salvages.append(slot)

    def wake(self, callback: object, waiter: Waiter) -> str:
        assert not waiter.pending
        assert waiter not in self.woken, "woken twice"
        slot = waiter.slot
        if slot is not None:
            assert slot.state is IN_USE
            assert slot.bucket is waiter.bucket
            assert slot.since == self.now < waiter.useless_after
            fit_for_hand_out(slot, self.now)
            assert waiter.ticket <= ticket_at(waiter.bucket, 0), "served out of order"
        if waiter.bucket.delay_control is not None:
            self._look_at_overload(waiter)
        self.woken.append(waiter)
        return "woken"

    def _look_at_overload(self, waiter: Waiter) -> None:
        """Nobody is sent away that has not waited too long, or whose line is not slow."""
        waited = self.now - waiter.came
        control = control_of(waiter.bucket)
        if waiter.slot is not None and waited <= CODEL.target:
            control.fine_at = self.now
        if isinstance(waiter.error, PoolOverloaded):
            assert waited > 2 * CODEL.target, "sent away too soon"
            assert waiter.error.waited == waited
            assert control.slow, "sent away from a line that is not slow"
            assert self.now < control.judged_at + CODEL.interval, "that was long ago"

    def look_later(self, bucket: Bucket, at: float) -> None:
        assert bucket.delay_control is not None
        assert self.now < at <= self.now + CODEL.interval / 2, "what is fine meanwhile is not seen"
        self.looks[bucket] = min(at, self.looks.get(bucket, at))

    def reconcile_later(self, bucket: Bucket) -> None:
        self.timers[bucket] = bucket.reconcile_at

    def went_down(self, bucket: Bucket) -> None:
        assert bucket not in self.down, "down twice"
        if bucket.outage.fatal is None:
            assert not bucket.open
            assert self.now >= self.failed_since[bucket] + bucket.outage.after - 1e-9
        self.down.add(bucket)

    def came_back(self, bucket: Bucket) -> None:
        self.down.remove(bucket)

    def reconcile_limit_later(self, limit: Limit) -> None:
        self.lowered[limit] = None


def ticket_at(bucket: Bucket, place: int) -> float:
    waiters = list(bucket.waiters)
    return waiters[place].ticket if place < len(waiters) else math.inf


def control_of(bucket: Bucket) -> WatchedControl:
    assert isinstance(bucket.delay_control, WatchedControl)
    return bucket.delay_control


def neighbours(bucket: Bucket, buckets: list[Bucket]) -> list[Bucket]:
    return [b for b in buckets if b is not bucket and set(b.shared) & set(bucket.shared)]


def may_dial(bucket: Bucket, now: float) -> bool:
    """But for its limits, that is."""
    return not bucket.closed and bucket.connecting < bucket.dials.width and now >= bucket.retry_at


def fit_for_hand_out(slot: Slot, now: float) -> None:
    assert slot.close_reason is None
    assert now < slot.expires_at
    assert slot.bucket.max_uses is None or slot.uses <= slot.bucket.max_uses
    assert not slot.bucket.closed


def _key(heap: Heap[Bucket], bucket: Bucket) -> float:
    return heap._entries[bucket][0]  # type: ignore[no-any-return]


def over(limit: Limit) -> float:
    """How many slots more must close before the limit is kept (it was lowered)."""
    return limit.used - limit._closing - limit.maximum


class Machine(RuleBasedStateMachine):
    hub: Hub

    @initialize(data=st.data())
    def set_up(self, data: st.DataObject) -> None:
        draw = data.draw
        self.hub = Hub()
        self.scheduler = Scheduler(self.hub)
        self.limits = [
            Limit(draw(st.integers(1, 5)), "L0"),
            Limit(draw(st.one_of(st.integers(1, 5), st.just(math.inf))), "L1"),
        ]
        self.held = self.hub.held
        self.was_used: dict[Limit, int] = {}
        self.buckets = self.hub.buckets
        for n in range(draw(st.integers(1, 4))):
            self._add(draw, f"b{n}")

    def _add(self, draw: Any, name: str) -> None:
        size = draw(st.integers(1, 4))
        max_uses = draw(st.sampled_from([None, None, None, 1, 3]))
        shared = tuple(limit for limit in self.limits if draw(st.booleans()))
        transient = draw(st.booleans())
        bucket = Bucket(
            name,
            size=size,
            min_size=draw(st.sampled_from([0, size, 1])),
            max_overflow=draw(st.sampled_from([0, 0, 1, math.inf])),
            limits=shared,
            max_connecting=draw(st.sampled_from([16, 1, 3])),
            backoff=Backoff(first=0.1, longest=1.0, jitter=0.0),
            lifo=draw(st.booleans()),
            fail_fast=draw(st.sampled_from([False, False, True])),
            idle_timeout=draw(st.sampled_from([None, 5.0])),
            max_lifetime=draw(st.sampled_from([None, 12.0])),
            max_uses=max_uses,
            jitter=0.5,
            rng=random.Random(0),
            min_idle=draw(st.integers(0, size)),
            transient=transient,
            fail_when_full=draw(st.sampled_from([False, False, True])),
            fail_when_down=draw(st.sampled_from([False, False, True])),
            down_after=draw(st.sampled_from([None, 0.5, 3.0])),
            overload=draw(st.sampled_from([None, CODEL])),
        )
        if bucket.delay_control is not None:
            bucket.delay_control = WatchedControl(self.now)
        bucket.postpone(draw(st.sampled_from([False, False, True])))
        if max_uses is None and not transient:
            bucket.fast_path_thread = draw(st.sampled_from([THREAD, THREAD, 0]))
        bucket.fast_path_max_idle = bucket.idle_timeout
        fits = all(
            bucket.min_size + sum(b.min_size for b in self._open() if limit in b.shared)
            <= limit.maximum
            for limit in shared
        )
        self.buckets.append(bucket)
        try:
            self.scheduler.add(bucket, self.now)
        except ValueError:
            assert not fits
            self.buckets.remove(bucket)
        else:
            assert fits

    @property
    def now(self) -> float:
        return self.hub.now

    def _open(self) -> list[Bucket]:
        return [bucket for bucket in self.buckets if not bucket.closed]

    def _pick(self, n: int) -> Bucket | None:
        found = self._open()
        return found[n % len(found)] if found else None

    # Callers, exactly as Runtime.acquire and pool.Lease go about it

    def _acquire(
        self,
        bucket: Bucket,
        ticket: int,
        timeout: float | None,
        requeued: bool = False,
        came: float | None = None,
    ) -> None:
        slot = self.scheduler.try_checkout(bucket, self.now)
        if slot is not None:
            slot.uses += 1
            slot.since = self.now
            fit_for_hand_out(slot, self.now)
            self.held.append(slot)
        elif timeout == 0:
            refused = self.scheduler.refusal(bucket, self.now)
            assert refused is None or bucket in self.hub.down
        else:
            deadline = None if timeout is None else self.now + timeout
            useless_after = NEVER
            if timeout == UNDER_A_DEADLINE:
                deadline = useless_after = self.now + timeout
            came = self.now if came is None else came
            waiter = Waiter(bucket, ticket, deadline, None, came, useless_after)
            bucket.postpone(False)
            if bucket.delay_control is not None and not bucket.waiters:
                control_of(bucket).fine_at = self.now
            self.scheduler.enqueue(waiter, self.now, requeued)

    def _note_if_calm(self, bucket: Bucket) -> None:
        """Whether no waiter waits for more than a dial of its own.  Asked for where the scheduler
        is bound to see that; between two looks at the line it need not."""
        if bucket.delay_control is not None and bucket.unserved <= bucket.coming:
            control_of(bucket).calm(self.now)

    @rule(n=st.integers(0, 3), timeout=st.sampled_from([None, None, 0, 1.0, UNDER_A_DEADLINE]))
    def acquire(self, n: int, timeout: float | None) -> None:
        if bucket := self._pick(n):
            self._acquire(bucket, next(self.scheduler.tickets), timeout)

    @rule(n=st.integers(0, 3), timeout=st.sampled_from([None, 0, 2.0]))
    def enter(self, n: int, timeout: float | None) -> None:
        bucket = self._pick(n)
        if bucket is None:
            return
        if bucket.fast_path_open == THREAD and bucket._idle:
            slot = bucket.pop_idle()
            max_idle = bucket.fast_path_max_idle
            if self.now < slot.fast_path_until and (
                max_idle is None or self.now - slot.since < max_idle
            ):
                fit_for_hand_out(slot, self.now)
                slot.state = IN_USE
                slot.since = self.now
                slot.uses += 1
                self.held.append(slot)
                return
            self.scheduler.put_back(slot)
        self._acquire(bucket, next(self.scheduler.tickets), timeout)

    @rule(n=st.integers(0, 3), callers=st.integers(2, 6))
    def crowd(self, n: int, callers: int) -> None:
        for _ in range(callers):
            self.acquire(n, None)
            self.books()

    @rule(n=st.integers(0, 3), callers=st.integers(5, 25), seconds=st.sampled_from([0.11, 0.2]))
    def a_line_does_not_end(self, n: int, callers: int, seconds: float) -> None:
        """Each caller waits, and is served: it may be slow, and what is slow may end."""
        bucket = self._pick(n)
        if bucket is None:
            return
        for number in range(callers):
            self._acquire(bucket, next(self.scheduler.tickets), None)
            if number <= bucket.size:  # nobody comes back before there is a line
                continue
            self._pass_time(seconds)
            while self.hub.woken:
                self.run_a_woken_waiter(0)
            mine = [s for s in self.held if s.bucket is bucket and s.state is IN_USE]
            if mine:
                self.held.remove(mine[0])
                self._release(mine[0])

    @rule(n=st.integers(0, 3))
    def be_served_and_find_it_unfit(self, n: int) -> None:
        """It goes back in line with the ticket it drew when it came."""
        served = [w for w in self.hub.woken if w.slot is not None and w.slot.state is IN_USE]
        if served:
            waiter = served[n % len(served)]
            self.hub.woken.remove(waiter)
            assert waiter.slot is not None
            self.scheduler.discard(waiter.slot, Reason.UNREAD, self.now)
            if not waiter.bucket.closed:
                self._acquire(waiter.bucket, waiter.ticket, None, True, waiter.came)

    @precondition(lambda self: self.hub.woken)
    @rule(n=st.integers(0, 5))
    def run_a_woken_waiter(self, n: int) -> None:
        waiter = self.hub.woken.pop(n % len(self.hub.woken))
        assert (waiter.slot is not None) + (waiter.error is not None) + waiter.expired == 1
        if waiter.slot is not None:
            self.held.append(waiter.slot)

    @rule(n=st.integers(0, 9))
    def give_up(self, n: int) -> None:
        """A waiter is killed: still in line, or served and not yet running."""
        waiters = [w for bucket in self.buckets for w in bucket.waiters] + self.hub.woken
        if waiters:
            waiter = waiters[n % len(waiters)]
            if waiter in self.hub.woken:
                self.hub.woken.remove(waiter)
            self.scheduler.cancel(waiter, self.now)
            assert waiter.slot is None

    @rule(n=st.integers(0, 9))
    def be_refused(self, n: int) -> None:
        """All that hold what others wait for wait as well."""
        waiters = [w for bucket in self.buckets for w in bucket.waiters]
        if waiters:
            waiter = waiters[n % len(waiters)]
            self.scheduler.refuse(waiter, LookupError(), self.now)
            assert waiter in self.hub.woken

    def _take_from_holder(self, n: int) -> Slot:
        return self.held.pop(n % len(self.held))

    @precondition(lambda self: self.held)
    @rule(n=st.integers(0, 9))
    def leave_with(self, n: int) -> None:
        slot = self._take_from_holder(n)
        bucket = slot.bucket
        if slot.state is not IN_USE:
            return
        if bucket.fast_path_open == THREAD and self.now < slot.fast_path_until:
            slot.state = IDLE
            slot.since = self.now
            bucket._idle.append(slot)
        else:
            self._release(slot)

    @precondition(lambda self: self.held)
    @rule(n=st.integers(0, 9))
    def release(self, n: int) -> None:
        self._release(self._take_from_holder(n))

    def _release(self, slot: Slot) -> None:
        if slot.unverified:
            self.scheduler.verified(slot)
        self.scheduler.release(slot, self.now)

    @precondition(lambda self: self.held)
    @rule(
        n=st.integers(0, 9),
        reason=st.sampled_from([Reason.ERROR, Reason.DISCARDED, Reason.UNREAD]),
    )
    def discard(self, n: int, reason: Reason) -> None:
        self.scheduler.discard(self._take_from_holder(n), reason, self.now)

    @precondition(lambda self: self.held)
    @rule(n=st.integers(0, 9), marked=st.booleans())
    def be_cut_short(self, n: int, marked: bool) -> None:
        """*marked*: a nested ``with`` has told so before."""
        slot = self._take_from_holder(n)
        if marked:
            self.scheduler.mark_for_closing(slot, Reason.CUT_SHORT)
        self.scheduler.salvage(slot, self.now)
        assert slot.state in (SALVAGING, CLOSING, CLOSED)

    @precondition(lambda self: self.held)
    @rule(n=st.integers(0, 9))
    def detach(self, n: int) -> None:
        self.scheduler.detach(self._take_from_holder(n), Reason.DETACHED, self.now)

    # The network and the runtime

    def _begin_dials(self) -> None:
        for slot in self.hub.dials:
            if self.scheduler.wanted(slot):
                slot.since = self.now
                self.hub.begun.append(slot)
            else:
                self.scheduler.cancel_dial(slot, self.now)
                assert slot.state is CLOSED
        self.hub.dials = [slot for slot in self.hub.dials if slot.state is CONNECTING]
        self.hub.dials = [slot for slot in self.hub.dials if slot not in self.hub.begun]

    @precondition(lambda self: self.hub.dials)
    @rule()
    def begin_dials(self) -> None:
        self._begin_dials()

    @precondition(lambda self: self.hub.begun)
    @rule(n=st.integers(0, 5))
    def dial_succeeds(self, n: int) -> None:
        slot = self.hub.begun.pop(n % len(self.hub.begun))
        self.hub.failed_since.pop(slot.bucket, None)
        if slot.state is CONNECTING:
            self._note_if_calm(slot.bucket)
        self.scheduler.opened(slot, self.now)
        bucket = slot.bucket  # a closed one says no more
        assert bucket.closed or bucket not in self.hub.down, "the first success ends it"

    @precondition(lambda self: self.hub.begun)
    @rule(n=st.integers(0, 5), verdict=st.sampled_from([Verdict.BROKEN, *Verdict]))
    def dial_fails(self, n: int, verdict: Verdict) -> None:
        slot = self.hub.begun.pop(n % len(self.hub.begun))
        bucket = slot.bucket
        self.hub.failed_since.setdefault(bucket, self.now)
        allowed = bucket.open + bucket.connecting - (slot.state is CONNECTING)
        self.scheduler.dial_failed(slot, OSError("refused"), self.now, verdict)
        if verdict is Verdict.SERVER_FULL and not bucket.closed:
            assert bucket.open + bucket.connecting <= allowed, "it asks a full server for more"
        if verdict is Verdict.FATAL and not bucket.closed:
            assert bucket in self.hub.down
            assert not bucket.waiters

    @precondition(lambda self: self.hub.closes)
    @rule(n=st.integers(0, 5))
    def close_ends(self, n: int) -> None:
        self.scheduler.closed(self.hub.closes.pop(n % len(self.hub.closes)), self.now)

    @rule(rounds=st.integers(1, 4))
    def all_dials_and_closes_end_well(self, rounds: int) -> None:
        for _ in range(rounds):
            self._begin_dials()
            while self.hub.begun:
                self.dial_succeeds(0)
            while self.hub.closes:
                self.close_ends(0)

    @rule(n=st.integers(0, 3), keepalive=st.sampled_from([LONG, 1.0]))
    def start_checks(self, n: int, keepalive: float) -> None:
        if bucket := self._pick(n):
            again = self.scheduler.start_checks(bucket, keepalive, self.now)
            assert again <= self.now + keepalive

    @precondition(lambda self: self.hub.checks)
    @rule(n=st.integers(0, 5), ok=st.booleans())
    def check_ends(self, n: int, ok: bool) -> None:
        self.scheduler.checked(self.hub.checks.pop(n % len(self.hub.checks)), ok, self.now)

    @precondition(lambda self: self.hub.salvages)
    @rule(n=st.integers(0, 5), ok=st.booleans())
    def salvage_ends(self, n: int, ok: bool) -> None:
        slot = self.hub.salvages.pop(n % len(self.hub.salvages))
        self.scheduler.salvaged(slot, ok, self.now)
        assert slot.state is CLOSING or (ok and slot.state in (IDLE, IN_USE))

    @rule(n=st.integers(0, 30))
    def peer_hangs_up(self, n: int) -> None:
        slots = [slot for bucket in self.buckets for slot in bucket.slots]
        if slots:
            self.scheduler.peer_closed(slots[n % len(slots)], self.now)

    def _pass_time(self, seconds: float) -> None:
        self.hub.now += seconds
        for bucket, at in list(self.hub.looks.items()):
            if at <= self.now:
                del self.hub.looks[bucket]
                if bucket.waiters:
                    self._note_if_calm(bucket)
                self.scheduler.look_at_line(bucket, self.now)
        for bucket, at in list(self.hub.timers.items()):
            if at <= self.now:
                del self.hub.timers[bucket]
                self.scheduler.reconcile(bucket, self.now)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 1.0, 2.5, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self._pass_time(seconds)
        self.scheduler.expire(self.now)
        deadline = self.scheduler.next_deadline()
        deadlines = [w.deadline for b in self.buckets for w in b.waiters if w.deadline < NEVER]
        assert deadline == min(deadlines, default=None)
        assert deadline is None or deadline > self.now

    @rule(seconds=st.sampled_from([0.3, 2.5, 6.0]))
    def time_passes_and_no_caller_is_told(self, seconds: float) -> None:
        """A greenlet computes, and the timer of their deadlines is late."""
        self._pass_time(seconds)

    @precondition(lambda self: self.held)
    @rule(n=st.integers(0, 9))
    def learn_that_the_server_is_the_wrong_one(self, n: int) -> None:
        slot = self.held[n % len(self.held)]
        if slot.state is not IN_USE:
            return
        bucket = slot.bucket
        before = [each for each in bucket.slots if each.state is not CLOSING]
        if self.scheduler.wrong_server(slot, self.now):
            for each in before:
                assert each is slot or each.state is CLOSING or each.close_reason is not None
            for each in set(bucket.slots) - set(before):
                assert each.close_reason is None or each.state is CLOSING, "it was dialed after"
        self.held.remove(slot)
        self.scheduler.discard(slot, Reason.ERROR, self.now)

    @rule(n=st.integers(0, 3))
    def reap(self, n: int) -> None:
        if bucket := self._pick(n):
            again = self.scheduler.reap(bucket, self.now)
            assert again > self.now
            if bucket.idle_timeout is not None and bucket.open > bucket.min_kept:
                limit = self.now - bucket.idle_timeout
                assert all(slot.since > limit for slot in bucket.idle_slots())

    @rule(n=st.integers(0, 30))
    def dismiss(self, n: int) -> None:
        slots = [slot for bucket in self.buckets for slot in bucket.slots]
        if slots:
            slot = slots[n % len(slots)]
            was_idle = slot.state is IDLE
            assert self.scheduler.dismiss(slot, Reason.DISPOSED, self.now) is was_idle

    # What a verb that was cut short leaves behind

    @rule(n=st.integers(0, 3))
    def audit(self, n: int) -> None:
        if bucket := self._pick(n):
            self.scheduler.audit(bucket, self.now)

    @rule(
        n=st.integers(0, 3),
        m=st.integers(0, 9),
        damage=st.sampled_from(DAMAGES),
    )
    def damage(self, n: int, m: int, damage: str) -> None:
        """The books go wrong in one place; the audit finds it, and nothing is lost but that."""
        bucket = self._pick(n)
        if bucket is None:
            return
        self.hub.damaged = True
        for limit in bucket.limits:
            limit._audited_at = -math.inf  # long ago
        getattr(self, f"_damage_{damage}")(bucket, m)
        self.scheduler.audit(bucket, self.now)
        self.hub.damaged, self.hub.gone = False, None

    def _damage_count(self, bucket: Bucket, m: int) -> None:
        name = ("open", "connecting", "checking", "salvaging", "closing")[m % 5]
        setattr(bucket, name, getattr(bucket, name) + m - 4)

    def _damage_limit(self, bucket: Bucket, m: int) -> None:
        limit = bucket.limits[m % len(bucket.limits)]
        limit.used += m - 4
        limit._closing += m - 3

    def _damage_claim(self, bucket: Bucket, m: int) -> None:
        limit = bucket.limits[m % len(bucket.limits)]
        limit._coming += m - 4
        limit._demand += 1
        limit.forget(bucket)

    def _damage_idle(self, bucket: Bucket, m: int) -> None:
        if bucket._idle:
            bucket.pop_idle()

    def _damage_tombstone(self, bucket: Bucket, m: int) -> None:
        bucket._idle.tombstones += m - 4

    def _damage_waiter(self, bucket: Bucket, m: int) -> None:
        if bucket.waiters:
            self.hub.gone = list(bucket.waiters)[m % len(bucket.waiters)]

    def _damage_slot(self, bucket: Bucket, m: int) -> None:
        mine = [slot for slot in self.held if slot.bucket is bucket]
        if mine:
            self.held.remove(mine[m % len(mine)])

    def _damage_line(self, bucket: Bucket, m: int) -> None:
        if bucket.waiters:
            bucket.waiters.move_to_end(bucket.waiters.oldest)
            bucket.waiters.latest = AT_ONCE
            bucket.waiters._early.clear()

    def _damage_state(self, bucket: Bucket, m: int) -> None:
        """A hand-out was cut short, when the state was set and nothing else."""
        if slot := bucket.longest_idle():
            slot.state = IN_USE

    def _damage_salvage(self, bucket: Bucket, m: int) -> None:
        """Its salvage was asked for, and the state set and nothing else."""
        mine = [s for s in self.held if s.bucket is bucket and s.state is IN_USE]
        if mine:
            slot = mine[m % len(mine)]
            self.held.remove(slot)
            slot.state = SALVAGING

    def _damage_check(self, bucket: Bucket, m: int) -> None:
        if slot := bucket.longest_idle():
            slot.state = CHECKING

    # Verbs of the whole pool

    @rule(n=st.integers(0, 3), over=st.sampled_from([0.0, 0.0, 3.0]))
    def drain(self, n: int, over: float) -> None:
        if bucket := self._pick(n):
            self.scheduler.drain(bucket, over, self.now)

    @rule(
        n=st.integers(0, 3),
        size=st.integers(1, 5),
        fixed=st.booleans(),
        max_overflow=st.sampled_from([None, None, 0, 2]),
    )
    def resize(self, n: int, size: int, fixed: bool, max_overflow: float | None) -> None:
        bucket = self._pick(n)
        if bucket is None:
            return
        room = min(
            limit.maximum
            - sum(b.min_size for b in self._open() if limit in b.shared and b is not bucket)
            for limit in (*bucket.shared, Limit(math.inf))
        )
        min_size = int(min(size, room)) if fixed and room > 0 else 0
        self.scheduler.resize(bucket, size, min_size, self.now, max_overflow)

    @rule(n=st.integers(0, 3))
    def dispose(self, n: int) -> None:
        if bucket := self._pick(n):
            self.scheduler.dispose(bucket, Reason.DISPOSED, self.now)

    @rule(n=st.integers(0, 3), waiting=st.booleans())
    def fill(self, n: int, waiting: bool) -> None:
        """Callers of fill() come and go; the runtime reconciles when one comes."""
        if bucket := self._pick(n):
            bucket.postpone(False)
            bucket.count_filling(1 if waiting or not bucket.filling else -1)
            self.scheduler.reconcile(bucket, self.now)

    @rule(n=st.integers(0, 3))
    def fork(self, n: int) -> None:
        """It forks before its hub has run; in the child nothing is opened before it is used."""
        bucket = self._pick(n)
        if bucket is None or bucket.failing or bucket.troubled:
            return
        if all(slot in self.hub.dials for slot in bucket.slots):
            bucket.postpone(not (bucket.waiters or bucket.filling))

    @rule(n=st.integers(0, 1), maximum=st.integers(0, 6))
    def set_maximum(self, n: int, maximum: int) -> None:
        self.limits[n].maximum = maximum

    @precondition(lambda self: self.hub.lowered)
    @rule()
    def settle_limits(self) -> None:
        while self.hub.lowered:
            limit = next(iter(self.hub.lowered))
            self.scheduler.reconcile_limit(limit, self.now)
            del self.hub.lowered[limit]

    @precondition(lambda self: self.now > 8)
    @rule(n=st.integers(0, 3))
    def shut(self, n: int) -> None:
        if bucket := self._pick(n):
            self.scheduler.shut(bucket, LookupError(), self.now)
            assert not bucket.waiters
            for slot in bucket.slots:
                assert slot.state is not IDLE

    # What must hold after each step

    @invariant()
    def books(self) -> None:
        """Every slot is in exactly one place, and every count is what counting gives."""
        hub = self.hub
        served = [w.slot for w in hub.woken if w.slot is not None]
        everywhere = Counter(hub.at_work_on())
        everywhere.update(slot for slot in self.held + served if slot.state is not CLOSED)
        for bucket in self.buckets:
            everywhere.update(bucket.idle_slots())
        assert all(count == 1 for count in everywhere.values()), "a slot with two owners"
        slots = {slot for bucket in self.buckets for slot in bucket.slots}
        assert everywhere.keys() == slots, everywhere.keys() ^ slots

        for bucket in self.buckets:
            counted = Counter(slot.state for slot in bucket.slots)
            assert bucket.connecting == counted[CONNECTING]
            assert bucket.idle == counted[IDLE]
            assert bucket.in_use == counted[IN_USE]
            assert bucket.checking == counted[CHECKING]
            assert bucket.salvaging == counted[SALVAGING]
            assert bucket.closing == counted[CLOSING]
            held_by_none = counted[CHECKING] + counted[SALVAGING]
            assert bucket.open == counted[IDLE] + counted[IN_USE] + held_by_none
            queue = list(bucket._idle)
            assert len(set(queue)) == len(queue), "twice among the idle"
            assert {s for s in queue if s.state is IDLE} == {
                s for s in bucket.slots if s.state is IDLE
            }
            assert bucket._idle.tombstones == sum(slot.state is not IDLE for slot in queue)
            sinces = [slot.since for slot in bucket.idle_slots()]
            assert sinces == sorted(sinces), "not longest idle first"
            assert all(s.state is IDLE and s.retire_at <= self.now for s in bucket.retiring)
            for limit in bucket.limits:
                assert (bucket in limit._buckets) == (not bucket.closed or bool(bucket.slots))
        for limit in self.limits + [bucket.own for bucket in self.buckets]:
            slots = [slot for b in self.buckets if limit in b.limits for slot in b.slots]
            assert limit.used == len(slots)
            assert limit._closing == sum(slot.state is CLOSING for slot in slots)
            assert limit.used <= max(limit.maximum, self.was_used.get(limit, 0)), "promise 4"
            self.was_used[limit] = limit.used
            if over(limit) > 0 and limit in self.limits and limit not in hub.lowered:
                for b in self.buckets:
                    assert limit not in b.limits or not b.idle, "idle in a limit it overfills"
            keys = {slot: limit._lru._entries[slot][0] for slot in limit._lru}
            assert all(key <= slot.since for slot, key in keys.items() if slot.state is IDLE)
            assert keys.keys() <= set(slots), "it keeps alive what is closed"
            transient = [b for b in limit._buckets if b.transient and limit in b.shared]
            assert {slot for b in transient for slot in b.idle_slots()} <= keys.keys()

    @invariant()
    def claims(self) -> None:
        """Every place that comes free is somebody's who can use it, and the oldest's."""
        for bucket in self.buckets:
            assert (bucket.ripe_at is not None) == bool(bucket.coming)
            tickets = [waiter.ticket for waiter in bucket.waiters]
            if bucket.coming:
                assert bucket.connecting + bucket.coming <= min(bucket.dials.width, len(tickets))
                assert self.now >= bucket.retry_at, "a claim during the back-off"
                assert bucket.ripe_at is not None
                assert bucket.ripe_at.full or self._awaits_news(bucket), "it could dial"
                assert _key(bucket.ripe_at._ripe, bucket) == tickets[bucket.connecting]
                youngest = tickets[bucket.connecting + bucket.coming - 1]
            for limit in bucket.limits:
                assert (bucket in limit._ripe) == (limit is bucket.ripe_at)
                assert (bucket in limit._queue) == (limit is bucket.blocked_at)
            for limit in bucket.shared:
                assert (bucket in limit._claims) == bool(bucket.coming)
                assert not bucket.coming or _key(limit._claims, bucket) == -youngest
        for limit in self.limits + [bucket.own for bucket in self.buckets]:
            sharers = [bucket for bucket in self.buckets if limit in bucket.limits]
            assert limit._coming == sum(bucket.coming for bucket in sharers)
            if limit in self.limits:
                assert limit._demand == sum(bucket.eligible for bucket in sharers)
            if limit in self.hub.lowered:
                continue
            assert limit.spare >= 0 or (over(limit) > 0 and not limit._coming), "claimed twice"
            for bucket in limit._queue:
                assert _key(limit._queue, bucket) == bucket.next_unserved < NEVER
                assert limit.spare <= 0, "a place is kept from it"
                assert not any(other.idle for other in sharers), "nothing is evicted for it"
                claim = limit.youngest_claim()
                assert claim is None or claim[0] < bucket.next_unserved, "it is overtaken"

    @invariant()
    def nobody_is_overlooked(self) -> None:
        """Who waits is served by what is under way, stands in a queue, or has to wait for its own
        bucket."""
        for bucket in self.buckets:
            if bucket.next_unserved == NEVER or self._awaits_news(bucket):
                continue
            if self.now < bucket.retry_at:
                assert not bucket.fail_when_down
            elif bucket.dials.may_dial(bucket.connecting + bucket.coming, self.now):
                assert not bucket.fail_when_full
                assert bucket.own.spare <= 0 or bucket.blocked_at is not None

    @invariant()
    def the_refused_do_not_wait(self) -> None:
        """Who comes while a dial comes by itself is told; and it does come, until it is over."""
        for bucket in self.buckets:
            outage = bucket.outage
            assert bucket.closed or outage.on == (bucket in self.hub.down)
            if not outage.on or bucket.closed or bucket.shared or self._awaits_news(bucket):
                continue
            if bucket.connecting or self.now < bucket.retry_at:
                assert not bucket.waiters
            elif outage.probing:
                assert bucket.own.full, "it is not probed"

    @invariant()
    def a_full_server_is_not_asked(self) -> None:
        for bucket in self.buckets:
            assert bucket.own.maximum == min(bucket.maximum, bucket.ceiling.most)
            if bucket.ceiling.on or bucket.outage.on:
                assert bucket.troubled

    def _awaits_news(self, bucket: Bucket) -> bool:
        """Whether its timer is about to fire, or a limit of its was set and it does not know."""
        return bucket in self.hub.timers or bool(set(bucket.limits) & set(self.hub.lowered))

    @invariant()
    def line(self) -> None:
        """First come, first served, as far as the line goes."""
        for bucket in self.buckets:
            tickets = [waiter.ticket for waiter in bucket.waiters]
            assert tickets == sorted(tickets)
            assert all(waiter.pending for waiter in bucket.waiters)
            assert not (bucket.waiters and bucket.idle), "waits while a connection lies idle"
            assert not (bucket.open > bucket.size and bucket.idle), "surplus is not closed"
        for bucket in self.buckets:
            if bucket.delay_control is not None and bucket.waiters:
                assert bucket in self.hub.looks, "nobody will look at its line again"
        assert set(self.scheduler.with_waiters) == {
            bucket for bucket in self.buckets if bucket.waiters
        }

    @invariant()
    def opportunities(self) -> None:
        """Nothing that could be done for a waiter is left undone, and the fast path hurts none."""
        now = self.now
        for bucket in self.buckets:
            if any(limit in self.hub.lowered for limit in bucket.limits):
                continue
            assert bucket.connecting <= max(bucket.dials.most, len(bucket.slots))
            waits = ticket_at(bucket, bucket.connecting) < math.inf
            could = may_dial(bucket, now)
            if waits and could:
                mine = ticket_at(bucket, bucket.connecting)
                kept = any(  # for an older one, who has yet to wait for a close, or for news
                    ticket_at(b, b.connecting) < mine
                    and (any(lim._closing for lim in b.limits) or self._awaits_news(b))
                    for b in neighbours(bucket, self.buckets)
                )
                assert kept or not bucket.has_room, "room for a waiter is left unused"
                shut = [limit for limit in bucket.limits if limit.full]
                coming = any(limit._closing for limit in shut)
                if len(shut) == 1 and not coming and not bucket.own.full:
                    others = [b for b in self.buckets if shut[0] in b.shared and b is not bucket]
                    assert not any(b.idle for b in others), "no room was made"
                    assert not any(b.fast_path_open for b in others), (
                        "the fast path takes its place"
                    )
            if could and bucket.has_room and bucket.connecting < bucket.missing:
                assert any(b.waiters for b in neighbours(bucket, self.buckets)), (
                    "below its minimum for no waiter's sake"
                )
            if bucket.fast_path_open:
                assert bucket.fast_path_open == bucket.fast_path_thread
                assert not bucket.waiters
                assert not bucket.closed
                assert bucket.open <= bucket.size
                assert all(over(limit) <= 0 for limit in bucket.limits)

    # What must come to pass in the end

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None:
            return  # it has failed already: show that
        for limit in self.limits:
            limit.maximum = max(limit.maximum, 1)
        self._come_to_rest()
        for bucket in self.buckets:
            assert not bucket.waiters, f"a waiter is never served: {bucket!r}"
            assert not bucket.retiring, "neither replaced nor closed"
            assert not (bucket.closed and bucket.slots)
            assert bucket.dials.width == 1, "the burst is not over"

        for bucket in self.buckets:  # what others have above their minimum may be in the way
            bucket.idle_timeout, bucket.max_lifetime, bucket.min_idle = 1.0, None, 0
        for _ in range(1 + len(self.buckets)):  # and then what they open to learn whether they may
            self._pass_time(2.0)
            for bucket in self._open():
                self.scheduler.reap(bucket, self.now)
            self._come_to_rest()
        for bucket in self._open():
            roomy = all(
                sum(b.effective_min_size for b in self._open() if limit in b.limits)
                <= limit.maximum
                for limit in bucket.limits
            )
            assert bucket.open >= bucket.effective_min_size or not roomy, (
                f"below its minimum: {bucket!r}"
            )
            if slot := self.scheduler.try_checkout(bucket, self.now):
                self._release(slot)
                assert bucket.fast_path_open == bucket.fast_path_thread, (
                    "the fast path stays shut for ever"
                )
        for limit in self.limits:
            assert limit._buckets.keys() == {b for b in self._open() if limit in b.shared}
            assert not limit._queue
            assert not limit._claims
            assert not limit._ripe
            assert limit._demand == limit._coming == 0

    def _come_to_rest(self) -> None:
        """Dials succeed, callers release and no waiter's deadline comes."""
        for _ in range(2000):
            if not self._something_happens():
                if not self.hub.timers:
                    return
                self._pass_time(max(0.0, min(self.hub.timers.values()) - self.now))
            self.books()
            self.line()
            self.opportunities()
        raise AssertionError(f"never comes to rest: {self.buckets}")

    def _something_happens(self) -> bool:
        hub = self.hub
        if hub.lowered:
            self.settle_limits()
        elif hub.dials:
            self._begin_dials()
        elif hub.begun:
            self.dial_succeeds(0)
        elif hub.closes:
            self.close_ends(0)
        elif hub.checks:
            self.check_ends(0, True)
        elif hub.salvages:
            self.salvage_ends(0, True)
        elif hub.woken:
            self.run_a_woken_waiter(0)
        elif self.held:
            self.leave_with(0)
        else:
            return False
        return True


PARTS = 4  # so that each ends in time on a busy machine, too
EXAMPLES = int(os.environ.get("GEVENTPOOL_MODEL_EXAMPLES", "75"))


@pytest.mark.slow
@pytest.mark.timeout(150 + EXAMPLES)
@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_happens_in_whatever_order_the_scheduler_keeps_its_promises(part: int) -> None:
    # By another name its examples are others, where hypothesis does not draw them at random.
    machine = type(f"Machine{part}", (Machine,), {})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=math.ceil(EXAMPLES / PARTS),
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


assert AT_ONCE < 0 < NEVER
