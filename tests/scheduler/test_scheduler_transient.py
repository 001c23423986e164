"""The scheduler's rules for buckets that are some of many, and for callers who do not wait.

As test_scheduler.py, of the options that EndpointPool and ConnectionManager are made of.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.state import CLOSED, CLOSING, CONNECTING, IDLE, IN_USE
from geventpool._scheduler.waiter import Waiter
from geventpool._util.heap import Heap
from geventpool.backoff import Backoff
from geventpool.errors import ConnectError, OutOfSockets
from geventpool.events import Reason
from support.world import REFUSED, Steps, World, assert_flat


@pytest.fixture
def world() -> World:
    return World()


def one_of_many(world: World, total: Limit, size: int = 1, **settings: Any) -> Bucket:
    settings.setdefault("name", f"of many {len(total._buckets)}")
    return world.bucket(size, 0, transient=True, limits=(total,), **settings)


def busy(world: World, total: Limit, **settings: Any) -> tuple[Bucket, Slot]:
    """One of many with a connection in use."""
    bucket = one_of_many(world, total, **settings)
    waiter = world.enqueue(bucket)
    world.open_all()
    assert waiter.slot is not None
    return bucket, waiter.slot


def idle(world: World, total: Limit, **settings: Any) -> tuple[Bucket, Slot]:
    """One of many with a connection that is idle."""
    bucket, slot = busy(world, total, **settings)
    world.release(slot)
    assert slot.state is IDLE
    return bucket, slot


# many: they come and go


def test_one_of_many_that_is_removed_is_not_kept_alive_by_its_limits_nor_by_the_scheduler(
    world: World,
) -> None:
    total = Limit(2)
    idle(world, total)  # stays in front of it among the idle
    world.now += 1
    bucket, slot = idle(world, total)
    assert world.scheduler.dismiss(slot, Reason.DISPOSED, world.now)
    world.close_all()
    idle(world, total)  # now it is full
    for each in list(total._buckets):
        if each is not bucket:
            world.checkout(each)
    world.enqueue(one_of_many(world, total))  # stays in front of it in line
    waiter = world.enqueue(bucket, 5.0)
    world.scheduler.cancel(waiter, world.now)
    assert not bucket.slots
    assert not bucket.waiters

    world.scheduler.remove(bucket)
    gone = weakref.ref(bucket)
    del bucket, slot, waiter, each
    world.notes.woken.clear()
    gc.collect()

    assert gone() is None
    assert total.used == 2


def test_a_slot_that_closes_is_let_go_of_though_one_idle_longer_stays(world: World) -> None:
    total = Limit(9)
    _, old = idle(world, total)
    world.now += 1
    bucket, slot = idle(world, total)
    taken = world.checkout(bucket)
    assert taken is slot
    world.discard(taken)
    world.close_all()

    assert slot.state is CLOSED
    assert list(total._lru) == [old]


def test_after_a_fork_a_limit_knows_none_of_the_idle_slots(world: World) -> None:
    total = Limit(9)
    bucket, _ = idle(world, total)

    world.scheduler.forget_all(bucket)

    assert len(total._lru) == 0
    assert total.used == 0


def test_many_have_no_minimum_to_dial_when_they_are_added(world: World) -> None:
    one_of_many(world, Limit(5), min_idle=1)

    assert world.notes.dials == []


def test_who_waits_for_a_full_limit_gets_the_place_of_the_longest_idle_of_all(
    world: World,
) -> None:
    total = Limit(3)
    slots = []
    for _ in range(3):
        slots.append(idle(world, total)[1])
        world.now += 1
    first = world.checkout(slots[0].bucket)  # used again: it is the last now
    world.now += 1
    world.release(first)
    wanted = one_of_many(world, total)

    waiter = world.enqueue(wanted)

    assert (world.notes.closes, world.notes.reasons) == ([slots[1]], [Reason.EVICTED])
    assert waiter.pending
    world.close_all()
    world.open_all()
    assert waiter.slot is not None


def test_the_longest_idle_is_found_among_one_of_many_and_one_of_few_alike(world: World) -> None:
    for few_first in (False, True):
        total = Limit(2)
        kinds = [False, True] if few_first else [True, False]
        slots = []
        for transient in kinds:
            bucket = world.bucket(
                1, 0, transient=transient, limits=(total,), name=f"many={transient}"
            )
            waiter = world.enqueue(bucket)
            world.open_all()
            assert waiter.slot is not None
            world.release(waiter.slot)
            slots.append(waiter.slot)
            world.now += 1

        assert total.longest_idle() is slots[0]
        world.scheduler.peer_closed(slots[0], world.now)
        assert total.longest_idle() is slots[1]
        world.scheduler.peer_closed(slots[1], world.now)
        assert total.longest_idle() is None
        world.close_all()


def test_one_of_many_has_no_fast_path_to_open_or_to_shut_for_a_thousand_others(
    world: World,
) -> None:
    total = Limit(1)
    _, slot = busy(world, total)
    opened = []
    open_door = world.scheduler.ledger.update_fast_path

    def note(bucket: Bucket) -> None:
        opened.append(bucket)
        open_door(bucket)

    others = [one_of_many(world, total) for _ in range(50)]
    world.scheduler.ledger.update_fast_path = note  # type: ignore[method-assign]
    world.enqueue(others[0])  # a waiter is blocked from now on
    world.release(slot)  # and from now on none is

    assert set(opened) <= {others[0], slot.bucket}


def test_callers_of_many_are_served_in_the_order_they_came_whichever_makes_room(
    world: World,
) -> None:
    total = Limit(1)
    _, slot = busy(world, total)
    buckets = [one_of_many(world, total) for _ in range(5)]
    waiters = [world.enqueue(bucket) for bucket in (*buckets, *buckets)]

    order = []
    for number in range(10):
        world.release(slot) if number % 2 else world.discard(slot)
        world.close_all()
        world.open_all()
        [served] = [w for w in waiters if w.slot is not None and w not in order]
        order.append(served)
        assert served.slot is not None
        slot = served.slot

    assert order == waiters


def test_callers_that_come_and_go_behind_one_who_waits_do_not_pile_up(world: World) -> None:
    total = Limit(1)
    busy(world, total)
    world.enqueue(one_of_many(world, total))
    bucket = one_of_many(world, total)

    for _ in range(1000):
        waiter = world.enqueue(bucket, 1.0)
        world.scheduler.cancel(waiter, world.now)

    assert len(total._queue) == 1
    assert len(total._queue._heap) < 100


def test_a_counter_absorbed_is_added(world: World) -> None:
    one, other = world.bucket(1), world.bucket(1)
    one.dial_failed, other.dial_failed = 3, 4
    one.reasons = {Reason.IDLE: 1}
    other.reasons = {Reason.IDLE: 2, Reason.LOST: 3}

    one.absorb(other)

    assert one.dial_failed == 7
    assert one.reasons == {Reason.IDLE: 3, Reason.LOST: 3}


# What a thousand of them cost


def full_limit(world: World, buckets: int) -> tuple[Limit, list[Slot]]:
    total = Limit(buckets)
    return total, [busy(world, total)[1] for _ in range(buckets)]


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_evict_costs_the_same_however_many_have_something_idle() -> None:
    def cost(buckets: int) -> int:
        world = World()
        total, slots = full_limit(world, buckets)
        for slot in slots:
            world.now += 1.0
            world.release(slot)
        bucket = one_of_many(world, total)
        waiter = Waiter(bucket, next(world.scheduler.tickets), None, None)
        steps = Steps().of(lambda: world.scheduler.enqueue(waiter, world.now))
        assert world.notes.closes == [slots[0]]
        return steps

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_a_release_costs_the_same_however_many_buckets_wait_for_it() -> None:
    def cost(buckets: int) -> int:
        world = World()
        total, slots = full_limit(world, 20)
        for _ in range(buckets):
            world.enqueue(one_of_many(world, total))
        return Steps().of(lambda: world.scheduler.release(slots[0], world.now))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_join_and_to_leave_cost_the_same_however_many_buckets_wait() -> None:
    def cost(buckets: int) -> int:
        world = World()
        total, _ = full_limit(world, 20)
        for _ in range(buckets):
            world.enqueue(one_of_many(world, total))
        bucket = one_of_many(world, total)
        waiter = Waiter(bucket, next(world.scheduler.tickets), None, None)
        steps = Steps().of(lambda: world.scheduler.enqueue(waiter, world.now))
        return steps + Steps().of(lambda: world.scheduler.cancel(waiter, world.now))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_a_close_that_ends_costs_the_same_however_many_buckets_wait_for_the_place() -> None:
    def cost(buckets: int) -> int:
        world = World()
        total, slots = full_limit(world, 20)
        for _ in range(buckets):
            world.enqueue(one_of_many(world, total))
        world.discard(slots[0])
        return Steps().of(lambda: world.scheduler.closed(slots[0], world.now))

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_to_come_and_to_go_costs_the_same_however_many_buckets_there_are() -> None:
    def cost(buckets: int) -> int:
        world = World()
        total, slots = full_limit(world, buckets)
        world.release(*slots)

        def come_and_go() -> None:
            world.scheduler.remove(one_of_many(world, total))

        return Steps().of(come_and_go)

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_when_all_are_due_together_each_costs_the_same_however_many_they_are() -> None:
    def cost(buckets: int) -> int:
        world = World()
        total, _ = full_limit(world, 1)
        waiters = [world.enqueue(one_of_many(world, total), 5.0) for _ in range(buckets)]
        steps = Steps().of(lambda: world.scheduler.expire(world.now + 5))
        assert all(waiter.expired for waiter in waiters)
        return steps // buckets

    assert_flat(cost)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
def test_one_who_is_due_costs_the_same_however_many_stand_behind_it() -> None:
    def cost(behind: int) -> int:
        world = World()
        total, _ = full_limit(world, 1)
        bucket = one_of_many(world, total)
        waiters = [world.enqueue(bucket, 5.0 + n) for n in range(behind)]
        steps = Steps().of(lambda: world.scheduler.expire(world.now + 5))
        assert [waiter.expired for waiter in waiters[:2]] == [True, False]
        return steps

    assert_flat(cost)


def test_deadlines_of_many_buckets_that_come_together_end_waits_by_their_order(
    world: World,
) -> None:
    total, _ = full_limit(world, 1)
    buckets = [one_of_many(world, total) for _ in range(3)]
    waits = [5.0, 7.0, 3.0, 2.0, 9.0, 1.0]
    waiters = [world.enqueue(buckets[n % 3], wait) for n, wait in enumerate(waits)]
    world.notes.woken.clear()

    world.scheduler.expire(world.now + 6)

    assert world.notes.woken == [waiters[n] for n in (5, 3, 2, 0)]
    assert [w.expired for w in waiters] == [True, False, True, True, False, True]
    assert world.scheduler.next_deadline() == world.now + 7


# Heap


def test_a_heap_gives_the_least_key_and_what_has_left_is_let_go_of() -> None:
    class Thing:
        pass

    heap: Heap[Any] = Heap()
    things = [Thing() for _ in range(5)]
    for key, thing in zip((3, 1, 4, 2, 5), things, strict=True):
        heap.put(thing, key)
    assert heap.first() == (1, things[1])
    heap.discard(things[1])
    heap.discard(things[1])
    assert heap.first() == (2, things[3])
    heap.put(things[3], 9)
    assert heap.first() == (3, things[0])
    assert (things[1] in heap, things[3] in heap, len(heap)) == (False, True, 4)
    assert set(heap) == {things[0], things[2], things[3], things[4]}

    gone = [weakref.ref(things[1]), weakref.ref(things[4])]
    heap.discard(things[4])
    del things[4], things[1], thing
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_the_gaps_of_a_heap_never_outnumber_its_things_by_much() -> None:
    heap: Heap[int] = Heap()
    heap.put(-1, -1)
    for number in range(1000):
        heap.put(number, number)
        if number % 3:
            heap.discard(number)
        assert len(heap._heap) <= 65 + 2 * len(heap)
    order = []
    while heap:
        _, number = heap.first()
        heap.discard(number)
        order.append(number)

    assert order == [-1, *range(0, 1000, 3)]


# fail_when_full: no caller waits for a place


def test_prompt_a_caller_for_whom_there_is_no_place_gets_out_of_sockets_at_once(
    world: World,
) -> None:
    total = Limit(1, "sockets")
    busy(world, total)
    bucket = one_of_many(world, total, size=3, fail_when_full=True, name="api")

    waiter = world.enqueue(bucket)

    error = waiter.error
    assert isinstance(error, OutOfSockets)
    assert (error.pool, error.limit, error.used, error.maximum) == ("api", "sockets", 1, 1)
    assert "limit 'sockets' is reached, 1 of 1 connections, and none of them is idle" in str(error)
    assert not bucket.waiters
    assert not total._queue  # it blocks no other


def test_prompt_at_its_own_limit_too_which_is_named(world: World) -> None:
    bucket, _ = busy(world, Limit(5, "sockets"), fail_when_full=True, name="api")

    error = world.enqueue(bucket).error

    assert isinstance(error, OutOfSockets)
    assert (error.limit, error.used, error.maximum) == ("api", 1, 1)


def test_prompt_a_limit_with_one_place_left_is_not_the_one_that_is_named(world: World) -> None:
    total = Limit(2, "sockets")
    bucket, _ = busy(world, total, fail_when_full=True, name="api")
    assert total.spare == 1

    error = world.enqueue(bucket).error

    assert isinstance(error, OutOfSockets)
    assert error.limit == "api"


def test_prompt_what_is_idle_elsewhere_makes_room_and_it_waits_for_that(world: World) -> None:
    total = Limit(1)
    _, slot = idle(world, total)
    bucket = one_of_many(world, total, fail_when_full=True)

    waiter = world.enqueue(bucket)
    late = world.enqueue(bucket)

    assert waiter.pending
    assert slot.state is CLOSING
    assert isinstance(late.error, OutOfSockets)  # the place is the other's
    world.close_all()
    world.open_all()
    assert waiter.slot is not None


def test_prompt_a_dial_under_way_is_waited_for_by_as_many_as_it_serves(world: World) -> None:
    bucket = one_of_many(world, Limit(5), fail_when_full=True)

    first = world.enqueue(bucket)
    second = world.enqueue(bucket)

    assert first.pending
    assert isinstance(second.error, OutOfSockets)
    slot = world.open_one()
    assert first.slot is slot


def test_prompt_callers_wait_for_the_dial_window_while_there_is_room(world: World) -> None:
    bucket = one_of_many(world, Limit(5), size=5, fail_when_full=True)

    waiters = [world.enqueue(bucket) for _ in range(3)]

    assert bucket.connecting == 1
    assert all(waiter.pending for waiter in waiters)
    world.open_all()
    assert all(waiter.slot is not None for waiter in waiters)


def test_prompt_a_place_that_another_has_taken_meanwhile_ends_the_wait(world: World) -> None:
    total = Limit(2)
    bucket = one_of_many(world, total, size=2, fail_when_full=True)
    first, second = world.enqueue(bucket), world.enqueue(bucket)  # the window is one
    busy_one = one_of_many(world, total)
    world.enqueue(busy_one)
    assert (bucket.connecting, busy_one.connecting) == (1, 1)

    world.open_one()

    assert first.slot is not None
    assert isinstance(second.error, OutOfSockets)


def test_prompt_one_whose_place_goes_to_an_older_one_is_refused_and_its_burst_is_over(
    world: World,
) -> None:
    total = Limit(2)
    older = one_of_many(world, total, size=2, name="older")
    waiter = world.enqueue(older)
    world.open_all()
    bucket = one_of_many(world, total, size=2, fail_when_full=True, name="prompt")
    first = world.enqueue(bucket)
    world.open_all()
    assert first.slot is not None
    assert waiter.slot is not None
    world.discard(first.slot)
    bucket.dials.width = 8
    younger = world.enqueue(bucket)
    assert bucket.coming == 1

    world.discard(waiter.slot, Reason.UNREAD)
    total.maximum = 1
    again = world.enqueue(older, ticket=waiter.ticket)
    world.scheduler.reconcile_limit(total, world.now)

    assert isinstance(younger.error, OutOfSockets)
    assert (bucket.coming, bucket.dials.width, older.coming) == (0, 1, 1)
    world.close_all()
    world.open_all()
    assert again.slot is not None


# fail_when_down: no caller waits for the end of a back-off


def down(world: World, total: Limit | None = None, **settings: Any) -> Bucket:
    settings.setdefault("backoff", Backoff(first=1.0, longest=8.0, jitter=0.0))
    return one_of_many(world, total or Limit(9), size=9, fail_when_down=True, **settings)


def test_down_fails_all_that_wait_get_the_error_of_the_dial_each_its_own(world: World) -> None:
    bucket = down(world)
    waiters = [world.enqueue(bucket) for _ in range(3)]

    world.fail_one()

    errors = [waiter.error for waiter in waiters]
    assert [type(error) for error in errors] == [OSError] * 3
    assert [str(error) for error in errors] == ["refused"] * 3
    assert len({id(error) for error in (*errors, REFUSED)}) == 4
    assert not bucket.waiters


def test_down_fails_who_comes_during_the_back_off_gets_it_at_once(world: World) -> None:
    bucket = down(world)
    world.enqueue(bucket)
    world.fail_one()
    world.now += 0.9

    waiter = world.enqueue(bucket)

    assert str(waiter.error) == "refused"
    assert not world.notes.dials
    world.now += 0.2
    waiter = world.enqueue(bucket)
    assert waiter.pending
    assert waiter.slot is None
    assert waiter.bucket.connecting == 1
    slot = world.open_one()
    assert waiter.slot is slot


def test_down_fails_those_for_whom_another_dial_is_under_way_wait_for_that(world: World) -> None:
    bucket = down(world)
    waiters = [world.enqueue(bucket) for _ in range(4)]
    world.open_one()  # the window is two from now on
    assert bucket.connecting == 2

    world.fail_one()

    assert [waiter.pending for waiter in waiters] == [False, True, False, False]
    assert [waiter.error is not None for waiter in waiters] == [False, False, True, True]
    slot = world.open_one()
    assert waiters[1].slot is slot


def test_down_fails_what_broke_unused_is_told_of_where_no_dial_has_failed(world: World) -> None:
    bucket = down(world, name="api")
    waiter = world.enqueue(bucket)
    slot = world.open_one()
    assert waiter.slot is slot
    world.discard(slot, Reason.DEAD)

    error = world.enqueue(bucket).error

    assert isinstance(error, ConnectError)
    assert "'api': its last connections broke at once" in str(error)


def test_down_fails_a_kill_says_nothing_about_the_server(world: World) -> None:
    bucket = down(world)
    world.enqueue(bucket)
    world.scheduler.dial_failed(world.notes.dials.pop(), KeyboardInterrupt(), world.now)

    assert bucket.last_error is None


def test_down_fails_a_copy_is_made_of_an_error_that_refuses_to_be_copied(world: World) -> None:
    class Stubborn(OSError):
        def __copy__(self) -> Any:
            raise TypeError("there can be only one")

    class Other(OSError):
        def __copy__(self) -> Any:
            return "a copy"

    for error in (Stubborn("down"), Other("down")):
        bucket = down(world)
        waiter = world.enqueue(bucket)
        error.__cause__ = cause = KeyError()
        world.scheduler.dial_failed(world.notes.dials.pop(), error, world.now)
        assert waiter.error is not error
        assert type(waiter.error) is type(error)
        assert waiter.error.args == error.args
        assert waiter.error.__cause__ is cause
    plain = OSError("down")
    plain.__cause__ = cause
    bucket = down(world)
    waiter = world.enqueue(bucket)
    world.scheduler.dial_failed(world.notes.dials.pop(), plain, world.now)
    assert waiter.error is not plain
    assert waiter.error is not None
    assert waiter.error.__cause__ is cause


# min_idle: what idle_timeout spares


def three_idle(world: World, **settings: Any) -> Bucket:
    bucket = one_of_many(world, Limit(9), size=3, idle_timeout=10.0, **settings)
    waiters = [world.enqueue(bucket) for _ in range(3)]
    world.open_all()
    world.release(*[waiter.slot for waiter in waiters if waiter.slot is not None])
    assert bucket.idle == 3
    return bucket


@pytest.mark.parametrize("min_idle", [0, 1, 2, 3])
def test_idle_timeout_spares_min_idle_connections_and_dials_none(
    world: World, min_idle: int
) -> None:
    bucket = three_idle(world, min_idle=min_idle)

    world.scheduler.reap(bucket, world.now + 10)
    world.close_all()

    assert bucket.open == min_idle
    assert not world.notes.dials


@pytest.mark.parametrize("min_idle", [0, 1])
def test_what_min_idle_spares_is_handed_out_though_it_was_idle_for_long(
    world: World, min_idle: int
) -> None:
    bucket = three_idle(world, min_idle=min_idle)
    world.scheduler.reap(bucket, world.now + 9)
    world.now += 20  # the reaper is late

    slot = world.scheduler.try_checkout(bucket, world.now)

    assert (slot is not None) == bool(min_idle)
    assert world.notes.reasons == [Reason.IDLE] * (3 - min_idle)


def test_what_min_idle_spares_expires_and_is_evicted_and_drained_all_the_same(
    world: World,
) -> None:
    for end in ("expire", "evict", "drain"):
        total = Limit(1)
        bucket, slot = idle(
            world, total, min_idle=1, max_lifetime=50.0 if end == "expire" else None
        )
        if end == "expire":
            world.scheduler.reap(bucket, world.now + 50)
        elif end == "evict":
            world.enqueue(one_of_many(world, total))
        else:
            world.scheduler.drain(bucket, 0.0, world.now)

        assert slot.state is CLOSING
        world.notes.closes.clear()
        world.notes.dials.clear()
    assert world.notes.reasons == [Reason.EXPIRED, Reason.EVICTED, Reason.DRAINED]


def test_what_is_in_use_counts_in_min_idle(world: World) -> None:
    bucket = three_idle(world, min_idle=1)
    slot = world.checkout(bucket)
    assert slot.state is IN_USE

    world.scheduler.reap(bucket, world.now + 10)
    world.close_all()

    assert (bucket.in_use, bucket.idle) == (1, 0)


def test_a_floor_above_min_idle_is_what_counts(world: World) -> None:
    bucket = world.bucket(4, 3, idle_timeout=10.0, min_idle=1)
    world.open_all()

    world.scheduler.reap(bucket, world.now + 10)

    assert bucket.open == 3


def test_the_states_of_a_dial_of_many_are_those_of_any(world: World) -> None:
    total = Limit(2)
    bucket = one_of_many(world, total)
    world.enqueue(bucket)
    [slot] = bucket.slots
    assert slot.state is CONNECTING

    world.scheduler.cancel_dial(slot, world.now)

    # A caller waits, so the next one is under way.
    assert [s.state for s in bucket.slots] == [CONNECTING]
    assert slot.state is CLOSED
    assert total.used == 1
