"""When a bucket is down, who is sent away, and how it comes back; a server that is full."""

from __future__ import annotations

import pytest

from geventpool import Backoff, Limit, PoolDown, Verdict
from geventpool._scheduler.ceiling import Ceiling
from geventpool._scheduler.model import Bucket
from geventpool._scheduler.state import CLOSING, IN_USE
from geventpool.events import Reason
from support.world import REFUSED, World

EACH_SECOND = Backoff(first=1.0, factor=1.0, longest=1.0, jitter=0.0)
SLOW = Backoff(first=60.0, longest=60.0, jitter=0.0)


def fail(world: World, verdict: Verdict = Verdict.BROKEN) -> None:
    world.scheduler.dial_failed(world.notes.dials.pop(0), REFUSED, world.now, verdict)


def pass_time(world: World, seconds: float, bucket: Bucket) -> None:
    """The timer of *bucket* fires when it is due."""
    ends = world.now + seconds
    while world.now < bucket.reconcile_at <= ends:
        world.now = bucket.reconcile_at
        world.reconcile(bucket)
    world.now = ends


def fail_for(world: World, seconds: float, bucket: Bucket) -> None:
    """Every dial fails at once."""
    ends = world.now + seconds
    while True:
        while world.notes.dials:
            fail(world)
        if not world.now < bucket.reconcile_at <= ends:
            break
        world.now = bucket.reconcile_at
        world.reconcile(bucket)
    world.now = ends


def test_when_every_dial_has_failed_for_down_after_all_in_line_are_told():
    world = World()
    backoff = Backoff(first=0.8, factor=1.0, longest=0.8, jitter=0.0)
    bucket = world.bucket(2, down_after=3.0, backoff=backoff)
    waiters = [world.enqueue(bucket) for _ in range(3)]

    fail_for(world, 2.9, bucket)
    assert all(waiter.pending for waiter in waiters)
    fail_for(world, 0.2, bucket)

    for waiter in waiters:
        assert isinstance(waiter.error, PoolDown)
        assert waiter.error.__cause__ is REFUSED
        assert waiter.error.down_for == pytest.approx(3.0)
        assert waiter.error.retry_after == pytest.approx(0.2)
    assert world.notes.down == [bucket]


def test_a_bucket_that_is_down_is_probed_without_callers_and_a_success_ends_it():
    world = World()
    bucket = world.bucket(2, down_after=3.0, backoff=EACH_SECOND)
    world.enqueue(bucket)
    fail_for(world, 3.5, bucket)
    failed = bucket.dial_failed

    fail_for(world, 5.0, bucket)
    assert bucket.dial_failed == failed + 5, "one dial each second, wanted or not"
    pass_time(world, 1.0, bucket)
    refused = world.enqueue(bucket)
    world.open_one()

    assert isinstance(refused.error, PoolDown), "while the probe is under way"
    assert refused.error.retry_after == 1.0
    assert world.notes.back == [bucket]
    assert world.checkout(bucket).state is IN_USE
    assert world.enqueue(bucket).pending, "as ever"


def test_without_down_after_callers_wait_and_nothing_more_is_dialed_than_they_want():
    world = World()
    bucket = world.bucket(2, backoff=EACH_SECOND)
    waiter = world.enqueue(bucket)

    fail_for(world, 100.0, bucket)

    assert waiter.pending
    assert not world.notes.down


def test_while_one_connection_is_open_the_bucket_is_not_down():
    world = World()
    bucket = world.full(2, down_after=3.0, backoff=EACH_SECOND)
    held = [world.checkout(bucket), world.checkout(bucket)]
    waiter = world.enqueue(bucket)
    world.discard(held[0])
    world.close_all()

    fail_for(world, 10.0, bucket)
    assert waiter.pending
    world.discard(held[1])
    world.close_all()
    fail_for(world, 2.9, bucket)
    assert waiter.pending, "it counts from when nothing was open any more"
    fail_for(world, 0.2, bucket)

    assert isinstance(waiter.error, PoolDown)


def test_a_back_off_longer_than_down_after_does_not_hold_it_up():
    world = World()
    bucket = world.bucket(1, down_after=3.0, backoff=SLOW)
    waiter = world.enqueue(bucket)

    fail_for(world, 3.0, bucket)

    assert isinstance(waiter.error, PoolDown)
    assert waiter.error.retry_after == pytest.approx(57.0)
    assert bucket.dial_failed == 1


def test_a_dial_that_hangs_does_not_hold_it_up():
    world = World()
    bucket = world.bucket(2, down_after=3.0, backoff=EACH_SECOND)
    waiter = world.enqueue(bucket)
    fail(world)
    pass_time(world, 1.01, bucket)
    assert world.notes.dials, "it hangs from now on"

    pass_time(world, 2.0, bucket)

    assert isinstance(waiter.error, PoolDown)


def test_an_outage_begins_though_the_timer_is_late():
    world = World()
    bucket = world.bucket(1, down_after=3.0, backoff=EACH_SECOND)
    waiter = world.enqueue(bucket)
    fail(world)
    pass_time(world, 1.5, bucket)  # the second dial is under way, and hangs
    assert len(world.notes.dials) == 1
    world.now += 10.0

    world.reconcile(bucket)

    assert isinstance(waiter.error, PoolDown)


def test_a_failure_of_long_ago_after_which_nothing_was_dialed_counts_for_nothing():
    world = World()
    bucket = world.bucket(2, down_after=3.0, backoff=EACH_SECOND)
    world.scheduler.cancel(world.enqueue(bucket), world.now)
    fail_for(world, 100.0, bucket)

    waiter = world.enqueue(bucket)
    fail_for(world, 2.9, bucket)

    assert waiter.pending
    assert not world.notes.down


def test_a_bucket_whose_first_dial_is_under_way_refuses_no_caller():
    world = World()
    bucket = world.bucket(1, down_after=3.0)
    world.enqueue(bucket)
    assert bucket.connecting

    assert world.scheduler.refusal(bucket, world.now) is None


def test_no_place_to_dial_is_not_down():
    world = World()
    limit = Limit(1)
    other = world.bucket(1, limits=[limit], name="other")
    bucket = world.bucket(1, limits=[limit], down_after=3.0, backoff=EACH_SECOND)
    waiter = world.enqueue(bucket)
    fail(world)
    world.enqueue(other)
    slot = world.open_one()

    pass_time(world, 100.0, bucket)

    assert slot.bucket is other
    assert waiter.pending
    assert not world.notes.down


def test_who_comes_to_a_bucket_that_is_down_and_cannot_be_probed_waits_for_a_place():
    world = World()
    limit = Limit(1)
    other = world.bucket(1, limits=[limit], name="other")
    bucket = world.bucket(1, limits=[limit], down_after=3.0, backoff=EACH_SECOND)
    world.enqueue(bucket)
    fail_for(world, 3.5, bucket)
    taken = world.enqueue(other)
    slot = world.open_one()
    pass_time(world, 5.0, bucket)

    waiter = world.enqueue(bucket)
    assert taken.slot is slot
    assert waiter.pending
    world.discard(slot)
    world.close_all()
    world.open_one()

    assert waiter.slot is not None
    assert len(world.notes.back) == 1


def test_one_of_many_is_probed_no_longer_than_a_minute_after_its_last_caller():
    world = World()
    bucket = world.bucket(1, down_after=3.0, backoff=EACH_SECOND, transient=True)
    world.enqueue(bucket)
    fail_for(world, 200.0, bucket)
    assert 55 <= bucket.dial_failed <= 65

    refused = world.enqueue(bucket)

    assert isinstance(refused.error, PoolDown)
    assert world.notes.dials, "it is probed again"


def test_a_caller_that_does_not_wait_keeps_one_of_many_probed_as_well():
    world = World()
    bucket = world.bucket(1, down_after=3.0, backoff=EACH_SECOND, transient=True)
    world.enqueue(bucket)
    fail_for(world, 50.0, bucket)
    assert isinstance(world.scheduler.refusal(bucket, world.now), PoolDown)
    failed = bucket.dial_failed

    fail_for(world, 50.0, bucket)

    assert bucket.dial_failed >= failed + 45


def test_fail_fast_gives_the_oldest_the_error_of_each_dial_until_the_bucket_is_down():
    world = World()
    bucket = world.bucket(1, down_after=1.5, backoff=EACH_SECOND, fail_fast=True)
    waiters = [world.enqueue(bucket) for _ in range(4)]

    fail_for(world, 1.6, bucket)

    assert [waiter.error is REFUSED for waiter in waiters] == [True, True, False, False]
    assert all(isinstance(waiter.error, PoolDown) for waiter in waiters[2:])


def test_one_that_is_down_and_forked_begins_anew():
    world = World()
    bucket = world.bucket(1, down_after=3.0, backoff=EACH_SECOND)
    world.enqueue(bucket)
    fail_for(world, 3.5, bucket)

    world.scheduler.forget_all(bucket)

    assert world.enqueue(bucket).pending


# FATAL


def test_a_fatal_error_is_told_at_once_to_all_and_probed_at_the_longest_pause():
    world = World()
    bucket = world.bucket(3)
    waiters = [world.enqueue(bucket) for _ in range(3)]

    fail(world, Verdict.FATAL)
    late = world.enqueue(bucket)

    assert [waiter.error for waiter in [*waiters, late]] == [REFUSED] * 4
    assert bucket.retry_at == pytest.approx(world.now + 8.0), "not the first"
    assert world.notes.down == [bucket]
    pass_time(world, 8.1, bucket)
    world.open_one()
    assert world.notes.back == [bucket]
    assert world.checkout(bucket).state is IN_USE


def test_after_a_fatal_error_who_finds_a_connection_idle_has_it():
    world = World()
    bucket = world.bucket(2)
    waiter = world.enqueue(bucket)
    slot = world.open_one()
    told = world.enqueue(bucket)
    fail(world, Verdict.FATAL)

    world.release(slot)

    assert waiter.slot is slot
    assert told.error is REFUSED
    assert world.checkout(bucket) is slot
    pass_time(world, 8.1, bucket)
    assert len(world.notes.dials) == 1, "it is probed, though nothing is missing"


# SERVER_FULL


def test_a_full_server_is_asked_for_no_more_than_are_open_and_for_one_more_each_second():
    world = World()
    bucket = world.bucket(9)
    waiters = [world.enqueue(bucket) for _ in range(6)]
    world.open_one()
    world.open_one()
    fail(world, Verdict.SERVER_FULL)
    while world.notes.dials:
        fail(world, Verdict.SERVER_FULL)
    assert bucket.open == 2
    pass_time(world, 0.9, bucket)
    assert not world.notes.dials

    pass_time(world, 0.2, bucket)
    assert len(world.notes.dials) == 1
    fail(world, Verdict.SERVER_FULL)
    pass_time(world, 1.1, bucket)
    world.open_one()
    pass_time(world, 0.5, bucket)
    assert not world.notes.dials, "one more a second"
    pass_time(world, 0.5, bucket)
    assert len(world.notes.dials) == 1

    assert [waiter.slot is not None for waiter in waiters] == [True] * 3 + [False] * 3
    assert all(waiter.error is None for waiter in waiters)
    assert not bucket.failing
    assert bucket.last_error is None or bucket.last_error is REFUSED


def test_a_full_server_has_room_for_what_is_open_and_for_the_other_dials_under_way():
    world = World()
    bucket = world.bucket(9)
    for _ in range(9):
        world.enqueue(bucket)
    world.open_one()
    world.open_one()
    assert (bucket.open, bucket.connecting) == (2, 4)

    fail(world, Verdict.SERVER_FULL)

    assert bucket.own.maximum == 5


def test_a_minimum_that_a_full_server_had_no_room_for_is_dialed_once_it_may_have():
    world = World()
    bucket = world.bucket(2, 2)
    world.open_one()
    fail(world, Verdict.SERVER_FULL)
    pass_time(world, 0.9, bucket)
    assert not world.notes.dials

    pass_time(world, 0.2, bucket)

    assert len(world.notes.dials) == 1


def test_when_the_second_is_over_one_more_is_asked_for_whatever_a_difference_is_rounded_to():
    world = World()
    world.now = 1.3  # 2.3 - 1.3 is less than 1.0, as floats go
    bucket = world.bucket(2)
    world.enqueue(bucket)
    fail(world, Verdict.SERVER_FULL)

    world.now = bucket.reconcile_at
    world.reconcile(bucket)

    assert len(world.notes.dials) == 1


def test_waiters_of_a_full_server_get_what_comes_back():
    world = World()
    bucket = world.bucket(2, fail_fast=True)
    first, second = world.enqueue(bucket), world.enqueue(bucket)
    slot = world.open_one()
    while world.notes.dials:
        fail(world, Verdict.SERVER_FULL)

    world.release(slot)

    assert first.slot is second.slot is slot
    assert bucket.last_error is REFUSED


def test_a_full_server_is_tried_each_second_when_nothing_is_open_and_is_never_down():
    world = World()
    bucket = world.bucket(2, down_after=3.0)
    waiter = world.enqueue(bucket)
    for _ in range(10):
        fail(world, Verdict.SERVER_FULL)
        assert not world.notes.dials
        pass_time(world, 1.05, bucket)

    world.open_one()

    assert waiter.slot is not None
    assert not world.notes.down


def test_what_a_full_server_said_is_kept_though_a_dial_begun_before_succeeds():
    world = World()
    bucket = world.bucket(4)
    for _ in range(4):
        world.enqueue(bucket)
    world.open_one()
    assert len(world.notes.dials) == 2
    fail(world, Verdict.SERVER_FULL)
    world.open_one()

    assert bucket.own.full
    assert bucket.ceiling.error is REFUSED
    assert bucket.last_error is None


def test_a_connection_that_breaks_at_a_full_server_is_replaced_at_once():
    world = World()
    bucket = world.full(2)
    world.scheduler.resize(bucket, 3, 3, world.now)
    fail(world, Verdict.SERVER_FULL)

    world.discard(world.checkout(bucket))
    world.close_all()

    assert len(world.notes.dials) == 1


def test_a_server_that_was_full_is_as_any_other_after_a_minute():
    world = World()
    bucket = world.bucket(100)
    world.enqueue(bucket)
    fail(world, Verdict.SERVER_FULL)
    pass_time(world, 1.05, bucket)
    world.open_one()

    pass_time(world, 60.0, bucket)
    world.enqueue(bucket)

    assert bucket.own.maximum == 100


def test_a_minute_is_a_minute_on_a_clock_that_has_just_begun():
    ceiling = Ceiling()
    ceiling.lower(1, REFUSED, 0.5)

    ceiling.rise(1000, 60.4)
    assert ceiling.on
    ceiling.rise(1000, 60.5)
    assert not ceiling.on


def test_that_a_server_is_full_ends_an_outage():
    world = World()
    bucket = world.bucket(2, down_after=3.0, backoff=EACH_SECOND)
    world.enqueue(bucket)
    fail_for(world, 3.5, bucket)
    pass_time(world, 1.0, bucket)

    fail(world, Verdict.SERVER_FULL)

    assert len(world.notes.back) == 1
    assert not bucket.failing
    assert world.enqueue(bucket).pending


def test_who_does_not_wait_for_a_place_is_told_that_the_server_has_none():
    world = World()
    bucket = world.bucket(2, fail_when_full=True, fail_when_down=True)
    waiter = world.enqueue(bucket)

    fail(world, Verdict.SERVER_FULL)

    assert str(waiter.error) == str(REFUSED)


# WRONG_SERVER


def test_a_wrong_server_has_all_closed_that_was_dialed_before_and_nothing_after():
    world = World()
    bucket = world.full(4)
    held = [world.checkout(bucket) for _ in range(2)]
    idle = list(bucket.idle_slots())
    world.now += 1

    assert world.scheduler.wrong_server(held[0], world.now)
    world.discard(held[0], Reason.ERROR)
    world.close_all()
    world.open_all()
    fresh = list(bucket.idle_slots())
    assert len(fresh) == 3
    assert all(slot.state is not IN_USE for slot in idle)
    world.now += 1
    assert not world.scheduler.wrong_server(held[1], world.now), "it is old news"
    world.release(held[1])

    assert held[1].state is CLOSING
    assert list(bucket.idle_slots()) == fresh


def test_what_is_dialed_as_the_server_is_found_wrong_may_be_found_wrong_as_well():
    world = World()
    bucket = world.full(1)
    slot = world.checkout(bucket)
    world.now += 1
    assert world.scheduler.wrong_server(slot, world.now)
    world.discard(slot, Reason.ERROR)
    world.close_all()
    world.open_all()  # in that very instant, as the clock has it

    assert world.scheduler.wrong_server(world.checkout(bucket), world.now + 1)
