"""More is asked of a pool than it can serve: *overload*, and a warning for a pool without it."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import (
    Backoff,
    CoDel,
    ConnectionManager,
    ConnectionPool,
    EndpointPool,
    PoolFull,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from geventpool.testing import FakeClock
from support.kinds import MakePool
from support.objects import Maker
from support.servers import EchoServer

QUICK = CoDel(target=0.01, interval=0.05)


@pytest.mark.parametrize("name", ["target", "interval"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), None, "long", True])
def test_what_makes_no_sense_is_refused_with_the_name_of_the_argument(
    name: str, value: Any
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name} "):
        CoDel(**{name: value})


def test_a_target_beyond_the_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="^target .* longer than interval"):
        CoDel(target=2.0)
    assert CoDel(1.0, 1.0) == CoDel(target=1.0)


# With a clock that jumps


class Callers:
    """Callers of a pool, each in a greenlet; *outcomes* has what became of each, in that order."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.outcomes: list[Any] = []
        self.greenlets: list[Any] = []
        self.cut_off: list[BaseException] = []

    def come(self, count: int) -> None:
        for _ in range(count):
            self.greenlets.append(gevent.spawn(self._call, len(self.greenlets)))
        gevent.idle()

    def _call(self, number: int) -> None:
        try:
            conn = self.pool.acquire(timeout=100)
        except PoolUnavailable as error:
            self.outcomes.append((number, error))
        except (gevent.GreenletExit, gevent.Timeout) as error:
            self.cut_off.append(error)
        else:
            self.outcomes.append((number, conn))

    @property
    def refused(self) -> list[int]:
        return [number for number, got in self.outcomes if isinstance(got, PoolOverloaded)]

    @property
    def served(self) -> list[int]:
        return [number for number, got in self.outcomes if not isinstance(got, PoolUnavailable)]


def error_of(call: Any, *args: Any, **options: Any) -> Exception:
    """What *call* raises."""
    with pytest.raises(PoolUnavailable) as raised:
        call(*args, **options)
    return raised.value


def test_a_slow_line_is_shed_and_the_next_in_time_is_served(
    maker: Maker, make_pool: MakePool
) -> None:
    with FakeClock() as clock, make_pool(1, connect=maker, overload=CoDel()) as pool:
        held = pool.acquire()
        callers = Callers(pool)
        callers.come(3)
        clock.advance(1.1)  # nobody was served for an interval
        gevent.idle()
        assert callers.refused == [0, 1, 2]

        callers.come(2)
        clock.advance(0.25)
        callers.come(2)
        pool.release(held)
        gevent.idle()

        assert callers.refused == [0, 1, 2, 3, 4]
        assert callers.served == [5]
        stats = pool.stats()
        assert (stats.shed, stats.waiting, stats.timed_out, stats.abandoned) == (5, 1, 0, 0)
        pool.release(callers.outcomes[-1][1])
        gevent.idle()
        pool.release(callers.outcomes[-1][1])
        assert callers.served == [5, 6]


def test_nobody_is_refused_before_the_line_is_slow(maker: Maker, make_pool: MakePool) -> None:
    with FakeClock() as clock, make_pool(1, connect=maker, overload=CoDel()) as pool:
        conn = pool.acquire()
        callers = Callers(pool)
        callers.come(3)
        for served in range(3):
            clock.advance(0.25)
            pool.release(conn)
            gevent.idle()
            conn = callers.outcomes[-1][1]
            assert callers.served == list(range(served + 1))
        pool.release(conn)
        assert pool.stats().shed == 0


def test_the_error_says_which_pool_how_long_and_when_to_come_back(maker: Maker) -> None:
    told = []

    class Listener:
        def acquire_shed(self, event: Any) -> None:
            told.append(event)

    with (
        FakeClock() as clock,
        ConnectionPool(
            1, connect=maker, overload=CoDel(), name="db", listeners=[Listener()]
        ) as pool,
        pool.get(),
    ):
        callers = Callers(pool)
        callers.come(1)
        clock.advance(1.5)
        gevent.idle()
        [(_, error)] = callers.outcomes

    assert isinstance(error, PoolFull)
    assert error.pool == "db"
    assert 1.5 <= error.waited < 2.5
    assert error.retry_after > 0
    assert "'db'" in str(error)
    [event] = told
    assert event.error is error
    assert event.waited == error.waited
    assert event.pool is pool


@pytest.mark.parametrize("how", ["kill", "Timeout"])
def test_a_caller_that_is_cut_off_as_it_is_refused_gets_that_and_nothing_is_lost(
    maker: Maker, how: str
) -> None:
    with FakeClock() as clock, ConnectionPool(1, connect=maker, overload=CoDel()) as pool:
        held = pool.acquire()
        callers = Callers(pool)
        callers.come(1)
        [caller] = callers.greenlets
        end = gevent.GreenletExit() if how == "kill" else gevent.Timeout()
        gevent.get_hub().loop.run_callback(caller.throw, end)
        clock.advance(1.1)  # it is refused, and has not run yet
        assert pool.stats().waiting == 0
        caller.join(timeout=5)
        pool.release(held)

        assert callers.cut_off == [end]
        assert callers.outcomes == []
        assert pool.acquire(timeout=0) is held
        pool.release(held)
        assert (pool.stats().shed, pool.stats().abandoned) == (0, 1)


def test_one_that_is_served_keeps_its_connection_though_the_line_is_shed_in_the_same_pass(
    maker: Maker,
) -> None:
    with FakeClock() as clock, ConnectionPool(1, connect=maker, overload=CoDel()) as pool:
        held = pool.acquire()
        callers = Callers(pool)
        callers.come(3)
        clock.advance(0.5)
        pool.release(held)  # to the first
        clock.advance(1.0)  # and the line is looked at before it runs
        gevent.idle()

        assert callers.served == [0]
        assert callers.refused == [1, 2]
        pool.release(held)
        assert pool.stats().idle == 1


def test_each_endpoint_has_a_line_of_its_own(maker: Maker) -> None:
    with (
        FakeClock() as clock,
        EndpointPool[str, Any](
            connect=lambda endpoint: maker(), max_size=1, overload=CoDel()
        ) as pool,
    ):
        held = {each: pool.acquire(each) for each in ("slow", "well")}
        waits = gevent.spawn(error_of, pool.acquire, "slow")
        gevent.idle()
        clock.advance(1.1)
        assert isinstance(waits.get(timeout=5), PoolOverloaded)
        waits = gevent.spawn(pool.acquire, "well")
        gevent.idle()
        clock.advance(0.5)
        gevent.idle()
        pool.release(held["well"])

        assert waits.get(timeout=5) is held["well"]
        assert pool.stats("slow").shed == pool.stats().shed == 1
        assert pool.stats("well").shed == 0
        for conn in held.values():
            pool.release(conn)


def test_a_refused_caller_leaves_no_cycle_behind(maker: Maker) -> None:
    class Witness:
        pass

    seen = []

    def call(pool: Any) -> None:
        witness = Witness()
        seen.append(weakref.ref(witness))
        try:
            pool.acquire()
        except PoolOverloaded:
            seen.append(None)

    gc.disable()
    try:
        with FakeClock() as clock, ConnectionPool(1, connect=maker, overload=CoDel()) as pool:
            with pool.get():
                caller = gevent.spawn(call, pool)
                gevent.idle()
                clock.advance(1.1)
                caller.join(timeout=5)
            del caller
        assert len(seen) == 2
        assert seen[0]() is None
    finally:
        gc.enable()


# In real time


def test_nobody_waits_for_long_though_nothing_comes_back(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker, overload=QUICK) as pool:
        held = gevent.spawn(pool.acquire).get(timeout=5)
        with pytest.raises(PoolOverloaded) as raised:
            pool.acquire(timeout=None)
        pool.release(held)

    assert raised.value.waited >= 0.05


@pytest.mark.slow
def test_under_five_times_its_load_a_pool_serves_in_time_and_is_back_as_soon_as_the_load_is(
    maker: Maker,
) -> None:
    outcomes: list[tuple[str, float]] = []

    def call(pool: Any) -> None:
        try:
            with pool.get() as conn:
                gevent.sleep(0.02)
        except PoolOverloaded:
            outcomes.append(("refused", 0.0))
        else:
            outcomes.append(("served", conn.number))

    with ConnectionPool(4, connect=maker, overload=CoDel(0.05, 0.25)) as pool:
        pool.fill()
        callers = []
        for _ in range(100):  # 10 every 10 ms, where 2 can be served
            callers += [gevent.spawn(call, pool) for _ in range(10)]
            gevent.sleep(0.01)
        gevent.joinall(callers, timeout=10)
        during = [what for what, _ in outcomes]
        stats = pool.stats()
        outcomes.clear()
        callers = [gevent.spawn(call, pool) for _ in range(8)]
        gevent.joinall(callers, timeout=10)

    assert during.count("refused") > 300
    assert during.count("served") > 100
    assert stats.wait.max < 0.5
    assert stats.shed == during.count("refused")
    assert maker.dials == 4
    assert [what for what, _ in outcomes] == ["served"] * 8


# A manager


def test_a_manager_refuses_one_that_waits_too_long_for_its_turn_to_dial() -> None:
    go_on = Event()

    def shake_hands(sock: Any) -> Any:
        go_on.wait()
        return sock

    def call() -> Any:
        return manager.get_connection(server.address, sock_type=shake_hands)

    server = EchoServer()
    server.start()
    with ConnectionManager(overload=QUICK) as manager:
        first = gevent.spawn(call)
        gevent.idle()
        others = [gevent.spawn(error_of, call) for _ in range(3)]
        errors = [other.get(timeout=5) for other in others]
        go_on.set()

        assert [type(error) for error in errors] == [PoolOverloaded] * 3
        assert manager.servers[server.address].down_until is None
        manager.release_connection(first.get(timeout=5))
        assert manager.stats().shed == 3
    server.stop()


def test_a_manager_goes_on_to_the_next_address_where_a_line_is_slow() -> None:
    go_on = Event()
    busy, free = EchoServer(), EchoServer()
    for each in (busy, free):
        each.start()

    def shake_hands(sock: Any) -> Any:
        if sock.getpeername() == busy.address:
            go_on.wait()
        return sock

    group = {"service": [[(1, busy.address)], [(1, free.address)]]}
    with ConnectionManager(group, overload=QUICK) as manager:
        first = gevent.spawn(manager.get_connection, busy.address, sock_type=shake_hands)
        gevent.idle()
        sock = manager.get_connection("service", sock_type=shake_hands)
        assert sock.getpeername() == free.address
        manager.release_connection(sock)
        go_on.set()
        manager.release_connection(first.get(timeout=5))
    for each in (busy, free):
        each.stop()


# Without it


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    gevent.idle()
    return [record.message for record in caplog.records if "overload=" in record.message]


@pytest.fixture
def crowd(maker: Maker, make_pool: MakePool) -> Any:
    """A pool of 10 connections with callers in line, and without *overload*."""
    with make_pool(10, connect=maker, backoff=Backoff(first=0.0, longest=0.0)) as pool:
        pool.fill()
        yield pool


def lose_while_a_caller_waits(pool: Any, error: BaseException) -> None:
    held = [pool.acquire() for _ in range(9)]
    with gevent.Timeout(10):
        try:
            with pool.get():
                waits = gevent.spawn(pool.acquire)
                gevent.idle()
                assert pool.stats().waiting == 1
                raise error
        except BaseException as raised:
            if raised is not error:
                raise
        held.append(waits.get())
    for conn in held:
        pool.release(conn)


def test_a_pool_that_loses_more_than_a_fifth_to_timeouts_names_the_cures_once(
    crowd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        lose_while_a_caller_waits(crowd, gevent.Timeout())
    assert warnings(caplog) == []

    for _ in range(5):
        lose_while_a_caller_waits(crowd, gevent.Timeout())

    [warning] = warnings(caplog)
    assert "3 connections" in warning
    assert "1 callers wait" in warning
    for cure in ("overload=CoDel()", "Deadline", "_salvage_connection"):
        assert cure in warning
    assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize("error", [gevent.GreenletExit(), OSError("broken"), KeyError("bug")])
def test_what_is_no_timeout_is_no_sign_of_overload(
    crowd: Any, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    for _ in range(5):
        lose_while_a_caller_waits(crowd, error)

    assert warnings(caplog) == []


def test_timeouts_while_no_caller_waits_or_long_ago_are_no_sign_of_it(
    crowd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        try:
            with crowd.get():
                raise gevent.Timeout
        except gevent.Timeout:
            pass
    with FakeClock() as clock:
        for _ in range(5):
            lose_while_a_caller_waits(crowd, gevent.Timeout())
            clock.advance(6.0)

    assert warnings(caplog) == []


def test_what_is_salvaged_is_not_lost(maker: Maker, caplog: pytest.LogCaptureFixture) -> None:
    class Salvaging(ConnectionPool[Any]):
        def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
            pass

    with Salvaging(10, connect=maker) as pool:
        pool.fill()
        for _ in range(5):
            lose_while_a_caller_waits(pool, gevent.Timeout())

    assert warnings(caplog) == []
    assert maker.dials == 10


def test_a_pool_with_overload_needs_no_such_warning(
    maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    with ConnectionPool(10, connect=maker, overload=CoDel()) as pool:
        pool.fill()
        for _ in range(5):
            lose_while_a_caller_waits(pool, gevent.Timeout())

    assert warnings(caplog) == []


# When to come back


def test_errors_of_a_full_pool_say_when_to_come_back_by_how_long_uses_took(maker: Maker) -> None:
    with FakeClock() as clock, ConnectionPool(2, connect=maker, max_waiting=3) as pool:
        for _ in range(20):
            with pool.get():
                clock.advance(1.0)
        with pool.get(), pool.get():
            with pytest.raises(PoolTimeout) as timed_out:
                pool.acquire(timeout=0)
            waiting = [gevent.spawn(pool.acquire) for _ in range(3)]
            gevent.idle()
            with pytest.raises(PoolFull) as full:
                pool.acquire()
            gevent.killall(waiting)

    # One second a use, two at a time: half a second for each caller, and half of that as jitter.
    assert timed_out.value.retry_after == pytest.approx(0.5, rel=0.6)
    assert full.value.retry_after == pytest.approx(2.0, rel=0.6)


def test_an_error_does_not_guess_when_to_come_back(maker: Maker) -> None:
    with FakeClock() as clock, ConnectionPool(1, connect=maker) as pool:
        with pool.get(), pytest.raises(PoolTimeout) as too_few_uses:
            pool.acquire(timeout=0)
        for _ in range(20):
            with pool.get():
                clock.advance(0.01)
        with pool.get():
            waits = gevent.spawn(error_of, pool.acquire, timeout=5)
            gevent.idle()
            clock.advance(5.1)  # where 20 ms were to be expected
            unlike_before: Any = waits.get(timeout=5)

    assert too_few_uses.value.retry_after is None
    assert unlike_before.retry_after is None
