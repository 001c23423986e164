"""The seam: what an adapter may use of a pool does what its docstring says."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import (
    Backoff,
    ConnectionPool,
    EndpointPool,
    NotInUse,
    PoolListener,
    PoolTimeout,
    Reason,
    SocketFactory,
    WrongHub,
)
from geventpool.events import ServerListObtained
from geventpool.pools.extension import CLOSE_TIMEOUT, Facts, Standing
from geventpool.sockets import CUT_SHORT
from geventpool.testing import EchoServer
from support.objects import Conn, Maker
from support.waiting import until

SOON = Backoff(first=0.005, longest=0.005)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def pool(maker):
    with ConnectionPool(3, connect=maker, min_size=0, name="db") as pool:
        yield pool


class ByEndpoint(EndpointPool[str, Conn]):
    def __init__(self, maker: Maker, **settings: Any) -> None:
        self.maker = maker
        super().__init__(**settings)

    def _new_connection(self, endpoint: str) -> Conn:
        return self.maker()


# Holds


def test_a_hold_on_what_no_caller_has_is_refused(pool):
    conn = pool.acquire()
    pool.release(conn)

    with pytest.raises(NotInUse):
        pool._hold_of(conn)


@pytest.mark.parametrize("verb", ["checkin", "discard"])
def test_a_hold_that_is_no_good_any_more_takes_nothing_from_the_next_holder(pool, verb):
    conn = pool.acquire()
    stale = pool._hold_of(conn)
    pool.release(conn)
    assert pool.acquire() is conn  # another caller has it now

    if verb == "checkin":
        pool._checkin(stale, conn)
    else:
        pool._discard(stale, conn, Reason.ERROR)

    assert not pool._is_held(stale)
    assert pool._is_held(pool._hold_of(conn))
    assert (pool.stats().in_use, conn.closed) == (1, False)
    pool.release(conn)


def test_checkin_gives_a_connection_back_and_discard_has_it_closed(pool, maker):
    kept, broken = pool.acquire(), pool.acquire()

    pool._checkin(pool._hold_of(kept), kept)
    pool._discard(pool._hold_of(broken), broken, Reason.ERROR, OSError("broken"))

    maker.wait_until(lambda: broken.closed)
    assert pool._idle_connections() == (kept,)
    assert pool.stats().closed[Reason.ERROR] == 1


def test_the_facts_of_a_connection_are_those_of_its_present_use(pool):
    conn = pool.acquire()
    assert pool._facts_of(conn) == Facts(None, 1, pool._facts_of(conn).idled, None, None)
    pool.release(conn)
    pool.acquire()

    assert pool._facts_of(conn).uses == 2
    assert pool._facts_of(Conn(Maker(), 7)) is None
    pool.release(conn)


def test_a_look_before_a_hand_out_is_told_how_long_it_was_idle(maker):
    class Looking(ConnectionPool[Any]):
        def _is_alive(self, conn: Any) -> bool:
            seen.append(self._facts_of(conn).idled)
            return True

    seen: list[float] = []
    with Looking(1, connect=maker) as pool:
        pool.fill()
        for _ in range(2):
            gevent.sleep(0.02)
            pool.release(pool.acquire())

        assert len(seen) == 2
        assert all(0.01 < idled < 5 for idled in seen)


def test_the_facts_say_which_endpoint_a_connection_leads_to(maker):
    with ByEndpoint(maker) as pool:
        conn = pool.acquire("a")
        assert pool._facts_of(conn).endpoint == "a"
        pool.release(conn)


def test_in_another_thread_a_verb_of_an_adapter_is_refused(pool):
    def elsewhere() -> object:
        with pytest.raises(WrongHub):
            pool._assert_usable_here()
        with pytest.raises(WrongHub):
            pool._evict_idle(lambda conn: True, Reason.DISCARDED)
        return "refused"

    assert gevent.get_hub().threadpool.apply(elsewhere) == "refused"


# What is idle


def test_idle_connections_are_closed_oldest_first_and_no_more_than_asked_for(maker):
    with ByEndpoint(maker, min_idle=0) as pool:
        conns = [pool.acquire(endpoint) for endpoint in "abca"]
        for conn in conns:
            pool.release(conn)

        closed = pool._evict_idle(lambda conn: conn.number != 2, Reason.IDLE, CLOSE_TIMEOUT, most=2)

        assert closed == 2
        assert [conn.closed for conn in conns] == [True, False, True, False]
        assert pool.stats().closed[Reason.IDLE] == 2


def test_with_a_timeout_it_waits_for_the_close_and_no_longer(maker):
    go_on, begun = Event(), Event()

    class Slow(ConnectionPool[Any]):
        def _close_connection(self, conn: Any) -> None:
            begun.set()
            go_on.wait()
            conn.close()

    with Slow(1, connect=maker, min_size=0) as pool:
        pool.release(pool.acquire())
        assert pool._evict_idle(lambda conn: True, Reason.IDLE, timeout=0.05) == 1
        assert begun.is_set()
        assert maker.open == {1}
        go_on.set()


def test_what_a_caller_got_while_they_were_chosen_is_left_alone(pool):
    conns = [pool.acquire(), pool.acquire()]
    for conn in conns:
        pool.release(conn)

    def where(conn: Conn) -> bool:
        if conn is conns[0]:
            taken.append(pool.acquire())
        return True

    taken: list[Conn] = []
    assert pool._evict_idle(where, Reason.DISCARDED, CLOSE_TIMEOUT) == 1
    (mine,) = taken
    assert not mine.closed
    assert sorted(conn.closed for conn in conns) == [False, True]
    pool.release(mine)


def test_what_was_used_while_they_were_chosen_is_left_alone_though_it_is_idle_again(pool):
    conn = pool.acquire()
    pool.release(conn)

    def where(conn: Conn) -> bool:
        pool.release(pool.acquire())  # of this use nobody has asked
        return True

    assert pool._evict_idle(where, Reason.DISCARDED, CLOSE_TIMEOUT) == 0
    assert not conn.closed


def test_what_the_question_raises_is_raised_and_nothing_is_closed(pool, maker):
    pool.release(pool.acquire())

    with pytest.raises(ZeroDivisionError):
        pool._evict_idle(lambda conn: 1 / 0, Reason.DISCARDED)

    gevent.idle()
    assert maker.open == {1}


# Prefill


def test_prefill_leaves_so_many_idle_that_no_caller_has_used(pool):
    pool._prefill(2, timeout=5)

    now = pool._standing()
    assert (now.idle, now.in_use, now.open) == (2, 0, 2)
    conn = pool.acquire()
    assert pool._facts_of(conn).uses == 1
    pool.release(conn)


def test_a_prefill_that_fails_leaves_nothing_open_and_raises_what_the_dial_raised(maker):
    with ConnectionPool(3, connect=maker, min_size=0, fail_fast=True, backoff=SOON) as pool:
        first = pool.acquire()
        pool.discard(first)
        maker.error = OSError("full")
        with pytest.raises(OSError, match="full"):
            pool._prefill(3, timeout=5)
        maker.wait_until(lambda: not maker.open)
        assert pool._standing().open == 0


def test_a_prefill_has_one_deadline_for_all_and_gives_back_what_it_has(maker):
    with ConnectionPool(3, connect=maker, min_size=0, backoff=SOON) as pool:
        pool._prefill(1, timeout=5)
        maker.error = OSError("away")
        with pytest.raises(PoolTimeout):
            pool._prefill(3, timeout=0.05)
        maker.wait_until(lambda: not maker.open)


def test_a_prefill_does_not_begin_its_deadline_anew_for_each_connection():
    def connect() -> object:
        gevent.sleep(0.05)
        return object()

    with ConnectionPool(9, connect=connect, min_size=0) as pool:
        with pytest.raises(PoolTimeout):
            pool._prefill(9, timeout=0.2)


# How it stands


def test_the_standing_is_that_of_the_moment(pool, maker):
    assert pool._standing()[:8] == (3, 0, 0, 3, 0, 0, 0, 0)
    conn = pool.acquire()

    now = pool._standing()
    assert (now.total, now.open, now.in_use, now.idle, now.failing) == (1, 1, 1, 0, False)
    assert pool._held_connections() == (conn,)
    pool.release(conn)
    assert pool._held_connections() == ()


def test_an_endpoint_that_nobody_asked_for_stands_at_nothing(maker):
    with ByEndpoint(maker) as pool:
        assert pool._standing("a") == Standing()
        assert pool._idle_connections("a") == ()


def test_after_a_failed_dial_it_says_so_and_how_long_the_pause_is(maker):
    maker.error = OSError("away")
    with ConnectionPool(
        1,
        connect=maker,
        min_size=0,
        fail_fast=True,
        backoff=Backoff(first=30, longest=30, jitter=0),
    ) as pool:
        with pytest.raises(OSError, match="away"):
            pool.acquire()
        now = pool._standing()

    assert now.failing
    assert 29 < now.retry_in <= 30
    assert str(now.last_error) == "away"


def test_down_all_in_line_are_told_at_once_where_that_is_asked_for(maker):
    maker.error = OSError("away")
    slow = Backoff(first=30, longest=30, jitter=0)
    with ConnectionPool(1, connect=maker, min_size=0, fail_fast=True, backoff=slow) as pool:
        pool._fail_when_down(True)
        told: list[str] = []

        def call() -> None:
            with pytest.raises(OSError, match="away"):
                pool.acquire(timeout=10)
            told.append("away")

        gevent.joinall([gevent.spawn(call) for _ in range(3)], timeout=5)
        assert told == ["away"] * 3


# Listeners and the log


def test_an_event_goes_to_the_listener_of_that_name_and_what_it_raises_to_the_log(pool, caplog):
    told: list[object] = []

    class Listener(PoolListener):
        def server_list_obtained(self, event: ServerListObtained) -> None:
            told.append(event)
            raise ZeroDivisionError

    pool.add_listener(Listener())
    event = ServerListObtained(pool, ("a:1",))
    pool._notify(event)

    assert told == [event]
    assert "failed" in caplog.text


def test_every_event_has_a_method_of_the_listener(pool):
    from geventpool import events

    told: list[str] = []
    kinds = [each for each in vars(events).values() if isinstance(each, type)]
    kinds = [each for each in kinds if issubclass(each, events.PoolEvent)][1:]
    listener = type(
        "Listener",
        (),
        {
            name: lambda self, event, n=name: told.append(n)
            for name in vars(PoolListener)
            if name[0] != "_"
        },
    )
    pool.add_listener(listener())
    for kind in kinds:
        pool._notify(object.__new__(kind))

    assert len(told) == len(kinds) == len([n for n in vars(PoolListener) if n[0] != "_"])


def test_a_line_in_the_log_is_the_pool_s_and_has_its_name(pool, caplog):
    pool._log(logging.WARNING, "%d servers", 3)

    (record,) = caplog.records
    assert record.getMessage() == "pool 'db': 3 servers"
    assert record.name == pool.log.name


# A client that knows more than its socket tells


def test_what_a_probe_of_the_adapter_s_own_calls_cut_short_is_salvaged():
    class Probe:
        def __init__(self, probe):
            self._probe = probe

        def __call__(self, conn):
            return CUT_SHORT if due else self._probe(conn)

        def __getattr__(self, name):
            return getattr(self._probe, name)

    class Adapter(ConnectionPool):
        def _make_probe(self, conn, ask):
            return Probe(super()._make_probe(conn, ask))

        def _salvage_connection(self, conn, error):
            salvaged.append((conn, error))
            due.clear()

    due, salvaged = [], []
    with EchoServer() as server, Adapter(1, connect=SocketFactory(server.address)) as pool:
        with pool.get() as conn:
            due.append("a reply")
        with pool.get() as again:
            assert again is conn
        assert salvaged == [(conn, None)]
        assert pool.stats().salvaged == 1


# Resets


class Telling(ConnectionPool[Any]):
    """An adapter that can tell what needs a reset."""

    def __init__(self, **settings: Any) -> None:
        self.resets = 0
        self.needs: Any = False
        super().__init__(1, **settings)

    def _socket(self, conn: Any) -> Any:
        return conn

    def _needs_reset(self, conn: Any) -> bool:
        if isinstance(self.needs, Exception):
            raise self.needs
        return bool(self.needs)

    def _reset_connection(self, conn: Any) -> None:
        self.resets += 1


class Further(Telling):
    """Of a user's, who knows nothing of the other hook."""

    def _reset_connection(self, conn: Any) -> None:
        super()._reset_connection(conn)


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(
    ("kind", "needs", "resets"),
    [(Telling, False, 0), (Telling, True, 3), (Telling, ValueError("?"), 3), (Further, False, 3)],
    ids=["needs none", "needs one", "raises", "overridden alone"],
)
def test_what_needs_no_reset_goes_to_the_next_caller_without_one(kind, needs, resets, by_hand):
    with EchoServer() as server, kind(connect=SocketFactory(server.address)) as pool:
        pool.needs = needs
        for _ in range(3):
            if by_hand:
                pool.release(pool.acquire())
            else:
                with pool.get():
                    pass

        assert pool.resets == resets
        assert (pool.stats().opened, pool.stats().released) == (1, 3)


@pytest.mark.parametrize("by_hand", [False, True])
def test_nothing_is_handed_out_while_its_reset_runs_though_its_user_gives_it_back_again(by_hand):
    class Slow(Telling):
        def _needs_reset(self, conn: Any) -> bool:
            return super()._needs_reset(conn)

        def _reset_connection(self, conn: Any) -> None:
            super()._reset_connection(conn)
            self.needs = False
            go_on.wait()

    go_on = Event()
    with EchoServer() as server, Slow(connect=SocketFactory(server.address)) as pool:
        with pool.get() as conn:
            pool.needs = True
            hold = pool._hold_of(conn)
            reset = gevent.spawn(pool.release, conn)
            until(lambda: pool.resets == 1)
            if by_hand:
                pool._checkin(hold, conn)
        assert (pool.stats().in_use, pool.stats().idle) == (1, 0)
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)

        go_on.set()
        reset.get(timeout=5)
        with pool.get(timeout=5) as again:
            assert again is conn


def test_after_an_exception_it_is_reset_whether_or_not_it_seems_to_need_that():
    with EchoServer() as server, Telling(connect=SocketFactory(server.address)) as pool:
        with pytest.raises(ValueError, match="a bug"), pool.get():
            raise ValueError("a bug")

        assert pool.resets == 1


def test_what_needs_no_reset_and_was_cut_short_is_not_handed_out_again():
    with EchoServer() as server, Telling(connect=SocketFactory(server.address)) as pool:
        with pool.get() as conn, gevent.Timeout(0.001, False):
            conn.recv(1)
        with pool.get() as other:
            assert other is not conn
        assert pool.resets == 0
