"""A verb is about one use of one connection: whatever switches meanwhile, no other use is ended."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import sys
from time import monotonic
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event

from geventpool import ConnectionPool, EndpointPool, NotInUse, PoolListener, PoolTimeout, WrongHub
from support import LIBUV
from support.objects import Conn, Maker
from support.servers import EchoServer
from support.threads import in_thread
from support.waiting import until


class Bare:
    """A connection that cannot be weakly referenced, as those of many drivers in C."""

    __slots__ = ()

    def close(self) -> None:
        pass


class Resetting(ConnectionPool[Conn]):
    """Its resets wait for their turn."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.turns: list[Event] = []

    def _reset_connection(self, conn: Conn) -> None:
        turn = Event()
        self.turns.append(turn)
        turn.wait()


def test_a_connection_that_is_being_reset_is_not_in_use() -> None:
    pool = Resetting(1, connect=Maker())
    conn = pool.acquire()
    first = gevent.spawn(pool.release, conn)
    gevent.idle()

    for verb in (pool.release, pool.discard, pool.detach):
        with pytest.raises(NotInUse):
            verb(conn)

    pool.turns[0].set()
    first.get()
    assert pool.acquire(timeout=1) is conn
    assert len(pool.turns) == 1
    pool.close(timeout=0)


def test_a_reset_that_ends_after_a_close_by_force_gives_nothing_back() -> None:
    maker = Maker()
    pool = Resetting(1, connect=maker)
    conn = pool.acquire()
    releaser = gevent.spawn(pool.release, conn)
    gevent.idle()
    pool.close(timeout=0)
    pool.turns[0].set()
    releaser.get()

    assert conn.closed
    assert (pool.stats().idle, pool.stats().in_use, pool.stats().closing) == (0, 0, 0)


def test_a_listener_that_releases_and_raises_ends_no_other_use() -> None:
    class Hasty(PoolListener):
        def connection_checked_out(self, event: Any) -> None:
            told.append(event.connection)
            if len(told) > 1:
                return
            event.pool.release(event.connection)
            others.append(event.pool.acquire())
            raise gevent.GreenletExit

    others: list[Any] = []
    told: list[Any] = []
    pool = ConnectionPool(1, connect=Maker(), listeners=[Hasty()])
    with pytest.raises(gevent.GreenletExit):
        pool.acquire()

    assert pool.stats().in_use == 1
    pool.release(others[0])


def test_a_connection_that_a_listener_gave_back_is_handed_to_no_second_holder() -> None:
    class Hasty(PoolListener):
        def connection_checked_out(self, event: Any) -> None:
            event.pool.release(event.connection)

    pool = ConnectionPool(1, connect=Maker(), listeners=[Hasty()])
    with pytest.raises(NotInUse, match="listener"):
        pool.acquire()

    assert pool.stats().idle == 1


# Leases


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("kind", [ConnectionPool, EndpointPool])
def test_a_lease_that_is_entered_already_raises_and_the_first_goes_on(
    kind: Any, local: bool
) -> None:
    one = kind is ConnectionPool
    make = Maker()
    if one:
        pool = kind(1, connect=make, max_overflow=1, greenlet_local=local)
    else:
        pool = kind(connect=lambda endpoint: make(), greenlet_local=local)
    lease = pool.get() if one else pool.get("a")
    with lease as conn:
        with pytest.raises(RuntimeError, match="in a with already"), lease:
            pass
        assert pool.stats().in_use == 1
    assert not conn.closed
    with lease as again:  # but one after the other is fine
        assert again is conn
    pool.close()


def test_a_caller_out_of_time_whose_listener_waits_ends_no_look_of_the_next_one() -> None:
    class Checked(ConnectionPool[Conn]):
        def _keepalive(self, conn: Conn) -> None:
            if told:
                pool._runtime.scheduler.audit(pool._bucket, monotonic())
                go_on.set()
                first.join()
                pool._runtime.scheduler.audit(pool._bucket, monotonic())

    class Waiting(PoolListener):
        def acquire_timed_out(self, event: Any) -> None:
            told.append(event)
            go_on.wait()

    def out_of_time() -> None:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)

    told: list[Any] = []
    go_on = Event()
    with Checked(1, connect=Maker(), check_after=0.0, listeners=[Waiting()]) as pool:
        pool.fill()
        # There is no time for the check: the connection goes back, and the listener is told.
        first = gevent.spawn(out_of_time)
        until(lambda: told)
        second = gevent.spawn(pool.execute, lambda conn: conn.number)

        assert second.get(timeout=10) == 1
        first.get(timeout=10)
        assert sum(pool.stats().closed.values()) == 0


def test_a_lease_is_not_copied_as_two_would_end_one_use() -> None:
    with ConnectionPool(1, connect=Maker()) as pool, pool.get() as conn:
        for lease in (pool.get(), ConnectionPool(1, connect=Maker(), greenlet_local=True).get()):
            for make in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied"):
                    make(lease)
        assert conn.number == 1


def test_a_lease_for_which_a_greenlet_waits_cannot_be_entered_by_another() -> None:
    pool = ConnectionPool(1, connect=Maker())
    lease = pool.get(timeout=5)
    entered = []

    def use() -> None:
        with lease as conn:
            entered.append(conn)

    with pool.get():
        waiter = gevent.spawn(use)
        gevent.idle()
        with pytest.raises(RuntimeError, match="in a with already"):
            lease.__enter__()
    waiter.get()

    assert len(entered) == 1


def test_a_lease_whose_wait_was_in_vain_may_be_entered_again() -> None:
    pool = ConnectionPool(1, connect=Maker())
    lease = pool.get(timeout=0.01)
    with pool.get(), pytest.raises(TimeoutError):
        lease.__enter__()

    with lease:
        assert pool.stats().in_use == 1


def nested(pool: ConnectionPool[Any]) -> Any:
    with pool.get() as conn:
        yield conn
        yield conn


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_a_shared_connection_goes_back_with_the_last_of_those_that_share_it(
    order: tuple[int, ...],
) -> None:
    pool = ConnectionPool(1, connect=Maker(), greenlet_local=True)
    sharers = [nested(pool) for _ in range(3)]
    conns = [next(sharer) for sharer in sharers]
    assert len(set(conns)) == 1

    for number in order:
        assert pool.stats().in_use == 1
        for _ in sharers[number]:
            pass

    assert (pool.stats().in_use, pool.stats().idle) == (0, 1)
    assert not conns[0].closed


def test_a_shared_connection_that_one_has_broken_is_closed_when_the_last_is_left() -> None:
    pool = ConnectionPool(1, connect=Maker(), greenlet_local=True)
    first, second = nested(pool), nested(pool)
    conn, _ = next(first), next(second)
    with pytest.raises(OSError, match="broken"):
        first.throw(OSError("broken"))
    assert (pool.stats().in_use, conn.closed) == (1, False)
    for _ in second:
        pass
    pool.close()

    assert conn.closed


def test_a_lease_left_in_good_order_in_a_foreign_thread_stays_with_its_holder() -> None:
    pool = ConnectionPool(1, connect=Maker())
    pool.fill()
    lease = pool.get()
    conn = lease.__enter__()
    assert pool._bucket.fast_path_open  # the plain case
    with pytest.raises(WrongHub):
        in_thread(lambda: lease.__exit__(None, None, None))

    assert pool.stats().in_use == 1
    with pytest.raises(RuntimeError):
        lease.__enter__()
    lease.__exit__(None, None, None)
    assert (pool.stats().in_use, pool.stats().idle, conn.closed) == (0, 1, False)


@pytest.mark.parametrize("way", ["a with", "by hand"])
def test_what_no_other_caller_wants_is_lent_and_taken_back_without_the_scheduler(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ConnectionPool(2, connect=Maker())
    pool.fill()
    monkeypatch.setattr(pool._runtime.scheduler, "_do", None)
    if way == "a with":
        with pool.get() as conn:
            assert pool.holders()[0].connection is conn
    else:
        conn = pool.acquire()
        assert pool.holders()[0].connection is conn
        pool.release(conn)

    assert (pool.stats().idle, pool.stats().released) == (2, 1)


# The hub gives back, too


class Silent(ConnectionPool[Any]):
    def _reset_connection(self, conn: Any) -> None:
        gevent.sleep(0)


@pytest.mark.parametrize("kind", [ConnectionPool, Silent])
@pytest.mark.parametrize("listeners", [(), (PoolListener(),)])
def test_a_generator_that_is_collected_while_the_hub_runs_gives_its_place_back(
    kind: Any, listeners: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    pool = kind(1, connect=Bare, listeners=listeners)

    def rows() -> Any:
        with pool.get() as conn:
            yield conn

    class Node:
        pass

    def litter() -> None:
        node: Any = Node()
        node.itself, node.rows = node, rows()
        next(node.rows)

    gc.disable()
    try:
        litter()
        gevent.get_hub().loop.run_callback(gc.collect)
        gevent.sleep(0.01)
    finally:
        gc.enable()

    assert unraisable == []
    with pool.get(timeout=5):
        pass
    pool.close()


@pytest.mark.parametrize("kind", [ConnectionPool, Silent])
@pytest.mark.parametrize("verb", ["release", "discard", "detach"])
def test_a_hub_callback_may_give_back_and_never_blocks(kind: Any, verb: str) -> None:
    told: list[str] = []

    class Listener(PoolListener):
        def connection_checked_in(self, event: Any) -> None:
            told.append("in")

        def connection_disposed(self, event: Any) -> None:
            gevent.sleep(0)
            told.append("disposed")

    pool = kind(1, connect=Maker(), listeners=[Listener()])
    conn = pool.acquire()
    gevent.get_hub().loop.run_callback(getattr(pool, verb), conn)
    gevent.sleep(0.01)

    assert pool.stats().in_use == 0
    assert told == (["in"] if verb == "release" and kind is ConnectionPool else ["disposed"])
    pool.close()


@pytest.mark.skipif(
    LIBUV, reason="that loop is Python, for which there is no room either: an audit is what is left"
)
def test_at_the_end_of_the_stack_a_connection_is_lost_for_no_longer_than_a_moment(
    echo_server: EchoServer,
) -> None:
    """Sockets, whose look takes calls for which there may be no room."""

    def use_at(depth: int) -> None:
        if depth:
            use_at(depth - 1)
        else:
            with pool.get(timeout=0):
                pass

    pool = ConnectionPool(2, connect=lambda: gevent.socket.create_connection(echo_server.address))
    pool.fill()
    limit = sys.getrecursionlimit()
    for depth in range(limit - 150, limit):
        with contextlib.suppress(RecursionError):
            use_at(depth)
        gevent.sleep(0)
        until(lambda: pool.stats().idle == 2, f"both to be idle, after a use at {depth}", 5)
    pool.close()
