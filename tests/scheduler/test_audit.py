"""One verb at a time, and books that are set right whatever cuts a verb short."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

import geventpool
from geventpool import ConnectionPool, EndpointPool
from geventpool._scheduler.inbox import AT_WORK, CUT_SHORT, FREE
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket
from geventpool._scheduler.scheduler import AUDIT_EVERY
from geventpool._scheduler.state import (
    CHECKING,
    CLOSED,
    CLOSING,
    CONNECTING,
    IDLE,
    IN_USE,
    SALVAGING,
)
from geventpool.events import Reason
from support.world import World

PACKAGE = Path(geventpool.__file__).parent
#: The files between a caller and its connection, and back.
WAY = {
    *map(str, (PACKAGE / "_scheduler").glob("*.py")),
    *map(str, (PACKAGE / "_runtime").glob("*.py")),
    *(str(PACKAGE / "pools" / name) for name in ("base.py", "connection_pool.py", "lease.py")),
}


@pytest.fixture
def world() -> World:
    return World()


# One at a time


def test_what_comes_while_the_scheduler_is_at_work_is_done_after_that(world: World) -> None:
    bucket = world.full(2)
    one, other = world.checkout(bucket), world.checkout(bucket)
    waiters = [world.enqueue(bucket) for _ in range(2)]
    wake = world.scheduler._wake
    seen = []

    def release_another(callback: object, waiter: Any) -> Any:
        if not seen:
            seen.append(bucket.fast_path_open or world.scheduler.busy)
            world.release(other)  # as a finalizer would, in the middle of the first release
            seen.append(other.state)
            assert waiters[1].pending
        return wake(callback, waiter)

    world.scheduler._wake = release_another
    world.release(one)

    assert seen == [AT_WORK, IN_USE]
    assert [waiter.slot for waiter in waiters] == [one, other]
    assert world.scheduler.busy == FREE


def test_a_caller_that_comes_while_the_scheduler_is_at_work_finds_nothing_and_waits(
    world: World,
) -> None:
    bucket = world.full(1)
    world.scheduler.busy = AT_WORK

    assert world.scheduler.try_checkout(bucket, world.now) is None
    waiter = world.enqueue(bucket)
    assert not bucket.waiters
    assert world.notes.catching_up
    world.scheduler.catch_up(world.now)

    assert waiter.slot is not None
    assert not world.notes.mendings


def test_verbs_with_an_answer_give_one_while_the_scheduler_is_at_work(world: World) -> None:
    bucket = world.full(1)
    [slot] = bucket.slots
    world.scheduler.busy = AT_WORK

    assert world.scheduler.reap(bucket, world.now) == world.now
    assert world.scheduler.start_checks(bucket, 5.0, world.now) == world.now
    assert world.scheduler.dismiss(slot, Reason.DISPOSED, world.now) is False
    world.scheduler.catch_up(world.now)
    assert slot.state is IDLE
    assert world.scheduler.dismiss(slot, Reason.DISPOSED, world.now)


def test_an_error_in_a_verb_that_was_put_aside_is_not_that_of_who_was_at_work(
    world: World,
) -> None:
    bucket = world.full(1)
    [slot] = bucket.slots
    world.scheduler.busy = AT_WORK
    world.scheduler.reconcile(bucket, world.now)
    world.scheduler._put_aside.appendleft((len, (3,)))  # which raises
    world.scheduler.busy = FREE

    assert world.scheduler.dismiss(slot, Reason.DISPOSED, world.now)

    assert world.scheduler.busy == CUT_SHORT
    world.scheduler.catch_up(world.now)
    assert world.scheduler.busy == FREE
    assert not world.scheduler._put_aside


def test_a_verb_that_was_cut_short_is_followed_by_an_audit_before_the_next(world: World) -> None:
    bucket = world.full(2)
    one, other = world.checkout(bucket), world.checkout(bucket)
    move = world.scheduler.ledger.move

    def cut_short(slot: Any, state: Any) -> None:
        slot.state = state
        raise KeyboardInterrupt

    world.scheduler.ledger.move = cut_short  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.discard(one)
    world.scheduler.ledger.move = move  # type: ignore[method-assign]
    assert (bucket.open, bucket.closing) == (2, 0)

    world.release(other)

    assert (bucket.open, bucket.closing, bucket.idle) == (1, 1, 1)
    assert world.notes.closes == [one]
    assert "closing was 0 and is 1" in world.notes.mendings[0]


def test_a_scheduler_that_seems_to_be_at_work_for_ever_is_freed_from_the_hub(
    world: World,
) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    world.scheduler.busy = AT_WORK  # cut short at its very end
    world.release(slot)
    assert slot.state is IN_USE

    world.scheduler.catch_up(world.now)

    assert (world.scheduler.busy, slot.state) == (FREE, IDLE)


# What an audit finds


def audited(world: World, bucket: Bucket) -> str:
    world.notes.mendings.clear()
    world.scheduler.audit(bucket, world.now)
    return "; ".join(world.notes.mendings)


def test_an_audit_finds_nothing_in_books_that_are_right(world: World) -> None:
    limit = Limit(3)
    bucket = world.full(2, limits=(limit,))
    world.checkout(bucket)
    world.checkout(bucket)
    world.enqueue(bucket, 5.0)
    other = world.bucket(2, limits=(limit,))
    world.enqueue(other)
    world.enqueue(other)

    assert [audited(world, each) for each in (bucket, other)] == ["", ""]


def test_an_audit_finds_nothing_wrong_with_hundreds_of_idle_slots(world: World) -> None:
    assert audited(world, world.full(300)) == ""


def test_an_audit_finds_nothing_wrong_with_slots_in_every_state(world: World) -> None:
    limit = Limit(9)
    bucket = world.full(5, limits=(limit,))
    world.checkout(bucket)
    world.discard(world.checkout(bucket))
    world.salvage(world.checkout(bucket))
    world.now += 5
    world.scheduler.start_checks(bucket, 5.0, world.now)
    world.scheduler.resize(bucket, 6, 6, world.now)
    states = {slot.state for slot in bucket.slots}
    assert states == {CONNECTING, IDLE, IN_USE, CHECKING, SALVAGING, CLOSING}
    names = ("open", "connecting", "checking", "salvaging", "closing")
    counts = [getattr(bucket, name) for name in names]

    assert audited(world, bucket) == ""
    assert [getattr(bucket, name) for name in names] == counts
    bucket.salvaging = 7
    assert audited(world, bucket) == "salvaging was 7 and is 1"


def test_an_audit_gives_back_an_idle_slot_that_was_popped_and_dropped(world: World) -> None:
    bucket = world.bucket(3, 3)
    while world.notes.dials:
        world.open_one()
        world.now += 1
    order = list(bucket.idle_slots())
    bucket.pop_idle()

    assert "3 slots lay idle, 2 were counted" in audited(world, bucket)
    assert list(bucket.idle_slots()) == order


def test_an_audit_closes_what_was_handed_out_and_nobody_has(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.notes.adrift.append(slot)

    assert "no greenlet had to do with a slot that was in use" in audited(world, bucket)
    assert world.notes.reasons == [Reason.LOST]
    world.close_all()
    world.open_all()
    assert waiter.slot is not None


def test_an_audit_leaves_what_a_waiter_is_about_to_have(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.release(slot)
    world.notes.adrift.append(slot)  # it has not run yet

    assert audited(world, bucket) == ""
    world.notes.gone.append(waiter)
    assert "in use" in audited(world, bucket)


@pytest.mark.parametrize("woken", [True, False])
def test_an_audit_wakes_a_waiter_that_was_served_and_not_woken(world: World, woken: bool) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiter = world.enqueue(bucket)
    world.release(slot)
    world.notes.adrift.append(slot)
    world.notes.woken.clear()
    if not woken:
        waiter.wake_handle = None

    audited(world, bucket)

    assert world.notes.woken == ([] if woken else [waiter])


@pytest.mark.parametrize("woken", [True, False])
def test_an_audit_lets_go_of_a_waiter_that_was_served_and_is_still_in_line(
    world: World, woken: bool
) -> None:
    bucket = world.full(1)
    world.checkout(bucket)
    waiter = world.enqueue(bucket)
    waiter.expired = True
    waiter.wake_handle = "woken" if woken else None

    assert "a waiter was served and not let go" in audited(world, bucket)
    assert not bucket.waiters
    assert bucket not in world.scheduler.with_waiters
    assert world.notes.woken == ([] if woken else [waiter])


def test_an_audit_drops_a_waiter_whose_greenlet_is_gone(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    ghost, waiter = world.enqueue(bucket), world.enqueue(bucket)
    world.notes.gone.append(ghost)

    assert "a waiter was gone" in audited(world, bucket)
    world.release(slot)
    assert (ghost.slot, waiter.slot) == (None, slot)


def test_an_audit_puts_the_line_in_order_and_knows_all_deadlines(world: World) -> None:
    bucket = world.full(1)
    slot = world.checkout(bucket)
    waiters = [world.enqueue(bucket, seconds) for seconds in (9.0, 3.0, 6.0)]
    bucket.waiters.move_to_end(waiters[0])
    bucket.waiters._early.clear()
    world.scheduler.with_waiters.clear()

    audited(world, bucket)

    assert list(bucket.waiters) == waiters
    assert world.scheduler.next_deadline() == world.now + 3.0
    world.scheduler.expire(world.now + 6)
    assert [waiter.expired for waiter in waiters] == [False, True, True]
    world.release(slot)
    assert waiters[0].slot is slot


def test_an_audit_takes_up_again_what_no_greenlet_works_on(world: World) -> None:
    limit = Limit(3)
    bucket = world.full(3, limits=(limit,))
    one, other, third = bucket.slots
    world.scheduler.dismiss(one, Reason.DISPOSED, world.now)
    world.scheduler.ledger.begin_check(other)
    bucket._idle.compact()
    world.notes.checks.clear()
    world.notes.closes.clear()
    world.notes.reasons.clear()

    text = audited(world, bucket)

    assert "a slot that was closing" in text
    assert "a slot that was checking" in text
    assert world.notes.closes == [one, other]
    assert third.state is IDLE
    world.close_all()
    assert bucket.connecting == 1
    world.notes.dials.clear()
    assert "a slot that was connecting" in audited(world, bucket)
    assert bucket.connecting == len(world.notes.dials) == 1
    assert limit.used == 2


def test_an_audit_closes_what_no_greenlet_salvages(world: World) -> None:
    bucket = world.full(2)
    slot = world.checkout(bucket)
    world.salvage(slot)
    assert audited(world, bucket) == ""
    world.notes.salvages.clear()

    assert "a slot that was salvaging" in audited(world, bucket)
    assert (world.notes.closes, world.notes.reasons) == ([slot], [Reason.LOST])


def test_an_audit_lets_go_of_a_slot_that_was_closed_and_kept(world: World) -> None:
    limit = Limit(3)
    bucket = world.full(2, limits=(limit,))
    slot = world.checkout(bucket)
    slot.state = CLOSED

    assert "a slot was closed and not let go" in audited(world, bucket)
    assert (limit.used, bucket.own.used, bucket.open) == (2, 2, 1)  # its replacement, too
    assert bucket.connecting == 1


def test_an_audit_counts_a_shared_limit_once_a_minute_or_if_a_bucket_was_wrong(
    world: World,
) -> None:
    limit = Limit(9)
    bucket = world.full(2, limits=(limit,))
    audited(world, bucket)

    limit.used = 7
    assert audited(world, bucket) == ""
    bucket.open = 7
    assert audited(world, bucket) == "open was 7 and is 2; used was 7 and is 2"
    limit._closing = 3
    world.now += AUDIT_EVERY
    assert audited(world, bucket) == "closing was 3 and is 0"


def test_audits_within_a_minute_count_a_claim_once(world: World) -> None:
    total = Limit(1)
    bucket = world.full(1, limits=(total,))
    world.discard(world.checkout(bucket))
    world.enqueue(bucket)

    for _ in range(3):
        world.scheduler.audit(bucket, world.now)

    assert bucket.coming == 1
    assert bucket.own.spare == total.spare == 0


def test_an_audit_gives_places_that_were_claimed_to_whose_turn_it_is(world: World) -> None:
    limit = Limit(1)
    a = world.full(1, limits=(limit,))
    world.scheduler.resize(a, 1, 0, world.now)
    slot = world.checkout(a)
    b, c = world.bucket(1, limits=(limit,)), world.bucket(1, limits=(limit,))
    first, second = world.enqueue(b), world.enqueue(c)
    world.discard(slot)
    assert (b.coming, c.coming, limit._coming) == (1, 0, 1)
    limit._coming = 5

    world.now += AUDIT_EVERY
    audited(world, b)

    assert (b.coming, c.coming, limit._coming) == (1, 0, 1)
    world.close_all()
    world.open_all()
    assert (first.slot is not None, second.pending) == (True, True)


# Every line between a caller and its connection


class Conn:
    def close(self) -> None:
        pass


class AtLine:
    """Raises *error* at the n-th line that is run of the files between; or calls *instead*."""

    def __init__(
        self, nth: int, error: type[BaseException], instead: Callable[[], object] | None = None
    ) -> None:
        self.count = 0
        self.where = ""
        self._nth = nth
        self._error = error
        self._instead = instead

    def __enter__(self) -> AtLine:
        self._me = gevent.getcurrent()
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in WAY or gevent.getcurrent() is not self._me:
            return None
        if event == "line":
            self.count += 1
            if self.count == self._nth:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                sys.settrace(None)
                if self._instead is None:
                    raise self._error("cut short")
                self._instead()
        return self._trace


def use_once(pool: Any) -> None:
    with pool.get() as conn:
        assert type(conn) is Conn


def use_of_an_endpoint(pool: Any) -> None:
    with pool.get("a") as conn:
        assert type(conn) is Conn


def use_by_hand(pool: Any) -> None:
    conn = pool.acquire()
    try:
        assert type(conn) is Conn
    finally:
        pool.release(conn)


def spoil_by_hand(pool: Any) -> None:
    conn = pool.acquire()
    with pytest.raises(OSError, match="broken"):
        try:
            raise OSError("broken")
        finally:
            pool.release(conn)


def use_and_spoil(pool: Any) -> None:
    with pytest.raises(OSError, match="broken"), pool.get():
        raise OSError("broken")


def idle_pool() -> Any:
    pool = ConnectionPool(2, connect=Conn, timeout=5)
    pool.fill()
    return pool


class SalvagingPool(ConnectionPool[Any]):
    def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
        gevent.sleep(0)


def salvaging_pool() -> Any:
    pool = SalvagingPool(2, connect=Conn, timeout=5)
    pool.fill()
    return pool


def use_and_cut_short(pool: Any) -> None:
    with pytest.raises(gevent.Timeout), pool.get():
        raise gevent.Timeout


def pool_with_a_waiter() -> Any:
    """All is taken by others, who give it back as soon as this greenlet waits."""
    pool = idle_pool()
    conns = [pool.acquire() for _ in range(2)]
    gevent.spawn(lambda: [pool.release(conn) for conn in conns])
    return pool


def pool_of_endpoints() -> Any:
    """At its total, with an idle connection of another endpoint, that has to make room."""
    pool = EndpointPool(
        max_size=2,
        total_max_size=2,
        min_idle=0,
        idle_timeout=None,
        max_lifetime=None,
        connect=lambda endpoint: Conn(),
        timeout=5,
    )
    for endpoint in ("b", "c"):
        with pool.get(endpoint):
            pass
    return pool


def holders_seen(pool: Any, size: int) -> list[Any]:
    """What so many callers have at once."""
    seen: list[Any] = []

    def hold() -> None:
        arg = () if isinstance(pool, ConnectionPool) else ("a",)
        with pool.get(*arg, timeout=5) as conn:
            seen.append(conn)
            both.wait(5)

    both = gevent.event.Event()
    greenlets = [gevent.spawn(hold) for _ in range(size)]
    with gevent.Timeout(5, False):
        while len(seen) < size:
            gevent.sleep(0)
    both.set()
    gevent.joinall(greenlets, timeout=5)
    return seen


def settle(pool: Any) -> None:
    """What the hub does in a moment, and an audit in a minute."""
    gc.collect()
    gevent.sleep(0.001)
    runtime = pool._runtime
    for bucket in pool._all_buckets():
        runtime.scheduler.audit(bucket, 1e9)
    gevent.sleep(0.001)


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RecursionError, MemoryError])
@pytest.mark.parametrize(
    ("make", "use"),
    [
        (idle_pool, use_once),
        (idle_pool, use_and_spoil),
        (salvaging_pool, use_and_cut_short),
        (pool_with_a_waiter, use_once),
        (pool_of_endpoints, use_of_an_endpoint),
        (idle_pool, use_by_hand),
        (idle_pool, spoil_by_hand),
        (pool_with_a_waiter, use_by_hand),
    ],
    ids=[
        *("idle", "broken", "cut short", "in line", "at a full total"),
        *("by hand", "by hand, broken", "by hand, in line"),
    ],
)
def test_cut_short_at_any_line_no_place_is_lost_and_no_connection_has_two_holders(
    make: Callable[[], Any],
    use: Callable[[Any], None],
    error: type[BaseException],
    hub_errors: Any,
) -> None:
    nth = 0
    while True:
        nth += 1
        pool = make()
        with AtLine(nth, error) as line:
            try:
                use(pool)
            except (KeyboardInterrupt, RecursionError, MemoryError) as exc:
                del exc
        if not line.where:
            pool.close()
            break
        settle(pool)
        seen = holders_seen(pool, 2)
        stats = pool.stats()
        under_way = stats.checking + stats.salvaging
        found = len(set(map(id, seen))), stats.in_use, stats.waiting, under_way
        assert found == (2, 0, 0, 0), f"line {nth}, {line.where}: {pool!r}, {found}"
        assert pool._runtime.scheduler.busy == FREE, line.where
        pool.close(timeout=0)
        settle(pool)
    assert nth > 20


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RecursionError, MemoryError])
def test_a_salvage_cut_short_at_any_line_loses_no_place(
    error: type[BaseException], hub_errors: Any
) -> None:
    nth = 0
    while True:
        nth += 1
        pool = salvaging_pool()
        use_and_cut_short(pool)
        salvager = pool._runtime.salvager
        line = AtLine(nth, error)

        def salvage(item: Any, line: AtLine = line, salvager: Any = salvager) -> None:
            with line:
                try:
                    salvager._salvage(item)
                except (KeyboardInterrupt, RecursionError, MemoryError) as exc:
                    del exc

        # In the place of its own greenlet, which will find nothing to do.
        gevent.spawn(salvage, salvager.workers.queue.popleft()).join()
        if not line.where:
            pool.close()
            break
        settle(pool)
        stats = pool.stats()
        found = len(set(map(id, holders_seen(pool, 2)))), stats.salvaging, stats.in_use
        assert found == (2, 0, 0), f"line {nth}, {line.where}: {pool!r}, {found}"
        assert pool._runtime.scheduler.busy == FREE, line.where
        pool.close(timeout=0)
        settle(pool)
    assert nth > 20


# The collector ends what holds a connection, wherever it runs


def mendings_of(pool: Any) -> list[str]:
    """What an audit finds wrong."""
    mended: list[str] = []
    pool._runtime.mended = lambda bucket, what: mended.append(what)
    for bucket in pool._all_buckets():
        pool._runtime.scheduler.audit(bucket, 1e9)
    del pool._runtime.mended
    return mended


class Node:
    """Part of a cycle, which only the collector finds."""

    def __init__(self, held: Any) -> None:
        self.me = self
        self.held = held


def rows(pool: Any, *key: Any) -> Iterator[Any]:
    with pool.get(*key, timeout=5) as conn:
        yield conn


@pytest.fixture
def collector_at_work() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(2, 2, 2)
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize("kind", ["one", "endpoints"])
def test_what_the_collector_ends_in_the_middle_of_anything_gives_its_place_back(
    kind: str, collector_at_work: None
) -> None:
    if kind == "one":
        pool: Any = ConnectionPool(3, connect=Conn, timeout=5)
        keys: list[tuple[Any, ...]] = [()]
    else:
        pool = EndpointPool(
            max_size=2, total_max_size=3, connect=lambda endpoint: Conn(), idle_timeout=None
        )
        keys = [("a",), ("b",), ("c",)]
    holders: set[int] = set()

    def caller(number: int) -> None:
        for turn in range(40):
            key = keys[(number + turn) % len(keys)]
            if turn % 4 == 1:
                generator = rows(pool, *key)
                next(generator)
                Node(generator)
                del generator
            elif turn % 4 == 2:
                Node(pool.acquire(*key, timeout=5))
            else:
                with pool.get(*key, timeout=5) as conn:
                    assert id(conn) not in holders, "two have it"
                    holders.add(id(conn))
                    gevent.sleep(0)
                    holders.discard(id(conn))
                del conn  # or it would be alive for ever once the next to have it has lost it

    greenlets = [gevent.spawn(caller, number) for number in range(8)]
    gevent.joinall(greenlets, timeout=30, raise_error=True)
    assert all(greenlet.ready() for greenlet in greenlets)
    gc.collect()
    gevent.sleep(0.001)

    stats = pool.stats()
    assert (stats.in_use, stats.waiting) == (0, 0)
    assert pool._runtime.scheduler.busy == FREE
    assert mendings_of(pool) == []
    pool.close()


def crowd_at_a_full_total() -> tuple[Any, Any, list[Any]]:
    """A pool with four connections: two of a generator each that only the collector finds, one
    of this greenlet; and callers of three endpoints, who wait."""
    pool: Any = EndpointPool(
        max_size=4,
        total_max_size=4,
        connect=lambda endpoint: Conn(),
        idle_timeout=None,
        max_lifetime=None,
        timeout=5,
    )
    node = Node(None)
    for endpoint in ("a", "b"):
        generator = rows(pool, endpoint)
        next(generator)
        node = Node((node, generator))
    mine = pool.get("a"), pool.get("b")
    for lease in mine:
        lease.__enter__()

    def caller(endpoint: str) -> None:
        with pool.get(endpoint):
            gevent.sleep(0)

    waiting = [gevent.spawn(caller, "abc"[n % 3]) for n in range(4)]
    gevent.sleep(0)
    gevent.sleep(0)
    assert pool.stats().waiting == 4
    return pool, mine, waiting


@pytest.mark.pure_only("what is compiled has no lines to be counted or cut short at")
@pytest.mark.slow
def test_the_collector_may_end_a_generator_at_any_line_of_the_scheduler() -> None:
    at = 0
    gc.collect()
    gc.disable()
    try:
        while True:
            at += 1
            pool, mine, waiting = crowd_at_a_full_total()
            with AtLine(at, KeyboardInterrupt, gc.collect) as line:
                mine[0].__exit__(None, None, None)
            mine[1].__exit__(None, None, None)
            gc.collect()
            gevent.joinall(waiting, timeout=5)
            stats = pool.stats()
            found = sum(not each.successful() for each in waiting), stats.in_use, stats.waiting
            assert found == (0, 0, 0), f"line {at}, {line.where}: {pool!r}"
            assert mendings_of(pool) == [], line.where
            pool.close()
            if not line.where:
                break
    finally:
        gc.enable()
    assert at > 50
