"""close(): who waits is sent away at once, and it returns after the time given."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest

from geventpool import ConnectionPool, PoolClosed
from support import LIBUV
from support.objects import Conn, Maker
from support.waiting import until


class Checked(ConnectionPool[Conn]):
    """Its server is silent."""

    def _keepalive(self, conn: Conn) -> None:
        gevent.sleep(60)


def outcome(pool: ConnectionPool[Any]) -> gevent.Greenlet:
    def use() -> BaseException | None:
        try:
            with pool.get(timeout=None):
                gevent.sleep(60)
        except PoolClosed as error:
            return error
        return None

    return gevent.spawn(use)


def test_a_caller_that_was_promised_a_connection_gets_pool_closed() -> None:
    pool = ConnectionPool(1, connect=Maker())
    conn = pool.acquire()
    waiter = outcome(pool)
    gevent.idle()
    pool.release(conn)  # promised to the waiter, which has not run yet
    began = monotonic()
    pool.close(timeout=0)

    assert monotonic() - began < 0.5
    assert isinstance(waiter.get(timeout=1), PoolClosed)
    assert conn.closed


@pytest.mark.parametrize("timeout", [0, 0.1, None])
def test_a_caller_whose_connection_is_being_checked_gets_pool_closed(
    timeout: float | None,
) -> None:
    maker = Maker()
    pool = Checked(1, connect=maker, check_after=0)
    waiter = outcome(pool)
    gevent.sleep(0.01)
    assert pool.stats().in_use == 1
    began = monotonic()
    pool.close(timeout=timeout)

    assert isinstance(waiter.get(timeout=0.5), PoolClosed)
    assert monotonic() - began < 1
    assert maker.open == set()


@pytest.mark.parametrize("hook", ["_close_connection", "_keepalive", "_reset_connection"])
def test_close_returns_after_its_own_timeout_and_not_after_that_of_a_hook(hook: str) -> None:
    class Stubborn(ConnectionPool[Conn]):
        def _keepalive(self, conn: Conn) -> None:
            pass

    called = []

    def hang(self: Any, conn: Conn) -> None:
        called.append(conn)
        ends = monotonic() + 2
        while (left := ends - monotonic()) > 0:
            try:
                gevent.sleep(left)
            except BaseException:  # as code that catches everything does
                pass

    setattr(Stubborn, hook, hang)
    pool = Stubborn(1, connect=Maker(), keepalive=0.01)
    pool.fill()
    holder = None
    if hook == "_keepalive":
        until(lambda: called)
    if hook == "_reset_connection":
        holder = gevent.spawn(lambda: pool.release(pool.acquire()))
        gevent.idle()
    began = monotonic()
    pool.close(timeout=0.2)
    took = monotonic() - began
    gevent.sleep(2)

    assert 0.15 < took < 1.8
    assert pool._bucket.slots == {}
    if holder is not None:
        holder.get(timeout=1)


def test_close_with_a_timeout_waits_for_holders_until_then() -> None:
    pool = ConnectionPool(1, connect=Maker())
    conn = pool.acquire()
    gevent.spawn_later(0.05, pool.release, conn)
    began = monotonic()
    gevent.spawn(pool.close, 5).join()

    assert (0.049 if LIBUV else 0.05) <= monotonic() - began < 2  # libuv counts milliseconds
    assert conn.closed
