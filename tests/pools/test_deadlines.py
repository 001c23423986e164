"""A caller under a Deadline: a pool hands it nothing that it has no time to use, and says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from geventpool import (
    ConnectionPool,
    Deadline,
    EndpointPool,
    PoolClosed,
    PoolTimeout,
    Reason,
    SocketFactory,
    retry,
)
from geventpool._util import deadlines
from geventpool.testing import FakeClock
from support.kinds import MakePool
from support.objects import Maker
from support.servers import EchoServer


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Any:
    yield
    assert deadlines.active == {}


def filled(size: int, **settings: Any) -> ConnectionPool[Any]:
    settings.setdefault("connect", Maker())
    pool: ConnectionPool[Any] = ConnectionPool(size, **settings)
    pool.fill()
    return pool


def used_for(pool: ConnectionPool[Any], seconds: float, clock: FakeClock, uses: int = 20) -> None:
    """Let *pool* know that its uses take so long."""
    for _ in range(uses):
        with pool.get():
            clock.advance(seconds)


def holding(pool: Any, seconds: float = 30.0, *key: Any) -> Any:
    """A greenlet that has a connection."""
    has_it = Event()

    def hold() -> None:
        with pool.get(*key):
            has_it.set()
            gevent.sleep(seconds)

    greenlet = gevent.spawn(hold)
    has_it.wait()
    return greenlet


def took(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


# In line


def test_a_caller_in_line_gets_pool_timeout_before_its_deadline_strikes(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1, connect=Maker())
    holder = holding(pool)

    def wait() -> None:
        with pytest.raises(PoolTimeout, match="too little is left of a Deadline of 0.2 s"):
            with Deadline(0.2):
                pool.acquire()

    assert 0.15 < took(wait) < 0.3
    holder.kill()
    pool.close(0)


def test_the_pools_own_timeout_counts_if_it_is_sooner() -> None:
    pool = filled(1, timeout=0.02)
    holder = holding(pool)
    with Deadline(10), pytest.raises(PoolTimeout, match=r"no connection came free in 0\.02 s"):
        pool.acquire()
    holder.kill()


def test_a_caller_gives_up_when_less_is_left_than_nine_in_ten_uses_take() -> None:
    with FakeClock() as clock:
        pool = filled(1)
        used_for(pool, 0.2, clock)
        holder = holding(pool)

        def wait() -> None:
            with Deadline(0.3), pytest.raises(PoolTimeout, match=r"take up to 0\.\d* s"):
                pool.acquire()

        assert 0.1 < took(wait) < 0.19  # half of what it came with
        holder.kill()
        pool.close()


def test_the_place_of_one_that_is_too_late_goes_to_the_next_that_is_not() -> None:
    with FakeClock() as clock:
        pool = filled(1)
        used_for(pool, 2.0, clock)
        got: list[str] = []

        def caller(name: str, seconds: float) -> None:
            try:
                with Deadline(seconds), pool.get():
                    got.append(name)
            except PoolTimeout:
                got.append(f"{name} was too late")

        with pool.get():
            callers = [gevent.spawn(caller, "first", 10), gevent.spawn(caller, "second", 60)]
            gevent.idle()
            clock._ahead += 9  # and no timer has noticed: as a greenlet that computes for long
        gevent.joinall(callers)

        assert sorted(got) == ["first was too late", "second"]
        assert pool.stats().timed_out == 1
        pool.close()


def test_one_that_was_served_in_time_and_runs_too_late_gives_its_place_to_the_next() -> None:
    with FakeClock() as clock:
        pool = filled(1)
        used_for(pool, 2.0, clock)
        outcomes: list[Any] = []

        def caller(seconds: float) -> None:
            try:
                with Deadline(seconds), pool.get() as conn:
                    outcomes.append(conn)
            except PoolTimeout as error:
                outcomes.append(error)

        with pool.get() as conn:
            callers = [gevent.spawn(caller, 10), gevent.spawn(caller, 60)]
            gevent.idle()
        clock._ahead += 9  # the first has been served, and has not run
        gevent.joinall(callers)

        assert type(outcomes[0]) is PoolTimeout
        assert outcomes[1] is conn
        pool.close()


def test_a_plain_timeout_is_not_seen() -> None:
    with FakeClock() as clock:
        pool = filled(1)
        used_for(pool, 5.0, clock)
        with gevent.Timeout(0.5):
            pool.release(pool.acquire())
        holder = holding(pool)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            pool.acquire()
        holder.kill()
        pool.close()


def test_in_a_wait_for_a_dial_it_gets_pool_timeout_and_the_dial_goes_on() -> None:
    maker = Maker()
    maker.slow = True
    pool = ConnectionPool(1, connect=maker)
    with Deadline(0.05), pytest.raises(PoolTimeout, match="1 connecting"):
        pool.acquire()
    maker.let_in()
    assert maker.opened == 1
    pool.close()


# What is at hand


def test_nothing_idle_is_handed_to_a_caller_that_has_no_time_to_use_it() -> None:
    with FakeClock() as clock:
        pool = filled(2)
        used_for(pool, 2.0, clock)
        with Deadline(10):
            pool.release(pool.acquire())
            clock.advance(9)
            for get in (pool.acquire, pool.get().__enter__):
                with pytest.raises(PoolTimeout, match="as nine in ten uses take up to 2"):
                    get()
        with pool.get() as conn:  # it is at hand
            assert conn
        assert pool.stats().closed[Reason.ERROR] == 0
        pool.close()


def test_one_that_came_with_little_is_served_as_long_as_half_of_it_is_left() -> None:
    with FakeClock() as clock:
        pool = filled(1)
        used_for(pool, 30.0, clock)
        with Deadline(10), pool.get():
            clock.advance(4)
        with Deadline(10):
            clock.advance(6)
            with pytest.raises(PoolTimeout):
                pool.acquire()
        pool.close()


def test_who_is_past_its_deadline_gets_nothing_even_if_it_has_not_struck() -> None:
    pool = filled(1)
    with pytest.raises(PoolTimeout), Deadline(0.02):
        began = time.monotonic()
        while time.monotonic() - began < 0.03:
            pass  # it computes: its Deadline cannot strike
        pool.acquire()
    assert pool.stats().closed[Reason.ERROR] == 0


def test_a_closed_pool_says_so_first() -> None:
    pool = filled(1)
    pool.close()
    with Deadline(0.0), pytest.raises(PoolClosed):
        pool.acquire()


def test_of_few_uses_nothing_is_concluded() -> None:
    with FakeClock() as clock:
        pool = filled(1)
        used_for(pool, 50.0, clock, uses=9)
        with Deadline(100):
            clock.advance(99)
            pool.release(pool.acquire())
        pool.close()


def test_others_have_the_fast_path_meanwhile() -> None:
    with FakeClock() as clock:
        pool = filled(1)
        used_for(pool, 2.0, clock)
        under_way, end = Event(), Event()

        def late() -> None:
            with Deadline(1):
                clock.advance(1)
                under_way.set()
                with pytest.raises(PoolTimeout):
                    pool.acquire()
                end.wait()

        greenlet = gevent.spawn(late)
        under_way.wait()
        pool.release(pool.acquire())
        end.set()
        greenlet.get()
        pool.close()


# Several


def test_nested_the_nearest_bounds_the_wait() -> None:
    pool = filled(1)
    holder = holding(pool)

    def wait() -> None:
        with Deadline(20), Deadline(0.2), Deadline(10):
            with pytest.raises(PoolTimeout, match=r"0\.2 s"):
                pool.acquire()

    assert took(wait) < 1
    holder.kill()


def test_one_deadline_bounds_the_waits_at_several_pools_together() -> None:
    free, taken = filled(1), EndpointPool(max_size=1, connect=lambda endpoint: Maker()())
    holder = holding(taken, 30, "there")

    def wait() -> None:
        with Deadline(0.1), free.get():
            gevent.sleep(0.06)
            with pytest.raises(PoolTimeout), taken.get("there"):
                pass

    assert 0.09 < took(wait) < 0.3
    assert free.stats().closed[Reason.ERROR] == 0
    holder.kill()
    taken.close()


def test_another_greenlet_is_not_bound() -> None:
    pool = filled(1)
    with Deadline(0.0, False):
        with pytest.raises(PoolTimeout):
            pool.acquire()
        greenlet = gevent.spawn(pool.acquire)
    pool.release(greenlet.get())


# The check before the hand-out, and @retry


class Checked(ConnectionPool[Any]):
    """Its server takes 10 s to answer."""

    def _keepalive(self, conn: Any) -> None:
        gevent.sleep(10)


def test_the_check_before_the_hand_out_takes_what_is_left() -> None:
    maker = Maker()
    pool = Checked(1, connect=maker, check_after=0, keepalive_timeout=30)
    pool.fill()
    maker.slow = True

    def wait() -> None:
        with Deadline(0.1), pytest.raises(PoolTimeout, match="checks failed"):
            pool.acquire()

    assert took(wait) < 1
    assert pool.stats().closed[Reason.KEEPALIVE] == 1
    pool.close(0)


def test_retry_of_a_pool_timeout_ends_with_the_deadline() -> None:
    pool = filled(1, timeout=0.01)
    holder = holding(pool)
    calls = []

    @retry(exc_classes=PoolTimeout, interval=0.01)
    def use() -> None:
        calls.append(1)
        pool.release(pool.acquire())

    with Deadline(0.1), pytest.raises(PoolTimeout):
        use()

    assert 2 <= len(calls) <= 6
    holder.kill()


# In the body


def test_one_that_strikes_in_the_body_closes_the_connection() -> None:
    pool = filled(1)
    with pytest.raises(Deadline), Deadline(0.01), pool.get():
        gevent.sleep(10)
    assert pool.stats().closed[Reason.ERROR] == 1
    pool.close()


def test_a_silent_one_round_the_with_closes_the_connection() -> None:
    pool = filled(1)
    with Deadline(0.01, False), pool.get():
        gevent.sleep(10)
    assert pool.stats().closed[Reason.ERROR] == 1
    pool.close()


def test_a_silent_one_in_the_with_closes_the_connection_whose_wait_it_cut_short() -> None:
    with EchoServer() as server:
        pool = ConnectionPool(1, connect=SocketFactory(server.address))
        with pool.get() as sock, Deadline(0.02, False):
            sock.recv(100)
        with pool.get() as other:
            assert other is not sock
            other.sendall(b"hello\n")
            assert other.recv(100) == b"hello\n"
        assert pool.stats().closed[Reason.CUT_SHORT] == 1
        pool.close()


# How long uses take


@pytest.mark.parametrize("spread", ["constant", "exponential"])
def test_the_estimate_is_near_what_nine_in_ten_uses_take(spread: str) -> None:
    import random

    rng = random.Random(7)
    pool = ConnectionPool(1, min_size=0, connect=Maker())
    bucket = pool._bucket
    for scale, truth in ((1.0, 2.303), (0.1, 0.2303)):
        for number in range(3000):
            bucket.count_use(scale * (rng.expovariate(1) if spread == "exponential" else 1.0))
            if number % 10 == 0:
                bucket.long_use()
        wanted = truth if spread == "exponential" else scale
        assert 0.7 * wanted < bucket.long_use() < 1.4 * wanted
    pool.close()


def test_the_longest_use_is_told_whether_or_not_it_is_estimated() -> None:
    with FakeClock() as clock:
        pool = filled(1)
        used_for(pool, 1.0, clock)
        with Deadline(100):
            used_for(pool, 1.0, clock)
        for seconds in (7.0, 1.0):
            used_for(pool, seconds, clock, uses=1)
        assert pool.stats().use.max == pytest.approx(7.0, abs=0.5)
        pool.close()


def test_a_dead_server_costs_a_caller_no_more_than_its_deadline() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    refusing = listener.getsockname()
    pool = ConnectionPool(1, connect=SocketFactory(refusing))

    def wait() -> None:
        with Deadline(0.1), pytest.raises(PoolTimeout) as caught:
            pool.acquire()
        assert isinstance(caught.value.__cause__, OSError)

    assert took(wait) < 1
    pool.close()
    listener.close()
