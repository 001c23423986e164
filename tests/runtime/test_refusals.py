"""What a caller is told that gets no connection: what helps, at no cost to the others."""

from __future__ import annotations

import gc
import logging
import weakref
from time import perf_counter
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

from geventpool import Backoff, ConnectError, ConnectionPool, Deadline, Limit, PoolTimeout
from support.objects import Maker
from support.threads import in_thread


def cost_of_a_timeout(size: int) -> float:
    """The least seconds for one, of a hundred."""
    pool = ConnectionPool(size, connect=Maker(), max_connecting=64)
    pool.fill()
    held = [pool.acquire() for _ in range(size)]
    costs = []
    for _ in range(100):
        began = perf_counter()
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(timeout=0)
        costs.append(perf_counter() - began)
        assert len(caught.value.held_for) == caught.value.in_use == size
    for conn in held:
        pool.release(conn)
    pool.close()
    return sorted(costs)[50]


def test_a_pool_timeout_costs_the_same_with_many_connections() -> None:
    assert cost_of_a_timeout(3000) < 3 * cost_of_a_timeout(10) + 50e-6


def test_a_caller_that_holds_one_itself_is_told_so() -> None:
    pool = ConnectionPool(1, connect=Maker())
    with pool.get(), pytest.raises(PoolTimeout, match="the caller itself holds 1"):
        pool.acquire(timeout=0.01)
    holder = gevent.spawn(pool.acquire)
    holder.join()
    with pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.01)

    assert "itself" not in str(caught.value)
    pool.release(holder.get())


def test_a_server_that_accepts_and_closes_is_the_cause_with_its_address() -> None:
    def close(sock: Any, address: Any) -> None:
        sock.close()

    server = StreamServer(("127.0.0.1", 0), close)
    server.start()
    address = ("127.0.0.1", server.server_port)

    def connect() -> Any:
        sock = socket.create_connection(address)
        try:
            gevent.sleep(0.02)  # a login, say
        except BaseException:
            sock.close()
            raise
        return sock

    pool = ConnectionPool(2, connect=connect)
    with pytest.raises(PoolTimeout, match="accepts and closes") as caught:
        pool.acquire(timeout=0.3)
    pool.close()
    server.stop()

    assert isinstance(caught.value.__cause__, ConnectError)
    assert f"127.0.0.1:{address[1]}" in str(caught.value)


def test_a_close_that_raises_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    class Pool(ConnectionPool[Any]):
        def _close_connection(self, conn: Any) -> None:
            raise OSError("cannot")

    caplog.set_level(logging.DEBUG, "geventpool")
    pool = Pool(3, connect=Maker(), name="close")
    pool.fill()
    pool.close()
    gevent.idle()
    raised = [record for record in caplog.records if "_close_connection" in record.message]

    assert [record.levelname for record in raised] == ["WARNING", "DEBUG", "DEBUG"]


class Odd(OSError):
    """Its class takes other arguments than it keeps."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port} refused")
        self.port = port


@pytest.mark.parametrize("error", [OSError("refused"), Odd("localhost", 1)], ids=str)
def test_fail_fast_keeps_nothing_of_a_caller_alive(error: OSError) -> None:
    class Local:
        pass

    def connect() -> Any:
        raise error

    pool = ConnectionPool(
        1, connect=connect, min_size=0, fail_fast=True, backoff=Backoff(first=10, longest=10)
    )

    def request() -> Any:
        local = Local()
        try:
            pool.acquire(timeout=1)
        except OSError as caught:
            seen.append((type(caught), str(caught), getattr(caught, "port", None)))
        return weakref.ref(local)

    seen: list[Any] = []
    alive = request()
    gc.collect()

    assert alive() is None
    assert seen == [(type(error), str(error), getattr(error, "port", None))]
    pool.close()


def test_a_limit_outlives_the_hub_that_used_it() -> None:
    limit = Limit(2)
    kept: list[Any] = []

    def use() -> None:
        pool = ConnectionPool(2, connect=Maker(), min_size=0, limits=[limit])
        kept.append(pool)
        kept.append(pool.acquire())
        gevent.get_hub().destroy(destroy_loop=True)

    in_thread(use)
    assert limit.used == 1
    limit.maximum = 1
    with ConnectionPool(1, connect=Maker(), limits=[limit]) as pool, pool.get(timeout=5):
        assert limit.used == 1
    kept.clear()
    gc.collect()
    limit.maximum = 3
    with ConnectionPool(3, connect=Maker(), limits=[limit]) as pool:
        pool.fill(timeout=5)
        assert limit.used == 3


def under_a_deadline(pool: ConnectionPool[Any]) -> None:
    with Deadline(1 / 30):
        pool.acquire()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda pool: pool.acquire(timeout=1 / 30), "no connection came free in 0.033 s ("),
        (lambda pool: pool.fill(timeout=1 / 30), "0 of 1 connections are open after 0.033 s ("),
        (under_a_deadline, "too little is left of a Deadline of 0.033 s, "),
    ],
    ids=["acquire", "fill", "Deadline"],
)
def test_a_time_limit_that_was_computed_is_told_to_the_millisecond(ask: Any, said: str) -> None:
    pool = ConnectionPool(1, connect=lambda: gevent.sleep(10))
    with pytest.raises(PoolTimeout) as caught:
        ask(pool)
    pool.close(timeout=0)
    assert said in str(caught.value)


def test_so_is_that_of_a_dial() -> None:
    settings: Any = {"connect_timeout": 1 / 30, "fail_fast": True}
    with ConnectionPool(1, connect=lambda: gevent.sleep(10), **settings) as pool:
        with pytest.raises(ConnectError, match=r"longer than connect_timeout \(0\.033 s\)"):
            pool.acquire()
