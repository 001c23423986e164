"""What each verb does and what it leaves alone, where two rules meet."""

from __future__ import annotations

import random
from typing import Any

import pytest

from geventpool._scheduler.inbox import AT_WORK, CUT_SHORT, FREE
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket
from geventpool._scheduler.refusals import no_place, out_of_sockets
from geventpool._scheduler.state import CLOSED, IDLE, IN_USE, NEVER, SALVAGING
from geventpool._scheduler.waiter import Waiter
from geventpool.backoff import Backoff
from geventpool.errors import OutOfSockets, PoolDown, PoolOverloaded, Verdict
from geventpool.events import Reason
from geventpool.overload import CoDel
from support.world import HERE, REFUSED, World


@pytest.fixture
def world() -> World:
    return World()


# Checkout and release


def test_a_caller_that_comes_finds_what_lies_behind_one_that_has_gone(world: World) -> None:
    bucket = world.full(3)
    first, gone, last = bucket.idle_slots()
    world.scheduler.peer_closed(gone, world.now)

    assert [world.checkout(bucket) for _ in range(2)] == [first, last]
    assert (bucket.idle, bucket._idle.tombstones) == (0, 0)


@pytest.mark.parametrize("max_uses", [None, 9])
def test_one_that_was_idle_and_then_handed_over_by_a_release_is_idle_since_then(
    world: World, max_uses: int | None
) -> None:
    bucket = world.full(1, max_uses=max_uses)
    world.now += 5
    slot = world.checkout(bucket)
    assert slot.idled == 5.0
    waiter = world.enqueue(bucket)
    world.release(slot)
    assert (waiter.slot, slot.idled) == (slot, 0.0)
    world.now += 1

    world.scheduler.cancel(waiter, world.now)

    assert (slot.state, slot.since, slot.uses) == (IDLE, world.now, 1)


def test_one_that_was_idle_and_comes_back_unused_has_been_idle_all_the_while(
    world: World,
) -> None:
    bucket = world.full(1)
    idle_since = world.now
    world.now += 5
    slot = world.checkout(bucket)

    world.scheduler.return_unused(slot, world.now)

    assert (slot.state, slot.since, slot.uses) == (IDLE, idle_since, 0)


def test_what_is_held_while_the_pool_is_disposed_is_kept_on_return(world: World) -> None:
    bucket = world.full(2)
    slot = world.checkout(bucket)

    world.scheduler.dispose(bucket, Reason.DISPOSED, world.now)
    world.release(slot)

    assert (slot.state, slot.close_reason) == (IDLE, None)
    assert world.notes.reasons == [Reason.DISPOSED]


@pytest.mark.pure_only("what is compiled reads the fields of a waiter without asking it")
@pytest.mark.parametrize("verb", ["enqueue", "release"])
def test_what_is_given_back_as_one_of_a_crowd_comes_or_is_served_is_handed_on_at_once(
    world: World, verb: str
) -> None:
    class Nosy(Waiter):
        """While it is looked at, another connection is given back."""

        __slots__ = ("left", "returned")

        def __getattribute__(self, name: str) -> Any:
            if name in ("deadline", "useless_after") and self.left:
                self.left -= 1
                world.release(self.returned)
            return super().__getattribute__(name)

    bucket = world.full(2)
    one, other = world.checkout(bucket), world.checkout(bucket)
    nosy = Nosy(bucket, 1, None, None)
    nosy.left, nosy.returned = int(verb == "enqueue"), one
    if verb == "enqueue":
        first = world.enqueue(bucket)
        world.scheduler.enqueue(nosy, world.now)
    else:
        world.scheduler.enqueue(nosy, world.now)
        first = world.enqueue(bucket)
        nosy.left = 1
        world.release(other)

    assert first.slot is one
    assert nosy.slot is (None if verb == "enqueue" else other)


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param("enqueue", marks=pytest.mark.pure_only("what is compiled compares numbers")),
        "release",
    ],
)
def test_what_cuts_short_one_of_a_crowd_is_followed_by_an_audit(world: World, verb: str) -> None:
    class Interrupted(float):
        def __ge__(self, other: object) -> bool:
            raise KeyboardInterrupt

    class Uncounted(list[Waiter]):
        def append(self, _: Waiter) -> None:
            raise KeyboardInterrupt

    bucket = world.full(1)
    slot = world.checkout(bucket)
    first = world.enqueue(bucket, 5.0)
    second = Waiter(bucket, 2, Interrupted(1e3), None)
    world.notes.woken = Uncounted()

    with pytest.raises(KeyboardInterrupt):
        if verb == "enqueue":
            world.scheduler.enqueue(second, world.now)
        else:
            world.release(slot)

    assert (world.scheduler.busy, world.notes.catching_up) == (CUT_SHORT, 1)
    assert first in bucket.waiters


def test_a_release_of_what_is_being_salvaged_changes_nothing_for_a_crowd(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.salvage(slot)

    world.release(slot)

    assert (waiter.pending, slot.state) == (True, SALVAGING)


def test_a_wait_may_be_ended_by_an_error_while_it_lasts(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    served, refused = world.enqueue(bucket), world.enqueue(bucket)
    world.release(slot)

    for waiter in (served, refused):
        world.scheduler.refuse(waiter, REFUSED, world.now)

    assert (served.error, served.slot) == (None, slot)
    assert refused.error is REFUSED
    assert bucket.fast_path_open == HERE


def test_what_min_idle_spares_is_handed_out_where_there_is_less_of_it(world: World) -> None:
    bucket = world.bucket(3, min_idle=2, idle_timeout=5.0)
    world.enqueue(bucket)
    slot = world.open_one()
    world.release(slot)
    world.now += 9

    assert world.checkout(bucket) is slot


@pytest.mark.parametrize("max_uses", [None, 9])
def test_once_the_last_that_waits_is_served_the_fast_path_is_open(
    world: World, max_uses: int | None
) -> None:
    bucket = world.full(2, max_uses=max_uses)
    slots = [world.checkout(bucket) for _ in range(2)]
    for _ in range(2):
        world.enqueue(bucket)

    opened = []
    for slot in slots:
        world.release(slot)
        opened.append(bucket.fast_path_open)

    assert opened == [0, HERE]


def test_what_is_put_aside_is_done_by_the_next_verb_where_no_call_can_be_asked_for(
    world: World,
) -> None:
    def no_room() -> None:
        raise RecursionError

    bucket = world.full(2)
    one, other = (world.checkout(bucket) for _ in range(2))
    world.notes.catch_up_later = no_room  # type: ignore[method-assign]
    world.scheduler.busy = AT_WORK
    world.release(one)
    assert one.state is IN_USE
    world.scheduler.busy = FREE

    world.release(other)

    assert bucket.idle == 2


def test_an_audit_after_a_cut_leaves_alone_what_the_next_verb_is_about(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    world.notes.adrift.append(slot)  # its holder has let go of it to give it back
    world.scheduler.busy = CUT_SHORT

    world.release(slot)

    assert slot.state is IDLE
    assert not world.notes.mendings


# Resize, and limits


@pytest.mark.parametrize(("min_size", "fits"), [(1, True), (2, True), (3, False)])
def test_no_more_than_a_limit_holds_may_be_kept_open_but_as_much_as_before_may(
    world: World, min_size: int, fits: bool
) -> None:
    limit = Limit(3)
    bucket = world.full(2, limits=(limit,))
    limit.maximum = 0

    if fits:
        world.scheduler.resize(bucket, 3, min_size, world.now)
        assert bucket.min_size == min_size
    else:
        with pytest.raises(ValueError, match="cannot hold the 3 connections"):
            world.scheduler.resize(bucket, 3, min_size, world.now)
        assert (bucket.size, bucket.min_size) == (2, 2)


def test_minimums_of_one_limit_add_up(world: World) -> None:
    limit = Limit(3)
    world.full(1, name="a", limits=(limit,))

    with pytest.raises(ValueError, match=r"cannot hold the 4 connections .* \(min_size of 'b'"):
        world.bucket(3, 3, name="b", limits=(limit,))
    world.bucket(2, 2, name="b", limits=(limit,))


def test_the_fast_path_that_is_allowed_is_shut_for_now(world: World) -> None:
    bucket = world.full(1)
    assert bucket.fast_path_open == HERE

    bucket.allow_fast_path(HERE, 5.0)

    assert (bucket.fast_path_open, bucket.fast_path_max_idle) == (0, 5.0)


def test_what_min_idle_spares_of_a_large_fixed_pool_is_min_idle() -> None:
    bucket = Bucket("b", size=int("1000"), min_size=int("1000"), min_idle=3)

    assert bucket.idle_spared == 3
    assert Bucket("b", size=4, min_size=2, min_idle=1).idle_spared == 2


def test_a_limit_that_was_lowered_is_the_one_that_is_named(world: World) -> None:
    total = Limit(2, "total")
    bucket = world.bucket(3, limits=(total,), fail_when_full=True)
    for _ in range(2):
        world.enqueue(bucket)
        world.open_all()
    total.maximum = 1

    waiter = world.enqueue(bucket)

    assert isinstance(waiter.error, OutOfSockets)
    assert (waiter.error.limit, waiter.error.used, waiter.error.maximum) == ("total", 2, 1)


@pytest.mark.parametrize(("used", "server"), [(3, True), (2, True), (1, False)])
def test_it_is_the_server_that_has_no_place_if_its_own_limit_has_none(
    used: int, server: bool
) -> None:
    bucket = Bucket("b", size=2, min_size=0)
    bucket.ceiling.lower(2, REFUSED, 1.0)
    bucket.own.used = used

    assert (no_place(bucket) is REFUSED) is server
    assert out_of_sockets(bucket).limit == "b"


def test_of_all_its_limits_without_a_place_the_widest_is_named() -> None:
    wide, narrow = Limit(4, "wide"), Limit(2, "narrow")
    bucket = Bucket("b", size=1, min_size=0, limits=(narrow, wide))
    bucket.own.used = narrow.used = 1
    assert out_of_sockets(bucket).limit == "b"

    narrow.used = 2
    assert out_of_sockets(bucket).limit == "narrow"
    wide.used = 5
    assert out_of_sockets(bucket).limit == "wide"


def test_a_pool_that_is_added_has_its_fast_path_open_and_one_of_many_has_none(
    world: World,
) -> None:
    assert world.bucket(1).fast_path_open == HERE
    assert world.bucket(1, transient=True).fast_path_open == 0


@pytest.mark.parametrize(("uses", "goes"), [(1, False), (2, True), (3, True)])
def test_a_maximum_of_uses_holds_for_those_that_were_used_more_often(
    world: World, uses: int, goes: bool
) -> None:
    bucket = world.full(1, max_uses=2)
    slot = world.checkout(bucket)
    slot.uses = uses

    world.release(slot)

    assert (world.notes.reasons == [Reason.WORN_OUT]) is goes


# What is dead, or connected to the wrong server


@pytest.mark.parametrize(("after", "failures"), [(8.0, 1), (8.5, 0)])
@pytest.mark.parametrize("uses", [0, 1, 2])
def test_one_that_was_dead_for_its_first_user_soon_after_the_dial_is_a_setback(
    world: World, uses: int, after: float, failures: int
) -> None:
    bucket = world.full(1)
    world.now += after
    slot = world.scheduler.try_checkout(bucket, world.now)
    assert slot is not None
    slot.uses = uses

    world.discard(slot, Reason.DEAD)

    assert bucket.failures == (failures if uses < 2 else 0)
    if bucket.failing:
        assert bucket.retry_at == pytest.approx(world.now + 1)


def test_one_that_is_held_cannot_be_dismissed(world: World) -> None:
    bucket = world.full(2)
    slot = world.checkout(bucket)

    assert not world.scheduler.dismiss(slot, Reason.EVICTED, world.now)
    assert not world.scheduler._verbs.dismiss(slot, Reason.EVICTED, world.now)
    assert slot.state is IN_USE
    assert world.scheduler.dismiss(next(bucket.idle_slots()), Reason.EVICTED, world.now)


def test_who_learns_that_a_server_is_wrong_decides_what_becomes_of_its_own_connection(
    world: World,
) -> None:
    bucket = world.full(3)
    slot, other = world.checkout(bucket), world.checkout(bucket)

    assert world.scheduler.wrong_server(slot, world.now)

    assert (slot.close_reason, other.close_reason) == (None, Reason.DRAINED)
    assert bucket.idle == 0


# Dials, checks and salvages


@pytest.mark.parametrize("held", [0, 1])
def test_fail_fast_tells_the_oldest_whether_or_not_another_connection_is_open(
    world: World, held: int
) -> None:
    bucket = world.bucket(2, fail_fast=True)
    for _ in range(held):
        world.enqueue(bucket)
        world.open_all()
    waiter = world.enqueue(bucket)

    world.fail_one()

    assert waiter.error is REFUSED


def test_no_more_are_checked_beside_those_being_checked_than_half(world: World) -> None:
    bucket = world.full(10)
    for slot in list(bucket.idle_slots())[3:]:
        slot.checked_at = world.now + 3
    world.now += 5
    assert world.scheduler.start_checks(bucket, 5.0, world.now) == world.now + 3
    assert (bucket.checking, bucket.idle) == (3, 7)
    world.now += 3

    world.scheduler.start_checks(bucket, 5.0, world.now)

    assert (bucket.checking, bucket.idle, bucket.in_use) == (5, 5, 0)
    world.scheduler.start_checks(bucket, 5.0, world.now)
    assert bucket.checking == 5


def test_none_is_checked_beside_more_than_half(world: World) -> None:
    bucket = world.full(6)
    for slot in list(bucket.idle_slots())[4:]:
        slot.checked_at = world.now + 3
    world.now += 5
    world.scheduler.start_checks(bucket, 5.0, world.now, at_once=True)
    assert (bucket.checking, bucket.idle) == (4, 2)
    world.now += 3

    world.scheduler.start_checks(bucket, 5.0, world.now)

    assert (bucket.checking, bucket.idle) == (4, 2)


def test_all_that_are_due_are_checked_at_once_if_they_are_more_likely_dead(world: World) -> None:
    bucket = world.full(5)
    world.checkout(bucket)
    world.now += 5

    again = world.scheduler.start_checks(bucket, 5.0, world.now, at_once=True)

    assert (bucket.checking, bucket.idle, again) == (4, 0, world.now + 5)


def test_once_a_check_or_a_salvage_has_ended_it_is_not_counted_any_more(world: World) -> None:
    bucket = world.full(4)
    world.salvage(world.checkout(bucket))
    world.now += 5
    world.scheduler.start_checks(bucket, 5.0, world.now)
    assert (bucket.checking, bucket.salvaging, bucket.idle, bucket.in_use) == (1, 1, 2, 0)

    world.scheduler.checked(world.notes.checks.pop(), True, world.now)
    assert (bucket.checking, bucket.salvaging, bucket.idle, bucket.in_use) == (0, 1, 3, 0)
    world.end_salvage(True)
    assert (bucket.checking, bucket.salvaging, bucket.idle, bucket.in_use) == (0, 0, 4, 0)
    world.checkout(bucket)
    assert bucket.in_use == 1


def test_one_that_is_salvaged_is_in_use_by_nobody(world: World) -> None:
    bucket = world.full(5)
    slots = [world.checkout(bucket) for _ in range(5)]

    world.salvage(slots[0])

    assert (bucket.in_use, bucket.salvaging) == (4, 1)


def test_after_a_fork_nothing_is_counted(world: World) -> None:
    bucket = world.full(6, limits=(Limit(9),))
    world.salvage(world.checkout(bucket))
    world.now += 5
    world.scheduler.start_checks(bucket, 5.0, world.now)
    world.discard(world.checkout(bucket))
    world.scheduler.resize(bucket, 9, 9, world.now)

    world.scheduler.forget_all(bucket)

    assert (bucket.open, bucket.connecting, bucket.closing, bucket.coming) == (0, 0, 0, 0)
    assert (bucket.checking, bucket.salvaging, bucket.idle, bucket.in_use) == (0, 0, 0, 0)
    assert bucket.fast_path_open == 0
    assert [(x.used, x._closing, x._coming) for x in bucket.limits] == [(0, 0, 0)] * 2
    assert bucket.missing == 9


def test_a_claim_for_no_waiter_is_an_error_in_the_books(world: World) -> None:
    bucket = world.full(1)
    world.checkout(bucket)
    world.enqueue(bucket)
    bucket.coming = 2

    with pytest.raises(AssertionError, match="has claimed a place for no waiter"):
        world.scheduler.ledger.file(bucket)


def test_an_audit_finds_one_that_lies_twice_among_the_idle(world: World) -> None:
    bucket = world.full(3)
    one, other, third = bucket.idle_slots()
    bucket._idle.refill([one, one, third])

    world.scheduler.audit(bucket, world.now)

    assert world.notes.mendings
    assert {world.checkout(bucket) for _ in range(3)} == {one, other, third}


def test_an_audit_finds_one_that_lies_twice_where_the_count_is_right(world: World) -> None:
    bucket = world.full(2)
    one, other = bucket.idle_slots()
    bucket._idle.refill([one, other, one])
    bucket._idle.tombstones = 1

    world.scheduler.audit(bucket, world.now)

    assert len(world.notes.mendings) == 1
    assert list(bucket._idle) == [one, other]
    assert bucket._idle.tombstones == 0


def test_an_audit_finds_one_of_another_pool_among_the_idle(world: World) -> None:
    bucket = world.full(2)
    stranger = next(world.full(1, name="other").idle_slots())
    one, other = bucket.idle_slots()
    bucket._idle.refill([one, stranger])

    world.scheduler.audit(bucket, world.now)

    assert list(bucket._idle) == [one, other]


def test_an_audit_finds_one_that_nobody_has_behind_one_that_is_held(world: World) -> None:
    bucket = world.full(3)
    held, lost = (world.checkout(bucket) for _ in range(2))
    world.notes.adrift.append(lost)

    world.scheduler.audit(bucket, world.now)

    assert (held.state, world.notes.closes) == (IN_USE, [lost])


def test_an_audit_has_a_limit_know_what_lies_idle_of_one_of_many(world: World) -> None:
    limit = Limit(2)
    bucket = world.bucket(1, transient=True, limits=(limit,))
    world.enqueue(bucket)
    slot = world.open_one()
    world.release(slot)
    limit._lru.discard(slot)
    assert limit.longest_idle() is None

    world.scheduler.audit(bucket, world.now)

    assert limit.longest_idle() is slot


@pytest.mark.parametrize("more", [1, -1])
def test_an_audit_finds_that_more_or_less_lies_idle_than_was_counted(
    world: World, more: int
) -> None:
    bucket = world.full(2)
    bucket._idle.tombstones = more

    world.scheduler.audit(bucket, world.now)

    assert len(world.notes.mendings) == 1
    assert (bucket.idle, bucket._idle.tombstones) == (2, 0)


def test_an_audit_has_a_limit_forget_what_was_closed_and_not_let_go(world: World) -> None:
    limit = Limit(2)
    bucket = world.bucket(1, transient=True, limits=(limit,))
    world.enqueue(bucket)
    slot = world.open_one()
    world.release(slot)
    slot.state = CLOSED
    bucket._idle.clear()

    world.scheduler.audit(bucket, world.now)

    assert slot not in limit._lru


@pytest.mark.parametrize("verb", ["try_checkout", "start_checks", "reap"])
def test_a_verb_with_an_answer_gives_it_after_one_that_was_cut_short(
    world: World, verb: str
) -> None:
    bucket = world.full(2, idle_timeout=50.0)
    world.now += 5
    world.scheduler.busy = CUT_SHORT

    if verb == "try_checkout":
        assert world.scheduler.try_checkout(bucket, world.now) is not None
    elif verb == "start_checks":
        assert world.scheduler.start_checks(bucket, 5.0, world.now) == world.now
        assert bucket.checking == 1
    else:
        assert world.scheduler.reap(bucket, world.now) == world.now + 45
    assert world.scheduler.busy == FREE


@pytest.mark.parametrize("first", [Reason.ERROR, Reason.DISPOSED, Reason.DRAINED])
def test_the_first_reason_to_close_stands(world: World, first: Reason) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)

    for reason in (first, Reason.EXPIRED, Reason.PEER_CLOSED):
        world.scheduler.mark_for_closing(slot, reason)

    assert slot.close_reason is first


def test_a_limit_knows_a_closed_pool_as_long_as_it_has_a_connection(world: World) -> None:
    limit = Limit(2)
    bucket, empty = world.full(1, limits=(limit,)), world.bucket(1, limits=(limit,))
    slot = world.checkout(bucket)

    for each in (bucket, empty):
        world.scheduler.shut(each, REFUSED, world.now)
    assert list(limit._buckets) == [bucket]
    world.release(slot)
    world.close_all()

    assert not limit._buckets


def test_an_audit_finds_that_what_is_held_does_not_wait_to_be_replaced(world: World) -> None:
    bucket = world.full(2)
    slot = world.checkout(bucket)
    bucket.retiring[slot] = None

    world.scheduler.audit(bucket, world.now)

    assert not bucket.retiring
    assert slot.state is IN_USE


def test_a_limit_is_counted_by_the_first_audit_on_a_clock_that_has_just_begun(
    world: World,
) -> None:
    world.now = 5.0
    limit = Limit(3)
    bucket = world.full(1, limits=(limit,))
    limit.used = 3

    world.scheduler.audit(bucket, world.now)

    assert limit.used == 1


# Down


def down(world: World) -> tuple[Bucket, Limit]:
    """A pool that is down and in a pause of ten seconds, and whose place another has taken."""
    limit = Limit(1)
    slow = Backoff(first=10.0, longest=10.0, jitter=0.0)
    bucket = world.bucket(1, limits=(limit,), down_after=1.0, backoff=slow)
    waiter = world.enqueue(bucket)
    world.fail_one()
    world.now += 1
    world.reconcile(bucket)
    assert waiter.error is not None
    other = world.bucket(1, name="other", limits=(limit,))
    world.enqueue(other)
    world.open_all()
    assert limit.full
    return bucket, limit


def test_who_comes_after_the_pause_to_one_that_cannot_be_probed_waits(world: World) -> None:
    bucket, _ = down(world)
    world.now = bucket.retry_at - 0.5
    assert world.scheduler.refusal(bucket, world.now) is not None

    for late in (0.0, 0.5, 5.0):
        now = bucket.retry_at + late
        assert world.scheduler.refusal(bucket, now) is None


def test_how_long_a_pool_was_down_is_known_after_a_time_in_which_it_could_not_be_probed(
    world: World,
) -> None:
    bucket, limit = down(world)
    since = bucket.outage.failing_since
    world.now = bucket.retry_at + 5
    world.reconcile(bucket)
    limit.maximum = 2
    world.scheduler.reconcile_limit(limit, world.now)
    world.reconcile(bucket)
    assert bucket.connecting == 1

    error = world.scheduler.refusal(bucket, world.now)

    assert isinstance(error, PoolDown)
    assert error.down_for == world.now - since


def test_a_dial_that_hangs_is_no_outage_though_one_failed_long_ago(world: World) -> None:
    bucket = world.bucket(1, down_after=3.0)
    waiter = world.enqueue(bucket)
    world.fail_one()
    world.scheduler.cancel(waiter, world.now)
    world.now = bucket.retry_at
    world.reconcile(bucket)
    world.now += 100
    waiter = world.enqueue(bucket)
    assert bucket.connecting == 1

    for _ in range(3):
        world.now += 9
        world.reconcile(bucket)

    assert waiter.pending
    assert not world.notes.down


def test_no_outage_begins_at_the_moment_at_which_a_pause_ends_without_a_place_to_dial(
    world: World,
) -> None:
    limit = Limit(1)
    bucket = world.bucket(1, limits=(limit,), down_after=1.0)
    waiter = world.enqueue(bucket)
    world.fail_one()
    other = world.bucket(1, name="other", limits=(limit,))
    world.enqueue(other)
    world.open_all()

    world.now = bucket.retry_at
    world.reconcile(bucket)

    assert waiter.pending
    assert not world.notes.down


def test_who_comes_as_a_probe_is_due_is_sent_away_and_the_probe_is_made(world: World) -> None:
    bucket = world.bucket(1, down_after=1.0)
    world.enqueue(bucket)
    world.fail_one()
    world.now = bucket.retry_at
    world.reconcile(bucket)
    world.fail_one()
    assert world.notes.down == [bucket]
    world.now = bucket.retry_at

    waiter = world.enqueue(bucket)

    assert isinstance(waiter.error, PoolDown)
    assert bucket.connecting == 1


def test_an_outage_at_a_pool_with_all_it_may_have_open_ends_when_the_pause_does(
    world: World,
) -> None:
    bucket = world.bucket(2, 2)
    world.open_one()
    slot = world.notes.dials.pop()
    world.scheduler.dial_failed(slot, REFUSED, world.now, Verdict.FATAL)
    world.scheduler.resize(bucket, 1, 1, world.now)
    assert (bucket.own.full, world.notes.down, world.notes.back) == (True, [bucket], [])

    world.now = bucket.retry_at
    world.reconcile(bucket)

    assert world.notes.back == [bucket]


def test_an_outage_lasts_while_it_is_probed_though_a_connection_is_open(world: World) -> None:
    bucket = world.bucket(3, 2)
    world.open_one()
    world.scheduler.dial_failed(world.notes.dials.pop(), REFUSED, world.now, Verdict.FATAL)
    world.notes.dials.clear()

    world.now = bucket.retry_at
    world.reconcile(bucket)
    assert (bucket.open, bucket.connecting, world.notes.back) == (1, 1, [])
    world.open_all()

    assert world.notes.back == [bucket]
    assert (bucket.troubled, bucket.patient) == (False, True)


def test_a_server_that_is_full_is_not_said_to_be_back_where_it_was_never_away(
    world: World,
) -> None:
    bucket = world.bucket(2)
    world.enqueue(bucket)

    world.scheduler.dial_failed(world.notes.dials.pop(), REFUSED, world.now, Verdict.SERVER_FULL)

    assert not world.notes.back


@pytest.mark.parametrize("min_size", [0, 1])
def test_a_full_server_of_which_no_more_is_wanted_is_not_looked_at_again(
    world: World, min_size: int
) -> None:
    bucket = world.bucket(3, min_size)
    world.enqueue(bucket)
    world.open_all()
    waiter = world.enqueue(bucket)
    world.scheduler.dial_failed(world.notes.dials.pop(), REFUSED, world.now, Verdict.SERVER_FULL)
    assert bucket.reconcile_at == world.now + 1
    world.scheduler.cancel(waiter, world.now)
    world.now += 0.5
    bucket.reconcile_at = NEVER
    world.notes.retries.clear()
    world.reconcile(bucket)

    assert bucket.reconcile_at == NEVER
    assert not world.notes.retries


@pytest.mark.parametrize("transient", [True, False])
def test_one_of_many_at_a_full_server_is_looked_at_again_though_nothing_is_wanted(
    world: World, transient: bool
) -> None:
    bucket = world.bucket(3, transient=transient)
    waiter = world.enqueue(bucket)
    world.scheduler.dial_failed(world.notes.dials.pop(), REFUSED, world.now, Verdict.SERVER_FULL)
    bucket.reconcile_at = NEVER
    world.scheduler.cancel(waiter, world.now)

    assert (bucket.reconcile_at == world.now + 1) is transient


def test_a_look_that_is_asked_for_already_is_not_asked_for_again(world: World) -> None:
    bucket = world.bucket(1, down_after=30.0)
    world.enqueue(bucket)
    world.fail_one()
    asked = list(world.notes.retries)

    world.reconcile(bucket)
    world.reconcile(bucket)

    assert world.notes.retries == asked


def test_after_a_fork_no_pool_is_in_trouble(world: World) -> None:
    bucket = world.bucket(1, down_after=30.0)
    world.enqueue(bucket)
    world.fail_one()
    assert bucket.troubled

    world.scheduler.forget_all(bucket)

    assert (bucket.troubled, bucket.patient) == (False, True)


# A slow line


def test_a_line_that_cannot_be_slow_may_be_looked_at(world: World) -> None:
    bucket = world.full(1)
    world.checkout(bucket)
    waiter = world.enqueue(bucket)

    world.scheduler.look_at_line(bucket, world.now + 99)

    assert waiter.pending


def test_dials_that_take_long_make_no_line_slow(world: World) -> None:
    bucket = world.bucket(2, overload=CoDel(target=0.1, interval=1.0))
    bucket.dials.width = 2
    waiters = [world.enqueue(bucket) for _ in range(2)]
    assert bucket.connecting == 2
    world.now += 5
    slot = world.open_one()
    assert waiters[0].slot is slot
    third = world.enqueue(bucket)

    world.release(slot)

    assert waiters[1].slot is slot
    assert third.pending


def test_how_long_one_has_waited_tells_on_a_clock_that_has_just_begun_too(world: World) -> None:
    world.now = 1.0
    bucket = world.full(1, overload=CoDel(target=0.1, interval=10.0))
    slot = world.checkout(bucket)
    waiters = [world.enqueue(bucket) for _ in range(2)]
    world.now = 3.0
    world.release(slot)
    assert waiters[0].slot is slot
    world.now = 12.0

    world.release(slot)

    assert waiters[1].error is not None


def test_how_long_it_lay_idle_is_known_on_a_clock_that_has_just_begun(world: World) -> None:
    world.now = 1.0
    bucket = world.full(1)
    world.now = 3.0

    assert world.checkout(bucket).idled == 2.0


def test_what_was_idle_for_too_long_is_known_on_a_clock_that_has_just_begun(world: World) -> None:
    world.now = 1.0
    bucket = world.full(1, idle_timeout=1.5)
    world.scheduler.resize(bucket, 1, 0, world.now)
    world.now = 3.0

    assert world.scheduler.try_checkout(bucket, world.now) is None
    assert world.notes.reasons == [Reason.IDLE]


def test_who_is_refused_is_told_when_those_behind_it_will_have_been_served(world: World) -> None:
    class Half(random.Random):
        def random(self) -> float:
            return 0.25

    codel = CoDel(target=0.1, interval=1.0)
    bucket = world.full(1, overload=codel, rng=Half())
    slot = world.checkout(bucket)
    late = [world.enqueue(bucket) for _ in range(3)]
    world.now += 2.4
    in_time = [world.enqueue(bucket) for _ in range(2)]
    assert bucket.delay_control is not None
    bucket.delay_control._gap = 10.0

    world.release(slot)

    for waiter in late:
        assert isinstance(waiter.error, PoolOverloaded)
        assert waiter.error.retry_after == pytest.approx(2 * 10.0 * 0.75)
        assert waiter.error.waited == pytest.approx(2.4)
    assert in_time[0].slot is slot


def test_a_wait_is_as_long_on_a_clock_that_has_just_begun(world: World) -> None:
    world.now = 1.0
    bucket = world.full(1, overload=CoDel(target=0.1, interval=1.0))
    slot = world.checkout(bucket)
    late = world.enqueue(bucket)
    world.now = 2.0

    world.release(slot)

    assert isinstance(late.error, PoolOverloaded)
    assert late.error.waited == 1.0
    assert slot.state is IDLE


@pytest.mark.parametrize(("waited", "served"), [(0.25, True), (0.375, False)])
def test_one_that_has_waited_for_just_twice_the_target_is_served(
    world: World, waited: float, served: bool
) -> None:
    bucket = world.full(1, overload=CoDel(target=0.125, interval=1.0))
    slot = world.checkout(bucket)
    world.enqueue(bucket)
    world.now += 3
    waiter = world.enqueue(bucket, came=world.now - waited)

    world.release(slot)

    assert (waiter.slot is slot) is served


def test_a_look_at_a_slow_line_leaves_the_one_alone_for_which_a_place_comes_free(
    world: World,
) -> None:
    bucket = world.full(1, overload=CoDel(target=0.1, interval=1.0))
    slot = world.checkout(bucket)
    first, second = world.enqueue(bucket), world.enqueue(bucket)
    world.discard(slot)
    assert (bucket.connecting, bucket.coming) == (0, 1)
    world.now += 9

    world.scheduler.look_at_line(bucket, world.now)

    assert first.pending
    assert second.error is not None


def test_none_is_sent_away_behind_one_that_has_not_waited_for_long(world: World) -> None:
    bucket = world.full(1, overload=CoDel(target=0.1, interval=1.0))
    slot = world.checkout(bucket)
    late = world.enqueue(bucket)
    world.now += 3
    in_time = world.enqueue(bucket)
    behind = world.enqueue(bucket, came=world.now - 3)

    world.release(slot)

    assert late.error is not None
    assert in_time.slot is slot
    assert behind.pending


def test_a_slot_that_goes_to_an_older_one_of_another_bucket_sends_nobody_away(
    world: World,
) -> None:
    total = Limit(1)
    bucket = world.bucket(1, limits=(total,), overload=CoDel(target=0.1, interval=1.0))
    world.enqueue(bucket)
    slot = world.open_one()
    other = world.bucket(1, name="other", limits=(total,))
    older = world.enqueue(other)
    younger = world.enqueue(bucket)
    world.now += 5
    assert slot.state is IN_USE

    world.release(slot)

    assert younger.pending
    world.close_all()
    world.open_all()
    assert older.slot is not None
