"""A line that sheds: who is sent away, when, and who never is."""

from __future__ import annotations

import random

import pytest

from geventpool import CoDel, PoolOverloaded
from geventpool._scheduler.delay_control import DelayControl
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.waiter import Waiter
from geventpool.backoff import Backoff
from geventpool.events import Reason
from support.world import World

CODEL = CoDel(target=0.1, interval=1.0)


@pytest.fixture
def world() -> World:
    return World()


def held(world: World, size: int = 1, **settings: object) -> tuple[Bucket, list[Slot]]:
    """A pool with all its connections in use."""
    bucket = world.full(size, overload=CODEL, **settings)
    return bucket, [world.checkout(bucket) for _ in range(size)]


def keep_waiting(world: World, bucket: Bucket, slot: Slot, seconds: float, wait: float) -> None:
    """Serve callers one after the other for so long, each after about *wait* seconds in line."""
    step, ends = 0.02, world.now + seconds
    while world.now < ends - 1e-9:
        world.enqueue(bucket)
        world.pass_time(step)
        while bucket.waiters and world.now - bucket.waiters.oldest.came >= wait - 1e-9:
            world.release(slot)


def outcomes(waiters: list[Waiter]) -> str:
    """One letter each: served, refused, waiting."""
    return "".join("s" if w.slot else "r" if w.error else "w" for w in waiters)


# When the line is slow


@pytest.mark.parametrize("wait", [0.12, 0.19, 0.3, 0.5])
def test_a_line_is_slow_once_the_least_wait_was_too_long_for_two_intervals(
    world: World, wait: float
) -> None:
    bucket, [slot] = held(world)
    keep_waiting(world, bucket, slot, 1.9, wait)
    early = world.enqueue(bucket)
    world.now += 0.01
    assert not any(waiter.error for waiter in world.notes.woken)

    keep_waiting(world, bucket, slot, 0.7, wait)
    late = [waiter for waiter in world.notes.woken if waiter.error]

    assert bool(late) == (wait > 0.2)
    assert early.slot is slot or (wait > 0.2 and early.error)


def test_a_line_whose_head_has_waited_for_most_of_an_interval_is_slow_after_one(
    world: World,
) -> None:
    bucket, [slot] = held(world)
    waiters = [world.enqueue(bucket) for _ in range(3)]
    world.now += 0.99
    world.release(slot)
    assert outcomes(waiters) == "sww"

    world.now += 0.02
    world.release(slot)

    assert outcomes(waiters) == "srr"


@pytest.mark.parametrize("good", ["empty", "prompt"])
def test_a_line_that_was_fine_for_a_moment_is_given_another_two_intervals(
    world: World, good: str
) -> None:
    bucket, [slot] = held(world)
    keep_waiting(world, bucket, slot, 1.8, 0.3)
    while len(bucket.waiters) > 1:
        world.release(slot)
    world.pass_time(0.05)
    if good == "prompt":
        world.enqueue(bucket)
    world.release(slot)  # after 0.07 s; or the line is empty
    keep_waiting(world, bucket, slot, 1.8, 0.3)

    assert not any(waiter.error for waiter in world.notes.woken)


def test_a_slow_line_stays_so_for_an_interval_and_no_longer(world: World) -> None:
    bucket, [slot] = held(world)
    keep_waiting(world, bucket, slot, 2.4, 0.3)
    assert any(waiter.error for waiter in world.notes.woken)
    keep_waiting(world, bucket, slot, 1.2, 0.02)
    world.notes.woken.clear()

    waiters = [world.enqueue(bucket) for _ in range(2)]
    world.pass_time(0.7)
    world.release(slot)
    world.release(slot)

    assert outcomes(waiters) == "ss"


def test_a_caller_with_a_dial_of_its_own_makes_no_line_slow(world: World) -> None:
    bucket = world.bucket(4, overload=CODEL)
    waiter = world.enqueue(bucket)
    world.pass_time(5.0)  # a slow dial
    world.open_one()

    assert waiter.slot is not None


# Who is sent away


def slow(world: World, size: int = 1, **settings: object) -> tuple[Bucket, list[Slot]]:
    """A pool with a slow line, empty but for one caller."""
    bucket, slots = held(world, size, **settings)
    first = world.enqueue(bucket)
    world.now += 1.1
    stays = world.enqueue(bucket)
    world.release(slots[0])
    assert first.error
    assert stays.slot is slots[0]
    world.enqueue(bucket)
    world.notes.woken.clear()
    return bucket, slots


def test_those_whose_turn_comes_too_late_are_refused_and_the_next_is_served(world: World) -> None:
    bucket, [slot] = slow(world)
    early = [world.enqueue(bucket) for _ in range(5)]
    world.now += 0.201
    late = [world.enqueue(bucket) for _ in range(3)]

    world.release(slot)

    assert outcomes(early) == "rrrrr"
    assert outcomes(late) == "sww"


def test_one_that_has_no_time_left_is_passed_over_behind_those_refused(world: World) -> None:
    bucket, [slot] = slow(world)
    world.now += 0.201
    no_time, next_one = world.enqueue(bucket), world.enqueue(bucket)
    no_time.useless_after = world.now
    world.release(slot)

    assert no_time.expired
    assert next_one.slot is slot


def test_those_that_are_served_are_served_in_the_order_in_which_they_came(world: World) -> None:
    bucket, slots = slow(world, 3)
    waiters = []
    dice = random.Random(1)
    for _ in range(400):
        waiters.append(world.enqueue(bucket))
        world.pass_time(0.005)
        if dice.random() < 0.3:
            world.release(dice.choice(slots))
    tickets = [waiter.ticket for waiter in world.notes.woken if waiter.slot]

    assert len(tickets) > 50
    assert tickets == sorted(tickets)
    assert "r" in outcomes(waiters)


def test_the_wait_is_measured_from_when_the_caller_came_though_it_was_served_before(
    world: World,
) -> None:
    bucket, [slot, other] = slow(world, 2)
    came = world.now
    waiter = world.enqueue(bucket)
    world.pass_time(0.15)
    while not waiter.slot:
        world.release(slot)
    world.discard(slot, Reason.UNREAD)  # unfit: back in line it goes
    again = world.enqueue(bucket, ticket=waiter.ticket, came=came)
    world.now += 0.06
    young = world.enqueue(bucket)
    world.release(other)

    assert again.error
    assert again.error.waited == pytest.approx(0.21)  # type: ignore[attr-defined]
    assert young.slot is other


def test_nobody_waits_for_long_in_a_slow_line_though_nothing_comes_back(world: World) -> None:
    bucket, _ = slow(world)
    waiter = world.enqueue(bucket)
    world.pass_time(0.35)

    assert isinstance(waiter.error, PoolOverloaded)
    assert not bucket.waiters


def test_a_line_in_which_nobody_is_ever_served_is_slow_after_an_interval(world: World) -> None:
    bucket, _ = held(world)
    waiters = [world.enqueue(bucket) for _ in range(3)]
    world.pass_time(0.99)
    assert outcomes(waiters) == "www"
    world.pass_time(0.02)
    assert outcomes(waiters) == "rrr"

    more = world.enqueue(bucket)
    assert world.notes.looks
    world.pass_time(2.0)
    assert more.error


def test_a_look_leaves_those_alone_that_a_dial_is_about_to_serve(world: World) -> None:
    bucket = world.bucket(1, overload=CODEL)
    waiters = [world.enqueue(bucket) for _ in range(3)]
    world.pass_time(1.5)

    assert outcomes(waiters) == "wrr"


def test_a_look_leaves_those_alone_for_whom_a_dial_or_a_place_is_on_its_way(world: World) -> None:
    total = Limit(3)
    other = world.full(1, name="other", limits=(total,))
    bucket = world.bucket(2, limits=(total,), overload=CODEL)
    waiters = [world.enqueue(bucket) for _ in range(3)]
    bucket.dials.width = 2  # as after a first success
    total.maximum = 2
    world.scheduler.reconcile(bucket, world.now)
    assert (bucket.connecting, bucket.coming, other.closing) == (1, 1, 1)

    world.pass_time(1.5)

    assert outcomes(waiters) == "wwr"


def test_a_line_is_looked_at_twice_in_an_interval(world: World) -> None:
    bucket, _ = held(world)
    world.enqueue(bucket)

    assert world.notes.looks == {bucket: world.now + CODEL.interval / 2}


def test_a_line_is_not_looked_at_once_it_is_empty(world: World) -> None:
    bucket, [slot] = held(world)
    world.enqueue(bucket)
    world.release(slot)
    world.pass_time(10.0)

    assert not world.notes.looks


def test_one_that_gives_up_as_it_is_refused_is_out_of_line_and_nothing_is_lost(
    world: World,
) -> None:
    bucket, [slot] = slow(world)
    waiter = world.enqueue(bucket)
    world.now += 0.3
    world.release(slot)
    assert waiter.error
    world.scheduler.cancel(waiter, world.now)

    assert bucket.idle == 1
    assert world.scheduler.try_checkout(bucket, world.now) is slot


def test_one_that_is_served_is_not_refused_in_the_same_pass(world: World) -> None:
    bucket, [slot] = slow(world)
    waiter = world.enqueue(bucket)
    world.pass_time(0.15)
    while not waiter.slot:
        world.release(slot)
    world.now += 0.1  # it has not run yet
    world.scheduler.look_at_line(bucket, world.now)

    assert waiter.error is None
    world.scheduler.cancel(waiter, world.now)  # killed before it runs
    assert bucket.idle == 1


# The books


def test_a_place_that_is_claimed_for_one_that_is_refused_goes_to_another_bucket(
    world: World,
) -> None:
    limit = Limit(2)
    ours = world.bucket(2, limits=[limit], overload=CODEL)
    theirs = world.bucket(2, limits=[limit], name="theirs")
    world.enqueue(ours)
    world.enqueue(ours)
    world.open_all()
    world.open_all()
    slots = [waiter.slot for waiter in world.notes.woken]
    assert len(slots) == 2
    waiters = [world.enqueue(ours) for _ in range(3)]
    theirs_waits = world.enqueue(theirs)
    world.pass_time(1.01)
    assert outcomes(waiters) == "rrr"
    assert limit._demand == theirs.eligible == 1

    world.discard(slots[0])
    world.close_all()
    world.open_all()

    assert theirs_waits.slot is not None


def test_a_claim_of_one_that_is_refused_as_another_dial_ends_is_dropped(world: World) -> None:
    limit = Limit(3)
    ours = world.bucket(3, limits=[limit], overload=CODEL)
    theirs = world.bucket(1, 1, limits=[limit], name="theirs")
    world.open_all()
    waiters = [world.enqueue(ours) for _ in range(4)]
    world.open_one()
    assert ours.connecting == ours.coming == theirs.closing == 1
    world.now += 1.1
    world.open_one()

    assert outcomes(waiters) == "srrr"
    assert ours.coming == limit._coming == 0


def test_those_that_are_refused_at_a_release_want_no_places_any_more(world: World) -> None:
    limit = Limit(5)
    bucket = world.bucket(3, limits=[limit], overload=CODEL)
    first = world.enqueue(bucket)
    world.open_all()
    assert first.slot is not None
    waiters = [world.enqueue(bucket) for _ in range(3)]
    world.fail_one()
    world.now += 0.99
    assert limit._demand == 2
    world.now += 0.02
    world.release(first.slot)

    assert outcomes(waiters) == "rrr"
    assert limit._demand == 0


def test_a_place_that_those_refused_do_not_want_any_more_serves_a_minimum(world: World) -> None:
    limit = Limit(3)
    bucket = world.bucket(3, limits=[limit], overload=CODEL)
    first = world.enqueue(bucket)
    world.open_all()
    assert first.slot is not None
    bucket.backoff = Backoff(first=5.0, longest=5.0, jitter=0.0)
    late = [world.enqueue(bucket) for _ in range(3)]
    world.fail_one()  # so the places stay free for a while
    world.bucket(1, 1, limits=[limit], name="theirs")
    assert not world.notes.dials
    world.now += 1.1
    young = [world.enqueue(bucket) for _ in range(2)]
    world.release(first.slot)

    assert outcomes(late + young) == "rrrsw"
    assert [slot.bucket.name for slot in world.notes.dials] == ["theirs"]


def test_the_fast_path_is_open_again_once_the_whole_line_is_refused(world: World) -> None:
    bucket, [slot] = slow(world)
    world.enqueue(bucket)
    assert not bucket.fast_path_open
    world.now += 0.3
    world.release(slot)

    assert not bucket.waiters
    assert bucket.fast_path_open


# What they are told


def test_a_refusal_says_how_long_it_waited_and_when_to_come_back(world: World) -> None:
    bucket, [slot] = slow(world, rng=random.Random(3), name="db")
    refused = [world.enqueue(bucket) for _ in range(50)]
    world.now += 0.25
    for _ in range(20):
        world.enqueue(bucket)
    world.release(slot)

    errors = [waiter.error for waiter in refused]
    assert all(isinstance(error, PoolOverloaded) for error in errors)
    assert {error.pool for error in errors} == {"db"}  # type: ignore[union-attr]
    assert {round(error.waited, 6) for error in errors} == {0.25}  # type: ignore[union-attr]
    assert "0.250 s" in str(errors[0])
    times = [error.retry_after for error in errors]  # type: ignore[union-attr]
    middle = sum(times) / len(times)
    assert max(times) <= 3 * min(times)
    assert len(set(times)) > 40, "all come back together"
    assert middle > 0.25


def test_how_long_it_takes_to_drain_goes_by_the_pace_of_late(world: World) -> None:
    bucket, [slot] = held(world)
    control = bucket.delay_control
    assert control is not None
    for _ in range(200):
        world.enqueue(bucket)
        world.now += 0.01
        if len(bucket.waiters) > 5:
            world.release(slot)

    assert control.drains_in(30, world.now) == pytest.approx(0.3, rel=0.05)
    world.now += 1.0  # and nothing came back
    assert control.drains_in(30, world.now) == pytest.approx(30.0)


def test_the_pace_begins_with_the_first_hand_over() -> None:
    control = DelayControl(CODEL)
    control.begins(100.0)
    control.served(1.0, 101.0)

    assert control.drains_in(10, 101.0) == pytest.approx(1.0), "a tenth of the second that it took"


# Without it


def test_a_pool_without_overload_refuses_nobody(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiters = [world.enqueue(bucket) for _ in range(3)]
    world.pass_time(100.0)
    for _ in waiters:
        world.release(slot)

    assert outcomes(waiters) == "sss"
    assert not world.notes.looks
