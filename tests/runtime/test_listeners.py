"""PoolListener: what is told when, and that no listener can hurt the pool."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event

from geventpool import (
    Backoff,
    ConnectionPool,
    Limit,
    PoolClosed,
    PoolListener,
    PoolTimeout,
    Reason,
    SocketFactory,
    events,
)
from geventpool.testing import FakeClock
from support.objects import Conn, Maker
from support.servers import EchoServer

SOON = Backoff(first=0.005, longest=0.005)
NAMES = [
    # as in pycassa.pool
    "connection_created",
    "connection_checked_out",
    "connection_checked_in",
    "connection_disposed",
    "connection_recycled",
    "connection_failed",
    "server_list_obtained",
    "pool_disposed",
    "pool_at_max",
    # and new
    "acquire_timed_out",
    "connection_held_long",
    "acquire_shed",
    "connection_lost",
    "connection_salvaged",
    "peer_closed",
    "pool_went_down",
    "pool_is_back",
]


class Recorder:
    """Listens to everything; *told* has (name, event), in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.news = Event()

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(name)

        def listen(event: Any) -> None:
            self.told.append((name, event))
            self.news.set()

        return listen

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.told]

    def of(self, name: str) -> list[Any]:
        return [event for told, event in self.told if told == name]

    def wait_for(self, name: str, count: int = 1) -> Any:
        """The *count*-th event of that *name*, once it has been told."""
        __tracebackhide__ = True
        with gevent.Timeout(10, AssertionError(f"no {name} in {self.names}")):
            while len(self.of(name)) < count:
                self.news.clear()
                self.news.wait()
        return self.of(name)[count - 1]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_the_events_have_the_documented_names():
    assert sorted(name for name in vars(PoolListener) if not name.startswith("_")) == sorted(NAMES)


def test_every_method_of_pool_listener_does_nothing_and_returns_none():
    for name in NAMES:
        assert getattr(PoolListener(), name)(object()) is None


@pytest.mark.parametrize("event_class", events.PoolEvent.__subclasses__())
def test_an_event_is_frozen(event_class):
    values = {field.name: None for field in dataclasses.fields(event_class)}
    event = event_class(**values)

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.pool = "another"


def test_a_whole_cycle_is_told_in_order_and_names_the_pool_and_the_connection(maker, recorder):
    pool = ConnectionPool(1, connect=maker, listeners=[recorder])

    with pool.get() as conn:
        pass
    pool.close()

    assert recorder.names == [
        "connection_created",
        "connection_checked_out",
        "connection_checked_in",
        "pool_disposed",
        "connection_disposed",
    ]
    assert all(event.pool is pool for _, event in recorder.told)
    for name, event in recorder.told:
        if name.startswith("connection"):
            assert event.connection is conn


def test_connection_created_is_told_with_how_long_the_dial_took(maker, recorder):
    def connect():
        clock.advance(100)
        return maker()

    with FakeClock() as clock, ConnectionPool(1, connect=connect, listeners=[recorder]):
        assert 100 <= recorder.wait_for("connection_created").seconds < 150


def test_connection_checked_out_is_told_before_the_caller_has_it_with_how_long_it_waited(
    maker, recorder
):
    def wait():
        with pool.get(timeout=None) as again:
            assert again is conn
            assert len(recorder.of("connection_checked_out")) == 2
            assert 100 <= recorder.of("connection_checked_out")[1].waited < 150

    with FakeClock() as clock, ConnectionPool(1, connect=maker, listeners=[recorder]) as pool:
        conn = pool.acquire()
        waiter = gevent.spawn(wait)
        gevent.idle()
        clock.advance(100)
        pool.release(conn)
        waiter.get(timeout=10)


def test_connection_checked_in_is_told_with_how_long_it_was_used(maker, recorder):
    with FakeClock() as clock, ConnectionPool(1, connect=maker, listeners=[recorder]) as pool:
        with pool.get():
            clock.advance(100)

    assert 100 <= recorder.of("connection_checked_in")[0].used < 150


def test_connection_checked_in_is_not_told_of_what_is_discarded(maker, recorder):
    pool = ConnectionPool(1, connect=maker, listeners=[recorder])

    pool.discard(pool.acquire())
    pool.detach(pool.acquire())
    with pytest.raises(OSError):
        with pool.get():
            raise OSError

    assert recorder.of("connection_checked_in") == []


def test_connection_checked_in_is_not_told_of_what_is_closed_on_return(maker, recorder):
    pool = ConnectionPool(1, connect=maker, max_uses=1, listeners=[recorder])

    with pool.get():
        pass

    assert recorder.of("connection_checked_in") == []
    assert recorder.wait_for("connection_disposed").reason is Reason.WORN_OUT


def test_connection_disposed_is_told_with_the_reason_and_the_error(maker, recorder):
    pool = ConnectionPool(1, connect=maker, listeners=[recorder])
    error = ConnectionResetError()

    with pytest.raises(ConnectionResetError):
        with pool.get() as conn:
            raise error

    event = recorder.wait_for("connection_disposed")
    assert event.connection is conn
    assert event.reason is Reason.ERROR
    assert event.error is error
    assert conn.closed


def test_connection_disposed_is_told_of_every_connection_that_leaves(maker, recorder):
    pool = ConnectionPool(1, connect=maker, listeners=[recorder])
    pool.discard(pool.acquire())
    assert recorder.wait_for("connection_disposed", 1).reason is Reason.DISCARDED
    pool.detach(pool.acquire())
    assert recorder.wait_for("connection_disposed", 2).reason is Reason.DETACHED
    pool.fill(timeout=10)
    pool.dispose()
    assert recorder.wait_for("connection_disposed", 3).reason is Reason.DISPOSED
    pool.fill(timeout=10)
    pool.close()
    assert recorder.wait_for("connection_disposed", 4).reason is Reason.POOL_CLOSED


def test_connection_recycled_is_told_with_the_old_and_the_new(maker, recorder):
    pool = ConnectionPool(1, connect=maker, max_uses=1, listeners=[recorder])

    with pool.get() as old:
        pass

    event = recorder.wait_for("connection_recycled")
    assert event.old_connection is old
    assert event.new_connection.number == 2


def test_connection_recycled_is_told_of_each_one_that_is_drained(maker, recorder):
    pool = ConnectionPool(3, connect=maker, listeners=[recorder])
    pool.fill(timeout=10)

    pool.drain()
    recorder.wait_for("connection_recycled", 3)
    gevent.idle()

    pairs = [(e.old_connection.number, e.new_connection.number) for e in recorder.of(NAMES[4])]
    assert {old for old, _ in pairs} == {1, 2, 3}
    assert {new for _, new in pairs} == {4, 5, 6}


def test_connection_recycled_is_told_where_the_replacement_is_open_first(maker, recorder):
    pool = ConnectionPool(2, min_size=1, connect=maker, listeners=[recorder])
    recorder.wait_for("connection_created")
    gevent.idle()

    pool.drain()

    event = recorder.wait_for("connection_recycled")
    assert (event.old_connection.number, event.new_connection.number) == (1, 2)


def test_connection_failed_is_told_of_a_failed_dial(maker, recorder):
    maker.error = ConnectionRefusedError("nothing there")
    pool = ConnectionPool(1, connect=maker, backoff=SOON, listeners=[recorder])

    recorder.wait_for("connection_failed", 2)
    event = recorder.of("connection_failed")[0]

    assert event.error is maker.error
    assert event.connection is None
    pool.close()


def test_connection_failed_is_told_of_an_error_that_broke_a_held_one(maker, recorder):
    pool = ConnectionPool(1, connect=maker, listeners=[recorder])
    error = ConnectionResetError()

    with pytest.raises(ConnectionResetError):
        with pool.get() as conn:
            raise error

    (event,) = recorder.of("connection_failed")
    assert (event.error, event.connection) == (error, conn)


def test_connection_failed_is_not_told_of_an_error_that_does_not_discard(maker, recorder):
    pool = ConnectionPool(1, connect=maker, listeners=[recorder])

    with pytest.raises(ValueError):
        with pool.get():
            raise ValueError

    assert recorder.of("connection_failed") == []
    assert len(recorder.of("connection_checked_in")) == 1


def test_pool_at_max_is_told_when_a_caller_begins_to_wait(maker, recorder):
    pool = ConnectionPool(1, connect=maker, max_overflow=1, listeners=[recorder])
    held = [pool.acquire(), pool.acquire()]
    assert recorder.of("pool_at_max") == []

    waiter = gevent.spawn(pool.acquire)
    gevent.idle()

    assert [event.maximum for event in recorder.of("pool_at_max")] == [2]
    pool.release(held[0])
    waiter.join()


def test_pool_at_max_is_not_told_when_a_dial_or_an_idle_one_will_serve_it(maker, recorder):
    pool = ConnectionPool(2, connect=maker, min_size=0, listeners=[recorder])

    with pool.get():
        with pool.get():
            pass
    with pool.get():
        pass

    assert recorder.of("pool_at_max") == []


def test_pool_disposed_is_told_once_per_dispose_and_once_of_close(maker, recorder):
    pool = ConnectionPool(1, connect=maker, listeners=[recorder])

    pool.dispose()
    pool.dispose()
    pool.close()
    pool.close()

    assert [event.closed for event in recorder.of("pool_disposed")] == [False, False, True]


def test_acquire_timed_out_is_told_with_the_error_the_caller_gets(maker, recorder):
    def wait():
        with pytest.raises(PoolTimeout) as raised:
            pool.acquire(timeout=100)
        return raised.value

    with FakeClock() as clock, ConnectionPool(1, connect=maker, listeners=[recorder]) as pool:
        with pool.get():
            waiter = gevent.spawn(wait)
            gevent.idle()
            clock.advance(100)
            error = waiter.get(timeout=10)
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0)

    first, second = recorder.of("acquire_timed_out")
    assert first.error is error
    assert 100 <= first.waited < 150
    assert second.waited < 50


class Mourner:
    """Listens to losses alone: a listener that keeps every event keeps every connection alive."""

    def __init__(self, then: Callable[[Any], object] = lambda event: None) -> None:
        self.event: AsyncResult[Any] = AsyncResult()
        self._then = then

    def connection_lost(self, event: Any) -> None:
        self.event.set(event)
        self._then(event)


def lose_one(pool: ConnectionPool[Any]) -> None:
    pool.acquire(timeout=10)
    gc.collect()


@pytest.mark.parametrize("track", [True, False])
def test_connection_lost_is_told_with_how_long_and_if_the_pool_tracks_where(maker, track):
    mourner = Mourner()
    pool = ConnectionPool(1, connect=maker, track=track, listeners=[mourner], name="db")

    lose_one(pool)

    event = mourner.event.get(timeout=10)
    assert event.pool is pool
    assert event.used >= 0
    assert ("in lose_one" in event.where) if track else (event.where is None)
    assert pool.stats().closed[Reason.LOST] == 1
    with pool.get(timeout=10):
        pass


def test_a_listener_to_losses_may_raise_or_close_the_pool(maker):
    for then in (lambda event: 1 / 0, lambda event: event.pool.close(timeout=5)):
        mourner = Mourner(then)
        pool = ConnectionPool(1, connect=maker, listeners=[mourner])
        lose_one(pool)
        mourner.event.get(timeout=10)
        gevent.idle()
        pool.close(timeout=5)
        assert pool.stats().in_use == pool.stats().idle == 0


@pytest.mark.parametrize("in_use", [False, True])
def test_peer_closed_is_told_of_idle_and_of_held_connections(recorder, in_use):
    with EchoServer() as server:
        connect = SocketFactory(server.address)
        with ConnectionPool(1, connect=connect, listeners=[recorder]) as pool:
            pool.fill(timeout=10)
            server.wait_open(1)
            conn = pool.acquire()
            if not in_use:
                pool.release(conn)

            server.fin_all()
            event = recorder.wait_for("peer_closed")
            assert event.connection is conn
            assert event.in_use is in_use
            if in_use:
                pool.release(conn)
            assert recorder.wait_for("connection_disposed").reason is Reason.PEER_CLOSED


def test_a_listener_may_have_any_of_the_methods(maker):
    class Opened:
        count = 0

        def connection_created(self, event):
            self.count += 1

    opened = Opened()
    pool = ConnectionPool(2, connect=maker, listeners=[opened])
    pool.fill(timeout=10)
    gevent.idle()

    assert opened.count == 2


def test_a_listener_added_later_is_told_from_then_on(maker, recorder):
    pool = ConnectionPool(1, connect=maker)
    with pool.get():
        pass

    pool.add_listener(recorder)
    assert recorder.told == []
    with pool.get():
        pass

    assert recorder.names == ["connection_checked_out", "connection_checked_in"]


def test_several_listeners_are_all_told(maker):
    recorders = [Recorder(), Recorder()]
    pool = ConnectionPool(1, connect=maker, listeners=recorders)
    with pool.get():
        pass

    assert recorders[0].names == recorders[1].names != []


def test_without_listeners_the_fast_path_is_open_and_no_event_is_made(maker, monkeypatch):
    pool = ConnectionPool(1, connect=maker)
    pool.fill(timeout=10)
    for event_class in events.PoolEvent.__subclasses__():
        monkeypatch.delattr(events, event_class.__name__)

    with pool.get():
        assert pool._bucket.fast_path_open == pool._runtime.ident
    pool.discard(pool.acquire())
    with pytest.raises(ConnectionError):
        with pool.get():
            raise ConnectionResetError


def test_a_listener_who_overrides_nothing_costs_nothing(maker):
    pool = ConnectionPool(1, connect=maker, listeners=[PoolListener()])
    pool.fill(timeout=10)

    assert pool.listening == {}
    assert pool._bucket.fast_path_open == pool._runtime.ident


# A listener cannot break the pool


class Raising(Recorder):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def __getattr__(self, name: str) -> Any:
        listen = super().__getattr__(name)

        def listen_and_raise(event: Any) -> None:
            listen(event)
            raise self.error(name)

        return listen_and_raise


def exercise(pool: ConnectionPool[Conn], maker: Maker) -> None:
    """Provoke every event that plain objects can."""
    with pool.get(timeout=10):
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.01)
    pool.discard(pool.acquire(timeout=10))
    with pytest.raises(ConnectionResetError):
        with pool.get(timeout=10):
            raise ConnectionResetError
    pool.fill(timeout=10)
    pool.drain()
    pool.fill(timeout=10)
    maker.error = ConnectionRefusedError()
    dials = maker.dials
    pool.dispose()
    if pool._bucket.closed:
        raise PoolClosed
    maker.wait_until(lambda: maker.dials > dials)
    maker.error = None
    pool.fill(timeout=10)


def test_what_a_listener_raises_is_logged_and_the_pool_is_whole(maker, caplog):
    raising = Raising(ZeroDivisionError)
    pool = ConnectionPool(1, connect=maker, backoff=SOON, listeners=[raising], name="db")

    exercise(pool, maker)

    assert set(NAMES) - set(raising.names) == {
        "server_list_obtained",
        "acquire_shed",
        "connection_held_long",
        "connection_salvaged",
        "connection_lost",
        "peer_closed",
        "pool_went_down",
        "pool_is_back",
    }
    assert pool.stats().idle == 1
    failures = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert {r.name for r in failures} == {"geventpool.pool.db"}
    assert all(r.exc_info[0] is ZeroDivisionError for r in failures)
    assert len(failures) == len(raising.told)
    pool.close(timeout=5)
    assert maker.open == set()


def test_a_listener_that_switches_does_no_harm(maker):
    class Switching(Recorder):
        def __getattr__(self, name: str) -> Any:
            listen = super().__getattr__(name)

            def listen_and_switch(event: Any) -> None:
                gevent.sleep(0.001)
                listen(event)

            return listen_and_switch

    switching = Switching()
    pool = ConnectionPool(1, connect=maker, backoff=SOON, listeners=[switching])

    exercise(pool, maker)
    pool.close(timeout=5)

    assert maker.open == set()


@pytest.mark.parametrize("error", [gevent.Timeout, gevent.GreenletExit, KeyboardInterrupt])
def test_a_cancellation_in_a_listener_of_the_hand_out_goes_on_and_loses_nothing(maker, error):
    class Cancelled:
        cancel = False

        def connection_checked_out(self, event):
            if self.cancel:
                raise error

    cancelled = Cancelled()
    pool = ConnectionPool(1, connect=maker, listeners=[cancelled])
    pool.fill(timeout=10)

    cancelled.cancel = True
    with pytest.raises(error):
        pool.acquire()
    cancelled.cancel = False

    assert pool.stats().idle == 1
    with pool.get(timeout=0):
        pass


@pytest.mark.parametrize("name", [n for n in NAMES[:10] if n != "server_list_obtained"])
def test_a_listener_may_close_the_pool(maker, name):
    class Closing:
        def __init__(self) -> None:
            self.called = Event()

    def close(self: Any, event: Any) -> None:
        self.called.set()
        event.pool.close(timeout=5)

    setattr(Closing, name, close)
    closing = Closing()
    pool = ConnectionPool(1, connect=maker, backoff=SOON, listeners=[closing])

    try:
        exercise(pool, maker)
    except PoolClosed:
        pass

    assert closing.called.wait(timeout=10)
    pool.close(timeout=5)
    gevent.idle()
    assert maker.open == set()
    assert pool._bucket.slots == {}


def test_a_listener_may_use_the_pool_it_listens_to(maker):
    class Curious:
        seen: list[str]

        def connection_created(self, event):
            with event.pool.get(timeout=10) as conn:
                self.seen.append(repr(conn))

    curious = Curious()
    curious.seen = []
    pool = ConnectionPool(1, connect=maker, listeners=[curious])
    pool.fill(timeout=10)
    gevent.idle()

    assert curious.seen == ["<Conn 1>"]


def test_eviction_is_told_as_such(maker, recorder):
    limit = Limit(1)
    one = ConnectionPool(1, connect=maker, min_size=0, limits=[limit], listeners=[recorder])
    two = ConnectionPool(1, connect=maker, min_size=0, limits=[limit])
    with one.get():
        pass

    with two.get(timeout=10):
        assert recorder.wait_for("connection_disposed").reason is Reason.EVICTED
