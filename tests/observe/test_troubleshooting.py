"""Each trouble of docs/troubleshooting.md, provoked: the page shows what is said there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.server import StreamServer

from geventpool import (
    ConnectionManager,
    ConnectionPool,
    PoolError,
    PoolTimeout,
    SocketFactory,
)
from geventpool.observe.trouble import troubles
from geventpool.testing import EchoServer, closed_port
from support import ROOT
from support.objects import Maker
from support.status_page import get, pools_shown
from support.waiting import block, until, until_readable

pytestmark = pytest.mark.usefixtures("run_folder")
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()


def words(name: str) -> set[str]:
    """What the page calls the troubles of that pool; docs/troubleshooting.md has each of them.

    But for the lag of the hub: earlier tests may have stalled it.
    """
    found = {trouble.word for trouble in troubles(pools_shown(history="1")[name])}
    found = {word for word in found if not word.startswith("hub lag")}
    for word in found:
        assert f"**{re.sub('[0-9]+', 'N', word)}**" in PAGE
    return found


def closed(name: str, reason: str) -> int:
    """How many connections were closed for that reason, which docs/troubleshooting.md has."""
    assert f"*{reason}*" in PAGE
    return int(pools_shown()[name]["closed"].get(reason, 0))


def in_vain(pool: ConnectionPool[Any]) -> None:
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.1)


# The pool is exhausted


def test_exhausted_by_one_that_hangs_the_stack_says_where_it_does(echo_server: EchoServer) -> None:
    def a_slow_report() -> None:
        with pool.get():
            done.wait()

    done = gevent.event.Event()
    with ConnectionPool(2, connect=SocketFactory(echo_server.address), name="db") as pool:
        slow = [gevent.spawn(a_slow_report) for _ in range(2)]
        until(lambda: pool.stats().in_use == 2)
        assert words("db") == {"all in use"}
        waiting = gevent.spawn(in_vain, pool)
        gevent.sleep(0)
        assert words("db") == {"exhausted"}
        shown = pools_shown()["db"]
        waiting.get()
        done.set()
        gevent.joinall(slow, raise_error=True)
    assert shown["stats"]["waiting"] == 1
    assert ["a_slow_report" in each["stack"] for each in shown["holders"]] == [True, True]


def test_exhausted_by_one_that_never_gives_back_its_holder_has_ended(
    echo_server: EchoServer,
) -> None:
    def forgets() -> None:
        kept.append(pool.acquire())

    kept: list[Any] = []
    connect = SocketFactory(echo_server.address)
    with ConnectionPool(1, connect=connect, name="db", track=True) as pool:
        gevent.spawn(forgets).join()
        (holder,) = pools_shown()["db"]["holders"]
        key = pools_shown()["db"]["key"]
        assert holder["stack"] is None
        assert "forgets" in holder["where"]
        assert "forgets" in get(f"/rows?open={key}").body
        pool.release(kept.pop())


@pytest.mark.slow
def test_too_small_for_what_is_asked_callers_are_sent_away(echo_server: EchoServer) -> None:
    def use() -> None:
        try:
            with pool.get(timeout=0.05):
                gevent.sleep(0.04)
        except PoolTimeout:
            pass

    with ConnectionPool(1, connect=SocketFactory(echo_server.address), name="db") as pool:
        get("/")  # from now on it remembers
        until(lambda: pools_shown(history="1")["db"]["history"]["minute"]["in_use"])
        using = [gevent.spawn(use) for _ in range(8)]
        gevent.joinall(using, raise_error=True)
        assert pool.stats().timed_out >= 6
        until(lambda: any(word.endswith("sent away") for word in words("db")))


def test_waiting_for_what_is_being_opened_is_told_from_waiting_for_what_is_held() -> None:
    def connect() -> object:
        opening.wait()
        return object()

    def use() -> None:
        pool.release(pool.acquire())

    opening = gevent.event.Event()
    with ConnectionPool(2, connect=connect, name="db") as pool:
        waiting = gevent.spawn(use)
        until(lambda: pool.stats().waiting)
        assert words("db") == {"waiting"}
        assert pools_shown()["db"]["stats"]["connecting"] >= 1
        opening.set()
        waiting.get()


def test_one_that_holds_one_and_waits_for_a_second_stands_at_the_second_get(maker: Maker) -> None:
    def takes_two() -> None:
        with pool.get(), pytest.raises(PoolTimeout), pool.get(timeout=0.3):
            pass

    with ConnectionPool(1, connect=maker, name="db") as pool:
        pool.fill()
        takes = gevent.spawn(takes_two)
        until(lambda: pool.stats().waiting)
        (holder,) = pools_shown()["db"]["holders"]
        takes.get()
    assert "pool.get(timeout=0.3)" in holder["stack"]


# Wrong answers


def test_a_reply_that_was_not_read_closes_the_connection(echo_server: EchoServer) -> None:
    with ConnectionPool(1, connect=SocketFactory(echo_server.address), name="db") as pool:
        with pool.get() as sock:
            sock.sendall(b"asked, and never read\n")
            until_readable(sock.fileno())
        with pool.get():
            pass  # at the next hand-out at the latest it is seen
        until(lambda: closed("db", "unread bytes") == 1)


def test_a_silent_timeout_within_the_with_closes_the_connection(echo_server: EchoServer) -> None:
    with ConnectionPool(1, connect=SocketFactory(echo_server.address), name="db") as pool:
        with pool.get() as sock, gevent.Timeout(0.01, False):
            sock.recv(1)
        with pool.get():
            pass  # at the next hand-out at the latest it is seen
        until(lambda: closed("db", "a wait on it was cut short") == 1)


def test_an_error_that_leaves_the_with_closes_the_connection(echo_server: EchoServer) -> None:
    with ConnectionPool(1, connect=SocketFactory(echo_server.address), name="db") as pool:
        with pytest.raises(gevent.Timeout), pool.get() as sock, gevent.Timeout(0.01):
            sock.recv(1)
        until(lambda: closed("db", "an exception left its with block") == 1)


# Connections keep dying


def test_a_server_that_hangs_up_on_what_is_idle_is_seen_to() -> None:
    def hang_up_soon(sock: Any, address: Any) -> None:
        gevent.sleep(0.02)

    server = StreamServer(("127.0.0.1", 0), hang_up_soon)
    server.start()
    try:
        connect = SocketFactory(("127.0.0.1", server.server_port))
        with ConnectionPool(1, connect=connect, name="db") as pool:
            until(lambda: closed("db", "peer hung up") >= 2)
            assert pool.stats().dialed >= 2
    finally:
        server.stop()


class Picky(ConnectionPool[Any]):
    """One whose connections are never well."""

    def _keepalive(self, conn: Any) -> None:
        raise ConnectionError("no answer")

    def _is_alive(self, conn: Any) -> bool:
        return False


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_lifetime": 0.02}, "max_lifetime reached"),
        ({"min_size": 0, "idle_timeout": 0.02}, "idle_timeout reached"),
        ({"max_uses": 1}, "max_uses reached"),
    ],
)
def test_what_the_pool_was_told_to_close_is_counted_as_that(
    maker: Maker, settings: dict[str, Any], reason: str
) -> None:
    with ConnectionPool(1, connect=maker, name="db", **settings) as pool:
        pool.release(pool.acquire())
        until(lambda: closed("db", reason) >= 1)


def test_what_does_not_answer_any_more_is_counted_as_that(maker: Maker) -> None:
    with Picky(1, connect=maker, name="db", keepalive=0.02):
        until(lambda: closed("db", "keepalive failed") >= 1)
    with Picky(1, connect=maker, name="db") as pool:
        pool.fill()
        in_vain(pool)
        until(lambda: closed("db", "found dead at hand-out") >= 1)


# Slow


def mean(duration: dict[str, Any]) -> float:
    return float(duration["sum"]) / max(1, duration["count"])


def ask(pool: ConnectionPool[Any], work: Callable[[], object]) -> None:
    with pool.get() as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"
        work()


def test_a_slow_server_shows_in_the_time_of_use_and_a_small_pool_in_the_wait(
    echo_server: EchoServer,
) -> None:
    with ConnectionPool(2, connect=SocketFactory(echo_server.address), name="db") as pool:
        pool.fill()
        gevent.joinall(
            [gevent.spawn(ask, pool, lambda: gevent.sleep(0.05)) for _ in range(6)],
            raise_error=True,
        )
        stats = pools_shown()["db"]["stats"]
    assert mean(stats["use"]) >= 0.05
    assert stats["wait"]["max"] >= 0.09  # two others had to end first
    assert mean(stats["connect"]) < mean(stats["use"])


@pytest.mark.slow
def test_a_greenlet_that_computes_is_told_from_a_slow_server(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker, name="db") as pool:
        pool.fill()
        gevent.sleep(0.6)  # the lag is looked at twice a second
        block(1.2)  # computes
        gevent.sleep(0)
        shown = pools_shown(history="1")["db"]
        assert shown["stats"]["hub_lag"] >= 0.5
        assert "hub lag N ms" in PAGE
        assert any(each.word.startswith("hub lag") for each in troubles(shown))


# After a deploy


def test_a_server_that_cannot_be_reached_is_said_with_its_error_and_is_not_ready() -> None:
    with closed_port() as dead:
        with ConnectionPool(1, connect=SocketFactory(dead), name="db") as pool:
            until(lambda: pool.stats().last_error)
            shown = pools_shown()["db"]
            assert words("db") == {"down"}
            assert get("/ready").status == 503
    assert "refused" in shown["stats"]["last_error"]


def test_one_server_of_several_that_is_away_is_named(echo_server: EchoServer) -> None:
    with closed_port() as dead:
        servers = {"api": [[(1, dead)], [(1, echo_server.address)]]}
        with ConnectionManager(servers, name="api") as manager:
            for _ in range(5):
                with manager.connection("api"):
                    pass
            assert words("api") == {"1 of 2 servers out"}
            (away,) = [s for s in pools_shown()["api"]["addresses"] if s["state"] != "up"]
    assert away["address"] == f"{dead[0]}:{dead[1]}"
    assert "refused" in away["reason"].lower()


def test_a_server_with_no_place_left_says_so_and_what_is_open_serves() -> None:
    class NoPlaceLeft(Exception):
        pass

    opened: list[object] = []

    def connect() -> object:
        if len(opened) == 2:
            raise NoPlaceLeft("too many connections")
        opened.append(object())
        return opened[-1]

    with ConnectionPool(4, connect=connect, name="db") as pool:
        until(lambda: pool.stats().last_error)
        assert words("db") == {"dials fail"}
        with pool.get():
            assert pools_shown()["db"]["stats"]["last_error"] == "NoPlaceLeft: too many connections"
        with pytest.raises(PoolError):
            pool.fill(timeout=0.1)
        assert get("/ready").status == 503
