"""EndpointPool: many places, a limit for each and one for all, and no trace of who has left."""

from __future__ import annotations

import functools
import gc
import ipaddress
import math
import os
import pathlib
import random
import ssl
import sys
import weakref
from collections.abc import Callable, Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest

import geventpool
from geventpool import (
    Backoff,
    Limit,
    NotInUse,
    PoolClosed,
    PoolFull,
    PoolTimeout,
    Reason,
    SocketFactory,
    WrongHub,
)
from geventpool._runtime.runtime import Runtime
from geventpool._scheduler.waiter import Waiter
from geventpool.pools import EndpointPool
from geventpool.testing import FakeClock
from support import named
from support.certificates import make_certificates
from support.child import FORKS, Child
from support.objects import Conn, Maker
from support.servers import EchoServer, ask
from support.strikes import (
    PATIENCE,
    STRIKES,
    Connection,
    Server,
    Stage,
    Strike,
    YieldingListener,
    assert_whole_together,
    come_to_rest,
    play_for_each_point,
)
from support.threads import in_thread
from support.torture import BACKOFF, Round, keepalive_with_luck, open_with_luck, torture
from support.waiting import until

SOON = Backoff(first=0.005, longest=0.005)


class Places(Maker):
    """A Maker that is told where to; dials to what is *away* fail."""

    def __init__(self) -> None:
        super().__init__()
        self.away: set[Any] = set()
        self.asked: list[Any] = []

    def __call__(self, endpoint: Any = None) -> Conn:
        self.asked.append(endpoint)
        if endpoint in self.away:
            self.dials += 1
            self.changed()
            raise ConnectionRefusedError(f"{endpoint} is away")
        conn = super().__call__()
        conn.endpoint = endpoint  # type: ignore[attr-defined]
        return conn


@pytest.fixture
def places() -> Places:
    return Places()


def used(pool: EndpointPool[Any, Any], *endpoints: Any) -> None:
    """Use a connection to each of the *endpoints*, which is idle then."""
    for endpoint in endpoints:
        pool.release(pool.acquire(endpoint))


def opened(pool: EndpointPool[Any, Any], endpoint: Any) -> int:
    return pool.stats(endpoint).idle + pool.stats(endpoint).in_use


def collect() -> None:
    for _ in range(3):
        gc.collect()
        gevent.idle()


# Endpoints

HASHABLE = [
    "db.internal:5432",
    5,
    ("127.0.0.1", 80),
    frozenset({"a", "b"}),
    pathlib.Path("/run/shout.sock"),
    (ipaddress.ip_address("::1"), 443),
    object(),
    "",
    0,
    (),
    False,
    Reason.IDLE,
]


@pytest.mark.parametrize("endpoint", HASHABLE, ids=named)
def test_any_hashable_endpoint_has_connections_of_its_own(places: Places, endpoint: Any) -> None:
    with EndpointPool(connect=places) as pool:
        used(pool, "another")
        with pool.get(endpoint) as conn:
            assert conn.endpoint is endpoint
            assert pool.endpoints() == ["another", endpoint]
            assert pool.stats(endpoint).in_use == 1
            assert pool.holders(endpoint)[0].endpoint is endpoint
        with pool.get(endpoint) as again:
            assert again is conn
        pool.dispose(endpoint)
        until(lambda: pool.endpoints() == ["another"])


def test_endpoints_that_are_equal_are_the_same(places: Places) -> None:
    with EndpointPool(connect=places) as pool:
        used(pool, ("127.0.0.1", 80), ("127.0.0.1", 80), 1, 1.0, True)

        assert places.asked == [("127.0.0.1", 80), 1]


BY_ENDPOINT: dict[str, Callable[[EndpointPool[Any, Any], Any], Any]] = {
    "get": lambda pool, endpoint: pool.get(endpoint).__enter__(),
    "acquire": lambda pool, endpoint: pool.acquire(endpoint),
    "execute": lambda pool, endpoint: pool.execute(endpoint, print),
    "fill": lambda pool, endpoint: pool.fill(endpoint),
    "drain": lambda pool, endpoint: pool.drain(endpoint),
    "dispose": lambda pool, endpoint: pool.dispose(endpoint),
    "stats": lambda pool, endpoint: pool.stats(endpoint),
    "holders": lambda pool, endpoint: pool.holders(endpoint),
}


@pytest.mark.parametrize("verb", BY_ENDPOINT)
def test_an_endpoint_that_cannot_be_hashed_is_refused_by_name(places: Places, verb: str) -> None:
    with EndpointPool(connect=places) as pool:
        with pytest.raises(TypeError, match=r"endpoint must be hashable, not \['a', 80\]"):
            BY_ENDPOINT[verb](pool, ["a", 80])

        assert pool.endpoints() == []


def test_none_is_an_endpoint_where_one_is_meant_and_all_of_them_where_all_can_be(
    places: Places,
) -> None:
    with EndpointPool(connect=places, max_size=2) as pool:
        used(pool, "a")
        used(pool, None)
        pool.fill(None)
        assert places.asked == ["a", None, None]
        assert pool.endpoints() == ["a", None]
        assert pool.stats(None) == pool.stats()
        assert (pool.stats().idle, pool.stats("a").idle) == (3, 1)
        pool.drain(None)
        gevent.idle()
        assert pool.endpoints() == []
        assert pool.execute(None, lambda conn: conn.endpoint) is None


def test_hooks_get_the_endpoint_first() -> None:
    class Pool(EndpointPool[str, Any]):
        def _new_connection(self, endpoint: str) -> Any:
            told.append(("new", endpoint))
            return SimpleNamespace(endpoint=endpoint)

        def _keepalive(self, endpoint: str, conn: Any) -> None:
            told.append(("keepalive", endpoint, conn.endpoint))

        def _close_connection(self, endpoint: str, conn: Any) -> None:
            told.append(("close", endpoint, conn.endpoint))

        def _is_alive(self, endpoint: str, conn: Any) -> bool:
            told.append(("alive", endpoint, conn.endpoint))
            return True

        def _fileno(self, endpoint: str, conn: Any) -> None:
            told.append(("fileno", endpoint, conn.endpoint))

        def _reset_connection(self, endpoint: str, conn: Any) -> None:
            told.append(("reset", endpoint, conn.endpoint))

    told: list[Any] = []
    with Pool(check_after=0.0, keepalive=0.01) as pool:
        for endpoint in "ab":
            used(pool, endpoint, endpoint)
        checks = pool.stats().checked
        until(lambda: pool.stats().checked >= checks + 4)
    hooks = {what for what, *_ in told}

    assert hooks == {"new", "keepalive", "close", "alive", "fileno", "reset"}
    for hook in hooks:
        assert {tuple(rest) for what, *rest in told if what == hook} == (
            {("a",), ("b",)} if hook == "new" else {("a", "a"), ("b", "b")}
        )


def test_the_default_hooks_close_watch_and_look_at_sockets() -> None:
    def connect(endpoint: str) -> Any:
        return SocketFactory(server.address)()

    with EchoServer() as server, EndpointPool(connect=connect) as pool:
        sock = pool.acquire("a")
        assert pool._fileno("a", sock) == sock.fileno()
        assert pool._is_alive("a", sock)
        sock.sendall(b"unread")
        gevent.socket.wait_read(sock.fileno(), timeout=PATIENCE)
        assert not pool._is_alive("a", sock)
        pool.release(sock)
        with pool.get("a") as other:
            assert other is not sock  # it was dirty
            assert sock.fileno() == -1


@pytest.mark.parametrize("kind", ["TCP", "TLS", "Unix"])
def test_a_pool_of_sockets_is_a_factory_and_a_pool(tmp_path: pathlib.Path, kind: str) -> None:
    context = None
    server = EchoServer(path=tmp_path / "echo.sock" if kind == "Unix" else None)
    if kind == "TLS":
        made = make_certificates(tmp_path)
        theirs = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(made.certificate, made.key)
        context = gevent.ssl.create_default_context(cafile=str(made.authority))
        server = EchoServer(ssl_context=theirs)

    factory = functools.cache(functools.partial(SocketFactory, tls=context or False))
    with server, EndpointPool(connect=lambda endpoint: factory(endpoint)()) as pool:
        endpoint: Any = tmp_path / "echo.sock"
        if kind != "Unix":
            endpoint = ("localhost" if context else "127.0.0.1", server.address[1])
        for _ in range(2):
            with pool.get(endpoint) as sock:
                assert ask(sock, "hello") == "hello"
                assert isinstance(sock, gevent.ssl.SSLSocket) == (kind == "TLS")
        assert pool.stats(endpoint).opened == 1


def test_nothing_is_opened_before_it_is_asked_for(places: Places) -> None:
    with EndpointPool(connect=places, min_idle=5) as pool:
        gevent.idle()
        assert (places.dials, pool.endpoints(), pool.size) == (0, [], 0)
        pool.stats("a")
        pool.holders("a")
        pool.drain("a")
        pool.dispose("a")
        gevent.idle()

        assert (places.dials, pool.endpoints(), pool.size) == (0, [], 0)


def test_it_is_generic_in_endpoint_and_connection(places: Places) -> None:
    pool = EndpointPool[str, Conn](connect=places)

    with pool.get("a") as conn:
        assert isinstance(conn, Conn)
    assert geventpool.EndpointPool is EndpointPool


# Verbs


def test_a_connection_is_given_back_without_naming_its_endpoint(places: Places) -> None:
    with EndpointPool(connect=places) as pool:
        a, b, c = pool.acquire("a"), pool.acquire("b"), pool.acquire("c")
        pool.release(b)
        pool.discard(a)
        assert pool.detach(c) is c
        until(lambda: places.open == {b.number, c.number})

        assert pool.endpoints() == ["b"]
        assert pool.acquire("b") is b
        for conn in (a, c, b, Conn(places, 99)):
            if conn is b:
                pool.release(b)
            with pytest.raises(NotInUse):
                pool.release(conn)
            with pytest.raises(NotInUse):
                pool.discard(conn)
            with pytest.raises(NotInUse):
                pool.detach(conn)
        assert not c.closed


def test_a_with_gives_back_or_discards_as_in_any_pool(places: Places) -> None:
    with EndpointPool(connect=places) as pool:
        with pool.get("a") as first:
            pass
        with pytest.raises(ValueError), pool.get("a") as second:
            raise ValueError
        assert second is first
        with pytest.raises(OSError), pool.get("a"):
            raise OSError
        until(lambda: first.closed)
        with pool.get("a", timeout=5) as third:
            pool.release(third)

        assert third.number == 2
        assert pool.stats().closed[Reason.ERROR] == 1
        assert pool.stats().in_use == 0


def test_execute_calls_a_function_or_a_method(places: Places) -> None:
    with EndpointPool(connect=places) as pool:
        assert pool.execute("a", lambda conn, x, y: (conn.endpoint, x, y), 1, y=2) == ("a", 1, 2)
        assert pool.execute("b", "double", 4, plus=1) == 9
        with pytest.raises(AttributeError, match="no_such"):
            pool.execute("a", "no_such")
        assert pool.stats().in_use == 0


def test_fill_opens_all_of_one_endpoint(places: Places) -> None:
    with EndpointPool(connect=places, max_size=4, total_max_size=6) as pool:
        pool.fill("a", timeout=PATIENCE)
        assert (pool.stats("a").idle, pool.size) == (4, 4)
        filling = gevent.spawn(pool.fill, "b")
        until(lambda: pool.stats("b").idle == 2)
        filling.kill()
        with pytest.raises(PoolTimeout, match="2 of 4 connections are open"):
            pool.fill("b", timeout=0.01)  # and takes nothing from others
        assert (pool.stats("a").idle, pool.stats("b").idle) == (4, 2)
        places.away.add("c")
        pool.dispose()
        until(lambda: isinstance(_cause_of_a_fill_in_vain(pool, "c"), ConnectionRefusedError))
        until(lambda: pool.endpoints() == [])


def _cause_of_a_fill_in_vain(pool: EndpointPool[Any, Any], endpoint: Any) -> BaseException | None:
    # None, too, if its time was up before it could dial.
    with pytest.raises(PoolTimeout) as caught:
        pool.fill(endpoint, timeout=0.01)
    return caught.value.__cause__


def test_resize_sets_both_caps(places: Places) -> None:
    with EndpointPool(connect=places, max_size=3, total_max_size=6, min_idle=2) as pool:
        pool.fill("a")
        pool.fill("b")
        held = pool.acquire("a")

        pool.resize(2)
        until(lambda: pool.stats().closing == 0)
        assert (pool.max_size, pool.total_max_size) == (2, 6)
        assert (opened(pool, "a"), opened(pool, "b")) == (2, 2)
        pool.resize(1, 2)
        until(lambda: pool.stats().closing == 0)
        assert (opened(pool, "a"), opened(pool, "b")) == (1, 1)
        assert (pool.stats("a").maximum, pool.stats().maximum) == (1, 2)
        with pytest.raises(PoolTimeout):
            pool.acquire("a", timeout=0)
        pool.resize(4, None)
        assert pool.total_max_size == math.inf
        pool.fill("a")
        pool.fill("new")
        assert (opened(pool, "a"), opened(pool, "new")) == (4, 4)
        pool.resize(5)
        assert pool.total_max_size == math.inf
        pool.release(held)


def test_resize_serves_who_waits_for_the_place(places: Places) -> None:
    with EndpointPool(connect=places, max_size=1, total_max_size=1) as pool:
        held = pool.acquire("a")
        waiters = [gevent.spawn(pool.acquire, endpoint) for endpoint in "ab"]
        gevent.idle()

        pool.resize(2, 2)
        assert waiters[0].get(timeout=PATIENCE).endpoint == "a"
        pool.resize(2, 3)
        assert waiters[1].get(timeout=PATIENCE).endpoint == "b"
        for conn in (held, *(waiter.value for waiter in waiters)):
            pool.release(conn)


@pytest.mark.parametrize("endpoint", ["a", None])
def test_drain_closes_what_is_open_now_and_what_is_in_use_on_return(
    places: Places, endpoint: Any
) -> None:
    with EndpointPool(connect=places, max_size=2) as pool:
        pool.fill("a")
        pool.fill("b")
        held = [pool.acquire("a"), pool.acquire("b")]
        pool.drain(endpoint)
        until(lambda: len(places.open) == (3 if endpoint else 2))
        assert not held[0].closed
        for conn in held:
            pool.release(conn)
        until(lambda: pool.endpoints() == (["b"] if endpoint else []))

        assert pool.stats().idle == (2 if endpoint else 0)
        assert pool.stats().closed[Reason.DRAINED] == (2 if endpoint else 4)
        assert pool.acquire("a", timeout=PATIENCE).number == 5
        pool.close(timeout=0)


def test_a_drain_may_be_spread(places: Places) -> None:
    settings: dict[str, Any] = {"max_size": 40, "idle_timeout": None, "max_lifetime": None}
    with FakeClock() as clock, EndpointPool(connect=places, **settings) as pool:
        pool.fill("a")
        pool.drain("a", over=1000)
        clock.advance(500)
        until(lambda: len(places.open) < 40)
        gevent.idle()
        assert places.open  # all 40 in the same half: one time in 5e11
        clock.advance(500)
        until(lambda: pool.endpoints() == [])
        assert places.open == set()


@pytest.mark.parametrize("endpoint", ["a", None])
def test_dispose_closes_what_is_idle(places: Places, endpoint: Any) -> None:
    with EndpointPool(connect=places, max_size=2) as pool:
        pool.fill("a")
        pool.fill("b")
        with pool.get("a"):
            pool.dispose(endpoint)
            until(lambda: len(places.open) == (3 if endpoint else 1))
        assert pool.stats("a").idle == 1
        used(pool, "b")


def test_close_is_for_all_endpoints(places: Places) -> None:
    pool = EndpointPool(connect=places, max_size=1)
    used(pool, "idle")
    held = pool.acquire("held")
    errors: list[BaseException] = []

    def wait(endpoint: str) -> None:
        try:
            pool.acquire(endpoint)
        except PoolClosed as error:
            errors.append(error)

    places.slow = True
    callers = [gevent.spawn(wait, endpoint) for endpoint in ("held", "dialing")]
    gevent.idle()
    closer = gevent.spawn(pool.close)
    gevent.joinall(callers, timeout=PATIENCE)

    assert [error.pool for error in errors] == [f"{pool.name} held", f"{pool.name} dialing"]  # type: ignore[attr-defined]
    assert not closer.ready()
    pool.release(held)
    closer.get(timeout=PATIENCE)
    assert places.open == set()
    assert pool.endpoints() == []
    assert (pool.size, pool.stats().closed[Reason.POOL_CLOSED]) == (0, 2)
    for verb in ("get", "acquire", "execute", "fill"):
        with pytest.raises(PoolClosed):
            BY_ENDPOINT[verb](pool, "held")
    with pytest.raises(PoolClosed):
        pool.acquire("never seen")
    assert pool.endpoints() == []
    pool.drain()
    pool.dispose()
    pool.close()


def test_close_by_force_closes_what_is_out(places: Places) -> None:
    pool = EndpointPool(connect=places)
    conns = [pool.acquire(endpoint) for endpoint in "abc"]

    gevent.spawn(pool.close, timeout=0).get(timeout=PATIENCE)

    assert all(conn.closed for conn in conns)
    assert pool.endpoints() == []


def test_greenlet_local_shares_for_each_endpoint(places: Places) -> None:
    with EndpointPool(connect=places, greenlet_local=True) as pool:
        with pool.get("a") as a, pool.get("b") as b, pool.get("a") as again:
            assert again is a
            assert b is not a
            assert gevent.spawn(pool.execute, "a", id).get() != id(a)
        with pool.get("a"), pytest.raises(OSError):
            with pool.get("a"):
                raise OSError
        assert pool.stats("a").closed[Reason.ERROR] == 1
        assert pool.stats().in_use == 0


def test_listeners_are_told_the_endpoint(places: Places) -> None:
    class Ears:
        def __getattr__(self, name: str) -> Any:
            if name not in vars(geventpool.PoolListener) or name.startswith("_"):
                raise AttributeError(name)
            return lambda event: told.append((name, event.endpoint))

    told: list[Any] = []
    places.away.add("away")
    with EndpointPool(connect=places, max_size=1, backoff=SOON) as pool:
        pool.add_listener(Ears())
        with pool.get("a"), pytest.raises(PoolTimeout):
            pool.acquire("a", timeout=0.001)
        with pytest.raises(OSError), pool.get("b"):
            raise OSError
        waiter = gevent.spawn(pool.acquire, "away")
        until(lambda: ("connection_failed", "away") in told)
        waiter.kill()
        until(lambda: ("connection_disposed", "b") in told)

    for event in [
        ("connection_created", "a"),
        ("connection_checked_out", "a"),
        ("pool_at_max", "a"),
        ("acquire_timed_out", "a"),
        ("connection_checked_in", "a"),
        ("connection_disposed", "a"),
        ("connection_failed", "b"),
        ("connection_failed", "away"),
    ]:
        assert event in told
    assert told[-1] == ("connection_disposed", "a")
    assert ("pool_disposed", None) in told


def test_a_timeout_of_zero_takes_what_is_there_or_raises(places: Places) -> None:
    with EndpointPool(connect=places) as pool:
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire("a", timeout=0)
        assert caught.value.pool == f"{pool.name} a"
        assert pool.endpoints() == []
        used(pool, "a")
        pool.release(pool.acquire("a", timeout=0))


def test_the_pools_own_timeout_holds_for_acquire_and_get(places: Places) -> None:
    with EndpointPool(connect=places, max_size=1, timeout=0.01) as pool:
        held = pool.acquire("a", timeout=PATIENCE)
        with pytest.raises(PoolTimeout):
            pool.acquire("a")
        with pytest.raises(PoolTimeout), pool.get("a"):
            pass
        pool.release(held)


def test_max_waiting_is_for_each_endpoint(places: Places) -> None:
    with EndpointPool(connect=places, max_size=1, max_waiting=1) as pool:
        held = [pool.acquire("a"), pool.acquire("b")]
        waiters = [gevent.spawn(pool.acquire, endpoint) for endpoint in "ab"]
        gevent.idle()
        with pytest.raises(PoolFull):
            pool.acquire("a")
        for conn in held:
            pool.release(conn)
        for waiter in waiters:
            pool.release(waiter.get(timeout=PATIENCE))
        assert pool.stats().refused == 1


# Looking


def test_stats_are_of_one_endpoint_or_of_all_and_nothing_counted_is_lost(places: Places) -> None:
    with EndpointPool(connect=places, max_size=3, total_max_size=7, name="web") as pool:
        used(pool, "a", "a", "b")
        held = pool.acquire("b")
        one, both = pool.stats("a"), pool.stats()
        assert (one.name, one.size, one.min_size, one.maximum) == ("web a", 3, 0, 3)
        assert (both.name, both.size, both.min_size, both.maximum) == ("web", 3, 0, 7)
        assert (one.acquired, one.released, one.idle, one.in_use, one.opened) == (2, 2, 1, 0, 1)
        assert (both.acquired, both.released, both.idle, both.in_use, both.opened) == (
            4,
            3,
            1,
            1,
            2,
        )
        assert both.use.count == 3
        assert pool.stats("never seen").acquired == 0

        pool.dispose("a")
        until(lambda: pool.endpoints() == ["b"])
        after = pool.stats()
        assert pool.stats("a").acquired == 0
        assert (after.acquired, after.released, after.opened) == (4, 3, 2)
        assert after.closed[Reason.DISPOSED] == 1
        assert after.use == both.use
        pool.release(held)
        used(pool, "a")
        assert pool.stats().acquired == 5
        assert pool.stats("a").acquired == 1


def test_size_counts_all_and_the_repr_tells_how_it_stands(places: Places) -> None:
    with EndpointPool(connect=places, max_size=1, name="web") as pool:
        used(pool, "a")
        held = pool.acquire("b")
        waiter = gevent.spawn(pool.acquire, "b")
        gevent.idle()

        assert pool.size == 2
        assert repr(pool) == (
            "<EndpointPool 'web' 1 in use, 1 idle, 0 connecting | 1 waiting, 2 endpoints>"
        )
        pool.release(held)
        pool.release(waiter.get(timeout=PATIENCE))


def test_holders_are_of_one_endpoint_or_of_all(places: Places) -> None:
    with EndpointPool(connect=places, track=True) as pool:
        a, b = pool.acquire("a"), pool.acquire("b")

        assert [(h.connection, h.endpoint) for h in pool.holders()] == [(a, "a"), (b, "b")]
        assert [h.connection for h in pool.holders("b")] == [b]
        assert "test_holders_are_of_one_endpoint" in str(pool.holders("b")[0].where)
        assert pool.holders("c") == ()
        pool.release(a)
        pool.release(b)


# The caps


def test_neither_cap_is_ever_exceeded(places: Places) -> None:
    def use(number: int) -> None:
        for turn in range(10):
            with pool.get(endpoints[(number + turn) % 5]) as conn:
                held = [holder.endpoint for holder in pool.holders()]
                assert held.count(conn.endpoint) <= 2
                assert pool.size <= 5
                gevent.sleep(0)

    endpoints = "abcde"
    with EndpointPool(connect=places, max_size=2, total_max_size=5) as pool:
        gevent.joinall([gevent.spawn(use, n) for n in range(30)], raise_error=True)

        assert pool.stats().acquired == 300
        assert places.peak <= 5


def test_at_the_total_the_longest_idle_of_another_endpoint_makes_room(places: Places) -> None:
    with EndpointPool(connect=places, max_size=2, total_max_size=3) as pool:
        used(pool, "a", "b", "c", "a")  # b is idle longest now
        used(pool, "d")
        assert pool.endpoints() == ["a", "c", "d"]
        with pool.get("c"):
            used(pool, "e")  # not c, which is in use
            assert pool.endpoints() == ["c", "d", "e"]
        assert pool.stats().closed[Reason.EVICTED] == 2
        assert places.peak == 3


def test_below_the_total_no_room_is_made(places: Places) -> None:
    with EndpointPool(connect=places, max_size=2, total_max_size=None) as pool:
        used(pool, *range(300))

        assert pool.stats().idle == 300
        assert pool.total_max_size == math.inf


def test_the_total_holds_for_a_pool_and_a_limit_for_several(places: Places) -> None:
    limit = Limit(3, "all of us")
    one = EndpointPool(connect=places, limits=[limit])
    other = EndpointPool(connect=places, limits=[limit])
    with one, other:
        used(one, "a", "b")
        used(other, "a")
        used(other, "c")
        assert one.endpoints() == ["b"]
        assert other.endpoints() == ["a", "c"]
        assert (limit.used, one.size, other.size) == (3, 1, 2)
    assert limit.used == 0


def test_callers_of_all_endpoints_are_served_in_the_order_they_came(places: Places) -> None:
    def use(number: int, endpoint: str) -> None:
        with pool.get(endpoint):
            served.append(number)
            gevent.sleep(0)

    served: list[int] = []
    with EndpointPool(connect=places, max_size=1, total_max_size=1) as pool:
        held = pool.acquire("a")
        callers = []
        for number in range(40):
            callers.append(gevent.spawn(use, number, "abcd"[number * 7 % 4]))
            gevent.sleep(0)
        pool.release(held)
        gevent.joinall(callers, timeout=PATIENCE, raise_error=True)

    assert served == list(range(40))


def test_no_caller_overtakes_one_that_waits_for_the_total(places: Places) -> None:
    with EndpointPool(connect=places, max_size=2, total_max_size=2) as pool:
        a, b = pool.acquire("a"), pool.acquire("b")
        first = gevent.spawn(pool.acquire, "c")
        gevent.idle()
        second = gevent.spawn(pool.acquire, "a")
        gevent.idle()

        pool.release(a)  # idle, and of the very endpoint that the second one wants

        assert first.get(timeout=PATIENCE).endpoint == "c"
        assert not second.ready()
        pool.release(b)
        pool.release(first.value)
        pool.release(second.get(timeout=PATIENCE))


def _lose(pool: Any, held: list[Any]) -> None:
    held.clear()
    gc.collect()


WAYS_TO_COME_FREE: dict[str, Callable[[Any, list[Any]], Any]] = {
    "released": lambda pool, held: pool.release(held.pop()),
    "discarded": lambda pool, held: pool.discard(held.pop()),
    "detached": lambda pool, held: pool.detach(held.pop()),
    "lost": _lose,
    "drained": lambda pool, held: (pool.drain(), pool.release(held.pop())),
    "resized": lambda pool, held: pool.resize(1, 2),
    "broken": lambda pool, held: (
        pool._runtime.scheduler.peer_closed(pool._hold_of(held[0])[0], 0.0)
        or pool.release(held.pop())
    ),
}


@pytest.mark.parametrize("way", WAYS_TO_COME_FREE)
@pytest.mark.parametrize("wanted", ["a", "b"], ids=["of the same", "of another"])
def test_a_waiter_hears_of_any_place_that_comes_free(places: Places, way: str, wanted: str) -> None:
    size = 2 if way == "resized" else 1
    with EndpointPool(connect=places, max_size=1, total_max_size=1) as pool:
        held = [pool.acquire("a")]
        if size == 2:
            wanted = "b"
        waiter = gevent.spawn(pool.acquire, wanted)
        gevent.idle()
        assert not waiter.ready()

        WAYS_TO_COME_FREE[way](pool, held)

        assert waiter.get(timeout=PATIENCE).endpoint == wanted
        pool.close(timeout=0)


@pytest.mark.parametrize("end", ["fails", "is not wanted any more", "is killed"])
def test_a_waiter_hears_of_the_place_of_a_dial_that_comes_to_nothing(
    places: Places, end: str
) -> None:
    with EndpointPool(connect=places, total_max_size=1, max_size=1) as pool:
        places.slow = True
        dialing = gevent.spawn(_swallow, pool.acquire, "a")
        gevent.idle()
        waiter = gevent.spawn(pool.acquire, "b")
        gevent.idle()
        assert not waiter.ready()

        places.slow = False
        if end == "fails":
            places.error = OSError()
            places.let_in()
            places.error = None
            dialing.kill()
        elif end == "is killed":
            [dialer] = pool._runtime.dialer.workers.active
            dialing.kill()
            dialer.kill()
        else:
            dialing.kill()
            places.let_in()  # it is idle, and makes room

        assert waiter.get(timeout=PATIENCE).endpoint == "b"
        pool.release(waiter.value)
        dialing.join(PATIENCE)


def _swallow(f: Callable[..., Any], *args: Any) -> Any:
    try:
        return f(*args)
    except (PoolTimeout, OSError):
        return None


def test_a_waiter_hears_of_a_connection_that_idles_out_or_expires_elsewhere(
    places: Places,
) -> None:
    for setting in ("idle_timeout", "max_lifetime"):
        limit = Limit(1)
        settings: dict[str, Any] = {setting: 0.02, "min_idle": 0, "limits": [limit]}
        with EndpointPool(connect=places, **settings) as pool:
            used(pool, "a")
            until(lambda pool=pool: pool.endpoints() == [])
            assert limit.used == 0
            used(pool, "b")


def test_one_endpoint_that_is_away_does_not_keep_others_from_the_places(places: Places) -> None:
    places.away.add("away")
    with EndpointPool(connect=places, max_size=2, total_max_size=2, backoff=SOON) as pool:
        waiters = [gevent.spawn(_swallow, pool.acquire, "away", 0.2) for _ in range(5)]
        gevent.idle()
        for _ in range(20):
            used(pool, "a", "b")
        gevent.joinall(waiters, timeout=PATIENCE)

    assert pool.stats().timed_out == 5


def test_fail_fast_raises_the_error_of_the_dial(places: Places) -> None:
    places.away.add("away")
    with EndpointPool(connect=places, fail_fast=True) as pool:
        with pytest.raises(ConnectionRefusedError, match="away is away"):
            pool.acquire("away")
        used(pool, "a")


def test_a_timeout_has_the_error_of_its_own_endpoint_as_its_cause(places: Places) -> None:
    places.away.update({"x", "y"})
    with EndpointPool(connect=places, backoff=SOON) as pool:
        for endpoint in "xy":
            with pytest.raises(PoolTimeout, match=f"{endpoint} is away") as caught:
                pool.acquire(endpoint, timeout=0.02)
            assert str(caught.value.__cause__) == f"{endpoint} is away"


# How long connections stay


def test_idle_timeout_spares_min_idle_of_each_endpoint(places: Places) -> None:
    with (
        FakeClock() as clock,
        EndpointPool(connect=places, max_size=3, min_idle=1, idle_timeout=60) as pool,
    ):
        pool.fill("a")
        pool.fill("b")
        clock.advance(60)
        until(lambda: pool.stats().closed[Reason.IDLE] == 4)
        for _ in range(3):
            clock.advance(60)
            gevent.idle()

        assert (pool.stats("a").idle, pool.stats("b").idle) == (1, 1)
        assert pool.stats().opened == 6


def test_max_lifetime_closes_all_and_opens_none(places: Places) -> None:
    with (
        FakeClock() as clock,
        EndpointPool(connect=places, min_idle=1, max_lifetime=30) as pool,
    ):
        used(pool, "a", "b")
        clock.advance(30)
        until(lambda: pool.endpoints() == [])

        assert places.dials == 2
        assert pool.stats().closed[Reason.EXPIRED] == 2


def test_max_uses_and_the_order_are_as_in_any_pool(places: Places) -> None:
    with EndpointPool(connect=places, max_uses=2) as pool:
        used(pool, "a", "a", "a")
        assert places.opened == 2
    for order, expected in ((None, [2, 2]), ("lifo", [2, 2]), ("fifo", [1, 2])):
        more = Places()
        with EndpointPool(connect=more, max_size=2, order=order) as pool:
            pool.fill("a")
            numbers = []
            for _ in range(2):
                with pool.get("a") as conn:
                    numbers.append(conn.number)
            assert numbers == expected


def test_an_idle_connection_whose_peer_hangs_up_is_closed_and_not_replaced() -> None:
    with EchoServer() as server:
        with EndpointPool(connect=lambda address: SocketFactory(address)()) as pool:
            used(pool, server.address)
            server.fin_all()
            until(lambda: pool.endpoints() == [])

            assert pool.stats().closed[Reason.PEER_CLOSED] == 1
            with pool.get(server.address) as sock:
                assert ask(sock, "hello") == "hello"
            assert pool.stats().dialed == 2


def test_the_keepalive_visits_all_endpoints_and_discards_what_fails(places: Places) -> None:
    class Pool(EndpointPool[str, Any]):
        def _new_connection(self, endpoint: str) -> Conn:
            return places(endpoint)

        def _keepalive(self, endpoint: str, conn: Conn) -> None:
            checked.append(endpoint)
            if endpoint == "mute":
                raise OSError

    checked: list[str] = []
    with Pool(keepalive=0.01) as pool:
        used(pool, "a", "mute", "b")
        until(lambda: checked.count("a") >= 2 and checked.count("b") >= 2)

        assert pool.endpoints() == ["a", "b"]
        assert checked.count("mute") == 1


# A thousand endpoints


class EverySteps:
    """Counts the lines of geventpool that are run, whatever the file.

    The collector waits meanwhile: what it makes run is none of the call's.
    """

    def of(self, call: Callable[[], object]) -> int:
        self.count = 0
        gc.disable()
        sys.settrace(self._trace)
        try:
            call()
        finally:
            sys.settrace(None)
            gc.enable()
        return self.count

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        if "geventpool" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        self.count += 1
        return self._trace


def thousand(places: Places, endpoints: int, **settings: Any) -> EndpointPool[Any, Any]:
    pool: EndpointPool[Any, Any] = EndpointPool(
        connect=places, total_max_size=max(10, endpoints), **settings
    )
    used(pool, *range(endpoints))
    assert pool.stats().idle == endpoints
    return pool


def _acquire_and_release(pool: EndpointPool[Any, Any]) -> None:
    pool.release(pool.acquire(0))


def _get(pool: EndpointPool[Any, Any]) -> None:
    with pool.get(0):
        pass


def _refused(pool: EndpointPool[Any, Any]) -> None:
    with pytest.raises(PoolTimeout):
        pool.acquire("new", timeout=0)


def _look(pool: EndpointPool[Any, Any]) -> None:
    pool.stats(0)
    pool.holders(0)


@pytest.mark.parametrize("call", [_acquire_and_release, _get, _refused, _look])
def test_acquire_costs_with_a_thousand_endpoints_what_it_costs_with_one(
    call: Callable[[EndpointPool[Any, Any]], None],
) -> None:
    def cost(endpoints: int) -> int:
        with thousand(Places(), endpoints) as pool:
            call(pool)
            return EverySteps().of(lambda: call(pool))

    one, many = cost(1), cost(1000)

    assert one > 0
    assert many <= one + 2, f"{one} steps with one, {many} with 1,000"


def test_an_eviction_costs_with_a_thousand_endpoints_what_it_costs_with_ten() -> None:
    def cost(endpoints: int) -> int:
        with thousand(Places(), endpoints) as pool:
            used(pool, "new")
            bucket = pool._expect("newer")
            waiter = Waiter(
                bucket, next(pool._runtime.scheduler.tickets), None, lambda waiter: None
            )
            # What acquire does up to its wait; the close and the dial are the same for all.
            steps = EverySteps().of(lambda: pool._runtime.scheduler.enqueue(waiter, monotonic()))
            assert pool.stats().closed[Reason.EVICTED] == 2
            pool._runtime.scheduler.cancel(waiter, monotonic())
            pool._expected(bucket)
            return steps

    ten, many = cost(10), cost(1000)

    assert ten > 20
    assert many <= ten + 10, f"{ten} steps with ten, {many} with 1,000"


@pytest.mark.slow
def test_of_a_thousand_endpoints_with_900_waiting_at_the_total_all_are_served(
    places: Places,
) -> None:
    def use(endpoint: int) -> None:
        with pool.get(endpoint) as conn:
            served.append(conn.endpoint)
            gevent.sleep(0)

    served: list[int] = []
    with EndpointPool(connect=places, max_size=1, total_max_size=100, timeout=None) as pool:
        held = [pool.acquire(endpoint) for endpoint in range(100)]
        users = [gevent.spawn(use, endpoint) for endpoint in range(100, 1000)]
        until(lambda: pool.stats().waiting == 900)
        assert len(pool.endpoints()) == 1000
        for conn in held:
            pool.release(conn)
        gevent.joinall(users, timeout=2 * PATIENCE, raise_error=True)

        assert sorted(served) == list(range(100, 1000))
        # In order, but for the hundred that are dialed at the same time.
        assert all(abs(place - served[place] + 100) <= 100 for place in range(900))
        assert places.peak <= 100
        assert len(pool.endpoints()) == 100


def test_900_endpoints_whose_callers_give_up_together_leave_no_trace(places: Places) -> None:
    with EndpointPool(connect=places, max_size=1, total_max_size=1) as pool:
        held = pool.acquire("held")
        users = [gevent.spawn(_swallow, pool.acquire, n, 0.05) for n in range(900)]
        gevent.joinall(users, timeout=PATIENCE)

        assert pool.endpoints() == ["held"]
        assert pool.stats().timed_out == 900
        assert len(pool._total._queue._heap) < 100
        pool.release(held)


@pytest.mark.parametrize("endpoints", [1, 300])
def test_an_idle_pool_has_two_greenlets_at_most(places: Places, endpoints: int) -> None:
    class Pool(EndpointPool[Any, Any]):
        def _new_connection(self, endpoint: Any) -> Conn:
            return places(endpoint)

        def _keepalive(self, endpoint: Any, conn: Conn) -> None: ...

    def greenlets() -> set[Any]:
        gevent.idle()
        gc.collect()
        return {g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and not g.dead}

    before = greenlets()
    with Pool(keepalive=30.0, max_lifetime=3600, idle_timeout=60, total_max_size=None) as pool:
        assert greenlets() == before
        used(pool, *range(endpoints))
        assert len(greenlets() - before) == 2
        pool.dispose()
        until(lambda: pool.endpoints() == [])
        assert greenlets() == before  # there is nothing to visit


# No trace


def _timed_out(pool: Any, places: Places) -> None:
    held = pool.acquire("go")
    with pytest.raises(PoolTimeout):
        pool.acquire("go", timeout=0.001)
    pool.discard(held)


def _killed_in_line(pool: Any, places: Places) -> None:
    held = pool.acquire("go")
    waiters = [gevent.spawn(pool.acquire, "go", wait) for wait in (20, 10, None, 5)]
    gevent.idle()
    gevent.killall(waiters)
    pool.discard(held)


def _killed_while_dialed_for(pool: Any, places: Places) -> None:
    places.slow = True
    waiter = gevent.spawn(pool.acquire, "go")
    gevent.idle()
    waiter.kill()
    places.slow = False
    places.let_in()
    pool.dispose("go")


def _killed_before_the_dial(pool: Any, places: Places) -> None:
    waiter = gevent.spawn(pool.acquire, "go")
    gevent.get_hub().loop.run_callback(waiter.throw, gevent.GreenletExit)  # ahead of the dialer
    gevent.idle()
    assert places.dials == 1


def _away(pool: Any, places: Places) -> None:
    places.away.add("go")
    with pytest.raises(PoolTimeout):
        pool.acquire("go", timeout=0.02)


def _too_many(pool: Any, places: Places) -> None:
    held = pool.acquire("go")
    pool.max_waiting = 0
    with pytest.raises(PoolFull):
        pool.acquire("go")
    pool.discard(held)


def _lost(pool: Any, places: Places) -> None:
    pool.acquire("go")
    gc.collect()


def _evicted(pool: Any, places: Places) -> None:
    used(pool, "go")
    pool.resize(1, pool.size)
    used(pool, "stay too")
    used(pool, "another")


def _broken(pool: Any, places: Places) -> None:
    with pytest.raises(OSError), pool.get("go"):
        raise OSError


def _executed(pool: Any, places: Places) -> None:
    pool.execute("go", repr)
    pool.dispose("go")


def _local(pool: Any, places: Places) -> None:
    pool._greenlet_local = True
    pool._lease = type(EndpointPool(connect=places, greenlet_local=True).get("go"))
    with pool.get("go"), pool.get("go"):
        pass
    pool.dispose("go")


def _filled(pool: Any, places: Places) -> None:
    pool.fill("go")
    pool.dispose("go")


def _filled_in_vain(pool: Any, places: Places) -> None:
    places.away.add("go")
    with pytest.raises(PoolTimeout):
        pool.fill("go", timeout=0.001)


def _drained(pool: Any, places: Places) -> None:
    used(pool, "go")
    pool.drain("go", over=0.01)


def _detached(pool: Any, places: Places) -> None:
    pool.detach(pool.acquire("go")).close()


def _no_time(pool: Any, places: Places) -> None:
    with pytest.raises(PoolTimeout):
        pool.acquire("go", timeout=0)


def _unwanted_waiter_at_the_total(pool: Any, places: Places) -> None:
    held = pool.acquire("stay")
    pool.resize(1, 1)
    gevent.idle()
    waiter = gevent.spawn(pool.acquire, "stay", 20)
    gevent.idle()
    with pytest.raises(PoolTimeout):
        pool.acquire("go", timeout=0.001)
    waiter.kill()
    pool.release(held)


@pytest.mark.parametrize(
    "way",
    [
        _timed_out,
        _killed_in_line,
        _killed_while_dialed_for,
        _killed_before_the_dial,
        _away,
        _too_many,
        _lost,
        _evicted,
        _broken,
        _executed,
        _local,
        _filled,
        _filled_in_vain,
        _drained,
        _detached,
        _no_time,
        _unwanted_waiter_at_the_total,
    ],
)
def test_an_endpoint_without_slots_and_callers_leaves_no_trace(
    places: Places, way: Callable[[Any, Places], None]
) -> None:
    class Pool(EndpointPool[str, Any]):
        def _new_connection(self, endpoint: str) -> Conn:
            return places(endpoint)

        def _keepalive(self, endpoint: str, conn: Conn) -> None: ...

        def _make_bucket(self, endpoint: str | None) -> Any:
            bucket = super()._make_bucket(endpoint)
            if endpoint == "go":
                made.append(weakref.ref(bucket))
            return bucket

    made: list[Any] = []
    limit = Limit(50)
    pool = Pool(max_size=1, keepalive=30.0, limits=[limit], backoff=Backoff(first=0.05))
    with pool:
        used(pool, "stay")  # older than what goes, wherever things stand in order
        way(pool, places)
        until(lambda: "go" not in pool.endpoints())
        collect()

        assert made
        assert [ref() for ref in made] == [None] * len(made)
        assert "stay" in pool.endpoints() or way is _evicted
        everything = (*limit._buckets, *limit._few, *limit._queue, *limit._claims, *limit._ripe)
        assert "go" not in [bucket.endpoint for bucket in everything]


def test_an_endpoint_that_is_away_stays_until_its_back_off_is_over(places: Places) -> None:
    def leave_and_fail(endpoint: str) -> Conn:
        caller.kill(block=False)  # it has left before the back-off begins, and wants no other dial
        return places(endpoint)

    places.away.add("away")
    with EndpointPool(connect=places, backoff=Backoff(first=60, longest=60)) as pool:
        for _ in range(2):
            with pytest.raises(PoolTimeout, match="away is away"):
                pool.acquire("away", timeout=0.01)
            assert pool.endpoints() == ["away"]
        assert places.dials == 1  # it is remembered

    backoff = Backoff(first=0.05, longest=0.05)
    with EndpointPool(connect=leave_and_fail, backoff=backoff) as pool:
        caller = gevent.spawn(pool.acquire, "away")
        until(lambda: places.dials == 2)
        until(lambda: pool.endpoints() == [])
        assert places.dials == 2


def test_an_endpoint_that_is_asked_for_now_and_then_does_not_forget_its_failures(
    places: Places,
) -> None:
    """No caller waits for the end of the back-off, and nothing is open: it could leave."""

    def ask() -> None:
        with pytest.raises(PoolTimeout):
            pool.acquire("away", timeout=0.001)

    places.away.add("away")
    with EndpointPool(connect=places, backoff=Backoff(first=0.02, longest=0.02, jitter=0)) as pool:
        for dials in (1, 2, 3):
            until(lambda: ask() or places.dials == dials)  # noqa: B023
            bucket = pool._buckets["away"]
            until(lambda: bucket.retry_at <= monotonic())  # noqa: B023
        assert bucket.failures == 3

        until(lambda: pool.endpoints() == [])  # in the end nobody remembers it


@pytest.mark.slow
def test_ten_thousand_endpoints_that_come_and_go_leave_nothing(places: Places) -> None:
    with EndpointPool(connect=places, total_max_size=20) as pool:
        used(pool, *range(200))
        collect()
        buckets, objects = len(Runtime.of_this_thread().buckets), len(gc.get_objects())
        used(pool, *range(2000))
        collect()

        assert len(pool.endpoints()) == 20
        assert len(Runtime.of_this_thread().buckets) == buckets
        assert len(gc.get_objects()) < objects + 1000
        assert len(places.open) == 20


# Nothing unwanted stays


def _plain(connect: Any) -> EndpointPool[Any, Any]:
    return EndpointPool(connect=connect)


def _unbound(connect: Any) -> EndpointPool[Any, Any]:
    return EndpointPool(connect=connect, total_max_size=None, idle_timeout=None, max_lifetime=None)


def _with_keepalive(connect: Any) -> EndpointPool[Any, Any]:
    class Pinged(EndpointPool[Any, Any]):
        def _keepalive(self, endpoint: Any, conn: Any) -> None:
            conn.sendall(b"ping")
            assert conn.recv(4) == b"ping"

    return Pinged(connect=connect, keepalive=0.01)


def _draining(connect: Any) -> EndpointPool[Any, Any]:
    pool = EndpointPool[Any, Any](connect=connect)
    used(pool, "a", "b")
    pool.drain(over=3600)
    return pool


@pytest.mark.parametrize("make", [_plain, _unbound, _with_keepalive, _draining])
def test_a_dropped_pool_is_collected_and_its_sockets_are_closed(
    make: Callable[[Any], EndpointPool[Any, Any]],
) -> None:
    with EchoServer() as server:
        pool = make(lambda endpoint: SocketFactory(server.address)())
        used(pool, "a", "b")
        with pool.get("c"), pool.get("c"):
            pass
        server.wait_open(4)
        gone = weakref.ref(pool)
        gc.disable()
        try:
            del pool
            server.wait_open(0)  # and needs no collector
        finally:
            gc.enable()
        collect()

        assert gone() is None


def test_a_pool_dropped_during_a_dial_or_a_back_off_leaves_nothing(places: Places) -> None:
    places.away.add("away")
    pool = EndpointPool[Any, Any](connect=places, backoff=Backoff(first=60, longest=60))
    _swallow(pool.acquire, "away", 0.01)
    places.slow = True
    caller = gevent.spawn(pool.acquire, "a")
    gevent.idle()
    caller.kill()
    gone = weakref.ref(pool)
    buckets = [weakref.ref(bucket) for bucket in pool._all_buckets()]
    assert len(buckets) == 2
    del pool, caller  # a killed greenlet has a traceback
    places.slow = False
    places.let_in()
    collect()

    assert gone() is None
    assert places.open == set()
    assert [ref() for ref in buckets] == [None, None]


def test_a_dropped_pool_leaves_the_limits_it_shared(places: Places) -> None:
    limit = Limit(5)
    pool = EndpointPool[Any, Any](connect=places, limits=[limit])
    used(pool, "a", "b")
    del pool
    collect()

    assert limit.used == 0
    assert not limit._buckets
    assert not limit._lru


def test_a_connection_in_use_outlives_its_dropped_pool_and_keeps_its_place(places: Places) -> None:
    limit = Limit(5)
    conn = EndpointPool[Any, Any](connect=places, limits=[limit]).acquire("a")
    collect()
    assert not conn.closed
    assert limit.used == 1
    del conn
    collect()
    assert limit.used == 0


# Fork


@FORKS
def test_a_child_has_connections_of_its_own_and_no_trace_of_the_parents(
    places: Places, fork: Callable[[], int]
) -> None:
    def in_child() -> Any:
        before = pool.endpoints(), pool.size, pool.stats().acquired, pool.stats().idle
        pool.release(held)  # what is the parent's is left alone
        idle = "idle" in pool.endpoints()
        with pool.get("idle") as conn:
            number = conn.number
        collect()
        left = [ref() is None for ref in buckets]
        pool.close()
        return [*before, idle, number, parents.closed, held.closed, left]

    with EndpointPool[Any, Conn](connect=places, keepalive=None) as pool:
        used(pool, "left", "left")
        pool.dispose()
        until(lambda: pool.endpoints() == [])
        used(pool, "idle", "idle too")
        parents = pool.acquire("idle")
        pool.release(parents)
        held = pool.acquire("held")
        buckets = [weakref.ref(pool._buckets[endpoint]) for endpoint in ("idle", "idle too")]
        child = Child(fork, in_child)

        assert child.result() == [[], 0, 0, 0, False, 5, False, False, [True, True]]
        assert pool.endpoints() == ["idle", "idle too", "held"]
        assert places.open == {2, 3, 4}
        pool.release(held)
        assert pool.acquire("idle") is parents
        pool.release(parents)


def test_callers_in_line_at_a_fork_are_served_in_the_child(places: Places) -> None:
    def in_child() -> Any:
        gevent.joinall([waiter], timeout=PATIENCE)
        return [waiter.value.endpoint, pool.size, pool.endpoints()]

    with EndpointPool[Any, Conn](connect=places, max_size=1, total_max_size=1) as pool:
        held = pool.acquire("a")
        waiter = gevent.spawn(pool.acquire, "b")
        gevent.idle()
        assert Child(os.fork, in_child).result() == ["b", 1, ["b"]]
        pool.release(held)
        pool.release(waiter.get(timeout=PATIENCE))


# Threads

FOREIGN: dict[str, Callable[[Any, Any], Any]] = {
    **{
        verb: BY_ENDPOINT[verb]
        for verb in ("get", "acquire", "execute", "fill", "drain", "dispose")
    },
    "acquire what is new": lambda pool, endpoint: pool.acquire("new"),
    "drain what is not there": lambda pool, endpoint: pool.drain("new"),
    "release": lambda pool, endpoint: pool.release(pool.held),
    "discard": lambda pool, endpoint: pool.discard(pool.held),
    "detach": lambda pool, endpoint: pool.detach(pool.held),
    "resize": lambda pool, endpoint: pool.resize(3, 4),
    "close": lambda pool, endpoint: pool.close(),
}


@pytest.mark.parametrize("verb", FOREIGN)
def test_a_foreign_thread_is_told_so_and_the_pool_is_whole(places: Places, verb: str) -> None:
    with EndpointPool[Any, Any](connect=places) as pool:
        used(pool, "a")
        pool.held = pool.acquire("b")  # type: ignore[attr-defined]
        before = pool.stats(), pool.endpoints(), pool.max_size, pool.total_max_size

        with pytest.raises(WrongHub, match="another thread"):
            in_thread(lambda: FOREIGN[verb](pool, "a"))

        assert (pool.stats(), pool.endpoints(), pool.max_size, pool.total_max_size) == before
        assert not any(bucket.pins for bucket in pool._all_buckets())
        pool.release(pool.held)  # type: ignore[attr-defined]


def test_a_foreign_thread_starts_nothing_for_an_endpoint_that_is_new(places: Places) -> None:
    with EndpointPool[Any, Any](connect=places) as pool:
        with pytest.raises(WrongHub):
            in_thread(lambda: pool.acquire("new"))

        assert pool.maintenance is None  # else its greenlets would run in the hub of that thread
        assert not pool._total._buckets


def test_a_foreign_thread_may_look(places: Places) -> None:
    with EndpointPool[Any, Any](connect=places) as pool:
        used(pool, "a", "b")

        def look() -> Any:
            return pool.stats(), pool.stats("a"), pool.endpoints(), pool.holders(), repr(pool)

        assert in_thread(look) == look()


# Bad arguments

WHOLE = [("three", TypeError), (2.0, TypeError), (True, TypeError), (-1, ValueError)]
BAD = [
    *(("max_size", *bad) for bad in [*WHOLE, (0, ValueError), (None, TypeError)]),
    *(("total_max_size", *bad) for bad in [*WHOLE, (0, ValueError), (math.inf, TypeError)]),
    *(("min_idle", *bad) for bad in [*WHOLE, (None, TypeError)]),
    *(("idle_timeout", *bad) for bad in [("ten", TypeError), (0, ValueError), (-1, ValueError)]),
    *(("max_lifetime", *bad) for bad in [("ten", TypeError), (0, ValueError), (-1, ValueError)]),
    ("timeout", -1, ValueError),
    ("connect", "127.0.0.1:80", TypeError),
    ("keepalive", 0, ValueError),
    ("order", "random", ValueError),
    ("limits", Limit(5), TypeError),
    ("listeners", [object()], TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD, ids=named)
def test_a_bad_argument_is_refused_by_name(
    places: Places, name: str, value: Any, error: type[Exception]
) -> None:
    arguments: dict[str, Any] = {"connect": places, name: value}

    with pytest.raises(error, match=name) as caught:
        EndpointPool(**arguments)

    assert type(caught.value) is error


def test_sizes_that_contradict_each_other_are_refused_with_both_numbers(places: Places) -> None:
    with pytest.raises(ValueError, match=r"min_idle \(4\) is more than max_size \(3\)"):
        EndpointPool(connect=places, max_size=3, min_idle=4)
    with pytest.raises(ValueError, match=r"max_size \(4\) is more than total_max_size \(3\)"):
        EndpointPool(connect=places, max_size=4, total_max_size=3)


@pytest.mark.parametrize("name", ["keepalive", "check_after"])
def test_a_check_without_a_keepalive_to_run_is_refused(places: Places, name: str) -> None:
    settings: dict[str, Any] = {name: 10}
    with pytest.raises(ValueError, match=f"{name} is set, but _keepalive is not overridden"):
        EndpointPool(connect=places, **settings)


def test_there_must_be_one_way_to_open_connections_and_no_second(places: Places) -> None:
    class Pool(EndpointPool[Any, Any]):
        def _new_connection(self, endpoint: Any) -> Any:
            return places(endpoint)

    with pytest.raises(TypeError, match="override _new_connection, or give connect="):
        EndpointPool()
    with pytest.raises(TypeError, match="connect is given and _new_connection overridden"):
        Pool(connect=places)
    with pytest.raises(TypeError, match="positional"):
        EndpointPool(10)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        *(((value,), error, "max_size") for value, error in [*WHOLE, (0, ValueError)]),
        *(((2, value), error, "total_max_size") for value, error in [*WHOLE, (0, ValueError)]),
        ((8,), ValueError, r"max_size \(8\) is more than total_max_size \(7\)"),
        ((3, 2), ValueError, r"max_size \(3\) is more than total_max_size \(2\)"),
    ],
)
def test_a_bad_resize_is_refused_and_changes_nothing(
    places: Places, arguments: Any, error: type[Exception], match: str
) -> None:
    with EndpointPool(connect=places, max_size=3, total_max_size=7) as pool:
        with pytest.raises(error, match=match):
            pool.resize(*arguments)

        assert (pool.max_size, pool.total_max_size) == (3, 7)


@pytest.mark.parametrize("verb", ["get", "acquire", "fill"])
@pytest.mark.parametrize(("value", "error"), [("ten", TypeError), (-1, ValueError)])
def test_a_bad_timeout_is_refused_and_leaves_no_trace(
    places: Places, verb: str, value: Any, error: type[Exception]
) -> None:
    with EndpointPool(connect=places) as pool:
        with pytest.raises(error, match="timeout"):
            getattr(pool, verb)("a", timeout=value)
        with pytest.raises(error, match="over"):
            pool.drain("a", over=value)
        with pytest.raises(error, match="timeout"):
            pool.close(timeout=value)

        assert pool.endpoints() == []
        assert not pool.closed


def test_an_endpoint_whose_text_raises_loses_nothing(places: Places) -> None:
    class Rude:
        def __str__(self) -> str:
            raise KeyError("no name")

    with EndpointPool(connect=places) as pool:
        with pytest.raises(KeyError):
            pool.acquire(Rude())

        assert pool.endpoints() == []


# Cancellation and torture


class At:
    """One endpoint of a pool, as a pool: for tests that know those."""

    def __init__(self, pool: Any, endpoint: str) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.release, self.discard, self.detach = pool.release, pool.discard, pool.detach
        self.close = pool.close

    def __repr__(self) -> str:
        return f"{self.endpoint} of {self.pool}"

    def get(self, **timeout: Any) -> Any:
        return self.pool.get(self.endpoint, **timeout)

    def acquire(self, *timeout: Any) -> Any:
        return self.pool.acquire(self.endpoint, *timeout)

    def stats(self) -> Any:
        return self.pool.stats(self.endpoint)

    @property
    def _bucket(self) -> Any:
        gone = SimpleNamespace(
            shared=(), open=0, connecting=0, closing=0, closed=self.pool.closed, slots=()
        )
        return self.pool._buckets.get(self.endpoint, gone)


class YieldingEndpoints(EndpointPool[str, Connection]):
    """A pool whose every hook gives way to others."""

    def __init__(self, server: Server, size: int, *endpoints: str, **settings: Any) -> None:
        self.server = server
        settings.setdefault("backoff", Backoff(first=0.001, longest=0.002))
        settings.setdefault("timeout", PATIENCE)
        super().__init__(max_size=size, total_max_size=size, **settings)
        self.views = [At(self, endpoint) for endpoint in endpoints]

    def _new_connection(self, endpoint: str) -> Connection:
        gevent.sleep(0)
        gevent.sleep(0)
        return Connection(self.server)

    def _keepalive(self, endpoint: str, conn: Connection) -> None:
        gevent.sleep(0)

    def _close_connection(self, endpoint: str, conn: Connection) -> None:
        try:
            gevent.sleep(0)
        finally:
            conn.close()


class ResettingEndpoints(YieldingEndpoints):
    def _reset_connection(self, endpoint: str, conn: Connection) -> None:
        gevent.sleep(0)


def on(stage: Stage, size: int = 2, cls: Any = YieldingEndpoints, **settings: Any) -> Any:
    """A pool of two endpoints on the *stage*; the strikes begin with ``act``."""
    stage._armed = False
    pool = cls(stage.server, size, "a", "b", min_idle=0, **settings)
    stage.pools = pool.views
    return pool


def armed(stage: Stage) -> None:
    come_to_rest(*stage.pools)
    stage._armed = True


def from_idle(stage: Stage) -> None:
    pool = on(stage)
    used(pool, "a")
    armed(stage)
    stage.act(lambda: used(pool, "a"))


def a_dial(stage: Stage) -> None:
    pool = on(stage)
    armed(stage)
    stage.act(lambda: used(pool, "a"))
    stage.neighbour(lambda: used(pool, "a"))
    stage.neighbour(lambda: used(pool, "b"))


def a_release(stage: Stage) -> None:
    pool = on(stage)
    held = [pool.acquire("a"), pool.acquire("a")]
    stage._armed = True
    stage.act(lambda: used(pool, "a"))
    stage.neighbour(lambda: used(pool, "a"))
    stage.neighbour(lambda: used(pool, "b"))
    gevent.idle()
    for conn in held:
        pool.release(conn)


def room_made_by_another_endpoint(stage: Stage) -> None:
    pool = on(stage)
    pool.fill("b")
    armed(stage)
    stage.act(lambda: used(pool, "a"))
    stage.neighbour(lambda: used(pool, "a"))
    stage.neighbour(lambda: used(pool, "b"))


def a_place_at_the_total(stage: Stage) -> None:
    pool = on(stage)
    held = [pool.acquire("b"), pool.acquire("b")]
    stage._armed = True
    stage.act(lambda: used(pool, "a"))
    stage.neighbour(lambda: used(pool, "b"))
    stage.neighbour(lambda: used(pool, "a"))
    gevent.idle()
    pool.release(held[0])
    pool.discard(held[1])


def a_with(stage: Stage) -> None:
    pool = on(stage)
    used(pool, "a")
    armed(stage)

    def act(endpoint: str) -> None:
        with pool.get(endpoint):
            gevent.sleep(0)

    stage.act(lambda: act("a"))
    stage.neighbour(lambda: act("a"))
    stage.neighbour(lambda: act("b"))


def a_with_whose_hooks_give_way(stage: Stage) -> None:
    pool = on(stage, cls=ResettingEndpoints, listeners=[YieldingListener()])
    used(pool, "a")
    armed(stage)

    def act(endpoint: str, error: type[Exception] | None = None) -> None:
        with pool.get(endpoint):
            gevent.sleep(0)
            if error:
                raise error

    def break_it() -> None:
        with pytest.raises(ConnectionResetError):
            act("a", ConnectionResetError)

    stage.act(break_it)
    stage.neighbour(lambda: act("a"))
    stage.neighbour(lambda: act("b"))


def in_vain(stage: Stage) -> None:
    pool = on(stage, listeners=[YieldingListener()])
    held = [pool.acquire("b"), pool.acquire("b")]
    stage._armed = True

    def act() -> None:
        with pytest.raises(PoolTimeout):
            pool.acquire("a", timeout=0.002)

    stage.act(act).join()
    for conn in held:
        pool.release(conn)


def a_nested_with_of_a_greenlet_local_pool(stage: Stage) -> None:
    pool = on(stage, greenlet_local=True)
    used(pool, "a")
    armed(stage)

    def act() -> None:
        with pool.get("a") as outer, pool.get("a") as inner, pool.get("b"):
            assert inner is outer
            gevent.sleep(0)

    stage.act(act)
    stage.neighbour(lambda: used(pool, "b"))


def fill(stage: Stage) -> None:
    pool = on(stage)
    armed(stage)
    stage.act(lambda: pool.fill("a"))
    stage.neighbour(lambda: pool.fill("a"))


def dispose_and_drain(stage: Stage) -> None:
    pool = on(stage, listeners=[YieldingListener()])
    used(pool, "a", "b")
    armed(stage)

    def act() -> None:
        pool.dispose("a")
        pool.drain()

    stage.act(act)
    stage.neighbour(lambda: used(pool, "b"))


def close_while_connections_are_out(stage: Stage) -> None:
    pool = on(stage, listeners=[YieldingListener()])
    used(pool, "b")
    held = pool.acquire("a")
    stage._armed = True
    stage.act(pool.close)
    gevent.idle()
    stage.neighbour(pool.close)
    gevent.idle()
    pool.release(held)


def close_by_force(stage: Stage) -> None:
    pool = on(stage)
    held = [pool.acquire("a"), pool.acquire("b")]
    stage._armed = True
    stage.act(lambda: pool.close(timeout=0)).join()
    pool.close(timeout=0)
    held.clear()


SCENARIOS = [
    (from_idle, 0),
    (a_dial, 1),
    (a_release, 1),
    (room_made_by_another_endpoint, 1),
    (a_place_at_the_total, 1),
    (a_with, 1),
    (a_with_whose_hooks_give_way, 3),
    (in_vain, 2),
    (a_nested_with_of_a_greenlet_local_pool, 2),
    (fill, 2),
    (dispose_and_drain, 1),
    (close_while_connections_are_out, 3),
    (close_by_force, 1),
]


@pytest.mark.parametrize("strike", STRIKES, ids=named)
@pytest.mark.parametrize(("play", "points"), SCENARIOS)
def test_a_caller_may_be_cancelled_wherever_it_gives_way(
    play: Callable[[Stage], None], points: int, strike: Strike, hub_errors: list[BaseException]
) -> None:
    found = play_for_each_point(_and_leave_no_trace(play), "caller", strike, hub_errors)

    assert found == points


@pytest.mark.slow
@pytest.mark.parametrize("strike", [s for s in STRIKES if s.how != "by a timer"], ids=named)
@pytest.mark.parametrize("play", [play for play, _ in SCENARIOS if play is not from_idle])
def test_a_greenlet_of_the_pool_may_be_cancelled_wherever_it_gives_way(
    play: Callable[[Stage], None], strike: Strike, hub_errors: list[BaseException]
) -> None:
    play_for_each_point(_and_leave_no_trace(play), "pool", strike, hub_errors)


def _and_leave_no_trace(play: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """No caller is booked as about to wait that is not, so that every endpoint can leave."""

    def played(stage: Stage) -> None:
        play(stage)
        gevent.joinall([stage._actor, *stage._neighbours], timeout=PATIENCE)
        pool = stage.pools[0].pool
        assert not any(bucket.pins for bucket in pool._all_buckets())
        if not pool.closed:
            pool.dispose()
            until(lambda: pool.endpoints() == [] and pool.size == 0)
            assert not stage.server.open

    return played


class TorturedEndpoints(YieldingEndpoints):
    """Opening takes a while, and fails one time in ten."""

    def __init__(self, server: Server, dice: random.Random, **settings: Any) -> None:
        self.dice = dice
        super().__init__(server, 4, *"abcde", backoff=BACKOFF, **settings)

    def _new_connection(self, endpoint: str) -> Connection:
        return open_with_luck(self.server, self.dice)

    def _keepalive(self, endpoint: str, conn: Connection) -> None:
        keepalive_with_luck(self.dice)

    def check_no_more(self) -> None:
        """Let it come to rest, as it never does where a check is due as soon as one is over."""
        if self.keepalive is not None:
            self.maintenance[0].longest = 3600.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        pytest.param({}, 200, id="plain"),
        pytest.param({"min_idle": 0, "idle_timeout": 0.0005}, 60, id="idle_timeout"),
        pytest.param({"max_uses": 3, "max_lifetime": 0.004, "jitter": 0.5}, 60, id="wear"),
        pytest.param({"keepalive": 0.0005}, 60, id="keepalive"),
        pytest.param({"check_after": 0.0}, 60, id="check_after"),
        pytest.param({"listeners": [YieldingListener()], "strict": True}, 60, id="listener"),
    ],
)
def test_endpoints_that_share_a_total_survive_callers_timed_out_and_killed_at_random(
    settings: dict[str, Any], rounds: int
) -> None:
    def play(dice: random.Random) -> None:
        server = Server()
        pool = TorturedEndpoints(server, dice, **settings)
        Round(pool.views, dice, 4).play()
        pool.check_no_more()
        assert_whole_together(pool.views, server, 4, close=False)
        assert not any(bucket.pins for bucket in pool._all_buckets())
        pool.close(timeout=PATIENCE)
        assert not server.open
        assert pool.size == 0
        assert pool.endpoints() == []

    torture(rounds, play)


@pytest.fixture(autouse=True)
def _nobody_hangs() -> Iterator[None]:
    with gevent.Timeout(100):
        yield
