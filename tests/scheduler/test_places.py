"""Whose a place is that is free or comes free: queues, claims, and who is pushed aside."""

from __future__ import annotations

import random
from typing import Any

import pytest

from geventpool._scheduler.inbox import CUT_SHORT
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.state import CLOSED, NEVER
from geventpool.backoff import Backoff
from geventpool.events import Reason
from support.world import HERE, World


@pytest.fixture
def world() -> World:
    return World()


def in_use(world: World, limit: Limit, size: int, name: str = "a") -> tuple[Bucket, list[Slot]]:
    """A pool without a minimum that has filled its part of *limit*, all in use."""
    bucket = world.full(size, name=name, limits=(limit,))
    world.scheduler.resize(bucket, size, 0, world.now)
    return bucket, [world.checkout(bucket) for _ in range(size)]


def test_no_more_places_are_claimed_than_the_dial_window_allows(world: World) -> None:
    limit = Limit(8)
    idle = world.full(7, name="idle", limits=(limit,))
    bucket = world.bucket(9, limits=(limit,))
    bucket.dials.width = 4  # as in the middle of a burst

    for _ in range(6):
        world.enqueue(bucket)

    assert (bucket.connecting, bucket.coming) == (1, 3)
    assert idle.closing == 3


@pytest.mark.parametrize(
    ("size", "width", "waiting", "again"),
    [
        (9, 2, 2, True),
        (9, 2, 1, False),  # none is left
        (9, 1, 2, False),  # its window is full
        (1, 2, 2, False),  # as is its own limit
        (2, 2, 2, True),
    ],
)
@pytest.mark.parametrize("how", ["dial", "claim"])
def test_one_that_was_served_stands_in_the_queue_again_if_a_place_is_of_use(
    world: World, how: str, size: int, width: int, waiting: int, again: bool
) -> None:
    limit = Limit(2)
    a, (slot, _) = in_use(world, limit, 2)
    bucket = world.bucket(size, limits=(limit,))
    for _ in range(waiting):
        world.enqueue(bucket)
    assert bucket.blocked_at is limit
    bucket.dials.width = width

    if how == "dial":
        world.scheduler.detach(slot, Reason.DETACHED, world.now)
    else:
        world.release(slot)

    assert (bucket.connecting, bucket.coming) == ((1, 0) if how == "dial" else (0, 1))
    assert bucket.blocked_at is (limit if again else None)
    assert a.fast_path_open == (0 if again else HERE)


def test_a_dial_and_a_claim_fill_the_window_together(world: World) -> None:
    limit = Limit(2)
    a, slots = in_use(world, limit, 2)
    bucket = world.bucket(9, limits=(limit,))
    for _ in range(3):
        world.enqueue(bucket)
    bucket.dials.width = 2

    world.scheduler.detach(slots[0], Reason.DETACHED, world.now)
    world.release(slots[1])

    assert (bucket.connecting, bucket.coming) == (1, 1)
    assert bucket.blocked_at is None
    assert a.fast_path_open == HERE


def test_who_comes_while_a_connection_closes_beside_a_dial_has_its_place(world: World) -> None:
    bucket = world.bucket(3)
    waiters = [world.enqueue(bucket) for _ in range(2)]
    world.open_all()
    held = waiters[0].slot
    assert held is not None
    first = world.enqueue(bucket)
    bucket.dials.width = 2
    world.discard(held)
    assert (bucket.connecting, bucket.closing, bucket.coming) == (1, 1, 0)

    second = world.enqueue(bucket)

    assert bucket.coming == 1
    world.close_all()
    world.open_all()
    assert first.slot is not None
    assert second.slot is not None


def test_those_for_whom_a_dial_or_a_place_is_on_its_way_are_not_refused_with_the_others(
    world: World,
) -> None:
    limit = Limit(2)
    other = world.full(1, name="other", limits=(limit,))
    bucket = world.bucket(9, limits=(limit,), fail_when_full=True)
    bucket.dials.width = 4
    world.scheduler.resize(other, 1, 0, world.now)

    waiters = [world.enqueue(bucket) for _ in range(3)]

    assert (bucket.connecting, bucket.coming) == (1, 1)
    assert [waiter.pending for waiter in waiters] == [True, True, False]


def test_when_less_wait_than_are_being_dialed_none_is_claimed_and_no_less(world: World) -> None:
    limit = Limit(4)
    world.full(2, name="idle", limits=(limit,))
    bucket = world.bucket(9, limits=(limit,))
    bucket.dials.width = 4
    waiters = [world.enqueue(bucket) for _ in range(3)]
    assert (bucket.connecting, bucket.coming) == (2, 1)

    bucket.waiters.drop(waiters[2])
    bucket.waiters.drop(waiters[1])  # both at once
    world.reconcile(bucket)

    assert (bucket.coming, bucket.own._coming, limit._coming) == (0, 0, 0)


def test_nothing_is_evicted_where_another_limit_has_no_place_all_the_same(world: World) -> None:
    one, two = Limit(1, "one"), Limit(1, "two")
    idle = world.full(1, name="idle", limits=(one,))
    world.scheduler.resize(idle, 1, 0, world.now)
    in_use(world, two, 1, "busy")
    bucket = world.bucket(1, limits=(one, two))

    world.enqueue(bucket)

    assert not world.notes.closes
    assert (bucket.coming, bucket.blocked_at) == (0, two)


def test_nothing_of_two_limits_is_evicted_where_a_third_has_no_place_all_the_same(
    world: World,
) -> None:
    one, two, three = (Limit(1, name) for name in ("one", "two", "three"))
    idle = world.full(1, name="idle", limits=(one, two))
    world.scheduler.resize(idle, 1, 0, world.now)
    in_use(world, three, 1, "busy")
    bucket = world.bucket(1, limits=(one, two, three))

    world.enqueue(bucket)

    assert not world.notes.closes
    assert (bucket.coming, bucket.blocked_at) == (0, three)


def test_no_claim_on_two_limits_is_taken_away_where_a_third_has_no_place_all_the_same(
    world: World,
) -> None:
    one, two, three = (Limit(1, name) for name in ("one", "two", "three"))
    younger = world.bucket(1, name="younger", limits=(one, two))
    _, (slot,) = in_use(world, one, 1, "busy")
    in_use(world, three, 1, "busy too")
    ticket = next(world.scheduler.tickets)
    world.discard(slot)
    world.enqueue(younger)
    assert younger.coming == 1
    bucket = world.bucket(1, limits=(one, two, three))

    world.enqueue(bucket, ticket=ticket)

    assert (younger.coming, bucket.coming, bucket.blocked_at) == (1, 0, three)


def test_after_a_pause_none_is_dialed_beside_those_still_under_way(world: World) -> None:
    bucket = world.bucket(9, 6)
    world.open_one()
    world.open_one()
    assert bucket.connecting == 4
    world.fail_one()
    world.now = bucket.retry_at

    world.reconcile(bucket)

    assert (bucket.dials.width, bucket.connecting) == (1, 3)


def test_a_claim_is_dropped_as_its_waiter_is_served_by_a_release(world: World) -> None:
    bucket = world.full(2)
    world.scheduler.resize(bucket, 2, 0, world.now)
    one, other = world.checkout(bucket), world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.discard(one)
    assert bucket.coming == 1

    world.release(other)

    assert waiter.slot is other
    assert (bucket.coming, bucket.own._coming) == (0, 0)


def test_a_maximum_that_leaves_room_for_what_is_claimed_takes_no_claim_away(world: World) -> None:
    limit = Limit(2)
    _, (slot, _) = in_use(world, limit, 2)
    bucket = world.bucket(1, limits=(limit,), fail_when_full=True)
    world.discard(slot)
    waiter = world.enqueue(bucket)
    assert (bucket.coming, limit.spare) == (1, 0)

    world.scheduler.reconcile_limit(limit, world.now)

    assert waiter.pending
    for maximum in (3, 2):
        limit.maximum = maximum
        world.scheduler.reconcile_limit(limit, world.now)
        assert waiter.pending


def test_a_maximum_that_leaves_no_room_for_what_is_claimed_takes_the_claim_away(
    world: World,
) -> None:
    limit = Limit(2)
    _, (slot, held) = in_use(world, limit, 2)
    bucket = world.bucket(1, limits=(limit,))
    world.discard(slot)
    waiter = world.enqueue(bucket)
    assert (bucket.coming, limit.spare) == (1, 0)

    limit.maximum = 1
    world.scheduler.reconcile_limit(limit, world.now)
    assert (bucket.coming, bucket.blocked_at) == (0, limit)
    world.close_all()
    assert bucket.connecting == 0
    world.discard(held)
    world.close_all()
    world.open_all()

    assert waiter.slot is not None


def test_who_comes_while_two_connections_close_has_the_place_of_the_second(world: World) -> None:
    bucket = world.full(4)
    world.scheduler.resize(bucket, 4, 0, world.now)
    slots = [world.checkout(bucket) for _ in range(4)]
    world.enqueue(bucket)
    for slot in slots[:2]:
        world.discard(slot)
    assert (bucket.closing, bucket.coming) == (2, 1)
    bucket.dials.width = 2

    world.enqueue(bucket)

    assert bucket.coming == 2


def test_who_is_older_takes_the_place_that_was_claimed_for_a_younger_one(world: World) -> None:
    limit = Limit(1)
    _, (slot,) = in_use(world, limit, 1)
    ticket = next(world.scheduler.tickets)
    world.discard(slot)
    younger, older = (world.bucket(1, name=name, limits=(limit,)) for name in "yo")
    world.enqueue(younger)
    assert younger.coming == 1

    waiter = world.enqueue(older, ticket=ticket)

    assert (younger.coming, older.coming, limit._coming) == (0, 1, 1)
    assert younger.blocked_at is limit
    world.close_all()
    world.open_all()
    assert waiter.slot is not None


def test_whose_claim_is_taken_away_is_still_in_the_middle_of_its_burst(world: World) -> None:
    limit = Limit(2)
    _, (slot,) = in_use(world, limit, 1)
    ticket = next(world.scheduler.tickets)
    younger, older = (world.bucket(2, name=name, limits=(limit,)) for name in "yo")
    world.enqueue(younger)
    younger.dials.width = 2
    world.discard(slot)
    world.enqueue(younger)
    assert (younger.connecting, younger.coming) == (1, 1)

    world.enqueue(older, ticket=ticket)

    assert (younger.connecting, younger.coming, older.coming) == (1, 0, 1)
    assert younger.dials.width == 2


def test_a_maximum_that_is_just_reached_evicts_nothing(world: World) -> None:
    limit = Limit(3)
    bucket = world.full(2, limits=(limit,))

    limit.maximum = 2
    world.scheduler.reconcile_limit(limit, world.now)

    assert not world.notes.closes
    assert bucket.fast_path_open == HERE


def test_resized_to_one_less_than_there_is_a_place_for_the_claim_is_dropped(world: World) -> None:
    bucket = world.full(3)
    slots = [world.checkout(bucket) for _ in range(3)]
    world.enqueue(bucket)
    world.discard(slots[0])
    assert (bucket.coming, bucket.own.spare) == (1, 0)

    world.scheduler.resize(bucket, 2, 0, world.now)

    assert (bucket.coming, bucket.own._coming) == (0, 0)


def test_no_minimum_is_dialed_before_what_closes_is_closed(world: World) -> None:
    bucket = world.full(4)
    for slot in [world.checkout(bucket) for _ in range(3)]:
        world.discard(slot)

    world.scheduler.resize(bucket, 2, 2, world.now)

    assert (bucket.missing, bucket.own.used, bucket.connecting) == (1, 4, 0)
    world.close_all()
    assert bucket.connecting == 1


def test_a_release_drops_the_claim_of_one_that_has_no_use_for_it_any_more(world: World) -> None:
    bucket = world.full(2)
    world.scheduler.resize(bucket, 2, 0, world.now)
    one, other = world.checkout(bucket), world.checkout(bucket)
    late = world.enqueue(bucket, useless_after=world.now + 2)
    world.discard(one)
    assert bucket.coming == 1
    world.now += 2

    world.release(other)

    assert late.expired
    assert (bucket.coming, bucket.idle) == (0, 1)


def test_at_the_moment_at_which_the_pause_ends_a_window_that_is_full_is_waited_for(
    world: World,
) -> None:
    bucket = world.bucket(4, fail_when_down=True)
    first = world.enqueue(bucket)
    world.fail_one()
    assert first.error is not None
    world.now = bucket.retry_at
    second, third = world.enqueue(bucket), world.enqueue(bucket)

    assert bucket.connecting == 1
    assert second.pending
    assert third.pending


# What is due to go, where there is no room for a replacement


def hemmed_in(world: World, **settings: Any) -> Bucket:
    """A pool at its minimum of two, all idle, in a limit that another has filled."""
    limit = Limit(3)
    bucket = world.full(2, limits=(limit,), max_overflow=2, **settings)
    in_use(world, limit, 1, "other")
    return bucket


def test_none_is_given_up_before_the_pause_is_over(world: World) -> None:
    bucket = hemmed_in(world)
    bucket.dials.failed(world.now, world.now)

    world.scheduler.drain(bucket, 0.0, world.now)

    assert not world.notes.closes
    world.now = bucket.retry_at
    world.reconcile(bucket)
    assert world.notes.reasons == [Reason.DRAINED]


@pytest.mark.parametrize("ago", [0.0, 1.0])
def test_what_has_expired_goes_though_what_is_only_to_be_drained_may_not_yet(
    world: World, ago: float
) -> None:
    bucket = hemmed_in(world)
    bucket.dials.failed(world.now, world.now)
    drained, expired = bucket.idle_slots()
    world.scheduler.drain(bucket, 0.0, world.now)
    expired.expires_at = world.now - ago

    world.scheduler.reap(bucket, world.now)

    assert world.notes.closes == [expired]
    assert list(bucket.retiring) == [drained]


@pytest.mark.parametrize("before", [0.0, 5.0])
def test_what_is_to_be_drained_is_not_said_to_have_been_idle_for_too_long(
    world: World, before: float
) -> None:
    slow = Backoff(first=60.0, longest=60.0, jitter=0.0)
    bucket = hemmed_in(world, idle_timeout=5.0, backoff=slow)
    bucket.dials.failed(world.now, world.now)
    world.now += before
    world.scheduler.drain(bucket, 0.0, world.now)
    world.now += 5 - before

    world.scheduler.reap(bucket, world.now)

    assert [slot.retire_for for slot in bucket.slots] == [Reason.DRAINED] * 2
    assert not world.notes.closes


@pytest.mark.parametrize("seconds", [10.0, 11.0])
def test_an_expired_slot_is_not_kept_on_return_though_there_is_room_for_its_replacement(
    world: World, seconds: float
) -> None:
    bucket = world.full(1, max_overflow=2, max_lifetime=10.0)
    slot = world.checkout(bucket)
    world.now += seconds

    world.release(slot)

    assert world.notes.reasons == [Reason.EXPIRED]


def test_a_second_drain_puts_nothing_off(world: World) -> None:
    bucket = world.full(2)
    slot = world.checkout(bucket)
    world.scheduler.drain(bucket, 0.0, world.now)
    due = slot.retire_at

    world.scheduler.drain(bucket, 1e9, world.now)

    assert slot.retire_at == due == world.now


def test_what_expires_at_the_moment_of_a_drain_is_said_to_have_expired(world: World) -> None:
    bucket = world.full(1, max_lifetime=10.0)
    slot = world.checkout(bucket)
    world.now += 10

    world.scheduler.drain(bucket, 0.0, world.now)

    assert slot.retire_for is Reason.EXPIRED


def test_the_reaper_does_not_come_again_for_what_has_expired_and_is_held(world: World) -> None:
    bucket = world.full(1, max_lifetime=10.0)
    world.checkout(bucket)
    world.now += 11

    assert world.scheduler.reap(bucket, world.now) == NEVER


def test_what_is_due_is_handed_to_no_waiter_however_late_it_comes_back(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.scheduler.drain(bucket, 0.0, world.now)
    world.now += 1

    world.release(slot)

    assert world.notes.reasons == [Reason.DRAINED]
    assert waiter.pending


def test_a_drain_takes_each_at_its_own_moment_of_the_time_that_it_has(world: World) -> None:
    class Quarter(random.Random):
        def random(self) -> float:
            return 0.25

    bucket = world.full(1, rng=Quarter())
    slot = world.checkout(bucket)

    world.scheduler.drain(bucket, 10.0, world.now)

    assert slot.retire_at == world.now + 2.5


def test_without_jitter_a_connection_is_due_when_it_expires(world: World) -> None:
    (slot,) = world.full(1, max_lifetime=10.0).slots

    assert slot.retire_at == slot.expires_at == world.now + 10


def test_one_that_was_idle_for_too_long_goes_though_the_reaper_is_late(world: World) -> None:
    bucket = world.full(2, idle_timeout=5.0)
    world.now += 6

    world.scheduler.reap(bucket, world.now)

    assert world.notes.reasons == [Reason.IDLE]


@pytest.mark.parametrize("later", [0.0, 0.5])
def test_what_is_due_as_it_comes_back_and_may_not_go_yet_is_known_to_be_due(
    world: World, later: float
) -> None:
    bucket = hemmed_in(world)
    slot = world.checkout(bucket)
    bucket.dials.failed(world.now, world.now)
    world.scheduler.drain(bucket, 0.0, world.now)
    world.now += later

    world.release(slot)

    assert list(bucket.retiring) == [*bucket.idle_slots()]
    assert slot in bucket.retiring


def test_a_slot_that_expires_as_it_comes_back_is_handed_to_no_one_of_a_crowd(
    world: World,
) -> None:
    bucket = world.full(1, max_lifetime=10.0)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.now += 10

    world.release(slot)

    assert world.notes.reasons == [Reason.EXPIRED]
    assert waiter.pending


def test_the_reaper_replaces_nothing_where_there_is_less_than_min_idle_spares(
    world: World,
) -> None:
    bucket = world.full(3, idle_timeout=5.0, min_idle=2)
    slow = Backoff(first=100.0, longest=100.0, jitter=0.0)
    bucket.backoff = slow
    for slot in [world.checkout(bucket) for _ in range(2)]:
        world.discard(slot)
    world.close_all()
    world.fail_one()
    assert bucket.open == 1
    world.now += 5

    assert world.scheduler.reap(bucket, world.now) == NEVER
    assert not bucket.retiring


# What is cut short


@pytest.mark.parametrize("waiting", [0, 1])
def test_an_overflow_slot_is_salvaged_only_for_one_that_waits(world: World, waiting: int) -> None:
    bucket = world.full(1, max_overflow=1)
    world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.open_all()
    assert waiter.slot is not None
    for _ in range(waiting):
        world.enqueue(bucket)

    world.salvage(waiter.slot)

    assert bucket.salvaging == waiting
    assert len(world.notes.closes) == 1 - waiting


@pytest.mark.parametrize(("size", "most"), [(1, 1), (3, 1), (4, 2), (5, 2)])
def test_how_many_are_salvaged_at_a_time(world: World, size: int, most: int) -> None:
    bucket = world.full(size)
    for slot in [world.checkout(bucket) for _ in range(size)]:
        world.salvage(slot)

    assert bucket.salvaging == most


def test_none_is_salvaged_while_more_are_than_would_begin_now(world: World) -> None:
    bucket = world.full(6)
    slots = [world.checkout(bucket) for _ in range(6)]
    for slot in slots[:3]:
        world.salvage(slot)
    world.scheduler.resize(bucket, 4, 4, world.now, 9)
    world.enqueue(bucket)

    world.salvage(slots[3])

    assert bucket.salvaging == 3


# After a cut


def test_after_an_audit_places_that_it_found_in_one_pool_serve_who_waits_at_another(
    world: World,
) -> None:
    limit = Limit(1)
    _, (slot,) = in_use(world, limit, 1)
    bucket = world.bucket(1, limits=(limit,))
    world.enqueue(bucket)
    world.discard(slot)
    world.notes.closes.clear()
    slot.state = CLOSED  # and the verb was cut short there
    world.scheduler.busy = CUT_SHORT

    world.scheduler.catch_up(world.now)

    assert bucket.connecting == 1
    assert limit.used == 1
