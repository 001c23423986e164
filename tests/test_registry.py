"""``geventpool.pools()``: every pool of the process is known, and kept alive by nobody for that."""

from __future__ import annotations

import sys
import threading

import geventpool
import geventpool.pools
from geventpool import ConnectionManager, ConnectionPool, EndpointPool, registry
from geventpool.testing import EchoServer
from support.objects import Conn, Maker
from support.threads import Thread
from support.waiting import until


def known() -> list[str]:
    return [pool.name for pool in geventpool.pools()]


def test_each_pool_and_manager_is_known_in_the_order_in_which_they_were_made() -> None:
    before = geventpool.pools()
    first = ConnectionPool(1, connect=Maker(), name="first")
    second = EndpointPool(connect=lambda endpoint: Maker()(), name="second")
    third = ConnectionManager(name="third")
    assert geventpool.pools() == (*before, first, second, third)
    for pool in (first, second, third):
        assert pool.stats().name == pool.name
        pool.close()


def test_a_pool_that_is_closed_is_known_no_longer() -> None:
    pool = ConnectionPool(1, connect=Maker(), name="closed soon")
    assert "closed soon" in known()
    pool.close()
    assert "closed soon" not in known()


def test_to_be_known_keeps_no_pool_alive() -> None:
    ConnectionPool(1, connect=Maker(), name="dropped", min_size=0)
    until(lambda: "dropped" not in known(), "the hub to close what it had")


def test_a_pool_without_a_name_is_called_by_its_class_and_a_number() -> None:
    class OfThisTest(ConnectionPool[Conn]):
        def _new_connection(self) -> Conn:
            return Maker()()

    with OfThisTest(1) as first, OfThisTest(1) as second:
        assert (first.name, second.name) == ("OfThisTest-1", "OfThisTest-2")


def test_one_that_could_not_be_made_is_not_known() -> None:
    before = known()
    try:
        ConnectionPool(0, connect=Maker())
    except ValueError:
        pass
    assert known() == before


def test_the_sockets_of_a_manager_are_no_pool_of_their_own() -> None:
    with EchoServer() as server:
        before = len(known())
        with ConnectionManager(name="of sockets") as manager:
            with manager.connection(server.address):
                assert known()[before:] == ["of sockets"]


def test_the_pools_of_other_threads_are_known_too() -> None:
    seen: list[str] = []

    def work() -> None:
        with ConnectionPool(1, connect=Maker(), name="of a thread"):
            asked.set()
            told.wait(10)

    asked, told = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    assert asked.wait(10)
    seen += known()
    told.set()
    thread.join()
    assert "of a thread" in seen


def test_the_name_is_the_package_of_the_pools_as_well() -> None:
    assert geventpool.pools.ConnectionPool is ConnectionPool
    assert callable(geventpool.pools.extension.PoolExtension)


def test_another_thread_may_ask_while_pools_come_and_go() -> None:
    done: list[bool] = []
    asked: list[int] = []

    def ask() -> None:
        while not done:
            asked.append(len(geventpool.pools()))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread = Thread(ask)
        while len(asked) < 200:
            registry.register(Open())
    finally:
        done.append(True)
        sys.setswitchinterval(interval)
    thread.result()


class Open:
    closed = False
