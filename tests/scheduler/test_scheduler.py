"""The scheduler's rules, one by one, with effects that only take notes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from geventpool._scheduler.dial_window import DialWindow
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Slot
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
from geventpool.backoff import Backoff
from geventpool.events import Reason
from support.world import HERE, REFUSED, Steps, World, assert_flat


@pytest.fixture
def world() -> World:
    return World()


# The states of a slot


def test_the_states_are_those_of_the_diagram() -> None:
    ways = {(old.value, new.value) for old, news in TRANSITIONS.items() for new in news}

    assert ways == {
        ("connecting", "idle"),
        ("connecting", "closed"),
        ("idle", "in use"),
        ("idle", "checking"),
        ("idle", "closing"),
        ("in use", "idle"),
        ("in use", "salvaging"),
        ("in use", "closing"),
        ("in use", "closed"),
        ("checking", "idle"),
        ("checking", "closing"),
        ("salvaging", "idle"),
        ("salvaging", "closing"),
        ("closing", "closed"),
    }


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_a_move_that_is_not_in_the_table_is_refused(world: World, old: State, new: State) -> None:
    bucket = world.bucket(1)
    slot = Slot(bucket, world.now)
    bucket.slots[slot] = None
    slot.state = old

    if new in TRANSITIONS[old]:
        world.scheduler.ledger.move(slot, new)
        assert slot.state is new
    else:
        with pytest.raises(AssertionError, match=f"cannot become {new.value}"):
            world.scheduler.ledger.move(slot, new)
        assert slot.state is old


def test_every_state_counts_in_the_limits_until_the_close_has_ended(world: World) -> None:
    limit = Limit(5)
    bucket = world.bucket(5, 1, limits=(limit,))
    (slot,) = bucket.slots
    used: list[tuple[State, int, float]] = []

    def note() -> None:
        used.append((slot.state, limit.used, bucket.own.used))

    note()
    world.open_all()
    note()
    world.scheduler.start_checks(bucket, 1.0, world.now + 1)
    note()
    world.scheduler.checked(slot, True, world.now + 1)
    world.checkout(bucket)
    note()
    world.salvage(slot)
    note()
    world.end_salvage(True)
    world.checkout(bucket)
    world.scheduler.resize(bucket, 5, 0, world.now)
    world.discard(slot)
    note()
    world.close_all()
    note()

    assert used == [
        (CONNECTING, 1, 1),
        (IDLE, 1, 1),
        (CHECKING, 1, 1),
        (IN_USE, 1, 1),
        (SALVAGING, 1, 1),
        (CLOSING, 1, 1),
        (CLOSED, 0, 0),
    ]


@pytest.mark.parametrize(
    "verb",
    [
        lambda scheduler, slot: scheduler.release(slot, 200.0),
        lambda scheduler, slot: scheduler.discard(slot, Reason.ERROR, 200.0),
        lambda scheduler, slot: scheduler.detach(slot, Reason.DETACHED, 200.0),
        lambda scheduler, slot: scheduler.checked(slot, True, 200.0),
        lambda scheduler, slot: scheduler.salvage(slot, 200.0),
        lambda scheduler, slot: scheduler.salvaged(slot, True, 200.0),
        lambda scheduler, slot: scheduler.opened(slot, 200.0),
        lambda scheduler, slot: scheduler.dial_failed(slot, REFUSED, 200.0),
        lambda scheduler, slot: scheduler.cancel_dial(slot, 200.0),
    ],
)
def test_news_of_a_slot_that_has_moved_on_changes_nothing(
    world: World, verb: Callable[[Scheduler, Slot], None]
) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    world.discard(slot)
    before = repr(bucket), bucket.own.used, dict(bucket.reasons)

    verb(world.scheduler, slot)

    assert (repr(bucket), bucket.own.used, dict(bucket.reasons)) == before
    assert slot.state is CLOSING


# Who gets what: the order of reconcile


def test_first_an_idle_slot_is_handed_over(world: World) -> None:
    bucket = world.full(1, max_overflow=1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.notes.dials.clear()

    world.release(slot)

    assert waiter.slot is slot
    assert slot.state is IN_USE
    assert world.notes.woken == [waiter]
    assert not world.notes.dials


def test_second_a_dial_under_way_serves_it_and_no_other_is_begun(world: World) -> None:
    bucket = world.bucket(4, 1)
    assert bucket.connecting == 1

    waiter = world.enqueue(bucket)

    assert bucket.connecting == 1
    slot = world.open_one()
    assert waiter.slot is slot


def test_third_where_there_is_room_a_dial_begins(world: World) -> None:
    bucket = world.bucket(1)

    world.enqueue(bucket)

    assert bucket.connecting == 1


def test_fourth_a_full_shared_limit_loses_its_longest_idle_for_it(world: World) -> None:
    limit = Limit(3)
    a = world.full(1, name="a", limits=(limit,))
    world.now += 1
    b = world.full(2, name="b", limits=(limit,))
    for bucket in (a, b):
        world.scheduler.resize(bucket, bucket.size, 0, world.now)
    (longest,) = a.slots
    c = world.bucket(1, name="c", limits=(limit,))

    waiter = world.enqueue(c)

    assert world.notes.closes == [longest]
    assert world.notes.reasons == [Reason.EVICTED]
    assert c.connecting == 0  # the place still counts
    world.close_all()
    assert c.connecting == 1
    slot = world.open_one()
    assert waiter.slot is slot


def test_one_eviction_serves_one_waiter_and_no_second_is_made_while_it_closes(
    world: World,
) -> None:
    limit = Limit(2)
    a = world.full(2, name="a", limits=(limit,))
    world.scheduler.resize(a, 2, 0, world.now)
    b = world.bucket(2, name="b", limits=(limit,))

    world.enqueue(b)
    world.reconcile(b)
    world.reconcile(a)

    assert len(world.notes.closes) == 1


def test_else_it_waits(world: World) -> None:
    bucket = world.full(1)
    world.checkout(bucket)

    waiter = world.enqueue(bucket)

    assert waiter.pending
    assert list(bucket.waiters) == [waiter]
    assert not world.notes.dials


def test_waiters_of_all_buckets_of_a_limit_are_served_in_order_of_arrival(world: World) -> None:
    limit = Limit(1)
    buckets = [world.bucket(1, name=name, limits=(limit,)) for name in "abc"]
    first = world.enqueue(buckets[0])
    slot = world.open_one()
    assert first.slot is slot
    later = [world.enqueue(buckets[n]) for n in (2, 1, 2, 1)]

    order = []
    while slot is not None:
        world.discard(slot)
        world.close_all()
        world.open_all()
        served = [w for w in later if w.slot is not None and w not in order]
        order += served
        slot = served[0].slot if served else None

    assert order == later


def test_a_releaser_cannot_take_it_back_in_front_of_a_waiter(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    world.enqueue(bucket)

    world.release(slot)

    assert bucket.fast_path_open == 0 or not bucket._idle
    assert world.scheduler.try_checkout(bucket, world.now) is None


def test_minimums_come_last_and_leave_every_place_that_a_waiter_could_use(world: World) -> None:
    limit = Limit(2)
    a = world.bucket(2, name="a", limits=(limit,))
    b = world.bucket(2, 2, name="b", limits=(limit,), backoff=Backoff(1.0, 1.0, 1.0, 0.0))
    world.fail_one()  # b's own: it pauses
    world.enqueue(a)
    world.enqueue(a)
    assert a.connecting == 1  # the window: its place is not taken for the second yet

    world.now += 2
    world.reconcile(b)

    assert b.connecting == 0
    world.open_one()
    assert a.connecting == 1


def test_waiters_whose_own_limit_is_full_do_not_bar_the_minimums_of_others(world: World) -> None:
    limit = Limit(3)
    a = world.full(1, name="a", limits=(limit,))
    world.checkout(a)
    for _ in range(9):
        world.enqueue(a)

    b = world.bucket(2, 2, name="b", limits=(limit,))
    world.open_all()

    assert b.open == 2


def test_a_minimum_is_refilled_when_the_waiter_it_stood_back_for_is_served_by_a_release(
    world: World,
) -> None:
    limit = Limit(2)
    down = Backoff(first=50.0, longest=50.0, jitter=0.0)
    a = world.full(1, name="a", limits=(limit,), max_overflow=1, backoff=down)
    slot = world.checkout(a)
    waiter = world.enqueue(a)
    world.fail_one()
    b = world.bucket(1, 1, name="b", limits=(limit,))
    assert b.connecting == 0  # the place is kept for the waiter

    world.release(slot)

    assert waiter.slot is slot
    assert b.connecting == 1


def test_a_minimum_is_refilled_when_another_bucket_leaves_the_limit(world: World) -> None:
    limit = Limit(2)
    a = world.full(2, name="a", limits=(limit,))
    slots = [world.checkout(a), world.checkout(a)]
    world.scheduler.resize(a, 2, 0, world.now)
    b = world.bucket(1, 1, name="b", limits=(limit,))
    assert b.connecting == 0

    world.discard(slots[0])
    world.close_all()

    assert b.connecting == 1


def test_a_caller_that_comes_finds_nothing_idle_while_others_wait(world: World) -> None:
    bucket = world.full(1)
    world.checkout(bucket)
    world.enqueue(bucket)

    assert world.scheduler.try_checkout(bucket, world.now) is None


def test_each_hand_over_to_a_crowd_counts_as_a_use(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    for _ in range(3):
        world.enqueue(bucket)

    uses = [slot.uses]
    for _ in range(3):
        world.release(slot)
        uses.append(slot.uses)

    assert uses == [1, 2, 3, 4]


def test_a_waiter_served_something_unfit_goes_back_to_where_it_stood(world: World) -> None:
    bucket = world.full(3)
    held = [world.checkout(bucket) for _ in range(3)]
    waiters = [world.enqueue(bucket) for _ in range(6)]
    world.release(*held)
    assert [w.slot for w in waiters[:3]] == held

    again = [world.enqueue(bucket, ticket=waiters[n].ticket) for n in (1, 0, 2)]

    assert list(bucket.waiters) == [again[1], again[0], again[2], *waiters[3:]]


def test_a_release_passes_over_its_own_bucket_for_an_older_waiter_held_up_by_a_shared_limit(
    world: World,
) -> None:
    limit = Limit(1)
    a = world.full(1, name="a", limits=(limit,))
    world.scheduler.resize(a, 1, 0, world.now)
    slot = world.checkout(a)
    b = world.bucket(1, name="b", limits=(limit,))
    older, younger = world.enqueue(b), world.enqueue(a)

    world.release(slot)

    assert world.notes.reasons == [Reason.EVICTED]
    world.close_all()
    world.open_all()
    assert older.slot is not None
    assert younger.pending


def test_a_drain_held_up_by_a_shared_limit_goes_on_when_others_have_filled_it(
    world: World,
) -> None:
    limit = Limit(3)
    a = world.full(2, name="a", limits=(limit,), max_overflow=1)
    b = world.bucket(1, name="b", limits=(limit,))
    waiter = world.enqueue(b)  # its dial takes the room that a replacement would have had
    world.scheduler.drain(a, 0.0, world.now)
    assert world.notes.reasons == [Reason.DRAINED]  # so one goes first
    world.close_all()
    assert waiter.pending

    while world.notes.dials or world.notes.closes:
        world.open_all()
        world.close_all()

    assert world.notes.reasons == [Reason.DRAINED] * 2
    assert not a.retiring


def test_a_waiter_that_needs_places_in_two_limits_is_not_overtaken_while_one_comes_free(
    world: World,
) -> None:
    one, two = Limit(1, "one"), Limit(1, "two")
    a = world.full(1, name="a", limits=(one,))
    b = world.full(1, name="b", limits=(two,))
    for bucket in (a, b):
        world.scheduler.resize(bucket, 1, 0, world.now)
    both = world.bucket(1, name="both", limits=(one, two))
    older = world.enqueue(both)
    assert len(world.notes.closes) == 2
    younger = [world.enqueue(a), world.enqueue(b)]

    world.scheduler.closed(world.notes.closes.pop(), world.now)
    assert not world.notes.dials  # the place in one limit is kept until the other's is free
    world.close_all()
    world.open_all()

    assert older.slot is not None
    assert all(waiter.pending for waiter in younger)


# Waiters who leave


def test_who_comes_while_a_connection_closes_has_its_place_before_a_later_one_of_another_bucket(
    world: World,
) -> None:
    total = Limit(1)
    bucket = world.bucket(1, name="one", limits=(total,))
    other = world.bucket(1, name="other", limits=(total,))
    world.enqueue(bucket)
    world.discard(world.open_one())

    first = world.enqueue(bucket)
    second = world.enqueue(other)
    world.close_all()
    world.open_all()

    assert first.slot is not None
    assert second.pending


def test_the_second_in_line_has_the_second_place_that_comes_free_before_one_of_another_bucket(
    world: World,
) -> None:
    total = Limit(2)
    bucket = world.full(2, name="one", limits=(total,))
    other = world.bucket(1, name="other", limits=(total,))
    slots = [world.checkout(bucket) for _ in range(2)]
    first = world.enqueue(bucket)
    for slot in slots:
        world.discard(slot)
    bucket.dials.width = 2  # as after a first success

    second = world.enqueue(bucket)
    third = world.enqueue(other)

    assert (bucket.coming, other.coming) == (2, 0)
    world.close_all()
    world.open_all()
    assert first.slot is not None
    assert second.slot is not None
    assert third.pending


def test_a_limit_knows_the_youngest_for_which_a_place_is_claimed_behind_those_being_dialed(
    world: World,
) -> None:
    total = Limit(3)
    world.full(2, name="idle", limits=(total,))
    bucket = world.bucket(3, limits=(total,))
    bucket.dials.width = 4  # as in the middle of a burst

    waiters = [world.enqueue(bucket) for _ in range(3)]

    assert (bucket.connecting, bucket.coming) == (1, 2)
    assert total.youngest_claim() == (waiters[2].ticket, bucket)


def test_a_waiter_that_gives_up_before_it_is_served_leaves_the_line(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    early, late = world.enqueue(bucket), world.enqueue(bucket)

    world.scheduler.cancel(early, world.now)
    world.release(slot)

    assert late.slot is slot
    assert early.slot is None


def test_a_waiter_that_gives_up_after_it_was_served_passes_it_on(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    early, late = world.enqueue(bucket), world.enqueue(bucket)
    world.release(slot)
    uses = slot.uses

    world.scheduler.cancel(early, world.now)

    assert early.slot is None
    assert late.slot is slot
    assert slot.uses == uses  # the waiter never used it


def test_a_waiter_that_gives_up_leaves_its_place_to_a_minimum_and_opens_the_fast_path(
    world: World,
) -> None:
    limit = Limit(1)
    down = Backoff(first=50.0, longest=50.0, jitter=0.0)
    a = world.bucket(1, name="a", limits=(limit,), backoff=down)
    waiter = world.enqueue(a)
    b = world.bucket(1, 1, name="b", limits=(limit,))
    world.fail_one()
    assert not world.notes.dials  # the place is kept for the waiter

    world.scheduler.cancel(waiter, world.now)

    assert b.connecting == 1
    assert a.fast_path_open == HERE


def test_leaving_twice_gives_back_once(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.release(slot)

    world.scheduler.cancel(waiter, world.now)
    world.scheduler.cancel(waiter, world.now)

    assert bucket.idle == 1
    assert bucket.open == 1


def test_deadlines_end_waits_each_at_its_own_time_whatever_their_order(world: World) -> None:
    bucket = world.full(1)
    world.checkout(bucket)
    waiters = [world.enqueue(bucket, timeout) for timeout in (3.0, None, 1.0, 2.0)]

    ended = []
    while (deadline := world.scheduler.next_deadline()) is not None:
        world.scheduler.expire(deadline)
        ended.append((deadline - world.now, world.notes.woken[-1]))

    assert ended == [(1.0, waiters[2]), (2.0, waiters[3]), (3.0, waiters[0])]
    assert [w.expired for w in waiters] == [True, False, True, True]
    assert list(bucket.waiters) == [waiters[1]]


@pytest.mark.parametrize("simple", [True, False])
@pytest.mark.parametrize("how", ["release", "dial", "check"])
def test_a_slot_goes_past_those_that_have_no_use_for_it_any_more(
    world: World, how: str, simple: bool
) -> None:
    bucket = world.bucket(1, max_uses=None if simple else 100)
    late = world.enqueue(bucket, 5.0, useless_after=world.now + 2)
    late_too = world.enqueue(bucket, useless_after=world.now + 3)
    in_time = world.enqueue(bucket, useless_after=world.now + 9)
    last = world.enqueue(bucket)
    if how != "dial":
        world.scheduler.cancel(late, world.now)
        first = world.enqueue(bucket, ticket=late.ticket)
        slot = world.open_one()
        assert first.slot is slot
        late = world.enqueue(bucket, ticket=late.ticket, useless_after=world.now + 2)
    world.now += 3  # and no timer has noticed

    if how == "dial":
        world.open_one()
    elif how == "release":
        world.release(slot)
    else:
        world.scheduler.return_unused(slot, world.now)

    assert late.expired
    assert late_too.expired
    assert in_time.slot is not None
    assert last.pending
    assert len(bucket.waiters) == 1


def test_if_none_has_a_use_for_it_any_more_the_slot_lies_idle(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    late = [world.enqueue(bucket, useless_after=world.now + 2) for _ in range(3)]
    world.now += 2
    world.release(slot)

    assert all(waiter.expired for waiter in late)
    assert bucket.idle == 1
    assert bucket.fast_path_open == HERE
    assert not world.scheduler.with_waiters


def test_claims_of_those_that_have_no_use_for_a_place_any_more_are_the_next_ones(
    world: World,
) -> None:
    limit = Limit(1)
    a, b = (world.bucket(1, limits=[limit], name=name) for name in "ab")
    world.enqueue(a)
    slot = world.open_one()
    late = world.enqueue(b, useless_after=world.now + 2)
    next_one = world.enqueue(a)
    world.discard(slot)  # its place is claimed for the first of them
    world.now += 2
    world.reconcile(b)
    world.close_all()

    assert late.expired
    assert world.open_one().bucket is a
    assert next_one.slot is not None
    assert limit._coming == 0


def test_a_waiter_that_is_back_in_line_still_has_its_deadline(world: World) -> None:
    bucket = world.full(1)
    world.checkout(bucket)
    ticket = next(world.scheduler.tickets)
    world.enqueue(bucket)

    back = world.enqueue(bucket, 5.0, ticket=ticket)

    assert world.scheduler.next_deadline() == world.now + 5
    world.scheduler.expire(world.now + 5)
    assert back.expired


def test_a_wait_that_expires_opens_the_fast_path_again(world: World) -> None:
    bucket = world.full(1)
    world.checkout(bucket)
    world.enqueue(bucket, 1.0)
    assert bucket.fast_path_open == 0

    world.scheduler.expire(world.now + 1.0)

    assert bucket.fast_path_open == HERE


def test_deadlines_of_those_who_were_served_do_not_pile_up(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    first = [world.enqueue(bucket, 1e6) for _ in range(5)]

    for _ in range(2000):
        waiter = world.enqueue(bucket, 1e3)  # is due before those ahead of it
        world.scheduler.cancel(waiter, world.now)

    assert len(bucket.waiters._early) < 100
    assert list(world.scheduler.with_waiters) == [bucket]
    for _ in first:
        world.release(slot)
    assert not world.scheduler.with_waiters
    assert world.scheduler.next_deadline() is None


# The dial window and the back-off


def test_a_burst_starts_with_one_dial_and_each_success_doubles_it(world: World) -> None:
    bucket = world.bucket(40, 40, max_connecting=16)

    under_way = [bucket.connecting]
    while world.notes.dials:
        world.open_one()
        under_way.append(bucket.connecting)

    assert under_way[:4] == [1, 2, 4, 8]
    assert max(under_way) == 16
    assert bucket.open == 40


def test_a_failure_sets_the_window_back_to_one_and_starts_the_pause(world: World) -> None:
    bucket = world.bucket(40, 40)
    for _ in range(3):
        world.open_one()
    assert bucket.dials.width == 8

    world.fail_one()

    assert bucket.dials.width == 1
    assert bucket.retry_at == pytest.approx(world.now + 1.0)
    assert world.notes.retries == [bucket.retry_at]
    assert bucket.last_error is REFUSED
    assert bucket.failing
    world.reconcile(bucket)
    assert len(world.notes.dials) == 7  # those under way, no new one


def test_dials_that_fail_together_are_one_setback(world: World) -> None:
    bucket = world.bucket(40, 40)
    for _ in range(3):
        world.open_one()
    world.now += 0.1

    while world.notes.dials:
        world.fail_one()
        world.now += 0.1

    assert bucket.failures == 1
    assert len(world.notes.retries) == 1
    assert bucket.dial_failed == 8


def test_while_down_there_is_one_dial_for_each_pause_and_the_pauses_grow(world: World) -> None:
    bucket = world.bucket(9, 9)
    for _ in range(9):
        world.enqueue(bucket)
    pauses = []

    for _ in range(5):
        assert len(world.notes.dials) == 1
        world.fail_one()
        pauses.append(bucket.retry_at - world.now)
        world.now = bucket.retry_at - 0.001
        world.reconcile(bucket)
        assert not world.notes.dials
        world.now = bucket.retry_at
        world.reconcile(bucket)

    assert pauses == pytest.approx([1.0, 2.0, 4.0, 8.0, 8.0])


def test_a_server_that_comes_back_sees_one_dial_then_two_then_four(world: World) -> None:
    bucket = world.bucket(20, 20)
    world.fail_one()
    world.now = bucket.retry_at
    world.reconcile(bucket)

    under_way = [bucket.connecting]
    for _ in range(2):
        world.open_one()
        under_way.append(bucket.connecting)

    assert under_way == [1, 2, 4]
    assert not bucket.failing


def test_when_no_dial_is_wanted_the_burst_is_over(world: World) -> None:
    bucket = world.full(8)
    assert bucket.dials.width == 1

    world.scheduler.dispose(bucket, Reason.DISPOSED, world.now)
    world.close_all()

    assert bucket.connecting == 1


def test_a_dial_that_no_caller_wants_any_more_is_not_begun(world: World) -> None:
    bucket = world.bucket(2)
    waiter = world.enqueue(bucket)
    (slot,) = world.notes.dials
    assert world.scheduler.wanted(slot)

    world.scheduler.cancel(waiter, world.now)

    assert not world.scheduler.wanted(slot)
    world.scheduler.cancel_dial(slot, world.now)
    assert slot.state is CLOSED
    assert bucket.own.used == 0


def test_a_dial_for_a_waiter_is_still_wanted_for_the_minimum(world: World) -> None:
    bucket = world.bucket(2, 1)
    waiter = world.enqueue(bucket)
    (slot,) = world.notes.dials

    world.scheduler.cancel(waiter, world.now)

    assert world.scheduler.wanted(slot)


def test_a_spike_of_short_requests_opens_few_connections(world: World) -> None:
    bucket = world.full(5, max_overflow=45)
    held = [world.checkout(bucket) for _ in range(5)]
    waiters = [world.enqueue(bucket) for _ in range(45)]

    for waiter in waiters:  # a release each, all before the first dial is done
        world.release(held.pop(0))
        assert waiter.slot is not None
        held.append(waiter.slot)

    assert len(world.notes.dials) == 1
    assert not world.scheduler.wanted(world.notes.dials[0])


def test_fail_fast_gives_the_error_to_the_oldest_waiter_alone(world: World) -> None:
    bucket = world.bucket(4, fail_fast=True)
    first, second = world.enqueue(bucket), world.enqueue(bucket)

    world.fail_one()

    assert first.error is REFUSED
    assert world.notes.woken == [first]
    assert second.pending


def test_without_fail_fast_waiters_wait_on(world: World) -> None:
    bucket = world.bucket(4)
    waiter = world.enqueue(bucket)

    world.fail_one()

    assert waiter.pending


def test_connections_that_die_before_anybody_used_them_slow_the_dials_down(world: World) -> None:
    bucket = world.bucket(1, 1)

    for failures in (1, 2, 3):
        slot = world.open_one()
        world.now += 0.01
        world.scheduler.peer_closed(slot, world.now)
        world.close_all()
        assert bucket.failures == failures
        assert not world.notes.dials
        world.now = bucket.retry_at
        world.reconcile(bucket)

    assert world.notes.reasons == [Reason.PEER_CLOSED] * 3


def test_a_place_that_was_claimed_before_the_pause_begins_is_not_dialed_in_it(world: World) -> None:
    bucket = world.full(2)
    one, other = world.checkout(bucket), world.checkout(bucket)
    world.enqueue(bucket)
    world.discard(one)
    assert bucket.coming == 1

    world.discard(other, Reason.DEAD)
    world.close_all()

    assert bucket.failing
    assert not world.notes.dials


def test_a_success_that_was_dialed_before_the_last_failure_ends_no_pause() -> None:
    window = DialWindow(16, Backoff(first=1.0, longest=8.0, jitter=0.0))
    window.failed(9.0, 10.0)

    window.opened(8.0, 10.5)

    assert window.failing
    assert window.width == 1


def test_a_new_outage_long_after_the_last_begins_with_the_shortest_pause(world: World) -> None:
    bucket = world.bucket(2, 2)
    for _ in range(3):
        world.fail_one()
        world.now = bucket.retry_at
        world.reconcile(bucket)
    world.open_all()
    world.now += 1000
    world.discard(world.checkout(bucket))
    world.close_all()

    world.fail_one()

    assert bucket.retry_at - world.now == pytest.approx(1.0)


def test_after_failures_a_connection_is_not_for_the_fast_path_until_it_proved_good(
    world: World,
) -> None:
    bucket = world.bucket(1, 1)
    world.fail_one()
    world.now = bucket.retry_at
    world.reconcile(bucket)
    slot = world.open_one()
    assert slot.fast_path_until == AT_ONCE

    world.scheduler.verified(slot)

    assert slot.fast_path_until == math.inf
    assert bucket.failures == 0


def test_a_closed_bucket_books_no_setback_for_its_last_dials(world: World) -> None:
    bucket = world.bucket(1, 1)
    world.scheduler.shut(bucket, REFUSED, world.now)

    world.fail_one()

    assert not world.notes.retries
    assert not bucket.slots


# Alive, worn out, due to go


def test_an_idle_slot_whose_peer_hung_up_is_replaced_at_once(world: World) -> None:
    bucket = world.full(2)
    world.now += 100
    slot = next(bucket.idle_slots())

    world.scheduler.peer_closed(slot, world.now)

    assert slot.state is CLOSING
    world.close_all()
    assert bucket.connecting == 1


def test_a_held_slot_whose_peer_hung_up_goes_on_return_though_callers_wait(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)

    world.scheduler.peer_closed(slot, world.now)
    assert slot.state is IN_USE
    world.release(slot)

    assert slot.state is CLOSING
    assert waiter.pending


def test_a_slot_whose_peer_hung_up_while_it_was_checked_is_not_kept(world: World) -> None:
    bucket = world.full(1)
    world.now += 10
    world.scheduler.start_checks(bucket, 10.0, world.now)
    (slot,) = world.notes.checks

    world.scheduler.peer_closed(slot, world.now)
    world.scheduler.checked(slot, True, world.now)

    assert world.notes.reasons == [Reason.PEER_CLOSED]


def test_a_slot_whose_peer_hung_up_before_the_dial_was_done_is_handed_to_no_caller(
    world: World,
) -> None:
    bucket = world.bucket(1)
    waiter = world.enqueue(bucket)

    world.scheduler.peer_closed(world.notes.dials[0], world.now)
    slot = world.open_one()

    assert slot.state is CLOSING
    assert waiter.pending


def test_a_worn_out_slot_is_closed_on_return_and_replaced(world: World) -> None:
    bucket = world.full(1, max_uses=2)

    world.release(world.checkout(bucket))
    assert bucket.idle == 1
    world.release(world.checkout(bucket))

    assert world.notes.reasons == [Reason.WORN_OUT]
    world.close_all()
    assert bucket.connecting == 1


def test_an_expired_slot_is_not_handed_out_and_not_kept_on_return(world: World) -> None:
    bucket = world.full(2, max_lifetime=10.0)
    held = world.checkout(bucket)
    world.now += 10

    assert world.scheduler.try_checkout(bucket, world.now) is None
    world.release(held)

    assert world.notes.reasons == [Reason.EXPIRED] * 2


def test_where_there_is_room_the_reaper_closes_what_has_expired_after_its_replacement_is_open(
    world: World,
) -> None:
    bucket = world.full(1, max_overflow=2, max_lifetime=10.0)
    world.now += 10

    world.scheduler.reap(bucket, world.now)
    assert len(world.notes.dials) == 1
    assert not world.notes.closes
    world.open_all()

    assert world.notes.reasons == [Reason.EXPIRED]


def test_what_is_found_expired_at_hand_out_is_replaced_while_it_closes(world: World) -> None:
    bucket = world.full(2, max_lifetime=10.0, max_overflow=2)
    world.now += 9
    world.discard(world.checkout(bucket))
    world.close_all()
    world.open_all()
    world.now += 2  # the first of the two has expired, the second has not

    slot = world.checkout(bucket)

    assert slot.expires_at > world.now
    assert world.notes.reasons[-1] is Reason.EXPIRED
    assert bucket.connecting == 1


def test_lifetimes_are_jittered_so_that_they_do_not_end_together(world: World) -> None:
    bucket = world.full(20, max_lifetime=100.0, jitter=0.5)

    ends = {slot.retire_at - world.now for slot in bucket.slots}

    assert len(ends) == 20
    assert all(50 <= end <= 100 for end in ends)
    assert {slot.expires_at - world.now for slot in bucket.slots} == {100.0}


def test_the_reaper_comes_when_a_slot_expires_that_was_to_be_replaced_before(world: World) -> None:
    bucket = world.full(1, max_lifetime=10.0, jitter=0.5, rng=random.Random(1))
    slot = world.checkout(bucket)
    assert world.now < slot.retire_at < slot.expires_at

    assert world.scheduler.reap(bucket, world.now) == slot.retire_at
    world.now = slot.retire_at
    assert world.scheduler.reap(bucket, world.now) == slot.expires_at
    world.now = slot.expires_at
    assert world.scheduler.reap(bucket, world.now) == NEVER


def test_idle_timeout_closes_the_longest_idle_down_to_the_minimum(world: World) -> None:
    bucket = world.bucket(4, 1, idle_timeout=5.0)
    for _ in range(4):
        world.enqueue(bucket)
    world.open_all()
    slots = [w.slot for w in world.notes.woken]
    for slot in slots:
        assert slot is not None
        world.release(slot)
        world.now += 1

    world.now += 2.5  # idle for 6.5, 5.5, 4.5, 3.5 seconds
    again = world.scheduler.reap(bucket, world.now)

    assert world.notes.closes == slots[:2]
    assert again - world.now == pytest.approx(0.5)
    world.now += 100
    world.scheduler.reap(bucket, world.now)
    assert bucket.open == 1


def test_a_slot_idle_for_too_long_is_not_handed_out_though_the_reaper_is_late(
    world: World,
) -> None:
    bucket = world.bucket(1, idle_timeout=5.0)
    world.enqueue(bucket)
    slot = world.open_one()
    world.release(slot)
    world.now += 5

    assert world.scheduler.try_checkout(bucket, world.now) is None
    assert world.notes.reasons == [Reason.IDLE]


def test_drained_where_there_is_room_a_replacement_is_open_before_the_old_one_closes(
    world: World,
) -> None:
    bucket = world.full(3, max_overflow=1)
    old = set(bucket.slots)

    world.scheduler.drain(bucket, 0.0, world.now)
    least = bucket.open
    while world.notes.dials or world.notes.closes:
        if world.notes.dials:
            world.open_one()
        least = min(least, bucket.open)
        world.close_all()

    assert least == 3
    assert not old & set(bucket.slots)
    assert bucket.open == 3
    assert world.notes.reasons == [Reason.DRAINED] * 3


def test_drained_at_its_limit_one_is_replaced_at_a_time(world: World) -> None:
    bucket = world.full(3)
    old = set(bucket.slots)

    world.scheduler.drain(bucket, 0.0, world.now)
    least = bucket.open
    while world.notes.dials or world.notes.closes:
        least = min(least, bucket.open)
        world.close_all()
        world.open_all()

    assert least == 2
    assert not old & set(bucket.slots)


def test_drained_while_the_server_is_away_no_more_than_one_is_given_up(world: World) -> None:
    bucket = world.full(3)

    world.scheduler.drain(bucket, 0.0, world.now)
    for _ in range(5):
        world.close_all()
        world.fail_one()
        world.now = bucket.retry_at
        world.reconcile(bucket)

    assert bucket.open == 2
    world.open_all()
    while world.notes.closes:
        world.close_all()
        world.open_all()
    assert world.notes.reasons == [Reason.DRAINED] * 3
    assert bucket.open == 3


def test_a_drain_goes_on_after_an_outage_though_no_caller_uses_the_pool(world: World) -> None:
    bucket = world.bucket(2, 2)
    world.fail_one()
    world.now = bucket.retry_at
    world.reconcile(bucket)
    world.open_all()

    world.scheduler.drain(bucket, 0.0, world.now)
    while world.notes.closes:
        world.close_all()
        world.open_all()

    assert world.notes.reasons == [Reason.DRAINED] * 2


def test_a_drain_that_is_spread_takes_each_slot_at_its_own_moment(world: World) -> None:
    bucket = world.full(100)

    world.scheduler.drain(bucket, 10.0, world.now)

    moments = sorted(slot.retire_at - world.now for slot in bucket.slots)
    assert 0 <= moments[0] < 3  # none of a hundred is: one time in 3e15
    assert 7 < moments[-1] <= 10
    assert not world.notes.closes


def test_held_slots_are_drained_on_return(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)

    world.scheduler.drain(bucket, 0.0, world.now)
    assert slot.state is IN_USE
    world.release(slot)

    assert world.notes.reasons == [Reason.DRAINED]


def test_checks_leave_callers_every_other_idle_slot(world: World) -> None:
    bucket = world.full(5)
    world.now += 10

    world.scheduler.start_checks(bucket, 10.0, world.now)

    assert bucket.checking == 2
    assert bucket.idle == 3


def test_what_was_idle_for_less_than_the_keepalive_is_not_checked_before_it_is_due(
    world: World,
) -> None:
    bucket = world.full(2)
    world.now += 3

    assert world.scheduler.start_checks(bucket, 5.0, world.now) == world.now + 2
    assert not world.notes.checks
    world.checkout(bucket)
    world.checkout(bucket)
    assert world.scheduler.start_checks(bucket, 5.0, world.now) == world.now + 5


def test_a_checked_slot_returns_to_its_place_among_the_idle(world: World) -> None:
    bucket = world.bucket(5, 5)
    while world.notes.dials:
        world.open_one()
        world.now += 1
    before = list(bucket.idle_slots())
    world.now += 10
    world.scheduler.start_checks(bucket, 10.0, world.now)
    assert len(world.notes.checks) == 2

    for slot in reversed(world.notes.checks):
        world.scheduler.checked(slot, True, world.now)

    assert list(bucket.idle_slots()) == before


def test_a_failed_check_closes_and_replaces(world: World) -> None:
    bucket = world.full(1)
    world.now += 10
    world.scheduler.start_checks(bucket, 10.0, world.now)

    world.scheduler.checked(world.notes.checks.pop(), False, world.now)
    world.close_all()

    assert world.notes.reasons == [Reason.KEEPALIVE]
    assert bucket.connecting == 1


def test_what_is_checked_while_the_pool_is_disposed_is_closed_after_the_check(
    world: World,
) -> None:
    bucket = world.full(2)
    world.now += 10
    world.scheduler.start_checks(bucket, 10.0, world.now)

    world.scheduler.dispose(bucket, Reason.DISPOSED, world.now)
    world.scheduler.checked(world.notes.checks.pop(), True, world.now)

    assert world.notes.reasons == [Reason.DISPOSED] * 2


def test_a_slot_that_closes_while_idle_is_never_taken_by_the_fast_path(world: World) -> None:
    bucket = world.full(3, lifo=True)
    middle = list(bucket.idle_slots())[1]

    world.scheduler.peer_closed(middle, world.now)

    assert middle in bucket._idle  # as a tombstone
    assert middle.fast_path_until == AT_ONCE


def test_an_overflow_slot_is_closed_on_return_when_no_caller_waits(world: World) -> None:
    bucket = world.full(1, max_overflow=1)
    held = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    extra = world.open_one()
    assert waiter.slot is extra

    world.release(extra)

    assert world.notes.reasons == [Reason.SURPLUS]
    world.release(held)
    assert bucket.idle == 1


# Limits that change


def test_an_overflow_slot_goes_to_its_own_waiter_where_another_bucket_waits_as_well(
    world: World,
) -> None:
    total = Limit(2)
    bucket = world.bucket(1, max_overflow=1, limits=(total,))
    other = world.bucket(1, name="other", limits=(total,))
    for _ in range(2):
        world.enqueue(bucket)
    slots = [world.open_one() for _ in range(2)]
    first = world.enqueue(bucket)
    world.enqueue(other)
    assert bucket.open > bucket.size
    assert bucket.crowded

    world.release(slots[0])

    assert first.slot is slots[0]


def test_a_shared_limit_lowered_closes_idle_ones_now_and_others_on_return(world: World) -> None:
    limit = Limit(4)
    a = world.full(2, name="a", limits=(limit,))
    b = world.full(2, name="b", limits=(limit,))
    held = [world.checkout(a), world.checkout(a)]
    waiter = world.enqueue(a)

    limit.maximum = 1
    assert world.notes.limits == [limit]
    world.scheduler.reconcile_limit(limit, world.now)

    assert len(world.notes.closes) == 2
    assert b.idle == 0
    assert a.fast_path_open == b.fast_path_open == 0
    world.close_all()
    world.release(held[0])
    assert world.notes.reasons[-1] is Reason.SURPLUS
    assert waiter.pending
    world.close_all()
    world.release(held[1])
    assert waiter.slot is held[1]
    assert limit.used == 1


def test_who_came_while_a_lowered_limit_was_overfull_gets_what_lies_idle_in_it(
    world: World,
) -> None:
    limit = Limit(3)
    a = world.full(3, name="a", limits=(limit,))
    world.scheduler.resize(a, 3, 0, world.now)
    b = world.bucket(1, name="b", limits=(limit,))
    limit.maximum = 2
    waiter = world.enqueue(b)
    assert not world.notes.closes  # the limit does not know yet

    world.scheduler.reconcile_limit(limit, world.now)

    assert world.notes.reasons == [Reason.EVICTED] * 2  # one for the maximum, one for the waiter
    world.close_all()
    world.open_all()
    assert waiter.slot is not None


def test_a_shared_limit_raised_serves_who_waits_for_it(world: World) -> None:
    limit = Limit(1)
    a = world.full(1, name="a", limits=(limit,))
    b = world.bucket(1, name="b", limits=(limit,))
    world.checkout(a)
    world.enqueue(b)

    limit.maximum = 2
    world.scheduler.reconcile_limit(limit, world.now)

    assert b.connecting == 1


def test_resized_below_what_is_open_the_rest_goes_even_under_load(world: World) -> None:
    bucket = world.full(4)
    held = [world.checkout(bucket) for _ in range(4)]
    waiters = [world.enqueue(bucket) for _ in range(3)]

    world.scheduler.resize(bucket, 2, 2, world.now)
    world.release(*held)

    assert world.notes.reasons == [Reason.SURPLUS] * 2
    assert [w.slot for w in waiters] == [held[2], held[3], None]


def test_resized_below_what_lies_idle_the_longest_idle_are_closed(world: World) -> None:
    bucket = world.full(4, max_overflow=9)
    slots = list(bucket.idle_slots())

    world.scheduler.resize(bucket, 1, 0, world.now)

    assert world.notes.closes == slots[:3]
    assert world.notes.reasons == [Reason.SURPLUS] * 3


@pytest.mark.parametrize("room", ["the maximum", "two closes"])
def test_as_many_are_dialed_as_there_are_places_and_the_window_allows(
    world: World, room: str
) -> None:
    limit = Limit(5)
    other = world.bucket(2, limits=[limit])
    world.enqueue(other), world.enqueue(other)
    world.open_all()
    bucket = world.bucket(9, limits=[limit])
    for _ in range(9):
        world.enqueue(bucket)
    world.open_one()
    world.open_one()
    assert (bucket.open, bucket.connecting, bucket.dials.width) == (2, 1, 4)
    assert limit.full

    if room == "the maximum":
        limit.maximum = 9
        world.scheduler.reconcile_limit(limit, world.now)
    else:
        for waiter in list(world.notes.woken)[:2]:
            world.scheduler.detach(waiter.slot, Reason.DETACHED, world.now)

    assert bucket.connecting == (4 if room == "the maximum" else 3)


def test_minimums_that_cannot_fit_a_shared_limit_are_refused(world: World) -> None:
    limit = Limit(3)
    world.full(2, name="a", limits=(limit,))

    with pytest.raises(ValueError, match="cannot hold the 4 connections"):
        world.bucket(2, 2, name="b", limits=(limit,))

    assert len(limit._buckets) == 1


@pytest.mark.parametrize("maximum", [True, 1.5, "3", None])
def test_a_limit_that_is_no_whole_number_is_refused(maximum: Any) -> None:
    with pytest.raises(TypeError, match="maximum must be a whole number"):
        Limit(maximum)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative: -1"):
        Limit(-1)


def test_a_limit_cannot_be_shared_between_hubs(world: World) -> None:
    limit = Limit(3)
    world.bucket(1, limits=(limit,))

    with pytest.raises(ValueError, match="another hub"):
        World().bucket(1, limits=(limit,))


# The fast path


def test_the_fast_path_is_open_when_no_caller_waits(world: World) -> None:
    bucket = world.full(2)

    assert bucket.fast_path_open == HERE


def test_the_fast_path_is_shut_while_a_caller_of_the_bucket_waits(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)

    waiter = world.enqueue(bucket)
    assert bucket.fast_path_open == 0
    world.release(slot)

    assert bucket.fast_path_open == HERE
    assert waiter.slot is not None


def test_the_fast_path_is_shut_for_all_that_share_a_limit_that_blocks_a_waiter(
    world: World,
) -> None:
    limit = Limit(2)
    a = world.full(1, name="a", limits=(limit,))
    c = world.full(1, name="c", limits=(limit,))
    apart = world.full(1, name="apart")
    b = world.bucket(1, name="b", limits=(limit,))
    held = world.checkout(a), world.checkout(c)

    waiter = world.enqueue(b)
    assert (a.fast_path_open, c.fast_path_open, apart.fast_path_open) == (0, 0, HERE)
    world.scheduler.cancel(waiter, world.now)

    assert (a.fast_path_open, c.fast_path_open) == (HERE, HERE)
    world.release(*held)


def test_waiters_whose_own_limit_is_full_leave_their_neighbours_the_fast_path(
    world: World,
) -> None:
    limit = Limit(2)
    a = world.full(1, name="a", limits=(limit,))
    b = world.full(1, name="b", limits=(limit,))
    world.checkout(a)

    world.enqueue(a)

    assert b.fast_path_open == HERE


def test_a_pool_that_is_down_leaves_its_neighbours_the_fast_path(world: World) -> None:
    limit = Limit(2)
    a = world.full(2, name="a", limits=(limit,))
    world.scheduler.resize(a, 2, 1, world.now)
    b = world.bucket(1, name="b", limits=(limit,))
    world.enqueue(b)
    world.close_all()
    world.fail_one()

    world.release(world.checkout(a))

    assert b.waiters
    assert a.fast_path_open == HERE


def test_the_fast_path_is_shut_while_there_is_surplus(world: World) -> None:
    bucket = world.full(2)
    world.checkout(bucket)
    world.checkout(bucket)

    world.scheduler.resize(bucket, 1, 1, world.now)

    assert bucket.fast_path_open == 0


def test_a_closed_bucket_leaves_no_trace_in_its_limits(world: World) -> None:
    limit = Limit(3)
    bucket = world.full(2, limits=(limit,))
    held = world.checkout(bucket)
    error = RuntimeError()
    world.checkout(bucket)
    waiter = world.enqueue(bucket)

    world.scheduler.shut(bucket, error, world.now)
    assert waiter.error is error
    world.release(*[s for s in bucket.slots if s.state is IN_USE])
    world.close_all()

    assert held.state is CLOSED
    assert limit.used == 0
    assert not limit._buckets
    assert not limit._queue
    assert limit._demand == 0
    assert bucket.fast_path_open == 0


@pytest.mark.parametrize("lifo", [False, True])
def test_a_slot_that_the_fast_path_does_not_want_goes_back_to_where_it_came_from(
    world: World, lifo: bool
) -> None:
    bucket = world.full(3, lifo=lifo)
    before = list(bucket.idle_slots())

    world.scheduler.put_back(bucket.pop_idle())

    assert list(bucket.idle_slots()) == before


def test_a_slot_that_the_fast_path_took_is_idle_since_it_came_back_unused(world: World) -> None:
    bucket = world.full(1)
    world.now += 5
    slot = bucket.pop_idle()
    slot.state = IN_USE
    slot.handed_out(world.now)
    world.now += 1

    world.scheduler.return_unused(slot, world.now)

    assert (slot.state, slot.since, slot.uses) == (IDLE, world.now, 0)


def test_what_was_handed_over_on_return_and_comes_back_unused_is_idle_since_then(
    world: World,
) -> None:
    bucket = world.full(1, max_uses=9)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.release(slot)
    assert waiter.slot is slot

    world.scheduler.cancel(waiter, world.now)

    assert (slot.state, slot.since) == (IDLE, world.now)


def test_the_reaper_leaves_the_idle_of_a_fixed_pool_until_they_are_idle_too_long(
    world: World,
) -> None:
    bucket = world.full(2, idle_timeout=5.0)
    world.now += 3

    assert world.scheduler.reap(bucket, world.now) == world.now + 2
    assert not bucket.retiring
    assert not world.notes.reasons
    world.now += 2
    world.scheduler.reap(bucket, world.now)
    assert world.notes.reasons == [Reason.IDLE]


def test_the_reaper_replaces_none_of_those_that_min_idle_spares(world: World) -> None:
    bucket = world.full(3, idle_timeout=5.0, min_idle=2)
    bucket.backoff = Backoff(first=100.0, longest=100.0, jitter=0.0)
    world.discard(world.checkout(bucket))
    world.close_all()
    world.fail_one()
    assert bucket.open == 2  # and no third is to be had
    world.now += 5

    world.scheduler.reap(bucket, world.now)

    assert not bucket.retiring
    assert bucket.idle == 2


def test_each_reason_is_counted_from_one(world: World) -> None:
    bucket = world.full(3)

    world.discard(world.checkout(bucket))
    assert bucket.reasons == {Reason.DISCARDED: 1}
    world.discard(world.checkout(bucket))
    assert bucket.reasons == {Reason.DISCARDED: 2}


def test_a_new_overflow_counts_in_the_maximum(world: World) -> None:
    bucket = world.bucket(1)

    world.scheduler.resize(bucket, 4, 0, world.now, 3)

    assert bucket.own.maximum == 7


def test_unserved_are_those_for_which_no_dial_is_under_way(world: World) -> None:
    bucket = world.bucket(5)
    for _ in range(3):
        world.enqueue(bucket)

    assert (bucket.connecting, bucket.unserved) == (1, 2)


def test_resized_below_what_is_open_no_place_that_comes_free_is_claimed(world: World) -> None:
    bucket = world.full(3)
    slots = [world.checkout(bucket) for _ in range(3)]
    world.enqueue(bucket)
    world.discard(slots[0])
    assert bucket.coming == 1

    world.scheduler.resize(bucket, 1, 0, world.now)

    assert (bucket.coming, bucket.own._coming) == (0, 0)


@pytest.mark.parametrize(("seconds", "failures"), [(8.0, 2), (8.5, 1)])
def test_an_outage_is_a_new_one_when_the_server_was_well_for_longer_than_the_longest_pause(
    seconds: float, failures: int
) -> None:
    window = DialWindow(4, Backoff(first=1.0, longest=8.0, jitter=0.0))
    window.failed(100.0, 100.0)
    window.opened(101.0, 101.0)

    window.failed(101.0 + seconds, 101.0 + seconds)

    assert window.failures == failures


# After a fork


def test_after_a_fork_every_slot_is_let_go_and_nothing_is_closed(world: World) -> None:
    limit = Limit(4)
    bucket = world.bucket(4, 3, limits=(limit,))
    for _ in range(2):
        world.open_one()
    held = world.checkout(bucket)
    waiters = [world.enqueue(bucket) for _ in range(2)]
    assert waiters[0].slot is not None

    world.scheduler.forget_all(bucket)
    assert (limit.used, bucket.own.used, bucket.open, bucket.connecting) == (0, 0, 0, 0)
    world.release(held)  # the parent's: of no interest
    world.notes.dials.clear()
    world.reconcile(bucket)

    assert not world.notes.closes
    assert held.state is CLOSED
    slot = world.open_one()
    assert waiters[1].slot is slot
    assert limit.used == bucket.open + bucket.connecting


# What it costs


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_join_costs_the_same_however_many_wait() -> None:
    def cost(waiting: int) -> int:
        world = World()
        bucket = world.full(5)
        for _ in range(5):
            world.checkout(bucket)
        for _ in range(waiting):
            world.enqueue(bucket, 30.0)
        waiter = Waiter(bucket, next(world.scheduler.tickets), world.now + 30, None)
        return Steps().of(lambda: world.scheduler.enqueue(waiter, world.now))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_join_costs_the_same_however_many_are_due_before_those_ahead_of_them() -> None:
    def cost(waiting: int) -> int:
        world = World()
        bucket = world.full(1)
        world.checkout(bucket)
        for number in range(waiting):
            world.enqueue(bucket, 1e6 - number)
        return Steps().of(lambda: world.enqueue(bucket, 10.0))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_go_back_in_line_costs_the_same_however_many_wait() -> None:
    def cost(waiting: int) -> int:
        world = World()
        bucket = world.full(1)
        slot = world.checkout(bucket)
        waiters = [world.enqueue(bucket) for _ in range(waiting)]
        world.release(slot)
        back = Waiter(bucket, waiters[0].ticket, None, None)
        return Steps().of(lambda: world.scheduler.enqueue(back, world.now, requeued=True))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_join_a_pool_that_is_down_costs_the_same_however_many_wait() -> None:
    def cost(waiting: int) -> int:
        world = World()
        bucket = world.bucket(10_000, limits=(Limit(20_000),))
        for _ in range(waiting):
            world.enqueue(bucket)
        world.fail_one()
        waiter = Waiter(bucket, next(world.scheduler.tickets), None, None)
        return Steps().of(lambda: world.scheduler.enqueue(waiter, world.now))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_release_costs_the_same_however_many_wait_or_lie_idle() -> None:
    def cost(number: int) -> int:
        world = World()
        crowded = world.full(2, name="crowded", limits=(Limit(9000),))
        slot = world.checkout(crowded)
        world.checkout(crowded)
        for _ in range(number):
            world.enqueue(crowded)
        steps = Steps().of(lambda: world.scheduler.release(slot, world.now))
        quiet = world.full(number, name="quiet")
        taken = world.checkout(quiet)
        return steps + Steps().of(lambda: world.scheduler.release(taken, world.now))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_reconcile_costs_the_same_however_many_lie_idle_wait_or_are_due() -> None:
    def cost(number: int) -> int:
        world = World()
        bucket = world.full(number)
        world.scheduler.drain(bucket, 0.0, world.now)
        assert len(bucket.retiring) == number - 1
        steps = Steps().of(lambda: world.scheduler.reconcile(bucket, world.now))
        busy = world.full(1, name="busy")
        world.checkout(busy)
        for _ in range(number):
            world.enqueue(busy)
        return steps + Steps().of(lambda: world.scheduler.reconcile(busy, world.now))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_reconcile_costs_the_same_however_many_other_pools_there_are() -> None:
    def cost(pools: int) -> int:
        world = World()
        limit = Limit(10_000)
        for _ in range(pools):
            world.full(1, limits=(limit,))
            busy = world.full(1)
            world.checkout(busy)
            world.enqueue(busy)
        bucket = world.bucket(2, 0, limits=(limit,))
        steps = Steps().of(lambda: world.enqueue(bucket))
        return steps + Steps().of(world.open_one)

    assert_flat(cost, 5)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_a_full_limit_with_many_pools_with_waiters_costs_no_more_than_their_number() -> None:
    def cost(pools: int) -> int:
        world = World()
        limit = Limit(1)
        slot = None
        for _ in range(pools):
            bucket = world.bucket(1, limits=(limit,))
            world.enqueue(bucket)
            if slot is None:
                slot = world.open_one()
        held = slot
        assert held is not None
        return Steps().of(lambda: world.scheduler.release(held, world.now))

    few, many = cost(10), cost(100)

    assert many <= 15 * few, f"{few} steps for 10, {many} for 100"


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_a_slot_that_closes_in_the_middle_of_the_idle_costs_the_same_however_many() -> None:
    def cost(number: int) -> int:
        world = World()
        bucket = world.full(number)
        slots = list(bucket.idle_slots())
        return Steps().of(lambda: world.scheduler.peer_closed(slots[number // 2], world.now))

    assert_flat(cost)


def test_tombstones_among_the_idle_never_outnumber_the_living_by_much(world: World) -> None:
    bucket = world.full(300)
    slots = list(bucket.idle_slots())

    for slot in slots[10:290]:
        world.scheduler.peer_closed(slot, world.now)
        assert bucket.idle == sum(1 for _ in bucket.idle_slots())
        assert len(bucket._idle) <= 2 * bucket.idle + 33

    assert list(bucket.idle_slots()) == slots[:10] + slots[290:]
    assert bucket.pop_idle.__self__ is bucket._idle  # type: ignore[attr-defined]


def test_idle_slots_are_used_evenly_by_fifo_and_the_last_first_by_lifo(world: World) -> None:
    for lifo in (False, True):
        bucket = world.full(3, name=str(lifo), lifo=lifo)
        served = []
        for _ in range(6):
            slot = world.checkout(bucket)
            world.release(slot)
            served.append(slot)
        pairs = [a is b for a, b in pairwise(served)]

        assert all(pairs) if lifo else not any(pairs)


def test_a_limit_raised_while_what_it_has_evicted_closes_is_used_for_the_minimum_at_once(
    world: World,
) -> None:
    limit = Limit(2)
    bucket = world.bucket(2, 1, limits=(limit,))
    world.open_all()
    limit.maximum = 0
    world.scheduler.reconcile_limit(limit, world.now)
    assert (bucket.closing, bucket.missing) == (1, 1)

    limit.maximum = 2
    world.scheduler.reconcile_limit(limit, world.now)

    assert (bucket.closing, bucket.connecting) == (1, 1)


# Salvage


def test_a_salvaged_slot_goes_to_the_oldest_waiter_or_is_idle_from_then_on(world: World) -> None:
    bucket = world.bucket(2, idle_timeout=5.0)
    waiters = [world.enqueue(bucket) for _ in range(2)]
    while any(waiter.pending for waiter in waiters):
        world.open_all()
    one, other = (waiter.slot for waiter in waiters)
    waiter = world.enqueue(bucket)
    world.salvage(one)
    assert (bucket.salvaging, bucket.in_use, bucket.open) == (1, 1, 2)
    assert waiter.pending

    world.now += 60
    assert world.end_salvage(True) is one
    assert waiter.slot is one
    assert (one.since, one.idled) == (world.now, 0.0)

    world.salvage(other)
    world.now += 60
    world.end_salvage(True)
    assert world.checkout(bucket) is other
    assert not world.notes.closes


def test_a_salvage_that_failed_frees_the_place(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.salvage(slot)

    world.end_salvage(False)
    assert world.notes.reasons == [Reason.SALVAGE]
    world.close_all()
    world.open_all()

    assert waiter.slot is not None


def test_half_of_the_slots_are_salvaged_at_a_time(world: World) -> None:
    bucket = world.full(5)
    slots = [world.checkout(bucket) for _ in range(5)]
    for slot in slots:
        world.salvage(slot)

    assert (bucket.salvaging, bucket.closing) == (2, 3)
    assert set(world.notes.reasons) == {Reason.CUT_SHORT}


@pytest.mark.parametrize("marked", [None, Reason.CUT_SHORT, Reason.ERROR, Reason.PEER_CLOSED])
def test_what_is_marked_for_closing_is_salvaged_if_it_was_no_more_than_cut_short(
    world: World, marked: Reason | None
) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    if marked is not None:
        world.scheduler.mark_for_closing(slot, marked)
    world.salvage(slot)

    if marked in (None, Reason.CUT_SHORT):
        assert slot.state is SALVAGING
        world.end_salvage(True)
        assert slot.close_reason is None
        assert slot.fast_path_until == NEVER
    else:
        assert slot.state is CLOSING


def test_what_was_cut_short_and_is_to_go_for_another_reason_too_is_not_salvaged(
    world: World,
) -> None:
    bucket = world.full(2)
    first, slot = (world.checkout(bucket) for _ in range(2))
    world.scheduler.mark_for_closing(slot, Reason.CUT_SHORT)
    world.scheduler.wrong_server(first, world.now)
    world.salvage(slot)

    assert (world.notes.closes, bucket.salvaging) == ([slot], 0)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("why", [Reason.EXPIRED, Reason.WORN_OUT, Reason.DRAINED])
def test_what_is_at_its_end_is_not_salvaged_though_a_nested_with_told_that_it_was_cut_short(
    world: World, why: Reason, marked: bool
) -> None:
    bucket = world.full(1, max_uses=1 if why is Reason.WORN_OUT else None, max_lifetime=10.0)
    slot = world.checkout(bucket)
    world.now += 11.0 if why is Reason.EXPIRED else 1.0
    if why is Reason.DRAINED:
        world.scheduler.drain(bucket, 0.0, world.now)
    if marked:
        world.scheduler.mark_for_closing(slot, Reason.CUT_SHORT)

    world.salvage(slot)

    assert slot.state is CLOSING


def test_a_hang_up_that_is_forgotten_leaves_known_that_the_use_was_cut_short(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    world.scheduler.mark_for_closing(slot, Reason.CUT_SHORT)
    world.scheduler.peer_closed(slot, world.now)
    world.scheduler.ledger.forget_hangup(slot)
    world.release(slot)

    assert world.notes.reasons == [Reason.CUT_SHORT]
