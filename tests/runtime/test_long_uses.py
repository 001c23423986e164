"""Uses that last for longer than *leak_threshold* are told of, once each."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import ConnectionPool, EndpointPool, PoolTimeout
from geventpool.events import ConnectionHeldLong
from geventpool.testing import FakeClock
from support.objects import Maker
from support.waiting import until


class Told:
    def __init__(self) -> None:
        self.events: list[ConnectionHeldLong] = []

    def connection_held_long(self, event: ConnectionHeldLong) -> None:
        self.events.append(event)


def keep(pool: Any, done: Event, *endpoint: Any) -> Any:
    """A greenlet that has a connection, and waits."""

    def hold_on() -> None:
        with pool.get(*endpoint):
            taken.set()
            done.wait()

    taken = Event()
    holder = gevent.spawn(hold_on)
    assert taken.wait(10)
    return holder


@pytest.mark.parametrize("track", [False, True])
def test_a_connection_held_too_long_is_told_of_with_who_has_it_and_where_it_is(
    maker: Maker, caplog: pytest.LogCaptureFixture, track: bool
) -> None:
    told, done = Told(), Event()
    with (
        caplog.at_level(logging.WARNING, "geventpool"),
        FakeClock() as clock,
        ConnectionPool(
            2, connect=maker, leak_threshold=60, listeners=[told], track=track, name="db"
        ) as pool,
    ):
        holder = keep(pool, done)
        clock.advance(61)
        until(lambda: told.events)
        until(lambda: "has been held" in caplog.text)
        done.set()
        holder.get(timeout=10)

    (event,) = told.events
    assert event.greenlet is holder
    assert 61 <= event.age < 62
    assert "done.wait()" in str(event.stack)
    assert ("in hold_on" in str(event.where)) == track
    (line,) = [r for r in caplog.records if "has been held" in r.getMessage()]
    assert (line.name, line.levelno) == ("geventpool.pool.db", logging.WARNING)
    assert "done.wait()" in line.getMessage()
    assert ("track=True tells" in line.getMessage()) == (not track)


def test_each_use_is_told_of_once_and_only_if_it_lasts(maker: Maker) -> None:
    told, done = Told(), Event()
    with (
        FakeClock() as clock,
        ConnectionPool(2, connect=maker, leak_threshold=60, listeners=[told]) as pool,
    ):
        long = keep(pool, done)
        for _ in range(10):
            with pool.get():
                clock.advance(30)
                gevent.idle()
        assert pool.stats().held_long == 1
        done.set()
        long.get(timeout=10)
        done.clear()
        again = keep(pool, done)
        clock.advance(100)
        until(lambda: len(told.events) == 2)
        assert pool.stats().held_long == 2
        done.set()
        again.get(timeout=10)


def test_in_real_time_it_comes_soon_after_the_threshold(maker: Maker) -> None:
    told = Told()
    with ConnectionPool(1, connect=maker, leak_threshold=0.1, listeners=[told]) as pool:
        with pool.get():
            until(lambda: told.events)
    assert 0.1 <= told.events[0].age < 5


def test_the_fast_path_stays_open(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker, leak_threshold=60, track=True) as pool:
        pool.fill()
        with pool.get():
            assert pool._bucket.fast_path_open == pool._runtime.ident


def test_in_a_pool_of_endpoints_it_says_which(
    maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    told, done = Told(), Event()
    connect = lambda endpoint: maker()  # noqa: E731
    with FakeClock() as clock:
        with EndpointPool(connect=connect, leak_threshold=60, listeners=[told]) as pool:
            holder = keep(pool, done, "here")
            clock.advance(61)
            until(lambda: "here: a connection has been held" in caplog.text)
            done.set()
            holder.get(timeout=10)
    assert told.events[0].endpoint == "here"


def test_no_threshold_that_makes_no_sense_is_taken(maker: Maker) -> None:
    with pytest.raises(ValueError, match="leak_threshold"):
        ConnectionPool(1, connect=maker, leak_threshold=0)
    with pytest.raises(TypeError, match="leak_threshold"):
        EndpointPool(connect=maker, leak_threshold="1")  # type: ignore[arg-type]


def test_a_pool_timeout_names_the_three_that_have_held_for_longest(maker: Maker) -> None:
    done = Event()
    with FakeClock() as clock, ConnectionPool(4, connect=maker) as pool:
        pool.fill()
        holders = []
        for _ in range(4):
            holders.append(keep(pool, done))
            clock.advance(100)
        with pytest.raises(PoolTimeout) as raised:
            pool.acquire(timeout=0)
        done.set()
        gevent.joinall(holders)

    text = str(raised.value)
    longest = text.partition("held longest by ")[2]
    assert [part.split(" for ")[0] for part in longest.split(", ")] == [
        holder.name for holder in holders[:3]
    ]
    assert longest.count(f"{__file__}:") == 3
    assert longest.count("in hold_on") == 3


def test_what_tracks_keeps_nothing_of_the_callers_variables(maker: Maker) -> None:
    class Kept:
        pass

    def caller() -> Any:
        kept = Kept()
        ref = weakref.ref(kept)
        return pool.acquire(), ref

    with ConnectionPool(1, connect=maker, track=True) as pool:
        conn, ref = caller()
        assert ref() is None
        (holder,) = pool.holders()
        assert "in caller" in str(holder.where)
        assert "return pool.acquire(), ref" in str(holder.where)
        pool.release(conn)
